//! State that belongs to a thread and not to a vCPU.

use crate::lab::*;
use crate::programs;
use caisson_platform_kvm::{Error, Exit, FpuState, Gpa, MachineConfig, Registers, Ring0, rdtsc};

/// Two threads on one vCPU fill registers, then show them; each must see its own.
fn two_threads(program: &[u8], bytes: usize) {
    let lab = Lab::with(MachineConfig { max_vcpus: 2, ..Default::default() });
    lab.load(program);
    let page = 0x50_0000;
    let gpa = lab.new_page(page, RW);
    let pattern = |n: u8| (0..bytes).map(|i| (i as u8).wrapping_mul(7).wrapping_add(n)).collect::<Vec<_>>();
    let mut threads = (1..=6u8)
        .map(|n| (n, lab.thread(), Registers { rsi: page, rdi: page + 0x800, ..start() }))
        .collect::<Vec<_>>();
    for (n, thread, registers) in &mut threads {
        lab.arena.write(gpa, &pattern(*n)).unwrap();
        assert_eq!(thread.run(registers, &lab.space).unwrap(), Exit::Syscall);
    }
    for (n, thread, registers) in &mut threads {
        assert_eq!(thread.run(registers, &lab.space).unwrap(), Exit::Syscall);
        let mut found = vec![0; bytes];
        lab.arena.read(Gpa(gpa.0 + 0x800), &mut found).unwrap();
        assert_eq!(found, pattern(*n), "thread {n}");
    }
}

pub fn fpu_state_is_the_threads_own() {
    let lab = Lab::new();
    let xcr0 = lab.machine.xcr0();
    if xcr0 & 4 == 0 {
        println!("       (no AVX on this CPU: only the initial state is checked)");
    } else {
        two_threads(programs::fpu(), 64);
    }
    if xcr0 & 0xe0 == 0xe0 {
        two_threads(programs::fpu512(), 72);
    } else {
        println!("       (no AVX-512 on this CPU)");
    }
    assert_eq!(lab.thread().fpu().unwrap(), FpuState::initial(lab.machine.xstate_size()));
}

pub fn fpu_state_can_be_read_and_set() {
    let lab = Lab::new();
    let size = lab.machine.xstate_size();
    let mut thread = lab.thread();
    let mut bytes = FpuState::initial(size).as_bytes().to_vec();
    bytes[160..176].copy_from_slice(&[0x5a; 16]); // xmm0
    bytes[512] = 3; // XSTATE_BV: x87, SSE
    thread.set_fpu(&FpuState::from_bytes(&bytes, size)).unwrap();
    // movups [rdi], xmm0; movups xmm0, [rsi]; syscall
    lab.load(&[0x0f, 0x11, 0x07, 0x0f, 0x10, 0x06, 0x0f, 0x05]);
    let page = 0x50_0000;
    let gpa = lab.new_page(page, RW);
    lab.arena.write(Gpa(gpa.0 + 16), &[0xc3; 16]).unwrap();
    let mut registers = Registers { rdi: page, rsi: page + 16, ..start() };
    assert_eq!(thread.run(&mut registers, &lab.space).unwrap(), Exit::Syscall);
    assert_eq!(lab.word(gpa), 0x5a5a_5a5a_5a5a_5a5a);
    let after = thread.fpu().unwrap();
    assert_eq!(&after.as_bytes()[160..176], &[0xc3; 16]);
    assert_eq!(after.as_bytes().len(), size);
    // To another thread, as fork does.
    let mut child = lab.thread();
    child.set_fpu(&after).unwrap();
    assert_eq!(&child.fpu().unwrap().as_bytes()[160..176], &[0xc3; 16]);
    thread.reset_fpu().unwrap();
    registers.rip = CODE;
    assert_eq!(thread.run(&mut registers, &lab.space).unwrap(), Exit::Syscall);
    assert_eq!(lab.word(gpa), 0, "xmm0 is zero after a reset");
}

