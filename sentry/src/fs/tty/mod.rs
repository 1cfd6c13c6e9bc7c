//! Terminals: pseudo-terminal pairs with the line discipline and job control.
//!
//! A [`Tty`] is one pair. Its [`master::Master`] is what a terminal emulator, `tmux` or the container's own terminal
//! ([`host`]) holds; its [`slave::Slave`]s are what programs have as standard streams. Typed bytes go through
//! [`line`] (the line discipline) to the slaves' readers, written bytes through [`output`] to the master's.
//! [`job`] ties the pair to a session: signals to the foreground group, `SIGTTIN` and `SIGTTOU` to the others.
//!
//! ```text
//!   master write ─▶ line (edit, echo, signals) ─▶ input ─▶ slave read
//!                      │ echo
//!   master read  ◀─ output ring ◀──────── post-processing ◀─ slave write
//! ```
//!
//! Life: the pair exists while its master is open. When the master goes, the slaves are hung up: reads return 0,
//! everything else `EIO`, the session's leader gets `SIGHUP`. When the last slave goes, the master reads `EIO` once
//! it is drained, until a slave is opened again.
//!
//! Lock order: the pair's state, then its job (leaf). Signals are sent and queues notified with neither held.
//!
//! Not there yet: line disciplines other than `N_TTY`, `EXTPROC`, `TIOCSTI` (switched off, as in new kernels),
//! `TCGETA` and its family, virtual consoles.

mod control;
pub mod devpts;
pub mod drivers;
mod erase;
pub mod host;
mod ioctl;
pub mod job;
mod line;
pub mod master;
mod output;
pub mod slave;
pub mod termios;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use linux_raw_sys::general as linux;
use parking_lot::{Mutex, MutexGuard};

use crate::errno::{Errno, SysResult};
use crate::task::{SigInfo, Signal};
use crate::time::{TimerHandle, TimerTarget, Timers};
use crate::vfs::Device;
use crate::wait::{PollEvents, WaitQueue};
use devpts::Instance;
use job::Job;
use line::{Effects, Line};
use termios::WindowSize;

/// Major number of pseudo-terminal slaves (`UNIX98_PTY_SLAVE_MAJOR`).
pub const SLAVE_MAJOR: u32 = 136;

/// A pseudo-terminal pair.
pub struct Tty {
    me: Weak<Tty>,
    index: u32,
    instance: Weak<Instance>,
    timers: Arc<Timers>,
    state: Mutex<State>,
    job: Mutex<Job>,
    /// `TIOCPKT_*` bits the master has not read yet.
    packet_status: AtomicU32,
    master_queue: WaitQueue,
    slave_queue: WaitQueue,
}

struct State {
    line: Line,
    window: WindowSize,
    slaves: u32,
    /// A slave has been opened at least once.
    slave_seen: bool,
    master_open: bool,
    /// `TIOCSPTLCK`
    locked: bool,
    /// `TIOCPKT`
    packet_mode: bool,
    /// `TIOCEXCL`
    exclusive: bool,
    /// When a read with `VMIN` 0 began to wait.
    read_since: Option<Instant>,
    /// When the last byte was typed.
    last_typed: Option<Instant>,
    /// Wakes readers when `VTIME` is over.
    read_timer: Option<TimerHandle>,
}

impl Tty {
    /// A pair whose master is open and whose slave is still locked.
    pub(super) fn new(index: u32, instance: Weak<Instance>, timers: &Arc<Timers>) -> Arc<Tty> {
        let state = State {
            line: Line::new(),
            window: WindowSize::default(),
            slaves: 0,
            slave_seen: false,
            master_open: true,
            locked: true,
            packet_mode: false,
            exclusive: false,
            read_since: None,
            last_typed: None,
            read_timer: None,
        };
        Arc::new_cyclic(|me| Tty {
            me: me.clone(),
            index,
            instance,
            timers: timers.clone(),
            state: Mutex::new(state),
            job: Mutex::default(),
            packet_status: AtomicU32::new(0),
            master_queue: WaitQueue::new(),
            slave_queue: WaitQueue::new(),
        })
    }

    /// Its number in `/dev/pts`.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The device number of its slave.
    pub fn slave_device(&self) -> Device {
        Device { major: SLAVE_MAJOR, minor: self.index }
    }

    /// The slave's path where devpts is usually mounted.
    pub fn slave_path(&self) -> String {
        format!("/dev/pts/{}", self.index)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Its state for a slave's request; `EIO` once it is hung up.
    fn lock_live(&self) -> SysResult<MutexGuard<'_, State>> {
        let state = self.state.lock();
        if state.master_open { Ok(state) } else { Err(Errno::EIO) }
    }

    /// `TIOCGWINSZ`
    pub fn window(&self) -> WindowSize {
        self.lock().window
    }

    /// `TIOCSWINSZ`: the foreground group gets `SIGWINCH` if the size is new.
    pub fn set_window(&self, window: WindowSize) {
        let changed = std::mem::replace(&mut self.lock().window, window) != window;
        if changed {
            self.signal_foreground(Signal::WINCH);
        }
    }

    /// Does what typing or a call has caused.
    fn apply(&self, effects: Effects) {
        for signal in effects.signals {
            self.signal_foreground(signal);
        }
        if effects.flushed {
            self.tell_master(linux::TIOCPKT_FLUSHREAD | linux::TIOCPKT_FLUSHWRITE);
        }
        if effects.flow_changed {
            let stopped = self.lock().line.stopped;
            self.tell_master(if stopped { linux::TIOCPKT_STOP } else { linux::TIOCPKT_START });
            if !stopped {
                self.slave_queue.notify(PollEvents::WRITABLE);
            }
        }
        if effects.readable {
            self.slave_queue.notify(PollEvents::READABLE);
        }
    }

    /// Leaves a status byte for a master in packet mode.
    fn tell_master(&self, status: u32) {
        if !self.lock().packet_mode {
            return;
        }
        let opposite = match status {
            linux::TIOCPKT_STOP => linux::TIOCPKT_START,
            linux::TIOCPKT_START => linux::TIOCPKT_STOP,
            linux::TIOCPKT_DOSTOP => linux::TIOCPKT_NOSTOP,
            linux::TIOCPKT_NOSTOP => linux::TIOCPKT_DOSTOP,
            _ => 0,
        };
        self.packet_status.fetch_and(!opposite, Ordering::Relaxed);
        self.packet_status.fetch_or(status, Ordering::Relaxed);
        self.master_queue.notify(PollEvents::PRI | PollEvents::READABLE);
    }

    /// The master was closed: hangs the slaves up.
    fn hang_up(&self) {
        let mut state = self.lock();
        if !std::mem::replace(&mut state.master_open, false) {
            return;
        }
        state.line.flush_input();
        let timer = state.read_timer.take();
        drop(state);
        drop(timer);
        if let Some(instance) = self.instance.upgrade() {
            instance.remove(self.index);
        }
        self.hang_up_session();
        let everything = PollEvents::READABLE | PollEvents::WRITABLE | PollEvents::HUP | PollEvents::ERR;
        self.slave_queue.notify(everything);
    }

    /// A signal of the kernel to the foreground group, if there is one.
    pub fn signal_foreground(&self, signal: Signal) {
        let foreground = self.job.lock().foreground();
        if let Some(group) = foreground {
            group.signal(&SigInfo::kernel(signal));
        }
    }
}

impl TimerTarget for Tty {
    /// `VTIME` is over: readers look again.
    fn expired(&self) {
        self.slave_queue.notify(PollEvents::READABLE);
    }
}
