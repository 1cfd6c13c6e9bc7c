//! System calls that a dispatcher answers: each exactly once, with every register in place, whatever interrupts them.

use crate::lab::*;
use crate::programs;
use caisson_platform_kvm::{
    AddressSpace, Answer, Answered, Exit, GuestThread, PatchedEntry, Posted, Registers, Ring0,
};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Number of the call that counts.
const COUNT: u64 = 39;
/// Number of a call that is always refused.
const END: u64 = 1000;

/// Answers `COUNT` calls, which must come in order.
#[derive(Default)]
struct Counting {
    next: Mutex<u64>,
    /// Whether the thread is out of the guest, and the call its own business.
    outside: AtomicBool,
    leave_every: u64,
    answered: AtomicU64,
}

impl Counting {
    fn count(&self, argument: u64) -> u64 {
        let mut next = self.next.lock();
        assert_eq!(argument, *next, "a call was lost or made twice");
        *next += 1;
        argument + 7
    }
}

impl Answer for Counting {
    fn answer(&self, posted: &Posted<'_>) -> Option<Answered> {
        if self.outside.load(Ordering::SeqCst) {
            return None;
        }
        let request = posted.claim()?;
        if request.number != COUNT {
            return Some(Answered::Refused);
        }
        let result = self.count(request.args[0]);
        let answered = self.answered.fetch_add(1, Ordering::Relaxed);
        if self.leave_every != 0 && answered.is_multiple_of(self.leave_every) {
            return Some(Answered::Leave(result));
        }
        if answered.is_multiple_of(2) { Some(Answered::Done(result)) } else { Some(request.done(result)) }
    }
}

fn begin(count: u64) -> Registers {
    Registers {
        rbx: 0,
        r12: count,
        rbp: 0x1111,
        rdx: 0x2222,
        rsi: 0x3333,
        r8: 0x4444,
        r9: 0x5555,
        r10: 0x6666,
        // Also a stack pointer that is not canonical.
        r13: 0x7777 << 48,
        r14: 0x8888,
        r15: 0x9999,
        ..start()
    }
}

fn check_kept(registers: &Registers, count: u64) {
    let kept = Registers {
        rax: registers.rax,
        rdi: registers.rdi,
        rcx: registers.rcx,
        r11: registers.r11,
        rip: registers.rip,
        rflags: registers.rflags,
        rbx: count,
        ..begin(count)
    };
    assert_eq!(*registers, kept);
}

/// Runs `count` calls to their end; calls that exit are made here. Returns how many did, and how many interruptions there were.
fn run_all(lab: &Lab, thread: &mut GuestThread, counting: &Counting, count: u64) -> (u64, u64) {
    let mut registers = begin(count);
    let (mut exits, mut interruptions) = (0, 0);
    loop {
        thread.await_turn(false);
        counting.outside.store(false, Ordering::SeqCst);
        let exit = thread.run(&mut registers, &lab.space).expect("run");
        match exit {
            Exit::Syscall if registers.rax == COUNT => {
                exits += 1;
                registers.rax = counting.count(registers.rdi);
            }
            Exit::Syscall if registers.rax == END => break,
            Exit::Interrupted => interruptions += 1,
            other => panic!("{other:?} {registers:x?}"),
        }
    }
    assert_eq!(*counting.next.lock(), count);
    check_kept(&registers, count);
    (exits, interruptions)
}

fn counting_thread(lab: &Lab, leave_every: u64) -> (GuestThread, Arc<Counting>) {
    counting_in(lab, programs::counted_calls(), leave_every)
}

/// A thread in a program whose call site is patched.
fn patched_thread(lab: &Lab) -> (GuestThread, Arc<Counting>) {
    let entry = lab.space.patched_entry().expect("emulated ring 0");
    // The program has the offsets in it, and a place for the word to expect.
    assert_eq!(entry, PatchedEntry { check: 96, value: entry.value, entry: 104 });
    let mut program = programs::patched_calls().to_vec();
    let place =
        program.windows(4).position(|bytes| bytes == (-0x1234_5677_i32).to_le_bytes()).expect("a place");
    program[place..place + 4].copy_from_slice(&entry.value.wrapping_neg().to_le_bytes());
    lab.space.set_trampolines(CODE..CODE + PAGE);
    counting_in(lab, &program, 0)
}

