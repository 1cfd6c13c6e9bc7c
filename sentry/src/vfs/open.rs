//! Opening: from flags and a path to a description.
//!
//! [`OpenHow`] holds flags that make sense together; [`Caller::open`] walks, creates, checks, opens and truncates in Linux's
//! order (`path_openat`). What opening a special file means is left to a [`SpecialOpener`], because it may block.

use std::sync::Arc;

use linux_raw_sys::general as linux;

use super::attachments::{DenyWrite, WriteAccess};
use super::caller::Caller;
use super::dentry::Dentry;
use super::file::{File, FileOps, OpenFlags};
use super::inode::{Access, FileType};
use super::mount::MountFlags;
use super::notify;
use super::path::VfsPath;
use super::walk::{Last, WalkFlags, Walker};
use crate::errno::{Errno, SysResult};
use crate::task::{Capability, SyscallContext};

/// Validated arguments of `open`.
#[derive(Clone, Copy, Debug)]
pub struct OpenHow {
    /// Flags, without what means nothing.
    pub flags: OpenFlags,
    /// Permissions of a new file.
    pub mode: u32,
    /// `openat2`'s restrictions.
    pub resolve: WalkFlags,
}

/// The flags that mean something together with `O_PATH`.
const WITH_PATH: OpenFlags =
    OpenFlags::PATH.union(OpenFlags::DIRECTORY).union(OpenFlags::NOFOLLOW).union(OpenFlags::CLOEXEC);

impl OpenHow {
    /// From `open`'s arguments, which ignore what they do not know. `EINVAL` for `O_TMPFILE` without write access and for
    /// `O_CREAT` with `O_DIRECTORY`.
    pub fn from_open(flags: u32, mode: u32) -> SysResult<OpenHow> {
        let mut flags = OpenFlags::from_bits_truncate(flags);
        let creates = flags.intersects(OpenFlags::CREAT | OpenFlags::TMPFILE_BIT);
        if flags.contains(OpenFlags::PATH) {
            flags &= WITH_PATH;
        }
        OpenHow::checked(flags, if creates { mode & 0o7777 } else { 0 }, WalkFlags::empty())
    }

    /// From `openat2`'s arguments, which must be known and make sense.
    pub fn from_open2(flags: u64, mode: u64, resolve: u64) -> SysResult<OpenHow> {
        let flags = u32::try_from(flags).ok().and_then(OpenFlags::from_bits).ok_or(Errno::EINVAL)?;
        let creates = flags.intersects(OpenFlags::CREAT | OpenFlags::TMPFILE_BIT);
        let mode_fits = if creates { mode & !0o7777 == 0 } else { mode == 0 };
        let path_fits = !flags.contains(OpenFlags::PATH) || WITH_PATH.contains(flags);
        if !mode_fits || !path_fits {
            return Err(Errno::EINVAL);
        }
        let resolve = WalkFlags::from_resolve(resolve)?;
        OpenHow::checked(flags, u32::try_from(mode).map_err(|_| Errno::EINVAL)?, resolve)
    }

    fn checked(mut flags: OpenFlags, mode: u32, resolve: WalkFlags) -> SysResult<OpenHow> {
        if !flags.contains(OpenFlags::PATH) {
            flags |= OpenFlags::LARGEFILE;
        }
        let unnamed = flags.contains(OpenFlags::TMPFILE_BIT);
        if flags.contains(OpenFlags::CREAT | OpenFlags::DIRECTORY) {
            return Err(Errno::EINVAL);
        }
        if unnamed && (!flags.contains(OpenFlags::DIRECTORY) || !flags.intersects(OpenFlags::ACCESS_MODE)) {
            return Err(Errno::EINVAL);
        }
        Ok(OpenHow { flags, mode, resolve })
    }

    /// What the file's permissions must allow.
    fn access(&self) -> Access {
        let mode = self.flags & OpenFlags::ACCESS_MODE;
        let mut access = Access::READ;
        if mode == OpenFlags::WRONLY {
            access = Access::WRITE;
        } else if !mode.is_empty() {
            access |= Access::WRITE;
        }
        if self.flags.contains(OpenFlags::TRUNC) {
            access |= Access::WRITE;
        }
        access
    }

    fn follows(&self) -> bool {
        !self.flags.contains(OpenFlags::NOFOLLOW) && !self.flags.contains(OpenFlags::CREAT | OpenFlags::EXCL)
    }

    fn walk_flags(&self) -> WalkFlags {
        let mut flags = self.resolve;
        flags.set(WalkFlags::FOLLOW, self.follows());
        flags.set(WalkFlags::DIRECTORY, self.flags.contains(OpenFlags::DIRECTORY));
        flags
    }
}

/// Opens devices and FIFOs.
pub type SpecialOpener<'a> = &'a mut dyn FnMut(&VfsPath, OpenFlags) -> SysResult<Arc<dyn FileOps>>;

