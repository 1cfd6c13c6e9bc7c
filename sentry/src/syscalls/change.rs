//! Changing files: mode, owner, times, size, allocation; and bringing them to stable storage.

use linux_raw_sys::general as linux;

use super::Args;
use super::path_args::{self, at_flags, offset, open_file, path, path_at, place_of};
use super::rw::size_limit;
use crate::errno::{Errno, SysResult};
use crate::task::SyscallContext;
use crate::time::Timespec;
use crate::vfs::attributes::{MAX_SIZE, NewTimes, clear_set_id};
use crate::vfs::{Access, FileType, SetTime, WalkFlags, notify};

/// `chmod(const char *path, mode_t mode)`
pub fn chmod(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let caller = path_args::caller(ctx);
    let place = path(ctx, args.raw(0))?.lookup(&caller, WalkFlags::FOLLOW)?;
    caller.chmod(&place, args.uint(1))?;
    Ok(0)
}

/// `fchmod(int fd, mode_t mode)`
pub fn fchmod(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = open_file(ctx, args.raw(0))?;
    path_args::caller(ctx).chmod(&place_of(&file), args.uint(1))?;
    Ok(0)
}

/// `fchmodat(int dirfd, const char *path, mode_t mode)`
pub fn fchmodat(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let caller = path_args::caller(ctx);
    let arg = path_at(ctx, args.raw(0), args.raw(1))?;
    caller.chmod(&arg.lookup(&caller, WalkFlags::FOLLOW)?, args.uint(2))?;
    Ok(0)
}

/// `fchmodat2(int dirfd, const char *path, mode_t mode, int flags)`
pub fn fchmodat2(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let walk = at_flags(args.uint(3), linux::AT_SYMLINK_NOFOLLOW | linux::AT_EMPTY_PATH)?;
    let caller = path_args::caller(ctx);
    let arg = path_at(ctx, args.raw(0), args.raw(1))?;
    caller.chmod(&arg.lookup(&caller, walk)?, args.uint(2))?;
    Ok(0)
}

/// An id argument; -1 leaves it alone.
fn id(raw: u32) -> Option<u32> {
    (raw != u32::MAX).then_some(raw)
}

fn chown_path(ctx: &SyscallContext<'_>, args: &Args, walk: WalkFlags) -> SysResult<usize> {
    let caller = path_args::caller(ctx);
    let place = path(ctx, args.raw(0))?.lookup(&caller, walk)?;
    caller.chown(&place, id(args.uint(1)), id(args.uint(2)))?;
    Ok(0)
}

/// `chown(const char *path, uid_t uid, gid_t gid)`
pub fn chown(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    chown_path(ctx, args, WalkFlags::FOLLOW)
}

/// `lchown(const char *path, uid_t uid, gid_t gid)`
pub fn lchown(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    chown_path(ctx, args, WalkFlags::empty())
}

/// `fchown(int fd, uid_t uid, gid_t gid)`
pub fn fchown(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = open_file(ctx, args.raw(0))?;
    path_args::caller(ctx).chown(&place_of(&file), id(args.uint(1)), id(args.uint(2)))?;
    Ok(0)
}

/// `fchownat(int dirfd, const char *path, uid_t uid, gid_t gid, int flags)`
pub fn fchownat(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let walk = at_flags(args.uint(4), linux::AT_SYMLINK_NOFOLLOW | linux::AT_EMPTY_PATH)?;
    let caller = path_args::caller(ctx);
    let arg = path_at(ctx, args.raw(0), args.raw(1))?;
    caller.chown(&arg.lookup(&caller, walk)?, id(args.uint(2)), id(args.uint(3)))?;
    Ok(0)
}

/// Both times now, as a null pointer asks for.
const NOW: NewTimes = NewTimes { atime: Some(SetTime::Now), mtime: Some(SetTime::Now) };

/// One `timespec` of `utimensat`.
fn nanosecond_time([sec, nsec]: [i64; 2]) -> SysResult<Option<SetTime>> {
    match nsec {
        _ if nsec == i64::from(linux::UTIME_NOW) => Ok(Some(SetTime::Now)),
        _ if nsec == i64::from(linux::UTIME_OMIT) => Ok(None),
        0..1_000_000_000 => Ok(Some(SetTime::At(Timespec { sec, nsec: nsec as u32 }))),
        _ => Err(Errno::EINVAL),
    }
}

