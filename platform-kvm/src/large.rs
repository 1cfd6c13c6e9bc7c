//! Second-level entries that are 2 MiB leaves, where KVM keeps shadow tables.
//!
//! # What a leaf leaves behind
//! Where the host's page is huge, KVM shadows a leaf by a leaf, which a notifier removes without a rest. Where it is not, KVM makes a *direct*
//! shadow page: 512 translations to the block in a row, whatever the guest's tables say, linked where the leaf was. A notifier empties it, but the
//! link stays, and KVM follows it for whatever the entry says later: a table's entries, or another block's pages, would go into a shadow page whose
//! translations KVM takes for the old block's. Kernels differ in how they bear that, and none does well.
//!
//! So under shadow paging a leaf that goes leaves a [`Trace`] in its entry, which is not present: the block, and how many full flushes had begun by then.
//! Into such an entry goes
//! - a leaf of the same block, at any time: the direct shadow page is then what it should be (KVM itself makes another when the rights differ);
//! - anything else only after a full flush that began later: [`AddressSpace::settle_trace`].
//!
//! The flush needs nobody to leave the guest: KVM, before it links a shadow page, reads the entries above it again under the lock that the flush
//! takes. So what is linked later comes from what the entry says by then, and what was linked earlier is gone.
//!
//! What keeps flushes few: whoever allocates a block for an address asks which one was there ([`AddressSpace::block_before`]), an entry that has become a
//! table stays one, and only frames of the half with huge host pages are mapped by leaves.

use crate::arena::Gpa;
use crate::error::Error;
use crate::host_mode::Paging;
use crate::space::{AddressSpace, GVA_END, HUGE, index};
use crate::tables::{ACCESSED, PRESENT};
use std::sync::atomic::{AtomicU64, Ordering};

/// What was in an entry that is not present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trace {
    /// The first byte of the block, never 0.
    block: u64,
    /// Full flushes that had begun when the leaf was gone, modulo 2^24.
    begun: u64,
}

/// Bits of an address that begins a block.
const BLOCK: u64 = 0x000f_ffff_ffe0_0000;
/// The count is in two parts around it, and bits 0 and 7 are clear: not present, no leaf.
const LOW_BITS: u32 = 13;
const LOW_SHIFT: u32 = 8;
const HIGH_BITS: u32 = 11;
const HIGH_SHIFT: u32 = 52;
const COUNT_BITS: u32 = LOW_BITS + HIGH_BITS;

impl Trace {
    pub(crate) fn new(entry: u64, begun: u64) -> Trace {
        Trace { block: entry & BLOCK, begun: begun & ((1 << COUNT_BITS) - 1) }
    }

    /// What an entry that is not present says.
    pub(crate) fn of_entry(entry: u64) -> Option<Trace> {
        if entry & PRESENT != 0 || entry == 0 {
            return None;
        }
        let low = (entry >> LOW_SHIFT) & ((1 << LOW_BITS) - 1);
        let high = (entry >> HIGH_SHIFT) & ((1 << HIGH_BITS) - 1);
        Some(Trace { block: entry & BLOCK, begun: high << LOW_BITS | low })
    }

    pub(crate) fn to_entry(self) -> u64 {
        let low = self.begun & ((1 << LOW_BITS) - 1);
        let high = self.begun >> LOW_BITS;
        self.block | low << LOW_SHIFT | high << HIGH_SHIFT
    }

    /// Whether a flush that began after the leaf was gone has been completed: the last one that has is number `completed`. Counts wrap around, upon
    /// which a trace may seem to matter when it does not.
    pub(crate) fn is_gone(self, completed: u64) -> bool {
        let since = completed.wrapping_sub(self.begun) & ((1 << COUNT_BITS) - 1);
        (1..1 << (COUNT_BITS - 1)).contains(&since)
    }
}

impl AddressSpace {
    /// Whether a 2 MiB leaf may show this block.
    pub(crate) fn bears_leaf(&self, gpa: u64, bits: u64) -> bool {
        let nested = self.machine.mode().paging == Paging::Nested;
        let arena = self.machine.arena();
        // Entries ahead of their use are there to be taken away again.
        nested || (bits & ACCESSED != 0 && (arena.huge_start().0..arena.window_start().0).contains(&gpa))
    }

    /// Takes a leaf away; says what it was. The caller holds the `tree` lock.
    pub(crate) fn take_leaf(&self, slot: &AtomicU64) -> u64 {
        let entry = slot.swap(0, Ordering::SeqCst);
        if self.machine.mode().paging == Paging::Shadow && entry & ACCESSED != 0 {
            // Counted when the leaf is gone: a flush that begins before is none.
            slot.store(Trace::new(entry, self.machine.flushes_begun()).to_entry(), Ordering::SeqCst);
        }
        entry
    }

    /// Makes an entry that is not present fit for a leaf of `block`, or for anything. The caller holds the `tree` lock.
    pub(crate) fn settle_trace(&self, entry: u64, block: Option<u64>) -> Result<(), Error> {
        match Trace::of_entry(entry) {
            None => Ok(()),
            Some(trace) if block == Some(trace.block) => Ok(()),
            Some(trace) if trace.is_gone(self.machine.flushes_completed()) => Ok(()),
            Some(_) => self.machine.flush_everything(),
        }
    }

    /// The block of frames that was mapped last by one entry for the 2 MiB around `gva`, if that is cheaper to map again than another.
    pub fn block_before(&self, gva: u64) -> Option<Gpa> {
        if gva >= GVA_END {
            return None;
        }
        let _tree = self.tree.lock();
        let directory = self.existing_directory(gva & !(HUGE - 1)).ok()?;
        let entry = self.machine.tables().entry(directory, index(gva, 2)).load(Ordering::Relaxed);
        Trace::of_entry(entry).map(|trace| Gpa(trace.block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::LARGE;

    #[test]
    fn traces_are_kept_in_entries() {
        for begun in [0, 1, 0x1fff, 0x2000, 0xff_ffff, 0x100_0005] {
            let trace = Trace::new(0x8000_0012_3460_0067 | 0x0000_0004_0000_0000, begun);
            let entry = trace.to_entry();
            assert_eq!(entry & (PRESENT | LARGE), 0);
            assert_eq!(Trace::of_entry(entry), Some(trace));
            assert_eq!(trace.block, 0x0000_0016_3460_0000);
        }
        assert_eq!(Trace::of_entry(0), None);
        assert_eq!(Trace::of_entry(PRESENT | 0x4_0000_0000), None);
    }

    #[test]
    fn only_a_flush_that_began_later_counts() {
        let trace = |begun| Trace::new(0x4_0000_0000, begun);
        // None has begun; one had begun before and was completed after; one began after.
        assert!(!trace(0).is_gone(0));
        assert!(!trace(1).is_gone(0));
        assert!(!trace(1).is_gone(1));
        assert!(trace(0).is_gone(1));
        assert!(trace(1).is_gone(2));
        // Around the end of the count.
        assert!(trace((1 << 24) - 1).is_gone(1 << 24));
        assert!(!trace(1 << 24).is_gone((1 << 24) - 1));
        assert!(!trace(1 << 24).is_gone(1 << 24));
    }
}
