//! Objects that can be mapped, and who maps them.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::Mm;
use crate::errno::SysResult;
use crate::platform::Gpa;

/// Guest-physical memory behind a part of a [`Mappable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Where it starts.
    pub gpa: Gpa,
    /// Bytes of it, page-aligned, at least one page.
    pub len: u64,
    /// Whether guest entries may grant writing (the host mapping allows it).
    pub writable: bool,
}

/// Something that can be mapped: a tmpfs file, a file of the host, shared anonymous memory, a device.
///
/// The memory a [`Backing`] names stays valid while the mapping is registered: before taking pages away (truncation, hole
/// punching, eviction) the object calls [`MappingSet::invalidate`], **without** holding locks that `translate` takes. Shrinking
/// takes three steps: set the new size (so that `translate` refuses), invalidate, free.
pub trait Mappable: Send + Sync {
    /// Memory for the page-aligned `offset`, at most `len` bytes of it, allocating if need be. Called with the address
    /// space's lock held: must not access user memory, and should not wait for long.
    /// `EFAULT` past the end of the object (the guest gets `SIGBUS`), `ENOMEM` when the sandbox is out of memory.
    fn translate(&self, offset: u64, len: u64, write: bool) -> SysResult<Backing>;

    /// The mappings of this object.
    fn mappings(&self) -> &MappingSet;

    /// Whether new shared mappings may write to it. Seals take that away from a memfd.
    fn may_be_written(&self) -> bool {
        true
    }

    /// Name for `/proc/*/maps`, device and inode number.
    fn identity(&self) -> MappingIdentity;

    /// Writes `[offset, offset + len)` back to stable storage (`msync(MS_SYNC)`).
    fn sync(&self, _offset: u64, _len: u64) -> SysResult {
        Ok(())
    }

    /// Frees `[offset, offset + len)` (`madvise(MADV_REMOVE)`), as `fallocate(FALLOC_FL_PUNCH_HOLE)` does.
    fn punch_hole(&self, _offset: u64, _len: u64) -> SysResult {
        Err(crate::errno::Errno::EOPNOTSUPP)
    }

    /// Bytes of a System V segment, which `shmdt` takes out whole; `None` for everything else.
    fn segment_size(&self) -> Option<u64> {
        None
    }

    /// An address space has let go of a mapping of the object. Takes no locks of the address space or above.
    fn detached(&self) {}
}

/// How `/proc/*/maps` shows a mapped object.
#[derive(Clone, Debug, Default)]
pub struct MappingIdentity {
    /// Path or label.
    pub name: Vec<u8>,
    /// Device number.
    pub device: crate::vfs::Device,
    /// Inode number.
    pub ino: u64,
}

/// Whether private copies go, too, when pages of a file go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PrivateCopies {
    /// Hole punching, eviction: what a process has written to its private mapping stays.
    Keep,
    /// Truncation: beyond the end of the file nothing stays.
    Drop,
}

/// What a mapping can do to its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Read it: a private mapping, or a shared one that cannot become writable.
    Read,
    /// Write to it, at once or after `mprotect`.
    Write,
}

/// Who maps an object.
///
/// Lock: leaf; address spaces are called without it.
#[derive(Default)]
pub struct MappingSet {
    spaces: Mutex<BTreeMap<u64, Registered>>,
}

struct Registered {
    mm: Weak<Mm>,
    mappings: usize,
    /// How many of them are shared and may become writable.
    writable: usize,
}

impl MappingSet {
    /// Takes the pages of `[offset, offset + len)` out of every address space that maps them. When it returns, nobody can
    /// reach the memory `translate` gave for them before the call. Private copies stay.
    pub fn invalidate(&self, offset: u64, len: u64) {
        self.each(|mm| mm.invalidate(self, offset, offset.saturating_add(len), PrivateCopies::Keep));
    }

    /// The file now ends at `size`: takes everything beyond out of every address space, private copies included.
    pub fn invalidate_beyond(&self, size: u64) {
        let start = size.saturating_add(0xfff) & !0xfff;
        self.each(|mm| mm.invalidate(self, start, u64::MAX, PrivateCopies::Drop));
    }

    /// Mappings there are.
    pub fn count(&self) -> u64 {
        self.spaces.lock().values().map(|entry| entry.mappings as u64).sum()
    }

    /// Whether anybody maps the object.
    pub fn is_mapped(&self) -> bool {
        !self.spaces.lock().is_empty()
    }

    /// Whether anybody could write to the object through a mapping, now or after `mprotect`.
    pub fn is_mapped_writable(&self) -> bool {
        self.spaces.lock().values().any(|entry| entry.writable > 0)
    }

    fn each(&self, act: impl Fn(&Mm)) {
        let spaces: Vec<Arc<Mm>> =
            self.spaces.lock().values().filter_map(|entry| entry.mm.upgrade()).collect();
        for mm in spaces {
            act(&mm);
        }
    }

    pub(super) fn add(&self, id: u64, mm: Weak<Mm>, reach: Reach) {
        let mut spaces = self.spaces.lock();
        let entry = spaces.entry(id).or_insert(Registered { mm, mappings: 0, writable: 0 });
        entry.mappings = entry.mappings.saturating_add(1);
        entry.writable = entry.writable.saturating_add(usize::from(reach == Reach::Write));
    }

    pub(super) fn remove(&self, id: u64, reach: Reach) {
        let mut spaces = self.spaces.lock();
        if let Some(entry) = spaces.get_mut(&id) {
            entry.mappings = entry.mappings.saturating_sub(1);
            entry.writable = entry.writable.saturating_sub(usize::from(reach == Reach::Write));
            if entry.mappings == 0 {
                spaces.remove(&id);
            }
        }
    }
}
