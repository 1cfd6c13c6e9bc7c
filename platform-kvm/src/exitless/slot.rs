//! The memory through which a vCPU and a dispatcher speak: 256 bytes per vCPU.
//!
//! ```text
//!   0  rax rdi rsi rdx r10 r8 r9 state kind    the call; the result takes rax's place
//!  64  rcx r11 rsp awake                       what else the user had, for the way back
//!  96  check entry                             for patched call sites (emulated ring 0)
//! 112  one word of stack                       (emulated ring 0)
//! 120  switch save load mask                   for switching threads (emulated ring 0)
//! 152  rbx rbp r12 r13 r14 r15                 of a thread at a page fault (emulated ring 0); its other registers are where a call has them
//! 200  address of a page fault                 (native ring 0)
//! 208  error code, rip, cs, rflags, rsp, ss    what the gate for page faults has pushed
//! ```
//! What a dispatcher reads and writes for every call is one cache line; every other line that it touches would cost the guest as much
//! again.
//!
//! The state goes POSTED (guest) → CLAIMED (dispatcher) → DONE | LEAVE | REFUSED (dispatcher), or POSTED → WITHDRAWN (guest).
//! On hosts that emulate ring 0 the guest can write anything here at any time, so everything is read once, and nothing that is
//! read here decides about anything but the calling process's own registers.

use super::faulting::Faulting;
use super::{Answer, Answered};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Bytes of a slot.
pub(crate) const LEN: u64 = 256;

pub(crate) const RAX: u64 = 0;
pub(crate) const RESULT: u64 = RAX;
pub(crate) const RDI: u64 = 8;
pub(crate) const RSI: u64 = 16;
pub(crate) const RDX: u64 = 24;
pub(crate) const R10: u64 = 32;
pub(crate) const R8: u64 = 40;
pub(crate) const R9: u64 = 48;
pub(crate) const STATE: u64 = 56;
pub(crate) const KIND: u64 = 60;
pub(crate) const RCX: u64 = 64;
pub(crate) const R11: u64 = 72;
pub(crate) const RSP: u64 = 80;
pub(crate) const AWAKE: u64 = 88;
pub(crate) const CHECK: u64 = 96;
pub(crate) const ENTRY: u64 = 104;
/// Above the word of stack.
pub(crate) const STACK_TOP: u64 = 120;
pub(crate) const SWITCH: u64 = 120;
pub(crate) const SAVE: u64 = 128;
pub(crate) const LOAD: u64 = 136;
pub(crate) const MASK: u64 = 144;
pub(crate) const RBX: u64 = 152;
pub(crate) const RBP: u64 = 160;
pub(crate) const R12: u64 = 168;
pub(crate) const R13: u64 = 176;
pub(crate) const R14: u64 = 184;
pub(crate) const R15: u64 = 192;
/// The address of a page fault (native ring 0).
pub(crate) const CR2: u64 = 200;
/// Where the gate pushes, from the slot's end down: the error code, and the flags among the rest.
pub(crate) const FRAME: u64 = 208;
pub(crate) const FRAME_RFLAGS: u64 = FRAME + 24;

/// In [`KIND`]: the call came from a patched site. Answering it clears that.
pub(crate) const PATCHED: u32 = 2;
/// In [`KIND`]: it is a page fault ([`super::faulting`]). Cleared whenever one ends, for calls leave it as it is.
pub(crate) const FAULT: u32 = 4;
/// In [`KIND`]: the same, from ring 0, with its address.
pub(crate) const FAULT_AT: u32 = 6;

