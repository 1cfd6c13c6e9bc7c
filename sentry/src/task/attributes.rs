//! Small per-thread settings that calls set and show, and what children inherit of them.

use linux_raw_sys::general as linux;

use super::{CpuMask, Signal};

/// Small per-thread settings.
#[derive(Clone, Debug)]
pub struct Attributes {
    /// `personality(2)`.
    pub personality: u32,
    /// Nice value, -20 to 19.
    pub nice: i32,
    /// `SCHED_*`.
    pub sched_policy: u32,
    /// Real-time priority, 0 for the ordinary policies.
    pub sched_priority: i32,
    /// Processors it may run on.
    pub affinity: CpuMask,
    /// `PR_SET_PDEATHSIG`.
    pub parent_death_signal: Option<Signal>,
    /// Timer slack in nanoseconds.
    pub timer_slack: u64,
    /// What `PR_SET_TIMERSLACK` goes back to: the slack of the thread that made this one.
    pub default_timer_slack: u64,
    /// `SCHED_RESET_ON_FORK`: children begin with the ordinary policy and priority.
    pub sched_reset_on_fork: bool,
    /// `PR_SET_DUMPABLE`.
    pub dumpable: bool,
    /// `ioprio_set`.
    pub io_priority: u32,
}

impl Default for Attributes {
    fn default() -> Self {
        Attributes {
            personality: 0,
            nice: 0,
            sched_policy: 0,
            sched_priority: 0,
            affinity: CpuMask::All,
            parent_death_signal: None,
            timer_slack: 50_000,
            default_timer_slack: 50_000,
            sched_reset_on_fork: false,
            dumpable: true,
            io_priority: 0,
        }
    }
}

impl Attributes {
    /// What a child of the thread begins with.
    pub fn inherited(self) -> Attributes {
        let realtime = matches!(self.sched_policy, linux::SCHED_FIFO | linux::SCHED_RR);
        let mut new = Attributes {
            parent_death_signal: None,
            default_timer_slack: self.timer_slack,
            sched_reset_on_fork: false,
            ..self
        };
        if self.sched_reset_on_fork && realtime {
            (new.sched_policy, new.sched_priority, new.nice) = (linux::SCHED_NORMAL, 0, 0);
        } else if self.sched_reset_on_fork {
            new.nice = new.nice.max(0);
        }
        new
    }
}
