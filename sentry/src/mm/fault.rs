//! Page faults.
//!
//! [`Mm::resolve`] is the one way to a page: it finds the VMA's right, the page behind the address (allocating or copying it),
//! and enters it into the guest's tables together with its neighbours, because an entry costs nanoseconds and a fault tens
//! of microseconds. Faults and user accesses both go through it.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::extent_map::{ExtentMap, Ownership, Run};
use super::mappable::Backing;
use super::vma::{Prot, Source, Vma, VmaFlags};
use super::vma_map::STACK_GUARD_GAP;
use super::{Mm, Remains, page_down, page_numbers};
use crate::errno::Errno;
use crate::platform::{GVA_END, Gpa, PAGE_SIZE, Perms};

/// Pages of an object that a read fault maps around the address.
const READ_AROUND: u64 = 128;
/// Pages of a shared object that a write fault maps.
const WRITE_AROUND: u64 = 16;
/// Pieces of an object that are looked at to read around an address.
const MAX_PIECES: u32 = 4;
/// Pages of a 2 MiB entry.
pub(super) const HUGE: u64 = 512;

/// What is done to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryAccess {
    /// A read.
    Read,
    /// A write.
    Write,
    /// An instruction fetch.
    Execute,
}

impl MemoryAccess {
    /// From the flags of an exit.
    pub fn from_exit(write: bool, exec: bool) -> MemoryAccess {
        match (write, exec) {
            (true, _) => MemoryAccess::Write,
            (false, true) => MemoryAccess::Execute,
            (false, false) => MemoryAccess::Read,
        }
    }

    fn wanted(self) -> Perms {
        match self {
            MemoryAccess::Read => Perms::R,
            MemoryAccess::Write => Perms::W,
            MemoryAccess::Execute => Perms::X,
        }
    }

    fn allowed_by(self, prot: Prot) -> bool {
        match self {
            MemoryAccess::Read => !prot.is_empty(),
            MemoryAccess::Write => prot.contains(Prot::WRITE),
            MemoryAccess::Execute => prot.contains(Prot::EXEC),
        }
    }
}

/// How a page fault ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultOutcome {
    /// Run the instruction again.
    Resolved,
    /// `SIGSEGV` with `SEGV_MAPERR`.
    NotMapped,
    /// `SIGSEGV` with `SEGV_ACCERR`.
    Denied,
    /// `SIGBUS` with `BUS_ADRERR`: past the end of a mapped file, or the host cannot read it.
    Bus,
    /// The sandbox is out of memory: Linux would kill the process (`SIGKILL`).
    OutOfMemory,
}

/// Memory found behind an address.
pub(super) struct Piece {
    /// Of the address itself.
    pub gpa: Gpa,
    /// Contiguous bytes from there on that may be accessed the same way.
    pub len: u64,
    /// Whether the frame may be freed under the read lock (see the locking rules of [`super`]).
    pub copy_on_write: bool,
    /// A run that was allocated just now, in the course of walking through memory.
    pub fresh: Option<Run>,
}

impl Mm {
    /// Resolves a fault of guest code, also a spurious one. Call without any lock of this address space.
    pub fn fault(&self, addr: u64, access: MemoryAccess) -> FaultOutcome {
        if addr >= GVA_END {
            return FaultOutcome::NotMapped;
        }
        if self.space.lookup(addr).is_some_and(|(_, perms)| perms.contains(access.wanted())) {
            return FaultOutcome::Resolved;
        }
        self.minor_faults.fetch_add(1, Ordering::Relaxed);
        let found = loop {
            let state = self.state.read();
            if let Some(vma) = state.vmas.find(addr) {
                break self.resolve(vma, addr, access);
            }
            drop(state);
            if !self.grow_stack(addr) {
                return FaultOutcome::NotMapped;
            }
        };
        match found {
            // Pages that wait are pages: the access is tried again.
            Err(FaultOutcome::OutOfMemory) if self.settle() => FaultOutcome::Resolved,
            Err(outcome) => outcome,
            Ok(piece) => {
                if let Some(habitat) = self.habitat.get() {
                    habitat.note(addr / PAGE_SIZE, access);
                }
                if let Some(run) = &piece.fresh {
                    self.back(run);
                }
                self.probe(addr, &piece)
            }
        }
    }

    /// The guest met memory that the host cannot back ([`crate::platform::Exit::HostFault`]): takes it out of the tables, so that
    /// the access faults with its address. [`FaultOutcome::Bus`] if there is nothing to take out.
    pub fn host_fault(&self) -> FaultOutcome {
        match self.space.revoke_unbacked() {
            Ok(0) => FaultOutcome::Bus,
            Ok(_) => FaultOutcome::Resolved,
            Err(_) => FaultOutcome::OutOfMemory,
        }
    }

