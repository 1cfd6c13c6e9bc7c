//! The old hierarchies: one directory per controller, e.g. `/sys/fs/cgroup/memory/default/c1`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use super::{Cgroup, CgroupError, Figures, Limits, number, pids, read, table, write};

/// Controllers that a container gets a group in, where the host has them.
const CONTROLLERS: &[&str] =
    &["cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "devices", "freezer", "systemd"];

/// Unlimited memory reads back as the largest multiple of the page size; anything of that size is "no limit".
const UNLIMITED: u64 = 1 << 62;

/// A group in every hierarchy.
#[derive(Debug)]
pub struct CgroupV1 {
    /// Controller and the group's directory in its hierarchy. `cpu` and `cpuacct` may be one directory through a link.
    groups: Vec<(&'static str, PathBuf)>,
    root: PathBuf,
    path: PathBuf,
}

impl CgroupV1 {
    /// The group `path` below the hierarchies in `root`.
    pub fn new(root: &Path, path: &Path) -> Self {
        let present = CONTROLLERS.iter().filter(|c| root.join(c).is_dir());
        let groups = present.map(|c| (*c, root.join(c).join(path))).collect();
        Self { groups, root: root.to_owned(), path: path.to_owned() }
    }

    fn file(&self, controller: &str, name: &str) -> Option<PathBuf> {
        self.groups.iter().find(|(c, _)| *c == controller).map(|(_, dir)| dir.join(name))
    }

    fn number(&self, controller: &str, name: &str) -> u64 {
        self.file(controller, name).and_then(|f| number(&f)).unwrap_or(0)
    }

    /// Writes one limit. `needed`: a host without it must not run a container that asked for it.
    fn limit(&self, controller: &str, name: &str, value: &str, needed: bool) -> Result<(), CgroupError> {
        match self.file(controller, name) {
            Some(file) if needed || file.exists() => write(&file, value),
            None if needed => Err(CgroupError {
                what: "find the controller",
                path: self.root.join(controller),
                error: io::ErrorKind::NotFound.into(),
            }),
            _ => Ok(()),
        }
    }

    /// A new cpuset is empty and takes no process until it has CPUs and memory nodes: they are taken over from the parent, level by level.
    fn fill_cpusets(&self) -> Result<(), CgroupError> {
        let mut directory = self.root.join("cpuset");
        if !directory.is_dir() {
            return Ok(());
        }
        for level in self.path.components() {
            let parent = directory.clone();
            directory.push(level);
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let own = read(&directory.join(file)).unwrap_or_default();
                if own.trim().is_empty()
                    && let Some(value) = read(&parent.join(file))
                {
                    write(&directory.join(file), value.trim())?;
                }
            }
        }
        Ok(())
    }

    fn set_memory(&self, limits: &Limits) -> Result<(), CgroupError> {
        let memory = limits.memory.filter(|m| *m != 0).map(|m| m.to_string());
        let swap = limits.memory_swap.filter(|m| *m != 0).map(|m| m.to_string());
        let set_memory =
            || memory.iter().try_for_each(|m| self.limit("memory", "memory.limit_in_bytes", m, true));
        let set_swap =
            || swap.iter().try_for_each(|s| self.limit("memory", "memory.memsw.limit_in_bytes", s, false));
        // The sum may never be below the memory alone, so which goes first depends on the direction.
        let growing = limits.memory.is_some_and(|m| {
            let now = self.number("memory", "memory.memsw.limit_in_bytes");
            m < 0 || u64::try_from(m).is_ok_and(|m| m > now)
        });
        if growing {
            set_swap()?;
            set_memory()?;
        } else {
            set_memory()?;
            set_swap()?;
        }
        match limits.memory_reservation.filter(|m| *m != 0) {
            Some(soft) => self.limit("memory", "memory.soft_limit_in_bytes", &soft.to_string(), false),
            None => Ok(()),
        }
    }
}

impl Cgroup for CgroupV1 {
    fn is_v2(&self) -> bool {
        false
    }

    fn create(&self) -> Result<(), CgroupError> {
        for (_, directory) in &self.groups {
            fs::create_dir_all(directory).map_err(|error| CgroupError {
                what: "create",
                path: directory.clone(),
                error,
            })?;
        }
        self.fill_cpusets()
    }

    fn set(&self, limits: &Limits) -> Result<(), CgroupError> {
        self.set_memory(limits)?;
        if let Some(shares) = limits.cpu_shares.filter(|s| *s != 0) {
            self.limit("cpu", "cpu.shares", &shares.clamp(2, 262_144).to_string(), false)?;
        }
        if let Some(period) = limits.cpu_period.filter(|p| *p != 0) {
            self.limit("cpu", "cpu.cfs_period_us", &period.to_string(), false)?;
        }
        if let Some(quota) = limits.cpu_quota.filter(|q| *q != 0) {
            self.limit("cpu", "cpu.cfs_quota_us", &quota.max(-1).to_string(), false)?;
        }
        if let Some(cpus) = &limits.cpuset_cpus {
            self.limit("cpuset", "cpuset.cpus", cpus, false)?;
        }
        if let Some(mems) = &limits.cpuset_mems {
            self.limit("cpuset", "cpuset.mems", mems, false)?;
        }
        if let Some(most) = limits.pids {
            self.limit("pids", "pids.max", &most.to_string(), true)?;
        }
        if let Some(weight) = limits.blkio_weight {
            let file = ["blkio.weight", "blkio.bfq.weight"]
                .into_iter()
                .find(|name| self.file("blkio", name).is_some_and(|f| f.exists()));
            if let Some(name) = file {
                self.limit("blkio", name, &weight.to_string(), false)?;
            }
        }
        Ok(())
    }

    fn add(&self, pid: Pid) -> Result<(), CgroupError> {
        self.groups
            .iter()
            .try_for_each(|(_, directory)| write(&directory.join("cgroup.procs"), &pid.to_string()))
    }

    fn processes(&self) -> Vec<Pid> {
        let mut all: Vec<Pid> =
            self.groups.iter().flat_map(|(_, directory)| pids(&directory.join("cgroup.procs"))).collect();
        all.sort_unstable_by_key(|p| p.as_raw());
        all.dedup();
        all
    }

    fn figures(&self) -> Figures {
        // USER_HZ is 100 on every Linux that user space can see.
        const TICK: u64 = 10_000_000;
        let at =
            |controller: &str, name: &str| self.file(controller, name).map(|f| table(&f)).unwrap_or_default();
        let (times, throttling) = (at("cpuacct", "cpuacct.stat"), at("cpu", "cpu.stat"));
        let get = |t: &std::collections::BTreeMap<String, u64>, key: &str| t.get(key).copied().unwrap_or(0);
        let limit =
            |name: &str| Some(self.number("memory", name)).filter(|l| *l < UNLIMITED).unwrap_or(u64::MAX);
        let memory = self.number("memory", "memory.usage_in_bytes");
        let each = self.file("cpuacct", "cpuacct.usage_percpu").and_then(|f| read(&f)).unwrap_or_default();
        Figures {
            cpu_total: self.number("cpuacct", "cpuacct.usage"),
            cpu_user: get(&times, "user").saturating_mul(TICK),
            cpu_system: get(&times, "system").saturating_mul(TICK),
            cpu_each: each.split_whitespace().filter_map(|n| n.parse().ok()).collect(),
            periods: get(&throttling, "nr_periods"),
            throttled_periods: get(&throttling, "nr_throttled"),
            throttled_time: get(&throttling, "throttled_time"),
            memory,
            memory_peak: self.number("memory", "memory.max_usage_in_bytes"),
            memory_limit: limit("memory.limit_in_bytes"),
            memory_failures: self.number("memory", "memory.failcnt"),
            swap: self.number("memory", "memory.memsw.usage_in_bytes").saturating_sub(memory),
            swap_limit: limit("memory.memsw.limit_in_bytes"),
            memory_stat: at("memory", "memory.stat"),
            pids: self.number("pids", "pids.current"),
            pids_limit: self.number("pids", "pids.max"),
            oom_kills: self.oom_kills(),
        }
    }

    fn directories(&self) -> Vec<PathBuf> {
        self.groups.iter().map(|(_, directory)| directory.clone()).collect()
    }

    fn oom_kills(&self) -> u64 {
        let control = self.file("memory", "memory.oom_control").map(|f| table(&f)).unwrap_or_default();
        control.get("oom_kill").copied().unwrap_or(0)
    }
}
