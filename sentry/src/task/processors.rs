//! Which processor a thread runs on, as the guest sees it.
//!
//! The host schedules host threads and tells nobody when it moves or preempts one. So a processor number is a name that the
//! kernel gives out: every task has one ([`Task::cpu`], among those its affinity allows), and `getcpu`, `rseq` and `/proc`
//! agree on it. For most tasks that is all, and it costs nothing.
//!
//! Restartable sequences ask for more: of the threads that share memory no two may be *in the guest* under the same number,
//! unless the one that came first has been told. For an address space with several threads [`Processors`] keeps that
//! promise. A number is a **place** that a thread occupies while it is in the guest, and keeps, but may lose, while it is not:
//!
//! ```text
//!        take (free, or its holder idle)           enter
//!  free ────────────────────────────────▶ outside ◀──────▶ in the guest
//!    ▲                                      │  ▲    leave       │
//!    └────────────── give up ───────────────┘  └── handed over ─┘  (its time is up and another thread waits)
//! ```
//! Only when more threads want to run than there are numbers does anybody wait: the first in the queue looks for a place, kicks a
//! thread whose time is up, and is handed its place. A place that was lost shows in the word of its slot, so the loser
//! finds out when it comes back, and then restarts its sequence ([`super::rseq`]).
//!
//! Locks: the queue is taken with no other lock held, a slot's `kicker` is a leaf.
//!
//! Not there yet: threads of different address spaces over shared memory may run under one number at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, FairMutex, Mutex};

use super::Task;
use crate::platform::Kicker;

/// How long a thread may run while another waits for its place.
const TURN: Duration = Duration::from_millis(2);
/// A thread that has been outside of the guest for so long has lost its place to whoever wants it.
const ABSENCE: Duration = Duration::from_micros(50);
/// How often the first in the queue looks again.
const LOOK: Duration = Duration::from_micros(200);

/// The processors that a task may run on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CpuMask {
    /// All there are.
    #[default]
    All,
    /// Those whose bit is set; bit n of word m is processor 64 m + n.
    Only(Vec<u64>),
}

impl CpuMask {
    /// Whether it names a processor.
    pub fn contains(&self, cpu: u32) -> bool {
        match self {
            CpuMask::All => true,
            CpuMask::Only(words) => {
                let word = words.get((cpu / 64) as usize).copied().unwrap_or(0);
                word >> (cpu % 64) & 1 != 0
            }
        }
    }

    /// Its bits for a machine with `cpus` processors: whole words, no bit beyond.
    pub fn words(&self, cpus: u32) -> Vec<u64> {
        let mut words = vec![0u64; cpus.max(1).div_ceil(64) as usize];
        for cpu in (0..cpus.max(1)).filter(|cpu| self.contains(*cpu)) {
            if let Some(word) = words.get_mut((cpu / 64) as usize) {
                *word |= 1 << (cpu % 64);
            }
        }
        words
    }

    /// The `n`th of its processors, counted around; 0 if it has none.
    pub fn nth(&self, n: u32, cpus: u32) -> u32 {
        let mine: Vec<u32> = (0..cpus.max(1)).filter(|cpu| self.contains(*cpu)).collect();
        let at = usize::try_from(n).unwrap_or(0).checked_rem(mine.len()).unwrap_or(0);
        mine.get(at).copied().unwrap_or(0)
    }

    /// As `/proc/*/status` shows it: groups of 32 bits, most significant first, as many as the machine needs.
    pub fn hex(&self, cpus: u32) -> String {
        let halves: Vec<u32> =
            self.words(cpus).iter().flat_map(|word| [*word as u32, (*word >> 32) as u32]).collect();
        let groups = cpus.max(1).div_ceil(32) as usize;
        // The first group has no more digits than it has processors for.
        let first = (cpus.saturating_sub(1) % 32 / 4).saturating_add(1) as usize;
        let texts = halves.iter().take(groups).rev().enumerate().map(|(n, group)| {
            let width = if n == 0 { first } else { 8 };
            format!("{group:0width$x}")
        });
        texts.collect::<Vec<_>>().join(",")
    }

    /// As `/proc/*/status` lists it: `0-3,8`.
    pub fn list(&self, cpus: u32) -> String {
        let mut parts = Vec::new();
        let mut cpu = 0;
        while cpu < cpus.max(1) {
            let run = (cpu..cpus.max(1)).take_while(|n| self.contains(*n)).count();
            let end = cpu.saturating_add(u32::try_from(run).unwrap_or(u32::MAX));
            match run {
                0 => {}
                1 => parts.push(cpu.to_string()),
                _ => parts.push(format!("{cpu}-{}", end.saturating_sub(1))),
            }
            cpu = end.saturating_add(1);
        }
        parts.join(",")
    }
}

