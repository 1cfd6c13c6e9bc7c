//! The host's control groups around a container's processes, both hierarchies behind one trait.
//!
//! The sentry, its gofers and nothing else live in a container's cgroup; limits are set before they enter it, figures are read from it, and
//! removing it is the proof that nothing is left. [`v1`] knows a directory per controller, [`v2`] one for all. Both take the
//! place of the hierarchies as an argument, so tests run on made-up trees.

pub mod v1;
pub mod v2;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use thiserror::Error;

/// Where the hierarchies are on every distribution.
pub const MOUNT_POINT: &str = "/sys/fs/cgroup";

/// A cgroup file could not be read or written.
#[derive(Debug, Error)]
#[error("cgroup: {what} {path}: {error}")]
pub struct CgroupError {
    /// What was being done.
    pub what: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// Why it failed.
    pub error: io::Error,
}

/// Limits to set; absent ones are left alone. -1 lifts a signed one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Memory in bytes.
    pub memory: Option<i64>,
    /// Memory and swap together in bytes.
    pub memory_swap: Option<i64>,
    /// Soft limit in bytes.
    pub memory_reservation: Option<i64>,
    /// Relative weight, 2 to 262144, default 1024.
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU per period.
    pub cpu_quota: Option<i64>,
    /// The period in microseconds.
    pub cpu_period: Option<u64>,
    /// CPUs (`0-3,8`).
    pub cpuset_cpus: Option<String>,
    /// Memory nodes.
    pub cpuset_mems: Option<String>,
    /// Most tasks, ours included.
    pub pids: Option<u64>,
    /// Relative weight of block I/O, 10 to 1000.
    pub blkio_weight: Option<u16>,
    /// v2 only: files and what to write into them.
    pub unified: BTreeMap<String, String>,
}

/// Figures of a cgroup. Times in nanoseconds, sizes in bytes; `u64::MAX` is "no limit".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Figures {
    /// CPU time.
    pub cpu_total: u64,
    /// The part in user mode.
    pub cpu_user: u64,
    /// The part in the host's kernel.
    pub cpu_system: u64,
    /// CPU time by CPU (v1 only).
    pub cpu_each: Vec<u64>,
    /// Enforcement periods that have passed.
    pub periods: u64,
    /// Those in which it was throttled.
    pub throttled_periods: u64,
    /// For how long.
    pub throttled_time: u64,
    /// Memory in use.
    pub memory: u64,
    /// Most that ever was.
    pub memory_peak: u64,
    /// The limit.
    pub memory_limit: u64,
    /// How often it was hit.
    pub memory_failures: u64,
    /// Swap in use.
    pub swap: u64,
    /// Limit of swap.
    pub swap_limit: u64,
    /// `memory.stat`, as the kernel names it.
    pub memory_stat: BTreeMap<String, u64>,
    /// Tasks.
    pub pids: u64,
    /// Most tasks.
    pub pids_limit: u64,
    /// Processes that the OOM killer has killed here.
    pub oom_kills: u64,
}

/// One container's cgroup.
pub trait Cgroup: Send + Sync + std::fmt::Debug {
    /// True for the unified hierarchy.
    fn is_v2(&self) -> bool;
    /// Makes the directories. They may exist already.
    ///
    /// # Errors
    /// The first that cannot be made.
    fn create(&self) -> Result<(), CgroupError>;
    /// Sets limits.
    ///
    /// # Errors
    /// The first that the kernel refuses. One whose controller this host does not have is skipped unless it is a memory or pids limit.
    fn set(&self, limits: &Limits) -> Result<(), CgroupError>;
    /// Moves a process in.
    ///
    /// # Errors
    /// The first hierarchy that refuses.
    fn add(&self, pid: Pid) -> Result<(), CgroupError>;
    /// Processes in it.
    fn processes(&self) -> Vec<Pid>;
    /// Its figures. What cannot be read is 0.
    fn figures(&self) -> Figures;
    /// Directories to be removed, deepest first.
    fn directories(&self) -> Vec<PathBuf>;
    /// Counter of OOM kills.
    fn oom_kills(&self) -> u64;

