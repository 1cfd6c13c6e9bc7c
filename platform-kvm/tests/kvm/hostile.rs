//! Guest code that tries what it may not.

use crate::lab::*;
use crate::programs::{self, one};
use caisson_platform_kvm::{Exit, Registers, Ring0};

const PROTECTION: Exit = Exit::Exception { vector: 13, error_code: 0, addr: 0 };

pub fn privileged_instructions() {
    let lab = Lab::new();
    for (name, program) in [
        ("hlt", one::protection()),
        ("cli", one::cli()),
        ("rdmsr", one::rdmsr()),
        ("mov cr3", one::mov_cr3()),
        ("lgdt", one::lgdt()),
        ("swapgs", one::swapgs()),
        ("sysret", one::sysret()),
    ] {
        lab.load(program);
        let exit = lab.run(&mut start());
        assert_eq!(exit, PROTECTION, "{name}");
    }
    lab.load(one::sysenter());
    let exit = lab.run(&mut start());
    assert!(matches!(exit, Exit::Exception { vector: 13 | 6, .. }), "sysenter: {exit:?}");
}

pub fn ports_of_the_stub() {
    let lab = Lab::new();
    for port in [0x20, 0x21, 0x22, 0x40, 0x4e, 0x5f, 0x60, 0x80, 0xcf8] {
        for program in [one::out(), one::inb()] {
            lab.load(program);
            let mut registers = Registers { rdi: port, rcx: 0x1234, ..start() };
            assert_eq!(lab.run(&mut registers), PROTECTION, "port {port:#x}");
            assert!((CODE..CODE + 8).contains(&registers.rip));
            assert_eq!(registers.rcx, 0x1234);
        }
    }
}

pub fn upper_half_is_closed() {
    let lab = Lab::new();
    let emulated = lab.machine.mode().ring0 == Ring0::Emulated;
    for address in [
        0xffff_ffff_8000_0000u64,
        0xffff_ffff_8000_1000,
        0xffff_ffff_8000_3000,
        0xffff_8000_0000_0000,
        u64::MAX - 7,
    ] {
        for program in [one::read(), one::write()] {
            lab.load(program);
            let mut registers = Registers { rdi: address, ..start() };
            match lab.run(&mut registers) {
                Exit::PageFault { addr, .. } => assert_eq!(addr, address),
                Exit::Exception { vector: 13, .. } if emulated => {}
                other => panic!("{address:#x}: {other:?}"),
            }
            assert_eq!(registers.rip, CODE);
        }
    }
    // The user stub may be read and executed, not written.
    lab.load(one::write());
    let exit = lab.run(&mut Registers { rdi: 0xffff_ffff_8000_2000, ..start() });
    assert!(matches!(exit, Exit::PageFault { .. } | Exit::Exception { vector: 13, .. }), "{exit:?}");
}

pub fn jump_into_the_stub() {
    let lab = Lab::new();
    lab.load(one::jump());
    for offset in [0, 0x10, 0x20, 0x30, 0x40, 0x100, 0x1e0, 0x1000, 0x2000, 0x2002, 0x2010, 0x3000] {
        let mut registers =
            Registers { rdi: 0xffff_ffff_8000_0000 + offset, rcx: CODE + 0x80, r11: 0x202, ..start() };
        match lab.run(&mut registers) {
            Exit::Exception { .. } | Exit::PageFault { .. } => {}
            // A system call whose return address is rcx: what the program could have had more simply.
            Exit::Syscall if offset & !2 == 0x2000 => assert_eq!(registers.rip, CODE + 0x80),
            other => panic!("{offset:#x}: {other:?}"),
        }
    }
}

pub fn thirty_two_bit_code() {
    let lab = Lab::new();
    lab.load(one::far_jump());
    let mut registers = start();
    let exit = lab.run(&mut registers);
    assert!(matches!(exit, Exit::Exception { .. } | Exit::PageFault { .. }), "{exit:?}");
    // Whatever happened, the next entry is 64-bit code again.
    lab.load(programs::syscalls());
    let mut thread = lab.thread();
    let mut registers = start();
    assert_eq!(thread.run(&mut registers, &lab.space).unwrap(), Exit::Syscall);
    assert_eq!(registers.rip, CODE + 2);
}

pub fn hypercalls_leave_the_text_alone() {
    let lab = Lab::new();
    for program in [one::vmcall(), one::vmmcall()] {
        lab.load(program);
        let mut registers = Registers { rax: 1, ..start() };
        let _ = lab.run(&mut registers);
        let mut text = [0; 3];
        lab.arena.read(lab.space.lookup(CODE).unwrap().0, &mut text).unwrap();
        assert_eq!(&text, program, "KVM rewrote the program");
    }
}
