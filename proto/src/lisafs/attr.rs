//! Attributes of files: what `statx(2)` tells and what `chmod`, `chown`, `truncate` and `utimensat` change.

use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::WireError;
use super::cursor::{Reader, Writer};

const NANOSECONDS: u32 = 1_000_000_000;
/// `S_IFMT`.
const TYPE_MASK: u32 = 0o170_000;
/// Permission bits with set-id and sticky bits.
pub const PERMISSIONS: u32 = 0o7777;

/// A point in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds since 1970.
    pub seconds: i64,
    /// Nanoseconds within the second, below 10⁹.
    pub nanoseconds: u32,
}

/// A device number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// Who owns a new file. Neither id is `u32::MAX`, which Linux takes for "unchanged".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    /// Checks the ids.
    ///
    /// # Errors
    /// [`WireError::Field`] when one is `u32::MAX`.
    pub const fn new(uid: u32, gid: u32) -> Result<Self, WireError> {
        if uid == u32::MAX || gid == u32::MAX { Err(WireError::Field) } else { Ok(Self { uid, gid }) }
    }

    /// User id.
    pub const fn uid(self) -> u32 {
        self.uid
    }

    /// Group id.
    pub const fn gid(self) -> u32 {
        self.gid
    }
}

/// A file's type, from `S_IFMT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// `S_IFREG`
    Regular,
    /// `S_IFDIR`
    Directory,
    /// `S_IFLNK`
    Symlink,
    /// `S_IFIFO`
    Fifo,
    /// `S_IFSOCK`
    Socket,
    /// `S_IFCHR`
    CharDevice,
    /// `S_IFBLK`
    BlockDevice,
}

impl FileKind {
    /// The type in a mode's `S_IFMT` bits.
    pub const fn from_mode(mode: u32) -> Option<Self> {
        Some(match mode & TYPE_MASK {
            0o100_000 => Self::Regular,
            0o040_000 => Self::Directory,
            0o120_000 => Self::Symlink,
            0o010_000 => Self::Fifo,
            0o140_000 => Self::Socket,
            0o020_000 => Self::CharDevice,
            0o060_000 => Self::BlockDevice,
            _ => return None,
        })
    }

    /// The mode's `S_IFMT` bits.
    pub const fn mode_bits(self) -> u32 {
        match self {
            Self::Regular => 0o100_000,
            Self::Directory => 0o040_000,
            Self::Symlink => 0o120_000,
            Self::Fifo => 0o010_000,
            Self::Socket => 0o140_000,
            Self::CharDevice => 0o020_000,
            Self::BlockDevice => 0o060_000,
        }
    }

    /// The `DT_*` number of directory entries.
    pub const fn dirent_type(self) -> u8 {
        (self.mode_bits() >> 12) as u8
    }

    /// The type with this `DT_*` number; `None` for `DT_UNKNOWN` and numbers that Linux does not have.
    pub const fn from_dirent_type(number: u8) -> Option<Self> {
        if number > 15 { None } else { Self::from_mode((number as u32) << 12) }
    }
}

/// A file's attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number, unique together with `dev`.
    pub ino: u64,
    /// Device of the file system.
    pub dev: Device,
    /// The file's type.
    pub kind: FileKind,
    /// Permission, set-id and sticky bits ([`PERMISSIONS`]).
    pub permissions: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The device that a device node stands for.
    pub rdev: Device,
    /// Size in bytes, at most `i64::MAX`.
    pub size: u64,
    /// Allocated space in units of 512 bytes.
    pub blocks: u64,
    /// Preferred I/O size in bytes.
    pub block_size: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the data.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Birth; zero where the file system does not know it.
    pub btime: Timestamp,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawAttr {
    ino: U64,
    size: U64,
    blocks: U64,
    seconds: [I64; 4],
    nanoseconds: [U32; 4],
    mode: U32,
    nlink: U32,
    uid: U32,
    gid: U32,
    dev: [U32; 2],
    rdev: [U32; 2],
    block_size: U32,
    reserved: U32,
}

/// Bytes of an [`Attr`] on the wire.
pub const ATTR_SIZE: usize = size_of::<RawAttr>();

impl Attr {
    /// The mode as `stat(2)` gives it: type and permissions.
    pub const fn mode(&self) -> u32 {
        self.kind.mode_bits() | self.permissions
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let raw: RawAttr = reader.fixed()?;
        let mode = raw.mode.get();
        let time = |at: usize| {
            let nanoseconds = raw.nanoseconds.get(at).map_or(0, |n| n.get());
            let seconds = raw.seconds.get(at).map_or(0, |s| s.get());
            if nanoseconds < NANOSECONDS {
                Ok(Timestamp { seconds, nanoseconds })
            } else {
                Err(WireError::Field)
            }
        };
        let device = |[major, minor]: [U32; 2]| Device { major: major.get(), minor: minor.get() };
        if mode & !(TYPE_MASK | PERMISSIONS) != 0
            || raw.size.get() > i64::MAX as u64
            || raw.reserved.get() != 0
        {
            return Err(WireError::Field);
        }
        Ok(Self {
            ino: raw.ino.get(),
            dev: device(raw.dev),
            kind: FileKind::from_mode(mode).ok_or(WireError::Field)?,
            permissions: mode & PERMISSIONS,
            nlink: raw.nlink.get(),
            uid: raw.uid.get(),
            gid: raw.gid.get(),
            rdev: device(raw.rdev),
            size: raw.size.get(),
            blocks: raw.blocks.get(),
            block_size: raw.block_size.get(),
            atime: time(0)?,
            mtime: time(1)?,
            ctime: time(2)?,
            btime: time(3)?,
        })
    }

