//! The control protocol between the shim (or the `caisson` command line) and the sentry of one sandbox.
//!
//! One `SOCK_SEQPACKET` socketpair joins them. The shim sends [`ToSentry`] requests, the sentry answers each with exactly
//! one [`ToShim`] reply that carries the request's number, in any order, and interleaves events. Both are prost messages, cut
//! into packets by [`frame`]; descriptors travel as `SCM_RIGHTS` with the first packet of the message that names them.
//!
//! ```text
//!   shim                                sentry
//!    | Configure #1        ───────────▶ |   first, exactly once; versions must match
//!    | ◀─────────── Configured #1       |
//!    | CreateContainer #2  ───────────▶ |   with gofer connections and stdio as descriptors
//!    | ◀─────────── Created #2          |   the program has been found and loaded, nothing runs yet
//!    | Start #3, Exec #4, …  ─────────▶ |   several may be in flight
//!    | ◀─ Started #3  ◀─ Started #4     |
//!    | ◀─────────── Event::Exit         |   exactly one for every process that was started from outside,
//!    |                                  |   never before the `Started` of that process
//!    | Delete #5, Shutdown #6  ───────▶ |   the sentry exits after answering Shutdown
//! ```
//!
//! Trust: the shim believes nothing that the sentry says once a guest has run, so the checked decoders here
//! ([`ToSentry::decode_checked`], [`ToShim::decode_checked`]) bound every length and never panic. The sentry's input comes
//! from the trusted shim, but holds strings of a hostile `config.json`, so it goes through the same door.
//! A request that this version does not know is answered with [`ErrorCode::Unimplemented`].
//!
//! Read [`request`], then [`container`], then [`reply`]. [`launch`] holds what the sentry is started with. No I/O happens here.

pub mod check;
pub mod container;
pub mod frame;
pub mod launch;
pub mod reply;
pub mod request;

pub use check::{DecodeError, valid_id};
pub use container::*;
pub use reply::*;
pub use request::*;

/// Version of the protocol. Shim and sentry come from one build, so they must be equal; [`Configure`] carries it.
pub const VERSION: u32 = 1;

/// Longest encoded request: `execve`'s own limit for arguments and environment is 6 MiB here, the rest is small.
pub const MAX_REQUEST: usize = 16 << 20;

/// Longest encoded reply or event. The sentry is not trusted, so this also bounds what it can make the shim hold.
pub const MAX_REPLY: usize = 1 << 20;

/// Most descriptors with one message (the kernel's `SCM_MAX_FD` is 253).
pub const MAX_FDS: usize = 250;

#[cfg(test)]
mod tests;
