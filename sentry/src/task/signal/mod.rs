//! Signals: numbers, information, queues, dispositions, sending and delivery.
//!
//! Who owns what: dispositions belong to [`SignalHandlers`] (shared by `CLONE_SIGHAND`), process-wide pending signals and the stop
//! state to [`super::ThreadGroup`] under its signal lock, a thread's own pending signals and mask to [`super::Task`].
//!
//! Lock order: task tree, a group's relations, a group's signal lock, a task's signal lock; handlers and waiters are leaves.

pub mod action;
pub mod deliver;
pub mod frame;
pub mod info;
pub mod number;
pub mod pending;
pub mod send;

pub use action::{Action, Disposition, SignalHandlers};
pub use info::{SIGINFO_SIZE, SigFields, SigInfo};
pub use number::{DefaultAction, Signal, SignalSet};
pub use pending::{PendingQueue, SignalCount};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// By `exit` with this code.
    Exited(u8),
    /// By a signal.
    Signaled {
        /// Which.
        signal: Signal,
        /// Whether it would have dumped core.
        core: bool,
    },
}

impl ExitStatus {
    /// As `wait4` reports it.
    pub fn wait_status(self) -> i32 {
        match self {
            ExitStatus::Exited(code) => i32::from(code) << 8,
            ExitStatus::Signaled { signal, core } => signal.number() | if core { 0x80 } else { 0 },
        }
    }

    /// As a shell and runc report it: the code, or 128 plus the signal.
    pub fn shell_status(self) -> u32 {
        match self {
            ExitStatus::Exited(code) => u32::from(code),
            ExitStatus::Signaled { signal, .. } => 128 + signal.number().unsigned_abs(),
        }
    }
}
