//! Sending and receiving.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::inbox::{Inbox, Parcel};
use super::{Role, UnixSocket, garbage};
use crate::errno::{Errno, SysResult};
use crate::io::{IoDst, IoSrc};
use crate::net::control::{Identity, Sent};
use crate::net::socket::{MsgFlags, Receipt, SocketType};
use crate::task::current;
use crate::wait::PollEvents;

/// What a message may be shorter than `SO_SNDBUF` (Linux keeps 32 bytes for itself).
const RESERVE: usize = 32;

impl UnixSocket {
    /// Sends to `target`, or to the peer.
    pub(super) fn transmit(
        &self,
        src: &mut dyn IoSrc,
        target: Option<&UnixSocket>,
        sent: &mut Sent,
    ) -> SysResult<usize> {
        let (silent, local, peer) = {
            let state = self.lock();
            let peer = match &state.role {
                Role::Connected(peer) => Some(peer.inbox.clone()),
                _ => None,
            };
            (state.silent, state.local.clone(), peer)
        };
        let inbox = target.map(|target| target.inbox.clone()).or(peer).ok_or(Errno::ENOTCONN)?;
        if silent {
            return Err(Errno::EPIPE);
        }
        if self.kind == SocketType::Datagram {
            self.may_send_to(&inbox)?;
            if inbox.is_dead() {
                self.forget_peer(&inbox);
                return Err(Errno::ECONNREFUSED);
            }
        }
        let stamps = [&self.inbox, &inbox].iter().any(|end| end.wants_identity.load(Ordering::Relaxed));
        let identity = match &sent.identity {
            Some(chosen) => Some(chosen.clone()),
            None if stamps => current::current().map(|task| Identity::of(&task)),
            None => None,
        };
        if let Some(rights) = &sent.rights {
            garbage::note(rights.files());
        }
        let limit = self.options.send_buffer();
        let parcel = Parcel { identity, rights: &mut sent.rights, from: local, limit };
        if self.kind == SocketType::Stream {
            if src.remaining() == 0 {
                return Ok(0);
            }
            return inbox.push_stream(src, parcel);
        }
        self.transmit_message(src, &inbox, parcel)
    }

    fn transmit_message(
        &self,
        src: &mut dyn IoSrc,
        inbox: &Arc<Inbox>,
        parcel: Parcel<'_>,
    ) -> SysResult<usize> {
        let len = src.remaining();
        if len > parcel.limit.saturating_sub(RESERVE) {
            return Err(Errno::EMSGSIZE);
        }
        let strangers = self.kind == SocketType::Datagram && !self.is_mutual(Some(inbox));
        // The source must stay untouched when the caller has to wait and come again.
        inbox.may_push(parcel.limit, strangers)?;
        let mut data = vec![0; len];
        let mut taken = 0;
        while taken < len {
            match src.take(data.get_mut(taken..).unwrap_or_default()) {
                Ok(0) | Err(_) => return Err(Errno::EFAULT),
                Ok(count) => taken = taken.saturating_add(count),
            }
        }
        inbox.push_message(&data, parcel)
    }

    /// A datagram peer is gone: the socket is unconnected again.
    fn forget_peer(&self, inbox: &Arc<Inbox>) {
        let mut state = self.lock();
        let connected = matches!(&state.role, Role::Connected(peer) if Arc::ptr_eq(&peer.inbox, inbox));
        let former = connected.then(|| std::mem::replace(&mut state.role, Role::Idle));
        drop(state);
        if former.is_some() {
            self.inbox.only_from.store(0, Ordering::Relaxed);
        }
    }

    /// Receives.
    pub(super) fn collect_message(&self, dst: &mut dyn IoDst, flags: MsgFlags) -> SysResult<Receipt> {
        if flags.intersects(MsgFlags::OOB | MsgFlags::ERRQUEUE) {
            return Err(if flags.contains(MsgFlags::ERRQUEUE) { Errno::EAGAIN } else { Errno::EOPNOTSUPP });
        }
        let peer = match &self.lock().role {
            Role::Connected(peer) => Some(peer.inbox.clone()),
            _ if self.kind == SocketType::Stream => return Err(Errno::EINVAL),
            _ if self.kind == SocketType::SeqPacket => return Err(Errno::ENOTCONN),
            _ => None,
        };
        let (receipt, space) = match self.kind {
            SocketType::Stream => self.inbox.take_stream(dst, flags)?,
            _ => self.inbox.take_message(dst, flags)?,
        };
        if space {
            self.inbox.space.notify(PollEvents::WRITABLE);
            if let Some(peer) = peer {
                peer.queue.notify(PollEvents::WRITABLE);
            }
        }
        Ok(receipt)
    }
}
