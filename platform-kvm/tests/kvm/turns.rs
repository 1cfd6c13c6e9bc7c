//! Two threads that take turns in one vCPU: every register stays with its thread, whatever interrupts a switch.

use crate::lab::*;
use crate::programs;
use caisson_platform_kvm::{Answer, Answered, Exit, GuestThread, Place, Posted, Registers, Ring0, Switch};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Number of the call that counts.
const COUNT: u64 = 39;
/// Number of the call at the program's end.
const END: u64 = 1000;

/// Both threads. The first has the vCPU, the second rides in it.
struct Pair {
    lab: Lab,
    rider: Option<GuestThread>,
    /// The rider's registers while it is ashore.
    registers: Registers,
    counts: [u64; 2],
    /// The results of their last calls.
    results: [u64; 2],
    running: usize,
    ended: [bool; 2],
    checks: bool,
    switches: u64,
}

impl Pair {
    fn count(&mut self, me: usize, argument: u64) -> u64 {
        if self.checks {
            assert_eq!(argument, self.counts[me], "a call of thread {me} was lost or made twice");
        }
        self.counts[me] += 1;
        self.results[me] = argument.wrapping_add(7);
        self.results[me]
    }

    /// The other one goes on, if it can.
    fn switch(&mut self, vcpu: u32) -> Option<Switch> {
        let other = 1 - self.running;
        if self.ended[other] {
            return None;
        }
        let switch = match self.running {
            0 => match self.rider.as_mut()?.board(&self.lab.space, vcpu).expect("board")? {
                Place::Again => Switch::Again(self.results[1]),
                Place::New(boarding) => {
                    let registers = Registers { rax: self.results[1], ..self.registers };
                    Switch::Board(Box::new(boarding), Box::new(registers))
                }
            },
            _ => Switch::Back(self.results[0]),
        };
        self.running = other;
        self.switches += 1;
        Some(switch)
    }
}

struct Turner {
    me: usize,
    pair: Arc<Mutex<Pair>>,
}

impl Answer for Turner {
    fn answer(&self, posted: &Posted<'_>) -> Option<Answered> {
        let mut pair = self.pair.try_lock()?;
        let request = posted.claim()?;
        if request.number != COUNT {
            return Some(Answered::Refused);
        }
        if pair.checks {
            assert_eq!(pair.running, self.me, "the wrong thread calls");
        }
        let result = pair.count(self.me, request.args[0]);
        Some(pair.switch(request.vcpu).map_or(Answered::Done(result), Answered::Switch))
    }
}

/// A thread, its registers at the start, and who answers both.
struct Game {
    carrier: GuestThread,
    pair: Arc<Mutex<Pair>>,
    answers: [Arc<dyn Answer>; 2],
}

fn game(checks: bool, counts: [u64; 2]) -> Game {
    let lab = Lab::new();
    lab.load(programs::counted_calls());
    let (mut carrier, mut rider) = (lab.thread(), lab.thread());
    let pair = Arc::new(Mutex::new(Pair {
        lab,
        rider: None,
        registers: begin(1, counts[1]),
        counts: [0; 2],
        results: [0; 2],
        running: 0,
        ended: [false; 2],
        checks,
        switches: 0,
    }));
    let answers = [0, 1].map(|me| Arc::new(Turner { me, pair: pair.clone() }) as Arc<dyn Answer>);
    let weak: [Weak<dyn Answer>; 2] = [Arc::downgrade(&answers[0]), Arc::downgrade(&answers[1])];
    let [first, second] = weak;
    carrier.answer_with(first, |number| number == COUNT);
    rider.answer_with(second, |number| number == COUNT);
    pair.lock().rider = Some(rider);
    Game { carrier, pair, answers }
}

fn begin(me: u64, count: u64) -> Registers {
    let own = |value: u64| value + (me << 32);
    Registers {
        rbx: 0,
        r12: count,
        rbp: own(0x1111),
        rdx: own(0x2222),
        rsi: own(0x3333),
        r8: own(0x4444),
        r9: own(0x5555),
        r10: own(0x6666),
        r13: own(0x7777),
        r14: own(0x8888),
        r15: own(0x9999),
        fs_base: own(0x10_0000),
        ..start()
    }
}

fn check_kept(registers: &Registers, me: u64, count: u64) {
    let r = *registers;
    let volatile = Registers {
        rax: r.rax,
        rdi: r.rdi,
        rcx: r.rcx,
        r11: r.r11,
        rip: r.rip,
        rflags: r.rflags,
        ..begin(me, count)
    };
    assert_eq!(r, Registers { rbx: count, ..volatile }, "thread {me}");
}

