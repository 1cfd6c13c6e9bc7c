//! `timerfd_create(2)`: expirations to wait on.
//!
//! One firing of the timer service marks the timer expired and wakes; further periods are counted from the clock when
//! somebody reads or asks, as Linux does, so that a timer nobody reads costs nothing.
//!
//! Lock order: the state, then the timer service's lock.
//!
//! Not there yet: a set host clock cancels `TFD_TIMER_CANCEL_ON_SET` only at the next read, not while waiting.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use linux_raw_sys::general as linux;
use nix::time::{ClockId, clock_gettime};
use parking_lot::Mutex;

use crate::errno::{Errno, SysResult};
use crate::io::IoDst;
use crate::time::{TimerHandle, TimerTarget, Timers, Timespec};
use crate::vfs::{File, FileOps};
use crate::wait::{PollEvents, WaitQueue};

/// Bytes of a read.
const SIZE: usize = size_of::<u64>();
/// A jump of the wall clock against the monotonic clock that counts as "set", in nanoseconds.
const CLOCK_SET: u64 = 100_000_000;

/// The clocks a timer file can follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerClock {
    /// `CLOCK_REALTIME`, `CLOCK_REALTIME_ALARM`
    Realtime,
    /// `CLOCK_MONOTONIC`
    Monotonic,
    /// `CLOCK_BOOTTIME`, `CLOCK_BOOTTIME_ALARM`
    Boottime,
}

impl TimerClock {
    /// Now, in nanoseconds.
    fn now(self) -> u64 {
        let id = match self {
            TimerClock::Realtime => ClockId::CLOCK_REALTIME,
            TimerClock::Monotonic => ClockId::CLOCK_MONOTONIC,
            TimerClock::Boottime => ClockId::CLOCK_BOOTTIME,
        };
        let Ok(now) = clock_gettime(id) else { return 0 };
        let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec()).unwrap_or(0))
    }
}

/// How [`TimerFd::set`] reads its arguments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetMode {
    /// The value is a point in time, not a duration.
    pub absolute: bool,
    /// Reads fail with `ECANCELED` once the wall clock was set.
    pub cancel_on_set: bool,
}

/// First expiration and period; a zero value disarms, a zero interval fires once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimerSpec {
    /// Time to the first expiration, or its point in time.
    pub value: Timespec,
    /// Period.
    pub interval: Timespec,
}

/// The operations of a timerfd.
pub struct TimerFd {
    timer: Arc<Timer>,
}

struct Timer {
    me: Weak<Timer>,
    service: Arc<Timers>,
    clock: TimerClock,
    clock_number: u32,
    state: Mutex<State>,
    queue: WaitQueue,
}

#[derive(Default)]
struct State {
    /// The next expiration, on the timer's clock; `None` while disarmed.
    next: Option<u64>,
    interval: u64,
    /// The service has fired for `next`, and periods after it are not counted yet.
    fired: bool,
    ticks: u64,
    flags: u32,
    /// Wall clock minus monotonic clock when armed, with `TFD_TIMER_CANCEL_ON_SET`.
    offset: Option<i128>,
    handle: Option<TimerHandle>,
}

fn wall_offset() -> i128 {
    i128::from(TimerClock::Realtime.now()) - i128::from(TimerClock::Monotonic.now())
}

impl TimerFd {
    /// A disarmed timer. `clock_number` is the guest's name for the clock, for `fdinfo`.
    pub fn new(service: &Arc<Timers>, clock: TimerClock, clock_number: u32) -> TimerFd {
        let timer = Arc::new_cyclic(|me| Timer {
            me: me.clone(),
            service: service.clone(),
            clock,
            clock_number,
            state: Mutex::default(),
            queue: WaitQueue::new(),
        });
        TimerFd { timer }
    }

