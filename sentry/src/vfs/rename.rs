//! `rename`, in Linux's order of errors (`do_renameat2`, `vfs_rename`).
//!
//! Locks: for two directories the superblock's rename lock, then both `modify` locks, the ancestor first, then that of a
//! directory that is replaced.

use std::sync::Arc;

use linux_raw_sys::general as linux;
use parking_lot::RwLockWriteGuard;

use super::caller::Caller;
use super::dentry::{Dentry, same_object};
use super::inode::{Access, RenameFlags};
use super::notify;
use super::path::VfsPath;
use super::remove::Victim;
use super::walk::{Last, Parent, WalkFlags};
use crate::errno::{Errno, SysResult};
use crate::task::Capability;

/// One side of a rename.
struct Side {
    dir: VfsPath,
    name: Vec<u8>,
    trailing_slash: bool,
}

impl Side {
    fn new(parent: Parent, error: Errno) -> SysResult<Side> {
        match parent.last {
            Last::Name(name) => Ok(Side { dir: parent.dir, name, trailing_slash: parent.trailing_slash }),
            _ => Err(error),
        }
    }

    fn find(&self) -> SysResult<Arc<Dentry>> {
        self.dir.dentry().lookup_locked(&self.dir.mount().superblock().recent, &self.name)
    }
}

/// The locks of both directories, and of the rename as a whole if they differ.
struct Locked<'a> {
    _first: RwLockWriteGuard<'a, ()>,
    _second: Option<RwLockWriteGuard<'a, ()>>,
    _rename: Option<parking_lot::MutexGuard<'a, ()>>,
    /// The child of the upper directory on the way to the lower one.
    on_the_way: Option<Arc<Dentry>>,
}

impl<'a> Locked<'a> {
    fn new(old: &'a VfsPath, new: &'a VfsPath) -> Locked<'a> {
        let (one, two) = (old.dentry(), new.dentry());
        if Arc::ptr_eq(one, two) {
            return Locked { _first: one.lock_exclusive(), _second: None, _rename: None, on_the_way: None };
        }
        let rename = old.mount().superblock().rename.lock();
        let below_old = child_towards(one, two);
        let below_new = if below_old.is_none() { child_towards(two, one) } else { None };
        let (upper, lower) = if below_new.is_some() { (two, one) } else { (one, two) };
        let first = upper.lock_exclusive();
        let second = lower.lock_exclusive();
        Locked {
            _first: first,
            _second: Some(second),
            _rename: Some(rename),
            on_the_way: below_old.or(below_new),
        }
    }

    fn is_on_the_way(&self, dentry: &Arc<Dentry>) -> bool {
        self.on_the_way.as_ref().is_some_and(|on_the_way| Arc::ptr_eq(on_the_way, dentry))
    }
}

/// The child of `upper` that is `lower` or above it; `None` if `lower` is not below `upper`.
fn child_towards(upper: &Arc<Dentry>, lower: &Arc<Dentry>) -> Option<Arc<Dentry>> {
    let mut at = lower.clone();
    loop {
        let parent = at.parent()?;
        if Arc::ptr_eq(&parent, upper) {
            return Some(at);
        }
        at = parent;
    }
}

