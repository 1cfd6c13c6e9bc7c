//! Clocks, sleeping and timers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use linux_raw_sys::general as linux;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Args;
use crate::errno::{Errno, SysResult};
use crate::task::{Signal, SyscallContext, Task};
use crate::time::Timespec;
use crate::time::clock_id::{Clock, after};
use crate::time::process_timers::{Notify, Setting};
use crate::wait::WaitOutcome;

/// `struct timespec` and `struct timeval`: seconds and a fraction.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RawTime {
    /// Seconds.
    pub sec: i64,
    /// Nanoseconds, or microseconds in a `timeval`.
    pub fraction: i64,
}

impl RawTime {
    /// As a `timespec`: `EINVAL` for a fraction out of range or negative seconds.
    pub fn timespec(self) -> SysResult<Timespec> {
        match u32::try_from(self.fraction) {
            Ok(nsec) if nsec < 1_000_000_000 && self.sec >= 0 => Ok(Timespec { sec: self.sec, nsec }),
            _ => Err(Errno::EINVAL),
        }
    }

    /// As a `timeval`.
    pub fn timeval(self) -> SysResult<Timespec> {
        if !(0..1_000_000).contains(&self.fraction) {
            return Err(Errno::EINVAL);
        }
        RawTime { sec: self.sec, fraction: self.fraction.saturating_mul(1000) }.timespec()
    }

    /// For a `timeval`.
    fn from_micros(time: Timespec) -> RawTime {
        RawTime { sec: time.sec, fraction: i64::from(time.nsec / 1000) }
    }
}

impl From<Timespec> for RawTime {
    fn from(time: Timespec) -> Self {
        RawTime { sec: time.sec, fraction: i64::from(time.nsec) }
    }
}

/// A non-negative time as a duration.
pub fn duration(time: Timespec) -> Duration {
    Duration::new(u64::try_from(time.sec).unwrap_or(0), time.nsec)
}

fn from_duration(time: Duration) -> Timespec {
    Timespec { sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX), nsec: time.subsec_nanos() }
}

/// `clock_gettime`
pub fn clock_gettime(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let now = Clock::new(args.int(0))?.now(ctx)?;
    ctx.task.mm().copy_out(args.raw(1), &RawTime::from(now))?;
    Ok(0)
}

/// `clock_getres`
pub fn clock_getres(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let clock = Clock::new(args.int(0))?;
    if args.raw(1) != 0 {
        ctx.task.mm().copy_out(args.raw(1), &RawTime { sec: 0, fraction: i64::from(clock.resolution()) })?;
    }
    Ok(0)
}

/// `clock_settime`: nobody in a container may.
pub fn clock_settime(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let clock = Clock::new(args.int(0))?;
    let time: RawTime = ctx.task.mm().copy_in(args.raw(1))?;
    time.timespec()?;
    if clock == Clock::Realtime { Err(Errno::EPERM) } else { Err(Errno::EINVAL) }
}

/// `gettimeofday`
pub fn gettimeofday(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let mm = ctx.task.mm();
    if args.raw(0) != 0 {
        mm.copy_out(args.raw(0), &RawTime::from_micros(Clock::Realtime.now(ctx)?))?;
    }
    if args.raw(1) != 0 {
        mm.copy_out(args.raw(1), &0u64)?;
    }
    Ok(0)
}

/// `settimeofday`: nobody in a container may.
pub fn settimeofday(_ctx: &mut SyscallContext<'_>, _args: &Args) -> SysResult<usize> {
    Err(Errno::EPERM)
}

/// `time`
pub fn time(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let now = Clock::Realtime.now(ctx)?.sec;
    if args.raw(0) != 0 {
        ctx.task.mm().copy_out(args.raw(0), &now)?;
    }
    usize::try_from(now).map_err(|_| Errno::EOVERFLOW)
}

/// `times`
pub fn times(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    use std::sync::atomic::Ordering::Relaxed;
    const NANOS_PER_TICK: u64 = 10_000_000;
    let group = ctx.task.thread_group();
    let (user, system) = group.cpu_nanos();
    let of_children = group.times();
    let children = [of_children.children_user.load(Relaxed), of_children.children_system.load(Relaxed)];
    let ticks = [user, system, children[0], children[1]].map(|nanos| nanos / NANOS_PER_TICK);
    if args.raw(0) != 0 {
        ctx.task.mm().write_bytes(args.raw(0), ticks.as_bytes())?;
    }
    let up = ctx.kernel().system_info().booted.elapsed().as_nanos() / u128::from(NANOS_PER_TICK);
    usize::try_from(up).map_err(|_| Errno::EOVERFLOW)
}

