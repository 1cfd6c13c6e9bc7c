//! Inodes that a gofer serves.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use caisson_proto::lisafs::request::{
    NewFile, RenameFlags as WireRename, SocketKind, UnlinkKind, XattrFlags,
};
use caisson_proto::lisafs::{self as wire, FdId, FileKind, Owner};
use linux_raw_sys::general as linux;
use parking_lot::Mutex;

use super::ahead::Ahead;
use super::attributes::{self, Cached};
use super::client::{self, Found};
use super::directory::OpenDirectory;
use super::file::OpenFile;
use super::handle::{self, Handle, Handles, Want};
use super::witness::{About, Witness};
use super::{Epoch, GoferFs, HostId, Sharing, Urgency};
use crate::errno::{Errno, SysResult};
use crate::mm::WindowCache;
use crate::platform;
use crate::task::Credentials;
use crate::vfs::attachments::Attachments;
use crate::vfs::times::AtimePolicy;
use crate::vfs::{
    Access, Attr, Caller, DentryCache, FileOps, FileSystem, FileType, Inode, NewInode, NodeKind, OpenFlags,
    RenameFlags, SetAttr, VfsPath, permission,
};

/// In blocks of 512 bytes: what a removed file may take that waits for a batch of ids to be closed.
const MUCH_SPACE: u64 = 2048;

/// A file of the host, known to the gofer by an id.
pub struct GoferInode {
    fs: Weak<GoferFs>,
    itself: Weak<GoferInode>,
    fd: FdId,
    id: HostId,
    kind: FileKind,
    pub(super) attr: Mutex<Cached>,
    pub(super) handles: Mutex<Handles>,
    witness: Witness,
    ahead: Ahead,
    /// It was looked up ahead, and its being opened has not been noted.
    early: AtomicBool,
    /// Its descriptor for reading was donated ahead, and nobody has used it.
    gift: AtomicBool,
    /// Held by appending writes from finding the end to writing there, and by changes of attributes until they are known.
    order: Mutex<()>,
    target: OnceLock<Vec<u8>>,
    pub(super) windows: OnceLock<Arc<WindowCache>>,
    /// A mapping may be writing: size and times on the host change without us.
    pub(super) written: AtomicBool,
    attachments: Attachments,
    /// A name of it has been removed: it may be gone from the host but for us.
    unnamed: AtomicBool,
}

impl GoferInode {
    pub(super) fn new(
        itself: Weak<GoferInode>,
        fs: Weak<GoferFs>,
        fd: FdId,
        attr: &wire::Attr,
        target: Option<Vec<u8>>,
        asked: Epoch,
    ) -> Self {
        let known = OnceLock::new();
        if let Some(target) = target {
            let _ = known.set(target);
        }
        GoferInode {
            fs,
            itself,
            fd,
            id: HostId::of(attr),
            kind: attr.kind,
            attr: Mutex::new(Cached::new(*attr, asked.clock)),
            handles: Mutex::default(),
            witness: Witness::default(),
            ahead: Ahead::default(),
            early: AtomicBool::new(false),
            gift: AtomicBool::new(false),
            order: Mutex::new(()),
            target: known,
            windows: OnceLock::new(),
            written: AtomicBool::new(false),
            attachments: Attachments::default(),
            unnamed: AtomicBool::new(false),
        }
    }

    pub(super) fn fd(&self) -> FdId {
        self.fd
    }

    pub(super) fn weak(&self) -> Weak<GoferInode> {
        self.itself.clone()
    }

    pub(super) fn ahead(&self) -> &Ahead {
        &self.ahead
    }

    pub(super) fn came_ahead(&self) {
        self.early.store(true, Ordering::Relaxed);
    }

    pub(super) fn keep_gift(&self, fs: &GoferFs, handle: Handle) {
        self.gift.store(true, Ordering::Relaxed);
        self.keep(fs, handle);
    }

    pub(super) fn witness(&self) -> &Witness {
        &self.witness
    }

    pub(super) fn fs(&self) -> SysResult<Arc<GoferFs>> {
        self.fs.upgrade().ok_or(Errno::EIO)
    }

    /// The owner as known is not to be believed.
    pub(super) fn distrust(&self) {
        self.attr.lock().distrust();
    }

    /// A name of it has gone.
    fn lost_a_name(&self) {
        self.unnamed.store(true, Ordering::Relaxed);
        self.spoil();
    }

    /// Something has changed the file on the host: the cached attributes are old.
    pub(super) fn spoil(&self) {
        self.attr.lock().spoil();
    }

