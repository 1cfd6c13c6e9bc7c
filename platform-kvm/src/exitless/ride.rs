//! Two threads of a process take turns in one vCPU.
//!
//! When a thread's call would have to wait, and another thread of its address space is ready to go on, the dispatcher that sees
//! both lets the second go on in the vCPU of the first: no exit, no entry, nobody is woken. Emulated ring 0 only, where leaving the
//! guest is what a switch costs.
//!
//! ```text
//!  the carrier's vCPU                      dispatcher                                   memory
//!  call posted, spins ───────────────────▶ the call would wait; the passenger is ready
//!  saves its registers in context 0   ◀─── SWITCHED: save there, load from there         context 0: the carrier's
//!  loads context 1, goes on as the passenger                                             context 1: the passenger's
//!   …  and back in the same way, when the passenger would wait and the carrier is ready
//! ```
//! The *carrier* is the thread whose host thread is inside KVM_RUN, the *passenger* has its host thread asleep. At any time either is the one
//! that runs (`aboard` says which), and the other's registers are in its context: general ones, the bases of FS and GS, and the XSAVE area.
//!
//! # Who owns what
//! A [`Ride`] belongs to the slot and is changed under its lock only, by dispatchers while the vCPU is at a posted call, and by the carrier's
//! thread when it has left the guest. When that happens with the passenger aboard, the registers that KVM shows are the passenger's:
//! [`Dispatch::disembark`] puts the FPU state into the passenger's seat, loads the carrier's, and ends the ride. A passenger at rest takes its
//! registers back itself ([`Dispatch::ashore`]), or is put ashore when the vCPU becomes somebody else's.
//!
//! Lock order: slot, then the passenger's seat.
//!
//! # What it rests on
//! Slot, contexts and code are in the process's own address space, and its threads can write to the first two: what is loaded from there is taken
//! for registers of that process and checked like any ([`crate::GuestThread::run`]). Who is aboard is in the sentry's memory.

use super::slot::{self, SlotMemory};
use super::{Answer, Dispatch};
use crate::blob::blob;
use crate::error::Error;
use crate::fpu::FpuState;
use crate::kick::Gate;
use crate::layout::*;
use crate::pool::ThreadSlot;
use crate::registers::Registers;
use crate::vcpu::Vcpu;
use core::arch::global_asm;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

// Where a context keeps what.
const RBX: u64 = 0;
const RBP: u64 = 8;
const R12: u64 = 16;
const R13: u64 = 24;
const R14: u64 = 32;
const R15: u64 = 40;
const FS: u64 = 48;
const GS: u64 = 56;
const RCX: u64 = 64;
const R11: u64 = 72;
const RSP: u64 = 80;
const RDI: u64 = 88;
const RSI: u64 = 96;
const RDX: u64 = 104;
const R10: u64 = 112;
const R8: u64 = 120;
const R9: u64 = 128;
const RAX: u64 = 136;
const XSAVE: u64 = 256;
/// Where an XSAVE area says which parts are not in their initial state, and the first two of them.
const XSTATE_BV: usize = 512;
const X87_AND_SSE: u8 = 3;
/// Bytes of a context: a page.
const CONTEXT_LEN: u64 = 4096;
/// Most bytes of an XSAVE area that fit in.
pub(crate) const MOST_XSTATE: usize = (CONTEXT_LEN - XSAVE) as usize;

