//! The mechanism: clones a child into new namespaces, lets the caller prepare it from outside, and has it execute a program.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_long};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sched::CloneFlags;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::unistd::{Pid, pipe2};

use super::Child;
use super::child::{self, Plan, Step};

/// Sources of descriptors are moved to this number or above, out of the way of all targets.
const SOURCES_FROM: RawFd = 128;

/// What to start.
pub(super) struct Spawn<'a> {
    /// The program, opened.
    pub program: BorrowedFd<'a>,
    /// `argv`.
    pub args: Vec<CString>,
    /// `envp`; nothing is inherited.
    pub env: Vec<CString>,
    /// New namespaces (`CLONE_NEW*` only).
    pub namespaces: CloneFlags,
    /// Become root of the new user namespace, whose maps the caller writes.
    pub become_root: bool,
    /// Mount a `proc` of the new pid namespace here.
    pub proc: Option<&'a CStr>,
    /// The descriptors that the program gets, numbered 0, 1, 2, …
    pub fds: Vec<BorrowedFd<'a>>,
}

/// A step in words and why it failed.
pub(super) type SpawnError = (String, io::Error);

/// Starts the program. `prepare` runs while the child waits: it may write maps, move it into cgroups and so on.
///
/// # Errors
/// The failed step, be it here, in `prepare` or in the child. No child is left behind then.
pub(super) fn spawn(
    what: &Spawn<'_>,
    prepare: impl FnOnce(Pid) -> Result<(), SpawnError>,
) -> Result<Child, SpawnError> {
    let host = |step: &str| {
        let step = step.to_owned();
        move |e: nix::Error| (step, io::Error::from(e))
    };
    let lift = |fd: BorrowedFd<'_>| -> Result<OwnedFd, SpawnError> {
        let number = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(SOURCES_FROM)).map_err(host("fcntl"))?;
        // SAFETY: fcntl just made this descriptor and nobody else knows its number.
        Ok(unsafe { OwnedFd::from_raw_fd(number) })
    };
    raise_descriptor_limit();
    let sources = what.fds.iter().map(|fd| lift(*fd)).collect::<Result<Vec<_>, _>>()?;
    let fds: Vec<(RawFd, RawFd)> = sources.iter().map(AsRawFd::as_raw_fd).zip(0..).collect();
    if fds.len() > SOURCES_FROM as usize {
        return Err(("descriptors".into(), io::Error::from(io::ErrorKind::InvalidInput)));
    }
    let program = lift(what.program)?;
    // Both ends move up; the originals must be gone, else this process would hold a writer and never see an end of file.
    let pipe = || -> Result<(OwnedFd, OwnedFd), SpawnError> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(host("pipe2"))?;
        Ok((lift(reader.as_fd())?, lift(writer.as_fd())?))
    };
    let (go_reader, go_writer) = pipe()?;
    let (error_reader, error_writer) = pipe()?;
    let (argv, envp) = (pointers(&what.args), pointers(&what.env));
    let plan = Plan {
        go_writer: go_writer.as_raw_fd(),
        go_reader: go_reader.as_raw_fd(),
        errors: error_writer.as_raw_fd(),
        program: program.as_raw_fd(),
        argv: &argv,
        envp: &envp,
        become_root: what.become_root,
        proc: what.proc,
        fds: &fds,
    };
    let child = clone_blocked(what.namespaces, &plan).map_err(host("clone3"))?;
    drop((go_reader, error_writer));
    let outcome = prepare(child.pid).and_then(|()| {
        File::from(go_writer).write_all(&[1]).map_err(|e| ("releasing the child".into(), e))?;
        report(File::from(error_reader))
    });
    // On failure the child ends by itself (its pipe is closed now) or hangs in `prepare`'s doing: make sure.
    if outcome.is_err() {
        child.kill();
        let _ = child.wait();
    }
    outcome.map(|()| child)
}

/// A gofer holds a descriptor per file that its sentry knows, a sentry one per file that is open: the usual hard limit is too low for
/// both. Children inherit this; where it is refused, they live with less.
fn raise_descriptor_limit() {
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok());
    let wanted: u64 = most.unwrap_or(1 << 20);
    let _ = setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted);
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Reads the error pipe to its end: nothing is success.
fn report(mut pipe: File) -> Result<(), SpawnError> {
    let mut said = Vec::new();
    pipe.read_to_end(&mut said).map_err(|e| ("reading the error pipe".to_owned(), e))?;
    match said.as_slice() {
        [] => Ok(()),
        [step, errno @ ..] => {
            let errno = errno.first_chunk::<4>().map_or(libc::EIO, |b| c_int::from_ne_bytes(*b));
            Err((Step::describe(*step).to_owned(), io::Error::from_raw_os_error(errno)))
        }
    }
}

/// Clones with every signal blocked, so that no handler of this process runs in the child.
fn clone_blocked(namespaces: CloneFlags, plan: &Plan<'_>) -> Result<Child, nix::Error> {
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    let result = clone(namespaces, plan);
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    result
}

fn clone(namespaces: CloneFlags, plan: &Plan<'_>) -> Result<Child, nix::Error> {
    let mut pidfd: c_int = -1;
    let flags = u64::from((namespaces.bits() | libc::CLONE_PIDFD).cast_unsigned());
    let args = libc::clone_args {
        flags,
        pidfd: (&raw mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    // SAFETY: `args` is a live clone_args of the size given and `pidfd` a live int. Without CLONE_VM the child gets a copy of this address
    // space and continues here; it calls `child::run` alone, which keeps the rules for such a copy and never returns.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
    match pid {
        0 => child::run(plan),
        pid if pid < 0 => Err(nix::Error::last()),
        pid => {
            // SAFETY: the kernel stored a new descriptor there because CLONE_PIDFD was given and the call succeeded.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Child { pid: Pid::from_raw(narrow(pid)), pidfd })
        }
    }
}

fn narrow(pid: c_long) -> libc::pid_t {
    // Pids are at most 2^22 (PID_MAX_LIMIT).
    libc::pid_t::try_from(pid).unwrap_or(libc::pid_t::MAX)
}
