//! Shared anonymous memory: `mmap(MAP_SHARED|MAP_ANONYMOUS)`, `/dev/zero` mapped shared, System V segments.

use std::sync::Arc;

use super::frame_store::FrameStore;
use super::mappable::{Backing, Mappable, MappingIdentity, MappingSet};
use crate::errno::{Errno, SysResult};
use crate::platform::{Arena, PAGE_SIZE};

/// A fixed-size object of zeroes that its mappings share. It goes away with the last of them.
pub struct AnonymousObject {
    store: FrameStore,
    size: u64,
    mappings: MappingSet,
    identity: MappingIdentity,
}

impl AnonymousObject {
    /// `size` bytes; `identity` is what `/proc/*/maps` shows (`/dev/zero (deleted)`, `/SYSV00000000 (deleted)`).
    pub fn new(arena: &'static Arena, size: u64, identity: MappingIdentity) -> Arc<AnonymousObject> {
        Arc::new(AnonymousObject {
            store: FrameStore::new(arena, None),
            size: size.saturating_add(PAGE_SIZE - 1) & !(PAGE_SIZE - 1),
            mappings: MappingSet::default(),
            identity,
        })
    }

    /// Allocated pages.
    pub fn pages(&self) -> u64 {
        self.store.pages()
    }
}

impl Mappable for AnonymousObject {
    fn translate(&self, offset: u64, len: u64, _write: bool) -> SysResult<Backing> {
        let left = self.size.checked_sub(offset).filter(|left| *left > 0).ok_or(Errno::EFAULT)?;
        self.store.translate(offset, len.min(left))
    }

    fn mappings(&self) -> &MappingSet {
        &self.mappings
    }

    fn identity(&self) -> MappingIdentity {
        self.identity.clone()
    }

    fn punch_hole(&self, offset: u64, len: u64) -> SysResult {
        let end = offset.saturating_add(len).min(self.size);
        let taken = self.store.take(offset.div_ceil(PAGE_SIZE)..end / PAGE_SIZE);
        self.mappings.invalidate(offset, len);
        drop(taken);
        Ok(())
    }
}
