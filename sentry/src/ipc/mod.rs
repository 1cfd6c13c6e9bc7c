//! System V IPC and POSIX message queues: what an ipc namespace holds.
//!
//! [`Ipc`] is the state of a namespace. Its three System V tables are [`ids::Ids`]: identifiers, keys, permissions. The objects
//! are [`shm::Segment`], [`sem::Set`] and [`msg::Queue`]; an object that was removed knows it (`EIDRM` for who waits on it).
//! [`undo`] gives semaphores back when a process ends.
//!
//! Memory: segments are guest memory like any other; the rest is bounded by limits that are lower than Linux's where Linux
//! relies on the memory cgroup.
//!
//! Lock order: a table, then the permissions or the state of an object. Nothing waits or touches user memory under them.

pub mod ids;
pub mod mqueue;
pub mod msg;
pub mod sem;
pub mod shm;
#[cfg(test)]
mod tests;
pub mod undo;

use std::sync::Arc;

use crate::errno::{Errno, SysResult};
use crate::fs::mqueue::MqueueFs;
use crate::task::namespaces::IpcNamespace;
use crate::task::{SyscallContext, Task};
use crate::time::Timespec;

/// The state of an ipc namespace.
pub struct Ipc {
    /// Shared memory.
    pub shm: Arc<shm::Segments>,
    /// Semaphores.
    pub sem: sem::Sets,
    /// Message queues.
    pub msg: msg::Queues,
    /// POSIX message queues.
    pub mqueues: Arc<MqueueFs>,
}

impl Ipc {
    fn new() -> Arc<Ipc> {
        Arc::new(Ipc {
            shm: Arc::default(),
            sem: sem::Sets::default(),
            msg: msg::Queues::default(),
            mqueues: MqueueFs::new(),
        })
    }

    /// The state of a namespace.
    pub fn in_namespace(namespace: &IpcNamespace) -> SysResult<Arc<Ipc>> {
        namespace.state_or(Ipc::new).ok_or(Errno::ENOSYS)
    }

    /// The namespace that `task` lives in.
    pub fn of(task: &Task) -> SysResult<Arc<Ipc>> {
        Ipc::in_namespace(&task.namespaces().ipc)
    }

    /// The caller's namespace.
    pub fn current(ctx: &SyscallContext<'_>) -> SysResult<Arc<Ipc>> {
        Ipc::of(ctx.task)
    }
}

/// A process that did something to an object, remembered beyond its life. Processes of other pid namespaces see it as 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Actor {
    namespace: u64,
    number: i32,
}

impl Actor {
    /// The process of `task`.
    pub fn of(task: &Task) -> Actor {
        let pid = task.thread_group().pid();
        Actor { namespace: pid.namespace().map_or(0, |namespace| namespace.id()), number: pid.own() }
    }

    /// The process that the host thread works for, if any.
    pub fn current() -> Actor {
        crate::task::current::current().map_or_else(Actor::default, |task| Actor::of(&task))
    }

    /// Its number as `viewer` sees it.
    pub fn seen_by(self, viewer: &Task) -> i32 {
        let namespace = viewer.pid_namespace().map_or(0, |namespace| namespace.id());
        if self.namespace == namespace { self.number } else { 0 }
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    Timespec::now_realtime().sec
}
