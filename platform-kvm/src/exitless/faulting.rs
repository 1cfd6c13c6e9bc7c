//! Page faults without exits.
//!
//! The gate for page faults leads to code that posts the fault in the vCPU's slot, as a system call is posted, spins until a dispatcher has resolved it, and
//! returns to the instruction by `iretq`. Two versions, one per way of running ring 0:
//! - *native*: ring-0 code, which posts CR2. The slot is in the page whose end is the gate's stack (IST 1).
//! - *emulated*: the gate leads to ring 3 at once, for a detour by ring 0 would cost as much again, and `iretq` works there as long as the ring
//!   stays the same. The gate's stack (IST 2) is the end of the slot. Ring 3 cannot read CR2: what is posted are the registers, and whoever answers reads the
//!   instruction and works out its address, or refuses. By an exit the host tells CR2 as ever: the fault is still the vCPU's last.
//!
//! Only faults on pages that are not present are posted: to replace a page that is there, other CPUs must forget it, and the one that spins here
//! is one of them.

use super::slot::{self, SlotMemory};
use crate::blob::blob;
use crate::control::ExceptionFrame;
use crate::host_mode::Ring0;
use crate::layout::*;
use crate::registers::Registers;
use core::arch::global_asm;

/// Where the code is in its page, behind the code that switches threads.
const OFFSET: u64 = 0x800;
/// Where it is in every address space.
const FAULT_GVA: u64 = USER_REGION_GVA + USER_REGION_SWITCH as u64 * 4096 + OFFSET;
const FLAG_TF: u32 = 1 << 8;
/// In the error code: the page was there.
const PRESENT: u8 = 1;
/// Turns of the loop for a fault that was claimed just when it was to be withdrawn.
const SPINS: u32 = 600;

/// From the stack of the native version, with two registers on it, back to the slot.
const TO_SLOT: u64 = PAGE_STACK_TOP - 48 - 16 - PAGE_SLOT;
const PORT_NATIVE: u16 = PORT_VECTORS + VECTOR_PAGE_FAULT as u16;

global_asm!(
    // Posts the fault and waits for the answer, for as long as ecx says: goes on if it is resolved, to 5 if it was withdrawn, else to 4.
    ".macro caisson_post_fault slot, mark",
    "mov dword ptr [rsp - \\slot + {kind}], \\mark",
    "mov dword ptr [rsp - \\slot + {state}], {is_posted}",
    "1:",
    "mov eax, [rsp - \\slot + {state}]",
    "cmp eax, {is_done}",
    "jae 2f",
    "pause",
    "sub ecx, 1",
    "jnz 1b",
    // Nobody came: withdraw it, unless somebody comes this very moment.
    "mov ecx, {is_withdrawn}",
    "mov eax, {is_posted}",
    "lock cmpxchg [rsp - \\slot + {state}], ecx",
    "je 5f",
    "mov ecx, {spins}",
    "jmp 1b",
    "2:",
    "jne 4f",
    ".endm",
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
    // Emulated: rsp is at the error code.
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
    "caisson_post_fault {error}, {is_fault}",
    "mov rcx, [rsp - {error} + {rcx}]",
    "mov rax, [rsp - {error} + {rax}]",
    "add rsp, 8",
    "iretq",
    // What is posted next may be a call, which does not say so.
    "5:",
    "mov dword ptr [rsp - {error} + {kind}], 0",
    "4:",
    "mov rcx, [rsp - {error} + {rcx}]",
    "mov rax, [rsp - {error} + {rax}]",
    "caisson_faulting_exit:",
    "out {port}, al",
    "ud2",
    "caisson_faulting_end:",
    ".balign 64",
    ".globl caisson_faulting0_start",
    ".hidden caisson_faulting0_start",
    ".globl caisson_faulting0_saved",
    ".hidden caisson_faulting0_saved",
    ".globl caisson_faulting0_exit",
    ".hidden caisson_faulting0_exit",
    ".globl caisson_faulting0_end",
    ".hidden caisson_faulting0_end",
    "caisson_faulting0_start:",
    "push rax",
    "push rcx",
    "caisson_faulting0_saved:",
    "mov ecx, [rsp - {slot} + {awake}]",
    "test ecx, ecx",
    "jz 4f",
    // The error code, and the flags of the frame behind it.
    "mov eax, [rsp + 16]",
    "test al, {present}",
    "jnz 4f",
    "test dword ptr [rsp + 40], {tf}",
    "jnz 4f",
    "mov [rsp - {slot} + {error}], rax",
    "mov rax, cr2",
    "mov [rsp - {slot} + {cr2}], rax",
    "caisson_post_fault {slot}, {is_fault_at}",
    "pop rcx",
    "pop rax",
    "add rsp, 8",
    "iretq",
    "5:",
    "mov dword ptr [rsp - {slot} + {kind}], 0",
    "4:",
    "pop rcx",
    "pop rax",
    "caisson_faulting0_exit:",
    "out {port_native}, al",
    "ud2",
    "caisson_faulting0_end:",
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
    slot = const TO_SLOT,
    cr2 = const slot::CR2,
    is_fault_at = const slot::FAULT_AT,
    port = const PORT_FAULT,
    port_native = const PORT_NATIVE,
);

