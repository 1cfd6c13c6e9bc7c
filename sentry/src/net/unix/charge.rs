//! What data under way is charged to its sender: what Linux's buffers for it would take (`truesize` of a `struct sk_buff`), so that as much
//! fits into `SO_SNDBUF` as there.
//!
//! A buffer has a head from the allocator, in powers of two, and pages. A write to a stream is cut into buffers, each of which is charged until
//! all of it was received; a message is one buffer.

use std::collections::VecDeque;

/// `struct sk_buff`, and what the head keeps for itself (`struct skb_shared_info`).
const BUFFER: usize = 256;
const SHARED: usize = 320;
const SMALLEST_HEAD: usize = 512;
const PAGE: usize = 4096;
/// Most data in the head of a stream's buffer, and of a message's before it gets pages (`SKB_MAX_HEAD`, `SKB_MAX_ALLOC`).
const STREAM_HEAD: usize = PAGE - SHARED;
const MESSAGE_HEAD: usize = 4 * PAGE - SHARED;
/// Most data in pages.
const STREAM_PAGES: usize = 32 << 10;
const MESSAGE_PAGES: usize = 17 * PAGE;

fn pages(len: usize) -> usize {
    len.saturating_add(PAGE - 1) / PAGE * PAGE
}

fn buffer(head: usize, in_pages: usize) -> usize {
    let head = head.saturating_add(SHARED).max(SMALLEST_HEAD);
    let head = head.checked_next_power_of_two().unwrap_or(head);
    BUFFER.saturating_add(head).saturating_add(pages(in_pages))
}

/// A message's charge in bytes.
pub(super) fn of_message(len: usize) -> usize {
    let in_pages = pages(len.saturating_sub(MESSAGE_HEAD).min(MESSAGE_PAGES));
    buffer(len.saturating_sub(in_pages), in_pages)
}

/// How much of `left` bytes goes into the next buffer of a stream with this `SO_SNDBUF`.
pub(super) fn next_piece(left: usize, limit: usize) -> usize {
    left.min((limit / 2).saturating_sub(64)).min(STREAM_HEAD + STREAM_PAGES)
}

fn of_piece(len: usize) -> usize {
    let in_pages = len.min(pages(len.saturating_sub(STREAM_HEAD)));
    buffer(len.saturating_sub(in_pages), in_pages)
}

/// A stream's buffers.
#[derive(Default)]
pub(super) struct Pieces {
    /// Bytes not received yet, and the charge.
    queue: VecDeque<(usize, usize)>,
}

impl Pieces {
    /// Adds a buffer with `len` bytes. Returns its charge.
    pub fn add(&mut self, len: usize) -> usize {
        let charge = of_piece(len);
        self.queue.push_back((len, charge));
        charge
    }

    /// `count` bytes were received. Returns the charge of the buffers that are empty now.
    pub fn take(&mut self, mut count: usize) -> usize {
        let mut freed: usize = 0;
        while let Some((left, charge)) = self.queue.front_mut().filter(|_| count > 0) {
            let step = count.min(*left);
            *left = left.saturating_sub(step);
            count = count.saturating_sub(step);
            if *left == 0 {
                freed = freed.saturating_add(*charge);
                self.queue.pop_front();
            }
        }
        if self.queue.is_empty() && self.queue.capacity() > 16 {
            self.queue = VecDeque::new();
        }
        freed
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.queue = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `SIOCOUTQ` shows after one write on Linux 6.18.
    #[test]
    fn charges_are_those_of_linux() {
        let both = [
            (1, 768),
            (192, 768),
            (193, 1280),
            (704, 1280),
            (705, 2304),
            (1728, 2304),
            (1729, 4352),
            (3776, 4352),
        ];
        for (len, charge) in both {
            assert_eq!((of_message(len), of_piece(len)), (charge, charge), "{len}");
        }
        for (len, charge) in
            [(3777, 4864), (7872, 8448), (7873, 8960), (16_065, 17_152), (32_768, 33_536), (36_544, 37_120)]
        {
            assert_eq!(of_piece(len), charge, "{len}");
        }
        let messages = [
            (3777, 8448),
            (7873, 16_640),
            (16_064, 16_640),
            (16_065, 20_736),
            (36_545, 41_216),
            (100_000, 102_656),
            (200_000, 200_960),
        ];
        for (len, charge) in messages {
            assert_eq!(of_message(len), charge, "{len}");
        }
    }

    #[test]
    fn a_buffer_is_charged_until_all_of_it_was_received() {
        let mut pieces = Pieces::default();
        assert_eq!((next_piece(200_000, 212_992), next_piece(200_000, 4608)), (36_544, 2240));
        assert_eq!((pieces.add(1000), pieces.add(64)), (2304, 768));
        assert_eq!([500, 499, 2, 62, 1, 1].map(|count| pieces.take(count)), [0, 0, 2304, 0, 768, 0]);
    }
}
