//! Scheduling: policies, priorities, affinity. The values are kept and reported; the host schedules.

use std::sync::Arc;

use linux_raw_sys::general as linux;

use super::Args;
use crate::errno::{Errno, SysResult};
use crate::task::{Capability, CpuMask, Resource, SyscallContext, Task};

/// Real-time priorities are 1 to this.
const MAX_RT_PRIORITY: i32 = 99;

fn find(ctx: &SyscallContext<'_>, pid: i32) -> SysResult<Arc<Task>> {
    if pid < 0 {
        return Err(Errno::EINVAL);
    }
    if pid == 0 {
        return Ok(ctx.task.clone());
    }
    ctx.task.pid_namespace().and_then(|namespace| namespace.task(pid)).ok_or(Errno::ESRCH)
}

/// Whether the caller may change the scheduling of `target`.
fn may_set(ctx: &SyscallContext<'_>, target: &Task) -> bool {
    let (mine, theirs) = (ctx.task.credentials(), target.credentials());
    mine.euid == theirs.euid || mine.euid == theirs.uid || mine.has(Capability::SYS_NICE)
}

/// `sched_yield(2)`
pub fn sched_yield(_: &mut SyscallContext<'_>, _: &Args) -> SysResult<usize> {
    std::thread::yield_now();
    Ok(0)
}

/// Whether a policy is a real-time one; `EINVAL` for one that does not exist here.
fn is_realtime(policy: u32) -> SysResult<bool> {
    match policy {
        linux::SCHED_NORMAL | linux::SCHED_BATCH | linux::SCHED_IDLE => Ok(false),
        linux::SCHED_FIFO | linux::SCHED_RR => Ok(true),
        _ => Err(Errno::EINVAL),
    }
}

/// `policy` may have `SCHED_RESET_ON_FORK` beside it; `None` keeps both.
fn set_policy(ctx: &SyscallContext<'_>, pid: i32, policy: Option<u32>, priority: i32) -> SysResult {
    let target = find(ctx, pid)?;
    let current = target.attributes();
    let reset = policy.map_or(current.sched_reset_on_fork, |policy| policy & linux::SCHED_RESET_ON_FORK != 0);
    let policy = policy.unwrap_or(current.sched_policy) & !linux::SCHED_RESET_ON_FORK;
    let valid = if is_realtime(policy)? { 1..=MAX_RT_PRIORITY } else { 0..=0 };
    if !valid.contains(&priority) {
        return Err(Errno::EINVAL);
    }
    let limit = i64::try_from(target.rlimit(Resource::Rtprio).soft).unwrap_or(i64::MAX);
    let raises = is_realtime(policy)? && i64::from(priority) > limit.max(i64::from(current.sched_priority));
    let forgets = current.sched_reset_on_fork && !reset;
    if !may_set(ctx, &target) || ((raises || forgets) && !ctx.task.credentials().has(Capability::SYS_NICE)) {
        return Err(Errno::EPERM);
    }
    target.update_attributes(|attributes| {
        attributes.sched_policy = policy;
        attributes.sched_reset_on_fork = reset;
        attributes.sched_priority = priority;
    });
    Ok(())
}

/// `sched_setparam(2)`
pub fn sched_setparam(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    if args.raw(1) == 0 {
        return Err(Errno::EINVAL);
    }
    let priority: i32 = ctx.task.mm().copy_in(args.raw(1))?;
    set_policy(ctx, args.int(0), None, priority).map(|()| 0)
}

/// `sched_getparam(2)`
pub fn sched_getparam(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    if args.raw(1) == 0 {
        return Err(Errno::EINVAL);
    }
    let priority = find(ctx, args.int(0))?.attributes().sched_priority;
    ctx.task.mm().copy_out(args.raw(1), &priority)?;
    Ok(0)
}

/// `sched_setscheduler(2)`
pub fn sched_setscheduler(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    if args.raw(2) == 0 || args.int(1) < 0 {
        return Err(Errno::EINVAL);
    }
    let priority: i32 = ctx.task.mm().copy_in(args.raw(2))?;
    set_policy(ctx, args.int(0), Some(args.uint(1)), priority).map(|()| 0)
}

/// `sched_getscheduler(2)`
pub fn sched_getscheduler(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let attributes = find(ctx, args.int(0))?.attributes();
    let reset = if attributes.sched_reset_on_fork { linux::SCHED_RESET_ON_FORK } else { 0 };
    usize::try_from(attributes.sched_policy | reset).map_err(|_| Errno::EINVAL)
}

