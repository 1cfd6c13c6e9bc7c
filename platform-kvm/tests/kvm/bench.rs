//! Costs on this host, one line each.

use crate::lab::*;
use crate::programs::{self, one};
use caisson_platform_kvm::{Alignment, Change, Exit, FpuState, Gpa, Registers, open_kvm};
use std::time::{Duration, Instant};

/// Prints the median of five runs of `count` operations.
fn measure(name: &str, count: u64, mut run: impl FnMut(u64)) {
    let mut times = (0..5)
        .map(|_| {
            let start = Instant::now();
            run(count);
            start.elapsed() / u32::try_from(count.max(1)).unwrap_or(1)
        })
        .collect::<Vec<Duration>>();
    times.sort();
    println!("{name:<56} {:>10.2} us", times[2].as_nanos() as f64 / 1000.0);
}

pub fn run() {
    let begin = Instant::now();
    let lab = Lab::new();
    println!("{:?}; first machine in {:.2} ms", lab.machine.mode(), begin.elapsed().as_secs_f64() * 1000.0);
    measure("create and drop a machine (probe included)", 1, |_| {
        let config = caisson_platform_kvm::MachineConfig::default();
        drop(caisson_platform_kvm::Machine::new(open_kvm().expect("kvm"), arena(), config).expect("machine"));
    });
    system_calls(&lab);
    faults(&lab);
    mappings(&lab);
    memory(&lab);
    in_place(&lab);
}

fn system_calls(lab: &Lab) {
    lab.load(programs::syscalls());
    let mut thread = lab.thread();
    let mut registers = start();
    measure("system call round trip", scaled(20_000, 200), |n| {
        (0..n).for_each(|_| assert_eq!(thread.run(&mut registers, &lab.space).unwrap(), Exit::Syscall));
    });
    measure("system call, other registers and fs base on return", scaled(20_000, 200), |n| {
        for i in 0..n {
            registers.rcx = i;
            registers.fs_base = i << 12;
            assert_eq!(thread.run(&mut registers, &lab.space).unwrap(), Exit::Syscall);
        }
    });
    let other = lab.machine.new_address_space().unwrap();
    other.map(CODE, lab.space.lookup(CODE).unwrap().0, PAGE, RX).unwrap();
    measure("system call with a change of address space", scaled(5_000, 100), |n| {
        for i in 0..n {
            let space = if i % 2 == 0 { &other } else { &lab.space };
            registers.rip = CODE;
            assert_eq!(thread.run(&mut registers, space).unwrap(), Exit::Syscall);
        }
    });
    measure("read the FPU state", scaled(5_000, 100), |n| (0..n).for_each(|_| drop(thread.fpu().unwrap())));
    let state = FpuState::initial(lab.machine.xstate_size());
    measure("set the FPU state", scaled(5_000, 100), |n| {
        (0..n).for_each(|_| thread.set_fpu(&state).unwrap())
    });
    measure("new thread, first run, end", scaled(2_000, 50), |n| {
        for _ in 0..n {
            assert_eq!(lab.thread().run(&mut start(), &lab.space).unwrap(), Exit::Syscall);
        }
    });
}

