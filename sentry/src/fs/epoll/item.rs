//! Watched descriptors and the ready list.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::{Interest, Key};
use crate::vfs::File;
use crate::wait::{Observer, PollEvents, WaitQueue};

/// What an epoll shares with its items: the list of those that may be ready, and who waits for it.
///
/// Items hold this and not the epoll: a notification must never drop the last reference to an epoll, whose drop would
/// leave the very queue that is being notified.
#[derive(Default)]
pub(super) struct Shared {
    ready: Mutex<Ready>,
    queue: WaitQueue,
}

#[derive(Default)]
struct Ready {
    list: VecDeque<Arc<Item>>,
    closed: bool,
}

impl Shared {
    pub fn queue(&self) -> &WaitQueue {
        &self.queue
    }

    pub fn ready_count(&self) -> usize {
        self.ready.lock().list.len()
    }

    pub fn take_first(&self) -> Option<Arc<Item>> {
        let mut ready = self.ready.lock();
        let item = ready.list.pop_front()?;
        item.set_place(Place::Idle);
        Some(item)
    }

    /// At the end, unless a notification has done so meanwhile.
    pub fn put_back(&self, item: Arc<Item>) {
        let mut ready = self.ready.lock();
        if item.place() == Place::Idle && !ready.closed {
            item.set_place(Place::Listed);
            ready.list.push_back(item);
        }
    }

    pub fn put_first(&self, item: Arc<Item>) {
        let mut ready = self.ready.lock();
        if item.place() == Place::Idle && !ready.closed {
            item.set_place(Place::Listed);
            ready.list.push_front(item);
        }
    }

    /// Takes the item out for good.
    pub fn remove(&self, item: &Arc<Item>) {
        let mut ready = self.ready.lock();
        if item.place() == Place::Listed {
            ready.list.retain(|other| !Arc::ptr_eq(other, item));
        }
        item.set_place(Place::Removed);
    }

    /// The epoll is gone: breaks the circle of list and items.
    pub fn close(&self) {
        let mut ready = self.ready.lock();
        ready.closed = true;
        let list = std::mem::take(&mut ready.list);
        drop(ready);
        drop(list);
    }
}

/// Where an item is; changes only under the ready list's lock.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Idle,
    Listed,
    Removed,
}

/// A watched descriptor.
pub(super) struct Item {
    me: Weak<Item>,
    fd: u32,
    file: Weak<File>,
    shared: Arc<Shared>,
    interest: Mutex<(Interest, u64)>,
    /// Events to report, errors and hang-ups included; 0 while disarmed by `EPOLLONESHOT`.
    mask: AtomicU32,
    place: AtomicU32,
}

impl Item {
    pub fn new(fd: u32, file: &Arc<File>, interest: Interest, data: u64, shared: &Arc<Shared>) -> Arc<Item> {
        Arc::new_cyclic(|me| Item {
            me: me.clone(),
            fd,
            file: Arc::downgrade(file),
            shared: shared.clone(),
            interest: Mutex::new((interest, data)),
            mask: AtomicU32::new((interest.events() | PollEvents::ALWAYS).bits()),
            place: AtomicU32::new(Place::Idle as u32),
        })
    }

    pub fn key(&self) -> Key {
        (self.fd, self.file.as_ptr() as usize)
    }

    pub fn file(&self) -> Option<Arc<File>> {
        self.file.upgrade()
    }

    pub fn mask(&self) -> PollEvents {
        PollEvents::from_bits_truncate(self.mask.load(Ordering::Acquire))
    }

    pub fn is_ready(&self, file: &File) -> bool {
        let mask = self.mask();
        !mask.is_empty() && file.poll().intersects(mask)
    }

    pub fn interest(&self) -> Interest {
        self.interest.lock().0
    }

    pub fn interest_and_data(&self) -> (Interest, u64) {
        *self.interest.lock()
    }

    pub fn set_interest(&self, interest: Interest, data: u64) {
        *self.interest.lock() = (interest, data);
        self.mask.store((interest.events() | PollEvents::ALWAYS).bits(), Ordering::Release);
    }

    /// After a one-shot report.
    pub fn disarm(&self) {
        self.mask.store(0, Ordering::Release);
    }

    /// Puts it on the ready list and tells who waits for the epoll. Returns whether that woke somebody.
    pub fn mark_ready(self: &Arc<Item>) -> bool {
        self.shared.put_back(self.clone());
        self.shared.queue.notify_anybody(PollEvents::READABLE)
    }

    fn place(&self) -> Place {
        match self.place.load(Ordering::Relaxed) {
            place if place == Place::Idle as u32 => Place::Idle,
            place if place == Place::Listed as u32 => Place::Listed,
            _ => Place::Removed,
        }
    }

    fn set_place(&self, place: Place) {
        self.place.store(place as u32, Ordering::Relaxed);
    }
}

impl Observer for Item {
    fn notified(&self, events: PollEvents) {
        self.notified_alone(events);
    }

    fn notified_alone(&self, events: PollEvents) -> bool {
        self.mask().intersects(events) && self.me.upgrade().is_some_and(|item| item.mark_ready())
    }
}