fn counting_in(lab: &Lab, program: &[u8], leave_every: u64) -> (GuestThread, Arc<Counting>) {
    lab.load(program);
    let counting = Arc::new(Counting { leave_every, ..Counting::default() });
    let mut thread = lab.thread();
    let weak: Weak<dyn Answer> = Arc::downgrade(&(counting.clone() as Arc<dyn Answer>));
    thread.answer_with(weak, |number| number == COUNT);
    (thread, counting)
}

fn spare_processor() -> bool {
    std::thread::available_parallelism().is_ok_and(|n| n.get() > 1)
}

pub fn calls_are_answered_without_exit() {
    let lab = Lab::new();
    let (thread, counting) = counting_thread(&lab, 0);
    answered_without_exit(&lab, thread, &counting);
}

pub fn patched_calls_are_answered_without_exit() {
    let lab = Lab::new();
    if lab.space.patched_entry().is_none() {
        return;
    }
    let (thread, counting) = patched_thread(&lab);
    answered_without_exit(&lab, thread, &counting);
}

/// Where GS is the program's, its patched sites make their calls by `syscall`; where it is nothing, that is a page fault before the call.
pub fn patched_calls_of_a_program_that_uses_gs() {
    let lab = Lab::new();
    if lab.space.patched_entry().is_none() {
        return;
    }
    let (mut thread, counting) = patched_thread(&lab);
    let data = 0x50_0000;
    lab.new_page(data, RW);
    let count = 100;
    let mut registers = Registers { gs_base: data, ..begin(count) };
    for expected in 0..count {
        assert_eq!(thread.run(&mut registers, &lab.space).expect("run"), Exit::Syscall);
        assert_eq!((registers.rax, registers.rdi, registers.gs_base), (COUNT, expected, data));
        registers.rax = counting.count(registers.rdi);
    }
    assert_eq!(thread.run(&mut registers, &lab.space).expect("run"), Exit::Syscall);
    assert_eq!(registers.rax, END);
    let mut registers = Registers { gs_base: data + PAGE, ..begin(count) };
    match thread.run(&mut registers, &lab.space).expect("run") {
        Exit::PageFault { addr, write: false, .. } => assert_eq!(addr, data + PAGE + 96),
        other => panic!("{other:?}"),
    }
    assert_eq!((registers.rax, registers.rdi), (COUNT, 0));
}

fn answered_without_exit(lab: &Lab, mut thread: GuestThread, counting: &Counting) {
    let count = scaled(50_000, 2000);
    // Other processes may have the processors just now: then all calls exit, and that is right.
    let deadline = Instant::now() + Duration::from_secs(60);
    served(&lab.machine, || {
        loop {
            *counting.next.lock() = 0;
            let begun = Instant::now();
            let (exits, _) = run_all(lab, &mut thread, counting, count);
            let each = begun.elapsed().as_nanos() as u64 / count;
            println!(
                "       {exits} of {count} calls by exit, {each} ns each, {:?}",
                lab.machine.dispatch_counters()
            );
            if exits < count || !spare_processor() {
                return;
            }
            assert!(Instant::now() < deadline, "nothing was answered without an exit");
        }
    });
}

/// A thread that waits makes calls, each once, and stops when what it waits for has come.
pub fn a_waiting_thread_answers_calls() {
    let lab = Lab::new();
    let (mut thread, counting) = counting_thread(&lab, 0);
    let count = scaled(50_000, 2000);
    let done = AtomicBool::new(false);
    let deadline = Instant::now() + Duration::from_secs(60);
    served(&lab.machine, || {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    lab.machine.slept(Duration::from_micros(10));
                    let ended = lab.machine.assist(&|| done.load(Ordering::Acquire));
                    assert!(!ended || done.load(Ordering::Acquire));
                }
            });
            let _over = Over(&done);
            loop {
                *counting.next.lock() = 0;
                run_all(&lab, &mut thread, &counting, count);
                let counters = lab.machine.dispatch_counters();
                if counters.assisted > 0 || !spare_processor() {
                    println!("       {counters:?}");
                    break;
                }
                assert!(Instant::now() < deadline, "the waiting thread has answered nothing");
            }
        });
    });
}

