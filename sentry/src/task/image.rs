//! A program made ready to run: what `execve` and starting a process from outside share.

use std::sync::Arc;

use super::rlimit::Rlimits;
use super::{AfterCall, AltStack, Comm, CurrentCall, FaultRecord, TaskLocal};
use crate::errno::{Errno, SysResult};
use crate::kernel::Kernel;
use crate::mm::Mm;
use crate::platform::{GuestThread, Registers};
use crate::vfs::{Caller, File, VfsPath};

/// Which program, and with what.
pub struct Program<'a> {
    /// Who runs it.
    pub caller: &'a Caller<'a>,
    /// Where a relative path starts.
    pub start: VfsPath,
    /// The program.
    pub path: Vec<u8>,
    /// `argv`.
    pub argv: Vec<Vec<u8>>,
    /// `envp`.
    pub envp: Vec<Vec<u8>>,
    /// The limits it will have.
    pub rlimits: &'a Rlimits,
}

/// A loaded program.
pub struct Image {
    /// Its memory.
    pub mm: Arc<Mm>,
    /// Where it starts.
    pub registers: Registers,
    /// Its name.
    pub comm: Comm,
    /// The file it came from.
    pub exe: Option<Arc<File>>,
}

/// Loads a program into a new address space. Errors are those of `execve(2)`.
pub fn load(_kernel: &Arc<Kernel>, _program: &Program<'_>) -> SysResult<Image> {
    Err(Errno::ENOEXEC)
}

impl TaskLocal {
    /// The private half of a task that starts in `registers`.
    pub(crate) fn new(machine: Box<dyn GuestThread>, mm: &Arc<Mm>, registers: Registers) -> TaskLocal {
        TaskLocal {
            registers,
            machine,
            space: mm.space().clone(),
            call: CurrentCall::default(),
            restart: None,
            after: AfterCall::Result,
            interrupted: None,
            saved_mask: None,
            alt_stack: AltStack::default(),
            clear_child_tid: 0,
            robust_list: 0,
            vfork_done: None,
            fault: FaultRecord::default(),
        }
    }
}
