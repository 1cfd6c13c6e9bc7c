//! System calls: one table, and one thin file per family (decode, act, encode).
//!
//! A handler is a plain function of the context and six raw arguments. It returns what goes into `rax`, or an [`Errno`].
//! [`table`] lists every call once: number, name, handler, argument formats for strace, support level, what is missing.
//! Dispatch, strace, metrics and `docs/compatibility.md` are all printed from it.
//!
//! Calls that can block use [`crate::task::block`]: try, wait, try again. They have no side effect before they succeed.

pub mod change;
pub mod dirs;
pub mod events;
pub mod exitless;
pub mod fcntl;
pub mod futex;
pub mod identity;
pub mod kcmp;
mod layout;
pub mod memory;
pub mod messages;
pub mod mounts;
pub mod mqueue;
pub mod msg;
pub mod names;
pub mod namespaces;
pub mod numbers;
pub mod open;
mod path_args;
pub mod pipes;
pub mod poll;
pub mod prctl;
pub mod process;
pub mod rseq;
pub mod rw;
pub mod sched;
pub mod sem;
pub mod shm;
pub mod signals;
pub mod sockets;
pub mod stat;
pub mod system;
pub mod table;
pub mod time;
pub mod transfer;
pub mod watches;
pub mod xattr;

use crate::errno::SysResult;
use crate::task::SyscallContext;

/// The six argument registers: rdi, rsi, rdx, r10, r8, r9.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Args(pub [u64; 6]);

impl Args {
    /// Argument `n` (0..6) as a 64-bit value.
    pub fn raw(&self, n: usize) -> u64 {
        self.0.get(n).copied().unwrap_or(0)
    }

    /// Argument `n` as C's `int`.
    pub fn int(&self, n: usize) -> i32 {
        self.raw(n) as i32
    }

    /// Argument `n` as C's `unsigned int`.
    pub fn uint(&self, n: usize) -> u32 {
        self.raw(n) as u32
    }
}

/// A system call handler.
pub type Handler = fn(&mut SyscallContext<'_>, &Args) -> SysResult<usize>;
