//! The `rt_sigframe` that a handler runs on, exactly as Linux lays it out on x86-64.
//!
//! ```text
//! high addresses   interrupted stack (or the top of the alternate stack)
//!                  128 bytes red zone (only on the interrupted stack)
//! 64-aligned       XSAVE area, with Linux's magic words in bytes 464..512, followed by FP_XSTATE_MAGIC2
//!                  siginfo (128)
//!                  ucontext (304): flags, link, stack, sigcontext (256), mask
//! 16-aligned - 8   address of the restorer          ← rsp in the handler
//! ```
//! Nothing in a frame is trusted when it comes back: selectors must be ours, of the flags only those that ring 3 may set are taken, the
//! FPU state is checked by the CPU, an impossible instruction pointer is a `SIGSEGV`.

use std::sync::Arc;

use super::action::{Action, Disposition};
use super::info::{SIGINFO_SIZE, SigInfo};
use super::number::SignalSet;
use crate::errno::{Errno, SysResult};
use crate::platform::{FpuState, GVA_END, Registers};
use crate::task::{AltStack, SyscallContext, Task, TaskLocal};

use linux_raw_sys::general as linux;

const RED_ZONE: u64 = 128;
const UCONTEXT_SIZE: usize = 304;
const FRAME_SIZE: usize = 8 + UCONTEXT_SIZE + SIGINFO_SIZE;
/// Offset of the FPU software bytes in the XSAVE area (`struct _fpx_sw_bytes`).
const SW_BYTES: usize = 464;
/// `FP_XSTATE_MAGIC1`, `FP_XSTATE_MAGIC2` (`asm/sigcontext.h`).
const MAGIC1: u32 = 0x4650_5853;
const MAGIC2: u32 = 0x4650_5845;
/// `UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS` (`asm/ucontext.h`).
const UC_FLAGS: u64 = 1 | 2 | 4;
const UC_STRICT_RESTORE_SS: u64 = 4;
/// The flags a frame may set: AC OF DF TF SF ZF AF PF CF RF (`FIX_EFLAGS`).
const RESTORABLE_FLAGS: u64 = 0x5_0dd5;
/// Flags that a handler starts without: DF, RF, TF.
const CLEARED_FLAGS: u64 = 0x400 | 0x1_0000 | 0x100;
/// XSAVE header: which components are present.
const XSTATE_BV: usize = 512;
const XSAVE_LEGACY_END: usize = 576;

impl AltStack {
    /// Whether `sp` is on it. With `SS_AUTODISARM` the answer is always no.
    pub fn holds(&self, sp: u64) -> bool {
        self.flags & linux::SS_AUTODISARM == 0 && sp > self.base && sp.wrapping_sub(self.base) <= self.size
    }

    /// As [`AltStack::holds`], whatever the flags.
    fn covers(&self, sp: u64) -> bool {
        sp > self.base && sp.wrapping_sub(self.base) <= self.size
    }

    /// `SS_DISABLE`, `SS_ONSTACK` or 0, as `sigaltstack` reports for a stack pointer.
    pub fn state(&self, sp: u64) -> u32 {
        if self.size == 0 {
            linux::SS_DISABLE
        } else if self.holds(sp) {
            linux::SS_ONSTACK
        } else {
            0
        }
    }
}

/// Where the parts of a frame lie.
struct Layout {
    frame: u64,
    fpu: u64,
}

fn lay_out(registers: &Registers, stack: &AltStack, action: &Action, xstate: usize) -> SysResult<Layout> {
    let mut sp = registers.rsp.wrapping_sub(RED_ZONE);
    let nested = stack.holds(sp);
    let mut entering = false;
    if action.has(linux::SA_ONSTACK) && stack.state(sp) == 0 {
        sp = stack.base.wrapping_add(stack.size);
        entering = true;
    }
    let fpu = sp.wrapping_sub(xstate as u64 + 4) & !63;
    let frame = (fpu.wrapping_sub(FRAME_SIZE as u64) & !15).wrapping_sub(8);
    if (nested || entering) && !stack.covers(frame) {
        return Err(Errno::EFAULT);
    }
    Ok(Layout { frame, fpu })
}

/// Little-endian fields one after the other.
struct Fields {
    bytes: Vec<u8>,
}

impl Fields {
    fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes.extend_from_slice(&value.to_le_bytes());
        self
    }
}