impl Task {
    /// The number of the processor it runs on, or ran on last.
    pub fn cpu(&self) -> u32 {
        self.cpu.load(Ordering::Relaxed)
    }

    /// It is about to sleep, and needs no place meanwhile.
    pub(super) fn rest(&self) {
        if self.has_place.load(Ordering::Relaxed)
            && let Some(processors) = self.mm.read().shared_processors()
        {
            processors.rest(self.cpu());
        }
    }

    pub(super) fn set_cpu(&self, cpu: u32) {
        self.cpu.store(cpu, Ordering::Relaxed);
    }

    /// Lets it run on `mask` only. Where it is now takes effect when it next enters the guest, which is soon.
    pub fn set_affinity(&self, mask: CpuMask) {
        let allowed = mask.contains(self.cpu());
        let cpu = mask.nth(self.tid().cast_unsigned(), self.kernel().system_info().cpus);
        self.update_attributes(|attributes| attributes.affinity = mask);
        if !allowed {
            self.set_cpu(cpu);
            self.disturbed.store(true, Ordering::Release);
            self.kicker.kick();
        }
    }

    /// Makes it look after its restartable sequence before it executes another instruction.
    pub(crate) fn disturb(&self) {
        self.disturbed.store(true, Ordering::Release);
        self.kicker.kick();
    }
}

/// The places of an address space with several threads. See the module documentation.
pub struct Processors {
    slots: Box<[Slot]>,
    epoch: Instant,
    /// Held by the first in the queue.
    queue: FairMutex<()>,
    /// How many are in the queue.
    queued: AtomicUsize,
    /// Where the first in the queue sleeps.
    news: (Mutex<()>, Condvar),
}

/// A place.
#[derive(Default)]
struct Slot {
    /// 0: free. Else twice its holder's id, and 1 more while it is in the guest.
    word: AtomicU64,
    /// Who gets it when its holder leaves the guest; 0: the holder keeps it.
    wanted: AtomicU64,
    /// Since when the holder has had it, and when it last left the guest: nanoseconds after the epoch.
    since: AtomicU64,
    left: AtomicU64,
    kicker: Mutex<Option<Kicker>>,
}

/// Who wants a place.
pub struct Tenant {
    id: u64,
    kicker: Kicker,
}

impl Tenant {
    /// Somebody new, who can be got out of the guest.
    pub fn new(kicker: Kicker) -> Tenant {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Tenant { id: NEXT.fetch_add(1, Ordering::Relaxed), kicker }
    }

    fn outside(&self) -> u64 {
        self.id << 1
    }

    fn inside(&self) -> u64 {
        self.id << 1 | 1
    }
}

impl Processors {
    /// `cpus` free places.
    pub fn new(cpus: u32) -> Arc<Processors> {
        Arc::new(Processors {
            slots: (0..cpus.max(1)).map(|_| Slot::default()).collect(),
            epoch: Instant::now(),
            queue: FairMutex::new(()),
            queued: AtomicUsize::new(0),
            news: (Mutex::new(()), Condvar::new()),
        })
    }

    fn now(&self) -> u64 {
        self.nanos(Instant::now())
    }

    fn nanos(&self, at: Instant) -> u64 {
        // Not near 0, which is long ago.
        let age = at.saturating_duration_since(self.epoch).saturating_add(Duration::from_secs(1));
        u64::try_from(age.as_nanos()).unwrap_or(u64::MAX)
    }

    fn slot(&self, cpu: u32) -> Option<&Slot> {
        self.slots.get(cpu as usize)
    }

