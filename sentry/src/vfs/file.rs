//! Open file descriptions.
//!
//! [`File`] is Linux's `struct file`: what descriptors, `dup` and `fork` share. It owns the position and the status
//! flags; everything else is the [`FileOps`] object behind it. Operations never block: they return `EAGAIN` and the
//! caller waits on [`FileOps::wait_queue`] (see [`crate::wait`]).
//!
//! Lock order: position, then whatever the operations lock.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bitflags::bitflags;
use linux_raw_sys::general as linux;
use parking_lot::Mutex;

use super::attachments::WriteAccess;
use super::inode::Inode;
use super::path::VfsPath;
use crate::errno::{Errno, SysResult};
use crate::io::{IoDst, IoSrc};
use crate::mm::Mappable;
use crate::task::SyscallContext;
use crate::wait::{PollEvents, WaitQueue};

bitflags! {
    /// The flags of `open(2)`, without the access mode.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct OpenFlags: u32 {
        /// Bits of the access mode (`O_WRONLY`, `O_RDWR`); use [`OpenFlags::readable`] and [`OpenFlags::writable`].
        const WRONLY = linux::O_WRONLY;
        /// See `WRONLY`.
        const RDWR = linux::O_RDWR;
        /// Create if missing.
        const CREAT = linux::O_CREAT;
        /// Fail if it exists.
        const EXCL = linux::O_EXCL;
        /// Do not become the controlling terminal.
        const NOCTTY = linux::O_NOCTTY;
        /// Truncate.
        const TRUNC = linux::O_TRUNC;
        /// Writes go to the end.
        const APPEND = linux::O_APPEND;
        /// Never block.
        const NONBLOCK = linux::O_NONBLOCK;
        /// Data integrity.
        const DSYNC = linux::O_DSYNC;
        /// Signal-driven I/O.
        const ASYNC = linux::FASYNC;
        /// Direct I/O.
        const DIRECT = linux::O_DIRECT;
        /// Large files; always on for 64-bit programs.
        const LARGEFILE = linux::O_LARGEFILE;
        /// Must be a directory.
        const DIRECTORY = linux::O_DIRECTORY;
        /// Do not follow a link in the last component.
        const NOFOLLOW = linux::O_NOFOLLOW;
        /// Do not update the access time.
        const NOATIME = linux::O_NOATIME;
        /// Close on exec (a property of the descriptor, not of the description).
        const CLOEXEC = linux::O_CLOEXEC;
        /// The rest of `O_SYNC`.
        const SYNC_BIT = linux::__O_SYNC;
        /// Only a reference to the place.
        const PATH = linux::O_PATH;
        /// The rest of `O_TMPFILE`.
        const TMPFILE_BIT = linux::__O_TMPFILE;
    }
}

impl OpenFlags {
    /// The access mode bits.
    pub const ACCESS_MODE: OpenFlags = OpenFlags::WRONLY.union(OpenFlags::RDWR);
    /// What `fcntl(F_SETFL)` may change.
    pub const SETTABLE: OpenFlags = OpenFlags::APPEND
        .union(OpenFlags::NONBLOCK)
        .union(OpenFlags::ASYNC)
        .union(OpenFlags::DIRECT)
        .union(OpenFlags::NOATIME);

    /// Whether reads are allowed (`O_RDONLY` or `O_RDWR`, and not `O_PATH`).
    pub fn readable(self) -> bool {
        !self.contains(OpenFlags::WRONLY) && !self.contains(OpenFlags::PATH)
    }

    /// Whether writes are allowed.
    pub fn writable(self) -> bool {
        let mode = self & OpenFlags::ACCESS_MODE;
        (mode == OpenFlags::WRONLY || mode == OpenFlags::RDWR) && !self.contains(OpenFlags::PATH)
    }
}

/// From where `seek` counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// `SEEK_SET`
    Start,
    /// `SEEK_CUR`
    Current,
    /// `SEEK_END`
    End,
    /// `SEEK_DATA`
    Data,
    /// `SEEK_HOLE`
    Hole,
}

/// One directory entry on its way to `getdents`.
pub struct DirEntry<'a> {
    /// Inode number.
    pub ino: u64,
    /// The position after this entry, which `telldir` shows and `lseek` takes.
    pub next: u64,
    /// `DT_*`.
    pub file_type: u8,
    /// Its name.
    pub name: &'a [u8],
}

/// Receives directory entries.
pub trait DirSink {
    /// Takes an entry; `false` when it does not fit (it is offered again at the next call).
    fn emit(&mut self, entry: DirEntry<'_>) -> bool;
}

/// Stands for the position kept behind the operations of a file that has one ([`FileOps::has_outer_position`]). No offset a
/// program gives can be this: they are signed.
pub const OUTER_POSITION: u64 = u64::MAX;

/// What an open file can do. Defaults are the errors Linux gives for a file without the operation.
#[allow(unused_variables)]
pub trait FileOps: Any + Send + Sync {
    /// Reads at `*offset` and advances it. Streams ignore the offset. `EAGAIN` when it would block.
    fn read(&self, file: &File, dst: &mut dyn IoDst, offset: &mut u64) -> SysResult<usize> {
        Err(Errno::EINVAL)
    }

