//! The client's side of a fast channel ([`caisson_proto::lisafs::channel`]).

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use caisson_platform_kvm::shm::{Patience, SharedMemory, Wait, Waited};
use caisson_proto::lisafs::header::HEADER_SIZE;
use caisson_proto::lisafs::{Header, MAX_PAYLOAD, WireError, channel as layout};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::connection::{Broken, receive};

/// How often a sleeping client looks whether the gofer is still there.
const SLICE: Duration = Duration::from_millis(50);

/// A channel, used by one request at a time.
pub(super) struct Channel {
    shared: SharedMemory,
    socket: OwnedFd,
    patience: Patience,
}

impl Channel {
    /// A channel from the descriptors that the gofer has sent.
    pub(super) fn new(memory: OwnedFd, socket: OwnedFd) -> std::io::Result<Channel> {
        let shared = SharedMemory::map(memory.as_fd(), layout::SIZE)?;
        Ok(Channel { shared, socket, patience: Patience::default() })
    }

    /// Sends a request and waits for the reply, whose payload `reply` gets.
    pub(super) fn call(
        &mut self,
        header: Header,
        request: &[u8],
        reply: &mut Vec<u8>,
    ) -> Result<(Header, Vec<OwnedFd>), Broken> {
        let body = layout::MESSAGE.saturating_add(HEADER_SIZE);
        if !self.shared.write(layout::MESSAGE, &header.to_bytes()) || !self.shared.write(body, request) {
            return Err(WireError::TooLong.into());
        }
        self.shared.publish(layout::STATE, layout::REQUEST, layout::SERVER_SLEEPING);
        self.await_reply()?;
        let mut bytes = [0; HEADER_SIZE];
        if !self.shared.read(layout::MESSAGE, &mut bytes) {
            return Err(WireError::Truncated.into());
        }
        let (header, _) = Header::parse(&bytes)?;
        reply.resize(usize::try_from(header.length).unwrap_or(usize::MAX).min(MAX_PAYLOAD), 0);
        if !self.shared.read(body, reply) {
            return Err(WireError::Length.into());
        }
        let fds = if header.fds == 0 { Vec::new() } else { receive(&self.socket, &mut [0; 1])?.1 };
        Ok((header, fds))
    }

    fn await_reply(&mut self) -> Result<(), Broken> {
        let (word, value, sleeping) = (layout::STATE, layout::REPLY, layout::CLIENT_SLEEPING);
        loop {
            let wait = Wait { word, value, sleeping, spins: self.patience.spins(), timeout: Some(SLICE) };
            let waited = self.shared.wait(wait);
            self.patience.learn(waited);
            if waited != Waited::TimedOut {
                return Ok(());
            }
            if self.has_hung_up() {
                return Err(Broken::Gone);
            }
        }
    }

    fn has_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::empty())];
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
        poll(&mut fds, PollTimeout::ZERO).is_ok()
            && fds.iter().any(|fd| fd.revents().is_some_and(|revents| revents.intersects(gone)))
    }
}
