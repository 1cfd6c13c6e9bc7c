//! A right that was revoked is gone for every vCPU, also for those that run in the space at that moment.

use crate::lab::*;
use crate::programs::{self, one};
use caisson_platform_kvm::{
    AddressSpace, Alignment, Change, Exit, Frame, FrameRange, Gpa, Paging, Registers, Stragglers,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const TARGET: u64 = 0x4000_0000;
const REPORT: u64 = 0x5000_0000;
const POISON: u64 = 0xdead_dead_dead_dead;

/// Threads that run a program over `TARGET` for ever; page faults are simply tried again.
struct Runners<'l> {
    lab: &'l Lab,
    reports: Vec<Gpa>,
}

impl<'l> Runners<'l> {
    fn new(lab: &'l Lab, count: u64) -> Runners<'l> {
        Runners { lab, reports: (0..count).map(|n| lab.new_page(REPORT + n * PAGE, RW)).collect() }
    }

    /// Runs `body` beside the runners.
    fn with(&self, body: impl FnOnce(&Self)) {
        let stop = AtomicBool::new(false);
        let mut threads = self.reports.iter().map(|_| self.lab.thread()).collect::<Vec<_>>();
        let kickers = threads.iter().map(|thread| thread.kicker()).collect::<Vec<_>>();
        std::thread::scope(|scope| {
            for (n, thread) in threads.iter_mut().enumerate() {
                let (stop, space) = (&stop, &self.lab.space);
                scope.spawn(move || {
                    let rdi = REPORT + n as u64 * PAGE;
                    let mut registers =
                        Registers { rdi, rsi: TARGET, rsp: STACK_TOP - 1024 * (n as u64 % 3), ..start() };
                    while !stop.load(Ordering::Acquire) {
                        match thread.run(&mut registers, space).expect("run") {
                            Exit::PageFault { .. } => std::thread::yield_now(),
                            Exit::Interrupted => {}
                            other => panic!("{other:?} at {registers:x?}"),
                        }
                    }
                });
            }
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(self)));
            stop.store(true, Ordering::Release);
            kickers.iter().for_each(|kicker| kicker.kick());
            if let Err(panic) = result {
                std::panic::resume_unwind(panic);
            }
        });
    }

    fn value(&self, n: usize) -> u64 {
        self.lab.word(self.reports[n])
    }

    /// Waits until every runner has reported `value`.
    fn all_see(&self, value: u64) {
        let deadline = Instant::now() + Duration::from_secs(60);
        for n in 0..self.reports.len() {
            while self.value(n) != value {
                assert!(Instant::now() < deadline, "runner {n} sees {:#x}, not {value:#x}", self.value(n));
                std::thread::yield_now();
            }
        }
    }

    /// Gives the runners time to do what they must not, and checks that none has seen `POISON`.
    fn none_sees_poison(&self) {
        for _ in 0..3 {
            std::thread::yield_now();
            for n in 0..self.reports.len() {
                assert_ne!(self.value(n), POISON, "runner {n} used a revoked right");
            }
        }
    }
}

pub fn unmapped_page_is_gone() {
    let lab = Lab::new();
    lab.load(one::read());
    let gpa = lab.new_page(TARGET, RW);
    let mut thread = lab.thread();
    for round in 0..scaled(300, 20) {
        lab.set_word(gpa, round);
        lab.space.map(TARGET, gpa, PAGE, R).unwrap();
        let mut registers = Registers { rdi: TARGET, ..start() };
        thread.run(&mut registers, &lab.space).unwrap();
        assert_eq!(registers.rax, round);
        lab.space.revoke(&[Change::Unmap(TARGET..TARGET + PAGE)]).unwrap();
        let mut registers = Registers { rdi: TARGET, ..start() };
        let exit = thread.run(&mut registers, &lab.space).unwrap();
        assert_eq!(exit, Exit::PageFault { addr: TARGET, write: false, exec: false, present: false });
    }
}

pub fn unmapped_page_is_gone_while_running() {
    let lab = Lab::new();
    lab.load(programs::watch());
    let gpa = lab.new_page(TARGET, R);
    let runners = Runners::new(&lab, 2);
    runners.with(|runners| {
        for round in 1..scaled(400, 15) {
            lab.set_word(gpa, round);
            lab.space.map(TARGET, gpa, PAGE, R).unwrap();
            runners.all_see(round);
            lab.space.revoke(&[Change::Unmap(TARGET..TARGET + PAGE)]).unwrap();
            lab.set_word(gpa, POISON);
            runners.none_sees_poison();
        }
    });
}