pub fn hostile_fpu_states() {
    let lab = Lab::new();
    let size = lab.machine.xstate_size();
    let mut thread = lab.thread();
    let initial = FpuState::initial(size).as_bytes().to_vec();
    let with = |at: usize, bytes: &[u8]| {
        let mut state = initial.clone();
        state[at..at + bytes.len()].copy_from_slice(bytes);
        FpuState::from_bytes(&state, size)
    };
    for (name, state) in [
        ("unknown component", with(512, &[0xff; 8])),
        ("compacted format", with(520, &(1u64 << 63).to_le_bytes())),
        ("reserved header bytes", with(528, &[1])),
        ("reserved MXCSR bits with SSE", with(24, &[0xff; 4])),
        ("garbage", FpuState::from_bytes(&vec![0xa5; size], size)),
    ] {
        match thread.set_fpu(&state) {
            Err(Error::BadFpuState) => {}
            // Some kernels mask the bits instead; the guest must still run.
            Ok(()) => println!("       ({name}: accepted by this kernel)"),
            Err(other) => panic!("{name}: {other}"),
        }
        lab.load(programs::syscalls());
        assert_eq!(thread.run(&mut start(), &lab.space).unwrap(), Exit::Syscall, "{name}");
    }
    for length in [0, 1, 511, 513, 8192] {
        let _ = thread.set_fpu(&FpuState::from_bytes(&vec![0; length], size));
    }
    thread.reset_fpu().unwrap();
    assert_eq!(&thread.fpu().unwrap().as_bytes()[..2], &[0x7f, 3]);
}

pub fn fs_and_gs_base() {
    let lab = Lab::new();
    lab.load(programs::bases());
    let mut thread = lab.thread();
    for n in 0..scaled(200, 10) {
        let (fs, gs) = (0x1000 * n, 0x7f00_0000_0000 + n);
        let mut registers = Registers { fs_base: fs, gs_base: gs, rsi: fs + 1, rdx: gs + 1, ..start() };
        assert_eq!(thread.run(&mut registers, &lab.space).unwrap(), Exit::Syscall);
        assert_eq!((registers.rax, registers.rbx), (fs, gs), "what the host set");
        assert_eq!(thread.run(&mut registers, &lab.space).unwrap(), Exit::Syscall);
        assert_eq!((registers.fs_base, registers.gs_base), (fs + 1, gs + 1), "what the guest set");
    }
    // The guest may set a base in the upper half; it stays as it is.
    let upper = 0xffff_8000_0000_1000;
    let mut registers = Registers { rsi: upper, rdx: upper, ..start() };
    thread.run(&mut registers, &lab.space).unwrap();
    thread.run(&mut registers, &lab.space).unwrap();
    assert_eq!((registers.fs_base, registers.gs_base), (upper, upper));
    assert_eq!(thread.run(&mut registers, &lab.space).unwrap(), Exit::Syscall);
    assert_eq!(registers.rax, upper);
}

pub fn data_segments_are_the_threads_own() {
    let lab = Lab::with(MachineConfig { max_vcpus: 2, ..Default::default() });
    if lab.machine.mode().ring0 == Ring0::Emulated {
        println!(
            "       (skipped: this host leaves ds and es to the host thread, which is bound to one guest thread)"
        );
        return;
    }
    lab.load(programs::segments());
    let mut threads = (0..4u64)
        .map(|n| (lab.thread(), Registers { rax: if n % 2 == 0 { 0x2b } else { 0 }, ..start() }))
        .collect::<Vec<_>>();
    for (thread, registers) in &mut threads {
        assert_eq!(thread.run(registers, &lab.space).unwrap(), Exit::Syscall);
        assert_eq!((registers.rbx, registers.rdx), (0, 0), "initially null, whoever had the vCPU before");
        assert_eq!(thread.run(registers, &lab.space).unwrap(), Exit::Syscall);
    }
    for (n, (thread, registers)) in threads.iter_mut().enumerate() {
        assert_eq!(thread.run(registers, &lab.space).unwrap(), Exit::Syscall);
        let expected = if n % 2 == 0 { 0x2b } else { 0 };
        assert_eq!((registers.rbx, registers.rdx), (expected, expected), "thread {n}");
    }
}

pub fn time_stamp_counter_is_the_hosts() {
    let source = std::fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    if !matches!(source.as_deref().map(str::trim), Ok("tsc" | "kvm-clock" | "hyperv_clocksource_tsc_page")) {
        // KVM then moves the guest's counter each time it loads a vCPU; the sentry computes no time from it.
        println!("       (skipped: this host's kernel does not trust the counter itself)");
        return;
    }
    let lab = Lab::with(MachineConfig { max_vcpus: 4, ..Default::default() });
    lab.load(programs::tsc());
    let page = 0x50_0000;
    let gpa = lab.new_page(page, RW);
    for _ in 0..4 {
        let mut thread = lab.thread();
        let mut registers = Registers { rdi: page, ..start() };
        for _ in 0..scaled(200, 20) {
            let before = rdtsc();
            assert_eq!(thread.run(&mut registers, &lab.space).unwrap(), Exit::Syscall);
            let after = rdtsc();
            let guest = lab.word(gpa);
            assert!(before <= guest && guest <= after, "host {before} guest {guest} host {after}");
        }
    }
    assert!(lab.machine.tsc_khz() > 0);
}
