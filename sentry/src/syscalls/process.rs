//! Processes and threads: clone, execve, exit, wait, process groups, sessions, namespaces.

use std::sync::Arc;

use linux_raw_sys::general as linux;

use super::Args;
use crate::errno::{Errno, SysResult};
use crate::loader::{self, Program};
use crate::mm::{Mm, Randomize};
use crate::task::clone::{self, CloneArgs, CloneFlags};
use crate::task::pidfd::{self, PidFd};
use crate::task::reap::{self, Report, WaitOptions, Which};
use crate::task::signal::{ExitStatus, SIGINFO_SIZE, SigFields, SigInfo, Signal};
use crate::task::{AfterCall, Resource, SyscallContext, Task, exec};
use crate::vfs::{Caller, Fd, OpenFlags, VfsPath, WalkFlags};

/// Longest single argument (`MAX_ARG_STRLEN`).
const MAX_ARG: usize = 131_072;
/// Most bytes of arguments and environment that any limit allows: three quarters of the default stack.
const MAX_ARGS: usize = 6 << 20;

fn pid_result(pid: i32) -> SysResult<usize> {
    usize::try_from(pid).map_err(|_| Errno::ESRCH)
}

/// `fork(2)`
pub fn fork(ctx: &mut SyscallContext<'_>, _: &Args) -> SysResult<usize> {
    plain_clone(ctx, CloneFlags::empty())
}

/// `vfork(2)`
pub fn vfork(ctx: &mut SyscallContext<'_>, _: &Args) -> SysResult<usize> {
    plain_clone(ctx, CloneFlags::VM | CloneFlags::VFORK)
}

fn plain_clone(ctx: &mut SyscallContext<'_>, flags: CloneFlags) -> SysResult<usize> {
    let args = CloneArgs {
        flags,
        exit_signal: Some(Signal::CHLD),
        stack: 0,
        tls: 0,
        parent_tid: 0,
        child_tid: 0,
        pidfd: 0,
    };
    pid_result(clone::clone(ctx, &args)?)
}

/// `clone(2)`; the lowest byte of the flags is the exit signal.
pub fn clone(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let raw = args.raw(0) & 0xffff_ffff;
    let signal = Signal::or_none((raw & u64::from(linux::CSIGNAL)) as i32)?;
    let flags = CloneFlags::from_bits_truncate(raw & !u64::from(linux::CSIGNAL));
    let both = CloneFlags::PIDFD | CloneFlags::PARENT_SETTID;
    if flags.contains(both) {
        return Err(Errno::EINVAL);
    }
    let args = CloneArgs {
        flags,
        exit_signal: signal,
        stack: args.raw(1),
        tls: args.raw(4),
        parent_tid: args.raw(2),
        child_tid: args.raw(3),
        pidfd: args.raw(2),
    };
    pid_result(clone::clone(ctx, &args)?)
}

/// `clone3(2)`
pub fn clone3(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let raw: [u64; 11] = extensible(&ctx.task.mm(), args.raw(0), args.raw(1), linux::CLONE_ARGS_SIZE_VER0)?;
    let [
        flags,
        pidfd,
        child_tid,
        parent_tid,
        exit_signal,
        stack,
        stack_size,
        tls,
        set_tid,
        set_tid_size,
        cgroup,
    ] = raw;
    let flags = CloneFlags::from_bits(flags).ok_or(Errno::EINVAL)?;
    let signal = i32::try_from(exit_signal).map_err(|_| Errno::EINVAL)?;
    let stack_is_bad = if stack == 0 { stack_size != 0 } else { stack_size == 0 };
    let misplaced = flags.intersects(CloneFlags::THREAD | CloneFlags::PARENT) && signal != 0;
    if stack_is_bad || misplaced || flags.contains(CloneFlags::DETACHED) || cgroup != 0 {
        return Err(Errno::EINVAL);
    }
    if set_tid != 0 || set_tid_size != 0 {
        // Choosing pids needs CAP_CHECKPOINT_RESTORE, which no container has.
        return Err(if (set_tid == 0) == (set_tid_size == 0) { Errno::EPERM } else { Errno::EINVAL });
    }
    let args = CloneArgs {
        flags,
        exit_signal: Signal::or_none(signal)?,
        stack: stack.checked_add(stack_size).ok_or(Errno::EINVAL)?,
        tls,
        parent_tid,
        child_tid,
        pidfd,
    };
    pid_result(clone::clone(ctx, &args)?)
}