/// Takes rights away with the runners left in the guest where the host's paging allows that, and whether it does.
fn revoke_in_place(lab: &Lab, changes: &[Change], spent: &[FrameRange]) -> Option<Stragglers> {
    let stragglers = lab.space.revoke_in_place(changes, spent).unwrap();
    assert_eq!(stragglers.is_some(), lab.machine.mode().paging == Paging::Shadow);
    if stragglers.is_none() {
        lab.space.revoke(changes).unwrap();
    }
    stragglers
}

/// As `unmapped_page_is_gone_while_running`, but nobody is made to leave; also for pages that were mapped ahead, and also with faults
/// half done when the entry goes.
pub fn unmapped_in_place_while_running() {
    let lab = Lab::new();
    lab.load(programs::watch());
    // Together more than the arena keeps when they are free: their contents go at once.
    let many = [0; 3].map(|_| lab.arena.alloc(400, Alignment::Page).unwrap());
    let gpa = lab.arena.gpa(many[0].first);
    let one = [FrameRange { count: 1, ..many[0] }];
    let spent = [&one[..], &many[..1], &many[..], &[]];
    let unmap = [Change::Unmap(TARGET..TARGET + PAGE)];
    let runners = Runners::new(&lab, 3);
    runners.with(|runners| {
        for round in 1..scaled(2_000, 30) {
            lab.set_word(gpa, round);
            if round % 3 == 0 {
                lab.space.map(TARGET, gpa, PAGE, R).unwrap();
            } else {
                lab.space.map_ahead(TARGET, gpa, PAGE, R).unwrap();
            }
            if round % 4 < 2 {
                runners.all_see(round);
            } else {
                (0..round % 7 * 300).for_each(|_| std::hint::spin_loop());
            }
            // What is spent may lose its contents at any time.
            revoke_in_place(&lab, &unmap, spent[round as usize % spent.len()]);
            lab.set_word(gpa, POISON);
            runners.none_sees_poison();
        }
    });
}

pub fn write_protected_in_place_while_running() {
    let lab = Lab::new();
    lab.load(programs::count());
    let runners = Runners::new(&lab, 2);
    runners.with(|runners| {
        for round in 0..scaled(300, 15) {
            let all = REPORT..REPORT + runners.reports.len() as u64 * PAGE;
            for (n, gpa) in runners.reports.iter().enumerate() {
                let (at, from) = (REPORT + n as u64 * PAGE, runners.value(n));
                if round % 2 == 0 {
                    revoke_in_place(&lab, &[Change::Unmap(at..at + PAGE)], &[]);
                    lab.space.map_ahead(at, *gpa, PAGE, RW).unwrap();
                } else {
                    lab.space.map(at, *gpa, PAGE, RW).unwrap();
                }
                let deadline = Instant::now() + Duration::from_secs(60);
                while runners.value(n) == from {
                    assert!(Instant::now() < deadline, "runner {n} does not run");
                    std::thread::yield_now();
                }
            }
            revoke_in_place(&lab, &[Change::Protect { range: all, perms: R }], &[]);
            let frozen = (0..runners.reports.len()).map(|n| runners.value(n)).collect::<Vec<_>>();
            std::thread::sleep(Duration::from_micros(200));
            for (n, value) in frozen.into_iter().enumerate() {
                assert_eq!(runners.value(n), value, "runner {n} wrote to a protected page");
            }
        }
    });
}

/// Who was in the guest counts as there until it has left, and can be got out.
pub fn stragglers_leave() {
    let lab = Lab::new();
    lab.load(programs::watch());
    let gpa = lab.new_page(TARGET, R);
    let runners = Runners::new(&lab, 2);
    runners.with(|runners| {
        for round in 1..scaled(200, 10) {
            lab.set_word(gpa, round);
            lab.space.map(TARGET, gpa, PAGE, R).unwrap();
            runners.all_see(round);
            // Write protection takes nothing from readers, so that they go on.
            lab.space.map(TARGET, gpa, PAGE, RW).unwrap();
            let protect = [Change::Protect { range: TARGET..TARGET + PAGE, perms: R }];
            let Some(stragglers) = revoke_in_place(&lab, &protect, &[]) else { continue };
            if round % 2 == 0 {
                assert!(!stragglers.are_gone(), "readers were made to leave");
            }
            stragglers.expel();
            assert!(stragglers.are_gone());
        }
    });
    assert!(Stragglers::default().are_gone());
    let unused = lab.space.revoke_in_place(&[Change::Unmap(0..PAGE)], &[]).unwrap();
    assert!(unused.is_none_or(|stragglers| stragglers.are_gone()));
}

