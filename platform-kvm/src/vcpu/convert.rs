//! From KVM's numbers to this crate's types and back.

use super::{DR6_SINGLE_STEP, FLAG_TF};
use crate::registers::{Exit, Registers};
use kvm_bindings::kvm_regs;

/// 32-bit code: some hosts cannot keep ring 3 from entering it; it is answered like the selector that does not exist.
pub(super) fn not_offered() -> Exit {
    Exit::Exception { vector: 13, error_code: 0, addr: 0 }
}

pub(super) fn exception(vector: u8, error_code: u32, cr2: u64, rflags: u64) -> Exit {
    match vector {
        14 => Exit::PageFault {
            addr: cr2,
            write: error_code & 2 != 0,
            exec: error_code & 16 != 0,
            present: error_code & 1 != 0,
        },
        1 => Exit::Exception {
            vector,
            error_code: 0,
            addr: if rflags & FLAG_TF != 0 { DR6_SINGLE_STEP } else { 0 },
        },
        _ => Exit::Exception { vector, error_code, addr: 0 },
    }
}

pub(super) fn to_kvm(r: &Registers, rflags: u64) -> kvm_regs {
    kvm_regs {
        rax: r.rax,
        rbx: r.rbx,
        rcx: r.rcx,
        rdx: r.rdx,
        rsi: r.rsi,
        rdi: r.rdi,
        rsp: r.rsp,
        rbp: r.rbp,
        r8: r.r8,
        r9: r.r9,
        r10: r.r10,
        r11: r.r11,
        r12: r.r12,
        r13: r.r13,
        r14: r.r14,
        r15: r.r15,
        rip: r.rip,
        rflags,
    }
}

pub(super) fn from_kvm(to: &mut Registers, r: &kvm_regs) {
    *to = Registers {
        rax: r.rax,
        rbx: r.rbx,
        rcx: r.rcx,
        rdx: r.rdx,
        rsi: r.rsi,
        rdi: r.rdi,
        rsp: r.rsp,
        rbp: r.rbp,
        r8: r.r8,
        r9: r.r9,
        r10: r.r10,
        r11: r.r11,
        r12: r.r12,
        r13: r.r13,
        r14: r.r14,
        r15: r.r15,
        rip: r.rip,
        rflags: r.rflags,
        fs_base: to.fs_base,
        gs_base: to.gs_base,
    };
}