fn faults(lab: &Lab) {
    lab.load(one::invalid());
    let mut thread = lab.thread();
    measure("exception round trip (#UD)", scaled(10_000, 100), |n| {
        for _ in 0..n {
            let exit = thread.run(&mut start(), &lab.space).unwrap();
            assert!(matches!(exit, Exit::Exception { vector: 6, .. }));
        }
    });
    // Reads page after page; the host maps each on demand.
    lab.load(programs::patrol());
    let count = scaled(4_000, 100);
    let frames = lab.arena.alloc(count as u32, Alignment::Page).unwrap();
    let gpa = lab.arena.gpa(frames.first);
    (0..count).for_each(|i| lab.set_word(Gpa(gpa.0 + i * PAGE), i));
    let base = 0x6000_0000;
    lab.new_page(0x5000_0000, RW);
    let mut registers = Registers { rsi: base, r8: u64::MAX, r9: 0x5000_0000, ..start() };
    measure("page fault, map one populated page, continue", count / 5, |n| {
        for _ in 0..n {
            let Exit::PageFault { addr, .. } = thread.run(&mut registers, &lab.space).unwrap() else {
                panic!()
            };
            lab.space.map(addr, Gpa(gpa.0 + (addr - base)), PAGE, RW).unwrap();
        }
    });
    let end = base + count * PAGE;
    let begin = Instant::now();
    lab.space.revoke(&[Change::Unmap(base..end)]).unwrap();
    println!(
        "{:<56} {:>10.2} us",
        format!("revoke {} touched pages at once", count),
        begin.elapsed().as_nanos() as f64 / 1e3
    );
    lab.space.map(base, gpa, count * PAGE, RW).unwrap();
    let begin = Instant::now();
    let mut registers = Registers { rsi: base, r8: u64::MAX, r9: 0x5000_0000, ..start() };
    let exit = thread.run(&mut registers, &lab.space).unwrap();
    assert!(matches!(exit, Exit::PageFault { addr, .. } if addr == end), "{exit:?}");
    let each = begin.elapsed().as_nanos() as f64 / 1e3 / count as f64;
    println!("{:<56} {each:>10.2} us", "touch a mapped and populated page (4 KiB entries)");
    lab.space.revoke(&[Change::Unmap(base..end)]).unwrap();
    free(frames);
}

fn mappings(lab: &Lab) {
    let frames = lab.arena.alloc(1024, Alignment::Page).unwrap();
    let gpa = lab.arena.gpa(frames.first);
    let at = 0x6000_0000;
    measure("map and revoke an untouched page", scaled(2_000, 50), |n| {
        for _ in 0..n {
            lab.space.map(at, gpa, PAGE, RW).unwrap();
            lab.space.revoke(&[Change::Unmap(at..at + PAGE)]).unwrap();
        }
    });
    lab.load(one::read());
    let mut thread = lab.thread();
    let mut touch = |gva: u64| {
        let mut registers = Registers { rdi: gva, ..start() };
        thread.run(&mut registers, &lab.space).unwrap();
    };
    lab.arena.zero(gpa, 1024 * 4096).unwrap();
    let touch_only = Instant::now();
    let rounds = scaled(500, 20);
    (0..rounds).for_each(|_| touch(at + 64 * PAGE));
    let base_cost = touch_only.elapsed() / rounds as u32;
    println!("{:<56} {:>10.2} us", "(run that faults at once)", base_cost.as_nanos() as f64 / 1e3);
    measure("map, touch, revoke one page", rounds, |n| {
        for _ in 0..n {
            lab.space.map(at, gpa, PAGE, RW).unwrap();
            touch(at);
            lab.space.revoke(&[Change::Unmap(at..at + PAGE)]).unwrap();
        }
    });
    measure("map, touch, write-protect one page", rounds, |n| {
        for _ in 0..n {
            lab.space.map(at, gpa, PAGE, RW).unwrap();
            touch(at);
            lab.space.revoke(&[Change::Protect { range: at..at + PAGE, perms: R }]).unwrap();
        }
    });
    for stride in [1u64, 2] {
        measure(&format!("revoke 256 pages, every {stride}. of the arena"), 20, |n| {
            for _ in 0..n {
                (0..256).for_each(|i| {
                    lab.space.map(at + i * PAGE, Gpa(gpa.0 + i * stride * PAGE), PAGE, RW).unwrap()
                });
                lab.space.revoke(&[Change::Unmap(at..at + 256 * PAGE)]).unwrap();
            }
        });
    }
    measure("new address space, one page, drop", scaled(1_000, 50), |n| {
        for _ in 0..n {
            let space = lab.machine.new_address_space().unwrap();
            space.map(at, gpa, PAGE, RW).unwrap();
        }
    });
    let eager = Lab::with(caisson_platform_kvm::MachineConfig { quarantine_pages: 1, ..Default::default() });
    measure("the same with a full flush each time", scaled(200, 20), |n| {
        for _ in 0..n {
            let space = eager.machine.new_address_space().unwrap();
            space.map(at, gpa, PAGE, RW).unwrap();
        }
    });
    free(frames);
}

