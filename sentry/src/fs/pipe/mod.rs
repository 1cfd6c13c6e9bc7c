//! Pipes and FIFOs.
//!
//! A [`Pipe`] is the data and who has it open; a [`PipeEnd`] is what a description holds ([`FileOps`]), counted in
//! the pipe from its creation to its drop. A FIFO's pipe hangs off its inode while anybody has it open
//! ([`open_fifo`]).
//!
//! Linux keeps pages in slots; here is one ring of bytes, and the slots' lengths beside it: what a write fills, when the pipe is
//! full, where a packet (`O_DIRECT`) ends and how much a reader or writer without memory loses is counted in slots.
//!
//! Lock order: a pipe's state is a leaf except for guest memory (faults while copying) and, in [`splice`], the file
//! that pipe data is written to. Two pipes are locked in order of their addresses.
//!
//! Not there yet: the per-user accounting of pipe pages, passing pages by reference in splice.

mod fifo;
pub mod splice;
mod state;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use linux_raw_sys::ioctl as linux_ioctl;
use parking_lot::Mutex;

pub use fifo::open_fifo;
pub use state::{DEFAULT_CAPACITY, MAX_UNPRIVILEGED_CAPACITY, PIPE_BUF};

use crate::errno::{Errno, SysResult};
use crate::io::{IoDst, IoSrc};
use crate::task::{Capability, Credentials, SyscallContext};
use crate::vfs::{Access, File, FileOps, OpenFlags};
use crate::wait::{PollEvents, WaitQueue};
use state::State;

/// What both ends share.
pub struct Pipe {
    state: Mutex<State>,
    queue: WaitQueue,
    ino: u64,
}

impl Pipe {
    /// A pipe that nobody has open yet. `ino` is the number `pipe:[…]` shows.
    pub fn new(ino: u64) -> Arc<Pipe> {
        Arc::new(Pipe { state: Mutex::new(State::new()), queue: WaitQueue::new(), ino })
    }

    /// A pipe and its two ends, as `pipe(2)` makes them.
    pub fn pair(ino: u64) -> (PipeEnd, PipeEnd) {
        let pipe = Pipe::new(ino);
        (PipeEnd::join(&pipe, Access::READ), PipeEnd::join(&pipe, Access::WRITE))
    }

    /// Bytes that can be read (`FIONREAD`).
    pub fn available(&self) -> usize {
        self.state.lock().ring.len()
    }

    /// `F_GETPIPE_SZ`, in bytes.
    pub fn capacity(&self) -> usize {
        self.state.lock().capacity
    }

    /// `F_SETPIPE_SZ`: returns the capacity set, a power of two of at least a page. `EPERM` beyond
    /// [`MAX_UNPRIVILEGED_CAPACITY`] without `CAP_SYS_RESOURCE`, `EBUSY` when more than that is in the pipe, `EINVAL`
    /// beyond 2 GiB.
    pub fn set_capacity(&self, size: u64, who: &Credentials) -> SysResult<usize> {
        let size = state::round_capacity(size)?;
        let mut state = self.state.lock();
        if size > state.capacity && size > MAX_UNPRIVILEGED_CAPACITY && !who.has(Capability::SYS_RESOURCE) {
            return Err(Errno::EPERM);
        }
        if state.used_slots().saturating_mul(PIPE_BUF) > size {
            return Err(Errno::EBUSY);
        }
        let grew = size > state.capacity;
        state.capacity = size;
        drop(state);
        if grew {
            self.queue.notify(PollEvents::WRITABLE);
        }
        Ok(size)
    }

    fn read(&self, dst: &mut dyn IoDst) -> SysResult<usize> {
        if dst.remaining() == 0 {
            return Ok(0);
        }
        let mut state = self.state.lock();
        if state.ring.is_empty() {
            return if state.writers == 0 { Ok(0) } else { Err(Errno::EAGAIN) };
        }
        let was_writable = state.writable();
        let read = state.take(dst)?;
        let freed = !was_writable && state.writable() && !self.queue.has_nobody();
        drop(state);
        if freed {
            self.queue.notify(PollEvents::WRITABLE);
        }
        Ok(read)
    }