/// Sleeps until `deadline`; whether it was reached.
fn sleep_until(ctx: &SyscallContext<'_>, deadline: Instant) -> bool {
    ctx.task.waiter().arm();
    loop {
        match ctx.task.sleep(Some(deadline)) {
            WaitOutcome::TimedOut => return true,
            WaitOutcome::Interrupted => return false,
            WaitOutcome::Notified => {}
        }
    }
}

fn sleep_relative(ctx: &mut SyscallContext<'_>, time: Duration, remainder: u64) -> SysResult<usize> {
    let deadline = ctx.deadline_after(Some(time)).unwrap_or_else(|| after(time));
    if sleep_until(ctx, deadline) {
        return Ok(0);
    }
    if remainder != 0 {
        let left = from_duration(deadline.saturating_duration_since(Instant::now()));
        ctx.task.mm().copy_out(remainder, &RawTime::from(left))?;
    }
    Err(ctx.restart_with(Some(deadline)))
}

/// `nanosleep`
pub fn nanosleep(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let request: RawTime = ctx.task.mm().copy_in(args.raw(0))?;
    sleep_relative(ctx, duration(request.timespec()?), args.raw(1))
}

/// `clock_nanosleep`
pub fn clock_nanosleep(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let clock = Clock::new(args.int(0))?;
    if !clock.can_be_slept_on() || args.uint(0) == linux::CLOCK_THREAD_CPUTIME_ID {
        return Err(Errno::EOPNOTSUPP);
    }
    let request: RawTime = ctx.task.mm().copy_in(args.raw(2))?;
    let request = request.timespec()?;
    if matches!(clock, Clock::ThreadCpu(_)) {
        return Err(Errno::EINVAL);
    }
    let absolute = args.uint(1) & linux::TIMER_ABSTIME != 0;
    if let Clock::ProcessCpu(_) = clock {
        return sleep_cpu(ctx, clock, request, absolute);
    }
    if !absolute {
        return sleep_relative(ctx, duration(request), args.raw(3));
    }
    let deadline = clock.instant_of(ctx, request)?;
    if sleep_until(ctx, deadline) { Ok(0) } else { Err(Errno::ERESTARTNOHAND) }
}

/// Sleeps until the process has used CPU time; other threads have to.
fn sleep_cpu(ctx: &SyscallContext<'_>, clock: Clock, request: Timespec, absolute: bool) -> SysResult<usize> {
    const STEP: Duration = Duration::from_millis(1);
    let start = if absolute { 0 } else { clock.now(ctx)?.to_nanos() };
    let target = start.saturating_add(request.to_nanos());
    while clock.now(ctx)?.to_nanos() < target {
        if !sleep_until(ctx, after(STEP)) {
            return Err(Errno::ERESTARTNOHAND);
        }
    }
    Ok(0)
}

fn setting(interval: Timespec, value: Timespec) -> Setting {
    let value = duration(value);
    Setting { value: (!value.is_zero()).then_some(value), interval: duration(interval) }
}

fn to_pair(setting: Setting, convert: fn(Timespec) -> RawTime) -> [RawTime; 2] {
    [setting.interval, setting.value.unwrap_or_default()].map(|time| convert(from_duration(time)))
}

/// `alarm`
pub fn alarm(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let group = ctx.task.thread_group();
    let timer = group.timers().interval(linux::ITIMER_REAL, group)?;
    let value = (args.uint(0) != 0).then(|| Duration::from_secs(u64::from(args.uint(0))));
    let old = timer.set(ctx.kernel().timers(), Setting { value, interval: Duration::ZERO });
    // Rounded to the nearest second, but never to none while it is armed.
    let left = old.value.map_or(0, |left| left.saturating_add(Duration::from_millis(500)).as_secs().max(1));
    usize::try_from(left).map_err(|_| Errno::EINVAL)
}

/// `getitimer`
pub fn getitimer(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let group = ctx.task.thread_group();
    let timer = group.timers().interval(args.uint(0), group)?;
    ctx.task.mm().copy_out(args.raw(1), &to_pair(timer.get(), RawTime::from_micros))?;
    Ok(0)
}

/// `setitimer`
pub fn setitimer(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let group = ctx.task.thread_group();
    let timer = group.timers().interval(args.uint(0), group)?;
    let new = match args.raw(1) {
        0 => Setting::default(),
        address => {
            let [interval, value] = ctx.task.mm().copy_in::<[RawTime; 2]>(address)?;
            setting(interval.timeval()?, value.timeval()?)
        }
    };
    let old = timer.set(ctx.kernel().timers(), new);
    if args.raw(2) != 0 {
        ctx.task.mm().copy_out(args.raw(2), &to_pair(old, RawTime::from_micros))?;
    }
    Ok(0)
}

