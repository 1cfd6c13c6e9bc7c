//! Wait queues: how anything in the kernel waits for anything else.
//!
//! Objects own a [`WaitQueue`] and call [`WaitQueue::notify`] when their readiness changes. Whoever cares registers an
//! [`Observer`]: a task's [`Waiter`] (blocking calls, poll, select) or an epoll item. **No object blocks by itself**:
//! operations return `EAGAIN` ("would block") and the one loop in [`crate::task::block`] registers, tries again and
//! sleeps, so that every sleep is interruptible, can be paused, and can be declined by a dispatcher.
//!
//! Lock order: a queue's own lock is taken while an object's lock may be held; observers run under the queue's lock and
//! may take only leaf locks of their own (an epoll ready list, a waiter's flag) and other queues further up an epoll chain.

use std::cell::Cell;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bitflags::bitflags;
use linux_raw_sys::general as linux;
use parking_lot::{Condvar, Mutex, MutexGuard};

bitflags! {
    /// Readiness, with the numbers of `poll(2)` and `epoll(7)`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct PollEvents: u32 {
        /// Data can be read.
        const IN = linux::POLLIN;
        /// Out-of-band data or a state change (pty packet mode, …).
        const PRI = linux::POLLPRI;
        /// Data can be written.
        const OUT = linux::POLLOUT;
        /// Error condition; always reported.
        const ERR = linux::POLLERR;
        /// Hang-up; always reported.
        const HUP = linux::POLLHUP;
        /// The descriptor is not open (`poll(2)` only).
        const NVAL = linux::POLLNVAL;
        /// Same as `IN`.
        const RDNORM = linux::POLLRDNORM;
        /// Priority band data can be read.
        const RDBAND = linux::POLLRDBAND;
        /// Same as `OUT`.
        const WRNORM = linux::POLLWRNORM;
        /// Priority data may be written.
        const WRBAND = linux::POLLWRBAND;
        /// The peer shut down its writing half.
        const RDHUP = linux::POLLRDHUP;
    }
}

impl PollEvents {
    /// Readable, in both spellings.
    pub const READABLE: PollEvents = PollEvents::IN.union(PollEvents::RDNORM);
    /// Writable, in both spellings.
    pub const WRITABLE: PollEvents = PollEvents::OUT.union(PollEvents::WRNORM);
    /// What `poll` reports whether asked or not.
    pub const ALWAYS: PollEvents = PollEvents::ERR.union(PollEvents::HUP);
}

/// Somebody who wants to know that a queue's object changed.
pub trait Observer: Send + Sync {
    /// Called with the events that may have become true. Runs under the queue's lock: be short, take leaf locks only.
    fn notified(&self, events: PollEvents);
}

/// The list of observers of one object.
#[derive(Default)]
pub struct WaitQueue {
    entries: Arc<Mutex<Entries>>,
}

#[derive(Default)]
struct Entries {
    next_id: u64,
    list: Vec<Entry>,
}

struct Entry {
    id: u64,
    mask: PollEvents,
    observer: Arc<dyn Observer>,
}

impl WaitQueue {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an observer for the events in `mask` (errors and hang-ups are always told) until the result is dropped.
    #[must_use = "dropping the registration removes the observer"]
    pub fn register(&self, mask: PollEvents, observer: Arc<dyn Observer>) -> Registration {
        let mut entries = self.entries.lock();
        let id = entries.next_id;
        entries.next_id = id.wrapping_add(1);
        entries.list.push(Entry { id, mask: mask | PollEvents::ALWAYS, observer });
        Registration { queue: Arc::downgrade(&self.entries), id }
    }

    /// Tells every observer whose mask meets `events`.
    pub fn notify(&self, events: PollEvents) {
        let entries = self.entries.lock();
        for entry in entries.list.iter().filter(|entry| entry.mask.intersects(events)) {
            entry.observer.notified(events);
        }
    }

