//! What a file system implements: [`Inode`] and [`FileSystem`].
//!
//! An inode is one file, directory, device or socket node, whatever its names. Names live in dentries
//! ([`super::dentry`]), which the VFS owns; a file system never sees a path, only one component at a time.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bitflags::bitflags;
use linux_raw_sys::general as linux;

use super::caller::Caller;
use super::file::{File, FileOps};
use super::path::VfsPath;
use crate::errno::{Errno, SysResult};
use crate::task::Credentials;
use crate::time::Timespec;

/// The type bits of a mode (`S_IFMT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    /// Regular file.
    Regular,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
    /// Named pipe.
    Fifo,
    /// Unix socket node.
    Socket,
}

impl FileType {
    /// The `S_IF…` bits.
    pub const fn mode_bits(self) -> u32 {
        match self {
            FileType::Regular => linux::S_IFREG,
            FileType::Directory => linux::S_IFDIR,
            FileType::Symlink => linux::S_IFLNK,
            FileType::CharDevice => linux::S_IFCHR,
            FileType::BlockDevice => linux::S_IFBLK,
            FileType::Fifo => linux::S_IFIFO,
            FileType::Socket => linux::S_IFSOCK,
        }
    }

    /// From a full mode; `None` for a type Linux does not have.
    pub const fn from_mode(mode: u32) -> Option<FileType> {
        Some(match mode & linux::S_IFMT {
            linux::S_IFREG => FileType::Regular,
            linux::S_IFDIR => FileType::Directory,
            linux::S_IFLNK => FileType::Symlink,
            linux::S_IFCHR => FileType::CharDevice,
            linux::S_IFBLK => FileType::BlockDevice,
            linux::S_IFIFO => FileType::Fifo,
            linux::S_IFSOCK => FileType::Socket,
            _ => return None,
        })
    }

    /// The `DT_…` value of `getdents64`.
    pub const fn dirent_type(self) -> u8 {
        (self.mode_bits() >> 12) as u8
    }
}

/// A device number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl Device {
    /// The encoding of `stat`'s `st_dev`/`st_rdev` (glibc's `makedev`).
    pub const fn encode(self) -> u64 {
        let (major, minor) = (self.major as u64, self.minor as u64);
        (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & !0xff) << 12) | ((major & !0xfff) << 32)
    }

    /// A number for a file system without a device, never given out again.
    pub fn new_anonymous() -> Device {
        // Low minors are those of the kernel-internal file systems.
        static NEXT: AtomicU32 = AtomicU32::new(32);
        Device { major: 0, minor: NEXT.fetch_add(1, Ordering::Relaxed) }
    }

    /// From `mknod`'s or `stat`'s encoding.
    pub const fn decode(raw: u64) -> Device {
        Device {
            major: (((raw >> 8) & 0xfff) | ((raw >> 32) & !0xfff)) as u32,
            minor: ((raw & 0xff) | ((raw >> 12) & !0xff)) as u32,
        }
    }
}

/// What `stat` tells about an inode.
#[derive(Clone, Debug)]
pub struct Attr {
    /// The device of the file system.
    pub dev: Device,
    /// Inode number.
    pub ino: u64,
    /// Type.
    pub file_type: FileType,
    /// Permission bits with set-id and sticky bits (`07777`).
    pub mode: u32,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: Device,
    /// Size in bytes.
    pub size: u64,
    /// Preferred I/O size in bytes.
    pub blksize: u32,
    /// Allocated blocks of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Timespec,
    /// Last change of the data.
    pub mtime: Timespec,
    /// Last change of the inode.
    pub ctime: Timespec,
    /// Creation, where the file system knows it.
    pub btime: Option<Timespec>,
}

impl Attr {
    /// Type and permissions as one mode.
    pub fn full_mode(&self) -> u32 {
        self.file_type.mode_bits() | (self.mode & 0o7777)
    }
}

/// A time to set.
#[derive(Clone, Copy, Debug)]
pub enum SetTime {
    /// The current time.
    Now,
    /// This time.
    At(Timespec),
}

/// Changes to an inode's attributes; `None` leaves a field alone. The VFS has already checked permissions and
/// cleared set-id bits where Linux does.
#[derive(Clone, Debug, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Truncates or extends.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
}

/// Who owns a new inode, and its mode; umask and set-gid directories are already applied.
#[derive(Clone, Copy, Debug)]
pub struct NewInode {
    /// Permission bits (`07777`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What `mknod` creates.
#[derive(Clone, Copy, Debug)]
pub enum NodeKind {
    /// A named pipe.
    Fifo,
    /// A unix socket node (`bind`).
    Socket,
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
}

bitflags! {
    /// Access asked of an inode (`MAY_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Access: u32 {
        /// Execute, or search a directory.
        const EXEC = 1;
        /// Write.
        const WRITE = 2;
        /// Read.
        const READ = 4;
    }
}

