//! Guest-physical memory: one reserved range of host addresses, leaked for the life of the process.
//!
//! ```text
//! host  base ┌───────────────────────────┬──────────────────────────┐
//!            │ anonymous zone (frames)    │ window zone (host files) │
//! guest GPA_BASE ────────────────────────┴──────────────────────────┘   gpa = hva - base + GPA_BASE
//! ```
//!
//! Frames are private anonymous memory, refcounted (copy-on-write sharing is the caller's business), zeroed when handed
//! out. Windows are MAP_FIXED mappings of host files. Nothing in here is ever handed out as a Rust reference: all access
//! goes through copying routines that survive a missing page.

mod access;
mod apart;
mod frames;
mod free_runs;
pub(crate) mod reservation;
#[cfg(test)]
mod tests;
mod toggles;
mod windows;

use crate::error::{Error, OutOfMemory};
use frames::Frames;
pub(crate) use frames::KEPT_DIRTY;
use free_runs::FreeRuns;
use parking_lot::Mutex;
use reservation::Reservation;
use toggles::Toggles;
use vm_memory::GuestAddress;

/// Bytes in a page, and in a frame.
pub const PAGE_SIZE: u64 = 4096;
/// Guest-physical address of the arena's first byte. Everything below belongs to the machine (stub, page tables).
pub const GPA_BASE: u64 = 16 << 30;

/// A guest-physical address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

/// Number of a page of the anonymous zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frame(pub u32);

/// Consecutive frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrameRange {
    /// First frame.
    pub first: Frame,
    /// Number of frames.
    pub count: u32,
}

/// How an allocation is placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alignment {
    /// Any frames; consecutive.
    Page,
    /// Starts at a multiple of 2 MiB, backed by huge pages where the host has them.
    Huge,
}

/// What guest and sentry may do with a window. Guest entries must never grant more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowAccess {
    /// Reads and execution.
    ReadOnly,
    /// Reads and writes (shared with the file).
    ReadWrite,
}

/// Consecutive pages of the window zone, as returned by [`Arena::window_alloc`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WindowRange {
    /// Address of the first page.
    pub start: Gpa,
    /// Number of pages.
    pub pages: u64,
}

/// Sizes of an arena.
#[derive(Debug, Clone)]
pub struct ArenaConfig {
    /// Bytes of the anonymous zone (address space, not memory). Rounded up to 2 MiB.
    pub anonymous_bytes: u64,
    /// Bytes of the window zone (address space). Rounded up to 2 MiB.
    pub window_bytes: u64,
    /// At most this many frames are in use at once; further allocations give [`OutOfMemory`].
    pub max_frames: u32,
}

impl Default for ArenaConfig {
    /// 64 GiB of anonymous zone, 128 GiB of windows, no limit below the zone.
    fn default() -> Self {
        ArenaConfig { anonymous_bytes: 64 << 30, window_bytes: 128 << 30, max_frames: u32::MAX }
    }
}

/// Guest-physical memory. See the module documentation.
#[derive(Debug)]
pub struct Arena {
    memory: Reservation,
    anonymous_bytes: u64,
    frames: Frames,
    windows: Mutex<FreeRuns>,
    toggles: &'static Toggles,
}

impl From<Gpa> for GuestAddress {
    fn from(gpa: Gpa) -> GuestAddress {
        GuestAddress(gpa.0)
    }
}

