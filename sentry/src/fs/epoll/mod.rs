//! Event polls: `epoll(7)`.
//!
//! An [`Epoll`] holds one [`item::Item`] per watched (descriptor, description) pair. An item observes the wait queue of its
//! file; being notified puts it on the ready list. A scan ([`Epoll::collect`]) takes items from the front of the list,
//! asks the file for its true readiness, reports, and puts level-triggered items back at the end, so that busy
//! descriptors cannot starve others.
//!
//! Items refer to their description weakly: a description that goes takes its items out of the reports at once, and
//! out of memory when the scan or an `EPOLL_CTL_ADD` of the same number meets them.
//!
//! ```text
//!   object's queue ──notified──▶ Item ──▶ ready list ──▶ the epoll's own queue ──▶ waiters, outer epolls
//!                                           │ scan
//!                                           ▼
//!                                     file.poll() & interest ──▶ event
//! ```
//!
//! Lock order: `NESTING`, an outer epoll's items, an inner epoll's items, the objects' locks, their queues, ready
//! lists (leaf), the epoll's own queue. Nesting is kept free of cycles and at most [`nesting::MAX_DEPTH`] deep.
//!
//! Of several epolls that watch a file with `EPOLLEXCLUSIVE`, the first with somebody who waits is told.
//!
//! Not there yet: waking only one of several waiters of one epoll (all wake; whoever comes first gets the event), busy polling.

mod item;
mod nesting;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use bitflags::bitflags;
use linux_raw_sys::general as linux;
use parking_lot::Mutex;

use crate::errno::{Errno, SysResult};
use crate::vfs::{File, FileOps};
use crate::wait::{PollEvents, Registration, WaitQueue};
use item::{Item, Shared};

bitflags! {
    /// The `events` of an `epoll_event`: what to watch for, and how.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Interest: u32 {
        /// Report changes only.
        const EDGE = linux::EPOLLET;
        /// Report once, then wait for `EPOLL_CTL_MOD`.
        const ONESHOT = linux::EPOLLONESHOT;
        /// Keep the system awake; accepted, there is nothing to keep awake.
        const WAKEUP = linux::EPOLLWAKEUP;
        /// Wake one of several epolls.
        const EXCLUSIVE = linux::EPOLLEXCLUSIVE;
        const _ = !0;
    }
}

impl Interest {
    /// The readiness asked for.
    pub fn events(self) -> PollEvents {
        PollEvents::from_bits_truncate(self.bits())
    }

    /// Whether `EPOLLEXCLUSIVE` may stand beside the other bits.
    fn exclusive_is_valid(self) -> bool {
        let allowed = Interest::EXCLUSIVE
            | Interest::EDGE
            | Interest::WAKEUP
            | Interest::from_bits_retain((PollEvents::IN | PollEvents::OUT | PollEvents::ALWAYS).bits());
        allowed.contains(self)
    }
}

/// One reported event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What is ready.
    pub events: PollEvents,
    /// The watcher's own value.
    pub data: u64,
}

/// Watches in the sandbox beyond which `EPOLL_CTL_ADD` fails (`/proc/sys/fs/epoll/max_user_watches`).
pub const MAX_WATCHES: usize = 1 << 20;

static WATCHES: AtomicUsize = AtomicUsize::new(0);

/// The descriptor number an item was added under, and the description's address.
type Key = (u32, usize);

struct Entry {
    item: Arc<Item>,
    registration: Registration,
}

/// The operations of an epoll descriptor.
pub struct Epoll {
    items: Mutex<BTreeMap<Key, Entry>>,
    shared: Arc<Shared>,
    /// The epoll descriptions that watch this one, for the depth of nesting. Under [`nesting`]'s lock.
    parents: Mutex<Vec<Weak<File>>>,
}

fn key_of(fd: u32, file: &Arc<File>) -> Key {
    (fd, Arc::as_ptr(file) as usize)
}

impl Epoll {
    /// An epoll that watches nothing.
    pub fn new() -> Epoll {
        Epoll { items: Mutex::default(), shared: Arc::default(), parents: Mutex::default() }
    }

