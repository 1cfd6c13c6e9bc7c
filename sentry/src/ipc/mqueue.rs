//! A POSIX message queue (`mq_overview(7)`): messages by priority, and who is told of the first one.
//!
//! Names and descriptors are [`crate::fs::mqueue`]'s. Lock order: a queue's state is a leaf; signals are sent without it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::errno::{Errno, SysResult};
use crate::task::signal::SigFields;
use crate::task::{SigInfo, Signal, Task, ThreadGroup};
use crate::wait::{PollEvents, WaitQueue};

/// Priorities are below this (`MQ_PRIO_MAX`).
pub const PRIORITIES: u32 = 32_768;
/// Messages and bytes of a message that anybody may ask for, and that a queue gets by default (`fs.mqueue`).
pub const USUAL: Settings = Settings { messages: 10, size: 8192 };
/// The most that `CAP_SYS_RESOURCE` allows (`HARD_MSGMAX`, `HARD_MSGSIZEMAX`).
pub const MOST: Settings = Settings { messages: 65_536, size: 16 << 20 };
/// What Linux charges a message and a priority for beyond the text.
const OVERHEAD: u64 = 48;
/// Bytes that all messages of a namespace may take: beyond there is no memory.
pub const MAX_BYTES: usize = 64 << 20;

/// The size of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Most messages.
    pub messages: u64,
    /// Longest message in bytes.
    pub size: u64,
}

impl Settings {
    /// What a queue of this size is charged for (`RLIMIT_MSGQUEUE`), in bytes.
    pub fn charge(self) -> u64 {
        let nodes = self.messages.saturating_add(self.messages.min(PRIORITIES.into()));
        self.messages.saturating_mul(self.size).saturating_add(nodes.saturating_mul(OVERHEAD))
    }
}

/// How a process is told of a message in an empty queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Not at all (`SIGEV_NONE`), but nobody else can ask.
    Silent,
    /// By a signal with a value.
    Signal(Signal, u64),
}

struct Registration {
    owner: Weak<ThreadGroup>,
    notice: Notice,
}

#[derive(Default)]
struct State {
    by_priority: BTreeMap<u32, VecDeque<Vec<u8>>>,
    messages: u64,
    bytes: u64,
    registration: Option<Registration>,
    receivers: usize,
}

/// A queue.
pub struct Mqueue {
    settings: Settings,
    state: Mutex<State>,
    queue: WaitQueue,
    /// Bytes of all messages of the namespace.
    total: Arc<AtomicUsize>,
}

/// What is in a queue, and who is to be told.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Messages.
    pub messages: u64,
    /// Bytes of their texts.
    pub bytes: u64,
    /// Who has registered, and how.
    pub registration: Option<(Weak<ThreadGroup>, Notice)>,
}

impl Mqueue {
    /// An empty queue whose messages count in `total`.
    pub fn new(settings: Settings, total: Arc<AtomicUsize>) -> Mqueue {
        Mqueue { settings, state: Mutex::default(), queue: WaitQueue::new(), total }
    }

    /// Its size.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Notified when there is a message, or room.
    pub fn queue(&self) -> &WaitQueue {
        &self.queue
    }

    /// What is in it.
    pub fn status(&self) -> Status {
        let state = self.state.lock();
        let registration = state.registration.as_ref().map(|entry| (entry.owner.clone(), entry.notice));
        Status { messages: state.messages, bytes: state.bytes, registration }
    }

    /// Readiness.
    pub fn poll(&self) -> PollEvents {
        let messages = self.state.lock().messages;
        let mut events = PollEvents::empty();
        events.set(PollEvents::READABLE, messages > 0);
        events.set(PollEvents::WRITABLE, messages < self.settings.messages);
        events
    }

