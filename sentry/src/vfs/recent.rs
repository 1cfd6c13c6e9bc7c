//! Which unused dentries stay in memory.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::dentry::Dentry;

/// How many dentries without users a superblock keeps at most; fewer where the file system says so.
pub(super) const RECENT_MAX: usize = 8 * 1024;

/// The dentries a superblock keeps although nobody uses them: a bounded second-chance cache.
///
/// Every kept dentry has a slot; when all are taken, a hand goes round and replaces the first one that has not been looked up
/// since it last came by.
pub struct Recent {
    slots: Mutex<Slots>,
    limit: usize,
}

#[derive(Default)]
struct Slots {
    kept: Vec<Option<Arc<Dentry>>>,
    free: Vec<usize>,
    hand: usize,
}

/// A dentry's slot number while it is not kept.
pub(super) const NOT_KEPT: usize = usize::MAX;

impl Slots {
    /// The slot to use next, and the dentry that has to leave it.
    fn choose(&mut self, limit: usize) -> (usize, Option<Arc<Dentry>>) {
        if let Some(slot) = self.free.pop() {
            return (slot, None);
        }
        if self.kept.len() < limit {
            self.kept.push(None);
            return (self.kept.len().saturating_sub(1), None);
        }
        let mut slot = self.hand;
        for _ in 0..self.kept.len() {
            slot = self.hand;
            self.hand = (slot + 1) % self.kept.len();
            let used = |dentry: &Arc<Dentry>| dentry.referenced.swap(false, Ordering::Relaxed);
            if !self.kept.get(slot).and_then(Option::as_ref).is_some_and(used) {
                break;
            }
        }
        (slot, self.kept.get_mut(slot).and_then(Option::take))
    }
}

impl Default for Recent {
    fn default() -> Self {
        Recent::with_limit(RECENT_MAX)
    }
}

impl Recent {
    /// A cache of another size, in dentries.
    pub fn with_limit(limit: usize) -> Recent {
        Recent { slots: Mutex::default(), limit }
    }

    /// Keeps `dentry` alive for a while.
    pub(super) fn keep(&self, dentry: &Arc<Dentry>) {
        let mut slots = self.slots.lock();
        if dentry.slot.load(Ordering::Relaxed) != NOT_KEPT {
            return;
        }
        let (slot, evicted) = slots.choose(self.limit);
        if let Some(place) = slots.kept.get_mut(slot) {
            *place = Some(dentry.clone());
            dentry.slot.store(slot, Ordering::Relaxed);
        }
        if let Some(evicted) = &evicted {
            evicted.slot.store(NOT_KEPT, Ordering::Relaxed);
        }
        drop(slots);
        drop(evicted);
    }

    /// Stops keeping `dentry`: its name is gone, and what is behind it is to go with its last user.
    pub(super) fn forget(&self, dentry: &Dentry) {
        let mut slots = self.slots.lock();
        let slot = dentry.slot.swap(NOT_KEPT, Ordering::Relaxed);
        let kept = slots.kept.get_mut(slot).and_then(Option::take);
        if kept.is_some() {
            slots.free.push(slot);
        }
        drop(slots);
        drop(kept);
    }

    /// Drops everything nobody else uses (unmounting).
    pub fn clear(&self) {
        let mut slots = self.slots.lock();
        let all = std::mem::take(&mut *slots);
        for dentry in all.kept.iter().flatten() {
            dentry.slot.store(NOT_KEPT, Ordering::Relaxed);
        }
        drop(slots);
        drop(all);
    }

    /// How many dentries are kept.
    pub fn len(&self) -> usize {
        let slots = self.slots.lock();
        slots.kept.len().saturating_sub(slots.free.len())
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::anonymous::{AnonymousInode, Pseudo, next_ino};

    fn dentry() -> Arc<Dentry> {
        Dentry::root(AnonymousInode::new(Pseudo::Anonymous, next_ino(), 0, 0))
    }

    #[test]
    fn the_cache_is_bounded_and_spares_what_is_used() {
        let recent = Recent::with_limit(8);
        let used = dentry();
        recent.keep(&used);
        let all: Vec<Arc<Dentry>> = (0..100)
            .map(|_| {
                used.referenced.store(true, Ordering::Relaxed);
                let dentry = dentry();
                recent.keep(&dentry);
                dentry
            })
            .collect();
        assert_eq!(recent.len(), 8);
        assert_eq!(Arc::strong_count(&used), 2);
        assert_eq!(all.iter().filter(|dentry| Arc::strong_count(dentry) == 2).count(), 7);
    }

    #[test]
    fn forgotten_dentries_free_their_slot() {
        let recent = Recent::with_limit(2);
        for _ in 0..10 {
            let one = dentry();
            recent.keep(&one);
            recent.keep(&one);
            assert_eq!(recent.len(), 1);
            recent.forget(&one);
            recent.forget(&one);
            assert!(recent.is_empty());
            assert_eq!(Arc::strong_count(&one), 1);
        }
    }
}
