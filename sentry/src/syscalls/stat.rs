//! Looking at files: the `stat` family, `access`, `readlink`, `statfs`.

use linux_raw_sys::general as linux;

use super::Args;
use super::layout::{Stat, Statfs, Statx};
use super::path_args::{self, PathArg, at_flags, path, path_at, place_of};
use crate::errno::{Errno, SysResult};
use crate::task::{Capability, Credentials, SyscallContext};
use crate::vfs::{Access, Attr, Caller, FileType, MountFlags, VfsPath, WalkFlags, times};

fn write_stat(ctx: &SyscallContext<'_>, addr: u64, attr: &Attr) -> SysResult<usize> {
    ctx.own.mm.copy_out(addr, &Stat::from(attr))?;
    Ok(0)
}

fn stat_path(ctx: &SyscallContext<'_>, args: &Args, flags: WalkFlags) -> SysResult<usize> {
    let caller = path_args::caller(ctx);
    let place = path(ctx, args.raw(0))?.lookup(&caller, flags)?;
    write_stat(ctx, args.raw(1), &place.inode().attr()?)
}

/// `stat(const char *path, struct stat *buf)`
pub fn stat(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    stat_path(ctx, args, WalkFlags::FOLLOW)
}

/// `lstat(const char *path, struct stat *buf)`
pub fn lstat(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    stat_path(ctx, args, WalkFlags::empty())
}

/// `fstat(int fd, struct stat *buf)`
pub fn fstat(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = ctx.task.file(args.raw(0))?;
    write_stat(ctx, args.raw(1), &file.inode().attr()?)
}

const STAT_FLAGS: u32 = linux::AT_SYMLINK_NOFOLLOW | linux::AT_NO_AUTOMOUNT | linux::AT_EMPTY_PATH;

/// The path of a call with `AT_EMPTY_PATH`, for which a null pointer is an empty path, too.
fn path_or_empty(ctx: &SyscallContext<'_>, args: &Args, flags: u32) -> SysResult<PathArg> {
    if args.raw(1) == 0 && flags & linux::AT_EMPTY_PATH != 0 {
        let start = path_args::directory(ctx, args.raw(0))?;
        return Ok(PathArg { start, text: Vec::new() });
    }
    path_at(ctx, args.raw(0), args.raw(1))
}

/// `newfstatat(int dirfd, const char *path, struct stat *buf, int flags)`
pub fn newfstatat(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let flags = args.uint(3);
    let walk = at_flags(flags, STAT_FLAGS)?;
    let caller = path_args::caller(ctx);
    let place = path_or_empty(ctx, args, flags)?.lookup(&caller, walk)?;
    write_stat(ctx, args.raw(2), &place.inode().attr()?)
}

/// `statx(int dirfd, const char *path, int flags, unsigned mask, struct statx *buf)`
pub fn statx(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let (flags, mask) = (args.uint(2), args.uint(3));
    let sync = linux::AT_STATX_SYNC_TYPE;
    let walk = at_flags(flags, STAT_FLAGS | sync)?;
    if mask & linux::STATX__RESERVED != 0 || flags & sync == sync {
        return Err(Errno::EINVAL);
    }
    let caller = path_args::caller(ctx);
    let place = path_or_empty(ctx, args, flags)?.lookup(&caller, walk)?;
    let result = Statx::new(&place.inode().attr()?, place.mount().id(), place.is_mount_root());
    ctx.own.mm.copy_out(args.raw(4), &result)?;
    Ok(0)
}

/// The credentials `access` goes by: the real ids, with root's capabilities only for a real root.
fn real_credentials(of: &Credentials) -> Credentials {
    let mut real = of.clone();
    real.fsuid = of.uid;
    real.fsgid = of.gid;
    real.effective = if of.uid == 0 { of.permitted } else { Capability::empty() };
    real
}

fn check_access(caller: &Caller<'_>, place: &VfsPath, mode: u32) -> SysResult {
    let access = Access::from_bits_truncate(mode);
    if access.is_empty() {
        return Ok(());
    }
    let inode = place.inode();
    let regular = inode.file_type() == FileType::Regular;
    if access.contains(Access::EXEC) && regular && place.mount().flags().contains(MountFlags::NOEXEC) {
        return Err(Errno::EACCES);
    }
    inode.permission(&caller.credentials, access)?;
    let special = matches!(
        inode.file_type(),
        FileType::CharDevice | FileType::BlockDevice | FileType::Fifo | FileType::Socket
    );
    if access.contains(Access::WRITE) && !special {
        place.mount().require_writable()?;
    }
    Ok(())
}

