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
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bitflags::bitflags;
use linux_raw_sys::general as linux;
use parking_lot::{Condvar, Mutex};

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

    /// The same for an observer that is told alone ([`WaitQueue::register_exclusive`]). Returns whether somebody will look at it; if
    /// not, the next one is told as well.
    fn notified_alone(&self, events: PollEvents) -> bool {
        self.notified(events);
        true
    }
}

/// The list of observers of one object.
#[derive(Default)]
pub struct WaitQueue {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    entries: Mutex<Entries>,
    /// How many there are; changed under the lock.
    present: AtomicU32,
}

impl Shared {
    fn change<T>(&self, change: impl FnOnce(&mut Entries) -> T) -> T {
        let mut entries = self.entries.lock();
        let result = change(&mut entries);
        self.present.store(u32::try_from(entries.list.len()).unwrap_or(u32::MAX), Ordering::Relaxed);
        result
    }
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
    exclusive: bool,
}

impl WaitQueue {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an observer for the events in `mask` (errors and hang-ups are always told) until the result is dropped.
    #[must_use = "dropping the registration removes the observer"]
    pub fn register(&self, mask: PollEvents, observer: Arc<dyn Observer>) -> Registration {
        self.enter(mask, observer, false)
    }

    /// Adds an observer of which only one is told of an event, the oldest that does something about it (`EPOLLEXCLUSIVE`). Errors and
    /// hang-ups are told to all.
    #[must_use = "dropping the registration removes the observer"]
    pub fn register_exclusive(&self, mask: PollEvents, observer: Arc<dyn Observer>) -> Registration {
        self.enter(mask, observer, true)
    }

    fn enter(&self, mask: PollEvents, observer: Arc<dyn Observer>, exclusive: bool) -> Registration {
        let id = self.shared.change(|entries| {
            let id = entries.next_id;
            entries.next_id = id.wrapping_add(1);
            entries.list.push(Entry { id, mask: mask | PollEvents::ALWAYS, observer, exclusive });
            id
        });
        Registration { queue: Arc::downgrade(&self.shared), id }
    }

    /// Tells every observer whose mask meets `events`.
    pub fn notify(&self, events: PollEvents) {
        self.tell(events, |observer| observer.notified(events));
    }

    /// The same, and returns whether a task was woken that had not been woken already.
    pub fn notify_anybody(&self, events: PollEvents) -> bool {
        let mut anybody = false;
        self.tell(events, |observer| anybody |= observer.notified_alone(events));
        anybody
    }

    fn tell(&self, events: PollEvents, mut notify: impl FnMut(&dyn Observer)) {
        let entries = self.shared.entries.lock();
        let to_all = events.intersects(PollEvents::ALWAYS);
        let mut taken = false;
        for entry in entries.list.iter().filter(|entry| entry.mask.intersects(events)) {
            if !entry.exclusive || to_all {
                notify(&*entry.observer);
            } else if !taken {
                taken = entry.observer.notified_alone(events);
            }
        }
    }

    /// Whether anybody is registered.
    pub fn is_empty(&self) -> bool {
        self.shared.entries.lock().list.is_empty()
    }

    /// Whether there is nobody to tell of the change that was just made to the object, for callers that still hold the lock under which they
    /// made it: whoever registers and then looks at the object under that lock was registered before, or sees the change.
    pub fn has_nobody(&self) -> bool {
        self.shared.present.load(Ordering::Relaxed) == 0
    }
}

