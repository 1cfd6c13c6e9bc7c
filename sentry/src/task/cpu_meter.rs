//! How much of the time a task's thread was under way it had a CPU of the host.
//!
//! Stays in the guest and calls are timed by the wall clock, which costs nothing and is right as long as the host has a CPU for
//! the thread. Where it has not (more threads that run than CPUs, a quota), a task would be charged for waiting: with ten such
//! threads on one CPU, ten times what it got. So now and then the host is asked what the thread really had, and what was charged
//! beyond is taken back from what comes next. Between two questions the sum may be ahead by [`QUESTION_EVERY`].
//!
//! Owned by the loop of one task; no locks. Not corrected: a task that runs aboard another one's vCPU.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// The host is asked after this much of the wall clock: its answer takes a system call.
const QUESTION_EVERY: Duration = Duration::from_millis(1);

/// What one thread was charged since the host was last asked.
pub(super) struct CpuMeter {
    asked: Instant,
    /// What the host said then, in nanoseconds.
    had: u64,
    /// Charged since, in nanoseconds; what was charged too much before is part of it.
    charged: u64,
}

impl CpuMeter {
    /// Begins to measure the calling thread.
    pub(super) fn new(now: Instant) -> CpuMeter {
        CpuMeter { asked: now, had: thread_nanos().unwrap_or(0), charged: 0 }
    }

    /// What to charge for a stay that took `user` and `system` nanoseconds of the wall clock and ended `now`.
    pub(super) fn charge(&mut self, user: u64, system: u64, now: Instant) -> (u64, u64) {
        self.correct(user, system, now, thread_nanos)
    }

    fn correct(
        &mut self,
        user: u64,
        system: u64,
        now: Instant,
        host: impl FnOnce() -> Option<u64>,
    ) -> (u64, u64) {
        self.charged = self.charged.saturating_add(user).saturating_add(system);
        if now.saturating_duration_since(self.asked) < QUESTION_EVERY {
            return (user, system);
        }
        let Some(has) = host() else { return (user, system) };
        let excess = self.charged.saturating_sub(has.saturating_sub(self.had));
        let of_user = excess.min(user);
        let of_system = excess.saturating_sub(of_user).min(system);
        let left = excess.saturating_sub(of_user).saturating_sub(of_system);
        *self = CpuMeter { asked: now, had: has, charged: left };
        (user.saturating_sub(of_user), system.saturating_sub(of_system))
    }
}

/// CPU time of the calling thread in nanoseconds, guest code included.
fn thread_nanos() -> Option<u64> {
    let time = Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).ok()?);
    u64::try_from(time.as_nanos()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: u64 = 1_000_000;

    fn after(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn a_thread_that_has_its_cpu_is_charged_the_wall_clock() {
        let start = Instant::now();
        let mut meter = CpuMeter { asked: start, had: 5 * MILLI, charged: 0 };
        let unasked = || -> Option<u64> { panic!("a short stay asks nobody") };
        assert_eq!(meter.correct(300, 200, start, unasked), (300, 200));
        // The host counts more, as what the loop does outside both is its own.
        assert_eq!(meter.correct(2 * MILLI, 0, after(start, 3), || Some(8 * MILLI)), (2 * MILLI, 0));
        assert_eq!(meter.correct(7, 8, after(start, 9), || None), (7, 8));
    }

    #[test]
    fn waiting_for_a_cpu_is_not_charged() {
        let start = Instant::now();
        let mut meter = CpuMeter { asked: start, had: 0, charged: 0 };
        assert_eq!(meter.correct(10 * MILLI, MILLI, after(start, 11), || Some(2 * MILLI)), (MILLI, MILLI));
        // What short stays were charged too much is taken from the next one, and the rest from the one after.
        assert_eq!(meter.correct(0, 900_000, after(start, 11), || None), (0, 900_000));
        assert_eq!(meter.correct(400_000, 100_000, after(start, 13), || Some(2 * MILLI)), (0, 0));
        assert_eq!(meter.charged, 900_000);
        assert_eq!(meter.correct(2 * MILLI, 0, after(start, 15), || Some(4 * MILLI)), (1_100_000, 0));
        assert_eq!(meter.charged, 0);
    }

    #[test]
    fn a_sleeping_thread_has_none() {
        let mut meter = CpuMeter::new(Instant::now());
        std::thread::sleep(Duration::from_millis(20));
        let (user, system) = meter.charge(20 * MILLI, 0, Instant::now());
        assert!(user < 15 * MILLI && system == 0, "{user}");
    }
}
