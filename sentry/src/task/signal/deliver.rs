//! Delivery: what a thread does with its signals before it goes back to the guest.

use std::sync::Arc;

use linux_raw_sys::general as linux;

use super::frame;
use super::{Action, DefaultAction, Disposition, ExitStatus, SigInfo, Signal, SignalSet};
use crate::errno::Errno;
use crate::syscalls::numbers;
use crate::task::{Task, TaskLocal, Work, rseq};
use crate::time::process_timers::note_taken;

/// What came of looking for a signal.
enum Found {
    /// Nothing is deliverable.
    Nothing,
    /// A handler is to run.
    Handler(SigInfo, Action),
    /// The process begins to stop: look at the work again.
    Stop,
    /// The process ends.
    Exit(ExitStatus),
}

/// What the run loop does next.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::task) enum AfterSignals {
    /// Go on.
    Continue,
    /// There is more to look at (a stop).
    Again,
    /// Exit with this status.
    Exit(ExitStatus),
}

/// Delivers every deliverable signal, then settles what an interrupted call returns. Runs on the task's thread outside of any
/// system call.
pub(in crate::task) fn deliver(task: &Arc<Task>, local: &mut TaskLocal) -> AfterSignals {
    loop {
        match next(task) {
            Found::Nothing => break,
            Found::Stop => return AfterSignals::Again,
            Found::Exit(status) => return AfterSignals::Exit(status),
            Found::Handler(info, action) => run_handler(task, local, &info, &action),
        }
    }
    if let Some(code) = local.interrupted.take() {
        restart(local, code);
    }
    if let Some(mask) = local.saved_mask.take() {
        task.replace_mask(mask);
    }
    AfterSignals::Continue
}

/// Takes signals until one of them means something.
fn next(task: &Arc<Task>) -> Found {
    let group = task.thread_group();
    loop {
        task.clear_work(Work::SIGNAL);
        let mut signals = group.lock_signals();
        if let Some(status) = signals.exit {
            return Found::Exit(status);
        }
        let mut own = task.lock_signals();
        let deliverable = own.blocked.complement();
        let taken = own.pending.take(deliverable).or_else(|| signals.shared.take(deliverable));
        drop(own);
        let Some(info) = taken else { return Found::Nothing };
        let signal = info.signal;
        let handlers = group.handlers();
        let action = handlers.get(signal);
        match action.disposition {
            Disposition::Ignore => continue,
            Disposition::Handler(_) => {
                if action.has(linux::SA_RESETHAND) {
                    handlers.set(signal, Action { disposition: Disposition::Default, ..action });
                }
                drop(signals);
                note_taken(group, &info);
                return Found::Handler(info, action);
            }
            Disposition::Default => {}
        }
        let unkillable = signals.unkillable;
        drop(signals);
        if let Some(found) = default_action(task, signal, unkillable) {
            return found;
        }
    }
}

fn default_action(task: &Arc<Task>, signal: Signal, unkillable: bool) -> Option<Found> {
    let group = task.thread_group();
    if unkillable && !SignalSet::UNBLOCKABLE.contains(signal) {
        return None;
    }
    match signal.default_action() {
        DefaultAction::Ignore | DefaultAction::Continue => None,
        DefaultAction::Stop => {
            if signal != Signal::STOP && group.process_group().is_orphaned() {
                return None;
            }
            group.begin_stop(signal);
            Some(Found::Stop)
        }
        // Nothing writes core files, so nobody is told that one was written.
        DefaultAction::Terminate | DefaultAction::Core => {
            Some(Found::Exit(group.exit(ExitStatus::Signaled { signal, core: false })))
        }
    }
}

fn run_handler(task: &Arc<Task>, local: &mut TaskLocal, info: &SigInfo, action: &Action) {
    if let Some(code) = local.interrupted.take() {
        let again = match code {
            Errno::ERESTARTNOINTR => true,
            Errno::ERESTARTSYS => action.has(linux::SA_RESTART),
            _ => false,
        };
        if again {
            rewind(local, local.call.number);
        } else {
            local.registers.rax = Errno::EINTR.to_rax();
        }
    }
    rseq::before_handler(task, local, info.signal);
    let blocked = task.blocked_signals();
    let saved = local.saved_mask.unwrap_or(blocked);
    if frame::push(task, local, info, action, saved).is_err() {
        // The handler cannot run: SIGSEGV, with its default action if it was its own handler.
        if info.signal == Signal::SEGV {
            task.thread_group().handlers().set(Signal::SEGV, Action::default());
        }
        task.force_signal(SigInfo::kernel(Signal::SEGV));
        return;
    }
    local.saved_mask = None;
    let mut mask = blocked.union(action.mask);
    if !action.has(linux::SA_NODEFER) {
        mask.add(info.signal);
    }
    task.replace_mask(mask.blockable());
}

/// No handler ran: the interrupted call is made again.
fn restart(local: &mut TaskLocal, code: Errno) {
    let number = if code == Errno::ERESTART_RESTARTBLOCK {
        u64::from(numbers::restart_syscall)
    } else {
        local.call.number
    };
    rewind(local, number);
}

/// Back to the `syscall` instruction (two bytes), with its number where the guest had it.
fn rewind(local: &mut TaskLocal, number: u64) {
    local.registers.rax = number;
    local.registers.rip = local.registers.rip.wrapping_sub(2);
}
