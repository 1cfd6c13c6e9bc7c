//! A kit for file systems whose files the kernel makes up: proc, sysfs, and their like.
//!
//! Contents come from small objects that own a handle to what they describe: [`Directory`] (names), [`Text`] (bytes),
//! [`Link`] (a target). The kit turns them into inodes and open files. Text is made when a file is read from its start
//! and kept for the reads that follow, so that a reader sees one consistent copy, as with Linux's `seq_file`.
//!
//! Inodes hold their file system weakly; the mount keeps it alive.

mod directory;
mod file;
mod link;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::RwLock;

pub(crate) use directory::OpenDir;
pub use directory::{Directory, Entry, PseudoDir, StaticDir};
pub use file::{PseudoFile, Text, TextFn};
pub use link::{Link, PseudoLink};

use crate::errno::{Errno, SysResult};
use crate::time::Timespec;
use crate::vfs::attachments::Attachments;
use crate::vfs::{Attr, Device, FileSystem, FileType, FsStat, Inode, SetAttr};

/// A file system of made-up files.
pub struct PseudoFs {
    name: &'static str,
    magic: u64,
    device: Device,
    next_ino: AtomicU64,
    created: Timespec,
    root: OnceLock<Arc<dyn Inode>>,
}

impl PseudoFs {
    /// An empty file system; [`PseudoFs::set_root`] completes it.
    pub fn new(name: &'static str, magic: u64, device: Device) -> Arc<PseudoFs> {
        Arc::new(PseudoFs {
            name,
            magic,
            device,
            next_ino: AtomicU64::new(1),
            created: Timespec::now_realtime(),
            root: OnceLock::new(),
        })
    }

    /// Sets the root directory, once.
    pub fn set_root(&self, root: Arc<dyn Inode>) {
        let _ = self.root.set(root);
    }
}

impl FileSystem for PseudoFs {
    fn name(&self) -> &'static str {
        self.name
    }

    fn root(&self) -> SysResult<Arc<dyn Inode>> {
        self.root.get().cloned().ok_or(Errno::ENOENT)
    }

    fn device(&self) -> Device {
        self.device
    }

    fn statfs(&self) -> SysResult<FsStat> {
        Ok(FsStat { magic: self.magic, block_size: 4096, name_max: 255, ..FsStat::default() })
    }
}

/// Who owns a made-up inode.
pub trait Owner: Send + Sync {
    /// User and group, now.
    fn owner(&self) -> (u32, u32) {
        (0, 0)
    }

    /// An inode number that stays the same when the inode is made anew at each look-up; `None` takes the next free one.
    fn ino(&self) -> Option<u64> {
        None
    }
}

/// What all made-up inodes share.
pub struct Node {
    fs: Weak<PseudoFs>,
    device: Device,
    ino: u64,
    file_type: FileType,
    created: Timespec,
    changed: RwLock<Changed>,
    attachments: Attachments,
}

/// The attributes that `chmod` and `chown` may change for the life of the inode.
struct Changed {
    mode: u32,
    owner: Option<(u32, u32)>,
}

impl Node {
    /// A node of `fs` with the number `owner` asks for, or one of its own.
    pub fn new(fs: &Arc<PseudoFs>, file_type: FileType, mode: u32, owner: &dyn Owner) -> Node {
        Node {
            fs: Arc::downgrade(fs),
            device: fs.device,
            ino: owner.ino().unwrap_or_else(|| fs.next_ino.fetch_add(1, Ordering::Relaxed)),
            file_type,
            created: fs.created,
            changed: RwLock::new(Changed { mode, owner: None }),
            attachments: Attachments::default(),
        }
    }

    /// Its inode number.
    pub fn ino(&self) -> u64 {
        self.ino
    }

    fn file_system(&self) -> SysResult<Arc<dyn FileSystem>> {
        match self.fs.upgrade() {
            Some(fs) => Ok(fs),
            None => Err(Errno::ESTALE),
        }
    }

    fn attr(&self, owner: (u32, u32), nlink: u32, size: u64) -> Attr {
        let changed = self.changed.read();
        let (uid, gid) = changed.owner.unwrap_or(owner);
        Attr {
            dev: self.device,
            ino: self.ino,
            file_type: self.file_type,
            mode: changed.mode,
            nlink,
            uid,
            gid,
            rdev: Device::default(),
            size,
            blksize: 4096,
            blocks: 0,
            atime: self.created,
            mtime: self.created,
            ctime: self.created,
            btime: None,
        }
    }

    /// `chmod` and `chown` stick to the inode; sizes and times are not kept (truncation on open succeeds, as in Linux).
    fn set_attr(&self, owner: (u32, u32), change: &SetAttr) {
        let mut changed = self.changed.write();
        if let Some(mode) = change.mode {
            changed.mode = mode & 0o7777;
        }
        if change.uid.is_some() || change.gid.is_some() {
            let (uid, gid) = changed.owner.unwrap_or(owner);
            changed.owner = Some((change.uid.unwrap_or(uid), change.gid.unwrap_or(gid)));
        }
    }
}