global_asm!(
    ".pushsection .rodata.caisson_switch, \"a\", @progbits",
    ".balign 64",
    ".globl caisson_switch_start",
    ".hidden caisson_switch_start",
    ".globl caisson_switch_saved",
    ".hidden caisson_switch_saved",
    ".globl caisson_switch_end",
    ".hidden caisson_switch_end",
    // From the stub's loop: rax is the slot; rcx, r11, rsp and the arguments of the call are in the slot.
    "caisson_switch_start:",
    "mov r8, rax",
    "mov r9, [r8 + {save}]",
    "mov [r9 + {rbx}], rbx",
    "mov [r9 + {rbp}], rbp",
    "mov [r9 + {r12}], r12",
    "mov [r9 + {r13}], r13",
    "mov [r9 + {r14}], r14",
    "mov [r9 + {r15}], r15",
    "rdfsbase rcx",
    "mov [r9 + {fs}], rcx",
    "rdgsbase rcx",
    "mov [r9 + {gs}], rcx",
    "mov rcx, [r8 + {s_rcx}]",
    "mov [r9 + {rcx}], rcx",
    "mov rcx, [r8 + {s_r11}]",
    "mov [r9 + {r11}], rcx",
    "mov rcx, [r8 + {s_rsp}]",
    "mov [r9 + {rsp}], rcx",
    "mov rcx, [r8 + {s_rdi}]",
    "mov [r9 + {rdi}], rcx",
    "mov rcx, [r8 + {s_rsi}]",
    "mov [r9 + {rsi}], rcx",
    "mov rcx, [r8 + {s_rdx}]",
    "mov [r9 + {rdx}], rcx",
    "mov rcx, [r8 + {s_r10}]",
    "mov [r9 + {r10}], rcx",
    "mov rcx, [r8 + {s_r8}]",
    "mov [r9 + {r8}], rcx",
    "mov rcx, [r8 + {s_r9}]",
    "mov [r9 + {r9}], rcx",
    "mov eax, [r8 + {mask}]",
    "mov edx, [r8 + {mask} + 4]",
    "xsave64 [r9 + {xsave}]",
    "caisson_switch_saved:",
    "mov dword ptr [r8 + {state}], 0",
    "mov r9, [r8 + {load}]",
    "mov eax, [r8 + {mask}]",
    "mov edx, [r8 + {mask} + 4]",
    "xrstor64 [r9 + {xsave}]",
    "mov rcx, [r9 + {fs}]",
    "wrfsbase rcx",
    "mov rcx, [r9 + {gs}]",
    "wrgsbase rcx",
    "mov rbx, [r9 + {rbx}]",
    "mov rbp, [r9 + {rbp}]",
    "mov r12, [r9 + {r12}]",
    "mov r13, [r9 + {r13}]",
    "mov r14, [r9 + {r14}]",
    "mov r15, [r9 + {r15}]",
    "mov rdi, [r9 + {rdi}]",
    "mov rsi, [r9 + {rsi}]",
    "mov rdx, [r9 + {rdx}]",
    "mov r10, [r9 + {r10}]",
    "lea rsp, [r8 + {stack}]",
    "push qword ptr [r9 + {r11}]",
    "popfq",
    "mov rsp, [r9 + {rsp}]",
    "mov rcx, [r9 + {rcx}]",
    "mov r11, [r9 + {r11}]",
    "mov rax, [r9 + {rax}]",
    "mov r8, [r9 + {r8}]",
    "mov r9, [r9 + {r9}]",
    "jmp rcx",
    "caisson_switch_end:",
    ".popsection",
    state = const slot::STATE,
    save = const slot::SAVE,
    load = const slot::LOAD,
    mask = const slot::MASK,
    s_rcx = const slot::RCX,
    s_r11 = const slot::R11,
    s_rsp = const slot::RSP,
    s_rdi = const slot::RDI,
    s_rsi = const slot::RSI,
    s_rdx = const slot::RDX,
    s_r10 = const slot::R10,
    s_r8 = const slot::R8,
    s_r9 = const slot::R9,
    stack = const slot::STACK_TOP,
    rbx = const RBX,
    rbp = const RBP,
    r12 = const R12,
    r13 = const R13,
    r14 = const R14,
    r15 = const R15,
    fs = const FS,
    gs = const GS,
    rcx = const RCX,
    r11 = const R11,
    rsp = const RSP,
    rdi = const RDI,
    rsi = const RSI,
    rdx = const RDX,
    r10 = const R10,
    r8 = const R8,
    r9 = const R9,
    rax = const RAX,
    xsave = const XSAVE,
);

/// How long the guest usually takes for it at most, and how long is waited for it.
const PROMPT: Duration = Duration::from_micros(20);
const LONGEST: Duration = Duration::from_secs(2);

/// Where that code is in every address space.
const SWITCH_GVA: u64 = USER_REGION_GVA + USER_REGION_SWITCH as u64 * 4096;

/// The code that switches, and where in it everything has been saved.
pub(crate) fn code() -> (&'static [u8], u64) {
    let (code, [saved]) = blob!(caisson_switch_start caisson_switch_saved, caisson_switch_end);
    (code, saved)
}

/// Where a thread is in that code: whether its registers are saved. `None` outside.
pub(crate) fn place(rip: u64) -> Option<bool> {
    let (code, saved) = code();
    let offset = rip.checked_sub(SWITCH_GVA).filter(|offset| *offset < code.len() as u64)?;
    Some(offset >= saved)
}

/// Where the contexts of a vCPU are in an address space.
pub(crate) fn context_page(vcpu: u32, which: usize) -> u32 {
    USER_REGION_CONTEXTS + 2 * vcpu + which as u32
}

/// The host's view of a context.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context {
    memory: *mut u8,
    gva: u64,
}

