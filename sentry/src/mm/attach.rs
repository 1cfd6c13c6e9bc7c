//! `shmat` and `shmdt`: attaching System V segments.

use std::sync::Arc;

use super::map::{MapBacking, MapFlags, MapRequest};
use super::mappable::Mappable;
use super::vma::{Prot, Vma};
use super::{Mm, Remains};
use crate::errno::{Errno, SysResult};
use crate::platform::PAGE_SIZE;

/// What to do about what is mapped where a segment is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// Anywhere.
    Anywhere,
    /// There; `EINVAL` if something is.
    At(u64),
    /// There, replacing what is (`SHM_REMAP`).
    Over(u64),
}

impl Mm {
    /// Maps a whole segment and returns its address. `EINVAL`, and the errors of [`Mm::mmap`].
    pub fn attach(&self, object: Arc<dyn Mappable>, size: u64, place: Attach, prot: Prot) -> SysResult<u64> {
        let (addr, flags) = match place {
            Attach::Anywhere => (0, MapFlags::empty()),
            Attach::At(addr) => (addr, MapFlags::FIXED_NOREPLACE),
            Attach::Over(addr) => (addr, MapFlags::FIXED),
        };
        let max_prot = if prot.contains(Prot::WRITE) { Prot::all() } else { Prot::READ | Prot::EXEC };
        let backing = Some(MapBacking { object, offset: 0, file: None, max_prot });
        let request = MapRequest { addr, len: size, prot, flags: flags | MapFlags::SHARED, backing };
        self.mmap(request).map_err(|errno| if errno == Errno::EEXIST { Errno::EINVAL } else { errno })
    }

    /// Unmaps what is left of the segment whose attachment began at `addr`; `EINVAL` if there is none.
    pub fn detach(&self, addr: u64) -> SysResult {
        if !addr.is_multiple_of(PAGE_SIZE) {
            return Err(Errno::EINVAL);
        }
        let mut remains = Remains::new(self.arena);
        let mut state = self.state.write();
        // The attachment may have lost its beginning, and other mappings may lie in its holes.
        let part = |vma: &Vma| {
            let (mapping, offset) = vma.object_at(vma.start)?;
            let size = mapping.object.segment_size()?;
            let begins = vma.start.checked_sub(addr)? == offset;
            begins.then(|| (std::ptr::from_ref(mapping.object.mappings()), size))
        };
        let Some((segment, size)) = state.vmas.iter().find_map(part) else { return Err(Errno::EINVAL) };
        let end = addr.saturating_add(size);
        let parts = state.vmas.iter().filter(|vma| {
            vma.start < end && part(vma).is_some_and(|(whose, _)| std::ptr::eq(whose, segment))
        });
        let ranges: Vec<_> = parts.map(|vma| vma.start..vma.end).collect();
        let result =
            ranges.into_iter().try_for_each(|range| self.unmap_locked(&mut state, range, &mut remains));
        drop(state);
        drop(remains);
        result
    }
}
