//! The first write to a private mapping of an object.
//!
//! The page is copied, and of a program's or library's data a few more: a program that starts relocates and initialises much of its data, in
//! whatever order, and a fault costs as much as fifty pages. How many is a bet on what was copied around there before.

use std::ops::Range;

use super::Mm;
use super::extent_map::{ExtentMap, Ownership, Run};
use super::fault::{FaultOutcome, HUGE, MemoryAccess, Piece, block, clamp_u32};
use super::frame_store::allocate_run;
use super::vma::{Vma, VmaFlags};
use crate::platform::{Gpa, PAGE_SIZE, Perms};

/// Pages copied at once when a page that is shared copy-on-write is written, alone and in a sequence.
const COPY_ALONE: u64 = 4;
const COPY_SEQUENTIAL: u64 = 16;
/// Pages of a program's data that are copied at once, at least and at most.
const IMAGE_ALONE: u64 = 8;
const IMAGE_MOST: u64 = 64;
/// A block in which this part of the pages has been copied will be wanted whole.
const DENSE: u64 = 4;

impl Mm {
    /// First write to a private mapping of an object.
    pub(super) fn copy_from_object(&self, vma: &Vma, addr: u64, perms: Perms) -> Result<Piece, FaultOutcome> {
        let page = addr / PAGE_SIZE;
        // A page that the process has not written shows the object's later changes; only images have none.
        if vma.flags.contains(VmaFlags::IMAGE) {
            let window = {
                let pages = self.pages.lock();
                hole(&pages, page, &image_window(vma, &pages, page))
            };
            if window.contains(&page)
                && let Some(piece) = self.copy_window_of_object(vma, addr, window, perms)?
            {
                return Ok(piece);
            }
        }
        self.copy_window_of_object(vma, addr, page..page + 1, perms)?.ok_or(FaultOutcome::Bus)
    }

    /// Copies the pages of `window`, as far as the object has them in a piece; `None` if the host could not read the page of `addr`.
    fn copy_window_of_object(
        &self,
        vma: &Vma,
        addr: u64,
        window: Range<u64>,
        perms: Perms,
    ) -> Result<Option<Piece>, FaultOutcome> {
        let page = addr / PAGE_SIZE;
        let (mut start, from) = self.translate_around(vma, page, window, false)?;
        let mut from_gpa = from.gpa;
        let count = clamp_u32(from.len / PAGE_SIZE);
        let frames = allocate_run(self.arena, 1, count).map_err(|_| FaultOutcome::OutOfMemory)?;
        if frames.count < count {
            from_gpa = Gpa(from_gpa.0 + (page - start) * PAGE_SIZE);
            start = page;
        }
        let run =
            Run { page: start, first: frames.first, count: frames.count, ownership: Ownership::Exclusive };
        let copied = self.copy_pages(from_gpa, &run);
        let mut pages = self.pages.lock();
        if let Some(present) = pages.around(page, &block(vma, page, HUGE)) {
            self.arena.release(run.frames());
            return self.private_present(vma, &mut pages, present, addr, MemoryAccess::Write).map(Some);
        }
        // Keep what was copied whole, as far as nobody else has made pages meanwhile.
        let kept = hole(&pages, page, &(start..start + u64::from(copied)));
        let Some(kept) = run.clip(&kept).filter(|kept| (kept.page..kept.end()).contains(&page)) else {
            self.arena.release(run.frames());
            return Ok(None);
        };
        for rest in [run.page..kept.page, kept.end()..run.end()] {
            if let Some(rest) = run.clip(&rest) {
                self.arena.release(rest.frames());
            }
        }
        pages.insert(kept);
        self.note_rss(&pages);
        self.enter(kept, perms)?;
        Ok(Some(self.piece(&kept, addr)))
    }

    /// Copies into the frames of `to`; returns how many whole pages came over (the host may have lost the rest).
    pub(super) fn copy_pages(&self, from: Gpa, to: &Run) -> u32 {
        let len = u64::from(to.count) * PAGE_SIZE;
        let len = usize::try_from(len).unwrap_or(0);
        match self.arena.copy(from, self.arena.gpa(to.first), len) {
            Ok(()) => to.count,
            Err(fault) => clamp_u32(fault.done as u64 / PAGE_SIZE),
        }
    }

    /// Pages to copy around `page`, which is shared copy-on-write: few when it is alone, more behind a page that is exclusive already.
    pub(super) fn copy_window(&self, vma: &Vma, pages: &ExtentMap, page: u64) -> Range<u64> {
        let before = page.checked_sub(1).and_then(|before| pages.at(before));
        let sequential = before.is_some_and(|run| run.ownership == Ownership::Exclusive);
        block(vma, page, if sequential { COPY_SEQUENTIAL } else { COPY_ALONE })
    }
}

/// The part of `bounds` around `page` in which nothing is present. Does not contain `page` if that is.
fn hole(pages: &ExtentMap, page: u64, bounds: &Range<u64>) -> Range<u64> {
    let end = pages.next_present(page).unwrap_or(u64::MAX);
    bounds.start.max(pages.hole_start(page))..bounds.end.min(end)
}

/// The largest block around `page` of which enough has been copied.
fn image_window(vma: &Vma, pages: &ExtentMap, page: u64) -> Range<u64> {
    let mut size = IMAGE_MOST;
    while size > IMAGE_ALONE {
        let window = block(vma, page, size);
        let present: u64 = pages.runs(window.clone()).map(|run| u64::from(run.count)).sum();
        if present * DENSE >= window.end - window.start {
            return window;
        }
        size /= 2;
    }
    block(vma, page, IMAGE_ALONE)
}
