//! In and out of the guest.

use crate::lab::*;
use crate::programs::{self, one};
use caisson_platform_kvm::{Exit, HostMode, Paging, Registers, Ring0};

pub fn mode_is_as_expected() {
    let lab = Lab::new();
    let mode = lab.machine.mode();
    println!(
        "       {mode:?}, xcr0 {:#x}, xstate {} bytes, tsc {} kHz",
        lab.machine.xcr0(),
        lab.machine.xstate_size(),
        lab.machine.tsc_khz()
    );
    let Ok(expected) = std::env::var("CAISSON_EXPECT_MODE") else { return };
    let expected = match expected.as_str() {
        "native,nested" => HostMode { ring0: Ring0::Native, paging: Paging::Nested },
        "native,shadow" => HostMode { ring0: Ring0::Native, paging: Paging::Shadow },
        "emulated,shadow" => HostMode { ring0: Ring0::Emulated, paging: Paging::Shadow },
        other => panic!("CAISSON_EXPECT_MODE={other}"),
    };
    assert_eq!(mode, expected);
}

fn distinct() -> Registers {
    Registers {
        rax: 0x1111_0000_0000_0001,
        rbx: 0x2222_0000_0000_0002,
        rcx: 3,
        rdx: 0x4444_0000_0000_0004,
        rsi: 0x5555_0000_0000_0005,
        rdi: 0x6666_0000_0000_0006,
        rsp: STACK_TOP - 8,
        rbp: 0x7777_0000_0000_0007,
        r8: 8,
        r9: 0xffff_ffff_ffff_ff09,
        r10: 10,
        r11: 11,
        r12: 12,
        r13: 13,
        r14: 14,
        r15: 0x8000_0000_0000_000f,
        rip: CODE,
        rflags: 0x202 | 1 | 0x40 | 0x800,
        fs_base: 0x7f00_1234_5678,
        gs_base: 0x7f00_8765_4321,
    }
}

pub fn syscall_keeps_every_register() {
    let lab = Lab::new();
    lab.load(programs::syscalls());
    let mut thread = lab.thread();
    let mut registers = distinct();
    for round in 0..scaled(2000, 50) {
        let before = Registers { rip: CODE, rax: round, ..registers };
        registers = before;
        assert_eq!(thread.run(&mut registers, &lab.space).unwrap(), Exit::Syscall);
        let expected = Registers { rip: CODE + 2, rcx: CODE + 2, r11: before.rflags, ..before };
        assert_eq!(registers, expected);
        // Every other round returns as a system call does; the rest with changed rcx, as a signal would.
        registers.rip = CODE;
        registers.rcx = if round % 2 == 0 { CODE } else { round };
    }
    // Straight back, as the sentry answers a system call.
    registers.rip = CODE;
    for round in 0..scaled(2000, 50) {
        registers.rax = round;
        registers.rsp = round;
        assert_eq!(thread.run(&mut registers, &lab.space).unwrap(), Exit::Syscall);
        assert_eq!((registers.rip, registers.rax, registers.rsp), (CODE + 2, round, round));
    }
}

pub fn arbitrary_registers_enter_and_leave() {
    let lab = Lab::new();
    lab.load(one::invalid());
    let mut thread = lab.thread();
    // CF PF AF ZF SF DF OF AC ID
    for flags in [0, 1, 4, 0x10, 0x40, 0x80, 0x400, 0x800, 0x4_0000, 0x20_0000] {
        let before = Registers { rflags: 0x202 | flags, ..distinct() };
        let mut registers = before;
        let exit = thread.run(&mut registers, &lab.space).unwrap();
        assert_eq!(exit, Exit::Exception { vector: 6, error_code: 0, addr: 0 });
        registers.rflags &= !0x1_0000; // RF, as the CPU sets it for a fault
        assert_eq!(registers, before);
    }
    // What ring 3 may not have is dropped: IOPL, NT, VM, IF off.
    let mut registers = Registers { rflags: 0x3000 | 0x4000 | 0x2_0000, ..distinct() };
    thread.run(&mut registers, &lab.space).unwrap();
    assert_eq!(registers.rflags & !0x1_0000, 0x202);
}

pub fn every_exception_vector() {
    let lab = Lab::new();
    let cases: [(&str, &[u8], u8, u32); 12] = [
        ("divide", one::divide(), 0, 0),
        ("breakpoint", one::breakpoint(), 3, 0),
        ("overflow", one::overflow(), 4, 0),
        ("invalid", one::invalid(), 6, 0),
        ("protection", one::protection(), 13, 0),
        ("stack", one::stack(), 12, 0),
        ("x87", one::x87(), 16, 0),
        ("simd", one::simd(), 19, 0),
        ("alignment", one::alignment(), 17, 0),
        ("selector", one::selector(), 13, 0xfff0),
        ("int 0x80", one::int80(), 13, 0x402),
        ("debug", one::debug(), 1, 0),
    ];
    let emulated = lab.machine.mode().ring0 == Ring0::Emulated;
    for (name, program, vector, error_code) in cases {
        lab.load(program);
        let mut registers = start();
        let exit = lab.run(&mut registers);
        let Exit::Exception { vector: found, error_code: code, addr } = exit else {
            // QEMU's interpreter traps neither; the program then runs on into zeroes, which write at rax: [rsp + 1] or eax = 1.
            let untrapped = matches!((name, exit), ("simd", Exit::PageFault { addr: 1, .. }))
                || matches!((name, exit), ("alignment", Exit::PageFault { addr: 0, .. }));
            assert!(interpreted_cpu() && untrapped, "{name}: {exit:?}");
            println!("(no {name} trap on this CPU) ");
            continue;
        };
        if emulated && name == "int 0x80" {
            assert!(found == 13 || found == 6, "{name}: vector {found}");
            continue;
        }
        if name == "stack" && found == 13 && interpreted_cpu() {
            continue;
        }
        if name == "int 0x80" && code == 0x802 && interpreted_cpu() {
            continue; // QEMU 7 takes the offset of the entry for its index.
        }
        assert_eq!((found, code), (vector, error_code), "{name} at {registers:x?}");
        let traps = matches!(vector, 1 | 3 | 4);
        if traps {
            assert!(registers.rip > CODE, "{name} is a trap: {:#x}", registers.rip);
        }
        if vector == 3 {
            assert_eq!(registers.rip, CODE + 1);
        }
        if vector == 6 || name == "protection" {
            assert_eq!(registers.rip, CODE);
        }
        assert_eq!(addr, if vector == 1 { 1 << 14 } else { 0 }, "{name}");
    }
}

