//! Any file of a tmpfs.

use std::sync::{Arc, Weak};

use linux_raw_sys::general as linux;
use parking_lot::{Mutex, RwLock};

use super::Limits;
use super::data::{self, FileData, Seals};
use super::directory::{self, Entries};
use super::xattrs::Xattrs;
use crate::errno::{Errno, SysResult};
use crate::platform::PAGE_SIZE;
use crate::task::Credentials;
use crate::time::Timespec;
use crate::vfs::attachments::Attachments;
use crate::vfs::times::AtimePolicy;
use crate::vfs::{
    Access, Attr, Caller, Device, FileOps, FileSystem, FileType, Inode, NewInode, NodeKind, OpenFlags,
    RenameFlags, SetAttr, SetTime, VfsPath,
};

/// Bytes of directory size per entry (Linux's `BOGO_DIRENT_SIZE`).
const ENTRY_SIZE: u64 = 20;

/// The time for file times: cheap, and as coarse as Linux's (a timer tick).
fn now() -> Timespec {
    match nix::time::clock_gettime(nix::time::ClockId::CLOCK_REALTIME_COARSE) {
        Ok(time) => Timespec { sec: time.tv_sec(), nsec: u32::try_from(time.tv_nsec()).unwrap_or(0) },
        Err(_) => Timespec::now_realtime(),
    }
}

/// What a file is made of.
pub(super) enum Kind {
    Regular(Arc<FileData>),
    Directory(RwLock<Entries>),
    Symlink(Box<[u8]>),
    /// A FIFO, a socket node, or a device with its number.
    Special(Device),
}

impl Kind {
    pub fn directory() -> Kind {
        Kind::Directory(RwLock::default())
    }
}

#[derive(Clone)]
struct Meta {
    mode: u32,
    uid: u32,
    gid: u32,
    nlink: u32,
    atime: Timespec,
    mtime: Timespec,
    ctime: Timespec,
}

/// One file, directory, link or node.
pub struct TmpInode {
    this: Weak<TmpInode>,
    limits: Arc<Limits>,
    ino: u64,
    file_type: FileType,
    kind: Kind,
    created: Timespec,
    meta: Mutex<Meta>,
    xattrs: Xattrs,
    attachments: Attachments,
}

impl TmpInode {
    pub(super) fn new(
        limits: &Arc<Limits>,
        file_type: FileType,
        new: NewInode,
        kind: Kind,
    ) -> SysResult<Arc<TmpInode>> {
        let ino = limits.charge_inode()?;
        let now = now();
        let nlink = if file_type == FileType::Directory { 2 } else { 1 };
        if let Kind::Regular(data) = &kind {
            data.set_ino(ino);
        }
        let NewInode { mode, uid, gid } = new;
        let meta = Meta { mode: mode & 0o7777, uid, gid, nlink, atime: now, mtime: now, ctime: now };
        Ok(Arc::new_cyclic(|this| TmpInode {
            this: this.clone(),
            limits: limits.clone(),
            ino,
            file_type,
            kind,
            created: now,
            meta: Mutex::new(meta),
            xattrs: Xattrs::default(),
            attachments: Attachments::default(),
        }))
    }

    /// A regular file without a name.
    pub(super) fn unnamed(limits: &Arc<Limits>, new: NewInode, seals: Seals) -> SysResult<Arc<TmpInode>> {
        let kind = Kind::Regular(FileData::new(limits, seals));
        let inode = TmpInode::new(limits, FileType::Regular, new, kind)?;
        inode.meta.lock().nlink = 0;
        Ok(inode)
    }

    /// Its number.
    pub fn ino(&self) -> u64 {
        self.ino
    }

    /// The contents of a regular file; `EINVAL` for anything else.
    pub fn data(&self) -> SysResult<&Arc<FileData>> {
        match &self.kind {
            Kind::Regular(data) => Ok(data),
            _ => Err(Errno::EINVAL),
        }
    }

