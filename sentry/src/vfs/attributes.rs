//! Changing attributes: mode, owner, times, size; and who may.

use linux_raw_sys::general as linux;

use super::attachments::WriteAccess;
use super::caller::Caller;
use super::file::File;
use super::inode::{Access, Attr, FileType, Inode, SetAttr, SetTime};
use super::notify;
use super::path::VfsPath;
use crate::errno::{Errno, SysResult};
use crate::task::{Capability, Credentials};

/// Largest file size (`s_maxbytes`).
pub const MAX_SIZE: u64 = i64::MAX as u64;

const SET_ID: u32 = linux::S_ISUID | linux::S_ISGID;

/// Access and modification time to set; `None` leaves one alone (`UTIME_OMIT`).
#[derive(Clone, Copy, Debug, Default)]
pub struct NewTimes {
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
}

fn owns(who: &Credentials, attr: &Attr) -> bool {
    who.fsuid == attr.uid || who.has(Capability::FOWNER)
}

/// The mode without the set-id bits that a change of the contents or the owner clears.
fn without_set_id(attr: &Attr, who: &Credentials) -> u32 {
    let mut mode = attr.mode & !linux::S_ISUID;
    let group_executable = attr.mode & linux::S_IXGRP != 0;
    if group_executable || (!who.in_group(attr.gid) && !who.has(Capability::FSETID)) {
        mode &= !linux::S_ISGID;
    }
    mode
}

/// Clears set-id bits before `who` changes the contents of a regular file (`file_remove_privs`).
pub fn clear_set_id(inode: &dyn Inode, who: &Credentials) -> SysResult {
    if inode.file_type() != FileType::Regular || who.has(Capability::FSETID) || !inode.has_set_id() {
        return Ok(());
    }
    let attr = inode.attr()?;
    let mode = without_set_id(&attr, who);
    if mode == attr.mode {
        return Ok(());
    }
    inode.set_attr(&SetAttr { mode: Some(mode), ..SetAttr::default() })
}

impl Caller<'_> {
    /// `chmod` of what is at `path`. `EPERM` for others than the owner, `EOPNOTSUPP` for a symbolic link.
    pub fn chmod(&self, path: &VfsPath, mode: u32) -> SysResult {
        path.mount().require_writable()?;
        let inode = path.inode();
        if inode.file_type() == FileType::Symlink {
            return Err(Errno::EOPNOTSUPP);
        }
        let attr = inode.attr()?;
        if !owns(&self.credentials, &attr) {
            return Err(Errno::EPERM);
        }
        let mut mode = mode & 0o7777;
        if !self.credentials.in_group(attr.gid) && !self.credentials.has(Capability::FSETID) {
            mode &= !linux::S_ISGID;
        }
        inode.set_attr(&SetAttr { mode: Some(mode), ..SetAttr::default() })?;
        notify::accessed_by_name(path.dentry(), linux::IN_ATTRIB);
        Ok(())
    }

    /// `chown` of what is at `path`; `None` leaves an id alone.
    pub fn chown(&self, path: &VfsPath, uid: Option<u32>, gid: Option<u32>) -> SysResult {
        path.mount().require_writable()?;
        let inode = path.inode();
        let attr = inode.attr()?;
        let who = &self.credentials;
        let privileged = who.has(Capability::CHOWN);
        let own = who.fsuid == attr.uid;
        let uid_allowed = uid.is_none_or(|uid| privileged || (own && uid == attr.uid));
        let gid_allowed = gid.is_none_or(|gid| privileged || (own && (who.in_group(gid) || gid == attr.gid)));
        if !uid_allowed || !gid_allowed {
            return Err(Errno::EPERM);
        }
        let mode = (inode.file_type() != FileType::Directory && attr.mode & SET_ID != 0)
            .then(|| without_set_id(&attr, who))
            .filter(|mode| *mode != attr.mode);
        // Linux changes the mode as chmod would, also where nothing else changes.
        if mode.is_some() && !owns(who, &attr) {
            return Err(Errno::EPERM);
        }
        inode.set_attr(&SetAttr { mode, uid, gid, ..SetAttr::default() })?;
        notify::accessed_by_name(path.dentry(), linux::IN_ATTRIB);
        Ok(())
    }

    /// `utimensat` of what is at `path`. Setting both times to now needs the right to write (`EACCES`), anything else
    /// ownership (`EPERM`).
    pub fn set_times(&self, path: &VfsPath, times: NewTimes) -> SysResult {
        let NewTimes { atime, mtime } = times;
        if atime.is_none() && mtime.is_none() {
            return Ok(());
        }
        path.mount().require_writable()?;
        let inode = path.inode();
        let attr = inode.attr()?;
        let both_now = matches!((atime, mtime), (Some(SetTime::Now), Some(SetTime::Now)));
        if !owns(&self.credentials, &attr) {
            if !both_now {
                return Err(Errno::EPERM);
            }
            inode.permission(&self.credentials, Access::WRITE)?;
        }
        inode.set_attr(&SetAttr { atime, mtime, ..SetAttr::default() })?;
        let mask = match (atime, mtime) {
            (Some(_), None) => linux::IN_ACCESS,
            (None, Some(_)) => linux::IN_MODIFY,
            _ => linux::IN_ATTRIB,
        };
        notify::accessed_by_name(path.dentry(), mask);
        Ok(())
    }

    /// `truncate` by path. The caller has checked the size against its limits.
    pub fn truncate(&self, path: &VfsPath, size: u64) -> SysResult {
        let inode = path.inode();
        match inode.file_type() {
            FileType::Regular => {}
            FileType::Directory => return Err(Errno::EISDIR),
            _ => return Err(Errno::EINVAL),
        }
        path.mount().require_writable()?;
        inode.permission(&self.credentials, Access::WRITE)?;
        let _access = WriteAccess::get(inode, Some(path.mount()))?;
        self.resize(path, &**inode, size)
    }

    /// `ftruncate`: `EINVAL` unless it is a regular file open for writing.
    pub fn truncate_file(&self, file: &File, size: u64) -> SysResult {
        let inode = file.inode();
        if inode.file_type() != FileType::Regular || !file.flags().writable() {
            return Err(Errno::EINVAL);
        }
        match file.path() {
            Some(path) => self.resize(path, &**inode, size),
            None => inode.set_attr(&SetAttr { size: Some(size), ..SetAttr::default() }),
        }
    }

    pub(super) fn resize(&self, path: &VfsPath, inode: &dyn Inode, size: u64) -> SysResult {
        let mode = if inode.has_set_id() && !self.credentials.has(Capability::FSETID) {
            Some(without_set_id(&inode.attr()?, &self.credentials))
        } else {
            None
        };
        inode.set_attr(&SetAttr { size: Some(size), mode, ..SetAttr::default() })?;
        notify::accessed_by_name(path.dentry(), linux::IN_MODIFY);
        Ok(())
    }
}
