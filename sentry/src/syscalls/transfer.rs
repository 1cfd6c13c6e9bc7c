//! Data from one file to another without a detour through the guest: `sendfile`, `copy_file_range`, `splice`, `tee`,
//! `vmsplice`.
//!
//! Bytes go through a buffer of the kernel. What has left the source has reached the destination when a call returns:
//! positions move by what was written.

use std::sync::Arc;

use linux_raw_sys::general as linux;

use super::Args;
use super::path_args::open_file;
use super::rw::{after_read, after_write, blocking, size_limit};
use crate::errno::{Errno, SysResult};
use crate::fs::pipe::splice::{move_between, tee as tee_pipes};
use crate::fs::pipe::{Pipe, PipeEnd};
use crate::io::{KernelDst, KernelSrc};
use crate::mm::MAX_RW_COUNT;
use crate::task::signal::{SigInfo, Signal};
use crate::task::{SyscallContext, block};
use crate::vfs::attributes::{MAX_SIZE, clear_set_id};
use crate::vfs::{File, FileType, OpenFlags};
use crate::wait::PollEvents;

/// Bytes moved at a time.
const CHUNK: usize = 64 << 10;

/// An offset in guest memory, or the file's own position.
enum Cursor {
    Position,
    Guest { addr: u64, at: u64 },
}

impl Cursor {
    fn read(ctx: &SyscallContext<'_>, addr: u64) -> SysResult<Cursor> {
        if addr == 0 {
            return Ok(Cursor::Position);
        }
        let at: i64 = ctx.task.mm().copy_in(addr)?;
        Ok(Cursor::Guest { addr, at: u64::try_from(at).map_err(|_| Errno::EINVAL)? })
    }

    fn at(&self, file: &File) -> u64 {
        match self {
            Cursor::Position => file.with_position(|position| *position),
            Cursor::Guest { at, .. } => *at,
        }
    }

    fn advance(&mut self, file: &File, by: usize) {
        let by = by as u64;
        match self {
            Cursor::Position => file.with_position(|position| *position = position.saturating_add(by)),
            Cursor::Guest { at, .. } => *at = at.saturating_add(by),
        }
    }

    fn write_back(&self, ctx: &SyscallContext<'_>) -> SysResult {
        match self {
            Cursor::Position => Ok(()),
            Cursor::Guest { addr, at } => ctx.task.mm().copy_out(*addr, &(*at as i64)),
        }
    }
}

fn readable(file: Arc<File>) -> SysResult<Arc<File>> {
    if file.flags().readable() { Ok(file) } else { Err(Errno::EBADF) }
}

fn writable(file: Arc<File>) -> SysResult<Arc<File>> {
    if file.flags().writable() { Ok(file) } else { Err(Errno::EBADF) }
}

