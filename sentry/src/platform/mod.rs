//! What the kernel needs from a platform, and nothing about KVM.
//!
//! The types of guest memory and registers are `caisson-platform-kvm`'s: its arena needs no `/dev/kvm`. What does need
//! it is behind three traits: [`Platform`] (the machine), [`Space`] (page tables) and [`GuestThread`] (a vCPU context).
//! [`kvm`] implements them with the real crate, [`fake`] with tables in memory and scripted exits, so that most of the
//! kernel is tested by plain `cargo test`.
//!
//! Locks: a space's tables are a leaf for the kernel: `map` and `revoke` may be called with any kernel lock held, and call
//! nothing back.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

#[cfg(test)]
pub mod fake;
pub mod kvm;

pub use caisson_platform_kvm::{
    Alignment, Answer, Answered, Arena, ArenaConfig, Change, Exit, Fault, Faulting, FpuState, Frame,
    FrameRange, GPA_BASE, GVA_END, Gpa, OutOfMemory, PAGE_SIZE, PatchedEntry, Perms, Place, Posted,
    Registers, Request, Switch, Where, WindowAccess, WindowRange, rdtsc,
};

use crate::errno::{Errno, SysResult};
use crate::wait::Assist;

static ARENA: OnceLock<&'static Arena> = OnceLock::new();

/// The sandbox's arena; `ENOMEM` before a platform has set it up.
pub fn arena() -> SysResult<&'static Arena> {
    #[cfg(test)]
    set_arena(fake::shared_arena());
    ARENA.get().copied().ok_or(Errno::ENOMEM)
}

/// Sets the process's arena once; later calls keep the first.
pub fn set_arena(arena: &'static Arena) {
    let _ = ARENA.set(arena);
}

