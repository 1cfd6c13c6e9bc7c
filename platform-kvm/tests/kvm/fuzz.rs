//! Random guest code, and answers that come at random: whatever a guest does, no thread of the host is lost, and the machine goes on.
//!
//! A program is random bytes, among them fragments that lead to the delicate places: system calls, the slots and stubs and the words in
//! them, bases, flags. It runs for `CAISSON_FUZZ_SECONDS` (3 if that is not set); `CAISSON_FUZZ_SEED` repeats a run as far as the moments of kicks
//! can be repeated.

use crate::lab::*;
use caisson_platform_kvm::{
    AddressSpace, Answer, Answered, Change, Error, Exit, Faulting, Gpa, GuestThread, Posted, Registers, Where,
};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Where slots and stubs are while ring 0 is emulated.
const SLOTS: u64 = 0x7fff_ffe0_0000;
/// Where page faults are posted then.
const FAULTS: u64 = SLOTS + 255 * PAGE + 0x800;
/// Where pages come when they are touched.
const FRESH: u64 = 0x5000_0000;
const FRESH_PAGES: u64 = 4096;
/// Entries into one program before it is replaced.
const ENTRIES: u32 = 40;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 8) % end
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// A number that may mean something.
    fn word(&mut self) -> u64 {
        match self.below(10) {
            0 => self.below(400),
            8 => FAULTS + self.below(320),
            9 => FRESH + self.below(FRESH_PAGES * PAGE),
            1 => SLOTS + self.below(0x6000),
            2 => CODE + self.below(PAGE),
            3 => STACK_TOP - self.below(PAGE),
            4 => self.below(16),
            5 => self.next() & 0x7fff_ffff_ffff,
            6 => 1 << self.below(64),
            _ => self.next(),
        }
    }
}

/// Fragments; `W` stands for eight bytes of a [`Random::word`].
const FRAGMENTS: &[&[u8]] = &[
    &[0x0f, 0x05],                                     // syscall
    &[0x0f, 0x05],                                     // once more: it is what this is about
    &[0x48, 0xb8, b'W'],                               // mov rax, W
    &[0x48, 0xbb, b'W'],                               // mov rbx, W
    &[0x48, 0xb9, b'W'],                               // mov rcx, W
    &[0x49, 0xbb, b'W', 0x41, 0xff, 0xe3],             // mov r11, W; jmp r11
    &[0x48, 0xbb, b'W', 0x48, 0x89, 0x03],             // mov rbx, W; mov [rbx], rax
    &[0x48, 0xbb, b'W', 0x48, 0x8b, 0x03],             // mov rbx, W; mov rax, [rbx]
    &[0x48, 0xbb, b'W', 0xf0, 0x48, 0x0f, 0xc1, 0x03], // mov rbx, W; lock xadd [rbx], rax
    &[0x48, 0xbc, b'W'],                               // mov rsp, W
    &[0x48, 0xbc, b'W', 0x0f, 0x05],                   // mov rsp, W; syscall
    &[0x65, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0],       // mov rax, gs:[0]
    &[0xf3, 0x48, 0x0f, 0xae, 0xd8],                   // wrgsbase rax
    &[0xf3, 0x48, 0x0f, 0xae, 0xd0],                   // wrfsbase rax
    &[0x50, 0x9d],                                     // push rax; popfq
    &[0x9c, 0x58],                                     // pushfq; pop rax
    &[0xe6, 0x50],                                     // out 0x50, al
    &[0xcd, 0x80],                                     // int 0x80
    &[0xcc],                                           // int3
    &[0xf4],                                           // hlt
    &[0x0f, 0x0b],                                     // ud2
    &[0x0f, 0x01, 0xf8],                               // swapgs
    &[0x48, 0x0f, 0x07],                               // sysretq
    &[0x48, 0xcf],                                     // iretq
    &[0x0f, 0xa2],                                     // cpuid
    &[0xf3, 0x90],                                     // pause
    &[0x8e, 0xd8],                                     // mov ds, eax
    &[0xeb, 0xfe],                                     // jmp .
];

fn program(random: &mut Random) -> Vec<u8> {
    let mut code = Vec::new();
    while code.len() < PAGE as usize - 64 {
        match random.below(4) {
            0 => code.push(random.next() as u8),
            1 => code.extend([0xeb, random.next() as u8]),
            _ => {
                for byte in random.pick(FRAGMENTS) {
                    if *byte == b'W' {
                        code.extend(random.word().to_le_bytes());
                    } else {
                        code.push(*byte);
                    }
                }
            }
        }
    }
    code
}

fn registers(random: &mut Random) -> Registers {
    let mut word = || random.word();
    Registers {
        rax: word(),
        rbx: word(),
        rcx: word(),
        rdx: word(),
        rsi: word(),
        rdi: word(),
        rbp: word(),
        r8: word(),
        r11: word(),
        r15: word(),
        ..start()
    }
}

/// Answers as it likes.
struct Whatever {
    random: Mutex<Random>,
    answers: AtomicU64,
    space: Arc<AddressSpace>,
    page: Gpa,
}

