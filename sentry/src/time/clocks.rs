//! The guest's clocks: computed from the time stamp counter, by the same parameters in the sentry and in the vDSO.
//!
//! [`Clocks`] keeps one page of parameters that every program maps read-only as `[vvar]`. They say how to turn the counter into
//! `CLOCK_MONOTONIC`, and how far each other clock is from it. They are valid for a limited time; whoever finds them expired,
//! a system call (the vDSO makes one) or a kernel-internal reader, computes new ones from the host's clocks. So nothing runs in
//! an idle sandbox, and the clocks follow the host's, its corrections included.
//!
//! **Monotonic never goes backwards**, between threads, and between vDSO and system calls: new parameters start at what the old
//! ones said last, or later. A clock that is ahead of the host's is slowed down until they meet; one that is behind jumps
//! forward (by nanoseconds to microseconds; more only after the host was suspended).
//!
//! Locks: `params` (read by everybody, briefly) inside `refresh` (one refresher at a time).

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use caisson_platform_kvm::vdso::parameter;
use nix::time::{ClockId, clock_gettime};
use parking_lot::{Mutex, RwLock};
use zerocopy::IntoBytes;

use crate::errno::{Errno, SysResult};
use crate::platform::{Alignment, Arena, FrameRange, Gpa, Platform, rdtsc};

const NANOS: i64 = 1_000_000_000;
/// Longest validity of parameters, in nanoseconds.
const LONGEST: i64 = NANOS;
/// Shortest validity, and the shortest time over which the counter's frequency is measured.
const SHORTEST: i64 = 10_000_000;
/// Differences between clocks that are jitter of reading them, not steps.
const JITTER: i64 = 20_000;
/// Number of clocks with an offset (`CLOCK_TAI` is the last).
const CLOCKS: usize = 12;

/// A clock that follows the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
#[allow(missing_docs)] // Linux's names and numbers
pub enum SystemClock {
    Realtime = libc::CLOCK_REALTIME as usize,
    Monotonic = libc::CLOCK_MONOTONIC as usize,
    MonotonicRaw = libc::CLOCK_MONOTONIC_RAW as usize,
    RealtimeCoarse = libc::CLOCK_REALTIME_COARSE as usize,
    MonotonicCoarse = libc::CLOCK_MONOTONIC_COARSE as usize,
    Boottime = libc::CLOCK_BOOTTIME as usize,
    Tai = libc::CLOCK_TAI as usize,
}

impl SystemClock {
    /// The host clock it follows. Coarse clocks follow the fine ones, so that they never disagree with them.
    fn host(self) -> ClockId {
        match self {
            SystemClock::Realtime | SystemClock::RealtimeCoarse => ClockId::CLOCK_REALTIME,
            SystemClock::Monotonic | SystemClock::MonotonicCoarse => ClockId::CLOCK_MONOTONIC,
            SystemClock::MonotonicRaw => ClockId::CLOCK_MONOTONIC_RAW,
            SystemClock::Boottime => ClockId::CLOCK_BOOTTIME,
            SystemClock::Tai => ClockId::CLOCK_TAI,
        }
    }

    /// Those with an offset of their own, and the coarse clock that shares it.
    const OTHERS: [(SystemClock, Option<SystemClock>); 4] = [
        (SystemClock::Realtime, Some(SystemClock::RealtimeCoarse)),
        (SystemClock::MonotonicRaw, None),
        (SystemClock::Boottime, None),
        (SystemClock::Tai, None),
    ];
}

/// What the host thinks of the processors' time stamp counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// They run at one constant rate and agree with each other.
    Synchronized,
    /// They may not.
    Untrusted,
}

impl Counter {
    /// From the name of the host kernel's clock source: those that read the counter itself have checked it.
    pub fn of_clocksource(name: &str) -> Counter {
        match name.trim() {
            "tsc" | "kvm-clock" | "hyperv_clocksource_tsc_page" => Counter::Synchronized,
            _ => Counter::Untrusted,
        }
    }
}

/// How to compute the clocks. What the page holds, in the sentry's own memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Params {
    /// Counter at the base.
    tsc: u64,
    /// Ticks after the base for which this holds; 0 while the frequency is unknown.
    span: u64,
    /// Nanoseconds per tick, times 2^32.
    multiplier: u64,
    /// Monotonic time at the base.
    monotonic: i64,
    offsets: [i64; CLOCKS],
}

impl Params {
    /// Monotonic time at a counter value, if that is covered.
    fn at(&self, tsc: u64) -> Option<i64> {
        let ticks = tsc.checked_sub(self.tsc).filter(|ticks| *ticks <= self.span && self.span > 0)?;
        Some(self.monotonic.saturating_add(scale(ticks, self.multiplier)))
    }