/// Runs both to their ends; what exits is dealt with here. Returns how often a switch was undone because the vCPU came out.
fn play(game: &mut Game, counts: [u64; 2]) -> u64 {
    let mut registers = begin(0, counts[0]);
    let mut undone = 0;
    let space = game.pair.lock().lab.space.clone();
    while !game.pair.lock().ended[0] {
        let exit = game.carrier.run(&mut registers, &space).expect("run");
        let own = game.carrier.take_own();
        let mut pair = game.pair.lock();
        let me = usize::from(own.is_some());
        match exit {
            Exit::Syscall if registers.rax == COUNT => registers.rax = pair.count(me, registers.rdi),
            Exit::Syscall if registers.rax == END => pair.ended[me] = true,
            Exit::Interrupted => {}
            other => panic!("{other:?} {registers:x?}"),
        }
        if let Some(own) = own {
            pair.registers = registers;
            pair.results[1] = registers.rax;
            registers = Registers { rax: pair.results[0], ..own };
            pair.running = 0;
            undone += 1;
        }
    }
    check_kept(&registers, 0, counts[0]);
    let mut pair = game.pair.lock();
    let mut rider = pair.rider.take().expect("rider");
    if let Some(ashore) = rider.ashore() {
        pair.registers = Registers { rax: pair.results[1], ..ashore };
    }
    let mut registers = pair.registers;
    pair.running = 1;
    while !pair.ended[1] {
        drop(pair);
        let exit = rider.run(&mut registers, &space).expect("run");
        pair = game.pair.lock();
        match exit {
            Exit::Syscall if registers.rax == COUNT => registers.rax = pair.count(1, registers.rdi),
            Exit::Syscall if registers.rax == END => pair.ended[1] = true,
            Exit::Interrupted => {}
            other => panic!("{other:?} {registers:x?}"),
        }
    }
    check_kept(&registers, 1, counts[1]);
    assert_eq!(pair.counts, counts);
    undone
}

fn emulated(game: &Game) -> bool {
    game.pair.lock().lab.machine.mode().ring0 == Ring0::Emulated
}

/// Every register of both, and each call once.
pub fn threads_take_turns() {
    let counts = [scaled(20_000, 200), scaled(20_100, 210)];
    let mut game = game(true, counts);
    if !emulated(&game) {
        return;
    }
    let machine = game.pair.lock().lab.machine.clone();
    served(&machine, || {
        play(&mut game, counts);
    });
    assert!(game.pair.lock().switches > 0, "no switch happened");
    drop(game.answers);
}

/// The same when both are kicked all the time, so that switches are interrupted at every instruction.
pub fn turns_under_kicks() {
    let counts = [scaled(40_000, 200), scaled(39_000, 210)];
    let mut game = game(true, counts);
    if !emulated(&game) {
        return;
    }
    let kickers = [game.carrier.kicker(), game.pair.lock().rider.as_ref().expect("rider").kicker()];
    let machine = game.pair.lock().lab.machine.clone();
    let mut undone = 0;
    served(&machine, || undone = kicked(&kickers, || play(&mut game, counts)));
    assert!(game.pair.lock().switches > 0, "no switch happened");
    assert!(undone > 0, "no ride was interrupted");
}

/// A third thread writes into the contexts all the time. Only this process may come to harm: no thread of it is lost to the host.
pub fn contexts_are_scribbled_over() {
    let mut game = game(false, [u64::MAX; 2]);
    if !emulated(&game) {
        return;
    }
    let (machine, space) = {
        let pair = game.pair.lock();
        pair.lab.load_at(CODE + PAGE, programs::scribble());
        (pair.lab.machine.clone(), pair.lab.space.clone())
    };
    let mut vandal = machine.new_thread();
    let kicks =
        [game.carrier.kicker(), vandal.kicker(), game.pair.lock().rider.as_ref().expect("rider").kicker()];
    let done = AtomicBool::new(false);
    let pages = AtomicU64::new(0);
    served(&machine, || {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let first = 0x7fff_ffe0_0000 + 256 * PAGE;
                let mut page = 0;
                let at = |page: u64| Registers {
                    rip: CODE + PAGE,
                    rdi: first + page % 8 * PAGE,
                    rsi: PAGE,
                    ..start()
                };
                let mut registers = at(page);
                while !done.load(Ordering::Acquire) {
                    match vandal.run(&mut registers, &space) {
                        Ok(Exit::Interrupted) => _ = pages.fetch_add(1, Ordering::Relaxed),
                        _ => {
                            page += 1;
                            registers = at(page);
                        }
                    }
                }
            });
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    let mut registers = begin(0, u64::MAX);
                    let exit = game.carrier.run(&mut registers, &space);
                    assert!(exit.is_ok(), "no thread is lost by what a guest writes: {exit:?}");
                    let mut pair = game.pair.lock();
                    if let Some(own) = game.carrier.take_own() {
                        // It can go on with that, too.
                        registers = own;
                        drop(pair);
                        let exit = game.carrier.run(&mut registers, &space);
                        assert!(exit.is_ok(), "{exit:?}");
                        game.carrier.take_own();
                        pair = game.pair.lock();
                    }
                    if let Some(rider) = pair.rider.as_mut() {
                        rider.ashore();
                    }
                    (pair.running, pair.registers) = (0, begin(1, u64::MAX));
                }
            });
            kick_to_the_end(&kicks, &done);
        });
    });
    assert!(pages.into_inner() > 0, "nothing was written to");
}