/// A machine that runs guest code.
pub trait Platform: Assist + Send + Sync {
    /// A new, empty address space.
    fn new_space(&self) -> SysResult<Arc<dyn Space>>;
    /// A new guest thread context.
    fn new_thread(&self) -> SysResult<Box<dyn GuestThread>>;
    /// Guest memory.
    fn arena(&self) -> &'static Arena;
    /// Frequency of the time stamp counter in kHz; 0 if the host does not tell.
    fn tsc_khz(&self) -> u32;
    /// Bytes of an XSAVE area ([`FpuState`]).
    fn xstate_size(&self) -> usize;
    /// The state components the guest may use (XCR0).
    fn xcr0(&self) -> u64;
    /// One line for logs and `caisson debug`: which platform, which host mode.
    fn describe(&self) -> String;
    /// What happened so far, each with its name.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// Translations of one address space. Addresses and lengths are page-aligned and below [`GVA_END`].
pub trait Space: Any + Send + Sync {
    /// Maps `[gva, gva + len)` to `[gpa, …)`. Filling holes and granting rights is cheap; where something else was mapped, or rights
    /// get lost, this revokes first. `ENOMEM` without table pages.
    fn map(&self, gva: u64, gpa: Gpa, len: u64, perms: Perms) -> SysResult;
    /// Maps like `map` what the guest may never touch, so that taking it away untouched costs nothing. Fills holes only.
    fn map_ahead(&self, gva: u64, gpa: Gpa, len: u64, perms: Perms) -> SysResult {
        self.map(gva, gpa, len, perms)
    }
    /// Takes rights away; when it returns, no guest thread can use them any more. Batch.
    fn revoke(&self, changes: &[Change]) -> SysResult;
    /// Whether [`Space::revoke_in_place`] works here.
    fn revokes_in_place(&self) -> bool {
        false
    }
    /// Takes rights away while guest threads run on, where the host allows that. No instruction uses them when it returns, but
    /// the host may be in the middle of an access: see [`InPlace`]. `spent` are frames that go and whose contents nobody needs.
    fn revoke_in_place(&self, _changes: &[Change], _spent: &[FrameRange]) -> SysResult<InPlace> {
        Ok(InPlace::Impossible)
    }
    /// After [`Exit::HostFault`]: unmaps what the host cannot back any more and returns how many pages that were.
    fn revoke_unbacked(&self) -> SysResult<usize>;
    /// How patched call sites make their calls here; `None` where patching gains nothing.
    fn patched_entry(&self) -> Option<PatchedEntry> {
        None
    }
    /// The trampolines of patched call sites are in this range. From now on [`GuestThread::run`] may return a spurious
    /// [`Exit::Interrupted`] there, and threads whose GS base is 0 can use the entry.
    fn set_trampolines(&self, _range: Range<u64>) {}
    /// The 2 MiB of frames that were mapped around `gva` before, if mapping them again is cheaper than others.
    fn block_before(&self, _gva: u64) -> Option<Gpa> {
        None
    }
    /// What the entry for an address says: the guest-physical address of that byte, and the rights.
    fn lookup(&self, gva: u64) -> Option<(Gpa, Perms)>;
}

/// What [`Space::revoke_in_place`] did.
pub enum InPlace {
    /// Nothing: [`Space::revoke`] is the only way.
    Impossible,
    /// Rights are gone for everybody.
    Done,
    /// What was mapped must not get into other hands before they have left the guest.
    Stragglers(Box<dyn Stragglers>),
}

/// Threads that were in the guest at some moment.
pub trait Stragglers: Send + Sync {
    /// Whether all have left it since.
    fn are_gone(&self) -> bool;
    /// Gets them out, and waits for it.
    fn expel(&self);
}

/// A guest thread's machine context.
pub trait GuestThread: Send {
    /// Runs guest code until it needs the kernel. An error means that the thread is lost (a broken host or a bug).
    fn run(&mut self, registers: &mut Registers, space: &Arc<dyn Space>) -> SysResult<Exit>;
    /// Before `run`: waits while there are too many in the guest, unless the thread has slept since it was there. Returns for how long.
    fn await_turn(&mut self, _slept: bool) -> Duration {
        Duration::ZERO
    }
    /// Makes the current or next `run` return [`Exit::Interrupted`].
    fn kicker(&self) -> Kicker;
    /// The floating-point and vector state.
    fn fpu(&mut self) -> SysResult<FpuState>;
    /// Replaces the floating-point and vector state; `EINVAL` if the CPU refuses it (the old state stays).
    fn set_fpu(&mut self, state: &FpuState) -> SysResult;
    /// Back to the state after `execve`.
    fn reset_fpu(&mut self) -> SysResult;
    /// Lets the platform's dispatchers answer calls whose numbers `handles` knows by `answer`, if it has dispatchers.
    fn answer_with(&mut self, _answer: Weak<dyn Answer>, _handles: fn(u64) -> bool) {}
    /// Makes this thread, which is not in the guest, ready to go on in a vCPU that is in the guest in `space`. `None` where that is impossible.
    fn board(&mut self, _space: &Arc<dyn Space>, _vcpu: u32) -> SysResult<Option<Place>> {
        Ok(None)
    }
    /// After a `run` that ended while another thread ran in this one's vCPU: registers and exit are that thread's, and these are this one's.
    fn take_own(&mut self) -> Option<Registers> {
        None
    }
    /// The registers of this thread, which rests in another's vCPU.
    fn ashore(&mut self) -> Option<Registers> {
        None
    }
}

/// What a [`Kicker`] does, per platform.
pub trait Kick: Send + Sync {
    /// See [`Kicker::kick`].
    fn kick(&self);
}

/// Gets one guest thread out of the guest, from any thread.
#[derive(Clone)]
pub struct Kicker(Arc<dyn Kick>);

impl Kicker {
    /// Wraps a platform's way of kicking.
    pub fn new(kick: impl Kick + 'static) -> Kicker {
        Kicker(Arc::new(kick))
    }

    /// Makes the current, or else the next, `run` return [`Exit::Interrupted`]. Never blocks.
    pub fn kick(&self) {
        self.0.kick();
    }
}

impl fmt::Debug for Kicker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kicker")
    }
}
