//! `brk`: the heap.

use super::vma::{Prot, Source, Vma, VmaFlags};
use super::{MAX_MAP_COUNT, Mm, Remains, page_up};
use crate::platform::{GVA_END, PAGE_SIZE};

impl Mm {
    /// Sets where the heap starts (at the end of the program). Nothing is mapped.
    pub fn set_brk_start(&self, addr: u64) {
        let mut state = self.state.write();
        state.brk_start = addr;
        state.brk = addr;
    }

    /// Moves the end of the heap to `wanted` and returns it; returns the unchanged end where that is not possible, as the
    /// system call does.
    pub fn brk(&self, wanted: u64) -> u64 {
        let limits = self.limits();
        let image = self.image.lock();
        let program_data = image.end_data.saturating_sub(image.start_data);
        drop(image);
        let mut remains = Remains::new(self.arena);
        let mut state = self.state.write();
        let (start, old) = (state.brk_start, state.brk);
        if wanted < start || wanted > GVA_END {
            return old;
        }
        if (wanted - start).saturating_add(program_data) > limits.data {
            return old;
        }
        let (Some(old_end), Some(new_end)) = (page_up(old), page_up(wanted)) else { return old };
        if new_end < old_end {
            if self.unmap_locked(&mut state, new_end..old_end, &mut remains).is_err() {
                return old;
            }
        } else if new_end > old_end {
            let grown = new_end - old_end;
            let free = state.vmas.is_free(old_end..new_end + PAGE_SIZE);
            let fits = state.vmas.bytes().saturating_add(grown) <= limits.address_space
                && state.vmas.data_bytes().saturating_add(grown) <= limits.data
                && state.vmas.len() < MAX_MAP_COUNT;
            let lock = state.lock_future.is_some();
            let lockable = !lock || state.vmas.locked_bytes().saturating_add(grown) <= limits.locked;
            if !free || !fits || !lockable || new_end > GVA_END {
                return old;
            }
            if self.make_room(&state, &(old_end..new_end), &mut remains).is_err() {
                return old;
            }
            let mut flags = VmaFlags::MAY_ALL;
            flags.set(VmaFlags::LOCKED, lock);
            let prot = Prot::READ | Prot::WRITE;
            state.vmas.insert(Vma { start: old_end, end: new_end, prot, flags, source: Source::Anonymous });
            self.note_size(&state);
        }
        state.brk = wanted;
        drop(state);
        drop(remains);
        if new_end > old_end {
            self.map_ahead(old_end);
        }
        wanted
    }

    /// The heap: its start and its end, in bytes.
    pub fn heap(&self) -> std::ops::Range<u64> {
        let state = self.state.read();
        state.brk_start..state.brk
    }
}
