//! A parent that waits until its `vfork` child has its own memory or is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Task;
use crate::wait::Waiter;

/// Shared by the two.
pub struct VforkDone {
    done: AtomicBool,
    parent: Arc<Waiter>,
}

impl VforkDone {
    pub(super) fn new(parent: &Task) -> Arc<VforkDone> {
        Arc::new(VforkDone { done: AtomicBool::new(false), parent: parent.waiter().clone() })
    }

    /// The child lets go of the memory.
    pub(super) fn finish(&self) {
        self.done.store(true, Ordering::Release);
        self.parent.notify();
    }

    /// Waits for [`VforkDone::finish`]. Only death and pausing get in between.
    pub(super) fn wait(&self, parent: &Arc<Task>) {
        while !self.done.load(Ordering::Acquire) && !parent.is_killed() {
            if parent.work().contains(super::Work::FREEZE) {
                parent.stand_while_frozen();
                continue;
            }
            parent.wait_killable();
        }
    }
}
