//! The start-up probe: runs a few instructions of guest code and looks at what happens.
//!
//! - *Ring 0*: enters ring 3 through `sysretq` and lets it execute `syscall`. Hosts that emulate ring 0 do not manage both.
//! - *Paging*: lets the guest read a page, points the entry at another page, loads CR3 and lets it read again. Nested paging
//!   shows the new page; shadow paging still shows the old one. Where CR3 cannot be loaded natively there is no nested paging.
//! - *Bases*: whether ring 3 can read and write those of FS and GS, whatever the CPUID says.
//! - *Faults*: whether what posts page faults works here: where ring 0 is emulated, a gate that leads to ring 3 and `iretq` back from there ([`crate::exitless::faulting`]).
//! - *Exits*: how long one takes, by which dispatchers measure their patience.

use crate::arena::{Alignment, FrameRange};
use crate::error::{Error, ProbeError};
use crate::host_mode::{HostMode, Paging, Ring0};
use crate::machine::{Machine, rdtsc};
use crate::registers::{Exit, Registers};
use crate::space::{AddressSpace, Perms, index};
use crate::tables::{ADDRESS, Table};
use crate::vcpu::{Left, Target, Vcpu};
use std::sync::Arc;
use std::sync::atomic::Ordering;

const CODE: u64 = 0x40_0000;
const DATA: u64 = 0x40_1000;
/// mov eax, dword ptr [rdi]; syscall
const PROGRAM: [u8; 4] = [0x8b, 0x07, 0x0f, 0x05];
/// rdfsbase rax; wrfsbase rax; rdgsbase rax; wrgsbase rax; syscall
const BASES: [u8; 22] = [
    0xf3, 0x48, 0x0f, 0xae, 0xc0, 0xf3, 0x48, 0x0f, 0xae, 0xd0, 0xf3, 0x48, 0x0f, 0xae, 0xc8, 0xf3, 0x48,
    0x0f, 0xae, 0xd8, 0x0f, 0x05,
];
/// Where in the page of code they are.
const BASES_AT: u64 = 64;
const STACK: u64 = 0x40_2000;
/// push 0x2b; push [rsp] and all that `iretq` pops, to the address behind it; mov eax, [rdi]
const IRETQ: [u8; 19] = [
    0x48, 0x89, 0xe0, 0x6a, 0x2b, 0x50, 0x9c, 0x6a, 0x33, 0x48, 0x8d, 0x0d, 0x03, 0x00, 0x00, 0x00, 0x51,
    0x48, 0xcf,
];
const IRETQ_AT: u64 = 128;
const OLD: u32 = 0x0ca1_5500;
const NEW: u32 = 0x0ca1_5501;
/// Exits that are timed, of which the quickest counts.
const EXITS: u32 = 4;

pub(crate) fn probe(machine: &Arc<Machine>) -> Result<HostMode, Error> {
    let arena = machine.arena();
    let frames = arena.alloc(4, Alignment::Page)?;
    let result = probe_with(machine, frames);
    // Its address space is gone, and no vCPU enters ring 3 with that root again.
    arena.release(frames);
    result
}

fn probe_with(machine: &Arc<Machine>, frames: FrameRange) -> Result<HostMode, Error> {
    let arena = machine.arena();
    let gpa = |n: u32| arena.gpa(crate::arena::Frame(frames.first.0 + n));
    let filled = arena
        .write(gpa(0), &PROGRAM)
        .and_then(|()| arena.write(crate::arena::Gpa(gpa(0).0 + BASES_AT), &BASES))
        .and_then(|()| arena.write(crate::arena::Gpa(gpa(0).0 + IRETQ_AT), &IRETQ))
        .and_then(|()| arena.write(crate::arena::Gpa(gpa(0).0 + IRETQ_AT + IRETQ.len() as u64), &PROGRAM))
        .and_then(|()| arena.write(gpa(1), &OLD.to_le_bytes()))
        .and_then(|()| arena.write(gpa(2), &NEW.to_le_bytes()));
    filled.map_err(|_| ProbeError::Strange("guest memory cannot be written".into()))?;
    let space = machine.new_address_space()?;
    space.map(CODE, gpa(0), 4096, Perms::R | Perms::X)?;
    space.map(DATA, gpa(1), 4096, Perms::R)?;
    space.map(STACK, gpa(3), 4096, Perms::R | Perms::W)?;
    let ring0 = probe_ring0(machine, &space)?;
    let mut vcpu = machine.new_vcpu_for_probe(ring0)?;
    let mut mode = HostMode { ring0, paging: Paging::Shadow };
    let first = read(machine, &mut vcpu, &space, mode)?;
    if first != OLD {
        return Err(ProbeError::Strange(format!("the guest read {first:#x}")).into());
    }
    machine.set_bases_in_ring3(run(machine, &mut vcpu, &space, mode, CODE + BASES_AT).is_ok());
    if !probe_faults(machine, &mut vcpu, &space, mode) {
        // Nobody knows in what state that one is.
        vcpu = machine.new_vcpu_for_probe(ring0)?;
    }
    let mut exit_ticks = u64::MAX;
    for _ in 0..EXITS {
        let before = rdtsc();
        read(machine, &mut vcpu, &space, mode)?;
        exit_ticks = exit_ticks.min(rdtsc().wrapping_sub(before));
    }
    machine.dispatch().set_exit_cost(exit_ticks);
    point_elsewhere(machine, &space, gpa(2).0);
    vcpu.forget_space();
    // The nested way of loading CR3 is the one that must flush.
    let nested = HostMode { ring0, paging: Paging::Nested };
    mode.paging = match read(machine, &mut vcpu, &space, nested) {
        Ok(NEW) => Paging::Nested,
        Ok(OLD) => Paging::Shadow,
        Ok(other) => return Err(ProbeError::Strange(format!("the guest read {other:#x}")).into()),
        Err(Error::StubFault { .. }) => Paging::Shadow,
        Err(error) => return Err(error),
    };
    machine.pool().give(vcpu);
    Ok(mode)
}

