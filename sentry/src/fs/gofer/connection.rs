//! Requests and replies over a gofer's connection.
//!
//! One request is under way at a time; who comes meanwhile waits for the connection's lock. A reply that does not fit its
//! request, or a connection that breaks, ends the connection for good: from then on every call fails with `EIO` at once.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use caisson_proto::lisafs::header::HEADER_SIZE;
use caisson_proto::lisafs::{FDS_MAX, Header, MAX_MESSAGE, Request, WireError};
use parking_lot::Mutex;
use rustix::io::Errno as HostErrno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendFlags,
    recvmsg, sendmsg,
};

use crate::errno::{Errno, SysResult};

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

pub(super) struct Connection {
    exchange: Mutex<Exchange>,
    dead: AtomicBool,
}

struct Exchange {
    socket: OwnedFd,
    tag: u32,
    request: Vec<u8>,
    reply: Vec<u8>,
}

impl Connection {
    pub(super) fn new(socket: OwnedFd) -> Self {
        let exchange = Exchange { socket, tag: 0, request: Vec::new(), reply: vec![0; MAX_MESSAGE] };
        Self { exchange: Mutex::new(exchange), dead: AtomicBool::new(false) }
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
        let mut exchange = self.exchange.lock();
        let answer = exchange.call(request);
        match answer.and_then(|(errno, mut reply)| match errno {
            0 => Ok(Ok(read(&mut reply)?)),
            errno => Ok(Err(Errno::from_host(i32::from(errno)))),
        }) {
            Ok(done) => done,
            Err(broken) => {
                self.dead.store(true, Ordering::Release);
                tracing::error!(message = request.message().name(), %broken, "a gofer connection is lost");
                Err(Errno::EIO)
            }
        }
    }
}

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the gofer is gone")]
    Gone,
    #[error("socket: {0}")]
    Socket(#[from] HostErrno),
    #[error("the reply is of another request")]
    Order,
    #[error("reply: {0}")]
    Reply(#[from] WireError),
}

impl Exchange {
    fn call(&mut self, request: &Request<'_>) -> Result<(u16, Reply<'_>), Broken> {
        self.tag = self.tag.wrapping_add(1);
        self.request.clear();
        request.encode(&mut self.request);
        let message = request.message() as u16;
        let length = u32::try_from(self.request.len()).map_err(|_| WireError::TooLong)?;
        let header = Header { length, message, errno: 0, tag: self.tag, fds: 0 };
        self.send(header)?;
        let (length, fds) = self.receive()?;
        let packet = self.reply.get(..length).unwrap_or_default();
        let (header, payload) = Header::parse_packet(packet)?;
        if (header.tag, header.message) != (self.tag, message) || usize::from(header.fds) != fds.len() {
            return Err(Broken::Order);
        }
        Ok((header.errno, Reply { payload, fds }))
    }

    fn send(&self, header: Header) -> Result<(), Broken> {
        let header: [u8; HEADER_SIZE] = header.to_bytes();
        let parts = [IoSlice::new(&header), IoSlice::new(&self.request)];
        loop {
            match sendmsg(&self.socket, &parts, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL) {
                Err(HostErrno::INTR) => {}
                Err(HostErrno::PIPE | HostErrno::CONNRESET) => return Err(Broken::Gone),
                done => return Ok(done.map(|_| ())?),
            }
        }
    }

    fn receive(&mut self) -> Result<(usize, Vec<OwnedFd>), Broken> {
        let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let message = loop {
            let mut parts = [IoSliceMut::new(&mut self.reply)];
            match recvmsg(&self.socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
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
}
