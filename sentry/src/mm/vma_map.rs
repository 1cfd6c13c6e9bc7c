//! The VMAs of an address space, by address.

use std::collections::BTreeMap;
use std::ops::Range;

use super::vma::{Vma, VmaFlags, is_data};
use crate::platform::PAGE_SIZE;

/// Unmapped bytes kept below a stack (`stack_guard_gap`).
pub(super) const STACK_GUARD_GAP: u64 = 256 * PAGE_SIZE;

/// Disjoint VMAs; neighbours that can be one are one.
#[derive(Default)]
pub(super) struct VmaMap {
    vmas: BTreeMap<u64, Vma>,
    bytes: u64,
    data_bytes: u64,
    locked_bytes: u64,
}

impl VmaMap {
    /// Number of VMAs.
    pub fn len(&self) -> usize {
        self.vmas.len()
    }

    /// Bytes mapped.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that count against `RLIMIT_DATA`.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Bytes that are locked.
    pub fn locked_bytes(&self) -> u64 {
        self.locked_bytes
    }

    /// The VMA that contains `addr`.
    pub fn find(&self, addr: u64) -> Option<&Vma> {
        self.vmas.range(..=addr).next_back().map(|(_, vma)| vma).filter(|vma| addr < vma.end)
    }

    /// The VMA that contains `addr` or else the first one above it.
    pub fn find_from(&self, addr: u64) -> Option<&Vma> {
        self.find(addr).or_else(|| self.vmas.range(addr..).next().map(|(_, vma)| vma))
    }

    /// The last VMA that ends at or below `addr`.
    pub fn before(&self, addr: u64) -> Option<&Vma> {
        self.vmas.range(..addr).next_back().map(|(_, vma)| vma).filter(|vma| vma.end <= addr)
    }

    /// All VMAs, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Vma> {
        self.vmas.values()
    }

    /// VMAs that overlap the range, in order, not clipped.
    pub fn overlapping(&self, range: Range<u64>) -> impl Iterator<Item = &Vma> {
        let first = self.find(range.start).map_or(range.start, |vma| vma.start);
        self.vmas.range(first..range.end.max(first)).map(|(_, vma)| vma)
    }

    /// Whether every byte of the range is mapped.
    pub fn covers(&self, range: Range<u64>) -> bool {
        let mut at = range.start;
        for vma in self.overlapping(range.clone()) {
            if vma.start > at {
                return false;
            }
            at = vma.end;
        }
        at >= range.end
    }

    /// Adds a VMA in a hole and joins it with its neighbours.
    pub fn insert(&mut self, mut vma: Vma) {
        debug_assert!(self.overlapping(vma.start..vma.end).next().is_none());
        self.count(&vma, 1);
        if let Some(before) = self.before(vma.start).filter(|before| before.joins(&vma)) {
            let start = before.start;
            if let Some(before) = self.vmas.remove(&start) {
                vma = Vma { end: vma.end, ..before };
            }
        }
        if self.vmas.get(&vma.end).is_some_and(|after| vma.joins(after))
            && let Some(after) = self.vmas.remove(&vma.end)
        {
            vma.end = after.end;
        }
        self.vmas.insert(vma.start, vma);
    }

    /// Takes the range out, cutting VMAs at its ends, and returns what was there, in order.
    pub fn remove(&mut self, range: Range<u64>) -> Vec<Vma> {
        let starts: Vec<u64> = self.overlapping(range.clone()).map(|vma| vma.start).collect();
        let mut removed = Vec::with_capacity(starts.len());
        for start in starts {
            let Some(vma) = self.vmas.remove(&start) else { continue };
            if vma.start < range.start {
                let head = vma.clone().clip(0, range.start);
                self.vmas.insert(head.start, head);
            }
            if vma.end > range.end {
                let tail = vma.clone().clip(range.end, u64::MAX);
                self.vmas.insert(tail.start, tail);
            }
            let inside = vma.clip(range.start, range.end);
            self.count(&inside, -1);
            removed.push(inside);
        }
        removed
    }

    /// How many more VMAs there are after the range is cut out of the middle of others.
    pub fn splits(&self, range: Range<u64>) -> usize {
        let cut = |addr| usize::from(self.find(addr).is_some_and(|vma| vma.start < addr));
        cut(range.start) + cut(range.end)
    }

    /// Applies `change` to everything inside the range, cutting and joining VMAs as needed.
    pub fn update(&mut self, range: Range<u64>, change: impl Fn(&mut Vma)) {
        for mut vma in self.remove(range) {
            change(&mut vma);
            self.insert(vma);
        }
    }

    /// The highest hole of `len` bytes inside `bounds`.
    pub fn gap_top_down(&self, len: u64, bounds: Range<u64>) -> Option<u64> {
        let mut high = bounds.end;
        for vma in self.vmas.range(..bounds.end).rev().map(|(_, vma)| vma) {
            if vma.end <= bounds.start {
                break;
            }
            if high.checked_sub(len).is_some_and(|start| start >= vma.end.max(bounds.start)) {
                break;
            }
            high = high.min(guarded_start(vma));
        }
        // A stack above the bounds reaches into them with its guard gap.
        if let Some(above) = self.vmas.range(bounds.end..).next().map(|(_, vma)| vma)
            && guarded_start(above) < bounds.end
            && high == bounds.end
        {
            return self.gap_top_down(len, bounds.start..guarded_start(above).max(bounds.start));
        }
        let start = high.checked_sub(len).filter(|start| *start >= bounds.start)?;
        self.is_free(start..start + len).then_some(start)
    }

    /// The lowest hole of `len` bytes inside `bounds`.
    pub fn gap_bottom_up(&self, len: u64, bounds: Range<u64>) -> Option<u64> {
        let mut low = bounds.start;
        for vma in self.overlapping(bounds.start..u64::MAX) {
            if guarded_start(vma).checked_sub(low).is_some_and(|room| room >= len) {
                break;
            }
            low = low.max(vma.end);
        }
        low.checked_add(len).filter(|end| *end <= bounds.end).map(|_| low)
    }

    /// Whether nothing is mapped in the range, and no stack would lose its guard gap to it.
    pub fn is_free(&self, range: Range<u64>) -> bool {
        self.find_from(range.start).is_none_or(|vma| guarded_start(vma) >= range.end)
    }

    fn count(&mut self, vma: &Vma, sign: i64) {
        let add = |total: &mut u64, counts: bool| {
            if counts {
                *total = total.wrapping_add_signed(sign.wrapping_mul(vma.len().cast_signed()));
            }
        };
        add(&mut self.bytes, true);
        add(&mut self.data_bytes, is_data(vma.prot, vma.flags));
        add(&mut self.locked_bytes, vma.flags.contains(VmaFlags::LOCKED));
    }
}

