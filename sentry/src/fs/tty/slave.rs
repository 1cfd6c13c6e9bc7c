//! The slave side: what programs read, write and control.

use std::sync::Arc;
use std::time::{Duration, Instant};

use linux_raw_sys::general as linux;

use super::{State, Tty};
use crate::errno::{Errno, SysResult};
use crate::io::{IoDst, IoSrc};
use crate::task::{Capability, Signal, SyscallContext, current};
use crate::vfs::{File, FileOps};
use crate::wait::{PollEvents, WaitQueue};

/// Written bytes processed at a time.
const CHUNK: usize = 1024;
/// With this much room for written bytes a slave is writable.
const WRITABLE_ROOM: usize = 256;
/// A wait of a `VMIN` 0 read that ended longer ago than its end was nobody's: the reader was interrupted.
const STALE: Duration = Duration::from_secs(1);

/// A description of the slave side, counted in the pair from its creation to its drop.
pub struct Slave {
    tty: Arc<Tty>,
}

impl Tty {
    /// Opens the slave. `EIO` while it is locked or after the master has gone, `EBUSY` after `TIOCEXCL`.
    pub fn open_slave(self: &Arc<Tty>) -> SysResult<Slave> {
        let mut state = self.lock_live()?;
        if state.locked {
            return Err(Errno::EIO);
        }
        let privileged = current::current().is_some_and(|task| task.credentials().has(Capability::SYS_ADMIN));
        if state.exclusive && !privileged {
            return Err(Errno::EBUSY);
        }
        state.slaves = state.slaves.saturating_add(1);
        state.slave_seen = true;
        Ok(Slave { tty: self.clone() })
    }
}

impl Slave {
    /// The pair.
    pub fn tty(&self) -> &Arc<Tty> {
        &self.tty
    }
}

impl Drop for Slave {
    fn drop(&mut self) {
        let mut state = self.tty.lock();
        state.slaves = state.slaves.saturating_sub(1);
        let last = state.slaves == 0;
        if last {
            state.exclusive = false;
        }
        drop(state);
        if last {
            self.tty.master_queue.notify(PollEvents::HUP | PollEvents::READABLE);
        }
    }
}

impl State {
    /// How many bytes a read of `len` may take now; `EAGAIN` to wait for more. 0 when `VTIME` is over.
    fn ready_to_read(&mut self, len: usize, nonblocking: bool, tty: &Tty) -> SysResult<usize> {
        let available = self.line.available();
        if self.line.canonical() || (nonblocking && available > 0) {
            return if available > 0 { Ok(available) } else { Err(Errno::EAGAIN) };
        }
        let minimum = usize::from(self.line.termios.char(linux::VMIN));
        let tenths = u64::from(self.line.termios.char(linux::VTIME));
        let pause = Duration::from_millis(tenths.saturating_mul(100));
        if available > 0 && available >= minimum.min(len) {
            self.read_since = None;
            return Ok(available);
        }
        match (minimum, tenths) {
            (0, 0) => Ok(available),
            _ if nonblocking => Err(Errno::EAGAIN),
            (_, 0) => Err(Errno::EAGAIN),
            // VTIME counts from the start of the read when nothing is required, else between bytes.
            (0, _) => self.wait_since_start(pause, tty),
            _ if available == 0 => Err(Errno::EAGAIN),
            _ => {
                let since = self.last_typed.unwrap_or_else(Instant::now);
                self.wait_until(since.checked_add(pause), tty).map(|()| available)
            }
        }
    }

    fn wait_since_start(&mut self, pause: Duration, tty: &Tty) -> SysResult<usize> {
        let now = Instant::now();
        let fresh = self.read_since.filter(|since| now.duration_since(*since) < pause.saturating_add(STALE));
        let since = *self.read_since.insert(fresh.unwrap_or(now));
        self.wait_until(since.checked_add(pause), tty)?;
        self.read_since = None;
        Ok(0)
    }

    /// `EAGAIN` before `deadline`, with a timer that wakes readers then.
    fn wait_until(&mut self, deadline: Option<Instant>, tty: &Tty) -> SysResult {
        let Some(deadline) = deadline.filter(|at| Instant::now() < *at) else { return Ok(()) };
        if self.read_timer.as_ref().is_none_or(|timer| timer.deadline() != deadline) {
            self.read_timer = tty.me.upgrade().map(|me| tty.timers.schedule(deadline, me));
        }
        Err(Errno::EAGAIN)
    }

    /// What `poll` calls readable: with `VMIN` and without `VTIME` not before `VMIN` bytes are there.
    fn slave_readable(&self) -> bool {
        let termios = &self.line.termios;
        let wanted = match (self.line.canonical(), termios.char(linux::VTIME), termios.char(linux::VMIN)) {
            (false, 0, minimum @ 1..) => usize::from(minimum),
            _ => 1,
        };
        self.line.available() >= wanted
    }
}

impl FileOps for Slave {
    fn read(&self, file: &File, dst: &mut dyn IoDst, _: &mut u64) -> SysResult<usize> {
        let tty = &self.tty;
        tty.check_background(Signal::TTIN)?;
        let mut state = tty.lock();
        if !state.master_open {
            return Ok(0);
        }
        if dst.remaining() == 0 || state.ready_to_read(dst.remaining(), file.nonblocking(), tty)? == 0 {
            return Ok(0);
        }
        let read = state.line.read(dst)?;
        drop(state);
        tty.master_queue.notify(PollEvents::WRITABLE);
        Ok(read)
    }

    fn write(&self, _: &File, src: &mut dyn IoSrc, _: &mut u64) -> SysResult<usize> {
        let tty = &self.tty;
        if tty.lock_live()?.line.termios.l(linux::TOSTOP) {
            tty.check_background(Signal::TTOU)?;
        }
        let mut state = tty.lock_live()?;
        let mut done: usize = 0;
        let mut buf = [0; CHUNK];
        while src.remaining() > 0 {
            let room = state.line.output_room().min(CHUNK).min(src.remaining());
            if room == 0 {
                break;
            }
            let chunk = buf.get_mut(..room).unwrap_or_default();
            match src.take(chunk) {
                Ok(0) => break,
                Ok(taken) => {
                    state.line.write_output(chunk.get(..taken).unwrap_or_default());
                    done = done.saturating_add(taken);
                }
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        drop(state);
        if done > 0 {
            tty.master_queue.notify(PollEvents::READABLE);
            return Ok(done);
        }
        if src.remaining() == 0 { Ok(0) } else { Err(Errno::EAGAIN) }
    }

    fn writes_all(&self) -> bool {
        true
    }

    fn poll(&self, _: &File) -> PollEvents {
        let state = self.tty.lock();
        if !state.master_open {
            return PollEvents::READABLE | PollEvents::WRITABLE | PollEvents::ERR | PollEvents::HUP;
        }
        let mut events = PollEvents::empty();
        events.set(PollEvents::READABLE, state.slave_readable());
        events.set(PollEvents::WRITABLE, state.line.output_room() >= WRITABLE_ROOM);
        events
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.tty.slave_queue)
    }

    fn ioctl(
        &self,
        ctx: &mut SyscallContext<'_>,
        file: &Arc<File>,
        command: u32,
        arg: u64,
    ) -> SysResult<usize> {
        super::ioctl::slave(&self.tty, ctx, file, command, arg)
    }

    fn anonymous_name(&self) -> Option<String> {
        Some(self.tty.slave_path())
    }
}
