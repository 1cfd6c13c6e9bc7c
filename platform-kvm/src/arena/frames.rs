//! The frame allocator.
//!
//! The anonymous zone has two halves, so that single pages and 2 MiB blocks do not fragment each other:
//!
//! ```text
//! small half: 2 MiB blocks cut up by a buddy allocator (orders 0..=9), no huge host pages
//! huge half:  whole 2 MiB blocks and runs of them, MADV_HUGEPAGE; a block is free again when all its frames are
//! ```
//!
//! Freed frames are dirty. A bounded stack of them is kept and zeroed on reuse (cheaper than a host fault); when it
//! overflows, the older half goes back to the host in one batch, and only then, clean, to the free lists.
//! All tables are lazily touched memory indexed by frame number. One lock guards the lists; reference counts are atomic.

use super::apart::Apart;
use super::free_runs::FreeRuns;
use super::reservation::Reservation;
use super::toggles::Toggles;
use super::{Alignment, Frame, FrameRange, PAGE_SIZE};
use crate::error::{Error, OutOfMemory};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Frames in a 2 MiB block.
pub(super) const BLOCK: u32 = 512;
const MAX_ORDER: usize = 9;
/// Dirty frames kept for reuse (4 MiB).
pub(crate) const KEPT_DIRTY: u32 = 1024;
/// A count from here on is never decremented: the frame leaks instead of being freed under somebody.
const PINNED: u32 = 1 << 31;
/// As many frames as are cleared by the kernel: more cost it more than what that saves.
const BY_KERNEL: u32 = 4;
/// End of a list.
const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Frames {
    memory: Reservation,
    toggles: &'static Toggles,
    /// First frame of the huge half; a multiple of `BLOCK`.
    huge_first: u32,
    max: u32,
    /// Whether few frames are cleared by the kernel; see [`Frames::clear`].
    by_kernel: AtomicBool,
    /// How far the small half's mappings are apart.
    apart: Apart,
    in_use: AtomicU32,
    counts: Table,
    lists: Mutex<Lists>,
}

#[derive(Debug)]
struct Lists {
    /// Free blocks of the small half and of the huge half, by block number relative to the half.
    small_blocks: FreeRuns,
    huge_blocks: FreeRuns,
    /// Heads of the buddy lists per order.
    heads: [u32; MAX_ORDER + 1],
    /// Per frame: next and previous in its list, and order + 1 if it heads a free run, else 0.
    next: Table,
    previous: Table,
    order: Table,
    /// Per block of the huge half: frames that are free and clean.
    huge_free: Table,
    dirty: Vec<FrameRange>,
    dirty_frames: u32,
}

/// A lazily touched array of words.
#[derive(Debug)]
struct Table {
    memory: Reservation,
}

impl Table {
    fn new(len: u32) -> Result<Table, Error> {
        Ok(Table { memory: Reservation::lazy_memory(len as usize * 4)? })
    }

    fn at(&self, index: u32) -> &AtomicU32 {
        let pointer = self.memory.checked(index as usize * 4, 4).unwrap_or_else(|| out_of_table(index));
        // SAFETY: in bounds of zero-initialised, 4-byte aligned memory that lives for ever and is accessed only as atomics.
        unsafe { AtomicU32::from_ptr(pointer.cast()) }
    }

    fn get(&self, index: u32) -> u32 {
        self.at(index).load(Ordering::Relaxed)
    }

    fn set(&self, index: u32, value: u32) {
        self.at(index).store(value, Ordering::Relaxed);
    }
}

/// A frame number that was never handed out: a bug of the caller, not reachable by a guest.
#[cold]
fn out_of_table(index: u32) -> ! {
    panic!("frame {index} does not exist")
}

impl Frames {
    /// `memory` starts with the anonymous zone of `total` frames, a multiple of two blocks.
    pub(super) fn new(
        memory: Reservation,
        toggles: &'static Toggles,
        total: u32,
        max: u32,
    ) -> Result<Frames, Error> {
        let blocks = total / BLOCK;
        let small_blocks = blocks / 2;
        let lists = Lists {
            small_blocks: FreeRuns::new(u64::from(small_blocks)),
            huge_blocks: FreeRuns::new(u64::from(blocks - small_blocks)),
            heads: [NONE; MAX_ORDER + 1],
            next: Table::new(total)?,
            previous: Table::new(total)?,
            order: Table::new(total)?,
            huge_free: Table::new(blocks)?,
            dirty: Vec::new(),
            dirty_frames: 0,
        };
        let huge_first = small_blocks * BLOCK;
        let split = huge_first as usize * PAGE_SIZE as usize;
        let end = total as usize * PAGE_SIZE as usize;
        // Advice only: a host without THP answers EINVAL.
        let _ = memory.advise(0, split, libc::MADV_NOHUGEPAGE);
        let _ = memory.advise(split, end - split, libc::MADV_HUGEPAGE);
        Ok(Frames {
            memory,
            toggles,
            huge_first,
            max: max.min(total),
            by_kernel: AtomicBool::new(false),
            apart: Apart::default(),
            in_use: AtomicU32::new(0),
            counts: Table::new(total)?,
            lists: Mutex::new(lists),
        })
    }

