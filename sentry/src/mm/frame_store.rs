//! Contents of a memory object: a sparse store of refcounted frames.
//!
//! Shared anonymous memory and tmpfs files keep their pages in a [`FrameStore`]. Holes read as zeroes and get frames when
//! they are written or mapped. All frames go back to the arena when the store is dropped.
//!
//! **Taking pages away** (truncation, hole punching) has three steps, so that no address space keeps a translation to a
//! freed frame: [`FrameStore::take`] the pages, [`super::MappingSet::invalidate`] the range, drop what was taken.
//!
//! Locks: the store's lock is held for table work only, never while data is copied: frames are pinned for that. So a
//! copy may fault on the very object it copies from.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::extent_map::{ExtentMap, Ownership, Run};
use super::mappable::Backing;
use crate::errno::{Errno, SysResult};
use crate::io::{IoDst, IoSrc};
use crate::platform::{Alignment, Arena, FrameRange, Gpa, PAGE_SIZE};

/// Largest run allocated at once: one huge page.
const MAX_RUN: u64 = 512;

/// A number of pages that several stores draw on (a tmpfs mount's `size=`).
#[derive(Debug)]
pub struct PageBudget {
    limit: AtomicU64,
    used: AtomicU64,
}

impl PageBudget {
    /// `limit` pages; `u64::MAX` for no limit.
    pub fn new(limit: u64) -> Arc<PageBudget> {
        Arc::new(PageBudget { limit: AtomicU64::new(limit), used: AtomicU64::new(0) })
    }

    /// Pages in use.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// The limit in pages.
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Changes the limit (remount). Pages beyond it stay.
    pub fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Takes up to `pages`; `ENOSPC` if not even one is left.
    fn charge(&self, pages: u64) -> SysResult<u64> {
        let limit = self.limit();
        let mut granted = 0;
        let update = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            granted = pages.min(limit.saturating_sub(used));
            (granted > 0).then(|| used + granted)
        });
        update.map(|_| granted).map_err(|_| Errno::ENOSPC)
    }

    fn uncharge(&self, pages: u64) {
        self.used.fetch_sub(pages, Ordering::Relaxed);
    }
}

/// Frames that left a store; freed when dropped. Invalidate the object's mappings first.
#[must_use = "dropping frees the frames: invalidate the mappings first"]
pub struct TakenFrames {
    arena: &'static Arena,
    runs: Vec<Run>,
    budget: Option<Arc<PageBudget>>,
}

impl Drop for TakenFrames {
    fn drop(&mut self) {
        for run in &self.runs {
            self.arena.release(run.frames());
            if let Some(budget) = &self.budget {
                budget.uncharge(u64::from(run.count));
            }
        }
    }
}

/// Frames that stay allocated while this lives.
pub(super) struct PinnedFrames {
    arena: &'static Arena,
    frames: FrameRange,
}

impl PinnedFrames {
    /// Pins frames that are in use now (the caller holds the lock that says so).
    pub fn new(arena: &'static Arena, frames: FrameRange) -> PinnedFrames {
        arena.retain(frames);
        PinnedFrames { arena, frames }
    }
}

impl Drop for PinnedFrames {
    fn drop(&mut self) {
        self.arena.release(self.frames);
    }
}

/// See the module's documentation.
pub struct FrameStore {
    arena: &'static Arena,
    budget: Option<Arc<PageBudget>>,
    pages: Mutex<ExtentMap>,
}

impl FrameStore {
    /// An empty store that draws on `budget`, if given.
    pub fn new(arena: &'static Arena, budget: Option<Arc<PageBudget>>) -> FrameStore {
        FrameStore { arena, budget, pages: Mutex::default() }
    }

    /// Allocated pages.
    pub fn pages(&self) -> u64 {
        self.pages.lock().pages()
    }

    /// Memory for the page-aligned `offset`: one contiguous piece of at most `len` bytes, allocated if there is a hole.
    /// What [`super::Mappable::translate`] of the object returns after checking its size. `ENOMEM`, or `ENOSPC` when the budget
    /// is used up.
    pub fn translate(&self, offset: u64, len: u64) -> SysResult<Backing> {
        let page = offset / PAGE_SIZE;
        // A file with a budget gets the pages that are touched, no more: users see its blocks.
        let wanted = if self.budget.is_some() { 1 } else { len.div_ceil(PAGE_SIZE).max(1) };
        let run = self.present_or_new(&mut self.pages.lock(), page, wanted)?;
        let pages = u64::from(run.count).min(len.div_ceil(PAGE_SIZE).max(1));
        Ok(Backing { gpa: self.arena.gpa(run.first), len: pages * PAGE_SIZE, writable: true })
    }

