//! Directory entries together with their files, for clients that are about to look at all of them.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use caisson_proto::lisafs::reply::{Donated, PlusEntry, PlusFile};
use caisson_proto::lisafs::request::PlusFlags;
use caisson_proto::lisafs::{Device, FdId, FileKind, LinkTarget, MAX_DATA, Name, TARGET_MAX};
use parking_lot::Mutex;
use rustix::fs::{OFlags, RawDir, SeekFrom, seek};
use rustix::io::Errno;

use super::{open, walk};
use crate::attr;
use crate::host;
use crate::session::Session;
use crate::table::{Node, Object, OpenDir};
use crate::transport::Reply;

/// Bytes of an entry without its name and target are fewer.
const ENTRY: usize = 256;
/// Bytes of names read from the kernel at a time: some tens of entries, for the rest is read again.
const NAMES: usize = 4096;

/// Reads at most `count` entries from a position on. An entry whose file cannot be had comes without one.
pub(super) fn read_dir_plus(
    s: &Session,
    fd: FdId,
    (position, count): (u64, u32),
    flags: PlusFlags,
    reply: &mut Reply,
) -> Result<(), Errno> {
    let dir = directory(s, fd)?;
    if flags.contains(PlusFlags::WITNESS) && !open::is_local(&dir.fd)? {
        return Err(Errno::OPNOTSUPP);
    }
    // Mounts below may be of other file systems.
    let around = Around { flags, device: attr::read(&dir.fd)?.dev, of_proc: host::is_of_proc(&dir.fd)? };
    let mut at = dir.position.lock();
    if *at != position {
        seek(&dir.fd, SeekFrom::Start(position))?;
    }
    // The kernel is further than what was answered, if the answer is full before its buffer is empty: seek again then.
    *at = u64::MAX;
    let mut buffer = [MaybeUninit::<u8>::uninit(); NAMES];
    let mut entries = RawDir::new(&dir.fd, &mut buffer);
    let mut left = count;
    while left > 0 && reply.payload.len() < MAX_DATA.saturating_sub(ENTRY + TARGET_MAX) {
        let entry = match entries.next() {
            None | Some(Err(Errno::NOENT)) => break,
            Some(entry) => entry?,
        };
        let Ok(name) = Name::new(entry.file_name().to_bytes()) else { continue };
        let next = entry.next_entry_cookie();
        let found = find(s, &dir, name, &around).ok();
        let target = found.as_ref().map(|found| found.target.clone()).unwrap_or_default();
        let file = found.map(|found| {
            let donated = match found.donated {
                None => Donated::Nothing,
                Some(_) if found.readable => Donated::File,
                Some(_) => Donated::Witness,
            };
            reply.fds.extend(found.donated);
            PlusFile { fd: found.fd, attr: found.attr, target: LinkTarget::new(&target).ok(), donated }
        });
        PlusEntry { next, name, file }.encode(&mut reply.payload);
        left = left.saturating_sub(1);
    }
    Ok(())
}

/// An open directory, or one from a walk, opened for this time.
fn directory(s: &Session, fd: FdId) -> Result<Arc<OpenDir>, Errno> {
    match s.object(fd)? {
        Object::Dir(dir) => Ok(dir),
        Object::Node(node) if node.kind == FileKind::Directory => {
            let fd = s.host.reopen(&node, OFlags::RDONLY)?;
            Ok(Arc::new(OpenDir { fd, position: Mutex::new(0) }))
        }
        _ => Err(Errno::BADF),
    }
}

/// What holds for all files of a listing.
struct Around {
    flags: PlusFlags,
    /// The directory's file system.
    device: Device,
    /// It is a proc mount.
    of_proc: bool,
}

struct Found {
    fd: FdId,
    attr: caisson_proto::lisafs::Attr,
    target: Vec<u8>,
    donated: Option<OwnedFd>,
    readable: bool,
}

fn find(s: &Session, dir: &OpenDir, name: Name<'_>, around: &Around) -> Result<Found, Errno> {
    let flags = around.flags;
    if s.table.lock().is_crowded() {
        return Err(Errno::MFILE);
    }
    let fd = s.host.lookup(&dir.fd, name, s.options.mounts)?;
    let attr = attr::read(&fd)?;
    let node = Arc::new(Node { fd, kind: attr.kind });
    let target = if node.kind == FileKind::Symlink {
        walk::read_target(&node).unwrap_or_default()
    } else {
        Vec::new()
    };
    let readable = flags.contains(PlusFlags::READ) && node.kind == FileKind::Regular;
    let donated = if readable {
        // One device number, one file system.
        let known = attr.dev == around.device && !around.of_proc;
        Some(if known {
            s.host.reopen_beside(&node, OFlags::RDONLY)
        } else {
            s.host.reopen(&node, OFlags::RDONLY)
        }?)
    } else if flags.contains(PlusFlags::WITNESS) && open::tells(node.kind) && attr.dev == around.device {
        Some(rustix::io::fcntl_dupfd_cloexec(&node.fd, 0)?)
    } else {
        None
    };
    let fd = s.insert(Object::Node(node))?;
    Ok(Found { fd, attr, target, donated, readable })
}