    pub(super) fn entries(&self) -> SysResult<&RwLock<Entries>> {
        match &self.kind {
            Kind::Directory(entries) => Ok(entries),
            _ => Err(Errno::ENOTDIR),
        }
    }

    /// Contents changed now.
    pub(super) fn modified(&self) {
        let now = now();
        let mut meta = self.meta.lock();
        meta.mtime = now;
        meta.ctime = now;
    }

    fn changed(&self) {
        self.meta.lock().ctime = now();
    }

    fn add_links(&self, change: i32) {
        let mut meta = self.meta.lock();
        meta.nlink = meta.nlink.saturating_add_signed(change);
        meta.ctime = now();
    }

    fn size_and_blocks(&self) -> (u64, u64) {
        match &self.kind {
            Kind::Regular(data) => (data.size(), data.blocks()),
            Kind::Directory(entries) => ((entries.read().len() as u64 + 2) * ENTRY_SIZE, 0),
            Kind::Symlink(target) => (target.len() as u64, 0),
            Kind::Special(_) => (0, 0),
        }
    }

    fn is_directory(&self) -> bool {
        self.file_type == FileType::Directory
    }

    /// Enters a new inode under `name`.
    fn enter(&self, name: &[u8], child: Arc<TmpInode>) -> SysResult<Arc<dyn Inode>> {
        let entries = self.entries()?;
        entries.write().add(name, child.clone())?;
        if child.is_directory() {
            self.add_links(1);
        }
        self.modified();
        Ok(child)
    }

    fn this_as(inode: &Arc<dyn Inode>) -> SysResult<Arc<TmpInode>> {
        inode.downcast::<TmpInode>().and_then(|inode| inode.this.upgrade()).ok_or(Errno::EXDEV)
    }

    /// Takes `name` out; the inode behind it loses a link.
    fn take_entry(&self, name: &[u8]) -> SysResult {
        let child = self.entries()?.write().remove(name).ok_or(Errno::ENOENT)?;
        if child.is_directory() {
            child.add_links(-2);
            self.add_links(-1);
        } else {
            child.add_links(-1);
        }
        self.modified();
        Ok(())
    }

    fn find(&self, name: &[u8]) -> SysResult<Arc<TmpInode>> {
        self.entries()?.read().get(name).cloned().ok_or(Errno::ENOENT)
    }

    fn require_empty(&self) -> SysResult {
        match &self.kind {
            Kind::Directory(entries) if !entries.read().is_empty() => Err(Errno::ENOTEMPTY),
            _ => Ok(()),
        }
    }

    fn exchange(&self, name: &[u8], to: &TmpInode, new_name: &[u8]) -> SysResult {
        let (one, two) = (self.find(name)?, to.find(new_name)?);
        self.entries()?.write().replace(name, two.clone());
        to.entries()?.write().replace(new_name, one.clone());
        match (one.is_directory(), two.is_directory()) {
            (true, false) => {
                self.add_links(-1);
                to.add_links(1);
            }
            (false, true) => {
                to.add_links(-1);
                self.add_links(1);
            }
            _ => {}
        }
        for inode in [&one, &two] {
            inode.changed();
        }
        self.modified();
        to.modified();
        Ok(())
    }
}

impl Inode for TmpInode {
    fn attr(&self) -> SysResult<Attr> {
        let (size, blocks) = self.size_and_blocks();
        let rdev = if let Kind::Special(device) = self.kind { device } else { Device::default() };
        let meta = self.meta.lock().clone();
        Ok(Attr {
            dev: self.limits.device,
            ino: self.ino,
            file_type: self.file_type,
            mode: meta.mode,
            nlink: meta.nlink,
            uid: meta.uid,
            gid: meta.gid,
            rdev,
            size,
            blksize: PAGE_SIZE as u32,
            blocks,
            atime: meta.atime,
            mtime: meta.mtime,
            ctime: meta.ctime,
            btime: Some(self.created),
        })
    }

