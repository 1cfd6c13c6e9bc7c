//! Everything that a client may ask.
//!
//! [`Request::parse`] ([`read`]) turns a payload into a request whose fields are valid by themselves; [`Request::encode`]
//! ([`write`]) is its inverse.
//! Each variant's doc gives the reply's type and the descriptors that come with it.

mod read;
mod write;

use bitflags::bitflags;

use super::attr::{Device, FileKind, Owner, SetAttr};
use super::{FdId, LinkTarget, MessageId, Name, XattrName};

bitflags! {
    /// How to walk.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct WalkFlags: u32 {
        /// Only attributes are wanted: the reply's nodes have no ids.
        const ATTR_ONLY = 1;
    }

    /// How to open. Without `READ` or `WRITE` nothing is opened (`EINVAL`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct OpenFlags: u32 {
        /// For reading.
        const READ = 1;
        /// For writing.
        const WRITE = 2;
        /// Cut to size zero; needs `WRITE`.
        const TRUNCATE = 4;
        /// Writes append (`O_APPEND`).
        const APPEND = 8;
        /// Donate the host descriptor. Directories are never donated (`EISDIR`).
        const DONATE = 16;
        /// Keep an open object at the server and return its id.
        const KEEP = 32;
    }

    /// What comes with the entries of [`Request::ReadDirPlus`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PlusFlags: u32 {
        /// A descriptor for reading of each regular file.
        const READ = 1;
        /// A witness of each file that has no such descriptor, as [`Request::Witness`] gives.
        const WITNESS = 2;
    }

    /// `renameat2(2)`'s flags that the protocol carries.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RenameFlags: u32 {
        /// `RENAME_NOREPLACE`
        const NOREPLACE = 1;
        /// `RENAME_EXCHANGE`
        const EXCHANGE = 2;
    }

    /// `setxattr(2)`'s flags.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct XattrFlags: u32 {
        /// `XATTR_CREATE`
        const CREATE = 1;
        /// `XATTR_REPLACE`
        const REPLACE = 2;
    }

    /// `fallocate(2)`'s modes that the protocol carries.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct AllocateMode: u32 {
        /// `FALLOC_FL_KEEP_SIZE`
        const KEEP_SIZE = 1;
        /// `FALLOC_FL_PUNCH_HOLE`
        const PUNCH_HOLE = 2;
        /// `FALLOC_FL_COLLAPSE_RANGE`
        const COLLAPSE_RANGE = 8;
        /// `FALLOC_FL_ZERO_RANGE`
        const ZERO_RANGE = 16;
        /// `FALLOC_FL_INSERT_RANGE`
        const INSERT_RANGE = 32;
    }
}

/// What [`Request::Unlink`] removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnlinkKind {
    /// Anything but a directory, as `unlink(2)`.
    File,
    /// An empty directory, as `rmdir(2)`.
    Directory,
}

/// A unix socket's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketKind {
    /// `SOCK_STREAM`
    Stream,
    /// `SOCK_DGRAM`
    Datagram,
    /// `SOCK_SEQPACKET`
    SeqPacket,
}

/// What a new object gets: the owner and the permission bits, umask already applied by the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewFile {
    /// Owner of the new file. The server sets it after the creation, whatever its own ids are.
    pub owner: Owner,
    /// Permission bits, within [`super::attr::PERMISSIONS`].
    pub permissions: u32,
}

