//! The server behind the shim's requests (`caisson_proto::control`).
//!
//! [`connection`] moves messages and descriptors, [`convert`] turns messages into the kernel's plain data, [`exits`] keeps exit
//! events in order, [`server`] carries requests out. Requests that may wait for a file or for tasks (create, exec, pause, wait,
//! delete) get a thread each; the shim is trusted not to have too many under way. Others are answered at once.
//!
//! The connection's end is the sandbox's end: everything is killed and the process exits.

pub mod connection;
pub mod convert;
pub mod exits;
pub mod server;

pub use connection::Connection;
pub use server::{ServeError, serve};
