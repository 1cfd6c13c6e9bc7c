//! CPU exceptions as signals, with Linux's codes.

use std::sync::Arc;

use linux_raw_sys::general as linux;

use super::signal::{SigInfo, Signal};
use super::{Task, TaskLocal};
use crate::mm::{FaultOutcome, MemoryAccess};

/// The signal for exception `vector` (`arch/x86/kernel/traps.c` in Linux says which).
pub(super) fn signal_of(local: &mut TaskLocal, vector: u8, addr: u64) -> SigInfo {
    let rip = local.registers.rip;
    match vector {
        0 => SigInfo::fault(Signal::FPE, linux::FPE_INTDIV, rip),
        1 => {
            // DR6.BS tells a single step from a breakpoint register.
            const DR6_STEP: u64 = 1 << 14;
            let code = if addr & DR6_STEP != 0 || addr == 0 { linux::TRAP_TRACE } else { linux::TRAP_HWBKPT };
            SigInfo::fault(Signal::TRAP, code, rip)
        }
        3 => SigInfo::kernel(Signal::TRAP),
        6 => SigInfo::fault(Signal::ILL, linux::ILL_ILLOPN, rip),
        11 | 12 => SigInfo::kernel(Signal::BUS),
        16 | 19 => SigInfo::fault(Signal::FPE, float_code(local, vector), rip),
        17 => SigInfo::fault(Signal::BUS, linux::BUS_ADRALN, 0),
        // An access to the upper half, where the host tells the address; Linux would have taken a page fault.
        13 if addr != 0 => SigInfo::fault(Signal::SEGV, linux::SEGV_MAPERR, addr),
        _ => SigInfo::kernel(Signal::SEGV),
    }
}

/// Which floating-point exception it was, from the status and mask bits (`fpu__exception_code`).
fn float_code(local: &mut TaskLocal, vector: u8) -> u32 {
    let Ok(fpu) = local.machine.fpu() else { return 0 };
    let word = |at: usize| {
        let part = fpu.as_bytes().get(at..).and_then(|rest| rest.first_chunk::<4>());
        u32::from_le_bytes(part.copied().unwrap_or_default())
    };
    let raised = if vector == 16 {
        let (control, status) = (word(0) & 0xffff, word(0) >> 16);
        status & !control
    } else {
        let mxcsr = word(24);
        !(mxcsr >> 7) & mxcsr
    };
    match raised & 0x3f {
        bits if bits & 1 != 0 => linux::FPE_FLTINV,
        bits if bits & 4 != 0 => linux::FPE_FLTDIV,
        bits if bits & 8 != 0 => linux::FPE_FLTOVF,
        bits if bits & 0x12 != 0 => linux::FPE_FLTUND,
        bits if bits & 0x20 != 0 => linux::FPE_FLTRES,
        _ => 0,
    }
}

/// Lets the memory manager resolve a page fault, or says which signal it is.
pub(super) fn resolve_fault(task: &Arc<Task>, addr: u64, write: bool, exec: bool) -> Result<(), SigInfo> {
    match task.mm().fault(addr, MemoryAccess::from_exit(write, exec)) {
        FaultOutcome::Resolved => Ok(()),
        FaultOutcome::NotMapped => Err(SigInfo::fault(Signal::SEGV, linux::SEGV_MAPERR, addr)),
        FaultOutcome::Denied => Err(SigInfo::fault(Signal::SEGV, linux::SEGV_ACCERR, addr)),
        FaultOutcome::Bus => Err(SigInfo::fault(Signal::BUS, linux::BUS_ADRERR, addr)),
        FaultOutcome::OutOfMemory => Err(SigInfo::kernel(Signal::KILL)),
    }
}