impl Caller<'_> {
    /// `renameat2`.
    pub fn rename(&self, old: (&VfsPath, &[u8]), new: (&VfsPath, &[u8]), flags: RenameFlags) -> SysResult {
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        if exchange && flags.intersects(RenameFlags::NOREPLACE | RenameFlags::WHITEOUT) {
            return Err(Errno::EINVAL);
        }
        let old = self.lookup_parent(old.0, old.1, WalkFlags::empty())?;
        let new = self.lookup_parent(new.0, new.1, WalkFlags::empty())?;
        if !Arc::ptr_eq(old.dir.mount(), new.dir.mount()) {
            return Err(Errno::EXDEV);
        }
        let old = Side::new(old, Errno::EBUSY)?;
        let taken = if flags.contains(RenameFlags::NOREPLACE) { Errno::EEXIST } else { Errno::EBUSY };
        let new = Side::new(new, taken)?;
        old.dir.mount().require_writable()?;
        let locked = Locked::new(&old.dir, &new.dir);
        let child = old.find()?;
        child.positive()?;
        let target = new.find()?;
        check_names(&old, &child, &new, &target, flags)?;
        if locked.is_on_the_way(&child) {
            return Err(Errno::EINVAL);
        }
        if locked.is_on_the_way(&target) {
            return Err(if exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
        }
        let event = self.rename_locked(&old, &child, &new, &target, flags)?;
        drop(locked);
        if let Some(event) = event {
            event.tell(&old, &new);
        }
        Ok(())
    }

    fn rename_locked(
        &self,
        old: &Side,
        child: &Arc<Dentry>,
        new: &Side,
        target: &Arc<Dentry>,
        flags: RenameFlags,
    ) -> SysResult<Option<Renamed>> {
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        let inode = child.positive()?.clone();
        if target.inode().is_some_and(|other| same_object(other, &inode)) {
            return Ok(None);
        }
        let moves_directory = Victim::of(&*inode);
        self.may_delete(&old.dir, child, moves_directory)?;
        match target.inode() {
            None => self.may_create(&new.dir)?,
            Some(other) if exchange => self.may_delete(&new.dir, target, Victim::of(&**other))?,
            Some(_) => self.may_delete(&new.dir, target, moves_directory)?,
        }
        if !Arc::ptr_eq(old.dir.dentry(), new.dir.dentry()) {
            // The entry `..` of a directory that changes its parent is written to.
            let moved = [Some(&inode), target.inode().filter(|_| exchange)];
            for directory in
                moved.into_iter().flatten().filter(|inode| Victim::of(&***inode) == Victim::Directory)
            {
                directory.permission(&self.credentials, Access::WRITE)?;
            }
        }
        if child.is_mountpoint() || target.is_mountpoint() {
            return Err(Errno::EBUSY);
        }
        if flags.contains(RenameFlags::WHITEOUT) && !self.credentials.has(Capability::MKNOD) {
            return Err(Errno::EPERM);
        }
        let replaced = target.is_directory() && !exchange;
        let inside = replaced.then(|| target.lock_exclusive());
        old.dir.inode().rename(&old.name, new.dir.inode(), &new.name, flags)?;
        for touched in [Some(&inode), target.inode()].into_iter().flatten() {
            touched.names_changed();
        }
        let recent = &old.dir.mount().superblock().recent;
        if exchange {
            old.dir.dentry().exchanged(child, new.dir.dentry(), target);
        } else {
            if target.inode().is_some() {
                new.dir.dentry().removed(recent, target);
            }
            old.dir.dentry().moved(recent, child, new.dir.dentry(), &new.name);
        }
        drop(inside);
        Ok(Some(Renamed { child: child.clone(), target: target.clone(), exchange }))
    }
}

fn check_names(
    old: &Side,
    child: &Arc<Dentry>,
    new: &Side,
    target: &Arc<Dentry>,
    flags: RenameFlags,
) -> SysResult {
    let exchange = flags.contains(RenameFlags::EXCHANGE);
    if flags.contains(RenameFlags::NOREPLACE) && target.inode().is_some() {
        return Err(Errno::EEXIST);
    }
    if exchange {
        target.positive()?;
        if !target.is_directory() && new.trailing_slash {
            return Err(Errno::ENOTDIR);
        }
    }
    if !child.is_directory() && (old.trailing_slash || (!exchange && new.trailing_slash)) {
        return Err(Errno::ENOTDIR);
    }
    Ok(())
}

/// A rename that has happened, for those who watch.
struct Renamed {
    child: Arc<Dentry>,
    target: Arc<Dentry>,
    exchange: bool,
}

impl Renamed {
    fn tell(&self, old: &Side, new: &Side) {
        if !notify::watched() {
            return;
        }
        let Some(inode) = self.child.inode() else { return };
        let moved = |from: &Side, to: &Side, inode: &Arc<dyn super::inode::Inode>| {
            let cookie = notify::next_cookie();
            notify::entry(from.dir.inode(), &from.name, inode, linux::IN_MOVED_FROM, cookie);
            notify::entry(to.dir.inode(), &to.name, inode, linux::IN_MOVED_TO, cookie);
            notify::object(inode, linux::IN_MOVE_SELF);
        };
        moved(old, new, inode);
        match self.target.inode() {
            Some(other) if self.exchange => moved(new, old, other),
            Some(replaced) => notify::unlinked(replaced),
            None => {}
        }
    }
}
