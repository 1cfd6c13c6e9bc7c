//! tmpfs: files in memory.
//!
//! [`Tmpfs`] is one mounted instance with its limits ([`Limits`], shared by its inodes); [`TmpInode`] is any file of it:
//! [`directory`] keeps names, [`data`] the contents of regular files in frames of guest memory, so that reads, writes and
//! shared mappings see the same pages. memfds are unnamed files of an instance of their own ([`memfd`]).
//!
//! Lock order: directory entries (of one directory at a time), then an inode's attributes; a file's write lock, then its
//! frame store. The VFS holds the directories' `modify` locks around every change of names.
//!
//! Not there yet: swap, POSIX ACLs, quotas, `mtime` of writes through mappings.

mod data;
mod directory;
mod inode;
pub mod memfd;
mod options;
#[cfg(test)]
mod tests;
mod xattrs;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use linux_raw_sys::general as linux;

use crate::errno::{Errno, SysResult};
use crate::mm::PageBudget;
use crate::platform::{Arena, PAGE_SIZE};
use crate::vfs::registries::{MountRequest, Registries};
use crate::vfs::{Device, FileSystem, FileType, FsStat, Inode, NewInode};

pub use data::{FileData, Seals};
pub use inode::TmpInode;
pub use options::TmpfsOptions;

/// What the inodes of an instance share.
pub(crate) struct Limits {
    fs: Weak<Tmpfs>,
    arena: &'static Arena,
    device: Device,
    pages: Arc<PageBudget>,
    inodes_max: AtomicU64,
    inodes: AtomicU64,
    next_ino: AtomicU64,
}

impl Limits {
    /// Counts one more inode; `ENOSPC` at the limit.
    fn charge_inode(&self) -> SysResult<u64> {
        let max = self.inodes_max.load(Ordering::Relaxed);
        let charged = self.inodes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
            (now < max).then(|| now.saturating_add(1))
        });
        charged.map_err(|_| Errno::ENOSPC)?;
        Ok(self.next_ino.fetch_add(1, Ordering::Relaxed))
    }

    fn uncharge_inode(&self) {
        self.inodes.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One instance.
pub struct Tmpfs {
    limits: Arc<Limits>,
    root: OnceLock<Arc<TmpInode>>,
    options: parking_lot::Mutex<TmpfsOptions>,
}

impl Tmpfs {
    /// An empty instance. `ENOMEM` without guest memory.
    pub fn new(options: TmpfsOptions) -> SysResult<Arc<Tmpfs>> {
        let arena = crate::platform::arena()?;
        // Half of the memory there is, and a file for each page of that, as on Linux.
        let half = u64::from(arena.frames_max() / 2);
        let fs = Arc::new_cyclic(|fs| Tmpfs {
            limits: Arc::new(Limits {
                fs: fs.clone(),
                arena,
                device: Device::new_anonymous(),
                pages: PageBudget::new(options.size.map_or(half, limit_in_pages)),
                inodes_max: AtomicU64::new(options.inodes.map_or(half, no_limit_if_zero)),
                inodes: AtomicU64::new(0),
                next_ino: AtomicU64::new(1),
            }),
            root: OnceLock::new(),
            options: parking_lot::Mutex::new(options.clone()),
        });
        let new = NewInode {
            mode: options.mode.unwrap_or(0o1777),
            uid: options.uid.unwrap_or(0),
            gid: options.gid.unwrap_or(0),
        };
        let root = TmpInode::new(&fs.limits, FileType::Directory, new, inode::Kind::directory())?;
        let _ = fs.root.set(root);
        Ok(fs)
    }

    /// Makes the type known to `mount(2)`, under both its names.
    pub fn register(registries: &Registries) {
        let make = |request: &MountRequest<'_>| -> SysResult<Arc<dyn FileSystem>> {
            let mut options = TmpfsOptions::parse(request.options)?;
            options.uid.get_or_insert(request.caller.credentials.fsuid);
            options.gid.get_or_insert(request.caller.credentials.fsgid);
            Ok(Tmpfs::new(options)?)
        };
        registries.register_type("tmpfs", Arc::new(make));
    }

    pub(crate) fn limits(&self) -> &Arc<Limits> {
        &self.limits
    }
}

fn no_limit_if_zero(value: u64) -> u64 {
    if value == 0 { u64::MAX } else { value }
}

fn limit_in_pages(bytes: u64) -> u64 {
    no_limit_if_zero(bytes.div_ceil(PAGE_SIZE))
}

impl FileSystem for Tmpfs {
    fn name(&self) -> &'static str {
        "tmpfs"
    }

    fn root(&self) -> SysResult<Arc<dyn Inode>> {
        let root = self.root.get().cloned().ok_or(Errno::ENOENT)?;
        Ok(root)
    }

    fn device(&self) -> Device {
        self.limits.device
    }

    fn statfs(&self) -> SysResult<FsStat> {
        let shown =
            |max: u64, used: u64| if max == u64::MAX { (0, 0) } else { (max, max.saturating_sub(used)) };
        let (blocks, free) = shown(self.limits.pages.limit(), self.limits.pages.used());
        let inodes_max = self.limits.inodes_max.load(Ordering::Relaxed);
        let (files, files_free) = shown(inodes_max, self.limits.inodes.load(Ordering::Relaxed));
        Ok(FsStat {
            magic: u64::from(linux::TMPFS_MAGIC),
            block_size: PAGE_SIZE,
            blocks,
            blocks_free: free,
            blocks_available: free,
            files,
            files_free,
            name_max: 255,
        })
    }

    fn show_options(&self) -> String {
        self.options.lock().show()
    }

    fn reconfigure(&self, options: &[u8]) -> SysResult {
        let new = TmpfsOptions::parse(options)?;
        if let Some(size) = new.size {
            let pages = limit_in_pages(size);
            if pages < self.limits.pages.used() {
                return Err(Errno::EINVAL);
            }
            self.limits.pages.set_limit(pages);
        }
        if let Some(inodes) = new.inodes {
            let inodes = no_limit_if_zero(inodes);
            if inodes < self.limits.inodes.load(Ordering::Relaxed) {
                return Err(Errno::EINVAL);
            }
            self.limits.inodes_max.store(inodes, Ordering::Relaxed);
        }
        let mut options = self.options.lock();
        options.size = new.size.or(options.size);
        options.inodes = new.inodes.or(options.inodes);
        Ok(())
    }
}
