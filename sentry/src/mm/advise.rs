//! `madvise`, `mincore`, `msync`, `mseal`: what a program tells or asks about its pages.

use std::ops::Range;
use std::sync::Arc;

use linux_raw_sys::general as linux;

use super::extent_map::{ExtentMap, Run};
use super::fault::MemoryAccess;
use super::mappable::Mappable;
use super::vma::{Prot, Source, Vma, VmaFlags};
use super::{MAX_MAP_COUNT, Mm, Remains, page_numbers, user_range};
use crate::errno::{Errno, SysResult};
use crate::platform::{Change, PAGE_SIZE};
use crate::wait;

/// What `madvise` can say, for the advice this kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Nothing that changes the contents: `NORMAL`, `WILLNEED`, `COLD`, `PAGEOUT`, …
    Hint,
    /// The contents may go: `DONTNEED`; `FREE` does it at once, which it may.
    Discard(Discard),
    /// `REMOVE`: punch a hole into the shared object.
    Remove,
    /// `POPULATE_READ`, `POPULATE_WRITE`
    Populate(MemoryAccess),
    /// Sets and clears flags of the mappings.
    Flags {
        /// Flags that are set.
        set: VmaFlags,
        /// Flags that are cleared.
        clear: VmaFlags,
    },
}

/// Which discard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    /// `MADV_DONTNEED`
    DontNeed,
    /// `MADV_DONTNEED_LOCKED`
    DontNeedLocked,
    /// `MADV_FREE`: anonymous memory only.
    Free,
}

impl Advice {
    /// Decodes the argument; `EINVAL` for what this kernel (built without KSM and memory failure handling) does not know.
    pub fn from_raw(advice: u32) -> SysResult<Advice> {
        let set = |set| Advice::Flags { set, clear: VmaFlags::empty() };
        let clear = |clear| Advice::Flags { set: VmaFlags::empty(), clear };
        Ok(match advice {
            linux::MADV_WILLNEED | linux::MADV_COLD | linux::MADV_PAGEOUT => Advice::Hint,
            linux::MADV_NORMAL => clear(VmaFlags::RANDOM | VmaFlags::SEQUENTIAL),
            linux::MADV_RANDOM => Advice::Flags { set: VmaFlags::RANDOM, clear: VmaFlags::SEQUENTIAL },
            linux::MADV_SEQUENTIAL => Advice::Flags { set: VmaFlags::SEQUENTIAL, clear: VmaFlags::RANDOM },
            linux::MADV_DONTNEED => Advice::Discard(Discard::DontNeed),
            linux::MADV_DONTNEED_LOCKED => Advice::Discard(Discard::DontNeedLocked),
            linux::MADV_FREE => Advice::Discard(Discard::Free),
            linux::MADV_REMOVE => Advice::Remove,
            linux::MADV_POPULATE_READ => Advice::Populate(MemoryAccess::Read),
            linux::MADV_POPULATE_WRITE => Advice::Populate(MemoryAccess::Write),
            linux::MADV_DONTFORK => set(VmaFlags::DONTFORK),
            linux::MADV_DOFORK => clear(VmaFlags::DONTFORK),
            linux::MADV_WIPEONFORK => set(VmaFlags::WIPEONFORK),
            linux::MADV_KEEPONFORK => clear(VmaFlags::WIPEONFORK),
            linux::MADV_DONTDUMP => set(VmaFlags::DONTDUMP),
            linux::MADV_DODUMP => clear(VmaFlags::DONTDUMP),
            linux::MADV_HUGEPAGE => Advice::Flags { set: VmaFlags::HUGEPAGE, clear: VmaFlags::NOHUGEPAGE },
            linux::MADV_NOHUGEPAGE => Advice::Flags { set: VmaFlags::NOHUGEPAGE, clear: VmaFlags::HUGEPAGE },
            _ => return Err(Errno::EINVAL),
        })
    }

