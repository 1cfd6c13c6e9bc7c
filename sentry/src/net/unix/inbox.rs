//! What has been sent to a socket and not received.
//!
//! One ring of bytes with the bounds of its messages; a stream's messages merge unless descriptors or different senders
//! keep them apart. The sender's `SO_SNDBUF` bounds it.
//!
//! Lock order: an inbox's state is a leaf except for guest memory. What is taken out is dropped after it is unlocked.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::UnixAddress;
use super::charge::{self, Pieces};
use crate::errno::{Errno, SysResult};
use crate::fs::byte_ring::ByteRing;
use crate::io::{IoDst, IoSrc};
use crate::net::control::{Identity, Received, Rights};
use crate::net::socket::{MsgFlags, Receipt};
use crate::vfs::File;
use crate::wait::{PollEvents, WaitQueue};

/// Messages of senders that are not our peer beyond which they wait (`net.unix.max_dgram_qlen`).
const STRANGERS: usize = 10;

/// One message, or a run of a stream.
struct Message {
    len: usize,
    identity: Option<Identity>,
    rights: Option<Rights>,
    from: Option<Arc<UnixAddress>>,
}

/// A message's companions on the way in.
pub(super) struct Parcel<'a> {
    pub identity: Option<Identity>,
    pub rights: &'a mut Option<Rights>,
    pub from: Option<Arc<UnixAddress>>,
    /// The sender's `SO_SNDBUF`, in bytes.
    pub limit: usize,
}

/// See the module.
pub struct Inbox {
    state: Mutex<State>,
    /// The owning socket's queue.
    pub(super) queue: Arc<WaitQueue>,
    /// Notified when there is space again: for senders of datagrams that are not connected to us.
    pub(super) space: Arc<WaitQueue>,
    /// The owner has `SO_PASSCRED`.
    pub(super) wants_identity: AtomicBool,
    /// The only inbox (by address) whose owner may send datagrams here; 0 is anybody.
    pub(super) only_from: AtomicUsize,
}

#[derive(Default)]
struct State {
    ring: ByteRing,
    messages: VecDeque<Message>,
    /// What the senders pay for all that.
    charge: usize,
    /// What a stream's is made of.
    pieces: Pieces,
    /// Nothing more will come: the peer shut down writing or is gone.
    ended: bool,
    /// The owner receives no more: shut down, or closed.
    refused: bool,
    /// The owner is closed.
    dead: bool,
    /// A pending error of the owner (`SO_ERROR`).
    error: Option<Errno>,
    /// A sender has found no space.
    starved: bool,
    limit: usize,
}

impl State {
    fn has_space(&self, limit: usize) -> bool {
        self.charge.saturating_mul(4) <= limit
    }

