//! containerd's side of the shim: a thin adapter between its protocols and [`lifecycle`](crate::lifecycle).
//!
//! [`bootstrap`] is how containerd starts and finds a shim (the `start` and `delete` actions, all versions from 1.6 to 2.3), [`serve`] the long-lived
//! process, [`service`] the Task API in versions 2 and 3 (one implementation: the messages are the same), [`publisher`] the events, [`metrics`] the
//! statistics. Nothing in here decides anything about containers.
//!
//! Not there yet: the sandbox API (containerd then falls back to a pause container) and `binary://` logging.

pub mod bootstrap;
pub mod delete;
mod log_pipe;
pub mod metrics;
mod options;
pub mod publisher;
pub mod serve;
pub mod service;

/// The runtime's name, as in `ctr run --runtime`.
pub const RUNTIME: &str = "io.containerd.caisson.v2";