// SAFETY: a plain address; every access through it is atomic, and the memory stays mapped (see `new`).
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// # Safety
    /// `memory` leads a page of a [`crate::arena::reservation::Reservation`] that is never unmapped while the result is used, and that this
    /// process only accesses atomically. The address space shows it at page `number` of the user region.
    pub(crate) unsafe fn new(memory: *mut u8, number: u32) -> Context {
        Context { memory, gva: USER_REGION_GVA + u64::from(number) * 4096 }
    }

    fn word(&self, offset: u64) -> &AtomicU64 {
        let offset = (offset % CONTEXT_LEN) as usize & !7;
        // SAFETY: aligned and inside the page, which `new`'s caller vouches for.
        unsafe { AtomicU64::from_ptr(self.memory.wrapping_add(offset).cast()) }
    }

    fn get(&self, offset: u64) -> u64 {
        self.word(offset).load(Ordering::Relaxed)
    }

    fn set(&self, offset: u64, value: u64) {
        self.word(offset).store(value, Ordering::Relaxed);
    }

    /// The registers, as after a system call. The GS base is the one the CPU had.
    fn registers(&self) -> Registers {
        Registers {
            rax: self.get(RAX),
            rbx: self.get(RBX),
            rcx: self.get(RCX),
            rdx: self.get(RDX),
            rsi: self.get(RSI),
            rdi: self.get(RDI),
            rsp: self.get(RSP),
            rbp: self.get(RBP),
            r8: self.get(R8),
            r9: self.get(R9),
            r10: self.get(R10),
            r11: self.get(R11),
            r12: self.get(R12),
            r13: self.get(R13),
            r14: self.get(R14),
            r15: self.get(R15),
            rip: self.get(RCX),
            rflags: self.get(R11),
            fs_base: self.get(FS),
            gs_base: self.get(GS),
        }
    }

    fn set_registers(&self, r: &Registers) {
        let words = [
            (RAX, r.rax),
            (RBX, r.rbx),
            (RCX, r.rip),
            (RDX, r.rdx),
            (RSI, r.rsi),
            (RDI, r.rdi),
            (RSP, r.rsp),
            (RBP, r.rbp),
            (R8, r.r8),
            (R9, r.r9),
            (R10, r.r10),
            (R11, r.rflags),
            (R12, r.r12),
            (R13, r.r13),
            (R14, r.r14),
            (R15, r.r15),
            (FS, r.fs_base),
            (GS, r.gs_base),
        ];
        words.into_iter().for_each(|(offset, word)| self.set(offset, word));
    }

    fn fpu(&self, size: usize) -> FpuState {
        let words = (0..size.min(MOST_XSTATE).div_ceil(8)).map(|n| self.get(XSAVE + n as u64 * 8));
        let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        // XSAVE writes both whole, and with their bits clear, as they are when all registers are 0, KVM would not take over MXCSR.
        if let Some(present) = bytes.get_mut(XSTATE_BV) {
            *present |= X87_AND_SSE;
        }
        FpuState::from_bytes(&bytes, size)
    }

    fn set_fpu(&self, state: &FpuState) {
        for (n, chunk) in state.as_bytes().chunks(8).enumerate().take(MOST_XSTATE / 8) {
            let mut word = [0; 8];
            word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
            self.set(XSAVE + n as u64 * 8, u64::from_le_bytes(word));
        }
    }
}

/// A thread that is outside of the guest and ready to go on in another's vCPU.
#[derive(Debug)]
pub struct Boarding {
    pub(crate) passenger: Arc<ThreadSlot>,
    pub(crate) answer: Weak<dyn Answer>,
    pub(crate) contexts: [Context; 2],
    /// The vCPU that it is for.
    pub(crate) vcpu: u32,
    pub(crate) xstate_size: usize,
    /// The GS base for threads that have not set it.
    pub(crate) gs_base: u64,
    pub(crate) xcr0: u64,
}

/// How a thread gets into another's vCPU.
#[derive(Debug)]
pub enum Place {
    /// It rests there already.
    Again,
    /// For the first time.
    New(Boarding),
}

/// Who goes on in the vCPU of a call that would have to wait.
#[derive(Debug)]
pub enum Switch {
    /// Another thread, with these registers.
    Board(Box<Boarding>, Box<Registers>),
    /// The passenger that is there already, with this result of its call.
    Again(u64),
    /// The carrier, with this result of its call; the passenger waits.
    Back(u64),
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Ride {
    contexts: [Context; 2],
    passenger: Arc<ThreadSlot>,
    /// Who answers the carrier's calls, and the passenger's.
    answers: [Weak<dyn Answer>; 2],
    /// Gets the carrier's host thread out of the guest.
    carrier: Arc<Gate>,
    /// The passenger is the one that runs.
    aboard: bool,
    xstate_size: usize,
    slot_gva: u64,
    xcr0: u64,
}

impl Ride {
    /// The context that the last switch saves to and the one it loads from.
    fn last_switch(&self) -> (Context, Context) {
        let [carrier, passenger] = self.contexts;
        if self.aboard { (carrier, passenger) } else { (passenger, carrier) }
    }