/// Where others must end below this VMA.
fn guarded_start(vma: &Vma) -> u64 {
    if vma.flags.contains(VmaFlags::GROWSDOWN) {
        vma.start.saturating_sub(STACK_GUARD_GAP)
    } else {
        vma.start
    }
}

#[cfg(test)]
mod tests {
    use super::super::vma::{Prot, Source};
    use super::*;

    fn vma(start: u64, end: u64, flags: VmaFlags) -> Vma {
        Vma {
            start: start * PAGE_SIZE,
            end: end * PAGE_SIZE,
            prot: Prot::READ,
            flags,
            source: Source::Anonymous,
        }
    }

    /// Holes found by looking at every page.
    fn slow_gap(free: &[bool], len: usize, bounds: Range<usize>, top_down: bool) -> Option<u64> {
        let mut starts: Vec<usize> = bounds.clone().collect();
        if top_down {
            starts.reverse();
        }
        let fits =
            |start: &usize| start + len <= bounds.end && free[*start..start + len].iter().all(|free| *free);
        starts.into_iter().find(fits).map(|start| start as u64 * PAGE_SIZE)
    }

    #[test]
    fn random_updates_agree_with_a_page_array() {
        const PAGES: usize = 300;
        let mut map = VmaMap::default();
        let mut model: Vec<Option<VmaFlags>> = vec![None; PAGES];
        let mut seed = 99u64;
        let mut random = move |below: usize| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as usize % below
        };
        for _ in 0..20_000 {
            let start = random(PAGES - 20);
            let end = start + 1 + random(19);
            let flags = if random(2) == 0 { VmaFlags::LOCKED } else { VmaFlags::empty() };
            let bytes = start as u64 * PAGE_SIZE..end as u64 * PAGE_SIZE;
            match random(4) {
                0 => drop(map.remove(bytes)),
                1 => map.update(bytes, |vma| vma.flags = flags),
                _ => {
                    map.remove(bytes);
                    map.insert(vma(start as u64, end as u64, flags));
                    model[start..end].fill(Some(flags));
                    continue;
                }
            }
            // Both of the others leave nothing or a flag behind; ask the map which, page by page, below.
            for (page, entry) in model.iter_mut().enumerate().take(end).skip(start) {
                *entry = map.find(page as u64 * PAGE_SIZE).map(|vma| vma.flags);
                assert!(entry.is_none_or(|now| now == flags || now == VmaFlags::LOCKED || now.is_empty()));
            }
            let free: Vec<bool> = model.iter().map(Option::is_none).collect();
            let (len, low) = (1 + random(6), random(100));
            let high = low + 100 + random(90);
            let bounds = low as u64 * PAGE_SIZE..high as u64 * PAGE_SIZE;
            let bytes = len as u64 * PAGE_SIZE;
            assert_eq!(map.gap_top_down(bytes, bounds.clone()), slow_gap(&free, len, low..high, true));
            assert_eq!(map.gap_bottom_up(bytes, bounds), slow_gap(&free, len, low..high, false));
            let mapped = model.iter().flatten().count() as u64;
            assert_eq!(map.bytes(), mapped * PAGE_SIZE);
            let locked = model.iter().flatten().filter(|flags| flags.contains(VmaFlags::LOCKED)).count();
            assert_eq!(map.locked_bytes(), locked as u64 * PAGE_SIZE);
            let runs = model.chunk_by(|a, b| a == b).filter(|run| run[0].is_some()).count();
            assert_eq!(map.len(), runs, "neighbours are joined");
        }
    }

    #[test]
    fn stacks_keep_their_guard_gap() {
        let mut map = VmaMap::default();
        let gap = STACK_GUARD_GAP / PAGE_SIZE;
        map.insert(vma(1000, 1010, VmaFlags::GROWSDOWN));
        let stack = 1000 * PAGE_SIZE;
        assert_eq!(
            map.gap_top_down(PAGE_SIZE, PAGE_SIZE..1005 * PAGE_SIZE),
            Some(stack - STACK_GUARD_GAP - PAGE_SIZE)
        );
        assert_eq!(
            map.gap_top_down(PAGE_SIZE, PAGE_SIZE..990 * PAGE_SIZE),
            Some(stack - STACK_GUARD_GAP - PAGE_SIZE)
        );
        assert!(map.is_free((999 - gap) * PAGE_SIZE..(1000 - gap) * PAGE_SIZE));
        assert!(!map.is_free((1000 - gap) * PAGE_SIZE..(1001 - gap) * PAGE_SIZE));
        assert_eq!(map.gap_bottom_up(1000 * PAGE_SIZE, PAGE_SIZE..4000 * PAGE_SIZE), Some(1010 * PAGE_SIZE));
    }
}
