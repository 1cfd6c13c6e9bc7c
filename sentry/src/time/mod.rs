//! Clocks, timers and time values.

pub mod clock_id;
pub mod clocks;
pub mod process_timers;
pub mod timers;

pub use clocks::{Clocks, Counter, SystemClock};
pub use timers::{TimerHandle, TimerTarget, Timers};

/// A time or a duration: seconds and nanoseconds (0 ≤ `nsec` < 10⁹).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timespec {
    /// Seconds.
    pub sec: i64,
    /// Nanoseconds within the second.
    pub nsec: u32,
}

impl Timespec {
    /// From nanoseconds.
    pub fn from_nanos(nanos: i64) -> Timespec {
        Timespec { sec: nanos.div_euclid(1_000_000_000), nsec: nanos.rem_euclid(1_000_000_000) as u32 }
    }

    /// In nanoseconds, saturating.
    pub fn to_nanos(self) -> i64 {
        self.sec.saturating_mul(1_000_000_000).saturating_add(i64::from(self.nsec))
    }

    /// The host's wall clock.
    pub fn now_realtime() -> Timespec {
        match std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
            Ok(since) => Timespec {
                sec: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
                nsec: since.subsec_nanos(),
            },
            Err(_) => Timespec::default(),
        }
    }
}
