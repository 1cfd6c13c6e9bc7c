//! What calls change in a terminal: settings, flushing, flow.

use linux_raw_sys::general as linux;

use super::line::Effects;
use super::termios::Termios;
use super::{State, Tty};
use crate::errno::{Errno, SysResult};
use crate::io::KernelSrc;
use crate::wait::PollEvents;

/// When new settings take effect. Output to a pseudo-terminal is always drained, so waiting for that is no difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Apply {
    /// At once (`TCSETS`, `TCSETSW`).
    Now,
    /// After forgetting what was typed (`TCSETSF`).
    AfterFlush,
}

/// A queue to flush (`TCFLSH`), from a slave's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flush {
    Input,
    Output,
    Both,
}

impl Flush {
    pub fn from_arg(arg: u64) -> SysResult<Flush> {
        match u32::try_from(arg) {
            Ok(linux::TCIFLUSH) => Ok(Flush::Input),
            Ok(linux::TCOFLUSH) => Ok(Flush::Output),
            Ok(linux::TCIOFLUSH) => Ok(Flush::Both),
            _ => Err(Errno::EINVAL),
        }
    }

    /// The same seen from the other side.
    pub fn mirrored(self) -> Flush {
        match self {
            Flush::Input => Flush::Output,
            Flush::Output => Flush::Input,
            Flush::Both => Flush::Both,
        }
    }
}

impl State {
    fn flush(&mut self, what: Flush) -> u32 {
        let mut status = 0;
        if what != Flush::Output {
            self.line.flush_input();
            status |= linux::TIOCPKT_FLUSHREAD;
        }
        if what != Flush::Input {
            self.line.output.ring.clear();
            self.line.output.held.clear();
            status |= linux::TIOCPKT_FLUSHWRITE;
        }
        status
    }
}

impl Tty {
    pub(super) fn termios(&self) -> SysResult<Termios> {
        Ok(self.lock_live()?.line.termios)
    }

    pub(super) fn set_termios(&self, new: Termios, when: Apply) -> SysResult {
        let mut effects = Effects::default();
        let mut state = self.lock_live()?;
        if when == Apply::AfterFlush {
            state.flush(Flush::Input);
        }
        let flow = |termios: &Termios| {
            let ctrl_s = termios.char(linux::VSTOP) == 0x13 && termios.char(linux::VSTART) == 0x11;
            termios.i(linux::IXON) && ctrl_s
        };
        let (before, local) = (flow(&state.line.termios), state.line.termios.local);
        state.line.set_termios(new, &mut effects);
        let after = flow(&state.line.termios);
        let reported = (local ^ state.line.termios.local) & linux::EXTPROC != 0;
        drop(state);
        if before != after {
            self.tell_master(if after { linux::TIOCPKT_DOSTOP } else { linux::TIOCPKT_NOSTOP });
        }
        if reported {
            self.tell_master(linux::TIOCPKT_IOCTL);
        }
        self.apply(effects);
        // What a reader waits for may have changed.
        self.slave_queue.notify(PollEvents::READABLE);
        self.master_queue.notify(PollEvents::READABLE | PollEvents::WRITABLE);
        Ok(())
    }

    pub(super) fn flush(&self, what: Flush) -> SysResult {
        let status = self.lock_live()?.flush(what);
        self.tell_master(status);
        self.slave_queue.notify(PollEvents::WRITABLE);
        self.master_queue.notify(PollEvents::WRITABLE);
        Ok(())
    }

    /// `TCXONC`
    pub(super) fn flow(&self, arg: u64) -> SysResult {
        let mut effects = Effects::default();
        let mut state = self.lock_live()?;
        match u32::try_from(arg) {
            Ok(linux::TCOOFF) => {
                state.line.stop(&mut effects);
                state.line.stopped_by_call = true;
            }
            Ok(linux::TCOON) => {
                state.line.stopped_by_call = false;
                state.line.start(&mut effects);
            }
            Ok(action @ (linux::TCIOFF | linux::TCION)) => {
                let index = if action == linux::TCIOFF { linux::VSTOP } else { linux::VSTART };
                let char = state.line.termios.char(index);
                if char != super::termios::DISABLED {
                    state.line.output.ring.push(&[char]);
                }
            }
            _ => return Err(Errno::EINVAL),
        }
        drop(state);
        self.apply(effects);
        self.master_queue.notify(PollEvents::READABLE);
        Ok(())
    }

    /// Types from inside the kernel; what does not fit is lost.
    pub fn type_from_kernel(&self, data: &[u8]) {
        let _ = self.type_bytes(&mut KernelSrc::new(data));
    }
}
