//! Unix sockets (`unix(7)`): streams, datagrams, sequenced packets.
//!
//! A [`UnixSocket`] owns an [`inbox::Inbox`]; a connected one holds its peer's. What a peer needs to know about the other's
//! end (no more data, no more receiving, an error) is told to the inbox, so that no socket ever locks another's state.
//! Connections wait in the listener's state as finished sockets until somebody accepts them.
//!
//! ```text
//!   Idle ──listen──▶ Listening ──accept──▶ (a new Connected)
//!     └──connect───▶ Connected ──peer closes──▶ Connected to a dead inbox
//! ```
//!
//! Lock order: a socket's state, then an inbox's; two states are never held together.
//!
//! Not there yet: `MSG_OOB`, `SO_PEEK_OFF`, `SO_PEERPIDFD`, `SO_PASSPIDFD`, sockets of the host behind nodes of bind mounts.

mod address;
mod charge;
mod connect;
mod garbage;
mod inbox;
mod options;
#[cfg(test)]
mod tests;
mod transfer;

use std::any::Any;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use linux_raw_sys::net as linux;
use parking_lot::{Mutex, MutexGuard};

use address::NameGuard;
pub use address::UnixAddress;
use inbox::Inbox;

use super::control::{Identity, Rights, Sent};
use super::options::Options;
use super::socket::{Destination, MsgFlags, Receipt, Shutdown, Socket, SocketType};
use crate::errno::{Errno, SysResult};
use crate::io::{IoDst, IoSrc};
use crate::task::SyscallContext;
use crate::vfs::File;
use crate::wait::{Observer, PollEvents, Registration, WaitQueue};

/// Longest queue of connections (`net.core.somaxconn`).
const MAX_BACKLOG: usize = 4096;

/// A unix socket.
pub struct UnixSocket {
    me: Weak<UnixSocket>,
    kind: SocketType,
    queue: Arc<WaitQueue>,
    inbox: Arc<Inbox>,
    options: Options,
    state: Mutex<State>,
}

struct State {
    role: Role,
    local: Option<Arc<UnixAddress>>,
    /// Keeps an abstract name taken.
    name: Option<NameGuard>,
    /// `bind` or `connect` is under way.
    busy: bool,
    /// Sending is shut down.
    silent: bool,
    closed: bool,
    /// Whom `SO_PEERCRED` shows: the peer, or for a listener itself.
    identity: Option<Identity>,
}

enum Role {
    Idle,
    Listening { backlog: usize, pending: VecDeque<Arc<UnixSocket>> },
    Connected(Peer),
}

struct Peer {
    inbox: Arc<Inbox>,
    address: Option<Arc<UnixAddress>>,
    /// Tells us of space in the inbox of a datagram peer.
    _space: Option<Registration>,
}

/// Passes a datagram peer's space on to our own waiters.
struct Forward(Arc<WaitQueue>);

impl Observer for Forward {
    fn notified(&self, events: PollEvents) {
        self.0.notify(events);
    }
}

fn check(kind: SocketType, protocol: i32) -> SysResult<SocketType> {
    if protocol != 0 && u32::try_from(protocol) != Ok(linux::AF_UNIX) {
        return Err(Errno::EPROTONOSUPPORT);
    }
    match kind {
        SocketType::Raw => Ok(SocketType::Datagram),
        SocketType::Reliable => Err(Errno::ESOCKTNOSUPPORT),
        other => Ok(other),
    }
}

impl UnixSocket {
    /// `socket(AF_UNIX, …)`
    pub fn create(_: &SyscallContext<'_>, kind: SocketType, protocol: i32) -> SysResult<Arc<UnixSocket>> {
        Ok(UnixSocket::new(check(kind, protocol)?))
    }

    /// `socketpair(AF_UNIX, …)`
    pub fn pair(
        ctx: &SyscallContext<'_>,
        kind: SocketType,
        protocol: i32,
    ) -> SysResult<[Arc<UnixSocket>; 2]> {
        let pair = UnixSocket::connected_pair(check(kind, protocol)?);
        for socket in &pair {
            socket.lock().identity = Some(Identity::effective(ctx.task));
        }
        Ok(pair)
    }

    fn connected_pair(kind: SocketType) -> [Arc<UnixSocket>; 2] {
        let pair = [UnixSocket::new(kind), UnixSocket::new(kind)];
        let [first, second] = &pair;
        first.lock().role = Role::Connected(second.as_peer());
        second.lock().role = Role::Connected(first.as_peer());
        if kind == SocketType::Datagram {
            first.inbox.only_from.store(second.inbox_address(), Ordering::Relaxed);
            second.inbox.only_from.store(first.inbox_address(), Ordering::Relaxed);
        }
        pair
    }