// All even: no entry of a page table that is present looks like one of them, should a page ever be mistaken.
/// The guest waits for somebody to claim the call.
pub(crate) const POSTED: u32 = 2;
/// A dispatcher works on it.
pub(crate) const CLAIMED: u32 = 4;
/// The result is there.
pub(crate) const DONE: u32 = 6;
/// The result is there, and the thread must leave the guest with it.
pub(crate) const LEAVE: u32 = 8;
/// The call was not made: make it by an exit.
pub(crate) const REFUSED: u32 = 10;
/// Nobody came in time; the guest makes the call by an exit.
pub(crate) const WITHDRAWN: u32 = 12;
/// Another thread goes on in this vCPU: save the registers at one place and load them from another ([`super::ride`]).
pub(crate) const SWITCHED: u32 = 14;

/// A call that was seen posted, and may be gone.
#[derive(Debug, Clone, Copy)]
pub struct Posted<'a> {
    memory: &'a SlotMemory,
    vcpu: u32,
}

impl<'a> Posted<'a> {
    pub(crate) fn new(memory: &'a SlotMemory, vcpu: u32) -> Posted<'a> {
        Posted { memory, vcpu }
    }

    /// Takes the call if it is still posted. Who takes it must answer it. (Inlined: a request that goes through memory costs the guest 6 ns.)
    #[inline]
    pub fn claim(&self) -> Option<Request<'a>> {
        let memory = self.memory;
        memory.half(STATE).compare_exchange(POSTED, CLAIMED, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        Some(Request {
            number: memory.get(RAX),
            args: [RDI, RSI, RDX, R10, R8, R9].map(|offset| memory.get(offset)),
            kind: memory.half(KIND).load(Ordering::Relaxed),
            vcpu: self.vcpu,
            memory,
        })
    }
}

/// A posted system call. On emulated ring 0 all of it is what the calling process wants us to believe.
#[derive(Debug)]
pub struct Request<'a> {
    /// rax.
    pub number: u64,
    /// rdi, rsi, rdx, r10, r8, r9.
    pub args: [u64; 6],
    kind: u32,
    /// The vCPU that the calling thread runs on.
    pub vcpu: u32,
    memory: &'a SlotMemory,
}

impl Request<'_> {
    /// Lets the guest go on with this result at once: what the answerer still has to tidy up costs the guest nothing.
    #[inline]
    pub fn done(self, result: u64) -> Answered {
        self.memory.answer(result, DONE);
        Answered::Told
    }

    /// It came from a patched call site ([`crate::PatchedEntry`]).
    #[inline]
    pub fn is_patched(&self) -> bool {
        self.kind == PATCHED
    }

    /// It is no call but a page fault.
    #[inline]
    pub fn is_fault(&self) -> bool {
        matches!(self.kind, FAULT | FAULT_AT)
    }

    /// The page fault that was posted. `None` if it is nothing that can be answered.
    pub fn faulting(&self) -> Option<Faulting> {
        match self.kind {
            FAULT => Faulting::read(self.memory),
            FAULT_AT => Some(Faulting::read_native(self.memory)),
            _ => None,
        }
    }

    /// Where the guest goes on. Costs the guest time, and may be another the next time: ask once, and only if need be.
    pub fn rip(&self) -> u64 {
        self.memory.get(RCX)
    }

    /// Its stack pointer. The same goes for it.
    pub fn rsp(&self) -> u64 {
        self.memory.get(RSP)
    }
}

/// The host's view of a slot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SlotMemory(*mut u8);

// SAFETY: a plain address; every access through it is atomic, and the memory stays mapped (see `new`).
unsafe impl Send for SlotMemory {}
// SAFETY: as above.
unsafe impl Sync for SlotMemory {}

impl SlotMemory {
    /// # Safety
    /// `at` is 8-byte aligned and leads [`LEN`] bytes of a [`crate::arena::reservation::Reservation`] that is never unmapped while the
    /// result is used, and that this process only accesses atomically or by volatile accesses.
    pub(crate) unsafe fn new(at: *mut u8) -> SlotMemory {
        SlotMemory(at)
    }

    pub(crate) fn address(self) -> usize {
        self.0 as usize
    }

