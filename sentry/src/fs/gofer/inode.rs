//! Inodes that a gofer serves: what they know and hold. What the VFS asks of them is in [`operations`].

mod operations;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use caisson_proto::lisafs::request::SocketKind;
use caisson_proto::lisafs::{self as wire, FdId, FileKind};
use parking_lot::Mutex;

use super::ahead::Ahead;
use super::attributes::Cached;
use super::client::Found;
use super::handle::{self, Handle, Handles, Want};
use super::witness::Witness;
use super::{Epoch, GoferFs, HostId, Urgency};
use crate::errno::{Errno, SysResult};
use crate::fs::gofer::Sharing;
use crate::mm::WindowCache;
use crate::platform;
use crate::vfs::Inode;
use crate::vfs::attachments::Attachments;

/// In blocks of 512 bytes: what a removed file may take that waits for a batch of ids to be closed.
const MUCH_SPACE: u64 = 2048;

/// A file of the host, known to the gofer by an id.
pub struct GoferInode {
    fs: Weak<GoferFs>,
    /// The file system's.
    sharing: Sharing,
    itself: Weak<GoferInode>,
    fd: FdId,
    id: HostId,
    kind: FileKind,
    pub(super) attr: Mutex<Cached>,
    pub(super) handles: Mutex<Handles>,
    witness: Witness,
    /// Of a directory that was looked through.
    ahead: OnceLock<Box<Ahead>>,
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
        (fs, sharing): (Weak<GoferFs>, Sharing),
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
            sharing,
            itself,
            fd,
            id: HostId::of(attr),
            kind: attr.kind,
            attr: Mutex::new(Cached::new(*attr, asked.clock)),
            handles: Mutex::default(),
            witness: Witness::default(),
            ahead: OnceLock::new(),
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
        self.ahead.get_or_init(Box::default)
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
            if self.ahead.get().is_some() {
                self.forget_ahead(&fs);
            }
            if *self.gift.get_mut() {
                fs.lookout().left();
            }
            fs.forget((self.id, self.fd), changed, urgency);
        }
    }
}
