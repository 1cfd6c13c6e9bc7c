//! The policy: who is woken when.

use super::*;

fn dispatch(processors: u32, present: u32, awake: u32) -> Dispatch {
    let dispatch = Dispatch { processors, ..Dispatch::new(4) };
    dispatch.present.store(present, Ordering::Relaxed);
    dispatch.awake.store(awake, Ordering::Relaxed);
    dispatch
}

/// A thread's calls exit, one quickly after the other (most of them: this thread may be preempted).
fn streak(dispatch: &Dispatch) -> DispatchCounters {
    let mut history = History::default();
    for _ in 0..1000 {
        dispatch.exited(&mut history, true, false);
    }
    dispatch.counters()
}

#[test]
fn calls_in_quick_succession_wake_a_dispatcher() {
    assert!(streak(&dispatch(2, 1, 0)).wakes > 0);
    // Not on a single processor, not when all are awake, not when there are none.
    assert_eq!(streak(&dispatch(1, 1, 0)).wakes, 0);
    assert_eq!(streak(&dispatch(2, 1, 1)).wakes, 0);
    assert_eq!(streak(&dispatch(2, 0, 0)).wakes, 0);
}

#[test]
fn calls_that_dispatchers_do_not_make_wake_nobody() {
    let dispatch = dispatch(2, 1, 0);
    let mut history = History::default();
    for _ in 0..100 {
        dispatch.exited(&mut history, false, false);
    }
    assert_eq!(dispatch.counters().wakes, 0);
}

#[test]
fn a_call_left_lying_wakes_another_dispatcher_if_the_first_is_busy() {
    let busy = dispatch(8, 2, 1);
    busy.last_answer.store(u64::MAX, Ordering::Relaxed);
    busy.exited(&mut History::default(), true, true);
    assert_eq!((busy.counters().wakes, busy.counters().scarce), (1, 0));
    // So it is, too, at a call that takes long: nothing has been answered for a while.
    let at_a_long_call = dispatch(8, 2, 1);
    at_a_long_call.answering.store(1, Ordering::Relaxed);
    at_a_long_call.exited(&mut History::default(), true, true);
    assert_eq!((at_a_long_call.counters().wakes, at_a_long_call.counters().scarce), (1, 0));
    // No processor is left for it.
    let full = dispatch(2, 2, 1);
    full.last_answer.store(u64::MAX, Ordering::Relaxed);
    full.exited(&mut History::default(), true, true);
    assert_eq!((full.counters().wakes, full.counters().scarce), (0, 0));
}

#[test]
fn a_call_left_lying_by_a_dispatcher_that_does_not_run_means_that_processors_are_scarce() {
    let dispatch = dispatch(8, 2, 1);
    // The pause is to last for as long as the test, however slow the machine.
    dispatch.ticks_per_microsecond.store(1 << 30, Ordering::Relaxed);
    dispatch.exited(&mut History::default(), true, true);
    assert_eq!((dispatch.counters().wakes, dispatch.counters().scarce), (0, 1));
    assert_eq!(streak(&dispatch).wakes, 0, "nobody is woken during the pause");
}

#[test]
fn pauses_grow_only_while_little_is_answered() {
    let dispatch = dispatch(2, 1, 0);
    for _ in 0..3 {
        dispatch.scarce(rdtsc());
    }
    assert_eq!(dispatch.pause.load(Ordering::Relaxed), FIRST_PAUSE * 8);
    dispatch.counters.answered.store(u64::from(ENOUGH), Ordering::Relaxed);
    dispatch.scarce(rdtsc());
    assert_eq!(dispatch.pause.load(Ordering::Relaxed), FIRST_PAUSE * 2);
    dispatch.scarce(rdtsc());
    assert_eq!(dispatch.pause.load(Ordering::Relaxed), FIRST_PAUSE * 4);
}

#[test]
fn pauses_are_long_where_threads_that_wait_answer() {
    let dispatch = dispatch(2, 1, 0);
    for assisted in 1..20 {
        dispatch.counters.assisted.store(assisted, Ordering::Relaxed);
        dispatch.scarce(rdtsc());
    }
    assert_eq!(dispatch.pause.load(Ordering::Relaxed), LAST_PAUSE_OF_OTHERS);
    // None has answered since.
    dispatch.scarce(rdtsc());
    assert_eq!(dispatch.pause.load(Ordering::Relaxed), LAST_PAUSE);
}

#[test]
fn silence_of_guests_that_are_outside_is_no_lack_of_processors() {
    for (inside, scarce) in [(0, 0), (1, 1)] {
        let dispatch = dispatch(2, 1, 1);
        // This thread may be preempted.
        dispatch.slowness.store(10_000, Ordering::Relaxed);
        dispatch.active[0].store(inside, Ordering::Relaxed);
        dispatch.poll(0);
        assert_eq!(dispatch.counters().scarce, scarce);
    }
}