/// What nobody has touched costs no translation; what somebody has, also through the host's tables, does.
pub fn mapped_ahead_is_taken_away() {
    let lab = Lab::new();
    lab.load(one::read());
    let frames = lab.arena.alloc(16, Alignment::Page).unwrap();
    let gpa = lab.arena.gpa(frames.first);
    let other = lab.arena.gpa(lab.frame());
    let mut thread = lab.thread();
    for round in 0..scaled(300, 20) {
        let touched = TARGET + round % 16 * PAGE;
        lab.set_word(Gpa(gpa.0 + round % 16 * PAGE), round);
        lab.space.map_ahead(TARGET, gpa, 16 * PAGE, RW).unwrap();
        assert_eq!(lab.space.lookup(touched), Some((Gpa(gpa.0 + round % 16 * PAGE), RW)));
        let mut registers = Registers { rdi: touched, ..start() };
        assert_eq!(thread.run(&mut registers, &lab.space).unwrap(), Exit::Syscall);
        assert_eq!(registers.rax, round);
        // Over something else it changes nothing; `map` does.
        lab.space.map_ahead(TARGET, other, PAGE, RW).unwrap();
        assert_eq!(lab.space.lookup(TARGET), Some((gpa, RW)));
        if round % 2 == 0 {
            lab.space.revoke(&[Change::Unmap(TARGET..TARGET + 16 * PAGE)]).unwrap();
        } else {
            revoke_in_place(&lab, &[Change::Unmap(TARGET..TARGET + 16 * PAGE)], &[frames]);
        }
        for addr in [touched, TARGET] {
            let mut registers = Registers { rdi: addr, ..start() };
            let exit = thread.run(&mut registers, &lab.space).unwrap();
            assert_eq!(exit, Exit::PageFault { addr, write: false, exec: false, present: false });
        }
    }
    free(frames);
}

pub fn write_protected_while_running() {
    let lab = Lab::new();
    lab.load(programs::count());
    // Each runner counts in its report page, which is the target here.
    let runners = Runners::new(&lab, 2);
    runners.with(|runners| {
        for _ in 0..scaled(300, 15) {
            for (n, gpa) in runners.reports.iter().enumerate() {
                let at = REPORT + n as u64 * PAGE;
                lab.space.map(at, *gpa, PAGE, RW).unwrap();
                let from = runners.value(n);
                let deadline = Instant::now() + Duration::from_secs(60);
                while runners.value(n) == from {
                    assert!(Instant::now() < deadline, "runner {n} does not run");
                    std::thread::yield_now();
                }
            }
            let all = REPORT..REPORT + runners.reports.len() as u64 * PAGE;
            lab.space.revoke(&[Change::Protect { range: all, perms: R }]).unwrap();
            let frozen = (0..runners.reports.len()).map(|n| runners.value(n)).collect::<Vec<_>>();
            for _ in 0..3 {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_micros(200));
            for (n, value) in frozen.into_iter().enumerate() {
                assert_eq!(runners.value(n), value, "runner {n} wrote to a protected page");
            }
        }
    });
}

pub fn execution_revoked_while_running() {
    let lab = Lab::new();
    lab.load(programs::call());
    let code = lab.frame();
    let gpa = lab.arena.gpa(code);
    lab.arena.write(gpa, programs::constant()).unwrap();
    let set = |value: u32| lab.arena.write(Gpa(gpa.0 + 1), &value.to_le_bytes()).unwrap();
    let runners = Runners::new(&lab, 2);
    runners.with(|runners| {
        for round in 1..scaled(200, 10) {
            set(round as u32);
            lab.space.map(TARGET, gpa, PAGE, RX).unwrap();
            runners.all_see(round);
            lab.space.revoke(&[Change::Protect { range: TARGET..TARGET + PAGE, perms: R }]).unwrap();
            set(POISON as u32);
            for _ in 0..3 {
                std::thread::yield_now();
                (0..2).for_each(|n| {
                    assert_ne!(runners.value(n), POISON & 0xffff_ffff, "runner {n} executed it")
                });
            }
            lab.space.revoke(&[Change::Unmap(TARGET..TARGET + PAGE)]).unwrap();
        }
    });
}

