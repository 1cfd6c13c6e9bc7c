//! Waiting for children: what `wait4` and `waitid` have in common.
//!
//! The search runs under the task tree lock, so that each change of state is reported once. The sleep is on the parent's
//! [`ThreadGroup::children_changed`].

use std::sync::Arc;

use linux_raw_sys::general as linux;

use super::exit::release;
use super::signal::{ExitStatus, Signal};
use super::thread_group::{ParentEvent, ThreadGroup};
use super::usage::Usage;
use super::{ProcessGroup, SyscallContext, Task, block};
use crate::errno::{Errno, SysResult};
use crate::kernel::TaskTree;
use crate::wait::PollEvents;

/// Which children are meant.
#[derive(Clone)]
pub enum Which {
    /// Any.
    Any,
    /// The one with this pid, in the caller's namespace.
    Pid(i32),
    /// Those of a job; `None` if there is no such job.
    Job(Option<Arc<ProcessGroup>>),
    /// The one a pidfd stands for.
    Exactly(Arc<ThreadGroup>),
}

/// What to report, and how.
#[derive(Clone)]
pub struct WaitOptions {
    /// Whom.
    pub which: Which,
    /// Ended children.
    pub exited: bool,
    /// Stopped children.
    pub stopped: bool,
    /// Continued children.
    pub continued: bool,
    /// Return at once.
    pub no_hang: bool,
    /// Leave the state to be reported again.
    pub no_wait: bool,
    /// Only children that were cloned with another signal than `SIGCHLD`.
    pub clone_only: bool,
    /// Whatever their signal.
    pub all: bool,
}

impl WaitOptions {
    /// From the flags of `wait4` or `waitid` (which checks its own set of flags first).
    pub fn new(which: Which, options: u32) -> WaitOptions {
        let has = |flag: u32| options & flag != 0;
        WaitOptions {
            which,
            exited: has(linux::WEXITED),
            stopped: has(linux::WSTOPPED),
            continued: has(linux::WCONTINUED),
            no_hang: has(linux::WNOHANG),
            no_wait: has(linux::WNOWAIT),
            clone_only: has(linux::__WCLONE),
            all: has(linux::__WALL),
        }
    }
}

/// A child's change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It has ended.
    Ended(ExitStatus),
    /// It was stopped or continued.
    Event(ParentEvent),
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The child's pid in the caller's namespace.
    pub pid: i32,
    /// Its real user id.
    pub uid: u32,
    /// What happened.
    pub change: Change,
    /// What it and its reaped children have used.
    pub usage: Usage,
}

impl Report {
    /// As `wait4` reports it.
    pub fn wait_status(&self) -> i32 {
        match self.change {
            Change::Ended(status) => status.wait_status(),
            Change::Event(ParentEvent::Stopped(signal)) => (signal.number() << 8) | 0x7f,
            Change::Event(ParentEvent::Continued) => 0xffff,
        }
    }

    /// `si_code` and `si_status` for `waitid`.
    pub fn code_and_status(&self) -> (i32, i32) {
        let (code, status) = match self.change {
            Change::Ended(ExitStatus::Exited(code)) => (linux::CLD_EXITED, i32::from(code)),
            Change::Ended(ExitStatus::Signaled { signal, core }) => {
                (if core { linux::CLD_DUMPED } else { linux::CLD_KILLED }, signal.number())
            }
            Change::Event(ParentEvent::Stopped(signal)) => (linux::CLD_STOPPED, signal.number()),
            Change::Event(ParentEvent::Continued) => (linux::CLD_CONTINUED, Signal::CONT.number()),
        };
        (code as i32, status)
    }
}

/// Waits for a child. `None` with `no_hang` when nothing has happened; `ECHILD` when there is no such child.
pub fn wait(ctx: &mut SyscallContext<'_>, options: &WaitOptions) -> SysResult<Option<Report>> {
    let group = ctx.task.thread_group().clone();
    let attempt = |ctx: &mut SyscallContext<'_>| match search(ctx.task, options)? {
        Some(report) => Ok(Some(report)),
        None if options.no_hang => Ok(None),
        None => Err(Errno::EAGAIN),
    };
    block::until(ctx, group.children_changed(), PollEvents::READABLE, None, attempt)
}

/// One look at the children.
fn search(task: &Arc<Task>, options: &WaitOptions) -> SysResult<Option<Report>> {
    let parent = task.thread_group();
    let mut tree = task.kernel().tree();
    let mut any = false;
    for child in parent.children() {
        if !is_meant(task, &child, options) {
            continue;
        }
        any = true;
        if let Some(change) = take_change(&child, options) {
            return Ok(Some(report(&mut tree, task, &child, change, options)));
        }
    }
    if any { Ok(None) } else { Err(Errno::ECHILD) }
}

fn is_meant(task: &Task, child: &Arc<ThreadGroup>, options: &WaitOptions) -> bool {
    let named = match &options.which {
        Which::Any => true,
        Which::Pid(pid) => {
            task.pid_namespace().is_some_and(|namespace| child.pid().number_in(&namespace) == *pid)
        }
        Which::Job(job) => job.as_ref().is_some_and(|job| child.process_group().is(job)),
        Which::Exactly(group) => Arc::ptr_eq(group, child),
    };
    let is_clone = child.relations().exit_signal != Some(Signal::CHLD);
    named && (options.all || is_clone == options.clone_only)
}

fn take_change(child: &Arc<ThreadGroup>, options: &WaitOptions) -> Option<Change> {
    if child.has_exited() {
        return if options.exited { child.exit_status().map(Change::Ended) } else { None };
    }
    let mut signals = child.lock_signals();
    let event = signals.parent_event?;
    let wanted = match event {
        ParentEvent::Stopped(_) => options.stopped,
        ParentEvent::Continued => options.continued,
    };
    if !wanted {
        return None;
    }
    if !options.no_wait {
        signals.parent_event = None;
    }
    Some(Change::Event(event))
}

fn report(
    tree: &mut TaskTree,
    task: &Task,
    child: &Arc<ThreadGroup>,
    change: Change,
    options: &WaitOptions,
) -> Report {
    let usage = child.usage().with(child.children_usage());
    let pid = task.pid_namespace().map_or(0, |namespace| child.pid().number_in(&namespace));
    let uid = child.leader().map_or(0, |leader| leader.credentials().uid);
    if matches!(change, Change::Ended(_)) && !options.no_wait {
        task.thread_group().inherit_usage(usage);
        release(tree, child);
    }
    Report { pid, uid, change, usage }
}
