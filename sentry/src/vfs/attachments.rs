//! State that the VFS and the kernel hang on an inode or a description, whatever its file system.

use std::any::Any;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// One per inode, owned by it.
#[derive(Default)]
pub struct Attachments {
    /// The pipe behind a FIFO node while anybody has it open.
    pub pipe: Mutex<Option<Weak<dyn Any + Send + Sync>>>,
    /// The unix socket bound to a socket node.
    pub socket: Mutex<Option<Weak<dyn Any + Send + Sync>>>,
}

impl Attachments {
    /// The FIFO's pipe, created by `make` if nobody has it open.
    pub fn pipe_or<T: Any + Send + Sync>(&self, make: impl FnOnce() -> Arc<T>) -> Option<Arc<T>> {
        let mut slot = self.pipe.lock();
        if let Some(live) = slot.as_ref().and_then(Weak::upgrade) {
            return live.downcast::<T>().ok();
        }
        let pipe = make();
        let erased: Arc<dyn Any + Send + Sync> = pipe.clone();
        *slot = Some(Arc::downgrade(&erased));
        Some(pipe)
    }
}

/// Who gets `SIGIO` for a description (`F_SETOWN`, `F_SETSIG`).
#[derive(Clone, Copy, Debug, Default)]
pub struct FileOwner {
    /// As `F_SETOWN` gave it: positive a process, negative a group, 0 nobody.
    pub pid: i32,
    /// The signal; 0 = `SIGIO`.
    pub signal: i32,
}