/// A client's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// → [`super::reply::Mounted`]. The versions must be equal; the smaller maximum holds for both.
    Mount {
        /// The client's [`super::VERSION`].
        version: u32,
        /// The largest packet the client takes, at least [`super::MAX_MESSAGE`] in this version.
        max_message: u32,
    },
    /// → empty, with two descriptors: the shared memory ([`super::channel`]) and the channel's own socket, on which donated
    /// descriptors travel. `EMFILE` beyond [`super::CHANNELS_MAX`].
    Channel,
    /// → [`super::reply::Walked`]. Stops behind a symbolic link or anything else that is not a directory.
    Walk {
        /// Where to start: a directory.
        dir: FdId,
        /// How.
        flags: WalkFlags,
        /// 0 to [`super::WALK_MAX`] components; none gives another id for `dir` itself.
        names: Vec<Name<'a>>,
    },
    /// → [`super::reply::attr`].
    Stat {
        /// Any id.
        fd: FdId,
    },
    /// → [`super::reply::attr`] afterwards.
    SetAttr {
        /// Any id.
        fd: FdId,
        /// What to change.
        set: SetAttr,
    },
    /// → [`super::reply::Opened`], with one descriptor under [`OpenFlags::DONATE`]. FIFOs, sockets and devices are not opened
    /// (`ENXIO`): they are the sentry's to implement. Symbolic links: `ELOOP`.
    Open {
        /// What to open: an id from a walk.
        fd: FdId,
        /// How.
        flags: OpenFlags,
    },
    /// → [`super::reply::Created`], with one descriptor under [`OpenFlags::DONATE`]. `EEXIST` when the name exists.
    Create {
        /// Parent directory.
        dir: FdId,
        /// Name.
        name: Name<'a>,
        /// How to open.
        flags: OpenFlags,
        /// Owner and permissions.
        new: NewFile,
    },
    /// → [`super::reply::Created`] of a regular file without a name (`O_TMPFILE`), which [`Request::Link`] can give it one; with
    /// one descriptor under [`OpenFlags::DONATE`]. `EOPNOTSUPP` on a file system that has no such files.
    CreateUnnamed {
        /// A directory of the file system that the file is to be on.
        dir: FdId,
        /// How to open: for writing at least.
        flags: OpenFlags,
        /// Owner and permissions.
        new: NewFile,
    },
    /// → [`super::reply::Node`]
    Mkdir {
        /// Parent directory.
        dir: FdId,
        /// Name.
        name: Name<'a>,
        /// Owner and permissions.
        new: NewFile,
    },
    /// → [`super::reply::Node`]. Device nodes only where the mount allows them (`EPERM`).
    Mknod {
        /// Parent directory.
        dir: FdId,
        /// Name.
        name: Name<'a>,
        /// Type: anything but a directory or a symbolic link.
        kind: FileKind,
        /// For device nodes.
        rdev: Device,
        /// Owner and permissions.
        new: NewFile,
    },
    /// → [`super::reply::Node`]
    Symlink {
        /// Parent directory.
        dir: FdId,
        /// Name.
        name: Name<'a>,
        /// Where it points to.
        target: LinkTarget<'a>,
        /// Owner.
        owner: Owner,
    },
    /// → [`super::reply::Node`], the new name's.
    Link {
        /// Parent directory.
        dir: FdId,
        /// Name.
        name: Name<'a>,
        /// The existing file.
        target: FdId,
    },
    /// → empty
    Unlink {
        /// Parent directory.
        dir: FdId,
        /// Name.
        name: Name<'a>,
        /// File or directory.
        kind: UnlinkKind,
    },
    /// → empty
    Rename {
        /// The directory that holds the old name.
        old_dir: FdId,
        /// The old name.
        old_name: Name<'a>,
        /// The directory for the new name.
        new_dir: FdId,
        /// The new name.
        new_name: Name<'a>,
        /// How; not both flags.
        flags: RenameFlags,
    },
    /// → [`super::reply::Entries`]; no entries mean the end. `.` and `..` are left out.
    ReadDir {
        /// An open directory.
        fd: FdId,
        /// Where to read: 0 or an entry's `next`.
        position: u64,
        /// Most bytes of entries, 1 KiB to [`super::MAX_DATA`].
        max: u32,
    },
    /// → [`super::reply::Listed`]. What [`Request::Open`] and a [`Request::ReadDir`] at its start give, in one; of a directory that is read to
    /// its end thereby nothing is kept open. `ENOTDIR` for anything but a directory.
    List {
        /// A directory: an id from a walk.
        fd: FdId,
        /// Most bytes of entries, 1 KiB to [`super::MAX_DATA`].
        max: u32,
    },
    /// → [`super::reply::Listing`], with a descriptor for each entry that says so; no entries mean the end. `EOPNOTSUPP` where
    /// witnesses are asked for and the file system has none.
    ReadDirPlus {
        /// A directory, open or from a walk. The latter is opened for this request alone: its entries may be skipped or come twice where the
        /// file system does not find a position again.
        fd: FdId,
        /// Where to read: 0 or an entry's `next`.
        position: u64,
        /// Most entries, 1 to [`super::PLUS_MAX`].
        count: u32,
        /// What is wanted.
        flags: PlusFlags,
    },
    /// → the target's bytes ([`super::reply::target`])
    ReadLink {
        /// A symbolic link.
        fd: FdId,
    },
    /// → the value's bytes
    GetXattr {
        /// An id from a walk.
        fd: FdId,
        /// Name.
        name: XattrName<'a>,
    },
    /// → empty
    SetXattr {
        /// An id from a walk.
        fd: FdId,
        /// Name.
        name: XattrName<'a>,
        /// Value, at most [`super::MAX_DATA`] bytes.
        value: &'a [u8],
        /// How; not both flags.
        flags: XattrFlags,
    },
    /// → the names, each with a NUL behind, as `listxattr(2)` gives them
    ListXattr {
        /// An id from a walk.
        fd: FdId,
    },
    /// → empty
    RemoveXattr {
        /// An id from a walk.
        fd: FdId,
        /// Name.
        name: XattrName<'a>,
    },
    /// → empty; the first failure, all are tried.
    Fsync {
        /// 1 to [`super::IDS_MAX`] ids of regular files and directories.
        fds: Vec<FdId>,
    },
    /// → empty
    Fallocate {
        /// An object open for writing.
        fd: FdId,
        /// How.
        mode: AllocateMode,
        /// Start in bytes, at most `i64::MAX`.
        offset: u64,
        /// Bytes, at least 1, at most `i64::MAX`.
        length: u64,
    },
    /// → empty
    Flush {
        /// An open object.
        fd: FdId,
    },
    /// → empty. Everything that anybody has written to the file system, as `syncfs(2)`.
    SyncFs {
        /// A regular file or directory of it.
        fd: FdId,
    },
    /// → empty, with one descriptor: the file's own, opened with `O_PATH`, whose `fstat(2)` shows what happens to the file without
    /// the server being asked. Regular files, directories and symbolic links on file systems whose times are the host's own clock's;
    /// anything else is `EOPNOTSUPP`.
    Witness {
        /// An id from a walk.
        fd: FdId,
    },
    /// → [`super::reply::StatFs`]
    StatFs {
        /// Any id.
        fd: FdId,
    },
    /// → empty, with one descriptor: the connected socket. `ECONNREFUSED` where the mount does not allow it.
    Connect {
        /// A socket node.
        fd: FdId,
        /// Type.
        kind: SocketKind,
    },
    /// → [`super::reply::Bound`], with one descriptor: the bound socket. `EPERM` where the mount does not allow it,
    /// `ENAMETOOLONG` when the host's `sun_path` cannot hold the name.
    Bind {
        /// Parent directory.
        dir: FdId,
        /// Name.
        name: Name<'a>,
        /// Type.
        kind: SocketKind,
        /// Owner and permissions.
        new: NewFile,
    },
    /// → empty
    Listen {
        /// A bound socket.
        fd: FdId,
        /// Backlog.
        backlog: u32,
    },
    /// → empty, with one descriptor: the connection. `EAGAIN` when none waits: poll the donated socket.
    Accept {
        /// A bound socket.
        fd: FdId,
    },
    /// → the bytes, fewer at the end of the file
    Read {
        /// An object open for reading.
        fd: FdId,
        /// Offset in bytes, at most `i64::MAX`.
        offset: u64,
        /// Bytes, at most [`super::MAX_DATA`].
        length: u32,
    },
    /// → [`super::reply::written`]: bytes written
    Write {
        /// An object open for writing.
        fd: FdId,
        /// Offset in bytes, at most `i64::MAX`.
        offset: u64,
        /// Data, at most [`super::MAX_DATA`] bytes.
        data: &'a [u8],
    },
    /// → empty. Unknown ids are passed over; the root cannot be closed.
    Close {
        /// 1 to [`super::IDS_MAX`] ids.
        fds: Vec<FdId>,
    },
}

