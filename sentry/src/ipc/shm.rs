//! Shared memory segments (`shmget(2)`).
//!
//! A [`Segment`] is an object that is mapped. Marked for destruction it stays, without its key, until nobody has it attached:
//! the last detachment, by whatever means, takes it out of the table ([`Mappable::detached`]).
//!
//! Not there yet: huge pages (`SHM_HUGETLB` is `EINVAL`); `SHM_LOCK` is kept and has no effect, nothing is ever swapped.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::ids::{Ids, Object, Perm};
use super::{Actor, now};
use crate::errno::{Errno, SysResult};
use crate::mm::{AnonymousObject, Backing, Mappable, MappingIdentity, MappingSet};
use crate::platform::PAGE_SIZE;

/// Most segments (`kernel.shmmni`).
pub const MAX_SEGMENTS: usize = 4096;
/// Largest segment in bytes, and most pages of all (`kernel.shmmax`, `kernel.shmall`).
pub const MAX_SIZE: u64 = u64::MAX - (1 << 24);
/// The segment goes with its last user (`SHM_DEST`).
pub const DESTROYED: u32 = 0o1000;
/// `SHM_LOCKED`
pub const LOCKED: u32 = 0o2000;

/// The segments of a namespace.
pub struct Segments {
    ids: Ids<Segment>,
}

impl Default for Segments {
    fn default() -> Self {
        Segments { ids: Ids::new(MAX_SEGMENTS) }
    }
}

impl std::ops::Deref for Segments {
    type Target = Ids<Segment>;

    fn deref(&self) -> &Ids<Segment> {
        &self.ids
    }
}

/// Pages of `size` bytes.
pub fn pages(size: u64) -> u64 {
    size.div_ceil(PAGE_SIZE)
}

impl Segments {
    /// A segment of `size` bytes, to be put into the table. `ENOMEM`.
    pub fn make(self: &Arc<Self>, perm: Perm, size: u64) -> SysResult<Arc<Segment>> {
        let name = format!("/SYSV{:08x} (deleted)", perm.key).into_bytes();
        let identity =
            MappingIdentity { name, ino: u64::from(perm.id.cast_unsigned()), ..MappingIdentity::default() };
        let arena = crate::platform::arena()?;
        let times = Times { changed: now(), creator: Actor::current(), ..Times::default() };
        Ok(Arc::new(Segment {
            memory: AnonymousObject::new(arena, size, identity),
            size,
            perm: Mutex::new(perm),
            times: Mutex::new(times),
            table: Arc::downgrade(self),
        }))
    }

    /// `IPC_RMID`.
    pub fn destroy(&self, segment: &Segment) {
        self.forget_key(segment);
        segment.perm.lock().mode |= DESTROYED;
        segment.leave_if_unused();
    }

    /// Pages of all segments: asked for, and in memory.
    pub fn total_pages(&self) -> (u64, u64) {
        self.list().iter().fold((0, 0), |(asked, there), segment| {
            (asked.saturating_add(pages(segment.size)), there.saturating_add(segment.memory.pages()))
        })
    }
}

/// A segment.
pub struct Segment {
    memory: Arc<AnonymousObject>,
    size: u64,
    perm: Mutex<Perm>,
    times: Mutex<Times>,
    table: Weak<Segments>,
}

/// When what was done to a segment, in seconds since 1970, and by whom.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// `shm_atime`
    pub attached: i64,
    /// `shm_dtime`
    pub detached: i64,
    /// `shm_ctime`
    pub changed: i64,
    /// `shm_cpid`
    pub creator: Actor,
    /// `shm_lpid`
    pub last: Actor,
}

impl Segment {
    /// Bytes, as asked for.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes in memory.
    pub fn resident(&self) -> u64 {
        self.memory.pages().saturating_mul(PAGE_SIZE)
    }

    /// How often it is attached.
    pub fn attachments(&self) -> u64 {
        self.memory.mappings().count()
    }

    /// When what was done.
    pub fn times(&self) -> Times {
        *self.times.lock()
    }

    /// Notes an attachment by `who`.
    pub fn note_attached(&self, who: Actor) {
        let mut times = self.times.lock();
        (times.attached, times.last) = (now(), who);
    }

    /// Notes a change of its permissions.
    pub fn note_changed(&self) {
        self.times.lock().changed = now();
    }

    /// A segment that is marked goes once nobody has it.
    pub fn leave_if_unused(&self) {
        let marked = self.perm.lock().mode & DESTROYED != 0;
        if marked
            && self.attachments() == 0
            && let Some(table) = self.table.upgrade()
        {
            // Somebody else may have done it.
            let _: Result<(), Errno> = table.remove(self);
        }
    }
}

impl Object for Segment {
    fn perm(&self) -> &Mutex<Perm> {
        &self.perm
    }
}

impl Mappable for Segment {
    fn translate(&self, offset: u64, len: u64, write: bool) -> SysResult<Backing> {
        self.memory.translate(offset, len, write)
    }

    fn mappings(&self) -> &MappingSet {
        self.memory.mappings()
    }

    fn identity(&self) -> MappingIdentity {
        self.memory.identity()
    }

    fn punch_hole(&self, offset: u64, len: u64) -> SysResult {
        self.memory.punch_hole(offset, len)
    }

    fn segment_size(&self) -> Option<u64> {
        Some(self.size)
    }

    fn detached(&self) {
        {
            let mut times = self.times.lock();
            (times.detached, times.last) = (now(), Actor::current());
        }
        self.leave_if_unused();
    }
}