/// One `timeval` of `utimes`.
fn microsecond_time([sec, usec]: [i64; 2]) -> SysResult<Option<SetTime>> {
    match usec {
        0..1_000_000 => Ok(Some(SetTime::At(Timespec { sec, nsec: usec as u32 * 1000 }))),
        _ => Err(Errno::EINVAL),
    }
}

fn read_times(
    ctx: &SyscallContext<'_>,
    addr: u64,
    convert: fn([i64; 2]) -> SysResult<Option<SetTime>>,
) -> SysResult<NewTimes> {
    if addr == 0 {
        return Ok(NOW);
    }
    let [atime, mtime]: [[i64; 2]; 2] = ctx.task.mm().copy_in(addr)?;
    Ok(NewTimes { atime: convert(atime)?, mtime: convert(mtime)? })
}

/// `utimensat(int dirfd, const char *path, const struct timespec times[2], int flags)`; a null path means `dirfd` itself.
pub fn utimensat(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let times = read_times(ctx, args.raw(2), nanosecond_time)?;
    if times.atime.is_none() && times.mtime.is_none() {
        return Ok(0);
    }
    let caller = path_args::caller(ctx);
    let flags = args.uint(3);
    if args.raw(1) == 0 && args.int(0) != linux::AT_FDCWD {
        if flags != 0 {
            return Err(Errno::EINVAL);
        }
        let file = open_file(ctx, args.raw(0))?;
        caller.set_times(&place_of(&file), times)?;
        return Ok(0);
    }
    let walk = at_flags(flags, linux::AT_SYMLINK_NOFOLLOW | linux::AT_EMPTY_PATH)?;
    let arg = path_at(ctx, args.raw(0), args.raw(1))?;
    caller.set_times(&arg.lookup(&caller, walk)?, times)?;
    Ok(0)
}

/// `futimesat(int dirfd, const char *path, const struct timeval times[2])`
pub fn futimesat(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let times = read_times(ctx, args.raw(2), microsecond_time)?;
    let caller = path_args::caller(ctx);
    let place = if args.raw(1) == 0 {
        place_of(&*open_file(ctx, args.raw(0))?)
    } else {
        path_at(ctx, args.raw(0), args.raw(1))?.lookup(&caller, WalkFlags::FOLLOW)?
    };
    caller.set_times(&place, times)?;
    Ok(0)
}

/// `utimes(const char *path, const struct timeval times[2])`
pub fn utimes(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let times = read_times(ctx, args.raw(1), microsecond_time)?;
    let caller = path_args::caller(ctx);
    let place = path(ctx, args.raw(0))?.lookup(&caller, WalkFlags::FOLLOW)?;
    caller.set_times(&place, times)?;
    Ok(0)
}

/// `utime(const char *path, const struct utimbuf *times)`
pub fn utime(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let times = if args.raw(1) == 0 {
        NOW
    } else {
        let [atime, mtime]: [i64; 2] = ctx.task.mm().copy_in(args.raw(1))?;
        let at = |sec| Some(SetTime::At(Timespec { sec, nsec: 0 }));
        NewTimes { atime: at(atime), mtime: at(mtime) }
    };
    let caller = path_args::caller(ctx);
    let place = path(ctx, args.raw(0))?.lookup(&caller, WalkFlags::FOLLOW)?;
    caller.set_times(&place, times)?;
    Ok(0)
}

/// The size a file may be given: within `RLIMIT_FSIZE` if it grows.
fn check_size(ctx: &SyscallContext<'_>, old: u64, new: u64) -> SysResult {
    if new > old {
        size_limit(ctx, new.saturating_sub(1))?;
    }
    Ok(())
}

/// `truncate(const char *path, off_t length)`
pub fn truncate(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let size = offset(args, 1)?;
    let caller = path_args::caller(ctx);
    let place = path(ctx, args.raw(0))?.lookup(&caller, WalkFlags::FOLLOW)?;
    if place.inode().file_type() == FileType::Regular {
        place.inode().permission(&caller.credentials, Access::WRITE)?;
        check_size(ctx, place.inode().attr()?.size, size)?;
    }
    caller.truncate(&place, size)?;
    Ok(0)
}

