//! What processes touch right after a fork.
//!
//! A process that forks again and again (a shell, `make`, a server) makes children that begin the same way: they return from the same call,
//! write to the same stack, run the same code. Each page that a child touches first costs it a page fault, and each page that parent
//! or child writes a copy besides. So the faults of a family of forked processes are remembered, and the next fork has their pages
//! ready: it copies those that were written (the parent keeps its own, writable) and enters those that were read.
//!
//! The family is the processes that came from one program by `fork`: `execve` leaves it.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

/// Pages that are copied ahead: each costs half a microsecond and a page.
const MAX_WRITTEN: usize = 32;
/// Places that are entered ahead.
const MAX_READ: usize = 16;

/// See the module's documentation. A leaf lock.
#[derive(Debug, Default)]
pub(super) struct Footprint {
    touched: Mutex<Touched>,
}

/// Page numbers, the newest first.
#[derive(Debug, Default)]
struct Touched {
    written: VecDeque<u64>,
    read: VecDeque<u64>,
}

impl Footprint {
    pub fn new() -> Arc<Footprint> {
        Arc::default()
    }

    /// A copy-on-write page was written.
    pub fn note_written(&self, page: u64) {
        note(&mut self.touched.lock().written, page, MAX_WRITTEN);
    }

    /// A page of an object was read or executed.
    pub fn note_read(&self, page: u64) {
        note(&mut self.touched.lock().read, page, MAX_READ);
    }

    /// Pages that the next child will write, sorted.
    pub fn written(&self) -> Vec<u64> {
        let mut pages: Vec<u64> = self.touched.lock().written.iter().copied().collect();
        pages.sort_unstable();
        pages
    }

    /// Pages that it will read.
    pub fn read(&self) -> Vec<u64> {
        self.touched.lock().read.iter().copied().collect()
    }
}

/// Puts a page first; the oldest one goes when there are too many.
fn note(pages: &mut VecDeque<u64>, page: u64, max: usize) {
    pages.retain(|other| *other != page);
    pages.push_front(page);
    pages.truncate(max);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_pages_are_kept_once() {
        let footprint = Footprint::new();
        (0..100).chain([99, 70]).for_each(|page| footprint.note_written(page));
        let kept = footprint.written();
        assert_eq!(kept.len(), MAX_WRITTEN);
        assert_eq!(kept, (68..100).collect::<Vec<_>>());
        footprint.note_read(5);
        assert_eq!(footprint.read(), [5]);
    }
}
