//! Opening, closing and duplicating descriptors.

use linux_raw_sys::general as linux;
use zerocopy::FromBytes;

use super::Args;
use super::path_args::{self, path, path_at};
use super::pipes::install;
use crate::errno::{Errno, SysResult};
use crate::task::{Resource, SyscallContext};
use crate::vfs::open::open as open_path;
use crate::vfs::{Fd, OpenFlags, OpenHow, WalkFlags};

fn finish_open(ctx: &mut SyscallContext<'_>, arg: &path_args::PathArg, how: &OpenHow) -> SysResult<usize> {
    let file = open_path(ctx, arg.start.as_ref(), &arg.text, how)?;
    install(ctx, file, how.flags).map(Fd::index)
}

/// `open(const char *path, int flags, mode_t mode)`
pub fn open(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let how = OpenHow::from_open(args.uint(1), args.uint(2))?;
    let arg = path(ctx, args.raw(0))?;
    finish_open(ctx, &arg, &how)
}

/// `creat(const char *path, mode_t mode)`
pub fn creat(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let flags = OpenFlags::CREAT | OpenFlags::WRONLY | OpenFlags::TRUNC;
    let how = OpenHow::from_open(flags.bits(), args.uint(1))?;
    let arg = path(ctx, args.raw(0))?;
    finish_open(ctx, &arg, &how)
}

/// `openat(int dirfd, const char *path, int flags, mode_t mode)`
pub fn openat(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let how = OpenHow::from_open(args.uint(2), args.uint(3))?;
    let arg = path_at(ctx, args.raw(0), args.raw(1))?;
    finish_open(ctx, &arg, &how)
}

/// Bytes of `struct open_how` in its first version.
const OPEN_HOW_SIZE: usize = size_of::<linux::open_how>();

/// `openat2(int dirfd, const char *path, struct open_how *how, size_t size)`
pub fn openat2(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let how = read_open_how(ctx, args.raw(2), args.raw(3))?;
    let mut arg = path_at(ctx, args.raw(0), args.raw(1))?;
    if how.resolve.intersects(WalkFlags::BENEATH | WalkFlags::IN_ROOT) {
        // Here an absolute path starts at the descriptor, too.
        arg.start = path_args::directory(ctx, args.raw(0))?;
    }
    finish_open(ctx, &arg, &how)
}

/// A structure that may grow: what is beyond the known size must be zero (`E2BIG`).
fn read_open_how(ctx: &SyscallContext<'_>, addr: u64, size: u64) -> SysResult<OpenHow> {
    let size = usize::try_from(size).map_err(|_| Errno::E2BIG)?;
    if size < OPEN_HOW_SIZE {
        return Err(Errno::EINVAL);
    }
    if size > 4096 {
        return Err(Errno::E2BIG);
    }
    let mut raw = vec![0; size];
    ctx.task.mm().read_bytes(addr, &mut raw)?;
    let (known, rest) = raw.split_at_checked(OPEN_HOW_SIZE).ok_or(Errno::EINVAL)?;
    if rest.iter().any(|byte| *byte != 0) {
        return Err(Errno::E2BIG);
    }
    let [flags, mode, resolve] = <[u64; 3]>::read_from_bytes(known).map_err(|_| Errno::EINVAL)?;
    OpenHow::from_open2(flags, mode, resolve)
}

/// `close(int fd)`
pub fn close(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    ctx.task.files().close(Fd::from_arg(args.raw(0))?)?;
    Ok(0)
}

/// `close_range(unsigned first, unsigned last, unsigned flags)`
pub fn close_range(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let (first, last, flags) = (args.uint(0), args.uint(1), args.uint(2));
    let (unshare, cloexec) = (libc::CLOSE_RANGE_UNSHARE, libc::CLOSE_RANGE_CLOEXEC);
    if flags & !(unshare | cloexec) != 0 || first > last {
        return Err(Errno::EINVAL);
    }
    if flags & unshare != 0 {
        let old = ctx.task.files();
        let own = if flags & cloexec != 0 { old.fork() } else { old.fork_without(first, last) };
        ctx.task.set_files(std::sync::Arc::new(own));
        drop(old);
    }
    let files = ctx.task.files();
    if flags & cloexec != 0 {
        files.mark_close_on_exec(first, last);
    } else {
        files.close_range(first, last);
    }
    Ok(0)
}

/// `dup(int fd)`
pub fn dup(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = ctx.task.file(args.raw(0))?;
    install(ctx, file, OpenFlags::empty()).map(Fd::index)
}

/// `dup2(int old, int new)`
pub fn dup2(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let old = Fd::from_arg(args.raw(0))?;
    let new = Fd::from_arg(args.raw(1))?;
    if old == new {
        ctx.task.files().get(old)?;
        return Ok(new.index());
    }
    replace(ctx, old, new, OpenFlags::empty())
}

/// `dup3(int old, int new, int flags)`
pub fn dup3(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let flags = OpenFlags::from_bits_retain(args.uint(2));
    if !OpenFlags::CLOEXEC.contains(flags) || args.uint(0) == args.uint(1) {
        return Err(Errno::EINVAL);
    }
    replace(ctx, Fd::from_arg(args.raw(0))?, Fd::from_arg(args.raw(1))?, flags)
}

fn replace(ctx: &SyscallContext<'_>, old: Fd, new: Fd, flags: OpenFlags) -> SysResult<usize> {
    let files = ctx.task.files();
    let file = files.get(old)?;
    let limit = ctx.task.rlimit(Resource::Nofile).soft;
    files.install_at(file, flags.contains(OpenFlags::CLOEXEC), new, limit)?;
    Ok(new.index())
}

/// `memfd_create(const char *name, unsigned flags)`
pub fn memfd_create(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    use crate::fs::tmpfs::{Seals, memfd};
    let flags = args.uint(1);
    let (exec, noexec) = (linux::MFD_EXEC, linux::MFD_NOEXEC_SEAL);
    let huge = linux::MFD_HUGETLB | (linux::MFD_HUGE_MASK << linux::MFD_HUGE_SHIFT);
    let known = linux::MFD_CLOEXEC | linux::MFD_ALLOW_SEALING | exec | noexec | huge;
    let sized = flags & huge != 0 && flags & linux::MFD_HUGETLB == 0;
    if flags & !known != 0 || sized || flags & (exec | noexec) == exec | noexec {
        return Err(Errno::EINVAL);
    }
    // NAME_MAX less the prefix `memfd:`, and the NUL.
    let name = ctx.task.mm().read_c_string(args.raw(0), 250).map_err(|error| match error {
        Errno::ENAMETOOLONG => Errno::EINVAL,
        error => error,
    })?;
    if flags & huge != 0 {
        // No pool of huge pages, as on a host whose pool is empty.
        return Err(Errno::ENOMEM);
    }
    let seals = if flags & noexec != 0 {
        Seals::EXEC
    } else if flags & linux::MFD_ALLOW_SEALING != 0 {
        Seals::empty()
    } else {
        Seals::SEAL
    };
    let file = memfd::create(&path_args::caller(ctx), &name, seals)?;
    let cloexec = if flags & linux::MFD_CLOEXEC != 0 { OpenFlags::CLOEXEC } else { OpenFlags::empty() };
    install(ctx, file, cloexec).map(Fd::index)
}

// The first version of the structure is what the kernel's headers have.
const _: () = assert!(OPEN_HOW_SIZE == size_of::<[u64; 3]>());