/// `ftruncate(int fd, off_t length)`
pub fn ftruncate(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let size = offset(args, 1)?;
    let file = open_file(ctx, args.raw(0))?;
    if file.inode().file_type() == FileType::Regular && file.flags().writable() {
        check_size(ctx, file.inode().attr()?.size, size)?;
    }
    path_args::caller(ctx).truncate_file(&file, size)?;
    Ok(0)
}

/// `fallocate(int fd, int mode, off_t offset, off_t length)`
pub fn fallocate(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = open_file(ctx, args.raw(0))?;
    let (mode, offset, len) = (args.uint(1), offset(args, 2)?, offset(args, 3)?);
    if len == 0 {
        return Err(Errno::EINVAL);
    }
    if !file.flags().writable() {
        return Err(Errno::EBADF);
    }
    match file.inode().file_type() {
        FileType::Regular => {}
        FileType::Fifo => return Err(Errno::ESPIPE),
        FileType::Directory => return Err(Errno::EISDIR),
        _ => return Err(Errno::ENODEV),
    }
    let end = offset.checked_add(len).filter(|end| *end <= MAX_SIZE).ok_or(Errno::EFBIG)?;
    if mode & linux::FALLOC_FL_KEEP_SIZE == 0 {
        check_size(ctx, file.inode().attr()?.size, end)?;
    }
    clear_set_id(&**file.inode(), &ctx.task.credentials())?;
    file.ops().fallocate(&file, mode, offset, len)?;
    if let Some(path) = file.path() {
        notify::accessed_by_name(path.dentry(), linux::IN_MODIFY);
    }
    Ok(0)
}

fn sync_file(ctx: &SyscallContext<'_>, args: &Args, data_only: bool) -> SysResult<usize> {
    let file = open_file(ctx, args.raw(0))?;
    file.ops().fsync(&file, data_only)?;
    Ok(0)
}

/// `fsync(int fd)`
pub fn fsync(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    sync_file(ctx, args, false)
}

/// `fdatasync(int fd)`
pub fn fdatasync(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    sync_file(ctx, args, true)
}

/// `sync_file_range(int fd, off_t offset, off_t length, unsigned flags)`
pub fn sync_file_range(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = open_file(ctx, args.raw(0))?;
    let known =
        linux::SYNC_FILE_RANGE_WAIT_BEFORE | linux::SYNC_FILE_RANGE_WRITE | linux::SYNC_FILE_RANGE_WAIT_AFTER;
    let (offset, len) = (offset(args, 1)?, offset(args, 2)?);
    if args.uint(3) & !known != 0 || offset.checked_add(len).is_none_or(|end| end > MAX_SIZE) {
        return Err(Errno::EINVAL);
    }
    match file.inode().file_type() {
        FileType::Regular | FileType::BlockDevice | FileType::Directory | FileType::Symlink => {}
        _ => return Err(Errno::ESPIPE),
    }
    file.ops().fsync(&file, true)?;
    Ok(0)
}

/// `sync(void)`
pub fn sync(ctx: &mut SyscallContext<'_>, _args: &Args) -> SysResult<usize> {
    for superblock in ctx.task.namespaces().mount.superblocks() {
        // Linux reports no errors here either.
        let _ = superblock.fs().sync();
    }
    Ok(0)
}

/// `syncfs(int fd)`
pub fn syncfs(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = open_file(ctx, args.raw(0))?;
    file.inode().file_system()?.sync()?;
    Ok(0)
}

/// `fadvise64(int fd, off_t offset, size_t length, int advice)`
pub fn fadvise64(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = open_file(ctx, args.raw(0))?;
    if file.inode().file_type() == FileType::Fifo {
        return Err(Errno::ESPIPE);
    }
    let known = linux::POSIX_FADV_NORMAL..=linux::POSIX_FADV_NOREUSE;
    if (args.raw(2) as i64) < 0 || !known.contains(&args.uint(3)) {
        return Err(Errno::EINVAL);
    }
    Ok(0)
}

/// `readahead(int fd, off_t offset, size_t count)`
pub fn readahead(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = open_file(ctx, args.raw(0))?;
    if !file.flags().readable() {
        return Err(Errno::EBADF);
    }
    match file.inode().file_type() {
        FileType::Regular | FileType::BlockDevice => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}
