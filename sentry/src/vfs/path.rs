//! Places in the tree and the walk that finds them.

use std::sync::Arc;

use super::inode::Inode;

/// A place in the tree: a mount and a dentry in it.
#[derive(Clone)]
pub struct VfsPath {
    inode: Arc<dyn Inode>,
}

impl VfsPath {
    /// The inode at this place.
    pub fn inode(&self) -> &Arc<dyn Inode> {
        &self.inode
    }
}
