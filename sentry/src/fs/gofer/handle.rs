//! Host descriptors of open files.
//!
//! An inode has at most one descriptor for reading and one for reading and writing; the second serves both once it is there. A
//! description holds the one it was opened with, so giving up an inode's only ends its use for later opens.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use caisson_proto::lisafs::FdId;
use caisson_proto::lisafs::request::OpenFlags;

use super::client::Client;
use crate::errno::{Errno, SysResult};

/// A donated descriptor.
#[derive(Clone)]
pub(super) struct Handle {
    fd: Arc<OwnedFd>,
    writable: bool,
}

impl Handle {
    pub(super) fn new(fd: OwnedFd, writable: bool) -> Handle {
        Handle { fd: Arc::new(fd), writable }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The file's size in bytes, as the host has it now.
    pub(super) fn size(&self) -> SysResult<u64> {
        let host = rustix::fs::fstat(self.fd())?;
        u64::try_from(host.st_size).map_err(|_| Errno::EIO)
    }

    pub(super) fn is_writable(&self) -> bool {
        self.writable
    }
}

/// What a descriptor is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    Read,
    Write,
}

/// The descriptors that an inode keeps.
#[derive(Default)]
pub(super) struct Handles {
    read: Option<Handle>,
    write: Option<Handle>,
}

impl Handles {
    /// The descriptor that serves `want`, if there is one.
    pub(super) fn get(&self, want: Want) -> Option<Handle> {
        match want {
            Want::Read => self.write.clone().or_else(|| self.read.clone()),
            Want::Write => self.write.clone(),
        }
    }

    /// Keeps a descriptor, unless there is one of its kind already.
    pub(super) fn keep(&mut self, handle: Handle) -> Handle {
        let place = if handle.writable { &mut self.write } else { &mut self.read };
        place.get_or_insert(handle).clone()
    }
}

/// Asks the gofer for a descriptor.
pub(super) fn open(client: &Client, fd: FdId, want: Want) -> SysResult<Handle> {
    let flags = match want {
        Want::Read => OpenFlags::READ,
        Want::Write => OpenFlags::READ | OpenFlags::WRITE,
    };
    Ok(Handle::new(client.donate(fd, flags)?, want == Want::Write))
}
