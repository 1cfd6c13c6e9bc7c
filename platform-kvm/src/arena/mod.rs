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

use crate::error::{Error, Fault, OutOfMemory};
use std::io;
use std::os::fd::BorrowedFd;

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
    _private: (),
}

impl Arena {
    /// Reserves the range. The arena is never unmapped.
    ///
    /// # Errors
    /// [`Error::Host`] when the host refuses the address space, [`Error::Invalid`] for a zone of size zero.
    pub fn new(_config: ArenaConfig) -> Result<&'static Arena, Error> {
        todo!()
    }

    /// Allocates `count` consecutive zeroed frames, each with reference count 1.
    ///
    /// # Errors
    /// [`OutOfMemory`] when the limit or the zone is exhausted, or `count` is 0.
    pub fn alloc(&self, _count: u32, _alignment: Alignment) -> Result<FrameRange, OutOfMemory> {
        todo!()
    }

    /// Adds a reference to each frame of the range, all of which must be in use.
    pub fn retain(&self, _range: FrameRange) {
        todo!()
    }

    /// Drops a reference to each frame of the range; a frame without references is free. The caller has revoked every guest entry.
    pub fn release(&self, _range: FrameRange) {
        todo!()
    }

    /// Whether the frame has exactly one reference.
    pub fn is_unique(&self, _frame: Frame) -> bool {
        todo!()
    }

    /// The frame's guest-physical address.
    pub fn gpa(&self, frame: Frame) -> Gpa {
        Gpa(GPA_BASE + u64::from(frame.0) * PAGE_SIZE)
    }

    /// The frame that holds a guest-physical address, if it is in the anonymous zone.
    pub fn frame_of(&self, _gpa: Gpa) -> Option<Frame> {
        todo!()
    }

    /// Frames in use.
    pub fn frames_in_use(&self) -> u32 {
        todo!()
    }

    /// Reserves `pages` consecutive pages of the window zone; nothing is mapped yet. Ranges of 512 pages and more start at a multiple of 2 MiB.
    ///
    /// # Errors
    /// [`OutOfMemory`] when the zone has no such hole.
    pub fn window_alloc(&self, _pages: u64) -> Result<WindowRange, OutOfMemory> {
        todo!()
    }

    /// Maps `range` (all or part of an allocated one) onto `fd` from the page-aligned `file_offset`, MAP_SHARED.
    ///
    /// # Errors
    /// What `mmap` says (EACCES for a descriptor that is not open for it, ENODEV, …); EINVAL for a misplaced range.
    pub fn window_map(
        &self,
        _range: WindowRange,
        _fd: BorrowedFd<'_>,
        _file_offset: u64,
        _access: WindowAccess,
    ) -> io::Result<()> {
        todo!()
    }

    /// Takes the mapping away; accesses fault from now on. Guest entries must have been revoked, or the guest exits with `HostFault`.
    ///
    /// # Errors
    /// What `mmap` says.
    pub fn window_unmap(&self, _range: WindowRange) -> io::Result<()> {
        todo!()
    }

    /// Unmaps what is mapped and returns the pages to the zone. `range` is exactly what `window_alloc` returned.
    pub fn window_free(&self, _range: WindowRange) {
        todo!()
    }

    /// Copies guest memory out.
    ///
    /// # Errors
    /// [`Fault`] with the number of bytes copied.
    pub fn read(&self, _gpa: Gpa, _buf: &mut [u8]) -> Result<(), Fault> {
        todo!()
    }

    /// Copies into guest memory.
    ///
    /// # Errors
    /// [`Fault`] with the number of bytes copied.
    pub fn write(&self, _gpa: Gpa, _buf: &[u8]) -> Result<(), Fault> {
        todo!()
    }

    /// Fills guest memory with zeroes.
    ///
    /// # Errors
    /// [`Fault`] with the number of bytes cleared.
    pub fn zero(&self, _gpa: Gpa, _len: usize) -> Result<(), Fault> {
        todo!()
    }

    /// Copies between two places of guest memory that do not overlap.
    ///
    /// # Errors
    /// [`Fault`] with the number of bytes copied.
    pub fn copy(&self, _from: Gpa, _to: Gpa, _len: usize) -> Result<(), Fault> {
        todo!()
    }

    /// Atomically loads the word at a 4-byte aligned address.
    ///
    /// # Errors
    /// [`Fault`] when the address is misaligned, outside or not backed.
    pub fn atomic_load_u32(&self, _gpa: Gpa) -> Result<u32, Fault> {
        todo!()
    }

    /// Atomically replaces `current` by `new`; returns the word found, which equals `current` when it was replaced.
    ///
    /// # Errors
    /// As [`Arena::atomic_load_u32`].
    pub fn atomic_compare_exchange_u32(&self, _gpa: Gpa, _current: u32, _new: u32) -> Result<u32, Fault> {
        todo!()
    }

    /// Atomically applies `update` to the word and returns what was there before.
    ///
    /// # Errors
    /// As [`Arena::atomic_load_u32`].
    pub fn atomic_fetch_update_u32(&self, _gpa: Gpa, _update: impl Fn(u32) -> u32) -> Result<u32, Fault> {
        todo!()
    }

    /// Reads from a host file straight into guest memory; `None` uses and moves the file's own position.
    ///
    /// # Errors
    /// What the host says; EFAULT for segments outside of the arena or without backing.
    pub fn pread(
        &self,
        _fd: BorrowedFd<'_>,
        _segments: &[(Gpa, usize)],
        _offset: Option<u64>,
    ) -> io::Result<usize> {
        todo!()
    }

    /// Writes to a host file straight from guest memory; `None` uses and moves the file's own position.
    ///
    /// # Errors
    /// As [`Arena::pread`].
    pub fn pwrite(
        &self,
        _fd: BorrowedFd<'_>,
        _segments: &[(Gpa, usize)],
        _offset: Option<u64>,
    ) -> io::Result<usize> {
        todo!()
    }
}