    fn file_type(&self) -> FileType {
        self.file_type
    }

    fn set_attr(&self, change: &SetAttr) -> SysResult {
        if let Some(mode) = change.mode
            && let Kind::Regular(data) = &self.kind
            && data.seals().contains(Seals::EXEC)
            && (mode ^ self.meta.lock().mode) & 0o111 != 0
        {
            return Err(Errno::EPERM);
        }
        if let Some(size) = change.size {
            self.data()?.set_size(size)?;
        }
        let now = now();
        let at = |time: SetTime| match time {
            SetTime::Now => now,
            SetTime::At(time) => time,
        };
        let mut meta = self.meta.lock();
        meta.mode = change.mode.map_or(meta.mode, |mode| mode & 0o7777);
        meta.uid = change.uid.unwrap_or(meta.uid);
        meta.gid = change.gid.unwrap_or(meta.gid);
        meta.atime = change.atime.map_or(meta.atime, at);
        meta.mtime = change.mtime.map_or(meta.mtime, at);
        if change.size.is_some() && change.mtime.is_none() {
            meta.mtime = now;
        }
        meta.ctime = now;
        Ok(())
    }

    fn permission(&self, who: &Credentials, access: Access) -> SysResult {
        let (mode, uid, gid) = {
            let meta = self.meta.lock();
            (meta.mode, meta.uid, meta.gid)
        };
        crate::vfs::permission::by_mode(self.file_type, (mode, uid, gid), who, access)
    }

    fn file_system(&self) -> SysResult<Arc<dyn FileSystem>> {
        match self.limits.fs.upgrade() {
            Some(fs) => Ok(fs),
            None => Err(Errno::ESTALE),
        }
    }

    fn accessed(&self, policy: AtimePolicy) {
        let now = now();
        let mut meta = self.meta.lock();
        if policy.due(meta.atime, meta.mtime, meta.ctime, now) {
            meta.atime = now;
        }
    }

    fn has_set_id(&self) -> bool {
        self.meta.lock().mode & (linux::S_ISUID | linux::S_ISGID) != 0
    }

    fn lookup(&self, name: &[u8]) -> SysResult<Arc<dyn Inode>> {
        let found = self.find(name)?;
        Ok(found)
    }

    fn create(&self, name: &[u8], new: NewInode) -> SysResult<Arc<dyn Inode>> {
        let kind = Kind::Regular(FileData::new(&self.limits, Seals::SEAL));
        self.enter(name, TmpInode::new(&self.limits, FileType::Regular, new, kind)?)
    }

    fn create_unnamed(&self, new: NewInode) -> SysResult<Arc<dyn Inode>> {
        self.entries()?;
        let inode = TmpInode::unnamed(&self.limits, new, Seals::SEAL)?;
        Ok(inode)
    }

    fn mkdir(&self, name: &[u8], new: NewInode) -> SysResult<Arc<dyn Inode>> {
        self.enter(name, TmpInode::new(&self.limits, FileType::Directory, new, Kind::directory())?)
    }

    fn mknod(&self, name: &[u8], new: NewInode, kind: NodeKind) -> SysResult<Arc<dyn Inode>> {
        let (file_type, device) = match kind {
            NodeKind::Fifo => (FileType::Fifo, Device::default()),
            NodeKind::Socket => (FileType::Socket, Device::default()),
            NodeKind::CharDevice(device) => (FileType::CharDevice, device),
            NodeKind::BlockDevice(device) => (FileType::BlockDevice, device),
        };
        self.enter(name, TmpInode::new(&self.limits, file_type, new, Kind::Special(device))?)
    }

    fn symlink(&self, name: &[u8], target: &[u8], new: NewInode) -> SysResult<Arc<dyn Inode>> {
        let kind = Kind::Symlink(target.into());
        self.enter(name, TmpInode::new(&self.limits, FileType::Symlink, new, kind)?)
    }

