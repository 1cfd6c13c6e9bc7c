//! Sending and receiving over sockets: decode, act on the [`Socket`], encode.

use std::sync::Arc;
use std::time::Instant;

use linux_raw_sys::net as linux;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Args;
use super::pipes::install;
use super::poll::read_timeout;
use super::sockets::{MAX_ADDRESS, read_address, socket_file, write_address};
use crate::errno::{Errno, SysResult};
use crate::io::IoSrc;
use crate::mm::UserIo;
use crate::net::control::{self, Encoder, Identity, Received, Sent, drop_files};
use crate::net::patience::Patience;
use crate::net::socket::{Destination, MsgFlags, Receipt, Socket, SocketFile};
use crate::task::{SigInfo, Signal, SyscallContext};
use crate::vfs::{File, OpenFlags};
use crate::wait::PollEvents;

/// Most buffers of a message (`UIO_MAXIOV`), and most messages of a call.
const MAX_BUFFERS: u64 = 1024;
/// Most control data of a message, in bytes (`net.core.optmem_max`).
const MAX_CONTROL: u64 = 128 << 10;
/// Bytes of a `struct mmsghdr`, and where in it the length is.
const MMSGHDR: u64 = size_of::<linux::mmsghdr>() as u64;
const MMSGHDR_LEN: u64 = size_of::<RawMessage>() as u64;

/// A `struct msghdr`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct RawMessage {
    name: u64,
    name_len: i32,
    _pad: u32,
    iov: u64,
    iov_len: u64,
    control: u64,
    control_len: u64,
    flags: u32,
    _pad2: u32,
}

/// Sends all of `src`: a stream may need several steps, of which the first carries the control data.
fn send_all(
    ctx: &mut SyscallContext<'_>,
    file: &File,
    socket: &Arc<dyn Socket>,
    mut src: UserIo<'_>,
    destination: Option<Destination>,
    mut sent: Sent,
    flags: MsgFlags,
) -> SysResult<usize> {
    if flags.contains(MsgFlags::OOB) {
        return Err(Errno::EOPNOTSUPP);
    }
    let dontwait = flags.contains(MsgFlags::DONTWAIT);
    let queue = socket.send_queue(destination.as_ref());
    let mut total = ctx.take_progress();
    if total > 0 {
        // The control data went with the first bytes.
        src.advance(total);
        sent = Sent::default();
    }
    loop {
        let patience = Patience::new(file, dontwait, socket.send_timeout());
        let result = patience.until(ctx, &queue, PollEvents::WRITABLE, |_| {
            socket.send(&mut src, destination.as_ref(), &mut sent)
        });
        match result {
            Ok(count) => total = total.saturating_add(count),
            Err(_) if total > 0 => return ctx.goes_on_by_exit(total).map_or(Ok(total), Err),
            Err(error) => {
                if error == Errno::EPIPE && socket.is_stream() && !flags.contains(MsgFlags::NOSIGNAL) {
                    ctx.task.send_signal(SigInfo::kernel(Signal::PIPE));
                }
                return Err(error);
            }
        }
        let goes_on = socket.is_stream() && src.remaining() > 0 && !dontwait && !file.nonblocking();
        if !goes_on {
            return Ok(total);
        }
    }
}

/// `sendto(int fd, const void *buf, size_t len, int flags, const struct sockaddr *addr, socklen_t addr_len)`
pub fn sendto(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = socket_file(ctx, args)?;
    let socket = SocketFile::of(&file)?.clone();
    let src = UserIo::buffer(&ctx.own.mm, args.raw(1), args.raw(2))?;
    let destination = match args.raw(4) {
        0 => None,
        addr => {
            let address = read_address(ctx, addr, args.int(5))?;
            if address.is_empty() { None } else { Some(socket.resolve(ctx, &address)?) }
        }
    };
    let flags = MsgFlags::from_bits_retain(args.uint(3));
    send_all(ctx, &file, &socket, src, destination, Sent::default(), flags)
}

fn vector<'a>(ctx: &SyscallContext<'a>, message: &RawMessage) -> SysResult<UserIo<'a>> {
    if message.iov_len > MAX_BUFFERS {
        return Err(Errno::EMSGSIZE);
    }
    UserIo::vector(&ctx.own.mm, message.iov, message.iov_len)
}

