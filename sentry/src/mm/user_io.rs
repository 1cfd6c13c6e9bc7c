//! User memory as source or destination of file data.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use super::Mm;
use super::fault::MemoryAccess;
use super::frame_store::PinnedFrames;
use crate::errno::{Errno, SysResult};
use crate::io::{IoDst, IoSrc};
use crate::platform::{Fault, FrameRange, GVA_END, Gpa, PAGE_SIZE};

/// Most bytes that one call moves (`MAX_RW_COUNT`).
pub const MAX_RW_COUNT: usize = 0x7fff_f000;
/// Most buffers of a call (`UIO_MAXIOV`).
pub const MAX_BUFFERS: u64 = 1024;
/// Segments handed to the host at once.
const HOST_SEGMENTS: usize = 64;
/// Bytes that go through the sentry's own memory at once, where the host may not touch guest memory itself.
const BOUNCE: usize = 64 << 10;

/// Ranges of a task's memory as the destination ([`crate::io::IoDst`]) or source ([`crate::io::IoSrc`]) of file data.
pub struct UserIo<'a> {
    mm: &'a Mm,
    /// What is left of the first range: address and length in bytes. The usual call has no other.
    first: (u64, usize),
    /// What comes then.
    rest: VecDeque<(u64, usize)>,
}

impl<'a> UserIo<'a> {
    /// One buffer. Lengths beyond [`MAX_RW_COUNT`] are cut as Linux does; an address range outside the lower half is `EFAULT`.
    pub fn buffer(mm: &'a Mm, addr: u64, len: u64) -> SysResult<UserIo<'a>> {
        check_range(addr, len)?;
        let len = usize::try_from(len).map_or(MAX_RW_COUNT, |len| len.min(MAX_RW_COUNT));
        Ok(UserIo { mm, first: (addr, len), rest: VecDeque::new() })
    }

    /// The same ranges of other memory, which are checked when they are used.
    pub fn of_other(self, mm: &Mm) -> UserIo<'_> {
        UserIo { mm, first: self.first, rest: self.rest }
    }

    fn ranges(&self) -> impl Iterator<Item = &(u64, usize)> {
        std::iter::once(&self.first).chain(&self.rest)
    }

    /// Bytes left.
    pub fn left(&self) -> usize {
        // At most MAX_RW_COUNT, by construction.
        self.rest.iter().fold(self.first.1, |sum, (_, len)| sum.saturating_add(*len))
    }

