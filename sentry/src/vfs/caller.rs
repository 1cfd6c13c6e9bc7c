//! On whose behalf the VFS acts ([`Caller`]) and from where a task's paths start ([`FsContext`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::RwLock;

use super::path::VfsPath;
use crate::task::{Credentials, Task};

/// Root and working directory at one moment.
#[derive(Clone)]
pub struct FsPlaces {
    /// Where absolute paths start and `..` ends.
    pub root: VfsPath,
    /// Where relative paths start.
    pub cwd: VfsPath,
}

/// Root, working directory and umask of a task (`struct fs_struct`); shared with `CLONE_FS`, copied by `fork`.
pub struct FsContext {
    places: RwLock<Arc<FsPlaces>>,
    umask: AtomicU32,
}

impl FsContext {
    /// Both directories at `root`, umask 022.
    pub fn new(root: VfsPath) -> Arc<FsContext> {
        let places = FsPlaces { cwd: root.clone(), root };
        Arc::new(FsContext { places: RwLock::new(Arc::new(places)), umask: AtomicU32::new(0o022) })
    }

    /// A copy of its own for a new task.
    pub fn fork(&self) -> Arc<FsContext> {
        let umask = AtomicU32::new(self.umask());
        Arc::new(FsContext { places: RwLock::new(self.places()), umask })
    }

    /// Root and working directory.
    pub fn places(&self) -> Arc<FsPlaces> {
        self.places.read().clone()
    }

    /// `chdir`.
    pub fn set_cwd(&self, cwd: VfsPath) {
        self.update(|places| places.cwd = cwd);
    }

    /// `chroot`.
    pub fn set_root(&self, root: VfsPath) {
        self.update(|places| places.root = root);
    }

    /// Changes both at once (a new mount namespace, `pivot_root`).
    pub fn update(&self, change: impl FnOnce(&mut FsPlaces)) {
        // The old places are dropped after the lock is released: they may be the last users of a mount.
        let old = {
            let mut places = self.places.write();
            let mut new = FsPlaces::clone(&places);
            change(&mut new);
            std::mem::replace(&mut *places, Arc::new(new))
        };
        drop(old);
    }

    /// The mode bits that new files do not get.
    pub fn umask(&self) -> u32 {
        self.umask.load(Ordering::Relaxed)
    }

    /// Replaces the umask and returns the old one.
    pub fn set_umask(&self, umask: u32) -> u32 {
        self.umask.swap(umask & 0o777, Ordering::Relaxed)
    }
}

/// Who asks the VFS for something: credentials, places and umask at the start of a call, and the task if there is one
/// (the kernel itself acts without, when it builds a container's tree).
pub struct Caller<'a> {
    /// Whose rights are checked (the file-system ids).
    pub credentials: Arc<Credentials>,
    /// Root and working directory.
    pub places: Arc<FsPlaces>,
    /// See [`FsContext::umask`].
    pub umask: u32,
    /// The task, for `/proc/self` and the like.
    pub task: Option<&'a Arc<Task>>,
}

impl<'a> Caller<'a> {
    /// The kernel itself, all powerful, in the tree under `root`.
    pub fn kernel(root: VfsPath) -> Caller<'static> {
        Caller {
            credentials: Arc::new(Credentials::root()),
            places: Arc::new(FsPlaces { cwd: root.clone(), root }),
            umask: 0,
            task: None,
        }
    }

    /// Somebody with these credentials and places.
    pub fn new(credentials: Arc<Credentials>, fs: &FsContext, task: Option<&'a Arc<Task>>) -> Caller<'a> {
        Caller { credentials, places: fs.places(), umask: fs.umask(), task }
    }

    /// The task itself, as it is now.
    pub fn of(task: &'a Arc<Task>) -> Caller<'a> {
        Caller::new(task.credentials(), &task.fs(), Some(task))
    }

    /// Its root directory.
    pub fn root(&self) -> &VfsPath {
        &self.places.root
    }

    /// Its working directory.
    pub fn cwd(&self) -> &VfsPath {
        &self.places.cwd
    }
}
