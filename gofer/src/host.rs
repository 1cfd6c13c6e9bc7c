//! The host's files by descriptor: the only module that opens anything.
//!
//! Two ways lead to a descriptor: a checked name in a directory that the server holds ([`Host::lookup`]), and opening again
//! what a descriptor stands for, through `/proc/self/fd` ([`Host::reopen`]). The second never looks at a name, so it gets
//! the very file that was walked to, whatever has been renamed since. Where opening a name cannot act on anything, whatever it stands for
//! by then, and many are to be opened, both are one ([`Host::read_here`]): it costs half.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use caisson_proto::lisafs::{FileKind, Name};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use crate::table::Node;

/// `PROC_SUPER_MAGIC`
const PROC_MAGIC: i64 = 0x9fa0;
/// How often a walk that the kernel calls ambiguous (`EAGAIN`: something was renamed meanwhile) is tried again.
const RETRIES: usize = 16;

/// The way back to a file from its descriptor.
#[derive(Debug)]
pub struct Host {
    /// `/proc/self/fd`
    self_fd: OwnedFd,
    /// What comes before a descriptor's number in the few calls that take only paths (xattrs, unix sockets): empty when
    /// the working directory is `self_fd`.
    prefix: &'static str,
}

impl Host {
    /// Uses the process's own `/proc`. Nothing about the process changes: for servers inside another program.
    ///
    /// # Errors
    /// What `open(2)` says.
    pub fn from_proc() -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let self_fd = openat(CWD, c"/proc/self/fd", flags, Mode::empty())?;
        Ok(Self { self_fd, prefix: "/proc/self/fd/" })
    }

    /// Uses this proc mount, and makes its `self/fd` the working directory of the process, so that the root may be without
    /// `/proc`.
    ///
    /// # Errors
    /// What `open(2)` and `fchdir(2)` say; `ENOTSUP` when it is not a proc mount.
    pub fn enter(proc_mount: impl AsFd) -> Result<Self, Errno> {
        if rustix::fs::fstatfs(&proc_mount)?.f_type != PROC_MAGIC {
            return Err(Errno::NOTSUP);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let self_fd = openat(proc_mount, c"self/fd", flags, Mode::empty())?;
        rustix::process::fchdir(&self_fd)?;
        Ok(Self { self_fd, prefix: "" })
    }

    /// The file with this name in this directory, as `O_PATH` descriptor; a symbolic link itself, not what it points to.
    ///
    /// # Errors
    /// What `openat2(2)` says: `ENOENT`, `ENOTDIR`, `EXDEV` for a mount where the connection may not enter any.
    pub fn lookup(&self, dir: impl AsFd, name: Name<'_>, mounts: Mounts) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        open_in(dir, name, flags, Mode::empty(), mounts)
    }

    /// The regular file with this name in this directory, opened for reading at once: for directories on mounts where no device can be opened
    /// (`MS_NODEV`), and for names that a listing says are regular files. Whether it still is one is for the caller to check before the
    /// descriptor is used: of what else may have taken the name since, a socket or a link is not opened, and a FIFO is without waiting.
    ///
    /// # Errors
    /// What `openat2(2)` says; `EXDEV` for every mount.
    pub fn read_here(&self, dir: impl AsFd, name: Name<'_>) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        open_in(dir, name, flags, Mode::empty(), Mounts::Stay)
    }

    /// Creates a regular file. Never opens one that exists.
    ///
    /// # Errors
    /// What `openat2(2)` says, `EEXIST` above all.
    pub fn create(
        &self,
        dir: impl AsFd,
        name: Name<'_>,
        flags: OFlags,
        mode: Mode,
    ) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        open_in(dir, name, flags, mode, Mounts::Stay)
    }

    /// Creates a regular file without a name on the directory's file system.
    ///
    /// # Errors
    /// What `openat2(2)` says, `EOPNOTSUPP` above all.
    pub fn create_unnamed(&self, dir: impl AsFd, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::TMPFILE | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        again_if_ambiguous(|| openat2(&dir, c".", flags, mode, resolve))
    }

    /// Opens a walked regular file or directory. Nothing else: opening a device, FIFO or socket may block or act.
    ///
    /// # Errors
    /// `ELOOP` for symbolic links, `ENXIO` for the rest, `EACCES` for files of a proc mount, which may be our own memory;
    /// and what `open(2)` says.
    pub fn reopen(&self, node: &Node, flags: OFlags) -> Result<OwnedFd, Errno> {
        match node.kind {
            FileKind::Regular if is_of_proc(&node.fd)? => Err(Errno::ACCESS),
            _ => self.reopen_beside(node, flags),
        }
    }

    /// [`Host::reopen`] of a file that is known to be on a file system other than a proc mount.
    ///
    /// # Errors
    /// `ELOOP` for symbolic links, `ENXIO` for the rest; and what `open(2)` says.
    pub fn reopen_beside(&self, node: &Node, flags: OFlags) -> Result<OwnedFd, Errno> {
        match node.kind {
            FileKind::Regular | FileKind::Directory => {}
            FileKind::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::NXIO),
        }
        self.again(&node.fd, flags | OFlags::NONBLOCK | OFlags::NOCTTY)
    }

    /// Another `O_PATH` descriptor for a descriptor's file, which must not be a symbolic link.
    ///
    /// # Errors
    /// What `open(2)` says.
    pub fn path_to(&self, fd: impl AsFd) -> Result<OwnedFd, Errno> {
        self.again(fd, OFlags::PATH)
    }

    fn again(&self, fd: impl AsFd, flags: OFlags) -> Result<OwnedFd, Errno> {
        openat(&self.self_fd, number(&fd).as_str(), flags | OFlags::CLOEXEC, Mode::empty())
    }

    /// `chmod(2)` by descriptor, which the kernel has for `O_PATH` only since 6.6.
    ///
    /// # Errors
    /// What `chmod(2)` says.
    pub fn chmod(&self, fd: impl AsFd, mode: Mode) -> Result<(), Errno> {
        rustix::fs::chmodat(&self.self_fd, number(&fd).as_str(), mode, AtFlags::empty())
    }

    /// `link(2)` by descriptor: the file gets another name.
    ///
    /// # Errors
    /// What `linkat(2)` says.
    pub fn link(&self, fd: impl AsFd, dir: impl AsFd, name: Name<'_>) -> Result<(), Errno> {
        let target = number(&fd);
        rustix::fs::linkat(&self.self_fd, target.as_str(), dir, name.as_bytes(), AtFlags::SYMLINK_FOLLOW)
    }

    /// The number of its own descriptor.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.self_fd.as_raw_fd()
    }

    /// A path that the kernel resolves to this descriptor's file.
    pub fn path_of(&self, fd: impl AsFd) -> String {
        format!("{}{}", self.prefix, fd.as_fd().as_raw_fd())
    }
}

