//! Paths and descriptors as arguments of calls.

use std::sync::Arc;

use linux_raw_sys::general as linux;

use super::Args;
use crate::errno::{Errno, SysResult};
use crate::task::SyscallContext;
use crate::vfs::walk::PATH_MAX;
use crate::vfs::{Caller, File, OpenFlags, VfsPath, WalkFlags, internal};

/// A path argument: where it starts and its text.
pub(crate) struct PathArg {
    /// Where a relative path starts, if that is not the working directory.
    pub start: Option<VfsPath>,
    /// The text.
    pub text: Vec<u8>,
}

impl PathArg {
    /// What it names.
    pub fn lookup(&self, caller: &Caller<'_>, flags: WalkFlags) -> SysResult<VfsPath> {
        caller.lookup(self.start(caller), &self.text, flags)
    }

    /// Where a relative path starts.
    pub fn start<'a>(&'a self, caller: &'a Caller<'_>) -> &'a VfsPath {
        self.start.as_ref().unwrap_or_else(|| caller.cwd())
    }
}

/// Reads the path at `addr`. `ENAMETOOLONG` beyond `PATH_MAX`, `EFAULT`.
pub(crate) fn read_path(ctx: &SyscallContext<'_>, addr: u64) -> SysResult<Vec<u8>> {
    ctx.own.mm.read_c_string(addr, PATH_MAX)
}

/// The path at `addr`, relative to the directory `dirfd`.
pub(crate) fn path_at(ctx: &SyscallContext<'_>, dirfd: u64, addr: u64) -> SysResult<PathArg> {
    let text = read_path(ctx, addr)?;
    let absolute = text.first() == Some(&b'/');
    let start = if absolute { None } else { directory(ctx, dirfd)? };
    Ok(PathArg { start, text })
}

/// The path at `addr`, relative to the working directory.
pub(crate) fn path(ctx: &SyscallContext<'_>, addr: u64) -> SysResult<PathArg> {
    Ok(PathArg { start: None, text: read_path(ctx, addr)? })
}

/// Where `dirfd` leads: a descriptor, or nowhere else than the working directory (`AT_FDCWD`). Whether it is a directory shows in the walk.
pub(crate) fn directory(ctx: &SyscallContext<'_>, dirfd: u64) -> SysResult<Option<VfsPath>> {
    if dirfd as i32 == linux::AT_FDCWD {
        return Ok(None);
    }
    Ok(Some(internal::place_of(&*ctx.task.file(dirfd)?)))
}

/// The walk flags of a `*at` call's `AT_*` flags: follows links unless `AT_SYMLINK_NOFOLLOW`. `EINVAL` for flags not in
/// `known`.
pub(crate) fn at_flags(flags: u32, known: u32) -> SysResult<WalkFlags> {
    if flags & !known != 0 {
        return Err(Errno::EINVAL);
    }
    let mut walk = WalkFlags::empty();
    walk.set(WalkFlags::FOLLOW, flags & linux::AT_SYMLINK_NOFOLLOW == 0);
    walk.set(WalkFlags::EMPTY_PATH, flags & linux::AT_EMPTY_PATH != 0);
    Ok(walk)
}

/// A descriptor's description for calls that `O_PATH` ones do not allow (`EBADF`).
pub(crate) fn open_file(ctx: &SyscallContext<'_>, fd: u64) -> SysResult<Arc<File>> {
    let file = ctx.task.file(fd)?;
    if file.flags().contains(OpenFlags::PATH) { Err(Errno::EBADF) } else { Ok(file) }
}

/// Where an open file is, or a place of its own if it has no name.
pub(crate) fn place_of(file: &File) -> VfsPath {
    internal::place_of(file)
}

/// The caller's view of the tree.
pub(crate) fn caller<'a>(ctx: &SyscallContext<'a>) -> Caller<'a> {
    Caller::new(ctx.own.credentials.clone(), &ctx.own.fs, Some(ctx.task))
}

/// An argument of 64 bits in two registers on old machines; here the whole in one. `EINVAL` if negative.
pub(crate) fn offset(args: &Args, n: usize) -> SysResult<u64> {
    u64::try_from(args.raw(n) as i64).map_err(|_| Errno::EINVAL)
}
