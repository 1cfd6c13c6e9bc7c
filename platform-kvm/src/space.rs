//! Address spaces: guest page tables in memory that no guest mapping can reach.

use crate::arena::Gpa;
use crate::error::Error;
use std::ops::Range;

/// First guest-virtual address that an application cannot have: the end of the lower half less a guard page, as on Linux.
pub const GVA_END: u64 = 0x7fff_ffff_f000;

bitflags::bitflags! {
    /// Rights of a mapping. The architecture has no execute-only or write-only pages: any right includes reading.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Perms: u8 {
        /// Reads.
        const R = 1;
        /// Writes.
        const W = 2;
        /// Instruction fetches.
        const X = 4;
    }
}

/// A loss of rights over a page-aligned range of guest-virtual addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Nothing is mapped there afterwards.
    Unmap(Range<u64>),
    /// Rights outside `perms` are taken away from what is mapped; nothing is ever added. Empty `perms` unmap.
    Protect {
        /// Where.
        range: Range<u64>,
        /// What may stay.
        perms: Perms,
    },
}

/// One set of page tables: the lower half belongs to the application, the upper half to the ring-0 stub.
#[derive(Debug)]
pub struct AddressSpace {
    _private: (),
}

impl AddressSpace {
    /// Maps `len` bytes at `gva` to `gpa` with exactly `perms`. All are multiples of 4 KiB; 2 MiB entries are used wherever
    /// both addresses are congruent. Filling empty entries and adding rights is cheap; where something else was mapped, or rights
    /// are lost, this revokes first.
    ///
    /// # Errors
    /// [`Error::Invalid`] for misaligned or foreign addresses and empty `perms`, [`Error::OutOfMemory`] for table pages.
    /// What was mapped before the error stays mapped.
    pub fn map(&self, _gva: u64, _gpa: Gpa, _len: u64, _perms: Perms) -> Result<(), Error> {
        todo!()
    }

    /// Takes rights away. When it returns, no vCPU can use the old rights any more, also none that runs in this space now.
    /// Batch: a call costs tens of microseconds on shadow paging, however many changes it carries.
    ///
    /// # Errors
    /// [`Error::Invalid`] for misaligned ranges (then nothing was changed); [`Error::OutOfMemory`] when splitting a 2 MiB
    /// entry needs a table page (the whole entry is then unmapped, so that no right survives); [`Error::Host`].
    pub fn revoke(&self, _changes: &[Change]) -> Result<(), Error> {
        todo!()
    }

    /// After [`crate::Exit::HostFault`]: finds mapped window pages which the host cannot back any more, and unmaps them.
    /// Returns how many pages were unmapped.
    ///
    /// # Errors
    /// As [`AddressSpace::revoke`].
    pub fn revoke_unbacked(&self) -> Result<usize, Error> {
        todo!()
    }

    /// What the entry for an address says: guest-physical address of that byte and rights.
    pub fn lookup(&self, _gva: u64) -> Option<(Gpa, Perms)> {
        todo!()
    }
}
