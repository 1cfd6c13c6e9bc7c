//! A growing ring of bytes: the data in pipes, stream sockets and terminals.
//!
//! It owns no limit: its user decides how much may go in, and the memory grows with what is in it (a power of two,
//! at least [`SMALLEST`]). Copies go straight between the ring and [`IoSrc`]/[`IoDst`], without a bounce buffer.

use crate::errno::SysResult;
use crate::io::{IoDst, IoSrc};

/// The first allocation, in bytes.
const SMALLEST: usize = 4096;

/// Bytes, first in, first out.
#[derive(Default)]
pub struct ByteRing {
    buf: Vec<u8>,
    head: usize,
    len: usize,
}

impl ByteRing {
    /// An empty ring without memory.
    pub const fn new() -> ByteRing {
        ByteRing { buf: Vec::new(), head: 0, len: 0 }
    }

    /// Bytes in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn mask(&self) -> usize {
        self.buf.len().wrapping_sub(1)
    }

    /// Makes room for `more` bytes.
    fn grow_for(&mut self, more: usize) {
        let needed = self.len.saturating_add(more);
        if needed <= self.buf.len() {
            return;
        }
        let size = needed.max(SMALLEST).checked_next_power_of_two().unwrap_or(needed);
        let mut bigger = Vec::with_capacity(size);
        let (first, second) = self.as_slices();
        bigger.extend_from_slice(first);
        bigger.extend_from_slice(second);
        bigger.resize(size, 0);
        self.buf = bigger;
        self.head = 0;
    }

    /// The data as at most two runs, oldest first.
    pub fn as_slices(&self) -> (&[u8], &[u8]) {
        let first = self.len.min(self.buf.len().wrapping_sub(self.head));
        let second = self.len.wrapping_sub(first);
        let end = self.head.wrapping_add(first);
        (self.buf.get(self.head..end).unwrap_or_default(), self.buf.get(..second).unwrap_or_default())
    }

    /// The contiguous free run after the data, at most `limit` bytes.
    fn free_run(&mut self, limit: usize) -> &mut [u8] {
        let size = self.buf.len();
        if size == 0 {
            return &mut [];
        }
        let start = self.head.wrapping_add(self.len) & self.mask();
        let run = limit.min(size.wrapping_sub(self.len)).min(size.wrapping_sub(start));
        self.buf.get_mut(start..start.wrapping_add(run)).unwrap_or_default()
    }

    /// Moves up to `limit` bytes from `src` in. Fewer when the source faults half way; its error if at the first byte.
    pub fn fill(&mut self, src: &mut dyn IoSrc, limit: usize) -> SysResult<usize> {
        let wanted = limit.min(src.remaining());
        self.grow_for(wanted);
        let mut done = 0;
        while done < wanted {
            let run = self.free_run(wanted.wrapping_sub(done));
            let room = run.len();
            match src.take(run) {
                Ok(0) => break,
                Ok(taken) => {
                    self.len = self.len.wrapping_add(taken.min(room));
                    done = done.wrapping_add(taken.min(room));
                    if taken < room {
                        break;
                    }
                }
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Appends all of `data`.
    pub fn push(&mut self, data: &[u8]) {
        self.grow_for(data.len());
        let mut rest = data;
        while !rest.is_empty() {
            let run = self.free_run(rest.len());
            let (head, tail) = rest.split_at(run.len());
            if head.is_empty() {
                return;
            }
            run.copy_from_slice(head);
            self.len = self.len.wrapping_add(head.len());
            rest = tail;
        }
    }

    /// Moves up to `limit` bytes out into `dst`.
    pub fn drain(&mut self, dst: &mut dyn IoDst, limit: usize) -> SysResult<usize> {
        let copied = self.peek(dst, 0, limit)?;
        self.discard(copied);
        Ok(copied)
    }

    /// Copies up to `limit` bytes that start `skip` bytes in, leaving them there.
    pub fn peek(&self, dst: &mut dyn IoDst, skip: usize, limit: usize) -> SysResult<usize> {
        let (first, second) = self.as_slices();
        let (first, second) = match first.get(skip..) {
            Some(rest) => (rest, second),
            None => (second.get(skip.wrapping_sub(first.len())..).unwrap_or_default(), &[][..]),
        };
        let mut done = 0;
        for run in [first, second] {
            let wanted = run.get(..limit.wrapping_sub(done).min(run.len())).unwrap_or_default();
            if wanted.is_empty() {
                continue;
            }
            match dst.put(wanted) {
                Ok(put) => {
                    done = done.wrapping_add(put);
                    if put < wanted.len() {
                        break;
                    }
                }
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Forgets the oldest `count` bytes.
    pub fn discard(&mut self, count: usize) {
        let count = count.min(self.len);
        self.len = self.len.wrapping_sub(count);
        self.head = if self.len == 0 { 0 } else { self.head.wrapping_add(count) & self.mask() };
    }

    /// Forgets the newest `count` bytes.
    pub fn retract(&mut self, count: usize) {
        self.len = self.len.saturating_sub(count);
    }

    /// Forgets everything and gives memory beyond the smallest size back.
    pub fn clear(&mut self) {
        self.head = 0;
        self.len = 0;
        if self.buf.len() > SMALLEST {
            self.buf = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{KernelDst, KernelSrc};

    #[test]
    fn behaves_like_a_queue_across_the_wrap_and_growth() {
        let mut ring = ByteRing::new();
        let mut model = std::collections::VecDeque::<u8>::new();
        let mut seed = 12345u32;
        let mut next = 0u8;
        for _ in 0..5000 {
            seed = seed.wrapping_mul(1_103_515_245).wrapping_add(12345);
            let count = (seed >> 8) as usize % 3000;
            if seed & 1 == 0 || model.is_empty() {
                let data: Vec<u8> = (0..count)
                    .map(|_| {
                        next = next.wrapping_add(7);
                        next
                    })
                    .collect();
                model.extend(&data);
                assert_eq!(ring.fill(&mut KernelSrc::new(&data), usize::MAX), Ok(count));
            } else {
                let mut buf = vec![0; count];
                let skip = count / 2;
                let seen = ring.peek(&mut KernelDst::new(&mut buf), skip, count).unwrap();
                assert!(model.iter().skip(skip).take(seen).eq(&buf[..seen]));
                let got = ring.drain(&mut KernelDst::new(&mut buf), count).unwrap();
                assert_eq!(got, count.min(model.len()));
                assert!(model.drain(..got).eq(buf[..got].iter().copied()));
            }
            assert_eq!(ring.len(), model.len());
        }
    }
}
