//! Lives of sandboxes, containers and their processes; what both binaries are made of.
//!
//! [`Sandbox`](sandbox::Sandbox) is the one owner of all state: a table of containers behind one lock, changed only through
//! [`state::next`]. Whatever a change gives to publish goes into the event queue *while the lock is held*, so the order of events is the order of
//! changes. The lock is never held across an `await` or a host call.
//!
//! ```text
//!   Task RPCs, CLI commands ──▶ Sandbox ──▶ control::Client ──▶ sentry
//!                                 ▲  │
//!      exits, deaths (monitors) ──┘  └──▶ Event queue ──▶ publisher
//! ```
//!
//! [`resources`] is what a container holds on the host (cgroup, gofer, directory) and how it is given back; [`record`] is the note on disk with
//! which a later `delete` cleans up after a shim that was killed.

pub mod error;
pub mod event;
mod monitor;
pub mod record;
mod resources;
pub mod sandbox;
mod sentry;
pub mod state;
mod table;

pub use error::{Failure, Kind};
pub use event::Event;
pub use sandbox::{CreateRequest, ExecRequest, Sandbox, Settings, Source};

#[cfg(test)]
mod tests;
