//! The shim's end of the control socket: numbers requests, matches replies, passes events on in order.
//!
//! [`Client`] may be used by many tasks at once. One task per connection reads; it gives up at the first broken packet, because
//! a sentry that sends those is not to be trusted with anything. After that every request fails with [`ControlError::Gone`] at once, so
//! nobody ever waits for a dead sentry.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use caisson_proto::control::frame::{Assembler, MAX_PACKET, packets};
use caisson_proto::control::{
    self as wire, ErrorCode, MAX_REPLY, MAX_REQUEST, Reply, Request, ToSentry, ToShim,
};
use nix::sys::socket::{ControlMessage, MsgFlags, recvmsg, sendmsg};
use parking_lot::Mutex;
use prost::Message;
use thiserror::Error;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

/// Longest time for a request that loads programs or waits for tasks; emulated hosts are slow.
const SLOW: Duration = Duration::from_secs(120);
/// Longest time for any other.
const QUICK: Duration = Duration::from_secs(20);

/// Why a request was not carried out.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The sentry said no.
    #[error("{}", .0.message)]
    Refused(wire::Error),
    /// There is no sentry any more.
    #[error("the sandbox's sentry is gone: {0}")]
    Gone(String),
    /// It did not answer in time.
    #[error("the sandbox's sentry did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// It answered with something else.
    #[error("the sandbox's sentry answered with the wrong kind of reply")]
    WrongReply,
    /// The request cannot be sent.
    #[error("request cannot be sent: {0}")]
    Unsendable(String),
}

impl ControlError {
    /// The sentry's code, if it answered at all.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused(error) => Some(ErrorCode::try_from(error.code).unwrap_or(ErrorCode::Internal)),
            _ => None,
        }
    }

    /// Linux's number, where the sentry gave one.
    pub fn errno(&self) -> Option<u32> {
        match self {
            Self::Refused(error) if error.errno != 0 => Some(error.errno),
            _ => None,
        }
    }
}

/// What a sentry says unasked.
#[derive(Debug)]
pub enum Unasked {
    /// A process has ended.
    Exit(wire::Exit),
    /// Its OOM killer has acted in this container.
    Oom(String),
    /// The connection has ended, for this reason. Nothing comes after it.
    Gone(String),
}

/// A connection to a sentry.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    socket: AsyncFd<OwnedFd>,
    next: AtomicU64,
    waiting: Mutex<Waiting>,
    /// Held while the packets of one message are sent.
    sending: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
enum Waiting {
    Open(HashMap<u64, oneshot::Sender<Reply>>),
    Closed(String),
}

impl Client {
    /// Takes a non-blocking `SOCK_SEQPACKET` socket and starts to read. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the socket cannot be watched.
    pub fn new(socket: OwnedFd) -> io::Result<(Self, mpsc::Receiver<Unasked>)> {
        let shared = Arc::new(Shared {
            socket: watch(socket)?,
            next: AtomicU64::new(1),
            waiting: Mutex::new(Waiting::Open(HashMap::new())),
            sending: tokio::sync::Mutex::new(()),
        });
        let (sender, receiver) = mpsc::channel(256);
        let reader = shared.clone();
        tokio::spawn(async move {
            let reason = reader.read(&sender).await;
            *reader.waiting.lock() = Waiting::Closed(reason.clone());
            let _ = sender.send(Unasked::Gone(reason)).await;
        });
        Ok((Self { shared }, receiver))
    }

    /// Sends a request with descriptors and waits for its reply.
    ///
    /// # Errors
    /// [`ControlError`]. An error reply is [`ControlError::Refused`].
    pub async fn ask(&self, request: Request, fds: &[BorrowedFd<'_>]) -> Result<Reply, ControlError> {
        let limit = match request {
            Request::CreateContainer(_) | Request::Configure(_) | Request::Exec(_) | Request::Start(_) => {
                SLOW
            }
            _ => QUICK,
        };
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        match &mut *self.shared.waiting.lock() {
            Waiting::Open(map) => drop(map.insert(number, sender)),
            Waiting::Closed(reason) => return Err(ControlError::Gone(reason.clone())),
        }
        let exchange = async {
            self.shared.send(number, request, fds).await?;
            receiver.await.map_err(|_| ControlError::Gone(self.shared.reason()))
        };
        let outcome =
            tokio::time::timeout(limit, exchange).await.unwrap_or(Err(ControlError::Timeout(limit)));
        if let Waiting::Open(map) = &mut *self.shared.waiting.lock() {
            map.remove(&number);
        }
        match outcome? {
            Reply::Error(error) => Err(ControlError::Refused(error)),
            reply => Ok(reply),
        }
    }

    /// Sends a request whose reply says nothing but "done".
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub async fn order(&self, request: Request) -> Result<(), ControlError> {
        match self.ask(request, &[]).await? {
            Reply::Done(_) => Ok(()),
            _ => Err(ControlError::WrongReply),
        }
    }
}

impl Shared {
    fn reason(&self) -> String {
        match &*self.waiting.lock() {
            Waiting::Closed(reason) => reason.clone(),
            Waiting::Open(_) => "the reply was lost".into(),
        }
    }