/// What it costs to take pages from a thread that goes on running.
fn in_place(lab: &Lab) {
    use std::sync::atomic::{AtomicBool, Ordering};
    const AT: u64 = 0x6000_0000;
    const WORDS: u64 = 0x6100_0000;
    lab.load(programs::obey());
    let words = lab.new_page(WORDS, RW);
    let mut thread = lab.thread();
    let kicker = thread.kicker();
    let stop = AtomicBool::new(false);
    let frames = lab.arena.alloc(64, Alignment::Page).unwrap();
    let gpa = lab.arena.gpa(frames.first);
    lab.arena.zero(gpa, 64 * 4096).unwrap();
    let mut turn = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut registers = Registers { rdi: WORDS, rsi: AT, ..start() };
            while !stop.load(Ordering::Acquire) {
                assert_eq!(thread.run(&mut registers, &lab.space).unwrap(), Exit::Interrupted);
            }
        });
        let mut touch = || {
            turn += 1;
            lab.set_word(words, turn);
            while lab.word(Gpa(words.0 + 8)) != turn {
                std::hint::spin_loop();
            }
        };
        let all = |pages: u64| [Change::Unmap(AT..AT + pages * PAGE)];
        let rounds = scaled(2_000, 50);
        lab.space.map(AT, gpa, PAGE, RW).unwrap();
        measure("word to a running thread and back", rounds, |n| (0..n).for_each(|_| touch()));
        lab.space.revoke(&all(1)).unwrap();
        for pages in [1, 16] {
            measure(&format!("map {pages}, touch, revoke; the thread is got out"), rounds, |n| {
                for _ in 0..n {
                    lab.space.map(AT, gpa, pages * PAGE, RW).unwrap();
                    touch();
                    lab.space.revoke(&all(pages)).unwrap();
                }
            });
            for (spent, what) in [(&[][..], "kept"), (&[frames][..], "spent")] {
                measure(&format!("map {pages}, touch, revoke in place, {what}"), rounds, |n| {
                    for _ in 0..n {
                        lab.space.map(AT, gpa, pages * PAGE, RW).unwrap();
                        touch();
                        let done = lab.space.revoke_in_place(&all(pages), spent).unwrap();
                        if done.is_none() {
                            lab.space.revoke(&all(pages)).unwrap();
                        }
                    }
                });
            }
        }
        measure("map ahead, touch, revoke in place, spent", rounds, |n| {
            for _ in 0..n {
                lab.space.map_ahead(AT, gpa, PAGE, RW).unwrap();
                touch();
                if lab.space.revoke_in_place(&all(1), &[frames]).unwrap().is_none() {
                    lab.space.revoke(&all(1)).unwrap();
                }
            }
        });
        measure("map 16 ahead, revoke in place untouched", rounds, |n| {
            for _ in 0..n {
                lab.space.map_ahead(AT, gpa, 16 * PAGE, RW).unwrap();
                if lab.space.revoke_in_place(&all(16), &[frames]).unwrap().is_none() {
                    lab.space.revoke(&all(16)).unwrap();
                }
            }
        });
        stop.store(true, Ordering::Release);
        kicker.kick();
    });
    free(frames);
}

fn memory(lab: &Lab) {
    measure("allocate and release a frame", scaled(20_000, 500), |n| {
        (0..n).for_each(|_| free(lab.arena.alloc(1, Alignment::Page).unwrap()));
    });
    measure("allocate and release a 2 MiB block", scaled(200, 20), |n| {
        (0..n).for_each(|_| free(lab.arena.alloc(512, Alignment::Huge).unwrap()));
    });
    let frames = lab.arena.alloc(16, Alignment::Page).unwrap();
    let gpa = lab.arena.gpa(frames.first);
    let mut page = [0; 4096];
    measure("copy 8 bytes out", scaled(100_000, 1000), |n| {
        (0..n).for_each(|_| lab.arena.read(gpa, &mut page[..8]).unwrap())
    });
    measure("copy 4096 bytes out", scaled(50_000, 1000), |n| {
        (0..n).for_each(|_| lab.arena.read(gpa, &mut page).unwrap())
    });
    free(frames);
}
