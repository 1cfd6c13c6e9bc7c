//! Pages that nobody may have yet.
//!
//! A revocation in place ([`crate::platform::Space::revoke_in_place`]) leaves the process's other threads, and the caller whose call a
//! dispatcher answers, in the guest. The host may still be at an access that it began for one of them. So frames that go after such a
//! revocation wait here until everybody who was in the guest then has left it once: nobody is made to, unless too many wait.
//!
//! What comes later also waits behind what is here, even if its own revocation found nothing to revoke: an earlier one may have taken the same
//! entry away. Whatever must be sure that no access is under way ([`Mm::settle`]: `fork`, revocations in the usual way, replaced
//! frames) empties the queue first.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::extent_map::{Ownership, Run};
use super::{Mm, Remains};
use crate::errno::SysResult;
use crate::platform::{Arena, Change, FrameRange, InPlace, Stragglers};

/// Pages that may wait; from here on everybody is made to leave.
const MAX_PAGES: u64 = 1024;
/// Revocations that may wait, with or without pages.
const MAX_ENTRIES: u64 = 1024;

/// See the module's documentation. A leaf lock.
pub(super) struct Limbo {
    arena: &'static Arena,
    queue: Mutex<Queue>,
    /// Its length, to be read without the lock.
    entries: AtomicU64,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    pages: u64,
}

/// Pages, and whom they wait for besides everybody before them.
struct Waiting {
    stragglers: Option<Box<dyn Stragglers>>,
    runs: Vec<Run>,
}

impl Waiting {
    fn pages(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.count)).sum()
    }
}

impl Limbo {
    pub fn new(arena: &'static Arena) -> Limbo {
        Limbo { arena, queue: Mutex::default(), entries: AtomicU64::new(0) }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.entries.load(Ordering::SeqCst) == 0
    }

    /// Whether it would have to make somebody leave if more came.
    pub fn is_full(&self) -> bool {
        !self.is_empty() && {
            let queue = self.queue.lock();
            queue.pages >= MAX_PAGES || queue.waiting.len() as u64 >= MAX_ENTRIES
        }
    }

    /// Takes pages in; frees those that need not wait any more.
    fn push(&self, stragglers: Option<Box<dyn Stragglers>>, runs: Vec<Run>) {
        let new = Waiting { stragglers, runs };
        {
            let mut queue = self.queue.lock();
            queue.pages += new.pages();
            queue.waiting.push_back(new);
            self.entries.store(queue.waiting.len() as u64, Ordering::SeqCst);
        }
        self.reap();
        if self.is_full() {
            self.expel();
        }
    }

    /// Frees what need not wait any more.
    pub fn reap(&self) {
        if self.is_empty() {
            return;
        }
        let mut free = Vec::new();
        let mut queue = self.queue.lock();
        // In this order: what was revoked later may need what is waited for earlier.
        while let Some(first) = queue.waiting.front()
            && first.stragglers.as_ref().is_none_or(|stragglers| stragglers.are_gone())
            && let Some(first) = queue.waiting.pop_front()
        {
            queue.pages -= first.pages();
            free.extend(first.runs);
        }
        self.entries.store(queue.waiting.len() as u64, Ordering::SeqCst);
        drop(queue);
        free.iter().for_each(|run| self.arena.release(run.frames()));
    }

    /// Makes everybody leave who is waited for, and frees everything. Under the lock, so that nobody overtakes: leaving the guest takes no
    /// lock.
    pub fn expel(&self) {
        let mut queue = self.queue.lock();
        for stragglers in queue.waiting.iter().filter_map(|entry| entry.stragglers.as_ref()) {
            stragglers.expel();
        }
        for run in queue.waiting.iter().flat_map(|entry| &entry.runs) {
            self.arena.release(run.frames());
        }
        *queue = Queue::default();
        self.entries.store(0, Ordering::SeqCst);
    }
}

impl Drop for Limbo {
    /// The address space is gone, and nobody runs in it.
    fn drop(&mut self) {
        for run in self.queue.get_mut().waiting.iter().flat_map(|entry| &entry.runs) {
            self.arena.release(run.frames());
        }
    }
}

impl Mm {
    /// Frees the pages of earlier calls that nobody can be at any more. Cheap: for every way out of the guest.
    pub fn reap(&self) {
        self.limbo.reap();
    }

    /// Makes sure that no access is under way that was begun with rights which have been taken away since. Whether anything waited.
    pub(super) fn settle(&self) -> bool {
        let waiting = !self.limbo.is_empty();
        if waiting {
            self.limbo.expel();
        }
        waiting
    }

    /// Takes rights away without making anybody leave, where that is possible. The caller calls [`Mm::defer`] when all is in `remains`.
    /// The exclusive frames of `going` are not needed any more.
    pub(super) fn revoke_in_place(
        &self,
        changes: &[Change],
        going: &[Run],
        remains: &mut Remains,
    ) -> SysResult {
        if changes.is_empty() {
            return Ok(());
        }
        // The host may be writing to pinned ones, or from them.
        let unneeded = |run: &&Run| {
            run.ownership == Ownership::Exclusive
                && (run.page..run.end()).all(|page| self.arena.is_unique(run.frame(page)))
        };
        let spent: Vec<FrameRange> = going.iter().filter(unneeded).map(Run::frames).collect();
        match self.space.revoke_in_place(changes, &spent) {
            Ok(InPlace::Done) => Ok(()),
            Ok(InPlace::Stragglers(stragglers)) => {
                remains.stragglers = Some(stragglers);
                Ok(())
            }
            Ok(InPlace::Impossible) => self.revoke(changes, remains),
            Err(errno) => {
                remains.frames_are_lost = true;
                Err(errno)
            }
        }
    }

