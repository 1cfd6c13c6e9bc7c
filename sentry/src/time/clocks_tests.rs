//! Tests of the clocks on made-up and real time.

use super::*;
use crate::platform::fake;

/// A host whose counter runs at 2 GHz, and whose clocks a test can turn.
#[derive(Clone, Default)]
struct Made(Arc<MadeState>);

#[derive(Default)]
struct MadeState {
    /// Real nanoseconds since the start.
    elapsed: AtomicI64,
    /// How far the host's monotonic clock is from that.
    error: AtomicI64,
    realtime: AtomicI64,
}

impl Made {
    fn pass(&self, nanos: i64) {
        self.0.elapsed.fetch_add(nanos, Ordering::Relaxed);
    }
}

impl TimeSource for Made {
    fn tsc(&self) -> u64 {
        1000 + 2 * self.0.elapsed.load(Ordering::Relaxed).cast_unsigned()
    }

    fn clock(&self, clock: ClockId) -> i64 {
        let monotonic =
            5 * NANOS + self.0.elapsed.load(Ordering::Relaxed) + self.0.error.load(Ordering::Relaxed);
        match clock {
            ClockId::CLOCK_MONOTONIC => monotonic,
            ClockId::CLOCK_REALTIME => monotonic + self.0.realtime.load(Ordering::Relaxed),
            _ => monotonic + 77,
        }
    }
}

fn clocks(made: &Made, khz: u32) -> Arc<Clocks> {
    Clocks::with_source(fake::shared_arena(), khz, Counter::Synchronized, Box::new(made.clone())).unwrap()
}

