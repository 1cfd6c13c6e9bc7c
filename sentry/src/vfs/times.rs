//! Access times: when a read shows in `atime`.

use super::mount::MountFlags;
use super::path::VfsPath;
use crate::time::Timespec;

/// With `relatime`, an access time older than this many seconds is updated anyway.
const STALE_SECONDS: i64 = 24 * 60 * 60;

/// What an access does to the access time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtimePolicy {
    /// Always update.
    Strict,
    /// Update when it is not newer than a change, or a day old.
    Relative,
}

impl AtimePolicy {
    /// Whether an access at `now` has to be recorded.
    pub fn due(self, atime: Timespec, mtime: Timespec, ctime: Timespec, now: Timespec) -> bool {
        match self {
            AtimePolicy::Strict => true,
            AtimePolicy::Relative => {
                atime <= mtime || atime <= ctime || now.sec.saturating_sub(atime.sec) >= STALE_SECONDS
            }
        }
    }
}

/// Records that what is at `path` was read, as its mount wants it.
pub fn accessed(path: &VfsPath) {
    let flags = path.mount().flags();
    if flags.contains(MountFlags::NOATIME) || path.mount().is_read_only() {
        return;
    }
    if flags.contains(MountFlags::NODIRATIME) && path.dentry().is_directory() {
        return;
    }
    let policy =
        if flags.contains(MountFlags::RELATIME) { AtimePolicy::Relative } else { AtimePolicy::Strict };
    path.inode().accessed(policy);
}
