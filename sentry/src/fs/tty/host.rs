//! The container's terminal: a pair whose master side is the host's.
//!
//! The shim hands over a descriptor with what is typed and one for what is shown; the pump copies between them and the
//! pair. All copying happens on the sandbox's host-poller thread: host readiness calls it directly, guest readiness
//! (the pair's master queue) through an eventfd among the host's descriptors. Nothing is copied without one of these.
//!
//! Without an output (nobody is attached) what programs write is taken and dropped.
//!
//! Lock order: the pump's buffers, then the pair's state. Notifications take no lock of the pump.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::errno::Errno as HostErrno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;

use super::Tty;
use super::master::Master;
use super::termios::WindowSize;
use crate::errno::{Errno, SysResult};
use crate::fs::hostfile::poller::{HostPoller, HostReady, HostWatch};
use crate::io::{KernelDst, KernelSrc};
use crate::task::ProcessGroup;
use crate::vfs::{File, Inode, OpenFlags, VfsPath};
use crate::wait::{Observer, PollEvents, Registration};

/// Bytes copied at a time.
const CHUNK: usize = 4096;
/// Copies one call makes in each direction before it lets others have the thread.
const ROUNDS: usize = 64;

/// A terminal that the host shows. Dropping it hangs the slaves up.
pub struct HostTerminal {
    pump: Arc<Pump>,
    _registration: Registration,
    _wakes: HostWatch,
}

struct Pump {
    master: Master,
    /// Wakes the poller's thread; never read, each write is an edge.
    wake: EventFd,
    woken: AtomicBool,
    ends: Mutex<Ends>,
}

#[derive(Default)]
struct Ends {
    input: Option<End>,
    output: Option<End>,
    /// Typed, and not taken by the pair yet.
    typed: Vec<u8>,
    /// To be shown, and not taken by the host yet.
    shown: Vec<u8>,
}

/// A host descriptor and its registration; none for files that are always ready.
struct End {
    fd: Arc<OwnedFd>,
    _watch: Option<HostWatch>,
}

/// What the poller and the pair's queue hold of the pump.
struct Link(Weak<Pump>);

impl HostReady for Link {
    fn ready(&self, _: PollEvents) {
        if let Some(pump) = self.0.upgrade() {
            pump.woken.store(false, Ordering::Release);
            pump.run();
        }
    }
}

impl Observer for Link {
    fn notified(&self, _: PollEvents) {
        if let Some(pump) = self.0.upgrade() {
            pump.wake();
        }
    }
}

impl Drop for HostTerminal {
    fn drop(&mut self) {
        // The poller's thread may hold the pump, and with it the master, a moment longer.
        self.tty().hang_up();
    }
}

fn end(poller: &Arc<HostPoller>, pump: &Arc<Pump>, fd: OwnedFd) -> SysResult<End> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    let fd = Arc::new(fd);
    let watch = match poller.watch(&fd, Arc::new(Link(Arc::downgrade(pump)))) {
        Ok(watch) => Some(watch),
        Err(Errno::EPERM) => None,
        Err(error) => return Err(error),
    };
    Ok(End { fd, _watch: watch })
}

impl HostTerminal {
    /// Shows the pair of `master` on the host; its slave is unlocked.
    pub fn new(
        master: Master,
        poller: &Arc<HostPoller>,
        input: Option<OwnedFd>,
        output: Option<OwnedFd>,
        window: WindowSize,
    ) -> SysResult<HostTerminal> {
        let tty = master.tty().clone();
        tty.unlock();
        tty.set_window(window);
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let wake_fd = Arc::new(wake.as_fd().try_clone_to_owned()?);
        let pump = Arc::new(Pump { master, wake, woken: AtomicBool::new(false), ends: Mutex::default() });
        let link = || Arc::new(Link(Arc::downgrade(&pump)));
        let wakes = poller.watch(&wake_fd, link())?;
        let events = PollEvents::READABLE | PollEvents::WRITABLE;
        let registration = tty.master_queue.register(events, link());
        let input = input.map(|fd| end(poller, &pump, fd)).transpose()?;
        let output = output.map(|fd| end(poller, &pump, fd)).transpose()?;
        *pump.ends.lock() = Ends { input, output, ..Ends::default() };
        pump.wake();
        Ok(HostTerminal { pump, _registration: registration, _wakes: wakes })
    }

    /// The pair.
    pub fn tty(&self) -> &Arc<Tty> {
        self.pump.master.tty()
    }