    /// Makes sure that `[offset, offset + len)` has frames (`fallocate`).
    pub fn allocate(&self, offset: u64, len: u64) -> SysResult {
        let mut page = offset / PAGE_SIZE;
        let end = offset.saturating_add(len).div_ceil(PAGE_SIZE);
        while page < end {
            page += u64::from(self.present_or_new(&mut self.pages.lock(), page, end - page)?.count);
        }
        Ok(())
    }

    /// Reads `len` bytes from `offset` on; holes give zeroes. The caller has cut `len` at the end of the file. Returns fewer
    /// bytes when the destination faults half way.
    pub fn read(&self, dst: &mut dyn IoDst, offset: u64, len: usize) -> SysResult<usize> {
        copy_pieces(offset, len.min(dst.remaining()), |at, left| {
            let (piece, len) = self.piece(at, left);
            match piece {
                Some((_pin, gpa)) => dst.put_from_arena(gpa, len),
                None => dst.put_zeros(len),
            }
            .map(|done| (done, len))
        })
    }

    /// Writes up to `len` bytes at `offset`, allocating. Returns fewer bytes when the source faults or memory or budget
    /// run out half way.
    pub fn write(&self, src: &mut dyn IoSrc, offset: u64, len: usize) -> SysResult<usize> {
        copy_pieces(offset, len.min(src.remaining()), |at, left| {
            let (pin, gpa, len) = self.piece_for_writing(at, left)?;
            let done = src.take_to_arena(gpa, len)?;
            drop(pin);
            Ok((done, len))
        })
    }

    /// Zeroes the allocated part of `[offset, offset + len)` in place (the rest of the last page at truncation).
    pub fn zero(&self, offset: u64, len: u64) {
        let mut at = offset;
        let end = offset.saturating_add(len);
        while at < end {
            let left = usize::try_from(end - at).unwrap_or(usize::MAX);
            let (piece, len) = self.piece(at, left);
            if let Some((_pin, gpa)) = piece {
                // Frames are always backed, so this cannot fault.
                let _ = self.arena.zero(gpa, len);
            }
            at += len as u64;
        }
    }

    /// Takes the pages `range` (page numbers) out; they are holes from now on. See the module's documentation.
    pub fn take(&self, range: Range<u64>) -> TakenFrames {
        let runs = self.pages.lock().remove(range);
        TakenFrames { arena: self.arena, runs, budget: self.budget.clone() }
    }

    /// The first byte at or after `offset` that is in an allocated page (`SEEK_DATA`).
    pub fn next_data(&self, offset: u64) -> Option<u64> {
        let page = self.pages.lock().next_present(offset / PAGE_SIZE)?;
        Some(offset.max(page * PAGE_SIZE))
    }

    /// The first byte at or after `offset` that is in a hole (`SEEK_HOLE`).
    pub fn next_hole(&self, offset: u64) -> u64 {
        let pages = self.pages.lock();
        let mut page = offset / PAGE_SIZE;
        while let Some(run) = pages.at(page) {
            page = run.end();
        }
        offset.max(page * PAGE_SIZE)
    }

    /// The piece of one run (pinned) or one hole at `at`, and its length.
    fn piece(&self, at: u64, left: usize) -> (Option<(PinnedFrames, Gpa)>, usize) {
        let pages = self.pages.lock();
        let (page, within) = (at / PAGE_SIZE, at % PAGE_SIZE);
        let limit = |end: u64| {
            let bytes = end.saturating_mul(PAGE_SIZE).saturating_sub(at);
            usize::try_from(bytes).unwrap_or(usize::MAX).min(left)
        };
        match pages.at(page) {
            Some(run) => {
                let len = limit(run.end());
                let pin = self.pin(&run, within, len);
                (Some((pin, Gpa(self.arena.gpa(run.first).0 + within))), len)
            }
            None => (None, limit(pages.next_present(page).unwrap_or(u64::MAX))),
        }
    }

    fn piece_for_writing(&self, at: u64, left: usize) -> SysResult<(PinnedFrames, Gpa, usize)> {
        let mut pages = self.pages.lock();
        let within = at % PAGE_SIZE;
        let wanted = (within + left as u64).div_ceil(PAGE_SIZE);
        let run = self.present_or_new(&mut pages, at / PAGE_SIZE, wanted)?;
        let bytes = u64::from(run.count) * PAGE_SIZE - within;
        let len = usize::try_from(bytes).unwrap_or(usize::MAX).min(left);
        Ok((self.pin(&run, within, len), Gpa(self.arena.gpa(run.first).0 + within), len))
    }