    /// Kills what is in it and removes it. Does nothing when it is gone.
    ///
    /// # Errors
    /// When a directory is still there after a second.
    fn remove(&self) -> Result<(), CgroupError> {
        let mut last = Ok(());
        for _ in 0..100 {
            for pid in self.processes() {
                let _ = kill(pid, Signal::SIGKILL);
            }
            last = self.directories().into_iter().try_for_each(|path| match fs::remove_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(CgroupError { what: "remove", path, error })
                }
                _ => Ok(()),
            });
            if last.is_ok() {
                break;
            }
            // A dead process leaves its cgroup a moment after it can be reaped.
            sleep(Duration::from_millis(10));
        }
        last
    }
}

/// The cgroup at `path` (relative) in the host's hierarchies.
pub fn open(path: &Path) -> Box<dyn Cgroup> {
    open_at(Path::new(MOUNT_POINT), path)
}

/// The same in hierarchies mounted at `root`: v2 when that is a unified hierarchy, else v1.
pub fn open_at(root: &Path, path: &Path) -> Box<dyn Cgroup> {
    if root.join("cgroup.controllers").exists() {
        Box::new(v2::CgroupV2::new(root, path))
    } else {
        Box::new(v1::CgroupV1::new(root, path))
    }
}

/// Where a container's cgroup goes: the spec's path, or `caisson/ID`. systemd's `slice:prefix:name` becomes the path of that scope.
/// `None` for a path that would leave the hierarchy.
pub fn location(asked: Option<&Path>, id: &str) -> Option<PathBuf> {
    let Some(asked) = asked.filter(|p| !p.as_os_str().is_empty()) else {
        return Some(Path::new("caisson").join(id));
    };
    let text = asked.to_str()?;
    let parts: Vec<&str> = text.split(':').collect();
    let path = match parts.as_slice() {
        [slice, prefix, name] => {
            let unit =
                if name.ends_with(".slice") { (*name).to_owned() } else { format!("{prefix}-{name}.scope") };
            expand_slice(slice)?.join(unit)
        }
        _ => PathBuf::from(text),
    };
    let clean: PathBuf = path
        .components()
        .filter(|c| !matches!(c, Component::RootDir | Component::CurDir))
        .map(|c| if let Component::Normal(name) = c { Some(name) } else { None })
        .collect::<Option<_>>()?;
    Some(clean).filter(|p| !p.as_os_str().is_empty())
}

/// `a-b.slice` is `a.slice/a-b.slice` (`man 5 systemd.slice`).
fn expand_slice(slice: &str) -> Option<PathBuf> {
    if slice.is_empty() {
        return Some(PathBuf::from("system.slice"));
    }
    let stem = slice.strip_suffix(".slice")?;
    if stem == "-" {
        return Some(PathBuf::new());
    }
    let mut path = PathBuf::new();
    let mut prefix = String::new();
    for part in stem.split('-') {
        if part.is_empty() || part.contains('/') {
            return None;
        }
        if !prefix.is_empty() {
            prefix.push('-');
        }
        prefix.push_str(part);
        path.push(format!("{prefix}.slice"));
    }
    Some(path)
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    // Not fs::write: cgroup files take no O_CREAT, and a missing one must not come into being in a made-up tree either.
    let file = fs::OpenOptions::new().write(true).open(path);
    file.and_then(|mut f| io::Write::write_all(&mut f, value.as_bytes())).map_err(|error| CgroupError {
        what: "write to",
        path: path.to_owned(),
        error,
    })
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// A file that holds one number, or `max`.
fn number(path: &Path) -> Option<u64> {
    match read(path)?.trim() {
        "max" => Some(u64::MAX),
        text => text.parse().ok(),
    }
}

/// A file of `key value` lines.
fn table(path: &Path) -> BTreeMap<String, u64> {
    let text = read(path).unwrap_or_default();
    let entry =
        |line: &str| line.split_once(' ').and_then(|(k, v)| Some((k.to_owned(), v.trim().parse().ok()?)));
    text.lines().filter_map(entry).collect()
}

fn pids(path: &Path) -> Vec<Pid> {
    let text = read(path).unwrap_or_default();
    text.lines().filter_map(|l| l.trim().parse().ok()).filter(|p| *p > 0).map(Pid::from_raw).collect()
}

#[cfg(test)]
mod tests;
