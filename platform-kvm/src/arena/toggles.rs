//! Moments in which frames are read-only.
//!
//! Under shadow paging a revocation makes KVM drop translations by taking write permission from the frames' host pages and
//! giving it back (see [`crate::revoke`]; making them executable for a moment would disturb nobody, but the sentry's seccomp
//! filter lets nothing become executable). Whoever writes to such a frame just then, the sentry or a guest thread through KVM, meets a fault that
//! means nothing: it asks here and tries again.

use super::Arena;
use crate::error::Fault;
use std::sync::atomic::{AtomicU32, Ordering};

/// Tries of one access. Each waits for a moment without a toggle, so only a thread that loses this many races against other
/// threads' revocations reports a fault that was none.
const TRIES: u32 = 10_000;

#[derive(Debug, Default)]
pub(super) struct Toggles {
    /// Ranges that are read-only now.
    active: AtomicU32,
    /// Toggles that have ended.
    generation: AtomicU32,
}

/// A point in time before an access.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment(u32);

impl Toggles {
    fn moment(&self) -> Moment {
        Moment(self.generation.load(Ordering::SeqCst))
    }

    fn was_toggled(&self, moment: Moment) -> bool {
        // In this order: a toggle that has ended has counted before it stopped being active.
        let mut toggled = false;
        while self.active.load(Ordering::SeqCst) != 0 {
            toggled = true;
            std::thread::yield_now();
        }
        toggled || self.generation.load(Ordering::SeqCst) != moment.0
    }

    /// Repeats `access` for as long as it faults and a toggle may be why.
    pub(super) fn despite<T, E>(
        &self,
        mut access: impl FnMut() -> Result<T, E>,
        is_fault: impl Fn(&E) -> bool,
    ) -> Result<T, E> {
        let mut tries = 0;
        loop {
            let moment = self.moment();
            match access() {
                Err(error) if is_fault(&error) && tries < TRIES && self.was_toggled(moment) => tries += 1,
                result => return result,
            }
        }
    }

    /// Runs `piece`, which gets the number of bytes done so far and returns how many are left, until all `len` bytes are done
    /// or a fault is real.
    pub(super) fn in_pieces(&self, len: usize, piece: impl Fn(usize) -> usize) -> Result<(), Fault> {
        let mut done = 0;
        let step = || {
            let left = piece(done).min(len);
            done = len - left;
            if left == 0 { Ok(()) } else { Err(Fault { done }) }
        };
        self.despite(step, |_| true)
    }
}

impl Arena {
    /// Before an access.
    pub(crate) fn moment(&self) -> Moment {
        self.toggles.moment()
    }

    /// Whether a fault since `moment` may have been caused by a toggle. Waits until none is going on.
    pub(crate) fn was_toggled(&self, moment: Moment) -> bool {
        self.toggles.was_toggled(moment)
    }

    /// Runs the MMU notifiers over a part of the anonymous zone. Returns whether they have run.
    pub(crate) fn toggle_writable(&self, offset: usize, len: usize) -> bool {
        let toggles = &self.toggles;
        toggles.active.fetch_add(1, Ordering::SeqCst);
        let taken = self.memory.protect(offset, len, libc::PROT_READ).is_ok();
        // Also after a failure half way: the range must end up as it was.
        let given = self.memory.protect(offset, len, libc::PROT_READ | libc::PROT_WRITE).is_ok();
        toggles.generation.fetch_add(1, Ordering::SeqCst);
        toggles.active.fetch_sub(1, Ordering::SeqCst);
        taken && given
    }
}
