#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::unreachable
    )
)]
//! The sentry: a Linux kernel in user space.
//!
//! It runs a container's threads in guest context (see [`platform`]), answers their system calls and page faults, and
//! reaches the outside only through descriptors it was given: the control socket, the gofer's connections, `/dev/kvm`.
//!
//! Read [`task`] first (what a thread is and how it runs), then [`wait`] (how anything blocks), [`vfs`] and [`mm`].

pub mod confine;
pub mod control;
pub mod errno;
pub mod fs;
pub mod io;
pub mod ipc;
pub mod kernel;
pub mod loader;
pub mod mm;
pub mod net;
pub mod observe;
pub mod platform;
pub mod syscalls;
pub mod task;
pub mod time;
pub mod vfs;
pub mod wait;

pub use errno::{Errno, SysResult};
