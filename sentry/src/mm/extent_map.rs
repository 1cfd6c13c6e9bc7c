//! A sparse map from page numbers to frames, as extents.
//!
//! Both private memory of an address space (keyed by guest page) and the contents of a [`super::FrameStore`] (keyed by
//! page of the object) are one of these. It only keeps the books: reference counts are its owner's business.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::platform::{Frame, FrameRange};

/// Whether an extent's frames may be referenced by somebody else too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ownership {
    /// Only this map refers to the frames (pins for I/O do not count): they may be written in place.
    Exclusive,
    /// `fork` has shared them: writing needs a look at the reference count, and a copy unless it is 1.
    CopyOnWrite,
}

/// Consecutive pages in consecutive frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Page number of the first page.
    pub page: u64,
    /// Its frame.
    pub first: Frame,
    /// Pages, at least 1.
    pub count: u32,
    /// Who refers to the frames.
    pub ownership: Ownership,
}

impl Run {
    /// The frames.
    pub fn frames(&self) -> FrameRange {
        FrameRange { first: self.first, count: self.count }
    }

    /// Page number after the last page.
    pub fn end(&self) -> u64 {
        self.page + u64::from(self.count)
    }

    /// The frame of a page of the run.
    pub fn frame(&self, page: u64) -> Frame {
        let skip = u32::try_from(page.saturating_sub(self.page)).unwrap_or(0);
        Frame(self.first.0.saturating_add(skip))
    }

    /// The part inside `pages`, if any.
    pub fn clip(&self, pages: &Range<u64>) -> Option<Run> {
        let (start, end) = (self.page.max(pages.start), self.end().min(pages.end));
        let count = u32::try_from(end.checked_sub(start)?).ok().filter(|count| *count > 0)?;
        let skipped = u32::try_from(start - self.page).ok()?;
        Some(Run { page: start, first: Frame(self.first.0 + skipped), count, ownership: self.ownership })
    }
}

#[derive(Clone, Copy, Debug)]
struct Extent {
    first: Frame,
    count: u32,
    ownership: Ownership,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct ExtentMap {
    extents: BTreeMap<u64, Extent>,
    pages: u64,
}

impl ExtentMap {
    /// Pages that have a frame.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// The run that starts at `page` and goes as far as its extent does.
    pub fn at(&self, page: u64) -> Option<Run> {
        let (start, extent) = self.extents.range(..=page).next_back()?;
        run(*start, extent).clip(&(page..u64::MAX))
    }

    /// The run around `page`, cut to `bounds`.
    pub fn around(&self, page: u64, bounds: &Range<u64>) -> Option<Run> {
        let (start, extent) = self.extents.range(..=page).next_back()?;
        run(*start, extent).clip(bounds).filter(|run| (run.page..run.end()).contains(&page))
    }

    /// How many pages from the start of `pages` on have frames without a gap.
    pub fn present_from_start(&self, pages: Range<u64>) -> u64 {
        let mut at = pages.start;
        for run in self.runs(pages.clone()) {
            if run.page > at {
                break;
            }
            at = run.end();
        }
        at - pages.start
    }

    /// How many pages up to the end of `pages` have frames without a gap.
    pub fn present_to_end(&self, pages: Range<u64>) -> u64 {
        let mut at = pages.end;
        for (start, extent) in self.extents.range(..pages.end).rev() {
            if run(*start, extent).end() < at || at <= pages.start {
                break;
            }
            at = (*start).max(pages.start);
        }
        pages.end - at
    }

    /// The first page at or after `page` that has a frame.
    pub fn next_present(&self, page: u64) -> Option<u64> {
        if self.at(page).is_some() {
            return Some(page);
        }
        self.extents.range(page..).next().map(|(start, _)| *start)
    }

    /// The end of the last run that lies before `page`; 0 if there is none. `page` itself has no frame.
    pub fn hole_start(&self, page: u64) -> u64 {
        self.extents.range(..page).next_back().map_or(0, |(start, extent)| run(*start, extent).end())
    }

    /// Everything inside `pages`, in order, clipped.
    pub fn runs(&self, pages: Range<u64>) -> impl Iterator<Item = Run> + '_ {
        let first = self.extents.range(..=pages.start).next_back().map_or(pages.start, |(start, _)| *start);
        self.extents
            .range(first..pages.end.max(first))
            .filter_map(move |(start, extent)| run(*start, extent).clip(&pages))
    }

    /// Puts frames into a hole, joining them with what continues them.
    pub fn insert(&mut self, new: Run) {
        debug_assert!(self.runs(new.page..new.end()).next().is_none(), "{new:?} overlaps");
        self.pages += u64::from(new.count);
        let mut page = new.page;
        let mut extent = Extent { first: new.first, count: new.count, ownership: new.ownership };
        if let Some((start, before)) = self.extents.range(..page).next_back().map(|(s, e)| (*s, *e))
            && joins(start, &before, page, &extent)
        {
            self.extents.remove(&start);
            page = start;
            extent = Extent { count: before.count + extent.count, ..before };
        }
        let end = run(page, &extent).end();
        if let Some(after) = self.extents.get(&end).copied()
            && joins(page, &extent, end, &after)
        {
            self.extents.remove(&end);
            extent.count += after.count;
        }
        self.extents.insert(page, extent);
    }

