//! Private pages: ending copy-on-write sharing, dropping, moving.

use std::ops::Range;

use super::extent_map::{ExtentMap, Ownership, Run};
use super::fault::FaultOutcome;
use super::frame_store::allocate_run;
use super::vma::Vma;
use super::{Mm, State};
use crate::errno::Errno;
use crate::platform::{PAGE_SIZE, Perms};
use std::sync::atomic::Ordering;

impl Mm {
    /// Makes the copy-on-write page `page` of `run` writable: in place if nobody else refers to its frame any more, else by
    /// a copy. Does the same for neighbours. Returns the run that is writable and entered now.
    pub(super) fn break_sharing(
        &self,
        vma: &Vma,
        pages: &mut ExtentMap,
        run: Run,
        page: u64,
    ) -> Result<Run, FaultOutcome> {
        let perms = vma.prot.perms().ok_or(FaultOutcome::Denied)?;
        if let Some(footprint) = self.footprint.get() {
            footprint.note_written(page);
        }
        let unique = |page: u64| self.arena.is_unique(run.frame(page));
        if unique(page) {
            let own = stretch(page, &(run.page..run.end()), unique);
            pages.set_ownership(own.clone(), Ownership::Exclusive);
            let own = Run { ownership: Ownership::Exclusive, ..run.clip(&own).unwrap_or(run) };
            return self.enter(own, perms);
        }
        let window = self.copy_window(vma, pages, page);
        let bounds = window.start.max(run.page)..window.end.min(run.end());
        let shared = stretch(page, &bounds, |page| !unique(page));
        let count = u32::try_from(shared.end - shared.start).unwrap_or(1);
        let frames = allocate_run(self.arena, 1, count).map_err(|_| FaultOutcome::OutOfMemory)?;
        let start = if frames.count == count { shared.start } else { page };
        let new =
            Run { page: start, first: frames.first, count: frames.count, ownership: Ownership::Exclusive };
        let from = self.arena.gpa(run.frame(start));
        if self.copy_pages(from, &new) < new.count {
            self.arena.release(new.frames());
            return Err(FaultOutcome::Bus);
        }
        // Replacing the entries revokes the old ones, so the old frames are out of reach when they are let go.
        self.settle();
        if let Err(outcome) = self.enter(new, perms) {
            self.arena.release(new.frames());
            return Err(outcome);
        }
        for old in pages.remove(new.page..new.end()) {
            self.arena.release(old.frames());
        }
        pages.insert(new);
        Ok(new)
    }

    /// Enters present private pages of `range` (addresses) with the VMA's rights, at most `limit` pages, so that they do not
    /// fault one by one. Best effort.
    pub(super) fn enter_present(&self, vma: &Vma, range: &Range<u64>, limit: u64) {
        let Some(perms) = vma.prot.perms() else { return };
        let range = range.start.max(vma.start)..range.end.min(vma.end);
        let pages = self.pages.lock();
        let mut left = limit;
        for run in pages.runs(super::page_numbers(&range)) {
            if u64::from(run.count) > left {
                break;
            }
            left -= u64::from(run.count);
            let perms = match run.ownership {
                Ownership::Exclusive => perms,
                Ownership::CopyOnWrite => perms - Perms::W,
            };
            if self.enter(run, perms).is_err() {
                break;
            }
        }
    }

    /// Enters the private pages of `range` in a space that has not run yet: those that will be copied when they are written in a way that
    /// costs nothing if nobody has read them by then. Best effort.
    pub(super) fn enter_ahead(&self, vma: &Vma, range: &Range<u64>) {
        let Some(perms) = vma.prot.perms() else { return };
        let pages = self.pages.lock();
        for run in pages.runs(super::page_numbers(range)) {
            let entered = match run.ownership {
                Ownership::CopyOnWrite if perms.contains(Perms::W) => {
                    let len = bytes(run.count.into());
                    self.space.map_ahead(
                        run.page * PAGE_SIZE,
                        self.arena.gpa(run.first),
                        len,
                        perms - Perms::W,
                    )
                }
                Ownership::CopyOnWrite => {
                    self.enter(run, perms - Perms::W).map(drop).map_err(|_| Errno::ENOMEM)
                }
                Ownership::Exclusive => self.enter(run, perms).map(drop).map_err(|_| Errno::ENOMEM),
            };
            if entered.is_err() {
                break;
            }
        }
    }

    /// Notes the size of the address space for `VmPeak`.
    pub(super) fn note_size(&self, state: &State) {
        self.peak_bytes.fetch_max(state.vmas.bytes(), Ordering::Relaxed);
    }

    /// Notes the number of private pages for `VmHWM`.
    pub(super) fn note_rss(&self, pages: &ExtentMap) {
        self.peak_rss_pages.fetch_max(pages.pages(), Ordering::Relaxed);
    }
}

/// The longest stretch of pages around `page` inside `bounds` for which `test` holds.
fn stretch(page: u64, bounds: &Range<u64>, test: impl Fn(u64) -> bool) -> Range<u64> {
    let mut start = page;
    while start > bounds.start && test(start - 1) {
        start -= 1;
    }
    let mut end = page + 1;
    while end < bounds.end && test(end) {
        end += 1;
    }
    start..end
}

/// Bytes of a number of pages.
pub(super) fn bytes(pages: u64) -> u64 {
    pages.saturating_mul(PAGE_SIZE)
}
