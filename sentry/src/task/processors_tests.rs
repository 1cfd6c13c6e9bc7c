use std::sync::atomic::{AtomicBool, AtomicUsize};

use super::*;
use crate::platform::Kick;

#[derive(Clone, Default)]
struct Flag(Arc<AtomicBool>);

impl Kick for Flag {
    fn kick(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn tenant() -> (Tenant, Flag) {
    let flag = Flag::default();
    (Tenant::new(Kicker::new(flag.clone())), flag)
}

#[test]
fn masks_speak_as_proc_does() {
    let mask = CpuMask::Only(vec![0b1_0111, 1]);
    assert_eq!((mask.list(70), mask.hex(70)), ("0-2,4,64".into(), "01,00000000,00000017".into()));
    assert_eq!((CpuMask::All.list(2), CpuMask::All.hex(2)), ("0-1".into(), "3".into()));
    assert_eq!((CpuMask::All.list(1), CpuMask::All.hex(33)), ("0".into(), "1,ffffffff".into()));
    assert_eq!(CpuMask::All.words(64), [u64::MAX]);
    assert_eq!(CpuMask::All.words(65), [u64::MAX, 1]);
    assert_eq!((mask.nth(4, 70), mask.nth(5, 70), mask.nth(3, 2)), (64, 0, 1));
    assert_eq!(CpuMask::Only(vec![]).nth(3, 2), 0);
}

#[test]
fn a_place_is_kept_until_somebody_else_needs_it() {
    let places = Processors::new(1);
    let (first, kicked) = tenant();
    let (second, _) = tenant();
    assert_eq!(places.acquire(&first, &CpuMask::All), 0);
    places.leave(&first, 0, Instant::now());
    assert!(places.enter(&first, 0), "nobody wanted it");
    places.leave(&first, 0, Instant::now());
    // The first stays outside, so the second gets the place without a kick.
    assert_eq!(places.acquire(&second, &CpuMask::All), 0);
    assert!(!kicked.0.load(Ordering::SeqCst));
    assert!(!places.enter(&first, 0));
    places.give_up(&first, 0);
    assert!(!places.enter(&first, 0), "what is not one's own cannot be given up");
    places.leave(&second, 0, Instant::now());
    places.give_up(&second, 0);
    assert_eq!(places.acquire(&first, &CpuMask::All), 0);
}

#[test]
fn who_sleeps_is_not_waited_for() {
    let places = Processors::new(1);
    let (first, kicked) = tenant();
    let (second, _) = tenant();
    assert_eq!(places.acquire(&first, &CpuMask::All), 0);
    let waiting = {
        let places = places.clone();
        std::thread::spawn(move || places.acquire(&second, &CpuMask::All))
    };
    while !kicked.0.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    places.leave(&first, 0, Instant::now());
    assert_eq!(waiting.join().unwrap(), 0);
    // Nobody waits now; who comes later finds the sleeper's place at once.
    let places = Processors::new(1);
    let (second, _) = tenant();
    assert_eq!(places.acquire(&first, &CpuMask::All), 0);
    places.leave(&first, 0, Instant::now());
    places.rest(0);
    let now = places.now();
    assert_eq!(places.take(&second, &CpuMask::All, |slot| slot.is_idle(now)), Some(0));
}

#[test]
fn affinity_decides_where() {
    let places = Processors::new(4);
    let (first, _) = tenant();
    let (second, _) = tenant();
    assert_eq!(places.acquire(&first, &CpuMask::Only(vec![0b100])), 2);
    assert_eq!(places.acquire(&second, &CpuMask::Only(vec![0b1100])), 3);
}

#[test]
fn more_threads_than_places_take_turns_and_never_share() {
    const THREADS: usize = 6;
    let places = Processors::new(2);
    let running: Arc<[AtomicUsize]> = (0..2).map(|_| AtomicUsize::new(0)).collect();
    let end = Instant::now() + Duration::from_millis(500);
    let spin = |n: usize| {
        let (places, running) = (places.clone(), running.clone());
        std::thread::spawn(move || {
            let (me, kicked) = tenant();
            let (mut cpu, mut turns) = (None, 0);
            // Half of them are never outside for long, half make "system calls".
            while Instant::now() < end {
                let at = match cpu {
                    Some(at) if places.enter(&me, at) => at,
                    _ => {
                        turns += 1;
                        places.acquire(&me, &CpuMask::All)
                    }
                };
                cpu = Some(at);
                assert_eq!(running[at as usize].fetch_add(1, Ordering::SeqCst), 0, "two on one processor");
                let until = if n.is_multiple_of(2) { end } else { Instant::now() + ABSENCE };
                while !kicked.0.swap(false, Ordering::SeqCst) && Instant::now() < until {
                    std::thread::yield_now();
                }
                running[at as usize].fetch_sub(1, Ordering::SeqCst);
                places.leave(&me, at, Instant::now());
            }
            if let Some(at) = cpu {
                places.give_up(&me, at);
            }
            turns
        })
    };
    let threads: Vec<_> = (0..THREADS).map(spin).collect();
    let turns: Vec<usize> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert!(turns.iter().all(|turns| *turns > 0) && turns.iter().sum::<usize>() > 2 * THREADS, "{turns:?}");
    assert!(places.slots.iter().all(|slot| slot.word.load(Ordering::SeqCst) & 1 == 0));
}
