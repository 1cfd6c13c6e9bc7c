//! What a socket family implements, and the description's operations over it.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use bitflags::bitflags;
use linux_raw_sys::ioctl as linux_ioctl;
use linux_raw_sys::net as linux;

use super::control::{Received, Sent};
use crate::errno::{Errno, SysResult};
use crate::fs::anonymous::{AnonymousInode, Pseudo, next_ino};
use crate::io::{IoDst, IoSrc};
use crate::task::SyscallContext;
use crate::vfs::{File, FileOps, OpenFlags};
use crate::wait::{PollEvents, WaitQueue};

/// `SOCK_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum SocketType {
    /// A byte stream.
    Stream = linux::SOCK_STREAM,
    /// Messages.
    Datagram = linux::SOCK_DGRAM,
    /// Raw packets.
    Raw = linux::SOCK_RAW,
    /// Reliable messages of any order.
    Reliable = linux::SOCK_RDM,
    /// Messages over a connection.
    SeqPacket = linux::SOCK_SEQPACKET,
}

impl SocketType {
    /// From its number; `EINVAL` for one Linux does not have.
    pub fn new(number: u32) -> SysResult<SocketType> {
        let all = [
            SocketType::Stream,
            SocketType::Datagram,
            SocketType::Raw,
            SocketType::Reliable,
            SocketType::SeqPacket,
        ];
        all.into_iter().find(|kind| *kind as u32 == number).ok_or(Errno::ESOCKTNOSUPPORT)
    }
}

bitflags! {
    /// `MSG_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MsgFlags: u32 {
        /// Out-of-band data.
        const OOB = linux::MSG_OOB;
        /// Leave it in the queue.
        const PEEK = linux::MSG_PEEK;
        /// Report the real length.
        const TRUNC = linux::MSG_TRUNC;
        /// Control data did not fit.
        const CTRUNC = linux::MSG_CTRUNC;
        /// Never block.
        const DONTWAIT = linux::MSG_DONTWAIT;
        /// Wait for everything asked.
        const WAITALL = linux::MSG_WAITALL;
        /// No `SIGPIPE`.
        const NOSIGNAL = linux::MSG_NOSIGNAL;
        /// `recvmmsg`: wait for the first message only.
        const WAITFORONE = libc::MSG_WAITFORONE as u32;
        /// Received descriptors are close-on-exec.
        const CMSG_CLOEXEC = linux::MSG_CMSG_CLOEXEC;
        /// The error queue.
        const ERRQUEUE = linux::MSG_ERRQUEUE;
        const _ = !0;
    }
}

/// Which directions `shutdown` closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// `SHUT_RD`
    Read,
    /// `SHUT_WR`
    Write,
    /// `SHUT_RDWR`
    Both,
}

impl Shutdown {
    /// Whether reading ends.
    pub fn reads(self) -> bool {
        self != Shutdown::Write
    }

    /// Whether writing ends.
    pub fn writes(self) -> bool {
        self != Shutdown::Read
    }
}

/// The result of a receive.
#[derive(Default)]
pub struct Receipt {
    /// Bytes copied.
    pub copied: usize,
    /// Bytes the message had; more than `copied` if it was cut.
    pub full: usize,
    /// The sender's address, empty if there is none to show.
    pub address: Vec<u8>,
    /// What came along.
    pub control: Received,
}