/// Pushes a frame and points the registers at the handler. `EFAULT`: the stack cannot take it; nothing has changed but
/// memory. `saved_mask` is what the frame restores.
pub(in crate::task) fn push(
    task: &Arc<Task>,
    local: &mut TaskLocal,
    info: &SigInfo,
    action: &Action,
    saved_mask: SignalSet,
) -> SysResult {
    let Disposition::Handler(handler) = action.disposition else { return Err(Errno::EINVAL) };
    if !action.has(linux::SA_RESTORER) {
        return Err(Errno::EFAULT);
    }
    let fpu = local.machine.fpu()?;
    let layout = lay_out(&local.registers, &local.alt_stack, action, fpu.as_bytes().len())?;
    let mm = task.mm();
    mm.write_bytes(layout.fpu, &fpu_image(&fpu, task.kernel().platform().xcr0()))?;
    let frame = frame_image(local, &layout, info, action, saved_mask);
    mm.write_bytes(layout.frame, &frame)?;
    if local.alt_stack.flags & linux::SS_AUTODISARM != 0 {
        local.alt_stack = AltStack::default();
    }
    let registers = &mut local.registers;
    registers.rdi = info.signal.number() as u64;
    registers.rax = 0;
    registers.rsi = layout.frame.wrapping_add(8 + UCONTEXT_SIZE as u64);
    registers.rdx = layout.frame.wrapping_add(8);
    registers.rip = handler;
    registers.rsp = layout.frame;
    registers.rflags &= !CLEARED_FLAGS;
    local.machine.reset_fpu()
}

/// The XSAVE area with Linux's software bytes, followed by the second magic word.
fn fpu_image(fpu: &FpuState, xcr0: u64) -> Vec<u8> {
    let state = fpu.as_bytes();
    let size = u32::try_from(state.len()).unwrap_or(0);
    let mut image = state.to_vec();
    let mut software = Fields { bytes: Vec::with_capacity(48) };
    software.u32(MAGIC1).u32(size.saturating_add(4)).u64(xcr0).u32(size);
    software.bytes.resize(48, 0);
    if let Some(room) = image.get_mut(SW_BYTES..SW_BYTES + 48) {
        room.copy_from_slice(&software.bytes);
    }
    // x87 and SSE are always said to be there: the legacy area is valid.
    if let Some(present) = image.get_mut(XSTATE_BV) {
        *present |= 3;
    }
    image.extend_from_slice(&MAGIC2.to_le_bytes());
    image
}

fn frame_image(
    local: &TaskLocal,
    layout: &Layout,
    info: &SigInfo,
    action: &Action,
    saved_mask: SignalSet,
) -> Vec<u8> {
    let (r, stack, fault) = (&local.registers, &local.alt_stack, &local.fault);
    let stack_flags = if stack.size == 0 { linux::SS_DISABLE } else { stack.flags };
    let mut frame = Fields { bytes: Vec::with_capacity(FRAME_SIZE) };
    frame.u64(action.restorer);
    frame.u64(UC_FLAGS).u64(0).u64(stack.base).u32(stack_flags).u32(0).u64(stack.size);
    for value in [r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx] {
        frame.u64(value);
    }
    frame.u64(r.rdx).u64(r.rax).u64(r.rcx).u64(r.rsp).u64(r.rip).u64(r.rflags);
    frame.u16(Registers::USER_CS).u16(0).u16(0).u16(Registers::USER_SS);
    frame.u64(fault.error_code).u64(fault.vector).u64(saved_mask.bits()).u64(fault.address);
    frame.u64(layout.fpu);
    frame.bytes.resize(frame.bytes.len() + 64, 0);
    frame.u64(saved_mask.bits());
    // Without SA_SIGINFO Linux leaves the siginfo out; what is there is nobody's business.
    let with_info = action.has(linux::SA_SIGINFO);
    let info = if with_info { info.to_bytes() } else { [0; SIGINFO_SIZE] };
    frame.bytes.extend_from_slice(&info);
    frame.bytes
}