    /// Arms or disarms; returns what was left of the former setting.
    pub fn set(&self, mode: SetMode, spec: TimerSpec) -> TimerSpec {
        let timer = &self.timer;
        let mut state = timer.state.lock();
        let old = timer.remaining(&mut state);
        let value = nanos(spec.value);
        let now = timer.clock.now();
        let next = if mode.absolute { value } else { now.saturating_add(value) };
        let cancels = mode.absolute && mode.cancel_on_set && timer.clock == TimerClock::Realtime;
        let flag = |on: bool, bit: u32| if on { bit } else { 0 };
        *state = State {
            next: (value != 0).then_some(next),
            interval: nanos(spec.interval),
            flags: flag(mode.absolute, linux::TFD_TIMER_ABSTIME)
                | flag(mode.cancel_on_set, linux::TFD_TIMER_CANCEL_ON_SET),
            offset: cancels.then(wall_offset),
            ..State::default()
        };
        timer.schedule(&mut state);
        old
    }

    /// Time to the next expiration, and the period.
    pub fn get(&self) -> TimerSpec {
        self.timer.remaining(&mut self.timer.state.lock())
    }
}

fn nanos(time: Timespec) -> u64 {
    u64::try_from(time.to_nanos()).unwrap_or(0)
}

fn timespec(nanos: u64) -> Timespec {
    Timespec::from_nanos(i64::try_from(nanos).unwrap_or(i64::MAX))
}

impl Timer {
    fn schedule(&self, state: &mut State) {
        state.handle = None;
        let (Some(next), Some(me)) = (state.next, self.me.upgrade()) else { return };
        let left = Duration::from_nanos(next.saturating_sub(self.clock.now()));
        // What lies beyond the host's own range never comes.
        state.handle = Instant::now().checked_add(left).map(|at| self.service.schedule(at, me));
    }

    /// Counts the periods that have passed since the timer fired, and arms it again.
    fn catch_up(&self, state: &mut State) {
        if !state.fired {
            return;
        }
        state.fired = false;
        let (Some(next), true) = (state.next, state.interval > 0) else {
            state.next = None;
            return;
        };
        let missed = self.clock.now().saturating_sub(next).checked_div(state.interval).unwrap_or(0);
        state.ticks = state.ticks.saturating_add(missed);
        let periods = missed.saturating_add(1);
        state.next = Some(next.saturating_add(periods.saturating_mul(state.interval)));
        self.schedule(state);
    }

    fn remaining(&self, state: &mut State) -> TimerSpec {
        self.catch_up(state);
        // Linux shows at least a nanosecond for a timer that is armed.
        let left = state.next.map_or(0, |next| next.saturating_sub(self.clock.now()).max(1));
        TimerSpec { value: timespec(left), interval: timespec(state.interval) }
    }

    fn was_cancelled(&self, state: &mut State) -> bool {
        let Some(armed) = state.offset else { return false };
        let now = wall_offset();
        if armed.abs_diff(now) < u128::from(CLOCK_SET) {
            return false;
        }
        state.offset = Some(now);
        true
    }
}

impl TimerTarget for Timer {
    fn expired(&self) {
        let mut state = self.state.lock();
        let Some(next) = state.next else { return };
        if self.clock.now() < next {
            // Set again meanwhile, or the wall clock went back.
            self.schedule(&mut state);
            return;
        }
        if state.fired {
            return;
        }
        state.fired = true;
        state.ticks = state.ticks.saturating_add(1);
        drop(state);
        self.queue.notify(PollEvents::READABLE);
    }
}

impl Drop for TimerFd {
    fn drop(&mut self) {
        let handle = self.timer.state.lock().handle.take();
        drop(handle);
    }
}

impl FileOps for TimerFd {
    fn read(&self, _: &File, dst: &mut dyn IoDst, _: &mut u64) -> SysResult<usize> {
        if dst.remaining() < SIZE {
            return Err(Errno::EINVAL);
        }
        let timer = &self.timer;
        let mut state = timer.state.lock();
        if timer.was_cancelled(&mut state) {
            return Err(Errno::ECANCELED);
        }
        if state.ticks == 0 {
            return Err(Errno::EAGAIN);
        }
        timer.catch_up(&mut state);
        let ticks = std::mem::take(&mut state.ticks);
        drop(state);
        match dst.put(&ticks.to_ne_bytes())? {
            SIZE => Ok(SIZE),
            _ => Err(Errno::EFAULT),
        }
    }

