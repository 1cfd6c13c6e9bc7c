//! Everything that a client may ask.
//!
//! [`Request::parse`] turns a payload into a request whose fields are valid by themselves; [`Request::encode`] is its inverse.
//! Each variant's doc gives the reply's type and the descriptors that come with it.

use bitflags::bitflags;

use super::attr::{Device, FileKind, Owner, PERMISSIONS, SetAttr};
use super::cursor::{Reader, Writer};
use super::{FdId, IDS_MAX, LinkTarget, MAX_DATA, MessageId, Name, WALK_MAX, WireError, XattrName};

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
    /// Permission bits, within [`PERMISSIONS`].
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
        /// 0 to [`WALK_MAX`] components; none gives another id for `dir` itself.
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
        /// Most bytes of entries, 1 KiB to [`MAX_DATA`].
        max: u32,
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
        /// Value, at most [`MAX_DATA`] bytes.
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
        /// 1 to [`IDS_MAX`] ids of regular files and directories.
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
        /// Bytes, at most [`MAX_DATA`].
        length: u32,
    },
    /// → [`super::reply::written`]: bytes written
    Write {
        /// An object open for writing.
        fd: FdId,
        /// Offset in bytes, at most `i64::MAX`.
        offset: u64,
        /// Data, at most [`MAX_DATA`] bytes.
        data: &'a [u8],
    },
    /// → empty. Unknown ids are passed over; the root cannot be closed.
    Close {
        /// 1 to [`IDS_MAX`] ids.
        fds: Vec<FdId>,
    },
}

impl NewFile {
    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let (uid, gid, permissions) = (reader.u32()?, reader.u32()?, reader.u32()?);
        if permissions & !PERMISSIONS != 0 {
            return Err(WireError::Field);
        }
        Ok(Self { owner: Owner::new(uid, gid)?, permissions })
    }

    fn write(self, writer: &mut Writer<'_>) {
        writer.u32(self.owner.uid()).u32(self.owner.gid()).u32(self.permissions);
    }
}

impl SocketKind {
    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        match reader.u32()? {
            1 => Ok(Self::Stream),
            2 => Ok(Self::Datagram),
            5 => Ok(Self::SeqPacket),
            _ => Err(WireError::Field),
        }
    }

    /// The `SOCK_*` number.
    pub const fn number(self) -> u32 {
        match self {
            Self::Stream => 1,
            Self::Datagram => 2,
            Self::SeqPacket => 5,
        }
    }
}

fn read_flags<F: bitflags::Flags<Bits = u32>>(reader: &mut Reader<'_>) -> Result<F, WireError> {
    F::from_bits(reader.u32()?).ok_or(WireError::Field)
}

fn read_name<'a>(reader: &mut Reader<'a>) -> Result<Name<'a>, WireError> {
    Name::new(reader.string()?)
}

fn read_xattr<'a>(reader: &mut Reader<'a>) -> Result<XattrName<'a>, WireError> {
    XattrName::new(reader.string()?)
}

fn read_ids(reader: &mut Reader<'_>) -> Result<Vec<FdId>, WireError> {
    let count = usize::from(reader.u16()?);
    if count == 0 {
        return Err(WireError::Field);
    }
    if count > IDS_MAX {
        return Err(WireError::TooLong);
    }
    (0..count).map(|_| reader.id()).collect()
}

fn write_ids(writer: &mut Writer<'_>, ids: &[FdId]) {
    writer.u16(u16::try_from(ids.len()).unwrap_or(u16::MAX));
    for &id in ids {
        writer.id(id);
    }
}

fn read_names<'a>(reader: &mut Reader<'a>) -> Result<Vec<Name<'a>>, WireError> {
    let count = usize::from(reader.u16()?);
    if count > WALK_MAX {
        return Err(WireError::TooLong);
    }
    (0..count).map(|_| read_name(reader)).collect()
}

