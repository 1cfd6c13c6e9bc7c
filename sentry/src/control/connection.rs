//! The control socket: whole messages with their descriptors.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use caisson_proto::control::frame::{Assembled, Assembler, FrameError, MAX_PACKET, packets};
use caisson_proto::control::{MAX_FDS, MAX_REPLY, MAX_REQUEST, ToShim};
use parking_lot::Mutex;
use prost::Message;
use rustix::io::Errno as HostErrno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendFlags,
    recvmsg, sendmsg,
};
use thiserror::Error;

/// Why the connection cannot go on.
#[derive(Debug, Error)]
pub enum ConnectionError {
    /// The socket failed.
    #[error("control socket: {0}")]
    Socket(#[from] HostErrno),
    /// The other side does not speak the protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// It closed in the middle of a message.
    #[error("the control socket was closed in the middle of a message")]
    Cut,
}

/// A `SOCK_SEQPACKET` connection to the shim.
pub struct Connection {
    socket: OwnedFd,
    /// Held while a message's packets are sent, so that two messages do not mix.
    sending: Mutex<()>,
}

impl Connection {
    /// Takes over the socket.
    pub fn new(socket: OwnedFd) -> Connection {
        Connection { socket, sending: Mutex::new(()) }
    }

    /// The next request with its descriptors; `None` once the shim has closed its end. One thread only.
    ///
    /// # Errors
    /// [`ConnectionError`]: the connection is over.
    pub fn receive(&self) -> Result<Option<Assembled<OwnedFd>>, ConnectionError> {
        let mut assembler = Assembler::new(MAX_REQUEST);
        let mut packet = vec![0; MAX_PACKET];
        loop {
            let (length, fds) = self.receive_packet(&mut packet)?;
            if length == 0 {
                return if assembler.in_message() { Err(ConnectionError::Cut) } else { Ok(None) };
            }
            if let Some(message) = assembler.push(packet.get(..length).unwrap_or_default(), fds)? {
                return Ok(Some(message));
            }
        }
    }

    fn receive_packet(&self, packet: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), ConnectionError> {
        let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            match recvmsg(&self.socket, &mut [IoSliceMut::new(packet)], &mut control, RecvFlags::CMSG_CLOEXEC)
            {
                Err(HostErrno::INTR) => {}
                Err(HostErrno::CONNRESET) => return Ok((0, Vec::new())),
                done => break done?,
            }
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(FrameError::Length(received.bytes).into());
        }
        Ok((received.bytes, fds))
    }

    /// Sends a reply or an event. A shim that is gone is noticed by [`Connection::receive`], so failures are only logged.
    pub fn send(&self, message: &ToShim) {
        if let Err(error) = self.try_send(message) {
            tracing::warn!(%error, number = message.number, "cannot answer the shim");
        }
    }

    fn try_send(&self, message: &ToShim) -> Result<(), ConnectionError> {
        let packets = packets(&message.encode_to_vec(), MAX_REPLY)?;
        let _sending = self.sending.lock();
        for packet in packets {
            loop {
                let parts = [IoSlice::new(&packet)];
                match sendmsg(&self.socket, &parts, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)
                {
                    Err(HostErrno::INTR) => {}
                    done => break done.map(drop)?,
                }
            }
        }
        Ok(())
    }
}