pub fn replaced_page_while_running() {
    let lab = Lab::new();
    lab.load(programs::watch());
    let frames = [lab.frame(), lab.frame(), lab.frame()];
    let runners = Runners::new(&lab, 2);
    lab.space.map(TARGET, lab.arena.gpa(frames[0]), PAGE, R).unwrap();
    runners.with(|runners| {
        let mut old: Option<Frame> = None;
        for round in 1..scaled(400, 15) {
            let frame = frames[round as usize % 3];
            lab.set_word(lab.arena.gpa(frame), round);
            // `map` over a mapping revokes the old one by itself.
            lab.space.map(TARGET, lab.arena.gpa(frame), PAGE, R).unwrap();
            if let Some(old) = old.replace(frame) {
                lab.set_word(lab.arena.gpa(old), POISON);
            }
            runners.none_sees_poison();
            runners.all_see(round);
        }
    });
}

pub fn split_and_merge_while_running() {
    let lab = Lab::new();
    lab.load(programs::watch());
    let blocks = [0, 1].map(|_| lab.arena.alloc(512, Alignment::Huge).unwrap());
    let small = lab.frame();
    let runners = Runners::new(&lab, 2);
    runners.with(|runners| {
        for round in 1..scaled(150, 8) {
            let block = lab.arena.gpa(blocks[round as usize % 2].first);
            let other = lab.arena.gpa(blocks[(round as usize + 1) % 2].first);
            // One large entry, whatever was there before.
            lab.set_word(block, 4 * round);
            lab.space.map(TARGET, block, HUGE, RW).unwrap();
            lab.set_word(other, POISON);
            runners.none_sees_poison();
            runners.all_see(4 * round);
            // Split by a loss elsewhere in it: the watched page stays.
            let tail = TARGET + 5 * PAGE..TARGET + 9 * PAGE;
            lab.space.revoke(&[Change::Unmap(tail)]).unwrap();
            lab.set_word(block, 4 * round + 1);
            runners.all_see(4 * round + 1);
            // One small page of the split entry goes elsewhere.
            lab.set_word(lab.arena.gpa(small), 4 * round + 2);
            lab.space.map(TARGET, lab.arena.gpa(small), PAGE, R).unwrap();
            lab.set_word(block, POISON);
            runners.none_sees_poison();
            runners.all_see(4 * round + 2);
            // All of it goes, and comes back large in the next round.
            lab.space.revoke(&[Change::Unmap(TARGET..TARGET + HUGE)]).unwrap();
            lab.set_word(lab.arena.gpa(small), POISON);
            runners.none_sees_poison();
        }
    });
    blocks.into_iter().for_each(free);
}

