//! `fcntl`, `flock`, `ioctl`.

use std::sync::Arc;

use linux_raw_sys::general as linux;
use linux_raw_sys::ioctl as linux_ioctl;

use super::Args;
use super::layout::Flock;
use super::path_args::open_file;
use crate::errno::{Errno, SysResult};
use crate::fs::pipe::PipeEnd;
use crate::fs::tmpfs::memfd;
use crate::task::{Capability, Resource, SyscallContext, block};
use crate::vfs::locks::{Blocked, FileLocks, LAST, Mode, Owner, Record, Waiting};
use crate::vfs::{Fd, File, FileType, OpenFlags};
use crate::wait::PollEvents;

/// `fcntl(int fd, int command, unsigned long arg)`
pub fn fcntl(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let (command, arg) = (args.uint(1), args.raw(2));
    let file = ctx.task.file(args.raw(0))?;
    let path_only = file.flags().contains(OpenFlags::PATH);
    match command {
        linux::F_DUPFD | linux::F_DUPFD_CLOEXEC => return duplicate(ctx, file, arg, command),
        linux::F_GETFD | linux::F_SETFD => return descriptor_flags(ctx, args),
        linux::F_GETFL => return Ok(file.flags().bits() as usize),
        _ if path_only => return Err(Errno::EBADF),
        _ => {}
    }
    match command {
        linux::F_SETFL => set_status(ctx, &file, arg),
        linux::F_GETLK | linux::F_SETLK | linux::F_SETLKW => {
            let owner = Owner::Process(ctx.task.files().id());
            record_lock(ctx, &file, command, arg, owner)
        }
        linux::F_OFD_GETLK => record_lock(ctx, &file, linux::F_GETLK, arg, Owner::description(&file)),
        linux::F_OFD_SETLK => record_lock(ctx, &file, linux::F_SETLK, arg, Owner::description(&file)),
        linux::F_OFD_SETLKW => record_lock(ctx, &file, linux::F_SETLKW, arg, Owner::description(&file)),
        linux::F_GETPIPE_SZ => pipe_end(&file).map(|end| end.pipe().capacity()),
        linux::F_SETPIPE_SZ => {
            let size = u64::from(u32::try_from(arg as i32).map_err(|_| Errno::EINVAL)?);
            pipe_end(&file)?.pipe().set_capacity(size, &ctx.task.credentials())
        }
        linux::F_ADD_SEALS => memfd::add_seals(&file, args.uint(2)).map(|()| 0),
        linux::F_GET_SEALS => memfd::seals(&file).map(|seals| seals.bits() as usize),
        linux::F_GETLEASE => Ok(linux::F_UNLCK as usize),
        // Nobody grants leases: as on a file that somebody else has open.
        linux::F_SETLEASE => match args.uint(2) {
            linux::F_UNLCK | linux::F_RDLCK | linux::F_WRLCK => Err(Errno::EAGAIN),
            _ => Err(Errno::EINVAL),
        },
        _ => ownership(ctx, &file, command, arg),
    }
}

fn duplicate(ctx: &SyscallContext<'_>, file: Arc<File>, at_least: u64, command: u32) -> SysResult<usize> {
    let limit = ctx.task.rlimit(Resource::Nofile).soft;
    let at_least = u32::try_from(at_least).map_err(|_| Errno::EINVAL)?;
    if u64::from(at_least) >= limit {
        return Err(Errno::EINVAL);
    }
    let cloexec = command == linux::F_DUPFD_CLOEXEC;
    ctx.task.files().install(file, cloexec, at_least, limit).map(Fd::index)
}

fn descriptor_flags(ctx: &SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let fd = Fd::from_arg(args.raw(0))?;
    let files = ctx.task.files();
    if args.uint(1) == linux::F_GETFD {
        return Ok(usize::from(files.close_on_exec(fd)?));
    }
    files.set_close_on_exec(fd, args.raw(2) & u64::from(linux::FD_CLOEXEC) != 0)?;
    Ok(0)
}

fn set_status(ctx: &SyscallContext<'_>, file: &Arc<File>, arg: u64) -> SysResult<usize> {
    let flags = OpenFlags::from_bits_truncate(arg as u32);
    if (flags - file.flags()).contains(OpenFlags::NOATIME) {
        let who = ctx.task.credentials();
        if file.inode().attr()?.uid != who.fsuid && !who.has(Capability::FOWNER) {
            return Err(Errno::EPERM);
        }
    }
    file.set_status_flags(flags);
    Ok(0)
}

fn pipe_end(file: &Arc<File>) -> SysResult<&PipeEnd> {
    file.ops_as().ok_or(Errno::EBADF)
}

