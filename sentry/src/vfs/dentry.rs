//! Names: the dentry cache.
//!
//! A [`Dentry`] is one name in one directory, with the inode behind it or the knowledge that there is none (a negative
//! dentry). Children hold their parent; parents know their children weakly; what keeps an unused dentry alive is the
//! bounded second-chance cache of its superblock ([`Recent`]), so the cache cannot grow with what a guest looks up.
//! A dentry's inode never changes: creating a file replaces the negative dentry, removing one marks it [`Dentry::is_unlinked`].
//!
//! A directory has one live dentry, whatever mounts show it, so its `modify` lock is the directory's lock: held shared by
//! lookups that ask the file system, exclusively by whatever adds or removes names.
//!
//! Lock order: `modify` of an ancestor, `modify` of a descendant, `children`, `place`, the list. A dentry may be
//! dropped under any of them: dropping only *tries* to lock the parent's `children`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::inode::{DentryCache, FileType, Inode};
use super::path::VfsPath;
use super::recent::{NOT_KEPT, Recent};
use crate::errno::{Errno, SysResult};

/// Longest name in bytes.
pub const NAME_MAX: usize = 255;

/// A name in a directory (or the root of a file system).
pub struct Dentry {
    inode: Option<Arc<dyn Inode>>,
    place: RwLock<Place>,
    children: RwLock<Children>,
    modify: RwLock<()>,
    unlinked: AtomicBool,
    /// Looked up since the cache's hand last came by.
    pub(super) referenced: AtomicBool,
    mounted: AtomicU32,
    /// The [`Inode::names_version`] of the directory as of which this is right; 0 for none.
    version: AtomicU64,
    /// Where its superblock's [`Recent`] keeps it; changed under that lock.
    pub(super) slot: AtomicUsize,
}

#[derive(Clone)]
struct Place {
    parent: Option<Arc<Dentry>>,
    name: Arc<[u8]>,
}

#[derive(Default)]
struct Children {
    by_name: HashMap<Arc<[u8]>, Weak<Dentry>>,
    purge_at: usize,
}

impl Children {
    fn insert(&mut self, name: Arc<[u8]>, child: &Arc<Dentry>) {
        if self.by_name.len() >= self.purge_at.max(64) {
            self.by_name.retain(|_, child| child.strong_count() > 0);
            self.purge_at = self.by_name.len().saturating_mul(2);
        }
        // The key is replaced too, so that it shares the new dentry's allocation.
        self.by_name.remove(&name);
        self.by_name.insert(name, Arc::downgrade(child));
    }
}

impl Dentry {
    fn make(parent: Option<Arc<Dentry>>, name: Arc<[u8]>, inode: Option<Arc<dyn Inode>>) -> Arc<Dentry> {
        Arc::new(Dentry {
            inode,
            place: RwLock::new(Place { parent, name }),
            children: RwLock::default(),
            modify: RwLock::new(()),
            unlinked: AtomicBool::new(false),
            referenced: AtomicBool::new(false),
            mounted: AtomicU32::new(0),
            version: AtomicU64::new(0),
            slot: AtomicUsize::new(NOT_KEPT),
        })
    }

    /// The root of a file system.
    pub fn root(inode: Arc<dyn Inode>) -> Arc<Dentry> {
        Dentry::make(None, Arc::from(&b""[..]), Some(inode))
    }

    /// A name outside any directory (`O_TMPFILE`, memfd), shown as `name`, deleted from the start.
    pub fn disconnected(name: &[u8], inode: Arc<dyn Inode>) -> Arc<Dentry> {
        let dentry = Dentry::make(None, Arc::from(name), Some(inode));
        dentry.unlinked.store(true, Ordering::Release);
        dentry
    }

    /// A file without a name made in the directory at `dir` (`O_TMPFILE`): shown there, but not found there.
    pub(super) fn unnamed(dir: &VfsPath, name: &[u8], inode: Arc<dyn Inode>) -> Arc<Dentry> {
        let dentry = Dentry::make(Some(dir.dentry().clone()), Arc::from(name), Some(inode));
        dentry.unlinked.store(true, Ordering::Release);
        dentry
    }

