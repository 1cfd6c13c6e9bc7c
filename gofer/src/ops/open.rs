//! Opening, creating, flushing, closing.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use caisson_proto::lisafs::reply::{Created, Opened};
use caisson_proto::lisafs::request::{NewFile, OpenFlags, UnlinkKind};
use caisson_proto::lisafs::{FdId, FileKind, Name};
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::namespace;
use crate::session::Session;
use crate::table::{Object, OpenDir, OpenFile};
use crate::transport::{Donation, Reply};

pub(super) fn open(s: &Session, fd: FdId, flags: OpenFlags, reply: &mut Reply) -> Result<(), Errno> {
    let node = s.node(fd)?;
    let directory = node.kind == FileKind::Directory;
    if directory && flags.intersects(OpenFlags::WRITE | OpenFlags::DONATE) {
        return Err(Errno::ISDIR);
    }
    if flags.contains(OpenFlags::KEEP) {
        s.check_room()?;
    }
    let host = s.host.reopen(&node, host_flags(flags))?;
    let fd = if directory {
        Some(s.insert(Object::Dir(Arc::new(OpenDir { fd: host, position: Mutex::new(0) })))?)
    } else {
        hand_out(s, host, flags, reply)?
    };
    Opened { fd }.encode(&mut reply.payload);
    Ok(())
}

/// Creates a regular file. The host's `O_EXCL` makes sure that it is new, so that giving it an owner cannot hit
/// anybody else's file.
pub(super) fn create(
    s: &Session,
    dir: FdId,
    name: Name<'_>,
    flags: OpenFlags,
    new: NewFile,
    reply: &mut Reply,
) -> Result<(), Errno> {
    let parent = s.node(dir)?;
    s.check_room()?;
    // Set-id bits come after the change of owner, which would clear them.
    let mode = Mode::from_raw_mode(new.permissions & 0o777);
    let host = s.host.create(&parent.fd, name, host_flags(flags).difference(OFlags::TRUNC), mode)?;
    let finish = || {
        let attr = namespace::give(s, &host, new.owner, Some(new.permissions))?;
        let node = s.insert_node(s.host.path_to(&host)?, FileKind::Regular)?;
        Ok((attr, node))
    };
    let (attr, node) = namespace::or_unlink(finish(), &parent, name, UnlinkKind::File)?;
    let open = match hand_out(s, host, flags, reply) {
        Ok(open) => open,
        Err(errno) => {
            s.table.lock().remove(node);
            return namespace::or_unlink(Err(errno), &parent, name, UnlinkKind::File);
        }
    };
    Created { node, attr, open }.encode(&mut reply.payload);
    Ok(())
}

/// Creates a regular file that has no name; it goes with its last descriptor unless it is linked before.
pub(super) fn create_unnamed(
    s: &Session,
    dir: FdId,
    flags: OpenFlags,
    new: NewFile,
    reply: &mut Reply,
) -> Result<(), Errno> {
    let parent = s.node(dir)?;
    s.check_room()?;
    let mode = Mode::from_raw_mode(new.permissions & 0o777);
    let host = s.host.create_unnamed(&parent.fd, host_flags(flags).difference(OFlags::TRUNC), mode)?;
    let attr = namespace::give(s, &host, new.owner, Some(new.permissions))?;
    let node = s.insert_node(s.host.path_to(&host)?, FileKind::Regular)?;
    let open = hand_out(s, host, flags, reply).inspect_err(|_| {
        s.table.lock().remove(node);
    })?;
    Created { node, attr, open }.encode(&mut reply.payload);
    Ok(())
}

/// The file systems whose times are those of this kernel's clock, so that who compares them with that clock knows what they prove.
/// Those of other machines (NFS, 9p, FUSE) may have another clock; `/proc` and the like do not keep times.
const LOCAL: &[i64] = &[
    libc::EXT4_SUPER_MAGIC,
    libc::XFS_SUPER_MAGIC,
    libc::BTRFS_SUPER_MAGIC,
    libc::F2FS_SUPER_MAGIC,
    libc::TMPFS_MAGIC,
    libc::OVERLAYFS_SUPER_MAGIC,
];

