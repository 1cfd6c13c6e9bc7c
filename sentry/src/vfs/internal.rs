//! Places for what has no name: files that only descriptors and `/proc/*/fd` lead to.
//!
//! Linux keeps kernel-internal mounts for them; here is one, in no namespace, under which each gets a name of its own.

use std::sync::{Arc, LazyLock};

use super::dentry::Dentry;
use super::file::File;
use super::inode::{Device, FileSystem, FsStat, Inode};
use super::mount::{Mount, MountFlags, Superblock};
use super::path::VfsPath;
use crate::errno::SysResult;

struct Internal;

impl FileSystem for Internal {
    fn name(&self) -> &'static str {
        "none"
    }

    fn root(&self) -> SysResult<Arc<dyn Inode>> {
        Ok(super::absent::inode().clone())
    }

    fn device(&self) -> Device {
        Device::default()
    }

    fn statfs(&self) -> SysResult<FsStat> {
        Ok(FsStat::default())
    }
}

fn mount() -> Arc<Mount> {
    static MOUNT: LazyLock<Arc<Mount>> = LazyLock::new(|| {
        let root = Dentry::root(super::absent::inode().clone());
        Mount::new(Superblock::with_root(Arc::new(Internal), root, b"none"), MountFlags::empty())
    });
    MOUNT.clone()
}

/// A place for `inode`, which has no name; `/proc/*/fd` shows it as `name`.
pub fn place(name: &[u8], inode: Arc<dyn Inode>) -> VfsPath {
    VfsPath::new(mount(), Dentry::disconnected(name, inode))
}

/// Whether it is such a place.
pub fn is_internal(path: &VfsPath) -> bool {
    path.mount().superblock().fs().name() == Internal.name()
}

/// Where a description was opened, or a place for it if it has none.
pub fn place_of(file: &File) -> VfsPath {
    match file.path() {
        Some(path) => path.clone(),
        None => place(file.ops().anonymous_name().unwrap_or_default().as_bytes(), file.inode().clone()),
    }
}
