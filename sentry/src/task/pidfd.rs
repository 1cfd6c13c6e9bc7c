//! Pidfds: descriptors that stand for a process, whoever gets its number later.

use std::sync::Arc;

use super::{PidNamespace, SyscallContext, ThreadGroup, current};
use crate::fs::anonymous::{AnonymousInode, Pseudo, next_ino};
use crate::vfs::{File, FileOps, OpenFlags};
use crate::wait::{PollEvents, WaitQueue};

/// The process behind a pidfd.
pub struct PidFd {
    group: Arc<ThreadGroup>,
}

impl PidFd {
    /// The process.
    pub fn thread_group(&self) -> &Arc<ThreadGroup> {
        &self.group
    }
}

/// A pidfd for `group`; `flags` may hold `O_NONBLOCK`.
pub fn open(ctx: &SyscallContext<'_>, group: &Arc<ThreadGroup>, flags: OpenFlags) -> Arc<File> {
    let ops = Arc::new(PidFd { group: group.clone() });
    AnonymousInode::open(ctx, Pseudo::Anonymous, next_ino(), ops, flags | OpenFlags::RDWR)
}

impl FileOps for PidFd {
    fn poll(&self, _file: &File) -> PollEvents {
        if self.group.has_exited() { PollEvents::READABLE } else { PollEvents::empty() }
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(self.group.exit_queue())
    }

    fn anonymous_name(&self) -> Option<String> {
        Some("anon_inode:[pidfd]".into())
    }

    fn fdinfo(&self) -> String {
        let reader = current::current().and_then(|task| task.pid_namespace());
        let number = |namespace: &PidNamespace| self.group.pid().number_in(namespace);
        let gone = self.group.leader().is_none();
        let pid = if gone { -1 } else { reader.as_deref().map_or(0, number) };
        let own = if gone { -1 } else { self.group.pid().own() };
        format!("Pid:\t{pid}\nNSpid:\t{own}\n")
    }
}
