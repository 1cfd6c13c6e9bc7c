//! System V message queues (`msgsnd(2)`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::ids::{Ids, Object, Perm};
use super::{Actor, now};
use crate::errno::{Errno, SysResult};
use crate::wait::{PollEvents, WaitQueue};

/// Most queues (`kernel.msgmni`).
pub const MAX_QUEUES: usize = 32_000;
/// Longest message in bytes (`kernel.msgmax`).
pub const MAX_MESSAGE: usize = 8192;
/// Bytes that a new queue holds (`kernel.msgmnb`).
pub const QUEUE_BYTES: u64 = 16_384;
/// Bytes that all queues of a namespace may hold, messages' overhead included: beyond there is no memory.
const MAX_BYTES: usize = 64 << 20;
/// What a message costs beyond its text.
const OVERHEAD: usize = 64;

/// The queues of a namespace.
pub struct Queues {
    ids: Ids<Queue>,
    bytes: Arc<AtomicUsize>,
}

impl Default for Queues {
    fn default() -> Self {
        Queues { ids: Ids::new(MAX_QUEUES), bytes: Arc::default() }
    }
}

impl std::ops::Deref for Queues {
    type Target = Ids<Queue>;

    fn deref(&self) -> &Ids<Queue> {
        &self.ids
    }
}

impl Queues {
    /// A queue, to be put into the table.
    pub fn make(&self, perm: Perm) -> Arc<Queue> {
        let state = State { limit: QUEUE_BYTES, changed: now(), ..State::default() };
        Arc::new(Queue {
            perm: Mutex::new(perm),
            state: Mutex::new(state),
            space: WaitQueue::new(),
            arrival: WaitQueue::new(),
            bytes: self.bytes.clone(),
        })
    }

    /// `IPC_RMID`: who waits gets `EIDRM`.
    pub fn destroy(&self, queue: &Queue) -> SysResult {
        self.remove(queue)?;
        queue.clear();
        queue.space.notify(PollEvents::WRITABLE);
        queue.arrival.notify(PollEvents::READABLE);
        Ok(())
    }

    /// Messages in all queues, and their bytes.
    pub fn load(&self) -> (usize, u64) {
        self.list().iter().fold((0, 0), |(messages, bytes), queue| {
            let state = queue.state.lock();
            (messages.saturating_add(state.messages.len()), bytes.saturating_add(state.bytes))
        })
    }
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its type, at least 1.
    pub kind: i64,
    /// Its text.
    pub text: Vec<u8>,
}

/// Which message a receiver wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The first.
    Any,
    /// The first of this type.
    Kind(i64),
    /// The first of another type (`MSG_EXCEPT`).
    Not(i64),
    /// The first of the lowest type up to this one.
    UpTo(i64),
    /// A copy of the nth (`MSG_COPY`).
    CopyOf(usize),
}

/// What happened to a queue, and how full it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Status {
    /// `msg_stime`, `msg_rtime`, `msg_ctime`
    pub times: [i64; 3],
    /// Bytes and messages in it.
    pub bytes: u64,
    /// See `bytes`.
    pub messages: u64,
    /// Most bytes (`msg_qbytes`).
    pub limit: u64,
    /// The last sender and the last receiver.
    pub last: [Actor; 2],
}

#[derive(Default)]
struct State {
    messages: VecDeque<Message>,
    bytes: u64,
    limit: u64,
    sent: i64,
    received: i64,
    changed: i64,
    sender: Actor,
    receiver: Actor,
}

/// A queue.
pub struct Queue {
    perm: Mutex<Perm>,
    state: Mutex<State>,
    /// Notified when there is room.
    space: WaitQueue,
    /// Notified when there is a message.
    arrival: WaitQueue,
    bytes: Arc<AtomicUsize>,
}

impl Object for Queue {
    fn perm(&self) -> &Mutex<Perm> {
        &self.perm
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.clear();
    }
}

