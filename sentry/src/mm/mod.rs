//! Address spaces: VMAs, page faults, copy-on-write, user memory access.
//!
//! [`Mm`] is Linux's `mm_struct`. It knows what is mapped where (a tree of VMAs), which frames hold the private pages of the
//! process (an extent map by guest page), and keeps the platform's [`Space`] no more generous than both.
//!
//! ```text
//!  VMA tree ──┬─ anonymous, private ──▶ private pages (extents of arena frames, copy-on-write after fork)
//!             ├─ object, private ─────▶ private pages, else the object's (read-only)
//!             └─ object, shared ──────▶ Mappable::translate: tmpfs frames, windows onto host files
//! ```
//!
//! - [`Mm::fault`] resolves page faults; [`Mm::mmap`] and its like are in the files named after them.
//! - User memory is reached by copying, a page that guest code may write to now by what its entry says: [`Mm::copy_in`], [`Mm::read_bytes`], … and [`UserIo`] for file data.
//! - Objects: [`Mappable`], with [`FrameStore`] (sparse refcounted frames) and [`WindowCache`] (pieces of host files) to build
//!   them from, and [`MappingSet`] through which an object takes its pages back.
//!
//! # Locks
//! `io_gate` → `state` (VMA tree, readers-writer) → `pages` (private pages) → `limbo`; locks inside objects' `translate` → space, arena.
//! Faults and user copies hold `state` for reading; whatever takes mappings or frames away holds it for writing. So memory
//! found under the read lock stays valid while the lock is held, with one exception: a frame shared copy-on-write may be
//! replaced (and freed by its last owner) under the read lock, and is pinned while it is copied from.
//! Host I/O straight into guest memory runs without `state`, on pinned frames, behind `io_gate` for reading; `fork` takes the
//! gate for writing, so no frame becomes copy-on-write while the host writes to it.
//! `state` is never held while VMAs' objects are dropped, nor over a host call that may wait for a file's data.
//!
//! Not there yet: swapping and reclaim, `userfaultfd`, memory policies (one node), soft-dirty bits, protection keys.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::{Mutex, MutexGuard, RwLock};

mod advise;
mod anonymous;
mod anonymous_object;
mod attach;
mod barrier;
mod brk;
mod extent_map;
mod fault;
mod footprint;
mod fork;
mod frame_store;
mod futex_key;
mod habit;
mod layout;
mod limbo;
mod lock;
mod map;
mod mappable;
mod object_copy;
mod patch;
mod private_pages;
mod protect;
mod remap;
mod report;
#[cfg(test)]
mod tests;
mod user_access;
mod user_io;
mod vma;
mod vma_map;
mod window_cache;

pub use advise::{Advice, Discard, Invalidate, WriteBack};
pub use anonymous_object::AnonymousObject;
pub use attach::Attach;
pub use fault::{FaultOutcome, MemoryAccess};
pub use frame_store::{FrameStore, PageBudget, TakenFrames};
pub use futex_key::{FutexKey, FutexScope};
pub use layout::{Entropy, Layout, Randomize};
pub use lock::LockMode;
pub use map::{MapBacking, MapFlags, MapRequest};
pub use mappable::{Backing, Mappable, MappingIdentity, MappingSet};
pub use patch::{Patches, counters as patch_counters, prepare as prepare_patching};
pub use remap::RemapFlags;
pub use report::{MemoryUsage, VmaReport};
pub use user_io::{MAX_RW_COUNT, UserIo};
pub use vma::{Prot, VmaFlags};
pub use window_cache::{WindowAccess, WindowCache, WindowSource};

use crate::errno::{Errno, SysResult};
use crate::platform::{Arena, Change, GVA_END, PAGE_SIZE, Platform, Space, Stragglers};
use crate::task::processors::Processors;
use crate::vfs::File;
use extent_map::{ExtentMap, Run};
use footprint::Footprint;
use habit::Habitat;
use limbo::Limbo;
use vma::Vma;
use vma_map::VmaMap;

/// Lowest address that `mmap` hands out or takes (`vm.mmap_min_addr`).
pub const MMAP_MIN_ADDR: u64 = 0x10000;
/// Most VMAs of an address space (`vm.max_map_count`).
pub const MAX_MAP_COUNT: usize = 65530;
/// "No limit" in [`MemoryLimits`].
pub const UNLIMITED: u64 = u64::MAX;

