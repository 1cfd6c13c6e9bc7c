//! Ranges of host address space that live as long as the process.

use crate::error::Error;
use std::ptr::NonNull;

/// Address space reserved once and never given back; what is mapped in it changes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reservation {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the value is an address and a length; who may access the memory behind it is decided where it is accessed.
unsafe impl Send for Reservation {}
// SAFETY: as above; there is no interior state.
unsafe impl Sync for Reservation {}

impl Reservation {
    /// Reserves `len` bytes (a multiple of the page size) without access, starting at a multiple of `align`.
    pub(crate) fn new(len: usize, align: usize) -> Result<Reservation, Error> {
        let padded = len.checked_add(align).ok_or(Error::Invalid("the arena is too large"))?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no existing memory.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), padded, libc::PROT_NONE, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(Error::host("reserving address space"));
        }
        let start = address.cast::<u8>();
        let skip = start.align_offset(align).min(align);
        // SAFETY: skip < align, so the pointer stays within the mapping of len + align bytes.
        let base = unsafe { start.add(skip) };
        let base = NonNull::new(base).ok_or(Error::Invalid("null mapping"))?;
        Ok(Reservation { base, len })
    }

    /// Reserves zeroed memory that costs nothing until it is touched.
    pub(crate) fn lazy_memory(len: usize) -> Result<Reservation, Error> {
        let reservation = Reservation::new(len.next_multiple_of(4096), 4096)?;
        reservation.map_anonymous(0, reservation.len)?;
        Ok(reservation)
    }

    /// Makes a part private anonymous memory, readable and writable.
    pub(crate) fn map_anonymous(&self, offset: usize, len: usize) -> Result<(), Error> {
        self.protect(offset, len, libc::PROT_READ | libc::PROT_WRITE)
            .map_err(|_| Error::host("mapping guest memory"))
    }

    /// `mprotect` of a part.
    pub(crate) fn protect(&self, offset: usize, len: usize, protection: i32) -> std::io::Result<()> {
        let address = self.checked(offset, len).ok_or(std::io::ErrorKind::InvalidInput)?;
        // SAFETY: the range lies in this reservation, which only ever holds memory that is accessed through raw pointers.
        if unsafe { libc::mprotect(address.cast(), len, protection) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(())
    }

    /// `madvise` of a part.
    pub(crate) fn advise(&self, offset: usize, len: usize, advice: i32) -> std::io::Result<()> {
        let address = self.checked(offset, len).ok_or(std::io::ErrorKind::InvalidInput)?;
        // SAFETY: as in `protect`; advice that discards content is given by the owner of that part only.
        if unsafe { libc::madvise(address.cast(), len, advice) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(())
    }

    /// `mmap` with MAP_FIXED over a part.
    pub(crate) fn map_over(
        &self,
        offset: usize,
        len: usize,
        protection: i32,
        flags: i32,
        fd: i32,
        file_offset: i64,
    ) -> std::io::Result<()> {
        let address = self.checked(offset, len).ok_or(std::io::ErrorKind::InvalidInput)?;
        // SAFETY: MAP_FIXED replaces only this reservation's own pages, which no Rust reference ever covers.
        let mapped =
            unsafe { libc::mmap(address.cast(), len, protection, flags | libc::MAP_FIXED, fd, file_offset) };
        if mapped == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        Ok(())
    }

    /// Zeroes some pages through the kernel's own mapping of them, so that this process's entries for them stay as they are. Whether it has:
    /// kernels and filters may refuse, and pages may be write-protected; then some of it may be zero.
    pub(crate) fn zero_by_kernel(&self, offset: usize, len: usize) -> bool {
        static ZEROES: [u8; 4096] = [0; 4096];
        const MOST: usize = 16;
        let pages = len / ZEROES.len();
        let Some(address) =
            self.checked(offset, len).filter(|_| len.is_multiple_of(ZEROES.len()) && pages <= MOST)
        else {
            return false;
        };
        let from = libc::iovec { iov_base: ZEROES.as_ptr().cast_mut().cast(), iov_len: ZEROES.len() };
        let from = [from; MOST];
        let to = libc::iovec { iov_base: address.cast(), iov_len: len };
        // SAFETY: no preconditions.
        let own = unsafe { libc::getpid() };
        // SAFETY: the kernel only reads `ZEROES`, `pages` times, and writes to this process's memory inside this reservation, which only ever holds
        // memory that is accessed through raw pointers; whose it is has been decided by the caller.
        let done = unsafe {
            libc::process_vm_writev(own, from.as_ptr(), pages as libc::c_ulong, &raw const to, 1, 0)
        };
        usize::try_from(done) == Ok(len)
    }

    /// Pointer to a range, if it is inside.
    pub(crate) fn checked(&self, offset: usize, len: usize) -> Option<*mut u8> {
        let end = offset.checked_add(len)?;
        // wrapping_add keeps the provenance and cannot overflow here: offset <= len of the mapping.
        (end <= self.len).then(|| self.base.as_ptr().wrapping_add(offset))
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// First address.
    pub(crate) fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }
}
