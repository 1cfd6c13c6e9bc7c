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
//! # One place for a block
//! KVM has one direct shadow page for a block and its rights, whoever maps it. Through a link that is left behind, an address would show what another
//! leaf of the same block, elsewhere, fills in there. So a block is mapped by a leaf at one place only ([`Places`]): elsewhere small entries do it, until the
//! space of that place is gone, or a flush has been completed that began after the leaf there was gone. Small entries never fill a direct shadow page.
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
use parking_lot::Mutex;
use std::collections::BTreeMap;
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

/// Where the blocks are, or were, that a leaf has mapped under shadow paging. A leaf lock, taken under the `tree` lock of spaces.
#[derive(Debug, Default)]
pub(crate) struct Places {
    by_block: Mutex<BTreeMap<u64, Place>>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    space: u64,
    gva: u64,
    /// What the leaf there has left, if it is gone.
    left: Option<Trace>,
}

impl Places {
    /// Makes this the place of a block, unless another one is or may still be linked to its direct shadow page. Whether it is.
    fn take(&self, block: u64, space: u64, gva: u64, completed: u64) -> bool {
        let mut places = self.by_block.lock();
        let is_free = places.get(&block).is_none_or(|place| {
            (place.space, place.gva) == (space, gva)
                || place.left.is_some_and(|trace| trace.is_gone(completed))
        });
        if is_free {
            places.insert(block, Place { space, gva, left: None });
        }
        is_free
    }

    /// The leaf of a block is gone.
    fn leave(&self, trace: Trace) {
        if let Some(place) = self.by_block.lock().get_mut(&trace.block) {
            place.left = Some(trace);
        }
    }

    /// Nobody runs in a space any more, nor ever will.
    pub(crate) fn forget(&self, space: u64) {
        self.by_block.lock().retain(|_, place| place.space != space);
    }
}

impl AddressSpace {
    /// Whether a 2 MiB leaf may show this block at `gva`, which is then its place. The caller holds the `tree` lock.
    pub(crate) fn bears_leaf(&self, gva: u64, gpa: u64, bits: u64) -> bool {
        if self.machine.mode().paging == Paging::Nested {
            return true;
        }
        let arena = self.machine.arena();
        // Entries ahead of their use are there to be taken away again.
        bits & ACCESSED != 0
            && (arena.huge_start().0..arena.window_start().0).contains(&gpa)
            && self.machine.places().take(gpa, self.id(), gva, self.machine.flushes_completed())
    }

    /// Takes a leaf away; says what it was. The caller holds the `tree` lock.
    pub(crate) fn take_leaf(&self, slot: &AtomicU64) -> u64 {
        let entry = slot.swap(0, Ordering::SeqCst);
        if self.machine.mode().paging == Paging::Shadow && entry & ACCESSED != 0 {
            // Counted when the leaf is gone: a flush that begins before is none.
            let trace = Trace::new(entry, self.machine.flushes_begun());
            self.machine.places().leave(trace);
            slot.store(trace.to_entry(), Ordering::SeqCst);
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
    fn a_block_has_one_place() {
        let (places, block) = (Places::default(), 0x4_0020_0000);
        assert!(places.take(block, 1, 0, 0));
        assert!(places.take(block, 1, 0, 0), "the same place");
        assert!(!places.take(block, 1, HUGE, 0), "elsewhere in the space");
        assert!(!places.take(block, 2, 0, 100), "mapped, whatever was flushed");
        assert!(places.take(block + HUGE, 2, 0, 0), "another block");
        places.leave(Trace::new(block, 7));
        assert!(!places.take(block, 2, 0, 7), "that flush may have begun before");
        assert!(places.take(block, 2, 0, 8));
        assert!(!places.take(block, 1, 0, 8));
        places.forget(2);
        assert!(places.take(block, 3, 0, 8));
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