bitflags! {
    /// `renameat2` flags.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RenameFlags: u32 {
        /// Fail if the new name exists.
        const NOREPLACE = linux::RENAME_NOREPLACE;
        /// Swap both.
        const EXCHANGE = linux::RENAME_EXCHANGE;
        /// Leave a whiteout.
        const WHITEOUT = linux::RENAME_WHITEOUT;
    }
}

/// What following a symbolic link means.
pub enum LinkTarget {
    /// An ordinary link: resolve this path.
    Path(Vec<u8>),
    /// A magic link (`/proc/self/fd/N`, `exe`, `cwd`, `root`): continue there.
    Jump(VfsPath),
    /// A magic link to something without a place in the tree (a pipe, a socket, an unlinked file): open this description.
    Reopen(Arc<File>),
}

/// How long the VFS may trust a directory's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DentryCache {
    /// Only the VFS changes this directory: cache names and absences (tmpfs, an exclusive root file system).
    Exclusive,
    /// Somebody else may change it: at each use look whether [`Inode::names_version`] is what it was, or ask
    /// [`Inode::revalidate`] (shared bind mounts).
    Revalidate,
    /// Never cache (`/proc`).
    Never,
}

/// `statfs` values.
#[derive(Clone, Debug, Default)]
pub struct FsStat {
    /// Magic number (`TMPFS_MAGIC`, …).
    pub magic: u64,
    /// Block size in bytes.
    pub block_size: u64,
    /// Blocks in all, free, and free for users without privilege.
    pub blocks: u64,
    /// See `blocks`.
    pub blocks_free: u64,
    /// See `blocks`.
    pub blocks_available: u64,
    /// Inodes in all.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// Longest name.
    pub name_max: u64,
}

/// A mounted file system.
pub trait FileSystem: Any + Send + Sync {
    /// The type name in `/proc/mounts`.
    fn name(&self) -> &'static str;
    /// The root directory (or the file of a single-file bind).
    fn root(&self) -> SysResult<Arc<dyn Inode>>;
    /// Its device number.
    fn device(&self) -> Device;
    /// `statfs`.
    fn statfs(&self) -> SysResult<FsStat>;
    /// How many names of it may be kept in memory that nobody uses.
    fn names_kept(&self) -> usize {
        usize::MAX
    }
    /// Type-specific mount options for `/proc/mounts`, with a leading comma each, e.g. `,size=65536k`.
    fn show_options(&self) -> String {
        String::new()
    }
    /// Changes its options (`MS_REMOUNT`). `EINVAL` for options that it does not know or that cannot change.
    fn reconfigure(&self, options: &[u8]) -> SysResult {
        if options.is_empty() { Ok(()) } else { Err(Errno::EINVAL) }
    }
    /// Writes everything back (`sync`, `syncfs`, unmount).
    fn sync(&self) -> SysResult {
        Ok(())
    }
}

/// One file of whatever type. Operations that do not fit its type keep the default, which is Linux's error.
#[allow(unused_variables)]
pub trait Inode: Any + Send + Sync {
    /// Its attributes, current.
    fn attr(&self) -> SysResult<Attr>;

    /// Its type, which never changes. Cheap.
    fn file_type(&self) -> FileType;

    /// Changes attributes. Permission has been checked.
    fn set_attr(&self, change: &SetAttr) -> SysResult {
        Err(Errno::EPERM)
    }

    /// Checks access for `who`. The default is POSIX mode bits and capabilities ([`super::permission::generic`]).
    fn permission(&self, who: &Credentials, access: Access) -> SysResult {
        super::permission::generic(&self.attr()?, who, access)
    }

    /// [`Inode::permission`] to look names up in this directory. Who looks at the directory for it anyhow also tells what
    /// [`Inode::names_version`] would say, 0 if that cannot be told; `None`: not looked at.
    fn search(&self, who: &Credentials) -> SysResult<Option<u64>> {
        self.permission(who, Access::EXEC).map(|()| None)
    }

    /// The file system it belongs to.
    fn file_system(&self) -> SysResult<Arc<dyn FileSystem>>;

    /// Records an access now, if `policy` says that it is due. Must be cheap: it is called for every read.
    fn accessed(&self, policy: super::times::AtimePolicy) {}

    /// Whether it has a set-id bit that writing has to clear. Asked before every write: file systems that can answer
    /// without [`Inode::attr`] should.
    fn has_set_id(&self) -> bool {
        self.attr().is_ok_and(|attr| attr.mode & (linux::S_ISUID | linux::S_ISGID) != 0)
    }

    /// How names in this directory may be cached.
    fn dentry_cache(&self) -> DentryCache {
        DentryCache::Exclusive
    }

