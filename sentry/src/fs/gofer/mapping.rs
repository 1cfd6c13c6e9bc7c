//! Mapped files: the guest maps the host's page cache, through windows onto the donated descriptor
//! ([`crate::mm::window_cache`]).
//!
//! The windows are the inode's and outlive a mapping, so that a program that is run again finds them. They are given up with
//! the inode's descriptors when nobody maps the file.
//!
//! Pages that the host file loses (others truncate it) fault in the guest as they would on Linux.

use std::sync::Arc;

use nix::fcntl::FallocateFlags;

use super::handle::Want;
use super::inode::GoferInode;
use crate::errno::{Errno, SysResult};
use crate::mm::{Backing, Mappable, MappingIdentity, MappingSet, WindowAccess, WindowCache, WindowSource};
use crate::vfs::Inode;

/// A file as the object behind mappings; keeps its inode.
pub(super) struct MappedFile {
    inode: Arc<GoferInode>,
    windows: Arc<WindowCache>,
}

impl MappedFile {
    pub(super) fn new(inode: Arc<GoferInode>) -> SysResult<MappedFile> {
        let windows = inode.windows()?;
        Ok(MappedFile { inode, windows })
    }
}

impl Mappable for MappedFile {
    fn translate(&self, offset: u64, len: u64, write: bool) -> SysResult<Backing> {
        let handle = self.inode.handle(if write { Want::Write } else { Want::Read })?;
        let size = handle.size()?;
        let access = if handle.is_writable() { WindowAccess::ReadWrite } else { WindowAccess::ReadOnly };
        let source = WindowSource { fd: handle.fd(), access, size };
        let backing = self.windows.translate(source, offset, len, write)?;
        if backing.writable {
            self.inode.may_be_written();
        }
        Ok(backing)
    }

    fn mappings(&self) -> &MappingSet {
        self.windows.mappings()
    }

    fn identity(&self) -> MappingIdentity {
        match self.inode.attr() {
            Ok(attr) => MappingIdentity { name: Vec::new(), device: attr.dev, ino: attr.ino },
            Err(_) => MappingIdentity::default(),
        }
    }

    fn sync(&self, _offset: u64, _len: u64) -> SysResult {
        let handle = self.inode.handle(Want::Read)?;
        Ok(nix::unistd::fdatasync(handle.fd())?)
    }

    fn punch_hole(&self, offset: u64, len: u64) -> SysResult {
        let handle = self.inode.handle(Want::Write)?;
        let signed = |value: u64| i64::try_from(value).map_err(|_| Errno::EINVAL);
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let _changing = self.inode.changing();
        Ok(nix::fcntl::fallocate(handle.fd(), mode, signed(offset)?, signed(len)?)?)
    }
}