fn read_data<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], WireError> {
    let data = reader.rest();
    if data.len() > MAX_DATA { Err(WireError::TooLong) } else { Ok(data) }
}

fn read_offset(reader: &mut Reader<'_>) -> Result<u64, WireError> {
    let offset = reader.u64()?;
    if offset > i64::MAX as u64 { Err(WireError::Field) } else { Ok(offset) }
}

fn read_open_flags(reader: &mut Reader<'_>) -> Result<OpenFlags, WireError> {
    let flags: OpenFlags = read_flags(reader)?;
    let access = flags.intersects(OpenFlags::READ | OpenFlags::WRITE);
    let place = flags.intersects(OpenFlags::DONATE | OpenFlags::KEEP);
    let truncates = flags.contains(OpenFlags::TRUNCATE) && !flags.contains(OpenFlags::WRITE);
    if access && place && !truncates { Ok(flags) } else { Err(WireError::Field) }
}

/// Refuses flags that exclude one another.
fn not_both<F: bitflags::Flags<Bits = u32> + Copy>(flags: F) -> Result<F, WireError> {
    if flags.bits() == F::all().bits() { Err(WireError::Field) } else { Ok(flags) }
}

impl<'a> Request<'a> {
    /// Reads the payload of a message.
    ///
    /// # Errors
    /// A [`WireError`] that tells what is wrong; its errno is the server's answer.
    pub fn parse(message: MessageId, payload: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(payload);
        let request = Self::read(message, &mut reader)?;
        reader.end()?;
        Ok(request)
    }

    fn read(message: MessageId, r: &mut Reader<'a>) -> Result<Self, WireError> {
        Ok(match message {
            MessageId::Mount => Self::Mount { version: r.u32()?, max_message: r.u32()? },
            MessageId::Channel => Self::Channel,
            MessageId::Walk => Self::Walk { dir: r.id()?, flags: read_flags(r)?, names: read_names(r)? },
            MessageId::Stat => Self::Stat { fd: r.id()? },
            MessageId::SetAttr => Self::SetAttr { fd: r.id()?, set: SetAttr::read(r)? },
            MessageId::Open => Self::Open { fd: r.id()?, flags: read_open_flags(r)? },
            MessageId::Create
            | MessageId::Mkdir
            | MessageId::Mknod
            | MessageId::Symlink
            | MessageId::Link
            | MessageId::Unlink
            | MessageId::Rename => return Self::read_directory_change(message, r),
            MessageId::ReadDir => {
                let (fd, position, max) = (r.id()?, r.u64()?, r.u32()?);
                if !(1024..=MAX_DATA).contains(&usize::try_from(max).unwrap_or(usize::MAX)) {
                    return Err(WireError::Field);
                }
                Self::ReadDir { fd, position, max }
            }
            MessageId::ReadLink => Self::ReadLink { fd: r.id()? },
            MessageId::GetXattr => Self::GetXattr { fd: r.id()?, name: read_xattr(r)? },
            MessageId::SetXattr => {
                let (fd, flags, name) = (r.id()?, not_both(read_flags(r)?)?, read_xattr(r)?);
                Self::SetXattr { fd, name, value: read_data(r)?, flags }
            }
            MessageId::ListXattr => Self::ListXattr { fd: r.id()? },
            MessageId::RemoveXattr => Self::RemoveXattr { fd: r.id()?, name: read_xattr(r)? },
            MessageId::Fsync => Self::Fsync { fds: read_ids(r)? },
            MessageId::Fallocate => {
                let (fd, mode) = (r.id()?, read_flags(r)?);
                let (offset, length) = (read_offset(r)?, read_offset(r)?);
                if length == 0 {
                    return Err(WireError::Field);
                }
                Self::Fallocate { fd, mode, offset, length }
            }
            MessageId::Flush => Self::Flush { fd: r.id()? },
            MessageId::StatFs => Self::StatFs { fd: r.id()? },
            MessageId::SyncFs => Self::SyncFs { fd: r.id()? },
            MessageId::Connect => Self::Connect { fd: r.id()?, kind: SocketKind::read(r)? },
            MessageId::Bind => {
                let (dir, kind, new) = (r.id()?, SocketKind::read(r)?, NewFile::read(r)?);
                Self::Bind { dir, name: read_name(r)?, kind, new }
            }
            MessageId::Listen => Self::Listen { fd: r.id()?, backlog: r.u32()? },
            MessageId::Accept => Self::Accept { fd: r.id()? },
            MessageId::Read => {
                let (fd, offset, length) = (r.id()?, read_offset(r)?, r.u32()?);
                if usize::try_from(length).map_or(true, |length| length > MAX_DATA) {
                    return Err(WireError::Field);
                }
                Self::Read { fd, offset, length }
            }
            MessageId::Write => Self::Write { fd: r.id()?, offset: read_offset(r)?, data: read_data(r)? },
            MessageId::Close => Self::Close { fds: read_ids(r)? },
        })
    }

