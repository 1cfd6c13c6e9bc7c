//! Which memory an instruction was about to access when it took a page fault, for faults of which only the registers are known
//! ([`crate::platform::Faulting`]).
//!
//! The instruction is read and its operands are worked out. Where that leaves a doubt (several operands may be meant, one reaches over the end of a
//! page, a segment base that is not at hand counts, bytes that are no instruction) there is no answer, and the fault is taken by an exit, which
//! tells the address. A wrong answer would be harmless: a page is made accessible that the program may access, and the instruction faults again.

use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory, OpAccess, Register, UsedMemory};

use crate::mm::Mm;
use crate::platform::{Faulting, PAGE_SIZE, Registers};

/// Bytes of the longest instruction.
const LONGEST: usize = 15;

/// The address that the fault at these registers is about.
pub(super) fn address(mm: &Mm, registers: &Registers, faulting: &Faulting) -> Option<u64> {
    if faulting.exec {
        // Or the next page, if the instruction reaches over there: then it faults again.
        return Some(registers.rip);
    }
    let mut code = [0; LONGEST];
    let read = mm.read_some(registers.rip, &mut code).ok()?;
    accessed(registers, faulting.write, code.get(..read)?)
}

/// What an instruction that begins with `code` accesses, as a write or as a read.
fn accessed(registers: &Registers, write: bool, code: &[u8]) -> Option<u64> {
    let mut decoder = Decoder::with_ip(64, code, registers.rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        return None;
    }
    let mut factory = InstructionInfoFactory::new();
    let mut found = None;
    for memory in factory.info(&instruction).used_memory() {
        if !may_be(memory.access(), write) {
            continue;
        }
        let addr = one_page(memory, registers)?;
        if found.is_some_and(|other| other != addr) {
            return None;
        }
        found = Some(addr);
    }
    found
}

/// Whether such an access may fault as a write, or as a read.
fn may_be(access: OpAccess, write: bool) -> bool {
    match access {
        OpAccess::Write | OpAccess::CondWrite => write,
        OpAccess::Read | OpAccess::CondRead => !write,
        OpAccess::ReadWrite | OpAccess::ReadCondWrite => true,
        OpAccess::None | OpAccess::NoMemAccess => false,
    }
}

/// Where that is, if it is in one page.
fn one_page(memory: &UsedMemory, registers: &Registers) -> Option<u64> {
    if memory.vsib_size() != 0 {
        return None;
    }
    let addr = memory.virtual_address(0, |register, _, _| value(register, registers))?;
    let size = u64::try_from(memory.memory_size().size()).ok()?.max(1);
    (addr % PAGE_SIZE + size <= PAGE_SIZE).then_some(addr)
}

fn value(register: Register, r: &Registers) -> Option<u64> {
    let whole = match register.full_register() {
        Register::RAX => r.rax,
        Register::RBX => r.rbx,
        Register::RCX => r.rcx,
        Register::RDX => r.rdx,
        Register::RSI => r.rsi,
        Register::RDI => r.rdi,
        Register::RSP => r.rsp,
        Register::RBP => r.rbp,
        Register::R8 => r.r8,
        Register::R9 => r.r9,
        Register::R10 => r.r10,
        Register::R11 => r.r11,
        Register::R12 => r.r12,
        Register::R13 => r.r13,
        Register::R14 => r.r14,
        Register::R15 => r.r15,
        // Their bases are 0; those of the other two are not known.
        Register::ES | Register::CS | Register::SS | Register::DS => return Some(0),
        _ => return None,
    };
    Some(match register.size() {
        4 => whole & 0xffff_ffff,
        2 => whole & 0xffff,
        _ => whole,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registers() -> Registers {
        Registers {
            rax: 0x1_0000_1000,
            rbx: 0x2000,
            rcx: 0x30,
            rdx: 0xffff_ffff_ffff_fff0,
            rsi: 0x5000,
            rdi: 0x6000,
            rsp: 0x7008,
            r15: 0x8ffc,
            rip: 0x40_0000,
            ..Registers::default()
        }
    }

    fn of(write: bool, code: &[u8]) -> Option<u64> {
        accessed(&registers(), write, code)
    }

    #[test]
    fn operands_are_found() {
        let cases: [(&str, bool, &[u8], u64); 16] = [
            ("mov [rdi], rax", true, &[0x48, 0x89, 0x07], 0x6000),
            ("mov eax, [rbx + rcx*8 - 4]", false, &[0x8b, 0x44, 0xcb, 0xfc], 0x217c),
            ("mov eax, [rsi + rdx]", false, &[0x8b, 0x04, 0x16], 0x4ff0),
            ("mov rax, [rip + 0x10]", false, &[0x48, 0x8b, 0x05, 0x10, 0, 0, 0], 0x40_0017),
            ("mov eax, [eax]", false, &[0x67, 0x8b, 0x00], 0x1000),
            ("push rax", true, &[0x50], 0x7000),
            ("pop rax", false, &[0x58], 0x7008),
            ("call +0", true, &[0xe8, 0, 0, 0, 0], 0x7000),
            ("call [rbx]", false, &[0xff, 0x13], 0x2000),
            ("ret", false, &[0xc3], 0x7008),
            ("rep stosb", true, &[0xf3, 0xaa], 0x6000),
            ("rep movsb", true, &[0xf3, 0xa4], 0x6000),
            ("rep movsb", false, &[0xf3, 0xa4], 0x5000),
            ("lock xadd [rbx], eax", true, &[0xf0, 0x0f, 0xc1, 0x03], 0x2000),
            ("movups [rdi + 0x10], xmm0", true, &[0x0f, 0x11, 0x47, 0x10], 0x6010),
            ("vmovdqu ymm0, [rsi]", false, &[0xc5, 0xfe, 0x6f, 0x06], 0x5000),
        ];
        for (what, write, code, expected) in cases {
            assert_eq!(of(write, code), Some(expected), "{what}");
        }
    }

    #[test]
    fn doubts_have_no_answer() {
        let cases: [(&str, bool, &[u8]); 8] = [
            ("nothing", false, &[]),
            ("no instruction", false, &[0x06]),
            ("cut off", false, &[0x48, 0x8b]),
            ("mov eax, fs:[0]", false, &[0x64, 0x8b, 0x04, 0x25, 0, 0, 0, 0]),
            ("over the end of a page: mov rax, [r15]", false, &[0x49, 0x8b, 0x07]),
            ("two that are read: cmpsb", false, &[0xa6]),
            ("only reads: mov eax, [rbx]", true, &[0x8b, 0x03]),
            ("vpgatherdd", false, &[0xc4, 0xe2, 0x6d, 0x90, 0x04, 0x0e]),
        ];
        for (what, write, code) in cases {
            assert_eq!(of(write, code), None, "{what}");
        }
    }

    /// Whatever the bytes and the registers, there is no panic, and often enough an answer.
    #[test]
    fn any_bytes_are_read() {
        let mut found = 0;
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..200_000 {
            let mut code = [0; LONGEST];
            for chunk in code.chunks_mut(8) {
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                chunk.iter_mut().zip(state.to_be_bytes()).for_each(|(to, from)| *to = from);
            }
            let registers = Registers { rax: state, rdi: !state, rsp: state << 7, ..registers() };
            found += u32::from(accessed(&registers, state & 1 != 0, &code).is_some());
        }
        assert!((10_000..190_000).contains(&found), "{found}");
    }
}