    /// Lets the host read a window's page in now, without any lock: a page it cannot read is a bus error, and would be a
    /// host fault for ever.
    fn probe(&self, addr: u64, piece: &Piece) -> FaultOutcome {
        let window = self.arena.frame_of(piece.gpa).is_none();
        if window && self.arena.read(piece.gpa, &mut [0]).is_err() {
            let page = page_down(addr)..page_down(addr) + PAGE_SIZE;
            let _ = self.space.revoke(&[crate::platform::Change::Unmap(page)]);
            return FaultOutcome::Bus;
        }
        FaultOutcome::Resolved
    }

    /// Extends the stack above `addr` down to it. `false` if there is none or it may not grow that far.
    pub(super) fn grow_stack(&self, addr: u64) -> bool {
        let limits = self.limits();
        let mut state = self.state.write();
        let start = page_down(addr);
        let Some(vma) = state.vmas.find_from(addr) else { return false };
        if vma.start <= addr {
            return true; // somebody else was faster
        }
        if !vma.flags.contains(VmaFlags::GROWSDOWN) || vma.prot.is_empty() || start < super::MMAP_MIN_ADDR {
            return false;
        }
        let grown = vma.start - start;
        let crowded = state.vmas.before(start + PAGE_SIZE).is_some_and(|below| {
            !below.flags.contains(VmaFlags::GROWSDOWN)
                && !below.prot.is_empty()
                && start.saturating_sub(below.end) < STACK_GUARD_GAP
        });
        let too_large =
            vma.end - start > limits.stack || state.vmas.bytes().saturating_add(grown) > limits.address_space;
        if crowded || too_large {
            return false;
        }
        let range = vma.start..vma.end;
        let mut remains = Remains::new(self.arena);
        if self.make_room(&state, &(start..range.start), &mut remains).is_err() {
            return false;
        }
        for mut vma in state.vmas.remove(range) {
            vma.start = start;
            state.vmas.insert(vma);
        }
        self.note_size(&state);
        true
    }

    /// Makes the page at `addr` accessible and finds it. The caller holds `state` and found `vma` in it.
    pub(super) fn resolve(&self, vma: &Vma, addr: u64, access: MemoryAccess) -> Result<Piece, FaultOutcome> {
        let perms = vma.prot.perms().filter(|_| access.allowed_by(vma.prot)).ok_or(FaultOutcome::Denied)?;
        let page = addr / PAGE_SIZE;
        if !vma.is_private() {
            return self.map_shared(vma, addr, perms, access);
        }
        let mut pages = self.pages.lock();
        if let Some(run) = pages.around(page, &block(vma, page, HUGE)) {
            return self.private_present(vma, &mut pages, run, addr, access);
        }
        match &vma.source {
            Source::Anonymous => self.private_new(vma, &mut pages, addr, perms),
            Source::Object { .. } => {
                drop(pages);
                match access {
                    MemoryAccess::Write => self.copy_from_object(vma, addr, perms),
                    _ => self.map_private_object(vma, addr, perms, access),
                }
            }
        }
    }

    /// The page is there: enters its run, making it writable first if need be.
    pub(super) fn private_present(
        &self,
        vma: &Vma,
        pages: &mut ExtentMap,
        run: Run,
        addr: u64,
        access: MemoryAccess,
    ) -> Result<Piece, FaultOutcome> {
        let perms = vma.prot.perms().ok_or(FaultOutcome::Denied)?;
        let run = match (run.ownership, access) {
            (Ownership::Exclusive, _) => self.enter(run, perms)?,
            (Ownership::CopyOnWrite, MemoryAccess::Write) => {
                self.break_sharing(vma, pages, run, addr / PAGE_SIZE)?
            }
            (Ownership::CopyOnWrite, _) => self.enter(run, perms - Perms::W)?,
        };
        Ok(self.piece(&run, addr))
    }

    /// Maps a run of private pages.
    pub(super) fn enter(&self, run: Run, perms: Perms) -> Result<Run, FaultOutcome> {
        let len = u64::from(run.count) * PAGE_SIZE;
        self.space
            .map(run.page * PAGE_SIZE, self.arena.gpa(run.first), len, perms)
            .map(|()| run)
            .map_err(|_| FaultOutcome::OutOfMemory)
    }

    pub(super) fn piece(&self, run: &Run, addr: u64) -> Piece {
        let page = addr / PAGE_SIZE;
        Piece {
            gpa: Gpa(self.arena.gpa(run.frame(page)).0 + addr % PAGE_SIZE),
            len: run.end() * PAGE_SIZE - addr,
            copy_on_write: run.ownership == Ownership::CopyOnWrite,
            fresh: None,
        }
    }

