//! Starts the sentry and the gofers: the one place that makes processes and namespaces.
//!
//! ```text
//!  launcher (root)                     child
//!   clone3(namespaces, pidfd) ───────▶  waits on a pipe
//!   writes uid_map, gid_map,
//!   cgroup.procs, oom_score_adj
//!   one byte ────────────────────────▶  becomes root of its user namespace (sentry only)
//!                                       moves its descriptors to their numbers, the rest gets close-on-exec
//!   end of file on the error pipe ◀───  execveat(program)
//! ```
//!
//! So a child is in its cgroup and unprivileged before its first instruction. [`sentry`] and [`gofer`] say what each program gets;
//! [`spawn`] is the mechanism; [`programs`] finds the binaries. Between `clone3` and `execveat` the child is a copy of a process with threads, so
//! `child` makes plain system calls on memory that was prepared before, and nothing else.

mod child;
pub mod gofer;
pub mod mount_points;
pub mod programs;
pub mod sentry;
mod spawn;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use thiserror::Error;

/// Why a program could not be started.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// The binary is not where it is looked for.
    #[error("cannot find {program}: looked for {places}")]
    NotFound {
        /// Base name.
        program: &'static str,
        /// Where it was looked for.
        places: String,
    },
    /// A host call failed.
    #[error("cannot start {program}: {what}: {error}")]
    Host {
        /// Base name.
        program: &'static str,
        /// What was being done.
        what: String,
        /// Why it failed.
        error: io::Error,
    },
    /// The program ended before it was ready.
    #[error("{program} ended while starting ({status}); its log says why")]
    Died {
        /// Base name.
        program: &'static str,
        /// How it ended.
        status: String,
    },
}

/// How a program of ours ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitKind {
    /// By itself, with this code.
    Code(i32),
    /// By this signal (`SIGSYS`: its system-call filter; `SIGKILL`: the OOM killer or somebody).
    Signal(i32),
}

impl std::fmt::Display for ExitKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(libc::SIGSYS) => f.write_str("SIGSYS: a system call that its filter does not allow"),
            Self::Signal(number) => match Signal::try_from(*number) {
                Ok(signal) => f.write_str(signal.as_str()),
                Err(_) => write!(f, "signal {number}"),
            },
        }
    }
}

/// A running sentry or gofer. Dropping it neither kills nor reaps; see [`Child::kill`] and [`Child::reap`].
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Child {
    /// Its pid in the launcher's pid namespace.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends `SIGKILL`. The pid cannot have been reused, because only [`Child::reap`] lets go of it.
    pub fn kill(&self) {
        let _ = kill(self.pid, Signal::SIGKILL);
    }

    /// Takes the exit status if it has ended. To be called when [`Child::as_fd`] is readable.
    ///
    /// # Errors
    /// Those of `waitid`, e.g. `ECHILD` when it was reaped before.
    pub fn reap(&self) -> Result<Option<ExitKind>, Errno> {
        match waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG)? {
            WaitStatus::Exited(_, code) => Ok(Some(ExitKind::Code(code))),
            WaitStatus::Signaled(_, signal, _) => Ok(Some(ExitKind::Signal(signal as i32))),
            _ => Ok(None),
        }
    }

    /// Waits for its end and takes the status.
    ///
    /// # Errors
    /// Those of `waitid`.
    pub fn wait(&self) -> Result<ExitKind, Errno> {
        loop {
            match waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED) {
                Ok(WaitStatus::Exited(_, code)) => return Ok(ExitKind::Code(code)),
                Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(ExitKind::Signal(signal as i32)),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl AsFd for Child {
    /// The pidfd: readable once the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

#[cfg(test)]
mod tests;