/// Keeps an observer in its queue; removes it when dropped.
pub struct Registration {
    queue: Weak<Shared>,
    id: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(shared) = self.queue.upgrade() {
            shared.change(|entries| entries.list.retain(|entry| entry.id != self.id));
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
    Declining { before: SLEEPING.replace(Sleeping::Declined) }
}

/// See [`declining`].
pub struct Declining {
    before: Sleeping,
}

impl Declining {
    /// Whether a wait would have slept.
    pub fn declined(&self) -> bool {
        SLEEPING.get() == Sleeping::Missed
    }
}

impl Drop for Declining {
    fn drop(&mut self) {
        SLEEPING.set(self.before);
    }
}

/// Whether a wait of this host thread was not slept in because it is a dispatcher.
pub fn was_declined() -> bool {
    SLEEPING.get() == Sleeping::Missed
}

/// For a call that had better be made by an exit unless it is quick, before its first side effect: whether that is so, and a dispatcher is
/// making it. It must fail then, with whatever error.
pub fn decline_unless(quick: impl FnOnce() -> bool) -> bool {
    let declines = !may_sleep() && !quick();
    if declines {
        SLEEPING.set(Sleeping::Missed);
    }
    declines
}

/// For a call that would sleep next: as [`decline_unless`], because there is no use in preparing the sleep.
pub fn decline() -> bool {
    decline_unless(|| false)
}

/// Whether this host thread may sleep.
pub fn may_sleep() -> bool {
    SLEEPING.get() == Sleeping::Allowed
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

/// What a thread may do for others for a moment before it sleeps.
pub trait Assist {
    /// Works until `done` says that there is no need to sleep any more (`true`), or until working is of no use (`false`).
    fn assist(&self, _done: &dyn Fn() -> bool) -> bool {
        false
    }

    /// A wait turned out to be unnecessary: what the thread wanted to wait for is happening at this moment.
    fn passed(&self) {}

    /// The sleep that followed took so long.
    fn slept(&self, _time: Duration) {}
}

/// Somebody has notified the waiter.
const NOTIFIED: u32 = 1;
/// The task has something else to do.
const INTERRUPTED: u32 = 2;
/// The task's thread sleeps on the condition variable, or is about to.
const ASLEEP: u32 = 4;
/// The task waits, be it asleep or not.
const WAITING: u32 = 8;

/// A task's place to sleep. One per task; any number of queues may notify it.
///
/// The flags are one word: either a notifier sees that the thread is [`ASLEEP`], and takes the lock before it wakes it, or the thread sees the
/// notification before it sleeps.
#[derive(Default)]
pub struct Waiter {
    flags: AtomicU32,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Waiter {
    /// A waiter with nothing pending.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn has(&self, flags: u32) -> bool {
        self.flags.load(Ordering::SeqCst) & flags != 0
    }

    fn take(&self, flag: u32) -> bool {
        self.has(flag) && self.flags.fetch_and(!flag, Ordering::SeqCst) & flag != 0
    }

    /// Forgets earlier notifications. Call before the attempt whose failure leads to [`Waiter::wait`].
    pub fn arm(&self) {
        self.take(NOTIFIED);
    }

    /// Sleeps until notified, interrupted or `deadline` (host monotonic time; `None` = for ever).
    /// An interruption is sticky until [`Waiter::clear_interrupt`].
    pub fn wait(&self, deadline: Option<Instant>) -> WaitOutcome {
        self.wait_assisting(deadline, &Nothing)
    }

    /// As [`Waiter::wait`], and helps others before it sleeps.
    pub fn wait_assisting(&self, deadline: Option<Instant>, others: &dyn Assist) -> WaitOutcome {
        if SLEEPING.get() != Sleeping::Allowed {
            if self.take(NOTIFIED) {
                return WaitOutcome::Notified;
            }
            SLEEPING.set(Sleeping::Missed);
            return WaitOutcome::Interrupted;
        }
        self.flags.fetch_or(WAITING, Ordering::Relaxed);
        let outcome = count_sleep(|| self.help_and_sleep(deadline, others));
        self.flags.fetch_and(!WAITING, Ordering::Relaxed);
        outcome
    }

    fn help_and_sleep(&self, deadline: Option<Instant>, others: &dyn Assist) -> WaitOutcome {
        let ended = || self.has(NOTIFIED | INTERRUPTED) || deadline.is_some_and(|at| Instant::now() >= at);
        if !others.assist(&ended) {
            let begun = Instant::now();
            self.sleep(NOTIFIED | INTERRUPTED, deadline);
            others.slept(begun.elapsed());
        }
        if self.take(NOTIFIED) {
            WaitOutcome::Notified
        } else if self.has(INTERRUPTED) {
            WaitOutcome::Interrupted
        } else {
            WaitOutcome::TimedOut
        }
    }

    /// Sleeps until one of `flags` is set or `deadline` has come.
    fn sleep(&self, flags: u32, deadline: Option<Instant>) {
        let mut guard = self.lock.lock();
        self.flags.fetch_or(ASLEEP, Ordering::SeqCst);
        while !self.has(flags) {
            match deadline {
                None => self.wake.wait(&mut guard),
                Some(at) => {
                    if self.wake.wait_until(&mut guard, at).timed_out() {
                        break;
                    }
                }
            }
        }
        self.flags.fetch_and(!ASLEEP, Ordering::SeqCst);
    }

    /// Like [`Waiter::wait`], deaf to interruptions: for stops and for kernel-internal waits that are known to end.
    pub fn wait_uninterruptible(&self) {
        self.flags.fetch_or(WAITING, Ordering::Relaxed);
        count_sleep(|| self.sleep(NOTIFIED, None));
        self.flags.fetch_and(!WAITING, Ordering::Relaxed);
        self.take(NOTIFIED);
    }

    /// Whether it shows as asleep although its host thread says otherwise: that one works for another task, or another one for it.
    pub fn show_asleep(&self, asleep: bool) {
        if asleep {
            self.flags.fetch_or(WAITING, Ordering::Relaxed);
        } else {
            self.flags.fetch_and(!WAITING, Ordering::Relaxed);
        }
    }

    /// Whether the task sleeps here (`/proc`).
    pub fn is_asleep(&self) -> bool {
        self.has(WAITING)
    }

    /// Wakes the task: something it waits for may have happened. Returns whether this was the first to wake it.
    pub fn notify(&self) -> bool {
        self.set(NOTIFIED)
    }

    /// Makes this and every later wait return [`WaitOutcome::Interrupted`] until the task clears it.
    pub fn interrupt(&self) {
        self.set(INTERRUPTED);
    }

    fn set(&self, flag: u32) -> bool {
        let before = self.flags.fetch_or(flag, Ordering::SeqCst);
        if before & ASLEEP != 0 {
            drop(self.lock.lock());
            self.wake.notify_one();
        }
        before & flag == 0
    }

    /// Called by the task itself once it looks at what interrupted it.
    pub fn clear_interrupt(&self) {
        self.take(INTERRUPTED);
    }
}

/// Helps nobody.
struct Nothing;

impl Assist for Nothing {}

impl Observer for Waiter {
    fn notified(&self, _events: PollEvents) {
        self.notify();
    }

    fn notified_alone(&self, _events: PollEvents) -> bool {
        self.notify()
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
    fn one_of_the_exclusive_observers_is_told() {
        let queue = WaitQueue::new();
        let waiters = [Waiter::new(), Waiter::new(), Waiter::new()];
        let _shared = queue.register(PollEvents::READABLE, waiters[0].clone());
        let _first = queue.register_exclusive(PollEvents::READABLE, waiters[1].clone());
        let _second = queue.register_exclusive(PollEvents::READABLE, waiters[2].clone());
        let told = || waiters.each_ref().map(|waiter| waiter.has(NOTIFIED));
        queue.notify(PollEvents::IN);
        assert_eq!(told(), [true, true, false]);
        // The first has not looked yet: the second does something about the next event.
        queue.notify(PollEvents::IN);
        assert_eq!(told(), [true, true, true]);
        waiters.iter().for_each(|waiter| waiter.arm());
        queue.notify(PollEvents::HUP);
        assert_eq!(told(), [true, true, true]);
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
        let registration = queue.register(PollEvents::IN, Waiter::new());
        assert!(!queue.is_empty() && !queue.has_nobody());
        drop(registration);
        assert!(queue.is_empty() && queue.has_nobody());
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
        drop(declining);
        assert!(!was_declined() && !decline());
        assert_eq!(waiter.wait(Some(Instant::now())), WaitOutcome::TimedOut);
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
