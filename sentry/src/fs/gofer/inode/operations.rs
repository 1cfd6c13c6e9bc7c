//! What the VFS asks of a gofer's inode.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use caisson_proto::lisafs::request::{NewFile, RenameFlags as WireRename, UnlinkKind, XattrFlags};
use caisson_proto::lisafs::{self as wire, FileKind, Owner};
use linux_raw_sys::general as linux;

use super::GoferInode;
use crate::errno::{Errno, SysResult};
use crate::fs::gofer::attributes;
use crate::fs::gofer::client;
use crate::fs::gofer::directory::OpenDirectory;
use crate::fs::gofer::file::OpenFile;
use crate::fs::gofer::handle::{Handle, Want};
use crate::fs::gofer::witness::About;
use crate::fs::gofer::{HostId, Sharing};
use crate::task::Credentials;
use crate::vfs::attachments::Attachments;
use crate::vfs::times::AtimePolicy;
use crate::vfs::{
    Access, Attr, Caller, DentryCache, FileOps, FileSystem, FileType, Inode, NewInode, NodeKind, OpenFlags,
    RenameFlags, SetAttr, VfsPath, permission,
};

fn new_file(new: NewInode) -> SysResult<NewFile> {
    let owner = Owner::new(new.uid, new.gid).map_err(|_| Errno::EINVAL)?;
    Ok(NewFile { owner, permissions: new.mode & wire::attr::PERMISSIONS })
}

impl Inode for GoferInode {
    fn attr(&self) -> SysResult<Attr> {
        let fs = self.fs()?;
        Ok(attributes::to_vfs(&fs, &self.current_on(&fs)?))
    }

    fn file_type(&self) -> FileType {
        attributes::file_type(self.kind)
    }

    fn set_attr(&self, change: &SetAttr) -> SysResult {
        let fs = self.fs()?;
        let mut set = attributes::to_wire(change);
        if self.kind == FileKind::Regular
            && let Some(size) = set.size.take()
        {
            self.truncate(size)?;
        }
        if set == wire::SetAttr::default() {
            return Ok(());
        }
        let _order = self.order.lock();
        let changing = self.changing();
        match fs.client().set_attr(self.fd, set) {
            Ok(attr) => {
                changing.done(attr);
                Ok(())
            }
            Err(errno) => {
                // A part of it may have been done.
                self.distrust();
                Err(errno)
            }
        }
    }

    fn permission(&self, who: &Credentials, access: Access) -> SysResult {
        let file_type = attributes::file_type(self.kind);
        if permission::overrides(file_type, who, access) {
            return Ok(());
        }
        let known = {
            let cached = self.attr.lock();
            if cached.owner_known() { Some(cached.attr) } else { None }
        };
        let attr = match known {
            // Whatever changed since, it was not who may do what.
            Some(attr) if self.fs()?.is_exclusive() => attr,
            _ => self.current()?,
        };
        permission::by_mode(file_type, (attr.permissions, attr.uid, attr.gid), who, access)
    }

    /// One look at a shared directory tells both.
    fn search(&self, who: &Credentials) -> SysResult<Option<u64>> {
        let seen = if self.sharing == Sharing::Exclusive { None } else { self.look_at_names() };
        let Some((host, version)) = seen else {
            return self.permission(who, Access::EXEC).map(|()| None);
        };
        let proven = self.attr.lock().proven(&host);
        match proven {
            Some(attr) => {
                let mode = (attr.permissions, attr.uid, attr.gid);
                permission::by_mode(attributes::file_type(self.kind), mode, who, Access::EXEC)?;
            }
            None => self.permission(who, Access::EXEC)?,
        }
        Ok(Some(version.unwrap_or(0)))
    }

    fn file_system(&self) -> SysResult<Arc<dyn FileSystem>> {
        Ok(self.fs()?)
    }

    /// The host records accesses itself, when data is read through its descriptors.
    fn accessed(&self, _policy: AtimePolicy) {
        let mut cached = self.attr.lock();
        let attr = &cached.attr;
        if attr.atime <= attr.mtime || attr.atime <= attr.ctime {
            cached.spoil();
        }
    }