    /// The inode; `None` for a negative dentry.
    pub fn inode(&self) -> Option<&Arc<dyn Inode>> {
        self.inode.as_ref()
    }

    /// The inode, or `ENOENT`.
    pub fn positive(&self) -> SysResult<&Arc<dyn Inode>> {
        self.inode.as_ref().ok_or(Errno::ENOENT)
    }

    /// Whether it names a directory.
    pub fn is_directory(&self) -> bool {
        self.inode.as_ref().is_some_and(|inode| inode.file_type() == FileType::Directory)
    }

    /// The directory it is in; `None` for a root or a disconnected dentry.
    pub fn parent(&self) -> Option<Arc<Dentry>> {
        self.place.read().parent.clone()
    }

    /// Its current name; empty for a root.
    pub fn name(&self) -> Arc<[u8]> {
        self.place.read().name.clone()
    }

    /// Parent and name together, consistent with each other.
    pub fn place(&self) -> (Option<Arc<Dentry>>, Arc<[u8]>) {
        let place = self.place.read();
        (place.parent.clone(), place.name.clone())
    }

    /// Whether the name has been removed (the inode may live on behind open files).
    pub fn is_unlinked(&self) -> bool {
        self.unlinked.load(Ordering::Acquire)
    }

    /// Whether something is mounted on it, in whatever namespace.
    pub fn is_mountpoint(&self) -> bool {
        self.mounted.load(Ordering::Acquire) != 0
    }

    pub(super) fn mount_added(&self) {
        self.mounted.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn mount_removed(&self) {
        self.mounted.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether `self` is `other` or lies above it.
    pub fn is_ancestor_of(self: &Arc<Dentry>, other: &Arc<Dentry>) -> bool {
        let mut at = other.clone();
        loop {
            if Arc::ptr_eq(self, &at) {
                return true;
            }
            match at.parent() {
                Some(parent) => at = parent,
                None => return false,
            }
        }
    }

    /// Keeps others from adding or removing names here.
    pub(super) fn lock_exclusive(&self) -> RwLockWriteGuard<'_, ()> {
        self.modify.write()
    }

    fn lock_shared(&self) -> RwLockReadGuard<'_, ()> {
        self.modify.read()
    }

    fn cached(&self, name: &[u8]) -> Option<Arc<Dentry>> {
        let children = self.children.read();
        children.by_name.get(name).and_then(Weak::upgrade)
    }

    /// The cached child if the directory's policy lets it be used without asking for it again.
    fn usable(
        &self,
        dir: &dyn Inode,
        policy: DentryCache,
        name: &[u8],
        seen: Option<u64>,
    ) -> Option<Arc<Dentry>> {
        let child = self.cached(name)?;
        let usable = child.is_mountpoint()
            || match policy {
                DentryCache::Exclusive => true,
                DentryCache::Revalidate => child.is_current(dir, name, seen),
                DentryCache::Never => false,
            };
        if usable {
            child.referenced.store(true, Ordering::Relaxed);
        }
        usable.then_some(child)
    }

    /// Whether a directory that others change, too, still has this under `name`.
    fn is_current(&self, dir: &dyn Inode, name: &[u8], seen: Option<u64>) -> bool {
        // From before the file system is asked: a change meanwhile is noticed the next time.
        let version = version_of(dir, seen);
        if version != 0 && version == self.version.load(Ordering::Relaxed) {
            return true;
        }
        let current = self.inode.as_ref().is_some_and(|inode| dir.revalidate(name, inode));
        if current {
            self.version.store(version, Ordering::Relaxed);
        }
        current
    }

    /// Finds `name` here, in the cache or by asking the file system; a negative dentry if there is no such file.
    /// The caller has checked that this is a directory that may be searched.
    pub fn lookup(self: &Arc<Dentry>, recent: &Recent, name: &[u8]) -> SysResult<Arc<Dentry>> {
        self.lookup_as_of(recent, name, None)
    }

