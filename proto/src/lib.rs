#![forbid(unsafe_code)]
//! Caisson's messages: data only, no I/O.
//!
//! [`control`] is what the shim and a sandbox's sentry say to each other, [`lisafs`] is the file protocol between sentry and gofer
//! (and how a gofer is started: [`lisafs::launch`]). Contract of the whole crate: no bytes from a peer make it panic.

pub mod control;
pub mod lisafs;
