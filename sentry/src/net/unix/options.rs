//! Options and readiness.

use linux_raw_sys::net as linux;

use super::{Role, UnixSocket};
use crate::errno::{Errno, SysResult};
use crate::net::control::Identity;
use crate::net::socket::SocketType;
use crate::task::SyscallContext;
use crate::wait::PollEvents;

impl UnixSocket {
    /// `getsockopt`
    pub(super) fn option(&self, ctx: &SyscallContext<'_>, level: u32, name: u32) -> SysResult<Vec<u8>> {
        if level != linux::SOL_SOCKET {
            return Err(Errno::EOPNOTSUPP);
        }
        let number = match name {
            linux::SO_TYPE => self.kind as u32,
            linux::SO_DOMAIN => linux::AF_UNIX,
            linux::SO_PROTOCOL => 0,
            linux::SO_ERROR => self.inbox.take_error().map_or(0, |error| u32::from(error.number())),
            linux::SO_ACCEPTCONN => u32::from(matches!(self.lock().role, Role::Listening { .. })),
            linux::SO_PEERCRED => {
                let identity = self.lock().identity.clone();
                let namespace = ctx.task.pid_namespace();
                let nobody = Identity { pid: None, uid: u32::MAX, gid: u32::MAX };
                return Ok(identity.unwrap_or(nobody).to_bytes(namespace.as_deref()).to_vec());
            }
            _ => return self.options.get(name),
        };
        Ok(number.to_ne_bytes().to_vec())
    }

    /// What `poll` shows (`unix_poll`, `unix_dgram_poll`).
    pub(super) fn readiness(&self) -> PollEvents {
        let mut events = PollEvents::empty();
        let state = self.lock();
        let (silent, peer) = match &state.role {
            Role::Listening { pending, .. } => {
                events.set(PollEvents::READABLE, !pending.is_empty());
                drop(state);
                if self.inbox.has_ended() {
                    events |= PollEvents::READABLE | PollEvents::RDHUP | PollEvents::HUP;
                }
                return events;
            }
            Role::Connected(peer) => (state.silent, Some(peer.inbox.clone())),
            Role::Idle => (state.silent, None),
        };
        drop(state);
        let (limit, based) = (self.options.send_buffer(), self.is_connection_based());
        let gone = based && peer.as_ref().is_some_and(|peer| peer.is_dead());
        let ended = self.inbox.has_ended() || gone;
        events.set(PollEvents::ERR, self.inbox.has_error());
        events.set(PollEvents::READABLE, self.inbox.is_readable() || ended);
        events.set(PollEvents::RDHUP, ended);
        // Hung up: both directions are over, or there never was a connection.
        let over = ended && (silent || gone || self.peer_refuses(peer.as_deref()));
        events.set(PollEvents::HUP, over || (based && peer.is_none()));
        let strangers = self.kind == SocketType::Datagram && !self.is_mutual(peer.as_deref());
        let writable = peer.is_none_or(|peer| peer.is_dead() || peer.is_writable(limit, strangers));
        events.set(PollEvents::WRITABLE, writable);
        events
    }

    /// Whether a connection's peer receives no more.
    fn peer_refuses(&self, peer: Option<&super::Inbox>) -> bool {
        self.is_connection_based() && peer.is_some_and(super::Inbox::refuses)
    }

    /// Whether a datagram peer is connected to us in turn: then only the buffer's size counts.
    pub(super) fn is_mutual(&self, peer: Option<&super::Inbox>) -> bool {
        let only = peer.map_or(0, |peer| peer.only_from.load(std::sync::atomic::Ordering::Relaxed));
        only == self.inbox_address()
    }
}
