//! The unified hierarchy: one directory, controllers enabled level by level through `cgroup.subtree_control`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use super::{Cgroup, CgroupError, Figures, Limits, number, pids, read, table, write};

/// Controllers to enable on the way down, where the host has them.
const CONTROLLERS: &[&str] = &["cpu", "cpuset", "io", "memory", "pids"];

/// A group in the unified hierarchy.
#[derive(Debug)]
pub struct CgroupV2 {
    root: PathBuf,
    path: PathBuf,
}

impl CgroupV2 {
    /// The group `path` below `root`.
    pub fn new(root: &Path, path: &Path) -> Self {
        Self { root: root.to_owned(), path: path.to_owned() }
    }

    fn directory(&self) -> PathBuf {
        self.root.join(&self.path)
    }

    fn limit(&self, name: &str, value: &str, needed: bool) -> Result<(), CgroupError> {
        let file = self.directory().join(name);
        if needed || file.exists() { write(&file, value) } else { Ok(()) }
    }

    fn number(&self, name: &str) -> u64 {
        number(&self.directory().join(name)).unwrap_or(0)
    }
}

fn signed(value: i64) -> String {
    if value < 0 { "max".into() } else { value.to_string() }
}

/// v1's shares (2…262144, default 1024) as v2's weight (1…10000, default 100), by the formula that runc and systemd use.
fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    shares.saturating_sub(2).saturating_mul(9999).div_euclid(262_142).saturating_add(1)
}

impl Cgroup for CgroupV2 {
    fn is_v2(&self) -> bool {
        true
    }

    fn create(&self) -> Result<(), CgroupError> {
        let mut directory = self.root.clone();
        for level in self.path.components() {
            // Enabled in the parent: a group's own processes forbid enabling in itself ("no internal processes").
            let available = read(&directory.join("cgroup.controllers")).unwrap_or_default();
            let enabled = read(&directory.join("cgroup.subtree_control")).unwrap_or_default();
            for controller in CONTROLLERS {
                let has = |list: &str| list.split_whitespace().any(|c| c == *controller);
                if has(&available) && !has(&enabled) {
                    // One that a parent cannot delegate leaves its limits unsettable, which `set` reports if they are asked for.
                    let _ = write(&directory.join("cgroup.subtree_control"), &format!("+{controller}"));
                }
            }
            directory.push(level);
            match fs::create_dir(&directory) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(CgroupError { what: "create", path: directory, error }),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn set(&self, limits: &Limits) -> Result<(), CgroupError> {
        if let Some(memory) = limits.memory.filter(|m| *m != 0) {
            self.limit("memory.max", &signed(memory), true)?;
        }
        if let Some(sum) = limits.memory_swap.filter(|m| *m != 0) {
            // The spec's figure includes memory, v2's does not.
            let swap = if sum < 0 { -1 } else { sum.saturating_sub(limits.memory.unwrap_or(0)).max(0) };
            self.limit("memory.swap.max", &signed(swap), false)?;
        }
        if let Some(soft) = limits.memory_reservation.filter(|m| *m != 0) {
            self.limit("memory.low", &signed(soft), false)?;
        }
        if let Some(shares) = limits.cpu_shares.filter(|s| *s != 0) {
            self.limit("cpu.weight", &weight(shares).to_string(), false)?;
        }
        if limits.cpu_quota.is_some() || limits.cpu_period.is_some() {
            let quota =
                limits.cpu_quota.filter(|q| *q > 0).map_or_else(|| "max".to_owned(), |q| q.to_string());
            let period = limits.cpu_period.filter(|p| *p > 0).unwrap_or(100_000);
            self.limit("cpu.max", &format!("{quota} {period}"), false)?;
        }
        if let Some(cpus) = &limits.cpuset_cpus {
            self.limit("cpuset.cpus", cpus, false)?;
        }
        if let Some(mems) = &limits.cpuset_mems {
            self.limit("cpuset.mems", mems, false)?;
        }
        if let Some(most) = limits.pids {
            self.limit("pids.max", &most.to_string(), true)?;
        }
        if let Some(weight) = limits.blkio_weight {
            // 10…1000 onto 1…10000.
            let io =
                u64::from(weight).saturating_sub(10).saturating_mul(9999).div_euclid(990).saturating_add(1);
            self.limit("io.weight", &io.to_string(), false)?;
        }
        for (file, value) in &limits.unified {
            if file.contains('/') || !file.contains('.') {
                let error = io::ErrorKind::InvalidInput.into();
                return Err(CgroupError { what: "write to", path: file.into(), error });
            }
            self.limit(file, value, true)?;
        }
        Ok(())
    }

    fn add(&self, pid: Pid) -> Result<(), CgroupError> {
        write(&self.directory().join("cgroup.procs"), &pid.to_string())
    }

    fn processes(&self) -> Vec<Pid> {
        pids(&self.directory().join("cgroup.procs"))
    }

    fn figures(&self) -> Figures {
        let cpu = table(&self.directory().join("cpu.stat"));
        let events = table(&self.directory().join("memory.events"));
        let get = |key: &str| cpu.get(key).copied().unwrap_or(0);
        let nanos = |key: &str| get(key).saturating_mul(1000);
        Figures {
            cpu_total: nanos("usage_usec"),
            cpu_user: nanos("user_usec"),
            cpu_system: nanos("system_usec"),
            cpu_each: Vec::new(),
            periods: get("nr_periods"),
            throttled_periods: get("nr_throttled"),
            throttled_time: nanos("throttled_usec"),
            memory: self.number("memory.current"),
            memory_peak: self.number("memory.peak"),
            memory_limit: self.number("memory.max"),
            memory_failures: events.get("max").copied().unwrap_or(0),
            swap: self.number("memory.swap.current"),
            swap_limit: self.number("memory.swap.max"),
            memory_stat: table(&self.directory().join("memory.stat")),
            pids: self.number("pids.current"),
            pids_limit: self.number("pids.max"),
            oom_kills: events.get("oom_kill").copied().unwrap_or(0),
        }
    }

    fn directories(&self) -> Vec<PathBuf> {
        vec![self.directory()]
    }

    fn oom_kills(&self) -> u64 {
        table(&self.directory().join("memory.events")).get("oom_kill").copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::weight;

    #[test]
    fn shares_become_weights() {
        assert_eq!((weight(2), weight(1024), weight(262_144), weight(0)), (1, 39, 10_000, 1));
    }
}