/// The operations of an `O_PATH` description: none.
struct PathOnly;

impl FileOps for PathOnly {}

/// A place found by `open`, and whether the file is new.
struct Found {
    path: VfsPath,
    created: bool,
}

impl Caller<'_> {
    /// Opens what `path` names, from `start` if it is relative.
    pub fn open(
        &self,
        start: &VfsPath,
        path: &[u8],
        how: &OpenHow,
        special: SpecialOpener<'_>,
    ) -> SysResult<Arc<File>> {
        if how.flags.contains(OpenFlags::TMPFILE_BIT) {
            return self.open_unnamed(start, path, how);
        }
        if how.flags.contains(OpenFlags::PATH) {
            let place = self.lookup(start, path, how.walk_flags())?;
            return Ok(File::new(Arc::new(PathOnly), place.inode().clone(), Some(place), how.flags));
        }
        let found = if how.flags.contains(OpenFlags::CREAT) {
            self.find_or_create(start, path, how)?
        } else {
            Found { path: self.lookup(start, path, how.walk_flags())?, created: false }
        };
        self.open_found(found, how, special)
    }

    /// Opens a place that has been found already: nothing is created.
    pub fn open_place(
        &self,
        place: &VfsPath,
        how: &OpenHow,
        special: SpecialOpener<'_>,
    ) -> SysResult<Arc<File>> {
        self.open_found(Found { path: place.clone(), created: false }, how, special)
    }

    /// Opens a regular file or directory for the kernel's own use; special files are `EACCES`.
    pub fn open_plain(&self, path: &[u8], flags: OpenFlags) -> SysResult<Arc<File>> {
        let how = OpenHow { flags, mode: 0, resolve: WalkFlags::empty() };
        self.open(self.cwd(), path, &how, &mut |_, _| Err(Errno::EACCES))
    }

    /// Opens a program: a regular file that may be executed, and that nobody may write to while the second half lives.
    /// `EACCES` for anything else than an executable regular file, `ETXTBSY` if it is open for writing.
    pub fn open_program(
        &self,
        start: &VfsPath,
        path: &[u8],
        flags: WalkFlags,
    ) -> SysResult<(Arc<File>, DenyWrite)> {
        let place = self.lookup(start, path, flags)?;
        let inode = place.inode();
        if inode.file_type() == FileType::Symlink {
            return Err(Errno::ELOOP);
        }
        if inode.file_type() != FileType::Regular || place.mount().flags().contains(MountFlags::NOEXEC) {
            return Err(Errno::EACCES);
        }
        inode.permission(&self.credentials, Access::EXEC)?;
        let deny = DenyWrite::new(inode)?;
        let ops = inode.open(self, &place, OpenFlags::empty())?;
        let file = File::new(ops, inode.clone(), Some(place.clone()), OpenFlags::empty());
        notify::accessed_by_name(place.dentry(), linux::IN_OPEN);
        Ok((file, deny))
    }

    fn find_or_create(&self, start: &VfsPath, path: &[u8], how: &OpenHow) -> SysResult<Found> {
        let mut walker = Walker::new(self, start, path, how.walk_flags())?;
        loop {
            let last = walker.to_parent()?;
            let Last::Name(name) = &last else {
                walker.step_to(&last)?;
                return Ok(Found { path: walker.place().clone(), created: false });
            };
            if walker.trailing_slash() {
                return Err(Errno::EISDIR);
            }
            let dir = walker.place().clone();
            let (child, created) = self.open_or_create_entry(&dir, name, how)?;
            if created {
                return Ok(Found { path: dir.with_dentry(child), created });
            }
            let is_link = child.inode().is_some_and(|inode| inode.file_type() == FileType::Symlink);
            if is_link && how.follows() {
                walker.follow(&dir.with_dentry(child))?;
                continue;
            }
            walker.step_to(&last)?;
            return Ok(Found { path: walker.place().clone(), created: false });
        }
    }

    /// The child `name`, created if it is missing; whether it was.
    fn open_or_create_entry(
        &self,
        dir: &VfsPath,
        name: &[u8],
        how: &OpenHow,
    ) -> SysResult<(Arc<Dentry>, bool)> {
        let recent = &dir.mount().superblock().recent;
        let child = dir.dentry().lookup(recent, name)?;
        if child.inode().is_some() {
            return Ok((child, false));
        }
        let exclusive = dir.dentry().lock_exclusive();
        let child = dir.dentry().lookup_locked(recent, name)?;
        if child.inode().is_some() {
            return Ok((child, false));
        }
        let child = match self.create_locked(dir, name, how.mode) {
            Ok(child) => child,
            // Somebody outside the sandbox was faster (a shared bind mount).
            Err(Errno::EEXIST) if !how.flags.contains(OpenFlags::EXCL) => {
                dir.dentry().forget(name);
                return Ok((dir.dentry().lookup_locked(recent, name)?, false));
            }
            Err(error) => return Err(error),
        };
        drop(exclusive);
        notify::entry(dir.inode(), name, child.positive()?, linux::IN_CREATE, 0);
        Ok((child, true))
    }

    fn open_found(&self, found: Found, how: &OpenHow, special: SpecialOpener<'_>) -> SysResult<Arc<File>> {
        let Found { path, created } = found;
        let mut flags = how.flags;
        let inode = path.inode().clone();
        let file_type = inode.file_type();
        if flags.contains(OpenFlags::CREAT) && !created {
            if flags.contains(OpenFlags::EXCL) {
                return Err(Errno::EEXIST);
            }
            if file_type == FileType::Directory {
                return Err(Errno::EISDIR);
            }
        }
        if flags.contains(OpenFlags::DIRECTORY) && file_type != FileType::Directory {
            return Err(Errno::ENOTDIR);
        }
        if created {
            flags.remove(OpenFlags::TRUNC);
        } else {
            self.may_open(&path, how)?;
        }
        let is_special = !matches!(file_type, FileType::Regular | FileType::Directory);
        if is_special {
            flags.remove(OpenFlags::TRUNC);
        }
        let needs_write = !is_special && (flags.writable() || flags.contains(OpenFlags::TRUNC));
        let access = if needs_write { Some(WriteAccess::get(&inode, Some(path.mount()))?) } else { None };
        let ops = if is_special { special(&path, flags)? } else { inode.open(self, &path, flags)? };
        let truncates = flags.contains(OpenFlags::TRUNC) && file_type == FileType::Regular;
        let kept = access.filter(|_| flags.writable());
        let file = File::with_write_access(ops, inode.clone(), Some(path.clone()), flags, kept);
        notify::accessed_by_name(path.dentry(), linux::IN_OPEN);
        if truncates {
            self.resize(&path, &*inode, 0)?;
        }
        Ok(file)
    }

    /// Linux's `may_open`.
    fn may_open(&self, path: &VfsPath, how: &OpenHow) -> SysResult {
        let inode = path.inode();
        let access = how.access();
        let mount = path.mount();
        match inode.file_type() {
            FileType::Symlink => return Err(Errno::ELOOP),
            FileType::Directory if access.contains(Access::WRITE) => return Err(Errno::EISDIR),
            FileType::CharDevice | FileType::BlockDevice if mount.flags().contains(MountFlags::NODEV) => {
                return Err(Errno::EACCES);
            }
            FileType::Regular if access.contains(Access::WRITE) && mount.superblock().is_read_only() => {
                return Err(Errno::EROFS);
            }
            _ => {}
        }
        inode.permission(&self.credentials, access)?;
        if how.flags.contains(OpenFlags::NOATIME)
            && inode.attr()?.uid != self.credentials.fsuid
            && !self.credentials.has(Capability::FOWNER)
        {
            return Err(Errno::EPERM);
        }
        Ok(())
    }

    fn open_unnamed(&self, start: &VfsPath, path: &[u8], how: &OpenHow) -> SysResult<Arc<File>> {
        let dir = self.lookup(start, path, how.walk_flags())?;
        dir.mount().require_writable()?;
        dir.inode().permission(&self.credentials, Access::WRITE | Access::EXEC)?;
        let new = self.new_inode(&dir.inode().attr()?, how.mode, FileType::Regular);
        let inode = dir.inode().create_unnamed(new)?;
        if !how.flags.contains(OpenFlags::EXCL) {
            inode.attachments().set_linkable();
        }
        let name = format!("#{}", inode.attr().map_or(0, |attr| attr.ino));
        let place = dir.with_dentry(Dentry::unnamed(&dir, name.as_bytes(), inode.clone()));
        let access = WriteAccess::get(&inode, Some(dir.mount()))?;
        let flags = how.flags - OpenFlags::EXCL - OpenFlags::TMPFILE_BIT - OpenFlags::DIRECTORY;
        let ops = inode.open(self, &place, flags)?;
        let shown = how.flags - OpenFlags::EXCL;
        let file = File::with_write_access(ops, inode, Some(place.clone()), shown, Some(access));
        notify::accessed_by_name(place.dentry(), linux::IN_OPEN);
        Ok(file)
    }
}

/// `open` for a system call, from the working directory if there is no `start`: special files go to the kernel's drivers.
pub fn open(
    ctx: &mut SyscallContext<'_>,
    start: Option<&VfsPath>,
    path: &[u8],
    how: &OpenHow,
) -> SysResult<Arc<File>> {
    let task = ctx.task;
    let caller = Caller::new(ctx.own.credentials.clone(), &ctx.own.fs, Some(task));
    let mut special = |place: &VfsPath, flags: OpenFlags| task.kernel().vfs().special.open(ctx, place, flags);
    caller.open(start.unwrap_or(caller.cwd()), path, how, &mut special)
}