    /// Puts a message in. `EAGAIN` while the queue is full, `ENOMEM`.
    pub fn send(&self, text: &[u8], priority: u32, sender: &Task) -> SysResult {
        let mut state = self.state.lock();
        if state.messages >= self.settings.messages {
            return Err(Errno::EAGAIN);
        }
        let cost = cost(text);
        let room = |used: usize| used.checked_add(cost).filter(|sum| *sum <= MAX_BYTES);
        self.total.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).map_err(|_| Errno::ENOMEM)?;
        state.by_priority.entry(priority).or_default().push_back(text.to_vec());
        state.messages = state.messages.saturating_add(1);
        state.bytes = state.bytes.saturating_add(text.len() as u64);
        // Somebody who waits for the message gets it and nobody is told.
        let told = if state.messages == 1 && state.receivers == 0 { state.registration.take() } else { None };
        drop(state);
        self.queue.notify(PollEvents::READABLE);
        if let Some(registration) = told {
            tell(&registration, sender);
        }
        Ok(())
    }

    /// Takes the oldest message of the highest priority. `EAGAIN` while there is none.
    pub fn receive(&self) -> SysResult<(Vec<u8>, u32)> {
        let mut state = self.state.lock();
        let (priority, text) = {
            let mut highest = state.by_priority.last_entry().ok_or(Errno::EAGAIN)?;
            let text = highest.get_mut().pop_front().ok_or(Errno::EAGAIN)?;
            let priority = *highest.key();
            if highest.get().is_empty() {
                highest.remove();
            }
            (priority, text)
        };
        state.messages = state.messages.saturating_sub(1);
        state.bytes = state.bytes.saturating_sub(text.len() as u64);
        drop(state);
        self.total.fetch_sub(cost(&text), Ordering::Relaxed);
        self.queue.notify(PollEvents::WRITABLE);
        Ok((text, priority))
    }

    /// `mq_notify`: `owner` is told of the next message in the empty queue. `EBUSY` if somebody is already.
    pub fn register(&self, owner: &Arc<ThreadGroup>, notice: Notice) -> SysResult {
        let mut state = self.state.lock();
        if state.registration.as_ref().is_some_and(|entry| entry.owner.strong_count() > 0) {
            return Err(Errno::EBUSY);
        }
        state.registration = Some(Registration { owner: Arc::downgrade(owner), notice });
        Ok(())
    }

    /// `owner` is not to be told any more.
    pub fn unregister(&self, owner: &Arc<ThreadGroup>) {
        let mut state = self.state.lock();
        let mine = |entry: &Registration| std::ptr::eq(entry.owner.as_ptr(), Arc::as_ptr(owner));
        if state.registration.as_ref().is_some_and(mine) {
            state.registration = None;
        }
    }
}

impl Drop for Mqueue {
    fn drop(&mut self) {
        let texts = self.state.get_mut().by_priority.values().flatten();
        self.total.fetch_sub(texts.map(|text| cost(text)).sum(), Ordering::Relaxed);
    }
}

fn cost(text: &[u8]) -> usize {
    text.len().saturating_add(OVERHEAD as usize)
}

fn tell(registration: &Registration, sender: &Task) {
    let (Some(owner), Notice::Signal(signal, value)) = (registration.owner.upgrade(), registration.notice)
    else {
        return;
    };
    let namespace = owner.pid().namespace().cloned();
    let pid = namespace.map_or(0, |namespace| sender.thread_group().pid().number_in(&namespace));
    let fields = SigFields::Queue { pid, uid: sender.credentials().uid, value };
    owner.send_signal(SigInfo { signal, errno: 0, code: libc::SI_MESGQ, fields });
}

/// A receiver that may have to wait; while it does, nobody is told of messages.
pub struct Receiver<'a> {
    queue: &'a Mqueue,
    waits: bool,
}

impl<'a> Receiver<'a> {
    /// A receiver that does not wait yet.
    pub fn new(queue: &'a Mqueue) -> Receiver<'a> {
        Receiver { queue, waits: false }
    }

    /// [`Mqueue::receive`], noting that it waits if there is nothing.
    pub fn receive(&mut self) -> SysResult<(Vec<u8>, u32)> {
        let result = self.queue.receive();
        if result == Err(Errno::EAGAIN) && !self.waits {
            self.waits = true;
            let mut state = self.queue.state.lock();
            state.receivers = state.receivers.saturating_add(1);
        }
        result
    }
}

impl Drop for Receiver<'_> {
    fn drop(&mut self) {
        if self.waits {
            let mut state = self.queue.state.lock();
            state.receivers = state.receivers.saturating_sub(1);
        }
    }
}
