//! A kick is never lost.

use crate::lab::*;
use crate::programs;
use caisson_platform_kvm::Exit;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Kicks a running guest `count` times; each kick must be answered before the next is sent.
fn kick_many(program: &[u8], count: u64) {
    let lab = Lab::new();
    lab.load(program);
    let mut thread = lab.thread();
    let kicker = thread.kicker();
    let (answered, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut registers = start();
            while !stop.load(Ordering::Acquire) {
                match thread.run(&mut registers, &lab.space).unwrap() {
                    Exit::Interrupted => {
                        answered.fetch_add(1, Ordering::AcqRel);
                    }
                    Exit::Syscall => {}
                    other => panic!("{other:?}"),
                }
            }
        });
        for sent in 0..count {
            // Vary the moment: at once, after a few instructions, after a while.
            match sent % 5 {
                0 => {}
                1 => (0..(sent % 97)).for_each(|_| std::hint::spin_loop()),
                2 => (0..(sent % 1999)).for_each(|_| std::hint::spin_loop()),
                _ => std::thread::yield_now(),
            }
            kicker.kick();
            let deadline = Instant::now() + Duration::from_secs(20);
            while answered.load(Ordering::Acquire) == sent {
                if Instant::now() > deadline {
                    // The thread may never come back to be joined.
                    println!("FAILED kick {sent} of {count} was lost");
                    std::process::exit(1);
                }
                std::thread::yield_now();
            }
            assert_eq!(answered.load(Ordering::Acquire), sent + 1, "one kick, one interruption");
        }
        stop.store(true, Ordering::Release);
        kicker.kick();
    });
}

pub fn kicks_of_a_spinning_guest() {
    kick_many(programs::spin(), scaled(100_000, 200));
}

pub fn kicks_of_a_syscalling_guest() {
    kick_many(programs::syscalls(), scaled(100_000, 200));
}

pub fn kick_before_run() {
    let lab = Lab::new();
    lab.load(programs::spin());
    let mut thread = lab.thread();
    let kicker = thread.kicker();
    let mut registers = start();
    for _ in 0..100 {
        kicker.kick();
        kicker.kick();
        assert_eq!(thread.run(&mut registers, &lab.space).unwrap(), Exit::Interrupted);
        assert_eq!(registers, start());
    }
    // Used up: now the guest runs.
    lab.load(programs::syscalls());
    assert_eq!(thread.run(&mut registers, &lab.space).unwrap(), Exit::Syscall);
}
