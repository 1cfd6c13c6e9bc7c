//! Removing names: `unlink` and `rmdir`, in Linux's order of errors.

use std::sync::Arc;

use linux_raw_sys::general as linux;

use super::caller::Caller;
use super::dentry::Dentry;
use super::inode::{Access, FileType, Inode};
use super::notify;
use super::path::VfsPath;
use super::permission;
use super::walk::{Last, WalkFlags};
use crate::errno::{Errno, SysResult};

/// Whether a directory is being removed or replaced, or something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Victim {
    Directory,
    Other,
}

impl Victim {
    pub(super) fn of(inode: &dyn Inode) -> Victim {
        if inode.file_type() == FileType::Directory { Victim::Directory } else { Victim::Other }
    }
}

impl Caller<'_> {
    /// Whether it may take the name of `child` out of `dir` (Linux's `may_delete`).
    pub(super) fn may_delete(&self, dir: &VfsPath, child: &Dentry, expected: Victim) -> SysResult {
        let inode = child.positive()?;
        dir.inode().permission(&self.credentials, Access::WRITE | Access::EXEC)?;
        permission::sticky(&self.credentials, &dir.inode().attr()?, &**inode)?;
        match (expected, Victim::of(&**inode)) {
            (Victim::Directory, Victim::Other) => Err(Errno::ENOTDIR),
            (Victim::Other, Victim::Directory) => Err(Errno::EISDIR),
            _ => Ok(()),
        }
    }

    /// `unlink`.
    pub fn unlink(&self, start: &VfsPath, path: &[u8]) -> SysResult {
        let parent = self.lookup_parent(start, path, WalkFlags::empty())?;
        let Last::Name(name) = parent.last else { return Err(Errno::EISDIR) };
        let dir = parent.dir;
        dir.mount().require_writable()?;
        let exclusive = dir.dentry().lock_exclusive();
        let child = dir.dentry().lookup_locked(&dir.mount().superblock().recent, &name)?;
        let inode = child.positive()?.clone();
        if parent.trailing_slash {
            return Err(if child.is_directory() { Errno::EISDIR } else { Errno::ENOTDIR });
        }
        self.may_delete(&dir, &child, Victim::Other)?;
        if child.is_mountpoint() {
            return Err(Errno::EBUSY);
        }
        dir.inode().unlink(&name, &inode)?;
        removed(&dir, &child);
        drop(exclusive);
        notify::unlinked(&inode);
        drop(child);
        notify::entry(dir.inode(), &name, &inode, linux::IN_DELETE, 0);
        Ok(())
    }

    /// `rmdir`.
    pub fn rmdir(&self, start: &VfsPath, path: &[u8]) -> SysResult {
        let parent = self.lookup_parent(start, path, WalkFlags::empty())?;
        let name = match parent.last {
            Last::Name(name) => name,
            Last::Dot => return Err(Errno::EINVAL),
            Last::DotDot => return Err(Errno::ENOTEMPTY),
            Last::Nothing => return Err(Errno::EBUSY),
        };
        let dir = parent.dir;
        dir.mount().require_writable()?;
        let exclusive = dir.dentry().lock_exclusive();
        let child = dir.dentry().lookup_locked(&dir.mount().superblock().recent, &name)?;
        let inode = child.positive()?.clone();
        self.may_delete(&dir, &child, Victim::Directory)?;
        if child.is_mountpoint() {
            return Err(Errno::EBUSY);
        }
        // Nobody may create anything in it between the check for emptiness and the mark that it is gone.
        let inside = child.lock_exclusive();
        dir.inode().rmdir(&name, &inode)?;
        removed(&dir, &child);
        drop(inside);
        drop(exclusive);
        notify::unlinked(&inode);
        drop(child);
        notify::entry(dir.inode(), &name, &inode, linux::IN_DELETE, 0);
        Ok(())
    }
}

fn removed(dir: &VfsPath, child: &Arc<Dentry>) {
    dir.dentry().removed(&dir.mount().superblock().recent, child);
}
