//! Attributes between the host's form and the protocol's.

use std::os::fd::AsFd;

use caisson_proto::lisafs::attr::PERMISSIONS;
use caisson_proto::lisafs::reply::StatFs;
use caisson_proto::lisafs::{Attr, Device, FileKind, SetTime, Timestamp};
use rustix::fs::{AtFlags, Statx, StatxFlags, StatxTimestamp, Timespec, fstatfs, statx};
use rustix::io::Errno;

/// The attributes of the file behind any descriptor, `O_PATH` too.
///
/// # Errors
/// What `statx(2)` says; `EIO` when the host's answer makes no sense.
pub fn read(fd: impl AsFd) -> Result<Attr, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    let host = statx(fd, c"", flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)?;
    convert(&host).ok_or(Errno::IO)
}

fn convert(host: &Statx) -> Option<Attr> {
    let mode = u32::from(host.stx_mode);
    let time = |time: StatxTimestamp| Timestamp { seconds: time.tv_sec, nanoseconds: time.tv_nsec };
    Some(Attr {
        ino: host.stx_ino,
        dev: Device { major: host.stx_dev_major, minor: host.stx_dev_minor },
        kind: FileKind::from_mode(mode)?,
        permissions: mode & PERMISSIONS,
        nlink: host.stx_nlink,
        uid: host.stx_uid,
        gid: host.stx_gid,
        rdev: Device { major: host.stx_rdev_major, minor: host.stx_rdev_minor },
        size: host.stx_size,
        blocks: host.stx_blocks,
        block_size: host.stx_blksize,
        atime: time(host.stx_atime),
        mtime: time(host.stx_mtime),
        ctime: time(host.stx_ctime),
        btime: if host.stx_mask & StatxFlags::BTIME.bits() != 0 {
            time(host.stx_btime)
        } else {
            Timestamp::default()
        },
    })
}

/// A time to set in the form that `utimensat(2)` takes.
pub fn set_time(time: SetTime) -> Timespec {
    match time {
        SetTime::Keep => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        SetTime::Now => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        SetTime::At(at) => Timespec { tv_sec: at.seconds, tv_nsec: i64::from(at.nanoseconds) },
    }
}

/// The attributes of the file system behind a descriptor.
///
/// # Errors
/// What `fstatfs(2)` says.
pub fn read_statfs(fd: impl AsFd) -> Result<StatFs, Errno> {
    let host = fstatfs(fd)?;
    let unsigned = |value: i64| u64::try_from(value).unwrap_or(0);
    Ok(StatFs {
        kind: unsigned(host.f_type),
        block_size: unsigned(host.f_bsize),
        blocks: host.f_blocks,
        blocks_free: host.f_bfree,
        blocks_available: host.f_bavail,
        files: host.f_files,
        files_free: host.f_ffree,
        name_max: unsigned(host.f_namelen),
    })
}
