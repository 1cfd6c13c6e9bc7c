//! System calls without exits.
//!
//! ```text
//!  guest thread in its vCPU                 dispatcher (host thread)              the thread's own host thread
//!  syscall → stub: saves, posts ──────────▶ sees POSTED, claims                   inside KVM_RUN
//!          spins                            Answer::answer(): runs the call
//!          DONE: back to the user ◀──────── writes the result, DONE
//!  LEAVE or REFUSED, nobody comes,
//!  or the dispatchers sleep: out ────────────────────────────────────────────────▶ KVM_RUN returns
//! ```
//! [`stub`] is the guest's side, [`slot`] the memory between, [`Answer`] what the kernel does. This module owns the list of slots and
//! the dispatchers' sleep.
//!
//! # Who may do what
//! - A dispatcher works on a slot under the slot's lock, and only while the vCPU's bit in `active` says that it is in the guest.
//! - A slot's memory is written by dispatchers under the slot's lock only, and an address space that goes away takes its slots out of
//!   there before its pages become anything else.
//! - The vCPU's thread sets the bit before and clears it after KVM_RUN. When it comes back *inside the stub* it takes the slot's
//!   lock before it looks at the state, so a claimed call has ended by then. It does so after its gate says that it has left the guest:
//!   a dispatcher that revokes memory on its behalf waits for just that.
//! - The state words decide nothing else: on emulated ring 0 the guest can write them.
//!
//! # When dispatchers are awake
//! They poll while calls come in, and sleep after [`SILENCE`] without one, or up to [`LONG_SILENCE`] if their sleeps turn out short: a guest may
//! be busy with page faults or with a call that exits, and then go on calling. A thread whose calls exit in quick succession wakes one, unless
//! processors are scarce. That they are is seen in three ways: a polling dispatcher finds that it did not run for a while; a posted call is
//! not claimed in time; a dispatcher that was woken finds hardly anything to do though a guest is inside (it got the processor only when the guest had
//! lost it). Then all calls exit for a time that doubles from [`FIRST_PAUSE`] to [`LAST_PAUSE`] (to [`LAST_PAUSE_OF_OTHERS`] where threads that wait answer calls)
//! as long as that goes on and fewer than [`ENOUGH`] are answered between. How many guests are running does not matter; those that only
//! call take turns if they are too many ([`admission`]).
//!
//! A call that nobody claims in time although a dispatcher is at work has met one that is busy with others: another one is woken, as
//! long as there are processors. Where all dispatchers have been at one call each for a while, guests that come in do not count on them.
//!
//! A dispatcher gives way to threads that wait and answer calls meanwhile ([`assist`]), if all of them are too many.

pub(crate) mod admission;
mod assist;
pub(crate) mod faulting;
mod placement;
pub(crate) mod ride;
pub(crate) mod slot;
pub(crate) mod stub;
#[cfg(test)]
mod tests;

use crate::kick::Gate;
use crate::machine::rdtsc;
use admission::{Admission, Earnings, Shown};
pub use faulting::{Faulting, Where};
use parking_lot::{Condvar, Mutex};
use placement::Placement;
use ride::Ride;
pub use ride::{Boarding, Place, Switch};
use slot::SlotMemory;
pub use slot::{LooseSlot, Posted, Request};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Weak};
use std::time::Duration;
pub use stub::PatchedEntry;