    /// Takes a stream's bytes in, buffer by buffer, for as long as the sender may begin another. A buffer for which the source has not
    /// all bytes is none: `EFAULT` if it is the first.
    fn take_in(&mut self, src: &mut dyn IoSrc, limit: usize) -> SysResult<usize> {
        let mut done: usize = 0;
        while self.charge < limit && src.remaining() > 0 {
            let wanted = charge::next_piece(src.remaining(), limit);
            let filled = self.ring.fill(src, wanted).and_then(|filled| {
                if filled == wanted {
                    return Ok(());
                }
                self.ring.retract(filled);
                Err(Errno::EFAULT)
            });
            match filled {
                Ok(()) => {}
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
            self.charge = self.charge.saturating_add(self.pieces.add(wanted));
            done = done.saturating_add(wanted);
        }
        Ok(done)
    }
}

impl Inbox {
    pub fn new(queue: &Arc<WaitQueue>) -> Arc<Inbox> {
        Arc::new(Inbox {
            state: Mutex::default(),
            queue: queue.clone(),
            space: Arc::default(),
            wants_identity: AtomicBool::new(false),
            only_from: AtomicUsize::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// Whether nothing more will come.
    pub fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// Nothing more will come.
    pub fn end(&self, error: Option<Errno>) {
        let mut state = self.lock();
        state.ended = true;
        state.error = state.error.or(error);
        drop(state);
        let events = PollEvents::READABLE | PollEvents::WRITABLE | PollEvents::RDHUP | PollEvents::HUP;
        self.queue.notify(events);
    }

    /// The owner receives no more.
    pub fn refuse(&self) {
        let mut state = self.lock();
        state.refused = true;
        state.ended = true;
        drop(state);
        self.queue.notify(PollEvents::READABLE | PollEvents::RDHUP | PollEvents::HUP);
        self.space.notify(PollEvents::WRITABLE);
    }

    /// The owner was closed. Returns whether something was not received.
    pub fn close(&self) -> bool {
        let mut state = self.lock();
        (state.refused, state.ended, state.dead) = (true, true, true);
        let unread = !state.messages.is_empty();
        state.ring.clear();
        state.charge = 0;
        state.pieces.clear();
        let messages = std::mem::take(&mut state.messages);
        drop(state);
        drop(messages);
        self.space.notify(PollEvents::WRITABLE | PollEvents::HUP);
        unread
    }

    /// Whether the owner receives no more.
    pub fn refuses(&self) -> bool {
        self.lock().refused
    }

    /// Takes the pending error.
    pub fn take_error(&self) -> Option<Errno> {
        self.lock().error.take()
    }

    pub fn has_error(&self) -> bool {
        self.lock().error.is_some()
    }

    pub fn is_readable(&self) -> bool {
        !self.lock().messages.is_empty()
    }

    /// Whether a sender with this `SO_SNDBUF` may go on; if not, it will be told.
    pub fn is_writable(&self, limit: usize, strangers: bool) -> bool {
        let mut state = self.lock();
        let writable = state.has_space(limit) && !(strangers && state.messages.len() > STRANGERS);
        state.starved |= !writable;
        state.limit = limit;
        writable
    }

    /// Bytes of a stream, or of the first message.
    pub fn readable_bytes(&self, stream: bool) -> usize {
        let state = self.lock();
        if stream { state.ring.len() } else { state.messages.front().map_or(0, |message| message.len) }
    }

    /// Bytes sent here and not received.
    pub fn pending_bytes(&self) -> usize {
        self.lock().charge
    }

    /// Takes as much of `src` as there is space for. `EPIPE` when the owner receives no more, `EAGAIN` without space.
    pub fn push_stream(&self, src: &mut dyn IoSrc, parcel: Parcel<'_>) -> SysResult<usize> {
        let mut state = self.lock();
        if state.refused {
            return Err(Errno::EPIPE);
        }
        state.limit = parcel.limit;
        if state.charge >= parcel.limit {
            state.starved = true;
            return Err(Errno::EAGAIN);
        }
        let put = state.take_in(src, parcel.limit)?;
        state.starved |= src.remaining() > 0;
        let rights = parcel.rights.take();
        let same = |last: &Message| match (&last.identity, &parcel.identity) {
            (None, None) => true,
            (Some(a), Some(b)) => a.same(b),
            _ => false,
        };
        match state.messages.back_mut() {
            Some(last) if rights.is_none() && last.rights.is_none() && same(last) => {
                last.len = last.len.saturating_add(put);
            }
            _ => {
                let message = Message { len: put, identity: parcel.identity, rights, from: parcel.from };
                state.messages.push_back(message);
            }
        }
        let waited_for = !self.queue.has_nobody();
        drop(state);
        if waited_for {
            self.queue.notify(PollEvents::READABLE);
        }
        Ok(put)
    }

    /// Whether a message would be taken now. `EPIPE` when the owner receives no more, `EAGAIN` without space.
    pub fn may_push(&self, limit: usize, strangers: bool) -> SysResult {
        let mut state = self.lock();
        if state.refused {
            return Err(Errno::EPIPE);
        }
        state.limit = limit;
        if state.charge >= limit || (strangers && state.messages.len() > STRANGERS) {
            state.starved = true;
            return Err(Errno::EAGAIN);
        }
        Ok(())
    }

    /// Takes a whole message, after [`Inbox::may_push`] has said yes. Senders that were asked at the same time may exceed
    /// the limit by a message each. `EPIPE` when the owner receives no more.
    pub fn push_message(&self, data: &[u8], parcel: Parcel<'_>) -> SysResult<usize> {
        let mut state = self.lock();
        if state.refused {
            return Err(Errno::EPIPE);
        }
        state.ring.push(data);
        state.charge = state.charge.saturating_add(charge::of_message(data.len()));
        let rights = parcel.rights.take();
        state.messages.push_back(Message {
            len: data.len(),
            identity: parcel.identity,
            rights,
            from: parcel.from,
        });
        drop(state);
        self.queue.notify(PollEvents::READABLE);
        Ok(data.len())
    }

    /// What a receive finds when there is no message: the pending error, the end, or `EAGAIN`.
    fn nothing(state: &mut State) -> SysResult<Receipt> {
        match state.error.take() {
            Some(error) => Err(error),
            None if state.ended => Ok(Receipt::default()),
            None => Err(Errno::EAGAIN),
        }
    }

    /// Receives from a stream. Returns also whether senders should be told of space.
    pub fn take_stream(&self, dst: &mut dyn IoDst, flags: MsgFlags) -> SysResult<(Receipt, bool)> {
        let wanted = self.wants_identity.load(Ordering::Relaxed);
        let peek = flags.contains(MsgFlags::PEEK);
        let mut state = self.lock();
        if state.messages.is_empty() {
            return Inbox::nothing(&mut state).map(|receipt| (receipt, false));
        }
        let mut receipt = Receipt::default();
        let mut index: usize = 0;
        let mut sender: Option<Identity> = None;
        while dst.remaining() > 0 {
            let State { ring, messages, charge, pieces, .. } = &mut *state;
            let Some(message) = messages.get_mut(index) else { break };
            let identity = message.identity.clone().unwrap_or_else(Identity::nobody);
            if wanted && sender.as_ref().is_some_and(|first| !first.same(&identity)) {
                break;
            }
            let skip = if peek { receipt.copied } else { 0 };
            let copied = match ring.peek(dst, skip, message.len) {
                Ok(copied) => copied,
                Err(error) if receipt.copied == 0 => return Err(error),
                Err(_) => break,
            };
            receipt.copied = receipt.copied.saturating_add(copied);
            sender.get_or_insert(identity);
            if receipt.address.is_empty() {
                receipt.address = message.from.as_ref().map_or_else(Vec::new, |from| from.to_bytes());
            }
            let had_rights = message.rights.is_some();
            if peek {
                receipt.control.files = peeked(message.rights.as_ref());
                index = index.saturating_add(1);
                if had_rights || copied < message.len {
                    break;
                }
                continue;
            }
            if let Some(rights) = message.rights.take() {
                receipt.control.files = rights.into_files();
            }
            ring.discard(copied);
            *charge = charge.saturating_sub(pieces.take(copied));
            message.len = message.len.saturating_sub(copied);
            let partial = message.len > 0;
            if !partial {
                messages.pop_front();
            }
            if had_rights || partial {
                break;
            }
        }
        receipt.full = receipt.copied;
        receipt.control.identity = sender.filter(|_| wanted);
        let tell = self.after_taking(&mut state);
        Ok((receipt, tell))
    }

    /// Receives one message; what does not fit is lost. Returns also whether senders should be told of space.
    pub fn take_message(&self, dst: &mut dyn IoDst, flags: MsgFlags) -> SysResult<(Receipt, bool)> {
        let mut state = self.lock();
        let Some(message) = state.messages.front() else {
            return Inbox::nothing(&mut state).map(|receipt| (receipt, false));
        };
        let full = message.len;
        let copied = if full == 0 { 0 } else { state.ring.peek(dst, 0, full)? };
        let from = message.from.as_ref().map_or_else(Vec::new, |from| from.to_bytes());
        let identity = message.identity.clone().unwrap_or_else(Identity::nobody);
        let identity = Some(identity).filter(|_| self.wants_identity.load(Ordering::Relaxed));
        let mut receipt =
            Receipt { copied, full, address: from, control: Received { files: Vec::new(), identity } };
        if flags.contains(MsgFlags::PEEK) {
            receipt.control.files = peeked(message.rights.as_ref());
            return Ok((receipt, false));
        }
        let message = state.messages.pop_front();
        state.ring.discard(full);
        state.charge = state.charge.saturating_sub(charge::of_message(full));
        let tell = self.after_taking(&mut state);
        drop(state);
        if let Some(rights) = message.and_then(|message| message.rights) {
            receipt.control.files = rights.into_files();
        }
        Ok((receipt, tell))
    }

    fn after_taking(&self, state: &mut State) -> bool {
        let tell = state.starved && state.has_space(state.limit) && state.messages.len() <= STRANGERS
            || state.starved && state.messages.is_empty();
        if tell {
            state.starved = false;
        }
        tell
    }

    /// Runs `act` over the descriptions in its messages.
    pub(super) fn for_each_file(&self, mut act: impl FnMut(&Arc<File>)) {
        let state = self.lock();
        let rights = state.messages.iter().filter_map(|message| message.rights.as_ref());
        rights.flat_map(Rights::files).for_each(&mut act);
    }

    /// Takes every description out of its messages.
    pub(super) fn take_rights(&self) -> Vec<Rights> {
        self.lock().messages.iter_mut().filter_map(|message| message.rights.take()).collect()
    }
}

fn peeked(rights: Option<&Rights>) -> Vec<Arc<File>> {
    rights.map_or_else(Vec::new, |rights| rights.files().to_vec())
}