fn send_message(
    ctx: &mut SyscallContext<'_>,
    file: &File,
    message: &RawMessage,
    flags: MsgFlags,
) -> SysResult<usize> {
    let socket = SocketFile::of(file)?.clone();
    let src = vector(ctx, message)?;
    let mut destination = None;
    if message.name != 0 && message.name_len != 0 {
        let address = read_address(ctx, message.name, message.name_len.min(MAX_ADDRESS))?;
        destination = Some(socket.resolve(ctx, &address)?);
    }
    let mut sent = Sent::default();
    if message.control_len > 0 {
        if message.control_len > MAX_CONTROL {
            return Err(Errno::ENOBUFS);
        }
        let mut bytes = vec![0; usize::try_from(message.control_len).unwrap_or(0)];
        ctx.task.mm().read_bytes(message.control, &mut bytes)?;
        sent = control::decode(ctx.task, &bytes)?;
    }
    send_all(ctx, file, &socket, src, destination, sent, flags)
}

/// `sendmsg(int fd, const struct msghdr *message, int flags)`
pub fn sendmsg(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = socket_file(ctx, args)?;
    SocketFile::of(&file)?;
    let message: RawMessage = ctx.task.mm().copy_in(args.raw(1))?;
    send_message(ctx, &file, &message, MsgFlags::from_bits_retain(args.uint(2)))
}

