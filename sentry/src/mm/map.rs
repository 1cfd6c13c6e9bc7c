//! `mmap`, `munmap`, and taking an object's pages back.

use std::ops::Range;
use std::sync::Arc;

use bitflags::bitflags;
use linux_raw_sys::general as linux;

use super::anonymous::FIRST;
use super::anonymous_object::AnonymousObject;
use super::lock::LockMode;
use super::mappable::{Mappable, MappingIdentity, MappingSet, PrivateCopies};
use super::vma::{ObjectMapping, Prot, Source, Vma, VmaFlags, is_data};
use super::{
    MAX_MAP_COUNT, MMAP_MIN_ADDR, MemoryAccess, Mm, Remains, State, page_down, page_numbers, page_up,
    user_range,
};
use crate::errno::{Errno, SysResult};
use crate::platform::{Change, GVA_END, PAGE_SIZE};
use crate::vfs::File;
use crate::wait;

bitflags! {
    /// `MAP_*`, without the sharing type.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct MapFlags: u32 {
        /// Exactly there, replacing what is mapped.
        const FIXED = linux::MAP_FIXED;
        /// Exactly there, or `EEXIST`.
        const FIXED_NOREPLACE = linux::MAP_FIXED_NOREPLACE;
        /// A stack that grows downwards.
        const GROWSDOWN = linux::MAP_GROWSDOWN;
        /// Lock it.
        const LOCKED = linux::MAP_LOCKED;
        /// Do not count it as committed.
        const NORESERVE = linux::MAP_NORESERVE;
        /// Touch it now.
        const POPULATE = linux::MAP_POPULATE;
        /// With `POPULATE`: only what is in memory.
        const NONBLOCK = linux::MAP_NONBLOCK;
        /// Below 2 GiB.
        const LOW_32BIT = linux::MAP_32BIT;
        /// What dynamic linkers give for programs and libraries. Linux ignores it; here it allows copying ahead.
        const DENYWRITE = linux::MAP_DENYWRITE;
        /// A thread's stack: no huge pages.
        const STACK = linux::MAP_STACK;
        /// Shared between the processes that inherit it, or writes go to the object.
        const SHARED = linux::MAP_SHARED;
    }
}

/// What is mapped other than zeroes.
pub struct MapBacking {
    /// The object.
    pub object: Arc<dyn Mappable>,
    /// Page-aligned offset in it, in bytes.
    pub offset: u64,
    /// The description it came from.
    pub file: Option<Arc<File>>,
    /// What `mprotect` may ever set: no `WRITE` for a shared mapping of a file that is not open for writing, no `EXEC` on a
    /// `noexec` mount.
    pub max_prot: Prot,
}

/// A call of `mmap`.
pub struct MapRequest {
    /// Address or hint; 0 for none.
    pub addr: u64,
    /// Length in bytes; rounded up to pages.
    pub len: u64,
    /// Protection.
    pub prot: Prot,
    /// Flags.
    pub flags: MapFlags,
    /// What is mapped; `None` for anonymous memory.
    pub backing: Option<MapBacking>,
}

impl Mm {
    /// Maps memory and returns its address.
    ///
    /// `EINVAL` (length 0, misaligned fixed address), `ENOMEM` (no room, limits, too many mappings), `EPERM` (fixed below
    /// [`MMAP_MIN_ADDR`]; a sealed mapping in the way), `EEXIST` (`FIXED_NOREPLACE`), `EAGAIN` (`RLIMIT_MEMLOCK`), `EACCES` (protection beyond `max_prot`),
    /// `EOVERFLOW` (offset + length).
    pub fn mmap(&self, request: MapRequest) -> SysResult<u64> {
        let special = VmaFlags::empty();
        self.map_with(request, special)
    }