    /// Whether anybody is registered.
    pub fn is_empty(&self) -> bool {
        self.entries.lock().list.is_empty()
    }
}

/// Keeps an observer in its queue; removes it when dropped.
pub struct Registration {
    queue: Weak<Mutex<Entries>>,
    id: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(entries) = self.queue.upgrade() {
            entries.lock().list.retain(|entry| entry.id != self.id);
        }
    }
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitOutcome {
    /// Some registered queue was notified (or the wake-up was spurious): try again.
    Notified,
    /// The task has something else to do first (a signal, a stop, its death).
    Interrupted,
    /// The deadline passed.
    TimedOut,
}

thread_local! {
    static SLEPT: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static SLEEPING: Cell<Sleeping> = const { Cell::new(Sleeping::Allowed) };
}

/// Whether this host thread may sleep in waiters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sleeping {
    Allowed,
    /// It is a dispatcher, which must not.
    Declined,
    /// As `Declined`, and a call would have slept.
    Missed,
}

/// Until the result is dropped, no wait of this host thread sleeps: they are interrupted, and the call is abandoned as by a signal.
#[must_use = "dropping the result allows sleeping again"]
pub fn declining() -> Declining {
    SLEEPING.set(Sleeping::Declined);
    Declining(())
}

/// See [`declining`].
pub struct Declining(());

impl Declining {
    /// Whether a wait would have slept.
    pub fn declined(&self) -> bool {
        SLEEPING.get() == Sleeping::Missed
    }
}

impl Drop for Declining {
    fn drop(&mut self) {
        SLEEPING.set(Sleeping::Allowed);
    }
}

/// Whether a wait of this host thread was not slept in because it is a dispatcher.
pub fn was_declined() -> bool {
    SLEEPING.get() == Sleeping::Missed
}

/// For a call that had better be made by an exit unless it is quick, before its first side effect: whether that is so, and a dispatcher is
/// making it. It must fail then, with whatever error.
pub fn decline_unless(quick: impl FnOnce() -> bool) -> bool {
    let declines = SLEEPING.get() != Sleeping::Allowed && !quick();
    if declines {
        SLEEPING.set(Sleeping::Missed);
    }
    declines
}

/// For a call that was to sleep after a part of its work, which cannot be undone: if its sleep was declined, it may sleep after all. Returns
/// whether that is so; the wait is then to be tried again.
pub fn go_on() -> bool {
    let declined = was_declined();
    if declined {
        SLEEPING.set(Sleeping::Allowed);
    }
    declined
}

/// How long this host thread has slept in waiters since it last asked: time that is not the task's processor time.
pub fn take_slept() -> Duration {
    SLEPT.take()
}

fn count_sleep<T>(sleep: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = sleep();
    SLEPT.set(SLEPT.get().saturating_add(start.elapsed()));
    result
}

/// A task's place to sleep. One per task; any number of queues may notify it.
#[derive(Default)]
pub struct Waiter {
    state: Mutex<WaiterState>,
    wake: Condvar,
}

#[derive(Default)]
struct WaiterState {
    notified: bool,
    interrupted: bool,
    asleep: bool,
}

impl Waiter {
    /// A waiter with nothing pending.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Forgets earlier notifications. Call before the attempt whose failure leads to [`Waiter::wait`].
    pub fn arm(&self) {
        self.state.lock().notified = false;
    }

    /// Sleeps until notified, interrupted or `deadline` (host monotonic time; `None` = for ever).
    /// An interruption is sticky until [`Waiter::clear_interrupt`].
    pub fn wait(&self, deadline: Option<Instant>) -> WaitOutcome {
        if SLEEPING.get() != Sleeping::Allowed {
            let mut state = self.state.lock();
            if std::mem::take(&mut state.notified) {
                return WaitOutcome::Notified;
            }
            SLEEPING.set(Sleeping::Missed);
            return WaitOutcome::Interrupted;
        }
        let mut state = self.state.lock();
        state.asleep = true;
        let outcome = count_sleep(|| self.sleep(&mut state, deadline));
        state.asleep = false;
        outcome
    }

