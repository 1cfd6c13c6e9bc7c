//! Unix sockets of the host, where the mount's options let a guest at them.
//!
//! Every socket is non-blocking: neither a connect to a full backlog nor an accept holds up the connection.

use std::sync::Arc;

use caisson_proto::lisafs::reply::{Created, MountFlags};
use caisson_proto::lisafs::request::{NewFile, SocketKind, UnlinkKind};
use caisson_proto::lisafs::{FdId, FileKind, Name};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use super::namespace;
use crate::session::Session;
use crate::table::Object;
use crate::transport::Reply;

/// `SOMAXCONN`
const BACKLOG_MAX: u32 = 4096;

fn new_socket(kind: SocketKind) -> Result<std::os::fd::OwnedFd, Errno> {
    let kind = match kind {
        SocketKind::Stream => SocketType::STREAM,
        SocketKind::Datagram => SocketType::DGRAM,
        SocketKind::SeqPacket => SocketType::SEQPACKET,
    };
    socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

pub(super) fn connect(s: &Session, fd: FdId, kind: SocketKind, reply: &mut Reply) -> Result<(), Errno> {
    let node = s.node(fd)?;
    if node.kind != FileKind::Socket || !s.allows(MountFlags::CONNECT) {
        return Err(Errno::CONNREFUSED);
    }
    let socket = new_socket(kind)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(s.host.path_of(&node.fd))?)?;
    reply.fds.push(socket.into());
    Ok(())
}

pub(super) fn bind(
    s: &Session,
    dir: FdId,
    name: Name<'_>,
    kind: SocketKind,
    new: NewFile,
    reply: &mut Reply,
) -> Result<(), Errno> {
    let parent = s.node(dir)?;
    if !s.allows(MountFlags::BIND) {
        return Err(Errno::PERM);
    }
    if parent.kind != FileKind::Directory {
        return Err(Errno::NOTDIR);
    }
    s.check_room()?;
    let mut path = s.host.path_of(&parent.fd).into_bytes();
    path.push(b'/');
    path.extend_from_slice(name.as_bytes());
    let socket = new_socket(kind)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    let (fd, attr) =
        namespace::find_new(s, &parent, name, FileKind::Socket, new.owner, Some(new.permissions))?;
    let donated = rustix::io::fcntl_dupfd_cloexec(&socket, 0)?;
    let insert = || {
        let open = s.insert(Object::Socket(Arc::new(socket)))?;
        match s.insert_node(fd, FileKind::Socket) {
            Ok(node) => Ok((node, open)),
            Err(errno) => {
                s.table.lock().remove(open);
                Err(errno)
            }
        }
    };
    let (node, open) = namespace::or_unlink(insert(), &parent, name, UnlinkKind::File)?;
    reply.fds.push(donated.into());
    Created { node, attr, open: Some(open) }.encode(&mut reply.payload);
    Ok(())
}

pub(super) fn listen(s: &Session, fd: FdId, backlog: u32) -> Result<(), Errno> {
    let backlog = i32::try_from(backlog.min(BACKLOG_MAX)).map_err(|_| Errno::INVAL)?;
    rustix::net::listen(&*s.socket(fd)?, backlog)
}

pub(super) fn accept(s: &Session, fd: FdId, reply: &mut Reply) -> Result<(), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    reply.fds.push(rustix::net::accept_with(&*s.socket(fd)?, flags)?.into());
    Ok(())
}