/// Whether a descriptor's file is one of a proc mount.
///
/// # Errors
/// What `fstatfs(2)` says.
pub fn is_of_proc(fd: impl AsFd) -> Result<bool, Errno> {
    Ok(rustix::fs::fstatfs(fd)?.f_type == PROC_MAGIC)
}

/// Whether a walk may enter mounts below the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mounts {
    /// Refuse them (`RESOLVE_NO_XDEV`).
    Stay,
    /// Enter them.
    Cross,
}

fn number(fd: &impl AsFd) -> String {
    fd.as_fd().as_raw_fd().to_string()
}

fn open_in(
    dir: impl AsFd,
    name: Name<'_>,
    flags: OFlags,
    mode: Mode,
    mounts: Mounts,
) -> Result<OwnedFd, Errno> {
    let mut resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    if mounts == Mounts::Stay {
        resolve |= ResolveFlags::NO_XDEV;
    }
    again_if_ambiguous(|| openat2(&dir, name.as_bytes(), flags, mode, resolve))
}

fn again_if_ambiguous(open: impl Fn() -> Result<OwnedFd, Errno>) -> Result<OwnedFd, Errno> {
    for _ in 0..RETRIES {
        match open() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            done => return done,
        }
    }
    Err(Errno::AGAIN)
}
