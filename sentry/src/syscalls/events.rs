//! epoll, eventfd, timerfd, signalfd.

use std::sync::Arc;
use std::time::{Duration, Instant};

use linux_raw_sys::general as linux;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Args;
use super::pipes::install;
use super::poll::{finish_wait, read_mask, read_timeout};
use crate::errno::{Errno, SysResult};
use crate::fs::anonymous::{AnonymousInode, Pseudo, next_ino};
use crate::fs::epoll::{Epoll, Event, Interest};
use crate::fs::eventfd::{EventFd, Take};
use crate::fs::signalfd::SignalFd;
use crate::fs::timerfd::{SetMode, TimerClock, TimerFd, TimerSpec};
use crate::task::{Capability, SignalSet, SyscallContext, block};
use crate::time::Timespec;
use crate::vfs::{File, FileOps, OpenFlags};
use crate::wait::PollEvents;

/// Bytes of a packed `struct epoll_event`.
const EVENT_SIZE: usize = 12;
/// Most events one call may ask for (`EP_MAX_EVENTS`).
const MAX_EVENTS: i32 = i32::MAX / EVENT_SIZE as i32;
/// Events collected at a time, so that a huge `maxevents` costs no memory.
const BATCH: usize = 1024;

fn open(ctx: &SyscallContext<'_>, ops: Arc<dyn FileOps>, flags: OpenFlags) -> SysResult<usize> {
    let file = AnonymousInode::open(ctx, Pseudo::Anonymous, next_ino(), ops, flags | OpenFlags::RDWR);
    install(ctx, file, flags).map(|fd| fd.index())
}

/// Flags of a `*_create` call, which all have the numbers of `open`'s.
fn creation_flags(raw: u32, known: OpenFlags) -> SysResult<OpenFlags> {
    let flags = OpenFlags::from_bits_retain(raw);
    if known.contains(flags) { Ok(flags) } else { Err(Errno::EINVAL) }
}

/// `epoll_create(int size)`
pub fn epoll_create(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    if args.int(0) <= 0 {
        return Err(Errno::EINVAL);
    }
    open(ctx, Arc::new(Epoll::new()), OpenFlags::empty())
}

/// `epoll_create1(int flags)`
pub fn epoll_create1(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let flags = creation_flags(args.uint(0), OpenFlags::CLOEXEC)?;
    open(ctx, Arc::new(Epoll::new()), flags)
}