    fn pin(&self, run: &Run, within: u64, len: usize) -> PinnedFrames {
        let pages = (within + len as u64).div_ceil(PAGE_SIZE);
        let count = u32::try_from(pages).unwrap_or(run.count).min(run.count);
        PinnedFrames::new(self.arena, FrameRange { first: run.first, count })
    }

    /// The run at `page`; a hole is filled with up to `wanted` pages first.
    fn present_or_new(&self, pages: &mut ExtentMap, page: u64, wanted: u64) -> SysResult<Run> {
        if let Some(run) = pages.at(page) {
            return Ok(run);
        }
        let room = pages.next_present(page).map_or(u64::MAX, |next| next - page);
        let wanted = wanted.clamp(1, MAX_RUN).min(room);
        let granted = match &self.budget {
            Some(budget) => budget.charge(wanted)?,
            None => wanted,
        };
        let frames = allocate_run(self.arena, page, u32::try_from(granted).unwrap_or(1));
        let got = frames.as_ref().map_or(0, |frames| u64::from(frames.count));
        if let Some(budget) = &self.budget {
            budget.uncharge(granted - got);
        }
        let frames = frames?;
        let run = Run { page, first: frames.first, count: frames.count, ownership: Ownership::Exclusive };
        pages.insert(run);
        Ok(run)
    }
}

/// Up to `count` consecutive frames; huge-aligned ones for a whole aligned huge page; a single one when memory is short.
pub(super) fn allocate_run(arena: &Arena, page: u64, count: u32) -> SysResult<FrameRange> {
    let huge = u64::from(count) == MAX_RUN && page.is_multiple_of(MAX_RUN);
    let alignment = if huge { Alignment::Huge } else { Alignment::Page };
    let first = arena.alloc(count, alignment);
    first.or_else(|_| arena.alloc(1, Alignment::Page)).map_err(|_| Errno::ENOMEM)
}

/// Copies piece by piece until `len` bytes are done or a piece comes out short; an error counts only before the first byte.
fn copy_pieces(
    offset: u64,
    len: usize,
    mut copy: impl FnMut(u64, usize) -> SysResult<(usize, usize)>,
) -> SysResult<usize> {
    let mut done = 0;
    while done < len {
        match copy(offset.saturating_add(done as u64), len - done) {
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

impl Drop for FrameStore {
    fn drop(&mut self) {
        let everything = self.take(0..u64::MAX);
        drop(everything);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{KernelDst, KernelSrc};
    use crate::platform::fake;

    fn write(store: &FrameStore, offset: u64, data: &[u8]) -> SysResult<usize> {
        store.write(&mut KernelSrc::new(data), offset, data.len())
    }

    fn read(store: &FrameStore, offset: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0xaa; len];
        assert_eq!(store.read(&mut KernelDst::new(&mut buf), offset, len), Ok(len));
        buf
    }

    #[test]
    fn holes_read_as_zeroes_and_data_stays() {
        let store = FrameStore::new(fake::shared_arena(), None);
        assert_eq!(write(&store, 5000, b"hello"), Ok(5));
        assert_eq!(write(&store, 12287, &[1, 2]), Ok(2));
        assert_eq!(read(&store, 4998, 8), b"\0\0hello\0");
        assert_eq!(read(&store, 12286, 4), [0, 1, 2, 0]);
        assert_eq!(store.pages(), 3);
        assert_eq!(store.next_data(0), Some(4096));
        assert_eq!(store.next_hole(4096), 4 * 4096);
        store.zero(5001, 3);
        assert_eq!(read(&store, 4999, 7), b"\0h\0\0\0o\0");
    }

    #[test]
    fn budget_limits_and_is_given_back() {
        let budget = PageBudget::new(2);
        let store = FrameStore::new(fake::shared_arena(), Some(budget.clone()));
        assert_eq!(write(&store, 0, &[7; 3 * 4096]), Ok(2 * 4096));
        assert_eq!(write(&store, 2 * 4096, &[7]), Err(Errno::ENOSPC));
        drop(store.take(0..1));
        assert_eq!(budget.used(), 1);
        drop(store);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn every_frame_goes_back() {
        let arena = fake::new_arena(600);
        let store = FrameStore::new(arena, None);
        store.allocate(0, 2 << 20).unwrap();
        assert_eq!(arena.frames_in_use(), 512);
        let taken = store.take(100..200);
        assert_eq!(arena.frames_in_use(), 512);
        drop(taken);
        assert_eq!(arena.frames_in_use(), 412);
        assert_eq!(store.allocate(4 << 20, 4 << 20), Err(Errno::ENOMEM));
        drop(store);
        assert_eq!(arena.frames_in_use(), 0);
    }
}