/// `rt_sigreturn`: takes everything from the frame above the stack pointer. `EFAULT` for a frame that cannot be.
pub(crate) fn pop(ctx: &mut SyscallContext<'_>) -> SysResult {
    let mm = ctx.task.mm();
    let base = ctx.local.registers.rsp.wrapping_sub(8);
    let mut context = [0u8; UCONTEXT_SIZE];
    mm.read_bytes(base.wrapping_add(8), &mut context)?;
    let mut words = context
        .chunks_exact(8)
        .map(|chunk| u64::from_le_bytes(chunk.first_chunk::<8>().copied().unwrap_or_default()));
    let mut next = || words.next().unwrap_or(0);
    let uc_flags = next();
    let _link = next();
    let stack = AltStack { base: next(), flags: next() as u32, size: next() };
    let old = &ctx.local.registers;
    let mut r = Registers { fs_base: old.fs_base, gs_base: old.gs_base, ..Registers::default() };
    let fields = [
        &mut r.r8, &mut r.r9, &mut r.r10, &mut r.r11, &mut r.r12, &mut r.r13, &mut r.r14, &mut r.r15,
        &mut r.rdi, &mut r.rsi, &mut r.rbp, &mut r.rbx, &mut r.rdx, &mut r.rax, &mut r.rcx, &mut r.rsp,
        &mut r.rip,
    ];
    for field in fields {
        *field = next();
    }
    r.rflags = (old.rflags & !RESTORABLE_FLAGS) | (next() & RESTORABLE_FLAGS);
    let selectors = next();
    let (_error, _vector, _old_mask, _address) = (next(), next(), next(), next());
    let fpu_at = next();
    let mask = words.next_back().unwrap_or(0);
    check_selectors(selectors, uc_flags)?;
    if r.rip >= GVA_END {
        return Err(Errno::EFAULT);
    }
    restore_fpu(ctx, fpu_at)?;
    let sp = r.rsp;
    ctx.local.registers = r;
    ctx.task.replace_mask(SignalSet::from_bits(mask).blockable());
    // Linux ignores what is wrong with the stack.
    let _ = set_alt_stack(ctx.local, stack, sp);
    Ok(())
}

/// Only the flat 64-bit segments exist here: Linux would raise a fault on others as soon as it returns.
fn check_selectors(word: u64, uc_flags: u64) -> SysResult {
    let cs = (word as u16) | 3;
    let ss = ((word >> 48) as u16) | 3;
    let ss_counts = uc_flags & UC_STRICT_RESTORE_SS != 0;
    if cs != Registers::USER_CS || (ss_counts && ss != Registers::USER_SS) {
        Err(Errno::EFAULT)
    } else {
        Ok(())
    }
}

fn restore_fpu(ctx: &mut SyscallContext<'_>, at: u64) -> SysResult {
    if at == 0 {
        return ctx.local.machine.reset_fpu();
    }
    let size = ctx.task.kernel().platform().xstate_size();
    let mm = ctx.task.mm();
    let mut state = vec![0u8; size.max(XSAVE_LEGACY_END)];
    let legacy = state.get_mut(..512).ok_or(Errno::EFAULT)?;
    mm.read_bytes(at, legacy)?;
    let word = |state: &[u8], at: usize| {
        let part = state.get(at..).and_then(|rest| rest.first_chunk::<4>());
        u32::from_le_bytes(part.copied().unwrap_or_default())
    };
    let (magic, extended, xstate) =
        (word(&state, SW_BYTES), word(&state, SW_BYTES + 4), word(&state, SW_BYTES + 16));
    let xstate = xstate as usize;
    let plausible = magic == MAGIC1
        && (XSAVE_LEGACY_END..=state.len()).contains(&xstate)
        && xstate <= extended as usize
        && mm.copy_in::<u32>(at.wrapping_add(xstate as u64)).is_ok_and(|magic| magic == MAGIC2);
    if plausible {
        let rest = state.get_mut(512..xstate).ok_or(Errno::EFAULT)?;
        mm.read_bytes(at.wrapping_add(512), rest)?;
    } else if let Some(present) = state.get_mut(XSTATE_BV) {
        // A frame of the old kind: x87 and SSE only, the rest initial.
        *present = 3;
    }
    if let Some(software) = state.get_mut(SW_BYTES..512) {
        software.fill(0);
    }
    ctx.local.machine.set_fpu(&FpuState::from_bytes(&state, size)).map_err(|_| Errno::EFAULT)
}

/// `sigaltstack`'s rules: `EPERM` while running on the stack, `EINVAL` for unknown flags, `ENOMEM` if it is too small.
pub fn set_alt_stack(local: &mut TaskLocal, new: AltStack, sp: u64) -> SysResult {
    const MIN_STACK: u64 = 2048;
    if local.alt_stack.holds(sp) {
        return Err(Errno::EPERM);
    }
    let mode = new.flags & !linux::SS_FLAG_BITS;
    if mode != linux::SS_DISABLE && mode != linux::SS_ONSTACK && mode != 0 {
        return Err(Errno::EINVAL);
    }
    local.alt_stack = if mode == linux::SS_DISABLE {
        AltStack::default()
    } else if new.size < MIN_STACK {
        return Err(Errno::ENOMEM);
    } else {
        AltStack { flags: new.flags & (linux::SS_FLAG_BITS | linux::SS_ONSTACK), ..new }
    };
    Ok(())
}
