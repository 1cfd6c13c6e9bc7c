//! How often each system call was made, and which ones the sandbox does not have.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::syscalls::numbers;
use crate::syscalls::table::MAX_NUMBER;

/// Calls by number. One per sandbox.
pub struct SyscallCounters {
    calls: Box<[AtomicU64]>,
    missing: Box<[AtomicBool]>,
    beyond: AtomicU64,
}

impl Default for SyscallCounters {
    fn default() -> Self {
        Self {
            calls: (0..MAX_NUMBER).map(|_| AtomicU64::new(0)).collect(),
            missing: (0..MAX_NUMBER).map(|_| AtomicBool::new(false)).collect(),
            beyond: AtomicU64::new(0),
        }
    }
}

impl SyscallCounters {
    /// Counts one call.
    pub fn count(&self, number: u64) {
        let slot = usize::try_from(number).ok().and_then(|n| self.calls.get(n)).unwrap_or(&self.beyond);
        slot.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes a call that the sandbox does not have; logged once per number.
    pub fn missing(&self, number: u64) {
        let slot = usize::try_from(number).ok().and_then(|n| self.missing.get(n));
        if slot.is_some_and(|seen| !seen.swap(true, Ordering::Relaxed)) {
            let name = numbers::name(number).unwrap_or("?");
            tracing::warn!(number, name, "system call is not implemented: ENOSYS");
        }
    }

    /// Number, name, count and whether it was answered `ENOSYS`, for every call made at least once.
    pub fn report(&self) -> Vec<(u64, &'static str, u64, bool)> {
        let rows = self.calls.iter().zip(self.missing.iter()).zip(0u64..);
        rows.map(|((count, missing), n)| (n, count.load(Ordering::Relaxed), missing.load(Ordering::Relaxed)))
            .filter(|&(_, count, _)| count > 0)
            .map(|(n, count, missing)| (n, numbers::name(n).unwrap_or("?"), count, missing))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_known_unknown_and_absurd_numbers() {
        let counters = SyscallCounters::default();
        counters.count(39);
        counters.count(39);
        counters.count(u64::MAX);
        counters.missing(39);
        counters.missing(u64::MAX);
        assert_eq!(counters.report(), [(39, "getpid", 2, true)]);
    }
}
