//! `pipe` and `pipe2`.

use std::sync::Arc;

use super::Args;
use crate::errno::{Errno, SysResult};
use crate::fs::anonymous::{AnonymousInode, Pseudo, next_ino};
use crate::fs::pipe::Pipe;
use crate::task::{Resource, SyscallContext};
use crate::vfs::{Fd, File, Inode, OpenFlags};

/// Gives `file` the lowest free descriptor, close-on-exec if `flags` say so. `EMFILE`.
pub(crate) fn install(ctx: &SyscallContext<'_>, file: Arc<File>, flags: OpenFlags) -> SysResult<Fd> {
    let limit = ctx.task.rlimit(Resource::Nofile).soft;
    ctx.task.files().install(file, flags.contains(OpenFlags::CLOEXEC), 0, limit)
}

/// Installs two descriptions and writes their numbers to `int[2]` at `addr`; all or nothing.
pub(crate) fn install_pair(
    ctx: &SyscallContext<'_>,
    files: [Arc<File>; 2],
    flags: OpenFlags,
    addr: u64,
) -> SysResult<usize> {
    let [first, second] = files;
    let table = ctx.task.files();
    let first = install(ctx, first, flags)?;
    let second = match install(ctx, second, flags) {
        Ok(second) => second,
        Err(error) => {
            let _ = table.close(first);
            return Err(error);
        }
    };
    let numbers = [first.index() as i32, second.index() as i32];
    if let Err(error) = ctx.task.mm().copy_out(addr, &numbers) {
        let _ = table.close(first);
        let _ = table.close(second);
        return Err(error);
    }
    Ok(0)
}

/// `pipe(int fds[2])`
pub fn pipe(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    make_pipe(ctx, args.raw(0), OpenFlags::empty())
}

/// `pipe2(int fds[2], int flags)`
pub fn pipe2(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let flags = OpenFlags::from_bits_retain(args.uint(1));
    let known = OpenFlags::CLOEXEC | OpenFlags::NONBLOCK | OpenFlags::DIRECT;
    if !known.contains(flags) {
        return Err(Errno::EINVAL);
    }
    make_pipe(ctx, args.raw(0), flags)
}

fn make_pipe(ctx: &mut SyscallContext<'_>, addr: u64, flags: OpenFlags) -> SysResult<usize> {
    let ino = next_ino();
    let who = ctx.task.credentials();
    let inode = AnonymousInode::new(Pseudo::Pipe, ino, who.fsuid, who.fsgid);
    let (reader, writer) = Pipe::pair(ino);
    // Opening it again through `/proc/self/fd` finds the same pipe.
    inode.attachments().pipe_or(|| reader.pipe().clone());
    let reader = File::new(Arc::new(reader), inode.clone(), None, flags);
    let writer = File::new(Arc::new(writer), inode, None, flags | OpenFlags::WRONLY);
    install_pair(ctx, [reader, writer], flags, addr)
}
