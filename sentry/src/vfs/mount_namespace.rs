//! Mount namespaces: trees of mounts, and what changes them.
//!
//! Lock order: a namespace's tree, then a mount's place; both leaves apart from that.
//!
//! Not there yet: propagation. Every mount is private; the flags are accepted. Watches of an unmounted file system just
//! stop (`IN_UNMOUNT` is not sent).

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::RwLock;

use super::dentry::Dentry;
use super::mount::{Mount, MountFlags, Superblock};
use super::path::VfsPath;
use crate::errno::{Errno, SysResult};
use crate::wait::{PollEvents, WaitQueue};

/// Most mounts a namespace may hold (`fs.mount-max`).
const MOUNTS_MAX: usize = 100_000;

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