    /// `mmap` for the kernel's own mappings (vDSO, stack), with extra flags.
    pub(crate) fn map_with(&self, request: MapRequest, extra: VmaFlags) -> SysResult<u64> {
        if request.len == 0 {
            return Err(Errno::EINVAL);
        }
        let len = page_up(request.len).filter(|len| *len <= GVA_END).ok_or(Errno::ENOMEM)?;
        if let Some(backing) = &request.backing {
            if backing.offset.checked_add(len).is_none() {
                return Err(Errno::EOVERFLOW);
            }
            if !backing.max_prot.contains(request.prot) {
                return Err(Errno::EACCES);
            }
        }
        let mut remains = Remains::new(self.arena);
        let mut state = self.state.write();
        let lock =
            if request.flags.contains(MapFlags::LOCKED) { Some(LockMode::Now) } else { state.lock_future };
        let start = self.place(&state, &request, len)?;
        let range = start..start + len;
        let flags = vma_flags(&request, extra, lock);
        self.check_limits(&state, &range, request.prot, flags)?;
        self.make_room(&state, &range, &mut remains)?;
        self.unmap_locked(&mut state, range.clone(), &mut remains)?;
        let source = self.source(&request, len, flags);
        let vma = Vma { start, end: start + len, prot: request.prot, flags, source };
        state.vmas.insert(vma);
        self.note_size(&state);
        drop(state);
        drop(remains);
        self.enter_new(&request, range, lock);
        Ok(start)
    }

    /// Enters what a new mapping asks for, or is about to touch.
    fn enter_new(&self, request: &MapRequest, range: Range<u64>, lock: Option<LockMode>) {
        let populate =
            request.flags.contains(MapFlags::POPULATE) && !request.flags.contains(MapFlags::NONBLOCK);
        if populate || matches!(lock, Some(LockMode::Now)) {
            // As on Linux, failing to populate does not fail the call.
            let _ = self.populate(range, None);
        } else if request.backing.is_some() {
            self.map_object_ahead(range.start);
        } else if range.end - range.start <= u64::from(FIRST) * PAGE_SIZE {
            self.map_ahead(range.start);
        }
    }

    /// Unmaps `[addr, addr + len)`. `EINVAL` (misaligned, empty), `ENOMEM` (too many mappings), `EPERM` (sealed).
    pub fn munmap(&self, addr: u64, len: u64) -> SysResult {
        let invalid = |_| Errno::EINVAL;
        let range = user_range(addr, len).map_err(invalid)?.ok_or(Errno::EINVAL)?;
        let mut remains = Remains::new(self.arena);
        let mut state = self.state.write();
        if state.vmas.splits(range.clone()) == 2 && state.vmas.len() + 1 > MAX_MAP_COUNT {
            return Err(Errno::ENOMEM);
        }
        if wait::decline_unless(|| self.is_quick(&state, &range)) {
            return Err(Errno::EAGAIN);
        }
        let result = self.unmap_locked(&mut state, range, &mut remains);
        drop(state);
        drop(remains);
        result
    }

    /// Whether the pages of a range can be taken away while the caller's vCPU stays in the guest, and that is the quicker way.
    pub(super) fn is_quick(&self, state: &State, range: &Range<u64>) -> bool {
        const FEW: u64 = 512;
        let own = |vma: &Vma| matches!(vma.source, Source::Anonymous);
        let few = || {
            self.pages.lock().runs(page_numbers(range)).map(|run| u64::from(run.count)).sum::<u64>() <= FEW
        };
        self.space.revokes_in_place()
            && !self.limbo.is_full()
            && state.vmas.overlapping(range.clone()).all(own)
            && few()
    }

    /// Takes everything out of a range. `remains` must be dropped after the lock.
    pub(super) fn unmap_locked(
        &self,
        state: &mut State,
        range: Range<u64>,
        remains: &mut Remains,
    ) -> SysResult {
        if state.vmas.overlapping(range.clone()).any(|vma| vma.flags.contains(VmaFlags::SEALED)) {
            return Err(Errno::EPERM);
        }
        self.forget_patches(&range);
        let removed = state.vmas.remove(range);
        if removed.is_empty() {
            return Ok(());
        }
        let changes: Vec<Change> = removed.iter().map(|vma| Change::Unmap(vma.start..vma.end)).collect();
        // What objects show may become something else as soon as they are let go.
        let own = removed.iter().all(|vma| matches!(vma.source, Source::Anonymous));
        let mut pages = self.pages.lock();
        let first = remains.runs.len();
        for vma in &removed {
            remains.runs.extend(pages.remove(page_numbers(&(vma.start..vma.end))));
        }
        let result = if own {
            let going = remains.runs.split_off(first);
            let result = self.revoke_in_place(&changes, &going, remains);
            remains.runs.extend(going);
            result
        } else {
            self.revoke(&changes, remains)
        };
        drop(pages);
        self.defer(remains);
        remains.vmas.extend(removed);
        result
    }