/// The resource limits that memory calls obey, in bytes. `setrlimit` hands new ones to [`Mm::set_limits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimits {
    /// `RLIMIT_AS`
    pub address_space: u64,
    /// `RLIMIT_DATA`
    pub data: u64,
    /// `RLIMIT_STACK`
    pub stack: u64,
    /// `RLIMIT_MEMLOCK`; [`UNLIMITED`] with `CAP_IPC_LOCK`.
    pub locked: u64,
}

impl Default for MemoryLimits {
    /// Linux's: an 8 MiB stack, 8 MiB of locked memory, nothing else.
    fn default() -> Self {
        MemoryLimits { address_space: UNLIMITED, data: UNLIMITED, stack: 8 << 20, locked: 8 << 20 }
    }
}

/// Where the parts of a program are, for `/proc/*/{stat,cmdline,environ,auxv,exe}` and `prctl(PR_SET_MM)`. Addresses in bytes.
#[derive(Clone, Default)]
#[allow(missing_docs)]
pub struct ImageInfo {
    pub start_code: u64,
    pub end_code: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_stack: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
    /// Address of the vDSO's ELF header, where it has one.
    pub vdso: Option<u64>,
    /// The auxiliary vector: (type, value).
    pub auxv: Vec<(u64, u64)>,
    /// The executable.
    pub exe: Option<Arc<File>>,
    /// Nobody may write to the executable while it runs.
    pub deny_write: Option<crate::vfs::attachments::DenyWrite>,
}

/// What is mapped; behind [`Mm`]'s readers-writer lock.
#[derive(Default)]
struct State {
    vmas: VmaMap,
    /// First address of the heap.
    brk_start: u64,
    /// Its current end, in bytes (not aligned).
    brk: u64,
    /// What `mlockall(MCL_FUTURE)` gives new mappings.
    lock_future: Option<LockMode>,
}

/// An address space, shared by the threads of a process.
pub struct Mm {
    id: u64,
    me: Weak<Mm>,
    platform: Arc<dyn Platform>,
    arena: &'static Arena,
    /// Before what it maps: see `Drop`.
    space: Arc<dyn Space>,
    layout: Layout,
    /// See the module's documentation.
    io_gate: RwLock<()>,
    state: RwLock<State>,
    /// By guest page number.
    pages: PrivatePages,
    /// Goes after `space`, too.
    limbo: Limbo,
    /// Once it has forked or been forked.
    footprint: OnceLock<Arc<Footprint>>,
    /// Once a program has been put into it.
    habitat: OnceLock<Habitat>,
    /// Patched call sites; the frames behind them go after `space`.
    patches: Arc<Patches>,
    trampolines: patch::TrampolineFrames,
    limits: Mutex<MemoryLimits>,
    image: Mutex<ImageInfo>,
    peak_bytes: AtomicU64,
    peak_rss_pages: AtomicU64,
    minor_faults: AtomicU64,
    /// Kinds of `membarrier` the process has registered for.
    barriers: AtomicU32,
    /// Where its threads run, once it has had several.
    processors: OnceLock<Arc<Processors>>,
}

impl Mm {
    /// An address space with nothing in it. `ENOMEM`.
    pub fn new(platform: &Arc<dyn Platform>, layout: Layout, limits: MemoryLimits) -> SysResult<Arc<Mm>> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let space = platform.new_space()?;
        let patches = Arc::new(Patches::default());
        if space.patched_entry().is_none() {
            patches.close();
        }
        let trampolines = patch::TrampolineFrames::new(platform.arena(), patches.clone());
        Ok(Arc::new_cyclic(|me| Mm {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            me: me.clone(),
            platform: platform.clone(),
            arena: platform.arena(),
            space,
            layout,
            io_gate: RwLock::new(()),
            state: RwLock::default(),
            pages: PrivatePages { arena: platform.arena(), map: Mutex::default() },
            limbo: Limbo::new(platform.arena()),
            footprint: OnceLock::new(),
            habitat: OnceLock::new(),
            patches,
            trampolines,
            limits: Mutex::new(limits),
            image: Mutex::default(),
            peak_bytes: AtomicU64::new(0),
            peak_rss_pages: AtomicU64::new(0),
            minor_faults: AtomicU64::new(0),
            barriers: AtomicU32::new(0),
            processors: OnceLock::new(),
        }))
    }

    /// The places of its threads: it has several from now on.
    pub fn share_processors(&self, cpus: u32) -> Arc<Processors> {
        self.processors.get_or_init(|| Processors::new(cpus)).clone()
    }

    /// The places of its threads, if it has had several.
    pub fn shared_processors(&self) -> Option<Arc<Processors>> {
        self.processors.get().cloned()
    }

    /// The translations that guest threads run on.
    pub fn space(&self) -> &Arc<dyn Space> {
        &self.space
    }

    /// The arena its frames come from.
    pub fn arena(&self) -> &'static Arena {
        self.arena
    }

    /// The platform it runs on.
    pub fn platform(&self) -> &Arc<dyn Platform> {
        &self.platform
    }

    /// A number that no other address space of this sandbox has had.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Where mappings and the stack go.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The limits in force.
    pub fn limits(&self) -> MemoryLimits {
        *self.limits.lock()
    }

    /// Replaces the limits (`setrlimit`, a change of credentials).
    pub fn set_limits(&self, limits: MemoryLimits) {
        *self.limits.lock() = limits;
    }

    /// Where the program's parts are.
    pub fn image(&self) -> ImageInfo {
        self.image.lock().clone()
    }

    /// Changes where the program's parts are.
    pub fn update_image(&self, change: impl FnOnce(&mut ImageInfo)) {
        change(&mut self.image.lock());
    }

    /// Takes rights away. A platform failure leaves pages reachable that must not be, so the caller's `remains` are then
    /// leaked instead of freed.
    fn revoke(&self, changes: &[Change], remains: &mut Remains) -> SysResult {
        self.settle();
        if changes.is_empty() {
            return Ok(());
        }
        self.space.revoke(changes).inspect_err(|errno| {
            tracing::error!(?errno, "cannot revoke guest translations; the pages are lost");
            remains.frames_are_lost = true;
        })
    }
}

