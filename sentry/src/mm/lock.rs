//! `mlock` and its like. Guest memory is never swapped out by the sentry, so locking means populating and counting.

use std::ops::Range;

use super::fault::{FaultOutcome, MemoryAccess};
use super::vma::{Prot, Vma, VmaFlags};
use super::{Mm, State, page_down, page_up};
use crate::errno::{Errno, SysResult};
use crate::platform::{GVA_END, PAGE_SIZE};

/// When locked memory is populated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// At once.
    Now,
    /// When it is touched (`MLOCK_ONFAULT`, `MCL_ONFAULT`).
    OnFault,
}

impl Mm {
    /// Locks the pages that `[addr, addr + len)` touches. `ENOMEM` (holes, beyond `RLIMIT_MEMLOCK`), `EPERM` (limit 0), `EINVAL`.
    pub fn mlock(&self, addr: u64, len: u64, mode: LockMode) -> SysResult {
        let Some(range) = touched(addr, len)? else { return Ok(()) };
        let limit = self.limits().locked;
        if limit == 0 {
            return Err(Errno::EPERM);
        }
        let mut state = self.state.write();
        let already: u64 = locked_inside(&state, &range);
        let total = (state.vmas.locked_bytes() - already).saturating_add(range.end - range.start);
        if total > limit {
            return Err(Errno::ENOMEM);
        }
        let result = self.set_locked(&mut state, range.clone(), true);
        drop(state);
        result?;
        if mode == LockMode::Now {
            // Linux reports what cannot be populated as ENOMEM, whatever the reason.
            self.populate(range, None).map_err(|_| Errno::ENOMEM)?;
        }
        Ok(())
    }

    /// Unlocks. `ENOMEM` for holes, `EINVAL`.
    pub fn munlock(&self, addr: u64, len: u64) -> SysResult {
        let Some(range) = touched(addr, len)? else { return Ok(()) };
        let mut state = self.state.write();
        self.set_locked(&mut state, range, false)
    }

    /// Locks everything there is (`current`) and everything to come (`future`). `ENOMEM` beyond `RLIMIT_MEMLOCK`, `EPERM` (limit 0).
    pub fn mlockall(&self, current: Option<LockMode>, future: Option<LockMode>) -> SysResult {
        let limit = self.limits().locked;
        if limit == 0 {
            return Err(Errno::EPERM);
        }
        let mut state = self.state.write();
        if current.is_some() && state.vmas.bytes() > limit {
            return Err(Errno::ENOMEM);
        }
        state.lock_future = future;
        if current.is_some() {
            state.vmas.update(0..GVA_END, |vma| vma.flags.insert(VmaFlags::LOCKED));
        }
        drop(state);
        if current == Some(LockMode::Now) {
            let _ = self.populate(0..GVA_END, None);
        }
        Ok(())
    }

    /// Unlocks everything, now and in future.
    pub fn munlockall(&self) {
        let mut state = self.state.write();
        state.lock_future = None;
        state.vmas.update(0..GVA_END, |vma| vma.flags.remove(VmaFlags::LOCKED));
    }

    fn set_locked(&self, state: &mut State, range: Range<u64>, locked: bool) -> SysResult {
        let covered = state.vmas.covers(range.clone());
        state.vmas.update(range, |vma| {
            vma.flags.set(VmaFlags::LOCKED, locked && !vma.flags.contains(VmaFlags::SPECIAL));
        });
        if covered { Ok(()) } else { Err(Errno::ENOMEM) }
    }

    /// Touches every mapped page of the range, for `access` or for the most that each mapping allows. Stops at the first
    /// page that cannot be had: `EFAULT`, or `ENOMEM` when memory is short. The lock is not held from one page run to the next.
    pub(super) fn populate(&self, range: Range<u64>, access: Option<MemoryAccess>) -> SysResult {
        let mut at = range.start;
        while at < range.end {
            let state = self.state.read();
            let Some(vma) = state.vmas.find_from(at).filter(|vma| vma.start < range.end) else {
                return Ok(());
            };
            at = at.max(vma.start);
            if vma.prot.is_empty() && access.is_none() {
                at = vma.end;
                continue;
            }
            let end = vma.end.min(range.end);
            let step = self.resolve(vma, at, access.unwrap_or(strongest(vma)));
            at = match step {
                Ok(piece) => (at + piece.len.max(PAGE_SIZE)).min(end),
                Err(FaultOutcome::OutOfMemory) => return Err(Errno::ENOMEM),
                Err(_) => return Err(Errno::EFAULT),
            };
            at = page_up(at).unwrap_or(end);
        }
        Ok(())
    }
}

/// The access that populates a mapping for good: private writable memory gets its own pages.
fn strongest(vma: &Vma) -> MemoryAccess {
    if vma.prot.contains(Prot::WRITE) && vma.is_private() { MemoryAccess::Write } else { MemoryAccess::Read }
}

/// The pages that a byte range touches.
fn touched(addr: u64, len: u64) -> SysResult<Option<Range<u64>>> {
    let start = page_down(addr);
    let end = addr.checked_add(len).and_then(page_up).ok_or(Errno::EINVAL)?;
    if end > GVA_END {
        return Err(Errno::ENOMEM);
    }
    Ok((end > start && len > 0).then_some(start..end))
}

fn locked_inside(state: &State, range: &Range<u64>) -> u64 {
    state
        .vmas
        .overlapping(range.clone())
        .filter(|vma| vma.flags.contains(VmaFlags::LOCKED))
        .map(|vma| vma.end.min(range.end) - vma.start.max(range.start))
        .sum()
}