    /// [`Dentry::lookup`] for a caller to whom [`Inode::search`] has just told this.
    pub(super) fn lookup_as_of(
        self: &Arc<Dentry>,
        recent: &Recent,
        name: &[u8],
        seen: Option<u64>,
    ) -> SysResult<Arc<Dentry>> {
        let dir = self.positive()?;
        let policy = dir.dentry_cache();
        if let Some(child) = self.usable(&**dir, policy, name, seen) {
            return Ok(child);
        }
        if name.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let _shared = self.lock_shared();
        self.ask(recent, name, seen)
    }

    /// [`Dentry::lookup`] for a caller that holds the directory's lock.
    pub(super) fn lookup_locked(self: &Arc<Dentry>, recent: &Recent, name: &[u8]) -> SysResult<Arc<Dentry>> {
        self.ask(recent, name, None)
    }

    fn ask(self: &Arc<Dentry>, recent: &Recent, name: &[u8], seen: Option<u64>) -> SysResult<Arc<Dentry>> {
        let dir = self.positive()?;
        let policy = dir.dentry_cache();
        if let Some(child) = self.usable(&**dir, policy, name, seen) {
            return Ok(child);
        }
        if name.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        if self.is_unlinked() {
            return Err(Errno::ENOENT);
        }
        // From before the question, as in `is_current`.
        let version = if policy == DentryCache::Revalidate { version_of(&**dir, seen) } else { 0 };
        let found = match dir.lookup_as_of(name, version) {
            Ok(inode) => Ok(self.adopt(recent, name, Some(inode))),
            Err(Errno::ENOENT) if policy == DentryCache::Exclusive || version != 0 => {
                Ok(self.adopt(recent, name, None))
            }
            Err(Errno::ENOENT) if policy == DentryCache::Revalidate => {
                Ok(Dentry::make(Some(self.clone()), Arc::from(name), None))
            }
            // Also of names in `/proc`: Linux fails there before it asks whether something may be created.
            Err(error) => Err(error),
        };
        if version != 0
            && let Ok(child) = &found
        {
            child.version.store(version, Ordering::Relaxed);
        }
        found
    }

    /// Enters what the file system said about `name`, keeping a live dentry that says the same.
    fn adopt(self: &Arc<Dentry>, recent: &Recent, name: &[u8], inode: Option<Arc<dyn Inode>>) -> Arc<Dentry> {
        let name: Arc<[u8]> = Arc::from(name);
        let fresh = Dentry::make(Some(self.clone()), name.clone(), inode);
        // What is found here may be the last reference: it is dropped after the lock is released.
        let (kept, displaced) = {
            let mut children = self.children.write();
            match children.by_name.get(&name).and_then(Weak::upgrade) {
                Some(earlier) if earlier.is_mountpoint() || earlier.says_the_same(&fresh) => {
                    (Some(earlier), None)
                }
                earlier => {
                    children.insert(name, &fresh);
                    (None, earlier)
                }
            }
        };
        if let Some(kept) = kept {
            return kept;
        }
        if let Some(displaced) = displaced {
            displaced.unlinked.store(true, Ordering::Release);
            recent.forget(&displaced);
        }
        recent.keep(&fresh);
        fresh
    }

    fn says_the_same(&self, other: &Dentry) -> bool {
        match (&self.inode, &other.inode) {
            (Some(a), Some(b)) => same_object(a, b),
            (None, None) => true,
            _ => false,
        }
    }

    /// Makes `name` stand for `inode` from now on (`None`: for nothing).
    pub(super) fn enter(
        self: &Arc<Dentry>,
        recent: &Recent,
        name: &[u8],
        inode: Option<Arc<dyn Inode>>,
    ) -> Arc<Dentry> {
        let name: Arc<[u8]> = Arc::from(name);
        let child = Dentry::make(Some(self.clone()), name.clone(), inode);
        let displaced = {
            let mut children = self.children.write();
            let displaced = children.by_name.get(&name).and_then(Weak::upgrade);
            children.insert(name, &child);
            displaced
        };
        if let Some(displaced) = displaced {
            recent.forget(&displaced);
        }
        recent.keep(&child);
        child
    }