    /// A read of an object through a private mapping: enters its own pages, read-only, where there are no copies.
    fn map_private_object(
        &self,
        vma: &Vma,
        addr: u64,
        perms: Perms,
        access: MemoryAccess,
    ) -> Result<Piece, FaultOutcome> {
        let page = addr / PAGE_SIZE;
        if let Some(footprint) = self.footprint.get() {
            footprint.note_read(page);
        }
        let around = block(vma, page, READ_AROUND);
        let (start, backing) = self.translate_around(vma, page, around, false)?;
        let mut pages = self.pages.lock();
        if let Some(run) = pages.around(page, &block(vma, page, HUGE)) {
            return self.private_present(vma, &mut pages, run, addr, access);
        }
        let end = start + backing.len / PAGE_SIZE;
        let mut at = start;
        let mut piece = None;
        while at < end {
            if let Some(run) = pages.at(at) {
                at = run.end();
                continue;
            }
            let hole_end = pages.next_present(at).unwrap_or(u64::MAX).min(end);
            let gpa = Gpa(backing.gpa.0 + (at - start) * PAGE_SIZE);
            self.space
                .map(at * PAGE_SIZE, gpa, (hole_end - at) * PAGE_SIZE, perms - Perms::W)
                .map_err(|_| FaultOutcome::OutOfMemory)?;
            if (at..hole_end).contains(&page) {
                let len = hole_end * PAGE_SIZE - addr;
                piece = Some(Piece {
                    gpa: Gpa(gpa.0 + (addr - at * PAGE_SIZE)),
                    len,
                    copy_on_write: false,
                    fresh: None,
                });
            }
            at = hole_end;
        }
        piece.ok_or(FaultOutcome::Bus)
    }

    /// An access to a shared mapping.
    fn map_shared(
        &self,
        vma: &Vma,
        addr: u64,
        perms: Perms,
        access: MemoryAccess,
    ) -> Result<Piece, FaultOutcome> {
        let page = addr / PAGE_SIZE;
        let around = match access {
            _ if vma.flags.contains(VmaFlags::HUGEPAGE) => HUGE,
            MemoryAccess::Write => WRITE_AROUND,
            _ => READ_AROUND,
        };
        let write = access == MemoryAccess::Write;
        let (start, backing) = self.translate_around(vma, page, block(vma, page, around), write)?;
        if write && !backing.writable {
            return Err(FaultOutcome::Bus);
        }
        let perms = if backing.writable { perms } else { perms - Perms::W };
        self.space
            .map(start * PAGE_SIZE, backing.gpa, backing.len, perms)
            .map_err(|_| FaultOutcome::OutOfMemory)?;
        let within = addr - start * PAGE_SIZE;
        Ok(Piece {
            gpa: Gpa(backing.gpa.0 + within),
            len: backing.len - within,
            copy_on_write: false,
            fresh: None,
        })
    }

    /// Asks the object for the pages of `window` around `page`, or from it on where it has no such piece. Returns the first page and its
    /// memory, which includes `page` and stays inside the window.
    pub(super) fn translate_around(
        &self,
        vma: &Vma,
        page: u64,
        window: Range<u64>,
        write: bool,
    ) -> Result<(u64, Backing), FaultOutcome> {
        let ask = |start: u64| {
            let (mapping, offset) = vma.object_at(start * PAGE_SIZE).ok_or(Errno::EFAULT)?;
            let len = (window.end - start) * PAGE_SIZE;
            let mut backing = mapping.object.translate(offset, len, write)?;
            backing.len = (backing.len & !(PAGE_SIZE - 1)).min(len);
            Ok(backing)
        };
        // Only read-around may look behind: a write must not allocate what nobody has touched.
        let mut start = window.start;
        for _ in 0..MAX_PIECES {
            if write || start >= page {
                break;
            }
            let Some(backing) = ask(start).ok().filter(|backing| backing.len > 0) else { break };
            let end = start + backing.len / PAGE_SIZE;
            if end > page {
                return Ok((start, backing));
            }
            start = end;
        }
        let backing = ask(page).map_err(outcome)?;
        if backing.len == 0 { Err(FaultOutcome::Bus) } else { Ok((page, backing)) }
    }
}

/// What an object's refusal means to the guest.
fn outcome(errno: Errno) -> FaultOutcome {
    match errno {
        Errno::ENOMEM => FaultOutcome::OutOfMemory,
        _ => FaultOutcome::Bus,
    }
}

pub(super) fn clamp_u32(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// The pages of the VMA in the aligned block of `size` pages around `page`.
pub(super) fn block(vma: &Vma, page: u64, size: u64) -> Range<u64> {
    let start = page - page % size;
    let inside = page_numbers(&(vma.start..vma.end));
    start.max(inside.start)..(start + size).min(inside.end)
}
