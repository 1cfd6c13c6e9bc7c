//! Sockets as such: making, naming, connecting, setting them. What goes over them is in [`super::messages`].

use std::sync::Arc;

use linux_raw_sys::net as linux;

use super::Args;
use super::pipes::{install, install_pair};
use crate::errno::{Errno, SysResult};
use crate::net::patience::Patience;
use crate::net::socket::{Shutdown, SocketFile, SocketType};
use crate::task::SyscallContext;
use crate::vfs::{File, OpenFlags};
use crate::wait::PollEvents;

/// Longest address (`struct sockaddr_storage`).
pub(super) const MAX_ADDRESS: i32 = 128;
/// Longest option value that is read.
const MAX_OPTION: i32 = 256;

fn type_and_flags(raw: u32) -> SysResult<(SocketType, OpenFlags)> {
    let flags = OpenFlags::from_bits_retain(raw & !0xf);
    if !(OpenFlags::CLOEXEC | OpenFlags::NONBLOCK).contains(flags) {
        return Err(Errno::EINVAL);
    }
    Ok((SocketType::new(raw & 0xf)?, flags))
}

/// `socket(int family, int type, int protocol)`
pub fn socket(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let (kind, flags) = type_and_flags(args.uint(1))?;
    let socket = crate::net::create(ctx, args.uint(0), kind, args.int(2))?;
    let file = SocketFile::open(ctx, socket, flags);
    install(ctx, file, flags).map(|fd| fd.index())
}

/// `socketpair(int family, int type, int protocol, int fds[2])`
pub fn socketpair(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let (kind, flags) = type_and_flags(args.uint(1))?;
    let pair = crate::net::create_pair(ctx, args.uint(0), kind, args.int(2))?;
    let files = pair.map(|socket| SocketFile::open(ctx, socket, flags));
    install_pair(ctx, files, flags, args.raw(3))
}

pub(super) fn socket_file(ctx: &SyscallContext<'_>, args: &Args) -> SysResult<Arc<File>> {
    let file = ctx.task.file(args.raw(0))?;
    if file.flags().contains(OpenFlags::PATH) { Err(Errno::EBADF) } else { Ok(file) }
}

pub(super) fn read_address(ctx: &SyscallContext<'_>, addr: u64, len: i32) -> SysResult<Vec<u8>> {
    if !(0..=MAX_ADDRESS).contains(&len) {
        return Err(Errno::EINVAL);
    }
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    ctx.task.mm().read_bytes(addr, &mut bytes)?;
    Ok(bytes)
}

/// Writes an address, cut to the room that the `int` at `len_addr` tells, and its full length there.
pub(super) fn write_address(ctx: &SyscallContext<'_>, addr: u64, len_addr: u64, bytes: &[u8]) -> SysResult {
    let mm = ctx.task.mm();
    let room = usize::try_from(mm.copy_in::<i32>(len_addr)?).map_err(|_| Errno::EINVAL)?;
    mm.write_bytes(addr, bytes.get(..room).unwrap_or(bytes))?;
    mm.copy_out(len_addr, &i32::try_from(bytes.len()).unwrap_or(i32::MAX))
}

/// `bind(int fd, const struct sockaddr *addr, socklen_t len)`
pub fn bind(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = socket_file(ctx, args)?;
    let socket = SocketFile::of(&file)?;
    let address = read_address(ctx, args.raw(1), args.int(2))?;
    socket.bind(ctx, &address).map(|()| 0)
}

/// `connect(int fd, const struct sockaddr *addr, socklen_t len)`
pub fn connect(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = socket_file(ctx, args)?;
    let socket = SocketFile::of(&file)?;
    let address = read_address(ctx, args.raw(1), args.int(2))?;
    socket.connect(ctx, &file, &address).map(|()| 0)
}

/// `listen(int fd, int backlog)`
pub fn listen(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = socket_file(ctx, args)?;
    SocketFile::of(&file)?.listen(ctx, args.int(1)).map(|()| 0)
}

/// `accept(int fd, struct sockaddr *addr, socklen_t *len)`
pub fn accept(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    accept_with(ctx, args, OpenFlags::empty())
}

/// `accept4(…, int flags)`
pub fn accept4(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let flags = OpenFlags::from_bits_retain(args.uint(3));
    if !(OpenFlags::CLOEXEC | OpenFlags::NONBLOCK).contains(flags) {
        return Err(Errno::EINVAL);
    }
    accept_with(ctx, args, flags)
}

fn accept_with(ctx: &mut SyscallContext<'_>, args: &Args, flags: OpenFlags) -> SysResult<usize> {
    let file = socket_file(ctx, args)?;
    let socket = SocketFile::of(&file)?.clone();
    let patience = Patience::new(&file, false, socket.receive_timeout());
    let accepted = patience.until(ctx, socket.queue(), PollEvents::READABLE, |_| socket.accept())?;
    let peer = accepted.peer_address();
    // From here on the description closes the connection if anything fails.
    let opened = SocketFile::open(ctx, accepted, flags);
    if args.raw(1) != 0 {
        write_address(ctx, args.raw(1), args.raw(2), &peer.unwrap_or_default())?;
    }
    install(ctx, opened, flags).map(|fd| fd.index())
}

/// `getsockname(int fd, struct sockaddr *addr, socklen_t *len)`
pub fn getsockname(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = socket_file(ctx, args)?;
    let address = SocketFile::of(&file)?.local_address();
    write_address(ctx, args.raw(1), args.raw(2), &address).map(|()| 0)
}

/// `getpeername(int fd, struct sockaddr *addr, socklen_t *len)`
pub fn getpeername(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = socket_file(ctx, args)?;
    let address = SocketFile::of(&file)?.peer_address()?;
    write_address(ctx, args.raw(1), args.raw(2), &address).map(|()| 0)
}

/// `shutdown(int fd, int how)`
pub fn shutdown(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = socket_file(ctx, args)?;
    let how = match args.uint(1) {
        linux::SHUT_RD => Shutdown::Read,
        linux::SHUT_WR => Shutdown::Write,
        linux::SHUT_RDWR => Shutdown::Both,
        _ => return Err(Errno::EINVAL),
    };
    SocketFile::of(&file)?.shutdown(how).map(|()| 0)
}

/// `setsockopt(int fd, int level, int name, const void *value, socklen_t len)`
pub fn setsockopt(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = socket_file(ctx, args)?;
    let socket = SocketFile::of(&file)?;
    let len = usize::try_from(args.int(4).min(MAX_OPTION)).map_err(|_| Errno::EINVAL)?;
    let mut value = vec![0; len];
    ctx.task.mm().read_bytes(args.raw(3), &mut value)?;
    socket.set_option(ctx, args.uint(1), args.uint(2), &value).map(|()| 0)
}

/// `getsockopt(int fd, int level, int name, void *value, socklen_t *len)`
pub fn getsockopt(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = socket_file(ctx, args)?;
    let socket = SocketFile::of(&file)?;
    let mm = ctx.task.mm();
    let room = usize::try_from(mm.copy_in::<i32>(args.raw(4))?).map_err(|_| Errno::EINVAL)?;
    let value = socket.get_option(ctx, args.uint(1), args.uint(2))?;
    let value = value.get(..room).unwrap_or(&value);
    mm.write_bytes(args.raw(3), value)?;
    mm.copy_out(args.raw(4), &i32::try_from(value.len()).unwrap_or(i32::MAX))?;
    Ok(0)
}