    /// The name has been removed: forgets it here and remembers that there is nothing.
    pub(super) fn removed(self: &Arc<Dentry>, recent: &Recent, child: &Arc<Dentry>) {
        let name = child.name();
        child.unlinked.store(true, Ordering::Release);
        recent.forget(child);
        child.forget_absences(recent);
        let exclusive = self.inode.as_ref().is_some_and(|dir| dir.dentry_cache() == DentryCache::Exclusive);
        if exclusive {
            self.enter(recent, &name, None);
        } else {
            self.children.write().by_name.remove(&name);
        }
    }

    /// In a directory that is gone only absences are left; they are not to keep it in memory.
    fn forget_absences(&self, recent: &Recent) {
        let children = std::mem::take(&mut *self.children.write());
        for absent in children.by_name.values().filter_map(Weak::upgrade) {
            recent.forget(&absent);
        }
    }

    /// The child has been moved to `name` in `to` by a rename.
    pub(super) fn moved(
        self: &Arc<Dentry>,
        recent: &Recent,
        child: &Arc<Dentry>,
        to: &Arc<Dentry>,
        name: &[u8],
    ) {
        let old_name = child.name();
        let name: Arc<[u8]> = Arc::from(name);
        self.children.write().by_name.remove(&old_name);
        let old_place = std::mem::replace(
            &mut *child.place.write(),
            Place { parent: Some(to.clone()), name: name.clone() },
        );
        drop(old_place);
        child.version.store(0, Ordering::Relaxed);
        let displaced = {
            let mut children = to.children.write();
            let displaced = children.by_name.get(&name).and_then(Weak::upgrade);
            children.insert(name, child);
            displaced
        };
        if let Some(displaced) = displaced {
            recent.forget(&displaced);
        }
        recent.keep(child);
    }

    /// A rename has swapped two children.
    pub(super) fn exchanged(self: &Arc<Dentry>, child: &Arc<Dentry>, to: &Arc<Dentry>, other: &Arc<Dentry>) {
        let (one, two) = (child.place.read().clone(), other.place.read().clone());
        self.children.write().insert(one.name.clone(), other);
        to.children.write().insert(two.name.clone(), child);
        *child.place.write() = two;
        *other.place.write() = one;
        for moved in [child, other] {
            moved.version.store(0, Ordering::Relaxed);
        }
    }

    /// Forgets a cached child, so that the next lookup asks the file system.
    pub fn forget(&self, name: &[u8]) {
        self.children.write().by_name.remove(name);
    }
}

/// The [`Inode::names_version`] of a directory that was just seen, or is looked at now; 0 for none.
fn version_of(dir: &dyn Inode, seen: Option<u64>) -> u64 {
    seen.unwrap_or_else(|| dir.names_version().unwrap_or(0))
}

/// Whether both are the same inode object.
pub fn same_object(a: &Arc<dyn Inode>, b: &Arc<dyn Inode>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(a), Arc::as_ptr(b))
}

impl Place {
    fn nowhere() -> Place {
        Place { parent: None, name: Arc::from(&b""[..]) }
    }

    /// Removes the dead entry for this place from the parent, unless somebody holds the parent's lock.
    fn clear_entry(&self) {
        if let Some(parent) = &self.parent
            && let Some(mut children) = parent.children.try_write()
            && children.by_name.get(&self.name).is_some_and(|child| child.strong_count() == 0)
        {
            children.by_name.remove(&self.name);
        }
    }
}

impl Drop for Dentry {
    fn drop(&mut self) {
        if let Some(inode) = &self.inode
            && *self.unlinked.get_mut()
        {
            super::notify::name_released(inode);
        }
        let mut place = std::mem::replace(self.place.get_mut(), Place::nowhere());
        // A chain of parents that only this dentry kept is taken apart in a loop: a guest chooses its length.
        loop {
            place.clear_entry();
            let Some(mut parent) = place.parent.and_then(Arc::into_inner) else { break };
            place = std::mem::replace(parent.place.get_mut(), Place::nowhere());
        }
    }
}
