//! Page faults without exits (emulated ring 0).
//!
//! Where ring 0 is emulated the gate for page faults leads to ring 3: to the code below, which posts the fault in the vCPU's slot as a system call is posted,
//! spins until a dispatcher has resolved it, and returns to the instruction by `iretq`, which ring 3 may use as long as the ring stays the same. The gate's
//! stack (IST 2) is the end of the slot, so the slot is found without a register.
//!
//! Ring 3 cannot read CR2, and a detour by ring 0, which can, would cost as much again. So what is posted are the registers; whoever answers
//! reads the instruction and works out its address, or refuses. By an exit the host tells CR2 as ever: the fault is still the vCPU's last.
//!
//! Only faults on pages that are not present are posted: to replace a page that is there, other CPUs must forget it, and the one that spins here
//! is one of them.
//!
//! Native ring 0 could read CR2, but a fault by exit costs hardly more than a call there; it is not done.

use super::slot::{self, SlotMemory};
use crate::layout::*;
use crate::registers::Registers;
use core::arch::global_asm;

/// Where the code is in its page, behind the code that switches threads.
const OFFSET: u64 = 0x800;
/// Where it is in every address space.
pub(crate) const FAULT_GVA: u64 = USER_REGION_GVA + USER_REGION_SWITCH as u64 * 4096 + OFFSET;
const FLAG_TF: u32 = 1 << 8;
/// In the error code: the page was there.
const PRESENT: u8 = 1;
/// Turns of the loop for a fault that was claimed just when it was to be withdrawn.
const SPINS: u32 = 600;

global_asm!(
    ".pushsection .rodata.caisson_faulting, \"a\", @progbits",
    ".balign 64",
    ".globl caisson_faulting_start",
    ".hidden caisson_faulting_start",
    ".globl caisson_faulting_saved",
    ".hidden caisson_faulting_saved",
    ".globl caisson_faulting_exit",
    ".hidden caisson_faulting_exit",
    ".globl caisson_faulting_end",
    ".hidden caisson_faulting_end",
    // rsp is at the error code.
    "caisson_faulting_start:",
    "mov [rsp - {error} + {rax}], rax",
    "mov [rsp - {error} + {rcx}], rcx",
    "caisson_faulting_saved:",
    "mov ecx, [rsp - {error} + {awake}]",
    "test ecx, ecx",
    "jz 4f",
    "test byte ptr [rsp], {present}",
    "jnz 4f",
    "test dword ptr [rsp - {error} + {rflags}], {tf}",
    "jnz 4f",
    "mov [rsp - {error} + {rdi}], rdi",
    "mov [rsp - {error} + {rsi}], rsi",
    "mov [rsp - {error} + {rdx}], rdx",
    "mov [rsp - {error} + {r8}], r8",
    "mov [rsp - {error} + {r9}], r9",
    "mov [rsp - {error} + {r10}], r10",
    "mov [rsp - {error} + {r11}], r11",
    "mov [rsp - {error} + {rbx}], rbx",
    "mov [rsp - {error} + {rbp}], rbp",
    "mov [rsp - {error} + {r12}], r12",
    "mov [rsp - {error} + {r13}], r13",
    "mov [rsp - {error} + {r14}], r14",
    "mov [rsp - {error} + {r15}], r15",
    "mov dword ptr [rsp - {error} + {kind}], {is_fault}",
    "mov dword ptr [rsp - {error} + {state}], {is_posted}",
    "1:",
    "mov eax, [rsp - {error} + {state}]",
    "cmp eax, {is_done}",
    "jae 2f",
    "pause",
    "sub ecx, 1",
    "jnz 1b",
    // Nobody came: withdraw the fault, unless somebody comes this very moment.
    "mov ecx, {is_withdrawn}",
    "mov eax, {is_posted}",
    "lock cmpxchg [rsp - {error} + {state}], ecx",
    "je 4f",
    "mov ecx, {spins}",
    "jmp 1b",
    "2:",
    "jne 4f",
    "mov rcx, [rsp - {error} + {rcx}]",
    "mov rax, [rsp - {error} + {rax}]",
    "add rsp, 8",
    "iretq",
    "4:",
    "mov rcx, [rsp - {error} + {rcx}]",
    "mov rax, [rsp - {error} + {rax}]",
    "caisson_faulting_exit:",
    "out {port}, al",
    "ud2",
    "caisson_faulting_end:",
    ".popsection",
    error = const slot::FRAME,
    rflags = const slot::FRAME_RFLAGS,
    rax = const slot::RAX,
    rdi = const slot::RDI,
    rsi = const slot::RSI,
    rdx = const slot::RDX,
    r10 = const slot::R10,
    r8 = const slot::R8,
    r9 = const slot::R9,
    rcx = const slot::RCX,
    r11 = const slot::R11,
    rbx = const slot::RBX,
    rbp = const slot::RBP,
    r12 = const slot::R12,
    r13 = const slot::R13,
    r14 = const slot::R14,
    r15 = const slot::R15,
    state = const slot::STATE,
    kind = const slot::KIND,
    awake = const slot::AWAKE,
    is_fault = const slot::FAULT,
    is_posted = const slot::POSTED,
    is_done = const slot::DONE,
    is_withdrawn = const slot::WITHDRAWN,
    present = const PRESENT,
    tf = const FLAG_TF,
    spins = const SPINS,
    port = const PORT_FAULT,
);