    /// The buffers of an `iovec` array. `EINVAL` for more than [`MAX_BUFFERS`] or negative lengths, `EFAULT`.
    pub fn vector(mm: &'a Mm, iov: u64, count: u64) -> SysResult<UserIo<'a>> {
        if count > MAX_BUFFERS {
            return Err(Errno::EINVAL);
        }
        let raw: Vec<[u64; 2]> = mm.copy_in_slice(iov, usize::try_from(count).unwrap_or(0))?;
        if raw.iter().any(|[_, len]| i64::try_from(*len).is_err()) {
            return Err(Errno::EINVAL);
        }
        let mut left = MAX_RW_COUNT;
        let mut rest = VecDeque::with_capacity(raw.len());
        for [addr, len] in raw {
            check_range(addr, len)?;
            let len = usize::try_from(len).map_or(left, |len| len.min(left));
            left -= len;
            rest.push_back((addr, len));
        }
        let first = rest.pop_front().unwrap_or((0, 0));
        Ok(UserIo { mm, first, rest })
    }

    /// The next range that is not empty, at most `len` bytes of it.
    fn next(&mut self, len: usize) -> Option<(u64, usize)> {
        loop {
            let (addr, left) = self.first;
            if left > 0 {
                return Some((addr, left.min(len)));
            }
            self.first = self.rest.pop_front()?;
        }
    }

    /// Goes `len` bytes on.
    pub fn advance(&mut self, mut len: usize) {
        while len > 0 {
            let (addr, left) = &mut self.first;
            let step = len.min(*left);
            *addr = addr.saturating_add(step as u64);
            *left -= step;
            len -= step;
            if *left == 0 {
                let Some(next) = self.rest.pop_front() else { return };
                self.first = next;
            }
        }
    }

    /// Moves up to `len` bytes, range by range, with `act(mm, addr, offset, len)`.
    fn each(
        &mut self,
        len: usize,
        mut act: impl FnMut(&Mm, u64, usize, usize) -> SysResult<usize>,
    ) -> SysResult<usize> {
        let mut done = 0;
        while done < len {
            let Some((addr, part)) = self.next(len - done) else { break };
            match act(self.mm, addr, done, part) {
                Ok(moved) => {
                    self.advance(moved);
                    done += moved;
                    if moved < part {
                        break;
                    }
                }
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(done)
    }

    /// Pins the next memory of the ranges for the host, at most `len` bytes and [`HOST_SEGMENTS`] pieces.
    /// `None` if the next memory is a window onto a host file, which cannot be pinned.
    fn pin_segments(&self, len: usize, access: MemoryAccess) -> SysResult<Option<Segments>> {
        let mut segments = Segments::default();
        for (start, left) in self.ranges() {
            let mut at = 0;
            while at < *left && segments.bytes < len && segments.list.len() < HOST_SEGMENTS {
                let addr = start.saturating_add(at as u64);
                let wanted = (left - at).min(len - segments.bytes);
                let mut window = false;
                let found = self.mm.with_piece(addr, wanted, access, |gpa, len| {
                    window = !segments.add(self.mm, gpa, len);
                    Ok::<(), Fault>(())
                });
                match found {
                    Ok((len, _)) if !window => at += len,
                    Ok(_) if segments.bytes == 0 => return Ok(None),
                    Err(errno) if segments.bytes == 0 => return Err(errno),
                    _ => return Ok(Some(segments)),
                }
            }
            if segments.bytes >= len || segments.list.len() >= HOST_SEGMENTS {
                break;
            }
        }
        Ok(Some(segments))
    }

    /// One host call's worth of `read_from_host`.
    fn read_once(
        &mut self,
        fd: BorrowedFd<'_>,
        offset: Option<u64>,
        len: usize,
    ) -> SysResult<(usize, usize)> {
        let mm = self.mm;
        let gate = mm.io_gate.read();
        if let Some(segments) = self.pin_segments(len, MemoryAccess::Write)? {
            let read = mm.arena.pread(fd, &segments.list, offset)?;
            drop(segments);
            self.advance(read);
            return Ok((read, len.min(read + 1)));
        }
        drop(gate);
        let mut buf = vec![0; len.min(BOUNCE)];
        let read = crate::io::KernelDst::new(&mut buf).read_from_host(fd, offset, len.min(BOUNCE))?;
        let put = self.put(buf.get(..read).unwrap_or_default())?;
        Ok((put, len.min(BOUNCE)))
    }

    fn write_once(&mut self, fd: BorrowedFd<'_>, offset: Option<u64>, len: usize) -> SysResult<usize> {
        if let Some(segments) = self.pin_segments(len, MemoryAccess::Read)? {
            let written = self.mm.arena.pwrite(fd, &segments.list, offset)?;
            drop(segments);
            self.advance(written);
            return Ok(written);
        }
        let (addr, len) = self.next(len.min(BOUNCE)).ok_or(Errno::EFAULT)?;
        let mut buf = vec![0; len];
        let got = self.mm.read_some(addr, &mut buf)?;
        let data = buf.get(..got).unwrap_or_default();
        let written = crate::io::KernelSrc::new(data).write_to_host(fd, offset, got)?;
        self.advance(written);
        Ok(written)
    }
}

#[derive(Default)]
struct Segments {
    list: Vec<(Gpa, usize)>,
    pins: Vec<PinnedFrames>,
    bytes: usize,
}

impl Segments {
    /// Adds a piece and pins its frames; `false` for memory without frames.
    fn add(&mut self, mm: &Mm, gpa: Gpa, len: usize) -> bool {
        let Some(first) = mm.arena.frame_of(gpa) else { return false };
        let pages = (gpa.0 % PAGE_SIZE + len as u64).div_ceil(PAGE_SIZE);
        let Ok(count) = u32::try_from(pages) else { return false };
        self.pins.push(PinnedFrames::new(mm.arena, FrameRange { first, count }));
        self.list.push((gpa, len));
        self.bytes += len;
        true
    }
}

fn check_range(addr: u64, len: u64) -> SysResult {
    let end = addr.checked_add(len).ok_or(Errno::EFAULT)?;
    if end > GVA_END { Err(Errno::EFAULT) } else { Ok(()) }
}

impl IoDst for UserIo<'_> {
    fn remaining(&self) -> usize {
        self.left()
    }

    fn put(&mut self, data: &[u8]) -> SysResult<usize> {
        self.each(data.len(), |mm, addr, done, len| {
            mm.write_some(addr, data.get(done..done + len).unwrap_or_default())
        })
    }

    fn put_zeros(&mut self, len: usize) -> SysResult<usize> {
        self.each(len, |mm, addr, _, len| mm.zero_some(addr, len))
    }

    fn read_from_host(&mut self, fd: BorrowedFd<'_>, offset: Option<u64>, len: usize) -> SysResult<usize> {
        let len = len.min(self.left());
        let mut done = 0;
        while done < len {
            let at = offset.map(|offset| offset.saturating_add(done as u64));
            match self.read_once(fd, at, len - done) {
                Ok((read, _)) => {
                    done += read;
                    // A stream may have nothing more and block; a file says so with 0.
                    if read == 0 || offset.is_none() {
                        break;
                    }
                }
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(done)
    }

    fn put_from_arena(&mut self, gpa: Gpa, len: usize) -> SysResult<usize> {
        self.each(len, |mm, addr, done, len| {
            mm.each_piece(addr, len, MemoryAccess::Write, |to, inner, len| {
                mm.arena.copy(Gpa(gpa.0.saturating_add((done + inner) as u64)), to, len)
            })
        })
    }
}

impl IoSrc for UserIo<'_> {
    fn remaining(&self) -> usize {
        self.left()
    }

    fn take(&mut self, buf: &mut [u8]) -> SysResult<usize> {
        self.each(buf.len(), |mm, addr, done, len| {
            mm.read_some(addr, buf.get_mut(done..done + len).unwrap_or_default())
        })
    }

    fn write_to_host(&mut self, fd: BorrowedFd<'_>, offset: Option<u64>, len: usize) -> SysResult<usize> {
        let len = len.min(self.left());
        let mut done = 0;
        while done < len {
            let at = offset.map(|offset| offset.saturating_add(done as u64));
            match self.write_once(fd, at, len - done) {
                Ok(written) => {
                    done += written;
                    if written == 0 || offset.is_none() {
                        break;
                    }
                }
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(done)
    }

    fn take_to_arena(&mut self, gpa: Gpa, len: usize) -> SysResult<usize> {
        self.each(len, |mm, addr, done, len| {
            mm.each_piece(addr, len, MemoryAccess::Read, |from, inner, len| {
                mm.arena.copy(from, Gpa(gpa.0.saturating_add((done + inner) as u64)), len)
            })
        })
    }
}
