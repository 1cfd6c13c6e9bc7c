//! Guests that do little but call take turns where there is no processor for all of them beside a dispatcher.
//!
//! What a guest spins away waiting for its answer is what the dispatcher on the same processor would need to answer it. So many calling guests
//! make fewer calls together than one makes alone. Therefore no more calling guests are inside at a time than there are processors, less those
//! that dispatchers have who earn theirs; who would be one too many waits outside, and after [`TURN`] gets the place of the one whose turn began
//! first. Guests that compute are neither held back nor counted: the host's scheduler is fair to them.
//!
//! ```text
//! a calling guest's thread                                  the calling guests inside
//! comes back from a call, its turn over
//! too many inside? ── no ─▶ a new turn, inside
//!        │ yes
//! queues; the first of the queue looks again and again, and
//! kicks the one whose turn began first, if it is over ────▶ comes out, finds its turn over, queues
//! ```
//! - A dispatcher *earns its processor* if it waits less for a call than an exit would take ([`Earnings`]).
//! - A guest *calls* if, when its last turn ended, there had been a call for each [`OFTEN`] of processor time that its thread had. Time says more than the
//!   clock: where processors are scarce nobody calls often by the clock.
//!
//! It is courtesy, not a right: nobody waits who comes from a sleep, because others may wait for him, and he has used nothing; the first of the
//! queue goes in after [`PATIENCE`] whatever there is inside; and a kick ends the wait.
//!
//! Locks: the queue; a waiter's own; a gate's waiter. All are leaves.

use super::slot::SlotMemory;
use super::{Dispatch, EXIT};
use crate::kick::Gate;
use crate::machine::rdtsc;
use nix::time::{ClockId, clock_gettime};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Microseconds that a guest may stay while another waits.
const TURN: u64 = 2000;
/// The same for a thread of which nothing is known yet: new processes are what there may suddenly be many of.
const FIRST_TURN: u64 = 250;
/// Of the processor's time between the calls of a guest that calls, at most: some times what an exit costs, for that is in it where there is no dispatcher.
const OFTEN: u64 = 8 * EXIT;
/// How long the first of the queue waits before it looks again.
const LOOK: Duration = Duration::from_micros(200);
/// Microseconds after which it goes in.
const PATIENCE: u64 = 3 * TURN;

/// What a dispatcher's polling is worth: how long it waits for a call, on average over the last few.
#[derive(Debug)]
pub(super) struct Earnings {
    average: u64,
}

/// The average moves by this part of the difference.
const WEIGHT: u64 = 16;

impl Earnings {
    pub(super) fn new(ticks: u64) -> Earnings {
        Earnings { average: ticks }
    }

    /// A call came after so many ticks. Returns the average.
    pub(super) fn waited(&mut self, ticks: u64) -> u64 {
        self.average = (self.average - self.average / WEIGHT).saturating_add(ticks / WEIGHT);
        self.average
    }
}

/// Who waits for a turn.
#[derive(Debug, Default)]
pub(super) struct Admission {
    queue: Mutex<VecDeque<Arc<Waiter>>>,
    /// Threads that go in and are not inside yet.
    coming: AtomicU32,
    /// How long dispatchers wait for a call, in ticks.
    idle: AtomicU64,
}

/// A thread in the queue.
#[derive(Debug, Default)]
pub(crate) struct Waiter {
    called: Mutex<bool>,
    call: Condvar,
}

impl Waiter {
    /// Makes it look again, now.
    pub(crate) fn call(&self) {
        *self.called.lock() = true;
        self.call.notify_one();
    }

    /// Waits to be called, for so long at most.
    fn wait(&self, longest: Option<Duration>) {
        let mut called = self.called.lock();
        match longest {
            _ if *called => {}
            Some(longest) => _ = self.call.wait_for(&mut called, longest),
            None => self.call.wait_while(&mut called, |called| !*called),
        }
        *called = false;
    }
}

/// A thread's turn.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    /// Time stamp of its beginning.
    since: u64,
    /// What the thread had had of a processor when it was last judged, and its calls since.
    had: Duration,
    calls: u64,
    /// It was calling then.
    calling: bool,
    /// It has been let in and is not there yet.
    coming: bool,
}

impl Turn {
    /// At the end of a turn: what kind of guest this is. `often` is the time between calls that counts as such.
    fn judge(&mut self, had: Duration, often: Duration) {
        let spent = had.saturating_sub(self.had);
        let enough = often.saturating_mul(u32::try_from(self.calls).unwrap_or(u32::MAX));
        self.calling = self.calls > 0 && enough >= spent;
        (self.had, self.calls) = (had, 0);
    }
}

