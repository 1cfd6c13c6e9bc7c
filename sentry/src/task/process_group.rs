//! Process groups and sessions.
//!
//! Membership changes only under the kernel's task tree lock ([`crate::kernel::Kernel::tree`]).

use std::any::Any;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::pid::Pid;
use super::signal::SigInfo;
use super::thread_group::ThreadGroup;

/// The terminal side of job control, implemented by the tty driver.
pub trait ControllingTerminal: Any + Send + Sync {
    /// Its device number (`tty_nr` in `/proc/*/stat`).
    fn device(&self) -> crate::vfs::Device;
    /// Its name for `ps`, e.g. `pts/0`.
    fn name(&self) -> String;
    /// The group that may read from it.
    fn foreground(&self) -> Option<Arc<ProcessGroup>>;
    /// The session's leader has exited: forget the session, hang up. The foreground group gets `SIGHUP` and `SIGCONT` from the caller.
    fn session_ended(&self);
}

/// A process group (job).
pub struct ProcessGroup {
    pid: Arc<Pid>,
    session: Arc<Session>,
    members: Mutex<Vec<Weak<ThreadGroup>>>,
}

impl ProcessGroup {
    /// An empty group named by `pid` in `session`.
    pub(super) fn new(pid: Arc<Pid>, session: Arc<Session>) -> Arc<ProcessGroup> {
        let group = Arc::new(ProcessGroup { pid, session, members: Mutex::default() });
        group.pid.set_process_group(&group);
        group
    }

    /// A new session with a new group in it, both named by `pid`.
    pub(super) fn new_session(pid: &Arc<Pid>) -> Arc<ProcessGroup> {
        let session = Arc::new(Session { pid: pid.clone(), terminal: Mutex::new(None) });
        pid.set_session(&session);
        ProcessGroup::new(pid.clone(), session)
    }

    /// Its id.
    pub fn pid(&self) -> &Arc<Pid> {
        &self.pid
    }

    /// Its session.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Whether it is the same group.
    pub fn is(&self, other: &ProcessGroup) -> bool {
        std::ptr::eq(self, other)
    }

    /// Its processes, zombies included.
    pub fn members(&self) -> Vec<Arc<ThreadGroup>> {
        self.members.lock().iter().filter_map(Weak::upgrade).collect()
    }

    pub(super) fn add(&self, member: &Arc<ThreadGroup>) {
        self.members.lock().push(Arc::downgrade(member));
    }

    pub(super) fn remove(&self, member: &ThreadGroup) {
        self.members.lock().retain(|entry| !std::ptr::eq(entry.as_ptr(), member));
    }

    /// Sends a signal of the kernel to every process in it (the tty driver's `SIGINT`, `SIGWINCH`, …).
    pub fn signal(&self, info: &SigInfo) {
        for member in self.members() {
            member.send_signal(info.clone());
        }
    }

    /// Whether nobody outside could continue it: no live member has a live parent in another group of the same session
    /// (POSIX: orphaned process group). A background read of an orphaned group's terminal is `EIO`, not `SIGTTIN`.
    pub fn is_orphaned(&self) -> bool {
        !self.members().iter().any(|member| self.has_guardian(member))
    }

    fn has_guardian(&self, member: &Arc<ThreadGroup>) -> bool {
        if member.has_exited() {
            return false;
        }
        let Some(parent) = member.parent() else { return false };
        let group = parent.process_group();
        !parent.is_namespace_init() && !group.is(self) && group.session().is(&self.session)
    }

    /// Whether any member is stopped.
    pub fn has_stopped_member(&self) -> bool {
        self.members().iter().any(|member| !member.has_exited() && member.is_stopped())
    }
}

/// A session.
pub struct Session {
    pid: Arc<Pid>,
    terminal: Mutex<Option<Arc<dyn ControllingTerminal>>>,
}

impl Session {
    /// Its id, which is its leader's pid.
    pub fn pid(&self) -> &Arc<Pid> {
        &self.pid
    }

    /// Whether it is the same session.
    pub fn is(&self, other: &Session) -> bool {
        std::ptr::eq(self, other)
    }

    /// Its controlling terminal.
    pub fn terminal(&self) -> Option<Arc<dyn ControllingTerminal>> {
        self.terminal.lock().clone()
    }

    /// Sets or clears the controlling terminal, returning the former one.
    pub fn set_terminal(
        &self,
        terminal: Option<Arc<dyn ControllingTerminal>>,
    ) -> Option<Arc<dyn ControllingTerminal>> {
        std::mem::replace(&mut *self.terminal.lock(), terminal)
    }
}
