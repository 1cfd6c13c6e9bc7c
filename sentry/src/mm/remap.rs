//! `mremap`.

use std::ops::Range;

use bitflags::bitflags;
use linux_raw_sys::general as linux;

use super::extent_map::Run;
use super::lock::LockMode;
use super::vma::{Source, Vma, VmaFlags};
use super::{MAX_MAP_COUNT, MMAP_MIN_ADDR, Mm, Remains, State, page_numbers, page_up};
use crate::errno::{Errno, SysResult};
use crate::platform::{Change, GVA_END, PAGE_SIZE};

/// Pages that are entered at their new place at once.
const EAGER_PAGES: u64 = 4096;

bitflags! {
    /// `MREMAP_*`
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RemapFlags: u32 {
        /// May move.
        const MAYMOVE = linux::MREMAP_MAYMOVE;
        /// Must move to the given address.
        const FIXED = linux::MREMAP_FIXED;
        /// Leaves the old mapping there, empty.
        const DONTUNMAP = linux::MREMAP_DONTUNMAP;
    }
}

struct Move {
    old: Range<u64>,
    new_len: u64,
    target: Option<u64>,
    flags: RemapFlags,
}

impl Mm {
    /// Resizes or moves a mapping and returns its address. `EINVAL`, `EFAULT` (not one mapping), `ENOMEM`, `EAGAIN` (`RLIMIT_MEMLOCK`), `EPERM` (sealed).
    pub fn mremap(
        &self,
        addr: u64,
        old_len: u64,
        new_len: u64,
        flags: RemapFlags,
        new_addr: u64,
    ) -> SysResult<u64> {
        let request = check(addr, old_len, new_len, flags, new_addr)?;
        let mut remains = Remains::new(self.arena);
        let mut state = self.state.write();
        let result = self.remap_locked(&mut state, request, &mut remains);
        let locked = match &result {
            Ok(start) => state.vmas.find(*start).filter(|vma| vma.flags.contains(VmaFlags::LOCKED)),
            Err(_) => None,
        };
        let populate = locked.is_some() && state.lock_future != Some(LockMode::OnFault);
        drop(state);
        drop(remains);
        let start = result?;
        if populate {
            let _ = self.populate(start..start + page_up(new_len).unwrap_or(0), None);
        }
        Ok(start)
    }

    fn remap_locked(&self, state: &mut State, request: Move, remains: &mut Remains) -> SysResult<u64> {
        let Move { old, new_len, target, flags } = request;
        let vma = state.vmas.find(old.start).cloned().ok_or(Errno::EFAULT)?;
        let sealed = state.vmas.overlapping(old.start..old.end.max(old.start + 1));
        if sealed.into_iter().any(|vma| vma.flags.contains(VmaFlags::SEALED)) {
            return Err(Errno::EPERM);
        }
        let old_len = old.end - old.start;
        if old_len == 0 && vma.is_private() {
            return Err(Errno::EINVAL); // only shared mappings can be duplicated
        }
        if flags.contains(RemapFlags::DONTUNMAP) && vma.flags.contains(VmaFlags::SPECIAL) {
            return Err(Errno::EINVAL);
        }
        self.unpatch(state, &old)?;
        if let Some(target) = target {
            self.make_room(state, &(target..target + new_len), remains)?;
            self.unmap_locked(state, target..target + new_len, remains)?;
        }
        if new_len < old_len {
            self.unmap_locked(state, old.start + new_len..old.end, remains)?;
            if target.is_none() {
                return Ok(old.start);
            }
        }
        let old = old.start..old.start + old_len.min(new_len);
        if old.end > vma.end {
            return Err(Errno::EFAULT);
        }
        if new_len == old_len && target.is_none() && !flags.contains(RemapFlags::DONTUNMAP) {
            return Ok(old.start);
        }
        let kept = old_len == 0 || flags.contains(RemapFlags::DONTUNMAP);
        self.check_growth(state, &vma, old_len, new_len, kept)?;
        let grown = old.start + new_len;
        let in_place = target.is_none() && !kept && old.end == vma.end && grown <= GVA_END;
        if in_place && state.vmas.is_free(old.end..grown) {
            self.make_room(state, &(old.end..grown), remains)?;
            state.vmas.insert(vma.clone().extended(vma.end..grown));
            self.note_size(state);
            return Ok(old.start);
        }
        if !flags.contains(RemapFlags::MAYMOVE) {
            return Err(Errno::ENOMEM);
        }
        let start = match target {
            Some(target) => target,
            None => self.find_congruent(state, old.start, new_len).ok_or(Errno::ENOMEM)?,
        };
        self.make_room(state, &(start..start + new_len), remains)?;
        self.move_pages(state, &vma, old, start, new_len, flags, remains)
    }