/// `sched_get_priority_max(2)`
pub fn sched_get_priority_max(_: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let realtime = args.uint(0) != linux::SCHED_DEADLINE && is_realtime(args.uint(0))?;
    Ok(if realtime { 99 } else { 0 })
}

/// `sched_get_priority_min(2)`
pub fn sched_get_priority_min(_: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    Ok(usize::from(args.uint(0) != linux::SCHED_DEADLINE && is_realtime(args.uint(0))?))
}

/// `sched_rr_get_interval(2)`
pub fn sched_rr_get_interval(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let policy = find(ctx, args.int(0))?.attributes().sched_policy;
    // Linux's slices: 100 ms for SCHED_RR, none for SCHED_FIFO, about 4 ms for the others.
    let nanos: i64 = match policy {
        linux::SCHED_RR => 100_000_000,
        linux::SCHED_FIFO => 0,
        _ => 4_000_000,
    };
    ctx.task.mm().copy_out(args.raw(1), &[0, nanos])?;
    Ok(0)
}

/// `struct sched_attr` as of its first version: 48 bytes.
const ATTR_SIZE: u32 = 48;

/// `sched_setattr(2)`
pub fn sched_setattr(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    if args.raw(1) == 0 || args.uint(2) != 0 {
        return Err(Errno::EINVAL);
    }
    let mm = ctx.task.mm();
    let size: u32 = mm.copy_in(args.raw(1))?;
    let size = if size == 0 { ATTR_SIZE } else { size };
    let [head, flags, nice_and_priority, _, _, _]: [u64; 6] =
        super::process::extensible(&mm, args.raw(1), u64::from(size.min(4097)), ATTR_SIZE).map_err(
            |errno| {
                if errno == Errno::EINVAL { Errno::E2BIG } else { errno }
            },
        )?;
    let policy = (head >> 32) as u32;
    let (nice, priority) = (nice_and_priority as u32 as i32, (nice_and_priority >> 32) as u32);
    if flags & !u64::from(linux::SCHED_FLAG_RESET_ON_FORK) != 0 {
        return Err(Errno::EINVAL);
    }
    let priority = i32::try_from(priority).map_err(|_| Errno::EINVAL)?;
    if policy & linux::SCHED_RESET_ON_FORK != 0 {
        return Err(Errno::EINVAL);
    }
    let reset = if flags != 0 { linux::SCHED_RESET_ON_FORK } else { 0 };
    set_policy(ctx, args.int(0), Some(policy | reset), priority)?;
    if !is_realtime(policy)? {
        let target = find(ctx, args.int(0))?;
        set_nice(ctx, &target, nice)?;
    }
    Ok(0)
}

/// `sched_getattr(2)`
pub fn sched_getattr(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let size = args.uint(2);
    if args.raw(1) == 0 || args.uint(3) != 0 || !(ATTR_SIZE..=4096).contains(&size) {
        return Err(Errno::EINVAL);
    }
    let attributes = find(ctx, args.int(0))?.attributes();
    let head = u64::from(ATTR_SIZE) | u64::from(attributes.sched_policy) << 32;
    let nice = u64::from(attributes.nice.cast_unsigned());
    let priority = u64::from(attributes.sched_priority.cast_unsigned()) << 32;
    let flags = if attributes.sched_reset_on_fork { u64::from(linux::SCHED_FLAG_RESET_ON_FORK) } else { 0 };
    ctx.task.mm().copy_out(args.raw(1), &[head, flags, nice | priority, 0, 0, 0])?;
    Ok(0)
}

/// `sched_setaffinity(2)`
pub fn sched_setaffinity(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let cpus = ctx.kernel().system_info().cpus;
    let words = CpuMask::All.words(cpus).len();
    let len = (args.uint(1) as usize).min(words.saturating_mul(8));
    let mut bytes = vec![0; words.saturating_mul(8)];
    let part = bytes.get_mut(..len).ok_or(Errno::EINVAL)?;
    ctx.task.mm().read_bytes(args.raw(2), part)?;
    let target = find(ctx, args.int(0))?;
    if !may_set(ctx, &target) {
        return Err(Errno::EPERM);
    }
    let word = |chunk: &[u8]| chunk.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let asked = CpuMask::Only(bytes.chunks(8).map(word).collect());
    let mask = asked.words(cpus);
    if mask.iter().all(|word| *word == 0) {
        return Err(Errno::EINVAL);
    }
    target.set_affinity(CpuMask::Only(mask));
    Ok(0)
}