/// A struct that may grow (`copy_struct_from_user`): missing fields are 0, unknown ones must be. `EINVAL` below `least` bytes,
/// `E2BIG` for unknown bytes that are set or more than a page.
pub(super) fn extensible<const N: usize>(mm: &Mm, addr: u64, size: u64, least: u32) -> SysResult<[u64; N]> {
    if size > 4096 {
        return Err(Errno::E2BIG);
    }
    if size < u64::from(least) {
        return Err(Errno::EINVAL);
    }
    let mut bytes = vec![0; usize::try_from(size).map_err(|_| Errno::E2BIG)?];
    mm.read_bytes(addr, &mut bytes)?;
    if bytes.get(N * 8..).unwrap_or_default().iter().any(|byte| *byte != 0) {
        return Err(Errno::E2BIG);
    }
    bytes.resize(N * 8, 0);
    let mut words = [0; N];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_le_bytes(chunk.first_chunk::<8>().copied().unwrap_or_default());
    }
    Ok(words)
}

/// `execve(2)`
pub fn execve(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let start = ctx.task.fs().places().cwd.clone();
    let path = read_path(ctx, args.raw(0))?;
    let names = Names { shown: path.clone(), path };
    run_program(ctx, start, names, (args.raw(1), args.raw(2)), WalkFlags::FOLLOW)
}

/// `execveat(2)`
pub fn execveat(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let flags = args.uint(4);
    if flags & !(linux::AT_EMPTY_PATH | linux::AT_SYMLINK_NOFOLLOW) != 0 {
        return Err(Errno::EINVAL);
    }
    let mut walk = WalkFlags::FOLLOW;
    walk.set(WalkFlags::FOLLOW, flags & linux::AT_SYMLINK_NOFOLLOW == 0);
    walk.set(WalkFlags::EMPTY_PATH, flags & linux::AT_EMPTY_PATH != 0);
    let path = read_path(ctx, args.raw(1))?;
    let (start, shown) = if args.int(0) == linux::AT_FDCWD || path.first() == Some(&b'/') {
        (ctx.task.fs().places().cwd.clone(), path.clone())
    } else {
        let file = ctx.task.file(args.raw(0))?;
        let mut shown = format!("/dev/fd/{}", args.int(0)).into_bytes();
        if !path.is_empty() {
            shown.push(b'/');
            shown.extend_from_slice(&path);
        }
        (crate::vfs::internal::place_of(&file), shown)
    };
    run_program(ctx, start, Names { path, shown }, (args.raw(2), args.raw(3)), walk)
}

/// A program's path, and how it is shown to it.
struct Names {
    path: Vec<u8>,
    shown: Vec<u8>,
}

fn read_path(ctx: &SyscallContext<'_>, addr: u64) -> SysResult<Vec<u8>> {
    ctx.task.mm().read_c_string(addr, linux::PATH_MAX as usize)
}

fn run_program(
    ctx: &mut SyscallContext<'_>,
    start: VfsPath,
    names: Names,
    (argv, envp): (u64, u64),
    flags: WalkFlags,
) -> SysResult<usize> {
    let mm = ctx.task.mm();
    let mut room = MAX_ARGS;
    let mut argv = read_strings(&mm, argv, &mut room)?;
    let envp = read_strings(&mm, envp, &mut room)?;
    if argv.is_empty() {
        argv.push(Vec::new());
    }
    let rlimits = ctx.task.thread_group().rlimits();
    let fixed = ctx.task.attributes().personality & ADDR_NO_RANDOMIZE != 0;
    let program = Program {
        caller: &Caller::of(ctx.task),
        start,
        path: names.path,
        shown: names.shown,
        flags,
        argv,
        envp,
        rlimits: &rlimits,
        randomize: if fixed { Randomize::No } else { Randomize::Yes },
    };
    let image = loader::load(ctx.kernel(), &program)?;
    exec::replace(ctx, image)?;
    Ok(0)
}

