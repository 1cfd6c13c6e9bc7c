//! Threads that wait answer calls.
//!
//! A thread whose guest thread waits for something (a pipe, a futex) is often woken by a call that another guest thread is about to make. Instead of
//! going to sleep at once it polls the slots, as a dispatcher does: it makes the very call it waits for, and is back in its guest
//! without a wake-up by the host and, on two processors, without a third thread that would take the processor from one of the two. On
//! two processors the ideal is that two guest threads take turns, and whoever is not in the guest makes the other's calls.
//!
//! For how long is decided per host thread, as KVM decides how long it polls before it halts: sleeps that turn out short make the time longer, long
//! ones make it shorter, down to nothing. A thread that waits long therefore never polls, and a waiting sandbox is idle.
//!
//! There is one other reason to stay awake: a process that waits for its child. The child's calls come in small groups, too few to wake a dispatcher for, and
//! its parent has nothing else to do. So who slept while others made calls by exits, as many as are worth the time of the sleep, polls through its next waits, for
//! as long as it answers that many.
//!
//! What such a thread answers must not sleep, and it holds no lock of the kernel while it waits, so that answering cannot wait
//! for itself.

use super::{Dispatch, GAP};
use crate::machine::rdtsc;
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Microseconds of polling without a call: the least worth starting with, and the most.
const LEAST: u64 = 40;
const MOST: u64 = 80;
/// Sleeps of fewer microseconds would have been worth polling through.
const SHORT: u64 = 250;
/// `done` is asked at each so many turns without a call.
const ASK: u32 = 4;
/// Microseconds to stay after the end of a wait, and calls to answer meanwhile at most.
const LINGER: u64 = 8;
const MOST_LINGERED: u32 = 3;
/// Who has answered so many calls in a wait stands in for a dispatcher: there it stays longer.
const MANY: u32 = 16;
/// By how many times its wait, at most, and by how many microseconds.
const STAY: u64 = 4;
const LONGEST_STAY: u64 = 1000;
/// Microseconds of polling that the answer to a call is worth to a thread that would only sleep.
const WORTH_OF_A_CALL: u64 = 200;
/// Microseconds without a call that it polls through then: what an `execve` and the start of a program take.
const COMPANY: u64 = 700;
/// After so many times as long it must have been worth it so far.
const TRIAL: u64 = 3;
/// After polling that was not worth it, the most such occasions that are let pass.
const MOST_SHY: u32 = 63;
/// How often in a row lingering may turn out useless at first, and after how many waits without it is tried again.
const WORTH: i32 = 4;
const TRY_AGAIN: i32 = 8;
/// So many times nobody is expected after an expectation was in vain.
const VAIN: u32 = 2;

/// What a host thread has learnt from its waits.
#[derive(Debug, Clone, Copy)]
struct Experience {
    /// For how many microseconds it polls before it sleeps.
    patience: u64,
    /// Whether it stays after a wait: above 0, how often that may turn out useless; else, minus how often it did not stay.
    lingering: i32,
    /// It was woken by a thread that is likely to wait next: its call may as well be posted although nobody polls yet.
    expecting: bool,
    /// How often it does not expect that, after it did in vain.
    doubt: u32,
    /// Whether it polls for the sake of those who call; how often it does not although it could, after that was not worth it; and how often it has
    /// not yet.
    company: bool,
    shy: u32,
    refrain: u32,
    /// How many calls had exited that a dispatcher could have made, when it last went to sleep.
    missed_before: u64,
}

const NEW: Experience = Experience {
    patience: 0,
    lingering: WORTH,
    expecting: false,
    doubt: 0,
    company: false,
    shy: 0,
    refrain: 0,
    missed_before: 0,
};

thread_local! {
    static OWN: Cell<Experience> = const { Cell::new(NEW) };
}

fn learn(change: impl FnOnce(&mut Experience)) {
    let mut own = OWN.get();
    change(&mut own);
    OWN.set(own);
}

/// Whether somebody is likely to poll soon. Asked once.
pub(super) fn expecting() -> bool {
    let own = OWN.get();
    OWN.set(Experience { expecting: false, ..own });
    own.expecting
}

/// Nobody came.
pub(super) fn in_vain() {
    learn(|own| own.doubt = VAIN);
}

impl Experience {
    /// Others have made `missed` calls by exits meanwhile.
    fn has_slept(&mut self, time: Duration, missed: u64, slowness: u64) {
        let time = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.company = missed.saturating_mul(WORTH_OF_A_CALL * slowness) >= time && time >= SHORT;
        if self.company && self.refrain > 0 {
            self.refrain -= 1;
            self.company = false;
        }
        let short = time < SHORT;
        self.patience = match short {
            true => (self.patience * 2).clamp(LEAST, MOST),
            false if self.patience <= LEAST => 0,
            false => self.patience / 2,
        };
    }

    fn has_kept_company(&mut self, worth: bool) {
        self.company = worth;
        self.shy = if worth { 0 } else { (self.shy * 2 + 1).min(MOST_SHY) };
        self.refrain = self.shy;
    }

