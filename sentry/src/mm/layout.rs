//! Where things go in an address space, with Linux's randomization (x86-64: 28 bits for mappings, 22 for the stack, 13 for brk).

use std::hash::{BuildHasher, Hasher};

use crate::platform::{GVA_END, PAGE_SIZE};

/// Most that the stack's start is moved down: 2^22 pages.
const STACK_RANDOM_PAGES: u64 = 0x3f_ffff;
/// Random pages between the stack's reserve and the first mapping.
const MMAP_RANDOM_PAGES: u64 = (1 << 28) - 1;
/// The heap starts up to this many bytes after the program.
const BRK_RANDOM_BYTES: u64 = 0x0200_0000;
/// Least distance of mappings from the stack's top.
const MIN_GAP: u64 = 128 << 20;

/// Random numbers for address space layout.
///
/// Seeded by the host's randomness (through the keys of the standard library's hash maps), or by a test.
pub struct Entropy {
    state: Option<u64>,
}

impl Entropy {
    /// Unpredictable.
    pub fn from_host() -> Entropy {
        Entropy { state: None }
    }

    /// The same every time.
    pub fn seeded(seed: u64) -> Entropy {
        Entropy { state: Some(seed) }
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        match &mut self.state {
            None => std::collections::hash_map::RandomState::new().build_hasher().finish(),
            Some(state) => {
                // SplitMix64.
                *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = *state;
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                z ^ (z >> 31)
            }
        }
    }

    /// 16 random bytes (`AT_RANDOM`).
    pub fn next_bytes(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        let (low, high) = bytes.split_at_mut(8);
        low.copy_from_slice(&self.next_u64().to_le_bytes());
        high.copy_from_slice(&self.next_u64().to_le_bytes());
        bytes
    }
}

/// The anchors of an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The stack's first (highest) address, exclusive; page-aligned.
    pub stack_top: u64,
    /// Mappings are placed downwards from here.
    pub mmap_base: u64,
    /// Where a position-independent program with an interpreter is loaded.
    pub pie_base: u64,
    /// Bytes between the end of a program and its heap.
    pub brk_offset: u64,
}

/// Linux's `TASK_SIZE`, from which it derives where position-independent programs go.
const TASK_SIZE: u64 = (1 << 47) - PAGE_SIZE;

impl Layout {
    /// Linux's layout for a stack limit of `stack_limit` bytes; `randomize` is off for `ADDR_NO_RANDOMIZE`.
    pub fn new(entropy: &mut Entropy, stack_limit: u64, randomize: Randomize) -> Layout {
        let mut pages = |mask: u64| match randomize {
            Randomize::Yes => (entropy.next_u64() & mask) * PAGE_SIZE,
            Randomize::No => 0,
        };
        let stack_top = GVA_END - pages(STACK_RANDOM_PAGES);
        let reserve = stack_limit.saturating_add(super::vma_map::STACK_GUARD_GAP);
        let reserve = reserve.saturating_add((STACK_RANDOM_PAGES + 1) * PAGE_SIZE);
        let gap = reserve.clamp(MIN_GAP, GVA_END / 6 * 5);
        let mmap_base = super::page_down(GVA_END - gap - pages(MMAP_RANDOM_PAGES));
        let pie_base = super::page_down(TASK_SIZE / 3 * 2) + pages(MMAP_RANDOM_PAGES);
        let brk_offset = pages(BRK_RANDOM_BYTES / PAGE_SIZE - 1);
        Layout { stack_top, mmap_base, pie_base, brk_offset }
    }
}

/// Whether addresses are randomized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Randomize {
    /// As usual.
    Yes,
    /// `personality(ADDR_NO_RANDOMIZE)`.
    No,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_are_where_linux_has_them() {
        let still = Layout::new(&mut Entropy::seeded(1), 8 << 20, Randomize::No);
        // Linux has it 2 MiB higher: those belong to the platform.
        assert_eq!(still.stack_top, 0x7fff_ffe0_0000);
        assert_eq!(still.pie_base, 0x5555_5555_4000);
        assert!(still.mmap_base < still.stack_top - MIN_GAP);
        let mut entropy = Entropy::from_host();
        for _ in 0..100 {
            let layout = Layout::new(&mut entropy, u64::MAX, Randomize::Yes);
            assert!(layout.mmap_base > 0 && layout.mmap_base < layout.stack_top);
            assert!(layout.stack_top.is_multiple_of(PAGE_SIZE) && layout.mmap_base.is_multiple_of(PAGE_SIZE));
            assert!(layout.pie_base >= 0x5555_5555_4000 && layout.pie_base < GVA_END);
        }
    }
}