/// `sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags)`
pub fn sendmmsg(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = socket_file(ctx, args)?;
    SocketFile::of(&file)?;
    let flags = MsgFlags::from_bits_retain(args.uint(3));
    let mut done: usize = 0;
    for index in 0..u64::from(args.uint(2)).min(MAX_BUFFERS) {
        let at = args.raw(1).saturating_add(index.saturating_mul(MMSGHDR));
        let one = |ctx: &mut SyscallContext<'_>| {
            let message: RawMessage = ctx.task.mm().copy_in(at)?;
            let sent = send_message(ctx, &file, &message, flags)?;
            let len = u32::try_from(sent).unwrap_or(u32::MAX);
            ctx.task.mm().copy_out(at.saturating_add(MMSGHDR_LEN), &len)
        };
        match one(ctx) {
            Ok(()) => done = done.saturating_add(1),
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// Receives into `dst`; with `MSG_WAITALL` a stream goes on until it is full.
fn receive(
    ctx: &mut SyscallContext<'_>,
    file: &File,
    socket: &Arc<dyn Socket>,
    dst: &mut UserIo<'_>,
    flags: MsgFlags,
) -> SysResult<Receipt> {
    let patience = Patience::new(file, flags.contains(MsgFlags::DONTWAIT), socket.receive_timeout());
    let queue = socket.queue().clone();
    let step = |ctx: &mut SyscallContext<'_>, dst: &mut UserIo<'_>| {
        patience.until(ctx, &queue, PollEvents::READABLE | PollEvents::RDHUP, |_| socket.receive(dst, flags))
    };
    let mut receipt = step(ctx, dst)?;
    let all = flags.contains(MsgFlags::WAITALL) && !flags.contains(MsgFlags::PEEK) && socket.is_stream();
    while all && receipt.copied > 0 && receipt.control.files.is_empty() {
        if crate::io::IoDst::remaining(dst) == 0 {
            break;
        }
        match step(ctx, dst) {
            Ok(more) if more.copied > 0 => {
                receipt.copied = receipt.copied.saturating_add(more.copied);
                receipt.full = receipt.copied;
                receipt.control.files = more.control.files;
            }
            _ => break,
        }
    }
    Ok(receipt)
}

/// What a receive returns: the real length of a message if asked.
fn length(receipt: &Receipt, flags: MsgFlags, socket: &Arc<dyn Socket>) -> usize {
    if flags.contains(MsgFlags::TRUNC) && !socket.is_stream() { receipt.full } else { receipt.copied }
}

/// `recvfrom(int fd, void *buf, size_t len, int flags, struct sockaddr *addr, socklen_t *addr_len)`
pub fn recvfrom(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = socket_file(ctx, args)?;
    let socket = SocketFile::of(&file)?.clone();
    let mut dst = UserIo::buffer(&ctx.own.mm, args.raw(1), args.raw(2))?;
    let flags = MsgFlags::from_bits_retain(args.uint(3));
    let mut receipt = receive(ctx, &file, &socket, &mut dst, flags)?;
    drop_files(std::mem::take(&mut receipt.control.files));
    if args.raw(4) != 0 {
        write_address(ctx, args.raw(4), args.raw(5), &receipt.address)?;
    }
    Ok(length(&receipt, flags, &socket))
}

/// Gives received descriptors to the caller, as many as its buffer has room for; the others are closed.
fn deliver(ctx: &SyscallContext<'_>, files: Vec<Arc<File>>, flags: MsgFlags, encoder: &mut Encoder) {
    let cloexec = flags.contains(MsgFlags::CMSG_CLOEXEC);
    let flags = if cloexec { OpenFlags::CLOEXEC } else { OpenFlags::empty() };
    let room = encoder.room_for(size_of::<i32>());
    let mut numbers = Vec::new();
    let mut lost = Vec::new();
    for file in files {
        if numbers.len() >= room || !lost.is_empty() {
            lost.push(file);
            continue;
        }
        match install(ctx, file.clone(), flags) {
            Ok(fd) => numbers.push(fd.index() as i32),
            Err(_) => lost.push(file),
        }
    }
    encoder.truncated |= !lost.is_empty();
    drop_files(lost);
    if !numbers.is_empty() {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
        encoder.put(linux::SCM_RIGHTS, &bytes);
    }
}

fn encode_control(
    ctx: &SyscallContext<'_>,
    received: Received,
    room: u64,
    flags: MsgFlags,
) -> (Vec<u8>, MsgFlags) {
    let mut encoder = Encoder::new(usize::try_from(room.min(MAX_CONTROL)).unwrap_or(0));
    if let Some(identity) = &received.identity {
        let namespace = ctx.task.pid_namespace();
        encoder.put(linux::SCM_CREDENTIALS, &Identity::to_bytes(identity, namespace.as_deref()));
    }
    if !received.files.is_empty() {
        deliver(ctx, received.files, flags, &mut encoder);
    }
    let truncated = if encoder.truncated { MsgFlags::CTRUNC } else { MsgFlags::empty() };
    (encoder.finish(), truncated)
}

/// Receives into the `struct msghdr` at `addr` and updates it.
fn receive_message(
    ctx: &mut SyscallContext<'_>,
    file: &File,
    addr: u64,
    flags: MsgFlags,
) -> SysResult<usize> {
    let socket = SocketFile::of(file)?.clone();
    let mm = ctx.task.mm();
    let mut message: RawMessage = mm.copy_in(addr)?;
    if message.name != 0 && message.name_len < 0 {
        return Err(Errno::EINVAL);
    }
    let mut dst = vector(ctx, &message)?;
    let receipt = receive(ctx, file, &socket, &mut dst, flags)?;
    let total = length(&receipt, flags, &socket);
    let mut out = flags & MsgFlags::CMSG_CLOEXEC;
    if receipt.full > receipt.copied {
        out |= MsgFlags::TRUNC;
    }
    let room = if message.control == 0 { 0 } else { message.control_len };
    let (control, truncated) = encode_control(ctx, receipt.control, room, flags);
    out |= truncated;
    mm.write_bytes(message.control, &control)?;
    if message.name != 0 {
        let room = usize::try_from(message.name_len).unwrap_or(0);
        mm.write_bytes(message.name, receipt.address.get(..room).unwrap_or(&receipt.address))?;
        message.name_len = i32::try_from(receipt.address.len()).unwrap_or(i32::MAX);
    }
    message.control_len = control.len() as u64;
    message.flags = out.bits();
    mm.copy_out(addr, &message)?;
    Ok(total)
}

/// `recvmsg(int fd, struct msghdr *message, int flags)`
pub fn recvmsg(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = socket_file(ctx, args)?;
    SocketFile::of(&file)?;
    receive_message(ctx, &file, args.raw(1), MsgFlags::from_bits_retain(args.uint(2)))
}

/// `recvmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags, struct timespec *timeout)`
pub fn recvmmsg(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = socket_file(ctx, args)?;
    SocketFile::of(&file)?;
    let mut flags = MsgFlags::from_bits_retain(args.uint(3));
    let deadline = ctx.deadline_after(read_timeout(ctx, args.raw(4))?);
    let first_only = flags.contains(MsgFlags::WAITFORONE);
    flags.remove(MsgFlags::WAITFORONE);
    let mut done: usize = 0;
    for index in 0..u64::from(args.uint(2)).min(MAX_BUFFERS) {
        let at = args.raw(1).saturating_add(index.saturating_mul(MMSGHDR));
        let received = receive_message(ctx, &file, at, flags).and_then(|count| {
            let len = u32::try_from(count).unwrap_or(u32::MAX);
            ctx.task.mm().copy_out(at.saturating_add(MMSGHDR_LEN), &len)
        });
        match received {
            Ok(()) => done = done.saturating_add(1),
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
        if first_only {
            flags |= MsgFlags::DONTWAIT;
        }
        // As in Linux the time is looked at between messages only.
        if deadline.is_some_and(|at| at <= Instant::now()) {
            break;
        }
    }
    Ok(done)
}