/// 2 MiB of one block, of another, of pages of their own, one after the other at the same address, with threads that read there all the time; also
/// where the host's pages are not huge. What came before must not be seen, whatever KVM has kept of it.
pub fn blocks_change_under_readers() {
    let first = Lab::new();
    first.load(programs::watch());
    let blocks = [0, 1].map(|_| first.arena.alloc(512, Alignment::Huge).unwrap());
    let gpas = blocks.map(|block| first.arena.gpa(block.first));
    let small = first.frame();
    let small_gpa = first.arena.gpa(small);
    let whole = TARGET..TARGET + HUGE;
    let reports = [0, 1].map(|_| first.frame());
    for round in 0..scaled(120, 8) {
        // A second-level entry that has become a table stays one for as long as its space lives.
        let lab = first.beside();
        let value = |step: u64| 100 * round + step + 1;
        let show = |gpa: Gpa, step: u64| first.set_word(gpa, value(step));
        let reports = reports.map(|frame| first.arena.gpa(frame));
        for (n, report) in reports.iter().enumerate() {
            first.set_word(*report, 0);
            lab.space.map(REPORT + n as u64 * PAGE, *report, PAGE, RW).unwrap();
        }
        let runners = Runners { lab: &lab, reports: reports.to_vec() };
        let take = |changes: &[Change], spent: &[FrameRange]| {
            if round % 2 == 0 {
                lab.space.revoke(changes).unwrap();
            } else if let Some(stragglers) = revoke_in_place(&lab, changes, spent) {
                // The next owner writes to them, and this test to what it has taken.
                stragglers.expel();
            }
        };
        runners.with(|runners| {
            for step in 0..6 {
                let at = gpas[(step as usize + round as usize / 2) % 2];
                show(at, step);
                lab.space.map(TARGET, at, HUGE, RW).unwrap();
                if (round + step) % 3 > 0 {
                    runners.all_see(value(step));
                }
                take(&[Change::Unmap(whole.clone())], &[]);
                first.set_word(at, POISON);
                runners.none_sees_poison();
                assert_eq!(lab.space.lookup(TARGET), None);
            }
            let at = gpas[round as usize % 2];
            show(at, 10);
            lab.space.map(TARGET, at, HUGE, RW).unwrap();
            runners.all_see(value(10));
            match round / 2 % 3 {
                // Other pages of it lose a right, or go; this one stays.
                0 => {
                    let part = TARGET + 8 * PAGE..TARGET + 12 * PAGE;
                    take(&[Change::Protect { range: part, perms: R }], &[]);
                }
                1 => take(&[Change::Unmap(TARGET + PAGE..TARGET + HUGE)], &[]),
                // All of it goes, and a single page comes there.
                _ => take(&[Change::Unmap(whole.clone())], &[]),
            }
            if round / 2 % 3 < 2 {
                show(at, 11);
                runners.all_see(value(11));
            }
            show(small_gpa, 12);
            lab.space.map(TARGET, small_gpa, PAGE, R).unwrap();
            first.set_word(at, POISON);
            runners.none_sees_poison();
            runners.all_see(value(12));
            // It is a table now, and takes a block all the same.
            let at = gpas[(round as usize + 1) % 2];
            show(at, 13);
            lab.space.map(TARGET, at, HUGE, RW).unwrap();
            first.set_word(small_gpa, POISON);
            runners.none_sees_poison();
            runners.all_see(value(13));
            take(&[Change::Unmap(whole.clone())], &[blocks[(round as usize + 1) % 2]]);
            first.set_word(at, POISON);
            runners.none_sees_poison();
        });
    }
    blocks.into_iter().for_each(free);
}

/// A block that is mapped by one entry elsewhere must not be seen where it was before, nor be written where it may only be read, whatever KVM
/// shares between the two places: in the same space, in another one, and while both show it.
pub fn a_block_is_seen_at_its_place_only() {
    let lab = Lab::new();
    lab.load(one::read());
    let other = lab.beside();
    let block = lab.arena.alloc(512, Alignment::Huge).unwrap();
    let gpa = lab.arena.gpa(block.first);
    // The host's pages are small from now on, so KVM shadows a leaf by a page.
    lab.set_word(gpa, 1);
    lab.space.map(REPORT, gpa, PAGE, RW).unwrap();
    let read = |lab: &Lab, addr: u64| {
        let mut registers = Registers { rdi: addr, ..start() };
        let exit = lab.run(&mut registers);
        (exit, registers.rax)
    };
    assert_eq!(read(&lab, REPORT), (Exit::Syscall, 1));
    lab.space.revoke(&[Change::Protect { range: REPORT..REPORT + PAGE, perms: R }]).unwrap();
    lab.space.revoke(&[Change::Unmap(REPORT..REPORT + PAGE)]).unwrap();
    let unmap = |lab: &Lab, at: u64, in_place: bool| {
        let changes = [Change::Unmap(at..at + HUGE)];
        if in_place { drop(revoke_in_place(lab, &changes, &[])) } else { lab.space.revoke(&changes).unwrap() }
    };
    let gone = |addr: u64| Exit::PageFault { addr, write: false, exec: false, present: false };
    let mut at = TARGET;
    for round in 0..scaled(60, 8) {
        // Fresh places, which are no tables yet.
        at += 2 * HUGE;
        let (here, there) = if round % 2 == 0 { (&lab, &other) } else { (&lab, &lab) };
        let second = if round % 2 == 0 { at } else { at + HUGE };
        here.space.map(at, gpa, HUGE, RW).unwrap();
        lab.set_word(gpa, round);
        assert_eq!(read(here, at), (Exit::Syscall, round));
        if round % 4 < 2 {
            unmap(here, at, round % 3 == 0);
            there.space.map(second, gpa, HUGE, RW).unwrap();
            assert_eq!(read(there, second), (Exit::Syscall, round));
        } else {
            there.space.map(second, gpa, HUGE, RW).unwrap();
            assert_eq!(read(there, second), (Exit::Syscall, round));
            unmap(here, at, round % 3 == 0);
            assert_eq!(read(there, second + 3 * PAGE).0, Exit::Syscall);
            assert_eq!(read(there, second), (Exit::Syscall, round));
        }
        for addr in [at, at + 3 * PAGE] {
            assert_eq!(read(here, addr).0, gone(addr), "round {round}");
        }
        unmap(there, second, round % 3 == 1);
        assert_eq!(read(there, second).0, gone(second));
    }
    free(block);
}