impl Drop for Mm {
    /// Nobody runs in the space any more, and it goes (field order) before the frames and objects that it maps: so its
    /// translations need not be taken away first, which would take other processes' translations of shared frames along.
    fn drop(&mut self) {
        if Arc::strong_count(&self.space) > 1 {
            let mut remains = Remains::new(self.arena);
            if self.revoke(&[Change::Unmap(0..GVA_END)], &mut remains).is_err() {
                self.pages.keep_frames();
                self.trampolines.keep();
            }
        }
    }
}

/// The private pages of an address space; their frames go back with it.
struct PrivatePages {
    arena: &'static Arena,
    map: Mutex<ExtentMap>,
}

impl PrivatePages {
    fn lock(&self) -> MutexGuard<'_, ExtentMap> {
        self.map.lock()
    }

    /// Leaks the frames: somebody may still reach them.
    fn keep_frames(&mut self) {
        *self.map.get_mut() = ExtentMap::default();
    }
}

impl Drop for PrivatePages {
    fn drop(&mut self) {
        for run in self.map.get_mut().remove(0..u64::MAX) {
            self.arena.release(run.frames());
        }
    }
}

/// What an operation took out of an address space: dropped after its locks, frames freed, objects let go.
struct Remains {
    arena: &'static Arena,
    vmas: Vec<Vma>,
    runs: Vec<Run>,
    /// Who may still be at the pages: see [`Mm::defer`].
    stragglers: Option<Box<dyn Stragglers>>,
    frames_are_lost: bool,
}

impl Remains {
    fn new(arena: &'static Arena) -> Remains {
        Remains { arena, vmas: Vec::new(), runs: Vec::new(), stragglers: None, frames_are_lost: false }
    }
}

impl Drop for Remains {
    fn drop(&mut self) {
        if self.frames_are_lost {
            return;
        }
        if let Some(stragglers) = &self.stragglers {
            stragglers.expel();
        }
        for run in &self.runs {
            self.arena.release(run.frames());
        }
    }
}

/// Rounds a length up to whole pages; `None` when it overflows.
fn page_up(bytes: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(PAGE_SIZE)
}

/// Rounds an address down to its page.
fn page_down(addr: u64) -> u64 {
    addr & !(PAGE_SIZE - 1)
}

/// Page numbers of a page-aligned range of addresses.
fn page_numbers(range: &Range<u64>) -> Range<u64> {
    range.start / PAGE_SIZE..range.end / PAGE_SIZE
}

/// The page-aligned user range `[addr, addr + len)`, its end rounded up. `EINVAL` for a misaligned address, `ENOMEM` for
/// a range that does not fit into the lower half, `None` for an empty one.
fn user_range(addr: u64, len: u64) -> SysResult<Option<Range<u64>>> {
    if !addr.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    let end = page_up(len).and_then(|len| addr.checked_add(len)).ok_or(Errno::ENOMEM)?;
    if end > GVA_END && len > 0 {
        return Err(Errno::ENOMEM);
    }
    Ok((end > addr).then_some(addr..end))
}