fn cost(message: &Message) -> usize {
    message.text.len().saturating_add(OVERHEAD)
}

impl Queue {
    /// Notified when there is room.
    pub fn space(&self) -> &WaitQueue {
        &self.space
    }

    /// Notified when there is a message.
    pub fn arrival(&self) -> &WaitQueue {
        &self.arrival
    }

    /// Its status.
    pub fn status(&self) -> Status {
        let state = self.state.lock();
        Status {
            times: [state.sent, state.received, state.changed],
            bytes: state.bytes,
            messages: state.messages.len() as u64,
            limit: state.limit,
            last: [state.sender, state.receiver],
        }
    }

    /// `IPC_SET`: notes the change, and how many bytes it may hold from now on.
    pub fn set_limit(&self, limit: u64) {
        let mut state = self.state.lock();
        (state.limit, state.changed) = (limit, now());
        drop(state);
        self.space.notify(PollEvents::WRITABLE);
    }

    fn clear(&self) {
        let mut state = self.state.lock();
        let messages = std::mem::take(&mut state.messages);
        state.bytes = 0;
        drop(state);
        self.bytes.fetch_sub(messages.iter().map(cost).sum(), Ordering::Relaxed);
    }

    fn exists(&self) -> SysResult {
        if self.perm.lock().removed { Err(Errno::EIDRM) } else { Ok(()) }
    }

    /// Appends the message. `EAGAIN` while there is no room for it, `EIDRM`, `ENOMEM`.
    pub fn send(&self, message: &Message, who: Actor) -> SysResult {
        self.exists()?;
        let mut state = self.state.lock();
        let bytes = state.bytes.saturating_add(message.text.len() as u64);
        if bytes > state.limit || state.messages.len() as u64 >= state.limit {
            return Err(Errno::EAGAIN);
        }
        let cost = cost(message);
        let room = |used: usize| used.checked_add(cost).filter(|sum| *sum <= MAX_BYTES);
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).map_err(|_| Errno::ENOMEM)?;
        state.messages.push_back(message.clone());
        state.bytes = bytes;
        (state.sent, state.sender) = (now(), who);
        drop(state);
        self.arrival.notify(PollEvents::READABLE);
        Ok(())
    }

    /// Takes the message that is wanted. `EAGAIN` while there is none, `E2BIG` if it is longer than `room` and may not be
    /// `cut`, `EIDRM`.
    pub fn receive(&self, wanted: Wanted, room: usize, cut: bool, who: Actor) -> SysResult<Message> {
        self.exists()?;
        let mut state = self.state.lock();
        let index = state.find(wanted).ok_or(Errno::EAGAIN)?;
        let message = state.messages.get(index).ok_or(Errno::EAGAIN)?;
        if message.text.len() > room && !cut {
            return Err(Errno::E2BIG);
        }
        if let Wanted::CopyOf(_) = wanted {
            return Ok(message.clone());
        }
        let message = state.messages.remove(index).ok_or(Errno::EAGAIN)?;
        state.bytes = state.bytes.saturating_sub(message.text.len() as u64);
        (state.received, state.receiver) = (now(), who);
        drop(state);
        self.bytes.fetch_sub(cost(&message), Ordering::Relaxed);
        self.space.notify(PollEvents::WRITABLE);
        Ok(message)
    }
}

impl State {
    fn find(&self, wanted: Wanted) -> Option<usize> {
        let mut kinds = self.messages.iter().map(|message| message.kind);
        match wanted {
            Wanted::Any => (!self.messages.is_empty()).then_some(0),
            Wanted::Kind(kind) => kinds.position(|other| other == kind),
            Wanted::Not(kind) => kinds.position(|other| other != kind),
            Wanted::UpTo(limit) => {
                let lowest =
                    self.messages.iter().map(|message| message.kind).min().filter(|kind| *kind <= limit)?;
                kinds.position(|other| other == lowest)
            }
            Wanted::CopyOf(index) => (index < self.messages.len()).then_some(index),
        }
    }
}