/// `epoll_ctl(int epfd, int op, int fd, struct epoll_event *event)`
pub fn epoll_ctl(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let operation = args.uint(1);
    let (mut interest, mut data) = (Interest::empty(), 0);
    if operation != linux::EPOLL_CTL_DEL {
        let raw: [u8; EVENT_SIZE] = ctx.task.mm().copy_in(args.raw(3))?;
        let (events, value) = raw.split_first_chunk::<4>().ok_or(Errno::EFAULT)?;
        interest = Interest::from_bits_retain(u32::from_ne_bytes(*events));
        data = u64::from_ne_bytes(value.first_chunk().copied().unwrap_or_default());
    }
    let own = ctx.task.file(args.raw(0))?;
    let file = ctx.task.file(args.raw(2))?;
    if own.flags().contains(OpenFlags::PATH) || file.flags().contains(OpenFlags::PATH) {
        return Err(Errno::EBADF);
    }
    if !file.ops().pollable() {
        return Err(Errno::EPERM);
    }
    if interest.contains(Interest::WAKEUP) && !ctx.task.credentials().has(Capability::BLOCK_SUSPEND) {
        interest.remove(Interest::WAKEUP);
    }
    let fd = args.uint(2);
    let epoll = own.ops_as::<Epoll>().filter(|_| !Arc::ptr_eq(&own, &file)).ok_or(Errno::EINVAL)?;
    match operation {
        linux::EPOLL_CTL_ADD => Epoll::add(&own, fd, &file, interest, data)?,
        linux::EPOLL_CTL_MOD => epoll.modify(fd, &file, interest, data)?,
        linux::EPOLL_CTL_DEL => Epoll::remove(&own, fd, &file)?,
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

fn milliseconds(ctx: &SyscallContext<'_>, timeout: i32) -> Option<Instant> {
    ctx.deadline_after(u64::try_from(timeout).ok().map(Duration::from_millis))
}

/// `epoll_wait(int epfd, struct epoll_event *events, int maxevents, int timeout)`
pub fn epoll_wait(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let deadline = milliseconds(ctx, args.int(3));
    wait(ctx, args, deadline)
}

/// `epoll_pwait(…, const sigset_t *sigmask, size_t sigsetsize)`
pub fn epoll_pwait(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let mask = read_mask(ctx, args.raw(4), args.raw(5))?;
    let deadline = milliseconds(ctx, args.int(3));
    wait_masked(ctx, args, deadline, mask)
}

/// `epoll_pwait2(…, const struct timespec *timeout, const sigset_t *sigmask, size_t sigsetsize)`
pub fn epoll_pwait2(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let timeout = read_timeout(ctx, args.raw(3))?;
    let mask = read_mask(ctx, args.raw(4), args.raw(5))?;
    let deadline = ctx.deadline_after(timeout);
    wait_masked(ctx, args, deadline, mask)
}

fn wait_masked(
    ctx: &mut SyscallContext<'_>,
    args: &Args,
    deadline: Option<Instant>,
    mask: Option<SignalSet>,
) -> SysResult<usize> {
    if let Some(mask) = mask {
        ctx.set_temporary_mask(mask);
    }
    let result = wait(ctx, args, deadline);
    finish_wait(ctx, &result);
    result
}

fn wait(ctx: &mut SyscallContext<'_>, args: &Args, deadline: Option<Instant>) -> SysResult<usize> {
    let max = args.int(2);
    if max <= 0 || max > MAX_EVENTS {
        return Err(Errno::EINVAL);
    }
    let file = ctx.task.file(args.raw(0))?;
    let epoll = file.ops_as::<Epoll>().ok_or(Errno::EINVAL)?;
    let max = usize::try_from(max).unwrap_or(1).min(BATCH);
    let attempt = |_: &mut SyscallContext<'_>| match epoll.collect(max) {
        events if events.is_empty() => Err(Errno::EAGAIN),
        events => Ok(events),
    };
    let events = if deadline.is_some_and(|at| at <= Instant::now()) {
        attempt(ctx)
    } else {
        let queue = epoll.wait_queue().ok_or(Errno::EINVAL)?;
        block::until(ctx, queue, PollEvents::READABLE, deadline, attempt)
    };
    match events {
        Ok(events) => write_events(ctx, args.raw(1), &events),
        Err(Errno::EAGAIN | Errno::ETIMEDOUT) => Ok(0),
        Err(Errno::ERESTARTSYS) => Err(ctx.restart_with(deadline)),
        Err(error) => Err(error),
    }
}

fn write_events(ctx: &SyscallContext<'_>, addr: u64, events: &[Event]) -> SysResult<usize> {
    let mut bytes = Vec::with_capacity(events.len().saturating_mul(EVENT_SIZE));
    for event in events {
        bytes.extend_from_slice(&event.events.bits().to_ne_bytes());
        bytes.extend_from_slice(&event.data.to_ne_bytes());
    }
    ctx.task.mm().write_bytes(addr, &bytes)?;
    Ok(events.len())
}

/// `eventfd(unsigned int initval)`
pub fn eventfd(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    open(ctx, Arc::new(EventFd::new(args.uint(0), Take::All)), OpenFlags::empty())
}

/// `eventfd2(unsigned int initval, int flags)`
pub fn eventfd2(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let take = if args.uint(1) & linux::EFD_SEMAPHORE != 0 { Take::One } else { Take::All };
    let flags =
        creation_flags(args.uint(1) & !linux::EFD_SEMAPHORE, OpenFlags::CLOEXEC | OpenFlags::NONBLOCK)?;
    open(ctx, Arc::new(EventFd::new(args.uint(0), take)), flags)
}

/// A `struct itimerspec`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct RawTimerSpec {
    interval: [i64; 2],
    value: [i64; 2],
}