/// Landmarks, as offsets from the start.
struct Code {
    /// Where it is in every address space.
    gva: u64,
    bytes: &'static [u8],
    saved: u64,
    exit: u64,
}

/// The version for a way of running ring 0.
fn code(ring0: Ring0) -> Code {
    let (gva, (bytes, [saved, exit])) = match ring0 {
        Ring0::Native => (
            CONTROL_GVA + STUB_FAULT,
            blob!(caisson_faulting0_start caisson_faulting0_saved caisson_faulting0_exit, caisson_faulting0_end),
        ),
        Ring0::Emulated => (
            FAULT_GVA,
            blob!(caisson_faulting_start caisson_faulting_saved caisson_faulting_exit, caisson_faulting_end),
        ),
    };
    Code { gva, bytes, saved, exit }
}

/// The code, where it is in its page, and where the gate is to lead.
pub(crate) fn code_at(ring0: Ring0) -> (u64, &'static [u8], u64) {
    let code = code(ring0);
    (code.gva % 4096, code.bytes, code.gva)
}

/// Where a thread is in that code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spot {
    /// rax and rcx are the program's still.
    Begun,
    /// They are in the slot, or on the stack.
    Saved,
    /// At the `out`.
    Exit,
}

impl Spot {
    /// `None` outside.
    pub(crate) fn of(ring0: Ring0, rip: u64) -> Option<Spot> {
        let code = code(ring0);
        let offset = rip.checked_sub(code.gva).filter(|offset| *offset < code.bytes.len() as u64)?;
        Some(match offset {
            _ if offset < code.saved => Spot::Begun,
            _ if offset < code.exit => Spot::Saved,
            _ => Spot::Exit,
        })
    }
}

/// What is known of a page fault's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Where {
    /// All.
    Address(u64),
    /// The registers at the instruction that faulted, but for the bases.
    Registers(Box<Registers>),
}

/// A page fault as the guest has posted it. Where ring 0 is emulated all of it is what the calling process wants us to believe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faulting {
    /// What it is about.
    pub at: Where,
    /// It was to write.
    pub write: bool,
    /// It was to be fetched.
    pub exec: bool,
}

/// What the gate has pushed, where that is in the slot.
pub(crate) fn pushed(memory: &SlotMemory) -> ExceptionFrame {
    let word = |index: u64| memory.get(slot::FRAME + index * 8);
    ExceptionFrame { error_code: word(0), rip: word(1), cs: word(2), rflags: word(3), rsp: word(4) }
}

impl Faulting {
    /// `None` if it is nothing that can be answered.
    pub(crate) fn read(memory: &SlotMemory) -> Option<Faulting> {
        let pushed = pushed(memory);
        if !pushed.is_users() {
            return None;
        }
        let registers = Registers {
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
            rip: pushed.rip,
            rflags: pushed.rflags,
            rsp: pushed.rsp,
            ..Registers::default()
        };
        Some(Faulting::new(Where::Registers(Box::new(registers)), pushed.error_code))
    }

    /// The same from ring 0.
    pub(crate) fn read_native(memory: &SlotMemory) -> Faulting {
        Faulting::new(Where::Address(memory.get(slot::CR2)), memory.get(slot::FRAME))
    }

    fn new(at: Where, error_code: u64) -> Faulting {
        Faulting { at, write: error_code & 2 != 0, exec: error_code & 16 != 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_fits_where_it_belongs() {
        assert!(super::super::ride::code().0.len() as u64 <= OFFSET);
        const { assert!(STUB_VECTORS + VECTORS * STUB_VECTOR_LEN <= STUB_FAULT) };
        for (ring0, port) in [(Ring0::Native, PORT_NATIVE), (Ring0::Emulated, PORT_FAULT)] {
            let code = code(ring0);
            assert!(code.gva % 4096 + code.bytes.len() as u64 <= 4096);
            assert_eq!(code.bytes[code.exit as usize..][..2], [0xe6, port as u8]);
            let spots = [0, code.saved, code.exit, code.bytes.len() as u64];
            let spots = spots.map(|at| Spot::of(ring0, code.gva + at));
            assert_eq!(spots, [Some(Spot::Begun), Some(Spot::Saved), Some(Spot::Exit), None]);
            assert_eq!(Spot::of(ring0, 0), None);
        }
    }
}
