//! What an address space knows of its call sites: which are called often, which are patched, and what its threads' registers
//! mean inside trampolines.
//!
//! Locks: the table's is taken with the address space's `state` held for writing by whoever changes it, and alone by threads on
//! their way into and out of the guest. Counting takes none.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::RwLock;

use super::decode::Plan;
use super::room::{MOST_REGIONS, REGION, Room};
use super::trampoline::Trampoline;
use crate::platform::{Exit, Registers};

/// A site is patched at this many calls: patching costs 60 µs, and as much again until a dispatcher is back, and gains two with each call.
const OFTEN: u64 = 64;
/// The count of a site that has been dealt with.
const SETTLED: u64 = 0xffff;
/// Sites that are counted at a time. Sites that share a place push each other out.
const COUNTED: usize = 256;
/// Sites patched in an address space, those that were undone among them.
pub(super) const MOST_SITES: usize = 1024;

/// Far from every address.
const NOWHERE: u64 = 1 << 63;

/// The exception of an invalid opcode.
const INVALID_OPCODE: u8 = 6;

/// A patched site.
#[derive(Clone)]
pub(super) struct Site {
    pub plan: Plan,
    /// Its trampoline's address.
    pub target: u64,
}

/// The part behind a lock.
#[derive(Clone, Default)]
pub(super) struct Sites {
    /// By the address of the jump.
    pub sites: BTreeMap<u64, Site>,
    /// By their addresses. Those of sites that were undone stay as long as their room does: threads may be in there.
    pub trampolines: BTreeMap<u64, Trampoline>,
    /// Where instructions were that have moved, and where they are now.
    pub entrances: BTreeMap<u64, u64>,
    /// Counts what was undone; a thread that entered the guest at another count may still be where things were.
    pub undone: u64,
    /// Entrances and trampolines that are gone.
    former_entrances: BTreeMap<u64, ()>,
    former_trampolines: BTreeMap<u64, Trampoline>,
    /// Where trampolines are.
    pub room: Room,
    /// Sites ever patched.
    pub patched: usize,
}

/// Shared by an address space and the threads in it.
pub struct Patches {
    /// There is or was a patched site.
    active: AtomicBool,
    /// Nothing more is patched here.
    closed: AtomicBool,
    /// Where the regions of trampolines start, [`REGION`] bytes each; [`NOWHERE`] for none.
    regions: [AtomicU64; MOST_REGIONS],
    /// Return address of a call and how often it came, in 48 and 16 bits.
    counts: Box<[AtomicU64]>,
    pub(super) sites: RwLock<Sites>,
}

impl Default for Patches {
    fn default() -> Patches {
        Patches {
            active: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            regions: [const { AtomicU64::new(NOWHERE) }; MOST_REGIONS],
            counts: (0..COUNTED).map(|_| AtomicU64::new(0)).collect(),
            sites: RwLock::default(),
        }
    }
}

impl Patches {
    /// A call came without an exit and returns to `behind`. Whether it is time to patch its site: then the call is to be made by
    /// an exit.
    pub fn called(&self, behind: u64) -> bool {
        let inside = |start: &AtomicU64| behind.wrapping_sub(start.load(Ordering::Relaxed)) < REGION;
        if self.regions.iter().any(inside) || self.closed.load(Ordering::Relaxed) {
            return false;
        }
        let Some(count) = self.count(behind) else { return false };
        let seen = count.load(Ordering::Relaxed);
        let times = if seen >> 16 == behind { seen & 0xffff } else { 0 };
        if times == SETTLED {
            return false;
        }
        let times = times.saturating_add(1).min(OFTEN);
        count.store(behind << 16 | times, Ordering::Relaxed);
        times == OFTEN
    }

