//! What threads and processes have used (`getrusage(2)`, `wait4(2)`).
//!
//! Times and switches are counted by thread (`cpu_meter` says how), page faults by address space. An address space hands its counts to the process when
//! that lets go of it: at `execve`, and when its last thread ends. A process hands its own and its children's to its parent when it
//! is waited for.
//!
//! Not there yet: major faults, block I/O and involuntary switches, which only the host knows.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::{Task, ThreadGroup};
use crate::mm::Mm;

/// `struct rusage`, as far as it is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// User time in nanoseconds.
    pub user: u64,
    /// System time in nanoseconds.
    pub system: u64,
    /// Largest resident set in KiB.
    pub max_rss: u64,
    /// Page faults that needed no I/O.
    pub minor_faults: u64,
    /// How often it slept.
    pub switches: u64,
}

impl Usage {
    /// Of both together.
    pub fn with(self, other: Usage) -> Usage {
        Usage {
            user: self.user.wrapping_add(other.user),
            system: self.system.wrapping_add(other.system),
            max_rss: self.max_rss.max(other.max_rss),
            minor_faults: self.minor_faults.wrapping_add(other.minor_faults),
            switches: self.switches.wrapping_add(other.switches),
        }
    }

    /// As the guest sees it: two `timeval`s and fourteen words.
    pub fn to_raw(self) -> [u64; 18] {
        const NANOS: u64 = 1_000_000_000;
        let mut raw = [0; 18];
        let times =
            [self.user / NANOS, self.user % NANOS / 1000, self.system / NANOS, self.system % NANOS / 1000];
        let fields = times.into_iter().enumerate();
        // ru_maxrss, ru_minflt, ru_nvcsw
        let fields = fields.chain([(4, self.max_rss), (8, self.minor_faults), (16, self.switches)]);
        for (at, value) in fields {
            if let Some(slot) = raw.get_mut(at) {
                *slot = value;
            }
        }
        raw
    }

    fn of_memory(mm: &Mm) -> Usage {
        Usage { max_rss: mm.usage().peak_rss / 1024, minor_faults: mm.fault_count(), ..Usage::default() }
    }
}

impl Task {
    /// What the thread has used; faults and memory are those of its address space.
    pub fn usage(&self) -> Usage {
        let (user, system) = self.cpu_nanos();
        Usage { user, system, switches: self.switches(), ..Usage::of_memory(&self.mm()) }
    }

    /// How often it has slept.
    pub fn switches(&self) -> u64 {
        self.switches.load(Relaxed)
    }

    pub(super) fn count_switch(&self) {
        self.switches.fetch_add(1, Relaxed);
    }
}

impl ThreadGroup {
    /// What the process has used, dead threads and former address spaces included.
    pub fn usage(&self) -> Usage {
        let (user, system) = self.cpu_nanos();
        let live: u64 = self.members().iter().map(|task| task.switches()).sum();
        let times = self.times();
        let past = Usage {
            user,
            system,
            max_rss: times.max_rss.load(Relaxed),
            minor_faults: times.minor_faults.load(Relaxed),
            switches: live.wrapping_add(times.dead_switches.load(Relaxed)),
        };
        match self.leader().filter(|_| !self.has_exited()) {
            Some(leader) => past.with(Usage::of_memory(&leader.mm())),
            None => past,
        }
    }

    /// What its waited-for children have used, and theirs.
    pub fn children_usage(&self) -> Usage {
        let times = self.times();
        Usage {
            user: times.children_user.load(Relaxed),
            system: times.children_system.load(Relaxed),
            max_rss: times.children_max_rss.load(Relaxed),
            minor_faults: times.children_minor_faults.load(Relaxed),
            switches: times.children_switches.load(Relaxed),
        }
    }

    /// A child was waited for.
    pub(super) fn inherit_usage(&self, usage: Usage) {
        let times = self.times();
        times.children_user.fetch_add(usage.user, Relaxed);
        times.children_system.fetch_add(usage.system, Relaxed);
        times.children_max_rss.fetch_max(usage.max_rss, Relaxed);
        times.children_minor_faults.fetch_add(usage.minor_faults, Relaxed);
        times.children_switches.fetch_add(usage.switches, Relaxed);
    }

    /// Its address space is about to be let go.
    pub(super) fn note_memory(&self, mm: &Arc<Mm>) {
        let usage = Usage::of_memory(mm);
        self.times().max_rss.fetch_max(usage.max_rss, Relaxed);
        self.times().minor_faults.fetch_add(usage.minor_faults, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_linux_has_them() {
        let usage =
            Usage { user: 1_000_002_500, system: 3_999_999_999, max_rss: 7, minor_faults: 8, switches: 9 };
        let raw = usage.to_raw();
        assert_eq!(raw[..5], [1, 2, 3, 999_999, 7]);
        assert_eq!((raw[8], raw[16], raw.iter().sum::<u64>()), (8, 9, 1 + 2 + 3 + 999_999 + 7 + 8 + 9));
        let both = usage.with(Usage { user: 1, max_rss: 5, ..Usage::default() });
        assert_eq!((both.user, both.max_rss, both.minor_faults), (1_000_002_501, 7, 8));
    }
}
