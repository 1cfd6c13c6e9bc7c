//! Tasks: threads, thread groups, sessions, signals, credentials, and the loop that runs guest code.
//!
//! [`Task`] is what others may touch (under its locks). What only the task's own thread touches (registers, the platform
//! thread, saved masks) is [`TaskLocal`]. A system call gets both through [`SyscallContext`].

pub mod block;
pub mod credentials;
pub mod current;

use std::sync::Arc;

use parking_lot::RwLock;

pub use credentials::{Capability, Credentials};

use crate::errno::SysResult;
use crate::kernel::Kernel;
use crate::mm::Mm;
use crate::platform::Registers;
use crate::vfs::FdTable;
use crate::vfs::file::File;
use crate::wait::Waiter;

/// A guest thread, as everybody may see it.
pub struct Task {
    kernel: Arc<Kernel>,
    waiter: Arc<Waiter>,
    credentials: RwLock<Arc<Credentials>>,
    mm: RwLock<Arc<Mm>>,
    files: RwLock<Arc<FdTable>>,
}

impl Task {
    /// The sandbox's kernel.
    pub fn kernel(&self) -> &Arc<Kernel> {
        &self.kernel
    }

    /// Where it sleeps.
    pub fn waiter(&self) -> &Arc<Waiter> {
        &self.waiter
    }

    /// What it may do.
    pub fn credentials(&self) -> Arc<Credentials> {
        self.credentials.read().clone()
    }

    /// Its memory.
    pub fn mm(&self) -> Arc<Mm> {
        self.mm.read().clone()
    }

    /// Its descriptors.
    pub fn files(&self) -> Arc<FdTable> {
        self.files.read().clone()
    }

    /// The description behind a descriptor argument.
    pub fn file(&self, fd: u64) -> SysResult<Arc<File>> {
        self.files.read().get(crate::vfs::Fd::from_arg(fd)?)
    }
}

/// What only the task's own thread touches.
pub struct TaskLocal {
    /// The guest's registers while it is in the kernel.
    pub registers: Registers,
}

/// What a system call handler works with.
pub struct SyscallContext<'a> {
    /// The calling task.
    pub task: &'a Arc<Task>,
    /// Its private half.
    pub local: &'a mut TaskLocal,
}

impl SyscallContext<'_> {
    /// The sandbox's kernel.
    pub fn kernel(&self) -> &Arc<Kernel> {
        self.task.kernel()
    }
}