    /// The thread enters the guest under the number it had; `false` if it has lost that.
    pub fn enter(&self, who: &Tenant, cpu: u32) -> bool {
        let Some(slot) = self.slot(cpu) else { return false };
        let (from, to) = (who.outside(), who.inside());
        slot.word.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// The thread has left the guest, `at`. If its time is up, the place goes to who waits for it.
    pub fn leave(&self, who: &Tenant, cpu: u32, at: Instant) {
        let Some(slot) = self.slot(cpu) else { return };
        let now = self.nanos(at);
        slot.left.store(now, Ordering::Relaxed);
        match slot.wanted.swap(0, Ordering::AcqRel) {
            0 => slot.word.store(who.outside(), Ordering::Release),
            next => {
                slot.since.store(now, Ordering::Relaxed);
                slot.word.store(next << 1, Ordering::Release);
                drop(self.news.0.lock());
                self.news.1.notify_one();
            }
        }
    }

    /// The thread, which is not in the guest, does not need the place any more.
    pub fn give_up(&self, who: &Tenant, cpu: u32) {
        let Some(slot) = self.slot(cpu) else { return };
        let mine = slot.word.compare_exchange(who.outside(), 0, Ordering::AcqRel, Ordering::Relaxed);
        if mine.is_ok() {
            drop(self.news.0.lock());
            self.news.1.notify_one();
        }
    }

    /// The thread with this place goes to sleep: whoever wants it can have it.
    pub fn rest(&self, cpu: u32) {
        let Some(slot) = self.slot(cpu) else { return };
        // Should it belong to another by now, that one just has no grace.
        slot.left.store(0, Ordering::Relaxed);
        if self.queued.load(Ordering::Acquire) > 0 {
            drop(self.news.0.lock());
            self.news.1.notify_one();
        }
    }

    /// Enters the guest under some number out of `mask`, waiting for one if need be. Ends in any case: whoever has a place can be
    /// got out of the guest.
    pub fn acquire(&self, who: &Tenant, mask: &CpuMask) -> u32 {
        let now = self.now();
        if let Some(cpu) = self.take(who, mask, |slot| slot.is_idle(now)) {
            return cpu;
        }
        self.queued.fetch_add(1, Ordering::AcqRel);
        let first = self.queue.lock();
        let cpu = self.wait_for_place(who, mask);
        drop(first);
        self.queued.fetch_sub(1, Ordering::AcqRel);
        cpu
    }

    /// What the first in the queue does.
    fn wait_for_place(&self, who: &Tenant, mask: &CpuMask) -> u32 {
        loop {
            let now = self.now();
            if let Some(cpu) = self.take(who, mask, |slot| slot.is_idle(now)) {
                return cpu;
            }
            self.press(who, mask, now);
            let mut guard = self.news.0.lock();
            let _ = self.news.1.wait_for(&mut guard, LOOK);
        }
    }

    /// Takes a place that is free, handed over, or that `may_rob` says its holder does not need, and enters the guest there.
    fn take(&self, who: &Tenant, mask: &CpuMask, may_rob: impl Fn(&Slot) -> bool) -> Option<u32> {
        for (cpu, slot) in (0u32..).zip(&self.slots).filter(|(cpu, _)| mask.contains(*cpu)) {
            let word = slot.word.load(Ordering::Acquire);
            let open = word == 0 || word == who.outside() || (word & 1 == 0 && may_rob(slot));
            let swap =
                |from| slot.word.compare_exchange(from, who.inside(), Ordering::AcqRel, Ordering::Relaxed);
            if open && swap(word).is_ok() {
                let now = self.now();
                slot.since.store(now, Ordering::Relaxed);
                slot.left.store(now, Ordering::Relaxed);
                slot.wanted.store(0, Ordering::Release);
                *slot.kicker.lock() = Some(who.kicker.clone());
                return Some(cpu);
            }
        }
        None
    }

    /// Asks for the place of whoever has had its time.
    fn press(&self, who: &Tenant, mask: &CpuMask, now: u64) {
        let slots =
            (0u32..).zip(&self.slots).filter(|(cpu, slot)| mask.contains(*cpu) && slot.has_had_its_turn(now));
        let oldest = slots.min_by_key(|(_, slot)| slot.since.load(Ordering::Relaxed));
        let Some((_, slot)) = oldest else { return };
        if slot.wanted.swap(who.id, Ordering::AcqRel) != who.id
            && let Some(kicker) = &*slot.kicker.lock()
        {
            kicker.kick();
        }
    }
}

impl Slot {
    fn older(nanos: &AtomicU64, now: u64, than: Duration) -> bool {
        Duration::from_nanos(now.saturating_sub(nanos.load(Ordering::Relaxed))) >= than
    }

    fn has_had_its_turn(&self, now: u64) -> bool {
        Self::older(&self.since, now, TURN)
    }

    /// Whether a holder outside of the guest has lost its right to come back.
    fn is_idle(&self, now: u64) -> bool {
        self.has_had_its_turn(now) || Self::older(&self.left, now, ABSENCE)
    }
}

#[cfg(test)]
#[path = "processors_tests.rs"]
mod tests;
