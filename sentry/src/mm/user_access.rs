//! Access of the kernel to user memory, by copying.
//!
//! A page that is not there is faulted in as the CPU would; protections hold. Every byte is read once: what the guest changes
//! afterwards is not seen.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Mm;
use super::extent_map::Ownership;
use super::fault::{FaultOutcome, HUGE, MemoryAccess, Piece, block};
use super::frame_store::PinnedFrames;
use super::vma::{Prot, Vma};
use crate::errno::{Errno, SysResult};
use crate::platform::{Fault, FrameRange, GVA_END, Gpa, PAGE_SIZE, Perms};

const CACHE_LINE: usize = 64;

impl Mm {
    /// Reads exactly `buf.len()` bytes of guest memory; `EFAULT` if any of it is not readable.
    pub fn read_bytes(&self, addr: u64, buf: &mut [u8]) -> SysResult {
        let len = buf.len();
        if self.read_some(addr, buf)? == len { Ok(()) } else { Err(Errno::EFAULT) }
    }

    /// Reads as many bytes as are readable; `EFAULT` if not even the first is.
    pub fn read_some(&self, addr: u64, buf: &mut [u8]) -> SysResult<usize> {
        self.each_piece(addr, buf.len(), MemoryAccess::Read, |gpa, done, len| {
            let part = buf.get_mut(done..done + len).unwrap_or_default();
            self.arena.read(gpa, part)
        })
    }

    /// Writes all of `data`; `EFAULT` if any of the memory is not writable (a part may have been written).
    pub fn write_bytes(&self, addr: u64, data: &[u8]) -> SysResult {
        if self.write_some(addr, data)? == data.len() { Ok(()) } else { Err(Errno::EFAULT) }
    }

    /// Writes as many bytes as are writable; `EFAULT` if not even the first is.
    pub fn write_some(&self, addr: u64, data: &[u8]) -> SysResult<usize> {
        self.each_piece(addr, data.len(), MemoryAccess::Write, |gpa, done, len| {
            self.arena.write(gpa, data.get(done..done + len).unwrap_or_default())
        })
    }

    /// Zeroes as many of `len` bytes as are writable; `EFAULT` if not even the first is.
    pub fn zero_some(&self, addr: u64, len: usize) -> SysResult<usize> {
        self.each_piece(addr, len, MemoryAccess::Write, |gpa, _, len| self.arena.zero(gpa, len))
    }