    fn has_set_id(&self) -> bool {
        self.attr.lock().attr.permissions & (linux::S_ISUID | linux::S_ISGID) != 0
    }

    fn dentry_cache(&self) -> DentryCache {
        match self.sharing {
            Sharing::Exclusive => DentryCache::Exclusive,
            Sharing::Shared => DentryCache::Revalidate,
        }
    }

    fn names_version(&self) -> Option<u64> {
        if !self.witness.is_there() {
            // The gofer is going to be asked.
            self.want_witness(&*self.fs().ok()?, About::Names);
        }
        self.names_now()
    }

    fn revalidate(&self, name: &[u8], child: &Arc<dyn Inode>) -> bool {
        let (Ok(fs), Ok(name), Some(child)) = (self.fs(), client::name(name), child.downcast::<GoferInode>())
        else {
            return false;
        };
        let asked = child.attr.lock().asking();
        match fs.client().look(self.fd, name) {
            Ok(attr) if HostId::of(&attr) == child.id => {
                let mut cached = child.attr.lock();
                if !cached.learn(asked, attr) {
                    cached.distrust();
                }
                true
            }
            Err(Errno::EIO) => false,
            _ => {
                child.lost_a_name();
                false
            }
        }
    }

    fn lookup(&self, name: &[u8]) -> SysResult<Arc<dyn Inode>> {
        self.lookup_as_of(name, self.names_now().unwrap_or(0))
    }

    fn lookup_as_of(&self, name: &[u8], version: u64) -> SysResult<Arc<dyn Inode>> {
        let fs = self.fs()?;
        if let Some(inode) = self.take_ahead(&fs, name, version) {
            return Ok(inode);
        }
        let asked = fs.epoch();
        let found = fs.client().lookup(self.fd, client::name(name)?)?;
        Ok(fs.inode(asked, found.fd, &found.attr, found.target))
    }

    fn create(&self, name: &[u8], new: NewInode) -> SysResult<Arc<dyn Inode>> {
        let fs = self.fs()?;
        let asked = fs.epoch();
        let (found, fd) = fs.client().create(self.fd, client::name(name)?, new_file(new)?)?;
        self.spoil();
        let inode = fs.inode(asked, found.fd, &found.attr, None);
        inode.keep(&fs, Handle::new(fd, true));
        Ok(inode)
    }

    fn create_unnamed(&self, new: NewInode) -> SysResult<Arc<dyn Inode>> {
        let fs = self.fs()?;
        let asked = fs.epoch();
        let (found, fd) = fs.client().create_unnamed(self.fd, new_file(new)?)?;
        let inode = fs.inode(asked, found.fd, &found.attr, None);
        inode.unnamed.store(true, Ordering::Relaxed);
        inode.keep(&fs, Handle::new(fd, true));
        Ok(inode)
    }

    fn mkdir(&self, name: &[u8], new: NewInode) -> SysResult<Arc<dyn Inode>> {
        let fs = self.fs()?;
        let asked = fs.epoch();
        let found = fs.client().mkdir(self.fd, client::name(name)?, new_file(new)?)?;
        Ok(self.adopt(&fs, asked, found))
    }

    fn mknod(&self, name: &[u8], new: NewInode, kind: NodeKind) -> SysResult<Arc<dyn Inode>> {
        let fs = self.fs()?;
        let device = |device: crate::vfs::Device| wire::Device { major: device.major, minor: device.minor };
        let (kind, rdev) = match kind {
            NodeKind::Fifo => (FileKind::Fifo, wire::Device::default()),
            NodeKind::Socket => (FileKind::Socket, wire::Device::default()),
            NodeKind::CharDevice(rdev) => (FileKind::CharDevice, device(rdev)),
            NodeKind::BlockDevice(rdev) => (FileKind::BlockDevice, device(rdev)),
        };
        let asked = fs.epoch();
        let found = fs.client().mknod(self.fd, client::name(name)?, kind, rdev, new_file(new)?)?;
        Ok(self.adopt(&fs, asked, found))
    }

