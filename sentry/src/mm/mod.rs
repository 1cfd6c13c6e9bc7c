//! Address spaces: VMAs, page faults, copy-on-write, user memory access.

use std::sync::Arc;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::errno::{Errno, SysResult};
use crate::platform::Gpa;

/// An address space, shared by the threads of a process.
pub struct Mm {}

/// Guest-physical memory behind a part of a [`Mappable`].
pub struct Backing {
    /// Where it starts.
    pub gpa: Gpa,
    /// Bytes of it, page-aligned, at least one page.
    pub len: u64,
    /// Whether guest entries may grant writing (the host mapping allows it).
    pub writable: bool,
}

/// Something that can be mapped: a tmpfs file, a file of the host, shared anonymous memory, a device.
///
/// The memory a [`Backing`] names stays valid while the mapping is registered: before taking pages away (truncation, hole
/// punching, eviction) the object calls [`MappingSet::invalidate`], **without** holding locks that `translate` takes.
pub trait Mappable: Send + Sync {
    /// Memory for the page-aligned `offset`, at most `len` bytes of it, allocating if need be.
    /// `EFAULT` past the end of the object (the guest gets `SIGBUS`), `ENOMEM` when the sandbox is out of memory.
    fn translate(&self, offset: u64, len: u64, write: bool) -> SysResult<Backing>;

    /// The mappings of this object.
    fn mappings(&self) -> &MappingSet;

    /// Name for `/proc/*/maps`, device and inode number.
    fn identity(&self) -> MappingIdentity;
}

/// How `/proc/*/maps` shows a mapped object.
#[derive(Clone, Debug, Default)]
pub struct MappingIdentity {
    /// Path or label.
    pub name: Vec<u8>,
    /// Device number.
    pub device: crate::vfs::Device,
    /// Inode number.
    pub ino: u64,
}

/// Who maps an object.
#[derive(Default)]
pub struct MappingSet {}

impl MappingSet {
    /// Takes the pages of `[offset, offset + len)` out of every address space that maps them.
    pub fn invalidate(&self, _offset: u64, _len: u64) {}
}

impl Mm {
    /// Reads exactly `buf.len()` bytes of guest memory; `EFAULT` if any of it is not readable.
    pub fn read_bytes(&self, _addr: u64, _buf: &mut [u8]) -> SysResult {
        Err(Errno::EFAULT)
    }

    /// Writes all of `data`; `EFAULT` if any of the memory is not writable (a part may have been written).
    pub fn write_bytes(&self, _addr: u64, _data: &[u8]) -> SysResult {
        Err(Errno::EFAULT)
    }

    /// Copies a plain value in, once.
    pub fn copy_in<T: FromBytes>(&self, addr: u64) -> SysResult<T> {
        let mut value = T::new_zeroed();
        let _ = (addr, &mut value);
        Err(Errno::EFAULT)
    }

    /// Copies a plain value out.
    pub fn copy_out<T: IntoBytes + Immutable>(&self, addr: u64, value: &T) -> SysResult {
        self.write_bytes(addr, value.as_bytes())
    }

    /// A NUL-terminated string without its NUL: `ENAMETOOLONG` if there is none within `limit` bytes, `EFAULT`.
    pub fn read_c_string(&self, _addr: u64, _limit: usize) -> SysResult<Vec<u8>> {
        Err(Errno::EFAULT)
    }
}

/// Ranges of a task's memory as the destination ([`crate::io::IoDst`]) or source ([`crate::io::IoSrc`]) of file data.
pub struct UserIo {
    /// The memory.
    pub mm: Arc<Mm>,
    /// What is left: address and length in bytes.
    pub ranges: std::collections::VecDeque<(u64, usize)>,
}

impl UserIo {
    /// One buffer. Lengths beyond `MAX_RW_COUNT` are cut as Linux does; an address range outside the lower half is `EFAULT`.
    pub fn buffer(mm: Arc<Mm>, addr: u64, len: u64) -> SysResult<UserIo> {
        let len = usize::try_from(len.min(0x7fff_f000)).map_err(|_| Errno::EFAULT)?;
        Ok(UserIo { mm, ranges: [(addr, len)].into() })
    }

    /// The buffers of an `iovec` array (`EINVAL` for more than `UIO_MAXIOV` or negative lengths).
    pub fn vector(mm: Arc<Mm>, _iov: u64, _count: u64) -> SysResult<UserIo> {
        Ok(UserIo { mm, ranges: Default::default() })
    }
}