/// A socket of some family. Nothing blocks: `EAGAIN` means to wait on a queue and to come again, except in `connect`, which
/// has the context to wait itself. Addresses are `struct sockaddr` bytes, validated by the family.
pub trait Socket: Any + Send + Sync {
    /// `AF_*`
    fn family(&self) -> u32;
    /// Its type.
    fn kind(&self) -> SocketType;
    /// `bind`
    fn bind(&self, ctx: &SyscallContext<'_>, address: &[u8]) -> SysResult;
    /// `connect`; waits unless `flags` of the description forbid.
    fn connect(&self, ctx: &mut SyscallContext<'_>, file: &File, address: &[u8]) -> SysResult;
    /// `listen`
    fn listen(&self, ctx: &SyscallContext<'_>, backlog: i32) -> SysResult;
    /// `accept`
    fn accept(&self) -> SysResult<Arc<dyn Socket>>;
    /// Where to send a message that `send` has answered with `EAGAIN`: whose queue to wait on.
    fn send_queue(&self, destination: Option<&Destination>) -> Arc<WaitQueue>;
    /// Finds the destination of a message once, before it is sent. `None` for the connected peer.
    fn resolve(&self, ctx: &SyscallContext<'_>, address: &[u8]) -> SysResult<Destination>;
    /// Sends; a stream may take a part. `sent` is consumed when anything was sent.
    fn send(
        &self,
        src: &mut dyn IoSrc,
        destination: Option<&Destination>,
        sent: &mut Sent,
    ) -> SysResult<usize>;
    /// Receives.
    fn receive(&self, dst: &mut dyn IoDst, flags: MsgFlags) -> SysResult<Receipt>;
    /// `shutdown`
    fn shutdown(&self, how: Shutdown) -> SysResult;
    /// `getsockname`
    fn local_address(&self) -> Vec<u8>;
    /// `getpeername`; `ENOTCONN`.
    fn peer_address(&self) -> SysResult<Vec<u8>>;
    /// Readiness.
    fn poll(&self) -> PollEvents;
    /// Notified when readiness changes.
    fn queue(&self) -> &Arc<WaitQueue>;
    /// `getsockopt`: the value, which the caller cuts to the buffer.
    fn get_option(&self, ctx: &SyscallContext<'_>, level: u32, name: u32) -> SysResult<Vec<u8>>;
    /// `setsockopt`
    fn set_option(&self, ctx: &SyscallContext<'_>, level: u32, name: u32, value: &[u8]) -> SysResult;
    /// How long a receive may block (`SO_RCVTIMEO`).
    fn receive_timeout(&self) -> Option<Duration>;
    /// How long a send may block (`SO_SNDTIMEO`).
    fn send_timeout(&self) -> Option<Duration>;
    /// Whether bytes have no message bounds.
    fn is_stream(&self) -> bool {
        self.kind() == SocketType::Stream
    }
    /// `FIONREAD`
    fn readable_bytes(&self) -> SysResult<usize>;
    /// `SIOCOUTQ`
    fn unsent_bytes(&self) -> usize;
    /// The description was closed.
    fn close(&self);
    /// Itself, to be looked at as its concrete type.
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

/// A resolved destination, of the family that made it.
pub type Destination = Arc<dyn Any + Send + Sync>;

/// The operations of a description of a socket.
pub struct SocketFile {
    socket: Arc<dyn Socket>,
    ino: u64,
}

impl SocketFile {
    /// A description of `socket`.
    pub fn open(ctx: &SyscallContext<'_>, socket: Arc<dyn Socket>, flags: OpenFlags) -> Arc<File> {
        let ino = next_ino();
        let ops = Arc::new(SocketFile { socket, ino });
        AnonymousInode::open(ctx, Pseudo::Socket, ino, ops, flags | OpenFlags::RDWR)
    }

    /// A description for unit tests, without a task.
    #[cfg(test)]
    pub(crate) fn detached(socket: Arc<dyn Socket>) -> Arc<File> {
        let ops = Arc::new(SocketFile { socket, ino: next_ino() });
        AnonymousInode::detached(ops, OpenFlags::RDWR | OpenFlags::NONBLOCK)
    }

    /// The socket.
    pub fn socket(&self) -> &Arc<dyn Socket> {
        &self.socket
    }

    /// The socket behind a description; `ENOTSOCK` if there is none.
    pub fn of(file: &File) -> SysResult<&Arc<dyn Socket>> {
        file.ops_as::<SocketFile>().map(SocketFile::socket).ok_or(Errno::ENOTSOCK)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.socket.close();
    }
}

impl FileOps for SocketFile {
    fn read(&self, _: &File, dst: &mut dyn IoDst, _: &mut u64) -> SysResult<usize> {
        let receipt = self.socket.receive(dst, MsgFlags::empty())?;
        super::control::drop_files(receipt.control.files);
        Ok(receipt.copied)
    }

    fn write(&self, _: &File, src: &mut dyn IoSrc, _: &mut u64) -> SysResult<usize> {
        self.socket.send(src, None, &mut Sent::default())
    }

    fn writes_all(&self) -> bool {
        self.socket.is_stream()
    }

    fn poll(&self, _: &File) -> PollEvents {
        self.socket.poll()
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(self.socket.queue())
    }

    fn ioctl(&self, ctx: &mut SyscallContext<'_>, _: &Arc<File>, command: u32, arg: u64) -> SysResult<usize> {
        let count = match command {
            linux_ioctl::FIONREAD => self.socket.readable_bytes()?,
            // SIOCOUTQ has the terminals' number.
            linux_ioctl::TIOCOUTQ => self.socket.unsent_bytes(),
            _ => return Err(Errno::ENOTTY),
        };
        let count = i32::try_from(count).unwrap_or(i32::MAX);
        ctx.task.mm().copy_out(arg, &count).map(|()| 0)
    }

    fn anonymous_name(&self) -> Option<String> {
        Some(format!("socket:[{}]", self.ino))
    }
}
