//! Runs guest code in KVM vCPUs and hands every event that needs a kernel to the caller.
//!
//! This crate knows memory, page tables, registers, entry and exit; it knows nothing of Linux semantics. It is also the one
//! crate of the workspace whose job is unsafe code; `docs/soundness.md` has a section per way guest code could hurt us.
//!
//! Read in this order:
//! - [`arena`]: guest-physical memory. One reserved host range per process, with a frame allocator, windows onto host
//!   files, and fault-tolerant access. Needs no `/dev/kvm`.
//! - [`machine`]: the VM, its memory slots, its vCPU pool and the [`HostMode`] it found by probing.
//! - [`space`]: address spaces: guest page tables and the one way of taking rights away, [`AddressSpace::revoke`].
//! - [`thread`]: a guest thread, its registers and [`GuestThread::run`]; [`kick`] is how another thread gets it out.
//! - [`shm`]: memory shared with another process, for the gofer's channels.
//!
//! # Lock order
//! `ThreadSlot::vcpu` (held while a thread runs guest code) → `AddressSpace::tables` → `TableZone` → `Slots`.
//! `VcpuPool` is a leaf: it is never held while another lock is taken, except by `try_lock`.
//! Frame allocator and window locks of the arena are leaves.

#![warn(missing_docs)]

pub mod arena;
mod blob;
mod control;
mod cpu;
mod cpu_features;
pub mod error;
pub mod exitless;
mod fault;
pub mod fpu;
pub mod host_mode;
pub mod kick;
mod large;
mod layout;
pub mod machine;
mod pool;
mod probe;
pub mod registers;
mod revoke;
pub mod shm;
mod slots;
pub mod space;
pub mod stragglers;
mod tables;
pub mod thread;
mod vcpu;
pub mod vdso;

pub use arena::{
    Alignment, Arena, ArenaConfig, Frame, FrameRange, GPA_BASE, Gpa, PAGE_SIZE, WindowAccess, WindowRange,
};
pub use cpu_features::cpu_features;
pub use error::{Error, Fault, OutOfMemory, ProbeError};
pub use exitless::{
    Answer, Answered, Boarding, DispatchCounters, Faulting, LooseSlot, PatchedEntry, Place, Posted, Request,
    Switch, Where,
};
pub use fpu::FpuState;
pub use host_mode::{HostMode, Paging, Ring0};
pub use kick::{KICK_SIGNAL, Kicker};
pub use machine::{Machine, MachineConfig, open_kvm, rdtsc};
pub use registers::{Exit, Registers};
pub use space::{AddressSpace, Change, GVA_END, Perms};
pub use stragglers::Stragglers;
pub use thread::GuestThread;