    fn check(self, vma: &Vma) -> SysResult {
        let special = vma.flags.contains(VmaFlags::SPECIAL);
        let locked = vma.flags.contains(VmaFlags::LOCKED);
        let anonymous = matches!(vma.source, Source::Anonymous);
        let fine = match self {
            Advice::Hint => true,
            Advice::Discard(Discard::DontNeed) => !locked && !special,
            Advice::Discard(Discard::DontNeedLocked) => !special,
            Advice::Discard(Discard::Free) => anonymous && !locked,
            Advice::Remove => !locked && !anonymous,
            Advice::Populate(_) => !special,
            Advice::Flags { set, .. } if set.contains(VmaFlags::WIPEONFORK) => anonymous && vma.is_private(),
            Advice::Flags { .. } => true,
        };
        if !fine {
            return Err(Errno::EINVAL);
        }
        let discards = matches!(self, Advice::Discard(_));
        if discards && vma.flags.contains(VmaFlags::SEALED) && !vma.prot.contains(Prot::WRITE) {
            return Err(Errno::EPERM);
        }
        if self == Advice::Remove && !(vma.flags.contains(VmaFlags::SHARED | VmaFlags::MAYWRITE)) {
            return Err(Errno::EACCES);
        }
        Ok(())
    }
}

impl Mm {
    /// Takes advice about `[addr, addr + len)`. `EINVAL`, `ENOMEM` (holes; the rest is done), `EACCES`, `EFAULT` (populate).
    pub fn madvise(&self, addr: u64, len: u64, advice: Advice) -> SysResult {
        let range = match user_range(addr, len) {
            Ok(Some(range)) => range,
            Ok(None) => return Ok(()),
            Err(_) => return Err(Errno::EINVAL),
        };
        match advice {
            Advice::Populate(access) => self.madvise_populate(range, access),
            Advice::Remove => self.madvise_remove(range),
            _ => self.madvise_locked(range, advice),
        }
    }

    fn madvise_locked(&self, range: Range<u64>, advice: Advice) -> SysResult {
        let mut remains = Remains::new(self.arena);
        let mut state = self.state.write();
        let covered = state.vmas.covers(range.clone());
        let mut result = if covered { Ok(()) } else { Err(Errno::ENOMEM) };
        if let Some(refused) = state.vmas.overlapping(range.clone()).find_map(|vma| advice.check(vma).err()) {
            result = Err(refused);
        } else if let Advice::Flags { set, clear } = advice {
            if state.vmas.len() + state.vmas.splits(range.clone()) > MAX_MAP_COUNT {
                return Err(Errno::ENOMEM);
            }
            state.vmas.update(range, |vma| vma.flags = (vma.flags - clear) | set);
        } else if let Advice::Discard(_) = advice {
            let parts: Vec<Range<u64>> = state
                .vmas
                .overlapping(range.clone())
                .map(|vma| vma.start.max(range.start)..vma.end.min(range.end))
                .collect();
            if wait::decline_unless(|| self.is_quick(&state, &range)) {
                return Err(Errno::EAGAIN);
            }
            self.unpatch(&state, &range)?;
            let changes: Vec<Change> = parts.iter().cloned().map(Change::Unmap).collect();
            let mut pages = self.pages.lock();
            let going: Vec<Run> = parts.iter().flat_map(|part| pages.remove(page_numbers(part))).collect();
            let revoked = self.revoke_in_place(&changes, &going, &mut remains);
            remains.runs.extend(going);
            drop(pages);
            self.defer(&mut remains);
            result = result.and(revoked);
        }
        drop(state);
        drop(remains);
        result
    }

    fn madvise_populate(&self, range: Range<u64>, access: MemoryAccess) -> SysResult {
        {
            let state = self.state.read();
            if !state.vmas.covers(range.clone()) {
                return Err(Errno::ENOMEM);
            }
            let needed = if access == MemoryAccess::Write { Prot::WRITE } else { Prot::all() };
            let refused = |vma: &Vma| !vma.prot.intersects(needed);
            if state.vmas.overlapping(range.clone()).any(refused) {
                return Err(Errno::EINVAL);
            }
        }
        self.populate(range, Some(access))
    }

