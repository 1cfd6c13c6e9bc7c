//! What `fstat` shows of a host descriptor: its type, size and times; not the host's device numbers or owners.

use std::os::fd::OwnedFd;
use std::sync::{Arc, LazyLock};

use linux_raw_sys::general as linux;
use nix::unistd::ftruncate;
use rustix::fs::{Stat, fstat};

use crate::errno::{Errno, SysResult};
use crate::time::Timespec;
use crate::vfs::attachments::Attachments;
use crate::vfs::{
    Attr, Caller, Device, FileOps, FileSystem, FileType, FsStat, Inode, OpenFlags, SetAttr, VfsPath,
};

/// The device number all host descriptors show.
const DEVICE: Device = Device { major: 0, minor: 15 };
/// `/dev/null`.
const NULL: Device = Device { major: 1, minor: 3 };

/// The inode behind a host descriptor.
pub struct HostInode {
    fd: OwnedFd,
    kind: FileType,
    rdev: Device,
    attachments: Attachments,
}

impl HostInode {
    /// Looks once at what the descriptor is.
    pub fn new(fd: OwnedFd) -> SysResult<HostInode> {
        let stat = fstat(&fd)?;
        let kind = FileType::from_mode(stat.st_mode).ok_or(Errno::EINVAL)?;
        Ok(HostInode { fd, kind, rdev: Device::decode(stat.st_rdev), attachments: Attachments::default() })
    }

    /// Its type.
    pub fn kind(&self) -> FileType {
        self.kind
    }

    /// Whether it is `/dev/null`, which never blocks.
    pub fn is_null(&self) -> bool {
        self.kind == FileType::CharDevice && self.rdev == NULL
    }
}

fn attr_of(stat: &Stat, kind: FileType) -> Attr {
    let time = |sec: i64, nsec: u64| Timespec { sec, nsec: u32::try_from(nsec).unwrap_or(0) };
    Attr {
        dev: DEVICE,
        ino: stat.st_ino,
        file_type: kind,
        mode: stat.st_mode & 0o7777,
        nlink: u32::try_from(stat.st_nlink).unwrap_or(1),
        uid: 0,
        gid: 0,
        rdev: Device::decode(stat.st_rdev),
        size: u64::try_from(stat.st_size).unwrap_or(0),
        blksize: u32::try_from(stat.st_blksize).unwrap_or(4096),
        blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        btime: None,
    }
}

impl Inode for HostInode {
    fn attr(&self) -> SysResult<Attr> {
        Ok(attr_of(&fstat(&self.fd)?, self.kind))
    }

    fn file_type(&self) -> FileType {
        self.kind
    }

    fn set_attr(&self, change: &SetAttr) -> SysResult {
        // The host's file keeps its mode, owner and times; only its data is the container's.
        match change.size {
            Some(size) if self.kind == FileType::Regular => {
                Ok(ftruncate(&self.fd, i64::try_from(size).map_err(|_| Errno::EFBIG)?)?)
            }
            Some(_) => Err(Errno::EINVAL),
            None => Err(Errno::EPERM),
        }
    }

    fn file_system(&self) -> SysResult<Arc<dyn FileSystem>> {
        static HOST: LazyLock<Arc<HostFs>> = LazyLock::new(|| Arc::new(HostFs));
        Ok(HOST.clone())
    }

    fn open(&self, _: &Caller<'_>, _: &VfsPath, _: OpenFlags) -> SysResult<Arc<dyn FileOps>> {
        Err(Errno::ENXIO)
    }

    fn attachments(&self) -> &Attachments {
        &self.attachments
    }
}

/// The file system of host descriptors; it has no root.
struct HostFs;

impl FileSystem for HostFs {
    fn name(&self) -> &'static str {
        "hostfs"
    }

    fn root(&self) -> SysResult<Arc<dyn Inode>> {
        Err(Errno::EINVAL)
    }

    fn device(&self) -> Device {
        DEVICE
    }

    fn statfs(&self) -> SysResult<FsStat> {
        let magic = u64::from(linux::ANON_INODE_FS_MAGIC);
        Ok(FsStat { magic, block_size: 4096, name_max: 255, ..FsStat::default() })
    }
}