    fn symlink(&self, name: &[u8], target: &[u8], new: NewInode) -> SysResult<Arc<dyn Inode>> {
        let fs = self.fs()?;
        let owner = new_file(new)?.owner;
        let asked = fs.epoch();
        let found = fs.client().symlink(self.fd, client::name(name)?, target, owner)?;
        Ok(self.adopt(&fs, asked, found))
    }

    fn link(&self, name: &[u8], target: &Arc<dyn Inode>) -> SysResult {
        let fs = self.fs()?;
        let target = self.same_fs(target)?;
        let asked = fs.epoch();
        let found = fs.client().link(self.fd, client::name(name)?, target.fd)?;
        target.spoil();
        self.adopt(&fs, asked, found);
        Ok(())
    }

    fn unlink(&self, name: &[u8], child: &Arc<dyn Inode>) -> SysResult {
        self.remove(name, child, UnlinkKind::File)
    }

    fn rmdir(&self, name: &[u8], child: &Arc<dyn Inode>) -> SysResult {
        self.remove(name, child, UnlinkKind::Directory)
    }

    fn rename(
        &self,
        name: &[u8],
        new_dir: &Arc<dyn Inode>,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> SysResult {
        let fs = self.fs()?;
        let new_dir = self.same_fs(new_dir)?;
        let (old, new) = ((self.fd, client::name(name)?), (new_dir.fd, client::name(new_name)?));
        // Whiteouts are an overlay's business, and no overlay lies on a gofer's mount.
        let flags = WireRename::from_bits(flags.bits()).ok_or(Errno::EINVAL)?;
        fs.client().rename(old, new, flags)?;
        self.spoil();
        new_dir.spoil();
        Ok(())
    }

    fn names_changed(&self) {
        self.lost_a_name();
    }

    fn readlink(&self, _caller: &Caller<'_>) -> SysResult<Vec<u8>> {
        if self.kind != FileKind::Symlink {
            return Err(Errno::EINVAL);
        }
        if let Some(target) = self.target.get() {
            return Ok(target.clone());
        }
        let target = self.fs()?.client().read_link(self.fd)?;
        Ok(self.target.get_or_init(|| target).clone())
    }

    fn open(&self, _caller: &Caller<'_>, _path: &VfsPath, flags: OpenFlags) -> SysResult<Arc<dyn FileOps>> {
        let itself = self.itself.upgrade().ok_or(Errno::EIO)?;
        match self.kind {
            FileKind::Directory => Ok(Arc::new(OpenDirectory::new(itself, self.fs()?))),
            FileKind::Regular => {
                let want = if flags.writable() { Want::Write } else { Want::Read };
                let handle = self.handle(want)?;
                Ok(Arc::new(OpenFile::new(itself, handle)))
            }
            FileKind::Symlink => Err(Errno::ELOOP),
            _ => Err(Errno::ENXIO),
        }
    }

    fn get_xattr(&self, name: &[u8]) -> SysResult<Vec<u8>> {
        self.fs()?.client().get_xattr(self.fd, name)
    }

    fn set_xattr(&self, name: &[u8], value: &[u8], flags: u32) -> SysResult {
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::EINVAL)?;
        let _changing = self.changing();
        self.fs()?.client().set_xattr(self.fd, name, value, flags)
    }

    fn remove_xattr(&self, name: &[u8]) -> SysResult {
        let _changing = self.changing();
        self.fs()?.client().remove_xattr(self.fd, name)
    }

    fn list_xattr(&self) -> SysResult<Vec<Vec<u8>>> {
        let list = self.fs()?.client().list_xattr(self.fd)?;
        Ok(list.split(|&byte| byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
    }

    fn attachments(&self) -> &Attachments {
        &self.attachments
    }
}

impl GoferInode {
    fn remove(&self, name: &[u8], child: &Arc<dyn Inode>, kind: UnlinkKind) -> SysResult {
        self.fs()?.client().unlink(self.fd, client::name(name)?, kind)?;
        self.spoil();
        if let Some(child) = child.downcast::<GoferInode>() {
            child.lost_a_name();
        }
        Ok(())
    }
}
