//! What the sentry and the gofer may still do, read from `/proc` of the live processes on the host.

#![forbid(unsafe_code)]

use caisson_tests::bed::Bed;
use caisson_tests::leaks;
use caisson_tests::suite::{self, Outcome};
use std::collections::BTreeMap;
use std::fs;
use std::process::ExitCode;

fn main() -> ExitCode {
    suite::main(
        "confinement",
        Bed::new,
        caisson_tests::tests![
            sentry_has_no_capabilities,
            sentry_is_in_namespaces_of_its_own,
            sentry_has_an_empty_read_only_root,
            sentry_is_under_a_filter_in_every_thread,
            sentry_holds_no_needless_descriptors,
            gofer_is_under_a_filter_and_sees_its_root_only,
            gofer_holds_no_needless_descriptors,
            guest_processes_are_not_on_the_host,
        ],
    )
}

/// Pids of our live processes by program.
fn programs(bed: &Bed) -> BTreeMap<String, Vec<u32>> {
    let mut found: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for pid in leaks::our_processes(bed) {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let link = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let program = link.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or(name);
        found.entry(program).or_default().push(pid);
    }
    found
}

/// The only process of a program while one container runs.
fn only(bed: &Bed, program: &str) -> u32 {
    let found = programs(bed);
    match found.get(program).map(Vec::as_slice) {
        Some([pid]) => *pid,
        _ => panic!("not one {program}: {found:?}"),
    }
}

/// A field of `/proc/PID/status` (or of a thread's).
fn field(path: &str, name: &str) -> String {
    let status = fs::read_to_string(format!("{path}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.map(str::trim).unwrap_or_default().to_string()
}

fn threads(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().display().to_string()).collect()
}

/// Runs a check on a sandbox that is in the middle of its work.
fn with_sandbox(bed: &Bed, check: fn(&Bed)) -> Outcome {
    bed.need_caisson()?;
    let container = bed.sh("while :; do echo x >/tmp/x; cat /tmp/x >/dev/null; sleep 0.05; done").detach();
    container.expect_status("RUNNING");
    check(bed);
    Ok(())
}

fn sentry_has_no_capabilities(bed: &Bed) -> Outcome {
    with_sandbox(bed, |bed| {
        for thread in threads(only(bed, "caisson-sentry")) {
            for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
                assert_eq!(field(&thread, set), "0000000000000000", "{set} of {thread}");
            }
            assert_eq!(field(&thread, "NoNewPrivs"), "1", "{thread}");
        }
    })
}

fn sentry_is_in_namespaces_of_its_own(bed: &Bed) -> Outcome {
    with_sandbox(bed, |bed| {
        let pid = only(bed, "caisson-sentry");
        for kind in ["user", "pid", "ipc", "net", "mnt", "uts"] {
            let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
            assert!(of(&pid.to_string()).is_some(), "cannot read its {kind} namespace");
            assert_ne!(of(&pid.to_string()), of("self"), "the sentry shares the host's {kind} namespace");
        }
    })
}

fn sentry_has_an_empty_read_only_root(bed: &Bed) -> Outcome {
    with_sandbox(bed, |bed| {
        let pid = only(bed, "caisson-sentry");
        let entries: Vec<_> = fs::read_dir(format!("/proc/{pid}/root/"))
            .unwrap_or_else(|error| panic!("cannot list its root: {error}"))
            .flatten()
            .map(|entry| entry.path())
            .collect();
        assert!(entries.is_empty(), "its root has {entries:?}");
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        for line in mounts.lines() {
            let options = line.split(' ').nth(5).unwrap_or_default();
            assert!(options.split(',').any(|option| option == "ro"), "a writable mount: {line}");
        }
    })
}

fn sentry_is_under_a_filter_in_every_thread(bed: &Bed) -> Outcome {
    with_sandbox(bed, |bed| {
        let threads = threads(only(bed, "caisson-sentry"));
        assert!(!threads.is_empty());
        for thread in threads {
            assert_eq!(field(&thread, "Seccomp"), "2", "{thread} ({})", field(&thread, "Name"));
        }
    })
}

/// What the descriptors of a process are, without numbers.
fn descriptors(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|link| link.display().to_string())
        .collect()
}

fn sentry_holds_no_needless_descriptors(bed: &Bed) -> Outcome {
    with_sandbox(bed, |bed| {
        for link in descriptors(only(bed, "caisson-sentry")) {
            // Files come from the gofer, standard streams from containerd; of the host's own there is /dev/kvm alone.
            let outside = ["/proc", "/etc", "/sys", "/root", "/home", "/dev/mem", "/run/containerd/s"];
            let outside = outside.iter().any(|place| link.starts_with(place));
            assert!(!outside, "a descriptor of the host's {link}");
        }
    })
}

fn gofer_is_under_a_filter_and_sees_its_root_only(bed: &Bed) -> Outcome {
    with_sandbox(bed, |bed| {
        let pid = only(bed, "caisson-gofer");
        for thread in threads(pid) {
            assert_eq!(field(&thread, "Seccomp"), "2", "{thread}");
            assert_eq!(field(&thread, "NoNewPrivs"), "1", "{thread}");
        }
        for kind in ["mnt", "net", "ipc", "pid"] {
            let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
            assert_ne!(of(&pid.to_string()), of("self"), "the gofer shares the host's {kind} namespace");
        }
        let root = std::path::PathBuf::from(format!("/proc/{pid}/root"));
        // Files that the host has and the container has not.
        for path in ["etc/os-release", "etc/shadow", "usr/bin/dpkg", "var/lib/dpkg", "root/.cargo", "boot"] {
            assert!(!root.join(path).exists(), "the gofer sees /{path}");
        }
    })
}

fn gofer_holds_no_needless_descriptors(bed: &Bed) -> Outcome {
    with_sandbox(bed, |bed| {
        for link in descriptors(only(bed, "caisson-gofer")) {
            assert!(!link.starts_with("/dev/kvm"), "the gofer holds /dev/kvm");
            assert!(!link.contains("containerd.sock"), "the gofer holds {link}");
        }
    })
}

fn guest_processes_are_not_on_the_host(bed: &Bed) -> Outcome {
    bed.need_caisson()?;
    let container = bed.sh("sleep 98765 & sleep 98765").detach();
    container.expect_status("RUNNING");
    for pid in leaks::our_processes(bed) {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&words).starts_with("sleep"), "process {pid} is the guest's");
    }
    Ok(())
}