/// Where ring 0 is emulated and the stack pointer is not canonical, KVM emulates `syscall` in full, and the stub begins in ring 0. The program goes
/// on in ring 3 all the same, whoever answers.
pub fn calls_lead_back_to_ring3() {
    let lab = Lab::new();
    let (mut thread, counting) = counting_in(&lab, programs::rings(), 0);
    let count = 128 * scaled(200, 20);
    let deadline = Instant::now() + Duration::from_secs(60);
    served(&lab.machine, || {
        loop {
            *counting.next.lock() = 0;
            run_all(&lab, &mut thread, &counting, count);
            let answered = counting.answered.load(Ordering::Relaxed);
            println!("       {answered} of {count} calls without an exit");
            if answered > 0 || !spare_processor() {
                return;
            }
            assert!(Instant::now() < deadline, "nothing was answered without an exit");
        }
    });
}

pub fn calls_without_a_dispatcher_exit() {
    let lab = Lab::new();
    let (mut thread, counting) = counting_thread(&lab, 0);
    let count = scaled(2000, 50);
    assert_eq!(run_all(&lab, &mut thread, &counting, count), (count, 0));
}

pub fn answers_that_want_the_thread_outside() {
    let lab = Lab::new();
    let (mut thread, counting) = counting_thread(&lab, 100);
    let count = scaled(50_000, 1000);
    served(&lab.machine, || {
        let (_, interruptions) = run_all(&lab, &mut thread, &counting, count);
        let answered = counting.answered.load(Ordering::Relaxed);
        assert_eq!(interruptions, answered.div_ceil(100));
    });
}

/// Kicks at every moment of a posted call.
pub fn kicks_of_a_guest_whose_calls_are_answered() {
    let lab = Lab::new();
    let (thread, counting) = counting_thread(&lab, 0);
    all_made_under_kicks(&lab, thread, &counting);
}

pub fn kicks_of_a_guest_with_patched_calls() {
    let lab = Lab::new();
    if lab.space.patched_entry().is_none() {
        return;
    }
    let (thread, counting) = patched_thread(&lab);
    all_made_under_kicks(&lab, thread, &counting);
}

fn all_made_under_kicks(lab: &Lab, mut thread: GuestThread, counting: &Counting) {
    let kickers = [thread.kicker()];
    let count = scaled(100_000, 2000);
    served(&lab.machine, || {
        let (exits, interruptions) = kicked(&kickers, || run_all(lab, &mut thread, counting, count));
        println!(
            "       {exits} exits, {interruptions} interruptions, {:?}",
            lab.machine.dispatch_counters()
        );
    });
}

/// More guests that do nothing but call than there are processors: all get to their end, whoever waits for his turn then, and is kicked
/// meanwhile.
pub fn many_guests_that_call_come_to_their_end() {
    let lab = Lab::new();
    let threads: Vec<_> = (0..12).map(|_| counting_thread(&lab, 0)).collect();
    let kickers: Vec<_> = threads.iter().map(|(thread, _)| thread.kicker()).collect();
    let count = scaled(40_000, 500);
    let run = |(mut thread, counting): (GuestThread, Arc<Counting>)| {
        let lab = &lab;
        move || run_all(lab, &mut thread, &counting, count).0
    };
    served(&lab.machine, || {
        let exits: Vec<u64> = kicked(&kickers, || {
            std::thread::scope(|scope| {
                let running: Vec<_> = threads.into_iter().map(|thread| scope.spawn(run(thread))).collect();
                running.into_iter().map(|thread| thread.join().expect("a guest's thread")).collect()
            })
        });
        let counters = lab.machine.dispatch_counters();
        println!("       exits of each {exits:?}, {counters:?}");
        assert_eq!(counters.answered + exits.iter().sum::<u64>(), 12 * count);
    });
}

/// Answers by dropping an address space, as the call does that closes the last descriptor of a dead process's memory.
#[derive(Default)]
struct Dropping {
    space: Mutex<Option<Arc<AddressSpace>>>,
    outside: AtomicBool,
}

