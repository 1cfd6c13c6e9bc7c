//! The guest programs: small C programs in `guest/`, compiled static, run on the host and in a container; what they
//! print and how they end must be the same. Linux is the judge.
//!
//! `guest/manifest` names every program, one a line: `NAME same`, or `NAME differs REASON` for what is known not to
//! match yet. A program that is listed as different and turns out the same fails too, so that the list stays true.

use crate::bed::Bed;
use crate::command::{Command, Finished};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A line of the manifest.
#[derive(Debug, Clone)]
pub struct Entry {
    pub name: String,
    /// Why the container is expected to print something else; `None` when it must be the same.
    pub differs: Option<String>,
}

/// Reads the manifest; panics on a line that it does not understand, a program without a line and a line without one.
pub fn manifest() -> Vec<Entry> {
    let text = read(&source_directory().join("manifest"));
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let entries: Vec<Entry> = lines.map(entry).collect();
    for program in programs() {
        assert!(
            entries.iter().any(|entry| entry.name == program),
            "guest/{program}.c is not in guest/manifest"
        );
    }
    for Entry { name, .. } in &entries {
        assert!(source(name).exists(), "guest/manifest names {name}, but there is no guest/{name}.c");
    }
    entries
}

fn entry(line: &str) -> Entry {
    let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    let differs = match rest.split_once(char::is_whitespace) {
        None if rest == "same" => None,
        Some(("differs", reason)) => Some(reason.trim().to_string()),
        _ => panic!("guest/manifest: `{line}` is neither `NAME same` nor `NAME differs REASON`"),
    };
    Entry { name: name.to_string(), differs }
}

fn programs() -> Vec<String> {
    let files = std::fs::read_dir(source_directory()).into_iter().flatten().flatten();
    let stem = |path: PathBuf| Some(path.file_name()?.to_str()?.strip_suffix(".c")?.to_string());
    files.filter_map(|file| stem(file.path())).collect()
}

/// Compiles a program into the bed's directory of guest programs; a panic shows the compiler's words.
pub fn build(bed: &Bed, name: &str) -> PathBuf {
    let directory = directory(bed);
    let program = directory.join(name);
    let flags = [
        "-static",
        "-O1",
        "-g0",
        "-std=gnu11",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-stringop-overread",
        "-Wno-stringop-overflow",
        "-Wno-nonnull",
        "-Wno-array-bounds",
        "-Wno-infinite-recursion",
        "-pthread",
        "-o",
    ];
    Command::new("gcc").args(flags).arg(&program).arg(source(name)).ok();
    program
}

/// Where the built programs are: bound read-only at `/guest` in containers.
pub fn directory(bed: &Bed) -> PathBuf {
    let directory = bed.dir.join("guest");
    std::fs::create_dir_all(&directory).ok();
    directory
}

/// Runs a built program on the host, in a new directory, in the same family of processes as a container has: a shell
/// that leads the session is process 1 of a pid namespace, the program is its child.
pub fn run_natively(bed: &Bed, program: &Path) -> Finished {
    let namespaces = ["--pid", "--fork", "--kill-child", "--mount-proc", "--ipc", "--uts", "--net"];
    let command = Command::new("env").args(["-i", "PATH=/bin:/usr/bin", "unshare"]).args(namespaces);
    let command = command.args(["setsid", "/bin/busybox", "sh", "-c", WRAPPER]).arg(program);
    command.current_dir(bed.scratch("native")).limit(Duration::from_secs(60)).run()
}

/// The shell script that runs a guest program, given as `$0`, without descriptors that the harness may have left open.
pub const WRAPPER: &str = "exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-; \"$0\"; exit $?";

/// What of a run must be the same: its output, line by line, and its end.
pub fn verdict(finished: &Finished) -> String {
    let end = finished.code.map_or("did not end".to_string(), |code| format!("exit status {code}"));
    format!("{}{end}\n", finished.stdout)
}

/// The first lines in which two verdicts differ; `None` when they are the same.
pub fn difference(host: &str, container: &str) -> Option<String> {
    if host == container {
        return None;
    }
    let (host, container): (Vec<&str>, Vec<&str>) = (host.lines().collect(), container.lines().collect());
    let mut shown = String::new();
    for number in (0..host.len().max(container.len())).filter(|n| host.get(*n) != container.get(*n)).take(8) {
        let line = |side: &[&str]| side.get(number).copied().unwrap_or("(nothing)").to_string();
        shown += &format!(
            "\n  line {}: host      {}\n          container {}",
            number + 1,
            line(&host),
            line(&container)
        );
    }
    Some(shown)
}

fn source_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guest")
}

fn source(name: &str) -> PathBuf {
    source_directory().join(format!("{name}.c"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}