    /// Writes at `*offset` (at the end with `O_APPEND`) and advances it.
    fn write(&self, file: &File, src: &mut dyn IoSrc, offset: &mut u64) -> SysResult<usize> {
        Err(Errno::EINVAL)
    }

    /// Whether a blocking `write` goes on until everything is written (pipes, sockets, terminals): the caller waits
    /// and writes again after a short write, and returns the partial count when interrupted.
    fn writes_all(&self) -> bool {
        false
    }

    /// Whether the file has a position (`lseek`, `pread`); streams say no and get `ESPIPE`.
    fn seekable(&self) -> bool {
        false
    }

    /// Whether the position is kept behind the operations, because others outside move it too. `read` and `write` then get
    /// [`OUTER_POSITION`] for "where it stands", and [`FileOps::outer_position`] and its setter answer everybody else.
    fn has_outer_position(&self) -> bool {
        false
    }

    /// The position kept behind the operations.
    fn outer_position(&self) -> u64 {
        0
    }

    /// Moves the position kept behind the operations.
    fn set_outer_position(&self, position: u64) {}

    /// Computes a new position. Called with the position locked.
    fn seek(&self, file: &File, current: u64, offset: i64, whence: Whence) -> SysResult<u64> {
        Err(Errno::ESPIPE)
    }

    /// Emits directory entries from `*offset` on and advances it.
    fn iterate(&self, file: &File, offset: &mut u64, sink: &mut dyn DirSink) -> SysResult {
        Err(Errno::ENOTDIR)
    }

    /// Current readiness. Regular files are always ready.
    fn poll(&self, file: &File) -> PollEvents {
        PollEvents::READABLE | PollEvents::WRITABLE
    }

    /// The queue that is notified when readiness changes; `None` for files that are always ready.
    fn wait_queue(&self) -> Option<&WaitQueue> {
        None
    }

    /// Whether `epoll_ctl` takes it (`EPERM` otherwise): files whose readiness can change.
    fn pollable(&self) -> bool {
        self.wait_queue().is_some()
    }

    /// `ioctl`.
    fn ioctl(
        &self,
        ctx: &mut SyscallContext<'_>,
        file: &Arc<File>,
        command: u32,
        arg: u64,
    ) -> SysResult<usize> {
        Err(Errno::ENOTTY)
    }

    /// The object behind a mapping of this file.
    fn mappable(&self, file: &File) -> SysResult<Arc<dyn Mappable>> {
        Err(Errno::ENODEV)
    }

    /// Writes data back to stable storage.
    fn fsync(&self, file: &File, data_only: bool) -> SysResult {
        Err(Errno::EINVAL)
    }

    /// `fallocate`.
    fn fallocate(&self, file: &File, mode: u32, offset: u64, len: u64) -> SysResult {
        Err(Errno::EOPNOTSUPP)
    }

    /// Called at each `close` of a descriptor.
    fn flush(&self, file: &File) -> SysResult {
        Ok(())
    }

    /// Called once, when the last reference to the description goes.
    fn release(&self, file: &File) {}

    /// Text for `/proc/self/fd/N` when the file has no place in the tree, e.g. `pipe:[12]`.
    fn anonymous_name(&self) -> Option<String> {
        None
    }

    /// Extra lines for `/proc/self/fdinfo/N`.
    fn fdinfo(&self) -> String {
        String::new()
    }
}

impl dyn FileOps {
    /// These operations as their concrete type, if they are one.
    pub fn downcast<T: FileOps>(&self) -> Option<&T> {
        (self as &dyn Any).downcast_ref()
    }
}

/// An open file description.
pub struct File {
    ops: Arc<dyn FileOps>,
    inode: Arc<dyn Inode>,
    path: Option<VfsPath>,
    flags: AtomicU32,
    position: Mutex<u64>,
    /// Owner and signal for `F_SETOWN`/`F_SETSIG`, and the like.
    pub(crate) owner: Mutex<super::attachments::FileOwner>,
    write_access: Option<WriteAccess>,
}

impl File {
    /// A description of `inode`, found at `path` if it has a place in the tree.
    pub fn new(
        ops: Arc<dyn FileOps>,
        inode: Arc<dyn Inode>,
        path: Option<VfsPath>,
        flags: OpenFlags,
    ) -> Arc<File> {
        File::with_write_access(ops, inode, path, flags, None)
    }