impl Whatever {
    /// Perhaps a page is there afterwards.
    fn fault(&self, faulting: &Faulting, random: &mut Random) -> Answered {
        let addr = match &faulting.at {
            Where::Address(addr) => *addr,
            Where::Registers(registers) => random.pick(&[registers.rbx, registers.rsp.wrapping_sub(8)]),
        };
        let page = addr & !(PAGE - 1);
        if (FRESH..FRESH + FRESH_PAGES * PAGE).contains(&page) && random.below(4) > 0 {
            self.space.map(page, self.page, PAGE, RW).expect("map");
        }
        if random.below(3) > 0 { Answered::Resolved } else { Answered::Refused }
    }
}

impl Answer for Whatever {
    fn answer(&self, posted: &Posted<'_>) -> Option<Answered> {
        let mut random = self.random.lock();
        if random.below(8) == 0 {
            return None;
        }
        let request = posted.claim()?;
        self.answers.fetch_add(1, Ordering::Relaxed);
        if let Some(faulting) = request.faulting() {
            return Some(self.fault(&faulting, &mut random));
        }
        let value = random.word();
        Some(match random.below(5) {
            0 => Answered::Leave(value),
            1 => Answered::Refused,
            2 => Answered::Done(value),
            _ => request.done(value),
        })
    }
}

/// Runs one program after another until `over`.
fn run_programs(
    lab: &Lab,
    thread: &mut GuestThread,
    place: u64,
    random: &mut Random,
    over: &AtomicBool,
) -> u64 {
    let code = lab.new_page(place, RX);
    let mut programs = 0;
    while !over.load(Ordering::Acquire) {
        lab.arena.write(code, &program(random)).expect("a program fits");
        let mut registers = Registers { rip: place + random.below(64), ..registers(random) };
        for _ in 0..ENTRIES {
            // An interpreted CPU lets ring 3 set bases that a real one refuses.
            if interpreted_cpu() {
                registers.fs_base &= 0x7fff_ffff_ffff;
                registers.gs_base &= 0x7fff_ffff_ffff;
            }
            let exit = thread.run(&mut registers, &lab.space);
            match exit {
                Ok(Exit::Interrupted) if random.below(2) == 0 => {}
                Ok(_) => {
                    if random.below(16) == 0 {
                        let fresh = FRESH..FRESH + FRESH_PAGES * PAGE;
                        lab.space.revoke(&[Change::Unmap(fresh)]).expect("unmap");
                    }
                    registers.rip = place + random.below(PAGE);
                    registers.rsp = STACK_TOP - 64;
                    (registers.fs_base, registers.gs_base) = (0, 0);
                }
                // QEMU's `iretd` enters virtual-8086 mode from ring 3, and it leaves instructions to KVM that real CPUs execute: the thread is lost there,
                // as it should be, and nothing is learnt from going on.
                Err(Error::StubFault { .. } | Error::UnexpectedExit { .. }) if interpreted_cpu() => {
                    println!("       lost a thread to {exit:?}");
                    return programs;
                }
                Err(error) => panic!("a guest made its thread unusable: {error}, {registers:x?}"),
            }
        }
        programs += 1;
    }
    programs
}

pub fn random_code() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("CAISSON_FUZZ_SEED").unwrap_or_else(caisson_platform_kvm::rdtsc) | 1;
    let time = Duration::from_secs(number("CAISSON_FUZZ_SECONDS").unwrap_or(3));
    println!("       seed {seed}");
    let lab = Lab::new();
    let answers = Arc::new(Whatever {
        random: Mutex::new(Random(seed)),
        answers: AtomicU64::new(0),
        space: lab.space.clone(),
        page: lab.arena.gpa(lab.frame()),
    });
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| lab.machine.serve_calls());
        // Random calls are too far between to wake a dispatcher: this one always polls.
        scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                lab.machine.slept(Duration::from_micros(10));
                lab.machine.assist(&|| over.load(Ordering::Acquire));
            }
        });
        // It does so while a processor is left.
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
        let runners: Vec<_> = (0..(processors - 1).clamp(1, 3))
            .map(|number| {
                let mut thread = lab.thread();
                let kicker = thread.kicker();
                let weak: Weak<dyn Answer> = Arc::downgrade(&(answers.clone() as Arc<dyn Answer>));
                thread.answer_with(weak, |_| true);
                let (lab, over) = (&lab, &over);
                let mut random = Random(seed.wrapping_mul(number * 2 + 3));
                let place = CODE + number * 16 * PAGE;
                let runner = scope.spawn(move || run_programs(lab, &mut thread, place, &mut random, over));
                (runner, kicker)
            })
            .collect();
        let end = Instant::now() + time;
        while Instant::now() < end && !runners.iter().any(|(runner, _)| runner.is_finished()) {
            std::thread::sleep(Duration::from_micros(300));
            runners.iter().for_each(|(_, kicker)| kicker.kick());
        }
        over.store(true, Ordering::Release);
        while runners.iter().any(|(runner, _)| !runner.is_finished()) {
            runners.iter().for_each(|(_, kicker)| kicker.kick());
            std::thread::sleep(Duration::from_millis(1));
        }
        lab.machine.stop_serving();
        let programs: Vec<_> = runners.into_iter().map(|(runner, _)| runner.join()).collect();
        let programs: Vec<u64> = programs.into_iter().map(|ended| ended.expect("a guest thread")).collect();
        println!(
            "       {programs:?} programs, {} answers, {:?}",
            answers.answers.load(Ordering::Relaxed),
            lab.machine.dispatch_counters()
        );
    });
}