    fn read_directory_change(message: MessageId, r: &mut Reader<'a>) -> Result<Self, WireError> {
        let dir = r.id()?;
        Ok(match message {
            MessageId::Create => {
                let (flags, new) = (read_open_flags(r)?, NewFile::read(r)?);
                Self::Create { dir, name: read_name(r)?, flags, new }
            }
            MessageId::Mkdir => {
                let new = NewFile::read(r)?;
                Self::Mkdir { dir, name: read_name(r)?, new }
            }
            MessageId::Mknod => {
                let new = NewFile::read(r)?;
                let kind = FileKind::from_mode(r.u32()?).ok_or(WireError::Field)?;
                let rdev = Device { major: r.u32()?, minor: r.u32()? };
                if matches!(kind, FileKind::Directory | FileKind::Symlink) {
                    return Err(WireError::Field);
                }
                Self::Mknod { dir, name: read_name(r)?, kind, rdev, new }
            }
            MessageId::Symlink => {
                let owner = Owner::new(r.u32()?, r.u32()?)?;
                let name = read_name(r)?;
                Self::Symlink { dir, name, target: LinkTarget::new(r.string()?)?, owner }
            }
            MessageId::Link => {
                let target = r.id()?;
                Self::Link { dir, name: read_name(r)?, target }
            }
            MessageId::Unlink => {
                let kind = match r.u32()? {
                    0 => UnlinkKind::File,
                    1 => UnlinkKind::Directory,
                    _ => return Err(WireError::Field),
                };
                Self::Unlink { dir, name: read_name(r)?, kind }
            }
            MessageId::Rename => {
                let (new_dir, flags) = (r.id()?, not_both(read_flags(r)?)?);
                Self::Rename {
                    old_dir: dir,
                    old_name: read_name(r)?,
                    new_dir,
                    new_name: read_name(r)?,
                    flags,
                }
            }
            _ => return Err(WireError::UnknownMessage),
        })
    }

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
            Self::Mkdir { .. } => MessageId::Mkdir,
            Self::Mknod { .. } => MessageId::Mknod,
            Self::Symlink { .. } => MessageId::Symlink,
            Self::Link { .. } => MessageId::Link,
            Self::Unlink { .. } => MessageId::Unlink,
            Self::Rename { .. } => MessageId::Rename,
            Self::ReadDir { .. } => MessageId::ReadDir,
            Self::ReadLink { .. } => MessageId::ReadLink,
            Self::GetXattr { .. } => MessageId::GetXattr,
            Self::SetXattr { .. } => MessageId::SetXattr,
            Self::ListXattr { .. } => MessageId::ListXattr,
            Self::RemoveXattr { .. } => MessageId::RemoveXattr,
            Self::Fsync { .. } => MessageId::Fsync,
            Self::Fallocate { .. } => MessageId::Fallocate,
            Self::Flush { .. } => MessageId::Flush,
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