/// `personality(2)`
const ADDR_NO_RANDOMIZE: u32 = libc::ADDR_NO_RANDOMIZE as u32;

/// A NULL-terminated array of strings; NULL itself is an empty one. `E2BIG` beyond the limits.
fn read_strings(mm: &Mm, mut addr: u64, room: &mut usize) -> SysResult<Vec<Vec<u8>>> {
    let mut strings = Vec::new();
    if addr == 0 {
        return Ok(strings);
    }
    loop {
        let at: u64 = mm.copy_in(addr)?;
        if at == 0 {
            return Ok(strings);
        }
        let string = mm.read_c_string(at, MAX_ARG.min(*room)).map_err(|errno| match errno {
            Errno::ENAMETOOLONG => Errno::E2BIG,
            other => other,
        })?;
        *room = room.checked_sub(string.len() + 9).ok_or(Errno::E2BIG)?;
        strings.push(string);
        addr = addr.checked_add(8).ok_or(Errno::EFAULT)?;
    }
}

/// `exit(2)`: ends the thread.
pub fn exit(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    ctx.local.after = AfterCall::Exit(ExitStatus::Exited(args.raw(0) as u8));
    Ok(0)
}

/// `exit_group(2)`: ends the process.
pub fn exit_group(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let status = ctx.task.thread_group().exit(ExitStatus::Exited(args.raw(0) as u8));
    ctx.local.after = AfterCall::Exit(status);
    Ok(0)
}

/// `wait4(2)`
pub fn wait4(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let (pid, status_at, options, usage_at) = (args.int(0), args.raw(1), args.uint(2), args.raw(3));
    let known = linux::WNOHANG
        | linux::WUNTRACED
        | linux::WCONTINUED
        | linux::__WNOTHREAD
        | linux::__WCLONE
        | linux::__WALL;
    if options & !known != 0 {
        return Err(Errno::EINVAL);
    }
    if pid == i32::MIN {
        return Err(Errno::ESRCH);
    }
    let which = match pid {
        -1 => Which::Any,
        0 => Which::Job(Some(ctx.task.thread_group().process_group())),
        1.. => Which::Pid(pid),
        _ => Which::Job(job_of(ctx.task, pid.saturating_neg())),
    };
    let options = WaitOptions::new(which, options | linux::WEXITED);
    let Some(report) = reap::wait(ctx, &options)? else { return Ok(0) };
    let mm = ctx.task.mm();
    if status_at != 0 {
        mm.copy_out(status_at, &report.wait_status())?;
    }
    write_usage(&mm, usage_at, &report)?;
    pid_result(report.pid)
}

fn job_of(task: &Task, number: i32) -> Option<Arc<crate::task::ProcessGroup>> {
    task.pid_namespace()?.process_group(number)
}

/// `struct rusage` with the times; what is not counted is 0.
fn write_usage(mm: &Mm, addr: u64, report: &Report) -> SysResult {
    if addr == 0 {
        return Ok(());
    }
    mm.copy_out(addr, &report.usage.to_raw())
}

