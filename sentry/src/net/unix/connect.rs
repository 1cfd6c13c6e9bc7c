//! Connecting: who meets whom.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::inbox::Inbox;
use super::{Forward, Peer, Role, UnixAddress, UnixSocket, address};
use crate::errno::{Errno, SysResult};
use crate::net::control::Identity;
use crate::net::patience::Patience;
use crate::task::SyscallContext;
use crate::vfs::File;
use crate::wait::PollEvents;

impl UnixSocket {
    /// A finished connection for `client` in our queue. `EAGAIN` when the queue is full, `ECONNREFUSED` if we do not listen.
    pub(super) fn enqueue(&self, client: &UnixSocket, embryo: &Arc<UnixSocket>) -> SysResult<Peer> {
        let mut state = self.lock();
        let (local, identity) = (state.local.clone(), state.identity.clone());
        let Role::Listening { backlog, pending } = &mut state.role else { return Err(Errno::ECONNREFUSED) };
        if pending.len() > *backlog {
            return Err(Errno::EAGAIN);
        }
        embryo.lock().local = local.clone();
        pending.push_back(embryo.clone());
        drop(state);
        client.lock().identity = identity;
        self.queue.notify(PollEvents::READABLE);
        Ok(Peer { inbox: embryo.inbox.clone(), address: local, _space: None })
    }

    pub(super) fn connect_stream(
        &self,
        ctx: &mut SyscallContext<'_>,
        file: &File,
        address: &UnixAddress,
    ) -> SysResult {
        let me = self.me.upgrade().ok_or(Errno::ENOTCONN)?;
        let embryo = UnixSocket::new(self.kind);
        {
            let mut state = embryo.lock();
            let own = self.lock().local.clone();
            state.role = Role::Connected(Peer { address: own, ..me.as_peer() });
            state.identity = Some(Identity::effective(ctx.task));
        }
        let listener = address::find(ctx, self.kind, address)?;
        let attempt = |_: &mut SyscallContext<'_>| listener.enqueue(&me, &embryo);
        let patience = Patience::new(file, false, self.options.send_timeout());
        let peer = patience.until(ctx, &listener.queue, PollEvents::WRITABLE, attempt)?;
        self.lock().role = Role::Connected(peer);
        self.queue.notify(PollEvents::WRITABLE);
        Ok(())
    }

    pub(super) fn connect_datagram(&self, ctx: &SyscallContext<'_>, bytes: &[u8]) -> SysResult {
        let role = if UnixAddress::is_unspecified(bytes) {
            self.inbox.only_from.store(0, Ordering::Relaxed);
            Role::Idle
        } else {
            let target = address::find(ctx, self.kind, &UnixAddress::parse(bytes)?)?;
            self.may_send_to(&target.inbox)?;
            self.inbox.only_from.store(target.inbox_address(), Ordering::Relaxed);
            let forward = Arc::new(Forward(self.queue.clone()));
            let space = target.inbox.space.register(PollEvents::WRITABLE, forward);
            let address = target.lock().local.clone();
            Role::Connected(Peer { inbox: target.inbox.clone(), address, _space: Some(space) })
        };
        let former = std::mem::replace(&mut self.lock().role, role);
        drop(former);
        self.queue.notify(PollEvents::WRITABLE);
        Ok(())
    }

    /// `EPERM` if a datagram socket's owner has connected it to somebody else.
    pub(super) fn may_send_to(&self, target: &Inbox) -> SysResult {
        let only = target.only_from.load(Ordering::Relaxed);
        if only == 0 || only == self.inbox_address() { Ok(()) } else { Err(Errno::EPERM) }
    }
}
