//! Making, linking, renaming and removing names.

use std::os::fd::{AsFd, OwnedFd};

use caisson_proto::lisafs::reply::{MountFlags, Node as WireNode};
use caisson_proto::lisafs::request::{NewFile, RenameFlags, UnlinkKind};
use caisson_proto::lisafs::{Attr, Device, FdId, FileKind, LinkTarget, Name, Owner};
use rustix::fs::{AtFlags, FileType, Mode, makedev, mkdirat, mknodat, renameat_with, symlinkat, unlinkat};
use rustix::io::Errno;

use super::attributes::chown;
use crate::attr;
use crate::host::Mounts;
use crate::session::Session;
use crate::table::Node;
use crate::transport::Reply;

pub(super) fn mkdir(
    s: &Session,
    dir: FdId,
    name: Name<'_>,
    new: NewFile,
    reply: &mut Reply,
) -> Result<(), Errno> {
    let parent = s.node(dir)?;
    s.check_room()?;
    mkdirat(&parent.fd, name.as_bytes(), Mode::from_raw_mode(new.permissions & 0o1777))?;
    adopt(s, &parent, name, FileKind::Directory, new.owner, Some(new.permissions), reply)
}

/// What `mknod` makes.
#[derive(Clone, Copy)]
pub(super) struct Special {
    pub(super) kind: FileKind,
    pub(super) rdev: Device,
}

pub(super) fn mknod(
    s: &Session,
    dir: FdId,
    name: Name<'_>,
    special: Special,
    new: NewFile,
    reply: &mut Reply,
) -> Result<(), Errno> {
    let parent = s.node(dir)?;
    s.check_room()?;
    let kind = match special.kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Fifo => FileType::Fifo,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice | FileKind::BlockDevice if !s.allows(MountFlags::DEVICE_NODES) => {
            return Err(Errno::PERM);
        }
        FileKind::CharDevice => FileType::CharacterDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Directory | FileKind::Symlink => return Err(Errno::INVAL),
    };
    let rdev = match special.kind {
        FileKind::CharDevice | FileKind::BlockDevice => makedev(special.rdev.major, special.rdev.minor),
        _ => 0,
    };
    mknodat(&parent.fd, name.as_bytes(), kind, Mode::from_raw_mode(new.permissions & 0o777), rdev)?;
    adopt(s, &parent, name, special.kind, new.owner, Some(new.permissions), reply)
}

pub(super) fn symlink(
    s: &Session,
    dir: FdId,
    name: Name<'_>,
    target: LinkTarget<'_>,
    owner: Owner,
    reply: &mut Reply,
) -> Result<(), Errno> {
    let parent = s.node(dir)?;
    s.check_room()?;
    symlinkat(target.as_bytes(), &parent.fd, name.as_bytes())?;
    adopt(s, &parent, name, FileKind::Symlink, owner, None, reply)
}

pub(super) fn link(
    s: &Session,
    dir: FdId,
    name: Name<'_>,
    target: FdId,
    reply: &mut Reply,
) -> Result<(), Errno> {
    let (parent, target) = (s.node(dir)?, s.node(target)?);
    s.check_room()?;
    if target.kind == FileKind::Directory {
        return Err(Errno::PERM);
    }
    s.host.link(&target.fd, &parent.fd, name)?;
    let finish = || {
        let fd = s.host.lookup(&parent.fd, name, Mounts::Stay)?;
        let attr = attr::read(&fd)?;
        Ok((s.insert_node(fd, attr.kind)?, attr))
    };
    let (fd, attr) = or_unlink(finish(), &parent, name, UnlinkKind::File)?;
    WireNode { fd: Some(fd), attr }.encode(&mut reply.payload);
    Ok(())
}

pub(super) fn unlink(s: &Session, dir: FdId, name: Name<'_>, kind: UnlinkKind) -> Result<(), Errno> {
    let parent = s.node(dir)?;
    remove(&parent, name, kind)
}

pub(super) fn rename(
    s: &Session,
    (old_dir, old_name): (FdId, Name<'_>),
    (new_dir, new_name): (FdId, Name<'_>),
    flags: RenameFlags,
) -> Result<(), Errno> {
    let (old, new) = (s.node(old_dir)?, s.node(new_dir)?);
    let mut host = rustix::fs::RenameFlags::empty();
    if flags.contains(RenameFlags::NOREPLACE) {
        host |= rustix::fs::RenameFlags::NOREPLACE;
    }
    if flags.contains(RenameFlags::EXCHANGE) {
        host |= rustix::fs::RenameFlags::EXCHANGE;
    }
    renameat_with(&old.fd, old_name.as_bytes(), &new.fd, new_name.as_bytes(), host)
}

fn remove(parent: &Node, name: Name<'_>, kind: UnlinkKind) -> Result<(), Errno> {
    let flags = match kind {
        UnlinkKind::File => AtFlags::empty(),
        UnlinkKind::Directory => AtFlags::REMOVEDIR,
    };
    unlinkat(&parent.fd, name.as_bytes(), flags)
}

/// Takes back a creation whose completion failed.
pub(super) fn or_unlink<T>(
    done: Result<T, Errno>,
    parent: &Node,
    name: Name<'_>,
    kind: UnlinkKind,
) -> Result<T, Errno> {
    if done.is_err() {
        // Failing at this too leaves the file there: the client sees it, and the first error is the one to report.
        let _ = remove(parent, name, kind);
    }
    done
}

/// Makes the file that was just created by name the client's: looks it up, gives it its owner and permissions, and answers
/// with it.
pub(super) fn adopt(
    s: &Session,
    parent: &Node,
    name: Name<'_>,
    kind: FileKind,
    owner: Owner,
    permissions: Option<u32>,
    reply: &mut Reply,
) -> Result<(), Errno> {
    let (fd, attr) = find_new(s, parent, name, kind, owner, permissions)?;
    let fd = s.insert_node(fd, kind)?;
    WireNode { fd: Some(fd), attr }.encode(&mut reply.payload);
    Ok(())
}

/// The descriptor of a file just created by name, with its owner and permissions set.
pub(super) fn find_new(
    s: &Session,
    parent: &Node,
    name: Name<'_>,
    kind: FileKind,
    owner: Owner,
    permissions: Option<u32>,
) -> Result<(OwnedFd, Attr), Errno> {
    let fd = s.host.lookup(&parent.fd, name, Mounts::Stay)?;
    let found = attr::read(&fd)?;
    // In a directory that is shared with others the name may have been replaced meanwhile, by a second name of a file of
    // somebody else: that one is not ours to give away.
    if found.kind != kind || (kind != FileKind::Directory && found.nlink != 1) {
        return Err(Errno::STALE);
    }
    let removal = if kind == FileKind::Directory { UnlinkKind::Directory } else { UnlinkKind::File };
    let attr = or_unlink(give(s, &fd, owner, permissions), parent, name, removal)?;
    Ok((fd, attr))
}

/// Sets owner and permissions where they differ, and returns the attributes.
pub(super) fn give(
    s: &Session,
    fd: impl AsFd,
    owner: Owner,
    permissions: Option<u32>,
) -> Result<Attr, Errno> {
    let mut attr = attr::read(&fd)?;
    if (attr.uid, attr.gid) != (owner.uid(), owner.gid()) {
        chown(&fd, Some(owner.uid()), Some(owner.gid()))?;
        attr = attr::read(&fd)?;
    }
    if let Some(permissions) = permissions
        && attr.permissions != permissions
    {
        s.host.chmod(&fd, Mode::from_raw_mode(permissions))?;
        attr = attr::read(&fd)?;
    }
    Ok(attr)
}
