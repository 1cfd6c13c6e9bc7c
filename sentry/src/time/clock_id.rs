//! Which clock a call means, and reading it.

use std::time::{Duration, Instant};

use linux_raw_sys::general as linux;

use super::{SystemClock, Timespec};
use crate::errno::{Errno, SysResult};
use crate::task::SyscallContext;

/// A clock a guest can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Wall clock.
    Realtime,
    /// Wall clock, at the tick's resolution.
    RealtimeCoarse,
    /// Since some point in the past; not adjusted by steps.
    Monotonic,
    /// The same, at the tick's resolution.
    MonotonicCoarse,
    /// The same, without frequency adjustment.
    MonotonicRaw,
    /// The same, including time asleep.
    Boottime,
    /// International atomic time.
    Tai,
    /// CPU time of a process; 0 = the caller's.
    ProcessCpu(i32),
    /// CPU time of a thread; 0 = the caller's.
    ThreadCpu(i32),
}

impl Clock {
    /// From a `clockid_t`; `EINVAL` for one Linux does not have.
    pub fn new(id: i32) -> SysResult<Clock> {
        /// Low bits of a per-process clock: scheduler time, and whether it is a thread's.
        const CPU_SCHED: i32 = 2;
        const PER_THREAD: i32 = 4;
        if id < 0 {
            let pid = !(id >> 3);
            return match (id & 3, id & PER_THREAD != 0) {
                (0..=CPU_SCHED, true) => Ok(Clock::ThreadCpu(pid)),
                (0..=CPU_SCHED, false) => Ok(Clock::ProcessCpu(pid)),
                _ => Err(Errno::EINVAL),
            };
        }
        Ok(match id.cast_unsigned() {
            linux::CLOCK_REALTIME | linux::CLOCK_REALTIME_ALARM => Clock::Realtime,
            linux::CLOCK_MONOTONIC => Clock::Monotonic,
            linux::CLOCK_PROCESS_CPUTIME_ID => Clock::ProcessCpu(0),
            linux::CLOCK_THREAD_CPUTIME_ID => Clock::ThreadCpu(0),
            linux::CLOCK_MONOTONIC_RAW => Clock::MonotonicRaw,
            linux::CLOCK_REALTIME_COARSE => Clock::RealtimeCoarse,
            linux::CLOCK_MONOTONIC_COARSE => Clock::MonotonicCoarse,
            linux::CLOCK_BOOTTIME | linux::CLOCK_BOOTTIME_ALARM => Clock::Boottime,
            linux::CLOCK_TAI => Clock::Tai,
            _ => return Err(Errno::EINVAL),
        })
    }

    /// Its time now.
    pub fn now(self, ctx: &SyscallContext<'_>) -> SysResult<Timespec> {
        let clock = match self {
            Clock::Realtime => SystemClock::Realtime,
            Clock::RealtimeCoarse => SystemClock::RealtimeCoarse,
            Clock::Monotonic => SystemClock::Monotonic,
            Clock::MonotonicCoarse => SystemClock::MonotonicCoarse,
            Clock::MonotonicRaw => SystemClock::MonotonicRaw,
            Clock::Boottime => SystemClock::Boottime,
            Clock::Tai => SystemClock::Tai,
            Clock::ProcessCpu(pid) => return process_cpu(ctx, pid),
            Clock::ThreadCpu(tid) => return thread_cpu(ctx, tid),
        };
        Ok(Timespec::from_nanos(ctx.kernel().clocks().now(clock)))
    }

    /// Its resolution in nanoseconds.
    pub fn resolution(self) -> u32 {
        match self {
            Clock::RealtimeCoarse | Clock::MonotonicCoarse => caisson_platform_kvm::vdso::COARSE_RESOLUTION,
            _ => 1,
        }
    }

    /// Whether timers and sleeps can use the clock.
    pub fn can_be_slept_on(self) -> bool {
        !matches!(self, Clock::MonotonicRaw | Clock::RealtimeCoarse | Clock::MonotonicCoarse)
    }

    /// The host instant at which this clock will show `at`. `EINVAL` for clocks that timers cannot use.
    pub fn instant_of(self, ctx: &SyscallContext<'_>, at: Timespec) -> SysResult<Instant> {
        if !self.can_be_slept_on() {
            return Err(Errno::EOPNOTSUPP);
        }
        let ahead = at.to_nanos().saturating_sub(self.now(ctx)?.to_nanos());
        Ok(after(Duration::from_nanos(u64::try_from(ahead).unwrap_or(0))))
    }
}

/// The instant `delay` from now, or one that will not be lived to see.
pub fn after(delay: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 86400);
    let now = Instant::now();
    now.checked_add(delay.min(CENTURY)).unwrap_or(now)
}

fn from_nanos(nanos: u64) -> Timespec {
    Timespec::from_nanos(i64::try_from(nanos).unwrap_or(i64::MAX))
}

fn process_cpu(ctx: &SyscallContext<'_>, pid: i32) -> SysResult<Timespec> {
    let (user, system) = if pid == 0 {
        ctx.task.thread_group().cpu_nanos()
    } else {
        let namespace = ctx.task.pid_namespace().ok_or(Errno::EINVAL)?;
        namespace.thread_group(pid).ok_or(Errno::EINVAL)?.cpu_nanos()
    };
    Ok(from_nanos(user.wrapping_add(system)))
}

fn thread_cpu(ctx: &SyscallContext<'_>, tid: i32) -> SysResult<Timespec> {
    let (user, system) = if tid == 0 {
        ctx.task.cpu_nanos()
    } else {
        let namespace = ctx.task.pid_namespace().ok_or(Errno::EINVAL)?;
        let task = namespace.task(tid).ok_or(Errno::EINVAL)?;
        if !std::sync::Arc::ptr_eq(task.thread_group(), ctx.task.thread_group()) {
            return Err(Errno::EINVAL);
        }
        task.cpu_nanos()
    };
    Ok(from_nanos(user.wrapping_add(system)))
}
