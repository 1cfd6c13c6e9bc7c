//! Signal dispositions.

use linux_raw_sys::general as linux;
use parking_lot::Mutex;

use super::number::{DefaultAction, Signal, SignalSet};

/// What a process does with a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Disposition {
    /// `SIG_DFL`
    #[default]
    Default,
    /// `SIG_IGN`
    Ignore,
    /// The address of a handler.
    Handler(u64),
}

/// A `struct sigaction` as the kernel takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Action {
    /// What to do.
    pub disposition: Disposition,
    /// `SA_*`.
    pub flags: u64,
    /// Where the handler returns to (with `SA_RESTORER`).
    pub restorer: u64,
    /// Blocked in addition while the handler runs.
    pub mask: SignalSet,
}

impl Action {
    /// Whether a flag is set.
    pub fn has(&self, flag: u32) -> bool {
        self.flags & u64::from(flag) != 0
    }

    /// Whether the signal would simply vanish.
    pub fn ignores(&self, signal: Signal) -> bool {
        match self.disposition {
            Disposition::Ignore => true,
            Disposition::Default => signal.default_action() == DefaultAction::Ignore,
            Disposition::Handler(_) => false,
        }
    }
}

/// The dispositions of a process; shared by `CLONE_SIGHAND`. Its lock is a leaf.
pub struct SignalHandlers {
    actions: Mutex<[Action; Signal::MAX as usize]>,
}

impl Default for SignalHandlers {
    fn default() -> Self {
        SignalHandlers { actions: Mutex::new([Action::default(); Signal::MAX as usize]) }
    }
}

impl SignalHandlers {
    /// One disposition.
    pub fn get(&self, signal: Signal) -> Action {
        self.actions.lock().get(signal.index()).copied().unwrap_or_default()
    }

    /// Replaces one disposition, returning the former.
    pub fn set(&self, signal: Signal, action: Action) -> Action {
        let mut actions = self.actions.lock();
        match actions.get_mut(signal.index()) {
            Some(slot) => std::mem::replace(slot, action),
            None => Action::default(),
        }
    }

    /// A copy for `fork`.
    pub fn fork(&self) -> SignalHandlers {
        SignalHandlers { actions: Mutex::new(*self.actions.lock()) }
    }

    /// After `execve`: what was handled gets its default; what was ignored stays ignored. With `CLONE_CLEAR_SIGHAND` likewise.
    pub fn reset_handlers(&self) {
        for action in self.actions.lock().iter_mut() {
            let keep = action.disposition == Disposition::Ignore;
            let disposition = if keep { Disposition::Ignore } else { Disposition::Default };
            *action = Action { disposition, ..Action::default() };
        }
    }

    /// Signals that are ignored, and signals with a handler, for `/proc/*/status`.
    pub fn summary(&self) -> (SignalSet, SignalSet) {
        let (mut ignored, mut caught) = (SignalSet::EMPTY, SignalSet::EMPTY);
        for (index, action) in self.actions.lock().iter().enumerate() {
            let bit = SignalSet::from_bits(1u64.checked_shl(index as u32).unwrap_or(0));
            match action.disposition {
                Disposition::Default => {}
                Disposition::Ignore => ignored = ignored.union(bit),
                Disposition::Handler(_) => caught = caught.union(bit),
            }
        }
        (ignored, caught)
    }

    /// Whether children that exit leave no zombie: `SIGCHLD` ignored or `SA_NOCLDWAIT`.
    pub fn reaps_children(&self) -> bool {
        let action = self.get(Signal::CHLD);
        action.disposition == Disposition::Ignore || action.has(linux::SA_NOCLDWAIT)
    }
}