    #[inline]
    fn word(&self, offset: u64) -> &AtomicU64 {
        // SAFETY: aligned and inside the slot, which `new`'s caller vouches for.
        unsafe { AtomicU64::from_ptr(self.0.wrapping_add(offset as usize).cast()) }
    }

    #[inline]
    fn half(&self, offset: u64) -> &AtomicU32 {
        // SAFETY: as in `word`.
        unsafe { AtomicU32::from_ptr(self.0.wrapping_add(offset as usize).cast()) }
    }

    #[inline]
    pub(crate) fn get(&self, offset: u64) -> u64 {
        self.word(offset).load(Ordering::Relaxed)
    }

    pub(crate) fn state(&self) -> u32 {
        self.half(STATE).load(Ordering::Acquire)
    }

    pub(crate) fn set_state(&self, state: u32) {
        self.half(STATE).store(state, Ordering::Release);
    }

    /// Whether the guest shall post its calls, and for how many turns of its loop it waits for somebody to claim one; 0 for not at all.
    pub(crate) fn set_awake(&self, turns: u32) {
        self.half(AWAKE).store(turns, Ordering::Relaxed);
    }

    /// Lets patched call sites lead to the stub's second entry at this address, if they expect `check`.
    pub(crate) fn set_entry(&self, entry: u64, check: u32) {
        self.word(ENTRY).store(entry, Ordering::Relaxed);
        self.word(CHECK).store(check.into(), Ordering::Relaxed);
    }

    /// Ends a call or a page fault that has no result.
    pub(crate) fn end(&self, state: u32) {
        // And the kind, which is the high half. What is where a call has its result is a register of a thread at a page fault.
        self.word(STATE).store(state.into(), Ordering::Release);
    }

    /// Tells the guest where to save the registers and where to load them from, and how.
    pub(crate) fn switch(&self, (save, load): (u64, u64), (code, mask): (u64, u64)) {
        self.word(SAVE).store(save, Ordering::Relaxed);
        self.word(LOAD).store(load, Ordering::Relaxed);
        self.word(SWITCH).store(code, Ordering::Relaxed);
        self.word(MASK).store(mask, Ordering::Relaxed);
        self.word(STATE).store(SWITCHED.into(), Ordering::Release);
    }

    #[inline]
    pub(crate) fn answer(&self, result: u64, state: u32) {
        self.word(RESULT).store(result, Ordering::Relaxed);
        // And the kind, which is the high half.
        self.word(STATE).store(state.into(), Ordering::Release);
    }
}

/// A slot that belongs to no vCPU: makes calls of an [`Answer`] as a dispatcher does, to measure and to test it.
#[derive(Debug, Default)]
pub struct LooseSlot {
    words: Box<[AtomicU64; LEN as usize / 8]>,
}

impl LooseSlot {
    /// Posts a call, as a patched call site does, and has it answered. The result is what the guest would find in `rax` and go on with;
    /// otherwise, what else the answerer said.
    ///
    /// # Errors
    /// `None` if the call was not taken, or what a dispatcher would have to do about it.
    pub fn call(
        &mut self,
        answer: &dyn Answer,
        number: u64,
        args: [u64; 6],
    ) -> Result<u64, Option<Answered>> {
        let at = std::ptr::from_mut(&mut *self.words).cast();
        // SAFETY: the words are as aligned and as many as a slot's, are accessed by nobody else while `self` is borrowed, and outlive the result.
        let memory = unsafe { SlotMemory::new(at) };
        memory.word(RAX).store(number, Ordering::Relaxed);
        for (offset, value) in [RDI, RSI, RDX, R10, R8, R9].into_iter().zip(args) {
            memory.word(offset).store(value, Ordering::Relaxed);
        }
        memory.half(KIND).store(PATCHED, Ordering::Relaxed);
        memory.set_state(POSTED);
        match answer.answer(&Posted::new(&memory, 0)) {
            Some(Answered::Told) => Ok(memory.get(RESULT)),
            Some(Answered::Done(result)) => Ok(result),
            other => Err(other),
        }
    }
}
