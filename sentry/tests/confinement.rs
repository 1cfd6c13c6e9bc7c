//! Starts `examples/confined_probe` in new namespaces and checks from outside what it can still do.
//!
//! Needs `unshare` (util-linux) and the right to make namespaces; says so and passes where they are missing.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

const SIGSYS: i32 = 31;

fn probe() -> PathBuf {
    // …/deps/confinement-hash → …/examples/confined_probe, which cargo builds along with the tests.
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.join("examples/confined_probe")
}

fn start(mode: &str, what: &str) -> Child {
    // Without --fork: the probe itself must be the process we watch, and it needs no pid namespace for this.
    Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "--ipc", "--net", "--uts"])
        .arg(probe())
        .args([mode, what])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn can_unshare() -> bool {
    let able = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "--ipc", "--net", "--uts", "true"])
        .status()
        .is_ok_and(|s| s.success());
    if !able {
        eprintln!("skipped: no right to make namespaces here");
    }
    able
}

#[test]
fn a_confined_process_can_do_what_a_sentry_needs() {
    if !can_unshare() {
        return;
    }
    for what in ["nothing", "thread"] {
        let output = start("enforce", what).wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "done\n", "{what}: {output:?}");
    }
}

#[test]
fn what_reaches_the_host_is_fatal() {
    if !can_unshare() {
        return;
    }
    for what in ["execve", "socket", "ptrace", "mount", "kill"] {
        let output = start("enforce", what).wait_with_output().unwrap();
        assert_eq!(output.status.signal(), Some(SIGSYS), "{what}: {output:?}");
        assert!(output.stdout.is_empty());
    }
    // The C library tries to read `/sys` when it makes a heap, so opening fails instead of killing.
    let output = start("enforce", "open").wait_with_output().unwrap();
    assert_eq!(output.stdout, b"refused: Function not implemented (os error 38)\n");
}

#[test]
fn without_the_filter_the_kernel_still_refuses() {
    if !can_unshare() {
        return;
    }
    for what in ["open", "execve", "mount"] {
        let output = start("off", what).wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.starts_with("refused: "), "{what}: {said}");
    }
}

#[test]
fn proc_shows_a_process_with_nothing() {
    if !can_unshare() {
        return;
    }
    let mut child = start("enforce", "park");
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "parked\n");
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", child.id())).unwrap();
    let status = read("status");
    let field = |name: &str| {
        status.lines().find_map(|l| l.strip_prefix(name)).map(str::trim).unwrap_or_default().to_owned()
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    assert_eq!(field("Name:"), "caisson-sentry");
    let mounts = read("mountinfo");
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(mounts.contains(" / / ro,") && mounts.contains("tmpfs"), "{mounts}");
    let root = std::fs::read_dir(format!("/proc/{}/root", child.id())).map(Iterator::count);
    assert!(matches!(root, Ok(0)), "{root:?}");
    child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    child.wait().unwrap();
}