    fn link(&self, name: &[u8], target: &Arc<dyn Inode>) -> SysResult {
        let target = TmpInode::this_as(target)?;
        self.entries()?.write().add(name, target.clone())?;
        target.add_links(1);
        self.modified();
        Ok(())
    }

    fn unlink(&self, name: &[u8], _child: &Arc<dyn Inode>) -> SysResult {
        self.take_entry(name)
    }

    fn rmdir(&self, name: &[u8], _child: &Arc<dyn Inode>) -> SysResult {
        self.find(name)?.require_empty()?;
        self.take_entry(name)
    }

    fn rename(
        &self,
        name: &[u8],
        new_dir: &Arc<dyn Inode>,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> SysResult {
        let to = TmpInode::this_as(new_dir)?;
        if flags.contains(RenameFlags::EXCHANGE) {
            return self.exchange(name, &to, new_name);
        }
        let moved = self.find(name)?;
        let whiteout = if flags.contains(RenameFlags::WHITEOUT) {
            let new = NewInode { mode: 0, uid: moved.attr()?.uid, gid: moved.attr()?.gid };
            let kind = Kind::Special(Device::default());
            Some(TmpInode::new(&self.limits, FileType::CharDevice, new, kind)?)
        } else {
            None
        };
        if let Ok(target) = to.find(new_name) {
            target.require_empty()?;
            to.take_entry(new_name)?;
        }
        to.entries()?.write().add(new_name, moved.clone())?;
        match whiteout {
            Some(whiteout) => drop(self.entries()?.write().replace(name, whiteout)),
            None => drop(self.entries()?.write().remove(name)),
        }
        if moved.is_directory() {
            self.add_links(-1);
            to.add_links(1);
        }
        moved.changed();
        self.modified();
        to.modified();
        Ok(())
    }

    fn readlink(&self, _caller: &Caller<'_>) -> SysResult<Vec<u8>> {
        match &self.kind {
            Kind::Symlink(target) => Ok(target.to_vec()),
            _ => Err(Errno::EINVAL),
        }
    }

    fn open(&self, _caller: &Caller<'_>, _path: &VfsPath, _flags: OpenFlags) -> SysResult<Arc<dyn FileOps>> {
        match &self.kind {
            Kind::Regular(_) => Ok(data::operations()),
            Kind::Directory(_) => Ok(directory::operations()),
            Kind::Symlink(_) => Err(Errno::ELOOP),
            Kind::Special(_) => Err(Errno::ENXIO),
        }
    }

    fn get_xattr(&self, name: &[u8]) -> SysResult<Vec<u8>> {
        self.xattrs.get(name)
    }

    fn set_xattr(&self, name: &[u8], value: &[u8], flags: u32) -> SysResult {
        self.xattrs.set(name, value, flags)?;
        self.changed();
        Ok(())
    }

    fn remove_xattr(&self, name: &[u8]) -> SysResult {
        self.xattrs.remove(name)?;
        self.changed();
        Ok(())
    }

    fn list_xattr(&self) -> SysResult<Vec<Vec<u8>>> {
        Ok(self.xattrs.list())
    }

    fn attachments(&self) -> &Attachments {
        &self.attachments
    }
}

impl Drop for TmpInode {
    fn drop(&mut self) {
        self.limits.uncharge_inode();
        let Kind::Directory(entries) = &mut self.kind else { return };
        // Trees are as deep as a guest makes them: taken apart in a loop.
        let mut orphans: Vec<Arc<TmpInode>> = entries.get_mut().drain().collect();
        while let Some(orphan) = orphans.pop() {
            if let Some(mut inode) = Arc::into_inner(orphan)
                && let Kind::Directory(entries) = &mut inode.kind
            {
                orphans.extend(entries.get_mut().drain());
            }
        }
    }
}
