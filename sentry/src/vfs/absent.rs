//! The inode of a name that does not exist: every operation on it is `ENOENT`.

use std::sync::{Arc, LazyLock};

use super::attachments::Attachments;
use super::caller::Caller;
use super::file::{FileOps, OpenFlags};
use super::inode::{Attr, FileSystem, FileType, Inode};
use super::path::VfsPath;
use crate::errno::{Errno, SysResult};

#[derive(Default)]
struct Absent {
    attachments: Attachments,
}

/// The one absent inode.
pub(super) fn inode() -> &'static Arc<dyn Inode> {
    static ABSENT: LazyLock<Arc<dyn Inode>> = LazyLock::new(|| Arc::new(Absent::default()));
    &ABSENT
}

impl Inode for Absent {
    fn attr(&self) -> SysResult<Attr> {
        Err(Errno::ENOENT)
    }

    fn file_type(&self) -> FileType {
        FileType::Regular
    }

    fn file_system(&self) -> SysResult<Arc<dyn FileSystem>> {
        Err(Errno::ENOENT)
    }

    fn open(&self, _caller: &Caller<'_>, _path: &VfsPath, _flags: OpenFlags) -> SysResult<Arc<dyn FileOps>> {
        Err(Errno::ENOENT)
    }

    fn attachments(&self) -> &Attachments {
        &self.attachments
    }
}