/// What a taken leaf leaves behind is known, and the same block is mapped again without a full flush; another one with one.
pub fn a_block_comes_back_without_a_flush() {
    let lab = Lab::new();
    lab.load(one::read());
    let blocks = [0, 1].map(|_| lab.arena.alloc(512, Alignment::Huge).unwrap());
    let gpas = blocks.map(|block| lab.arena.gpa(block.first));
    let shadow = lab.machine.mode().paging == Paging::Shadow;
    let mut thread = lab.thread();
    let mut read = |expected: u64| {
        let mut registers = Registers { rdi: TARGET, ..start() };
        assert_eq!(thread.run(&mut registers, &lab.space).unwrap(), Exit::Syscall);
        assert_eq!(registers.rax, expected);
    };
    assert_eq!(lab.space.block_before(TARGET), None);
    for (n, gpa) in gpas.into_iter().enumerate() {
        let before = lab.machine.flushes_begun();
        for round in 0..10 {
            lab.set_word(gpa, 1000 * n as u64 + round);
            lab.space.map(TARGET, gpa, HUGE, if round % 2 == 0 { RW } else { R }).unwrap();
            read(1000 * n as u64 + round);
            lab.space.revoke(&[Change::Unmap(TARGET..TARGET + HUGE)]).unwrap();
            assert_eq!(lab.space.block_before(TARGET + 5 * PAGE), Some(gpa).filter(|_| shadow));
        }
        let flushes = lab.machine.flushes_begun() - before;
        assert_eq!(flushes, u64::from(shadow && n > 0));
    }
    blocks.into_iter().for_each(free);
}

/// A space, and which page number each address shows in it.
type Populated = (Arc<AddressSpace>, Vec<(u64, u64)>);

/// Spaces come and go while a thread runs in another one; their tables are used again at other places and levels.
pub fn table_pages_are_reused_safely() {
    let lab = Lab::with(caisson_platform_kvm::MachineConfig { quarantine_pages: 20, ..Default::default() });
    lab.load(one::read());
    let code = lab.space.lookup(CODE).unwrap().0;
    let frames = lab.arena.alloc(64, Alignment::Page).unwrap();
    let gpa = |n: u64| lab.arena.gpa(Frame(frames.first.0 + (n % 64) as u32));
    (0..64).for_each(|n| lab.set_word(gpa(n), n));
    let mut threads = [lab.thread(), lab.thread(), lab.thread()];
    let mut alive: Vec<Populated> = Vec::new();
    let mut random = 0x1234_5678_9abc_def1u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for round in 0..scaled(600, 40) {
        let space = lab.machine.new_address_space().unwrap();
        space.map(CODE, code, PAGE, RX).unwrap();
        let pages = (0..4)
            .map(|_| {
                // Few distinct places at every level, so that the same slots are used by different tables.
                let gva = (next() % 3) << 39
                    | (next() % 3) << 30
                    | (next() % 3) << 21
                    | (next() % 512) << 12
                    | 0x1000_0000;
                (gva, next() % 64)
            })
            .collect::<std::collections::BTreeMap<u64, u64>>();
        for (&gva, &n) in &pages {
            space.map(gva, gpa(n), PAGE, R).unwrap();
        }
        alive.push((space, pages.into_iter().collect()));
        if alive.len() > 5 {
            alive.swap_remove(next() as usize % 6);
        }
        for (space, pages) in &alive {
            for (gva, n) in pages {
                let mut registers = Registers { rdi: *gva, ..start() };
                threads[round as usize % 3].run(&mut registers, space).unwrap();
                assert_eq!(registers.rax, *n, "round {round}: {gva:#x}");
            }
            // A place that this space does not map.
            let hole = (next() % 3) << 39
                | (next() % 3) << 30
                | (next() % 3) << 21
                | 0x1000_0000
                | (next() % 512) << 12;
            if space.lookup(hole).is_none() {
                let mut registers = Registers { rdi: hole, ..start() };
                let exit = threads[(round as usize + 1) % 3].run(&mut registers, space).unwrap();
                assert_eq!(exit, Exit::PageFault { addr: hole, write: false, exec: false, present: false });
            }
        }
    }
    free(frames);
}

