//! A terminal's session and foreground group.

use std::any::Any;
use std::sync::Arc;

use super::Tty;
use crate::errno::{Errno, SysResult};
use crate::task::signal::Disposition;
use crate::task::{
    Capability, ControllingTerminal, Pid, ProcessGroup, Session, SigInfo, Signal, SyscallContext, Task,
    current,
};
use crate::vfs::Device;

/// Whose terminal it is. Ids, not objects: sessions own their terminal, not the other way round.
#[derive(Default)]
pub(super) struct Job {
    pub session: Option<Arc<Pid>>,
    pub group: Option<Arc<Pid>>,
}

impl Job {
    pub fn session(&self) -> Option<Arc<Session>> {
        self.session.as_ref()?.session()
    }

    pub fn foreground(&self) -> Option<Arc<ProcessGroup>> {
        self.group.as_ref()?.process_group()
    }
}

impl Tty {
    /// Whether it is the controlling terminal of `session`.
    fn controls(&self, session: &Session) -> bool {
        session.terminal().is_some_and(|terminal| std::ptr::addr_eq(Arc::as_ptr(&terminal), self))
    }

    /// Asks whether the current task may go on (`tty_check_change`, `job_control`): a process of a background group gets
    /// `signal` (`SIGTTIN` or `SIGTTOU`) together with its group and `ERESTARTSYS`; `EIO` where nobody could continue it.
    pub(super) fn check_background(&self, signal: Signal) -> SysResult {
        let Some(task) = current::current() else { return Ok(()) };
        let Some(foreground) = self.job.lock().group.clone() else { return Ok(()) };
        let group = task.thread_group().process_group();
        if group.pid().numbers_eq(&foreground) || !self.controls(group.session()) {
            return Ok(());
        }
        if refuses(&task, signal) {
            return if signal == Signal::TTIN { Err(Errno::EIO) } else { Ok(()) };
        }
        if group.is_orphaned() {
            return Err(Errno::EIO);
        }
        group.signal(&SigInfo::kernel(signal));
        Err(Errno::ERESTARTSYS)
    }

    /// Makes it the controlling terminal of a session leader that has none, on `open`, if nobody else has it.
    pub(super) fn adopt_on_open(&self, task: &Arc<Task>) {
        let group = task.thread_group().process_group();
        let leader = group.session().pid().numbers_eq(task.thread_group().pid());
        if leader && group.session().terminal().is_none() && self.job.lock().session().is_none() {
            self.become_terminal_of(&group);
        }
    }

    pub(super) fn become_terminal_of(&self, group: &Arc<ProcessGroup>) {
        let Some(me) = self.me.upgrade() else { return };
        let session = group.session();
        *self.job.lock() = Job { session: Some(session.pid().clone()), group: Some(group.pid().clone()) };
        let former = session.set_terminal(Some(me));
        drop(former);
    }

    /// `TIOCSCTTY`; `steal` is its argument.
    pub(super) fn set_controlling(&self, task: &Arc<Task>, readable: bool, steal: bool) -> SysResult {
        let group = task.thread_group().process_group();
        let session = group.session();
        let leader = session.pid().numbers_eq(task.thread_group().pid());
        if leader && self.controls(session) {
            return Ok(());
        }
        if !leader || session.terminal().is_some() {
            return Err(Errno::EPERM);
        }
        let privileged = task.credentials().has(Capability::SYS_ADMIN);
        let owner = self.job.lock().session();
        if let Some(owner) = owner {
            if !steal || !privileged {
                return Err(Errno::EPERM);
            }
            drop(owner.set_terminal(None));
        }
        if !readable && !privileged {
            return Err(Errno::EPERM);
        }
        self.become_terminal_of(&group);
        Ok(())
    }

