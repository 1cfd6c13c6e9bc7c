//! Reading and writing.
//!
//! Every call is an attempt that is repeated while the file says `EAGAIN` ([`blocking`]). What has been moved counts:
//! an error or signal after the first byte gives the count.

use std::sync::Arc;

use linux_raw_sys::general as linux;

use super::Args;
use super::exitless::LONG;
use super::path_args::offset;
use crate::errno::{Errno, SysResult};
use crate::fs::eventfd::EventFd;
use crate::io::{IoSrc, KernelSrc};
use crate::mm::UserIo;
use crate::net::patience::Patience;
use crate::net::socket::SocketFile;
use crate::task::signal::{SigInfo, Signal};
use crate::task::{Resource, SyscallContext, block};
use crate::vfs::attributes::{MAX_SIZE, clear_set_id};
use crate::vfs::{File, FileType, OpenFlags, Whence, notify, times};
use crate::wait::{self, PollEvents};

/// Runs `attempt`, again and again while it says `EAGAIN`, unless the file is non-blocking.
pub(crate) fn blocking<T>(
    ctx: &mut SyscallContext<'_>,
    file: &Arc<File>,
    events: PollEvents,
    mut attempt: impl FnMut(&mut SyscallContext<'_>) -> SysResult<T>,
) -> SysResult<T> {
    let Some(queue) = file.ops().wait_queue().filter(|_| !file.nonblocking()) else { return attempt(ctx) };
    match SocketFile::of(file) {
        Ok(socket) => {
            let reads = events.intersects(PollEvents::READABLE);
            let timeout = if reads { socket.receive_timeout() } else { socket.send_timeout() };
            Patience::new(file, false, timeout).until(ctx, queue, events, attempt)
        }
        Err(_) => block::until(ctx, queue, events, None, attempt),
    }
}

/// Whether a write that fails with `EPIPE` also sends the signal: of sockets only streams do.
fn breaks_loudly(file: &File) -> bool {
    SocketFile::of(file).map_or(true, |socket| socket.is_stream())
}

/// A write to an eventfd: the number is read once, then the counter is tried until it has room.
fn write_counter(ctx: &mut SyscallContext<'_>, file: &Arc<File>, src: &mut UserIo<'_>) -> SysResult<usize> {
    let mut number = [0; size_of::<u64>()];
    if src.remaining() < number.len() {
        return Err(Errno::EINVAL);
    }
    if src.take(&mut number)? < number.len() {
        return Err(Errno::EFAULT);
    }
    blocking(ctx, file, PollEvents::WRITABLE, |_| file.write(&mut KernelSrc::new(&number)))
}

/// Records a read of `file`.
pub(crate) fn after_read(file: &File) {
    if let Some(path) = file.path() {
        if !file.flags().contains(OpenFlags::NOATIME) {
            times::accessed(path);
        }
        notify::accessed_by_name(path.dentry(), linux::IN_ACCESS);
    }
}

/// Records a write to `file`.
pub(crate) fn after_write(file: &File) {
    if let Some(path) = file.path() {
        notify::accessed_by_name(path.dentry(), linux::IN_MODIFY);
    }
}

/// Where a transfer happens.
#[derive(Clone, Copy)]
enum At {
    /// At the description's position.
    Position,
    /// Here, leaving the position alone.
    Offset(u64),
}

/// `EINVAL` for a transfer that would go beyond the largest offset.
fn check_end(at: At, io: &UserIo<'_>) -> SysResult {
    let At::Offset(offset) = at else { return Ok(()) };
    let end = offset.checked_add(io.left() as u64).filter(|end| *end <= MAX_SIZE);
    end.map(drop).ok_or(Errno::EINVAL)
}

fn read_into(
    ctx: &mut SyscallContext<'_>,
    file: &Arc<File>,
    mut dst: UserIo<'_>,
    at: At,
) -> SysResult<usize> {
    check_end(at, &dst)?;
    let done = blocking(ctx, file, PollEvents::READABLE, |_| match at {
        At::Position => file.read(&mut dst),
        At::Offset(offset) => file.read_at(&mut dst, offset),
    })?;
    if done > 0 {
        after_read(file);
    }
    Ok(done)
}

/// What `RLIMIT_FSIZE` leaves of a write.
struct Limited<'a> {
    inner: &'a mut dyn IoSrc,
    left: usize,
}

impl Limited<'_> {
    fn counted(&mut self, moved: SysResult<usize>) -> SysResult<usize> {
        let moved = moved?;
        self.left = self.left.saturating_sub(moved);
        Ok(moved)
    }
}

