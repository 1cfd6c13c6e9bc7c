//! Process groups and sessions as processes change them, and what a terminal asks of them.

use std::sync::Arc;

use super::process_group::{ControllingTerminal, ProcessGroup};
use super::signal::{Disposition, SigInfo, Signal};
use super::{Task, ThreadGroup};
use crate::errno::{Errno, SysResult};

impl ThreadGroup {
    /// `setsid`: a new session and job, without a terminal. `EPERM` for a leader of a job.
    pub fn set_session(self: &Arc<Self>) -> SysResult<i32> {
        let _tree = self.kernel().tree();
        if self.pid().process_group().is_some() {
            return Err(Errno::EPERM);
        }
        let old = self.process_group();
        let new = ProcessGroup::new_session(self.pid());
        old.remove(self);
        new.add(self);
        self.relations().process_group = new;
        Ok(self.pid().own())
    }

    /// Whether it leads its session.
    pub fn is_session_leader(&self) -> bool {
        self.process_group().session().pid().numbers_eq(self.pid())
    }
}

impl Task {
    /// `setpgid(2)`; `pid` and `pgid` as the guest gave them.
    pub fn set_process_group(self: &Arc<Self>, pid: i32, pgid: i32) -> SysResult {
        if pgid < 0 {
            return Err(Errno::EINVAL);
        }
        let namespace = self.pid_namespace().ok_or(Errno::ESRCH)?;
        let me = self.thread_group();
        let _tree = self.kernel().tree();
        let target = if pid == 0 { me.clone() } else { namespace.thread_group(pid).ok_or(Errno::ESRCH)? };
        let my_session = me.process_group().session().clone();
        if target.parent().is_some_and(|parent| Arc::ptr_eq(&parent, me)) {
            if !target.process_group().session().is(&my_session) {
                return Err(Errno::EPERM);
            }
            if target.relations().has_execed {
                return Err(Errno::EACCES);
            }
        } else if !Arc::ptr_eq(&target, me) {
            return Err(Errno::ESRCH);
        }
        if target.is_session_leader() {
            return Err(Errno::EPERM);
        }
        let own = target.pid().number_in(&namespace);
        let wanted = if pgid == 0 { own } else { pgid };
        let job = match namespace.process_group(wanted) {
            Some(job) if job.session().is(&my_session) => job,
            None if wanted == own => ProcessGroup::new(target.pid().clone(), my_session),
            _ => return Err(Errno::EPERM),
        };
        let old = target.process_group();
        if !old.is(&job) {
            old.remove(&target);
            job.add(&target);
            target.relations().process_group = job;
        }
        Ok(())
    }

    /// What job control says about a background process that uses its terminal: `Ok` to go on, `EIO` for an orphaned job or an
    /// ignored signal (reads only: pass `SIGTTIN`), `ERESTARTSYS` after `signal` was sent to the job. `terminal` is the terminal that is used;
    /// only a process whose controlling terminal it is is concerned.
    pub fn check_terminal_access(
        self: &Arc<Self>,
        terminal: &Arc<dyn ControllingTerminal>,
        signal: Signal,
    ) -> SysResult {
        let job = self.thread_group().process_group();
        let ours = job.session().terminal().is_some_and(|own| same_terminal(&own, terminal));
        if !ours || terminal.foreground().is_none_or(|foreground| foreground.is(&job)) {
            return Ok(());
        }
        let ignored = self.blocked_signals().contains(signal)
            || self.thread_group().handlers().get(signal).disposition == Disposition::Ignore;
        if ignored {
            return if signal == Signal::TTIN { Err(Errno::EIO) } else { Ok(()) };
        }
        if job.is_orphaned() {
            return Err(Errno::EIO);
        }
        job.signal(&SigInfo::kernel(signal));
        Err(Errno::ERESTARTSYS)
    }
}

fn same_terminal(a: &Arc<dyn ControllingTerminal>, b: &Arc<dyn ControllingTerminal>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(a), Arc::as_ptr(b))
}

/// After a process left `job` (it exited, or its parent did): if that orphaned it while a member is stopped, the job gets
/// `SIGHUP` and `SIGCONT` (POSIX).
pub(super) fn rouse_if_orphaned(job: &Arc<ProcessGroup>) {
    if job.is_orphaned() && job.has_stopped_member() {
        job.signal(&SigInfo::kernel(Signal::HUP));
        job.signal(&SigInfo::kernel(Signal::CONT));
    }
}