/// Donates the node's own descriptor. It opens nothing: with the calls that a sentry has an `O_PATH` one only tells attributes, and one that
/// is open for reading was given to it for that already ([`Node`]).
pub(super) fn witness(s: &Session, fd: FdId, reply: &mut Reply) -> Result<(), Errno> {
    let node = s.node(fd)?;
    if !tells(node.kind) || !is_local(&node.fd)? {
        return Err(Errno::OPNOTSUPP);
    }
    reply.fds.push(Donation::Of(node));
    Ok(())
}

/// Whether there are witnesses of files of this type.
pub(super) fn tells(kind: FileKind) -> bool {
    matches!(kind, FileKind::Regular | FileKind::Directory | FileKind::Symlink)
}

/// Whether there are witnesses of files on this file's file system.
pub(super) fn is_local(fd: impl AsFd) -> Result<bool, Errno> {
    Ok(LOCAL.contains(&rustix::fs::fstatfs(fd)?.f_type))
}

/// Donates the descriptor, keeps it, or both, as the flags ask.
fn hand_out(s: &Session, host: OwnedFd, flags: OpenFlags, reply: &mut Reply) -> Result<Option<FdId>, Errno> {
    if !flags.contains(OpenFlags::KEEP) {
        reply.fds.push(host.into());
        return Ok(None);
    }
    if flags.contains(OpenFlags::DONATE) {
        reply.fds.push(rustix::io::fcntl_dupfd_cloexec(&host, 0)?.into());
    }
    let (readable, writable) = (flags.contains(OpenFlags::READ), flags.contains(OpenFlags::WRITE));
    s.insert(Object::File(Arc::new(OpenFile { fd: host, readable, writable }))).map(Some)
}

fn host_flags(flags: OpenFlags) -> OFlags {
    let mut host = match (flags.contains(OpenFlags::READ), flags.contains(OpenFlags::WRITE)) {
        (true, true) => OFlags::RDWR,
        (false, true) => OFlags::WRONLY,
        _ => OFlags::RDONLY,
    };
    if flags.contains(OpenFlags::TRUNCATE) {
        host |= OFlags::TRUNC;
    }
    if flags.contains(OpenFlags::APPEND) {
        host |= OFlags::APPEND;
    }
    host
}

pub(super) fn fsync(s: &Session, fds: &[FdId]) -> Result<(), Errno> {
    let mut result = Ok(());
    for &fd in fds {
        result = result.and(fsync_one(s, fd));
    }
    result
}

fn fsync_one(s: &Session, fd: FdId) -> Result<(), Errno> {
    match s.object(fd)? {
        Object::File(file) => rustix::fs::fsync(&file.fd),
        Object::Dir(dir) => rustix::fs::fsync(&dir.fd),
        Object::Node(node) => rustix::fs::fsync(s.host.reopen(&node, OFlags::RDONLY)?),
        Object::Socket(_) => Err(Errno::INVAL),
    }
}

pub(super) fn sync_fs(s: &Session, fd: FdId) -> Result<(), Errno> {
    match s.object(fd)? {
        Object::File(file) => rustix::fs::syncfs(&file.fd),
        Object::Dir(dir) => rustix::fs::syncfs(&dir.fd),
        Object::Node(node) => rustix::fs::syncfs(s.host.reopen(&node, OFlags::RDONLY)?),
        Object::Socket(_) => Err(Errno::INVAL),
    }
}

/// Local file systems have nothing to do on `close(2)`; closing a duplicate makes those that do, do it.
pub(super) fn flush(s: &Session, fd: FdId) -> Result<(), Errno> {
    match s.object(fd)? {
        Object::File(file) => rustix::io::fcntl_dupfd_cloexec(&file.fd, 0).map(drop),
        Object::Dir(_) => Ok(()),
        _ => Err(Errno::BADF),
    }
}

pub(super) fn close(s: &Session, fds: &[FdId]) -> Result<(), Errno> {
    for &fd in fds {
        // The lock is released before the object goes: closing a file may be slow.
        let object = s.table.lock().remove(fd);
        drop(object);
    }
    Ok(())
}