    fn was_woken(&mut self) {
        self.expecting = self.doubt == 0;
        self.doubt = self.doubt.saturating_sub(1);
    }

    /// Whether to stay this time.
    fn stays(&mut self) -> bool {
        let stays = self.lingering > 0;
        if !stays {
            self.lingering = if self.lingering <= -TRY_AGAIN { WORTH / 2 } else { self.lingering - 1 };
        }
        stays
    }

    fn has_stayed(&mut self, useful: bool) {
        self.lingering = if useful { (self.lingering + 1).min(2 * WORTH) } else { self.lingering - 1 };
    }
}

impl Dispatch {
    /// Answers calls until `done`, or no call has come for as long as this thread's experience says. Returns whether `done`.
    pub(crate) fn assist(&self, done: &dyn Fn() -> bool) -> bool {
        let own = OWN.get();
        learn(|own| own.missed_before = self.missed.load(Ordering::Relaxed));
        let patience = if own.company { COMPANY } else { own.patience };
        if patience == 0 || !self.has_room() {
            return false;
        }
        let begun = rdtsc();
        let ended = self.as_stand_in(|| {
            let (ended, answered) = self.poll_until(done, self.ticks(patience), own.company);
            let more = match ended {
                true if answered >= MANY && !self.has_room() => self.stay(rdtsc().wrapping_sub(begun)),
                true if answered > 0 => self.linger(),
                _ => 0,
            };
            (ended, answered.saturating_add(more))
        });
        if ended {
            learn(Experience::was_woken);
        }
        ended
    }

    /// A call that was to wait on a futex need not: its thread and the one that changed the word are in each other's way. Lets the
    /// other one go first.
    pub(crate) fn passed(&self) {
        if self.has_room() && self.as_stand_in(|| self.linger_once()) {
            learn(Experience::was_woken);
        }
    }

    /// The sleep that followed took so long.
    pub(crate) fn slept(&self, time: Duration) {
        let missed = self.missed.load(Ordering::Relaxed);
        let slowness = self.slowness.load(Ordering::Relaxed);
        learn(|own| own.has_slept(time, missed.wrapping_sub(own.missed_before), slowness));
    }

    fn has_room(&self) -> bool {
        let busy = self.running() + self.stand_ins.load(Ordering::Relaxed);
        busy < self.processors && self.present.load(Ordering::Relaxed) > 0
    }

    /// Lets the calling thread poll; `poll` also says how many calls it answered.
    fn as_stand_in(&self, poll: impl FnOnce() -> (bool, u32)) -> bool {
        self.stand_ins.fetch_add(1, Ordering::SeqCst);
        let (result, answered) = self.awake(poll);
        self.stand_ins.fetch_sub(1, Ordering::SeqCst);
        self.counters.assisted.fetch_add(answered.into(), Ordering::Relaxed);
        result
    }

    /// Polls until `done`, or for `silence` without a call. Whether `done`, and how many calls were answered. As `company`, it must be worth
    /// the time.
    fn poll_until(&self, done: &dyn Fn() -> bool, silence: u64, company: bool) -> (bool, u32) {
        let (begun, trouble, refused) =
            (rdtsc(), self.trouble(), self.counters.refused.load(Ordering::Relaxed));
        let is_worth = |found: u32, now: u64| {
            let refused = self.counters.refused.load(Ordering::Relaxed).wrapping_sub(refused);
            let answers = u64::from(found).saturating_sub(refused);
            answers.saturating_mul(self.ticks(WORTH_OF_A_CALL)) >= now.wrapping_sub(begun)
        };
        let (ended, answered) = self.poll_while(done, silence, &|found, now| {
            !company || now.wrapping_sub(begun) < TRIAL * silence || is_worth(found, now)
        });
        if company {
            // Where processors are scarce it takes one from those it is there for.
            let worth = self.trouble() == trouble && is_worth(answered, rdtsc());
            learn(|own| own.has_kept_company(worth));
        }
        (ended, answered)
    }

    /// Grows when processors are scarce.
    fn trouble(&self) -> u64 {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        of(&self.counters.withdrawn).wrapping_add(of(&self.counters.scarce))
    }

    fn poll_while(
        &self,
        done: &dyn Fn() -> bool,
        silence: u64,
        go_on: &dyn Fn(u32, u64) -> bool,
    ) -> (bool, u32) {
        let gap = self.ticks(GAP);
        let mut last_call = rdtsc();
        let (mut last_turn, mut turn, mut answered) = (last_call, 0_u32, 0_u32);
        loop {
            let found = self.round();
            answered = answered.saturating_add(found);
            turn = turn.wrapping_add(1);
            if (found > 0 || turn.is_multiple_of(ASK)) && done() {
                return (true, answered);
            }
            let now = rdtsc();
            if found > 0 {
                last_call = now;
                self.last_answer.store(now, Ordering::Relaxed);
            } else if now.wrapping_sub(last_turn) > gap {
                self.scarce(now);
                return (false, answered);
            } else if now.wrapping_sub(last_call) > silence || !go_on(answered, now) {
                return (false, answered);
            }
            last_turn = now;
            std::hint::spin_loop();
        }
    }

