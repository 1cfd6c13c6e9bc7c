//! What the kernel keeps for everybody: timers, the machine's description, counters.

use std::sync::Arc;
use std::time::Duration;

use super::Kernel;
use super::system_info::SystemInfo;
use crate::errno::SysResult;
use crate::loader::vdso::Vdso;
use crate::observe::SyscallCounters;
use crate::platform::Platform;
use crate::time::{Clocks, Timers};
use crate::vfs::registries::Registries;

/// Services without a home of their own.
pub struct Services {
    /// The timer service.
    pub timers: Arc<Timers>,
    /// The clocks, shared with the vDSO.
    pub clocks: Arc<Clocks>,
    /// What programs map to read them.
    pub vdso: Vdso,
    /// The machine as guests see it.
    pub system_info: SystemInfo,
    /// System calls by number.
    pub counters: SyscallCounters,
    /// Drivers and file system types.
    pub vfs: Registries,
}

impl Services {
    /// Fresh services for a machine that looks like `system_info`. `ENOMEM`.
    pub fn new(platform: &Arc<dyn Platform>, system_info: SystemInfo) -> SysResult<Services> {
        let clocks = Clocks::new(platform, system_info.counter)?;
        let vdso = Vdso::new(platform.arena(), clocks.page())?;
        Ok(Services {
            clocks,
            vdso,
            timers: Timers::new(),
            system_info,
            counters: SyscallCounters::default(),
            vfs: Registries::default(),
        })
    }
}

impl Kernel {
    /// The timer service.
    pub fn timers(&self) -> &Arc<Timers> {
        &self.services.timers
    }

    /// The clocks.
    pub fn clocks(&self) -> &Arc<Clocks> {
        &self.services.clocks
    }

    /// The vDSO that programs map.
    pub fn vdso(&self) -> &Vdso {
        &self.services.vdso
    }

    /// The machine as guests see it.
    pub fn system_info(&self) -> &SystemInfo {
        &self.services.system_info
    }

    /// System calls by number.
    pub fn counters(&self) -> &SyscallCounters {
        &self.services.counters
    }

    /// Drivers of devices and types of file systems.
    pub fn vfs(&self) -> &Registries {
        &self.services.vfs
    }

    /// Bytes of guest memory in use.
    pub fn memory_used(&self) -> u64 {
        crate::platform::arena().map_or(0, |arena| u64::from(arena.frames_in_use()).saturating_mul(4096))
    }

    /// CPU time of every process that lives or has been waited for.
    pub fn cpu_time(&self) -> Duration {
        let groups = self.pid_namespace().thread_groups();
        let nanos = groups.iter().fold(0u64, |sum, group| {
            let (user, system) = group.cpu_nanos();
            sum.wrapping_add(user).wrapping_add(system)
        });
        Duration::from_nanos(nanos)
    }

    /// Running tasks (counted as at least one), all tasks, and the last pid.
    pub fn task_counts(&self) -> (usize, usize, i32) {
        let namespace = self.pid_namespace();
        let tasks = namespace.pids().iter().filter(|pid| pid.task().is_some()).count();
        (1, tasks, namespace.last_pid())
    }
}