/// `sched_getaffinity(2)`
pub fn sched_getaffinity(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let cpus = ctx.kernel().system_info().cpus;
    let len = args.uint(1) as usize;
    if len.saturating_mul(8) < cpus as usize || !len.is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    let mask = find(ctx, args.int(0))?.attributes().affinity.words(cpus);
    ctx.task.mm().copy_out_slice(args.raw(2), &mask)?;
    Ok(mask.len().saturating_mul(8))
}

/// The tasks that `getpriority`, `setpriority` and `ioprio_*` mean.
fn tasks_of(ctx: &SyscallContext<'_>, which: u32, who: i32) -> SysResult<Vec<Arc<Task>>> {
    let namespace = ctx.task.pid_namespace().ok_or(Errno::ESRCH)?;
    let leaders =
        |groups: Vec<Arc<crate::task::ThreadGroup>>| groups.iter().filter_map(|g| g.leader()).collect();
    let found: Vec<Arc<Task>> = match which {
        linux::PRIO_PROCESS => find(ctx, who).into_iter().collect(),
        linux::PRIO_PGRP if who == 0 => leaders(ctx.task.thread_group().process_group().members()),
        linux::PRIO_PGRP => {
            leaders(namespace.process_group(who).map(|job| job.members()).unwrap_or_default())
        }
        linux::PRIO_USER => {
            let uid = if who == 0 { ctx.task.credentials().uid } else { who.cast_unsigned() };
            let tasks = namespace.pids().into_iter().filter_map(|pid| pid.task());
            tasks.filter(|task| task.credentials().uid == uid).collect()
        }
        _ => return Err(Errno::EINVAL),
    };
    if found.is_empty() { Err(Errno::ESRCH) } else { Ok(found) }
}

/// `getpriority(2)`: 20 less the nice value, so that it is never negative.
pub fn getpriority(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let tasks = tasks_of(ctx, args.uint(0), args.int(1))?;
    let best = tasks.iter().map(|task| 20i32.saturating_sub(task.attributes().nice)).max();
    usize::try_from(best.unwrap_or(20)).map_err(|_| Errno::EINVAL)
}

fn set_nice(ctx: &SyscallContext<'_>, target: &Task, nice: i32) -> SysResult {
    let nice = nice.clamp(-20, 19);
    let mine = ctx.task.credentials();
    let theirs = target.credentials();
    if mine.euid != theirs.euid && mine.euid != theirs.uid && !mine.has(Capability::SYS_NICE) {
        return Err(Errno::EPERM);
    }
    let floor = 20i64.saturating_sub_unsigned(target.rlimit(Resource::Nice).soft.min(40));
    let current = target.attributes().nice;
    if nice < current && i64::from(nice) < floor && !mine.has(Capability::SYS_NICE) {
        return Err(Errno::EACCES);
    }
    target.update_attributes(|attributes| attributes.nice = nice);
    Ok(())
}

/// `setpriority(2)`
pub fn setpriority(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let mut result = Ok(0);
    for task in tasks_of(ctx, args.uint(0), args.int(1))? {
        if let Err(errno) = set_nice(ctx, &task, args.int(2)) {
            result = Err(errno);
        }
    }
    result
}

/// `ioprio_get(2)`
pub fn ioprio_get(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    // IOPRIO_WHO_* are one more than PRIO_*.
    let tasks = tasks_of(ctx, args.uint(0).wrapping_sub(1), args.int(1))?;
    Ok(tasks.first().map_or(0, |task| task.attributes().io_priority as usize))
}

/// `ioprio_set(2)`
pub fn ioprio_set(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    const CLASS_SHIFT: u32 = 13;
    const NONE: u32 = 0;
    const REALTIME: u32 = 1;
    /// The level within the class; what is between is a hint.
    const LEVEL: u32 = 7;
    let priority = args.uint(2);
    let class = priority >> CLASS_SHIFT;
    if class > 3 || (class == NONE && priority & LEVEL != 0) {
        return Err(Errno::EINVAL);
    }
    let who = ctx.task.credentials();
    if class == REALTIME && !who.has(Capability::SYS_ADMIN) && !who.has(Capability::SYS_NICE) {
        return Err(Errno::EPERM);
    }
    for task in tasks_of(ctx, args.uint(0).wrapping_sub(1), args.int(1))? {
        if !may_set(ctx, &task) {
            return Err(Errno::EPERM);
        }
        task.update_attributes(|attributes| attributes.io_priority = priority);
    }
    Ok(0)
}