fn access_at(ctx: &SyscallContext<'_>, args: &Args, mode: u32, flags: u32) -> SysResult<usize> {
    if mode & !Access::all().bits() != 0 {
        return Err(Errno::EINVAL);
    }
    let known = linux::AT_EACCESS | linux::AT_SYMLINK_NOFOLLOW | linux::AT_EMPTY_PATH;
    let walk = at_flags(flags, known)?;
    let mut caller = path_args::caller(ctx);
    if flags & linux::AT_EACCESS == 0 {
        let own = &caller.credentials;
        let differs =
            own.uid != own.fsuid || own.gid != own.fsgid || own.uid == 0 || !own.effective.is_empty();
        if differs {
            caller.credentials = std::sync::Arc::new(real_credentials(own));
        }
    }
    let place = path_or_empty(ctx, args, flags)?.lookup(&caller, walk)?;
    check_access(&caller, &place, mode)?;
    Ok(0)
}

/// `access(const char *path, int mode)`
pub fn access(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let at = Args([linux::AT_FDCWD as u64, args.raw(0), 0, 0, 0, 0]);
    access_at(ctx, &at, args.uint(1), 0)
}

/// `faccessat(int dirfd, const char *path, int mode)`
pub fn faccessat(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    access_at(ctx, args, args.uint(2), 0)
}

/// `faccessat2(int dirfd, const char *path, int mode, int flags)`
pub fn faccessat2(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    access_at(ctx, args, args.uint(2), args.uint(3))
}

fn read_link(
    ctx: &SyscallContext<'_>,
    caller: &Caller<'_>,
    arg: &PathArg,
    buf: u64,
    size: i32,
) -> SysResult<usize> {
    let size = usize::try_from(size).ok().filter(|size| *size > 0).ok_or(Errno::EINVAL)?;
    let place = arg.lookup(caller, WalkFlags::EMPTY_PATH)?;
    if place.inode().file_type() != FileType::Symlink {
        return Err(if arg.text.is_empty() { Errno::ENOENT } else { Errno::EINVAL });
    }
    times::accessed(&place);
    let text = place.inode().readlink(caller)?;
    let shown = text.get(..size).unwrap_or(&text);
    ctx.own.mm.write_bytes(buf, shown)?;
    Ok(shown.len())
}

/// `readlink(const char *path, char *buf, int size)`
pub fn readlink(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let caller = path_args::caller(ctx);
    let arg = path(ctx, args.raw(0))?;
    if arg.text.is_empty() {
        return Err(Errno::ENOENT);
    }
    read_link(ctx, &caller, &arg, args.raw(1), args.int(2))
}

/// `readlinkat(int dirfd, const char *path, char *buf, int size)`
pub fn readlinkat(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let caller = path_args::caller(ctx);
    let arg = path_at(ctx, args.raw(0), args.raw(1))?;
    read_link(ctx, &caller, &arg, args.raw(2), args.int(3))
}

/// `name_to_handle_at(int dirfd, const char *path, struct file_handle *handle, int *mount_id, int flags)`: no file system
/// here gives handles.
pub fn name_to_handle_at(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let flags = args.uint(4);
    if flags & !(linux::AT_SYMLINK_FOLLOW | linux::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let mut walk = WalkFlags::empty();
    walk.set(WalkFlags::FOLLOW, flags & linux::AT_SYMLINK_FOLLOW != 0);
    walk.set(WalkFlags::EMPTY_PATH, flags & linux::AT_EMPTY_PATH != 0);
    let caller = path_args::caller(ctx);
    path_at(ctx, args.raw(0), args.raw(1))?.lookup(&caller, walk)?;
    Err(Errno::EOPNOTSUPP)
}

/// `ST_*` flags of a mount.
fn statfs_flags(place: &VfsPath) -> u64 {
    let flags = place.mount().flags();
    let pairs = [
        (MountFlags::NOSUID, linux::MS_NOSUID),
        (MountFlags::NODEV, linux::MS_NODEV),
        (MountFlags::NOEXEC, linux::MS_NOEXEC),
        // From here on ST_* and MS_* have different numbers.
        (MountFlags::NOATIME, 1024),
        (MountFlags::NODIRATIME, 2048),
        (MountFlags::RELATIME, 4096),
        (MountFlags::NOSYMFOLLOW, 8192),
    ];
    // ST_VALID: the flags mean something.
    let mut shown = 0x20;
    if place.mount().is_read_only() {
        shown |= linux::MS_RDONLY;
    }
    for (flag, number) in pairs {
        if flags.contains(flag) {
            shown |= number;
        }
    }
    u64::from(shown)
}

fn write_statfs(ctx: &SyscallContext<'_>, place: &VfsPath, addr: u64) -> SysResult<usize> {
    let fs = place.inode().file_system()?;
    let result = Statfs::new(&fs.statfs()?, fs.device().encode(), statfs_flags(place));
    ctx.task.mm().copy_out(addr, &result)?;
    Ok(0)
}

/// `statfs(const char *path, struct statfs *buf)`
pub fn statfs(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let caller = path_args::caller(ctx);
    let place = path(ctx, args.raw(0))?.lookup(&caller, WalkFlags::FOLLOW)?;
    write_statfs(ctx, &place, args.raw(1))
}

/// `fstatfs(int fd, struct statfs *buf)`
pub fn fstatfs(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let place = place_of(&*ctx.task.file(args.raw(0))?);
    write_statfs(ctx, &place, args.raw(1))
}