/// The parts of `struct sigevent` that matter here.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct SigEvent {
    value: u64,
    signo: i32,
    notify: i32,
    tid: i32,
    pad: [i32; 11],
}

/// `timer_create`
pub fn timer_create(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let clock = Clock::new(args.int(0))?;
    let event = match args.raw(1) {
        0 => None,
        address => Some(ctx.task.mm().copy_in::<SigEvent>(address)?),
    };
    let group = ctx.task.thread_group();
    let notify = event.map(|event| decode_event(ctx, &event)).transpose()?;
    let thread = thread_of(ctx, clock)?;
    let id = group.timers().create(group, clock, thread.as_ref(), |id| {
        notify.unwrap_or(Notify::Process(Signal::ALRM, u64::from(id.cast_unsigned())))
    })?;
    if let Err(fault) = ctx.task.mm().copy_out(args.raw(2), &id) {
        group.timers().delete(ctx.kernel().timers(), id)?;
        return Err(fault);
    }
    Ok(0)
}

/// The thread whose CPU time a clock shows, if it is a thread's. `EINVAL` for the CPU time of another process, whose timers would
/// be nobody's.
fn thread_of(ctx: &SyscallContext<'_>, clock: Clock) -> SysResult<Option<Arc<Task>>> {
    let group = ctx.task.thread_group();
    match clock {
        Clock::ThreadCpu(0) => Ok(Some(ctx.task.clone())),
        Clock::ThreadCpu(tid) => {
            let mine = group.members().into_iter().find(|task| task.tid() == tid);
            mine.map(Some).ok_or(Errno::EINVAL)
        }
        Clock::ProcessCpu(pid) if pid != 0 && pid != group.pid().own() => Err(Errno::EINVAL),
        _ => Ok(None),
    }
}

fn decode_event(ctx: &SyscallContext<'_>, event: &SigEvent) -> SysResult<Notify> {
    let thread = linux::SIGEV_THREAD_ID.cast_signed();
    match event.notify.cast_unsigned() {
        linux::SIGEV_NONE => Ok(Notify::Nothing),
        linux::SIGEV_SIGNAL | linux::SIGEV_THREAD => {
            Ok(Notify::Process(Signal::new(event.signo)?, event.value))
        }
        _ if event.notify == thread => {
            let members = ctx.task.thread_group().members();
            if !members.iter().any(|task| task.tid() == event.tid) {
                return Err(Errno::EINVAL);
            }
            Ok(Notify::Thread(Signal::new(event.signo)?, event.value, event.tid))
        }
        _ => Err(Errno::EINVAL),
    }
}

/// `timer_settime`
pub fn timer_settime(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let timer = ctx.task.thread_group().timers().get(args.int(0))?;
    if args.raw(2) == 0 {
        return Err(Errno::EINVAL);
    }
    let [interval, value] = ctx.task.mm().copy_in::<[RawTime; 2]>(args.raw(2))?;
    let (interval, value) = (interval.timespec()?, value.timespec()?);
    let mut new = setting(interval, value);
    let mut late = 0;
    if args.uint(1) & linux::TIMER_ABSTIME != 0 && new.value.is_some() {
        let now = timer.clock_now(ctx)?;
        let ahead = value.to_nanos().saturating_sub(now.to_nanos());
        new.value = Some(Duration::from_nanos(u64::try_from(ahead).unwrap_or(0)));
        late = if ahead < 0 { ahead.unsigned_abs() } else { 0 };
    }
    let old = timer.set_late(ctx.kernel().timers(), new, Duration::from_nanos(late));
    if args.raw(3) != 0 {
        ctx.task.mm().copy_out(args.raw(3), &to_pair(old, RawTime::from))?;
    }
    Ok(0)
}

/// `timer_gettime`
pub fn timer_gettime(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let timer = ctx.task.thread_group().timers().get(args.int(0))?;
    ctx.task.mm().copy_out(args.raw(1), &to_pair(timer.get(), RawTime::from))?;
    Ok(0)
}

/// `timer_getoverrun`
pub fn timer_getoverrun(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let overrun = ctx.task.thread_group().timers().get(args.int(0))?.overrun();
    usize::try_from(overrun).map_err(|_| Errno::EINVAL)
}

/// `timer_delete`
pub fn timer_delete(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    ctx.task.thread_group().timers().delete(ctx.kernel().timers(), args.int(0))?;
    Ok(0)
}