    /// `EPOLL_CTL_ADD` of `file` as descriptor `fd` to the epoll behind `own`.
    ///
    /// `EEXIST` if it is there, `EPERM` for files without readiness, `EINVAL` for itself or a bad mix of flags, `ELOOP`
    /// for a cycle or too deep nesting, `ENOSPC` beyond [`MAX_WATCHES`].
    pub fn add(own: &Arc<File>, fd: u32, file: &Arc<File>, interest: Interest, data: u64) -> SysResult {
        let epoll = own.ops_as::<Epoll>().ok_or(Errno::EINVAL)?;
        if Arc::ptr_eq(own, file) {
            return Err(Errno::EINVAL);
        }
        let nested = file.ops_as::<Epoll>();
        if interest.contains(Interest::EXCLUSIVE) && (nested.is_some() || !interest.exclusive_is_valid()) {
            return Err(Errno::EINVAL);
        }
        if epoll.items.lock().contains_key(&key_of(fd, file)) {
            return Err(Errno::EEXIST);
        }
        match nested {
            Some(inner) => nesting::link(own, epoll, inner, || epoll.insert(fd, file, interest, data)),
            None => epoll.insert(fd, file, interest, data),
        }
    }

    fn insert(&self, fd: u32, file: &Arc<File>, interest: Interest, data: u64) -> SysResult {
        let queue = file.ops().wait_queue().filter(|_| file.ops().pollable()).ok_or(Errno::EPERM)?;
        let mut items = self.items.lock();
        self.forget_dead(&mut items, fd);
        let key = key_of(fd, file);
        if items.contains_key(&key) {
            return Err(Errno::EEXIST);
        }
        if WATCHES.fetch_add(1, Ordering::Relaxed) >= MAX_WATCHES {
            WATCHES.fetch_sub(1, Ordering::Relaxed);
            return Err(Errno::ENOSPC);
        }
        let item = Item::new(fd, file, interest, data, &self.shared);
        let registration = if interest.contains(Interest::EXCLUSIVE) {
            queue.register_exclusive(interest.events(), item.clone())
        } else {
            queue.register(interest.events(), item.clone())
        };
        items.insert(key, Entry { item: item.clone(), registration });
        if item.is_ready(file) {
            item.mark_ready();
        }
        Ok(())
    }

    /// Descriptions that were closed under the number `fd` leave their items behind until it is used again.
    fn forget_dead(&self, items: &mut BTreeMap<Key, Entry>, fd: u32) {
        let of_this_number = items.range((fd, 0)..=(fd, usize::MAX));
        let dead: Vec<Key> =
            of_this_number.filter(|(_, entry)| entry.item.file().is_none()).map(|(key, _)| *key).collect();
        for key in dead {
            self.remove_entry(items, key);
        }
    }

    fn remove_entry(&self, items: &mut BTreeMap<Key, Entry>, key: Key) -> bool {
        let Some(entry) = items.remove(&key) else { return false };
        WATCHES.fetch_sub(1, Ordering::Relaxed);
        self.shared.remove(&entry.item);
        true
    }

    /// `EPOLL_CTL_MOD`: `ENOENT` if it is not there, `EINVAL` if either is exclusive.
    pub fn modify(&self, fd: u32, file: &Arc<File>, interest: Interest, data: u64) -> SysResult {
        if interest.contains(Interest::EXCLUSIVE) {
            return Err(Errno::EINVAL);
        }
        let queue = file.ops().wait_queue().ok_or(Errno::EPERM)?;
        let mut items = self.items.lock();
        let entry = items.get_mut(&key_of(fd, file)).ok_or(Errno::ENOENT)?;
        if entry.item.interest().contains(Interest::EXCLUSIVE) {
            return Err(Errno::EINVAL);
        }
        entry.item.set_interest(interest, data);
        // The queue filters by the mask at registration. The old one goes after the new one is there: no gap.
        entry.registration = queue.register(interest.events(), entry.item.clone());
        if entry.item.is_ready(file) {
            entry.item.mark_ready();
        }
        Ok(())
    }

