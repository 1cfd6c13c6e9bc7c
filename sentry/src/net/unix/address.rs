//! Unix addresses: paths, abstract names, and who listens there.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Weak};

use linux_raw_sys::net as linux;
use parking_lot::Mutex;

use super::UnixSocket;
use crate::errno::{Errno, SysResult};
use crate::net::socket::SocketType;

use crate::task::SyscallContext;
use crate::vfs::walk::WalkFlags;
use crate::vfs::{Access, Caller, FileType, NodeKind};

/// Bytes before the path in a `struct sockaddr_un`.
const PREFIX: usize = size_of::<u16>();
/// Longest address.
const MAX: usize = size_of::<linux::sockaddr_un>();
/// Numbers an autobound name is chosen from: five hexadecimal digits.
const AUTOBIND: u32 = 1 << 20;

/// An address of `AF_UNIX`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum UnixAddress {
    /// A socket node.
    Path(Vec<u8>),
    /// A name in the network namespace.
    Abstract(Vec<u8>),
    /// No name: in `bind`, one is to be chosen.
    Unnamed,
}

impl UnixAddress {
    /// From `struct sockaddr` bytes. `EINVAL` for another family or a bad length.
    pub fn parse(bytes: &[u8]) -> SysResult<UnixAddress> {
        let (family, path) = bytes.split_first_chunk::<PREFIX>().ok_or(Errno::EINVAL)?;
        if bytes.len() > MAX || u32::from(u16::from_ne_bytes(*family)) != linux::AF_UNIX {
            return Err(Errno::EINVAL);
        }
        Ok(match path.split_first() {
            None => UnixAddress::Unnamed,
            Some((0, name)) => UnixAddress::Abstract(name.to_vec()),
            Some(_) => {
                let end = path.iter().position(|byte| *byte == 0).unwrap_or(path.len());
                UnixAddress::Path(path.get(..end).unwrap_or(path).to_vec())
            }
        })
    }

    /// Whether these are the bytes that end a datagram socket's connection (`AF_UNSPEC`).
    pub fn is_unspecified(bytes: &[u8]) -> bool {
        bytes.first_chunk::<PREFIX>().is_some_and(|family| u16::from_ne_bytes(*family) == 0)
    }

    /// As `struct sockaddr` bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = (linux::AF_UNIX as u16).to_ne_bytes().to_vec();
        match self {
            UnixAddress::Path(path) => {
                bytes.extend_from_slice(path);
                bytes.push(0);
            }
            UnixAddress::Abstract(name) => {
                bytes.push(0);
                bytes.extend_from_slice(name);
            }
            UnixAddress::Unnamed => {}
        }
        bytes
    }
}

/// What makes an abstract name: the type of its socket, and its bytes.
type AbstractKey = (SocketType, Vec<u8>);

/// The abstract names of a network namespace. Names of different socket types do not meet.
#[derive(Default)]
pub struct AbstractNames {
    sockets: Mutex<HashMap<AbstractKey, Weak<UnixSocket>>>,
}

/// A name that is taken until this is dropped.
pub struct NameGuard {
    names: Arc<AbstractNames>,
    key: AbstractKey,
}

impl Drop for NameGuard {
    fn drop(&mut self) {
        self.names.sockets.lock().remove(&self.key);
    }
}

impl AbstractNames {
    fn of(ctx: &SyscallContext<'_>) -> SysResult<Arc<AbstractNames>> {
        ctx.task.namespaces().net.state_or(Arc::<AbstractNames>::default).ok_or(Errno::EADDRNOTAVAIL)
    }

    /// Takes a name. `EADDRINUSE`.
    pub fn take(self: &Arc<Self>, socket: &Arc<UnixSocket>, name: &[u8]) -> SysResult<NameGuard> {
        let key = (socket.socket_type(), name.to_vec());
        let mut sockets = self.sockets.lock();
        if sockets.contains_key(&key) {
            return Err(Errno::EADDRINUSE);
        }
        sockets.insert(key.clone(), Arc::downgrade(socket));
        Ok(NameGuard { names: self.clone(), key })
    }

    /// Takes a free name of five hexadecimal digits. `ENOSPC` when all are taken.
    pub fn take_any(self: &Arc<Self>, socket: &Arc<UnixSocket>) -> SysResult<(Vec<u8>, NameGuard)> {
        let mut seed = [0; 4];
        crate::fs::random::random_bytes(&mut seed)?;
        let start = u32::from_ne_bytes(seed);
        for step in 0..AUTOBIND {
            let name = format!("{:05x}", start.wrapping_add(step) % AUTOBIND).into_bytes();
            match self.take(socket, &name) {
                Err(Errno::EADDRINUSE) => {}
                Err(error) => return Err(error),
                Ok(guard) => return Ok((name, guard)),
            }
        }
        Err(Errno::ENOSPC)
    }

    fn find(&self, kind: SocketType, name: &[u8]) -> Option<Arc<UnixSocket>> {
        self.sockets.lock().get(&(kind, name.to_vec())).and_then(Weak::upgrade)
    }
}

/// Gives `socket` the address. Returns what it is then, and what keeps it taken.
pub(super) fn claim(
    ctx: &SyscallContext<'_>,
    socket: &Arc<UnixSocket>,
    address: UnixAddress,
) -> SysResult<(UnixAddress, Option<NameGuard>)> {
    match address {
        UnixAddress::Unnamed => {
            let (name, guard) = AbstractNames::of(ctx)?.take_any(socket)?;
            Ok((UnixAddress::Abstract(name), Some(guard)))
        }
        UnixAddress::Abstract(name) => {
            let guard = AbstractNames::of(ctx)?.take(socket, &name)?;
            Ok((UnixAddress::Abstract(name), Some(guard)))
        }
        UnixAddress::Path(path) => {
            let caller = Caller::of(ctx.task);
            let made = caller.mknod(caller.cwd(), &path, 0o777, NodeKind::Socket);
            let place =
                made.map_err(|error| if error == Errno::EEXIST { Errno::EADDRINUSE } else { error })?;
            let erased: Arc<dyn Any + Send + Sync> = socket.clone();
            *place.inode().attachments().socket.lock() = Some(Arc::downgrade(&erased));
            Ok((UnixAddress::Path(path), None))
        }
    }
}

/// The socket at an address. `ECONNREFUSED` if nobody is there, `EPROTOTYPE` if it is of another type.
pub(super) fn find(
    ctx: &SyscallContext<'_>,
    kind: SocketType,
    address: &UnixAddress,
) -> SysResult<Arc<UnixSocket>> {
    let socket = match address {
        UnixAddress::Unnamed => return Err(Errno::EINVAL),
        UnixAddress::Abstract(name) => AbstractNames::of(ctx)?.find(kind, name),
        UnixAddress::Path(path) => {
            let caller = Caller::of(ctx.task);
            let place = caller.lookup(caller.cwd(), path, WalkFlags::FOLLOW)?;
            place.inode().permission(&caller.credentials, Access::WRITE)?;
            if place.inode().file_type() != FileType::Socket {
                return Err(Errno::ECONNREFUSED);
            }
            let bound = place.inode().attachments().socket.lock().as_ref().and_then(Weak::upgrade);
            bound.and_then(|any| any.downcast::<UnixSocket>().ok())
        }
    };
    let socket = socket.filter(|socket| !socket.is_closed()).ok_or(Errno::ECONNREFUSED)?;
    if socket.socket_type() == kind { Ok(socket) } else { Err(Errno::EPROTOTYPE) }
}
