//! Packets and descriptors over a connection's socket.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use caisson_proto::lisafs::header::HEADER_SIZE;
use caisson_proto::lisafs::{FDS_MAX, Header};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use crate::table::Node;

/// What came in.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// A packet of so many bytes.
    Packet(usize),
    /// A packet that is longer than the buffer, of which so many bytes are there.
    Cut(usize),
    /// The peer has closed its end.
    End,
}

/// Waits for a packet. Descriptors that come with it are never installed: there is no room for them, so the kernel
/// drops them.
///
/// # Errors
/// What `recvmsg(2)` says.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Result<Received, Errno> {
    loop {
        let mut none: [MaybeUninit<u8>; 0] = [];
        let mut control = RecvAncillaryBuffer::new(&mut none);
        let mut iov = [IoSliceMut::new(buffer)];
        match recvmsg(&socket, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(Received::End),
            Err(errno) => return Err(errno),
            Ok(message) if message.flags.contains(ReturnFlags::TRUNC) => {
                return Ok(Received::Cut(message.bytes));
            }
            // An empty packet looks like the end. Nobody has a reason to send one.
            Ok(message) if message.bytes == 0 => return Ok(Received::End),
            Ok(message) => return Ok(Received::Packet(message.bytes)),
        }
    }
}

/// Sends one packet made of `parts` with descriptors.
///
/// # Errors
/// What `sendmsg(2)` says.
pub fn send(socket: impl AsFd, parts: &[IoSlice<'_>], fds: &[Donation]) -> Result<(), Errno> {
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().take(FDS_MAX).map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&borrowed));
    }
    loop {
        match sendmsg(&socket, parts, &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            done => return done.map(|_| ()),
        }
    }
}

/// A reply in the making: payload and descriptors.
#[derive(Debug, Default)]
pub struct Reply {
    /// The payload.
    pub payload: Vec<u8>,
    /// Descriptors to donate, at most [`FDS_MAX`].
    pub fds: Vec<Donation>,
}

/// A descriptor to donate. The client gets a duplicate of its own either way.
#[derive(Debug)]
pub enum Donation {
    /// One that is for the client only.
    Own(OwnedFd),
    /// A walked file's own.
    Of(Arc<Node>),
}

impl From<OwnedFd> for Donation {
    fn from(fd: OwnedFd) -> Donation {
        Donation::Own(fd)
    }
}

impl AsFd for Donation {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Donation::Own(fd) => fd.as_fd(),
            Donation::Of(node) => node.fd.as_fd(),
        }
    }
}

impl Reply {
    /// Empties it for the next use.
    pub fn clear(&mut self) {
        self.payload.clear();
        self.fds.clear();
    }

    /// The header for this reply to the request with this message number and tag. A failure empties the reply.
    pub fn finish(&mut self, message: u16, tag: u32, result: Result<(), Errno>) -> Header {
        let errno = match result {
            Ok(()) => 0,
            Err(errno) => {
                self.clear();
                u16::try_from(errno.raw_os_error()).unwrap_or(EIO)
            }
        };
        let length = u32::try_from(self.payload.len()).unwrap_or(0);
        let fds = u16::try_from(self.fds.len()).unwrap_or(0);
        Header { length, message, errno, tag, fds }
    }
}

/// For an errno that is not one.
const EIO: u16 = 5;

/// Sends a finished reply. When the kernel will not carry its descriptors (too many are in flight to a client that does not
/// take them), the client gets the errno instead.
///
/// # Errors
/// What `sendmsg(2)` says: the connection is over.
pub fn send_reply(socket: impl AsFd, header: Header, reply: &mut Reply) -> Result<(), Errno> {
    let bytes: [u8; HEADER_SIZE] = header.to_bytes();
    match send(&socket, &[IoSlice::new(&bytes), IoSlice::new(&reply.payload)], &reply.fds) {
        Err(errno @ (Errno::TOOMANYREFS | Errno::NOBUFS | Errno::NOMEM)) if !reply.fds.is_empty() => {
            let header = reply.finish(header.message, header.tag, Err(errno));
            send(&socket, &[IoSlice::new(&header.to_bytes())], &[])
        }
        done => done,
    }
}
