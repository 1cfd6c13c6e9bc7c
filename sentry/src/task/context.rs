//! What a system call works with: the task, and the half of it that only its own thread touches.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ride::Ride;
use super::signal::ExitStatus;
use super::{Credentials, SignalSet, Task, rseq, vfork};
use crate::errno::Errno;
use crate::ipc::undo::UndoList;
use crate::kernel::Kernel;
use crate::mm::{Mm, Patches};
use crate::platform::{GuestThread, Registers, Space};
use crate::syscalls::Args;
use crate::vfs::FsContext;

/// What only the task's own thread touches, or a dispatcher to which the thread has handed it.
pub struct TaskLocal {
    /// The guest's registers while it is in the kernel.
    pub registers: Registers,
    /// The machine that runs it.
    pub machine: Box<dyn GuestThread>,
    /// The translations it runs in: those of its `mm`.
    pub space: Arc<dyn Space>,
    /// The patched call sites of its `mm`.
    pub patches: Arc<Patches>,
    /// The system call in progress.
    pub call: CurrentCall,
    /// What a dispatcher had done of a call when it would have had to sleep for the rest: the call's number, and bytes.
    pub progress: Option<(u64, usize)>,
    /// How `restart_syscall` goes on.
    pub restart: Option<RestartBlock>,
    /// What becomes of the registers when the handler returns.
    pub after: AfterCall,
    /// The restart code of a call that was interrupted and has not been settled yet.
    pub interrupted: Option<Errno>,
    /// The mask to go back to once a signal has been looked for (`sigsuspend`, `ppoll`, `pselect`, `epoll_pwait`).
    pub saved_mask: Option<SignalSet>,
    /// The alternate signal stack.
    pub alt_stack: AltStack,
    /// Cleared and woken at exit (`CLONE_CHILD_CLEARTID`, `set_tid_address`).
    pub clear_child_tid: u64,
    /// Restartable sequences.
    pub rseq: rseq::RseqState,
    /// What it gives back to semaphores at its end; shared with `CLONE_SYSVSEM`.
    pub sem_undo: Option<Arc<UndoList>>,
    /// The head of the robust futex list.
    pub robust_list: u64,
    /// Woken when the memory it borrowed from its parent is no longer used (`vfork`).
    pub vfork_done: Option<Arc<vfork::VforkDone>>,
    /// Taking turns with other threads in one vCPU.
    pub ride: Ride,
    /// The exception behind the signal that is being delivered, for the frame.
    pub fault: FaultRecord,
}

impl TaskLocal {
    /// It runs in this memory from now on.
    pub(super) fn move_to(&mut self, mm: &Mm) {
        self.space = mm.space().clone();
        self.patches = mm.patches().clone();
    }
}

/// What a signal frame tells about the last exception (`trapno`, `err`, `cr2`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultRecord {
    /// Vector.
    pub vector: u64,
    /// Error code.
    pub error_code: u64,
    /// Address of the last page fault.
    pub address: u64,
}

/// The alternate signal stack (`sigaltstack(2)`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AltStack {
    /// Lowest address.
    pub base: u64,
    /// Bytes; 0 means none.
    pub size: u64,
    /// `SS_AUTODISARM` or 0.
    pub flags: u32,
}

/// A system call in progress.
#[derive(Clone, Copy, Debug, Default)]
pub struct CurrentCall {
    /// Its number as the guest gave it.
    pub number: u64,
    /// Its arguments.
    pub args: Args,
    /// Set when the call is being restarted: the deadline it had the first time.
    pub deadline: Option<Instant>,
}

/// A call that goes on with its first deadline after a stop or an ignored signal.
#[derive(Clone, Copy, Debug)]
pub struct RestartBlock {
    /// The call.
    pub call: CurrentCall,
}

/// What becomes of the registers after a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterCall {
    /// The result goes into `rax`.
    Result,
    /// The handler has set all registers (`rt_sigreturn`, `execve`).
    Keep,
    /// The thread sleeps on the futex that [`Ride`] names, and the call ends when that does.
    Park,
    /// The thread exits; with the whole process if asked.
    Exit(ExitStatus),
}

/// What a system call handler works with.
pub struct SyscallContext<'a> {
    /// The calling task.
    pub task: &'a Arc<Task>,
    /// What it had when the call began.
    pub own: &'a Own,
    /// Its private half.
    pub local: &'a mut TaskLocal,
}

/// What a task refers to, at hand for its system calls: the same as [`Task::mm`] and its like tell, without locks and counts. Only the task's own
/// thread ever replaces any of it, between two calls as far as these are concerned.
pub struct Own {
    /// As of which [`Task::own_version`] the rest is.
    version: u64,
    /// Its memory.
    pub mm: Arc<Mm>,
    /// Its root, working directory and umask.
    pub fs: Arc<FsContext>,
    /// What it may do.
    pub credentials: Arc<Credentials>,
}

impl Own {
    /// What the task has now.
    pub(super) fn of(task: &Task) -> Own {
        let version = task.own_version();
        Own { version, mm: task.mm(), fs: task.fs(), credentials: task.credentials() }
    }

    /// Looks again if anything was replaced. Called by the task's own thread before anybody makes its next call.
    pub(super) fn refresh(&mut self, task: &Task) {
        if self.version != task.own_version() {
            *self = Own::of(task);
        }
    }
}

impl SyscallContext<'_> {
    /// The sandbox's kernel.
    pub fn kernel(&self) -> &Arc<Kernel> {
        self.task.kernel()
    }

    /// The deadline of a call with a relative timeout. A call that is being restarted keeps its first one.
    pub fn deadline_after(&self, timeout: Option<Duration>) -> Option<Instant> {
        let timeout = timeout?;
        self.local.call.deadline.or_else(|| Instant::now().checked_add(timeout))
    }

    /// The error for an interrupted call with a relative timeout: it goes on with the same `deadline` unless a handler runs.
    pub fn restart_with(&mut self, deadline: Option<Instant>) -> Errno {
        match deadline {
            None => Errno::ERESTARTNOHAND,
            Some(_) => {
                let call = CurrentCall { deadline, ..self.local.call };
                self.local.restart = Some(RestartBlock { call });
                Errno::ERESTART_RESTARTBLOCK
            }
        }
    }

    /// For a call that was to sleep after a part of its work, which cannot be undone. If it is a dispatcher that must not sleep, the part is
    /// written down, and the caller's own thread goes on from there when it makes the call again. The result is the error to return.
    pub fn goes_on_by_exit(&mut self, done: usize) -> Option<Errno> {
        if done == 0 || !crate::wait::was_declined() {
            return None;
        }
        self.local.progress = Some((self.local.call.number, done));
        Some(Errno::ERESTARTSYS)
    }

    /// What was done of this call already, in bytes.
    pub fn take_progress(&mut self) -> usize {
        let number = self.local.call.number;
        self.local.progress.take().filter(|(of, _)| *of == number).map_or(0, |(_, done)| done)
    }

    /// Blocks `mask` instead of the current mask until the call is over and a signal has been looked for (`ppoll`, `pselect6`,
    /// `epoll_pwait`, `sigsuspend`).
    pub fn set_temporary_mask(&mut self, mask: SignalSet) {
        let old = self.task.replace_mask(mask.blockable());
        self.local.saved_mask.get_or_insert(old);
    }
}