    /// `TIOCNOTTY`: a session leader gives the terminal up, and its jobs are told. Others keep seeing their session's.
    pub(super) fn give_up(&self, task: &Arc<Task>) -> SysResult {
        let group = task.thread_group().process_group();
        let session = group.session();
        if !self.controls(session) {
            return Err(Errno::ENOTTY);
        }
        if session.pid().numbers_eq(task.thread_group().pid()) {
            self.signal_foreground(Signal::HUP);
            self.signal_foreground(Signal::CONT);
            *self.job.lock() = Job::default();
            drop(session.set_terminal(None));
        }
        Ok(())
    }

    /// `TIOCGPGRP`: the foreground group's id as `ctx` sees it, 0 if there is none. `from_master` skips the check that it is
    /// the caller's terminal.
    pub(super) fn foreground_id(&self, ctx: &SyscallContext<'_>, from_master: bool) -> SysResult<i32> {
        let group = self.job.lock().group.clone();
        self.check_own(ctx, from_master)?;
        let namespace = ctx.task.pid_namespace().ok_or(Errno::ESRCH)?;
        Ok(group.map_or(0, |pid| pid.number_in(&namespace)))
    }

    /// `TIOCGSID`.
    pub(super) fn session_id(&self, ctx: &SyscallContext<'_>, from_master: bool) -> SysResult<i32> {
        self.check_own(ctx, from_master)?;
        let session = self.job.lock().session.clone().ok_or(Errno::ENOTTY)?;
        let namespace = ctx.task.pid_namespace().ok_or(Errno::ESRCH)?;
        Ok(session.number_in(&namespace))
    }

    fn check_own(&self, ctx: &SyscallContext<'_>, from_master: bool) -> SysResult {
        let group = ctx.task.thread_group().process_group();
        if from_master || self.controls(group.session()) { Ok(()) } else { Err(Errno::ENOTTY) }
    }

    /// `TIOCSPGRP`.
    pub(super) fn set_foreground(&self, ctx: &SyscallContext<'_>, number: i32) -> SysResult {
        match self.check_background(Signal::TTOU) {
            Err(Errno::EIO) => return Err(Errno::ENOTTY),
            other => other?,
        }
        self.check_own(ctx, false)?;
        if number < 0 {
            return Err(Errno::EINVAL);
        }
        let own = ctx.task.thread_group().process_group();
        let namespace = ctx.task.pid_namespace().ok_or(Errno::ESRCH)?;
        let group = namespace.process_group(number).ok_or(Errno::ESRCH)?;
        if !group.session().is(own.session()) {
            return Err(Errno::EPERM);
        }
        self.job.lock().group = Some(group.pid().clone());
        Ok(())
    }

    /// The terminal is gone: the session loses it and its leader is told.
    pub(super) fn hang_up_session(&self) {
        let job = std::mem::take(&mut *self.job.lock());
        let Some(session) = job.session() else { return };
        if self.controls(&session) {
            drop(session.set_terminal(None));
        }
        if let Some(leader) = session.pid().task() {
            leader.thread_group().send_signal(SigInfo::kernel(Signal::HUP));
            leader.thread_group().send_signal(SigInfo::kernel(Signal::CONT));
        }
    }
}

/// Whether the signal would not stop the task because it is ignored or blocked.
fn refuses(task: &Arc<Task>, signal: Signal) -> bool {
    task.blocked_signals().contains(signal)
        || task.thread_group().handlers().get(signal).disposition == Disposition::Ignore
}

impl ControllingTerminal for Tty {
    fn device(&self) -> Device {
        self.slave_device()
    }

    fn name(&self) -> String {
        format!("pts/{}", self.index())
    }

    fn foreground(&self) -> Option<Arc<ProcessGroup>> {
        self.job.lock().foreground()
    }

    fn session_ended(&self) {
        *self.job.lock() = Job::default();
    }
}

/// The terminal that controls the task's session.
pub(super) fn terminal_of(task: &Arc<Task>) -> Option<Arc<Tty>> {
    let terminal = task.thread_group().process_group().session().terminal()?;
    let any: &dyn Any = &*terminal;
    any.downcast_ref::<Tty>()?.me.upgrade()
}