/// Writes all of `data`, waiting for room; fewer bytes only after an error that came later than the first byte.
fn write_all(
    ctx: &mut SyscallContext<'_>,
    file: &Arc<File>,
    data: &[u8],
    mut at: Option<u64>,
) -> SysResult<usize> {
    let mut src = KernelSrc::new(data);
    let mut done: usize = 0;
    while done < data.len() {
        let step = blocking(ctx, file, PollEvents::WRITABLE, |_| match at {
            Some(at) => file.write_at(&mut src, at),
            None => file.write(&mut src),
        });
        match step {
            Ok(0) => break,
            Ok(step) => {
                done = done.saturating_add(step);
                at = at.map(|at| at.saturating_add(step as u64));
            }
            Err(_) if done > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Moves up to `count` bytes of a seekable file to another file, chunk by chunk.
fn copy(
    ctx: &mut SyscallContext<'_>,
    from: (&Arc<File>, &mut Cursor),
    to: (&Arc<File>, Option<&mut Cursor>),
    count: usize,
) -> SysResult<usize> {
    let (input, input_cursor) = from;
    let (output, mut output_cursor) = to;
    let mut total: usize = 0;
    let mut buf = vec![0; count.min(CHUNK)];
    let result = loop {
        let wanted = count.saturating_sub(total).min(CHUNK);
        let room = buf.get_mut(..wanted).unwrap_or_default();
        let read = match input.read_at(&mut KernelDst::new(room), input_cursor.at(input)) {
            Ok(0) => break Ok(()),
            Ok(read) => read,
            Err(error) => break Err(error),
        };
        let data = buf.get(..read).unwrap_or_default();
        let at = output_cursor.as_ref().map(|cursor| cursor.at(output));
        let written = match write_all(ctx, output, data, at) {
            Ok(written) => written,
            Err(error) => break Err(error),
        };
        total = total.saturating_add(written);
        input_cursor.advance(input, written);
        if let Some(cursor) = output_cursor.as_mut() {
            cursor.advance(output, written);
        }
        if written < read || total >= count {
            break Ok(());
        }
    };
    if total > 0 {
        after_read(input);
        after_write(output);
        return Ok(total);
    }
    if result == Err(Errno::EPIPE) {
        ctx.task.send_signal(SigInfo::kernel(Signal::PIPE));
    }
    result.map(|()| 0)
}

/// `sendfile(int out, int in, off_t *offset, size_t count)`
pub fn sendfile(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let input = readable(open_file(ctx, args.raw(1))?)?;
    let output = writable(open_file(ctx, args.raw(0))?)?;
    let mut cursor = Cursor::read(ctx, args.raw(2))?;
    if i64::try_from(args.raw(3)).is_err() {
        return Err(Errno::EINVAL);
    }
    if !input.ops().seekable() {
        return Err(if matches!(cursor, Cursor::Guest { .. }) { Errno::ESPIPE } else { Errno::EINVAL });
    }
    if input.inode().file_type() == FileType::Directory || output.flags().contains(OpenFlags::APPEND) {
        return Err(Errno::EINVAL);
    }
    let mut count = usize::try_from(args.raw(3)).unwrap_or(MAX_RW_COUNT).min(MAX_RW_COUNT);
    if output.inode().file_type() == FileType::Regular && count > 0 {
        clear_set_id(&**output.inode(), &ctx.task.credentials())?;
        let left = size_limit(ctx, output.with_position(|position| *position))?;
        count = count.min(usize::try_from(left).unwrap_or(usize::MAX));
    }
    let total = copy(ctx, (&input, &mut cursor), (&output, None), count)?;
    cursor.write_back(ctx)?;
    Ok(total)
}

/// `copy_file_range(int in, off_t *in_offset, int out, off_t *out_offset, size_t count, unsigned flags)`
pub fn copy_file_range(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let input = open_file(ctx, args.raw(0))?;
    let output = open_file(ctx, args.raw(2))?;
    let mut from = Cursor::read(ctx, args.raw(1))?;
    let mut to = Cursor::read(ctx, args.raw(3))?;
    if args.uint(5) != 0 {
        return Err(Errno::EINVAL);
    }
    for file in [&input, &output] {
        match file.inode().file_type() {
            FileType::Regular => {}
            FileType::Directory => return Err(Errno::EISDIR),
            _ => return Err(Errno::EINVAL),
        }
    }
    let readable = input.flags().readable();
    if !readable || !output.flags().writable() || output.flags().contains(OpenFlags::APPEND) {
        return Err(Errno::EBADF);
    }
    let mut count = args.raw(4).min(MAX_RW_COUNT as u64);
    let (start, target) = (from.at(&input), to.at(&output));
    if start.checked_add(count).is_none_or(|end| end > MAX_SIZE) || target.checked_add(count).is_none() {
        return Err(Errno::EOVERFLOW);
    }
    count = count.min(input.inode().attr()?.size.saturating_sub(start));
    let overlaps = start < target.saturating_add(count) && target < start.saturating_add(count);
    if Arc::ptr_eq(input.inode(), output.inode()) && overlaps {
        return Err(Errno::EINVAL);
    }
    if count == 0 {
        return Ok(0);
    }
    clear_set_id(&**output.inode(), &ctx.task.credentials())?;
    count = count.min(size_limit(ctx, target)?);
    let count = usize::try_from(count).unwrap_or(MAX_RW_COUNT);
    let total = copy(ctx, (&input, &mut from), (&output, Some(&mut to)), count)?;
    from.write_back(ctx)?;
    to.write_back(ctx)?;
    Ok(total)
}

fn pipe_of(file: &Arc<File>) -> Option<Arc<Pipe>> {
    file.ops_as::<PipeEnd>().map(|end| end.pipe().clone())
}

/// Which side has to become ready.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    In,
    Out,
}

/// Repeats `attempt`, which says with `EAGAIN` which side is not ready, waiting for that side in between.
fn wait_for_sides(
    ctx: &mut SyscallContext<'_>,
    input: &Arc<File>,
    output: &Arc<File>,
    nonblocking: bool,
    mut attempt: impl FnMut() -> Result<usize, (Errno, Side)>,
) -> SysResult<usize> {
    let mut waits_for = match attempt() {
        Ok(done) => return Ok(done),
        Err((Errno::EAGAIN, side)) => side,
        Err((error, _)) => return Err(error),
    };
    loop {
        let (file, events) = match waits_for {
            Side::In => (input, PollEvents::READABLE),
            Side::Out => (output, PollEvents::WRITABLE),
        };
        let Some(queue) = file.ops().wait_queue().filter(|_| !nonblocking && !file.nonblocking()) else {
            return Err(Errno::EAGAIN);
        };
        // `None`: the other side is the one that is not ready now.
        let done = block::until(ctx, queue, events, None, |_| match attempt() {
            Ok(done) => Ok(Some(done)),
            Err((Errno::EAGAIN, side)) if side != waits_for => Ok(None),
            Err((error, _)) => Err(error),
        })?;
        match done {
            Some(done) => return Ok(done),
            None => waits_for = if waits_for == Side::In { Side::Out } else { Side::In },
        }
    }
}

const SPLICE_FLAGS: u32 =
    linux::SPLICE_F_MOVE | linux::SPLICE_F_NONBLOCK | linux::SPLICE_F_MORE | linux::SPLICE_F_GIFT;

/// `EAGAIN` of a transfer between two pipes: the empty one, or the full one.
fn pipe_side(from: &Pipe, error: Errno) -> (Errno, Side) {
    (error, if from.available() == 0 { Side::In } else { Side::Out })
}

/// `splice(int in, off_t *in_offset, int out, off_t *out_offset, size_t len, unsigned flags)`
pub fn splice(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let flags = args.uint(5);
    if flags & !SPLICE_FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    let len = usize::try_from(args.raw(4)).unwrap_or(MAX_RW_COUNT).min(MAX_RW_COUNT);
    if len == 0 {
        return Ok(0);
    }
    let input = readable(open_file(ctx, args.raw(0))?)?;
    let output = writable(open_file(ctx, args.raw(2))?)?;
    let nonblocking = flags & linux::SPLICE_F_NONBLOCK != 0;
    let (from, to) = (pipe_of(&input), pipe_of(&output));
    if (from.is_some() && args.raw(1) != 0) || (to.is_some() && args.raw(3) != 0) {
        return Err(Errno::ESPIPE);
    }
    let result = match (from, to) {
        (Some(from), Some(to)) => wait_for_sides(ctx, &input, &output, nonblocking, || {
            move_between(&from, &to, len).map_err(|error| pipe_side(&from, error))
        }),
        (Some(from), None) => {
            let mut cursor = Cursor::read(ctx, args.raw(3))?;
            splice_out(ctx, (&input, &from), (&output, &mut cursor), len, nonblocking)
        }
        (None, Some(to)) => {
            let mut cursor = Cursor::read(ctx, args.raw(1))?;
            splice_in(ctx, (&input, &mut cursor), (&output, &to), len, nonblocking)
        }
        (None, None) => Err(Errno::EINVAL),
    };
    if result == Err(Errno::EPIPE) {
        ctx.task.send_signal(SigInfo::kernel(Signal::PIPE));
    }
    result
}

fn splice_out(
    ctx: &mut SyscallContext<'_>,
    from: (&Arc<File>, &Arc<Pipe>),
    to: (&Arc<File>, &mut Cursor),
    len: usize,
    nonblocking: bool,
) -> SysResult<usize> {
    let ((input, pipe), (output, cursor)) = (from, to);
    if output.flags().contains(OpenFlags::APPEND) {
        return Err(Errno::EINVAL);
    }
    if matches!(cursor, Cursor::Guest { .. }) && !output.ops().seekable() {
        return Err(Errno::ESPIPE);
    }
    if output.inode().file_type() == FileType::Regular {
        clear_set_id(&**output.inode(), &ctx.task.credentials())?;
        size_limit(ctx, cursor.at(output))?;
    }
    let done = wait_for_sides(ctx, input, output, nonblocking, || {
        let mut wrote_nothing = false;
        let mut at = if let Cursor::Guest { at, .. } = cursor { Some(*at) } else { None };
        let moved = pipe.splice_out(len, |run| {
            let mut src = KernelSrc::new(run);
            let step = match at {
                Some(at) => output.write_at(&mut src, at),
                None => output.write(&mut src),
            };
            wrote_nothing = step.is_err();
            at = at.map(|at| at.saturating_add(*step.as_ref().unwrap_or(&0) as u64));
            step
        });
        moved.map_err(|error| (error, if wrote_nothing { Side::Out } else { Side::In }))
    })?;
    if matches!(cursor, Cursor::Guest { .. }) {
        cursor.advance(output, done);
        cursor.write_back(ctx)?;
    }
    if done > 0 {
        after_write(output);
    }
    Ok(done)
}

fn splice_in(
    ctx: &mut SyscallContext<'_>,
    from: (&Arc<File>, &mut Cursor),
    to: (&Arc<File>, &Arc<Pipe>),
    len: usize,
    nonblocking: bool,
) -> SysResult<usize> {
    let ((input, cursor), (output, pipe)) = (from, to);
    if matches!(cursor, Cursor::Guest { .. }) && !input.ops().seekable() {
        return Err(Errno::ESPIPE);
    }
    let done = wait_for_sides(ctx, input, output, nonblocking, || {
        let mut asked = false;
        let moved = pipe.splice_in(len, |buf| {
            asked = true;
            let mut dst = KernelDst::new(buf);
            match cursor {
                Cursor::Guest { at, .. } => input.read_at(&mut dst, *at),
                Cursor::Position => input.read(&mut dst),
            }
        });
        moved.map_err(|error| (error, if asked { Side::In } else { Side::Out }))
    })?;
    if matches!(cursor, Cursor::Guest { .. }) {
        cursor.advance(input, done);
        cursor.write_back(ctx)?;
    }
    if done > 0 {
        after_read(input);
    }
    Ok(done)
}

/// `tee(int in, int out, size_t len, unsigned flags)`
pub fn tee(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let flags = args.uint(3);
    if flags & !SPLICE_FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    let len = usize::try_from(args.raw(2)).unwrap_or(MAX_RW_COUNT).min(MAX_RW_COUNT);
    if len == 0 {
        return Ok(0);
    }
    let input = readable(open_file(ctx, args.raw(0))?)?;
    let output = writable(open_file(ctx, args.raw(1))?)?;
    let (Some(from), Some(to)) = (pipe_of(&input), pipe_of(&output)) else { return Err(Errno::EINVAL) };
    let nonblocking = flags & linux::SPLICE_F_NONBLOCK != 0;
    let result = wait_for_sides(ctx, &input, &output, nonblocking, || {
        tee_pipes(&from, &to, len).map_err(|error| pipe_side(&from, error))
    });
    if result == Err(Errno::EPIPE) {
        ctx.task.send_signal(SigInfo::kernel(Signal::PIPE));
    }
    result
}

/// `vmsplice(int fd, const struct iovec *iov, size_t count, unsigned flags)`: pages are copied, not lent.
pub fn vmsplice(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    if args.uint(3) & !SPLICE_FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    let nonblocking = args.uint(3) & linux::SPLICE_F_NONBLOCK != 0;
    let file = open_file(ctx, args.raw(0))?;
    pipe_of(&file).ok_or(Errno::EBADF)?;
    let mut io = super::rw::vector(ctx, args)?;
    // One step: unlike `writev`, it does not wait until everything is in.
    let result = if file.flags().writable() {
        wait_for_sides(ctx, &file, &file, nonblocking, || file.write(&mut io).map_err(|e| (e, Side::Out)))
    } else {
        wait_for_sides(ctx, &file, &file, nonblocking, || file.read(&mut io).map_err(|e| (e, Side::In)))
    };
    if result == Err(Errno::EPIPE) {
        ctx.task.send_signal(SigInfo::kernel(Signal::PIPE));
    }
    result
}