    fn sleep(&self, state: &mut MutexGuard<'_, WaiterState>, deadline: Option<Instant>) -> WaitOutcome {
        loop {
            if state.notified {
                state.notified = false;
                return WaitOutcome::Notified;
            }
            if state.interrupted {
                return WaitOutcome::Interrupted;
            }
            match deadline {
                None => self.wake.wait(state),
                Some(at) => {
                    if self.wake.wait_until(state, at).timed_out() && !state.notified && !state.interrupted {
                        return WaitOutcome::TimedOut;
                    }
                }
            }
        }
    }

    /// Like [`Waiter::wait`], deaf to interruptions: for stops and for kernel-internal waits that are known to end.
    pub fn wait_uninterruptible(&self) {
        let mut state = self.state.lock();
        count_sleep(|| {
            while !state.notified {
                self.wake.wait(&mut state);
            }
        });
        state.notified = false;
    }

    /// Whether the task sleeps here (`/proc`).
    pub fn is_asleep(&self) -> bool {
        self.state.lock().asleep
    }

    /// Wakes the task: something it waits for may have happened.
    pub fn notify(&self) {
        self.state.lock().notified = true;
        self.wake.notify_one();
    }

    /// Makes this and every later wait return [`WaitOutcome::Interrupted`] until the task clears it.
    pub fn interrupt(&self) {
        self.state.lock().interrupted = true;
        self.wake.notify_one();
    }

    /// Called by the task itself once it looks at what interrupted it.
    pub fn clear_interrupt(&self) {
        self.state.lock().interrupted = false;
    }
}

impl Observer for Waiter {
    fn notified(&self, _events: PollEvents) {
        self.notify();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn notification_between_attempt_and_sleep_is_not_lost() {
        let queue = WaitQueue::new();
        let waiter = Waiter::new();
        let _registration = queue.register(PollEvents::READABLE, waiter.clone());
        waiter.arm();
        queue.notify(PollEvents::IN);
        assert_eq!(waiter.wait(None), WaitOutcome::Notified);
    }

    #[test]
    fn mask_filters_but_errors_always_pass() {
        let queue = WaitQueue::new();
        let waiter = Waiter::new();
        let _registration = queue.register(PollEvents::WRITABLE, waiter.clone());
        queue.notify(PollEvents::IN);
        let soon = || Some(Instant::now() + Duration::from_millis(5));
        assert_eq!(waiter.wait(soon()), WaitOutcome::TimedOut);
        queue.notify(PollEvents::HUP);
        assert_eq!(waiter.wait(soon()), WaitOutcome::Notified);
    }

    #[test]
    fn dropped_registration_leaves_the_queue() {
        let queue = WaitQueue::new();
        drop(queue.register(PollEvents::IN, Waiter::new()));
        assert!(queue.is_empty());
    }

    #[test]
    fn a_dispatcher_does_not_sleep() {
        let waiter = Waiter::new();
        let declining = declining();
        waiter.notify();
        assert_eq!(waiter.wait(None), WaitOutcome::Notified);
        assert!(!declining.declined());
        assert_eq!(waiter.wait(None), WaitOutcome::Interrupted);
        assert!(declining.declined());
        // After a part of the work it does.
        assert!(go_on());
        assert_eq!(waiter.wait(Some(Instant::now())), WaitOutcome::TimedOut);
        drop(declining);
        assert!(!go_on());
    }

    #[test]
    fn interruption_is_sticky() {
        let waiter = Waiter::new();
        waiter.interrupt();
        assert_eq!(waiter.wait(None), WaitOutcome::Interrupted);
        assert_eq!(waiter.wait(None), WaitOutcome::Interrupted);
        waiter.clear_interrupt();
        assert_eq!(waiter.wait(Some(Instant::now())), WaitOutcome::TimedOut);
    }
}
