//! Attributes of files and file systems.

use std::os::fd::AsFd;

use caisson_proto::lisafs::{FdId, FileKind, SetAttr, SetTime, reply};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timestamps, Uid, chownat, ftruncate, utimensat};
use rustix::io::Errno;

use crate::attr;
use crate::session::Session;
use crate::table::{Node, Object};
use crate::transport::Reply;

pub(super) fn stat(s: &Session, fd: FdId, reply: &mut Reply) -> Result<(), Errno> {
    let attr = with_fd(&s.object(fd)?, |fd| attr::read(fd))?;
    reply::attr::encode(&attr, &mut reply.payload);
    Ok(())
}

pub(super) fn stat_fs(s: &Session, fd: FdId, reply: &mut Reply) -> Result<(), Errno> {
    with_fd(&s.object(fd)?, |fd| attr::read_statfs(fd))?.encode(&mut reply.payload);
    Ok(())
}

/// Applies what is asked for in the order that the protocol promises.
pub(super) fn set_attr(s: &Session, fd: FdId, set: &SetAttr, reply: &mut Reply) -> Result<(), Errno> {
    let object = s.object(fd)?;
    if let Some(size) = set.size {
        truncate(s, &object, size)?;
    }
    let attr = with_fd(&object, |fd| {
        if set.uid.is_some() || set.gid.is_some() {
            chown(fd, set.uid, set.gid)?;
        }
        if let Some(permissions) = set.permissions {
            match &object {
                // Linux has no permissions for symbolic links.
                Object::Node(node) if node.kind == FileKind::Symlink => return Err(Errno::OPNOTSUPP),
                _ => s.host.chmod(fd, Mode::from_raw_mode(permissions))?,
            }
        }
        if set.atime != SetTime::Keep || set.mtime != SetTime::Keep {
            let times = Timestamps {
                last_access: attr::set_time(set.atime),
                last_modification: attr::set_time(set.mtime),
            };
            utimensat(fd, c"", &times, AtFlags::EMPTY_PATH)?;
        }
        attr::read(fd)
    })?;
    reply::attr::encode(&attr, &mut reply.payload);
    Ok(())
}

/// `chown(2)` of the file behind any descriptor, a symbolic link itself too.
pub(super) fn chown(fd: impl AsFd, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
    chownat(fd, c"", uid.map(Uid::from_raw), gid.map(Gid::from_raw), AtFlags::EMPTY_PATH)
}

fn truncate(s: &Session, object: &Object, size: u64) -> Result<(), Errno> {
    match object {
        Object::Node(node) => truncate_node(s, node, size),
        Object::File(file) if file.writable => ftruncate(&file.fd, size),
        _ => Err(Errno::INVAL),
    }
}

fn truncate_node(s: &Session, node: &Node, size: u64) -> Result<(), Errno> {
    match node.kind {
        FileKind::Regular => ftruncate(s.host.reopen(node, OFlags::WRONLY)?, size),
        FileKind::Directory => Err(Errno::ISDIR),
        _ => Err(Errno::INVAL),
    }
}

/// Calls `act` with the object's descriptor.
fn with_fd<T>(
    object: &Object,
    act: impl FnOnce(std::os::fd::BorrowedFd<'_>) -> Result<T, Errno>,
) -> Result<T, Errno> {
    match object {
        Object::Node(node) => act(node.fd.as_fd()),
        Object::File(file) => act(file.fd.as_fd()),
        Object::Dir(dir) => act(dir.fd.as_fd()),
        Object::Socket(_) => Err(Errno::BADF),
    }
}