/// What others see of the thread that is in a vCPU.
#[derive(Debug, Default)]
pub(super) struct Shown {
    since: AtomicU64,
    calling: AtomicBool,
    /// Calls and page faults that were answered here so far. Changed under the slot's lock.
    answered: AtomicU64,
}

impl Shown {
    pub(super) fn answered(&self) {
        self.answered.store(self.answered.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
}

impl Dispatch {
    /// A dispatcher waits so many ticks for a call, on average.
    pub(super) fn earns(&self, idle: u64) {
        self.admission.idle.store(idle, Ordering::Relaxed);
    }

    /// Before a stay in the guest: waits if there are too many. `slept`: the thread comes from a sleep. Returns for how many ticks.
    pub(crate) fn await_turn(&self, turn: &mut Turn, gate: &Gate, slept: bool) -> u64 {
        self.is_not_coming(turn);
        let now = rdtsc();
        if slept {
            turn.since = now;
            return 0;
        }
        if turn.since == 0 {
            turn.since = now.wrapping_sub(self.ticks(TURN - FIRST_TURN));
        }
        if now.wrapping_sub(turn.since) < self.ticks(TURN) {
            return 0;
        }
        turn.judge(thread_time(), Duration::from_micros(OFTEN));
        turn.since = now;
        if !turn.calling || !self.is_crowded() {
            return 0;
        }
        turn.coming = self.queue_up(gate);
        turn.since = rdtsc();
        turn.since.wrapping_sub(now)
    }

    /// The vCPU is about to enter the guest, with the thread that is at this turn. Returns how many calls were answered there so far.
    pub(crate) fn begin_stay(&self, turn: &mut Turn, vcpu: u32, memory: SlotMemory) -> u64 {
        let Some(slot) = self.slots.get(vcpu as usize) else { return 0 };
        slot.shown.since.store(turn.since, Ordering::Relaxed);
        slot.shown.calling.store(turn.calling, Ordering::Relaxed);
        self.enter(vcpu, memory);
        self.is_not_coming(turn);
        slot.shown.answered.load(Ordering::Relaxed)
    }

    /// It is inside now, or does not go in: what it was kicked for may take long.
    pub(crate) fn is_not_coming(&self, turn: &mut Turn) {
        if std::mem::take(&mut turn.coming) {
            self.admission.coming.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// It has left, perhaps with a call; `answered` is what [`Dispatch::begin_stay`] returned.
    pub(crate) fn end_stay(&self, turn: &mut Turn, vcpu: u32, answered: u64, by_call: bool) {
        let Some(slot) = self.slots.get(vcpu as usize) else { return };
        let now = slot.shown.answered.load(Ordering::Relaxed);
        turn.calls = turn.calls.wrapping_add(now.wrapping_sub(answered)).wrapping_add(by_call.into());
    }

    /// Whether one more calling guest would be one too many.
    fn is_crowded(&self) -> bool {
        if self.processors < 2 || self.present.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let awake = self.awake.load(Ordering::Relaxed);
        let earning = self.admission.idle.load(Ordering::Relaxed) <= self.ticks(EXIT);
        let dispatchers =
            if earning { awake.saturating_sub(self.stand_ins.load(Ordering::Relaxed)) } else { 0 };
        let mut inside = self.admission.coming.load(Ordering::Relaxed);
        self.each_active(|slot, _| inside += u32::from(slot.shown.calling.load(Ordering::Relaxed)));
        inside > 0 && inside + 1 + dispatchers > self.processors
    }

    /// Returns when the thread may go in, and then counts it as being on its way; or false when it is kicked.
    fn queue_up(&self, gate: &Gate) -> bool {
        let own = Arc::new(Waiter::default());
        let first = {
            let mut queue = self.admission.queue.lock();
            queue.push_back(own.clone());
            queue.front().cloned()
        };
        if let Some(first) = first {
            // It may have this one's place.
            first.call();
        }
        gate.set_waiter(Some(own.clone()));
        let mut first_since = None;
        let goes_in = loop {
            if gate.is_kicked() {
                break false;
            }
            if first_since.is_none() && self.is_first(&own) {
                first_since = Some(rdtsc());
            }
            if let Some(since) = first_since {
                if !self.is_crowded() || rdtsc().wrapping_sub(since) > self.ticks(PATIENCE) {
                    break true;
                }
                self.press();
            }
            own.wait(first_since.map(|_| LOOK));
        };
        gate.set_waiter(None);
        self.admission.coming.fetch_add(goes_in.into(), Ordering::Relaxed);
        let next = {
            let mut queue = self.admission.queue.lock();
            queue.retain(|waiter| !Arc::ptr_eq(waiter, &own));
            queue.front().cloned()
        };
        if let Some(next) = next {
            next.call();
        }
        goes_in
    }

    fn is_first(&self, waiter: &Arc<Waiter>) -> bool {
        self.admission.queue.lock().front().is_some_and(|front| Arc::ptr_eq(front, waiter))
    }

    /// Gets the calling guest out whose turn began first, if it is over.
    fn press(&self) {
        let (now, mut most, mut oldest) = (rdtsc(), self.ticks(TURN), None);
        self.each_active(|slot, _| {
            let age = now.saturating_sub(slot.shown.since.load(Ordering::Relaxed));
            if slot.shown.calling.load(Ordering::Relaxed) && age >= most {
                (most, oldest) = (age, Some(slot));
            }
        });
        // A slot whose call is being answered is pressed at the next look.
        if let Some(slot) = oldest
            && let Some(bound) = slot.bound.try_lock()
            && let Some(bound) = &*bound
        {
            bound.gate.kick();
        }
    }
}

/// Processor time of the calling thread, guest code included.
fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_computes_is_not_calling() {
        let often = Duration::from_micros(100);
        let mut turn = Turn::default();
        let mut judge = |calls, had| {
            turn.calls = calls;
            turn.judge(Duration::from_micros(had), often);
            turn.calling
        };
        assert!(judge(20, 2_000));
        assert!(!judge(19, 4_000));
        assert!(!judge(0, 4_000), "nothing was called in no time");
        assert!(judge(1, 4_000), "the processor was others' for the rest of the turn");
        assert!(judge(u64::MAX, 9_000_000));
    }

    #[test]
    fn earnings_follow_the_last_calls() {
        let mut earnings = Earnings::new(1_000);
        for _ in 0..100 {
            earnings.waited(0);
        }
        assert!(earnings.waited(0) < 32);
        for _ in 0..100 {
            earnings.waited(10_000);
        }
        assert!((9_000..=10_000).contains(&earnings.waited(10_000)));
        assert!(earnings.waited(u64::MAX) > 10_000);
    }

    /// A dispatcher that earns its processor, and calling guests on the others.
    fn fill(dispatch: &mut Dispatch) {
        dispatch.processors = 2;
        dispatch.present.store(1, Ordering::Relaxed);
        dispatch.awake.store(1, Ordering::Relaxed);
        dispatch.admission.coming.store(1, Ordering::Relaxed);
    }

    #[test]
    fn where_nobody_polls_there_is_room_for_one_more() {
        let mut dispatch = Dispatch::new(4);
        fill(&mut dispatch);
        assert!(dispatch.is_crowded());
        dispatch.awake.store(0, Ordering::Relaxed);
        assert!(!dispatch.is_crowded());
        dispatch.awake.store(1, Ordering::Relaxed);
        dispatch.earns(dispatch.ticks(EXIT) + 1);
        assert!(!dispatch.is_crowded(), "it polls in vain");
        dispatch.admission.coming.store(2, Ordering::Relaxed);
        assert!(dispatch.is_crowded());
    }

    #[test]
    fn the_queue_is_served_in_order_and_a_kick_ends_the_wait() {
        let mut dispatch = Dispatch::new(4);
        // Nobody loses his patience within a minute.
        dispatch.slowness.store(10_000, Ordering::Relaxed);
        fill(&mut dispatch);
        assert!(dispatch.is_crowded());
        let gates: Vec<Gate> = (0..3).map(|_| Gate::default()).collect();
        let order = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for (at, gate) in gates.iter().enumerate() {
                let (dispatch, order) = (&dispatch, &order);
                scope.spawn(move || {
                    let goes_in = dispatch.queue_up(gate);
                    order.lock().push((at, goes_in));
                });
                while dispatch.admission.queue.lock().len() <= at {
                    std::thread::yield_now();
                }
            }
            let expect = |expected: &[(usize, bool)]| {
                while order.lock().len() < expected.len() {
                    std::thread::yield_now();
                }
                assert_eq!(*order.lock(), expected);
                // Who has gone in is on its way until it is inside; who was kicked is not, and the one before is still there.
                assert!(dispatch.is_crowded());
                assert_eq!(dispatch.admission.coming.swap(0, Ordering::Relaxed), 1);
            };
            gates[1].kick();
            expect(&[(1, false)]);
            expect(&[(1, false), (0, true)]);
            expect(&[(1, false), (0, true), (2, true)]);
        });
    }

    #[test]
    fn the_first_of_the_queue_loses_its_patience() {
        let mut dispatch = Dispatch::new(1);
        fill(&mut dispatch);
        let begun = std::time::Instant::now();
        assert!(dispatch.queue_up(&Gate::default()));
        assert!(begun.elapsed() >= Duration::from_micros(PATIENCE / 2));
    }
}
