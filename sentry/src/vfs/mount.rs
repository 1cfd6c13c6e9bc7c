//! Mounts: superblocks, mounts, and the tree of mounts that a mount namespace is.
//!
//! A [`Superblock`] is a mounted file system with its cache of names; a [`Mount`] shows it (or a part of it: a bind mount)
//! at one place of one [`MountNamespace`]. The namespace owns its mounts; a mount knows its parent and its namespace
//! (weakly). A mount taken out lazily (`MNT_DETACH`) lives on while files refer to it, outside any namespace.
//!
//! Lock order: a namespace's tree, then a mount's place. Neither is held while a file system is called.
//!
//! Not there yet: propagation. Every mount is private; the flags are accepted.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use bitflags::bitflags;
use linux_raw_sys::general as linux;
use parking_lot::RwLock;

use super::dentry::{Dentry, Recent};
use super::inode::FileSystem;
use super::path::VfsPath;
use crate::errno::{Errno, SysResult};
use crate::wait::{PollEvents, WaitQueue};

/// Most mounts a namespace may hold (`fs.mount-max`).
const MOUNTS_MAX: usize = 100_000;

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
        Arc::new(Superblock {
            fs,
            root,
            source: source.to_vec(),
            read_only: AtomicBool::new(false),
            recent: Recent::default(),
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
    id: u64,
    superblock: Arc<Superblock>,
    root: Arc<Dentry>,
    flags: AtomicU32,
    place: RwLock<Option<(Arc<Mount>, Arc<Dentry>)>>,
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
    fn of(superblock: Arc<Superblock>, root: Arc<Dentry>, flags: MountFlags) -> Arc<Mount> {
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

    fn attach(self: &Arc<Mount>, namespace: &Weak<MountNamespace>, place: Option<(Arc<Mount>, Arc<Dentry>)>) {
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

static NEXT_NAMESPACE_ID: AtomicU64 = AtomicU64::new(0xf000_0000);

/// A mount namespace: a tree of mounts.
pub struct MountNamespace {
    id: u64,
    this: Weak<MountNamespace>,
    tree: RwLock<Tree>,
    generation: AtomicU64,
    changed: WaitQueue,
}

struct Tree {
    root: Arc<Mount>,
    mounts: BTreeMap<u64, Arc<Mount>>,
    /// Mount by parent mount and address of the dentry it covers.
    at: HashMap<(u64, usize), u64>,
}

fn place_key(mount: &Mount, dentry: &Arc<Dentry>) -> (u64, usize) {
    (mount.id, Arc::as_ptr(dentry).addr())
}

impl Tree {
    fn find(&self, mount: &Mount, dentry: &Arc<Dentry>) -> Option<&Arc<Mount>> {
        self.at.get(&place_key(mount, dentry)).and_then(|id| self.mounts.get(id))
    }

    fn insert(&mut self, namespace: &Weak<MountNamespace>, mount: &Arc<Mount>, place: Option<VfsPath>) {
        if let Some(place) = &place {
            self.at.insert(place_key(place.mount(), place.dentry()), mount.id);
        }
        mount.attach(namespace, place.map(VfsPath::into_parts));
        self.mounts.insert(mount.id, mount.clone());
    }

    /// Forgets where `mount` is, leaving the mount itself in the list.
    fn unplace(&mut self, mount: &Arc<Mount>) {
        if let Some((parent, dentry)) = mount.place.read().as_ref() {
            self.at.remove(&place_key(parent, dentry));
        }
    }

    fn children(&self, mount: &Arc<Mount>) -> Vec<Arc<Mount>> {
        let is_child = |child: &&Arc<Mount>| {
            child.place.read().as_ref().is_some_and(|(parent, _)| Arc::ptr_eq(parent, mount))
        };
        self.mounts.values().filter(is_child).cloned().collect()
    }

    /// `mount` and everything mounted below it, parents first.
    fn subtree(&self, mount: &Arc<Mount>) -> Vec<Arc<Mount>> {
        let mut by_parent: HashMap<u64, Vec<Arc<Mount>>> = HashMap::new();
        for child in self.mounts.values() {
            if let Some((parent, _)) = child.place.read().as_ref() {
                by_parent.entry(parent.id).or_default().push(child.clone());
            }
        }
        let mut found = vec![mount.clone()];
        let mut next = 0;
        while let Some(parent) = found.get(next) {
            let children = by_parent.remove(&parent.id).unwrap_or_default();
            found.extend(children);
            next += 1;
        }
        found
    }

    fn contains(&self, mount: &Arc<Mount>) -> bool {
        self.mounts.get(&mount.id).is_some_and(|known| Arc::ptr_eq(known, mount))
    }
}

/// How to unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmount {
    /// Only if nothing uses it.
    Idle,
    /// Take it out of the tree with everything below; users keep it until they are done (`MNT_DETACH`).
    Detach,
}

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug)]
pub struct MountInfo {
    /// Mount id.
    pub id: u64,
    /// Id of the mount it is on; its own for the root.
    pub parent: u64,
    /// Device number of the file system.
    pub device: super::inode::Device,
    /// What part of the file system is shown.
    pub root: Vec<u8>,
    /// Where, seen from the asked root.
    pub mountpoint: Vec<u8>,
    /// Mount flags.
    pub flags: MountFlags,
    /// File system type.
    pub fs_type: &'static str,
    /// What it was mounted from.
    pub source: Vec<u8>,
    /// Whether the file system itself is read-only.
    pub fs_read_only: bool,
    /// Options of the file system, with a leading comma each.
    pub fs_options: String,
}

impl MountNamespace {
    /// A namespace whose root is `root`.
    pub fn new(root: Arc<Mount>) -> Arc<MountNamespace> {
        let namespace = Arc::new_cyclic(|this| MountNamespace {
            id: NEXT_NAMESPACE_ID.fetch_add(1, Ordering::Relaxed),
            this: this.clone(),
            tree: RwLock::new(Tree { root: root.clone(), mounts: BTreeMap::new(), at: HashMap::new() }),
            generation: AtomicU64::new(0),
            changed: WaitQueue::new(),
        });
        namespace.tree.write().insert(&namespace.this, &root, None);
        namespace
    }

    /// Its number (`/proc/self/ns/mnt`).
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The root directory: of the top mount there.
    pub fn root(&self) -> VfsPath {
        let root = self.tree.read().root.root_path();
        root.top()
    }

    /// Rises with every change; with [`MountNamespace::changed`] it makes `/proc/mounts` pollable.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Notified with `PRI | ERR` when a mount comes or goes.
    pub fn changed(&self) -> &WaitQueue {
        &self.changed
    }

    fn touch(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.changed.notify(PollEvents::PRI | PollEvents::ERR);
    }

    /// What is mounted right on `dentry` of `mount`.
    pub fn mounted_at(&self, mount: &Mount, dentry: &Arc<Dentry>) -> Option<Arc<Mount>> {
        self.tree.read().find(mount, dentry).cloned()
    }

    /// Mounts `mount` on `place`. `ENOENT` if the place is gone, `ENOTDIR` if only one of both is a directory, `EINVAL` if
    /// the place is in another namespace, `ENOSPC` when there are too many.
    pub fn attach(&self, mount: &Arc<Mount>, place: &VfsPath) -> SysResult {
        self.attach_tree(vec![(mount.clone(), None)], place)
    }

    /// Attaches mounts of which the first goes on `place` and the others on the places given.
    fn attach_tree(&self, mounts: Vec<(Arc<Mount>, Option<VfsPath>)>, place: &VfsPath) -> SysResult {
        let mut tree = self.tree.write();
        let place = top_in(&tree, place);
        let Some((first, _)) = mounts.first() else { return Err(Errno::EINVAL) };
        if !tree.contains(place.mount()) {
            return Err(Errno::EINVAL);
        }
        if place.dentry().is_unlinked() {
            return Err(Errno::ENOENT);
        }
        if first.root.is_directory() != place.dentry().is_directory() {
            return Err(Errno::ENOTDIR);
        }
        if tree.mounts.len().saturating_add(mounts.len()) > MOUNTS_MAX {
            return Err(Errno::ENOSPC);
        }
        for (mount, at) in mounts {
            tree.insert(&self.this, &mount, Some(at.unwrap_or_else(|| place.clone())));
        }
        drop(tree);
        self.touch();
        Ok(())
    }

    /// Shows `source` also at `place` (`MS_BIND`), with what is mounted below it if `recursive`.
    pub fn bind(&self, source: &VfsPath, place: &VfsPath, recursive: Recursive) -> SysResult<Arc<Mount>> {
        let copies = self.copy_tree(source, recursive)?;
        let first = copies.first().map(|(mount, _)| mount.clone()).ok_or(Errno::EINVAL)?;
        self.attach_tree(copies, place)?;
        Ok(first)
    }

    fn copy_tree(
        &self,
        source: &VfsPath,
        recursive: Recursive,
    ) -> SysResult<Vec<(Arc<Mount>, Option<VfsPath>)>> {
        let tree = self.tree.read();
        if !tree.contains(source.mount()) {
            return Err(Errno::EINVAL);
        }
        let original = source.mount();
        let copy = Mount::of(original.superblock.clone(), source.dentry().clone(), original.flags());
        let mut copies = vec![(copy.clone(), None)];
        if recursive == Recursive::No {
            return Ok(copies);
        }
        let mut copied: HashMap<u64, Arc<Mount>> = HashMap::from([(original.id, copy)]);
        for mount in tree.subtree(original).into_iter().skip(1) {
            let place = mount.place.read().clone();
            let Some((parent, dentry)) = place else { continue };
            if Arc::ptr_eq(&parent, original) && !source.dentry().is_ancestor_of(&dentry) {
                continue;
            }
            let Some(parent) = copied.get(&parent.id).cloned() else { continue };
            let copy = Mount::of(mount.superblock.clone(), mount.root.clone(), mount.flags());
            copied.insert(mount.id, copy.clone());
            copies.push((copy, Some(VfsPath::new(parent, dentry))));
        }
        Ok(copies)
    }

    /// Moves the mount whose root is `source` to `place` (`MS_MOVE`). `EINVAL` if it is no mount's root or the namespace's
    /// root, `ELOOP` if the place is below it.
    pub fn move_mount(&self, source: &VfsPath, place: &VfsPath) -> SysResult {
        let mut tree = self.tree.write();
        let place = top_in(&tree, place);
        let mount = source.mount();
        let moves = tree.contains(mount) && tree.contains(place.mount()) && source.is_mount_root();
        if !moves || Arc::ptr_eq(mount, &tree.root) {
            return Err(Errno::EINVAL);
        }
        if mount.root.is_directory() != place.dentry().is_directory() {
            return Err(Errno::ENOTDIR);
        }
        if tree.subtree(mount).iter().any(|below| Arc::ptr_eq(below, place.mount())) {
            return Err(Errno::ELOOP);
        }
        tree.unplace(mount);
        tree.insert(&self.this, mount, Some(place));
        drop(tree);
        self.touch();
        Ok(())
    }

    /// Unmounts the mount whose root is `path`. `EINVAL` if it is no mount's root or the root of the namespace, `EBUSY`
    /// if it is used (with [`Unmount::Idle`]).
    pub fn unmount(&self, path: VfsPath, how: Unmount) -> SysResult {
        if !path.is_mount_root() {
            return Err(Errno::EINVAL);
        }
        let (mount, dentry) = path.into_parts();
        drop(dentry);
        let mut tree = self.tree.write();
        if !tree.contains(&mount) || Arc::ptr_eq(&mount, &tree.root) {
            return Err(Errno::EINVAL);
        }
        if how == Unmount::Idle {
            // One reference is the tree's and one is `mount`.
            if !tree.children(&mount).is_empty() || Arc::strong_count(&mount) > 2 {
                return Err(Errno::EBUSY);
            }
        }
        let gone = tree.subtree(&mount);
        for mount in &gone {
            tree.unplace(mount);
            tree.mounts.remove(&mount.id);
            mount.attach(&Weak::new(), None);
        }
        drop(tree);
        self.touch();
        for mount in gone {
            if Arc::strong_count(&mount.superblock) == 1 {
                mount.superblock.recent.clear();
                let _ = mount.superblock.fs().sync();
            }
        }
        Ok(())
    }

    /// `pivot_root(2)`: `new_root`'s mount becomes the root, the old root goes to `put_old`. Returns the old root's place.
    /// The caller moves the tasks' root and working directories.
    pub fn pivot_root(&self, root: &VfsPath, new_root: &VfsPath, put_old: &VfsPath) -> SysResult {
        let mut tree = self.tree.write();
        let known = [root, new_root, put_old].iter().all(|path| tree.contains(path.mount()));
        if !known || !root.is_mount_root() || !new_root.is_mount_root() {
            return Err(Errno::EINVAL);
        }
        if Arc::ptr_eq(root.mount(), new_root.mount()) || Arc::ptr_eq(root.mount(), put_old.mount()) {
            return Err(Errno::EBUSY);
        }
        let old_place = root.mount().place.read().clone();
        let new_place = new_root.mount().place.read().clone();
        if new_place.is_none() || !put_old.is_below(new_root) || !new_root.is_below(root) {
            return Err(Errno::EINVAL);
        }
        tree.unplace(new_root.mount());
        tree.unplace(root.mount());
        let put_old = top_in(&tree, put_old);
        tree.insert(
            &self.this,
            new_root.mount(),
            old_place.map(|(mount, dentry)| VfsPath::new(mount, dentry)),
        );
        tree.insert(&self.this, root.mount(), Some(put_old));
        if Arc::ptr_eq(&tree.root, root.mount()) {
            tree.root = new_root.mount().clone();
        }
        drop(tree);
        self.touch();
        Ok(())
    }

    /// A copy for `CLONE_NEWNS`/`unshare`, and a function that finds a place of this namespace in the copy.
    pub fn copy(&self) -> SysResult<(Arc<MountNamespace>, impl Fn(&VfsPath) -> VfsPath + use<>)> {
        let tree = self.tree.read();
        let mut copied: HashMap<u64, Arc<Mount>> = HashMap::new();
        let mut places = Vec::new();
        for mount in tree.subtree(&tree.root) {
            let copy = Mount::of(mount.superblock.clone(), mount.root.clone(), mount.flags());
            if let Some((parent, dentry)) = mount.place.read().as_ref()
                && let Some(parent) = copied.get(&parent.id)
            {
                places.push((copy.clone(), VfsPath::new(parent.clone(), dentry.clone())));
            }
            copied.insert(mount.id, copy);
        }
        let root = copied.get(&tree.root.id).cloned().ok_or(Errno::EINVAL)?;
        drop(tree);
        let namespace = MountNamespace::new(root);
        {
            let mut tree = namespace.tree.write();
            for (mount, place) in places {
                tree.insert(&namespace.this, &mount, Some(place));
            }
        }
        let translate = move |path: &VfsPath| match copied.get(&path.mount().id) {
            Some(mount) => VfsPath::new(mount.clone(), path.dentry().clone()),
            None => path.clone(),
        };
        Ok((namespace, translate))
    }

    /// The mounts that can be seen from `root`, in order of their ids, for `/proc/*/mounts` and `mountinfo`.
    pub fn list(&self, root: &VfsPath) -> Vec<MountInfo> {
        let mounts: Vec<Arc<Mount>> = self.tree.read().mounts.values().cloned().collect();
        mounts.iter().filter_map(|mount| describe(mount, root)).collect()
    }

    /// Every file system that is mounted, once each (`sync(2)`).
    pub fn superblocks(&self) -> Vec<Arc<Superblock>> {
        let mut found: Vec<Arc<Superblock>> = Vec::new();
        for mount in self.tree.read().mounts.values() {
            if !found.iter().any(|known| Arc::ptr_eq(known, &mount.superblock)) {
                found.push(mount.superblock.clone());
            }
        }
        found
    }
}

impl Drop for MountNamespace {
    fn drop(&mut self) {
        let tree = self.tree.get_mut();
        tree.at.clear();
        let mounts = std::mem::take(&mut tree.mounts);
        for mount in mounts.values() {
            mount.attach(&Weak::new(), None);
        }
    }
}

/// Whether a bind mount takes along what is mounted below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recursive {
    /// `MS_BIND`
    No,
    /// `MS_BIND | MS_REC`
    Yes,
}

/// What is on top at `place`, for a caller that holds the tree.
fn top_in(tree: &Tree, place: &VfsPath) -> VfsPath {
    let mut place = place.clone();
    while let Some(over) = tree.find(place.mount(), place.dentry()) {
        place = over.root_path();
    }
    place
}

fn describe(mount: &Arc<Mount>, root: &VfsPath) -> Option<MountInfo> {
    let place = mount.root_path();
    let shown = place.text(root);
    if !shown.reachable {
        return None;
    }
    let superblock = mount.superblock();
    Some(MountInfo {
        id: mount.id,
        parent: mount.place.read().as_ref().map_or(mount.id, |(parent, _)| parent.id),
        device: superblock.fs().device(),
        root: super::path::dentry_text(&mount.root),
        mountpoint: shown.bytes,
        flags: mount.flags(),
        fs_type: superblock.fs().name(),
        source: superblock.source().to_vec(),
        fs_read_only: superblock.is_read_only(),
        fs_options: superblock.fs().show_options(),
    })
}