    /// Changes the window's size; the foreground group gets `SIGWINCH`.
    pub fn resize(&self, rows: u16, columns: u16) {
        self.tty().set_window(WindowSize { rows, columns, ..WindowSize::default() });
    }

    /// Nothing more will be typed.
    pub fn close_input(&self) {
        let input = self.pump.ends.lock().input.take();
        drop(input);
    }

    /// Closes both descriptors: what is written from now on is dropped.
    pub fn detach(&self) {
        let ends = std::mem::take(&mut *self.pump.ends.lock());
        drop(ends);
        self.pump.wake();
    }

    /// Waits until everything written has gone to the host, at most `limit`. Returns whether it has.
    pub fn drain(&self, limit: Duration) -> bool {
        let deadline = Instant::now().checked_add(limit);
        loop {
            self.pump.run();
            let fd = {
                let ends = self.pump.ends.lock();
                if ends.shown.is_empty() && self.tty().lock().line.output.ring.is_empty() {
                    return true;
                }
                ends.output.as_ref().map(|end| end.fd.clone())
            };
            let left = deadline.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
            let (Some(fd), false) = (fd, left.is_zero()) else { return false };
            let millis = u16::try_from(left.as_millis().saturating_add(1)).unwrap_or(u16::MAX);
            let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
            let _ = nix::poll::poll(&mut fds, PollTimeout::from(millis));
        }
    }
}

impl Tty {
    /// Lets the slave be opened (`unlockpt`).
    pub fn unlock(&self) {
        self.lock().locked = false;
    }

    /// Opens the slave as a standard stream, without a calling task.
    pub fn open_slave_file(
        self: &Arc<Tty>,
        node: Arc<dyn Inode>,
        path: Option<VfsPath>,
    ) -> SysResult<Arc<File>> {
        Ok(File::new(Arc::new(self.open_slave()?), node, path, OpenFlags::RDWR))
    }

    /// Makes it the controlling terminal of the session of `group`, with `group` in the foreground.
    pub fn control(&self, group: &Arc<ProcessGroup>) {
        self.become_terminal_of(group);
    }
}

impl Pump {
    fn wake(&self) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            let _ = self.wake.write(1);
        }
    }

    /// Copies what can be copied now.
    fn run(&self) {
        let mut ends = self.ends.lock();
        let more_typed = self.copy_typed(&mut ends);
        let more_shown = self.copy_shown(&mut ends);
        drop(ends);
        if more_typed || more_shown {
            self.wake();
        }
    }

    /// Host to pair. `true` if there may be more.
    fn copy_typed(&self, ends: &mut Ends) -> bool {
        for _ in 0..ROUNDS {
            if !ends.typed.is_empty() {
                match self.master.tty().type_bytes(&mut KernelSrc::new(&ends.typed)) {
                    Ok(count) => drop(ends.typed.drain(..count.min(ends.typed.len()))),
                    Err(_) => return false,
                }
                continue;
            }
            let Some(input) = &ends.input else { return false };
            let mut buf = [0; CHUNK];
            match nix::unistd::read(&*input.fd, &mut buf) {
                Ok(0) => {
                    ends.input = None;
                    return false;
                }
                Ok(count) => ends.typed.extend_from_slice(buf.get(..count).unwrap_or_default()),
                Err(HostErrno::EAGAIN) => return false,
                Err(HostErrno::EINTR) => {}
                Err(error) => {
                    tracing::debug!(%error, "the terminal's input failed");
                    ends.input = None;
                    return false;
                }
            }
        }
        true
    }

    /// Pair to host. `true` if there may be more.
    fn copy_shown(&self, ends: &mut Ends) -> bool {
        for _ in 0..ROUNDS {
            if ends.shown.is_empty() {
                let mut buf = [0; CHUNK];
                match self.master.tty().read_output(&mut KernelDst::new(&mut buf)) {
                    Ok(count) => ends.shown.extend_from_slice(buf.get(..count).unwrap_or_default()),
                    Err(_) => return false,
                }
            }
            let Some(output) = &ends.output else {
                ends.shown.clear();
                continue;
            };
            match nix::unistd::write(&*output.fd, &ends.shown) {
                Ok(count) => drop(ends.shown.drain(..count.min(ends.shown.len()))),
                Err(HostErrno::EAGAIN) => return false,
                Err(HostErrno::EINTR) => {}
                Err(error) => {
                    tracing::debug!(%error, "the terminal's output failed");
                    ends.output = None;
                }
            }
        }
        true
    }
}
