//! `futex(2)` and its relatives.

use std::time::Instant;

use linux_raw_sys::general as linux;

use super::Args;
use super::time::{RawTime, duration};
use crate::errno::{Errno, SysResult};
use crate::mm::FutexScope;
use crate::task::SyscallContext;
use crate::task::futex::pi::Attempt;
use crate::task::futex::{MATCH_ANY, WakeOp, Wish, Word};
use crate::time::clock_id::Clock;

fn scope(private: bool) -> FutexScope {
    if private { FutexScope::Private } else { FutexScope::Shared }
}

fn count(raw: u32) -> usize {
    usize::try_from(raw as i32).unwrap_or(0)
}

/// `futex(2)`
pub fn futex(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let op = args.uint(1);
    let command = op & !(linux::FUTEX_PRIVATE_FLAG | linux::FUTEX_CLOCK_REALTIME);
    let realtime = op & linux::FUTEX_CLOCK_REALTIME != 0;
    let word = Word { addr: args.raw(0), scope: scope(op & linux::FUTEX_PRIVATE_FLAG != 0) };
    let second = Word { addr: args.raw(4), scope: word.scope };
    let clock_matters = matches!(command, linux::FUTEX_WAIT_BITSET | linux::FUTEX_LOCK_PI2);
    if realtime && !clock_matters {
        return Err(Errno::ENOSYS);
    }
    let (value, timeout, bitset) = (args.uint(2), args.raw(3), args.uint(5));
    let kernel = ctx.kernel().clone();
    let futexes = kernel.futexes();
    let mm = ctx.task.mm();
    match command {
        linux::FUTEX_WAIT => wait(ctx, word, value, timeout),
        linux::FUTEX_WAIT_BITSET => {
            let deadline = absolute(ctx, timeout, realtime)?;
            wait_until(ctx, Wish { word, expected: value, bitset }, deadline)
        }
        linux::FUTEX_WAKE => futexes.wake(&mm, word, count(value).max(1), MATCH_ANY),
        linux::FUTEX_WAKE_BITSET => futexes.wake(&mm, word, count(value).max(1), bitset),
        linux::FUTEX_REQUEUE | linux::FUTEX_CMP_REQUEUE => {
            let (wake, requeue) = (value as i32, timeout as u32 as i32);
            let counts = (usize::try_from(wake), usize::try_from(requeue));
            let (Ok(wake), Ok(requeue)) = counts else { return Err(Errno::EINVAL) };
            let expected = (command == linux::FUTEX_CMP_REQUEUE).then_some(bitset);
            let (woken, moved) = futexes.requeue(&mm, (word, second), (wake, requeue), expected)?;
            Ok(woken + if expected.is_some() { moved } else { 0 })
        }
        linux::FUTEX_WAKE_OP => {
            let op = WakeOp::decode(bitset)?;
            let counts = (count(value).max(1), count(timeout as u32).max(1));
            futexes.wake_op(&mm, (word, second), counts, op)
        }
        linux::FUTEX_LOCK_PI | linux::FUTEX_LOCK_PI2 => {
            let realtime = realtime || command == linux::FUTEX_LOCK_PI;
            let deadline = absolute(ctx, timeout, realtime)?;
            futexes.lock_pi(ctx.task, word, Attempt::Until(deadline)).map(|()| 0)
        }
        linux::FUTEX_TRYLOCK_PI => futexes.lock_pi(ctx.task, word, Attempt::Once).map(|()| 0),
        linux::FUTEX_UNLOCK_PI => futexes.unlock_pi(ctx.task, word).map(|()| 0),
        _ => Err(Errno::ENOSYS),
    }
}

/// `FUTEX_WAIT`: a relative timeout, which a restart does not begin anew.
fn wait(ctx: &mut SyscallContext<'_>, word: Word, value: u32, timeout: u64) -> SysResult<usize> {
    let timeout = if timeout == 0 {
        None
    } else {
        Some(duration(ctx.task.mm().copy_in::<RawTime>(timeout)?.timespec()?))
    };
    let deadline = ctx.deadline_after(timeout);
    match wait_until(ctx, Wish { word, expected: value, bitset: MATCH_ANY }, deadline) {
        Err(Errno::ERESTARTSYS) if deadline.is_some() => Err(ctx.restart_with(deadline)),
        other => other,
    }
}

fn wait_until(ctx: &mut SyscallContext<'_>, wish: Wish, deadline: Option<Instant>) -> SysResult<usize> {
    let kernel = ctx.kernel().clone();
    // A trace tells a call's result when its handler has returned.
    let done = match deadline {
        None if !kernel.straces() => kernel.futexes().park(ctx, wish),
        _ => kernel.futexes().wait(ctx.task, wish.word, wish.expected, wish.bitset, deadline),
    };
    done.map(|()| 0)
}

fn absolute(ctx: &SyscallContext<'_>, addr: u64, realtime: bool) -> SysResult<Option<Instant>> {
    if addr == 0 {
        return Ok(None);
    }
    let at = ctx.task.mm().copy_in::<RawTime>(addr)?.timespec()?;
    let clock = if realtime { Clock::Realtime } else { Clock::Monotonic };
    clock.instant_of(ctx, at).map(Some)
}

/// `futex_waitv(2)`
pub fn futex_waitv(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let (at, words, flags, timeout, clock) =
        (args.raw(0), args.uint(1), args.uint(2), args.raw(3), args.int(4));
    if flags != 0 || words == 0 || words > linux::FUTEX_WAITV_MAX || at == 0 {
        return Err(Errno::EINVAL);
    }
    let realtime = match clock.unsigned_abs() {
        _ if timeout == 0 => false,
        linux::CLOCK_MONOTONIC => false,
        linux::CLOCK_REALTIME => true,
        _ => return Err(Errno::EINVAL),
    };
    let deadline = absolute(ctx, timeout, realtime)?;
    let entries: Vec<[u64; 3]> = ctx.task.mm().copy_in_slice(at, words as usize)?;
    let mut list = Vec::with_capacity(entries.len());
    for [value, addr, flags] in entries {
        let (flags, reserved) = (flags as u32, flags >> 32);
        let known = linux::FUTEX_32 | linux::FUTEX_PRIVATE_FLAG;
        if flags & !known != 0 || flags & linux::FUTEX_32 == 0 || reserved != 0 || value >> 32 != 0 {
            return Err(Errno::EINVAL);
        }
        let word = Word { addr, scope: scope(flags & linux::FUTEX_PRIVATE_FLAG != 0) };
        list.push((word, value as u32));
    }
    let kernel = ctx.kernel().clone();
    kernel.futexes().wait_any(ctx.task, &list, deadline)
}

/// `set_robust_list(2)`
pub fn set_robust_list(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    const HEAD_SIZE: u64 = size_of::<linux::robust_list_head>() as u64;
    if args.raw(1) != HEAD_SIZE {
        return Err(Errno::EINVAL);
    }
    ctx.local.robust_list = args.raw(0);
    Ok(0)
}

/// `get_robust_list(2)`: only the caller's own; what another thread has is its own affair.
pub fn get_robust_list(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let tid = args.int(0);
    if tid != 0 && tid != ctx.task.tid() {
        let exists = ctx.task.pid_namespace().and_then(|namespace| namespace.task(tid)).is_some();
        return Err(if exists { Errno::EPERM } else { Errno::ESRCH });
    }
    let mm = ctx.task.mm();
    mm.copy_out(args.raw(2), &(size_of::<linux::robust_list_head>() as u64))?;
    mm.copy_out(args.raw(1), &ctx.local.robust_list)?;
    Ok(0)
}
