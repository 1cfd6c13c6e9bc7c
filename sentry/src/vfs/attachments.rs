//! State that the VFS and the kernel hang on an inode or a description, whatever its file system.

use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

use super::inode::Inode;
use super::locks::FileLocks;
use super::mount::Mount;
use super::notify::WatchList;
use crate::errno::{Errno, SysResult};

/// One per inode, owned by it.
#[derive(Default)]
pub struct Attachments {
    /// The pipe behind a FIFO node while anybody has it open.
    pub pipe: Mutex<Option<Weak<dyn Any + Send + Sync>>>,
    /// The unix socket bound to a socket node.
    pub socket: Mutex<Option<Weak<dyn Any + Send + Sync>>>,
    locks: OnceLock<Box<FileLocks>>,
    watches: OnceLock<Box<WatchList>>,
    /// Above zero: descriptions open for writing; below: programs running from it.
    writers: AtomicI32,
    /// An unnamed file that may be given a name (`O_TMPFILE` without `O_EXCL`).
    linkable: AtomicBool,
}

impl Attachments {
    /// The FIFO's pipe, created by `make` if nobody has it open.
    pub fn pipe_or<T: Any + Send + Sync>(&self, make: impl FnOnce() -> Arc<T>) -> Option<Arc<T>> {
        let mut slot = self.pipe.lock();
        if let Some(live) = slot.as_ref().and_then(Weak::upgrade) {
            return live.downcast::<T>().ok();
        }
        let pipe = make();
        let erased: Arc<dyn Any + Send + Sync> = pipe.clone();
        *slot = Some(Arc::downgrade(&erased));
        Some(pipe)
    }

    /// Its locks, if there ever was one.
    pub(super) fn locks_if_any(&self) -> Option<&FileLocks> {
        self.locks.get().map(|locks| &**locks)
    }

    /// Its locks.
    pub(super) fn locks(&self) -> &FileLocks {
        self.locks.get_or_init(Box::default)
    }

    /// Its watches, if there ever was one.
    pub(super) fn watches_if_any(&self) -> Option<&WatchList> {
        self.watches.get().map(|watches| &**watches)
    }

    /// Its watches.
    pub(super) fn watches(&self) -> &WatchList {
        self.watches.get_or_init(Box::default)
    }

    pub(super) fn is_linkable(&self) -> bool {
        self.linkable.load(Ordering::Relaxed)
    }

    pub(super) fn set_linkable(&self) {
        self.linkable.store(true, Ordering::Relaxed);
    }

    /// Whether somebody has it open for writing.
    pub fn is_open_for_writing(&self) -> bool {
        self.writers.load(Ordering::Acquire) > 0
    }
}

/// The right to write to a file: while it lives the file cannot be executed nor its mount become read-only.
pub struct WriteAccess {
    inode: Arc<dyn Inode>,
    mount: Option<Arc<Mount>>,
}

impl WriteAccess {
    /// `ETXTBSY` while a program runs from it, `EROFS` if the mount is read-only.
    pub fn get(inode: &Arc<dyn Inode>, mount: Option<&Arc<Mount>>) -> SysResult<WriteAccess> {
        if let Some(mount) = mount {
            mount.writers.fetch_add(1, Ordering::AcqRel);
            if let Err(error) = mount.require_writable() {
                mount.writers.fetch_sub(1, Ordering::AcqRel);
                return Err(error);
            }
        }
        let writers = &inode.attachments().writers;
        let taken = writers.fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| {
            (now >= 0).then(|| now.saturating_add(1))
        });
        if taken.is_err() {
            if let Some(mount) = mount {
                mount.writers.fetch_sub(1, Ordering::AcqRel);
            }
            return Err(Errno::ETXTBSY);
        }
        Ok(WriteAccess { inode: inode.clone(), mount: mount.cloned() })
    }
}

impl Drop for WriteAccess {
    fn drop(&mut self) {
        self.inode.attachments().writers.fetch_sub(1, Ordering::AcqRel);
        if let Some(mount) = &self.mount {
            mount.writers.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Keeps a running program's file from being written to.
pub struct DenyWrite {
    inode: Arc<dyn Inode>,
}

impl DenyWrite {
    /// `ETXTBSY` if somebody has it open for writing.
    pub fn new(inode: &Arc<dyn Inode>) -> SysResult<DenyWrite> {
        let writers = &inode.attachments().writers;
        let denied = writers.fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| {
            (now <= 0).then(|| now.saturating_sub(1))
        });
        denied.map_err(|_| Errno::ETXTBSY)?;
        Ok(DenyWrite { inode: inode.clone() })
    }
}

impl Clone for DenyWrite {
    fn clone(&self) -> DenyWrite {
        // Already denied, so one more holder changes nothing for writers.
        self.inode.attachments().writers.fetch_sub(1, Ordering::AcqRel);
        DenyWrite { inode: self.inode.clone() }
    }
}

impl Drop for DenyWrite {
    fn drop(&mut self) {
        self.inode.attachments().writers.fetch_add(1, Ordering::AcqRel);
    }
}

/// Who gets `SIGIO` for a description (`F_SETOWN`, `F_SETSIG`).
#[derive(Clone, Copy, Debug, Default)]
pub struct FileOwner {
    /// As `F_SETOWN` gave it: positive a process, negative a group, 0 nobody.
    pub pid: i32,
    /// Whether `pid` names a thread (`F_OWNER_TID`).
    pub thread: bool,
    /// The signal; 0 = `SIGIO`.
    pub signal: i32,
}
