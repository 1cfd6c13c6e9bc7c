//! Directory entries together with their files, for clients that are about to look at all of them.

use std::mem::MaybeUninit;
use std::sync::Arc;

use caisson_proto::lisafs::reply::{Donated, PlusEntry, PlusFile};
use caisson_proto::lisafs::request::PlusFlags;
use caisson_proto::lisafs::{Attr, Device, FdId, FileKind, LinkTarget, MAX_DATA, Name, TARGET_MAX};
use parking_lot::Mutex;
use rustix::fs::{FileType, OFlags, RawDir, SeekFrom, StatVfsMountFlags, fstatvfs, seek};
use rustix::io::Errno;

use super::{open, walk};
use crate::attr;
use crate::host;
use crate::limits;
use crate::session::Session;
use crate::table::{Node, Object, OpenDir};
use crate::transport::{Donation, Reply};

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
    let around = Around::look(&dir, flags)?;
    if flags.contains(PlusFlags::WITNESS) && !around.local {
        return Err(Errno::OPNOTSUPP);
    }
    let mut at = dir.position.lock();
    if *at != position {
        seek(&dir.fd, SeekFrom::Start(position))?;
    }
    // The kernel is further than what was answered, if the answer is full before its buffer is empty: seek again then.
    *at = u64::MAX;
    let mut buffer = [MaybeUninit::<u8>::uninit(); NAMES];
    let mut entries = RawDir::new(&dir.fd, &mut buffer);
    // What the client gets of its own is no more than what is held in reserve for a request.
    let own = u32::try_from(limits::RESERVE_PER_CONNECTION).unwrap_or(u32::MAX);
    let mut left = if flags.contains(PlusFlags::READ) && !around.plain { count.min(own) } else { count };
    while left > 0 && reply.payload.len() < MAX_DATA.saturating_sub(ENTRY + TARGET_MAX) {
        let entry = match entries.next() {
            None | Some(Err(Errno::NOENT)) => break,
            Some(entry) => entry?,
        };
        let Ok(name) = Name::new(entry.file_name().to_bytes()) else { continue };
        let next = entry.next_entry_cookie();
        let found = find(s, &dir, (name, entry.file_type()), &around).ok();
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

/// What holds for all files of a listing. Mounts below may be of other file systems.
struct Around {
    flags: PlusFlags,
    /// The directory's file system.
    device: Device,
    /// It is a proc mount.
    of_proc: bool,
    /// Its times are those of this kernel's clock.
    local: bool,
    /// Regular files may be opened by name: it is local, so that an open file is no other machine's business, and the mount has no
    /// devices.
    plain: bool,
}

impl Around {
    fn look(dir: &OpenDir, flags: PlusFlags) -> Result<Around, Errno> {
        let local = open::is_local(&dir.fd)?;
        let plain = local && fstatvfs(&dir.fd)?.f_flag.contains(StatVfsMountFlags::NODEV);
        let (device, of_proc) = (attr::read(&dir.fd)?.dev, host::is_of_proc(&dir.fd)?);
        Ok(Around { flags, device, of_proc, local, plain })
    }
}

struct Found {
    fd: FdId,
    attr: Attr,
    target: Vec<u8>,
    donated: Option<Donation>,
    readable: bool,
}

/// A regular file, opened for reading by its name. Nothing if it is none by now: then it is looked up like others.
fn read_here(s: &Session, dir: &OpenDir, name: Name<'_>) -> Option<(Arc<Node>, Attr)> {
    let fd = s.host.read_here(&dir.fd, name).ok()?;
    let attr = attr::read(&fd).ok()?;
    let regular = attr.kind == FileKind::Regular;
    regular.then(|| (Arc::new(Node { fd, kind: attr.kind }), attr))
}

fn find(
    s: &Session,
    dir: &OpenDir,
    (name, kind): (Name<'_>, FileType),
    around: &Around,
) -> Result<Found, Errno> {
    let flags = around.flags;
    if s.table.lock().is_crowded() {
        return Err(Errno::MFILE);
    }
    let reads = flags.contains(PlusFlags::READ) && around.plain && kind == FileType::RegularFile;
    if reads && let Some((node, attr)) = read_here(s, dir, name) {
        let fd = s.insert(Object::Node(Arc::clone(&node)))?;
        return Ok(Found { fd, attr, target: Vec::new(), donated: Some(Donation::Of(node)), readable: true });
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
        let opened = if known {
            s.host.reopen_beside(&node, OFlags::RDONLY)
        } else {
            s.host.reopen(&node, OFlags::RDONLY)
        };
        Some(Donation::Own(opened?))
    } else if flags.contains(PlusFlags::WITNESS) && open::tells(node.kind) && attr.dev == around.device {
        Some(Donation::Of(Arc::clone(&node)))
    } else {
        None
    };
    let fd = s.insert(Object::Node(node))?;
    Ok(Found { fd, attr, target, donated, readable })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Host, Mounts};
    use crate::ops::{attributes, namespace};
    use crate::session::MountOptions;
    use caisson_proto::lisafs::SetAttr;
    use caisson_proto::lisafs::reply::MountFlags;
    use caisson_proto::lisafs::request::OpenFlags;
    use rustix::fs::{CWD, Mode, mkfifoat, openat, symlinkat};

    /// Between the listing and the opening anybody may have put something else there.
    #[test]
    fn what_is_no_regular_file_any_more_is_not_donated_for_reading() {
        let scratch = tempfile::tempdir().unwrap();
        let open = || openat(CWD, scratch.path(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let options = MountOptions { flags: MountFlags::empty(), mounts: Mounts::Stay, objects: 100 };
        let s = Session::new(Arc::new(Host::from_proc().unwrap()), open(), options).unwrap();
        let dir = OpenDir { fd: open(), position: Mutex::new(0) };
        std::fs::write(scratch.path().join("file"), b"text").unwrap();
        mkfifoat(&dir.fd, "fifo", 0o600.into()).unwrap();
        std::fs::create_dir(scratch.path().join("dir")).unwrap();
        symlinkat("file", &dir.fd, "link").unwrap();
        let around = Around { plain: true, local: true, ..Around::look(&dir, PlusFlags::READ).unwrap() };
        let found = |name: &str| {
            let name = Name::new(name.as_bytes()).unwrap();
            find(&s, &dir, (name, FileType::RegularFile), &around)
        };
        let file = found("file").unwrap();
        assert!(file.readable && matches!(file.donated, Some(Donation::Of(_))));
        // Its id is as good as one from a walk, whatever the client does to the descriptor.
        let donated = file.donated.unwrap();
        seek(&donated, SeekFrom::Start(3)).unwrap();
        rustix::fs::fcntl_setfl(&donated, OFlags::APPEND).unwrap();
        assert_eq!(rustix::io::write(&donated, b"x").unwrap_err(), Errno::BADF);
        let mut reply = Reply::default();
        open::open(&s, file.fd, OpenFlags::READ | OpenFlags::WRITE | OpenFlags::DONATE, &mut reply).unwrap();
        assert_eq!(rustix::io::write(&reply.fds[0], b"T").unwrap(), 1);
        assert_eq!(std::fs::read(scratch.path().join("file")).unwrap(), b"Text");
        let set = SetAttr { size: Some(2), permissions: Some(0o604), ..SetAttr::default() };
        attributes::set_attr(&s, file.fd, &set, &mut reply).unwrap();
        namespace::link(&s, s.root, Name::new(b"other").unwrap(), file.fd, &mut reply).unwrap();
        let now = attr::read(&donated).unwrap();
        assert_eq!((now.size, now.permissions, now.nlink), (2, 0o604, 2));
        for (name, kind) in
            [("fifo", FileKind::Fifo), ("dir", FileKind::Directory), ("link", FileKind::Symlink)]
        {
            let found = found(name).unwrap();
            assert_eq!(found.attr.kind, kind);
            assert!(!found.readable && found.donated.is_none(), "{name}");
        }
        assert_eq!(found("gone").err(), Some(Errno::NOENT));
        // Nobody was left inside who reads the FIFO.
        let writer = openat(&dir.fd, "fifo", OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty());
        assert_eq!(writer.unwrap_err(), Errno::NXIO);
    }
}
