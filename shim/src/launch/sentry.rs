//! Starts a sentry: new namespaces of every kind, an unprivileged host ID, three descriptors.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use caisson_proto::control::launch::{
    FLAG_LOG_LEVEL, FLAG_SANDBOX_ID, FLAG_SECCOMP, SENTRY_PROGRAM, SeccompMode,
};
use nix::sched::CloneFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use nix::unistd::Pid;

use super::spawn::{Spawn, SpawnError, spawn};
use super::{Child, LaunchError, programs};

/// First host ID for sentries. Far above what distributions and `subuid` hand out; nothing on the host belongs to these.
const FIRST_HOST_ID: u32 = 0x7000_0000;
/// How many there are: IDs are spread so that sandboxes do not share per-user kernel limits (pipes, inotify, processes).
const HOST_IDS: u32 = 0x0fff_0000;

/// What a sentry is started with.
pub struct SentryLaunch<'a> {
    /// The sandbox's ID.
    pub sandbox_id: &'a str,
    /// Where its log lines go.
    pub log: BorrowedFd<'a>,
    /// Log level (`info`, …).
    pub log_level: &'a str,
    /// How strict its filter is.
    pub seccomp: SeccompMode,
    /// Its `oom_score_adj` on the host.
    pub oom_score_adj: Option<i32>,
}

/// Starts a sentry and gives its process and the shim's end of the control socket (close-on-exec, non-blocking).
///
/// `confine` runs while the child waits; it is to move the pid into the container's cgroup.
///
/// # Errors
/// [`LaunchError`]; no process is left behind then.
pub fn start(
    launch: &SentryLaunch<'_>,
    confine: impl FnOnce(Pid) -> io::Result<()>,
) -> Result<(Child, OwnedFd), LaunchError> {
    let failed = |(what, error): SpawnError| LaunchError::Host { program: SENTRY_PROGRAM, what, error };
    let (path, program) = programs::open(SENTRY_PROGRAM)?;
    let (ours, theirs) = control_pair().map_err(|e| failed(("control socket".into(), e)))?;
    let flags = [
        FLAG_SANDBOX_ID,
        launch.sandbox_id,
        FLAG_SECCOMP,
        launch.seccomp.as_str(),
        FLAG_LOG_LEVEL,
        launch.log_level,
    ];
    let args = std::iter::once(path.as_os_str().as_encoded_bytes())
        .chain(flags.iter().map(|s| s.as_bytes()))
        .map(CString::new)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| failed(("arguments".into(), e.into())))?;
    let child = spawn(
        &Spawn {
            program: program.as_fd(),
            args,
            env: Vec::new(),
            namespaces: CloneFlags::CLONE_NEWUSER
                | CloneFlags::CLONE_NEWPID
                | CloneFlags::CLONE_NEWIPC
                | CloneFlags::CLONE_NEWNET
                | CloneFlags::CLONE_NEWNS
                | CloneFlags::CLONE_NEWUTS
                | CloneFlags::CLONE_NEWCGROUP,
            become_root: true,
            proc: None,
            fds: vec![theirs.as_fd(), launch.log, launch.log],
        },
        |pid| prepare(pid, launch, confine),
    )
    .map_err(failed)?;
    Ok((child, ours))
}

fn prepare(
    pid: Pid,
    launch: &SentryLaunch<'_>,
    confine: impl FnOnce(Pid) -> io::Result<()>,
) -> Result<(), SpawnError> {
    let write = |file: &str, text: String| {
        fs::write(format!("/proc/{pid}/{file}"), text).map_err(|e| (format!("writing {file}"), e))
    };
    confine(pid).map_err(|e| ("moving it into its cgroup".to_owned(), e))?;
    if let Some(adjust) = launch.oom_score_adj {
        write("oom_score_adj", adjust.to_string())?;
    }
    let id = host_id(launch.sandbox_id);
    // Only ID 0 exists inside, so there is nothing to switch to.
    write("uid_map", format!("0 {id} 1"))?;
    write("gid_map", format!("0 {id} 1"))
}

/// The host ID of this sandbox's sentry: always the same for one ID, most likely different for two.
pub fn host_id(sandbox_id: &str) -> u32 {
    // FNV-1a: the only need is a stable spread.
    let hash = sandbox_id.bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    FIRST_HOST_ID.wrapping_add(hash % HOST_IDS)
}

fn control_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    let status = nix::fcntl::fcntl(&ours, nix::fcntl::FcntlArg::F_GETFL)?;
    let status = nix::fcntl::OFlag::from_bits_retain(status) | nix::fcntl::OFlag::O_NONBLOCK;
    nix::fcntl::fcntl(&ours, nix::fcntl::FcntlArg::F_SETFL(status))?;
    // Room for several of the longest packets, so that a request seldom waits for the reader.
    setsockopt(&ours, sockopt::SndBuf, &(1 << 20))?;
    Ok((ours, theirs))
}
