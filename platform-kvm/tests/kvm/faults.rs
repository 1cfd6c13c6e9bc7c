//! Page faults that a dispatcher resolves: each, with every register in place, whatever interrupts them.

use crate::lab::*;
use crate::programs;
use caisson_platform_kvm::{
    AddressSpace, Answer, Answered, Change, Exit, Gpa, GuestThread, Posted, Registers, Ring0, Where,
};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Number of the call at the program's end.
const END: u64 = 1000;
/// Where pages are touched.
const PLACE: u64 = 0x10_0000_0000;

/// Resolves faults by mapping a page.
struct Mapping {
    space: Arc<AddressSpace>,
    page: Gpa,
    /// Whether the thread is out of the guest, and the fault its own business.
    outside: AtomicBool,
    /// The next place that nobody has touched.
    next: Mutex<u64>,
    refuse_every: u64,
}

impl Mapping {
    fn map(&self, addr: u64) {
        let mut next = self.next.lock();
        // A fault that was interrupted just when it was resolved comes back only if it was not.
        assert_eq!(addr, *next, "a fault was lost or came twice");
        *next += PAGE;
        self.space.map(addr, self.page, PAGE, RW).expect("map");
    }
}

impl Answer for Mapping {
    fn answer(&self, posted: &Posted<'_>) -> Option<Answered> {
        if self.outside.load(Ordering::SeqCst) {
            return None;
        }
        let request = posted.claim()?;
        let Some(faulting) = request.faulting() else { return Some(Answered::Refused) };
        assert!(faulting.write && !faulting.exec);
        let addr = match faulting.at {
            Where::Address(addr) => addr,
            Where::Registers(r) => {
                assert_eq!(r.rip, CODE + programs::TOUCHES_AT);
                check_kept(&r, r.rbx, r.r12);
                r.rdi
            }
        };
        let number = (addr - PLACE) / PAGE;
        if self.refuse_every != 0 && number.is_multiple_of(self.refuse_every) {
            return Some(Answered::Refused);
        }
        self.map(addr);
        Some(Answered::Resolved)
    }
}

fn begin(count: u64) -> Registers {
    Registers {
        rax: 0x1010,
        rbx: 0,
        rcx: 0x2020,
        rdx: 0x3030,
        rsi: 0x4040,
        rdi: PLACE,
        // Not a stack at all.
        rsp: 0x5050,
        rbp: 0x6060,
        r8: 0x7070,
        r9: 0x8080,
        r10: 0x9090,
        r11: 0xa0a0,
        r12: count,
        r13: 0xb0b0,
        r14: 0xc0c0,
        r15: 0xd0d0,
        ..start()
    }
}

/// Everything that the program does not change, after `done` pages; rip and the flags are not looked at.
fn check_kept(registers: &Registers, done: u64, count: u64) {
    let expected = Registers {
        rbx: done,
        rdi: PLACE + done * PAGE,
        rip: registers.rip,
        rflags: registers.rflags,
        fs_base: registers.fs_base,
        gs_base: registers.gs_base,
        ..begin(count)
    };
    assert_eq!(*registers, expected);
}

struct Game {
    lab: Lab,
    thread: GuestThread,
    mapping: Arc<Mapping>,
}

fn game(refuse_every: u64) -> Game {
    let lab = Lab::new();
    lab.load(programs::touches());
    let page = lab.arena.gpa(lab.frame());
    let mapping = Arc::new(Mapping {
        space: lab.space.clone(),
        page,
        outside: AtomicBool::new(true),
        next: Mutex::new(PLACE),
        refuse_every,
    });
    let mut thread = lab.thread();
    let weak: Weak<dyn Answer> = Arc::downgrade(&(mapping.clone() as Arc<dyn Answer>));
    thread.answer_with(weak, |_| false);
    Game { lab, thread, mapping }
}

/// Touches `count` pages; faults that exit are resolved here. Returns how many did.
fn touch_all(game: &mut Game, count: u64) -> u64 {
    *game.mapping.next.lock() = PLACE;
    let mut registers = begin(count);
    let mut exits = 0;
    loop {
        game.mapping.outside.store(false, Ordering::SeqCst);
        let exit = game.thread.run(&mut registers, &game.lab.space).expect("run");
        game.mapping.outside.store(true, Ordering::SeqCst);
        match exit {
            Exit::PageFault { addr, write: true, exec: false, present: false } => {
                exits += 1;
                assert_eq!(addr, registers.rdi);
                check_kept(&registers, registers.rbx, count);
                game.mapping.map(addr);
            }
            Exit::Syscall if registers.rax == END => break,
            Exit::Interrupted => {}
            other => panic!("{other:?} {registers:x?}"),
        }
    }
    assert_eq!(*game.mapping.next.lock(), PLACE + count * PAGE);
    check_kept(&Registers { rax: 0x1010, rcx: 0x2020, r11: 0xa0a0, ..registers }, count, count);
    assert_eq!(game.lab.word(game.mapping.page), PLACE + (count - 1) * PAGE);
    let pages = PLACE..PLACE + count * PAGE;
    game.lab.space.revoke(&[Change::Unmap(pages)]).expect("unmap");
    exits
}

