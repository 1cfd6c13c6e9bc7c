#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    warn(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )
)]
//! Serves a container's files to its sentry, over the protocol of [`caisson_proto::lisafs`].
//!
//! **The client is hostile.** It may be a sentry that guest code has taken over. It may send any bytes, any ids, any
//! descriptors, as many as it likes and in any order; all that it may reach is what lies below its mounts' roots, and all that
//! it may spoil is its own connection.
//!
//! How that is kept:
//! - An operation acts on a descriptor that the server holds ([`table`]), and at most one checked name in it. No path string is
//!   ever resolved; a walk takes one component at a time with `openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS |
//!   RESOLVE_NO_MAGICLINKS)` ([`host`]).
//! - Only regular files and directories are opened, through the descriptor that the walk got, never by name again. The exception is a listing of
//!   a directory on a mount without devices: what it calls regular files is opened by name, beneath the directory and without waiting, and
//!   what turns out to be no regular file is closed unused ([`host::Host::read_here`]).
//! - What a client can make the server hold is bounded ([`limits`]): when the bound is reached it gets `EMFILE`.
//! - A read-only mount refuses changes before any system call ([`ops`]).
//! - The process confines itself before it reads the first message ([`confine`]).
//!
//! Threads: one per connection and one per fast channel, so that a slow operation holds up nobody else. The state they share is
//! a connection's table. Lock order: a directory's position ([`table::OpenDir`]) before the table, a connection's channels apart; neither is held while a
//! reply is sent.
//!
//! Read first: [`session`] (one connection), then [`ops`].

pub mod attr;
pub mod channel;
pub mod config;
pub mod confine;
pub mod host;
pub mod limits;
pub mod ops;
pub mod session;
pub mod table;
pub mod transport;

pub use session::{MountOptions, Session, serve};