    fn madvise_remove(&self, range: Range<u64>) -> SysResult {
        let mut holes: Vec<(Arc<dyn Mappable>, u64, u64)> = Vec::new();
        {
            let state = self.state.read();
            if !state.vmas.covers(range.clone()) {
                return Err(Errno::ENOMEM);
            }
            for vma in state.vmas.overlapping(range.clone()) {
                Advice::Remove.check(vma)?;
                let (start, end) = (vma.start.max(range.start), vma.end.min(range.end));
                if let Some((mapping, offset)) = vma.object_at(start) {
                    holes.push((mapping.object.clone(), offset, end - start));
                }
            }
        }
        for (object, offset, len) in holes {
            object.punch_hole(offset, len)?;
        }
        Ok(())
    }

    /// Which pages of `[addr, addr + len)` are in memory: one byte each, as `mincore` returns. `EINVAL`, `ENOMEM` (holes).
    /// Private pages that were never touched are not; pages of objects are when they are entered.
    pub fn mincore(&self, addr: u64, len: u64) -> SysResult<Vec<u8>> {
        let Some(range) = user_range(addr, len)? else { return Ok(Vec::new()) };
        let state = self.state.read();
        if !state.vmas.covers(range.clone()) {
            return Err(Errno::ENOMEM);
        }
        let pages = self.pages.lock();
        let resident = |page: u64, pages: &ExtentMap| {
            pages.at(page).is_some() || self.space.lookup(page * PAGE_SIZE).is_some()
        };
        Ok(page_numbers(&range).map(|page| u8::from(resident(page, &pages))).collect())
    }

    /// Writes shared mappings of `[addr, addr + len)` back (`MS_SYNC`), or only checks the range. `ENOMEM` (holes), `EBUSY` (`invalidate`
    /// of locked memory), what the object's write-back says.
    pub fn msync(&self, addr: u64, len: u64, write_back: WriteBack, invalidate: Invalidate) -> SysResult {
        let Some(range) = user_range(addr, len)? else { return Ok(()) };
        let mut objects: Vec<(Arc<dyn Mappable>, u64, u64)> = Vec::new();
        let covered = {
            let state = self.state.read();
            for vma in state.vmas.overlapping(range.clone()) {
                if invalidate == Invalidate::Yes && vma.flags.contains(VmaFlags::LOCKED) {
                    return Err(Errno::EBUSY);
                }
                let (start, end) = (vma.start.max(range.start), vma.end.min(range.end));
                if let Some((mapping, offset)) = vma.object_at(start).filter(|_| !vma.is_private()) {
                    objects.push((mapping.object.clone(), offset, end - start));
                }
            }
            state.vmas.covers(range)
        };
        if write_back == WriteBack::Sync {
            for (object, offset, len) in objects {
                object.sync(offset, len)?;
            }
        }
        if covered { Ok(()) } else { Err(Errno::ENOMEM) }
    }

    /// Forbids unmapping, moving and changing the protection of a range for good (`mseal`). `ENOMEM` (holes), `EINVAL`.
    pub fn mseal(&self, addr: u64, len: u64) -> SysResult {
        let Some(range) = user_range(addr, len).map_err(|_| Errno::EINVAL)? else { return Ok(()) };
        let mut state = self.state.write();
        if !state.vmas.covers(range.clone()) {
            return Err(Errno::ENOMEM);
        }
        state.vmas.update(range, |vma| vma.flags.insert(VmaFlags::SEALED));
        Ok(())
    }
}

/// Whether `msync` waits for the data to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteBack {
    /// `MS_SYNC`
    Sync,
    /// `MS_ASYNC`, which does nothing on Linux either.
    None,
}

/// `MS_INVALIDATE`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalidate {
    /// Given.
    Yes,
    /// Not given.
    No,
}
