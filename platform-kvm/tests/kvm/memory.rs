//! Address spaces and what backs them.

use crate::lab::*;
use crate::programs::{self, one};
use caisson_platform_kvm::{
    Alignment, Change, Exit, GVA_END, Gpa, MachineConfig, Perms, Registers, WindowAccess,
};
use std::io::Write;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

fn memory_file(bytes: &[u8]) -> std::fs::File {
    // SAFETY: the name is a C string; the result is checked.
    let fd = unsafe { libc::memfd_create(c"window".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: the descriptor is new and ours.
    let mut file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.write_all(bytes).unwrap();
    file
}

pub fn map_unmap_lookup() {
    let lab = Lab::new();
    let space = &lab.space;
    let block = lab.arena.alloc(512, Alignment::Huge).unwrap();
    let gpa = lab.arena.gpa(block.first);
    let at = 0x4000_0000;
    space.map(at, gpa, HUGE, RW).unwrap();
    assert_eq!(space.lookup(at + 0x12345), Some((Gpa(gpa.0 + 0x12345), RW)));
    // Split by a loss of rights in the middle.
    space.revoke(&[Change::Protect { range: at + 0x3000..at + 0x5000, perms: R }]).unwrap();
    assert_eq!(space.lookup(at + 0x2fff), Some((Gpa(gpa.0 + 0x2fff), RW)));
    assert_eq!(space.lookup(at + 0x3000), Some((Gpa(gpa.0 + 0x3000), R)));
    assert_eq!(space.lookup(at + 0x5000), Some((Gpa(gpa.0 + 0x5000), RW)));
    // Protect adds nothing.
    space.revoke(&[Change::Protect { range: at..at + HUGE, perms: RW | Perms::X }]).unwrap();
    assert_eq!(space.lookup(at + 0x3000), Some((Gpa(gpa.0 + 0x3000), R)));
    // Mapping again gives exactly the rights asked for, more or less.
    space.map(at, gpa, HUGE, R).unwrap();
    assert_eq!(space.lookup(at), Some((gpa, R)));
    space.map(at, gpa, HUGE, RW).unwrap();
    assert_eq!(space.lookup(at + HUGE - 1), Some((Gpa(gpa.0 + HUGE - 1), RW)));
    // Over something else.
    space.map(at + 0x1000, Gpa(gpa.0 + 0x8000), 0x1000, RX).unwrap();
    assert_eq!(space.lookup(at + 0x1000), Some((Gpa(gpa.0 + 0x8000), RX)));
    // Several losses in one large entry at once.
    space.map(at, gpa, HUGE, RW).unwrap();
    let pages = [1u64, 7, 8, 500];
    space.revoke(&pages.map(|n| Change::Unmap(at + n * PAGE..at + (n + 1) * PAGE))).unwrap();
    for n in 0..512 {
        let expected = (!pages.contains(&n)).then_some((Gpa(gpa.0 + n * PAGE), RW));
        assert_eq!(space.lookup(at + n * PAGE), expected, "page {n}");
    }
    space.revoke(&[Change::Unmap(0..GVA_END)]).unwrap();
    assert_eq!(space.lookup(at), None);
    assert_eq!(space.lookup(STACK_TOP - PAGE), None);
    assert_eq!(space.lookup(u64::MAX), None);
    for (gva, gpa, len, perms) in [
        (at + 1, gpa, PAGE, R),
        (at, Gpa(gpa.0 + 8), PAGE, R),
        (at, gpa, 100, R),
        (at, gpa, 0, R),
        (at, gpa, PAGE, Perms::empty()),
        (GVA_END, gpa, PAGE, R),
        (GVA_END - PAGE, gpa, 2 * PAGE, R),
        (u64::MAX - PAGE + 1, gpa, PAGE, R),
        (at, Gpa(0), PAGE, R),
        (at, Gpa(0x10_0000), PAGE, R),
        (at, Gpa(4 << 30), PAGE, R),
        (at, Gpa(u64::MAX - PAGE + 1), PAGE, R),
    ] {
        assert!(space.map(gva, gpa, len, perms).is_err(), "{gva:#x} {gpa:?} {len:#x}");
    }
    assert!(space.revoke(&[Change::Unmap(1..PAGE)]).is_err());
    assert!(space.revoke(&[Change::Unmap(0..GVA_END + PAGE)]).is_err());
    free(block);
}

pub fn truncated_file_is_a_page_fault() {
    let lab = Lab::new();
    let file = memory_file(&[0x42; 2 * PAGE as usize]);
    let window = lab.arena.window_alloc(2).unwrap();
    lab.arena.window_map(window, file.as_fd(), 0, WindowAccess::ReadWrite).unwrap();
    let at = 0x50_0000;
    lab.space.map(at, window.start, 2 * PAGE, RW).unwrap();
    lab.load(one::read());
    let second = Registers { rdi: at + PAGE + 8, ..start() };
    let mut thread = lab.thread();
    let mut registers = second;
    assert_eq!(thread.run(&mut registers, &lab.space).unwrap(), Exit::Syscall);
    assert_eq!(registers.rax, 0x4242_4242_4242_4242);
    file.set_len(PAGE).unwrap();
    let mut registers = second;
    assert_eq!(thread.run(&mut registers, &lab.space).unwrap(), Exit::HostFault);
    assert_eq!((registers.rip, registers.rdi), (CODE, second.rdi), "the instruction has not run");
    assert_eq!(lab.space.revoke_unbacked().unwrap(), PAGE);
    let exit = thread.run(&mut registers, &lab.space).unwrap();
    assert_eq!(exit, Exit::PageFault { addr: second.rdi, write: false, exec: false, present: false });
    // The other page is still there, and all is well again when the file grows.
    let mut registers = Registers { rdi: at, ..start() };
    thread.run(&mut registers, &lab.space).unwrap();
    assert_eq!(registers.rax, 0x4242_4242_4242_4242);
    file.set_len(2 * PAGE).unwrap();
    lab.space.map(at + PAGE, Gpa(window.start.0 + PAGE), PAGE, RW).unwrap();
    let mut registers = second;
    thread.run(&mut registers, &lab.space).unwrap();
    assert_eq!(registers.rax, 0);
    lab.space.revoke(&[Change::Unmap(at..at + 2 * PAGE)]).unwrap();
    lab.arena.window_free(window);
}

pub fn tables_are_given_back() {
    let lab = Lab::with(MachineConfig { quarantine_pages: 64, ..Default::default() });
    lab.load(programs::syscalls());
    let (before, _) = lab.machine.resources();
    let code = lab.space.lookup(CODE).unwrap().0;
    let mut thread = lab.thread();
    for n in 0..scaled(2000, 60) {
        let space = lab.machine.new_address_space().unwrap();
        space.map(CODE, code, PAGE, RX).unwrap();
        space.map(0x1000_0000_0000 + n * HUGE, code, PAGE, R).unwrap();
        assert_eq!(thread.run(&mut start(), &space).unwrap(), Exit::Syscall);
    }
    assert_eq!(lab.machine.resources().0, before);
}

pub fn table_limit_is_an_error() {
    let lab = Lab::with(MachineConfig { max_table_pages: 60, ..Default::default() });
    lab.load(programs::syscalls());
    let gpa = lab.arena.gpa(lab.frame());
    let mut mapped = 0;
    let error = loop {
        match lab.space.map(0x1_0000_0000 + mapped * HUGE, gpa, PAGE, R) {
            Ok(()) => mapped += 1,
            Err(error) => break error,
        }
        assert!(mapped < 100);
    };
    assert!(matches!(error, caisson_platform_kvm::Error::OutOfMemory(_)), "{error}");
    // What is there still works.
    assert_eq!(lab.run(&mut start()), Exit::Syscall);
}
