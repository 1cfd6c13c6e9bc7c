//! Reading and writing guest memory from the host. Any byte may change at any time under our hands, and any page may be
//! missing: so bytes are copied exactly once, by routines that return instead of crashing.

use super::{Arena, Gpa};
use crate::error::Fault;
use crate::fault;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Segments passed to the host in one call; the rest is a short transfer, as Linux's IOV_MAX allows.
const MAX_SEGMENTS: usize = 64;

const NOTHING: Fault = Fault { done: 0 };

impl Arena {
    /// Copies guest memory out.
    ///
    /// # Errors
    /// [`Fault`] with the number of bytes copied.
    pub fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        let from = self.pointer(gpa, buf.len()).ok_or(NOTHING)?;
        // SAFETY: `from` covers arena memory of this length, `buf` is ours; the handler was installed by `Arena::new`.
        let left = unsafe { fault::copy(buf.as_mut_ptr(), from, buf.len()) };
        transferred(buf.len(), left)
    }

    /// Copies into guest memory.
    ///
    /// # Errors
    /// [`Fault`] with the number of bytes copied.
    pub fn write(&self, gpa: Gpa, buf: &[u8]) -> Result<(), Fault> {
        let to = self.pointer(gpa, buf.len()).ok_or(NOTHING)?;
        self.toggles.in_pieces(buf.len(), |done| {
            let rest = buf.get(done..).unwrap_or_default();
            // SAFETY: as in `read`, in the other direction; `done` bytes into a range of this length.
            unsafe { fault::copy(to.wrapping_add(done), rest.as_ptr(), rest.len()) }
        })
    }

    /// Fills guest memory with zeroes.
    ///
    /// # Errors
    /// [`Fault`] with the number of bytes cleared.
    pub fn zero(&self, gpa: Gpa, len: usize) -> Result<(), Fault> {
        let to = self.pointer(gpa, len).ok_or(NOTHING)?;
        // SAFETY: `to` covers arena memory of this length, of which `done` bytes are done; the handler was installed by `Arena::new`.
        self.toggles.in_pieces(len, |done| unsafe { fault::zero(to.wrapping_add(done), len - done) })
    }

    /// Copies between two places of guest memory that do not overlap.
    ///
    /// # Errors
    /// [`Fault`] with the number of bytes copied.
    pub fn copy(&self, from: Gpa, to: Gpa, len: usize) -> Result<(), Fault> {
        let from = self.pointer(from, len).ok_or(NOTHING)?;
        let to = self.pointer(to, len).ok_or(NOTHING)?;
        self.toggles.in_pieces(len, |done| {
            let (to, from) = (to.wrapping_add(done), from.wrapping_add(done));
            // SAFETY: both ranges are arena memory of this length, of which `done` bytes are done; should they overlap, the
            // bytes are merely not what was meant.
            unsafe { fault::copy(to, from, len - done) }
        })
    }

    /// Atomically loads the word at a 4-byte aligned address.
    ///
    /// # Errors
    /// [`Fault`] when the address is misaligned, outside or not backed.
    pub fn atomic_load_u32(&self, gpa: Gpa) -> Result<u32, Fault> {
        let word = self.word(gpa)?;
        // SAFETY: `word` is an aligned word of the arena.
        unsafe { fault::load32(word) }.ok_or(NOTHING)
    }

    /// Atomically replaces `current` by `new`; returns the word found, which equals `current` when it was replaced.
    ///
    /// # Errors
    /// As [`Arena::atomic_load_u32`].
    pub fn atomic_compare_exchange_u32(&self, gpa: Gpa, current: u32, new: u32) -> Result<u32, Fault> {
        let word = self.word(gpa)?;
        // SAFETY: `word` is an aligned word of the arena.
        let exchange = || unsafe { fault::compare_exchange32(word, current, new) }.ok_or(NOTHING);
        self.toggles.despite(exchange, |_| true)
    }

    /// Atomically applies `update` to the word and returns what was there before. `update` may be called several times.
    /// Another writer can delay this only by making progress itself; after 2^16 lost races it is reported as a fault, so that a
    /// hostile guest cannot hold the caller for ever.
    ///
    /// # Errors
    /// As [`Arena::atomic_load_u32`].
    pub fn atomic_fetch_update_u32(&self, gpa: Gpa, update: impl Fn(u32) -> u32) -> Result<u32, Fault> {
        let mut current = self.atomic_load_u32(gpa)?;
        for _ in 0..1 << 16 {
            let found = self.atomic_compare_exchange_u32(gpa, current, update(current))?;
            if found == current {
                return Ok(found);
            }
            current = found;
        }
        Err(NOTHING)
    }

    /// Reads from a host file straight into guest memory; `None` uses and moves the file's own position. May be short after
    /// 64 segments.
    ///
    /// # Errors
    /// What the host says; EFAULT for segments outside of the arena or without backing.
    pub fn pread(
        &self,
        fd: BorrowedFd<'_>,
        segments: &[(Gpa, usize)],
        offset: Option<u64>,
    ) -> io::Result<usize> {
        let (list, count) = self.io_vectors(segments)?;
        let position = position(offset)?;
        let fd = fd.as_raw_fd();
        let transfer = || {
            let done = match position {
                // SAFETY: every vector lies in the arena, where the host may write anything; missing pages give EFAULT.
                Some(at) => unsafe { libc::preadv(fd, list.as_ptr(), count, at) },
                // SAFETY: as above.
                None => unsafe { libc::readv(fd, list.as_ptr(), count) },
            };
            usize::try_from(done).map_err(|_| io::Error::last_os_error())
        };
        self.toggles.despite(transfer, |error| error.raw_os_error() == Some(libc::EFAULT))
    }

    /// Writes to a host file straight from guest memory; `None` uses and moves the file's own position. May be short after
    /// 64 segments.
    ///
    /// # Errors
    /// As [`Arena::pread`].
    pub fn pwrite(
        &self,
        fd: BorrowedFd<'_>,
        segments: &[(Gpa, usize)],
        offset: Option<u64>,
    ) -> io::Result<usize> {
        let (list, count) = self.io_vectors(segments)?;
        let position = position(offset)?;
        let fd = fd.as_raw_fd();
        let done = match position {
            // SAFETY: every vector lies in the arena, which the host only reads here; missing pages give EFAULT.
            Some(at) => unsafe { libc::pwritev(fd, list.as_ptr(), count, at) },
            // SAFETY: as above.
            None => unsafe { libc::writev(fd, list.as_ptr(), count) },
        };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    fn io_vectors(&self, segments: &[(Gpa, usize)]) -> io::Result<([libc::iovec; MAX_SEGMENTS], i32)> {
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut list = [empty; MAX_SEGMENTS];
        let mut count = 0;
        for (slot, &(gpa, len)) in list.iter_mut().zip(segments) {
            let Some(pointer) = self.pointer(gpa, len) else {
                if count == 0 {
                    return Err(io::Error::from_raw_os_error(libc::EFAULT));
                }
                break; // a short transfer; the next call reports the fault
            };
            *slot = libc::iovec { iov_base: pointer.cast(), iov_len: len };
            count += 1;
        }
        Ok((list, count))
    }

    fn pointer(&self, gpa: Gpa, len: usize) -> Option<*mut u8> {
        let offset = self.offset_of(gpa, u64::try_from(len).ok()?)?;
        self.memory.checked(offset, len)
    }

    fn word(&self, gpa: Gpa) -> Result<*mut u32, Fault> {
        if !gpa.0.is_multiple_of(4) {
            return Err(NOTHING);
        }
        Ok(self.pointer(gpa, 4).ok_or(NOTHING)?.cast())
    }
}

fn transferred(len: usize, left: usize) -> Result<(), Fault> {
    if left == 0 { Ok(()) } else { Err(Fault { done: len - left.min(len) }) }
}

fn position(offset: Option<u64>) -> io::Result<Option<i64>> {
    offset.map(i64::try_from).transpose().map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}
