//! What a container's tasks have in common besides namespaces: the pids limit, the freezer, CPU time of the dead.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::errno::{Errno, SysResult};

/// The counters and limits of one container (cgroup v2: `pids`, `cpu.stat`, `cgroup.freeze`).
#[derive(Default)]
pub struct Cgroup {
    /// Most tasks; 0 is no limit.
    pids_max: AtomicU64,
    pids: AtomicU64,
    pids_peak: AtomicU64,
    /// Time of tasks that have exited, in nanoseconds.
    user_nanos: AtomicU64,
    system_nanos: AtomicU64,
    frozen: AtomicBool,
    /// Tasks that stand still, and who waits for them to.
    standing: Mutex<u64>,
    standing_changed: Condvar,
}

/// One task's place under the pids limit.
pub struct PidCharge(Arc<Cgroup>);

impl Cgroup {
    /// A cgroup that allows `pids_max` tasks (0: any number).
    pub fn new(pids_max: u64) -> Arc<Cgroup> {
        let cgroup = Cgroup::default();
        cgroup.set_pids_max(pids_max);
        Arc::new(cgroup)
    }

    /// Counts one more task; `EAGAIN` at the limit.
    pub fn charge(self: &Arc<Self>) -> SysResult<PidCharge> {
        let max = self.pids_max.load(Ordering::Relaxed);
        let now = self.pids.fetch_add(1, Ordering::Relaxed) + 1;
        if max != 0 && now > max {
            self.pids.fetch_sub(1, Ordering::Relaxed);
            return Err(Errno::EAGAIN);
        }
        self.pids_peak.fetch_max(now, Ordering::Relaxed);
        Ok(PidCharge(self.clone()))
    }

    /// Changes the limit; 0 lifts it.
    pub fn set_pids_max(&self, max: u64) {
        self.pids_max.store(max, Ordering::Relaxed);
    }

    /// Most tasks; 0 is no limit.
    pub fn pids_max(&self) -> u64 {
        self.pids_max.load(Ordering::Relaxed)
    }

    /// Tasks now.
    pub fn pids(&self) -> u64 {
        self.pids.load(Ordering::Relaxed)
    }

    /// Most tasks there ever were.
    pub fn pids_peak(&self) -> u64 {
        self.pids_peak.load(Ordering::Relaxed)
    }

    /// Adds the time of a task that has exited.
    pub fn add_time(&self, user: u64, system: u64) {
        self.user_nanos.fetch_add(user, Ordering::Relaxed);
        self.system_nanos.fetch_add(system, Ordering::Relaxed);
    }

    /// User and system time of tasks that have exited, in nanoseconds.
    pub fn dead_nanos(&self) -> (u64, u64) {
        (self.user_nanos.load(Ordering::Relaxed), self.system_nanos.load(Ordering::Relaxed))
    }

    /// Whether its tasks are to stand still.
    pub fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Acquire)
    }

    pub(crate) fn set_frozen(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::Release);
    }

    /// Runs `rest` (the caller's standing still) while counting it as standing.
    pub(crate) fn while_standing(&self, rest: impl FnOnce()) {
        *self.standing.lock() += 1;
        self.standing_changed.notify_all();
        rest();
        *self.standing.lock() -= 1;
    }

    /// Waits until as many tasks stand still as `live` counts; `false` at the deadline.
    pub(crate) fn wait_standing(&self, deadline: Instant, live: impl Fn() -> u64) -> bool {
        let mut standing = self.standing.lock();
        loop {
            if *standing >= live() {
                return true;
            }
            // Tasks that exit meanwhile do not notify: look again now and then.
            let next = Instant::now() + std::time::Duration::from_millis(5);
            if next >= deadline {
                return false;
            }
            self.standing_changed.wait_until(&mut standing, next);
        }
    }
}

impl Drop for PidCharge {
    fn drop(&mut self) {
        self.0.pids.fetch_sub(1, Ordering::Relaxed);
    }
}
