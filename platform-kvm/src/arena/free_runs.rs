//! A set of free numbers kept as runs: lowest fit first, neighbours merge.

use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct FreeRuns {
    /// Start of each run → its length.
    runs: BTreeMap<u64, u64>,
}

impl FreeRuns {
    /// The numbers `0..len`, all free.
    pub(super) fn new(len: u64) -> FreeRuns {
        let mut free = FreeRuns::default();
        if len > 0 {
            free.runs.insert(0, len);
        }
        free
    }

    /// Takes the lowest `count` consecutive numbers that start at a multiple of `align` (a power of two).
    pub(super) fn take(&mut self, count: u64, align: u64) -> Option<u64> {
        let (run, len, start) = self.runs.iter().find_map(|(&run, &len)| {
            let start = run.checked_next_multiple_of(align)?;
            let end = start.checked_add(count)?;
            (end <= run + len).then_some((run, len, start))
        })?;
        self.runs.remove(&run);
        if start > run {
            self.runs.insert(run, start - run);
        }
        let end = start + count;
        if end < run + len {
            self.runs.insert(end, run + len - end);
        }
        Some(start)
    }

    /// Takes the number `at`, if it is free.
    pub(super) fn take_at(&mut self, at: u64) -> bool {
        let Some((run, len)) = self.runs.range(..=at).next_back().map(|(run, len)| (*run, *len)) else {
            return false;
        };
        let end = run.saturating_add(len);
        if at >= end {
            return false;
        }
        self.runs.remove(&run);
        if at > run {
            self.runs.insert(run, at - run);
        }
        if at + 1 < end {
            self.runs.insert(at + 1, end - at - 1);
        }
        true
    }

    /// Gives numbers back. Those that are free already stay as they are.
    pub(super) fn give(&mut self, start: u64, count: u64) {
        let mut start = start;
        let mut end = start.saturating_add(count);
        while let Some((&run, &len)) = self.runs.range(..=end).next_back() {
            if run + len < start {
                break;
            }
            self.runs.remove(&run);
            start = start.min(run);
            end = end.max(run + len);
        }
        if end > start {
            self.runs.insert(start, end - start);
        }
    }

    #[cfg(test)]
    pub(super) fn total(&self) -> u64 {
        self.runs.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::FreeRuns;

    #[test]
    fn takes_lowest_and_merges_back() {
        let mut free = FreeRuns::new(100);
        assert_eq!(free.take(10, 1), Some(0));
        assert_eq!(free.take(10, 16), Some(16));
        assert_eq!(free.take(6, 1), Some(10));
        assert_eq!(free.take(75, 1), None);
        assert_eq!(free.take(74, 1), Some(26));
        assert_eq!(free.take(1, 1), None);
        free.give(16, 10);
        free.give(0, 10);
        free.give(10, 6);
        assert_eq!(free.runs.len(), 1);
        free.give(5, 3);
        assert_eq!(free.total(), 26);
        free.give(26, 74);
        assert!(free.take_at(99) && free.take_at(0) && free.take_at(50));
        assert!(!free.take_at(50) && !free.take_at(100));
        assert_eq!(free.runs.iter().map(|(run, len)| (*run, *len)).collect::<Vec<_>>(), [(1, 49), (51, 48)]);
        [99, 50, 0].into_iter().for_each(|at| free.give(at, 1));
        assert_eq!(free.take(100, 64), Some(0));
    }
}