// The times below are for a host on which a system call by exit costs about this many microseconds, or fewer. Where it costs more (a host that is
// emulated itself) they are longer in proportion: a dispatcher that is awake for less than an exit takes never meets the call it was woken for.
const EXIT: u64 = 25;
/// At most so many times longer.
const SLOWEST: u64 = 20;
/// Microseconds without a call after which a dispatcher sleeps: at first, and at most.
const SILENCE: u64 = 50;
const LONG_SILENCE: u64 = 400;
/// A dispatcher that is woken within so many microseconds of having gone to sleep had better have waited longer.
const SOON: u64 = 1000;
/// A dispatcher that finds this many microseconds missing was not running.
const GAP: u64 = 300;
/// Calls that exit follow each other in quick succession when fewer microseconds are between them.
const SUCCESSION: u64 = 150;
/// So many of them wake a dispatcher.
const STREAK: u32 = 4;
/// A dispatcher that has answered a call within so many microseconds is at work.
const BUSY: u64 = 20;
/// A dispatcher looks at the slots so many times before it looks at the clock.
const ROUNDS: u32 = 8;
/// Microseconds for which a woken thread is held back for its waker to wait.
const HOLD: u64 = 10;
/// Waking a dispatcher for fewer calls than this costs more than it gains.
const WORTHWHILE: u32 = 16;
/// A dispatcher that has answered so many calls in a row had the processors it needs.
const ENOUGH: u32 = 256;
/// Microseconds for which nobody is woken after processors turned out to be scarce: at first, and at most. A wake-up then costs as much as some calls by
/// exits and is worth a dozen, so it may often fail.
const FIRST_PAUSE: u64 = 125;
const LAST_PAUSE: u64 = 1000;
/// And at most where threads that wait answer calls: they need nobody else, and another one is in their way.
const LAST_PAUSE_OF_OTHERS: u64 = 64_000;

/// Turns of the guest's loop before it withdraws a call that nobody has claimed: some tens of microseconds, and the time it takes a thread
/// to come out of the guest and poll.
const TURNS: u32 = 600;
const TURNS_IN_HOPE: u32 = 600;

/// What became of a claimed call.
#[derive(Debug)]
pub enum Answered {
    /// The result for rax; the guest goes on.
    Done(u64),
    /// The guest goes on already: [`Request::done`] has told it the result.
    Told,
    /// The result for rax, and `run` returns [`crate::Exit::Interrupted`] with it.
    Leave(u64),
    /// The page fault is resolved: the guest tries again.
    Resolved,
    /// Nothing was done: `run` returns [`crate::Exit::Syscall`], or the page fault.
    Refused,
    /// The call waits, and another thread goes on in the vCPU ([`ride`]).
    Switch(Switch),
}

/// A guest thread's side of the kernel, as dispatchers see it.
pub trait Answer: Send + Sync {
    /// Called by a dispatcher that saw a posted call. Takes the call by [`Posted::claim`], which gives `None` when it is gone, and must
    /// then answer it. `None`: not now (the thread's state is in other hands).
    fn answer(&self, posted: &Posted<'_>) -> Option<Answered>;

    /// Whether the calling dispatcher holds somebody back, woken by a call that it has just answered, because the caller is likely to wait next
    /// and could hand its vCPU over.
    fn holds(&self) -> bool {
        false
    }

    /// Lets whom the calling dispatcher holds back go.
    fn release(&self) {}
}

/// What happened so far, since the machine was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DispatchCounters {
    /// Calls answered without an exit.
    pub answered: u64,
    /// Calls and page faults that a waiting thread has answered.
    pub assisted: u64,
    /// Calls that were posted and sent back to be made by an exit.
    pub refused: u64,
    /// Calls that nobody claimed in time.
    pub withdrawn: u64,
    /// Calls made by an exit, the two above among them.
    pub exits: u64,
    /// Page faults resolved without an exit.
    pub faults: u64,
    /// Page faults by an exit.
    pub fault_exits: u64,
    /// How often a dispatcher was woken.
    pub wakes: u64,
    /// How often one stopped because processors were scarce.
    pub scarce: u64,
    /// How often a thread handed its vCPU over to another one of its process.
    pub switches: u64,
}

#[derive(Debug, Default)]
struct Counters {
    answered: AtomicU64,
    assisted: AtomicU64,
    refused: AtomicU64,
    withdrawn: AtomicU64,
    exits: AtomicU64,
    faults: AtomicU64,
    fault_exits: AtomicU64,
    wakes: AtomicU64,
    scarce: AtomicU64,
    switches: AtomicU64,
}

