//! What a container may not leave behind: processes, mounts, cgroups, sockets, named network namespaces, descriptors
//! of containerd, files.
//!
//! Other people's work goes on beside the tests, so a snapshot holds only what can be told to be ours: by the run's
//! name or by the bed's directory, in a command line, a control group or an environment. Zombies do not count: on some hosts the first
//! process reaps slowly.

use crate::bed::Bed;
use crate::command::{Command, eventually};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// containerd opens and closes descriptors as it likes; this many more are no leak, a descriptor per container is.
const SPARE_DESCRIPTORS: usize = 8;

/// What was there at one moment, as sentences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    things: BTreeSet<String>,
    descriptors: usize,
}

impl Snapshot {
    pub fn take(bed: &Bed) -> Snapshot {
        let mut things = BTreeSet::new();
        processes(bed, &mut things);
        mounts(bed, &mut things);
        cgroups(bed, &mut things);
        listing(Path::new("/run/netns"), "network namespace", &mut things);
        for part in ["fifo", "tmp", "state/io.containerd.runtime.v2.task/default"] {
            listing(&bed.dir.join(part), "file", &mut things);
        }
        for place in ["/tmp", "/run", "/dev/shm", "/var/tmp"] {
            named_after_us(bed, Path::new(place), &mut things);
        }
        let daemon = bed.started_containerd().and_then(|containerd| containerd.pid());
        let descriptors =
            daemon.and_then(|pid| fs::read_dir(format!("/proc/{pid}/fd")).ok()).map_or(0, Iterator::count);
        Snapshot { things, descriptors }
    }

    /// What is here and was not in `before`.
    pub fn since(&self, before: &Snapshot) -> Vec<String> {
        let mut new: Vec<String> = self.things.difference(&before.things).cloned().collect();
        if before.descriptors > 0 && self.descriptors > before.descriptors + SPARE_DESCRIPTORS {
            new.push(format!("{} descriptors of containerd more", self.descriptors - before.descriptors));
        }
        new
    }
}

/// Panics with the list of what is left over since `before`, after giving it some time to go.
#[track_caller]
pub fn expect_none_since(before: &Snapshot, bed: &Bed) {
    let mut left = Vec::new();
    let clean = eventually(Duration::from_secs(10), || {
        left = Snapshot::take(bed).since(before);
        left.is_empty()
    });
    assert!(clean, "left over:\n  {}", left.join("\n  "));
}

/// The socket on which containerd would look for the shim of container `id`.
pub fn shim_socket(bed: &Bed, id: &str) -> Option<std::path::PathBuf> {
    let socket = bed.started_containerd()?.socket().display().to_string();
    let sum = Command::new("sha256sum").input(format!("{socket}/default/{id}")).run();
    Some(Path::new("/run/containerd/s").join(sum.stdout.split(' ').next()?))
}

fn processes(bed: &Bed, things: &mut BTreeSet<String>) {
    let daemon = bed.started_containerd().and_then(|containerd| containerd.pid());
    for pid in numbered("/proc") {
        if Some(pid) == daemon || pid == std::process::id() {
            continue;
        }
        if let Some(what) = our_process(bed, pid) {
            things.insert(format!("process {pid}: {what}"));
        }
    }
}

/// The pids of all processes that belong to this bed, without containerd itself.
pub fn our_processes(bed: &Bed) -> Vec<u32> {
    let daemon = bed.started_containerd().and_then(|containerd| containerd.pid());
    let others =
        numbered("/proc").into_iter().filter(|pid| Some(*pid) != daemon && *pid != std::process::id());
    others.filter(|pid| our_process(bed, *pid).is_some()).collect()
}

fn our_process(bed: &Bed, pid: u32) -> Option<String> {
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = state.rsplit_once(") ")?.1;
    if after_name.starts_with('Z') || after_name.starts_with('X') {
        return None;
    }
    let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let line = String::from_utf8_lossy(&words).replace('\0', " ");
    // A helper may have neither an argument nor a control group of ours, but it has what it inherited from containerd.
    let named = |part: &str| fs::read(format!("/proc/{pid}/{part}")).unwrap_or_default();
    let place = bed.dir.display().to_string();
    let held = |part: &str| {
        let text = named(part);
        let text = String::from_utf8_lossy(&text);
        text.contains(&bed.run) || text.contains(&place)
    };
    let ours = line.contains(&bed.run) || held("cgroup") || held("environ");
    ours.then(|| line.chars().take(200).collect())
}

fn mounts(bed: &Bed, things: &mut BTreeSet<String>) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for point in table.lines().filter_map(|line| line.split(' ').nth(4)) {
        if point.contains(&bed.run) || point.starts_with("/run/caisson") {
            things.insert(format!("mount {point}"));
        }
    }
}

fn cgroups(bed: &Bed, things: &mut BTreeSet<String>) {
    let mut places = vec![Path::new("/sys/fs/cgroup").to_path_buf()];
    places.extend(entries(Path::new("/sys/fs/cgroup")));
    for place in places.iter().filter(|place| place.is_dir()) {
        for entry in entries(place).into_iter().filter(|entry| entry.display().to_string().contains(&bed.run))
        {
            things.insert(format!("cgroup {}", entry.display()));
        }
    }
}

fn listing(place: &Path, what: &str, things: &mut BTreeSet<String>) {
    things.extend(entries(place).iter().map(|entry| format!("{what} {}", entry.display())));
}

fn named_after_us(bed: &Bed, place: &Path, things: &mut BTreeSet<String>) {
    let run = &bed.run;
    let ours = |path: &std::path::PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().contains(run)) && *path != bed.dir
    };
    things.extend(
        entries(place).iter().filter(|path| ours(path)).map(|path| format!("file {}", path.display())),
    );
}

fn entries(place: &Path) -> Vec<std::path::PathBuf> {
    fs::read_dir(place).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn numbered(place: &str) -> Vec<u32> {
    let names = entries(Path::new(place));
    names.iter().filter_map(|path| path.file_name()?.to_str()?.parse().ok()).collect()
}
