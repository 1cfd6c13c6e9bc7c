//! The file protocol between a sentry (client) and its gofer (server).
//!
//! One connection serves one mount. It is a `SOCK_SEQPACKET` pair: a packet is a [`Header`] and a payload, at most
//! [`MAX_MESSAGE`] bytes together; descriptors ride along as `SCM_RIGHTS`. Small messages may take a shared-memory
//! [`channel`] instead, with the same header and payload. Every request has exactly one reply, which carries the request's
//! message number and tag, and either an errno with no payload or the payload that the message defines.
//!
//! Read first: [`Request`] (everything a client may ask), then [`reply`]. [`launch`] is how a gofer is started.
//!
//! **Contract of this module:** it holds data only. Nothing here does I/O, and no bytes can make it panic: `parse` returns a
//! type that can only be valid, or a [`WireError`]. What `parse` cannot know (whether an id exists, whether a name may be
//! created) is for the server to find out.
//!
//! All integers are little endian and unaligned. Ids ([`FdId`]) are chosen by the server and mean nothing on another
//! connection.

pub mod attr;
pub mod channel;
mod cursor;
pub mod header;
pub mod launch;
pub mod name;
pub mod reply;
pub mod request;
#[cfg(test)]
mod tests;

pub use attr::{Attr, Device, FileKind, Owner, SetAttr, SetTime, Timestamp};
pub use header::{Header, MessageId};
pub use name::{LinkTarget, Name, XattrName};
pub use request::Request;

use thiserror::Error;

/// The protocol's version. A server refuses a client that speaks another (`EPROTONOSUPPORT`).
pub const VERSION: u32 = 3;
/// Largest packet in bytes, header included: an xattr of the largest size (64 KiB) with its name fits.
pub const MAX_MESSAGE: usize = 72 * 1024;
/// Largest payload in bytes.
pub const MAX_PAYLOAD: usize = MAX_MESSAGE - header::HEADER_SIZE;
/// Largest number of data bytes in one read, write, directory or xattr reply.
pub const MAX_DATA: usize = 64 * 1024;
/// Longest file name in bytes (Linux's `NAME_MAX`).
pub const NAME_MAX: usize = 255;
/// Longest symbolic link target in bytes (Linux's `PATH_MAX` less its NUL).
pub const TARGET_MAX: usize = 4095;
/// Most components in one walk.
pub const WALK_MAX: usize = 64;
/// Most ids in one close or fsync.
pub const IDS_MAX: usize = 1024;
/// Most descriptors with one packet.
pub const FDS_MAX: usize = 128;
/// Most entries in one reply to [`Request::ReadDirPlus`].
pub const PLUS_MAX: u32 = 128;
/// Most fast channels of a connection.
pub const CHANNELS_MAX: usize = 8;

/// An object that the server holds for a client: an index and a generation in one number, so that a stale id is noticed.
///
/// An id is an allegation: only the server's table tells whether it names anything. Zero never does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FdId(core::num::NonZeroU64);

impl FdId {
    /// The id with this number; `None` for zero.
    pub const fn new(raw: u64) -> Option<Self> {
        match core::num::NonZeroU64::new(raw) {
            Some(raw) => Some(Self(raw)),
            None => None,
        }
    }

    /// The number that travels.
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

/// Why bytes are not a message. A server answers [`WireError::errno`] and keeps the connection.
///
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// Fewer bytes than the header or the fixed part of a message.
    #[error("message is truncated")]
    Truncated,
    /// The header's length is not the number of bytes that came.
    #[error("message length does not match its packet")]
    Length,
    /// Bytes are left over behind the last field.
    #[error("message has trailing bytes")]
    Trailing,
    /// No such message number.
    #[error("unknown message")]
    UnknownMessage,
    /// A file name that is empty, `.` or `..`, or holds `/` or NUL.
    #[error("invalid name")]
    Name,
    /// A name, target or list longer than the protocol allows.
    #[error("name or list too long")]
    TooLong,
    /// A field with a value outside its range, or unknown flag bits.
    #[error("invalid field")]
    Field,
    /// Id zero.
    #[error("invalid id")]
    Id,
}

impl WireError {
    /// The errno that a server answers, as a Linux number.
    pub const fn errno(self) -> u16 {
        match self {
            WireError::Truncated | WireError::Length | WireError::Trailing => 74, // EBADMSG
            WireError::UnknownMessage => 38,                                      // ENOSYS
            WireError::Name | WireError::Field => 22,                             // EINVAL
            WireError::TooLong => 36,                                             // ENAMETOOLONG
            WireError::Id => 9,                                                   // EBADF
        }
    }
}
