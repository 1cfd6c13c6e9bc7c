//! The header in front of every message, and the message numbers.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{MAX_PAYLOAD, WireError};

/// Bytes of a [`Header`] on the wire.
pub const HEADER_SIZE: usize = size_of::<RawHeader>();
/// Largest errno that a reply may carry (Linux's `MAX_ERRNO`).
const ERRNO_MAX: u16 = 4095;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    length: U32,
    message: U16,
    errno: U16,
    tag: U32,
    fds: U16,
    reserved: U16,
}

/// What comes in front of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Payload bytes that follow, at most [`MAX_PAYLOAD`].
    pub length: u32,
    /// The message number as it came. A server must be able to answer numbers that it does not know.
    pub message: u16,
    /// Replies: zero, or the Linux errno of the failure. Requests: zero.
    pub errno: u16,
    /// Chosen by the client, echoed by the server.
    pub tag: u32,
    /// Descriptors that accompany the message.
    pub fds: u16,
}

impl Header {
    /// Reads the header at the start of `packet`.
    ///
    /// # Errors
    /// [`WireError::Truncated`] when there are too few bytes, [`WireError::Length`] when the length exceeds what a payload
    /// may have, [`WireError::Field`] when the errno or the reserved field is out of range.
    pub fn parse(packet: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (raw, rest) = RawHeader::read_from_prefix(packet).map_err(|_| WireError::Truncated)?;
        let length = raw.length.get();
        if usize::try_from(length).map_or(true, |length| length > MAX_PAYLOAD) {
            return Err(WireError::Length);
        }
        let errno = raw.errno.get();
        if errno > ERRNO_MAX || raw.reserved.get() != 0 {
            return Err(WireError::Field);
        }
        Ok((Self { length, message: raw.message.get(), errno, tag: raw.tag.get(), fds: raw.fds.get() }, rest))
    }

    /// Reads the header of a packet whose bytes must be the header and its payload exactly, as on the socket.
    ///
    /// # Errors
    /// As [`Header::parse`], and [`WireError::Length`] when the payload is not as long as the header says.
    pub fn parse_packet(packet: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (header, payload) = Self::parse(packet)?;
        if usize::try_from(header.length) != Ok(payload.len()) {
            return Err(WireError::Length);
        }
        Ok((header, payload))
    }

    /// The header's bytes.
    pub fn to_bytes(self) -> [u8; HEADER_SIZE] {
        let raw = RawHeader {
            length: self.length.into(),
            message: self.message.into(),
            errno: self.errno.into(),
            tag: self.tag.into(),
            fds: self.fds.into(),
            reserved: 0.into(),
        };
        zerocopy::transmute!(raw)
    }
}

macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// The number of a message.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum MessageId {
            $($(#[$doc])* $name = $number,)*
        }

        impl MessageId {
            /// Every message, in order of number.
            pub const ALL: &'static [MessageId] = &[$(MessageId::$name,)*];

            /// The message with this number.
            pub const fn from_number(number: u16) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// The message's name, for logs.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

messages! {
    /// Says hello and gets the root. Must be the first message, and only the first.
    Mount = 1,
    /// Sets up a fast channel.
    Channel = 2,
    /// Walks components from a directory.
    Walk = 3,
    /// Attributes of an object.
    Stat = 4,
    /// Changes attributes.
    SetAttr = 5,
    /// Opens a file or directory.
    Open = 6,
    /// Creates and opens a regular file.
    Create = 7,
    /// Creates a directory.
    Mkdir = 8,
    /// Creates a regular file, FIFO, socket node or device node without opening it.
    Mknod = 9,
    /// Creates a symbolic link.
    Symlink = 10,
    /// Creates a hard link.
    Link = 11,
    /// Removes a name.
    Unlink = 12,
    /// Renames or exchanges names.
    Rename = 13,
    /// Reads directory entries.
    ReadDir = 14,
    /// Reads a symbolic link.
    ReadLink = 15,
    /// Reads an extended attribute.
    GetXattr = 16,
    /// Sets an extended attribute.
    SetXattr = 17,
    /// Lists extended attributes.
    ListXattr = 18,
    /// Removes an extended attribute.
    RemoveXattr = 19,
    /// Writes files' data to the disk.
    Fsync = 20,
    /// Allocates, punches or zeroes space.
    Fallocate = 21,
    /// What `close(2)` of a guest descriptor does to a network file system.
    Flush = 22,
    /// Attributes of the file system.
    StatFs = 23,
    /// Connects to a host's unix socket.
    Connect = 24,
    /// Creates and binds a host unix socket.
    Bind = 25,
    /// Makes a bound socket listen.
    Listen = 26,
    /// Accepts a connection; `EAGAIN` when there is none.
    Accept = 27,
    /// Reads at an offset.
    Read = 28,
    /// Writes at an offset.
    Write = 29,
    /// Forgets ids.
    Close = 30,
    /// Writes a whole file system to the disk.
    SyncFs = 31,
    /// Creates and opens a regular file without a name.
    CreateUnnamed = 32,
    /// Donates a descriptor that tells attributes and nothing else.
    Witness = 33,
    /// Reads directory entries with what walks to them would give.
    ReadDirPlus = 34,
    /// Opens a directory and reads its first entries, or all.
    List = 35,
}