    /// Takes everything inside `pages` out and returns it, in order.
    pub fn remove(&mut self, pages: Range<u64>) -> Vec<Run> {
        self.split(pages.start);
        self.split(pages.end);
        let mut removed = Vec::new();
        while let Some((start, extent)) =
            self.extents.range(pages.start..pages.end.max(pages.start)).next().map(|(s, e)| (*s, *e))
        {
            self.extents.remove(&start);
            self.pages -= u64::from(extent.count);
            removed.push(run(start, &extent));
        }
        removed
    }

    /// Changes who refers to the frames inside `pages`.
    pub fn set_ownership(&mut self, pages: Range<u64>, ownership: Ownership) {
        self.split(pages.start);
        self.split(pages.end);
        for (_, extent) in self.extents.range_mut(pages.start..pages.end.max(pages.start)) {
            extent.ownership = ownership;
        }
    }

    /// Makes `page` the first page of its extent, if it is in one.
    fn split(&mut self, page: u64) {
        let Some((start, extent)) = self.extents.range_mut(..page).next_back() else { return };
        let Ok(head) = u32::try_from(page - start) else { return };
        if head >= extent.count {
            return;
        }
        let tail = Extent { first: Frame(extent.first.0 + head), count: extent.count - head, ..*extent };
        extent.count = head;
        self.extents.insert(page, tail);
    }
}

fn run(page: u64, extent: &Extent) -> Run {
    Run { page, first: extent.first, count: extent.count, ownership: extent.ownership }
}

/// Whether `after` continues `before` in pages and in frames.
fn joins(start: u64, before: &Extent, page: u64, after: &Extent) -> bool {
    start + u64::from(before.count) == page
        && before.first.0.checked_add(before.count) == Some(after.first.0)
        && before.ownership == after.ownership
        && before.count.checked_add(after.count).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn exclusive(page: u64, first: u32, count: u32) -> Run {
        Run { page, first: Frame(first), count, ownership: Ownership::Exclusive }
    }

    #[test]
    fn contiguous_frames_join_and_split_again() {
        let mut map = ExtentMap::default();
        map.insert(exclusive(10, 100, 2));
        map.insert(exclusive(14, 104, 2));
        map.insert(exclusive(12, 102, 2));
        assert_eq!(map.runs(0..100).collect::<Vec<_>>(), [exclusive(10, 100, 6)]);
        assert_eq!(map.remove(11..13), [exclusive(11, 101, 2)]);
        assert_eq!(map.pages(), 4);
        assert_eq!(map.at(11), None);
        assert_eq!(map.at(14), Some(exclusive(14, 104, 2)));
        assert_eq!(map.hole_start(12), 11);
        assert_eq!(map.next_present(11), Some(13));
    }

    #[test]
    fn random_operations_agree_with_a_plain_map() {
        let mut map = ExtentMap::default();
        let mut model: BTreeMap<u64, (u32, Ownership)> = BTreeMap::new();
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = move |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        for _ in 0..20_000 {
            let (page, count) = (random(64), 1 + random(9));
            match random(4) {
                0 => {
                    let removed = map.remove(page..page + count);
                    for run in removed {
                        for i in 0..run.count {
                            let old = model.remove(&(run.page + u64::from(i)));
                            assert_eq!(old, Some((run.first.0 + i, run.ownership)));
                        }
                    }
                    assert!(model.range(page..page + count).next().is_none());
                }
                1 => {
                    map.set_ownership(page..page + count, Ownership::CopyOnWrite);
                    for (_, entry) in model.range_mut(page..page + count) {
                        entry.1 = Ownership::CopyOnWrite;
                    }
                }
                _ => {
                    if model.range(page..page + count).next().is_none() {
                        // Frame numbers that often continue their neighbours'.
                        let first = (page + 1000 * random(2)) as u32;
                        map.insert(exclusive(page, first, count as u32));
                        for i in 0..count {
                            model.insert(page + i, (first + i as u32, Ownership::Exclusive));
                        }
                    }
                }
            }
            assert_eq!(map.pages(), model.len() as u64);
            let flat: Vec<_> = map
                .runs(0..100)
                .flat_map(|run| {
                    (0..run.count).map(move |i| (run.page + u64::from(i), (run.first.0 + i, run.ownership)))
                })
                .collect();
            assert_eq!(flat, model.iter().map(|(page, entry)| (*page, *entry)).collect::<Vec<_>>());
            let probe = random(80);
            let length = |pages: &mut dyn Iterator<Item = u64>| {
                pages.take_while(|page| model.contains_key(page)).count() as u64
            };
            let low = random(60);
            let high = low + 1 + random(20);
            assert_eq!(map.present_from_start(low..high), length(&mut (low..high)));
            assert_eq!(map.present_to_end(low..high), length(&mut (low..high).rev()));
            assert_eq!(map.next_present(probe), model.range(probe..).next().map(|(page, _)| *page));
            assert_eq!(map.at(probe).map(|run| run.first.0), model.get(&probe).map(|entry| entry.0));
        }
    }
}