    /// A number that stands for what names there are in this directory now, and is another one after every change of them
    /// (only with [`DentryCache::Revalidate`]); `None` if that cannot be told.
    fn names_version(&self) -> Option<u64> {
        None
    }

    /// Whether the child found under `name` earlier is still the one there (only with [`DentryCache::Revalidate`]).
    fn revalidate(&self, name: &[u8], child: &Arc<dyn Inode>) -> bool {
        true
    }

    /// Finds a child. `ENOENT` if there is none; `ENOTDIR` on anything but a directory.
    fn lookup(&self, name: &[u8]) -> SysResult<Arc<dyn Inode>> {
        Err(Errno::ENOTDIR)
    }

    /// [`Inode::lookup`] for a caller who knows what [`Inode::names_version`] has just said.
    fn lookup_as_of(&self, name: &[u8], version: u64) -> SysResult<Arc<dyn Inode>> {
        self.lookup(name)
    }

    /// Creates a regular file; `EEXIST` if the name is taken.
    fn create(&self, name: &[u8], new: NewInode) -> SysResult<Arc<dyn Inode>> {
        Err(Errno::EPERM)
    }

    /// Creates an unnamed regular file (`O_TMPFILE`).
    fn create_unnamed(&self, new: NewInode) -> SysResult<Arc<dyn Inode>> {
        Err(Errno::EOPNOTSUPP)
    }

    /// Creates a directory.
    fn mkdir(&self, name: &[u8], new: NewInode) -> SysResult<Arc<dyn Inode>> {
        Err(Errno::EPERM)
    }

    /// Creates a special file.
    fn mknod(&self, name: &[u8], new: NewInode, kind: NodeKind) -> SysResult<Arc<dyn Inode>> {
        Err(Errno::EPERM)
    }

    /// Creates a symbolic link.
    fn symlink(&self, name: &[u8], target: &[u8], new: NewInode) -> SysResult<Arc<dyn Inode>> {
        Err(Errno::EPERM)
    }

    /// Gives `target` (of the same file system) another name.
    fn link(&self, name: &[u8], target: &Arc<dyn Inode>) -> SysResult {
        Err(Errno::EPERM)
    }

    /// Removes a name that is no directory. `child` is the inode the VFS found there.
    fn unlink(&self, name: &[u8], child: &Arc<dyn Inode>) -> SysResult {
        Err(Errno::EPERM)
    }

    /// Removes an empty directory.
    fn rmdir(&self, name: &[u8], child: &Arc<dyn Inode>) -> SysResult {
        Err(Errno::EPERM)
    }

    /// Moves a name to `new_name` in `new_dir` (same file system). The VFS has checked types, permissions and loops.
    fn rename(
        &self,
        name: &[u8],
        new_dir: &Arc<dyn Inode>,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> SysResult {
        Err(Errno::EPERM)
    }

    /// A rename has moved, exchanged or replaced one of its names: a file system that caches attributes forgets them.
    fn names_changed(&self) {}

    /// The text of a symbolic link (`readlink`).
    fn readlink(&self, caller: &Caller<'_>) -> SysResult<Vec<u8>> {
        Err(Errno::EINVAL)
    }

    /// Follows a symbolic link; magic links override this.
    fn follow(&self, caller: &Caller<'_>) -> SysResult<LinkTarget> {
        self.readlink(caller).map(LinkTarget::Path)
    }

    /// Opens it: the operations for a new description at `path`. Permission has been checked; `O_TRUNC` is applied by the VFS.
    /// Devices, FIFOs and sockets nodes are opened by the VFS through their own registries, not here.
    fn open(
        &self,
        caller: &Caller<'_>,
        path: &VfsPath,
        flags: super::file::OpenFlags,
    ) -> SysResult<Arc<dyn FileOps>>;

    /// Value of an extended attribute.
    fn get_xattr(&self, name: &[u8]) -> SysResult<Vec<u8>> {
        Err(Errno::EOPNOTSUPP)
    }

    /// Sets an extended attribute; `flags` are `XATTR_CREATE`/`XATTR_REPLACE`.
    fn set_xattr(&self, name: &[u8], value: &[u8], flags: u32) -> SysResult {
        Err(Errno::EOPNOTSUPP)
    }

    /// Removes an extended attribute.
    fn remove_xattr(&self, name: &[u8]) -> SysResult {
        Err(Errno::EOPNOTSUPP)
    }

    /// Names of all extended attributes.
    fn list_xattr(&self) -> SysResult<Vec<Vec<u8>>> {
        Ok(Vec::new())
    }

    /// State the VFS and the kernel hang on an inode: locks, watches, the pipe of a FIFO, the socket bound to a node.
    fn attachments(&self) -> &super::attachments::Attachments;
}

impl dyn Inode {
    /// This inode as its concrete type, if it is one.
    pub fn downcast<T: Inode>(&self) -> Option<&T> {
        (self as &dyn Any).downcast_ref()
    }
}
