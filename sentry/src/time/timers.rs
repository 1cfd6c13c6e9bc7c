//! The sandbox's timer service: one host thread that sleeps until the next deadline.
//!
//! Timer files, interval timers, POSIX timers and anything else with a deadline schedule a [`TimerTarget`]. The thread is
//! started with the first timer and sleeps without polling while there is none, so an idle sandbox costs nothing.
//!
//! Lock order: the service's lock is a leaf; targets run without it.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// What happens when a timer's time has come. Runs on the timer thread: be short, do not block.
pub trait TimerTarget: Send + Sync {
    /// The deadline has passed.
    fn expired(&self);
}

/// The timer service.
#[derive(Default)]
pub struct Timers {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: BTreeMap<(Instant, u64), Arc<dyn TimerTarget>>,
    next_id: u64,
    running: bool,
    stopped: bool,
}

impl Timers {
    /// A service without timers and without a thread.
    pub fn new() -> Arc<Timers> {
        Arc::default()
    }

    /// Calls `target` once at `at` (host monotonic time), unless the handle is dropped before.
    #[must_use = "dropping the handle cancels the timer"]
    pub fn schedule(self: &Arc<Self>, at: Instant, target: Arc<dyn TimerTarget>) -> TimerHandle {
        let mut state = self.state.lock();
        let id = state.next_id;
        state.next_id = id.wrapping_add(1);
        let earliest = state.queue.first_key_value().is_none_or(|(&(first, _), _)| at < first);
        state.queue.insert((at, id), target);
        if !state.running && !state.stopped {
            state.running = self.start();
        } else if earliest {
            self.changed.notify_one();
        }
        TimerHandle { service: Arc::downgrade(self), key: (at, id) }
    }

    /// Ends the thread; timers still queued never fire.
    pub fn stop(&self) {
        let mut state = self.state.lock();
        state.stopped = true;
        let dropped = std::mem::take(&mut state.queue);
        drop(state);
        drop(dropped);
        self.changed.notify_one();
    }

    fn start(self: &Arc<Self>) -> bool {
        let service = Arc::downgrade(self);
        let builder = std::thread::Builder::new().name("timers".into()).stack_size(128 << 10);
        let started = builder.spawn(move || run(&service));
        if let Err(error) = &started {
            tracing::error!(%error, "cannot start the timer thread");
        }
        started.is_ok()
    }

    /// Waits for and takes the next due target; `None` once stopped.
    fn next_due(&self) -> Option<Arc<dyn TimerTarget>> {
        let mut state = self.state.lock();
        loop {
            if state.stopped {
                return None;
            }
            match state.queue.first_key_value().map(|(&key, _)| key) {
                None => self.changed.wait(&mut state),
                Some(key) if key.0 <= Instant::now() => return state.queue.remove(&key),
                Some(key) => {
                    self.changed.wait_until(&mut state, key.0);
                }
            }
        }
    }
}

fn run(service: &Weak<Timers>) {
    while let Some(target) = service.upgrade().and_then(|service| service.next_due()) {
        target.expired();
    }
}

/// A scheduled timer; dropping it cancels.
pub struct TimerHandle {
    service: Weak<Timers>,
    key: (Instant, u64),
}

impl TimerHandle {
    /// When it fires or fired.
    pub fn deadline(&self) -> Instant {
        self.key.0
    }
}

impl Drop for TimerHandle {
    fn drop(&mut self) {
        if let Some(service) = self.service.upgrade() {
            let cancelled = service.state.lock().queue.remove(&self.key);
            drop(cancelled);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    struct Send(u32, Mutex<mpsc::Sender<u32>>);

    impl TimerTarget for Send {
        fn expired(&self) {
            let _ = self.1.lock().send(self.0);
        }
    }

    #[test]
    fn fires_in_order_of_deadlines_and_not_after_cancellation() {
        let timers = Timers::new();
        let (tx, rx) = mpsc::channel();
        let now = Instant::now();
        let at = |ms| now + Duration::from_millis(ms);
        let target = |n| Arc::new(Send(n, Mutex::new(tx.clone())));
        let _late = timers.schedule(at(40), target(3));
        let _early = timers.schedule(at(10), target(1));
        let cancelled = timers.schedule(at(15), target(9));
        let _middle = timers.schedule(at(20), target(2));
        drop(cancelled);
        let fired: Vec<u32> = (0..3).map(|_| rx.recv_timeout(Duration::from_secs(5)).unwrap()).collect();
        assert_eq!(fired, [1, 2, 3]);
        assert!(Instant::now() >= at(40));
        timers.stop();
    }
}