    /// A descriptor for reading or writing.
    pub(super) fn handle(&self, want: Want) -> SysResult<Handle> {
        if self.early.load(Ordering::Relaxed) && want == Want::Read {
            self.early.store(false, Ordering::Relaxed);
            self.gift.store(false, Ordering::Relaxed);
            self.fs()?.lookout().opened();
        }
        if let Some(handle) = self.handles.lock().get(want) {
            return Ok(handle);
        }
        let fs = self.fs()?;
        let opened = handle::open(fs.client(), self.fd, want)?;
        Ok(self.keep(&fs, opened))
    }

    fn keep(&self, fs: &GoferFs, handle: Handle) -> Handle {
        let kept = self.handles.lock().keep(handle);
        if let Some(itself) = self.itself.upgrade() {
            fs.keeps_handle(&itself);
        }
        kept
    }

    /// Closes what only later opens would use.
    pub(super) fn give_up_handles(&self) {
        let handles = std::mem::take(&mut *self.handles.lock());
        drop(handles);
        if let Some(windows) = self.windows.get() {
            windows.trim();
        }
    }

    pub(super) fn order(&self) -> &Mutex<()> {
        &self.order
    }

    /// The windows onto its pages.
    pub(super) fn windows(&self) -> SysResult<Arc<WindowCache>> {
        let arena = platform::arena()?;
        Ok(self.windows.get_or_init(|| WindowCache::new(arena)).clone())
    }

    /// The guest may write through a mapping from now on.
    pub(super) fn may_be_written(&self) {
        self.written.store(true, Ordering::Relaxed);
    }

    /// Connects to the host socket that this node stands for.
    ///
    /// # Errors
    /// `ECONNREFUSED` where the mount does not allow it or nobody listens, and what `connect(2)` says.
    pub fn connect(&self, kind: SocketKind) -> SysResult<OwnedFd> {
        self.fs()?.client().connect(self.fd, kind)
    }

    fn adopt(&self, fs: &GoferFs, asked: Epoch, found: Found) -> Arc<dyn Inode> {
        self.spoil();
        fs.inode(asked, found.fd, &found.attr, found.target)
    }

    fn same_fs(&self, other: &Arc<dyn Inode>) -> SysResult<Arc<GoferInode>> {
        let other = other.downcast::<GoferInode>().ok_or(Errno::EXDEV)?;
        if !Weak::ptr_eq(&self.fs, &other.fs) {
            return Err(Errno::EXDEV);
        }
        other.itself.upgrade().ok_or(Errno::EIO)
    }

    fn truncate(&self, size: u64) -> SysResult {
        let length = i64::try_from(size).map_err(|_| Errno::EFBIG)?;
        let handle = self.handle(Want::Write)?;
        let changing = self.changing();
        nix::unistd::ftruncate(handle.fd(), length)?;
        drop(changing);
        // The host takes its pages back itself; what lies beyond the end in private copies goes here.
        if let Some(windows) = self.windows.get() {
            windows.mappings().invalidate_beyond(size);
        }
        Ok(())
    }
}

fn new_file(new: NewInode) -> SysResult<NewFile> {
    let owner = Owner::new(new.uid, new.gid).map_err(|_| Errno::EINVAL)?;
    Ok(NewFile { owner, permissions: new.mode & wire::attr::PERMISSIONS })
}

impl Inode for GoferInode {
    fn attr(&self) -> SysResult<Attr> {
        Ok(attributes::to_vfs(&*self.fs()?, &self.current()?))
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
        match self.fs.upgrade().map(|fs| fs.sharing()) {
            Some(Sharing::Exclusive) => DentryCache::Exclusive,
            _ => DentryCache::Revalidate,
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
        let fs = self.fs()?;
        if let Some(inode) = self.take_ahead(&fs, name) {
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

impl GoferInode {
    /// When the id is to be closed: a removed file that takes much space at once, what is there anyhow some time.
    fn urgency(&mut self) -> Urgency {
        if !*self.unnamed.get_mut() {
            return Urgency::Batch;
        }
        let cached = self.attr.get_mut();
        if let Some(handle) = self.handles.get_mut().get(Want::Read)
            && cached.read(handle.fd()).is_ok()
            && (cached.attr.nlink > 0 || cached.attr.blocks < MUCH_SPACE)
        {
            return Urgency::Batch;
        }
        if self.kind == FileKind::Regular { Urgency::Now } else { Urgency::Batch }
    }
}

impl Drop for GoferInode {
    fn drop(&mut self) {
        let urgency = self.urgency();
        let changed =
            self.attr.get_mut().changes() != 0 || *self.written.get_mut() || *self.unnamed.get_mut();
        if let Some(fs) = self.fs.upgrade() {
            self.forget_ahead(&fs);
            if *self.gift.get_mut() {
                fs.lookout().left();
            }
            fs.forget((self.id, self.fd), changed, urgency);
        }
    }
}