    /// Limits for a mapping that grows from `old_len` to `new_len`, or is added (`kept`: the old one stays).
    fn check_growth(&self, state: &State, vma: &Vma, old_len: u64, new_len: u64, kept: bool) -> SysResult {
        let limits = self.limits();
        let more = if kept { new_len } else { new_len.saturating_sub(old_len) };
        if more > 0 && vma.flags.contains(VmaFlags::SPECIAL) {
            return Err(Errno::EFAULT);
        }
        if let Some((_, offset)) = vma.object_at(vma.start)
            && offset.checked_add(vma.len()).and_then(|end| end.checked_add(more)).is_none()
        {
            return Err(Errno::EINVAL);
        }
        let locked = vma.flags.contains(VmaFlags::LOCKED);
        if locked && state.vmas.locked_bytes().saturating_add(more) > limits.locked {
            return Err(Errno::EAGAIN);
        }
        let data = vma.is_data() && state.vmas.data_bytes().saturating_add(more) > limits.data;
        if data
            || state.vmas.bytes().saturating_add(more) > limits.address_space
            || state.vmas.len() + 3 > MAX_MAP_COUNT
        {
            return Err(Errno::ENOMEM);
        }
        Ok(())
    }

    /// A hole whose start is as far from a huge page's as the old start, so that huge entries survive the move.
    fn find_congruent(&self, state: &State, old: u64, len: u64) -> Option<u64> {
        const HUGE_BYTES: u64 = 2 << 20;
        if len >= HUGE_BYTES
            && let Some(start) = self.find_gap(state, len.checked_add(HUGE_BYTES)? | PAGE_SIZE)
        {
            let shift = old.wrapping_sub(start) % HUGE_BYTES;
            return Some(start + shift);
        }
        self.find_gap(state, len)
    }

    #[allow(clippy::too_many_arguments)] // one move, taken apart
    fn move_pages(
        &self,
        state: &mut State,
        vma: &Vma,
        old: Range<u64>,
        start: u64,
        new_len: u64,
        flags: RemapFlags,
        remains: &mut Remains,
    ) -> SysResult<u64> {
        let duplicate = old.is_empty();
        let mut moved = vma.clone().clip(old.start, u64::MAX);
        moved.start = start;
        moved.end = start + new_len;
        if !duplicate {
            if !flags.contains(RemapFlags::DONTUNMAP) {
                remains.vmas.extend(state.vmas.remove(old.clone()));
            } else {
                moved.flags.remove(VmaFlags::LOCKED);
            }
            self.revoke(&[Change::Unmap(old.clone())], remains)?;
            let mut pages = self.pages.lock();
            let from = page_numbers(&old);
            for run in pages.remove(from.clone()) {
                pages.insert(Run { page: start / PAGE_SIZE + (run.page - from.start), ..run });
            }
        }
        state.vmas.insert(moved);
        self.note_size(state);
        if let Some(vma) = state.vmas.find(start) {
            self.enter_present(vma, &(start..start + new_len), EAGER_PAGES);
        }
        Ok(start)
    }
}

impl Vma {
    /// What continues this mapping in `range`, which starts at its end.
    fn extended(mut self, range: Range<u64>) -> Vma {
        if let Source::Object { offset, .. } = &mut self.source {
            *offset += range.start - self.start;
        }
        self.start = range.start;
        self.end = range.end;
        self
    }
}

fn check(addr: u64, old_len: u64, new_len: u64, flags: RemapFlags, new_addr: u64) -> SysResult<Move> {
    let moves = RemapFlags::FIXED | RemapFlags::DONTUNMAP;
    if flags.intersects(moves) && !flags.contains(RemapFlags::MAYMOVE) {
        return Err(Errno::EINVAL);
    }
    let old_len = page_up(old_len).ok_or(Errno::EINVAL)?;
    let new_len = page_up(new_len).ok_or(Errno::EINVAL)?;
    let dontunmap = flags.contains(RemapFlags::DONTUNMAP);
    if !addr.is_multiple_of(PAGE_SIZE) || new_len == 0 || (dontunmap && old_len != new_len) {
        return Err(Errno::EINVAL);
    }
    let end = addr.checked_add(old_len).filter(|end| *end <= GVA_END).ok_or(Errno::EFAULT)?;
    if new_len > GVA_END {
        return Err(Errno::EINVAL);
    }
    let target = flags.contains(RemapFlags::FIXED).then_some(new_addr);
    if let Some(target) = target {
        let target_end = target.checked_add(new_len).filter(|end| *end <= GVA_END).ok_or(Errno::EINVAL)?;
        let overlaps = target < end && addr < target_end;
        if !target.is_multiple_of(PAGE_SIZE) || overlaps {
            return Err(Errno::EINVAL);
        }
        if target < MMAP_MIN_ADDR {
            return Err(Errno::EPERM);
        }
    }
    Ok(Move { old: addr..end, new_len, target, flags })
}