    pub(super) fn write(&self, writer: &mut Writer<'_>) {
        let times = [self.atime, self.mtime, self.ctime, self.btime];
        writer.fixed(&RawAttr {
            ino: self.ino.into(),
            size: self.size.into(),
            blocks: self.blocks.into(),
            seconds: times.map(|time| time.seconds.into()),
            nanoseconds: times.map(|time| time.nanoseconds.into()),
            mode: self.mode().into(),
            nlink: self.nlink.into(),
            uid: self.uid.into(),
            gid: self.gid.into(),
            dev: [self.dev.major.into(), self.dev.minor.into()],
            rdev: [self.rdev.major.into(), self.rdev.minor.into()],
            block_size: self.block_size.into(),
            reserved: 0.into(),
        });
    }
}

/// What to do with one of a file's times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetTime {
    /// `UTIME_OMIT`
    #[default]
    Keep,
    /// `UTIME_NOW`
    Now,
    /// This time.
    At(Timestamp),
}

impl SetTime {
    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let (kind, nanoseconds, seconds) = (reader.u32()?, reader.u32()?, reader.u64()?);
        match kind {
            0 => Ok(Self::Keep),
            1 => Ok(Self::Now),
            2 if nanoseconds < NANOSECONDS => {
                Ok(Self::At(Timestamp { seconds: seconds.cast_signed(), nanoseconds }))
            }
            _ => Err(WireError::Field),
        }
    }

    fn write(self, writer: &mut Writer<'_>) {
        let (kind, time) = match self {
            Self::Keep => (0, Timestamp::default()),
            Self::Now => (1, Timestamp::default()),
            Self::At(time) => (2, time),
        };
        writer.u32(kind).u32(time.nanoseconds).u64(time.seconds.cast_unsigned());
    }
}

/// Attributes to change; `None` and [`SetTime::Keep`] leave one alone. The server applies them in this order: size, owner,
/// permissions, times (so that a set-id bit that a change of owner clears can be set with it), and stops at the first failure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// New size of a regular file in bytes, at most `i64::MAX`.
    pub size: Option<u64>,
    /// New owner, not `u32::MAX`.
    pub uid: Option<u32>,
    /// New group, not `u32::MAX`.
    pub gid: Option<u32>,
    /// New permission bits, within [`PERMISSIONS`].
    pub permissions: Option<u32>,
    /// New access time.
    pub atime: SetTime,
    /// New modification time.
    pub mtime: SetTime,
}

const SET_SIZE: u32 = 1;
const SET_UID: u32 = 2;
const SET_GID: u32 = 4;
const SET_PERMISSIONS: u32 = 8;

impl SetAttr {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let mask = reader.u32()?;
        let (permissions, uid, gid, size) = (reader.u32()?, reader.u32()?, reader.u32()?, reader.u64()?);
        let (atime, mtime) = (SetTime::read(reader)?, SetTime::read(reader)?);
        let chosen = |bit: u32| mask & bit != 0;
        let bad = mask & !(SET_SIZE | SET_UID | SET_GID | SET_PERMISSIONS) != 0
            || permissions & !PERMISSIONS != 0
            || (chosen(SET_UID) && uid == u32::MAX)
            || (chosen(SET_GID) && gid == u32::MAX)
            || size > i64::MAX as u64;
        if bad {
            return Err(WireError::Field);
        }
        Ok(Self {
            size: chosen(SET_SIZE).then_some(size),
            uid: chosen(SET_UID).then_some(uid),
            gid: chosen(SET_GID).then_some(gid),
            permissions: chosen(SET_PERMISSIONS).then_some(permissions),
            atime,
            mtime,
        })
    }

    pub(super) fn write(&self, writer: &mut Writer<'_>) {
        let bit = |set: bool, bit: u32| if set { bit } else { 0 };
        let mask = bit(self.size.is_some(), SET_SIZE)
            | bit(self.uid.is_some(), SET_UID)
            | bit(self.gid.is_some(), SET_GID)
            | bit(self.permissions.is_some(), SET_PERMISSIONS);
        writer
            .u32(mask)
            .u32(self.permissions.unwrap_or(0))
            .u32(self.uid.unwrap_or(0))
            .u32(self.gid.unwrap_or(0))
            .u64(self.size.unwrap_or(0));
        self.atime.write(writer);
        self.mtime.write(writer);
    }
}
