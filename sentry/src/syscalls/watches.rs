//! inotify's calls.

use std::sync::Arc;

use linux_raw_sys::general as linux;

use super::Args;
use super::path_args::{self, path};
use super::pipes::install;
use crate::errno::{Errno, SysResult};
use crate::fs::anonymous::{AnonymousInode, Pseudo, next_ino};
use crate::task::SyscallContext;
use crate::vfs::inotify::{Inotify, VALID_MASK};
use crate::vfs::{Access, Fd, OpenFlags, WalkFlags};

fn make(ctx: &SyscallContext<'_>, flags: OpenFlags) -> SysResult<usize> {
    if !(OpenFlags::CLOEXEC | OpenFlags::NONBLOCK).contains(flags) {
        return Err(Errno::EINVAL);
    }
    let file = AnonymousInode::open(ctx, Pseudo::Anonymous, next_ino(), Inotify::new(), flags);
    install(ctx, file, flags).map(Fd::index)
}

/// `inotify_init(void)`
pub fn inotify_init(ctx: &mut SyscallContext<'_>, _args: &Args) -> SysResult<usize> {
    make(ctx, OpenFlags::empty())
}

/// `inotify_init1(int flags)`
pub fn inotify_init1(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    make(ctx, OpenFlags::from_bits_retain(args.uint(0)))
}

/// `inotify_add_watch(int fd, const char *path, uint32_t mask)`
pub fn inotify_add_watch(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let mask = args.uint(2);
    let both = linux::IN_MASK_ADD | linux::IN_MASK_CREATE;
    if mask & VALID_MASK == 0 {
        return Err(Errno::EINVAL);
    }
    let file = Arc::clone(&ctx.task.file(args.raw(0))?);
    if mask & both == both {
        return Err(Errno::EINVAL);
    }
    let instance = file.ops_as::<Inotify>().ok_or(Errno::EINVAL)?;
    let caller = path_args::caller(ctx);
    let mut walk = WalkFlags::empty();
    walk.set(WalkFlags::FOLLOW, mask & linux::IN_DONT_FOLLOW == 0);
    walk.set(WalkFlags::DIRECTORY, mask & linux::IN_ONLYDIR != 0);
    let place = path(ctx, args.raw(1))?.lookup(&caller, walk)?;
    place.inode().permission(&caller.credentials, Access::READ)?;
    let wd = instance.add_watch(&place, mask & VALID_MASK)?;
    usize::try_from(wd).map_err(|_| Errno::ENOSPC)
}

/// `inotify_rm_watch(int fd, int wd)`
pub fn inotify_rm_watch(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = ctx.task.file(args.raw(0))?;
    file.ops_as::<Inotify>().ok_or(Errno::EINVAL)?.remove_watch(args.int(1))?;
    Ok(0)
}