impl IoSrc for Limited<'_> {
    fn remaining(&self) -> usize {
        self.inner.remaining().min(self.left)
    }

    fn take(&mut self, buf: &mut [u8]) -> SysResult<usize> {
        let len = buf.len().min(self.left);
        let moved = self.inner.take(buf.get_mut(..len).unwrap_or_default());
        self.counted(moved)
    }

    fn write_to_host(
        &mut self,
        fd: std::os::fd::BorrowedFd<'_>,
        offset: Option<u64>,
        len: usize,
    ) -> SysResult<usize> {
        let moved = self.inner.write_to_host(fd, offset, len.min(self.left));
        self.counted(moved)
    }

    fn take_to_arena(&mut self, gpa: crate::platform::Gpa, len: usize) -> SysResult<usize> {
        let moved = self.inner.take_to_arena(gpa, len.min(self.left));
        self.counted(moved)
    }
}

/// Bytes that `RLIMIT_FSIZE` allows to be written to `file` from `at` on; `EFBIG` and `SIGXFSZ` if none.
pub(crate) fn size_limit(ctx: &SyscallContext<'_>, at: u64) -> SysResult<u64> {
    let limit = ctx.task.rlimit(Resource::Fsize).soft;
    if limit == u64::MAX {
        return Ok(u64::MAX);
    }
    if at >= limit {
        ctx.task.send_signal(SigInfo::kernel(Signal::XFSZ));
        return Err(Errno::EFBIG);
    }
    Ok(limit.saturating_sub(at))
}

/// Where a write would start.
fn write_start(file: &File, at: At) -> SysResult<u64> {
    if file.flags().contains(OpenFlags::APPEND) {
        return Ok(file.inode().attr()?.size);
    }
    Ok(match at {
        At::Position => file.with_position(|position| *position),
        At::Offset(offset) => offset,
    })
}

/// One write, of a regular file with its rules about limits and set-id bits.
fn write_once(ctx: &SyscallContext<'_>, file: &Arc<File>, src: &mut dyn IoSrc, at: At) -> SysResult<usize> {
    let write = |src: &mut dyn IoSrc| match at {
        At::Position => file.write(src),
        At::Offset(offset) => file.write_at(src, offset),
    };
    if file.inode().file_type() != FileType::Regular || src.remaining() == 0 || !file.flags().writable() {
        return write(src);
    }
    clear_set_id(&**file.inode(), &ctx.own.credentials)?;
    if ctx.task.rlimit(Resource::Fsize).soft == u64::MAX {
        return write(src);
    }
    let left = size_limit(ctx, write_start(file, at)?)?;
    write(&mut Limited { inner: src, left: usize::try_from(left).unwrap_or(usize::MAX) })
}

/// Writes all of `src` that can be written, waiting where the file wants all of it. `SIGPIPE` goes with `EPIPE`.
fn write_from(
    ctx: &mut SyscallContext<'_>,
    file: &Arc<File>,
    mut src: UserIo<'_>,
    at: At,
) -> SysResult<usize> {
    check_end(at, &src)?;
    if file.ops_as::<EventFd>().is_some() {
        return write_counter(ctx, file, &mut src);
    }
    let mut total = ctx.take_progress();
    src.advance(total);
    let result = loop {
        let result = blocking(ctx, file, PollEvents::WRITABLE, |ctx| write_once(ctx, file, &mut src, at));
        match result {
            Ok(done) => {
                total = total.saturating_add(done);
                let goes_on =
                    done > 0 && src.remaining() > 0 && file.ops().writes_all() && !file.nonblocking();
                if !goes_on {
                    break Ok(total);
                }
            }
            Err(error) => {
                if let Some(later) = ctx.goes_on_by_exit(total) {
                    return Err(later);
                }
                if error == Errno::EPIPE && breaks_loudly(file) {
                    ctx.task.send_signal(SigInfo::kernel(Signal::PIPE));
                }
                break if total > 0 { Ok(total) } else { Err(error) };
            }
        }
    };
    if total > 0 {
        after_write(file);
    }
    result
}

fn buffer<'a>(ctx: &SyscallContext<'a>, args: &Args) -> SysResult<UserIo<'a>> {
    UserIo::buffer(&ctx.own.mm, args.raw(1), args.raw(2))
}

pub(super) fn vector<'a>(ctx: &SyscallContext<'a>, args: &Args) -> SysResult<UserIo<'a>> {
    UserIo::vector(&ctx.own.mm, args.raw(1), args.raw(2))
}

/// The buffers of a write. One that dispatchers had better leave alone says so here: they cannot tell before.
fn gathered<'a>(ctx: &SyscallContext<'a>, args: &Args) -> SysResult<UserIo<'a>> {
    let src = vector(ctx, args)?;
    let is_long = src.left() as u64 > LONG;
    if is_long && wait::decline() { Err(Errno::ERESTARTSYS) } else { Ok(src) }
}

fn readable(ctx: &SyscallContext<'_>, args: &Args) -> SysResult<Arc<File>> {
    let file = ctx.task.file(args.raw(0))?;
    if file.flags().readable() { Ok(file) } else { Err(Errno::EBADF) }
}