    fn write(&self, src: &mut dyn IoSrc, packets: bool) -> SysResult<usize> {
        if src.remaining() == 0 {
            return Ok(0);
        }
        let mut state = self.state.lock();
        if state.readers == 0 {
            return Err(Errno::EPIPE);
        }
        let written = state.put(src, packets)?;
        let waited_for = !self.queue.has_nobody();
        drop(state);
        if waited_for {
            self.queue.notify(PollEvents::READABLE);
        }
        Ok(written)
    }
}

/// One open end of a pipe (both, for a FIFO opened with `O_RDWR`).
pub struct PipeEnd {
    pipe: Arc<Pipe>,
    access: Access,
    /// How many writers had ever joined when this reader did: no hang-up is shown before another one came and went.
    writers_seen: u64,
}

impl PipeEnd {
    /// Opens `pipe` for reading, writing or both, whatever the other side.
    fn join(pipe: &Arc<Pipe>, access: Access) -> PipeEnd {
        let mut state = pipe.state.lock();
        if access.contains(Access::READ) {
            state.readers = state.readers.saturating_add(1);
            state.readers_joined = state.readers_joined.wrapping_add(1);
        }
        if access.contains(Access::WRITE) {
            state.writers = state.writers.saturating_add(1);
            state.writers_joined = state.writers_joined.wrapping_add(1);
        }
        let writers_seen = if state.writers == 0 { state.writers_joined } else { u64::MAX };
        drop(state);
        PipeEnd { pipe: pipe.clone(), access, writers_seen }
    }

    /// The pipe.
    pub fn pipe(&self) -> &Arc<Pipe> {
        &self.pipe
    }

    /// Which directions this end has.
    pub fn access(&self) -> Access {
        self.access
    }
}

impl Drop for PipeEnd {
    fn drop(&mut self) {
        let mut state = self.pipe.state.lock();
        if self.access.contains(Access::READ) {
            state.readers = state.readers.saturating_sub(1);
        }
        if self.access.contains(Access::WRITE) {
            state.writers = state.writers.saturating_sub(1);
        }
        let mut events = PollEvents::empty();
        if state.writers == 0 {
            events |= PollEvents::HUP | PollEvents::READABLE;
        }
        if state.readers == 0 {
            events |= PollEvents::ERR | PollEvents::WRITABLE;
        }
        if state.readers == 0 && state.writers == 0 {
            state.forget();
        }
        drop(state);
        if !events.is_empty() {
            self.pipe.queue.notify(events);
        }
    }
}

impl FileOps for PipeEnd {
    fn read(&self, _: &File, dst: &mut dyn IoDst, _: &mut u64) -> SysResult<usize> {
        self.pipe.read(dst)
    }

    fn write(&self, file: &File, src: &mut dyn IoSrc, _: &mut u64) -> SysResult<usize> {
        self.pipe.write(src, file.flags().contains(OpenFlags::DIRECT))
    }

    fn writes_all(&self) -> bool {
        true
    }

    fn poll(&self, _: &File) -> PollEvents {
        let state = self.pipe.state.lock();
        let mut events = PollEvents::empty();
        if self.access.contains(Access::READ) {
            if !state.ring.is_empty() {
                events |= PollEvents::READABLE;
            }
            if state.writers == 0 && state.writers_joined != self.writers_seen {
                events |= PollEvents::HUP;
            }
        }
        if self.access.contains(Access::WRITE) {
            if state.writable() {
                events |= PollEvents::WRITABLE;
            }
            if state.readers == 0 {
                events |= PollEvents::ERR;
            }
        }
        events
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.pipe.queue)
    }

    fn ioctl(&self, ctx: &mut SyscallContext<'_>, _: &Arc<File>, command: u32, arg: u64) -> SysResult<usize> {
        match command {
            linux_ioctl::FIONREAD => {
                let count = i32::try_from(self.pipe.available()).unwrap_or(i32::MAX);
                ctx.task.mm().copy_out(arg, &count)?;
                Ok(0)
            }
            _ => Err(Errno::ENOTTY),
        }
    }

    fn anonymous_name(&self) -> Option<String> {
        Some(format!("pipe:[{}]", self.pipe.ino))
    }
}
