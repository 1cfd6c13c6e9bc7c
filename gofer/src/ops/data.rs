//! Data of files that are kept open, and directory entries.

use std::mem::MaybeUninit;
use std::sync::Arc;

use caisson_proto::lisafs::reply::{Entry, Listed, encode_written};
use caisson_proto::lisafs::request::AllocateMode;
use caisson_proto::lisafs::{FdId, FileKind, MAX_DATA, Name};
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, FileType, OFlags, RawDir, SeekFrom, seek};
use rustix::io::Errno;

use crate::session::{Access, Session};
use crate::table::{Object, OpenDir};
use crate::transport::Reply;

pub(super) fn read(s: &Session, fd: FdId, offset: u64, length: u32, reply: &mut Reply) -> Result<(), Errno> {
    let file = s.file(fd, Access::Read)?;
    let length = usize::try_from(length).unwrap_or(MAX_DATA).min(MAX_DATA);
    reply.payload.resize(length, 0);
    let count =
        rustix::io::retry_on_intr(|| rustix::io::pread(&file.fd, reply.payload.as_mut_slice(), offset))?;
    reply.payload.truncate(count);
    Ok(())
}

pub(super) fn write(s: &Session, fd: FdId, offset: u64, data: &[u8], reply: &mut Reply) -> Result<(), Errno> {
    let file = s.file(fd, Access::Write)?;
    let count = rustix::io::retry_on_intr(|| rustix::io::pwrite(&file.fd, data, offset))?;
    encode_written(u32::try_from(count).map_err(|_| Errno::IO)?, &mut reply.payload);
    Ok(())
}

pub(super) fn fallocate(
    s: &Session,
    fd: FdId,
    mode: AllocateMode,
    offset: u64,
    length: u64,
) -> Result<(), Errno> {
    let file = s.file(fd, Access::Write)?;
    if offset.checked_add(length).is_none_or(|end| end > i64::MAX as u64) {
        return Err(Errno::FBIG);
    }
    let flags = FallocateFlags::from_bits(mode.bits()).ok_or(Errno::OPNOTSUPP)?;
    rustix::io::retry_on_intr(|| rustix::fs::fallocate(&file.fd, flags, offset, length))
}

/// Reads entries from a position on.
pub(super) fn read_dir(
    s: &Session,
    fd: FdId,
    position: u64,
    max: u32,
    reply: &mut Reply,
) -> Result<(), Errno> {
    let dir = s.dir(fd)?;
    let mut at = dir.position.lock();
    if *at != position {
        seek(&dir.fd, SeekFrom::Start(position))?;
        *at = position;
    }
    read_entries(&dir, &mut at, max, false, &mut reply.payload)?;
    Ok(())
}

/// Opens a directory and reads its first entries. It stays open if there are more.
pub(super) fn list(s: &Session, fd: FdId, max: u32, reply: &mut Reply) -> Result<(), Errno> {
    let node = s.node(fd)?;
    if node.kind != FileKind::Directory {
        return Err(Errno::NOTDIR);
    }
    let dir = OpenDir { fd: s.host.reopen(&node, OFlags::RDONLY)?, position: Mutex::new(0) };
    reply.payload.extend_from_slice(&Listed::head(None));
    let ended = read_entries(&dir, &mut dir.position.lock(), max, true, &mut reply.payload)?;
    if !ended {
        let open = s.insert(Object::Dir(Arc::new(dir)))?;
        let head = Listed::head(Some(open));
        reply.payload.splice(..head.len(), head);
    }
    Ok(())
}

/// Reads entries to where `at` is moved behind; true at the end of the directory, which is looked for with `to_end` if few entries came.
///
/// An entry takes no more room on the wire than in the kernel's buffer (20 bytes and the name, against 19, the name and a NUL,
/// rounded up to 8), so a buffer of `max` bytes never gives more than `max` bytes of reply.
fn read_entries(
    dir: &OpenDir,
    at: &mut u64,
    max: u32,
    to_end: bool,
    payload: &mut Vec<u8>,
) -> Result<bool, Errno> {
    let max = usize::try_from(max).unwrap_or(MAX_DATA).min(MAX_DATA);
    let mut buffer = vec![MaybeUninit::<u8>::uninit(); max];
    let mut entries = RawDir::new(&dir.fd, &mut buffer);
    let start = payload.len();
    loop {
        let (came, buffered) = (payload.len().saturating_sub(start), !entries.is_buffer_empty());
        // A buffer that held nothing but `.` and `..` is not the end: go on until there is an entry.
        let looks_on = came == 0 || (to_end && came < max / 2);
        if !buffered && !looks_on {
            return Ok(false);
        }
        let entry = match entries.next() {
            // A directory that was removed while it was open has no entries.
            None | Some(Err(Errno::NOENT)) => return Ok(true),
            Some(entry) => entry?,
        };
        if !buffered && came > 0 {
            // This is of another buffer, which may not fit: it is read again, from here.
            seek(&dir.fd, SeekFrom::Start(*at))?;
            return Ok(false);
        }
        *at = entry.next_entry_cookie();
        let Ok(name) = Name::new(entry.file_name().to_bytes()) else { continue };
        Entry { ino: entry.ino(), next: *at, kind: kind(entry.file_type()), name }.encode(payload);
    }
}

fn kind(host: FileType) -> Option<FileKind> {
    Some(match host {
        FileType::RegularFile => FileKind::Regular,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::CharacterDevice => FileKind::CharDevice,
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::Unknown => return None,
    })
}
