//! A pipe's data and counters, and the rules for what goes in and comes out.

use std::collections::VecDeque;

use linux_raw_sys::general as linux;

use crate::errno::{Errno, SysResult};
use crate::fs::byte_ring::ByteRing;
use crate::io::{IoDst, IoSrc};

/// Writes up to this many bytes are atomic; also the size of a packet and of a slot.
pub const PIPE_BUF: usize = linux::PIPE_BUF as usize;
/// Capacity of a new pipe, in bytes.
pub const DEFAULT_CAPACITY: usize = 16 * PIPE_BUF;
/// `/proc/sys/fs/pipe-max-size`: what `F_SETPIPE_SZ` grants without `CAP_SYS_RESOURCE`, in bytes.
pub const MAX_UNPRIVILEGED_CAPACITY: usize = 1 << 20;

/// Linux's `round_pipe_size`: up to a power of two of pages; `EINVAL` beyond 2 GiB.
pub(super) fn round_capacity(size: u64) -> SysResult<usize> {
    if size > 1 << 31 {
        return Err(Errno::EINVAL);
    }
    let size = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
    size.max(PIPE_BUF).checked_next_power_of_two().ok_or(Errno::EINVAL)
}

/// A run of data in the ring. Only kept while the pipe holds packets.
struct Run {
    len: usize,
    packet: bool,
}

pub(super) struct State {
    pub ring: ByteRing,
    runs: VecDeque<Run>,
    pub capacity: usize,
    pub readers: u32,
    pub writers: u32,
    /// How many readers ever joined.
    pub readers_joined: u64,
    /// How many writers ever joined.
    pub writers_joined: u64,
}

impl State {
    pub fn new() -> State {
        State {
            ring: ByteRing::new(),
            runs: VecDeque::new(),
            capacity: DEFAULT_CAPACITY,
            readers: 0,
            writers: 0,
            readers_joined: 0,
            writers_joined: 0,
        }
    }

    pub fn room(&self) -> usize {
        self.capacity.saturating_sub(self.ring.len())
    }

    /// Slots of one page in use.
    pub fn used_slots(&self) -> usize {
        if self.runs.is_empty() {
            return self.ring.len().div_ceil(PIPE_BUF);
        }
        self.runs.iter().map(|run| run.len.div_ceil(PIPE_BUF).max(1)).sum()
    }

    /// Whether a write of `PIPE_BUF` bytes would not block.
    pub fn writable(&self) -> bool {
        self.room() >= PIPE_BUF && (self.runs.is_empty() || self.free_slots() > 0)
    }

    fn free_slots(&self) -> usize {
        (self.capacity / PIPE_BUF).saturating_sub(self.used_slots())
    }

    /// A packet of no bytes at the front (its source faulted): readable as a read of 0 bytes.
    pub fn has_empty_packet(&self) -> bool {
        self.runs.front().is_some_and(|run| run.len == 0)
    }

    pub fn forget(&mut self) {
        self.ring.clear();
        self.runs.clear();
    }

    /// A stream write: atomic up to `PIPE_BUF` bytes, as much as fits beyond. `EAGAIN` if nothing may go in.
    pub fn put(&mut self, src: &mut dyn IoSrc) -> SysResult<usize> {
        let room = self.room();
        let wanted = src.remaining();
        if room == 0 || (wanted <= PIPE_BUF && room < wanted) {
            return Err(Errno::EAGAIN);
        }
        let put = self.ring.fill(src, room)?;
        self.note_stream(put);
        Ok(put)
    }

    /// Accounts for `count` stream bytes just appended to the ring.
    pub fn note_stream(&mut self, count: usize) {
        match self.runs.back_mut() {
            None => {}
            Some(last) if !last.packet => last.len = last.len.saturating_add(count),
            Some(_) => self.runs.push_back(Run { len: count, packet: false }),
        }
    }

    /// A write in packet mode: every page of it is a packet of its own.
    pub fn put_packets(&mut self, src: &mut dyn IoSrc) -> SysResult<usize> {
        let mut done: usize = 0;
        while src.remaining() > 0 {
            let len = src.remaining().min(PIPE_BUF);
            if self.room() < len || self.free_slots() == 0 {
                return if done == 0 { Err(Errno::EAGAIN) } else { Ok(done) };
            }
            if self.runs.is_empty() && !self.ring.is_empty() {
                self.runs.push_back(Run { len: self.ring.len(), packet: false });
            }
            match self.ring.fill(src, len) {
                Ok(put) => {
                    self.runs.push_back(Run { len: put, packet: true });
                    done = done.saturating_add(put);
                    if put < len {
                        break;
                    }
                }
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// A read: stream data up to the next packet, or one packet whose rest is lost.
    pub fn take(&mut self, dst: &mut dyn IoDst) -> SysResult<usize> {
        let mut done: usize = 0;
        loop {
            let Some(front) = self.runs.front_mut() else {
                return match self.ring.drain(dst, usize::MAX) {
                    Ok(count) => Ok(done.saturating_add(count)),
                    Err(_) if done > 0 => Ok(done),
                    Err(error) => Err(error),
                };
            };
            if front.packet && done > 0 {
                return Ok(done);
            }
            let count = match self.ring.drain(dst, front.len) {
                Ok(count) => count,
                Err(_) if done > 0 => return Ok(done),
                Err(error) => return Err(error),
            };
            done = done.saturating_add(count);
            let rest = front.len.saturating_sub(count);
            if front.packet {
                self.ring.discard(rest);
                self.runs.pop_front();
                return Ok(done);
            }
            front.len = rest;
            if rest > 0 {
                return Ok(done);
            }
            self.runs.pop_front();
        }
    }

    /// Removes `count` bytes that a splice moved away; packets lose their boundaries then, as in Linux.
    pub fn consume(&mut self, count: usize) {
        self.ring.discard(count);
        let mut left = count;
        while let Some(front) = self.runs.front_mut() {
            if left == 0 && front.len > 0 {
                break;
            }
            let from_run = left.min(front.len);
            front.len = front.len.saturating_sub(from_run);
            left = left.saturating_sub(from_run);
            if front.len == 0 {
                self.runs.pop_front();
            }
        }
    }
}