/// What the vDSO would compute from the page; `None` where it would make the system call.
fn vdso(clocks: &Clocks, made: &Made, clock: SystemClock) -> Option<i64> {
    let read = |offset: u64| {
        let mut bytes = [0; 8];
        clocks.arena.read(Gpa(clocks.page().0 + offset), &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    };
    assert_eq!(read(parameter::SEQUENCE) & 1, 0, "nobody is writing");
    let ticks = made.tsc().wrapping_sub(read(parameter::TSC_BASE));
    if ticks > read(parameter::TSC_SPAN) {
        return None;
    }
    let monotonic = read(parameter::MONOTONIC).cast_signed() + scale(ticks, read(parameter::MULTIPLIER));
    Some(monotonic + read(parameter::OFFSETS + 8 * clock as u64).cast_signed())
}

#[test]
fn both_sides_agree_and_expired_parameters_are_renewed_by_a_call() {
    let made = Made::default();
    made.0.realtime.store(1_700_000_000 * NANOS, Ordering::Relaxed);
    let clocks = clocks(&made, 2_000_000);
    for step in 0..200 {
        made.pass(7_000_001 * (1 + step % 9));
        let call = clocks.now(SystemClock::Monotonic);
        assert_eq!(call, made.clock(ClockId::CLOCK_MONOTONIC), "step {step}");
        assert_eq!(vdso(&clocks, &made, SystemClock::Monotonic), Some(call));
        for clock in [SystemClock::Realtime, SystemClock::RealtimeCoarse] {
            assert_eq!(clocks.now(clock), made.clock(ClockId::CLOCK_REALTIME));
            assert_eq!(vdso(&clocks, &made, clock), Some(clocks.now(clock)));
        }
        assert_eq!(clocks.now(SystemClock::Boottime), call + 77);
    }
    made.pass(2 * NANOS);
    assert_eq!(vdso(&clocks, &made, SystemClock::Monotonic), None, "expired");
    clocks.now(SystemClock::Monotonic);
    assert!(vdso(&clocks, &made, SystemClock::Monotonic).is_some());
}

#[test]
fn frequency_is_measured_where_the_host_does_not_tell() {
    let made = Made::default();
    let clocks = clocks(&made, 0);
    assert_eq!(vdso(&clocks, &made, SystemClock::Monotonic).filter(|_| clocks.params.read().span > 0), None);
    assert_eq!(clocks.now(SystemClock::Monotonic), 5 * NANOS);
    made.pass(3 * SHORTEST);
    assert_eq!(clocks.now(SystemClock::Monotonic), 5 * NANOS + 3 * SHORTEST);
    made.pass(1000);
    assert_eq!(vdso(&clocks, &made, SystemClock::Monotonic), Some(5 * NANOS + 3 * SHORTEST + 1000));
}

#[test]
fn monotonic_never_goes_back_and_meets_the_host_again() {
    let made = Made::default();
    let clocks = clocks(&made, 2_000_000);
    let mut last = 0;
    let mut seed = 5u64;
    for step in 0..20_000u64 {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        made.pass(((seed >> 40) % 3_000_000).cast_signed());
        if step % 1000 == 999 {
            // The host's clock is corrected, backwards (which it does by running slowly) or forwards.
            let change = if step % 2000 == 999 { -40_000 } else { 300_000 };
            made.0.error.fetch_add(change, Ordering::Relaxed);
        }
        let both = [Some(clocks.now(SystemClock::Monotonic)), vdso(&clocks, &made, SystemClock::Monotonic)];
        for now in both.into_iter().flatten() {
            assert!(now >= last, "step {step}: {last} then {now}");
            last = now;
        }
    }
    for _ in 0..100 {
        made.pass(NANOS);
        clocks.now(SystemClock::Monotonic);
    }
    let error = clocks.now(SystemClock::Monotonic) - made.clock(ClockId::CLOCK_MONOTONIC);
    assert!(error.abs() < 1000, "{error} ns apart");
}

#[test]
fn wall_clock_follows_a_step() {
    let made = Made::default();
    made.0.realtime.store(1000 * NANOS, Ordering::Relaxed);
    let clocks = clocks(&made, 2_000_000);
    made.0.realtime.fetch_sub(3600 * NANOS, Ordering::Relaxed);
    made.pass(2 * NANOS);
    assert_eq!(clocks.now(SystemClock::Realtime), made.clock(ClockId::CLOCK_REALTIME));
}

#[test]
fn real_clocks_stay_close_to_the_hosts() {
    let clocks = Clocks::with_source(fake::shared_arena(), 0, Counter::Synchronized, Box::new(Host)).unwrap();
    let end = std::time::Instant::now() + std::time::Duration::from_millis(60);
    let (mut last, mut worst) = (0, 0);
    while std::time::Instant::now() < end {
        let before = Host.clock(ClockId::CLOCK_MONOTONIC);
        let now = clocks.now(SystemClock::Monotonic);
        let after = Host.clock(ClockId::CLOCK_MONOTONIC);
        assert!(now >= last);
        last = now;
        worst = worst.max((before - now).max(now - after));
    }
    assert!(worst < 100_000, "{worst} ns off");
}

#[test]
fn threads_never_see_it_go_back() {
    let clocks = Clocks::with_source(fake::shared_arena(), 0, Counter::Synchronized, Box::new(Host)).unwrap();
    let latest = AtomicI64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20_000 {
                    let seen = latest.load(Ordering::SeqCst);
                    let now = clocks.now(SystemClock::Monotonic);
                    assert!(now >= seen, "{seen} then {now}");
                    latest.fetch_max(now, Ordering::SeqCst);
                }
            });
        }
    });
}

#[test]
fn untrusted_counters_are_never_used() {
    let made = Made::default();
    let clocks =
        Clocks::with_source(fake::shared_arena(), 2_000_000, Counter::Untrusted, Box::new(made.clone()))
            .unwrap();
    for _ in 0..10 {
        made.pass(NANOS / 3);
        assert_eq!(clocks.now(SystemClock::Monotonic), made.clock(ClockId::CLOCK_MONOTONIC));
        assert_eq!(clocks.params.read().span, 0, "the vDSO makes system calls");
    }
    assert_eq!(Counter::of_clocksource("hpet\n"), Counter::Untrusted);
    assert_eq!(Counter::of_clocksource("tsc\n"), Counter::Synchronized);
}
