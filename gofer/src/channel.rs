//! Fast channels: requests and replies through shared memory ([`caisson_proto::lisafs::channel`]).
//!
//! A channel belongs to a connection and ends with it. Its thread looks for a request for a moment and then sleeps on the
//! state word, so an idle channel costs nothing. What the client writes while a request is served does not matter: the
//! message is copied out, once, before anything in it is looked at.
//!
//! Ending: the connection's thread sets `stop`, shuts the channel's socket down (a thread may be waiting for room in it) and wakes
//! the word until the thread is gone, since what the word says is the client's business.

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use caisson_platform_kvm::shm::{Patience, SharedMemory, Wait, Waited};
use caisson_proto::lisafs::header::HEADER_SIZE;
use caisson_proto::lisafs::{CHANNELS_MAX, Header, MAX_PAYLOAD, WireError, channel as layout};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, socketpair};

use crate::session::{BadPacket, Session};
use crate::transport::{self, Reply};

/// How long the end of a connection waits between wake-ups of a channel's thread.
const ENDING: Duration = Duration::from_millis(1);

/// A running channel.
#[derive(Debug)]
pub struct Channel {
    shared: Arc<SharedMemory>,
    socket: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// A connection's channels.
pub type Channels = Vec<Channel>;

/// Starts a channel and puts the client's descriptors, memory and socket, into the reply.
///
/// # Errors
/// `EMFILE` when the connection has all it may have; `EAGAIN` when no thread can be started; what the calls say.
pub fn open(session: &Arc<Session>, reply: &mut Reply) -> Result<(), Errno> {
    let mut channels = session.channels().lock();
    if channels.len() >= CHANNELS_MAX {
        return Err(Errno::MFILE);
    }
    let memory = memfd_create(c"channel", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&memory, u64::try_from(layout::SIZE).map_err(|_| Errno::FBIG)?)?;
    fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    let shared = SharedMemory::map(memory.as_fd(), layout::SIZE)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::NOMEM))?;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let (shared, socket, stop) = (Arc::new(shared), Arc::new(ours), Arc::new(AtomicBool::new(false)));
    let server = Server {
        session: Arc::clone(session),
        shared: Arc::clone(&shared),
        socket: Arc::clone(&socket),
        stop: Arc::clone(&stop),
        request: Vec::new(),
    };
    let thread = thread::Builder::new()
        .name("channel".to_owned())
        .spawn(move || server.run())
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))?;
    channels.push(Channel { shared, socket, stop, thread });
    reply.fds.extend([memory.into(), theirs.into()]);
    Ok(())
}

/// Ends a connection's channels and waits for their threads.
pub fn close_all(channels: Channels) {
    for channel in &channels {
        channel.stop.store(true, Ordering::Release);
        // Already shut down by the client: as well.
        let _ = rustix::net::shutdown(&*channel.socket, Shutdown::Both);
    }
    for channel in channels {
        while !channel.thread.is_finished() {
            channel.shared.wake_all(layout::STATE);
            thread::sleep(ENDING);
        }
        // A thread that panicked has told so itself, and served nobody else.
        let _ = channel.thread.join();
    }
}

struct Server {
    session: Arc<Session>,
    shared: Arc<SharedMemory>,
    socket: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
    request: Vec<u8>,
}

impl Server {
    fn run(mut self) {
        let mut reply = Reply::default();
        let mut patience = Patience::default();
        let (word, value, sleeping) = (layout::STATE, layout::REQUEST, layout::SERVER_SLEEPING);
        while !self.stop.load(Ordering::Acquire) {
            let wait = Wait { word, value, sleeping, spins: patience.spins(), timeout: None };
            let waited = self.shared.wait(wait);
            patience.learn(waited);
            if waited == Waited::TimedOut {
                continue;
            }
            let Ok(header) = self.serve(&mut reply) else { break };
            if !self.put(header, &reply) {
                break;
            }
            self.shared.publish(layout::STATE, layout::REPLY, layout::CLIENT_SLEEPING);
            reply.clear();
        }
        self.shared.publish(layout::STATE, layout::DEAD, layout::CLIENT_SLEEPING);
    }

    /// Serves the request in the message area; descriptors have gone when this returns.
    fn serve(&mut self, reply: &mut Reply) -> Result<Header, Errno> {
        let message = take(&self.shared, &mut self.request);
        let header = self.session.answer(message, reply);
        if reply.fds.is_empty() {
            return Ok(header);
        }
        match transport::send(&*self.socket, &[IoSlice::new(b"F")], &reply.fds) {
            Err(errno @ (Errno::TOOMANYREFS | Errno::NOBUFS | Errno::NOMEM)) => {
                Ok(reply.finish(header.message, header.tag, Err(errno)))
            }
            done => done.map(|()| header),
        }
    }

    fn put(&self, header: Header, reply: &Reply) -> bool {
        self.shared.write(layout::MESSAGE, &header.to_bytes())
            && self.shared.write(layout::MESSAGE.saturating_add(HEADER_SIZE), &reply.payload)
    }
}

/// Copies the message out and checks its frame.
fn take<'a>(shared: &SharedMemory, request: &'a mut Vec<u8>) -> Result<(Header, &'a [u8]), BadPacket> {
    let mut bytes = [0; HEADER_SIZE];
    if !shared.read(layout::MESSAGE, &mut bytes) {
        return Err(BadPacket::new(&bytes, WireError::Truncated));
    }
    let (header, _) = Header::parse(&bytes).map_err(|error| BadPacket::new(&bytes, error))?;
    let length = usize::try_from(header.length).unwrap_or(usize::MAX).min(MAX_PAYLOAD);
    request.resize(length, 0);
    if !shared.read(layout::MESSAGE.saturating_add(HEADER_SIZE), request) {
        return Err(BadPacket::new(&bytes, WireError::Length));
    }
    Ok((header, request.as_slice()))
}
