//! Random mapping, unmapping, protecting and replacing under threads that read all the time and must never see a page that
//! is not theirs to see.

use crate::lab::*;
use crate::programs;
use caisson_platform_kvm::{Alignment, Change, Exit, Frame, FrameRange, Perms, Registers};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where the patrolled pages start: the last two pages of one 2 MiB range, then two whole ones.
const BASE: u64 = 0x4000_0000 - 2 * PAGE;
const PAGES: u64 = 2 + 1024;
const COUNTER: u64 = 0x5000_0000;
const POISON: u64 = 0xdead;

/// What each patrolled page may show: a frame whose first word is the page's number, or nothing.
struct Model {
    shown: Vec<Option<Frame>>,
    spare: Vec<Frame>,
    blocks: Vec<FrameRange>,
    random: u64,
}

impl Model {
    fn next(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    /// One random change; `lab.space` and the model agree before and after.
    fn step(&mut self, lab: &Lab) {
        match self.next(10) {
            0..=3 => self.show_page(lab),
            4..=5 => self.hide_range(lab),
            6..=7 => self.show_block(lab),
            8 => {
                let from = self.next(PAGES);
                let to = from + self.next(PAGES - from) + 1;
                let range = BASE + from * PAGE..BASE + to * PAGE;
                lab.space.revoke(&[Change::Protect { range, perms: Perms::R }]).unwrap();
            }
            _ => {
                let two = [self.next(PAGES), self.next(PAGES)];
                let changes = two.map(|n| Change::Unmap(BASE + n * PAGE..BASE + (n + 1) * PAGE));
                lab.space.revoke(&changes).unwrap();
                two.into_iter().for_each(|n| self.retire(lab, n));
            }
        }
    }

    /// Takes the page's frame back; nobody may see it any more, so its content changes at once.
    fn retire(&mut self, lab: &Lab, n: u64) {
        if let Some(frame) = self.shown[n as usize].take() {
            lab.set_word(lab.arena.gpa(frame), POISON);
            let in_block = self.blocks.iter().any(|b| (b.first.0..b.first.0 + b.count).contains(&frame.0));
            if !in_block {
                self.spare.push(frame);
            }
        }
    }

    fn show_page(&mut self, lab: &Lab) {
        let n = self.next(PAGES);
        let at = self.next(self.spare.len() as u64) as usize;
        let frame = self.spare.swap_remove(at);
        lab.set_word(lab.arena.gpa(frame), n);
        let perms = if self.next(2) == 0 { R } else { RW };
        lab.space.map(BASE + n * PAGE, lab.arena.gpa(frame), PAGE, perms).unwrap();
        self.retire(lab, n);
        self.shown[n as usize] = Some(frame);
    }

    fn hide_range(&mut self, lab: &Lab) {
        let from = self.next(PAGES);
        let to = (from + 1 + self.next(600)).min(PAGES);
        lab.space.revoke(&[Change::Unmap(BASE + from * PAGE..BASE + to * PAGE)]).unwrap();
        (from..to).for_each(|n| self.retire(lab, n));
    }

    /// Maps one of the whole 2 MiB ranges to a block that is not shown anywhere.
    fn show_block(&mut self, lab: &Lab) {
        let first = 2 + 512 * self.next(2);
        let shown = self.shown.iter().flatten().map(|f| f.0).collect::<std::collections::HashSet<_>>();
        let free = self.blocks.iter().find(|b| (b.first.0..b.first.0 + b.count).all(|f| !shown.contains(&f)));
        let Some(block) = free.copied() else { return };
        for i in 0..512 {
            lab.set_word(lab.arena.gpa(Frame(block.first.0 + i)), first + u64::from(i));
        }
        lab.space.map(BASE + first * PAGE, lab.arena.gpa(block.first), HUGE, RW).unwrap();
        for i in 0..512u32 {
            self.retire(lab, first + u64::from(i));
            self.shown[(first + u64::from(i)) as usize] = Some(Frame(block.first.0 + i));
        }
    }
}

pub fn random_mappings_never_show_the_wrong_page() {
    let lab = Lab::new();
    lab.load(programs::patrol());
    let counter = lab.new_page(COUNTER, RW);
    let blocks = (0..4).map(|_| lab.arena.alloc(512, Alignment::Huge).unwrap()).collect::<Vec<_>>();
    let spare = (0..PAGES + 64).map(|_| lab.frame()).collect::<Vec<_>>();
    let mut model = Model {
        shown: vec![None; PAGES as usize],
        spare,
        blocks: blocks.clone(),
        random: 0x9e37_79b9_7f4a_7c15,
    };
    let (stop, wrong) = (AtomicBool::new(false), Mutex::new(None));
    let mut threads = (0..3).map(|_| lab.thread()).collect::<Vec<_>>();
    let kickers = threads.iter().map(|thread| thread.kicker()).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        for thread in &mut threads {
            let (lab, stop, wrong) = (&lab, &stop, &wrong);
            scope.spawn(move || {
                let mut registers = Registers { rsi: BASE, r8: PAGES, r9: COUNTER, ..start() };
                while !stop.load(Ordering::Acquire) {
                    match thread.run(&mut registers, &lab.space).expect("run") {
                        Exit::PageFault { .. } => {
                            // Not shown: on to the next one.
                            registers.rip += 3;
                            registers.rax = registers.rdi;
                        }
                        Exit::Interrupted => {}
                        Exit::Syscall => {
                            *wrong.lock().unwrap() = Some((registers.rdi, registers.rax));
                            return;
                        }
                        other => panic!("{other:?} at {registers:x?}"),
                    }
                }
            });
        }
        for step in 0..scaled(6000, 100) {
            model.step(&lab);
            if let Some((page, word)) = *wrong.lock().unwrap() {
                stop.store(true, Ordering::Release);
                kickers.iter().for_each(|kicker| kicker.kick());
                panic!("after step {step}, page {page} showed {word:#x}");
            }
        }
        stop.store(true, Ordering::Release);
        kickers.iter().for_each(|kicker| kicker.kick());
    });
    assert!(wrong.into_inner().unwrap().is_none());
    println!("       {} rounds of {PAGES} pages", lab.word(counter));
    lab.space.revoke(&[Change::Unmap(0..caisson_platform_kvm::GVA_END)]).unwrap();
    blocks.into_iter().for_each(free);
}
