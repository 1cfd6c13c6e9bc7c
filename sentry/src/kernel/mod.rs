//! The sandbox: what all its containers share.
//!
//! [`Kernel`] owns the platform, the outermost namespaces, the task tree lock and the registry of containers. The control server
//! drives it through [`container`]'s plain data.

pub mod cgroup;
pub mod container;
pub mod services;
pub mod system_info;

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::platform::Platform;
use crate::task::PidNamespace;
use container::{
    ContainerError, ContainerSpec, ContainerStats, ExitListener, ProcessExit, ProcessInfo, ProcessSpec,
};

/// One sandbox's kernel.
pub struct Kernel {
    platform: Arc<dyn Platform>,
    pid_namespace: Arc<PidNamespace>,
    tree: Mutex<TaskTree>,
    listener: Arc<dyn ExitListener>,
    services: services::Services,
}

/// The right to change who is whose parent, member or job. Its lock is the outermost of the task locks.
pub struct TaskTree {
    _private: (),
}

type ContainerResult<T = ()> = Result<T, ContainerError>;

impl Kernel {
    /// The platform that runs guest code.
    pub fn platform(&self) -> &Arc<dyn Platform> {
        &self.platform
    }

    /// The outermost pid namespace, which sees every task of the sandbox.
    pub fn pid_namespace(&self) -> &Arc<PidNamespace> {
        &self.pid_namespace
    }

    /// Takes the task tree lock.
    pub fn tree(&self) -> MutexGuard<'_, TaskTree> {
        self.tree.lock()
    }

    /// Creates a container and loads its first process, which waits for [`Kernel::start`]. Returns its outermost pid.
    pub fn create_container(self: &Arc<Self>, spec: ContainerSpec) -> ContainerResult<i32> {
        Err(ContainerError::NotFound(spec.id))
    }

    /// Lets a created container run. Returns its first process's outermost pid.
    pub fn start(&self, container: &str) -> ContainerResult<i32> {
        Err(ContainerError::NotFound(container.into()))
    }

    /// Starts another process in a running container. `exec` is its ID, unique in the container. Returns its outermost pid.
    pub fn exec(self: &Arc<Self>, container: &str, _exec: &str, _spec: ProcessSpec) -> ContainerResult<i32> {
        Err(ContainerError::NotFound(container.into()))
    }

    /// Sends a signal (0 only checks) to a process from outside; `exec` is empty for the container's first.
    /// [`ContainerError::Failed`] with `ESRCH` when it has ended.
    pub fn signal(&self, container: &str, _exec: &str, _signal: i32) -> ContainerResult {
        Err(ContainerError::NotFound(container.into()))
    }

    /// Sends a signal to every process of the container.
    pub fn signal_all(&self, container: &str, _signal: i32) -> ContainerResult {
        Err(ContainerError::NotFound(container.into()))
    }

    /// How a process from outside ended, if it has.
    pub fn exit_of(&self, container: &str, _exec: &str) -> ContainerResult<Option<ProcessExit>> {
        Err(ContainerError::NotFound(container.into()))
    }

    /// Stops every task of the container without it noticing; returns when all stand still.
    pub fn pause(&self, container: &str) -> ContainerResult {
        Err(ContainerError::NotFound(container.into()))
    }

    /// Undoes [`Kernel::pause`].
    pub fn resume(&self, container: &str) -> ContainerResult {
        Err(ContainerError::NotFound(container.into()))
    }

    /// The container's processes.
    pub fn processes(&self, container: &str) -> ContainerResult<Vec<ProcessInfo>> {
        Err(ContainerError::NotFound(container.into()))
    }

    /// What the container uses.
    pub fn stats(&self, container: &str) -> ContainerResult<ContainerStats> {
        Err(ContainerError::NotFound(container.into()))
    }

    /// Changes the size of a process's terminal.
    pub fn resize_pty(&self, container: &str, _exec: &str, _rows: u16, _columns: u16) -> ContainerResult {
        Err(ContainerError::NotFound(container.into()))
    }

    /// Tells a terminal's input that no more is coming.
    pub fn close_stdin(&self, container: &str, _exec: &str) -> ContainerResult {
        Err(ContainerError::NotFound(container.into()))
    }

    /// Changes the limit of tasks; 0 lifts it.
    pub fn set_pids_max(&self, container: &str, _max: u64) -> ContainerResult {
        Err(ContainerError::NotFound(container.into()))
    }

    /// Forgets a process that has ended; for the container's first (`exec` empty) frees everything the container held.
    pub fn delete(&self, container: &str, _exec: &str) -> ContainerResult {
        Err(ContainerError::NotFound(container.into()))
    }

    /// Kills everything and waits until it is gone.
    pub fn shutdown(&self) {}

    /// Who is told of exits.
    pub fn listener(&self) -> &Arc<dyn ExitListener> {
        &self.listener
    }
}