/// `F_SETOWN` and its relatives: who gets `SIGIO`.
fn ownership(ctx: &SyscallContext<'_>, file: &Arc<File>, command: u32, arg: u64) -> SysResult<usize> {
    let mut owner = file.owner.lock();
    match command {
        linux::F_GETOWN => {
            // A group shows as its negated number, as a value and not as an error.
            Ok(owner.pid as isize as usize)
        }
        linux::F_SETOWN => {
            let pid = arg as i32;
            if pid == i32::MIN {
                return Err(Errno::EINVAL);
            }
            check_owner(ctx, pid)?;
            owner.pid = pid;
            owner.thread = false;
            Ok(0)
        }
        linux::F_GETOWN_EX => {
            let (kind, pid) = match owner.pid {
                pid if pid < 0 => (linux::F_OWNER_PGRP, pid.saturating_neg()),
                pid if owner.thread => (linux::F_OWNER_TID, pid),
                pid => (linux::F_OWNER_PID, pid),
            };
            ctx.task.mm().copy_out(arg, &[kind as i32, pid])?;
            Ok(0)
        }
        linux::F_SETOWN_EX => {
            let [kind, pid]: [i32; 2] = ctx.task.mm().copy_in(arg)?;
            let (pid, thread) = match u32::try_from(kind).map_err(|_| Errno::EINVAL)? {
                linux::F_OWNER_TID => (pid, true),
                linux::F_OWNER_PID => (pid, false),
                linux::F_OWNER_PGRP => (pid.checked_neg().ok_or(Errno::EINVAL)?, false),
                _ => return Err(Errno::EINVAL),
            };
            check_owner(ctx, pid)?;
            owner.pid = pid;
            owner.thread = thread;
            Ok(0)
        }
        linux::F_GETSIG => Ok(owner.signal.unsigned_abs() as usize),
        linux::F_SETSIG => {
            let signal = i32::try_from(arg).ok().filter(|signal| (0..=64).contains(signal));
            owner.signal = signal.ok_or(Errno::EINVAL)?;
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

fn check_owner(ctx: &SyscallContext<'_>, pid: i32) -> SysResult {
    let Some(namespace) = ctx.task.pid_namespace() else { return Err(Errno::ESRCH) };
    let exists = match pid {
        0 => true,
        pid if pid < 0 => namespace.process_group(pid.saturating_neg()).is_some(),
        pid => namespace.task(pid).is_some(),
    };
    if exists { Ok(()) } else { Err(Errno::ESRCH) }
}

/// A lock request in absolute bytes; `None` for the mode unlocks.
struct LockRequest {
    mode: Option<Mode>,
    first: u64,
    last: u64,
}

fn decode_lock(file: &File, raw: &Flock) -> SysResult<LockRequest> {
    let mode = match u32::from(raw.kind as u16) {
        linux::F_RDLCK => Some(Mode::Shared),
        linux::F_WRLCK => Some(Mode::Exclusive),
        linux::F_UNLCK => None,
        _ => return Err(Errno::EINVAL),
    };
    let base = match u32::from(raw.whence as u16) {
        linux::SEEK_SET => 0,
        linux::SEEK_CUR => file.with_position(|position| *position),
        linux::SEEK_END => file.inode().attr()?.size,
        _ => return Err(Errno::EINVAL),
    };
    let base = i64::try_from(base).map_err(|_| Errno::EOVERFLOW)?;
    let start = base.checked_add(raw.start).ok_or(Errno::EOVERFLOW)?;
    let (first, last) = match raw.len {
        0 => (start, LAST as i64),
        len if len > 0 => (start, start.checked_add(len - 1).ok_or(Errno::EOVERFLOW)?),
        len => (start.checked_add(len).ok_or(Errno::EINVAL)?, start.saturating_sub(1)),
    };
    let unsigned = |value: i64| u64::try_from(value).map_err(|_| Errno::EINVAL);
    Ok(LockRequest { mode, first: unsigned(first)?, last: unsigned(last)? })
}

fn record_lock(
    ctx: &mut SyscallContext<'_>,
    file: &Arc<File>,
    command: u32,
    addr: u64,
    owner: Owner,
) -> SysResult<usize> {
    let raw: Flock = ctx.task.mm().copy_in(addr)?;
    let of_description = matches!(owner, Owner::Description(_));
    if of_description && raw.pid != 0 {
        return Err(Errno::EINVAL);
    }
    let request = decode_lock(file, &raw)?;
    let locks = file.locks();
    let pid = if of_description { -1 } else { ctx.task.thread_group().pid().own() };
    let (first, last) = (request.first, request.last);
    let wanted = |mode| Record { owner, pid, mode, first, last };
    if command == linux::F_GETLK {
        let mode = request.mode.ok_or(Errno::EINVAL)?;
        let answer = describe_conflict(locks.conflict(&wanted(mode)), raw);
        ctx.task.mm().copy_out(addr, &answer)?;
        return Ok(0);
    }
    let flags = file.flags();
    match request.mode {
        None => return locks.unlock(owner, first, last).map(|()| 0),
        Some(Mode::Shared) if !flags.readable() => return Err(Errno::EBADF),
        Some(Mode::Exclusive) if !flags.writable() => return Err(Errno::EBADF),
        Some(mode) if command == linux::F_SETLK => match locks.try_set(wanted(mode)) {
            Ok(()) => {}
            Err(Blocked::By(_)) => return Err(Errno::EAGAIN),
            Err(Blocked::Full) => return Err(Errno::ENOLCK),
        },
        Some(mode) => wait_for_lock(ctx, locks, wanted(mode))?,
    }
    // The descriptor may have been closed meanwhile by another thread, whose release must not be lost.
    let still_open =
        |table: &crate::vfs::FdTable| table.list().iter().any(|(_, open)| Arc::ptr_eq(open, file));
    if !of_description && Arc::strong_count(file) == 1 && !still_open(&ctx.task.files()) {
        let _ = locks.unlock(owner, first, last);
        return Err(Errno::EBADF);
    }
    Ok(0)
}

fn wait_for_lock(ctx: &mut SyscallContext<'_>, locks: &FileLocks, wanted: Record) -> SysResult {
    let mut waiting: Option<Waiting> = None;
    block::until(ctx, locks.queue(), PollEvents::IN, None, |_| {
        drop(waiting.take());
        match locks.try_set(wanted) {
            Ok(()) => Ok(()),
            Err(Blocked::Full) => Err(Errno::ENOLCK),
            Err(Blocked::By(holder)) => {
                // Only processes can be in a circle: a description has no thread of its own.
                if matches!((wanted.owner, holder), (Owner::Process(_), Owner::Process(_))) {
                    waiting = Some(Waiting::enter(wanted.owner, holder)?);
                }
                Err(Errno::EAGAIN)
            }
        }
    })
}

fn describe_conflict(conflict: Option<Record>, asked: Flock) -> Flock {
    let Some(record) = conflict else {
        return Flock { kind: linux::F_UNLCK as i16, ..asked };
    };
    let kind = match record.mode {
        Mode::Shared => linux::F_RDLCK,
        Mode::Exclusive => linux::F_WRLCK,
    };
    let len = if record.last >= LAST { 0 } else { (record.last - record.first).saturating_add(1) };
    Flock {
        kind: kind as i16,
        whence: linux::SEEK_SET as i16,
        pad: 0,
        start: record.first as i64,
        len: len as i64,
        pid: record.pid,
        tail: asked.tail,
    }
}

/// `flock(int fd, int operation)`
pub fn flock(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let operation = args.uint(1);
    if operation & linux::LOCK_MAND != 0 {
        // Mandatory locks: gone from Linux, which accepts them and does nothing.
        return Ok(0);
    }
    let mode = match operation & !linux::LOCK_NB {
        linux::LOCK_SH => Some(Mode::Shared),
        linux::LOCK_EX => Some(Mode::Exclusive),
        linux::LOCK_UN => None,
        _ => return Err(Errno::EINVAL),
    };
    let file = open_file(ctx, args.raw(0))?;
    let locks = file.locks();
    match mode {
        None => locks.flock_release(Arc::as_ptr(&file).addr()),
        Some(mode) if operation & linux::LOCK_NB != 0 => locks.try_flock(&file, mode)?,
        Some(mode) => {
            block::until(ctx, locks.queue(), PollEvents::IN, None, |_| locks.try_flock(&file, mode))?;
        }
    }
    Ok(0)
}

/// `ioctl(int fd, unsigned command, unsigned long arg)`
pub fn ioctl(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = open_file(ctx, args.raw(0))?;
    let (command, arg) = (args.uint(1), args.raw(2));
    match command {
        linux_ioctl::FIOCLEX | linux_ioctl::FIONCLEX => {
            let fd = Fd::from_arg(args.raw(0))?;
            ctx.task.files().set_close_on_exec(fd, command == linux_ioctl::FIOCLEX)?;
            Ok(0)
        }
        linux_ioctl::FIONBIO | linux_ioctl::FIOASYNC => {
            let on: i32 = ctx.task.mm().copy_in(arg)?;
            let flag = if command == linux_ioctl::FIONBIO { OpenFlags::NONBLOCK } else { OpenFlags::ASYNC };
            let mut flags = file.flags();
            flags.set(flag, on != 0);
            file.set_status_flags(flags);
            Ok(0)
        }
        linux_ioctl::FIONREAD if file.inode().file_type() == FileType::Regular && file.ops().seekable() => {
            let position = file.with_position(|position| *position);
            let left = file.inode().attr()?.size.saturating_sub(position);
            ctx.task.mm().copy_out(arg, &i32::try_from(left).unwrap_or(i32::MAX))?;
            Ok(0)
        }
        _ => file.ops().ioctl(ctx, &file, command, arg),
    }
}
