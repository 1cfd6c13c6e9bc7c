//! Starts small programs the way sentries and gofers are started. Needs root (as the shim does); says so and passes without.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;

use nix::sched::CloneFlags;
use nix::unistd::{Uid, pipe2};

use super::spawn::{Spawn, spawn};
use super::*;

fn root() -> bool {
    if Uid::effective().is_root() {
        return true;
    }
    eprintln!("skipped: needs root");
    false
}

fn words(words: &[&str]) -> Vec<CString> {
    words.iter().map(|w| CString::new(*w).unwrap()).collect()
}

/// Runs a shell script as a child in `namespaces` and gives what it wrote to its standard output.
fn script(text: &str, namespaces: CloneFlags, become_root: bool) -> (String, ExitKind) {
    let shell = File::open("/bin/sh").unwrap();
    let null = File::open("/dev/null").unwrap();
    let (reader, writer) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let spawned = Spawn {
        program: shell.as_fd(),
        args: words(&["sh", "-c", text]),
        env: words(&["PATH=/usr/bin:/bin", "ONLY=this"]),
        namespaces,
        become_root,
        proc: None,
        fds: vec![null.as_fd(), writer.as_fd(), writer.as_fd()],
    };
    let child = spawn(&spawned, |pid| {
        if become_root {
            for map in ["uid_map", "gid_map"] {
                fs::write(format!("/proc/{pid}/{map}"), "0 1879050000 1").map_err(|e| (map.to_owned(), e))?;
            }
        }
        Ok(())
    })
    .unwrap();
    drop(spawned);
    drop(writer);
    let mut said = String::new();
    File::from(reader).read_to_string(&mut said).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(child.reap(), Err(Errno::ECHILD));
    (said, status)
}

#[test]
fn a_child_gets_its_descriptors_and_environment_and_nothing_else() {
    // Something inheritable that must not arrive.
    let leak = File::open("/dev/null").unwrap();
    nix::fcntl::fcntl(&leak, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let (said, status) =
        script("ls /proc/self/fd; env | grep -v ^PWD | sort; exit 7", CloneFlags::empty(), false);
    // `ls` has its directory open as 3.
    assert_eq!(
        said,
        "0\n1\n2\n3\nONLY=this\nPATH=/usr/bin:/bin\n_=/usr/bin/env\n".replace("_=/usr/bin/env\n", "")
    );
    assert_eq!(status, ExitKind::Code(7));
}

#[test]
fn signals_are_neither_blocked_nor_ignored() {
    let (said, _) = script("grep -E '^Sig(Blk|Ign)' /proc/self/status", CloneFlags::empty(), false);
    assert_eq!(said, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
    let (_, status) = script("kill -9 $$", CloneFlags::empty(), false);
    assert_eq!(status, ExitKind::Signal(libc::SIGKILL));
}

#[test]
fn a_user_namespace_maps_to_an_unprivileged_id() {
    if !root() {
        return;
    }
    let namespaces = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNET;
    let (said, _) = script("id -u; id -G; echo $$; cat /proc/self/uid_map", namespaces, true);
    let mut lines = said.lines();
    assert_eq!(lines.next(), Some("0"));
    assert_eq!(lines.next(), Some("0"));
    assert_eq!(lines.next(), Some("1"));
    assert_eq!(lines.next().unwrap().split_whitespace().collect::<Vec<_>>(), ["0", "1879050000", "1"]);
}

#[test]
fn failures_name_the_step_and_leave_no_child() {
    let not_a_program = File::open("/etc/passwd").unwrap();
    let null = File::open("/dev/null").unwrap();
    let what = Spawn {
        program: not_a_program.as_fd(),
        args: words(&["x"]),
        env: vec![],
        namespaces: CloneFlags::empty(),
        become_root: false,
        proc: None,
        fds: vec![null.as_fd()],
    };
    let (step, error) = spawn(&what, |_| Ok(())).unwrap_err();
    assert_eq!(step, "execveat");
    assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    let mut pid = None;
    let (step, _) = spawn(&what, |p| {
        pid = Some(p);
        Err(("maps".into(), io::Error::other("no")))
    })
    .unwrap_err();
    assert_eq!(step, "maps");
    assert!(kill(pid.unwrap(), None).is_err(), "the child is still there");
}

#[test]
fn exits_read_well() {
    assert_eq!(ExitKind::Code(3).to_string(), "exit status 3");
    assert_eq!(ExitKind::Signal(9).to_string(), "SIGKILL");
    assert!(ExitKind::Signal(libc::SIGSYS).to_string().contains("filter"));
}

#[test]
fn host_ids_are_stable_and_unprivileged() {
    let ids: std::collections::BTreeSet<u32> = (0..1000).map(|i| sentry::host_id(&format!("c{i}"))).collect();
    assert!(ids.len() > 990);
    assert!(ids.iter().all(|id| (0x7000_0000..0x8000_0000).contains(id)));
    assert_eq!(sentry::host_id("a"), sentry::host_id("a"));
}
