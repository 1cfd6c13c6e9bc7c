//! The sandbox's one thread that waits for host descriptors.
//!
//! Registration is edge-triggered: every change of readiness is told once. The thread starts with the first watch and
//! sleeps in `epoll_wait` without a timeout, so idle descriptors cost nothing.
//!
//! Lock order: the table of watches is a leaf; targets run without it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;

use crate::errno::SysResult;
use crate::wait::PollEvents;

/// The key of the poller's own wake-up descriptor.
const STOP: u64 = 0;

/// Somebody who wants to know that a host descriptor's readiness changed.
pub trait HostReady: Send + Sync {
    /// Runs on the poller's thread: be short, do not block.
    fn ready(&self, events: PollEvents);
}

/// Waits for host descriptors.
pub struct HostPoller {
    host: Arc<Host>,
    pub(super) watches: Mutex<Watches>,
}

/// The descriptors, shared with the thread so that it outlives none of them.
struct Host {
    epoll: Epoll,
    stop: EventFd,
}

#[derive(Default)]
pub(super) struct Watches {
    last_key: u64,
    pub targets: HashMap<u64, Arc<dyn HostReady>>,
    running: bool,
}

impl HostPoller {
    /// A poller without a thread yet. Fails only when the host is out of descriptors.
    pub fn new() -> SysResult<Arc<HostPoller>> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let stop = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
        Ok(Arc::new(HostPoller { host: Arc::new(Host { epoll, stop }), watches: Mutex::default() }))
    }

    /// Tells `target` of every change of `fd`'s readiness until the result is dropped. The first report comes at once
    /// if the descriptor is ready. `EPERM` for descriptors that are always ready.
    pub fn watch(self: &Arc<Self>, fd: &Arc<OwnedFd>, target: Arc<dyn HostReady>) -> SysResult<HostWatch> {
        let mut watches = self.watches.lock();
        watches.last_key = watches.last_key.wrapping_add(1).max(STOP.wrapping_add(1));
        let key = watches.last_key;
        let interest = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLOUT
            | EpollFlags::EPOLLPRI
            | EpollFlags::EPOLLRDHUP
            | EpollFlags::EPOLLET;
        // A descriptor of our own for the registration: the same number may be watched twice, and goes when we say.
        let own = Arc::new(fd.try_clone()?);
        self.host.epoll.add(&*own, EpollEvent::new(interest, key))?;
        watches.targets.insert(key, target);
        if !watches.running {
            watches.running = self.start();
        }
        Ok(HostWatch { poller: Arc::downgrade(self), fd: own, key })
    }

    fn start(self: &Arc<Self>) -> bool {
        let poller = Arc::downgrade(self);
        let host = self.host.clone();
        let builder = std::thread::Builder::new().name("host-poll".into()).stack_size(128 << 10);
        let started = builder.spawn(move || run(&poller, &host.epoll));
        if let Err(error) = &started {
            tracing::error!(%error, "cannot start the thread that waits for host descriptors");
        }
        started.is_ok()
    }

    fn dispatch(&self, key: u64, flags: EpollFlags) {
        let target = self.watches.lock().targets.get(&key).cloned();
        if let Some(target) = target {
            let mut events = PollEvents::from_bits_truncate(flags.bits() as u32);
            if events.contains(PollEvents::IN) {
                events |= PollEvents::READABLE;
            }
            if events.contains(PollEvents::OUT) {
                events |= PollEvents::WRITABLE;
            }
            target.ready(events);
        }
    }
}

fn run(poller: &Weak<HostPoller>, epoll: &Epoll) {
    let mut events = [EpollEvent::empty(); 32];
    loop {
        let count = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => {
                tracing::error!(%error, "waiting for host descriptors failed");
                return;
            }
        };
        let Some(poller) = poller.upgrade() else { return };
        for event in events.iter().take(count) {
            if event.data() == STOP {
                return;
            }
            poller.dispatch(event.data(), event.events());
        }
    }
}

impl Drop for HostPoller {
    fn drop(&mut self) {
        // Ends the thread; it holds only a weak reference to us.
        let _ = self.host.stop.write(1);
    }
}

/// A registration; dropping it ends it.
pub struct HostWatch {
    poller: Weak<HostPoller>,
    fd: Arc<OwnedFd>,
    key: u64,
}

impl Drop for HostWatch {
    fn drop(&mut self) {
        if let Some(poller) = self.poller.upgrade() {
            let _ = poller.host.epoll.delete(&*self.fd);
            let target = poller.watches.lock().targets.remove(&self.key);
            drop(target);
        }
    }
}
