//! What the child does between `clone3` and `execveat`.
//!
//! Rules: it is a copy of one thread of a process that has many, so any lock may be held for ever: no allocation, no
//! formatting, no C library function that takes a lock or talks to other threads (`setresuid` does, the raw call does not). All memory that is used was
//! prepared by the parent before the clone. Every failure is reported as `(step, errno)` and ends the child.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_long};
use std::os::fd::RawFd;

/// Everything the child needs, prepared before the clone. The pointer arrays end with a null pointer and point into
/// strings that the caller of [`super::spawn::spawn`] keeps alive across the call.
pub(super) struct Plan<'a> {
    /// The parent's end of the "go" pipe, to be closed so that its death is noticed.
    pub go_writer: RawFd,
    /// One byte arrives here when the parent is done.
    pub go_reader: RawFd,
    /// Failures are written here; close-on-exec, so success is an end of file.
    pub errors: RawFd,
    /// The program.
    pub program: RawFd,
    /// `argv`.
    pub argv: &'a [*const c_char],
    /// `envp`.
    pub envp: &'a [*const c_char],
    /// Become uid and gid 0 of the new user namespace.
    pub become_root: bool,
    /// Mount a `proc` of the new pid namespace here.
    pub proc: Option<&'a CStr>,
    /// Descriptors: source (never one of the targets), target. Targets are 0, 1, 2, … without a gap.
    pub fds: &'a [(RawFd, RawFd)],
}

/// Where the child failed; the numbers travel through the error pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Step {
    Wait = 1,
    Identity = 2,
    Proc = 3,
    Descriptors = 4,
    Exec = 5,
}

impl Step {
    /// The step with this number, in words.
    pub(super) fn describe(number: u8) -> &'static str {
        match number {
            1 => "waiting for the launcher",
            2 => "becoming root of the user namespace",
            3 => "mounting proc",
            4 => "moving descriptors",
            5 => "execveat",
            _ => "unknown step",
        }
    }
}

/// Runs the plan; never returns.
pub(super) fn run(plan: &Plan<'_>) -> ! {
    let (step, errno) = match prepare(plan) {
        Err(failure) => failure,
        Ok(()) => (Step::Exec, exec(plan)),
    };
    let [a, b, c, d] = errno.to_ne_bytes();
    let report = [step as u8, a, b, c, d];
    // SAFETY: the buffer is a live array of this frame and its length is given.
    unsafe { libc::write(plan.errors, report.as_ptr().cast(), report.len()) };
    // SAFETY: `_exit` ends the process without running anything of the copied program.
    unsafe { libc::_exit(127) }
}

fn prepare(plan: &Plan<'_>) -> Result<(), (Step, c_int)> {
    // SAFETY: closes a descriptor number of this process; nothing in the child owns it as a Rust value any more.
    unsafe { libc::close(plan.go_writer) };
    let mut byte = [0u8; 1];
    // SAFETY: reads at most one byte into a live one-byte array.
    let got = unsafe { libc::read(plan.go_reader, byte.as_mut_ptr().cast(), 1) };
    if got != 1 {
        return Err((Step::Wait, if got == 0 { libc::EPIPE } else { errno() }));
    }
    // SAFETY: takes no pointers; failure (already a leader) is harmless.
    unsafe { libc::setsid() };
    if plan.become_root {
        become_root().map_err(|e| (Step::Identity, e))?;
    }
    if let Some(target) = plan.proc {
        mount_proc(target).map_err(|e| (Step::Proc, e))?;
    }
    descriptors(plan.fds).map_err(|e| (Step::Descriptors, e))?;
    default_signals();
    Ok(())
}

fn become_root() -> Result<(), c_int> {
    let none: *const libc::gid_t = std::ptr::null();
    // SAFETY: a count of zero, so the kernel does not read through the pointer. The raw call, because the C library's signals other threads.
    check(unsafe { libc::syscall(libc::SYS_setgroups, 0 as c_long, none) })?;
    // SAFETY: takes no pointers. Raw for the same reason.
    check(unsafe { libc::syscall(libc::SYS_setresgid, 0 as c_long, 0 as c_long, 0 as c_long) })?;
    // SAFETY: takes no pointers. Raw for the same reason.
    check(unsafe { libc::syscall(libc::SYS_setresuid, 0 as c_long, 0 as c_long, 0 as c_long) })
}

fn mount_proc(target: &CStr) -> Result<(), c_int> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    let kind = c"proc".as_ptr();
    // SAFETY: three NUL-terminated strings that outlive the call, and no data.
    check(unsafe { libc::mount(kind, target.as_ptr(), kind, flags, std::ptr::null()) }.into())
}

fn descriptors(fds: &[(RawFd, RawFd)]) -> Result<(), c_int> {
    let mut next = 0;
    for (source, target) in fds {
        // SAFETY: numbers only. A source is never a target (the parent keeps sources above all targets), so dup2 clears close-on-exec.
        check(unsafe { libc::dup2(*source, *target) }.into())?;
        next = next.max(target.saturating_add(1));
    }
    // SAFETY: numbers only. Marks instead of closing: the program and the error pipe are still needed until execveat.
    check(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            next as c_long,
            c_long::from(c_int::MAX),
            libc::CLOSE_RANGE_CLOEXEC as c_long,
        )
    })
}

/// The parent blocked every signal before the clone. Its handlers must not run here, so they go before the mask does.
fn default_signals() {
    // The kernel's `struct sigaction`: all zero is SIG_DFL without flags. Raw, because the C library keeps two signals to itself.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: a live structure of the kernel's size; no place for the old action. For SIGKILL and SIGSTOP it fails, which is fine.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal as c_long,
                default.as_ptr(),
                std::ptr::null::<u64>(),
                8 as c_long,
            )
        };
    }
    let empty = 0u64;
    // SAFETY: a live 8-byte mask, which is the kernel's size of a signal set, and no place for the old one.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            c_long::from(libc::SIG_SETMASK),
            &raw const empty,
            std::ptr::null::<u64>(),
            8 as c_long,
        )
    };
}

/// Executes the program; returns the errno when that failed.
fn exec(plan: &Plan<'_>) -> c_int {
    // SAFETY: both arrays end with a null pointer and hold live C strings (see Plan); the path is a live empty C string.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            c_long::from(plan.program),
            c"".as_ptr(),
            plan.argv.as_ptr(),
            plan.envp.as_ptr(),
            c_long::from(libc::AT_EMPTY_PATH),
        )
    };
    errno()
}

fn check(result: c_long) -> Result<(), c_int> {
    if result < 0 { Err(errno()) } else { Ok(()) }
}

fn errno() -> c_int {
    nix::errno::Errno::last_raw()
}