/// `waitid(2)`
pub fn waitid(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let (kind, id, info_at, options, usage_at) =
        (args.uint(0), args.raw(1), args.raw(2), args.uint(3), args.raw(4));
    let states = linux::WEXITED | linux::WSTOPPED | linux::WCONTINUED;
    let known =
        states | linux::WNOHANG | linux::WNOWAIT | linux::__WNOTHREAD | linux::__WCLONE | linux::__WALL;
    if options & !known != 0 || options & states == 0 {
        return Err(Errno::EINVAL);
    }
    let number = id as i32;
    let mut no_hang = options & linux::WNOHANG != 0;
    let which = match kind {
        linux::P_ALL => Which::Any,
        linux::P_PID if number > 0 => Which::Pid(number),
        linux::P_PGID if number > 0 => Which::Job(job_of(ctx.task, number)),
        linux::P_PGID if number == 0 => Which::Job(Some(ctx.task.thread_group().process_group())),
        linux::P_PIDFD if number >= 0 => {
            let file = ctx.task.file(id)?;
            no_hang |= file.nonblocking();
            let group = file.ops_as::<PidFd>().ok_or(Errno::EBADF)?.thread_group().clone();
            Which::Exactly(group)
        }
        _ => return Err(Errno::EINVAL),
    };
    let found = reap::wait(ctx, &WaitOptions { no_hang, ..WaitOptions::new(which, options) })?;
    let nonblocking_pidfd = no_hang && options & linux::WNOHANG == 0;
    if found.is_none() && nonblocking_pidfd {
        return Err(Errno::EAGAIN);
    }
    let mm = ctx.task.mm();
    if let Some(report) = &found {
        write_usage(&mm, usage_at, report)?;
    }
    if info_at != 0 {
        mm.write_bytes(info_at, &wait_info(found.as_ref()))?;
    }
    Ok(0)
}

/// The `siginfo_t` of `waitid`; all zero when nothing was found.
fn wait_info(report: Option<&Report>) -> [u8; SIGINFO_SIZE] {
    let Some(report) = report else { return [0; SIGINFO_SIZE] };
    let (code, status) = report.code_and_status();
    let fields = SigFields::Child { pid: report.pid, uid: report.uid, status, utime: 0, stime: 0 };
    SigInfo { signal: Signal::CHLD, errno: 0, code, fields }.to_bytes()
}

/// `getpid(2)`
pub fn getpid(ctx: &mut SyscallContext<'_>, _: &Args) -> SysResult<usize> {
    pid_result(ctx.task.thread_group().pid().own())
}

/// `gettid(2)`
pub fn gettid(ctx: &mut SyscallContext<'_>, _: &Args) -> SysResult<usize> {
    pid_result(ctx.task.tid())
}

/// `getppid(2)`: 0 for a parent outside of the pid namespace.
pub fn getppid(ctx: &mut SyscallContext<'_>, _: &Args) -> SysResult<usize> {
    let namespace = ctx.task.pid_namespace().ok_or(Errno::ESRCH)?;
    let parent = ctx.task.thread_group().parent();
    pid_result(parent.map_or(0, |parent| parent.pid().number_in(&namespace)))
}

fn process_by(ctx: &SyscallContext<'_>, pid: i32) -> SysResult<Arc<crate::task::ThreadGroup>> {
    if pid == 0 {
        return Ok(ctx.task.thread_group().clone());
    }
    let task = ctx.task.pid_namespace().and_then(|namespace| namespace.task(pid));
    task.map(|task| task.thread_group().clone()).ok_or(Errno::ESRCH)
}

/// `getpgid(2)`
pub fn getpgid(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let group = process_by(ctx, args.int(0))?;
    let namespace = ctx.task.pid_namespace().ok_or(Errno::ESRCH)?;
    pid_result(group.process_group().pid().number_in(&namespace))
}

/// `getpgrp(2)`
pub fn getpgrp(ctx: &mut SyscallContext<'_>, _: &Args) -> SysResult<usize> {
    getpgid(ctx, &Args::default())
}

/// `setpgid(2)`
pub fn setpgid(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    ctx.task.set_process_group(args.int(0), args.int(1))?;
    Ok(0)
}

/// `getsid(2)`
pub fn getsid(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let group = process_by(ctx, args.int(0))?;
    let namespace = ctx.task.pid_namespace().ok_or(Errno::ESRCH)?;
    pid_result(group.process_group().session().pid().number_in(&namespace))
}

/// `setsid(2)`
pub fn setsid(ctx: &mut SyscallContext<'_>, _: &Args) -> SysResult<usize> {
    pid_result(ctx.task.thread_group().set_session()?)
}

