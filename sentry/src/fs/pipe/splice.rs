//! What `splice`, `tee` and `vmsplice` need of pipes. The calls themselves (offsets, blocking, which side is a pipe)
//! belong to the file calls; nothing here blocks.

use std::sync::Arc;

use parking_lot::MutexGuard;

use super::Pipe;
use super::state::{PIPE_BUF, State};
use crate::errno::{Errno, SysResult};
use crate::wait::PollEvents;

/// Most bytes that go through the kernel's memory in one step.
const STEP: usize = 16 * PIPE_BUF;

impl Pipe {
    /// Moves up to `len` bytes out of the pipe through `write`, which returns how many bytes of the run it took.
    ///
    /// `write` runs under the pipe's lock and must not touch a pipe (see [`move_between`] for that).
    /// Returns 0 at the end of the stream, `EAGAIN` when the pipe is empty but has writers.
    pub fn splice_out(
        &self,
        len: usize,
        mut write: impl FnMut(&[u8]) -> SysResult<usize>,
    ) -> SysResult<usize> {
        let mut state = self.state.lock();
        if len == 0 {
            return Ok(0);
        }
        if state.ring.is_empty() {
            return if state.writers == 0 { Ok(0) } else { Err(Errno::EAGAIN) };
        }
        let was_writable = state.writable();
        let mut done: usize = 0;
        let mut outcome = Ok(());
        while done < len {
            let (run, _) = state.ring.as_slices();
            let run = run.get(..run.len().min(len.saturating_sub(done))).unwrap_or_default();
            if run.is_empty() {
                break;
            }
            let offered = run.len();
            match write(run) {
                Ok(taken) => {
                    let taken = taken.min(offered);
                    state.consume(taken);
                    done = done.saturating_add(taken);
                    if taken < offered {
                        break;
                    }
                }
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        self.after_taking(state, was_writable);
        if done > 0 { Ok(done) } else { outcome.map(|()| 0) }
    }

    /// Moves up to `len` bytes into the pipe from `read`, which fills a buffer and returns how much it has read.
    ///
    /// `read` runs without the pipe's lock (it may drop descriptions, and with them ends of this pipe), so other writers
    /// may fill the room meanwhile: the pipe then holds at most [`STEP`] bytes more than its capacity.
    /// `EPIPE` without readers, `EAGAIN` when the pipe is full.
    pub fn splice_in(
        &self,
        len: usize,
        read: impl FnOnce(&mut [u8]) -> SysResult<usize>,
    ) -> SysResult<usize> {
        let room = {
            let state = self.state.lock();
            if state.readers == 0 {
                return Err(Errno::EPIPE);
            }
            state.room()
        };
        if len == 0 {
            return Ok(0);
        }
        if room == 0 {
            return Err(Errno::EAGAIN);
        }
        let mut buf = vec![0; len.min(room).min(STEP)];
        let count = read(&mut buf)?;
        let data = buf.get(..count).unwrap_or(&buf);
        if data.is_empty() {
            return Ok(0);
        }
        let mut state = self.state.lock();
        state.ring.push(data);
        state.note_moved(data.len());
        drop(state);
        self.queue.notify(PollEvents::READABLE);
        Ok(data.len())
    }

    fn after_taking(&self, state: MutexGuard<'_, State>, was_writable: bool) {
        let freed = !was_writable && state.writable();
        drop(state);
        if freed {
            self.queue.notify(PollEvents::WRITABLE);
        }
    }
}

/// Whether data stays in the pipe it comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Keeps,
    Loses,
}

/// `splice` between two pipes. `EINVAL` for the same pipe, else as [`Pipe::splice_out`] and [`Pipe::splice_in`].
pub fn move_between(from: &Arc<Pipe>, to: &Arc<Pipe>, len: usize) -> SysResult<usize> {
    transfer(from, to, len, Source::Loses)
}

/// `tee`: copies without consuming.
pub fn tee(from: &Arc<Pipe>, to: &Arc<Pipe>, len: usize) -> SysResult<usize> {
    transfer(from, to, len, Source::Keeps)
}

fn transfer(from: &Arc<Pipe>, to: &Arc<Pipe>, len: usize, source: Source) -> SysResult<usize> {
    if Arc::ptr_eq(from, to) {
        return Err(Errno::EINVAL);
    }
    let (mut from_state, mut to_state);
    if Arc::as_ptr(from) < Arc::as_ptr(to) {
        from_state = from.state.lock();
        to_state = to.state.lock();
    } else {
        to_state = to.state.lock();
        from_state = from.state.lock();
    }
    if to_state.readers == 0 {
        return Err(Errno::EPIPE);
    }
    if len == 0 {
        return Ok(0);
    }
    if from_state.ring.is_empty() {
        return if from_state.writers == 0 { Ok(0) } else { Err(Errno::EAGAIN) };
    }
    let count = len.min(to_state.room()).min(from_state.ring.len());
    if count == 0 {
        return Err(Errno::EAGAIN);
    }
    let (first, second) = from_state.ring.as_slices();
    let head = first.get(..count.min(first.len())).unwrap_or_default();
    let tail = second.get(..count.saturating_sub(head.len())).unwrap_or_default();
    to_state.ring.push(head);
    to_state.ring.push(tail);
    to_state.note_moved(count);
    drop(to_state);
    match source {
        Source::Keeps => drop(from_state),
        Source::Loses => {
            let was_writable = from_state.writable();
            from_state.consume(count);
            from.after_taking(from_state, was_writable);
        }
    }
    to.queue.notify(PollEvents::READABLE);
    Ok(count)
}
