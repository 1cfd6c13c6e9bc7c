//! What the kernel needs from a platform, and nothing about KVM.
//!
//! [`kvm`](self) adapts `caisson-platform-kvm`; a scripted fake lets most of the kernel be tested by plain `cargo test`.

use std::sync::{Arc, OnceLock};

mod stand_in;
// Becomes `pub use caisson_platform_kvm::{…}` as soon as that crate's types are there; names and shapes are the same.
pub use stand_in::{Arena, Change, Exit, Fault, FpuState, Frame, FrameRange, Gpa, Kicker, Perms, Registers};

use crate::errno::{Errno, SysResult};

static ARENA: OnceLock<&'static Arena> = OnceLock::new();

/// The sandbox's arena; `ENOMEM` before a platform has set it up.
pub fn arena() -> SysResult<&'static Arena> {
    ARENA.get().copied().ok_or(Errno::ENOMEM)
}

/// Sets the process's arena once; later calls keep the first.
pub fn set_arena(arena: &'static Arena) {
    let _ = ARENA.set(arena);
}

/// A machine that runs guest code.
pub trait Platform: Send + Sync {
    /// A new, empty address space.
    fn new_space(&self) -> SysResult<Arc<dyn Space>>;
    /// A new guest thread context.
    fn new_thread(&self) -> SysResult<Box<dyn GuestThread>>;
}

/// Translations of one address space. Addresses and lengths are page-aligned and in the lower half.
pub trait Space: Send + Sync {
    /// Maps `[gva, gva + len)` to `[gpa, …)`. Grants rights; whatever was mapped there before is revoked.
    fn map(&self, gva: u64, gpa: Gpa, len: u64, perms: Perms) -> SysResult;
    /// Takes rights away; when it returns, no guest thread can use them any more.
    fn revoke(&self, changes: &[Change]) -> SysResult;
}

/// A guest thread's machine context.
pub trait GuestThread: Send {
    /// Runs guest code until it needs the kernel.
    fn run(&mut self, registers: &mut Registers, space: &Arc<dyn Space>) -> SysResult<Exit>;
    /// Makes the current or next `run` return [`Exit::Interrupted`].
    fn kicker(&self) -> Kicker;
    /// The floating-point and vector state.
    fn fpu(&mut self) -> SysResult<FpuState>;
    /// Replaces the floating-point and vector state.
    fn set_fpu(&mut self, state: &FpuState) -> SysResult;
}
