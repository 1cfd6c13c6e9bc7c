//! Open regular files: data goes between the host's descriptor and the destination, without the gofer.

use std::sync::Arc;

use nix::fcntl::FallocateFlags;
use nix::unistd::Whence as HostWhence;

use super::handle::{Handle, Want};
use super::inode::GoferInode;
use super::mapping::MappedFile;
use crate::errno::{Errno, SysResult};
use crate::io::{IoDst, IoSrc};
use crate::mm::Mappable;
use crate::vfs::{File, FileOps, OpenFlags, Whence};

/// A description's operations.
pub(super) struct OpenFile {
    inode: Arc<GoferInode>,
    handle: Handle,
}

impl OpenFile {
    pub(super) fn new(inode: Arc<GoferInode>, handle: Handle) -> OpenFile {
        OpenFile { inode, handle }
    }

    fn host_offset(&self, offset: u64, whence: HostWhence) -> SysResult<u64> {
        let offset = i64::try_from(offset).map_err(|_| Errno::ENXIO)?;
        // The descriptor's own position is nobody's: all data goes by offset.
        let found = nix::unistd::lseek(self.handle.fd(), offset, whence)?;
        u64::try_from(found).map_err(|_| Errno::EIO)
    }
}

impl FileOps for OpenFile {
    fn read(&self, _file: &File, dst: &mut dyn IoDst, offset: &mut u64) -> SysResult<usize> {
        let count = dst.read_from_host(self.handle.fd(), Some(*offset), dst.remaining())?;
        *offset = offset.saturating_add(count as u64);
        Ok(count)
    }

    fn write(&self, file: &File, src: &mut dyn IoSrc, offset: &mut u64) -> SysResult<usize> {
        let appending = file.flags().contains(OpenFlags::APPEND).then(|| self.inode.order().lock());
        if appending.is_some() {
            *offset = self.handle.size()?;
        }
        let len = src.remaining();
        // Even a write that fails may change the file.
        let changing = self.inode.changing();
        let written = src.write_to_host(self.handle.fd(), Some(*offset), len)?;
        drop(changing);
        *offset = offset.saturating_add(written as u64);
        Ok(written)
    }

    fn seekable(&self) -> bool {
        true
    }

    fn seek(&self, _file: &File, current: u64, offset: i64, whence: Whence) -> SysResult<u64> {
        let base = match whence {
            Whence::Start => 0,
            Whence::Current => current,
            Whence::End => self.handle.size()?,
            Whence::Data | Whence::Hole => {
                let offset = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
                let whence = if whence == Whence::Data { HostWhence::SeekData } else { HostWhence::SeekHole };
                return self.host_offset(offset, whence);
            }
        };
        match base.checked_add_signed(offset) {
            Some(position) if position <= i64::MAX as u64 => Ok(position),
            _ => Err(Errno::EINVAL),
        }
    }

    fn mappable(&self, _file: &File) -> SysResult<Arc<dyn Mappable>> {
        Ok(Arc::new(MappedFile::new(self.inode.clone())?))
    }

    fn fsync(&self, _file: &File, data_only: bool) -> SysResult {
        if data_only {
            nix::unistd::fdatasync(self.handle.fd())?;
        } else {
            nix::unistd::fsync(self.handle.fd())?;
        }
        Ok(())
    }

    fn fallocate(&self, _file: &File, mode: u32, offset: u64, len: u64) -> SysResult {
        let mode = i32::try_from(mode).ok().and_then(FallocateFlags::from_bits).ok_or(Errno::EOPNOTSUPP)?;
        let signed = |value: u64| i64::try_from(value).map_err(|_| Errno::EFBIG);
        // Holes and moved ranges change what mappings see: pages of the host's cache, which the host keeps right.
        let handle = self.inode.handle(Want::Write)?;
        let _changing = self.inode.changing();
        Ok(nix::fcntl::fallocate(handle.fd(), mode, signed(offset)?, signed(len)?)?)
    }
}
