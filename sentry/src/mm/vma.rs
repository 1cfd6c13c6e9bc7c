//! One mapping: Linux's `vm_area_struct`.

use std::sync::{Arc, Weak};

use bitflags::bitflags;
use linux_raw_sys::general as linux;

use super::Mm;
use super::mappable::{Mappable, Reach};
use crate::platform::Perms;
use crate::vfs::File;

bitflags! {
    /// Protection, as `mmap` and `mprotect` take it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Prot: u32 {
        /// Reads.
        const READ = linux::PROT_READ;
        /// Writes.
        const WRITE = linux::PROT_WRITE;
        /// Instruction fetches.
        const EXEC = linux::PROT_EXEC;
    }
}

impl Prot {
    /// The rights of a guest entry; `None` for no access. x86 pages that grant anything are readable.
    pub fn perms(self) -> Option<Perms> {
        if self.is_empty() {
            return None;
        }
        let mut perms = Perms::R;
        perms.set(Perms::W, self.contains(Prot::WRITE));
        perms.set(Perms::X, self.contains(Prot::EXEC));
        Some(perms)
    }
}

bitflags! {
    /// Properties of a VMA (`VM_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct VmaFlags: u32 {
        /// Writes go to the object.
        const SHARED = 1 << 0;
        /// Grows towards lower addresses when touched below its start.
        const GROWSDOWN = 1 << 1;
        /// `mlock`ed.
        const LOCKED = 1 << 2;
        /// Not counted as committed memory.
        const NORESERVE = 1 << 3;
        /// Not inherited by `fork`.
        const DONTFORK = 1 << 4;
        /// Empty after `fork`.
        const WIPEONFORK = 1 << 5;
        /// Not in core dumps.
        const DONTDUMP = 1 << 6;
        /// `MADV_HUGEPAGE`.
        const HUGEPAGE = 1 << 7;
        /// `MADV_NOHUGEPAGE`.
        const NOHUGEPAGE = 1 << 8;
        /// `mprotect` may add `PROT_READ`.
        const MAYREAD = 1 << 9;
        /// `mprotect` may add `PROT_WRITE`.
        const MAYWRITE = 1 << 10;
        /// `mprotect` may add `PROT_EXEC`.
        const MAYEXEC = 1 << 11;
        /// `mseal`ed.
        const SEALED = 1 << 12;
        /// The kernel's own (`[vdso]`, `[vvar]`): not merged, not resized.
        const SPECIAL = 1 << 13;
        /// `MADV_RANDOM`.
        const RANDOM = 1 << 14;
        /// `MADV_SEQUENTIAL`.
        const SEQUENTIAL = 1 << 15;
        /// Part of a program or library, which does not change under its users.
        const IMAGE = 1 << 16;
    }
}

impl VmaFlags {
    /// The most that `mprotect` may set.
    pub fn allowed_prot(self) -> Prot {
        let mut prot = Prot::empty();
        prot.set(Prot::READ, self.contains(VmaFlags::MAYREAD));
        prot.set(Prot::WRITE, self.contains(VmaFlags::MAYWRITE));
        prot.set(Prot::EXEC, self.contains(VmaFlags::MAYEXEC));
        prot
    }

    /// All three `MAY` bits.
    pub const MAY_ALL: VmaFlags = VmaFlags::MAYREAD.union(VmaFlags::MAYWRITE).union(VmaFlags::MAYEXEC);
}

/// An address space's registration as a mapper of an object; split VMAs share it.
pub(super) struct ObjectMapping {
    pub object: Arc<dyn Mappable>,
    /// The description it was mapped through, for `/proc/*/maps` and to keep it open.
    pub file: Option<Arc<File>>,
    mm: u64,
    reach: Reach,
}

impl ObjectMapping {
    pub fn new(
        object: Arc<dyn Mappable>,
        file: Option<Arc<File>>,
        flags: VmaFlags,
        (id, mm): (u64, Weak<Mm>),
    ) -> Arc<Self> {
        let written = flags.contains(VmaFlags::SHARED | VmaFlags::MAYWRITE);
        let reach = if written { Reach::Write } else { Reach::Read };
        object.mappings().add(id, mm, reach);
        Arc::new(ObjectMapping { object, file, mm: id, reach })
    }

    fn continues(&self, other: &ObjectMapping) -> bool {
        let file = |mapping: &ObjectMapping| mapping.file.as_ref().map(Arc::as_ptr);
        std::ptr::eq(self.object.mappings(), other.object.mappings()) && file(self) == file(other)
    }
}

impl Drop for ObjectMapping {
    fn drop(&mut self) {
        self.object.mappings().remove(self.mm, self.reach);
        self.object.detached();
    }
}

/// Where pages come from that the process has not written.
#[derive(Clone)]
pub(super) enum Source {
    /// Zeroes.
    Anonymous,
    /// An object, from a page-aligned offset on.
    Object { mapping: Arc<ObjectMapping>, offset: u64 },
}

/// A mapping: page-aligned, not empty.
#[derive(Clone)]
pub(super) struct Vma {
    pub start: u64,
    pub end: u64,
    pub prot: Prot,
    pub flags: VmaFlags,
    pub source: Source,
}

impl Vma {
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether writes make private copies.
    pub fn is_private(&self) -> bool {
        !self.flags.contains(VmaFlags::SHARED)
    }

    /// Whether it counts against `RLIMIT_DATA`.
    pub fn is_data(&self) -> bool {
        is_data(self.prot, self.flags)
    }

    /// The object and the offset in it that `addr` maps.
    pub fn object_at(&self, addr: u64) -> Option<(&Arc<ObjectMapping>, u64)> {
        match &self.source {
            Source::Anonymous => None,
            Source::Object { mapping, offset } => Some((mapping, offset + (addr - self.start))),
        }
    }

    /// Cuts everything outside of `[start, end)` off.
    pub fn clip(mut self, start: u64, end: u64) -> Vma {
        let (start, end) = (self.start.max(start), self.end.min(end));
        if let Source::Object { offset, .. } = &mut self.source {
            *offset += start - self.start;
        }
        self.start = start;
        self.end = end;
        self
    }

    /// Whether `next`, which starts where this ends, can be one VMA with this.
    pub fn joins(&self, next: &Vma) -> bool {
        let same = self.end == next.start
            && self.prot == next.prot
            && self.flags == next.flags
            && !self.flags.intersects(VmaFlags::SPECIAL | VmaFlags::GROWSDOWN);
        same && match (&self.source, &next.source) {
            (Source::Anonymous, Source::Anonymous) => true,
            (Source::Object { mapping: a, offset }, Source::Object { mapping: b, offset: next_offset }) => {
                offset + self.len() == *next_offset && a.continues(b)
            }
            _ => false,
        }
    }
}

/// Whether memory of this kind counts against `RLIMIT_DATA`: private, writable, no stack.
pub(super) fn is_data(prot: Prot, flags: VmaFlags) -> bool {
    prot.contains(Prot::WRITE) && !flags.intersects(VmaFlags::SHARED | VmaFlags::GROWSDOWN)
}
