//! Reading requests: every field is checked here.

use super::super::attr::{Device, FileKind, Owner, PERMISSIONS, SetAttr};
use super::super::cursor::Reader;
use super::super::{
    FdId, IDS_MAX, LinkTarget, MAX_DATA, MessageId, Name, PLUS_MAX, WALK_MAX, WireError, XattrName,
};
use super::{NewFile, OpenFlags, Request, SocketKind, UnlinkKind};

impl NewFile {
    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let (uid, gid, permissions) = (reader.u32()?, reader.u32()?, reader.u32()?);
        if permissions & !PERMISSIONS != 0 {
            return Err(WireError::Field);
        }
        Ok(Self { owner: Owner::new(uid, gid)?, permissions })
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

fn read_listing_size(reader: &mut Reader<'_>) -> Result<u32, WireError> {
    let max = reader.u32()?;
    if (1024..=MAX_DATA).contains(&usize::try_from(max).unwrap_or(usize::MAX)) {
        Ok(max)
    } else {
        Err(WireError::Field)
    }
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
            | MessageId::CreateUnnamed
            | MessageId::Mkdir
            | MessageId::Mknod
            | MessageId::Symlink
            | MessageId::Link
            | MessageId::Unlink
            | MessageId::Rename => return Self::read_directory_change(message, r),
            MessageId::ReadDir | MessageId::List | MessageId::ReadDirPlus => {
                return Self::read_listing(message, r);
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
            MessageId::Fallocate | MessageId::Read | MessageId::Write => {
                return Self::read_data_access(message, r);
            }
            MessageId::Flush => Self::Flush { fd: r.id()? },
            MessageId::Witness => Self::Witness { fd: r.id()? },
            MessageId::StatFs => Self::StatFs { fd: r.id()? },
            MessageId::SyncFs => Self::SyncFs { fd: r.id()? },
            MessageId::Connect => Self::Connect { fd: r.id()?, kind: SocketKind::read(r)? },
            MessageId::Bind => {
                let (dir, kind, new) = (r.id()?, SocketKind::read(r)?, NewFile::read(r)?);
                Self::Bind { dir, name: read_name(r)?, kind, new }
            }
            MessageId::Listen => Self::Listen { fd: r.id()?, backlog: r.u32()? },
            MessageId::Accept => Self::Accept { fd: r.id()? },
            MessageId::Close => Self::Close { fds: read_ids(r)? },
        })
    }

    fn read_listing(message: MessageId, r: &mut Reader<'a>) -> Result<Self, WireError> {
        let fd = r.id()?;
        Ok(match message {
            MessageId::ReadDir => Self::ReadDir { fd, position: r.u64()?, max: read_listing_size(r)? },
            MessageId::List => Self::List { fd, max: read_listing_size(r)? },
            MessageId::ReadDirPlus => {
                let (position, count) = (r.u64()?, r.u32()?);
                if count == 0 || count > PLUS_MAX {
                    return Err(WireError::Field);
                }
                Self::ReadDirPlus { fd, position, count, flags: read_flags(r)? }
            }
            _ => return Err(WireError::UnknownMessage),
        })
    }

    fn read_data_access(message: MessageId, r: &mut Reader<'a>) -> Result<Self, WireError> {
        let fd = r.id()?;
        Ok(match message {
            MessageId::Fallocate => {
                let mode = read_flags(r)?;
                let (offset, length) = (read_offset(r)?, read_offset(r)?);
                if length == 0 {
                    return Err(WireError::Field);
                }
                Self::Fallocate { fd, mode, offset, length }
            }
            MessageId::Read => {
                let (offset, length) = (read_offset(r)?, r.u32()?);
                if usize::try_from(length).map_or(true, |length| length > MAX_DATA) {
                    return Err(WireError::Field);
                }
                Self::Read { fd, offset, length }
            }
            MessageId::Write => Self::Write { fd, offset: read_offset(r)?, data: read_data(r)? },
            _ => return Err(WireError::UnknownMessage),
        })
    }

    fn read_directory_change(message: MessageId, r: &mut Reader<'a>) -> Result<Self, WireError> {
        let dir = r.id()?;
        Ok(match message {
            MessageId::Create => {
                let (flags, new) = (read_open_flags(r)?, NewFile::read(r)?);
                Self::Create { dir, name: read_name(r)?, flags, new }
            }
            MessageId::CreateUnnamed => {
                let flags = read_open_flags(r)?;
                if !flags.contains(OpenFlags::WRITE) {
                    return Err(WireError::Field);
                }
                Self::CreateUnnamed { dir, flags, new: NewFile::read(r)? }
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
}