pub fn two_threads_revoke_at_once() {
    let lab = Lab::new();
    lab.load(programs::syscalls());
    let other = lab.machine.new_address_space().unwrap();
    other.map(CODE, lab.space.lookup(CODE).unwrap().0, PAGE, RX).unwrap();
    let rounds = scaled(500, 20);
    std::thread::scope(|scope| {
        for n in 0..4u64 {
            let (lab, other) = (&lab, &other);
            scope.spawn(move || {
                let mut thread = lab.thread();
                let at = TARGET + n * HUGE;
                let gpa = lab.arena.gpa(lab.frame());
                for round in 0..rounds {
                    // Now in one space, now in the other, so that the lists of runners change under the revocations.
                    let space = if (round + n) % 3 == 0 { other } else { &lab.space };
                    assert_eq!(thread.run(&mut start(), space).unwrap(), Exit::Syscall);
                    for space in [&lab.space, other] {
                        space.map(at, gpa, PAGE, RW).unwrap();
                        space.revoke(&[Change::Unmap(at..at + PAGE)]).unwrap();
                    }
                }
            });
        }
    });
}

/// A page that two spaces share is revoked in one of them, again and again, while the host and a guest thread of the other one
/// write to it and its neighbours.
pub fn writers_never_notice_a_revocation() {
    let lab = Lab::new();
    lab.load(programs::count());
    let other = lab.machine.new_address_space().unwrap();
    let frames = lab.arena.alloc(4, Alignment::Page).unwrap();
    let gpa = lab.arena.gpa(frames.first);
    other.map(CODE, lab.space.lookup(CODE).unwrap().0, PAGE, RX).unwrap();
    other.map(TARGET, gpa, 4 * PAGE, RW).unwrap();
    let stop = AtomicBool::new(false);
    let mut thread = lab.thread();
    let kicker = thread.kicker();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut registers = Registers { rdi: TARGET, ..start() };
            while !stop.load(Ordering::Acquire) {
                let exit = thread.run(&mut registers, &other).expect("run");
                assert_eq!(exit, Exit::Interrupted, "the guest noticed");
            }
        });
        scope.spawn(|| {
            let word = Gpa(gpa.0 + 2 * PAGE + 64);
            let zeroes = std::fs::File::open("/dev/zero").expect("/dev/zero");
            while !stop.load(Ordering::Acquire) {
                lab.arena.write(Gpa(gpa.0 + PAGE - 8), &[0x77; 16]).expect("write");
                lab.arena.zero(Gpa(gpa.0 + 2 * PAGE - 32), 64).expect("zero");
                lab.arena.copy(gpa, Gpa(gpa.0 + 3 * PAGE), PAGE as usize).expect("copy");
                lab.arena.atomic_fetch_update_u32(word, |n| n.wrapping_add(1)).expect("atomic");
                let fd = std::os::fd::AsFd::as_fd(&zeroes);
                let read = lab.arena.pread(fd, &[(Gpa(gpa.0 + 3 * PAGE), 100)], None).expect("pread");
                assert!(read > 0);
            }
        });
        let deadline = Instant::now() + Duration::from_secs(60);
        while lab.word(gpa) == 0 {
            assert!(Instant::now() < deadline, "the guest does not run");
            std::thread::yield_now();
        }
        for _ in 0..scaled(3000, 50) {
            lab.space.map(TARGET, gpa, 4 * PAGE, RW).unwrap();
            lab.space.revoke(&[Change::Unmap(TARGET..TARGET + 4 * PAGE)]).unwrap();
        }
        stop.store(true, Ordering::Release);
        kicker.kick();
    });
    assert!(lab.word(gpa) > 0);
    other.revoke(&[Change::Unmap(TARGET..TARGET + 4 * PAGE)]).unwrap();
    crate::lab::free(frames);
}