    /// The latest time anybody can have computed from these by the time the counter shows `tsc`.
    fn latest(&self, tsc: u64) -> i64 {
        let ticks = tsc.saturating_sub(self.tsc).min(self.span);
        self.monotonic.saturating_add(scale(ticks, self.multiplier))
    }

    fn offset(&self, clock: SystemClock) -> i64 {
        self.offsets.get(clock as usize).copied().unwrap_or(0)
    }
}

/// Ticks in nanoseconds.
fn scale(ticks: u64, multiplier: u64) -> i64 {
    i64::try_from((u128::from(ticks) * u128::from(multiplier)) >> 32).unwrap_or(i64::MAX)
}

/// The multiplier for `nanos` nanoseconds in `ticks` ticks.
fn ratio(nanos: i64, ticks: u64) -> Option<u64> {
    let nanos = u128::try_from(nanos).ok()?;
    u64::try_from((nanos << 32).checked_div(u128::from(ticks))?).ok().filter(|ratio| *ratio > 0)
}

/// Counter and host monotonic time at the same moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    tsc: u64,
    monotonic: i64,
}

/// Where time comes from; a test brings its own.
pub trait TimeSource: Send + Sync {
    /// The time stamp counter.
    fn tsc(&self) -> u64;
    /// A host clock, in nanoseconds.
    fn clock(&self, clock: ClockId) -> i64;
}

/// The host.
struct Host;

impl TimeSource for Host {
    fn tsc(&self) -> u64 {
        rdtsc()
    }

    fn clock(&self, clock: ClockId) -> i64 {
        // Cannot fail for clocks every kernel has.
        clock_gettime(clock)
            .map_or(0, |time| time.tv_sec().saturating_mul(NANOS).saturating_add(time.tv_nsec()))
    }
}

#[derive(Debug)]
struct Calibration {
    /// The first sample, from which the frequency is measured over an ever longer time.
    first: Sample,
    /// Nanoseconds per tick as the host told or as measured.
    rate: Option<u64>,
}

/// See the module's documentation.
pub struct Clocks {
    source: Box<dyn TimeSource>,
    counter: Counter,
    arena: &'static Arena,
    page: FrameRange,
    params: RwLock<Params>,
    refresh: Mutex<Calibration>,
    /// The latest monotonic time given out without parameters.
    given: AtomicI64,
}

impl Clocks {
    /// Clocks of a sandbox on `platform`. Where the host does not trust its counters, every reading is a system call that asks
    /// the host. `ENOMEM` without a frame for the parameters.
    pub fn new(platform: &Arc<dyn Platform>, counter: Counter) -> SysResult<Arc<Clocks>> {
        Clocks::with_source(platform.arena(), platform.tsc_khz(), counter, Box::new(Host))
    }

    fn with_source(
        arena: &'static Arena,
        tsc_khz: u32,
        counter: Counter,
        source: Box<dyn TimeSource>,
    ) -> SysResult<Arc<Clocks>> {
        let page = arena.alloc(1, Alignment::Page).map_err(|_| Errno::ENOMEM)?;
        let first = sample(source.as_ref());
        let rate = ratio(1_000_000, u64::from(tsc_khz));
        let clocks = Clocks {
            source,
            counter,
            arena,
            page,
            params: RwLock::default(),
            refresh: Mutex::new(Calibration { first, rate }),
            given: AtomicI64::new(0),
        };
        clocks.renew(&mut clocks.refresh.lock());
        Ok(Arc::new(clocks))
    }

    /// The page of parameters. It lives as long as the clocks.
    pub fn page(&self) -> Gpa {
        self.arena.gpa(self.page.first)
    }

    /// A clock's time, in nanoseconds.
    pub fn now(&self, clock: SystemClock) -> i64 {
        let params = *self.params.read();
        if let Some(monotonic) = params.at(self.source.tsc()) {
            return monotonic.saturating_add(params.offset(clock));
        }
        let mut calibration = self.refresh.lock();
        let params = self.renew(&mut calibration);
        if params.multiplier > 0 {
            // Should they have expired again meanwhile, their last moment it is: later parameters continue from there.
            return params.latest(self.source.tsc()).saturating_add(params.offset(clock));
        }
        // The counter's frequency is not known yet: ask the host, and remember what was said, still under the lock.
        let now = self.source.clock(clock.host());
        if matches!(clock, SystemClock::Monotonic | SystemClock::MonotonicCoarse) {
            return self.given.fetch_max(now, Ordering::Relaxed).max(now);
        }
        now
    }