    /// An object takes `[start, end)` of itself back: see [`MappingSet`].
    pub(super) fn invalidate(&self, set: &MappingSet, start: u64, end: u64, copies: PrivateCopies) {
        let mut remains = Remains::new(self.arena);
        let state = self.state.write();
        let mut pages = self.pages.lock();
        let mut changes = Vec::new();
        for vma in state.vmas.iter() {
            let Some((mapping, offset)) = vma.object_at(vma.start) else { continue };
            if !std::ptr::eq(mapping.object.mappings(), set) {
                continue;
            }
            let low = vma.start + page_down(start).saturating_sub(offset).min(vma.len());
            let high = vma.start + end.saturating_sub(offset).min(vma.len());
            let range = low..page_up(high).unwrap_or(vma.end).min(vma.end);
            if range.start >= range.end {
                continue;
            }
            if vma.is_private() && copies == PrivateCopies::Drop {
                self.forget_patches(&range);
                remains.runs.extend(pages.remove(page_numbers(&range)));
            }
            unmap_around(&mut changes, &pages, range);
        }
        let _ = self.revoke(&changes, &mut remains);
        drop(pages);
        drop(state);
    }

    /// Chooses the address.
    fn place(&self, state: &State, request: &MapRequest, len: u64) -> SysResult<u64> {
        let hint = request.addr;
        if request.flags.intersects(MapFlags::FIXED | MapFlags::FIXED_NOREPLACE) {
            if !hint.is_multiple_of(PAGE_SIZE) {
                return Err(Errno::EINVAL);
            }
            let end = hint.checked_add(len).filter(|end| *end <= GVA_END).ok_or(Errno::ENOMEM)?;
            if hint < MMAP_MIN_ADDR {
                return Err(Errno::EPERM);
            }
            let taken = state.vmas.overlapping(hint..end).next().is_some();
            if taken && request.flags.contains(MapFlags::FIXED_NOREPLACE) {
                return Err(Errno::EEXIST);
            }
            return Ok(hint);
        }
        if hint != 0 {
            let hint = page_up(hint).unwrap_or(0).max(MMAP_MIN_ADDR);
            let fits =
                hint.checked_add(len).is_some_and(|end| end <= GVA_END && state.vmas.is_free(hint..end));
            if fits && !request.flags.contains(MapFlags::LOW_32BIT) {
                return Ok(hint);
            }
        }
        if request.flags.contains(MapFlags::LOW_32BIT) {
            return state.vmas.gap_bottom_up(len, 0x4000_0000..0x8000_0000).ok_or(Errno::ENOMEM);
        }
        self.find_gap(state, len).ok_or(Errno::ENOMEM)
    }

    /// A hole for a new mapping: downwards from the base, else anywhere. Whole huge pages are aligned to them.
    pub(super) fn find_gap(&self, state: &State, len: u64) -> Option<u64> {
        const HUGE_BYTES: u64 = 2 << 20;
        let below = MMAP_MIN_ADDR..self.layout.mmap_base;
        if len.is_multiple_of(HUGE_BYTES)
            && let Some(room) = len.checked_add(HUGE_BYTES - PAGE_SIZE)
            && let Some(start) = state.vmas.gap_top_down(room, below.clone())
        {
            return start.checked_next_multiple_of(HUGE_BYTES);
        }
        let anywhere = page_down(GVA_END / 3)..GVA_END;
        state
            .vmas
            .gap_top_down(len, below)
            .or_else(|| state.vmas.gap_bottom_up(len, anywhere))
            .or_else(|| state.vmas.gap_bottom_up(len, MMAP_MIN_ADDR..GVA_END))
    }