impl Arena {
    /// Reserves the range. The arena is never unmapped. Installs the SIGSEGV/SIGBUS handler that makes access fault tolerant.
    ///
    /// # Errors
    /// [`Error::Host`] when the host refuses the address space, [`Error::Invalid`] for a zone of size zero or beyond 2^31 frames.
    pub fn new(config: ArenaConfig) -> Result<&'static Arena, Error> {
        const TWO_BLOCKS: u64 = 4 << 20;
        let too_large = Error::Invalid("the arena's zones are empty or too large");
        let round =
            |bytes: u64| bytes.checked_next_multiple_of(TWO_BLOCKS).filter(|b| *b > 0 && *b <= 1 << 42);
        let (Some(anonymous), Some(window)) = (round(config.anonymous_bytes), round(config.window_bytes))
        else {
            return Err(too_large);
        };
        let total =
            u32::try_from(anonymous / PAGE_SIZE).ok().filter(|frames| *frames < 1 << 31).ok_or(too_large)?;
        crate::fault::install_handler().map_err(|source| Error::Host { what: "handling SIGSEGV", source })?;
        let bytes = usize::try_from(anonymous + window).map_err(|_| Error::Invalid("address space"))?;
        let memory = Reservation::new(bytes, 2 << 20)?;
        let anonymous_len = usize::try_from(anonymous).map_err(|_| Error::Invalid("address space"))?;
        memory.map_anonymous(0, anonymous_len)?;
        let toggles: &'static Toggles = Box::leak(Box::default());
        let arena = Arena {
            memory,
            anonymous_bytes: anonymous,
            frames: Frames::new(memory, toggles, total, config.max_frames)?,
            windows: Mutex::new(Arena::all_windows(window)),
            toggles,
        };
        Ok(Box::leak(Box::new(arena)))
    }

    /// Allocates `count` consecutive zeroed frames, each with reference count 1. More than 512 of them, or `Alignment::Huge`,
    /// come from memory that the host backs with huge pages.
    ///
    /// # Errors
    /// [`OutOfMemory`] when the limit or the zone is exhausted, or `count` is 0.
    pub fn alloc(&self, count: u32, alignment: Alignment) -> Result<FrameRange, OutOfMemory> {
        self.frames.alloc(count, alignment)
    }

    /// Allocates the 512 frames of the block at `gpa` as [`Arena::alloc`] does, if it is one of those that the host backs with huge pages.
    ///
    /// # Errors
    /// [`OutOfMemory`] when it is not, when not all of it is free, or the limit is reached.
    pub fn alloc_block(&self, gpa: Gpa) -> Result<FrameRange, OutOfMemory> {
        self.frame_of(gpa).ok_or(OutOfMemory).and_then(|first| self.frames.alloc_block(first.0))
    }

    /// Lets the host back frames that are in use now, instead of one by one as they are touched. Changes no byte. Best effort.
    pub fn populate(&self, range: FrameRange) {
        let (gpa, pages) = (self.gpa(range.first), u64::from(range.count));
        let bytes = pages * PAGE_SIZE;
        let asked = self
            .offset_of(gpa, bytes)
            .zip(usize::try_from(bytes).ok())
            .is_some_and(|(offset, len)| self.memory.advise(offset, len, libc::MADV_POPULATE_WRITE).is_ok());
        // Kernels before 5.14 do not know that, and a revocation may be in the way. A write that changes nothing does it, too.
        for page in (0..pages).filter(|_| !asked) {
            let _ = self.atomic_compare_exchange_u32(Gpa(gpa.0 + page * PAGE_SIZE), 0, 0);
        }
    }

    /// Revocations on this host use MMU notifiers: they are cheaper for frames whose host entries are not dirty, and must not reach beyond their pages.
    pub(crate) fn keep_host_entries_clean(&self) {
        self.frames.clear_by_kernel();
    }

    /// Adds a reference to each frame of the range, all of which must be in use.
    pub fn retain(&self, range: FrameRange) {
        self.frames.retain(range);
    }

    /// Drops a reference to each frame of the range; a frame without references is free. Any part of what `alloc` returned
    /// may be released on its own. The caller has revoked every guest entry.
    pub fn release(&self, range: FrameRange) {
        self.frames.release(range);
    }

    /// Whether the frame has exactly one reference.
    pub fn is_unique(&self, frame: Frame) -> bool {
        self.frames.is_unique(frame)
    }

    /// The frame's guest-physical address.
    pub fn gpa(&self, frame: Frame) -> Gpa {
        Gpa(GPA_BASE + u64::from(frame.0) * PAGE_SIZE)
    }

    /// The frame that holds a guest-physical address, if it is in the anonymous zone.
    pub fn frame_of(&self, gpa: Gpa) -> Option<Frame> {
        let offset = gpa.0.checked_sub(GPA_BASE).filter(|offset| *offset < self.anonymous_bytes)?;
        u32::try_from(offset / PAGE_SIZE).ok().map(Frame)
    }

    /// Frames in use.
    pub fn frames_in_use(&self) -> u32 {
        self.frames.in_use()
    }

    /// Frames that may be in use at once.
    pub fn frames_max(&self) -> u32 {
        self.frames.max()
    }

    /// Whether the range lies in the arena.
    pub fn contains(&self, gpa: Gpa, len: u64) -> bool {
        self.offset_of(gpa, len).is_some()
    }

    /// First guest-physical address of the half of the anonymous zone that is backed by huge pages.
    pub(crate) fn huge_start(&self) -> Gpa {
        Gpa(GPA_BASE + self.frames.huge_offset())
    }

    /// First guest-physical address of the window zone.
    pub(crate) fn window_start(&self) -> Gpa {
        Gpa(GPA_BASE + self.anonymous_bytes)
    }

    /// First guest-physical address after the arena.
    pub(crate) fn end(&self) -> Gpa {
        Gpa(GPA_BASE + self.memory.len() as u64)
    }

    /// Whether the range lies in the window zone.
    pub(crate) fn in_window_zone(&self, gpa: Gpa, len: u64) -> bool {
        gpa >= self.window_start() && self.contains(gpa, len)
    }

    /// The host range behind the arena.
    pub(crate) fn memory(&self) -> &Reservation {
        &self.memory
    }

    /// Offset of a range in the reservation.
    pub(crate) fn offset_of(&self, gpa: Gpa, len: u64) -> Option<usize> {
        let offset = gpa.0.checked_sub(GPA_BASE)?;
        let end = offset.checked_add(len)?;
        if end > self.memory.len() as u64 {
            return None;
        }
        usize::try_from(offset).ok()
    }
}
