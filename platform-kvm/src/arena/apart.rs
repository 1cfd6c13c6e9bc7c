//! Revocations under shadow paging that leave a page's neighbours alone.
//!
//! A revocation changes the protection of some pages for a moment ([`crate::revoke`]), for which the host's kernel splits their mapping. Where the mapping has the
//! whole aligned 2 MiB around the place of the split, the kernel tells KVM about all of that, in case it were a huge page, and every translation to the block
//! goes, in all address spaces (`split_huge_pmd_if_needed` in `mm/huge_memory.c`). A mapping that ends in the middle of the block has no such place.
//! So the mappings of the half without huge pages are made to end there, as far as it is used: nothing but a flag that has no meaning here (no core dump)
//! tells one from the next.

use super::PAGE_SIZE;
use super::frames::BLOCK;
use super::reservation::Reservation;
use std::sync::atomic::{AtomicU32, Ordering};

/// Pairs of blocks that are treated so: 4 GiB in 2048 mappings, of the 65530 that a process may have.
const MOST: u32 = 1024;

/// How many pairs of blocks, from the start of the small half, have their mappings apart.
#[derive(Debug, Default)]
pub(super) struct Apart(AtomicU32);

impl Apart {
    /// Treats the blocks up to this one, of which frames are about to be used. Best effort.
    pub(super) fn set(&self, memory: &Reservation, block: u32, half_end: u32) {
        let pair = block / 2;
        if pair >= MOST {
            return;
        }
        let from = self.0.fetch_max(pair + 1, Ordering::Relaxed);
        for pair in from..=pair {
            let first = pair * 2 * BLOCK + BLOCK / 2;
            if first + BLOCK <= half_end {
                let (offset, len) =
                    (first as usize * PAGE_SIZE as usize, BLOCK as usize * PAGE_SIZE as usize);
                let _ = memory.advise(offset, len, libc::MADV_DONTDUMP);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_mapping_has_a_whole_block() {
        const BYTES: u64 = 2 << 20;
        let memory = Reservation::new(16 << 20, BYTES as usize).unwrap();
        memory.map_anonymous(0, 16 << 20).unwrap();
        let apart = Apart::default();
        let half = 8 * BLOCK;
        apart.set(&memory, 0, half);
        apart.set(&memory, 5, half);
        apart.set(&memory, 3, half);
        let treated = memory.address()..memory.address() + 6 * BYTES;
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let mut inside = 0;
        for line in maps.lines() {
            let mut ends = line.split(['-', ' ']).map(|text| u64::from_str_radix(text, 16));
            let (Some(Ok(start)), Some(Ok(end))) = (ends.next(), ends.next()) else { panic!("{line}") };
            if end <= treated.start || start >= treated.end {
                continue;
            }
            inside += 1;
            let block = start.next_multiple_of(BYTES);
            assert!(block + BYTES > end || block >= treated.end, "{line}");
        }
        assert_eq!(inside, 7);
    }
}
