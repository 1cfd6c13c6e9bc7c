//! New names: files, directories, nodes, links.
//!
//! The order of errors is Linux's `filename_create`: a name that is taken comes before a read-only file system, and that
//! before the right to write to the directory.

use std::sync::Arc;

use linux_raw_sys::general as linux;

use super::caller::Caller;
use super::dentry::Dentry;
use super::inode::{Access, Attr, Device, FileType, Inode, NewInode, NodeKind};
use super::notify;
use super::path::VfsPath;
use super::permission;
use super::walk::{Last, Parent, WalkFlags};
use crate::errno::{Errno, SysResult};
use crate::task::Capability;

/// What is about to be created.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Making {
    Directory,
    Other,
}

impl Caller<'_> {
    /// Owner and mode of an inode that this caller creates in `dir`: umask and set-gid directories applied.
    pub fn new_inode(&self, dir: &Attr, mode: u32, file_type: FileType) -> NewInode {
        let mut mode = mode & 0o7777;
        if file_type != FileType::Symlink {
            mode &= !self.umask;
        }
        let mut gid = self.credentials.fsgid;
        if dir.mode & linux::S_ISGID != 0 {
            gid = dir.gid;
            if file_type == FileType::Directory {
                mode |= linux::S_ISGID;
            } else if mode & (linux::S_ISGID | linux::S_IXGRP) == (linux::S_ISGID | linux::S_IXGRP)
                && !self.credentials.in_group(gid)
                && !self.credentials.has(Capability::FSETID)
            {
                mode &= !linux::S_ISGID;
            }
        }
        NewInode { mode, uid: self.credentials.fsuid, gid }
    }

    /// Whether it may add names to `dir`.
    pub(super) fn may_create(&self, dir: &VfsPath) -> SysResult {
        if dir.dentry().is_unlinked() {
            return Err(Errno::ENOENT);
        }
        dir.inode().permission(&self.credentials, Access::WRITE | Access::EXEC)
    }

    fn create_at(
        &self,
        start: &VfsPath,
        path: &[u8],
        making: Making,
        make: impl FnOnce(&Arc<dyn Inode>, &[u8]) -> SysResult<Arc<dyn Inode>>,
    ) -> SysResult<VfsPath> {
        let parent = self.lookup_parent(start, path, WalkFlags::empty())?;
        let Parent { dir, last: Last::Name(name), trailing_slash } = parent else {
            return Err(Errno::EEXIST);
        };
        let recent = &dir.mount().superblock().recent;
        let exclusive = dir.dentry().lock_exclusive();
        let existing = dir.dentry().lookup_locked(recent, &name)?;
        if existing.inode().is_some() {
            return Err(Errno::EEXIST);
        }
        if trailing_slash && making == Making::Other {
            return Err(Errno::ENOENT);
        }
        dir.mount().require_writable()?;
        self.may_create(&dir)?;
        let inode = make(dir.inode(), &name)?;
        let dentry = dir.dentry().enter(recent, &name, Some(inode.clone()));
        drop(exclusive);
        notify::entry(dir.inode(), &name, &inode, linux::IN_CREATE, 0);
        Ok(dir.with_dentry(dentry))
    }

    /// `mkdir`.
    pub fn mkdir(&self, start: &VfsPath, path: &[u8], mode: u32) -> SysResult<VfsPath> {
        self.create_at(start, path, Making::Directory, |dir, name| {
            let mode = mode & (0o777 | linux::S_ISVTX);
            dir.mkdir(name, self.new_inode(&dir.attr()?, mode, FileType::Directory))
        })
    }

    /// `mknod` of a FIFO, socket or device. Devices need `CAP_MKNOD`, except the whiteout 0:0.
    pub fn mknod(&self, start: &VfsPath, path: &[u8], mode: u32, kind: NodeKind) -> SysResult<VfsPath> {
        let file_type = match kind {
            NodeKind::Fifo => FileType::Fifo,
            NodeKind::Socket => FileType::Socket,
            NodeKind::CharDevice(_) => FileType::CharDevice,
            NodeKind::BlockDevice(_) => FileType::BlockDevice,
        };
        let privileged = match kind {
            NodeKind::CharDevice(device) => device != Device::default(),
            NodeKind::BlockDevice(_) => true,
            NodeKind::Fifo | NodeKind::Socket => false,
        };
        self.create_at(start, path, Making::Other, |dir, name| {
            if privileged && !self.credentials.has(Capability::MKNOD) {
                return Err(Errno::EPERM);
            }
            dir.mknod(name, self.new_inode(&dir.attr()?, mode, file_type), kind)
        })
    }

    /// Creates a regular file; `EEXIST` if the name is taken (`mknod` with `S_IFREG`).
    pub fn create(&self, start: &VfsPath, path: &[u8], mode: u32) -> SysResult<VfsPath> {
        self.create_at(start, path, Making::Other, |dir, name| {
            dir.create(name, self.new_inode(&dir.attr()?, mode, FileType::Regular))
        })
    }

    /// `symlink`. `ENOENT` for an empty target.
    pub fn symlink(&self, target: &[u8], start: &VfsPath, path: &[u8]) -> SysResult<VfsPath> {
        if target.is_empty() {
            return Err(Errno::ENOENT);
        }
        self.create_at(start, path, Making::Other, |dir, name| {
            dir.symlink(name, target, self.new_inode(&dir.attr()?, 0o777, FileType::Symlink))
        })
    }

    /// `link`: gives `old` another name.
    pub fn link(&self, old: &VfsPath, start: &VfsPath, path: &[u8]) -> SysResult<VfsPath> {
        let parent = self.lookup_parent(start, path, WalkFlags::empty())?;
        let Parent { dir, last: Last::Name(name), trailing_slash } = parent else {
            return Err(Errno::EEXIST);
        };
        let recent = &dir.mount().superblock().recent;
        let exclusive = dir.dentry().lock_exclusive();
        let existing = dir.dentry().lookup_locked(recent, &name)?;
        if existing.inode().is_some() {
            return Err(Errno::EEXIST);
        }
        if trailing_slash {
            return Err(Errno::ENOENT);
        }
        dir.mount().require_writable()?;
        if !Arc::ptr_eq(old.mount(), dir.mount()) && !self.links_from_internal(old, &dir) {
            return Err(Errno::EXDEV);
        }
        permission::may_hard_link(self, old)?;
        self.may_create(&dir)?;
        let inode = old.inode();
        if inode.file_type() == FileType::Directory {
            return Err(Errno::EPERM);
        }
        if inode.attr()?.nlink == 0 && !inode.attachments().is_linkable() {
            return Err(Errno::ENOENT);
        }
        dir.inode().link(&name, inode)?;
        let dentry = dir.dentry().enter(recent, &name, Some(inode.clone()));
        drop(exclusive);
        notify::object(inode, linux::IN_ATTRIB);
        notify::entry(dir.inode(), &name, inode, linux::IN_CREATE, 0);
        Ok(dir.with_dentry(dentry))
    }

    /// A description without a path of its own can only be linked on its own file system.
    fn links_from_internal(&self, old: &VfsPath, dir: &VfsPath) -> bool {
        let same = |a: &VfsPath, b: &VfsPath| Some(a.inode().attr().ok()?.dev == b.inode().attr().ok()?.dev);
        super::internal::is_internal(old) && same(old, dir).unwrap_or(false)
    }

    /// Creates the regular file `name` in `dir`, whose lock the caller holds (`open` with `O_CREAT`).
    pub(super) fn create_locked(&self, dir: &VfsPath, name: &[u8], mode: u32) -> SysResult<Arc<Dentry>> {
        dir.mount().require_writable()?;
        self.may_create(dir)?;
        let new = self.new_inode(&dir.inode().attr()?, mode, FileType::Regular);
        let inode = dir.inode().create(name, new)?;
        Ok(dir.dentry().enter(&dir.mount().superblock().recent, name, Some(inode)))
    }
}