pub fn page_faults_say_what_was_tried() {
    let lab = Lab::new();
    let read_only = 0x50_0000;
    let hole = 0x50_1000;
    lab.new_page(read_only, R);
    let cases: [(&[u8], u64, Exit); 5] = [
        (
            one::read(),
            hole + 5,
            Exit::PageFault { addr: hole + 5, write: false, exec: false, present: false },
        ),
        (one::write(), hole, Exit::PageFault { addr: hole, write: true, exec: false, present: false }),
        (
            one::write(),
            read_only + 8,
            Exit::PageFault { addr: read_only + 8, write: true, exec: false, present: true },
        ),
        (one::jump(), hole, Exit::PageFault { addr: hole, write: false, exec: true, present: false }),
        (
            one::jump(),
            read_only,
            Exit::PageFault { addr: read_only, write: false, exec: true, present: true },
        ),
    ];
    for (program, rdi, expected) in cases {
        lab.load(program);
        let mut registers = Registers { rdi, ..start() };
        assert_eq!(lab.run(&mut registers), expected);
        assert!(registers.rip == CODE || registers.rip == rdi);
    }
    // Filled on demand, the access succeeds where it was.
    lab.load(one::write());
    let mut thread = lab.thread();
    let mut registers = Registers { rdi: hole, rax: 77, ..start() };
    thread.run(&mut registers, &lab.space).unwrap();
    let gpa = lab.new_page(hole, RW);
    // The program is one instruction: what follows in the page is `add [rax], al`, a fault at address 77.
    let exit = thread.run(&mut registers, &lab.space).unwrap();
    assert!(matches!(exit, Exit::PageFault { addr: 77, .. }), "{exit:?}");
    assert_eq!(lab.word(gpa), 77);
    // Adding rights needs no revocation.
    lab.space.map(read_only, lab.space.lookup(read_only).unwrap().0, PAGE, RW).unwrap();
    registers = Registers { rdi: read_only, rax: 78, ..start() };
    let exit = thread.run(&mut registers, &lab.space).unwrap();
    assert!(matches!(exit, Exit::PageFault { addr: 78, .. }), "{exit:?}");
}

pub fn single_step() {
    let lab = Lab::new();
    // nop, nop, syscall, nop
    lab.load(&[0x90, 0x90, 0x0f, 0x05, 0x90, 0x90]);
    let mut thread = lab.thread();
    let mut registers = Registers { rflags: 0x302, ..start() };
    let step = Exit::Exception { vector: 1, error_code: 0, addr: 1 << 14 };
    assert_eq!(thread.run(&mut registers, &lab.space).unwrap(), step);
    assert_eq!(registers.rip, CODE + 1);
    assert_eq!(thread.run(&mut registers, &lab.space).unwrap(), step);
    assert_eq!(registers.rip, CODE + 2);
    assert_eq!(thread.run(&mut registers, &lab.space).unwrap(), Exit::Syscall);
    assert_eq!(registers.rip, CODE + 4);
    assert_eq!(registers.r11 & 0x100, 0x100, "TF is the caller's");
    assert_eq!(thread.run(&mut registers, &lab.space).unwrap(), step);
    assert_eq!(registers.rip, CODE + 5, "one instruction after the system call");
    registers.rflags &= !0x100;
    registers.rip = CODE + 1;
    assert_eq!(thread.run(&mut registers, &lab.space).unwrap(), Exit::Syscall, "and off again");
}

pub fn registers_the_cpu_would_refuse() {
    let lab = Lab::new();
    lab.load(programs::syscalls());
    let mut thread = lab.thread();
    for (rip, vector) in
        [(0x8000_0000_0000u64, 13), (0x7fff_ffff_f000, 14), (0xffff_ffff_8000_0000, 14), (u64::MAX, 14)]
    {
        let mut registers = Registers { rip, rcx: rip, ..start() };
        let exit = thread.run(&mut registers, &lab.space).unwrap();
        match exit {
            Exit::Exception { vector: v, .. } => assert_eq!(v, vector),
            Exit::PageFault { addr, exec: true, .. } => assert_eq!((addr, vector), (rip, 14)),
            other => panic!("{other:?}"),
        }
        assert_eq!(registers.rip, rip);
    }
    let mut registers = Registers { fs_base: 1 << 47, ..start() };
    assert!(thread.run(&mut registers, &lab.space).is_err());
    // Any stack pointer is fine until it is used.
    let mut registers = Registers { rsp: 0x8000_0000_0000_0000, ..start() };
    assert_eq!(thread.run(&mut registers, &lab.space).unwrap(), Exit::Syscall);
    assert_eq!(registers.rsp, 0x8000_0000_0000_0000);
}
