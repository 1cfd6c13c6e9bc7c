#![forbid(unsafe_code)]
//! Caisson's messages: data only, no I/O.
//!
//! [`control`] is what the shim and a sandbox's sentry say to each other. The file protocol between sentry and gofer is a module
//! of its own beside it. Contract of the whole crate: no bytes from a peer make it panic.

pub mod control;