pub fn faults_are_resolved_without_exit() {
    let mut game = game(0);
    if !game.lab.machine.posts_faults() {
        println!("       (skipped: page faults exit here)");
        return;
    }
    let count = scaled(20_000, 500);
    let machine = game.lab.machine.clone();
    let deadline = Instant::now() + Duration::from_secs(60);
    served(&machine, || {
        loop {
            let begun = Instant::now();
            let exits = touch_all(&mut game, count);
            let each = begun.elapsed().as_nanos() as u64 / count;
            println!(
                "       {exits} of {count} faults by exit, {each} ns each, {:?}",
                machine.dispatch_counters()
            );
            if exits < count || std::thread::available_parallelism().is_ok_and(|n| n.get() < 2) {
                return;
            }
            assert!(Instant::now() < deadline, "faults exit");
        }
    });
}

pub fn faults_that_are_refused_exit() {
    let mut game = game(3);
    let count = scaled(2_000, 100);
    let machine = game.lab.machine.clone();
    served(&machine, || {
        let exits = touch_all(&mut game, count);
        assert!(exits >= count.div_ceil(3));
    });
}

pub fn faults_without_a_dispatcher_exit() {
    let mut game = game(0);
    let count = scaled(1_000, 50);
    let begun = Instant::now();
    assert_eq!(touch_all(&mut game, count), count);
    println!("       {} ns each", begun.elapsed().as_nanos() as u64 / count);
}

/// Kicks at every moment of a posted fault.
pub fn kicks_of_a_guest_whose_faults_are_resolved() {
    let mut game = game(0);
    let count = scaled(20_000, 500);
    let machine = game.lab.machine.clone();
    let kickers = [game.thread.kicker()];
    served(&machine, || {
        for _ in 0..scaled(5, 1) {
            let exits = kicked(&kickers, || touch_all(&mut game, count));
            println!("       {exits} of {count} faults by exit, {:?}", machine.dispatch_counters());
        }
    });
}

/// Resolves what it is told, whatever that is.
struct Credulous(Arc<AddressSpace>, Gpa);

impl Answer for Credulous {
    fn answer(&self, posted: &Posted<'_>) -> Option<Answered> {
        let Some(faulting) = posted.claim()?.faulting() else { return Some(Answered::Refused) };
        let Where::Registers(registers) = faulting.at else { return Some(Answered::Refused) };
        let page = registers.rdi & !(PAGE - 1);
        let place = (PLACE..PLACE + (1 << 30)).contains(&page);
        Some(if place && self.0.map(page, self.1, PAGE, RW).is_ok() {
            Answered::Resolved
        } else {
            Answered::Refused
        })
    }
}

/// Another thread of the process writes into the slots, and so into what the gate has pushed, all the time. Only that process may come to harm.
pub fn faults_are_scribbled_over() {
    let lab = Lab::new();
    if lab.machine.mode().ring0 == Ring0::Native || !lab.machine.posts_faults() {
        return;
    }
    lab.load(programs::touches());
    lab.load_at(CODE + PAGE, programs::scribble());
    let credulous: Arc<dyn Answer> = Arc::new(Credulous(lab.space.clone(), lab.arena.gpa(lab.frame())));
    let (mut victim, mut vandal) = (lab.thread(), lab.thread());
    victim.answer_with(Arc::downgrade(&credulous), |_| false);
    let kicks = [victim.kicker(), vandal.kicker()];
    let done = AtomicBool::new(false);
    served(&lab.machine, || {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let from_start =
                    || Registers { rip: CODE + PAGE, rdi: 0x7fff_ffe0_0000, rsi: PAGE, ..start() };
                let mut registers = from_start();
                while !done.load(Ordering::Acquire) {
                    if !matches!(vandal.run(&mut registers, &lab.space), Ok(Exit::Interrupted)) {
                        registers = from_start();
                    }
                }
            });
            scope.spawn(|| {
                let mut round = 0;
                while !done.load(Ordering::Acquire) {
                    round += 1;
                    let mut registers = Registers { rdi: PLACE + round % 512 * (2 << 20), ..begin(u64::MAX) };
                    let exit = victim.run(&mut registers, &lab.space);
                    assert!(exit.is_ok(), "no thread is lost by what a guest writes: {exit:?}");
                    let all = PLACE..PLACE + (1 << 30);
                    lab.space.revoke(&[Change::Unmap(all)]).expect("unmap");
                }
            });
            kick_to_the_end(&kicks, &done);
        });
    });
}

/// Whoever jumps into the code that posts faults, with whatever for a stack, harms nobody else.
pub fn jump_into_the_code_that_posts_faults() {
    let lab = Lab::new();
    if lab.machine.mode().ring0 == Ring0::Native || !lab.machine.posts_faults() {
        return;
    }
    lab.load(programs::call());
    let (slots, code) = (0x7fff_ffe0_0000_u64, 0x7fff_ffe0_0000 + 255 * PAGE + 0x800);
    let mut thread = lab.thread();
    let kickers = [thread.kicker()];
    kicked(&kickers, || {
        for offset in 0..256 {
            for rsp in [STACK_TOP - 64, slots + 208, slots + 256, slots + 8, 0, 1 << 63] {
                let mut registers = Registers { rsi: code + offset, rsp, ..start() };
                let exit = thread.run(&mut registers, &lab.space);
                assert!(exit.is_ok(), "at {offset} with {rsp:#x}: {exit:?}");
            }
        }
    });
    // And the thread, with its slot, works as ever.
    lab.load_at(CODE + PAGE, programs::counted_calls());
    let mut registers = Registers { rip: CODE + PAGE, rbx: 0, r12: 1, ..start() };
    loop {
        match thread.run(&mut registers, &lab.space).expect("run") {
            Exit::Syscall if registers.rax == END => break,
            Exit::Syscall => registers.rax = registers.rdi + 7,
            Exit::Interrupted => {}
            other => panic!("{other:?}"),
        }
    }
}