    /// Whether the caller, whose call by an exit returns to `behind`, is to patch its site now: at most one is.
    pub fn take_due(&self, behind: u64) -> bool {
        let Some(count) = self.count(behind) else { return false };
        let due = behind << 16 | OFTEN;
        count.load(Ordering::Relaxed) == due
            && count
                .compare_exchange(due, behind << 16 | SETTLED, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    fn count(&self, behind: u64) -> Option<&AtomicU64> {
        let hash = behind.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        self.counts.get(usize::try_from(hash).unwrap_or(0) % COUNTED)
    }

    /// Whether anything is or was patched.
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    pub(super) fn activate(&self, regions: &[Range<u64>]) {
        for (index, start) in self.regions.iter().enumerate() {
            start.store(regions.get(index).map_or(NOWHERE, |region| region.start), Ordering::Relaxed);
        }
        self.active.store(true, Ordering::Release);
    }

    /// Whether no site will be patched any more.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    pub(in crate::mm) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    pub(super) fn inherit(&self, parent: &Patches) {
        self.closed.store(parent.is_closed(), Ordering::Relaxed);
        for (to, from) in self.regions.iter().zip(&parent.regions) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.active.store(parent.is_active(), Ordering::Release);
        for (to, from) in self.counts.iter().zip(&parent.counts) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// A thread is about to enter the guest: where it goes on, and what [`Patches::leave`] wants to know.
    pub fn enter(&self, rip: u64) -> (u64, u64) {
        if !self.is_active() {
            return (rip, 0);
        }
        let sites = self.sites.read();
        (sites.entrances.get(&rip).copied().unwrap_or(rip), sites.undone)
    }

    /// A thread has left the guest, having entered it at the count `entered`: its registers become the program's. Returns what has
    /// happened to it as the program knows it.
    pub fn leave(&self, entered: u64, registers: &mut Registers, exit: Exit) -> Exit {
        if !self.is_active() {
            return exit;
        }
        self.sites.read().leave(entered, registers, exit)
    }
}

impl Sites {
    fn leave(&self, entered: u64, registers: &mut Registers, exit: Exit) -> Exit {
        let rip = registers.rip;
        let changed = self.undone != entered;
        if let Exit::Exception { vector: INVALID_OPCODE, .. } = exit
            && (self.entrances.contains_key(&rip) || changed && self.former_entrances.contains_key(&rip))
        {
            // Next time it enters at the moved instruction, or at the one that is back.
            return Exit::Interrupted;
        }
        let found = find(&self.trampolines, rip)
            .or_else(|| if changed { find(&self.former_trampolines, rip) } else { None });
        match found {
            Some((offset, trampoline)) => trampoline.leave(offset, registers, exit),
            None => exit,
        }
    }

    /// Whether anything is patched that lies in the range.
    pub fn any_in(&self, range: &Range<u64>) -> bool {
        self.in_range(range).next().is_some()
    }

    /// Sites that overlap the range.
    pub fn in_range<'a>(&'a self, range: &'a Range<u64>) -> impl Iterator<Item = &'a Site> {
        // No site is that long.
        let first = range.start.saturating_sub(64);
        self.sites
            .range(first..range.end.max(first))
            .map(|(_, site)| site)
            .filter(|site| site.plan.covers().end > range.start)
    }

    /// Adds a site.
    pub fn add(&mut self, site: Site, trampoline: Trampoline, entrances: &[(u64, u64)]) {
        self.trampolines.insert(site.target, trampoline);
        self.entrances.extend(entrances.iter().copied());
        self.sites.insert(site.plan.at, site);
        self.patched = self.patched.saturating_add(1);
    }

    /// Forgets a site, whose bytes are or will be what they were. Its trampoline stays.
    pub fn forget(&mut self, at: u64) -> Option<Site> {
        let site = self.sites.remove(&at)?;
        for moved in &site.plan.moved {
            self.entrances.remove(&moved.address);
            self.former_entrances.insert(moved.address, ());
        }
        self.undone = self.undone.wrapping_add(1);
        Some(site)
    }

    /// No thread knows anything that was undone before: nobody has entered the guest here yet.
    pub fn forget_former(&mut self) {
        self.former_entrances.clear();
        self.former_trampolines.clear();
    }

    /// The trampolines of a range are gone.
    pub fn bury(&mut self, range: Range<u64>) {
        let gone: Vec<u64> = self.trampolines.range(range).map(|(start, _)| *start).collect();
        for start in gone {
            if let Some(trampoline) = self.trampolines.remove(&start) {
                self.former_trampolines.insert(start, trampoline);
            }
        }
        self.undone = self.undone.wrapping_add(1);
    }
}

/// The trampoline that an address is in, and how far.
fn find(trampolines: &BTreeMap<u64, Trampoline>, rip: u64) -> Option<(u64, &Trampoline)> {
    let (start, trampoline) = trampolines.range(..=rip).next_back()?;
    let offset = rip - start;
    (offset < trampoline.len()).then_some((offset, trampoline))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_due_once() {
        let patches = Patches::default();
        for _ in 1..OFTEN {
            assert!(!patches.called(0x1000));
        }
        assert!(!patches.take_due(0x1000));
        assert!(patches.called(0x1000) && patches.called(0x1000), "until it is dealt with");
        assert!(patches.take_due(0x1000));
        assert!(!patches.take_due(0x1000) && !patches.called(0x1000));
        patches.close();
        for _ in 0..100 {
            assert!(!patches.called(0x2000));
        }
    }

    #[test]
    fn calls_from_trampolines_do_not_count() {
        let patches = Patches::default();
        let regions = [0x10_0000..0x20_0000, 0x7000_0000..0x7010_0000];
        patches.activate(&regions);
        for _ in 0..100 {
            assert!(!patches.called(0x10_0040) && !patches.called(0x700f_ffff));
        }
        assert!((0..100).any(|_| patches.called(0x20_0000)), "what lies between is the program's");
    }
}
