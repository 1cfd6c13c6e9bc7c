//! `kcmp`: whether two threads share something of the kernel's.
//!
//! Not there: `KCMP_IO`, `KCMP_SYSVSEM`, `KCMP_EPOLL_TFD`.

use std::cmp::Ordering;
use std::sync::{Arc, OnceLock};

use super::Args;
use super::memory::may_read;
use crate::errno::{Errno, SysResult};
use crate::fs::random::random_bytes;
use crate::task::{SyscallContext, Task};

/// What a comparison is about (`enum kcmp_type`).
#[derive(Clone, Copy)]
enum Kind {
    File,
    Memory,
    Files,
    Fs,
    SignalHandlers,
}

impl Kind {
    fn new(raw: u32) -> SysResult<Kind> {
        // `linux/kcmp.h`, which the bindings leave out, numbers them from 0.
        [Kind::File, Kind::Memory, Kind::Files, Kind::Fs, Kind::SignalHandlers]
            .get(raw as usize)
            .copied()
            .ok_or(Errno::EINVAL)
    }

    /// The address of the object, which says nothing but which it is. `EBADF`.
    fn object(self, task: &Task, fd: u64) -> SysResult<usize> {
        Ok(match self {
            Kind::File => Arc::as_ptr(&task.file(fd)?).addr(),
            Kind::Memory => Arc::as_ptr(&task.mm()).addr(),
            Kind::Files => Arc::as_ptr(&task.files()).addr(),
            Kind::Fs => Arc::as_ptr(&task.fs()).addr(),
            Kind::SignalHandlers => Arc::as_ptr(&task.thread_group().handlers()).addr(),
        })
    }
}

/// Puts addresses into an order that tells nothing of them: a product with an odd number, of a sum with another, both of this run.
fn hidden(address: usize) -> SysResult<u64> {
    static COOKIES: OnceLock<[u64; 2]> = OnceLock::new();
    let [add, multiply] = match COOKIES.get() {
        Some(cookies) => *cookies,
        None => {
            let mut bytes = [[0; 8]; 2];
            random_bytes(bytes.as_flattened_mut())?;
            *COOKIES.get_or_init(|| bytes.map(u64::from_ne_bytes))
        }
    };
    Ok((address as u64 ^ add).wrapping_mul(multiply | 1))
}

/// `kcmp(pid_t pid1, pid_t pid2, int type, unsigned long idx1, unsigned long idx2)`: 0 for the same, 1 and 2 for an order of others.
pub fn kcmp(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let namespace = ctx.task.pid_namespace().ok_or(Errno::ESRCH)?;
    let find = |pid: i32| namespace.task(pid).ok_or(Errno::ESRCH);
    let (first, second) = (find(args.int(0))?, find(args.int(1))?);
    may_read(ctx, &first)?;
    may_read(ctx, &second)?;
    let kind = Kind::new(args.uint(2))?;
    let (one, other) = (kind.object(&first, args.raw(3))?, kind.object(&second, args.raw(4))?);
    Ok(match hidden(one)?.cmp(&hidden(other)?) {
        Ordering::Equal => 0,
        Ordering::Less => 1,
        Ordering::Greater => 2,
    })
}