impl SocketKind {
    /// The `SOCK_*` number.
    pub const fn number(self) -> u32 {
        match self {
            Self::Stream => 1,
            Self::Datagram => 2,
            Self::SeqPacket => 5,
        }
    }
}

impl Request<'_> {
    /// The request's message number.
    pub const fn message(&self) -> MessageId {
        match self {
            Self::Mount { .. } => MessageId::Mount,
            Self::Channel => MessageId::Channel,
            Self::Walk { .. } => MessageId::Walk,
            Self::Stat { .. } => MessageId::Stat,
            Self::SetAttr { .. } => MessageId::SetAttr,
            Self::Open { .. } => MessageId::Open,
            Self::Create { .. } => MessageId::Create,
            Self::CreateUnnamed { .. } => MessageId::CreateUnnamed,
            Self::Mkdir { .. } => MessageId::Mkdir,
            Self::Mknod { .. } => MessageId::Mknod,
            Self::Symlink { .. } => MessageId::Symlink,
            Self::Link { .. } => MessageId::Link,
            Self::Unlink { .. } => MessageId::Unlink,
            Self::Rename { .. } => MessageId::Rename,
            Self::ReadDir { .. } => MessageId::ReadDir,
            Self::ReadDirPlus { .. } => MessageId::ReadDirPlus,
            Self::List { .. } => MessageId::List,
            Self::ReadLink { .. } => MessageId::ReadLink,
            Self::GetXattr { .. } => MessageId::GetXattr,
            Self::SetXattr { .. } => MessageId::SetXattr,
            Self::ListXattr { .. } => MessageId::ListXattr,
            Self::RemoveXattr { .. } => MessageId::RemoveXattr,
            Self::Fsync { .. } => MessageId::Fsync,
            Self::Fallocate { .. } => MessageId::Fallocate,
            Self::Flush { .. } => MessageId::Flush,
            Self::Witness { .. } => MessageId::Witness,
            Self::StatFs { .. } => MessageId::StatFs,
            Self::SyncFs { .. } => MessageId::SyncFs,
            Self::Connect { .. } => MessageId::Connect,
            Self::Bind { .. } => MessageId::Bind,
            Self::Listen { .. } => MessageId::Listen,
            Self::Accept { .. } => MessageId::Accept,
            Self::Read { .. } => MessageId::Read,
            Self::Write { .. } => MessageId::Write,
            Self::Close { .. } => MessageId::Close,
        }
    }
}