/// Where a slot is, and who answers its calls, if anybody.
struct Bound {
    memory: SlotMemory,
    answer: Option<Weak<dyn Answer>>,
    /// The thread that has the vCPU.
    gate: Arc<Gate>,
    /// A second thread that runs or rests here.
    ride: Option<Ride>,
}

/// A vCPU's slot: where it is and who answers. Set by the thread that has the vCPU.
#[derive(Default)]
struct Slot {
    bound: Mutex<Option<Bound>>,
    /// The address in `bound`, to look at the state without the lock; 0 for none.
    address: AtomicU64,
    /// The address space that the memory belongs to and goes with. Changed under the lock; read without it by a space that goes away,
    /// which must not wait for a dispatcher that serves another space in this slot: it may be that very dispatcher that drops it.
    space: AtomicU64,
    /// What others see of the thread inside.
    shown: Shown,
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slot({:#x})", self.address.load(Ordering::Relaxed))
    }
}

/// The slots of a machine's vCPUs, and its dispatchers.
#[derive(Debug)]
pub(crate) struct Dispatch {
    slots: Box<[Slot]>,
    /// A bit per vCPU: it is in the guest.
    active: Box<[AtomicU64]>,
    processors: u32,
    /// Threads that poll.
    awake: AtomicU32,
    /// Those of them that wait for something else.
    stand_ins: AtomicU32,
    /// Dispatchers that there are.
    present: AtomicU32,
    sleep: Mutex<Sleep>,
    called: Condvar,
    /// Time stamp before which nobody is woken.
    not_before: AtomicU64,
    /// The pause that comes next, in microseconds.
    pause: AtomicU64,
    /// How many calls dispatchers had answered when the last one began.
    answered_before_pause: AtomicU64,
    /// And how many by threads that wait.
    assisted_before_pause: AtomicU64,
    ticks_per_microsecond: AtomicU64,
    /// When a call was last answered.
    last_answer: AtomicU64,
    /// Calls by exits that a dispatcher could have made.
    missed: AtomicU64,
    /// How many are being answered.
    answering: AtomicU32,
    /// How many times longer the times are on this host.
    slowness: AtomicU64,
    admission: Admission,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Sleep {
    wakes: u32,
    /// The processor of the thread that woke last: that is where its guest runs.
    waker: Option<usize>,
    stopped: bool,
}

/// A thread's recent exits by system call.
#[derive(Debug, Default)]
pub(crate) struct History {
    last: u64,
    streak: u32,
}

impl Dispatch {
    pub(crate) fn new(vcpus: u32) -> Dispatch {
        let processors = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        Dispatch {
            slots: (0..vcpus).map(|_| Slot::default()).collect(),
            active: (0..vcpus.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            processors,
            awake: AtomicU32::new(0),
            stand_ins: AtomicU32::new(0),
            present: AtomicU32::new(0),
            sleep: Mutex::default(),
            called: Condvar::new(),
            not_before: AtomicU64::new(0),
            pause: AtomicU64::new(FIRST_PAUSE),
            answered_before_pause: AtomicU64::new(0),
            assisted_before_pause: AtomicU64::new(0),
            ticks_per_microsecond: AtomicU64::new(2000),
            last_answer: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            answering: AtomicU32::new(0),
            slowness: AtomicU64::new(1),
            admission: Admission::default(),
            counters: Counters::default(),
        }
    }

    pub(crate) fn set_tsc_khz(&self, khz: u32) {
        if khz > 1000 {
            self.ticks_per_microsecond.store(u64::from(khz) / 1000, Ordering::Relaxed);
        }
    }

    /// What a system call by exit costs on this host.
    pub(crate) fn set_exit_cost(&self, ticks: u64) {
        let usual = EXIT * self.ticks_per_microsecond.load(Ordering::Relaxed);
        self.slowness.store((ticks / usual.max(1)).clamp(1, SLOWEST), Ordering::Relaxed);
    }

    pub(crate) fn counters(&self) -> DispatchCounters {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let c = &self.counters;
        DispatchCounters {
            answered: of(&c.answered),
            assisted: of(&c.assisted),
            refused: of(&c.refused),
            withdrawn: of(&c.withdrawn),
            exits: of(&c.exits),
            faults: of(&c.faults),
            fault_exits: of(&c.fault_exits),
            wakes: of(&c.wakes),
            scarce: of(&c.scarce),
            switches: of(&c.switches),
        }
    }

    /// The vCPU's calls go through `memory`, which is good until [`Dispatch::unbind`], to `answer` from now on. The vCPU is not in the
    /// guest.
    pub(crate) fn bind(
        &self,
        vcpu: u32,
        memory: SlotMemory,
        space: u64,
        (answer, gate): (Option<Weak<dyn Answer>>, Arc<Gate>),
    ) {
        let Some(slot) = self.slots.get(vcpu as usize) else { return };
        memory.set_awake(0);
        let mut bound = slot.bound.lock();
        let before = bound.replace(Bound { memory, answer, gate, ride: None });
        if let Some(ride) = before.and_then(|before| before.ride) {
            ride.put_ashore();
        }
        slot.space.store(space, Ordering::Release);
        slot.address.store(memory.address() as u64, Ordering::Release);
    }

    /// The memory of the vCPU's slot in this space is about to become something else. No dispatcher touches it afterwards.
    pub(crate) fn unbind(&self, vcpu: u32, space: u64) {
        let Some(slot) = self.slots.get(vcpu as usize) else { return };
        if slot.space.load(Ordering::Acquire) == space {
            let mut bound = slot.bound.lock();
            *bound = None;
            slot.address.store(0, Ordering::Release);
            slot.space.store(0, Ordering::Release);
        }
    }

    /// The vCPU is about to enter the guest.
    pub(crate) fn enter(&self, vcpu: u32, memory: SlotMemory) {
        let (word, bit) = (vcpu as usize / 64, 1 << (vcpu % 64));
        if let Some(word) = self.active.get(word) {
            word.fetch_or(bit, Ordering::SeqCst);
        }
        let now = rdtsc();
        let dispatchers =
            self.awake.load(Ordering::SeqCst) > 0 && !self.pausing(now) && !self.is_held_up(now);
        let stand_ins = self.stand_ins.load(Ordering::SeqCst) > 0;
        let expecting = assist::expecting();
        memory.set_awake(match dispatchers || stand_ins {
            true => TURNS,
            false if expecting => TURNS_IN_HOPE,
            false => 0,
        });
    }

    fn pausing(&self, now: u64) -> bool {
        now < self.not_before.load(Ordering::Relaxed)
    }

    /// It is back.
    pub(crate) fn leave(&self, vcpu: u32) {
        let (word, bit) = (vcpu as usize / 64, 1_u64 << (vcpu % 64));
        if let Some(word) = self.active.get(word) {
            word.fetch_and(!bit, Ordering::SeqCst);
        }
    }

    /// Runs `settle` when no dispatcher works on the vCPU's call.
    pub(crate) fn settled<T>(&self, vcpu: u32, settle: impl FnOnce(Option<&Ride>) -> T) -> T {
        let bound = self.slots.get(vcpu as usize).map(|slot| slot.bound.lock());
        settle(bound.as_ref().and_then(|bound| bound.as_ref()).and_then(|bound| bound.ride.as_ref()))
    }

    /// A call has exited: wakes a dispatcher if the thread's calls follow one another.
    pub(crate) fn exited(&self, history: &mut History, handled: bool, withdrawn: bool) {
        self.counters.exits.fetch_add(1, Ordering::Relaxed);
        self.follow(history, handled, withdrawn);
    }

    /// A page fault has exited: the same.
    pub(crate) fn faulted(&self, history: &mut History, handled: bool, withdrawn: bool) {
        self.counters.fault_exits.fetch_add(1, Ordering::Relaxed);
        self.follow(history, handled, withdrawn);
    }

    fn follow(&self, history: &mut History, handled: bool, withdrawn: bool) {
        self.missed.fetch_add(handled.into(), Ordering::Relaxed);
        let now = rdtsc();
        if withdrawn {
            self.counters.withdrawn.fetch_add(1, Ordering::Relaxed);
            assist::in_vain();
            if self.is_busy(now) {
                self.wake_another(now);
            } else {
                self.scarce(now);
            }
        }
        let quick = now.wrapping_sub(history.last) < self.ticks(SUCCESSION);
        history.last = now;
        history.streak = if quick && handled { history.streak + 1 } else { 0 };
        if history.streak >= STREAK {
            history.streak = 0;
            self.wake(now);
        }
    }

    fn ticks(&self, microseconds: u64) -> u64 {
        let slowness = self.slowness.load(Ordering::Relaxed);
        microseconds * slowness * self.ticks_per_microsecond.load(Ordering::Relaxed)
    }

    pub(crate) fn duration(&self, ticks: u64) -> Duration {
        Duration::from_micros(ticks / self.ticks_per_microsecond.load(Ordering::Relaxed))
    }

    fn running(&self) -> u32 {
        self.active.iter().map(|word| word.load(Ordering::Relaxed).count_ones()).sum()
    }

    fn wake(&self, now: u64) {
        if self.pausing(now) {
            return;
        }
        // On a single processor it would poll instead of the guest.
        if self.processors < 2 || self.awake.load(Ordering::Relaxed) >= self.present.load(Ordering::Relaxed) {
            return;
        }
        self.wake_one();
    }

    /// Whether the dispatchers that are awake do run, and answer others, or are at a call that takes long.
    fn is_busy(&self, now: u64) -> bool {
        let last = self.last_answer.load(Ordering::Relaxed);
        let recent = now.saturating_sub(last) < self.ticks(BUSY);
        self.awake.load(Ordering::Relaxed) > 0 && (recent || self.answering.load(Ordering::Relaxed) > 0)
    }

    /// Whether all who are awake are at calls, and have been for a while: calls that take long, or they have lost their processors. Others had better not
    /// wait for them.
    fn is_held_up(&self, now: u64) -> bool {
        self.answering.load(Ordering::Relaxed) >= self.awake.load(Ordering::Relaxed)
            && now.saturating_sub(self.last_answer.load(Ordering::Relaxed)) >= self.ticks(BUSY)
    }

    /// One dispatcher is not enough for all guests: wakes another if there is a processor for it.
    fn wake_another(&self, now: u64) {
        let awake = self.awake.load(Ordering::Relaxed);
        // The caller's vCPU is outside and will be back.
        let room = self.running() + 1 + awake < self.processors;
        if room && awake < self.present.load(Ordering::Relaxed) && !self.pausing(now) {
            self.wake_one();
        }
    }

    fn wake_one(&self) {
        self.counters.wakes.fetch_add(1, Ordering::Relaxed);
        {
            let mut sleep = self.sleep.lock();
            sleep.wakes = 1;
            sleep.waker = placement::processor();
        }
        self.called.notify_one();
    }

    /// What a dispatcher's thread does until [`Dispatch::stop`].
    pub(crate) fn serve(&self) {
        let (mut placement, mut silence) = (Placement::new(), SILENCE);
        self.present.fetch_add(1, Ordering::SeqCst);
        loop {
            let begun = rdtsc();
            let waker = {
                let mut sleep = self.sleep.lock();
                while sleep.wakes == 0 && !sleep.stopped {
                    self.called.wait(&mut sleep);
                }
                if sleep.stopped {
                    break;
                }
                sleep.wakes = 0;
                sleep.waker
            };
            placement.keep_off(waker);
            let soon = rdtsc().wrapping_sub(begun) < self.ticks(SOON);
            silence = if soon { (silence * 2).min(LONG_SILENCE) } else { SILENCE };
            self.awake(|| self.poll(self.ticks(silence)));
        }
        self.present.fetch_sub(1, Ordering::SeqCst);
    }

    /// Lets the calling thread poll, as one that guests count on.
    fn awake<T>(&self, poll: impl FnOnce() -> T) -> T {
        self.awake.fetch_add(1, Ordering::SeqCst);
        self.tell_awake();
        let result = poll();
        self.awake.fetch_sub(1, Ordering::SeqCst);
        self.tell_awake();
        // Whoever posted before it could see that is answered still; whoever posts later withdraws by itself.
        fence(Ordering::SeqCst);
        self.round();
        result
    }

    pub(crate) fn stop(&self) {
        self.sleep.lock().stopped = true;
        self.called.notify_all();
    }

    fn each_active<'a>(&'a self, mut visit: impl FnMut(&'a Slot, u32)) {
        for (index, word) in self.active.iter().enumerate() {
            let mut bits = word.load(Ordering::SeqCst);
            while bits != 0 {
                let vcpu = index as u32 * 64 + bits.trailing_zeros();
                bits &= bits - 1;
                if let Some(slot) = self.slots.get(vcpu as usize) {
                    visit(slot, vcpu);
                }
            }
        }
    }

    fn tell_awake(&self) {
        let turns = if self.awake.load(Ordering::SeqCst) > 0 { TURNS } else { 0 };
        self.each_active(|slot, _| {
            if let Some(bound) = &*slot.bound.lock() {
                bound.memory.set_awake(turns);
            }
        });
    }

    /// Answers calls until none has come for as long as `silence`, or processors turn out to be scarce.
    fn poll(&self, silence: u64) {
        let gap = self.ticks(GAP);
        let begun = rdtsc();
        let (mut last_call, mut last_turn) = (begun, begun);
        let mut answered = 0_u32;
        let mut earnings = Earnings::new(self.ticks(EXIT));
        loop {
            let found = self.rounds();
            let now = rdtsc();
            if self.stand_ins.load(Ordering::Relaxed) > 0 && self.crowded() {
                return;
            }
            if found > 0 {
                answered = answered.saturating_add(found);
                self.earns(earnings.waited(last_turn.wrapping_sub(last_call)));
                last_call = now;
                self.last_answer.store(now, Ordering::Relaxed);
                if answered == ENOUGH {
                    self.pause.store(FIRST_PAUSE, Ordering::Relaxed);
                }
            } else if now.wrapping_sub(last_turn) > gap {
                return self.scarce(now);
            } else if now.wrapping_sub(last_call) > silence {
                // Guests that are all outside, at calls of their own, have not lost their processors.
                let alone = self.awake.load(Ordering::Relaxed) == 1;
                if answered < WORTHWHILE && alone && self.running() > 0 {
                    self.scarce(now);
                }
                return;
            }
            last_turn = now;
            std::hint::spin_loop();
        }
    }

    /// More threads are busy here than there are processors.
    fn crowded(&self) -> bool {
        self.running() + self.awake.load(Ordering::Relaxed) > self.processors
    }

    /// Nobody is woken for a while: for longer each time, unless enough was answered since the last.
    fn scarce(&self, now: u64) {
        self.counters.scarce.fetch_add(1, Ordering::Relaxed);
        let assisted = self.counters.assisted.load(Ordering::Relaxed);
        let others = self.assisted_before_pause.swap(assisted, Ordering::Relaxed) != assisted;
        let counters = [&self.counters.answered, &self.counters.faults];
        let all: u64 = counters.iter().map(|counter| counter.load(Ordering::Relaxed)).sum();
        let answered = all.saturating_sub(assisted);
        let before = self.answered_before_pause.swap(answered, Ordering::Relaxed);
        if answered.saturating_sub(before) >= u64::from(ENOUGH) {
            self.pause.store(FIRST_PAUSE, Ordering::Relaxed);
        }
        let last = if others { LAST_PAUSE_OF_OTHERS } else { LAST_PAUSE };
        let pause = self.pause.load(Ordering::Relaxed).min(last);
        self.not_before.store(now.wrapping_add(self.ticks(pause)), Ordering::Relaxed);
        self.pause.store((pause * 2).min(last), Ordering::Relaxed);
    }

    /// Looks at every slot some times, until a call was answered: reading the clock each time would make an answer wait for it.
    fn rounds(&self) -> u32 {
        for _ in 1..ROUNDS {
            let found = self.round();
            if found > 0 {
                return found;
            }
            std::hint::spin_loop();
        }
        self.round()
    }

    /// Looks at every slot once. Returns how many calls were answered.
    fn round(&self) -> u32 {
        let mut found = 0;
        self.each_active(|slot, vcpu| found += u32::from(self.look(slot, vcpu)));
        found
    }

    fn look(&self, slot: &Slot, vcpu: u32) -> bool {
        let address = slot.address.load(Ordering::Acquire) as *mut u8;
        if address.is_null() {
            return false;
        }
        // SAFETY: `bind` got this address from a `SlotMemory`, whose memory stays mapped as long as the machine lives.
        if unsafe { SlotMemory::new(address) }.state() != slot::POSTED {
            return false;
        }
        let Some(mut bound) = slot.bound.try_lock() else { return false };
        let Some(bound) = bound.as_mut() else { return false };
        let active = self.active.get(vcpu as usize / 64).map_or(0, |word| word.load(Ordering::SeqCst));
        if active >> (vcpu % 64) & 1 == 0 {
            return false;
        }
        let Some(answer) = bound.answer.as_ref().and_then(Weak::upgrade) else { return false };
        let found = self.serve_call(bound, &*answer, vcpu);
        if found {
            slot.shown.answered();
        }
        if answer.holds() {
            self.expect_wait(bound, &*answer, vcpu);
        }
        found
    }

    /// The caller is likely to wait next, and somebody is held back who could go on in its vCPU then.
    fn expect_wait(&self, bound: &mut Bound, answer: &dyn Answer, vcpu: u32) {
        let until = rdtsc().wrapping_add(self.ticks(HOLD));
        while answer.holds() && rdtsc() < until {
            if bound.memory.state() == slot::POSTED {
                self.serve_call(bound, answer, vcpu);
            }
            std::hint::spin_loop();
        }
        answer.release();
    }

    fn serve_call(&self, bound: &mut Bound, answer: &dyn Answer, vcpu: u32) -> bool {
        let Bound { memory, answer: answers, gate, ride } = bound;
        self.answering.fetch_add(1, Ordering::Relaxed);
        let answered = answer.answer(&Posted::new(memory, vcpu));
        self.answering.fetch_sub(1, Ordering::Relaxed);
        match answered {
            None => return false,
            Some(Answered::Told) => {}
            Some(Answered::Done(result)) => memory.answer(result, slot::DONE),
            Some(Answered::Leave(result)) => memory.answer(result, slot::LEAVE),
            Some(Answered::Switch(switch)) => match ride::switch(memory, (answers, gate), ride, switch) {
                Some(()) => _ = self.counters.switches.fetch_add(1, Ordering::Relaxed),
                None => memory.end(slot::REFUSED),
            },
            Some(Answered::Resolved) => {
                memory.end(slot::DONE);
                self.counters.faults.fetch_add(1, Ordering::Relaxed);
                return true;
            }
            Some(Answered::Refused) => {
                memory.end(slot::REFUSED);
                self.counters.refused.fetch_add(1, Ordering::Relaxed);
                return true;
            }
        }
        self.counters.answered.fetch_add(1, Ordering::Relaxed);
        true
    }
}
