//! The master side: what a terminal emulator reads and writes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use linux_raw_sys::general as linux;

use super::Tty;
use super::line::Effects;
use crate::errno::{Errno, SysResult};
use crate::io::{IoDst, IoSrc};
use crate::task::SyscallContext;
use crate::vfs::{File, FileOps};
use crate::wait::{PollEvents, WaitQueue};

/// Typed bytes processed at a time.
const CHUNK: usize = 1024;

/// The only description of the master side; its drop hangs the slaves up.
pub struct Master {
    tty: Arc<Tty>,
}

impl Master {
    /// Takes charge of a fresh pair.
    pub(super) fn new(tty: Arc<Tty>) -> Master {
        Master { tty }
    }

    /// The pair.
    pub fn tty(&self) -> &Arc<Tty> {
        &self.tty
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        self.tty.hang_up();
    }
}

impl Tty {
    /// Types bytes. Returns how many were taken; `EAGAIN` when the input buffer is full.
    pub(super) fn type_bytes(&self, src: &mut dyn IoSrc) -> SysResult<usize> {
        let mut effects = Effects::default();
        let mut done: usize = 0;
        let mut outcome = Ok(());
        let mut state = self.lock();
        let mut buf = [0; CHUNK];
        while src.remaining() > 0 {
            // One byte may take two places with PARMRK; an overlong line goes byte by byte until its end.
            let room = match state.line.input_room() {
                usize::MAX => 1,
                room if state.line.termios.i(linux::PARMRK) => room / 2,
                room => room,
            };
            if room == 0 {
                break;
            }
            let chunk = buf.get_mut(..room.min(CHUNK).min(src.remaining())).unwrap_or_default();
            match src.take(chunk) {
                Ok(0) => break,
                Ok(taken) => {
                    state.line.receive(chunk.get(..taken).unwrap_or_default(), &mut effects);
                    done = done.saturating_add(taken);
                }
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        if done > 0 {
            state.last_typed = Some(Instant::now());
        }
        let echoed = !state.line.output.ring.is_empty();
        drop(state);
        self.apply(effects);
        if echoed {
            self.master_queue.notify(PollEvents::READABLE);
        }
        if done > 0 || src.remaining() == 0 {
            return Ok(done);
        }
        outcome.and(Err(Errno::EAGAIN))
    }

    /// Reads what is to be shown. `EAGAIN` when there is nothing, `EIO` when there is nothing and no slave is open any more.
    pub(super) fn read_output(&self, dst: &mut dyn IoDst) -> SysResult<usize> {
        if dst.remaining() == 0 {
            return Ok(0);
        }
        let mut state = self.lock();
        let mut header = 0;
        if state.packet_mode {
            let status = self.packet_status.swap(0, Ordering::Relaxed);
            if status != 0 {
                return dst.put(&[status as u8]);
            }
        }
        if state.line.output.ring.is_empty() {
            return if state.slaves == 0 && state.slave_seen { Err(Errno::EIO) } else { Err(Errno::EAGAIN) };
        }
        if state.packet_mode {
            header = dst.put(&[linux::TIOCPKT_DATA as u8])?;
        }
        let read = match state.line.output.ring.drain(dst, usize::MAX) {
            Ok(read) => read,
            Err(error) if header == 0 => return Err(error),
            Err(_) => 0,
        };
        drop(state);
        self.slave_queue.notify(PollEvents::WRITABLE);
        Ok(read.saturating_add(header))
    }
}

impl FileOps for Master {
    fn read(&self, _: &File, dst: &mut dyn IoDst, _: &mut u64) -> SysResult<usize> {
        self.tty.read_output(dst)
    }

    fn write(&self, _: &File, src: &mut dyn IoSrc, _: &mut u64) -> SysResult<usize> {
        self.tty.type_bytes(src)
    }

    fn writes_all(&self) -> bool {
        true
    }

    fn poll(&self, _: &File) -> PollEvents {
        let state = self.tty.lock();
        let mut events = PollEvents::empty();
        events.set(PollEvents::READABLE, !state.line.output.ring.is_empty());
        events.set(PollEvents::WRITABLE, state.line.input_room() > 0);
        events.set(PollEvents::HUP, state.slaves == 0 && state.slave_seen);
        if state.packet_mode && self.tty.packet_status.load(Ordering::Relaxed) != 0 {
            events |= PollEvents::PRI | PollEvents::READABLE;
        }
        events
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.tty.master_queue)
    }

    fn ioctl(
        &self,
        ctx: &mut SyscallContext<'_>,
        file: &Arc<File>,
        command: u32,
        arg: u64,
    ) -> SysResult<usize> {
        super::ioctl::master(&self.tty, ctx, file, command, arg)
    }

    fn anonymous_name(&self) -> Option<String> {
        Some("/dev/ptmx".into())
    }

    fn fdinfo(&self) -> String {
        format!("tty-index:\t{}\n", self.tty.index())
    }
}
