//! Requests and replies: over a gofer's socket, and over fast channels once there is enough to say.
//!
//! The socket and every channel carry one request at a time. A request takes a channel that is idle; a busy connection gets
//! more of them, up to [`CHANNELS`]; when all are busy, or the gofer gives none, the socket serves, one after another.
//!
//! A reply that does not fit its request, or a connection that breaks, ends the connection for good: from then on every call
//! fails with `EIO` at once.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use caisson_proto::lisafs::header::HEADER_SIZE;
use caisson_proto::lisafs::{FDS_MAX, Header, MAX_MESSAGE, Request, WireError};
use parking_lot::Mutex;
use rustix::io::Errno as HostErrno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendFlags,
    recvmsg, sendmsg,
};

use super::channel::Channel;
use crate::errno::{Errno, SysResult};

/// Most channels of a connection.
const CHANNELS: usize = 4;
/// How many requests a connection serves by socket before it is worth a channel.
const BEFORE_CHANNELS: u32 = 24;

/// A reply's payload and the descriptors that came with it.
pub(super) struct Reply<'a> {
    pub(super) payload: &'a [u8],
    pub(super) fds: Vec<OwnedFd>,
}

impl Reply<'_> {
    /// The one descriptor that the reply must have.
    pub(super) fn descriptor(&mut self) -> Result<OwnedFd, WireError> {
        self.fds.pop().ok_or(WireError::Field)
    }
}

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("the gofer is gone")]
    Gone,
    #[error("socket: {0}")]
    Socket(#[from] HostErrno),
    #[error("the reply is of another request")]
    Order,
    #[error("message: {0}")]
    Message(#[from] WireError),
}

pub(super) struct Connection {
    socket: Mutex<Lane<Socket>>,
    channels: Mutex<Channels>,
    calls: AtomicU32,
    dead: AtomicBool,
}

#[derive(Default)]
struct Channels {
    idle: Vec<Lane<Channel>>,
    /// How many there are, idle or busy; [`CHANNELS`] too when the gofer gives no more.
    opened: usize,
}

/// A way to the gofer with its buffers.
struct Lane<W> {
    way: W,
    tag: u32,
    request: Vec<u8>,
    reply: Vec<u8>,
}

/// What carries a request to the gofer and its reply back.
trait Way {
    /// Sends header and request; the reply's payload is put into `reply`.
    fn exchange(
        &mut self,
        header: Header,
        request: &[u8],
        reply: &mut Vec<u8>,
    ) -> Result<(Header, Vec<OwnedFd>), Broken>;
}

impl<W: Way> Lane<W> {
    fn new(way: W) -> Self {
        Self { way, tag: 0, request: Vec::new(), reply: Vec::new() }
    }

    /// Sends a request; gives the reply, or the gofer's errno.
    fn call(&mut self, request: &Request<'_>) -> Result<Result<Reply<'_>, Errno>, Broken> {
        self.tag = self.tag.wrapping_add(1);
        self.request.clear();
        request.encode(&mut self.request);
        let message = request.message() as u16;
        let length = u32::try_from(self.request.len()).map_err(|_| WireError::TooLong)?;
        let header = Header { length, message, errno: 0, tag: self.tag, fds: 0 };
        let (header, fds) = self.way.exchange(header, &self.request, &mut self.reply)?;
        if (header.tag, header.message) != (self.tag, message) || usize::from(header.fds) != fds.len() {
            return Err(Broken::Order);
        }
        Ok(match header.errno {
            0 => Ok(Reply { payload: &self.reply, fds }),
            errno => Err(Errno::from_host(i32::from(errno))),
        })
    }
}

impl Way for Channel {
    fn exchange(
        &mut self,
        header: Header,
        request: &[u8],
        reply: &mut Vec<u8>,
    ) -> Result<(Header, Vec<OwnedFd>), Broken> {
        self.call(header, request, reply)
    }
}

/// The connection's own socket.
struct Socket {
    fd: OwnedFd,
    packet: Vec<u8>,
}

impl Way for Socket {
    fn exchange(
        &mut self,
        header: Header,
        request: &[u8],
        reply: &mut Vec<u8>,
    ) -> Result<(Header, Vec<OwnedFd>), Broken> {
        send(&self.fd, header, request)?;
        let (length, fds) = receive(&self.fd, &mut self.packet)?;
        let (header, payload) = Header::parse_packet(self.packet.get(..length).unwrap_or_default())?;
        reply.clear();
        reply.extend_from_slice(payload);
        Ok((header, fds))
    }
}

impl Connection {
    pub(super) fn new(fd: OwnedFd) -> Self {
        let socket = Socket { fd, packet: vec![0; MAX_MESSAGE] };
        Self {
            socket: Mutex::new(Lane::new(socket)),
            channels: Mutex::default(),
            calls: AtomicU32::new(0),
            dead: AtomicBool::new(false),
        }
    }

    /// Sends a request and reads its reply with `read`.
    ///
    /// # Errors
    /// What the gofer answers; `EIO` when it is gone or the reply is not one.
    pub(super) fn call<T>(
        &self,
        request: &Request<'_>,
        read: impl FnOnce(&mut Reply<'_>) -> Result<T, WireError>,
    ) -> SysResult<T> {
        if self.dead.load(Ordering::Acquire) {
            return Err(Errno::EIO);
        }
        let done = match self.channel() {
            Some(mut lane) => {
                let done = lane.call(request).and_then(|answer| finish(answer, read));
                if done.is_ok() {
                    self.channels.lock().idle.push(lane);
                }
                done
            }
            None => self.socket.lock().call(request).and_then(|answer| finish(answer, read)),
        };
        done.unwrap_or_else(|broken| {
            self.dead.store(true, Ordering::Release);
            tracing::error!(message = request.message().name(), %broken, "a gofer connection is lost");
            Err(Errno::EIO)
        })
    }

    /// An idle channel, if there is one or there may be one more.
    fn channel(&self) -> Option<Lane<Channel>> {
        if self.calls.load(Ordering::Relaxed) < BEFORE_CHANNELS {
            self.calls.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        {
            let mut channels = self.channels.lock();
            if let Some(lane) = channels.idle.pop() {
                return Some(lane);
            }
            if channels.opened >= CHANNELS {
                return None;
            }
            channels.opened = channels.opened.saturating_add(1);
        }
        let opened = self.open_channel();
        if opened.is_none() {
            self.channels.lock().opened = CHANNELS;
        }
        opened
    }

    /// Asks for a channel. A failure is no more than that: the socket goes on.
    fn open_channel(&self) -> Option<Lane<Channel>> {
        let mut socket = self.socket.lock();
        let mut reply = socket.call(&Request::Channel).ok()?.ok()?;
        let (socket, memory) = (reply.fds.pop()?, reply.fds.pop()?);
        Channel::new(memory, socket).ok().map(Lane::new)
    }
}

fn finish<T>(
    answer: Result<Reply<'_>, Errno>,
    read: impl FnOnce(&mut Reply<'_>) -> Result<T, WireError>,
) -> Result<SysResult<T>, Broken> {
    match answer {
        Ok(mut reply) => Ok(Ok(read(&mut reply)?)),
        Err(errno) => Ok(Err(errno)),
    }
}

fn send(socket: impl AsFd, header: Header, request: &[u8]) -> Result<(), Broken> {
    let header: [u8; HEADER_SIZE] = header.to_bytes();
    let parts = [IoSlice::new(&header), IoSlice::new(request)];
    loop {
        match sendmsg(&socket, &parts, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL) {
            Err(HostErrno::INTR) => {}
            Err(HostErrno::PIPE | HostErrno::CONNRESET) => return Err(Broken::Gone),
            done => return Ok(done.map(|_| ())?),
        }
    }
}

/// Receives a packet: how long it is, and the descriptors that came with it.
pub(super) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), Broken> {
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        let mut parts = [IoSliceMut::new(buffer)];
        match recvmsg(&socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(HostErrno::INTR) => {}
            Err(HostErrno::CONNRESET) => return Err(Broken::Gone),
            done => break done?,
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if message.bytes == 0 {
        return Err(Broken::Gone);
    }
    if message.flags.contains(ReturnFlags::TRUNC) {
        return Err(WireError::Length.into());
    }
    Ok((message.bytes, fds))
}
