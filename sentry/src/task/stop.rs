//! Standing still: job-control stops and pausing of the container.
//!
//! A stop counts its process's threads down as each arrives; the last tells the parent. Pausing happens below all that: the
//! guest and its parent do not notice.

use std::sync::Arc;
use std::time::Instant;

use super::signal::{Signal, SignalSet};
use super::thread_group::{ParentEvent, StopState, ThreadGroup};
use super::{Task, Work};
use crate::wait::WaitOutcome;

impl ThreadGroup {
    /// Begins to stop the process because of `signal`.
    pub(super) fn begin_stop(self: &Arc<Self>, signal: Signal) {
        let relations = self.relations();
        let mut signals = self.lock_signals();
        if signals.exit.is_some() || signals.stop != StopState::Running {
            return;
        }
        // A SIGCONT that was sent after the stop signal was taken has already won.
        if signals.shared.intersects(SignalSet::of(&[Signal::CONT])) {
            return;
        }
        let standing: Vec<&Arc<Task>> = relations.members.iter().filter(|task| !task.is_exiting()).collect();
        signals.stop = StopState::Stopping { signal, remaining: standing.len() };
        for task in standing {
            task.kick(Work::STOP);
        }
    }

    /// One thread fewer that a stop waits for, if it still waits for this one. Returns what to tell the parent.
    pub(super) fn count_stopped(self: &Arc<Self>, task: &Task) -> Option<ParentEvent> {
        let mut signals = self.lock_signals();
        // Set and cleared under this lock: each stop counts each thread once, also one that still stands from the last.
        if !task.work().contains(Work::STOP) {
            return None;
        }
        task.clear_work(Work::STOP);
        let StopState::Stopping { signal, remaining } = &mut signals.stop else { return None };
        *remaining = remaining.saturating_sub(1);
        if *remaining > 0 {
            return None;
        }
        let event = ParentEvent::Stopped(*signal);
        signals.stop = StopState::Stopped { signal: *signal };
        signals.parent_event = Some(event);
        Some(event)
    }
}

impl Task {
    /// Takes part in its process's stop: returns when it is continued or killed.
    pub(super) fn stand_stopped(self: &Arc<Self>) {
        let group = self.thread_group();
        while !self.is_killed() {
            if let Some(event) = group.count_stopped(self) {
                group.notify_parent(event);
            }
            if group.lock_signals().stop == StopState::Running {
                break;
            }
            if self.work().contains(Work::FREEZE) {
                self.stand_while_frozen();
                continue;
            }
            self.wait_killable();
        }
    }

    /// Stands still while its container is paused; death ends it.
    pub(super) fn stand_while_frozen(self: &Arc<Self>) {
        self.clear_work(Work::FREEZE);
        let cgroup = self.thread_group().cgroup();
        if !cgroup.is_frozen() {
            return;
        }
        cgroup.while_standing(|| {
            while cgroup.is_frozen() && !self.is_killed() {
                self.wait_killable();
            }
        });
    }

    /// After an interruption of a sleep: if it is only for a pause, stands still and tells that the sleep can go on.
    fn stand_if_only_frozen(self: &Arc<Self>) -> bool {
        if crate::wait::was_declined() {
            return false;
        }
        self.waiter().clear_interrupt();
        let work = self.work();
        if work.contains(Work::FREEZE) {
            self.stand_while_frozen();
        }
        let rest = self.work() - Work::FREEZE;
        if !rest.is_empty() {
            self.waiter().interrupt();
        }
        rest.is_empty()
    }

    /// Sleeps as [`Waiter::wait`](crate::wait::Waiter::wait) does. A pause of the container does not end the sleep, it only
    /// wakes the caller once it is over, to look again; the deadline stays what it is.
    pub(crate) fn sleep(self: &Arc<Self>, deadline: Option<Instant>) -> WaitOutcome {
        self.rest();
        self.count_switch();
        match self.waiter().wait_assisting(deadline, &**self.kernel().platform()) {
            WaitOutcome::Interrupted if self.stand_if_only_frozen() => WaitOutcome::Notified,
            outcome => outcome,
        }
    }

    /// Sleeps until somebody notifies the waiter, whatever for. Death always does; so do pausing and continuing.
    pub(super) fn wait_killable(&self) {
        self.waiter().wait_uninterruptible();
    }
}