    /// The passenger, which is at rest, gets its registers back.
    pub(crate) fn put_ashore(self) {
        let [_, context] = self.contexts;
        let mut seat = self.passenger.seat.lock();
        seat.ashore = Some(self.users(context.registers()));
        seat.fpu = Some(context.fpu(self.xstate_size));
        seat.riding = None;
    }

    /// As the program knows them. Bases that no CPU would have come from who wrote into the context, and are gone.
    fn users(&self, registers: Registers) -> Registers {
        let possible = |base: u64| !(1 << 47..u64::MAX << 47).contains(&base);
        let keep = |base: u64| if possible(base) { base } else { 0 };
        let gs_base = if registers.gs_base == self.slot_gva { 0 } else { keep(registers.gs_base) };
        Registers { fs_base: keep(registers.fs_base), gs_base, ..registers }
    }
}

/// How the vCPU's memory and its next thread change: by a [`Switch`], under the slot's lock. `None` if the switch does not fit, which is a mistake of
/// the answerer's.
pub(super) fn switch(
    memory: &SlotMemory,
    (answer, carrier): (&mut Option<Weak<dyn Answer>>, &Arc<Gate>),
    ride: &mut Option<Ride>,
    switch: Switch,
) -> Option<()> {
    match switch {
        Switch::Board(boarding, registers) => {
            if ride.as_ref().is_some_and(|ride| ride.aboard) {
                return None;
            }
            if let Some(other) = ride.take() {
                other.put_ashore();
            }
            *ride = Some(board(*boarding, *registers, answer.clone()?, carrier.clone()));
        }
        Switch::Again(result) => {
            let ride = ride.as_mut().filter(|ride| !ride.aboard)?;
            ride.contexts[1].set(RAX, result);
            ride.aboard = true;
        }
        Switch::Back(result) => {
            let ride = ride.as_mut().filter(|ride| ride.aboard)?;
            ride.contexts[0].set(RAX, result);
            ride.aboard = false;
        }
    }
    let ride = ride.as_ref()?;
    ride.passenger.gate.set_carrier(ride.aboard.then_some(&ride.carrier));
    *answer = Some(ride.answers[usize::from(ride.aboard)].clone());
    let (save, load) = ride.last_switch();
    memory.switch((save.gva, load.gva), (SWITCH_GVA, ride.xcr0));
    Some(())
}

/// Puts a thread's state into its context.
fn board(boarding: Boarding, registers: Registers, answer: Weak<dyn Answer>, carrier: Arc<Gate>) -> Ride {
    let Boarding { passenger, answer: own, contexts, vcpu, xstate_size, gs_base, xcr0 } = boarding;
    let [_, context] = contexts;
    let gs_base = if registers.gs_base == 0 { gs_base } else { registers.gs_base };
    context.set_registers(&Registers { gs_base, ..registers });
    let mut seat = passenger.seat.lock();
    match &seat.fpu {
        Some(fpu) => context.set_fpu(fpu),
        None => context.set_fpu(&FpuState::initial(xstate_size)),
    }
    seat.riding = Some(vcpu);
    drop(seat);
    let slot_gva = crate::control::user_slot_gva(vcpu);
    Ride { contexts, passenger, answers: [answer, own], carrier, aboard: true, xstate_size, slot_gva, xcr0 }
}

/// The vCPU was stopped in the middle of a switch: makes its registers those of the thread that goes on. `saved`: those of the other are in its
/// context, and not in `registers` and the slot any more.
pub(crate) fn complete(
    ride: &Ride,
    vcpu: &mut Vcpu,
    memory: &SlotMemory,
    registers: &mut Registers,
    saved: bool,
) -> Result<(), Error> {
    let (save, load) = ride.last_switch();
    if !saved {
        let from_slot = |offset| memory.get(offset);
        let gs_base = if registers.gs_base == 0 { ride.slot_gva } else { registers.gs_base };
        save.set_registers(&Registers {
            rip: from_slot(slot::RCX),
            rflags: from_slot(slot::R11),
            rsp: from_slot(slot::RSP),
            rdi: from_slot(slot::RDI),
            rsi: from_slot(slot::RSI),
            rdx: from_slot(slot::RDX),
            r10: from_slot(slot::R10),
            r8: from_slot(slot::R8),
            r9: from_slot(slot::R9),
            rax: save.get(RAX),
            gs_base,
            ..*registers
        });
        save.set_fpu(&vcpu.fpu(ride.xstate_size)?);
    }
    *registers = ride.users(load.registers());
    vcpu.set_fpu_of_guest(&load.fpu(ride.xstate_size))
}

impl Dispatch {
    /// The vCPU has left the guest. If the passenger was the one that ran, the ride ends: its FPU state goes to its seat, the vCPU gets the
    /// carrier's, and the result are the carrier's registers. Its thread has the vCPU.
    pub(crate) fn disembark(&self, vcpu: &mut Vcpu) -> Result<Option<Registers>, Error> {
        let Some(slot) = self.slots.get(vcpu.index() as usize) else { return Ok(None) };
        let mut bound = slot.bound.lock();
        let Some(bound) = bound.as_mut() else { return Ok(None) };
        let Some(ride) = bound.ride.take_if(|ride| ride.aboard) else { return Ok(None) };
        let [carrier, _] = ride.contexts;
        let [answer, _] = &ride.answers;
        bound.answer = Some(answer.clone());
        ride.passenger.gate.set_carrier(None);
        let mut seat = ride.passenger.seat.lock();
        seat.riding = None;
        seat.ashore = None;
        seat.fpu = Some(vcpu.fpu(ride.xstate_size)?);
        drop(seat);
        vcpu.set_fpu_of_guest(&carrier.fpu(ride.xstate_size))?;
        Ok(Some(ride.users(carrier.registers())))
    }