    fn poll(&self, _: &File) -> PollEvents {
        if self.timer.state.lock().ticks > 0 { PollEvents::READABLE } else { PollEvents::empty() }
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.timer.queue)
    }

    fn anonymous_name(&self) -> Option<String> {
        Some("anon_inode:[timerfd]".into())
    }

    fn fdinfo(&self) -> String {
        let mut state = self.timer.state.lock();
        let (ticks, flags) = (state.ticks, state.flags);
        let left = self.timer.remaining(&mut state);
        drop(state);
        format!(
            "clockid: {}\nticks: {ticks}\nsettime flags: 0{flags:o}\nit_value: ({}, {})\nit_interval: ({}, {})\n",
            self.timer.clock_number, left.value.sec, left.value.nsec, left.interval.sec, left.interval.nsec
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::anonymous::AnonymousInode;
    use crate::io::KernelDst;
    use crate::vfs::OpenFlags;
    use crate::wait::{WaitOutcome, Waiter};

    fn ms(count: i64) -> Timespec {
        Timespec::from_nanos(count * 1_000_000)
    }

    fn timer(clock: TimerClock) -> (Arc<Timers>, Arc<File>) {
        let service = Timers::new();
        let file = AnonymousInode::detached(Arc::new(TimerFd::new(&service, clock, 1)), OpenFlags::RDWR);
        (service, file)
    }

    fn read(file: &File) -> SysResult<u64> {
        let mut buf = [0; 8];
        file.read(&mut KernelDst::new(&mut buf)).map(|_| u64::from_ne_bytes(buf))
    }

    fn wait(file: &File) {
        let waiter = Waiter::new();
        let _registration = file.ops().wait_queue().unwrap().register(PollEvents::IN, waiter.clone());
        let limit = Instant::now() + Duration::from_secs(10);
        while file.poll().is_empty() {
            assert_eq!(waiter.wait(Some(limit)), WaitOutcome::Notified);
        }
    }

    #[test]
    fn fires_once_and_counts_periods() {
        for clock in [TimerClock::Realtime, TimerClock::Monotonic, TimerClock::Boottime] {
            let (service, file) = timer(clock);
            let fd = file.ops_as::<TimerFd>().unwrap();
            assert_eq!(fd.get(), TimerSpec::default());
            assert_eq!(read(&file), Err(Errno::EAGAIN));
            let relative = SetMode::default();
            fd.set(relative, TimerSpec { value: ms(5), interval: ms(0) });
            assert_eq!(file.poll(), PollEvents::empty());
            wait(&file);
            assert_eq!(read(&file), Ok(1));
            assert_eq!(fd.get(), TimerSpec::default(), "disarmed after its only shot");

            fd.set(relative, TimerSpec { value: ms(1), interval: ms(2) });
            std::thread::sleep(Duration::from_millis(30));
            wait(&file);
            assert!(read(&file).unwrap() >= 14);
            wait(&file);
            assert!(read(&file).unwrap() >= 1);
            let left = fd.set(relative, TimerSpec::default());
            assert_eq!(left.interval, ms(2));
            assert!(left.value <= ms(2));
            assert_eq!(read(&file), Err(Errno::EAGAIN));
            service.stop();
        }
    }

    #[test]
    fn absolute_past_fires_at_once_and_setting_clears() {
        let (service, file) = timer(TimerClock::Monotonic);
        let fd = file.ops_as::<TimerFd>().unwrap();
        let absolute = SetMode { absolute: true, ..SetMode::default() };
        fd.set(absolute, TimerSpec { value: Timespec { sec: 0, nsec: 1 }, interval: ms(0) });
        wait(&file);
        fd.set(absolute, TimerSpec { value: Timespec { sec: i64::MAX, nsec: 0 }, interval: ms(0) });
        assert_eq!(read(&file), Err(Errno::EAGAIN), "the old expiration is forgotten");
        assert!(fd.get().value.sec > 1 << 30);
        assert_eq!(file.read(&mut KernelDst::new(&mut [0; 7])), Err(Errno::EINVAL));
        service.stop();
    }

    #[test]
    fn closing_cancels() {
        let (service, file) = timer(TimerClock::Monotonic);
        let fd = file.ops_as::<TimerFd>().unwrap();
        let timer = Arc::downgrade(&fd.timer);
        fd.set(SetMode::default(), TimerSpec { value: ms(100_000), interval: ms(1) });
        drop(file);
        assert!(timer.upgrade().is_none());
        service.stop();
    }
}
