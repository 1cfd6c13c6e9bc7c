//! Inodes without a name: what `fstat` shows of pipes, sockets and the anonymous-inode files.
//!
//! Linux keeps these in three kernel-internal mounts (pipefs, sockfs, anon_inodefs); here each is a [`Pseudo`] file
//! system whose inodes live exactly as long as the descriptions that refer to them.
//!
//! Not there yet: xattrs on sockets.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use linux_raw_sys::general as linux;
use parking_lot::Mutex;

use crate::errno::{Errno, SysResult};
use crate::task::SyscallContext;
use crate::time::Timespec;
use crate::vfs::attachments::Attachments;
use crate::vfs::inode::SetTime;
use crate::vfs::{
    Attr, Caller, Device, File, FileOps, FileSystem, FileType, FsStat, Inode, OpenFlags, SetAttr, VfsPath,
};

/// The kernel-internal file system an anonymous inode belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pseudo {
    /// Pipes made by `pipe(2)`.
    Pipe,
    /// Sockets.
    Socket,
    /// Event files and whatever else has neither data nor name.
    Anonymous,
    /// Namespaces.
    Namespace,
}

impl Pseudo {
    fn file_type(self) -> FileType {
        match self {
            Pseudo::Pipe => FileType::Fifo,
            Pseudo::Socket => FileType::Socket,
            Pseudo::Anonymous | Pseudo::Namespace => FileType::Regular,
        }
    }

    fn mode(self) -> u32 {
        match self {
            Pseudo::Socket => 0o777,
            Pseudo::Pipe | Pseudo::Anonymous => 0o600,
            Pseudo::Namespace => 0o444,
        }
    }

    fn magic(self) -> u32 {
        match self {
            Pseudo::Pipe => linux::PIPEFS_MAGIC,
            Pseudo::Socket => linux::SOCKFS_MAGIC,
            Pseudo::Anonymous => linux::ANON_INODE_FS_MAGIC,
            Pseudo::Namespace => linux::NSFS_MAGIC,
        }
    }

    fn device(self) -> Device {
        let minor = match self {
            Pseudo::Namespace => 4,
            Pseudo::Socket => 8,
            Pseudo::Pipe => 13,
            Pseudo::Anonymous => 14,
        };
        Device { major: 0, minor }
    }

    fn file_system(self) -> Arc<PseudoFs> {
        static ALL: [OnceLock<Arc<PseudoFs>>; 4] = [const { OnceLock::new() }; 4];
        let make = || Arc::new(PseudoFs { kind: self });
        ALL.get(self as usize).map_or_else(make, |slot| slot.get_or_init(make).clone())
    }
}

/// A fresh inode number for an anonymous inode.
pub fn next_ino() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1024);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// One of the kernel-internal file systems; it has no root that could be walked.
pub struct PseudoFs {
    kind: Pseudo,
}

impl FileSystem for PseudoFs {
    fn name(&self) -> &'static str {
        match self.kind {
            Pseudo::Pipe => "pipefs",
            Pseudo::Socket => "sockfs",
            Pseudo::Anonymous => "anon_inodefs",
            Pseudo::Namespace => "nsfs",
        }
    }

    fn root(&self) -> SysResult<Arc<dyn Inode>> {
        Err(Errno::EINVAL)
    }

    fn device(&self) -> Device {
        self.kind.device()
    }

    fn statfs(&self) -> SysResult<FsStat> {
        Ok(FsStat {
            magic: u64::from(self.kind.magic()),
            block_size: 4096,
            name_max: 255,
            ..FsStat::default()
        })
    }
}

/// An inode without a name.
pub struct AnonymousInode {
    kind: Pseudo,
    attr: Mutex<Attr>,
    attachments: Attachments,
}

impl AnonymousInode {
    /// A new inode number `ino` (see [`next_ino`]) owned by `uid` and `gid`.
    pub fn new(kind: Pseudo, ino: u64, uid: u32, gid: u32) -> Arc<AnonymousInode> {
        let now = Timespec::now_realtime();
        let attr = Attr {
            dev: kind.device(),
            ino,
            file_type: kind.file_type(),
            mode: kind.mode(),
            nlink: 1,
            uid,
            gid,
            rdev: Device::default(),
            size: 0,
            blksize: 4096,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: None,
        };
        Arc::new(AnonymousInode { kind, attr: Mutex::new(attr), attachments: Attachments::default() })
    }

    /// A description of `ops` over a new inode owned by the caller.
    pub fn open(
        ctx: &SyscallContext<'_>,
        kind: Pseudo,
        ino: u64,
        ops: Arc<dyn FileOps>,
        flags: OpenFlags,
    ) -> Arc<File> {
        let who = ctx.task.credentials();
        File::new(ops, AnonymousInode::new(kind, ino, who.fsuid, who.fsgid), None, flags)
    }

    /// A description for unit tests, without a task.
    #[cfg(test)]
    pub(crate) fn detached(ops: Arc<dyn FileOps>, flags: OpenFlags) -> Arc<File> {
        File::new(ops, AnonymousInode::new(Pseudo::Anonymous, next_ino(), 0, 0), None, flags)
    }
}

impl Inode for AnonymousInode {
    fn attr(&self) -> SysResult<Attr> {
        Ok(self.attr.lock().clone())
    }

    fn file_type(&self) -> FileType {
        self.kind.file_type()
    }

    fn set_attr(&self, change: &SetAttr) -> SysResult {
        if change.size.is_some() {
            return Err(Errno::EINVAL);
        }
        let now = Timespec::now_realtime();
        let at = |time: SetTime| match time {
            SetTime::Now => now,
            SetTime::At(time) => time,
        };
        let mut attr = self.attr.lock();
        attr.mode = change.mode.unwrap_or(attr.mode);
        attr.uid = change.uid.unwrap_or(attr.uid);
        attr.gid = change.gid.unwrap_or(attr.gid);
        attr.atime = change.atime.map_or(attr.atime, at);
        attr.mtime = change.mtime.map_or(attr.mtime, at);
        attr.ctime = now;
        Ok(())
    }

    fn file_system(&self) -> SysResult<Arc<dyn FileSystem>> {
        Ok(self.kind.file_system())
    }

    fn open(&self, _: &Caller<'_>, _: &VfsPath, _: OpenFlags) -> SysResult<Arc<dyn FileOps>> {
        Err(Errno::ENXIO)
    }

    fn attachments(&self) -> &Attachments {
        &self.attachments
    }
}