    async fn send(&self, number: u64, request: Request, fds: &[BorrowedFd<'_>]) -> Result<(), ControlError> {
        let bytes = ToSentry { number, request: Some(request) }.encode_to_vec();
        let packets = packets(&bytes, MAX_REQUEST).map_err(|e| ControlError::Unsendable(e.to_string()))?;
        if fds.len() > wire::MAX_FDS {
            return Err(ControlError::Unsendable(format!("{} descriptors in one message", fds.len())));
        }
        let numbers: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let mut rights = (!numbers.is_empty()).then_some(numbers.as_slice());
        let _turn = self.sending.lock().await;
        // If the caller gives up between two packets, the stream is useless: the guard closes it then.
        let mut whole = CloseUnless { shared: self, done: packets.len() < 2 };
        for packet in &packets {
            let messages: Vec<ControlMessage<'_>> =
                rights.take().map(ControlMessage::ScmRights).into_iter().collect();
            self.socket
                .async_io(tokio::io::Interest::WRITABLE, |socket| {
                    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
                    let data = [IoSlice::new(packet)];
                    sendmsg::<()>(socket.as_raw_fd(), &data, &messages, flags, None).map_err(io::Error::from)
                })
                .await
                .map_err(|e| ControlError::Gone(e.to_string()))?;
        }
        whole.done = true;
        Ok(())
    }

    /// Reads until the connection ends; says why it did.
    async fn read(&self, events: &mpsc::Sender<Unasked>) -> String {
        let mut assembler = Assembler::<()>::new(MAX_REPLY);
        let mut buffer = vec![0; MAX_PACKET];
        loop {
            let received = self
                .socket
                .async_io(tokio::io::Interest::READABLE, |socket| receive(socket.as_fd(), &mut buffer))
                .await;
            let packet = match received {
                Ok(0) => return "the connection was closed".into(),
                Ok(length) => buffer.get(..length).unwrap_or_default(),
                Err(e) => return e.to_string(),
            };
            // No room was offered for descriptors, so the kernel has dropped any that came along.
            let message = match assembler.push(packet, Vec::new()) {
                Ok(None) => continue,
                Ok(Some(message)) => message,
                Err(e) => return e.to_string(),
            };
            let event = match ToShim::decode_checked(&message.bytes) {
                Ok((_, Reply::ExitEvent(exit))) => Unasked::Exit(exit),
                Ok((_, Reply::OomEvent(container))) => Unasked::Oom(container.container_id),
                Ok((number, reply)) => {
                    if let Waiting::Open(map) = &mut *self.waiting.lock()
                        && let Some(asker) = map.remove(&number)
                    {
                        let _ = asker.send(reply);
                    }
                    continue;
                }
                Err(wire::DecodeError::Unknown(_)) => continue,
                Err(e) => return e.to_string(),
            };
            if events.send(event).await.is_err() {
                return "nobody listens any more".into();
            }
        }
    }
}

/// Has tokio watch a descriptor that the result owns.
///
/// # Errors
/// When there is no runtime, or the kernel cannot poll this kind of descriptor.
// The replacement that tokio names is an unsafe function, because it also takes types whose descriptor may change under it. An OwnedFd's
// cannot: nobody but the AsyncFd holds it.
#[allow(deprecated)]
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}

/// Ends the connection when a message was sent in part only.
struct CloseUnless<'a> {
    shared: &'a Shared,
    done: bool,
}

impl Drop for CloseUnless<'_> {
    fn drop(&mut self) {
        if !self.done {
            let socket = self.shared.socket.get_ref().as_raw_fd();
            let _ = nix::sys::socket::shutdown(socket, nix::sys::socket::Shutdown::Both);
        }
    }
}

fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let mut data = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut data, None, flags)?;
    if message.flags.contains(MsgFlags::MSG_TRUNC) {
        return Err(io::Error::other("a packet was longer than the protocol allows"));
    }
    Ok(message.bytes)
}

#[cfg(test)]
mod tests;