fn writable(ctx: &SyscallContext<'_>, args: &Args) -> SysResult<Arc<File>> {
    let file = ctx.task.file(args.raw(0))?;
    if file.flags().writable() { Ok(file) } else { Err(Errno::EBADF) }
}

/// The description for a call with an offset: `ESPIPE` for a stream.
fn positioned(file: Arc<File>) -> SysResult<Arc<File>> {
    if file.ops().seekable() { Ok(file) } else { Err(Errno::ESPIPE) }
}

/// `read(int fd, void *buf, size_t count)`
pub fn read(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = readable(ctx, args)?;
    let dst = buffer(ctx, args)?;
    read_into(ctx, &file, dst, At::Position)
}

/// `write(int fd, const void *buf, size_t count)`
pub fn write(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = writable(ctx, args)?;
    let src = buffer(ctx, args)?;
    write_from(ctx, &file, src, At::Position)
}

/// `pread64(int fd, void *buf, size_t count, loff_t offset)`
pub fn pread64(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let offset = offset(args, 3)?;
    let file = positioned(ctx.task.file(args.raw(0))?)?;
    let dst = buffer(ctx, args)?;
    read_into(ctx, &file, dst, At::Offset(offset))
}

/// `pwrite64(int fd, const void *buf, size_t count, loff_t offset)`
pub fn pwrite64(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let offset = offset(args, 3)?;
    let file = positioned(ctx.task.file(args.raw(0))?)?;
    let src = buffer(ctx, args)?;
    write_from(ctx, &file, src, At::Offset(offset))
}

/// `readv(int fd, const struct iovec *iov, int count)`
pub fn readv(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = readable(ctx, args)?;
    let dst = vector(ctx, args)?;
    read_into(ctx, &file, dst, At::Position)
}

/// `writev(int fd, const struct iovec *iov, int count)`
pub fn writev(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = writable(ctx, args)?;
    let src = gathered(ctx, args)?;
    write_from(ctx, &file, src, At::Position)
}

/// `preadv(int fd, const struct iovec *iov, int count, off_t low, off_t high)`
pub fn preadv(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let offset = offset(args, 3)?;
    let file = positioned(ctx.task.file(args.raw(0))?)?;
    let dst = vector(ctx, args)?;
    read_into(ctx, &file, dst, At::Offset(offset))
}

/// `pwritev(int fd, const struct iovec *iov, int count, off_t low, off_t high)`
pub fn pwritev(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let offset = offset(args, 3)?;
    let file = positioned(ctx.task.file(args.raw(0))?)?;
    let src = gathered(ctx, args)?;
    write_from(ctx, &file, src, At::Offset(offset))
}

/// Flags of `preadv2` and `pwritev2` that change nothing here: everything is as durable as it gets at once.
const HINTS: u32 = linux::RWF_HIPRI | linux::RWF_DSYNC | linux::RWF_SYNC;

/// The place of a `preadv2` or `pwritev2`: -1 is the position.
fn place2(ctx: &SyscallContext<'_>, args: &Args) -> SysResult<(Arc<File>, At)> {
    let file = ctx.task.file(args.raw(0))?;
    if args.raw(3) as i64 == -1 {
        return Ok((file, At::Position));
    }
    let offset = offset(args, 3)?;
    Ok((positioned(file)?, At::Offset(offset)))
}

/// `preadv2(int fd, const struct iovec *iov, int count, off_t low, off_t high, rwf_t flags)`
pub fn preadv2(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let flags = args.uint(5);
    let (file, at) = place2(ctx, args)?;
    if flags & !(HINTS | linux::RWF_NOWAIT) != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let mut dst = vector(ctx, args)?;
    if flags & linux::RWF_NOWAIT == 0 {
        return read_into(ctx, &file, dst, at);
    }
    let done = match at {
        At::Position => file.read(&mut dst)?,
        At::Offset(offset) => file.read_at(&mut dst, offset)?,
    };
    after_read(&file);
    Ok(done)
}

/// `pwritev2(int fd, const struct iovec *iov, int count, off_t low, off_t high, rwf_t flags)`
pub fn pwritev2(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let flags = args.uint(5);
    let (file, at) = place2(ctx, args)?;
    if flags & !HINTS != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let src = gathered(ctx, args)?;
    write_from(ctx, &file, src, at)
}

/// `lseek(int fd, off_t offset, int whence)`
pub fn lseek(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = super::path_args::open_file(ctx, args.raw(0))?;
    let whence = match args.uint(2) {
        linux::SEEK_SET => Whence::Start,
        linux::SEEK_CUR => Whence::Current,
        linux::SEEK_END => Whence::End,
        linux::SEEK_DATA => Whence::Data,
        linux::SEEK_HOLE => Whence::Hole,
        _ => return Err(Errno::EINVAL),
    };
    let position = file.seek(args.raw(1) as i64, whence)?;
    usize::try_from(position).map_err(|_| Errno::EOVERFLOW)
}