    fn new(kind: SocketType) -> Arc<UnixSocket> {
        let queue: Arc<WaitQueue> = Arc::default();
        let state = State {
            role: Role::Idle,
            local: None,
            name: None,
            busy: false,
            silent: false,
            closed: false,
            identity: None,
        };
        Arc::new_cyclic(|me| UnixSocket {
            me: me.clone(),
            kind,
            inbox: Inbox::new(&queue),
            queue,
            options: Options::default(),
            state: Mutex::new(state),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn inbox_address(&self) -> usize {
        Arc::as_ptr(&self.inbox) as usize
    }

    fn as_peer(&self) -> Peer {
        Peer { inbox: self.inbox.clone(), address: None, _space: None }
    }

    /// Its type.
    pub fn socket_type(&self) -> SocketType {
        self.kind
    }

    /// Whether its description is gone.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn is_connection_based(&self) -> bool {
        self.kind != SocketType::Datagram
    }

    /// The peer's inbox; `ENOTCONN`.
    fn peer(&self) -> SysResult<Arc<Inbox>> {
        match &self.lock().role {
            Role::Connected(peer) => Ok(peer.inbox.clone()),
            _ => Err(Errno::ENOTCONN),
        }
    }

    /// Sockets that wait in its queue to be accepted, and itself.
    fn with_pending(&self) -> Vec<Arc<UnixSocket>> {
        let mut sockets: Vec<Arc<UnixSocket>> = self.me.upgrade().into_iter().collect();
        if let Role::Listening { pending, .. } = &self.lock().role {
            sockets.extend(pending.iter().cloned());
        }
        sockets
    }

    /// Runs `act` over every description in its queues.
    fn for_each_queued_file(&self, act: &mut dyn FnMut(&Arc<File>)) {
        for socket in self.with_pending() {
            socket.inbox.for_each_file(&mut *act);
        }
    }

    /// Takes every description out of its queues.
    fn queued_rights(&self) -> Vec<Rights> {
        self.with_pending().iter().flat_map(|socket| socket.inbox.take_rights()).collect()
    }
}

impl Socket for UnixSocket {
    fn family(&self) -> u32 {
        linux::AF_UNIX
    }

    fn kind(&self) -> SocketType {
        self.kind
    }

    fn bind(&self, ctx: &SyscallContext<'_>, address: &[u8]) -> SysResult {
        let address = UnixAddress::parse(address)?;
        let me = self.me.upgrade().ok_or(Errno::EINVAL)?;
        {
            let mut state = self.lock();
            if state.busy || state.local.is_some() {
                // A second nameless bind changes nothing.
                let again = address == UnixAddress::Unnamed && state.local.is_some();
                return if again { Ok(()) } else { Err(Errno::EINVAL) };
            }
            state.busy = true;
        }
        let claimed = address::claim(ctx, &me, address);
        let mut state = self.lock();
        state.busy = false;
        let (address, guard) = claimed?;
        state.local = Some(Arc::new(address));
        state.name = guard;
        Ok(())
    }

    fn connect(&self, ctx: &mut SyscallContext<'_>, file: &File, address: &[u8]) -> SysResult {
        if self.kind == SocketType::Datagram {
            return self.connect_datagram(ctx, address);
        }
        let address = UnixAddress::parse(address)?;
        {
            let mut state = self.lock();
            match state.role {
                Role::Connected(_) => return Err(Errno::EISCONN),
                Role::Listening { .. } => return Err(Errno::EINVAL),
                Role::Idle if state.busy => return Err(Errno::EALREADY),
                Role::Idle => state.busy = true,
            }
        }
        let result = self.connect_stream(ctx, file, &address);
        self.lock().busy = false;
        result
    }

    fn listen(&self, ctx: &SyscallContext<'_>, backlog: i32) -> SysResult {
        if !self.is_connection_based() {
            return Err(Errno::EOPNOTSUPP);
        }
        let mut state = self.lock();
        if state.local.is_none() || state.busy {
            return Err(Errno::EINVAL);
        }
        // A negative length is a very long one, as in Linux.
        let length = usize::try_from(backlog as u32).unwrap_or(MAX_BACKLOG).min(MAX_BACKLOG);
        match &mut state.role {
            Role::Idle => state.role = Role::Listening { backlog: length, pending: VecDeque::new() },
            Role::Listening { backlog, .. } => *backlog = length,
            Role::Connected(_) => return Err(Errno::EINVAL),
        }
        state.identity = Some(Identity::effective(ctx.task));
        drop(state);
        self.queue.notify(PollEvents::WRITABLE);
        Ok(())
    }

    fn accept(&self) -> SysResult<Arc<dyn Socket>> {
        if !self.is_connection_based() {
            return Err(Errno::EOPNOTSUPP);
        }
        let mut state = self.lock();
        let Role::Listening { pending, .. } = &mut state.role else { return Err(Errno::EINVAL) };
        let next = pending.pop_front();
        drop(state);
        match next {
            Some(socket) => {
                self.queue.notify(PollEvents::WRITABLE);
                Ok(socket)
            }
            None if self.inbox.has_ended() => Err(Errno::EINVAL),
            None => Err(Errno::EAGAIN),
        }
    }

    fn send_queue(&self, destination: Option<&Destination>) -> Arc<WaitQueue> {
        match destination.and_then(|destination| destination.downcast_ref::<UnixSocket>()) {
            Some(target) => target.inbox.space.clone(),
            None => self.queue.clone(),
        }
    }

    fn resolve(&self, ctx: &SyscallContext<'_>, address: &[u8]) -> SysResult<Destination> {
        if self.is_connection_based() {
            let connected = matches!(self.lock().role, Role::Connected(_));
            let error = if connected { Errno::EISCONN } else { Errno::EOPNOTSUPP };
            return Err(if self.kind == SocketType::SeqPacket && !connected {
                Errno::ENOTCONN
            } else {
                error
            });
        }
        let target = address::find(ctx, self.kind, &UnixAddress::parse(address)?)?;
        Ok(target)
    }

    fn send(
        &self,
        src: &mut dyn IoSrc,
        destination: Option<&Destination>,
        sent: &mut Sent,
    ) -> SysResult<usize> {
        let target = destination.and_then(|destination| destination.downcast_ref::<UnixSocket>());
        self.transmit(src, target, sent)
    }

    fn receive(&self, dst: &mut dyn IoDst, flags: MsgFlags) -> SysResult<Receipt> {
        self.collect_message(dst, flags)
    }

    fn shutdown(&self, how: Shutdown) -> SysResult {
        let peer = {
            let mut state = self.lock();
            state.silent |= how.writes();
            match &state.role {
                Role::Connected(peer) if self.is_connection_based() => Some(peer.inbox.clone()),
                _ => None,
            }
        };
        if how.reads() {
            self.inbox.refuse();
        }
        if let (Some(peer), true) = (&peer, how.writes()) {
            peer.end(None);
        }
        if let (Some(peer), true) = (&peer, how.reads()) {
            // The peer's writes fail from now on: let its waiters find out.
            peer.queue.notify(PollEvents::WRITABLE | PollEvents::HUP);
        }
        self.queue.notify(PollEvents::READABLE | PollEvents::WRITABLE | PollEvents::HUP);
        Ok(())
    }

    fn local_address(&self) -> Vec<u8> {
        let local = self.lock().local.clone();
        local.map_or_else(|| UnixAddress::Unnamed.to_bytes(), |local| local.to_bytes())
    }

    fn peer_address(&self) -> SysResult<Vec<u8>> {
        match &self.lock().role {
            Role::Connected(Peer { address: Some(address), .. }) => Ok(address.to_bytes()),
            Role::Connected(_) => Ok(UnixAddress::Unnamed.to_bytes()),
            _ => Err(Errno::ENOTCONN),
        }
    }

    fn poll(&self) -> PollEvents {
        self.readiness()
    }

    fn queue(&self) -> &Arc<WaitQueue> {
        &self.queue
    }

    fn get_option(&self, ctx: &SyscallContext<'_>, level: u32, name: u32) -> SysResult<Vec<u8>> {
        self.option(ctx, level, name)
    }

    fn set_option(&self, ctx: &SyscallContext<'_>, level: u32, name: u32, value: &[u8]) -> SysResult {
        if level != linux::SOL_SOCKET {
            return Err(Errno::EOPNOTSUPP);
        }
        self.options.set(&ctx.task.credentials(), name, value)?;
        if name == linux::SO_PASSCRED {
            self.inbox.wants_identity.store(self.options.is_on(name), Ordering::Relaxed);
        }
        Ok(())
    }

    fn receive_timeout(&self) -> Option<Duration> {
        self.options.receive_timeout()
    }

    fn send_timeout(&self) -> Option<Duration> {
        self.options.send_timeout()
    }

    fn readable_bytes(&self) -> SysResult<usize> {
        if matches!(self.lock().role, Role::Listening { .. }) {
            return Err(Errno::EINVAL);
        }
        Ok(self.inbox.readable_bytes(self.kind == SocketType::Stream))
    }

    fn unsent_bytes(&self) -> usize {
        self.peer().map_or(0, |peer| peer.pending_bytes())
    }

    fn close(&self) {
        let (role, name) = {
            let mut state = self.lock();
            state.closed = true;
            (std::mem::replace(&mut state.role, Role::Idle), state.name.take())
        };
        drop(name);
        let unread = self.inbox.close();
        match role {
            Role::Connected(peer) if self.is_connection_based() => {
                peer.inbox.end(unread.then_some(Errno::ECONNRESET));
            }
            Role::Connected(_) | Role::Idle => {}
            Role::Listening { pending, .. } => {
                for embryo in pending {
                    embryo.reset();
                }
            }
        }
        self.queue.notify(PollEvents::READABLE | PollEvents::WRITABLE | PollEvents::HUP);
        garbage::collect();
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl UnixSocket {
    /// A connection nobody accepted: its other end sees it reset.
    fn reset(&self) {
        let role = std::mem::replace(&mut self.lock().role, Role::Idle);
        self.inbox.close();
        if let Role::Connected(peer) = role {
            peer.inbox.end(Some(Errno::ECONNRESET));
        }
    }
}