    pub(super) fn in_use(&self) -> u32 {
        self.in_use.load(Ordering::Relaxed)
    }

    pub(super) fn max(&self) -> u32 {
        self.max
    }

    /// Offset of the huge half in bytes.
    pub(super) fn huge_offset(&self) -> u64 {
        u64::from(self.huge_first) * PAGE_SIZE
    }

    pub(super) fn alloc(&self, count: u32, alignment: Alignment) -> Result<FrameRange, OutOfMemory> {
        if count == 0 {
            return Err(OutOfMemory);
        }
        self.hand_out(count, || {
            self.find(count, alignment).or_else(|| {
                self.drain(0);
                self.find(count, alignment)
            })
        })
    }

    /// The block of the huge half that begins with `first`, if all of it is free.
    pub(super) fn alloc_block(&self, first: u32) -> Result<FrameRange, OutOfMemory> {
        let block =
            first.checked_sub(self.huge_first).filter(|offset| offset % BLOCK == 0).ok_or(OutOfMemory)?;
        self.hand_out(BLOCK, || {
            let mut lists = self.lists.lock();
            let dirty = lists.take_dirty_block(first);
            let found = dirty || lists.huge_blocks.take_at(u64::from(block / BLOCK));
            found.then_some((first, dirty))
        })
    }

    /// Counts and clears `count` frames that `find` has taken from the lists: the first of them, and whether they are dirty.
    fn hand_out(
        &self,
        count: u32,
        find: impl FnOnce() -> Option<(u32, bool)>,
    ) -> Result<FrameRange, OutOfMemory> {
        let reserve = |used: u32| used.checked_add(count).filter(|sum| *sum <= self.max);
        self.in_use.fetch_update(Ordering::Relaxed, Ordering::Relaxed, reserve).map_err(|_| OutOfMemory)?;
        let Some((first, is_dirty)) = find() else {
            self.in_use.fetch_sub(count, Ordering::Relaxed);
            return Err(OutOfMemory);
        };
        let range = FrameRange { first: Frame(first), count };
        if is_dirty && !self.clear(range) {
            // Not to be had clean: the frames are lost rather than handed out with somebody's bytes.
            self.in_use.fetch_sub(count, Ordering::Relaxed);
            return Err(OutOfMemory);
        }
        for frame in first..first + count {
            self.counts.at(frame).store(1, Ordering::Release);
        }
        Ok(range)
    }

    /// Frames that nobody uses, and whether they must be cleared.
    fn find(&self, count: u32, alignment: Alignment) -> Option<(u32, bool)> {
        let mut lists = self.lists.lock();
        if let Some(first) = lists.take_dirty(count, alignment, self.huge_first) {
            return Some((first, true));
        }
        // When the small half is full or fragmented, a block of the other half is spent.
        let is_small = alignment == Alignment::Page && count <= BLOCK;
        if let Some(first) = is_small.then(|| lists.take_small(count)).flatten() {
            drop(lists);
            if self.by_kernel.load(Ordering::Relaxed) {
                self.apart.set(&self.memory, first / BLOCK, self.huge_first);
            }
            return Some((first, false));
        }
        let blocks = count.div_ceil(BLOCK);
        let block = u32::try_from(lists.huge_blocks.take(u64::from(blocks), 1)?).ok()?;
        let absolute = self.huge_first / BLOCK + block;
        let first = absolute * BLOCK;
        // The unused tail of the last block counts as free at once.
        let tail = blocks * BLOCK - count;
        lists.huge_free.set(absolute + blocks - 1, tail);
        Some((first, false))
    }

    /// From now on few frames are cleared without making the host's own entries for them dirty.
    pub(super) fn clear_by_kernel(&self) {
        self.by_kernel.store(true, Ordering::Relaxed);
    }