    /// The wait, of `waited` ticks, is over, and the thread that ended it goes on calling: a writer into a pipe of which this one is the reader. If this
    /// one leaves, each of those calls is an exit, until it waits again, as no processor is left for anybody else who polls; and it finds little to read.
    /// So it goes on answering until the other one pauses, or does what nobody else can do for it (the pipe is full), but adds no more to its
    /// wait than [`STAY`] allows. Returns how many calls were answered.
    fn stay(&self, waited: u64) -> u32 {
        let (begun, longest) = (rdtsc(), longest_stay(waited, self.ticks(LONGEST_STAY)));
        let refused = self.counters.refused.load(Ordering::Relaxed);
        let over = || {
            rdtsc().wrapping_sub(begun) >= longest || self.counters.refused.load(Ordering::Relaxed) != refused
        };
        self.poll_while(&over, self.ticks(LINGER), &|_, _| true).1
    }

    fn linger_once(&self) -> (bool, u32) {
        let answered = self.linger();
        (answered > 0, answered)
    }

    /// The wait is over by a call of another thread, and that one may have further calls to make before it waits in its turn: a condition
    /// variable is signalled under a lock that is then given back. Stays for another moment if that was worth it before. Returns how
    /// many calls were answered.
    fn linger(&self) -> u32 {
        let mut own = OWN.get();
        let stays = own.stays();
        OWN.set(own);
        if !stays {
            return 0;
        }
        let refused = self.counters.refused.load(Ordering::Relaxed);
        let (begun, time, mut answered) = (rdtsc(), self.ticks(LINGER), 0);
        while rdtsc().wrapping_sub(begun) < time && answered < MOST_LINGERED {
            answered += self.round();
            if self.counters.refused.load(Ordering::Relaxed) != refused {
                // Now it waits, or does something else that takes it out of the guest.
                return answered.saturating_sub(1);
            }
            std::hint::spin_loop();
        }
        learn(|own| own.has_stayed(answered > 0));
        answered
    }
}

/// For how many ticks a thread stays at most after it has waited for so many; `most` in any case.
fn longest_stay(waited: u64, most: u64) -> u64 {
    waited.saturating_mul(STAY).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stay_is_in_proportion_to_the_wait_and_bounded() {
        assert_eq!(longest_stay(0, 1000), 0);
        assert_eq!(longest_stay(100, 1000), 400);
        assert_eq!(longest_stay(251, 1000), 1000);
        assert_eq!(longest_stay(u64::MAX, 1000), 1000);
    }

    #[test]
    fn short_sleeps_make_patient_and_long_ones_impatient() {
        let mut own = NEW;
        for _ in 0..3 {
            own.has_slept(Duration::from_micros(SHORT - 1), 0, 1);
            assert!((LEAST..=MOST).contains(&own.patience));
        }
        for _ in 0..3 {
            own.has_slept(Duration::from_micros(SHORT), 0, 1);
        }
        assert_eq!(own.patience, 0);
        own.has_slept(Duration::MAX, 0, 1);
        assert_eq!(own.patience, 0);
    }

    #[test]
    fn who_slept_through_many_calls_keeps_company() {
        let mut own = NEW;
        let slept = |own: &mut Experience, microseconds, missed| {
            own.has_slept(Duration::from_micros(microseconds), missed, 1);
            own.company
        };
        assert!(slept(&mut own, 10 * WORTH_OF_A_CALL, 10));
        assert!(!slept(&mut own, 10 * WORTH_OF_A_CALL, 9));
        // Where an exit costs more, an answer is worth more.
        own.has_slept(Duration::from_micros(10 * WORTH_OF_A_CALL), 5, 2);
        assert!(own.company);
        assert!(!slept(&mut own, u64::MAX, 1000));
        // Short sleeps have a patience of their own.
        assert!(!slept(&mut own, SHORT - 1, 1000));
        // What was not worth it is tried less and less often.
        for refrain in [1, 3, 7, 15, 31, 63, 63] {
            own.has_kept_company(false);
            for _ in 0..refrain {
                assert!(!slept(&mut own, 10 * WORTH_OF_A_CALL, 10));
            }
            assert!(slept(&mut own, 10 * WORTH_OF_A_CALL, 10));
        }
        own.has_kept_company(true);
        assert!(own.company && own.refrain == 0);
    }

    #[test]
    fn nobody_is_expected_for_a_while_after_nobody_came() {
        let mut own = Experience { doubt: VAIN, ..NEW };
        for _ in 0..VAIN {
            own.was_woken();
            assert!(!own.expecting);
        }
        own.was_woken();
        assert!(own.expecting);
    }

    #[test]
    fn lingering_that_was_useless_is_tried_again_later() {
        let mut own = NEW;
        let mut stayed = 0;
        for _ in 0..1000 {
            if own.stays() {
                own.has_stayed(false);
                stayed += 1;
            }
        }
        assert!((50..350).contains(&stayed), "{stayed} of 1000");
    }
}