    /// Limits of the address space, for a new mapping in `range`.
    fn check_limits(&self, state: &State, range: &Range<u64>, prot: Prot, flags: VmaFlags) -> SysResult {
        let limits = self.limits();
        let (len, mut replaced, mut replaced_data, mut replaced_locked) = (range.end - range.start, 0, 0, 0);
        for vma in state.vmas.overlapping(range.clone()) {
            let inside = vma.end.min(range.end) - vma.start.max(range.start);
            replaced += inside;
            replaced_data += if vma.is_data() { inside } else { 0 };
            replaced_locked += if vma.flags.contains(VmaFlags::LOCKED) { inside } else { 0 };
        }
        let beyond = |now: u64, replaced: u64, limit: u64| (now - replaced).saturating_add(len) > limit;
        if beyond(state.vmas.bytes(), replaced, limits.address_space) {
            return Err(Errno::ENOMEM);
        }
        if is_data(prot, flags) && beyond(state.vmas.data_bytes(), replaced_data, limits.data) {
            return Err(Errno::ENOMEM);
        }
        let locked = flags.contains(VmaFlags::LOCKED);
        if locked && beyond(state.vmas.locked_bytes(), replaced_locked, limits.locked) {
            return Err(Errno::EAGAIN);
        }
        if state.vmas.len() + state.vmas.splits(range.clone()) >= MAX_MAP_COUNT {
            return Err(Errno::ENOMEM);
        }
        Ok(())
    }

    fn source(&self, request: &MapRequest, len: u64, flags: VmaFlags) -> Source {
        let (object, offset, file): (Arc<dyn Mappable>, u64, Option<Arc<File>>) = match &request.backing {
            Some(backing) => (backing.object.clone(), backing.offset, backing.file.clone()),
            None if request.flags.contains(MapFlags::SHARED) => {
                let identity =
                    MappingIdentity { name: b"/dev/zero (deleted)".to_vec(), ..Default::default() };
                (AnonymousObject::new(self.arena, len, identity), 0, None)
            }
            None => return Source::Anonymous,
        };
        let mapping = ObjectMapping::new(object, file, flags, (self.id, self.me.clone()));
        Source::Object { mapping, offset }
    }

    /// Enters a small mapping of an object at once, and the beginning of a segment: whoever maps it will touch it.
    fn map_object_ahead(&self, start: u64) {
        let state = self.state.read();
        let Some(vma) = state.vmas.find(start) else { return };
        if vma.flags.contains(VmaFlags::IMAGE) && vma.prot.intersects(Prot::WRITE | Prot::EXEC) {
            self.enter_image(vma);
        } else if vma.len() <= 64 * PAGE_SIZE && !vma.prot.is_empty() {
            let _ = self.resolve(vma, start, MemoryAccess::Read);
        }
    }
}

/// Adds the parts of `range` that have no private page to what is unmapped.
fn unmap_around(changes: &mut Vec<Change>, pages: &super::extent_map::ExtentMap, range: Range<u64>) {
    let numbers = page_numbers(&range);
    let mut at = numbers.start;
    for run in pages.runs(numbers.clone()) {
        if run.page > at {
            changes.push(Change::Unmap(at * PAGE_SIZE..run.page * PAGE_SIZE));
        }
        at = run.end();
    }
    if at < numbers.end {
        changes.push(Change::Unmap(at * PAGE_SIZE..numbers.end * PAGE_SIZE));
    }
}

fn vma_flags(request: &MapRequest, extra: VmaFlags, lock: Option<LockMode>) -> VmaFlags {
    let mut flags = extra;
    flags.set(VmaFlags::SHARED, request.flags.contains(MapFlags::SHARED));
    flags.set(VmaFlags::GROWSDOWN, request.flags.contains(MapFlags::GROWSDOWN));
    flags.set(VmaFlags::NORESERVE, request.flags.contains(MapFlags::NORESERVE));
    flags.set(VmaFlags::LOCKED, lock.is_some());
    flags.set(VmaFlags::IMAGE, request.backing.is_some() && request.flags.contains(MapFlags::DENYWRITE));
    let max = request.backing.as_ref().map_or(Prot::all(), |backing| backing.max_prot);
    flags.set(VmaFlags::MAYREAD, max.contains(Prot::READ));
    flags.set(VmaFlags::MAYWRITE, max.contains(Prot::WRITE));
    flags.set(VmaFlags::MAYEXEC, max.contains(Prot::EXEC));
    flags
}