    /// `EPOLL_CTL_DEL`: `ENOENT` if it is not there.
    pub fn remove(own: &Arc<File>, fd: u32, file: &Arc<File>) -> SysResult {
        let epoll = own.ops_as::<Epoll>().ok_or(Errno::EINVAL)?;
        let removed = epoll.remove_entry(&mut epoll.items.lock(), key_of(fd, file));
        if !removed {
            return Err(Errno::ENOENT);
        }
        if let Some(inner) = file.ops_as::<Epoll>() {
            nesting::unlink(own, inner);
        }
        Ok(())
    }

    /// Reports up to `max` ready items; an empty result means that nothing is ready.
    pub fn collect(&self, max: usize) -> Vec<Event> {
        let mut events = Vec::new();
        // Our reference may turn out to be a description's last: it must not be dropped under the lock.
        let mut files = Vec::new();
        let mut items = self.items.lock();
        for _ in 0..self.shared.ready_count() {
            if events.len() >= max {
                break;
            }
            let Some(item) = self.shared.take_first() else { break };
            let Some(file) = item.file() else {
                self.remove_entry(&mut items, item.key());
                continue;
            };
            let (interest, data) = item.interest_and_data();
            let ready = file.poll() & item.mask();
            files.push(file);
            if ready.is_empty() {
                continue;
            }
            events.push(Event { events: ready, data });
            if interest.contains(Interest::ONESHOT) {
                item.disarm();
            } else if !interest.contains(Interest::EDGE) {
                self.shared.put_back(item);
            }
        }
        drop(items);
        drop(files);
        events
    }

    /// Whether a scan would report anything. Items that turn out not to be ready leave the list.
    fn any_ready(&self) -> bool {
        let mut files = Vec::new();
        let mut items = self.items.lock();
        let mut found = false;
        for _ in 0..self.shared.ready_count() {
            let Some(item) = self.shared.take_first() else { break };
            let Some(file) = item.file() else {
                self.remove_entry(&mut items, item.key());
                continue;
            };
            let ready = item.is_ready(&file);
            files.push(file);
            if ready {
                self.shared.put_first(item);
                found = true;
                break;
            }
        }
        drop(items);
        drop(files);
        found
    }

    fn for_each_child(&self, mut act: impl FnMut(&Epoll)) {
        let files: Vec<Arc<File>> =
            self.items.lock().values().filter_map(|entry| entry.item.file()).collect();
        files.iter().filter_map(|file| file.ops_as::<Epoll>()).for_each(&mut act);
    }
}

impl Default for Epoll {
    fn default() -> Self {
        Epoll::new()
    }
}

impl Drop for Epoll {
    fn drop(&mut self) {
        self.shared.close();
        WATCHES.fetch_sub(self.items.get_mut().len(), Ordering::Relaxed);
    }
}

impl FileOps for Epoll {
    fn poll(&self, _: &File) -> PollEvents {
        if self.any_ready() { PollEvents::READABLE } else { PollEvents::empty() }
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(self.shared.queue())
    }

    fn anonymous_name(&self) -> Option<String> {
        Some("anon_inode:[eventpoll]".into())
    }

    fn fdinfo(&self) -> String {
        let mut files = Vec::new();
        let mut text = String::new();
        let items = self.items.lock();
        for (&(fd, _), entry) in items.iter() {
            let Some(file) = entry.item.file() else { continue };
            let (interest, data) = entry.item.interest_and_data();
            let attr = file.inode().attr().ok();
            let (ino, dev) = attr.map_or((0, 0), |attr| (attr.ino, attr.dev.encode()));
            text.push_str(&format!(
                "tfd: {fd:8} events: {:8x} data: {data:16x}  pos:0 ino:{ino:x} sdev:{dev:x}\n",
                interest.bits()
            ));
            files.push(file);
        }
        drop(items);
        text
    }
}
