//! An inode's attributes: the cached ones, and when they may be used.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use caisson_proto::lisafs::{self as wire, FileKind, Timestamp};

use super::GoferFs;
use crate::errno::SysResult;
use crate::time::Timespec;
use crate::vfs::{Attr, FileType, SetAttr, SetTime};

/// How long attributes of a shared mount that a walk has just brought serve the call that walked.
const JUST_WALKED: Duration = Duration::from_micros(200);

/// Attributes as the gofer told them last.
pub(super) struct Cached {
    pub(super) attr: wire::Attr,
    /// False when something has changed the file since.
    valid: bool,
    learned: Instant,
}

impl Cached {
    pub(super) fn new(attr: wire::Attr) -> Cached {
        Cached { attr, valid: true, learned: Instant::now() }
    }

    pub(super) fn learn(&mut self, attr: wire::Attr) {
        *self = Cached::new(attr);
    }

    pub(super) fn spoil(&mut self) {
        self.valid = false;
    }

    /// Whether they still are the host's.
    pub(super) fn usable(&self, fs: &GoferFs) -> bool {
        self.valid && (fs.is_exclusive() || self.learned.elapsed() < JUST_WALKED)
    }

    /// Reads them from a host descriptor of the same file; the time of birth stays, and so does the owner: the sentry's user
    /// namespace has one id, so that `fstat` calls everybody else's files those of 65534. Only the gofer can tell owners.
    pub(super) fn read(&mut self, fd: impl AsFd) -> SysResult<()> {
        let host = nix::sys::stat::fstat(fd)?;
        let time = |seconds: i64, nanoseconds: i64| Timestamp {
            seconds,
            nanoseconds: u32::try_from(nanoseconds).unwrap_or(0),
        };
        let attr = wire::Attr {
            permissions: host.st_mode & wire::attr::PERMISSIONS,
            nlink: u32::try_from(host.st_nlink).unwrap_or(u32::MAX),
            size: u64::try_from(host.st_size).unwrap_or(0),
            blocks: u64::try_from(host.st_blocks).unwrap_or(0),
            atime: time(host.st_atime, host.st_atime_nsec),
            mtime: time(host.st_mtime, host.st_mtime_nsec),
            ctime: time(host.st_ctime, host.st_ctime_nsec),
            ..self.attr
        };
        self.learn(attr);
        Ok(())
    }
}

/// The attributes as the guest sees them.
pub(super) fn to_vfs(fs: &GoferFs, attr: &wire::Attr) -> Attr {
    let time = |time: Timestamp| Timespec { sec: time.seconds, nsec: time.nanoseconds };
    Attr {
        dev: fs.shown_device(attr.dev),
        ino: attr.ino,
        file_type: file_type(attr.kind),
        mode: attr.permissions,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: crate::vfs::Device { major: attr.rdev.major, minor: attr.rdev.minor },
        size: attr.size,
        blksize: attr.block_size,
        blocks: attr.blocks,
        atime: time(attr.atime),
        mtime: time(attr.mtime),
        ctime: time(attr.ctime),
        btime: (attr.btime != Timestamp::default()).then(|| time(attr.btime)),
    }
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::Regular,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::Fifo,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// A change as the protocol has it.
pub(super) fn to_wire(change: &SetAttr) -> wire::SetAttr {
    let time = |time: Option<SetTime>| match time {
        None => wire::SetTime::Keep,
        Some(SetTime::Now) => wire::SetTime::Now,
        Some(SetTime::At(at)) => wire::SetTime::At(Timestamp { seconds: at.sec, nanoseconds: at.nsec }),
    };
    wire::SetAttr {
        size: change.size,
        uid: change.uid,
        gid: change.gid,
        permissions: change.mode.map(|mode| mode & wire::attr::PERMISSIONS),
        atime: time(change.atime),
        mtime: time(change.mtime),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_does_not_tell_the_owner() {
        let mine = tempfile::tempfile().unwrap();
        mine.set_len(5).unwrap();
        let somebody = wire::Attr { uid: 4_242, gid: 4_343, ..attr_of_nothing() };
        let mut cached = Cached::new(somebody);
        cached.spoil();
        cached.read(&mine).unwrap();
        assert!(cached.valid);
        assert_eq!((cached.attr.uid, cached.attr.gid, cached.attr.size), (4_242, 4_343, 5));
    }

    fn attr_of_nothing() -> wire::Attr {
        let never = Timestamp::default();
        wire::Attr {
            ino: 1,
            dev: wire::Device::default(),
            kind: FileKind::Regular,
            permissions: 0,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: wire::Device::default(),
            size: 0,
            blocks: 0,
            block_size: 4096,
            atime: never,
            mtime: never,
            ctime: never,
            btime: never,
        }
    }
}