/// Landmarks, as offsets from the start.
struct Code {
    bytes: &'static [u8],
    saved: u64,
    exit: u64,
}

fn code() -> Code {
    unsafe extern "C" {
        static caisson_faulting_start: u8;
        static caisson_faulting_saved: u8;
        static caisson_faulting_exit: u8;
        static caisson_faulting_end: u8;
    }
    let start = &raw const caisson_faulting_start;
    let offset = |label: *const u8| label as usize - start as usize;
    // SAFETY: both labels are in the read-only section above, in this order, and everything between them is initialised.
    let bytes = unsafe { std::slice::from_raw_parts(start, offset(&raw const caisson_faulting_end)) };
    Code {
        bytes,
        saved: offset(&raw const caisson_faulting_saved) as u64,
        exit: offset(&raw const caisson_faulting_exit) as u64,
    }
}

/// The code, and where it is in the page of the code that switches threads.
pub(crate) fn code_at() -> (u64, &'static [u8]) {
    (OFFSET, code().bytes)
}

/// Where a thread is in that code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spot {
    /// rax and rcx are the program's still.
    Begun,
    /// They are in the slot.
    Saved,
    /// At the `out`.
    Exit,
}

impl Spot {
    /// `None` outside.
    pub(crate) fn of(rip: u64) -> Option<Spot> {
        let code = code();
        let offset = rip.checked_sub(FAULT_GVA).filter(|offset| *offset < code.bytes.len() as u64)?;
        Some(match offset {
            _ if offset < code.saved => Spot::Begun,
            _ if offset < code.exit => Spot::Saved,
            _ => Spot::Exit,
        })
    }
}

/// A page fault as the guest has posted it. All of it is what the calling process wants us to believe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Faulting {
    /// At the instruction that faulted; the bases are not known.
    pub registers: Registers,
    /// It was to write.
    pub write: bool,
    /// It was to be fetched.
    pub exec: bool,
}

/// What the gate has pushed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pushed {
    pub error_code: u32,
    pub rip: u64,
    pub rflags: u64,
    pub rsp: u64,
    /// 64-bit code of the program; other selectors are not offered.
    pub is_users: bool,
}

impl Pushed {
    pub(crate) fn read(memory: &SlotMemory) -> Pushed {
        Pushed {
            error_code: memory.get(slot::FRAME) as u32,
            rip: memory.get(slot::FRAME + 8),
            is_users: memory.get(slot::FRAME + 16) & 0xffff == u64::from(USER_CS),
            rflags: memory.get(slot::FRAME_RFLAGS),
            rsp: memory.get(slot::FRAME + 32),
        }
    }

    /// Makes `registers` those at the instruction.
    pub(crate) fn restore(&self, registers: &mut Registers) {
        (registers.rip, registers.rflags, registers.rsp) = (self.rip, self.rflags, self.rsp);
    }
}

impl Faulting {
    /// `None` if it is nothing that can be answered.
    pub(crate) fn read(memory: &SlotMemory) -> Option<Faulting> {
        let pushed = Pushed::read(memory);
        if !pushed.is_users {
            return None;
        }
        let mut registers = Registers {
            rax: memory.get(slot::RAX),
            rbx: memory.get(slot::RBX),
            rcx: memory.get(slot::RCX),
            rdx: memory.get(slot::RDX),
            rsi: memory.get(slot::RSI),
            rdi: memory.get(slot::RDI),
            rbp: memory.get(slot::RBP),
            r8: memory.get(slot::R8),
            r9: memory.get(slot::R9),
            r10: memory.get(slot::R10),
            r11: memory.get(slot::R11),
            r12: memory.get(slot::R12),
            r13: memory.get(slot::R13),
            r14: memory.get(slot::R14),
            r15: memory.get(slot::R15),
            ..Registers::default()
        };
        pushed.restore(&mut registers);
        let (write, exec) = (pushed.error_code & 2 != 0, pushed.error_code & 16 != 0);
        Some(Faulting { registers, write, exec })
    }
}

/// The vCPU was stopped in that code: makes `registers` those at the instruction that faulted, which will fault again if nothing was done about it.
pub(crate) fn settle(spot: Spot, memory: &SlotMemory, registers: &mut Registers) {
    if spot == Spot::Saved {
        registers.rax = memory.get(slot::RAX);
        registers.rcx = memory.get(slot::RCX);
    }
    Pushed::read(memory).restore(registers);
    memory.set_state(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_fits_behind_the_other() {
        let code = code();
        assert!(super::super::ride::code().0.len() as u64 <= OFFSET);
        assert!(OFFSET + code.bytes.len() as u64 <= 4096);
        assert_eq!(code.bytes[code.exit as usize..][..2], [0xe6, PORT_FAULT as u8]);
        let spots = [0, code.saved, code.exit, code.bytes.len() as u64].map(|at| Spot::of(FAULT_GVA + at));
        assert_eq!(spots, [Some(Spot::Begun), Some(Spot::Saved), Some(Spot::Exit), None]);
        assert_eq!(Spot::of(0), None);
    }
}
