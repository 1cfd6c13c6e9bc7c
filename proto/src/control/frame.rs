//! Cuts messages into packets and puts them together again.
//!
//! A `SOCK_SEQPACKET` packet is bounded by the socket's send buffer (208 KiB by default), an `execve` with 100,000 arguments is
//! not. So a message is sent as one or more packets of at most [`MAX_PACKET`] bytes:
//!
//! ```text
//!   0      4        8               12
//!   +------+--------+----------------+------------------
//!   | magic| flags  | bytes that are |  payload …
//!   | CSN1 | 1=MORE | still to come  |
//!   +------+--------+----------------+------------------
//! ```
//!
//! "still to come" counts this packet's payload too, so the first packet announces the total and a missing packet is noticed.
//! A sender never mixes the packets of two messages. Descriptors come with a message's first packet only.

use thiserror::Error;

use super::MAX_FDS;

/// Longest packet, header included. Well under the default send buffer, so that sending never fails with `EMSGSIZE`.
pub const MAX_PACKET: usize = 64 << 10;

const HEADER: usize = 12;
const MAX_PAYLOAD: usize = MAX_PACKET - HEADER;
const MAGIC: u32 = u32::from_le_bytes(*b"CSN1");
const MORE: u32 = 1;

/// What is wrong with a packet. The stream cannot be used after any of these.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// The packet is shorter than its header or longer than [`MAX_PACKET`].
    #[error("control packet has an impossible length of {0} bytes")]
    Length(usize),
    /// The magic number or the flags are not ours.
    #[error("control packet starts with {0:#x}, which is not this protocol")]
    Magic(u32),
    /// The lengths of the packets of one message contradict each other.
    #[error("control packet announces {announced} bytes where {expected} were expected")]
    Remaining {
        /// Bytes that the header announces.
        announced: usize,
        /// Bytes that the preceding packets left, or the packet's own payload.
        expected: usize,
    },
    /// The message is longer than this direction allows.
    #[error("control message of {0} bytes is longer than the limit of {1}")]
    TooLong(usize, usize),
    /// More descriptors than a message may carry, or descriptors where none belong.
    #[error("control message carries {0} descriptors where it may not")]
    Descriptors(usize),
}

/// The packets of one encoded message, in the order in which they must be sent. There is at least one.
///
/// # Errors
/// [`FrameError::TooLong`] when the message exceeds `limit` bytes.
pub fn packets(message: &[u8], limit: usize) -> Result<Vec<Vec<u8>>, FrameError> {
    if message.len() > limit || u32::try_from(message.len()).is_err() {
        return Err(FrameError::TooLong(message.len(), limit));
    }
    let mut out = Vec::new();
    let mut rest = message;
    loop {
        let (now, later) = rest.split_at(rest.len().min(MAX_PAYLOAD));
        let mut packet = Vec::with_capacity(HEADER.saturating_add(now.len()));
        packet.extend_from_slice(&MAGIC.to_le_bytes());
        packet.extend_from_slice(&if later.is_empty() { 0 } else { MORE }.to_le_bytes());
        packet.extend_from_slice(&u32::try_from(rest.len()).unwrap_or(u32::MAX).to_le_bytes());
        packet.extend_from_slice(now);
        out.push(packet);
        if later.is_empty() {
            return Ok(out);
        }
        rest = later;
    }
}

/// A message that has arrived in full, with the descriptors that came with it.
#[derive(Debug)]
pub struct Assembled<F> {
    /// The encoded message.
    pub bytes: Vec<u8>,
    /// Its descriptors, in the sender's order.
    pub fds: Vec<F>,
}

/// Puts packets together. `F` is the descriptor type of the caller (`OwnedFd`; `()` in tests).
#[derive(Debug)]
pub struct Assembler<F> {
    limit: usize,
    bytes: Vec<u8>,
    fds: Vec<F>,
    remaining: Option<usize>,
}

impl<F> Assembler<F> {
    /// An assembler for messages of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { limit, bytes: Vec::new(), fds: Vec::new(), remaining: None }
    }

    /// True between the first and the last packet of a message: the peer must not close now.
    pub fn in_message(&self) -> bool {
        self.remaining.is_some()
    }

    /// Takes the next packet; gives the message when it was the last of one.
    ///
    /// # Errors
    /// Any [`FrameError`]; the connection should be closed then. Descriptors that came along are dropped.
    pub fn push(&mut self, packet: &[u8], fds: Vec<F>) -> Result<Option<Assembled<F>>, FrameError> {
        if packet.len() > MAX_PACKET {
            return Err(FrameError::Length(packet.len()));
        }
        let (header, payload) = packet.split_at_checked(HEADER).ok_or(FrameError::Length(packet.len()))?;
        let (magic, flags, announced) = (word(header, 0), word(header, 4), word(header, 8));
        if magic != MAGIC || flags & !MORE != 0 {
            return Err(FrameError::Magic(magic));
        }
        let announced = usize::try_from(announced).unwrap_or(usize::MAX);
        match self.remaining {
            None if announced > self.limit => return Err(FrameError::TooLong(announced, self.limit)),
            None if fds.len() > MAX_FDS => return Err(FrameError::Descriptors(fds.len())),
            None => self.fds = fds,
            Some(_) if !fds.is_empty() => return Err(FrameError::Descriptors(fds.len())),
            Some(expected) if expected != announced => {
                return Err(FrameError::Remaining { announced, expected });
            }
            Some(_) => {}
        }
        let left = announced
            .checked_sub(payload.len())
            .ok_or(FrameError::Remaining { announced, expected: payload.len() })?;
        let more = flags & MORE != 0;
        // A packet with MORE and nothing in it would let a peer keep us busy for ever.
        if more == (left == 0) || (more && payload.is_empty()) {
            return Err(FrameError::Remaining { announced, expected: payload.len() });
        }
        self.bytes.extend_from_slice(payload);
        if more {
            self.remaining = Some(left);
            return Ok(None);
        }
        self.remaining = None;
        Ok(Some(Assembled { bytes: std::mem::take(&mut self.bytes), fds: std::mem::take(&mut self.fds) }))
    }
}

fn word(header: &[u8], at: usize) -> u32 {
    header.get(at..).and_then(|b| b.first_chunk::<4>()).map_or(0, |b| u32::from_le_bytes(*b))
}