    /// Clears frames that nobody uses; says whether it could.
    ///
    /// Where frames are taken away by `MADV_FREE` (see [`crate::revoke`]) a host entry that is dirty costs an interrupt of every other processor then, 9 µs
    /// for a page. Guest code makes none dirty. So we do not either, if the kernel lets us: it writes through its own mapping of the pages.
    fn clear(&self, range: FrameRange) -> bool {
        let len = range.count as usize * PAGE_SIZE as usize;
        let offset = range.first.0 as usize * PAGE_SIZE as usize;
        let Some(pointer) = self.memory.checked(offset, len) else {
            return false;
        };
        let few = range.count <= BY_KERNEL && self.by_kernel.load(Ordering::Relaxed);
        if few && self.memory.zero_by_kernel(offset, len) {
            return true;
        }
        // SAFETY: the frames are in the arena and belong to nobody yet, `done` of their bytes are done; the handler was
        // installed by `Arena::new`.
        let piece = |done: usize| unsafe { crate::fault::zero(pointer.wrapping_add(done), len - done) };
        self.toggles.in_pieces(len, piece).is_ok()
    }

    pub(super) fn retain(&self, range: FrameRange) {
        for frame in frames(range) {
            let old = self.counts.at(frame).fetch_add(1, Ordering::Relaxed);
            debug_assert_ne!(old, 0, "retain of a free frame");
            if old >= PINNED {
                self.counts.at(frame).store(PINNED, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn is_unique(&self, frame: Frame) -> bool {
        self.counts.at(frame.0).load(Ordering::Acquire) == 1
    }

    pub(super) fn release(&self, range: FrameRange) {
        let mut run = FrameRange { first: range.first, count: 0 };
        for frame in frames(range) {
            if self.drop_reference(frame) {
                if run.count == 0 {
                    run.first = Frame(frame);
                }
                run.count += 1;
            } else if run.count > 0 {
                self.free(run);
                run.count = 0;
            }
        }
        if run.count > 0 {
            self.free(run);
        }
    }

    /// Whether the last reference went.
    fn drop_reference(&self, frame: u32) -> bool {
        let lower = |count: u32| if count == 0 || count >= PINNED { None } else { Some(count - 1) };
        let old = self.counts.at(frame).fetch_update(Ordering::AcqRel, Ordering::Relaxed, lower);
        debug_assert_ne!(old, Err(0), "release of a free frame");
        old == Ok(1)
    }

    fn free(&self, run: FrameRange) {
        self.in_use.fetch_sub(run.count, Ordering::Relaxed);
        let overflow = {
            let mut lists = self.lists.lock();
            lists.dirty.push(run);
            lists.dirty_frames += run.count;
            lists.dirty_frames > KEPT_DIRTY
        };
        if overflow {
            self.drain(KEPT_DIRTY / 2);
        }
    }

    /// Gives dirty frames, oldest first, back to the host until at most `keep` are left.
    fn drain(&self, keep: u32) {
        let mut batch = Vec::new();
        {
            let mut lists = self.lists.lock();
            let mut left = lists.dirty_frames;
            let old = lists.dirty.iter().take_while(|range| {
                let more = left > keep;
                left = left.saturating_sub(range.count);
                more
            });
            let old = old.count();
            batch.extend(lists.dirty.drain(..old));
            lists.dirty_frames -= batch.iter().map(|range| range.count).sum::<u32>();
        }
        batch.sort_unstable_by_key(|range| range.first);
        let merged = merge(&batch);
        let clean = merged.into_iter().filter(|range| self.discard(*range)).collect::<Vec<_>>();
        let mut lists = self.lists.lock();
        for range in clean {
            lists.give_clean(range, self.huge_first);
        }
    }

    /// Makes frames zero and costless. Frames for which it says no are lost.
    fn discard(&self, range: FrameRange) -> bool {
        let offset = range.first.0 as usize * PAGE_SIZE as usize;
        let len = range.count as usize * PAGE_SIZE as usize;
        // Locked memory, for one, cannot be discarded.
        self.memory.advise(offset, len, libc::MADV_DONTNEED).is_ok() || self.clear(range)
    }
}

fn frames(range: FrameRange) -> std::ops::Range<u32> {
    range.first.0..range.first.0.saturating_add(range.count)
}

/// Joins neighbours of a sorted list.
fn merge(sorted: &[FrameRange]) -> Vec<FrameRange> {
    let mut merged: Vec<FrameRange> = Vec::new();
    for range in sorted {
        match merged.last_mut() {
            Some(last) if last.first.0 + last.count == range.first.0 => last.count += range.count,
            _ => merged.push(*range),
        }
    }
    merged
}

impl Lists {
    /// Reuses the newest freed frames when they fit: any run for small pages, whole blocks for huge ones.
    fn take_dirty(&mut self, count: u32, alignment: Alignment, huge_first: u32) -> Option<u32> {
        let small = alignment == Alignment::Page && count <= BLOCK;
        let fits = |range: &FrameRange| {
            let in_huge = range.first.0 >= huge_first;
            range.count >= count
                && in_huge != small
                && (small || (range.first.0.is_multiple_of(BLOCK) && count.is_multiple_of(BLOCK)))
        };
        let at = self.dirty.iter().rev().take(8).position(fits)?;
        let at = self.dirty.len() - 1 - at;
        let range = self.dirty.get_mut(at)?;
        let first = if small { range.first.0 + range.count - count } else { range.first.0 };
        if !small {
            range.first.0 += count;
        }
        range.count -= count;
        if range.count == 0 {
            self.dirty.remove(at);
        }
        self.dirty_frames -= count;
        Some(first)
    }

    /// Takes the block at `first` out of the freed frames, if one range of them has all of it.
    fn take_dirty_block(&mut self, first: u32) -> bool {
        let end = first.saturating_add(BLOCK);
        let has_it = |range: &FrameRange| range.first.0 <= first && range.first.0 + range.count >= end;
        let Some(at) = self.dirty.iter().position(has_it) else { return false };
        let Some(range) = self.dirty.get_mut(at) else { return false };
        let after = FrameRange { first: Frame(end), count: range.first.0 + range.count - end };
        range.count = first - range.first.0;
        match (range.count, after.count) {
            (0, 0) => drop(self.dirty.remove(at)),
            (0, _) => *range = after,
            (_, 0) => {}
            _ => self.dirty.insert(at + 1, after),
        }
        self.dirty_frames -= BLOCK;
        true
    }

    /// `count` clean frames from the buddy lists; the rest of the power of two goes back.
    fn take_small(&mut self, count: u32) -> Option<u32> {
        let order = count.next_power_of_two().trailing_zeros() as usize;
        let first = self.take_order(order)?;
        let end = first + (1 << order);
        self.give_small(first + count, end);
        Some(first)
    }

    fn take_order(&mut self, order: usize) -> Option<u32> {
        let found = (order..=MAX_ORDER).find(|&o| self.heads.get(o).is_some_and(|head| *head != NONE));
        let (mut at, first) = match found {
            Some(o) => {
                let first = self.heads[o];
                self.unlink(first, o);
                (o, first)
            }
            None => (MAX_ORDER, u32::try_from(self.small_blocks.take(1, 1)?).ok()? * BLOCK),
        };
        while at > order {
            at -= 1;
            self.link(first + (1 << at), at);
        }
        Some(first)
    }

    /// Returns clean frames `start..end` of the small half to the buddy lists, in aligned powers of two.
    fn give_small(&mut self, mut start: u32, end: u32) {
        while start < end {
            let by_alignment = (start % BLOCK).trailing_zeros().min(MAX_ORDER as u32);
            let by_length = (end - start).ilog2().min(MAX_ORDER as u32);
            let order = by_alignment.min(by_length) as usize;
            self.give_order(start, order);
            start += 1 << order;
        }
    }

    fn give_order(&mut self, mut first: u32, mut order: usize) {
        while order < MAX_ORDER {
            let buddy = first ^ (1 << order);
            if self.order.get(buddy) != order as u32 + 1 {
                self.link(first, order);
                return;
            }
            self.unlink(buddy, order);
            first = first.min(buddy);
            order += 1;
        }
        self.small_blocks.give(u64::from(first / BLOCK), 1);
    }

    fn give_clean(&mut self, range: FrameRange, huge_first: u32) {
        let end = range.first.0 + range.count;
        if range.first.0 < huge_first {
            self.give_small(range.first.0, end.min(huge_first));
        }
        let mut start = range.first.0.max(huge_first);
        while start < end {
            let block = start / BLOCK;
            let stop = end.min((block + 1) * BLOCK);
            let free = self.huge_free.get(block) + (stop - start);
            if free == BLOCK {
                self.huge_free.set(block, 0);
                self.huge_blocks.give(u64::from(block - huge_first / BLOCK), 1);
            } else {
                self.huge_free.set(block, free);
            }
            start = stop;
        }
    }

    fn link(&mut self, first: u32, order: usize) {
        let head = self.heads[order];
        self.next.set(first, head);
        self.previous.set(first, NONE);
        if head != NONE {
            self.previous.set(head, first);
        }
        self.heads[order] = first;
        self.order.set(first, order as u32 + 1);
    }

    fn unlink(&mut self, first: u32, order: usize) {
        let (next, previous) = (self.next.get(first), self.previous.get(first));
        if previous == NONE {
            self.heads[order] = next;
        } else {
            self.next.set(previous, next);
        }
        if next != NONE {
            self.previous.set(next, previous);
        }
        self.order.set(first, 0);
    }
}
