//! Sending signals.

use std::sync::Arc;

use super::{DefaultAction, Disposition, ExitStatus, SigInfo, Signal, SignalSet};
use crate::errno::SysResult;
use crate::task::thread_group::{GroupSignals, ParentEvent, StopState, ThreadGroup};
use crate::task::{Task, Work};
use crate::wait::PollEvents;

/// Where a signal comes from, as far as an init process's protection cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The kernel, or a process of an outer pid namespace: may kill or stop an init process.
    Outside,
    /// A process of the target's own pid namespace.
    Inside,
}

impl ThreadGroup {
    /// Sends a signal of the kernel to the process.
    pub fn send_signal(self: &Arc<Self>, info: SigInfo) {
        // Only real-time signals of users can fail, for their limit.
        let _ = self.send_signal_from(info, Origin::Outside);
    }

    /// Sends a signal to the process. `EAGAIN` when a queued real-time signal exceeds `RLIMIT_SIGPENDING`.
    pub fn send_signal_from(self: &Arc<Self>, info: SigInfo, origin: Origin) -> SysResult {
        let members = self.members();
        let main = self.leader();
        let candidates = main.iter().chain(members.iter());
        let Some(first) = candidates.clone().next() else { return Ok(()) };
        let signal = info.signal;
        let mut signals = self.lock_signals();
        if !prepare(&mut signals, &members, signal) || ignored(self, first, &signals, signal, origin) {
            return self.after_prepare(signals);
        }
        let limit = self.signal_limit();
        if !signals.shared.push(info, &first.signal_count(), limit)? {
            return self.after_prepare(signals);
        }
        if signal == Signal::KILL {
            kill_all(&mut signals, &members);
        } else if let Some(chosen) = candidates.clone().find(|task| task.wants_signal(signal)) {
            chosen.kick(Work::SIGNAL);
        }
        let result = self.after_prepare(signals);
        members.iter().for_each(|task| task.signal_queue().notify(PollEvents::READABLE));
        result
    }

    /// Ends the signal lock; if a `SIGCONT` continued the process, tells its parent now.
    fn after_prepare(self: &Arc<Self>, mut signals: parking_lot::MutexGuard<'_, GroupSignals>) -> SysResult {
        let continued = std::mem::take(&mut signals.continued_untold);
        drop(signals);
        if continued {
            self.notify_parent(ParentEvent::Continued);
        }
        Ok(())
    }
}

impl Task {
    /// Sends a signal of the kernel to this thread.
    pub fn send_signal(self: &Arc<Self>, info: SigInfo) {
        let _ = self.send_signal_from(info, Origin::Outside);
    }

    /// Sends a signal to this thread. Errors as [`ThreadGroup::send_signal_from`].
    pub fn send_signal_from(self: &Arc<Self>, info: SigInfo, origin: Origin) -> SysResult {
        let group = self.thread_group().clone();
        let members = group.members();
        let signal = info.signal;
        let mut signals = group.lock_signals();
        if !prepare(&mut signals, &members, signal) || ignored(&group, self, &signals, signal, origin) {
            return group.after_prepare(signals);
        }
        let limit = group.signal_limit();
        let added = self.lock_signals().pending.push(info, &self.signal_count(), limit)?;
        if signal == Signal::KILL {
            kill_all(&mut signals, &members);
        } else if added && self.wants_signal(signal) {
            self.kick(Work::SIGNAL);
        }
        let result = group.after_prepare(signals);
        self.signal_queue().notify(PollEvents::READABLE);
        result
    }

    /// A signal that the thread itself caused and cannot ignore or block (a fault): if it is blocked or ignored, its
    /// disposition becomes the default first, and an init process dies of it too.
    pub fn force_signal(self: &Arc<Self>, info: SigInfo) {
        let group = self.thread_group();
        let mut signals = group.lock_signals();
        let signal = info.signal;
        let handlers = group.handlers();
        let action = handlers.get(signal);
        let mut own = self.lock_signals();
        let blocked = own.blocked.contains(signal);
        if blocked || action.disposition == Disposition::Ignore {
            handlers.set(signal, super::Action::default());
            own.blocked.remove(signal);
        }
        if handlers.get(signal).disposition == Disposition::Default {
            // Init dies of it, too.
            signals.unkillable = false;
        }
        let _ = own.pending.push(info, &self.signal_count(), u64::MAX);
        drop(own);
        drop(signals);
        self.kick(Work::SIGNAL);
    }

    /// Whether it would take a group's signal now.
    pub(crate) fn wants_signal(&self, signal: Signal) -> bool {
        let signals = self.lock_signals();
        let open = !signals.blocked.contains(signal) || signals.awaited.contains(signal);
        !self.is_exiting() && (signal == Signal::KILL || open)
    }
}

/// What sending does before anything is queued: stop signals and `SIGCONT` cancel each other. `false`: the process is gone.
fn prepare(signals: &mut GroupSignals, members: &[Arc<Task>], signal: Signal) -> bool {
    if signals.exit.is_some() && signal != Signal::KILL {
        return false;
    }
    if SignalSet::STOPPING.contains(signal) {
        discard(signals, members, SignalSet::of(&[Signal::CONT]));
    } else if signal == Signal::CONT {
        discard(signals, members, SignalSet::STOPPING);
        let was = std::mem::replace(&mut signals.stop, StopState::Running);
        if was != StopState::Running {
            if matches!(was, StopState::Stopped { .. }) {
                signals.parent_event = Some(ParentEvent::Continued);
                signals.continued_untold = true;
            }
            for task in members {
                task.resume_from_stop();
            }
        }
    }
    true
}

fn discard(signals: &mut GroupSignals, members: &[Arc<Task>], which: SignalSet) {
    signals.shared.discard(which);
    for task in members {
        task.lock_signals().pending.discard(which);
    }
}

/// Whether nobody would ever see the signal.
fn ignored(
    group: &ThreadGroup,
    target: &Arc<Task>,
    signals: &GroupSignals,
    signal: Signal,
    origin: Origin,
) -> bool {
    if target.lock_signals().blocked_or_awaited(signal) {
        return false;
    }
    let action = group.handlers().get(signal);
    let kernel_only = SignalSet::UNBLOCKABLE.contains(signal);
    if signals.unkillable && action.disposition == Disposition::Default {
        return !(kernel_only && origin == Origin::Outside);
    }
    // SIGCONT has done its work in `prepare` even if its disposition is to ignore it.
    let ignores = action.ignores(signal);
    ignores
        || (signal.default_action() == DefaultAction::Continue && action.disposition == Disposition::Default)
}

/// Marks every thread for death.
fn kill_all(signals: &mut GroupSignals, members: &[Arc<Task>]) {
    signals.stop = StopState::Running;
    signals.exit.get_or_insert(ExitStatus::Signaled { signal: Signal::KILL, core: false });
    for task in members {
        task.kick(Work::KILL);
    }
}

impl ThreadGroup {
    /// The signal has just been set to be ignored: what is pending of it vanishes.
    pub(crate) fn discard_pending(&self, signal: Signal) {
        let members = self.members();
        discard(&mut self.lock_signals(), &members, SignalSet::of(&[signal]));
    }
}