/// On a vCPU of its own, which is not used again when anything went wrong. What exactly goes wrong where `sysretq` is not
/// native differs: #GP in the stub, or the stub's next entry faults as if it were user code.
fn probe_ring0(machine: &Arc<Machine>, space: &AddressSpace) -> Result<Ring0, Error> {
    let mut vcpu = machine.new_vcpu_for_probe(Ring0::Native)?;
    let mode = HostMode { ring0: Ring0::Native, paging: Paging::Shadow };
    vcpu.pretend_syscall();
    match read(machine, &mut vcpu, space, mode) {
        Ok(OLD) => {
            machine.pool().give(vcpu);
            Ok(Ring0::Native)
        }
        Ok(_)
        | Err(Error::Probe(ProbeError::Strange(_)) | Error::StubFault { .. } | Error::Shutdown { .. }) => {
            Ok(Ring0::Emulated)
        }
        Err(Error::UnexpectedExit { .. }) => Ok(Ring0::Emulated),
        Err(error) => Err(error),
    }
}

/// Whether faults can be posted. Whatever comes back but the fault as it was: they exit, and the vCPU is not to be used again.
fn probe_faults(machine: &Machine, vcpu: &mut Vcpu, space: &AddressSpace, mode: HostMode) -> bool {
    machine.post_faults(Some(mode.ring0));
    let nowhere = STACK + 4096;
    let mut registers = start(CODE + IRETQ_AT);
    registers.rdi = nowhere;
    let exit = run_to_exit(machine, vcpu, space, mode, &mut registers);
    let as_expected = matches!(exit, Ok(Exit::PageFault { addr, write: false, exec: false, present: false }) if addr == nowhere)
        && registers.rip == CODE + IRETQ_AT + IRETQ.len() as u64
        && registers.rsp == STACK + 4096 - 16;
    if !as_expected {
        machine.post_faults(None);
    }
    as_expected
}

/// Runs the program and returns what it read.
fn read(machine: &Machine, vcpu: &mut Vcpu, space: &AddressSpace, mode: HostMode) -> Result<u32, Error> {
    run(machine, vcpu, space, mode, CODE)
}

/// Runs what is there up to its system call and returns eax.
fn run(
    machine: &Machine,
    vcpu: &mut Vcpu,
    space: &AddressSpace,
    mode: HostMode,
    rip: u64,
) -> Result<u32, Error> {
    let mut registers = start(rip);
    match run_to_exit(machine, vcpu, space, mode, &mut registers)? {
        Exit::Syscall => Ok(registers.rax as u32),
        other => Err(ProbeError::Strange(format!(
            "the guest stopped with {other:?} at {registers:x?} in {mode:?}"
        ))
        .into()),
    }
}

fn start(rip: u64) -> Registers {
    let rsp = STACK + 4096 - 16;
    Registers { rip, rdi: DATA, rsp, rflags: 0x202, rcx: rip, r11: 0x202, ..Default::default() }
}

fn run_to_exit(
    machine: &Machine,
    vcpu: &mut Vcpu,
    space: &AddressSpace,
    mode: HostMode,
    registers: &mut Registers,
) -> Result<Exit, Error> {
    let target = Target { mode, ..space.target() };
    vcpu.bind(machine.dispatch(), machine.control(), space, 0, &|| (None, Arc::default()))?;
    for _ in 0..1000 {
        vcpu.prepare(machine.control(), registers, &target);
        let mut left = vcpu.run(machine.control(), registers)?;
        if let Left::InStub(place) = left {
            left = vcpu.settle(machine.control(), registers, place, None)?;
        }
        match left {
            Left::Nothing | Left::Exit(Exit::Interrupted) => {}
            Left::Exit(exit) => return Ok(exit),
            other => {
                return Err(ProbeError::Strange(format!(
                    "the guest stopped with {other:?} at {registers:x?} in {mode:?}"
                ))
                .into());
            }
        }
    }
    Err(ProbeError::Strange("the guest was interrupted without end".into()).into())
}

/// Changes the entry of the data page behind everybody's back.
fn point_elsewhere(machine: &Machine, space: &AddressSpace, gpa: u64) {
    let Ok(directory) = space.existing_directory(DATA) else { return };
    let link = machine.tables().entry(directory, index(DATA, 2)).load(Ordering::Relaxed);
    let slot = machine.tables().entry(Table::of_entry(link), index(DATA, 1));
    let entry = slot.load(Ordering::Relaxed);
    slot.store((entry & !ADDRESS) | gpa, Ordering::SeqCst);
}
