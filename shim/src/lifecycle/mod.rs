//! Lives of containers and their processes.
//!
//! [`state`] says what may happen next.

pub mod state;
