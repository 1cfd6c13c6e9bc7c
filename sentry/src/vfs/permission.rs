//! POSIX permission bits and the capabilities that override them.

use linux_raw_sys::general as linux;

use super::caller::Caller;
use super::inode::{Access, Attr, FileType, Inode};
use super::path::VfsPath;
use crate::errno::{Errno, SysResult};
use crate::task::{Capability, Credentials};

/// Linux's `generic_permission`: mode bits for the file-system ids, then `CAP_DAC_OVERRIDE`/`CAP_DAC_READ_SEARCH`.
pub fn generic(attr: &Attr, who: &Credentials, access: Access) -> SysResult {
    by_mode(attr.file_type, (attr.mode, attr.uid, attr.gid), who, access)
}

/// [`generic`] for a file system that has mode, user and group at hand.
pub fn by_mode(
    file_type: FileType,
    (mode, uid, gid): (u32, u32, u32),
    who: &Credentials,
    access: Access,
) -> SysResult {
    let shift = if who.fsuid == uid {
        6
    } else if who.in_group(gid) {
        3
    } else {
        0
    };
    let granted = Access::from_bits_truncate((mode >> shift) & 7);
    if granted.contains(access) {
        return Ok(());
    }
    if overrides(file_type, who, access) || (mode & 0o111 != 0 && who.has(Capability::DAC_OVERRIDE)) {
        return Ok(());
    }
    Err(Errno::EACCES)
}

/// Whether `who` may, by capabilities, whatever mode and owner are: a file system need not know them then.
pub fn overrides(file_type: FileType, who: &Credentials, access: Access) -> bool {
    let directory = file_type == FileType::Directory;
    let read_search = if directory { Access::READ | Access::EXEC } else { Access::READ };
    ((directory || !access.contains(Access::EXEC)) && who.has(Capability::DAC_OVERRIDE))
        || (read_search.contains(access) && who.has(Capability::DAC_READ_SEARCH))
}

/// Whether the link at `link`, found in `dir`, may be followed at the end of a path (`fs.protected_symlinks`): in a sticky
/// directory that everybody may write to, only links of the follower or of the directory's owner are.
pub(super) fn may_follow(caller: &Caller<'_>, dir: &VfsPath, link: &VfsPath) -> SysResult {
    let parent = dir.inode().attr()?;
    let shared = linux::S_ISVTX | linux::S_IWOTH;
    if parent.mode & shared != shared {
        return Ok(());
    }
    let owner = link.inode().attr()?.uid;
    if owner == caller.credentials.fsuid || owner == parent.uid { Ok(()) } else { Err(Errno::EACCES) }
}

/// Whether `who` may remove or rename `child` in a directory with these attributes: in a sticky one only its owner, the
/// directory's, or a holder of `CAP_FOWNER`.
pub(super) fn sticky(who: &Credentials, dir: &Attr, child: &dyn Inode) -> SysResult {
    if dir.mode & linux::S_ISVTX == 0 || dir.uid == who.fsuid || who.has(Capability::FOWNER) {
        return Ok(());
    }
    if child.attr()?.uid == who.fsuid { Ok(()) } else { Err(Errno::EPERM) }
}

/// Whether `old` may get another name (`fs.protected_hardlinks`): its owner may, and others only for an ordinary regular
/// file that they may read and write.
pub(super) fn may_hard_link(caller: &Caller<'_>, old: &VfsPath) -> SysResult {
    let inode = old.inode();
    let attr = inode.attr()?;
    let who = &caller.credentials;
    if attr.uid == who.fsuid || who.has(Capability::FOWNER) {
        return Ok(());
    }
    let group_privileged = linux::S_ISGID | linux::S_IXGRP;
    let ordinary = attr.file_type == FileType::Regular
        && attr.mode & linux::S_ISUID == 0
        && attr.mode & group_privileged != group_privileged;
    if ordinary && inode.permission(who, Access::READ | Access::WRITE).is_ok() {
        return Ok(());
    }
    Err(Errno::EPERM)
}
