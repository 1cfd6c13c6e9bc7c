//! Threads that share vCPUs.

use crate::lab::*;
use crate::programs;
use caisson_platform_kvm::{Exit, MachineConfig, Registers};
use std::sync::atomic::{AtomicBool, Ordering};

pub fn more_threads_than_vcpus() {
    let lab = Lab::with(MachineConfig { max_vcpus: 3, ..Default::default() });
    lab.load(programs::fpu());
    let data = 0x50_0000;
    let gpa = lab.new_page(data, RW);
    let mut threads = (0..10u64)
        .map(|n| {
            let registers = Registers { rsi: data, rdi: data + 0x800, rbx: n, fs_base: n << 12, ..start() };
            (lab.thread(), registers)
        })
        .collect::<Vec<_>>();
    for round in 0..5 {
        for (n, (thread, registers)) in threads.iter_mut().enumerate() {
            lab.set_word(gpa, f64::to_bits(n as f64 + 0.5));
            registers.rip = CODE;
            assert_eq!(thread.run(registers, &lab.space).unwrap(), Exit::Syscall, "round {round}");
        }
        for (n, (thread, registers)) in threads.iter_mut().enumerate() {
            assert_eq!(thread.run(registers, &lab.space).unwrap(), Exit::Syscall);
            assert_eq!((registers.rbx, registers.fs_base), (n as u64, (n as u64) << 12));
            for offset in [0x800, 0x840] {
                let found = lab.word(caisson_platform_kvm::Gpa(gpa.0 + offset));
                assert_eq!(f64::from_bits(found), n as f64 + 0.5, "thread {n}, offset {offset:#x}");
            }
        }
    }
    assert!(lab.machine.resources().1 <= 5, "vCPUs: {:?}", lab.machine.resources());
}

pub fn more_spinning_threads_than_vcpus() {
    let lab = Lab::with(MachineConfig { max_vcpus: 2, ..Default::default() });
    lab.load(programs::count());
    let counters =
        (0..6).map(|n| (0x60_0000 + n * PAGE, lab.new_page(0x60_0000 + n * PAGE, RW))).collect::<Vec<_>>();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut kickers = Vec::new();
        for &(gva, _) in &counters {
            let mut thread = lab.thread();
            kickers.push(thread.kicker());
            let (space, stop) = (&lab.space, &stop);
            scope.spawn(move || {
                let mut registers = Registers { rdi: gva, ..start() };
                while !stop.load(Ordering::Acquire) {
                    assert_eq!(thread.run(&mut registers, space).unwrap(), Exit::Interrupted);
                }
            });
        }
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while counters.iter().any(|&(_, gpa)| lab.word(gpa) == 0) {
            assert!(std::time::Instant::now() < deadline, "some thread never ran");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        stop.store(true, Ordering::Release);
        kickers.iter().for_each(|kicker| kicker.kick());
    });
}