    /// Appends the request's payload to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let w = &mut Writer::new(out);
        match self {
            Self::Channel => {}
            Self::Mount { version, max_message } => {
                w.u32(*version).u32(*max_message);
            }
            Self::Walk { dir, flags, names } => {
                w.id(*dir).u32(flags.bits()).u16(u16::try_from(names.len()).unwrap_or(u16::MAX));
                names.iter().for_each(|name| {
                    w.string(name.as_bytes());
                });
            }
            Self::Stat { fd }
            | Self::ReadLink { fd }
            | Self::ListXattr { fd }
            | Self::Flush { fd }
            | Self::StatFs { fd }
            | Self::SyncFs { fd }
            | Self::Accept { fd } => {
                w.id(*fd);
            }
            Self::SetAttr { fd, set } => set.write(w.id(*fd)),
            Self::Open { fd, flags } => {
                w.id(*fd).u32(flags.bits());
            }
            Self::ReadDir { fd, position, max } => {
                w.id(*fd).u64(*position).u32(*max);
            }
            Self::GetXattr { fd, name } | Self::RemoveXattr { fd, name } => {
                w.id(*fd).string(name.as_bytes());
            }
            Self::SetXattr { fd, name, value, flags } => {
                w.id(*fd).u32(flags.bits()).string(name.as_bytes()).bytes(value);
            }
            Self::Fsync { fds } | Self::Close { fds } => write_ids(w, fds),
            Self::Fallocate { fd, mode, offset, length } => {
                w.id(*fd).u32(mode.bits()).u64(*offset).u64(*length);
            }
            Self::Connect { fd, kind } => {
                w.id(*fd).u32(kind.number());
            }
            Self::Listen { fd, backlog } => {
                w.id(*fd).u32(*backlog);
            }
            Self::Read { fd, offset, length } => {
                w.id(*fd).u64(*offset).u32(*length);
            }
            Self::Write { fd, offset, data } => {
                w.id(*fd).u64(*offset).bytes(data);
            }
            Self::Create { .. }
            | Self::Mkdir { .. }
            | Self::Mknod { .. }
            | Self::Symlink { .. }
            | Self::Link { .. }
            | Self::Unlink { .. }
            | Self::Rename { .. }
            | Self::Bind { .. } => self.encode_directory_change(w),
        }
    }

    fn encode_directory_change(&self, w: &mut Writer<'_>) {
        match self {
            Self::Create { dir, name, flags, new } => {
                new.write(w.id(*dir).u32(flags.bits()));
                w.string(name.as_bytes());
            }
            Self::Mkdir { dir, name, new } => {
                new.write(w.id(*dir));
                w.string(name.as_bytes());
            }
            Self::Mknod { dir, name, kind, rdev, new } => {
                new.write(w.id(*dir));
                w.u32(kind.mode_bits()).u32(rdev.major).u32(rdev.minor).string(name.as_bytes());
            }
            Self::Symlink { dir, name, target, owner } => {
                w.id(*dir)
                    .u32(owner.uid())
                    .u32(owner.gid())
                    .string(name.as_bytes())
                    .string(target.as_bytes());
            }
            Self::Link { dir, name, target } => {
                w.id(*dir).id(*target).string(name.as_bytes());
            }
            Self::Unlink { dir, name, kind } => {
                w.id(*dir).u32(u32::from(*kind == UnlinkKind::Directory)).string(name.as_bytes());
            }
            Self::Rename { old_dir, old_name, new_dir, new_name, flags } => {
                w.id(*old_dir).id(*new_dir).u32(flags.bits());
                w.string(old_name.as_bytes()).string(new_name.as_bytes());
            }
            Self::Bind { dir, name, kind, new } => {
                new.write(w.id(*dir).u32(kind.number()));
                w.string(name.as_bytes());
            }
            _ => {}
        }
    }
}
