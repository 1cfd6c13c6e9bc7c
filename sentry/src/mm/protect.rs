//! `mprotect`.

use std::ops::Range;

use super::vma::{Prot, Vma, VmaFlags, is_data};
use super::{MAX_MAP_COUNT, Mm, Remains, State, user_range};
use crate::errno::{Errno, SysResult};
use crate::platform::{Change, Perms};
use crate::wait;

/// Present pages that get new rights at once instead of at their next fault.
const EAGER_PAGES: u64 = 1024;

impl Mm {
    /// Changes the protection of `[addr, addr + len)`. As on Linux, what lies before a failure is changed.
    /// `EINVAL` (misaligned), `ENOMEM` (holes, limits), `EACCES` (more than the mapping may have), `EPERM` (sealed).
    pub fn mprotect(&self, addr: u64, len: u64, prot: Prot) -> SysResult {
        let Some(range) = user_range(addr, len)? else { return Ok(()) };
        let limits = self.limits();
        let mut remains = Remains::new(self.arena);
        let mut state = self.state.write();
        if state.vmas.overlapping(range.clone()).any(|vma| vma.flags.contains(VmaFlags::SEALED)) {
            return Err(Errno::EPERM);
        }
        if wait::decline_unless(|| self.is_quick(&state, &range)) {
            return Err(Errno::EAGAIN);
        }
        if prot != Prot::READ | Prot::EXEC {
            self.unpatch(&state, &range)?;
        }
        let mut outcome = Outcome::default();
        let result = protect_vmas(&mut state, &range, prot, limits.data, &mut outcome);
        let revoked = self.revoke_in_place(&outcome.changes, &[], &mut remains);
        self.defer(&mut remains);
        for range in outcome.granted {
            for vma in state.vmas.overlapping(range.clone()) {
                self.enter_present(vma, &range, EAGER_PAGES);
            }
        }
        drop(state);
        result.and(revoked)
    }

    /// The range that `mprotect(PROT_GROWSDOWN)` means: from the start of the stack that contains `addr`. `EINVAL` if it
    /// is no stack, `ENOMEM` if nothing is there.
    pub fn growsdown_start(&self, addr: u64) -> SysResult<u64> {
        let state = self.state.read();
        let vma = state.vmas.find_from(addr).ok_or(Errno::ENOMEM)?;
        if vma.flags.contains(VmaFlags::GROWSDOWN) { Ok(vma.start) } else { Err(Errno::EINVAL) }
    }
}

/// What a call changes besides the VMAs.
#[derive(Default)]
struct Outcome {
    /// Rights that go.
    changes: Vec<Change>,
    /// Where rights were added, and none lost.
    granted: Vec<Range<u64>>,
}

/// Changes the VMAs of a range, in order, up to the first that may not be changed.
fn protect_vmas(
    state: &mut State,
    range: &Range<u64>,
    prot: Prot,
    data_limit: u64,
    outcome: &mut Outcome,
) -> SysResult {
    let targets: Vec<(Range<u64>, Prot, VmaFlags)> = state
        .vmas
        .overlapping(range.clone())
        .map(|vma| (vma.start.max(range.start)..vma.end.min(range.end), vma.prot, vma.flags))
        .collect();
    let mut at = range.start;
    for (target, old, flags) in targets {
        let more_data =
            if is_data(prot, flags) && !is_data(old, flags) { target.end - target.start } else { 0 };
        if target.start > at {
            break; // a hole; reported below
        }
        if !flags.allowed_prot().contains(prot) {
            return Err(Errno::EACCES);
        }
        if state.vmas.data_bytes().saturating_add(more_data) > data_limit && more_data > 0
            || state.vmas.len() + state.vmas.splits(target.clone()) > MAX_MAP_COUNT
        {
            return Err(Errno::ENOMEM);
        }
        at = target.end;
        if old == prot {
            continue;
        }
        state.vmas.update(target.clone(), |vma: &mut Vma| vma.prot = prot);
        match loss(old, prot) {
            Loss::None => outcome.granted.push(target),
            Loss::Some(perms) => outcome.changes.push(Change::Protect { range: target, perms }),
            Loss::Everything => outcome.changes.push(Change::Unmap(target)),
        }
    }
    if at < range.end { Err(Errno::ENOMEM) } else { Ok(()) }
}

enum Loss {
    None,
    Some(Perms),
    Everything,
}

fn loss(old: Prot, new: Prot) -> Loss {
    let (Some(before), after) = (old.perms(), new.perms()) else { return Loss::None };
    match after {
        None => Loss::Everything,
        Some(after) if after.contains(before) => Loss::None,
        Some(after) => Loss::Some(after),
    }
}