    /// Whether another thread than the vCPU's own runs there.
    pub(crate) fn is_carrying(&self, vcpu: u32) -> bool {
        let Some(slot) = self.slots.get(vcpu as usize) else { return false };
        let bound = slot.bound.lock();
        bound.as_ref().and_then(|bound| bound.ride.as_ref()).is_some_and(|ride| ride.aboard)
    }

    /// A passenger at rest wants its registers back. When the switch that put it to rest has only just been decided, the guest may not have
    /// saved them yet: then it is waited for, and if it does not come to that, the host completes the switch.
    pub(crate) fn ashore(&self, passenger: &Arc<ThreadSlot>) -> Option<Registers> {
        let riding = passenger.seat.lock().riding;
        if let Some(slot) = riding.and_then(|vcpu| self.slots.get(vcpu as usize)) {
            let begun = Instant::now();
            while !self.take_ashore(slot, passenger, begun.elapsed()) {
                std::thread::yield_now();
            }
        }
        passenger.seat.lock().ashore.take()
    }

    /// `false`: not yet.
    fn take_ashore(&self, slot: &super::Slot, passenger: &Arc<ThreadSlot>, waited: Duration) -> bool {
        let mut bound = slot.bound.lock();
        let Some(bound) = bound.as_mut() else { return true };
        let at_rest = |ride: &Ride| !ride.aboard && Arc::ptr_eq(&ride.passenger, passenger);
        let Some(ride) = bound.ride.as_ref().filter(|ride| at_rest(ride)) else { return true };
        // Whoever writes the state back all the time gets what is there.
        if bound.memory.state() == slot::SWITCHED && waited < LONGEST {
            if waited > PROMPT {
                ride.carrier.kick();
            }
            return false;
        }
        if let Some(ride) = bound.ride.take() {
            ride.put_ashore();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rounding_mode_is_kept_beside_empty_registers() {
        let mut page = Box::new([0_u64; CONTEXT_LEN as usize / 8]);
        // SAFETY: a page that nobody else accesses while the context is used.
        let context = unsafe { Context::new(page.as_mut_ptr().cast(), 0) };
        let (mxcsr, size) = (0x7f80_u64, 832);
        context.set(XSAVE + 24, mxcsr);
        let state = context.fpu(size);
        assert_eq!(state.as_bytes()[24..28], (mxcsr as u32).to_le_bytes());
        assert_eq!(state.as_bytes()[XSTATE_BV], X87_AND_SSE);
    }

    #[test]
    fn the_code_fits_into_its_page() {
        let (code, saved) = code();
        assert!(code.len() < 4096 && saved < code.len() as u64);
        assert_eq!(place(SWITCH_GVA), Some(false));
        assert_eq!(place(SWITCH_GVA + saved), Some(true));
        assert_eq!(place(SWITCH_GVA + code.len() as u64), None);
        assert_eq!(place(0), None);
    }
}
