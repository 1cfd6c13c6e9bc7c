//! Room for trampolines: hidden pieces of the address space near the code that jumps there, and their pages.
//!
//! They are no VMAs: nothing shows them, and where the program maps something they go first ([`super`]).

use std::collections::BTreeMap;
use std::ops::Range;

use super::decode::Plan;
use super::trampoline::ALIGN;
use crate::platform::{Arena, Frame, FrameRange, PAGE_SIZE};

/// Bytes of a region. Sixteen times as many as the distance after which the byte of a displacement that matters is the same again.
pub(super) const REGION: u64 = 1 << 20;
/// Regions of an address space: the program's, the libraries', …
pub(super) const MOST_REGIONS: usize = 4;
/// Pages of an address space.
const MOST_PAGES: usize = 64;
/// Pieces of [`ALIGN`] bytes in a page.
const PIECES: u64 = PAGE_SIZE / ALIGN;

/// A page of trampolines.
#[derive(Clone)]
pub(super) struct Page {
    pub frame: Frame,
    /// One entry per piece: it is taken.
    taken: Vec<bool>,
}

/// Regions and pages. The frames are the owner's to retain and release.
#[derive(Clone, Default)]
pub(super) struct Room {
    pub regions: Vec<Range<u64>>,
    /// By address.
    pub pages: BTreeMap<u64, Page>,
}

impl Room {
    /// The least range that contains all regions.
    pub fn bounds(&self) -> Range<u64> {
        let start = self.regions.iter().map(|region| region.start).min();
        let end = self.regions.iter().map(|region| region.end).max();
        start.unwrap_or(0)..end.unwrap_or(0)
    }

    /// A place for the trampoline of a plan, at most `len` bytes: in a page that there is, else in a new one.
    pub fn find(&self, plan: &Plan, len: u64) -> Option<u64> {
        let pieces = len.div_ceil(ALIGN);
        let old = self.pages.iter().find_map(|(start, page)| {
            (0..=PIECES.checked_sub(pieces)?)
                .filter(|piece| (*piece..piece + pieces).all(|piece| page.is_free(piece)))
                .map(|piece| start + piece * ALIGN)
                .find(|target| plan.suits(*target))
        });
        if old.is_some() || self.pages.len() >= MOST_PAGES {
            return old;
        }
        self.regions.iter().find_map(|region| {
            let pages = (region.start..region.end).step_by(PAGE_SIZE as usize);
            pages.filter(|page| !self.pages.contains_key(page)).find_map(|page| {
                let places = (0..=PIECES.checked_sub(pieces)?).map(|piece| page + piece * ALIGN);
                places.into_iter().find(|target| plan.suits(*target))
            })
        })
    }

    /// Takes `len` bytes at `target`, in a page that there is.
    pub fn take(&mut self, target: u64, len: u64) {
        let Some(page) = self.pages.get_mut(&(target - target % PAGE_SIZE)) else { return };
        let first = target % PAGE_SIZE / ALIGN;
        for piece in first..first + len.div_ceil(ALIGN) {
            if let Some(taken) = usize::try_from(piece).ok().and_then(|piece| page.taken.get_mut(piece)) {
                *taken = true;
            }
        }
    }

    /// A page has another frame.
    pub fn replace(&mut self, address: u64, frame: Frame) {
        if let Some(page) = self.pages.get_mut(&address) {
            page.frame = frame;
        }
    }

    /// Adds an empty page.
    pub fn add_page(&mut self, address: u64, frame: Frame) {
        let taken = (0..PIECES).map(|_| false).collect();
        self.pages.insert(address, Page { frame, taken });
    }

    /// Takes out the region that overlaps `range`, if any, and its pages' frames.
    pub fn remove(&mut self, range: &Range<u64>) -> Option<(Range<u64>, Vec<FrameRange>)> {
        let hit = self.regions.iter().position(|own| own.start < range.end && range.start < own.end)?;
        let region = self.regions.swap_remove(hit);
        let pages: Vec<u64> = self.pages.range(region.clone()).map(|(address, _)| *address).collect();
        let frames = pages.iter().filter_map(|page| self.pages.remove(page)).map(|page| page.frames());
        Some((region, frames.collect()))
    }

    /// Gives all frames back.
    pub fn release(&mut self, arena: &Arena) {
        for page in std::mem::take(&mut self.pages).into_values() {
            arena.release(page.frames());
        }
    }
}

impl Page {
    pub fn frames(&self) -> FrameRange {
        FrameRange { first: self.frame, count: 1 }
    }

    fn is_free(&self, piece: u64) -> bool {
        usize::try_from(piece).ok().and_then(|piece| self.taken.get(piece)).is_some_and(|taken| !taken)
    }
}

#[cfg(test)]
mod tests {
    use super::super::decode::plan;
    use super::*;

    /// A site of the second pattern.
    fn site(offset: usize) -> Plan {
        let mut page = vec![0x90; 4096];
        page[offset..offset + 8].copy_from_slice(&[0x0f, 0x05, 0x48, 0x3d, 1, 0xf0, 0xff, 0xff]);
        plan(&page, 0x40_0000, 0x40_0000 + offset as u64 + 2, 1).unwrap()
    }

    #[test]
    fn sites_get_places_that_suit_them_and_share_pages() {
        let mut room = Room::default();
        room.regions.push(0x20_0000..0x20_0000 + REGION);
        assert_eq!(room.bounds(), 0x20_0000..0x30_0000);
        let mut taken = Vec::new();
        for offset in 0..250 {
            let plan = site(offset * 16);
            let target = room.find(&plan, 60).expect("room");
            assert!(plan.suits(target) && target.is_multiple_of(ALIGN));
            let page = target - target % PAGE_SIZE;
            if !room.pages.contains_key(&page) {
                room.add_page(page, Frame(1));
            }
            room.take(target, 60);
            assert!(target + 60 <= page + PAGE_SIZE);
            assert!(taken.iter().all(|other: &u64| target.abs_diff(*other) >= 60));
            taken.push(target);
        }
        assert!(room.pages.len() <= 16, "{}", room.pages.len());
        assert!(room.remove(&(0..0x20_0000)).is_none());
        let pages = room.pages.len();
        let (region, frames) = room.remove(&(0x2f_f000..0x30_1000)).unwrap();
        assert_eq!((region, frames.len()), (0x20_0000..0x30_0000, pages));
        assert!(room.pages.is_empty());
    }
}
