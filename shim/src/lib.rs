#![deny(unsafe_code)]
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
//! What `containerd-shim-caisson-v2` and `caisson` have in common: everything outside the sandbox.
//!
//! A sandbox is one sentry (the kernel, see the `sentry` crate), one gofer per container and the cgroups around them. This crate starts
//! them ([`launch`]), tells the sentry what to do and believes nothing it says in return.
//!
//! Unsafe code is confined to [`launch`]'s `spawn` and `child` modules, which clone a process into new namespaces.

pub mod cgroup;
pub mod cli;
pub mod control;
pub mod launch;
pub mod lifecycle;
pub mod spec;
pub mod stdio;
pub mod task;
