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

/// A page of Linux's pipe: data that is read as a whole or, where the reader's memory ends, not at all.
struct Slot {
    len: usize,
    /// Where the data ends in the page: a short write goes behind it. What has been read still takes its place.
    end: usize,
    packet: bool,
}

pub(super) struct State {
    pub ring: ByteRing,
    slots: VecDeque<Slot>,
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
            slots: VecDeque::new(),
            capacity: DEFAULT_CAPACITY,
            readers: 0,
            writers: 0,
            readers_joined: 0,
            writers_joined: 0,
        }
    }

    /// Bytes that fit into free slots.
    pub fn room(&self) -> usize {
        self.free_slots().saturating_mul(PIPE_BUF)
    }

    /// Slots of one page in use.
    pub fn used_slots(&self) -> usize {
        self.slots.len()
    }

    /// Whether a write of `PIPE_BUF` bytes would not block.
    pub fn writable(&self) -> bool {
        self.free_slots() > 0
    }

    fn free_slots(&self) -> usize {
        (self.capacity / PIPE_BUF).saturating_sub(self.slots.len())
    }

    pub fn forget(&mut self) {
        self.ring.clear();
        self.slots.clear();
    }

    /// A write: the bytes beyond whole pages go behind a short write before them if they fit there, the rest into slots of their
    /// own, as many as are free. `EAGAIN` if nothing may go in, `EFAULT` if the source ends before a slot is complete.
    pub fn put(&mut self, src: &mut dyn IoSrc, packets: bool) -> SysResult<usize> {
        let wanted = src.remaining();
        let tail = wanted % PIPE_BUF;
        let merged = match self.slots.back() {
            Some(last) if !last.packet && last.end.saturating_add(tail) <= PIPE_BUF => tail,
            _ => 0,
        };
        let limit = wanted.min(merged.saturating_add(self.room()));
        if limit == 0 {
            return Err(Errno::EAGAIN);
        }
        let filled = self.ring.fill(src, limit)?;
        let complete = if filled == limit {
            limit
        } else if filled < merged {
            0
        } else {
            let in_pages = filled.saturating_sub(merged);
            merged.saturating_add(in_pages.saturating_sub(in_pages % PIPE_BUF))
        };
        self.ring.retract(filled.saturating_sub(complete));
        if complete == 0 {
            return Err(Errno::EFAULT);
        }
        if let Some(last) = self.slots.back_mut().filter(|_| merged > 0) {
            last.len = last.len.saturating_add(merged);
            last.end = last.end.saturating_add(merged);
        }
        self.add_slots(complete.saturating_sub(merged), |len| Slot { len, end: len, packet: packets });
        Ok(complete)
    }

    /// Accounts for `count` bytes just appended to the ring, to which no write is joined.
    pub fn note_moved(&mut self, count: usize) {
        self.add_slots(count, |len| Slot { len, end: PIPE_BUF, packet: false });
    }

    fn add_slots(&mut self, count: usize, slot: impl Fn(usize) -> Slot) {
        let mut left = count;
        while left > 0 {
            let len = left.min(PIPE_BUF);
            self.slots.push_back(slot(len));
            left = left.saturating_sub(len);
        }
    }

    /// A read: data up to the end of the next packet, whose rest is lost. `EFAULT` if the destination ends before a slot does.
    pub fn take(&mut self, dst: &mut dyn IoDst) -> SysResult<usize> {
        let mut reach: usize = 0;
        for slot in &self.slots {
            reach = reach.saturating_add(slot.len);
            if slot.packet {
                break;
            }
        }
        let asked = reach.min(dst.remaining());
        let copied = self.ring.peek(dst, 0, asked)?;
        if copied == asked {
            return Ok(self.remove(copied));
        }
        let mut complete: usize = 0;
        for slot in &self.slots {
            match complete.checked_add(slot.len).filter(|end| *end <= copied) {
                Some(end) => complete = end,
                None => break,
            }
        }
        if complete == 0 { Err(Errno::EFAULT) } else { Ok(self.remove(complete)) }
    }

    /// Removes `count` bytes that have been read, and with them the rest of a packet.
    fn remove(&mut self, count: usize) -> usize {
        let mut left = count;
        while left > 0 {
            let Some(front) = self.slots.front_mut() else { break };
            let step = left.min(front.len);
            left = left.saturating_sub(step);
            let lost = if front.packet { front.len } else { step };
            self.ring.discard(lost);
            front.len = front.len.saturating_sub(lost);
            if front.len == 0 {
                self.slots.pop_front();
            }
        }
        count
    }

    /// Removes `count` bytes that a splice moved away; packets lose their boundaries then, as in Linux.
    pub fn consume(&mut self, count: usize) {
        self.ring.discard(count);
        let mut left = count;
        while left > 0 {
            let Some(front) = self.slots.front_mut() else { break };
            let step = left.min(front.len);
            front.len = front.len.saturating_sub(step);
            left = left.saturating_sub(step);
            if front.len == 0 {
                self.slots.pop_front();
            }
        }
    }
}
