//! A task's root, working directory and umask (`struct fs_struct`), and mount namespaces.

use std::sync::atomic::{AtomicU32, Ordering};

/// What `CLONE_FS` shares.
pub struct FsContext {
    umask: AtomicU32,
}

impl FsContext {
    /// File-creation mask.
    pub fn umask(&self) -> u32 {
        self.umask.load(Ordering::Relaxed)
    }

    /// Sets the mask, returning the former.
    pub fn set_umask(&self, mask: u32) -> u32 {
        self.umask.swap(mask & 0o777, Ordering::Relaxed)
    }

    /// A copy for `fork`.
    pub fn fork(&self) -> FsContext {
        FsContext { umask: AtomicU32::new(self.umask()) }
    }
}

/// A tree of mounts.
pub struct MountNamespace {}
