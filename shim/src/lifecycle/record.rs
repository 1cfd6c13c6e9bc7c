//! A note in the bundle that says what to clean up: read by `delete` when the shim that wrote it was killed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::cgroup;

/// Name of the note in the bundle.
const FILE: &str = "caisson.json";
/// Name of the directory in the bundle on which a gofer's root is assembled.
pub const STAGING: &str = "caisson-root";

/// A process, told apart from a later one with the same pid by when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessMark {
    /// Its pid.
    pub pid: i32,
    /// Field 22 of `/proc/pid/stat`, in clock ticks since boot.
    pub start: u64,
}

/// What a container holds on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The sentry, if this container's shim started it.
    pub sentry: Option<ProcessMark>,
    /// The gofer.
    pub gofer: Option<ProcessMark>,
    /// The cgroup's path.
    pub cgroup: Option<PathBuf>,
}

impl ProcessMark {
    /// The mark of a running process.
    pub fn of(pid: Pid) -> Option<Self> {
        Some(Self { pid: pid.as_raw(), start: start_time(pid.as_raw())? })
    }

    /// Kills it if it still is the same process.
    pub fn kill(&self) {
        if self.pid > 1 && start_time(self.pid) == Some(self.start) {
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }
}

fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the fields after the last one are numbers, "state" being the third.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

impl Record {
    /// Writes the note into `bundle`.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn save(&self, bundle: &Path) -> io::Result<()> {
        fs::write(bundle.join(FILE), serde_json::to_vec(self)?)
    }

    /// Reads the note; nothing where there is none or it is broken.
    pub fn load(bundle: &Path) -> Self {
        let text = fs::read(bundle.join(FILE)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Kills and removes everything it names. May be called any number of times.
    pub fn clean(&self, bundle: &Path) {
        for process in [self.sentry, self.gofer].into_iter().flatten() {
            process.kill();
        }
        if let Some(path) = &self.cgroup
            && let Some(path) = cgroup::location(Some(path), "")
            && let Err(error) = cgroup::open(&path).remove()
        {
            log::warn!("{error}");
        }
        let _ = fs::remove_dir(bundle.join(STAGING));
        let _ = fs::remove_file(bundle.join(FILE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_tell_processes_apart() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let mark = ProcessMark::of(pid).unwrap();
        ProcessMark { start: mark.start + 1, ..mark }.kill();
        assert!(child.try_wait().unwrap().is_none(), "killed by a stale mark");
        mark.kill();
        assert!(!child.wait().unwrap().success());
        assert_eq!(ProcessMark::of(pid), None);
    }

    #[test]
    fn a_record_survives_the_disk_and_a_broken_one_is_nothing() {
        let dir = std::env::temp_dir().join(format!("caisson-record-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let mark = Some(ProcessMark { pid: 4_000_000, start: 1 });
        let record = Record { sentry: mark, gofer: None, cgroup: Some("no/such/group".into()) };
        record.save(&dir).unwrap();
        assert_eq!(Record::load(&dir), record);
        record.clean(&dir);
        assert!(!dir.join(FILE).exists());
        fs::write(dir.join(FILE), "{\"sentry\": 5}").unwrap();
        assert_eq!(Record::load(&dir), Record::default());
        fs::remove_dir_all(&dir).unwrap();
    }
}