/// `set_tid_address(2)`
pub fn set_tid_address(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    ctx.local.clear_child_tid = args.raw(0);
    pid_result(ctx.task.tid())
}

/// The neighbours of `ARCH_SET_FS` in `asm/prctl.h`, which the bindings leave out.
const ARCH_SET_GS: u32 = linux::ARCH_SET_FS - 1;
const ARCH_GET_FS: u32 = linux::ARCH_SET_FS + 1;
const ARCH_GET_GS: u32 = linux::ARCH_SET_FS + 2;
const ARCH_GET_CPUID: u32 = linux::ARCH_SET_FS + 0xf;
const ARCH_SET_CPUID: u32 = linux::ARCH_SET_FS + 0x10;

/// `arch_prctl(2)`
pub fn arch_prctl(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let (code, addr) = (args.uint(0), args.raw(1));
    let user = |addr: u64| if addr >= crate::platform::GVA_END { Err(Errno::EPERM) } else { Ok(addr) };
    match code {
        linux::ARCH_SET_FS => ctx.local.registers.fs_base = user(addr)?,
        ARCH_SET_GS => ctx.local.registers.gs_base = user(addr)?,
        ARCH_GET_FS => ctx.task.mm().copy_out(addr, &ctx.local.registers.fs_base)?,
        // `cpuid` works, and this processor cannot make it fault.
        ARCH_GET_CPUID => return Ok(1),
        ARCH_SET_CPUID => return Err(Errno::ENODEV),
        ARCH_GET_GS => ctx.task.mm().copy_out(addr, &ctx.local.registers.gs_base)?,
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

/// `pidfd_open(2)`
pub fn pidfd_open(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let (pid, flags) = (args.int(0), args.uint(1));
    if flags & !linux::O_NONBLOCK != 0 || pid <= 0 {
        return Err(Errno::EINVAL);
    }
    let namespace = ctx.task.pid_namespace().ok_or(Errno::ESRCH)?;
    let task = namespace.task(pid).ok_or(Errno::ESRCH)?;
    if !task.is_leader() {
        return Err(Errno::EINVAL);
    }
    let nonblocking = if flags != 0 { OpenFlags::NONBLOCK } else { OpenFlags::empty() };
    let file = pidfd::open(ctx, task.thread_group(), nonblocking);
    let limit = ctx.task.rlimit(Resource::Nofile).soft;
    Ok(ctx.task.files().install(file, true, 0, limit)?.index())
}

/// `pidfd_getfd(2)`: a descriptor of another process. Who may do that may also trace it.
pub fn pidfd_getfd(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    if args.uint(2) != 0 {
        return Err(Errno::EINVAL);
    }
    let file = ctx.task.file(args.raw(0))?;
    let group = file.ops_as::<PidFd>().ok_or(Errno::EBADF)?.thread_group().clone();
    let target = group.leader().ok_or(Errno::ESRCH)?;
    if target.is_exiting() {
        return Err(Errno::ESRCH);
    }
    if !may_trace(ctx.task, &target) {
        return Err(Errno::EPERM);
    }
    let found = target.files().get(Fd::from_arg(args.raw(1))?)?;
    let limit = ctx.task.rlimit(Resource::Nofile).soft;
    Ok(ctx.task.files().install(found, true, 0, limit)?.index())
}

/// `ptrace_may_access`: the same ids and no more rights, or `CAP_SYS_PTRACE`.
pub(crate) fn may_trace(who: &Arc<Task>, target: &Arc<Task>) -> bool {
    if Arc::ptr_eq(who.thread_group(), target.thread_group()) {
        return true;
    }
    let (mine, theirs) = (who.credentials(), target.credentials());
    let same_user = [theirs.uid, theirs.euid, theirs.suid].iter().all(|id| *id == mine.uid);
    let same_group = [theirs.gid, theirs.egid, theirs.sgid].iter().all(|id| *id == mine.gid);
    let no_more_rights = mine.permitted.contains(theirs.permitted) && target.attributes().dumpable;
    (same_user && same_group && no_more_rights) || mine.has(crate::task::Capability::SYS_PTRACE)
}