fn timespec(raw: [i64; 2]) -> SysResult<Timespec> {
    let [sec, nsec] = raw;
    match u32::try_from(nsec) {
        Ok(nsec) if sec >= 0 && nsec < 1_000_000_000 => Ok(Timespec { sec, nsec }),
        _ => Err(Errno::EINVAL),
    }
}

fn write_timer_spec(ctx: &SyscallContext<'_>, addr: u64, spec: TimerSpec) -> SysResult {
    let pair = |time: Timespec| [time.sec, i64::from(time.nsec)];
    let raw = RawTimerSpec { interval: pair(spec.interval), value: pair(spec.value) };
    ctx.task.mm().copy_out(addr, &raw)
}

/// `timerfd_create(int clockid, int flags)`
pub fn timerfd_create(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let flags = creation_flags(args.uint(1), OpenFlags::CLOEXEC | OpenFlags::NONBLOCK)?;
    let (clock, wakes) = match args.uint(0) {
        linux::CLOCK_REALTIME => (TimerClock::Realtime, false),
        linux::CLOCK_MONOTONIC => (TimerClock::Monotonic, false),
        linux::CLOCK_BOOTTIME => (TimerClock::Boottime, false),
        linux::CLOCK_REALTIME_ALARM => (TimerClock::Realtime, true),
        linux::CLOCK_BOOTTIME_ALARM => (TimerClock::Boottime, true),
        _ => return Err(Errno::EINVAL),
    };
    if wakes && !ctx.task.credentials().has(Capability::WAKE_ALARM) {
        return Err(Errno::EPERM);
    }
    let timer = TimerFd::new(ctx.kernel().timers(), clock, args.uint(0));
    open(ctx, Arc::new(timer), flags)
}

fn timer_of(file: &File) -> SysResult<&TimerFd> {
    file.ops_as::<TimerFd>().ok_or(Errno::EINVAL)
}

/// `timerfd_settime(int fd, int flags, const struct itimerspec *new, struct itimerspec *old)`
pub fn timerfd_settime(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let raw: RawTimerSpec = ctx.task.mm().copy_in(args.raw(2))?;
    let flags = args.uint(1);
    let spec = TimerSpec { value: timespec(raw.value)?, interval: timespec(raw.interval)? };
    if flags & !(linux::TFD_TIMER_ABSTIME | linux::TFD_TIMER_CANCEL_ON_SET) != 0 {
        return Err(Errno::EINVAL);
    }
    let mode = SetMode {
        absolute: flags & linux::TFD_TIMER_ABSTIME != 0,
        cancel_on_set: flags & linux::TFD_TIMER_CANCEL_ON_SET != 0,
    };
    let file = ctx.task.file(args.raw(0))?;
    let old = timer_of(&file)?.set(mode, spec);
    if args.raw(3) != 0 {
        write_timer_spec(ctx, args.raw(3), old)?;
    }
    Ok(0)
}

/// `timerfd_gettime(int fd, struct itimerspec *current)`
pub fn timerfd_gettime(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = ctx.task.file(args.raw(0))?;
    write_timer_spec(ctx, args.raw(1), timer_of(&file)?.get())?;
    Ok(0)
}

/// `signalfd(int fd, const sigset_t *mask, size_t size)`
pub fn signalfd(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    make_signalfd(ctx, args, OpenFlags::empty())
}

/// `signalfd4(int fd, const sigset_t *mask, size_t size, int flags)`
pub fn signalfd4(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let flags = creation_flags(args.uint(3), OpenFlags::CLOEXEC | OpenFlags::NONBLOCK);
    make_signalfd(ctx, args, flags?)
}

fn make_signalfd(ctx: &mut SyscallContext<'_>, args: &Args, flags: OpenFlags) -> SysResult<usize> {
    if args.raw(2) != size_of::<u64>() as u64 {
        return Err(Errno::EINVAL);
    }
    let wanted = SignalSet::from_bits(ctx.task.mm().copy_in::<u64>(args.raw(1))?);
    if args.int(0) == -1 {
        return open(ctx, Arc::new(SignalFd::new(wanted)), flags);
    }
    let file = ctx.task.file(args.raw(0))?;
    file.ops_as::<SignalFd>().ok_or(Errno::EINVAL)?.set_wanted(wanted);
    Ok(args.uint(0) as usize)
}
