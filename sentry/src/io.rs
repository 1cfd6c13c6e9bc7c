//! Where file data comes from and goes to.
//!
//! A read has an [`IoDst`], a write an [`IoSrc`]: the memory of the calling task ([`crate::mm::UserIo`]) or a buffer in
//! the kernel ([`KernelDst`], [`KernelSrc`]: the ELF loader, `sendfile`, the control server). File systems do not care which.
//! Data that the host keeps in a file moves between the descriptor and guest memory in one host call.

use std::os::fd::BorrowedFd;

use crate::errno::{Errno, SysResult};

/// The destination of a read.
pub trait IoDst {
    /// Bytes that still fit.
    fn remaining(&self) -> usize;

    /// Appends as much of `data` as fits and returns how much; fewer bytes than asked may be taken when guest memory
    /// faults half way, `EFAULT` only if it faults at the first byte.
    fn put(&mut self, data: &[u8]) -> SysResult<usize>;

    /// Appends `len` zero bytes (or as many as fit), like [`IoDst::put`].
    fn put_zeros(&mut self, len: usize) -> SysResult<usize>;

    /// Reads from a host descriptor straight into the destination, at most `len` bytes, at `offset` or at the
    /// descriptor's own position. Returns 0 at the end of the file.
    fn read_from_host(&mut self, fd: BorrowedFd<'_>, offset: Option<u64>, len: usize) -> SysResult<usize>;

    /// Appends bytes from guest-physical memory (page cache, pipe pages) without a bounce buffer.
    fn put_from_arena(&mut self, gpa: crate::platform::Gpa, len: usize) -> SysResult<usize>;
}

/// The source of a write.
pub trait IoSrc {
    /// Bytes left.
    fn remaining(&self) -> usize;

    /// Takes up to `buf.len()` bytes and returns how many; `EFAULT` only if not even one could be taken.
    fn take(&mut self, buf: &mut [u8]) -> SysResult<usize>;

    /// Writes to a host descriptor straight from the source, at most `len` bytes.
    fn write_to_host(&mut self, fd: BorrowedFd<'_>, offset: Option<u64>, len: usize) -> SysResult<usize>;

    /// Copies bytes into guest-physical memory without a bounce buffer.
    fn take_to_arena(&mut self, gpa: crate::platform::Gpa, len: usize) -> SysResult<usize>;
}

/// A read into the kernel's own memory.
pub struct KernelDst<'a> {
    buf: &'a mut [u8],
    filled: usize,
}

impl<'a> KernelDst<'a> {
    /// Fills `buf` from its start.
    pub fn new(buf: &'a mut [u8]) -> Self {
        Self { buf, filled: 0 }
    }

    /// Bytes written so far.
    pub fn filled(&self) -> usize {
        self.filled
    }

    fn room(&mut self, len: usize) -> &mut [u8] {
        let rest = self.buf.get_mut(self.filled..).unwrap_or_default();
        let len = len.min(rest.len());
        rest.get_mut(..len).unwrap_or_default()
    }
}

impl IoDst for KernelDst<'_> {
    fn remaining(&self) -> usize {
        self.buf.len().saturating_sub(self.filled)
    }

    fn put(&mut self, data: &[u8]) -> SysResult<usize> {
        let room = self.room(data.len());
        let len = room.len();
        room.copy_from_slice(data.get(..len).unwrap_or_default());
        self.filled += len;
        Ok(len)
    }

    fn put_zeros(&mut self, len: usize) -> SysResult<usize> {
        let room = self.room(len);
        room.fill(0);
        let len = room.len();
        self.filled += len;
        Ok(len)
    }

    fn read_from_host(&mut self, fd: BorrowedFd<'_>, offset: Option<u64>, len: usize) -> SysResult<usize> {
        let room = self.room(len);
        let read = match offset {
            Some(offset) => {
                let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
                nix::sys::uio::pread(fd, room, offset)?
            }
            None => nix::unistd::read(fd, room)?,
        };
        self.filled += read;
        Ok(read)
    }

    fn put_from_arena(&mut self, gpa: crate::platform::Gpa, len: usize) -> SysResult<usize> {
        let arena = crate::platform::arena()?;
        let room = self.room(len);
        arena.read(gpa, room).map_err(|_| Errno::EFAULT)?;
        let len = room.len();
        self.filled += len;
        Ok(len)
    }
}

/// A write from the kernel's own memory.
pub struct KernelSrc<'a> {
    data: &'a [u8],
}

impl<'a> KernelSrc<'a> {
    /// Gives out `data` from its start.
    pub fn new(data: &'a [u8]) -> Self {
        Self { data }
    }

    fn next(&mut self, len: usize) -> &'a [u8] {
        let (head, tail) = self.data.split_at_checked(len).unwrap_or((self.data, &[]));
        self.data = tail;
        head
    }
}

impl IoSrc for KernelSrc<'_> {
    fn remaining(&self) -> usize {
        self.data.len()
    }

    fn take(&mut self, buf: &mut [u8]) -> SysResult<usize> {
        let head = self.next(buf.len());
        buf.get_mut(..head.len()).unwrap_or_default().copy_from_slice(head);
        Ok(head.len())
    }

    fn write_to_host(&mut self, fd: BorrowedFd<'_>, offset: Option<u64>, len: usize) -> SysResult<usize> {
        let head = self.data.get(..len).unwrap_or(self.data);
        let written = match offset {
            Some(offset) => {
                let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
                nix::sys::uio::pwrite(fd, head, offset)?
            }
            None => nix::unistd::write(fd, head)?,
        };
        self.next(written);
        Ok(written)
    }

    fn take_to_arena(&mut self, gpa: crate::platform::Gpa, len: usize) -> SysResult<usize> {
        let arena = crate::platform::arena()?;
        let head = self.next(len);
        arena.write(gpa, head).map_err(|_| Errno::EFAULT)?;
        Ok(head.len())
    }
}
