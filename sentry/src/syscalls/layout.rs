//! Structures of the file calls as they lie in guest memory, checked against the kernel's headers.

use std::mem::offset_of;

use linux_raw_sys::general as linux;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::time::Timespec;
use crate::vfs::{Attr, FsStat};

/// `struct stat`
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Stat {
    dev: u64,
    ino: u64,
    nlink: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    pad: u32,
    rdev: u64,
    size: u64,
    blksize: u64,
    blocks: u64,
    atime: [u64; 2],
    mtime: [u64; 2],
    ctime: [u64; 2],
    unused: [u64; 3],
}

const _: () = {
    assert!(size_of::<Stat>() == size_of::<linux::stat>());
    assert!(offset_of!(Stat, rdev) == offset_of!(linux::stat, st_rdev));
    assert!(offset_of!(Stat, blksize) == offset_of!(linux::stat, st_blksize));
    assert!(offset_of!(Stat, ctime) == offset_of!(linux::stat, st_ctime));
};

fn time(time: Timespec) -> [u64; 2] {
    [time.sec as u64, u64::from(time.nsec)]
}

impl From<&Attr> for Stat {
    fn from(attr: &Attr) -> Stat {
        Stat {
            dev: attr.dev.encode(),
            ino: attr.ino,
            nlink: u64::from(attr.nlink),
            mode: attr.full_mode(),
            uid: attr.uid,
            gid: attr.gid,
            pad: 0,
            rdev: attr.rdev.encode(),
            size: attr.size,
            blksize: u64::from(attr.blksize),
            blocks: attr.blocks,
            atime: time(attr.atime),
            mtime: time(attr.mtime),
            ctime: time(attr.ctime),
            unused: [0; 3],
        }
    }
}

/// `struct statx_timestamp`
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct StatxTime {
    sec: i64,
    nsec: u32,
    pad: u32,
}

impl From<Timespec> for StatxTime {
    fn from(time: Timespec) -> StatxTime {
        StatxTime { sec: time.sec, nsec: time.nsec, pad: 0 }
    }
}

/// `struct statx`
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Statx {
    mask: u32,
    blksize: u32,
    attributes: u64,
    nlink: u32,
    uid: u32,
    gid: u32,
    mode: u16,
    spare0: u16,
    ino: u64,
    size: u64,
    blocks: u64,
    attributes_mask: u64,
    atime: StatxTime,
    btime: StatxTime,
    ctime: StatxTime,
    mtime: StatxTime,
    rdev: [u32; 2],
    dev: [u32; 2],
    mnt_id: u64,
    rest: [u64; 13],
}

const _: () = {
    assert!(size_of::<Statx>() == size_of::<linux::statx>());
    assert!(offset_of!(Statx, ino) == offset_of!(linux::statx, stx_ino));
    assert!(offset_of!(Statx, mtime) == offset_of!(linux::statx, stx_mtime));
    assert!(offset_of!(Statx, dev) == offset_of!(linux::statx, stx_dev_major));
    assert!(offset_of!(Statx, mnt_id) == offset_of!(linux::statx, stx_mnt_id));
};

impl Statx {
    /// `mount_root`: whether the file is where a mount starts.
    pub fn new(attr: &Attr, mnt_id: u64, mount_root: bool) -> Statx {
        let root = u64::from(linux::STATX_ATTR_MOUNT_ROOT);
        let birth = if attr.btime.is_some() { linux::STATX_BTIME } else { 0 };
        Statx {
            mask: linux::STATX_BASIC_STATS | linux::STATX_MNT_ID | birth,
            blksize: attr.blksize,
            attributes: if mount_root { root } else { 0 },
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            mode: attr.full_mode() as u16,
            spare0: 0,
            ino: attr.ino,
            size: attr.size,
            blocks: attr.blocks,
            attributes_mask: root,
            atime: attr.atime.into(),
            btime: attr.btime.unwrap_or_default().into(),
            ctime: attr.ctime.into(),
            mtime: attr.mtime.into(),
            rdev: [attr.rdev.major, attr.rdev.minor],
            dev: [attr.dev.major, attr.dev.minor],
            mnt_id,
            rest: [0; 13],
        }
    }
}

/// `struct statfs`
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Statfs {
    magic: u64,
    bsize: u64,
    blocks: u64,
    bfree: u64,
    bavail: u64,
    files: u64,
    ffree: u64,
    fsid: u64,
    namelen: u64,
    frsize: u64,
    flags: u64,
    spare: [u64; 4],
}

const _: () = {
    assert!(size_of::<Statfs>() == size_of::<linux::statfs>());
    assert!(offset_of!(Statfs, flags) == offset_of!(linux::statfs, f_flags));
};

impl Statfs {
    /// `flags` are `ST_*`, `fsid` is the device number.
    pub fn new(stat: &FsStat, fsid: u64, flags: u64) -> Statfs {
        Statfs {
            magic: stat.magic,
            bsize: stat.block_size,
            blocks: stat.blocks,
            bfree: stat.blocks_free,
            bavail: stat.blocks_available,
            files: stat.files,
            ffree: stat.files_free,
            fsid,
            namelen: stat.name_max,
            frsize: stat.block_size,
            flags,
            spare: [0; 4],
        }
    }
}

/// `struct flock`
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Flock {
    pub kind: i16,
    pub whence: i16,
    pub pad: u32,
    pub start: i64,
    pub len: i64,
    pub pid: i32,
    pub tail: u32,
}

const _: () = {
    assert!(size_of::<Flock>() == size_of::<linux::flock>());
    assert!(offset_of!(Flock, pid) == offset_of!(linux::flock, l_pid));
};