    /// Computes new parameters if the old ones have expired; returns those in force.
    fn renew(&self, calibration: &mut Calibration) -> Params {
        let old = *self.params.read();
        if self.counter == Counter::Untrusted || old.at(self.source.tsc()).is_some() {
            return old; // never, or somebody else was faster
        }
        let now = sample(self.source.as_ref());
        let since_first = now.monotonic.saturating_sub(calibration.first.monotonic);
        let ticks = now.tsc.wrapping_sub(calibration.first.tsc);
        if since_first >= SHORTEST {
            calibration.rate = ratio(since_first, ticks).or(calibration.rate);
            if since_first > 60 * NANOS {
                // Follow the host's corrections: measure over a minute or so, not over the whole life.
                calibration.first = now;
            }
        }
        let Some(rate) = calibration.rate else { return old };
        let new = self.next(&old, now, rate, since_first);
        *self.params.write() = new;
        self.publish(&new);
        new
    }

    /// Parameters that continue `old` from the sample `now` on.
    fn next(&self, old: &Params, now: Sample, rate: u64, since_first: i64) -> Params {
        let floor = old.latest(now.tsc).max(self.given.load(Ordering::Relaxed));
        let valid = since_first.clamp(SHORTEST, LONGEST);
        let ahead = floor.saturating_sub(now.monotonic).max(0);
        // Slow down by what brings both together again when these expire, by a tenth at most.
        let brake = u128::from(rate) * u128::from(ahead.unsigned_abs().min(valid.unsigned_abs() / 10));
        let brake = u64::try_from(brake / u128::from(valid.unsigned_abs())).unwrap_or(0);
        let span = (u128::from(valid.unsigned_abs()) << 32) / u128::from(rate);
        Params {
            tsc: now.tsc,
            span: u64::try_from(span).unwrap_or(0),
            multiplier: rate.saturating_sub(brake),
            monotonic: now.monotonic.max(floor),
            offsets: self.offsets(old),
        }
    }

    /// How far the other clocks are from the monotonic one. Keeps the old values while they differ by jitter only.
    fn offsets(&self, old: &Params) -> [i64; CLOCKS] {
        let mut offsets = [0; CLOCKS];
        for (clock, coarse) in SystemClock::OTHERS {
            let measured = self.offset(clock.host());
            let before = old.offset(clock);
            let keep = before != 0 && measured.abs_diff(before) < JITTER.unsigned_abs();
            for target in [Some(clock), coarse].into_iter().flatten() {
                if let Some(slot) = offsets.get_mut(target as usize) {
                    *slot = if keep { before } else { measured };
                }
            }
        }
        offsets
    }

    fn offset(&self, clock: ClockId) -> i64 {
        let tries = (0..3).map(|_| {
            let before = self.source.clock(ClockId::CLOCK_MONOTONIC);
            let other = self.source.clock(clock);
            let after = self.source.clock(ClockId::CLOCK_MONOTONIC);
            let took = after.saturating_sub(before);
            (took, other.saturating_sub(before.saturating_add(took / 2)))
        });
        tries.min_by_key(|(took, _)| *took).map_or(0, |(_, offset)| offset)
    }

    /// Writes the page. Readers see an odd sequence number, or one that changed, and make the system call or try again.
    fn publish(&self, params: &Params) {
        let page = self.page();
        let at = |offset: u64| Gpa(page.0.saturating_add(offset));
        let words = [params.tsc, params.span, params.multiplier, params.monotonic.cast_unsigned()];
        // The frame is ours and always backed; should a write fail nevertheless, the odd number keeps readers away.
        let _ = self.arena.atomic_fetch_update_u32(at(parameter::SEQUENCE), |sequence| sequence | 1);
        let written = self
            .arena
            .write(at(parameter::TSC_BASE), words.as_bytes())
            .and_then(|()| self.arena.write(at(parameter::OFFSETS), params.offsets.as_bytes()));
        if written.is_ok() {
            let sequence = at(parameter::SEQUENCE);
            let _ = self.arena.atomic_fetch_update_u32(sequence, |sequence| sequence.wrapping_add(1));
        }
    }
}

impl Drop for Clocks {
    fn drop(&mut self) {
        self.arena.release(self.page);
    }
}

/// Reads counter and clock together: the closest of a few tries.
fn sample(source: &dyn TimeSource) -> Sample {
    let tries = (0..5).map(|_| {
        let before = source.tsc();
        let monotonic = source.clock(ClockId::CLOCK_MONOTONIC);
        let took = source.tsc().saturating_sub(before);
        (took, Sample { tsc: before.saturating_add(took / 2), monotonic })
    });
    let best = tries.min_by_key(|(took, _)| *took).map(|(_, sample)| sample);
    best.unwrap_or(Sample { tsc: 0, monotonic: 0 })
}

#[cfg(test)]
#[path = "clocks_tests.rs"]
mod tests;
