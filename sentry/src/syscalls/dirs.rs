//! Directories: reading them, the working directory, the root, the umask.

use linux_raw_sys::general as linux;

use super::Args;
use super::path_args::{self, open_file, path};
use crate::errno::{Errno, SysResult};
use crate::task::{Capability, SyscallContext};
use crate::vfs::walk::PATH_MAX;
use crate::vfs::{Access, DirEntry, DirSink, FileType, VfsPath, WalkFlags, notify, times};

/// Bytes before the name in `struct linux_dirent64`.
const HEADER64: usize = std::mem::offset_of!(linux::linux_dirent64, d_name);
/// Bytes before the name in `struct linux_dirent`; the type is the record's last byte.
const HEADER: usize = 18;

/// Which record `getdents` writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Record {
    Old,
    New,
}

struct Collector {
    record: Record,
    bytes: Vec<u8>,
    limit: usize,
    /// An entry did not fit although there was none before it.
    too_small: bool,
}

impl DirSink for Collector {
    fn emit(&mut self, entry: DirEntry<'_>) -> bool {
        // The name's NUL, and for the old record the type.
        let unpadded = match self.record {
            Record::New => HEADER64 + entry.name.len() + 1,
            Record::Old => HEADER + entry.name.len() + 2,
        };
        let len = unpadded.next_multiple_of(8);
        if self.bytes.len().saturating_add(len) > self.limit {
            self.too_small = self.bytes.is_empty();
            return false;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&entry.ino.to_ne_bytes());
        self.bytes.extend_from_slice(&entry.next.to_ne_bytes());
        self.bytes.extend_from_slice(&u16::try_from(len).unwrap_or(u16::MAX).to_ne_bytes());
        if self.record == Record::New {
            self.bytes.push(entry.file_type);
        }
        self.bytes.extend_from_slice(entry.name);
        self.bytes.resize(start + len, 0);
        if self.record == Record::Old
            && let Some(last) = self.bytes.last_mut()
        {
            *last = entry.file_type;
        }
        true
    }
}

/// Most bytes collected at once: a larger buffer is filled by several calls, as the guest does anyway.
const COLLECTED_MAX: usize = 1 << 20;

fn read_directory(ctx: &SyscallContext<'_>, args: &Args, record: Record) -> SysResult<usize> {
    let file = open_file(ctx, args.raw(0))?;
    if file.inode().file_type() != FileType::Directory {
        return Err(Errno::ENOTDIR);
    }
    if file.path().is_some_and(|path| path.dentry().is_unlinked()) {
        return Err(Errno::ENOENT);
    }
    let limit = usize::try_from(args.uint(2)).unwrap_or(COLLECTED_MAX).min(COLLECTED_MAX);
    let mut collector = Collector { record, bytes: Vec::new(), limit, too_small: false };
    file.with_position(|position| {
        let before = *position;
        file.ops().iterate(&file, position, &mut collector)?;
        let written = ctx.task.mm().write_bytes(args.raw(1), &collector.bytes);
        if written.is_err() {
            *position = before;
        }
        written
    })?;
    if let Some(path) = file.path() {
        times::accessed(path);
        notify::accessed_by_name(path.dentry(), linux::IN_ACCESS);
    }
    if collector.too_small { Err(Errno::EINVAL) } else { Ok(collector.bytes.len()) }
}

/// `getdents(unsigned fd, struct linux_dirent *buf, unsigned size)`
pub fn getdents(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    read_directory(ctx, args, Record::Old)
}

/// `getdents64(unsigned fd, struct linux_dirent64 *buf, unsigned size)`
pub fn getdents64(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    read_directory(ctx, args, Record::New)
}

/// `getcwd(char *buf, unsigned long size)`: the length with the NUL.
pub fn getcwd(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let places = ctx.task.fs().places();
    let text = places.cwd.text(&places.root);
    if text.deleted {
        return Err(Errno::ENOENT);
    }
    let mut bytes = if text.reachable { Vec::new() } else { b"(unreachable)".to_vec() };
    bytes.extend_from_slice(&text.bytes);
    bytes.push(0);
    if bytes.len() > PATH_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    if bytes.len() as u64 > args.raw(1) {
        return Err(Errno::ERANGE);
    }
    ctx.task.mm().write_bytes(args.raw(0), &bytes)?;
    Ok(bytes.len())
}

fn enter(ctx: &SyscallContext<'_>, place: VfsPath) -> SysResult<usize> {
    if place.inode().file_type() != FileType::Directory {
        return Err(Errno::ENOTDIR);
    }
    place.inode().permission(&ctx.task.credentials(), Access::EXEC)?;
    ctx.task.fs().set_cwd(place);
    Ok(0)
}

/// `chdir(const char *path)`
pub fn chdir(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let caller = path_args::caller(ctx);
    let flags = WalkFlags::FOLLOW | WalkFlags::DIRECTORY;
    let place = path(ctx, args.raw(0))?.lookup(&caller, flags)?;
    enter(ctx, place)
}

/// `fchdir(int fd)`
pub fn fchdir(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let file = ctx.task.file(args.raw(0))?;
    let place = file.path().ok_or(Errno::ENOTDIR)?.clone();
    enter(ctx, place)
}

/// `chroot(const char *path)`
pub fn chroot(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let caller = path_args::caller(ctx);
    let flags = WalkFlags::FOLLOW | WalkFlags::DIRECTORY;
    let place = path(ctx, args.raw(0))?.lookup(&caller, flags)?;
    place.inode().permission(&caller.credentials, Access::EXEC)?;
    if !caller.credentials.has(Capability::SYS_CHROOT) {
        return Err(Errno::EPERM);
    }
    ctx.task.fs().set_root(place);
    Ok(0)
}

/// `umask(mode_t mask)`: the old mask.
pub fn umask(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    Ok(ctx.task.fs().set_umask(args.uint(0)) as usize)
}