    /// Writes despite the protection of private memory, as `ptrace` and `/proc/*/mem` do (`FOLL_FORCE`): a read-only private
    /// page gets its own copy. `EFAULT` for shared memory that is not writable.
    pub fn write_forced(&self, addr: u64, data: &[u8]) -> SysResult<usize> {
        let forced = |vma: &Vma| {
            let mut vma = vma.clone();
            let may = vma.is_private() || vma.prot.contains(Prot::WRITE);
            if may {
                vma.prot |= Prot::WRITE;
            }
            vma
        };
        if self.patches.is_active() {
            let state = self.state.write();
            self.unpatch(&state, &(addr..addr.saturating_add(data.len() as u64)))?;
        }
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let at = addr.saturating_add(done as u64);
            let state = self.state.read();
            let Some(real) = state.vmas.find(at) else { break };
            let vma = forced(real);
            let Ok(piece) = self.resolve(&vma, at, MemoryAccess::Write) else { break };
            let len = clamp(piece.len.min(vma.end - at), rest.len());
            let written = self.arena.write(piece.gpa, rest.get(..len).unwrap_or_default());
            if !real.prot.contains(Prot::WRITE) {
                // `resolve` has entered it with the forced right: take that back.
                let start = super::page_down(at) & !(2 * 1024 * 1024 - 1);
                let range = start.max(real.start)..(start + (2 << 20)).min(real.end);
                let perms = real.prot.perms().unwrap_or(Perms::empty());
                self.space.revoke(&[crate::platform::Change::Protect { range, perms }])?;
            }
            match written {
                Ok(()) => done += len,
                Err(_) => break,
            }
        }
        if done == 0 && !data.is_empty() { Err(Errno::EFAULT) } else { Ok(done) }
    }

    /// Copies a plain value in, once.
    pub fn copy_in<T: FromBytes>(&self, addr: u64) -> SysResult<T> {
        const ON_STACK: usize = 256;
        let size = std::mem::size_of::<T>();
        let mut small = [0; ON_STACK];
        let mut large = Vec::new();
        let buf = match small.get_mut(..size) {
            Some(buf) => buf,
            None => {
                large.resize(size, 0);
                &mut large
            }
        };
        self.read_bytes(addr, buf)?;
        T::read_from_bytes(buf).map_err(|_| Errno::EFAULT)
    }

    /// Copies a plain value out.
    pub fn copy_out<T: IntoBytes + Immutable>(&self, addr: u64, value: &T) -> SysResult {
        self.write_bytes(addr, value.as_bytes())
    }

    /// Copies `count` consecutive plain values in. The caller has bounded `count`.
    pub fn copy_in_slice<T: FromBytes + IntoBytes>(&self, addr: u64, count: usize) -> SysResult<Vec<T>> {
        let mut values = Vec::new();
        values.resize_with(count, T::new_zeroed);
        self.read_bytes(addr, values.as_mut_slice().as_mut_bytes())?;
        Ok(values)
    }

    /// Copies consecutive plain values out.
    pub fn copy_out_slice<T: IntoBytes + Immutable>(&self, addr: u64, values: &[T]) -> SysResult {
        self.write_bytes(addr, values.as_bytes())
    }

    /// A NUL-terminated string without its NUL: `ENAMETOOLONG` if there is none within `limit` bytes, `EFAULT`.
    pub fn read_c_string(&self, addr: u64, limit: usize) -> SysResult<Vec<u8>> {
        let mut string = Vec::with_capacity(CACHE_LINE);
        while string.len() < limit {
            let at = addr.checked_add(string.len() as u64).ok_or(Errno::EFAULT)?;
            // Never beyond the page: what follows the NUL need not be mapped.
            let to_page_end = clamp(PAGE_SIZE - at % PAGE_SIZE, limit - string.len());
            let mut ends = false;
            self.with_piece(at, to_page_end, MemoryAccess::Read, |gpa, len| {
                ends = self.append_to_nul(gpa, len, &mut string)?;
                Ok(())
            })?;
            if ends {
                return Ok(string);
            }
        }
        Err(Errno::ENAMETOOLONG)
    }

    /// Appends what is there up to a NUL. Whether there is one within `len` bytes. Reads no line of the cache beyond: the CPU of a guest thread that waits
    /// for the answer would have to get it back, and a name is often between other things that the thread works on.
    fn append_to_nul(&self, gpa: Gpa, len: usize, string: &mut Vec<u8>) -> Result<bool, Fault> {
        let mut done = 0;
        while done < len {
            let at = Gpa(gpa.0 + done as u64);
            let mut line = [0; CACHE_LINE];
            let to_line_end = CACHE_LINE - at.0 as usize % CACHE_LINE;
            let part = line.get_mut(..to_line_end.min(len - done)).unwrap_or_default();
            self.arena.read(at, part).map_err(|_| Fault { done })?;
            if let Some(end) = part.iter().position(|byte| *byte == 0) {
                string.extend_from_slice(part.get(..end).unwrap_or_default());
                return Ok(true);
            }
            string.extend_from_slice(part);
            done += part.len();
        }
        Ok(false)
    }

    /// Atomically loads the word at `addr`. `EFAULT`, also for a misaligned address.
    pub fn load_u32(&self, addr: u64) -> SysResult<u32> {
        self.word(addr, MemoryAccess::Read, |gpa| self.arena.atomic_load_u32(gpa))
    }

    /// Atomically replaces `current` by `new`; returns the word found. `EFAULT`.
    pub fn compare_exchange_u32(&self, addr: u64, current: u32, new: u32) -> SysResult<u32> {
        self.word(addr, MemoryAccess::Write, |gpa| self.arena.atomic_compare_exchange_u32(gpa, current, new))
    }

    /// Atomically applies `update` (perhaps several times) and returns the word before. `EFAULT`.
    pub fn fetch_update_u32(&self, addr: u64, update: impl Fn(u32) -> u32) -> SysResult<u32> {
        self.word(addr, MemoryAccess::Write, |gpa| self.arena.atomic_fetch_update_u32(gpa, &update))
    }

    fn word<T>(
        &self,
        addr: u64,
        access: MemoryAccess,
        act: impl Fn(Gpa) -> Result<T, Fault>,
    ) -> SysResult<T> {
        if !addr.is_multiple_of(4) {
            return Err(Errno::EFAULT);
        }
        let mut value = None;
        self.with_piece(addr, 4, access, |gpa, _| {
            value = Some(act(gpa)?);
            Ok(())
        })?;
        value.ok_or(Errno::EFAULT)
    }

    /// Runs `act(gpa, offset, len)` for each contiguous piece of `[addr, addr + len)`. Returns the bytes done; `EFAULT` if none.
    pub(super) fn each_piece(
        &self,
        addr: u64,
        len: usize,
        access: MemoryAccess,
        mut act: impl FnMut(Gpa, usize, usize) -> Result<(), Fault>,
    ) -> SysResult<usize> {
        let mut done = 0;
        while done < len {
            let at = addr.saturating_add(done as u64);
            match self.with_piece(at, len - done, access, |gpa, len| act(gpa, done, len)) {
                Ok((copied, asked)) => {
                    done += copied;
                    if copied < asked {
                        break;
                    }
                }
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(done)
    }

    /// Finds the memory at `addr` and runs `act(gpa, len)` on as much of it as is contiguous, at most `len` bytes, while it cannot
    /// go away. Returns the bytes done and asked for; `EFAULT` if there is no such memory or the host lost it at the first byte.
    pub(super) fn with_piece(
        &self,
        addr: u64,
        len: usize,
        access: MemoryAccess,
        act: impl FnOnce(Gpa, usize) -> Result<(), Fault>,
    ) -> SysResult<(usize, usize)> {
        loop {
            let state = self.state.read();
            if addr >= GVA_END {
                return Err(Errno::EFAULT);
            }
            if let Some(gpa) = self.entered_for_writing(addr, len) {
                return done(act(gpa, len), len);
            }
            if let Some(vma) = state.vmas.find(addr) {
                return self.with_piece_of(vma, addr, len, access, act);
            }
            drop(state);
            if !self.grow_stack(addr) {
                return Err(Errno::EFAULT);
            }
        }
    }

    /// [`Mm::with_piece`] in a VMA, which the caller keeps as it is.
    fn with_piece_of(
        &self,
        vma: &Vma,
        addr: u64,
        len: usize,
        access: MemoryAccess,
        act: impl FnOnce(Gpa, usize) -> Result<(), Fault>,
    ) -> SysResult<(usize, usize)> {
        let (piece, _pin) = self.find_piece(vma, addr, len, access)?;
        let len = clamp(piece.len.min(vma.end - addr), len);
        done(act(piece.gpa, len), len)
    }

    /// The memory at `addr`, if `len` bytes of it are in one page that guest code may write to now. Nothing else need be looked at then: the entry is no more
    /// generous than the VMA, and the memory, be it private or an object's, stays what it is while the caller holds `state`.
    fn entered_for_writing(&self, addr: u64, len: usize) -> Option<Gpa> {
        let within_page = len as u64 <= PAGE_SIZE - addr % PAGE_SIZE;
        let (gpa, perms) = within_page.then(|| self.space.lookup(addr)).flatten()?;
        perms.contains(Perms::R | Perms::W).then_some(gpa)
    }

    fn find_piece(
        &self,
        vma: &Vma,
        addr: u64,
        len: usize,
        access: MemoryAccess,
    ) -> SysResult<(Piece, Option<PinnedFrames>)> {
        let page = addr / PAGE_SIZE;
        let allowed = match access {
            MemoryAccess::Write => vma.prot.contains(Prot::WRITE),
            _ => !vma.prot.is_empty(),
        };
        if !allowed {
            return Err(Errno::EFAULT);
        }
        if vma.is_private() {
            let pages = self.pages.lock();
            if let Some(run) = pages.around(page, &block(vma, page, HUGE)) {
                let exclusive = run.ownership == Ownership::Exclusive;
                if exclusive || access != MemoryAccess::Write {
                    let piece = self.piece(&run, addr);
                    let pin = (!exclusive).then(|| self.pin(&piece, len)).flatten();
                    return Ok((piece, pin));
                }
            }
        }
        let within_page = len as u64 <= PAGE_SIZE - addr % PAGE_SIZE;
        if within_page && (!vma.is_private() || access != MemoryAccess::Write) {
            let wanted = if access == MemoryAccess::Write { Perms::W } else { Perms::R };
            // Of private memory it is the object's page. One of its own may have come in meanwhile; then the entry is that one's, and as good: it is
            // nobody else's, for sharing it takes the lock that the caller holds.
            if let Some((gpa, perms)) = self.space.lookup(addr)
                && perms.contains(wanted)
            {
                let piece =
                    Piece { gpa, len: PAGE_SIZE - addr % PAGE_SIZE, copy_on_write: false, fresh: None };
                return Ok((piece, None));
            }
        }
        let piece = self.resolve(vma, addr, access).map_err(|outcome| match outcome {
            FaultOutcome::OutOfMemory => Errno::ENOMEM,
            _ => Errno::EFAULT,
        })?;
        if !piece.copy_on_write {
            return Ok((piece, None));
        }
        // Replaced since `resolve` let go of the lock? Then ask again; else pin what is there.
        let pages = self.pages.lock();
        let run = pages.around(page, &block(vma, page, HUGE)).ok_or(Errno::EFAULT)?;
        let piece = self.piece(&run, addr);
        let pin = self.pin(&piece, len);
        Ok((piece, pin))
    }

    /// Pins the frames of a piece; the caller holds the lock under which it was found.
    pub(super) fn pin(&self, piece: &Piece, len: usize) -> Option<PinnedFrames> {
        let first = self.arena.frame_of(piece.gpa)?;
        let bytes = piece.len.min(len as u64) + piece.gpa.0 % PAGE_SIZE;
        let count = u32::try_from(bytes.div_ceil(PAGE_SIZE)).ok()?;
        Some(PinnedFrames::new(self.arena, FrameRange { first, count }))
    }
}

/// Of `len` bytes that were asked for, those done, both; `EFAULT` if the first is not there any more.
fn done(acted: Result<(), Fault>, len: usize) -> SysResult<(usize, usize)> {
    match acted {
        Ok(()) => Ok((len, len)),
        Err(fault) if fault.done > 0 => Ok((fault.done.min(len), len)),
        Err(_) => Err(Errno::EFAULT),
    }
}

fn clamp(available: u64, wanted: usize) -> usize {
    usize::try_from(available).unwrap_or(usize::MAX).min(wanted)
}
