//! Places in the tree ([`VfsPath`]) and how they are written.

use std::sync::Arc;

use super::dentry::Dentry;
use super::inode::Inode;
use super::mount::Mount;

/// A place in the tree: a mount and a dentry in it. Holding one keeps both in use.
#[derive(Clone)]
pub struct VfsPath {
    mount: Arc<Mount>,
    dentry: Arc<Dentry>,
}

/// A place as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathText {
    /// The path, starting with `/`; from the top of what can be reached if the asked root is not above the place.
    pub bytes: Vec<u8>,
    /// Whether the asked root is above the place.
    pub reachable: bool,
    /// Whether the name has been removed.
    pub deleted: bool,
}

impl PathText {
    /// As the links in `/proc/*/fd` show it: with ` (deleted)` behind a removed name.
    pub fn for_link(mut self) -> Vec<u8> {
        if self.deleted {
            self.bytes.extend_from_slice(b" (deleted)");
        }
        self.bytes
    }
}

impl VfsPath {
    /// `dentry` as `mount` shows it.
    pub fn new(mount: Arc<Mount>, dentry: Arc<Dentry>) -> VfsPath {
        VfsPath { mount, dentry }
    }

    /// The mount.
    pub fn mount(&self) -> &Arc<Mount> {
        &self.mount
    }

    /// The name.
    pub fn dentry(&self) -> &Arc<Dentry> {
        &self.dentry
    }

    /// The inode at this place. Places that walks hand out have one; a negative dentry gives an inode that answers
    /// everything with `ENOENT`.
    pub fn inode(&self) -> &Arc<dyn Inode> {
        self.dentry.inode().unwrap_or_else(|| super::absent::inode())
    }

    /// The same mount, another dentry.
    pub fn with_dentry(&self, dentry: Arc<Dentry>) -> VfsPath {
        VfsPath { mount: self.mount.clone(), dentry }
    }

    pub(super) fn set_dentry(&mut self, dentry: Arc<Dentry>) {
        self.dentry = dentry;
    }

    /// Its two halves.
    pub fn into_parts(self) -> (Arc<Mount>, Arc<Dentry>) {
        (self.mount, self.dentry)
    }

    /// Whether both are the same place.
    pub fn same(&self, other: &VfsPath) -> bool {
        Arc::ptr_eq(&self.dentry, &other.dentry) && Arc::ptr_eq(&self.mount, &other.mount)
    }

    /// Whether it is where its mount starts.
    pub fn is_mount_root(&self) -> bool {
        Arc::ptr_eq(&self.dentry, self.mount.root())
    }

    /// What is mounted on top here; itself if nothing is.
    #[must_use]
    pub fn top(mut self) -> VfsPath {
        self.descend();
        self
    }

    /// Moves onto what is mounted here; whether there was anything.
    pub(super) fn descend(&mut self) -> bool {
        let mut crossed = false;
        while self.dentry.is_mountpoint() {
            let over = self.mount.namespace().and_then(|ns| ns.mounted_at(&self.mount, &self.dentry));
            let Some(over) = over else { break };
            *self = over.root_path();
            crossed = true;
        }
        crossed
    }

    /// From the root of a mount to the place it covers (through several mounts if they are stacked); `false` at the top.
    pub(super) fn ascend(&mut self) -> bool {
        while self.is_mount_root() {
            match self.mount.mountpoint() {
                Some(below) => *self = below,
                None => return false,
            }
        }
        true
    }

    /// The directory above, across mounts; `None` at the top of everything.
    pub fn parent(&self) -> Option<VfsPath> {
        let mut at = self.clone();
        if !at.ascend() {
            return None;
        }
        let parent = at.dentry.parent()?;
        Some(at.with_dentry(parent))
    }

    /// Whether `root` is this place or lies above it.
    pub fn is_below(&self, root: &VfsPath) -> bool {
        let mut at = self.clone();
        loop {
            if at.same(root) {
                return true;
            }
            match at.up() {
                Some(above) => at = above,
                None => return false,
            }
        }
    }

    /// One step towards the top: the parent dentry, or the place the mount covers.
    fn up(&self) -> Option<VfsPath> {
        if self.is_mount_root() {
            self.mount.mountpoint()
        } else {
            self.dentry.parent().map(|parent| self.with_dentry(parent))
        }
    }

    /// The path as seen from `root`.
    pub fn text(&self, root: &VfsPath) -> PathText {
        let mut names: Vec<Arc<[u8]>> = Vec::new();
        let mut at = self.clone();
        let mut reachable = true;
        while !at.same(root) {
            if at.is_mount_root() {
                match at.mount.mountpoint() {
                    Some(below) => at = below,
                    None => {
                        reachable = false;
                        break;
                    }
                }
                continue;
            }
            let (parent, name) = at.dentry.place();
            names.push(name);
            match parent {
                Some(parent) => at.set_dentry(parent),
                None => {
                    reachable = false;
                    break;
                }
            }
        }
        PathText { bytes: join(&names), reachable, deleted: self.dentry.is_unlinked() }
    }
}

/// The path of a dentry from the root of its file system.
pub fn dentry_text(dentry: &Arc<Dentry>) -> Vec<u8> {
    let mut names: Vec<Arc<[u8]>> = Vec::new();
    let mut at = dentry.clone();
    loop {
        let (parent, name) = at.place();
        let Some(parent) = parent else { break };
        names.push(name);
        at = parent;
    }
    join(&names)
}

/// Joins names that are listed from the last to the first.
fn join(names: &[Arc<[u8]>]) -> Vec<u8> {
    let mut text = Vec::new();
    for name in names.iter().rev() {
        text.push(b'/');
        text.extend_from_slice(name);
    }
    if text.is_empty() {
        text.push(b'/');
    }
    text
}
