//! What a process gives back to semaphores when it ends (`SEM_UNDO`).
//!
//! The adjustments are in the sets; a list only remembers which sets have any. Threads made with `CLONE_SYSVSEM` share one; when
//! the last of them ends or leaves (`unshare`), the list is dropped, and with that everything is undone.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::Actor;
use super::sem::Set;

/// See the module.
pub struct UndoList {
    id: u64,
    owner: Actor,
    sets: Mutex<Vec<Weak<Set>>>,
}

impl UndoList {
    /// An empty list of the process `owner`.
    pub fn new(owner: Actor) -> Arc<UndoList> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(UndoList { id: NEXT.fetch_add(1, Ordering::Relaxed), owner, sets: Mutex::default() })
    }

    /// Its number, which no other list has had.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Notes that `set` may have something to undo.
    pub fn note(&self, set: &Arc<Set>) {
        let mut sets = self.sets.lock();
        let known = |other: &Weak<Set>| std::ptr::eq(other.as_ptr(), Arc::as_ptr(set));
        if !sets.iter().any(known) {
            sets.retain(|set| set.strong_count() > 0);
            sets.push(Arc::downgrade(set));
        }
    }
}

impl Drop for UndoList {
    fn drop(&mut self) {
        for set in self.sets.get_mut().iter().filter_map(Weak::upgrade) {
            set.undo(self.id, self.owner);
        }
    }
}