impl Answer for Dropping {
    fn answer(&self, posted: &Posted<'_>) -> Option<Answered> {
        if self.outside.load(Ordering::SeqCst) {
            return None;
        }
        let request = posted.claim()?;
        if request.number != COUNT {
            return Some(Answered::Refused);
        }
        drop(self.space.lock().take());
        Some(Answered::Done(request.args[0] + 7))
    }
}

/// An address space that goes away takes its slots from the dispatchers, and waits for those that work in them. The dispatcher that
/// drops it works in the same vCPU's slot, for another address space: it must not wait for itself.
pub fn a_space_is_dropped_by_the_dispatcher_of_its_slot() {
    let (ended, end) = std::sync::mpsc::channel();
    // Not a scoped thread: where it waits for itself, nobody may wait for it.
    std::thread::spawn(move || {
        drop_spaces_in_calls();
        ended.send(())
    });
    let limit = Duration::from_secs(90);
    assert!(end.recv_timeout(limit).is_ok(), "a dispatcher waits for itself");
}

fn drop_spaces_in_calls() {
    let lab = Lab::new();
    lab.load(programs::counted_calls());
    let (code, _) = lab.space.lookup(CODE).expect("just mapped");
    let dropping = Arc::new(Dropping::default());
    let mut thread = lab.thread();
    let weak: Weak<dyn Answer> = Arc::downgrade(&(dropping.clone() as Arc<dyn Answer>));
    thread.answer_with(weak, |number| number == COUNT);
    let deadline = Instant::now() + Duration::from_secs(60);
    let rounds = scaled(20, 3);
    let mut dropped = 0;
    served(&lab.machine, || {
        // Without a second processor no dispatcher is awake beside the guest.
        while dropped < rounds && spare_processor() {
            assert!(Instant::now() < deadline, "only {dropped} address spaces were dropped by a dispatcher");
            let other = lab.machine.new_address_space().expect("space");
            other.map(CODE, code, PAGE, RX).expect("map");
            // The vCPU gets a slot in the other space; the call itself is made outside.
            dropping.outside.store(true, Ordering::SeqCst);
            assert_eq!(thread.run(&mut begin(1), &other).expect("run"), Exit::Syscall);
            *dropping.space.lock() = Some(other);
            dropping.outside.store(false, Ordering::SeqCst);
            let mut registers = begin(scaled(5000, 500));
            while registers.rax != END {
                match thread.run(&mut registers, &lab.space).expect("run") {
                    Exit::Syscall if registers.rax == COUNT => registers.rax = registers.rdi + 7,
                    Exit::Syscall | Exit::Interrupted => {}
                    other => panic!("{other:?}"),
                }
            }
            // If no dispatcher was awake just now, the space is still there.
            dropped += u64::from(dropping.space.lock().take().is_none());
        }
    });
}

/// Another thread of the process writes into the slots all the time. Only that process may come to harm, and the host none.
pub fn slots_are_scribbled_over() {
    let lab = Lab::new();
    if lab.machine.mode().ring0 == Ring0::Native {
        return;
    }
    let (mut victim, counting) = counting_thread(&lab, 0);
    let slots = 0x7fff_ffe0_0000;
    lab.load_at(CODE + PAGE, programs::scribble());
    let mut vandal = lab.thread();
    let kicks = [victim.kicker(), vandal.kicker()];
    let done = AtomicBool::new(false);
    served(&lab.machine, || {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut registers = Registers { rip: CODE + PAGE, rdi: slots, rsi: PAGE, ..start() };
                while !done.load(Ordering::Acquire) {
                    // Whatever it makes of itself, it goes on from the start.
                    if !matches!(vandal.run(&mut registers, &lab.space), Ok(Exit::Interrupted)) {
                        registers = Registers { rip: CODE + PAGE, rdi: slots, rsi: PAGE, ..start() };
                    }
                }
            });
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    // The order of its calls cannot hold now.
                    *counting.next.lock() = 0;
                    counting.outside.store(true, Ordering::SeqCst);
                    let mut registers = begin(u64::MAX);
                    let exit = victim.run(&mut registers, &lab.space);
                    assert!(exit.is_ok(), "no thread is lost by what a guest writes: {exit:?}");
                }
            });
            kick_to_the_end(&kicks, &done);
        });
    });
}
