//! Mounts and what they show.
//!
//! A [`Superblock`] is a mounted file system with its cache of names; a [`Mount`] shows it (or a part of it: a bind mount)
//! at one place of one [`MountNamespace`]. The namespace owns its mounts; a mount knows its parent and its namespace
//! (weakly). A mount taken out lazily (`MNT_DETACH`) lives on while files refer to it, outside any namespace.
//!
//! Lock order: a namespace's tree, then a mount's place. Neither is held while a file system is called.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use bitflags::bitflags;
use linux_raw_sys::general as linux;
use parking_lot::RwLock;

use super::dentry::Dentry;
use super::inode::FileSystem;
use super::mount_namespace::MountNamespace;
use super::path::VfsPath;
use super::recent::{RECENT_MAX, Recent};
use crate::errno::{Errno, SysResult};

bitflags! {
    /// Per-mount flags, with `mount(2)`'s numbers.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct MountFlags: u32 {
        /// No writing.
        const RDONLY = linux::MS_RDONLY;
        /// Ignore set-id bits and file capabilities.
        const NOSUID = linux::MS_NOSUID;
        /// Device nodes cannot be opened.
        const NODEV = linux::MS_NODEV;
        /// Nothing can be executed.
        const NOEXEC = linux::MS_NOEXEC;
        /// Access times stay.
        const NOATIME = linux::MS_NOATIME;
        /// Access times of directories stay.
        const NODIRATIME = linux::MS_NODIRATIME;
        /// Access times are updated when older than a change or a day; the default.
        const RELATIME = linux::MS_RELATIME;
        /// Access times are always updated.
        const STRICTATIME = linux::MS_STRICTATIME;
        /// Symbolic links are not followed.
        const NOSYMFOLLOW = linux::MS_NOSYMFOLLOW;
    }
}

impl MountFlags {
    /// The options as `/proc/mounts` shows them, starting with `rw` or `ro`.
    pub fn show(self) -> String {
        let mut text = String::from(if self.contains(MountFlags::RDONLY) { "ro" } else { "rw" });
        let names = [
            (MountFlags::NOSUID, ",nosuid"),
            (MountFlags::NODEV, ",nodev"),
            (MountFlags::NOEXEC, ",noexec"),
            (MountFlags::NOATIME, ",noatime"),
            (MountFlags::NODIRATIME, ",nodiratime"),
            (MountFlags::RELATIME, ",relatime"),
            (MountFlags::NOSYMFOLLOW, ",nosymfollow"),
        ];
        for (flag, name) in names {
            if self.contains(flag) {
                text.push_str(name);
            }
        }
        text
    }

    /// Settles the access-time policy as Linux does: `relatime` unless asked otherwise.
    pub fn with_atime_default(mut self) -> MountFlags {
        if self.contains(MountFlags::STRICTATIME) {
            self.remove(MountFlags::RELATIME | MountFlags::NOATIME);
        } else if !self.contains(MountFlags::NOATIME) {
            self.insert(MountFlags::RELATIME);
        } else {
            self.remove(MountFlags::RELATIME);
        }
        self - MountFlags::STRICTATIME
    }
}

/// A mounted file system, shared by all mounts of it.
pub struct Superblock {
    fs: Arc<dyn FileSystem>,
    root: Arc<Dentry>,
    source: Vec<u8>,
    read_only: AtomicBool,
    /// The unused dentries kept for later.
    pub recent: Recent,
    /// Held by renames between directories, so that no directory becomes its own ancestor.
    pub(super) rename: parking_lot::Mutex<()>,
}

impl Superblock {
    /// `source` is what `/proc/mounts` shows first (`tmpfs`, a device, a path).
    pub fn new(fs: Arc<dyn FileSystem>, source: &[u8]) -> SysResult<Arc<Superblock>> {
        let root = Dentry::root(fs.root()?);
        Ok(Superblock::with_root(fs, root, source))
    }

    pub(super) fn with_root(fs: Arc<dyn FileSystem>, root: Arc<Dentry>, source: &[u8]) -> Arc<Superblock> {
        let recent = Recent::with_limit(fs.names_kept().clamp(1, RECENT_MAX));
        Arc::new(Superblock {
            fs,
            root,
            source: source.to_vec(),
            read_only: AtomicBool::new(false),
            recent,
            rename: parking_lot::Mutex::new(()),
        })
    }

    /// Its root.
    pub fn root(&self) -> &Arc<Dentry> {
        &self.root
    }

    /// The file system.
    pub fn fs(&self) -> &Arc<dyn FileSystem> {
        &self.fs
    }

    /// What it was mounted from.
    pub fn source(&self) -> &[u8] {
        &self.source
    }

