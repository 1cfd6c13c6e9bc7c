//! Making, moving and removing names.

use linux_raw_sys::general as linux;

use super::Args;
use super::path_args::{self, PathArg, path, path_at, read_path};
use crate::errno::{Errno, SysResult};
use crate::task::{Capability, SyscallContext};
use crate::vfs::{Caller, Device, NodeKind, RenameFlags, WalkFlags};

/// `mkdir(const char *path, mode_t mode)`
pub fn mkdir(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let caller = path_args::caller(ctx);
    let arg = path(ctx, args.raw(0))?;
    caller.mkdir(arg.start(&caller), &arg.text, args.uint(1))?;
    Ok(0)
}

/// `mkdirat(int dirfd, const char *path, mode_t mode)`
pub fn mkdirat(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let caller = path_args::caller(ctx);
    let arg = path_at(ctx, args.raw(0), args.raw(1))?;
    caller.mkdir(arg.start(&caller), &arg.text, args.uint(2))?;
    Ok(0)
}

fn make_node(caller: &Caller<'_>, arg: &PathArg, mode: u32, device: u64) -> SysResult<usize> {
    let device = Device::decode(device & u64::from(u32::MAX));
    let kind = match mode & linux::S_IFMT {
        0 | linux::S_IFREG => {
            caller.create(arg.start(caller), &arg.text, mode)?;
            return Ok(0);
        }
        linux::S_IFIFO => NodeKind::Fifo,
        linux::S_IFSOCK => NodeKind::Socket,
        linux::S_IFCHR => NodeKind::CharDevice(device),
        linux::S_IFBLK => NodeKind::BlockDevice(device),
        linux::S_IFDIR => return Err(Errno::EPERM),
        _ => return Err(Errno::EINVAL),
    };
    caller.mknod(arg.start(caller), &arg.text, mode, kind)?;
    Ok(0)
}

/// `mknod(const char *path, mode_t mode, dev_t dev)`
pub fn mknod(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let caller = path_args::caller(ctx);
    let arg = path(ctx, args.raw(0))?;
    make_node(&caller, &arg, args.uint(1), args.raw(2))
}

/// `mknodat(int dirfd, const char *path, mode_t mode, dev_t dev)`
pub fn mknodat(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let caller = path_args::caller(ctx);
    let arg = path_at(ctx, args.raw(0), args.raw(1))?;
    make_node(&caller, &arg, args.uint(2), args.raw(3))
}

/// `rmdir(const char *path)`
pub fn rmdir(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let caller = path_args::caller(ctx);
    let arg = path(ctx, args.raw(0))?;
    caller.rmdir(arg.start(&caller), &arg.text)?;
    Ok(0)
}

/// `unlink(const char *path)`
pub fn unlink(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let caller = path_args::caller(ctx);
    let arg = path(ctx, args.raw(0))?;
    caller.unlink(arg.start(&caller), &arg.text)?;
    Ok(0)
}

/// `unlinkat(int dirfd, const char *path, int flags)`
pub fn unlinkat(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let flags = args.uint(2);
    if flags & !linux::AT_REMOVEDIR != 0 {
        return Err(Errno::EINVAL);
    }
    let caller = path_args::caller(ctx);
    let arg = path_at(ctx, args.raw(0), args.raw(1))?;
    if flags & linux::AT_REMOVEDIR != 0 {
        caller.rmdir(arg.start(&caller), &arg.text)?;
    } else {
        caller.unlink(arg.start(&caller), &arg.text)?;
    }
    Ok(0)
}

fn rename_args(caller: &Caller<'_>, old: &PathArg, new: &PathArg, flags: u32) -> SysResult<usize> {
    let flags = RenameFlags::from_bits(flags).ok_or(Errno::EINVAL)?;
    caller.rename((old.start(caller), &old.text), (new.start(caller), &new.text), flags)?;
    Ok(0)
}

/// `rename(const char *old, const char *new)`
pub fn rename(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let caller = path_args::caller(ctx);
    let old = path(ctx, args.raw(0))?;
    let new = path(ctx, args.raw(1))?;
    rename_args(&caller, &old, &new, 0)
}

/// `renameat(int olddirfd, const char *old, int newdirfd, const char *new)`
pub fn renameat(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let caller = path_args::caller(ctx);
    let old = path_at(ctx, args.raw(0), args.raw(1))?;
    let new = path_at(ctx, args.raw(2), args.raw(3))?;
    rename_args(&caller, &old, &new, 0)
}

/// `renameat2(int olddirfd, const char *old, int newdirfd, const char *new, unsigned flags)`
pub fn renameat2(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let caller = path_args::caller(ctx);
    let old = path_at(ctx, args.raw(0), args.raw(1))?;
    let new = path_at(ctx, args.raw(2), args.raw(3))?;
    rename_args(&caller, &old, &new, args.uint(4))
}

fn make_link(caller: &Caller<'_>, old: &PathArg, new: &PathArg, flags: WalkFlags) -> SysResult<usize> {
    let target = old.lookup(caller, flags)?;
    caller.link(&target, new.start(caller), &new.text)?;
    Ok(0)
}

/// `link(const char *old, const char *new)`
pub fn link(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let caller = path_args::caller(ctx);
    let old = path(ctx, args.raw(0))?;
    let new = path(ctx, args.raw(1))?;
    make_link(&caller, &old, &new, WalkFlags::empty())
}

/// `linkat(int olddirfd, const char *old, int newdirfd, const char *new, int flags)`
pub fn linkat(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let flags = args.uint(4);
    if flags & !(linux::AT_SYMLINK_FOLLOW | linux::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let caller = path_args::caller(ctx);
    let mut walk = WalkFlags::empty();
    walk.set(WalkFlags::FOLLOW, flags & linux::AT_SYMLINK_FOLLOW != 0);
    if flags & linux::AT_EMPTY_PATH != 0 {
        if !caller.credentials.has(Capability::DAC_READ_SEARCH) {
            return Err(Errno::ENOENT);
        }
        walk |= WalkFlags::EMPTY_PATH;
    }
    let old = path_at(ctx, args.raw(0), args.raw(1))?;
    let new = path_at(ctx, args.raw(2), args.raw(3))?;
    make_link(&caller, &old, &new, walk)
}

/// `symlink(const char *target, const char *path)`
pub fn symlink(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let caller = path_args::caller(ctx);
    let target = read_path(ctx, args.raw(0))?;
    let arg = path(ctx, args.raw(1))?;
    caller.symlink(&target, arg.start(&caller), &arg.text)?;
    Ok(0)
}

/// `symlinkat(const char *target, int dirfd, const char *path)`
pub fn symlinkat(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let caller = path_args::caller(ctx);
    let target = read_path(ctx, args.raw(0))?;
    let arg = path_at(ctx, args.raw(1), args.raw(2))?;
    caller.symlink(&target, arg.start(&caller), &arg.text)?;
    Ok(0)
}