    /// Puts the pages among `remains` here, if they must not be freed yet. Before the lock goes under which they were taken out.
    pub(super) fn defer(&self, remains: &mut Remains) {
        let stragglers = remains.stragglers.take();
        if remains.frames_are_lost || stragglers.is_none() && self.limbo.is_empty() {
            return;
        }
        self.limbo.push(stragglers, std::mem::take(&mut remains.runs));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mm::{Advice, Discard, FaultOutcome, MapFlags, MapRequest, MemoryAccess, Mm, Prot};
    use crate::mm::{Entropy, Layout, MemoryLimits, Randomize};
    use crate::platform::fake::{self, FakePlatform, FakeSpace, FakeStraggler};
    use crate::platform::{Alignment, PAGE_SIZE, Platform};
    use std::sync::Arc;

    fn space(arena: &'static Arena) -> Arc<Mm> {
        let platform: Arc<dyn Platform> = FakePlatform::with_arena(arena);
        let layout = Layout::new(&mut Entropy::seeded(7), 8 << 20, Randomize::Yes);
        Mm::new(&platform, layout, MemoryLimits::default()).unwrap()
    }

    fn request(pages: u64) -> MapRequest {
        let prot = Prot::READ | Prot::WRITE;
        MapRequest { addr: 0, len: pages * PAGE_SIZE, prot, flags: MapFlags::default(), backing: None }
    }

    fn map(mm: &Mm, pages: u64) -> u64 {
        let at = mm.mmap(request(pages)).unwrap();
        (0..pages).for_each(|page| mm.write_bytes(at + page * PAGE_SIZE, &[7]).unwrap());
        at
    }

    /// A thread in the guest, and two mappings of so many pages.
    fn guest(pages: u64) -> (&'static Arena, Arc<Mm>, Arc<FakeStraggler>, [u64; 2]) {
        let arena = fake::new_arena(10_000);
        let mm = space(arena);
        let inside = FakeSpace::of(mm.space()).enter_guest();
        let mapped = [map(&mm, pages), map(&mm, pages)];
        (arena, mm, inside, mapped)
    }

    #[test]
    fn pages_wait_until_everybody_has_left() {
        let (arena, mm, inside, [first, second]) = guest(4);
        let used = arena.frames_in_use();
        mm.munmap(first, 4 * PAGE_SIZE).unwrap();
        mm.madvise(second, PAGE_SIZE, Advice::Discard(Discard::DontNeed)).unwrap();
        mm.reap();
        assert_eq!(arena.frames_in_use(), used);
        assert_eq!(mm.read_bytes(first, &mut [0]), Err(crate::errno::Errno::EFAULT));
        inside.leave();
        mm.reap();
        assert_eq!(arena.frames_in_use(), used - 5);
        assert!(!inside.was_expelled());
    }

    #[test]
    fn nobody_overtakes() {
        let (arena, mm, slow, [first, second]) = guest(1);
        let used = arena.frames_in_use();
        // The entries go now, the frames with a later call that finds none.
        mm.mprotect(first, PAGE_SIZE, Prot::empty()).unwrap();
        let quick = FakeSpace::of(mm.space()).enter_guest();
        mm.munmap(second, PAGE_SIZE).unwrap();
        quick.leave();
        mm.munmap(first, PAGE_SIZE).unwrap();
        assert_eq!(arena.frames_in_use(), used);
        slow.leave();
        mm.reap();
        assert_eq!(arena.frames_in_use(), used - 2);
    }

    #[test]
    fn what_must_be_sure_makes_them_leave() {
        let arena = fake::new_arena(10_000);
        let mm = space(arena);
        let at = map(&mm, 1);
        let used = arena.frames_in_use();
        let inside = FakeSpace::of(mm.space()).enter_guest();
        mm.munmap(at, PAGE_SIZE).unwrap();
        let child = mm.fork().unwrap();
        assert!(inside.was_expelled());
        assert_eq!(arena.frames_in_use(), used - 1);
        drop(child);
        // So does a lack of memory.
        let inside = FakeSpace::of(mm.space()).enter_guest();
        let small = map(&mm, 20);
        mm.munmap(small, 20 * PAGE_SIZE).unwrap();
        let at = mm.mmap(request(64)).unwrap();
        let hoard = arena.alloc(arena.frames_max() - arena.frames_in_use(), Alignment::Page).unwrap();
        assert_eq!(mm.fault(at, MemoryAccess::Write), FaultOutcome::Resolved);
        assert!(inside.was_expelled());
        assert_eq!(mm.fault(at, MemoryAccess::Write), FaultOutcome::Resolved);
        assert!(mm.space().lookup(at).is_some());
        arena.release(hoard);
        // So do too many pages.
        let inside = FakeSpace::of(mm.space()).enter_guest();
        let at = map(&mm, MAX_PAGES + 1);
        mm.munmap(at, (MAX_PAGES + 1) * PAGE_SIZE).unwrap();
        assert!(inside.was_expelled());
        // And the end of the address space frees what waits.
        FakeSpace::of(mm.space()).enter_guest();
        let at = map(&mm, 3);
        mm.munmap(at, 3 * PAGE_SIZE).unwrap();
        drop(mm);
        assert_eq!(arena.frames_in_use(), 0);
    }
}