    /// Whether the whole file system is read-only, whatever mount shows it.
    pub fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed)
    }

    /// Changes that.
    pub fn set_read_only(&self, read_only: bool) {
        self.read_only.store(read_only, Ordering::Relaxed);
    }
}

static NEXT_MOUNT_ID: AtomicU64 = AtomicU64::new(1);

/// A superblock (or a part of it) shown at a place.
pub struct Mount {
    pub(super) id: u64,
    pub(super) superblock: Arc<Superblock>,
    pub(super) root: Arc<Dentry>,
    flags: AtomicU32,
    pub(super) place: RwLock<Option<(Arc<Mount>, Arc<Dentry>)>>,
    namespace: RwLock<Weak<MountNamespace>>,
    /// Descriptions open for writing.
    pub(super) writers: AtomicU32,
}

impl Mount {
    /// A mount of all of `superblock`, not attached anywhere yet.
    pub fn new(superblock: Arc<Superblock>, flags: MountFlags) -> Arc<Mount> {
        let root = superblock.root.clone();
        Mount::of(superblock, root, flags)
    }

    /// A mount of `root` and what is below it.
    pub(super) fn of(superblock: Arc<Superblock>, root: Arc<Dentry>, flags: MountFlags) -> Arc<Mount> {
        Arc::new(Mount {
            id: NEXT_MOUNT_ID.fetch_add(1, Ordering::Relaxed),
            superblock,
            root,
            flags: AtomicU32::new(flags.with_atime_default().bits()),
            place: RwLock::new(None),
            namespace: RwLock::new(Weak::new()),
            writers: AtomicU32::new(0),
        })
    }

    /// Its number (`mnt_id`).
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What it shows.
    pub fn superblock(&self) -> &Arc<Superblock> {
        &self.superblock
    }

    /// The dentry it shows at its place.
    pub fn root(&self) -> &Arc<Dentry> {
        &self.root
    }

    /// Its flags.
    pub fn flags(&self) -> MountFlags {
        MountFlags::from_bits_truncate(self.flags.load(Ordering::Relaxed))
    }

    /// Replaces its flags (bind remount). `EBUSY` if it becomes read-only while files are open for writing.
    pub fn set_flags(&self, flags: MountFlags) -> SysResult {
        let newly_read_only = (flags - self.flags()).contains(MountFlags::RDONLY);
        if newly_read_only && self.writers.load(Ordering::Acquire) != 0 {
            return Err(Errno::EBUSY);
        }
        self.flags.store(flags.with_atime_default().bits(), Ordering::Relaxed);
        Ok(())
    }

    /// Whether somebody has a file open for writing through it.
    pub fn has_writers(&self) -> bool {
        self.writers.load(Ordering::Acquire) != 0
    }

    /// Whether writing through it is refused.
    pub fn is_read_only(&self) -> bool {
        self.flags().contains(MountFlags::RDONLY) || self.superblock.is_read_only()
    }

    /// `EROFS` if it is read-only.
    pub fn require_writable(&self) -> SysResult {
        if self.is_read_only() { Err(Errno::EROFS) } else { Ok(()) }
    }

    /// Where it is mounted; `None` for the root of a namespace and for detached mounts.
    pub fn mountpoint(&self) -> Option<VfsPath> {
        self.place.read().as_ref().map(|(mount, dentry)| VfsPath::new(mount.clone(), dentry.clone()))
    }

    /// The namespace it belongs to; `None` once detached.
    pub fn namespace(&self) -> Option<Arc<MountNamespace>> {
        self.namespace.read().upgrade()
    }

    /// Its root as a place.
    pub fn root_path(self: &Arc<Mount>) -> VfsPath {
        VfsPath::new(self.clone(), self.root.clone())
    }

    /// Puts it somewhere else in a namespace, or nowhere; the namespace's tree knows.
    pub(super) fn attach(
        self: &Arc<Mount>,
        namespace: &Weak<MountNamespace>,
        place: Option<(Arc<Mount>, Arc<Dentry>)>,
    ) {
        if let Some((_, dentry)) = &place {
            dentry.mount_added();
        }
        *self.namespace.write() = namespace.clone();
        let old = std::mem::replace(&mut *self.place.write(), place);
        if let Some((_, dentry)) = &old {
            dentry.mount_removed();
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let mut place = self.place.get_mut().take();
        // As with dentries: chains of mounts are as long as a guest makes them.
        while let Some((mount, dentry)) = place {
            dentry.mount_removed();
            place = Arc::into_inner(mount).and_then(|mut mount| mount.place.get_mut().take());
        }
    }
}
