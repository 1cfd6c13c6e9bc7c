//! The layout of a fast channel's shared memory.
//!
//! A channel is a sealed memfd of [`SIZE`] bytes and a socket. One request is in flight at a time. The client writes header and
//! payload into the message area, then stores [`REQUEST`] into the state word and wakes it; the server copies the message out
//! (so that what it checks is what it uses), works, writes the reply into the same area, stores [`REPLY`] and wakes the word.
//! Descriptors of a reply are sent on the channel's socket *before* `REPLY` is stored, in one packet of one byte.
//!
//! Each side that is about to sleep on the word says so in its `SLEEPING` word, so that the other spares the wake-up call when
//! nobody sleeps. A side that lies about it only delays itself. When either side goes away the socket hangs up: that, and
//! not the memory, tells the other.

use super::MAX_MESSAGE;

/// Offset of the state word.
pub const STATE: usize = 0;
/// Offset of the word that is 1 while the server sleeps, on a cache line of its own.
pub const SERVER_SLEEPING: usize = 64;
/// Offset of the word that is 1 while the client sleeps.
pub const CLIENT_SLEEPING: usize = 128;
/// Offset of the message area.
pub const MESSAGE: usize = 4096;
/// Bytes of the message area.
pub const MESSAGE_SIZE: usize = MAX_MESSAGE;
/// Bytes of the whole memory.
pub const SIZE: usize = MESSAGE + MESSAGE_SIZE;

/// State: nothing has been asked yet.
pub const IDLE: u32 = 0;
/// State: the message area holds a request.
pub const REQUEST: u32 = 1;
/// State: the message area holds a reply.
pub const REPLY: u32 = 2;
/// State: the server has given up the channel.
pub const DEAD: u32 = 3;