    pub(super) fn with_write_access(
        ops: Arc<dyn FileOps>,
        inode: Arc<dyn Inode>,
        path: Option<VfsPath>,
        flags: OpenFlags,
        write_access: Option<WriteAccess>,
    ) -> Arc<File> {
        let kept = flags
            - (OpenFlags::CREAT
                | OpenFlags::EXCL
                | OpenFlags::NOCTTY
                | OpenFlags::TRUNC
                | OpenFlags::CLOEXEC);
        Arc::new(File {
            ops,
            inode,
            path,
            flags: AtomicU32::new(kept.bits()),
            position: Mutex::new(0),
            owner: Mutex::default(),
            write_access,
        })
    }

    /// Its operations.
    pub fn ops(&self) -> &Arc<dyn FileOps> {
        &self.ops
    }

    /// Its operations as a concrete type.
    pub fn ops_as<T: FileOps>(&self) -> Option<&T> {
        self.ops.downcast()
    }

    /// Its inode.
    pub fn inode(&self) -> &Arc<dyn Inode> {
        &self.inode
    }

    /// Where it was opened.
    pub fn path(&self) -> Option<&VfsPath> {
        self.path.as_ref()
    }

    /// Access mode and status flags.
    pub fn flags(&self) -> OpenFlags {
        OpenFlags::from_bits_retain(self.flags.load(Ordering::Relaxed))
    }

    /// Replaces the settable status flags (`F_SETFL`).
    pub fn set_status_flags(&self, new: OpenFlags) {
        let kept = self.flags() - OpenFlags::SETTABLE;
        self.flags.store((kept | (new & OpenFlags::SETTABLE)).bits(), Ordering::Relaxed);
    }

    /// Whether `O_NONBLOCK` is set.
    pub fn nonblocking(&self) -> bool {
        self.flags().contains(OpenFlags::NONBLOCK)
    }

    /// Runs `act` with the position locked; streams see a position of their own that nobody keeps.
    pub fn with_position<T>(&self, act: impl FnOnce(&mut u64) -> T) -> T {
        if self.ops.has_outer_position() {
            let found = self.ops.outer_position();
            let mut position = found;
            let result = act(&mut position);
            if position != found {
                self.ops.set_outer_position(position);
            }
            return result;
        }
        if self.ops.seekable() || self.inode.file_type() == super::inode::FileType::Directory {
            act(&mut self.position.lock())
        } else {
            act(&mut 0)
        }
    }

    /// `lseek`: moves the position and returns it. `ESPIPE` for streams.
    pub fn seek(&self, offset: i64, whence: Whence) -> SysResult<u64> {
        let mut position = self.position.lock();
        let new = self.ops.seek(self, *position, offset, whence)?;
        *position = new;
        Ok(new)
    }

    /// `read` at the position.
    pub fn read(&self, dst: &mut dyn IoDst) -> SysResult<usize> {
        if !self.flags().readable() {
            return Err(Errno::EBADF);
        }
        if self.ops.has_outer_position() {
            return self.ops.read(self, dst, &mut { OUTER_POSITION });
        }
        self.with_position(|position| self.ops.read(self, dst, position))
    }

    /// `write` at the position.
    pub fn write(&self, src: &mut dyn IoSrc) -> SysResult<usize> {
        if !self.flags().writable() {
            return Err(Errno::EBADF);
        }
        if self.ops.has_outer_position() {
            return self.ops.write(self, src, &mut { OUTER_POSITION });
        }
        self.with_position(|position| self.ops.write(self, src, position))
    }

    /// `pread`: reads at `offset`, leaving the position alone.
    pub fn read_at(&self, dst: &mut dyn IoDst, mut offset: u64) -> SysResult<usize> {
        if !self.flags().readable() {
            return Err(Errno::EBADF);
        }
        if !self.ops.seekable() {
            return Err(Errno::ESPIPE);
        }
        self.ops.read(self, dst, &mut offset)
    }

    /// `pwrite`.
    pub fn write_at(&self, src: &mut dyn IoSrc, mut offset: u64) -> SysResult<usize> {
        if !self.flags().writable() {
            return Err(Errno::EBADF);
        }
        if !self.ops.seekable() {
            return Err(Errno::ESPIPE);
        }
        self.ops.write(self, src, &mut offset)
    }

    /// The locks of its inode.
    pub(crate) fn locks(&self) -> &super::locks::FileLocks {
        self.inode.attachments().locks()
    }

    /// Whether it holds the file's write access (`ETXTBSY` for those who want to execute it).
    pub fn holds_write_access(&self) -> bool {
        self.write_access.is_some()
    }

    /// Current readiness.
    pub fn poll(&self) -> PollEvents {
        self.ops.poll(self)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        super::locks::release_description(self);
        self.ops.release(self);
        if let Some(path) = &self.path
            && !self.flags().contains(OpenFlags::PATH)
        {
            let mask = if self.flags().writable() { linux::IN_CLOSE_WRITE } else { linux::IN_CLOSE_NOWRITE };
            super::notify::accessed_by_name(path.dentry(), mask);
        }
    }
}
