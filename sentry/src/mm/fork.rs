//! `fork`: copying an address space without copying its pages.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::extent_map::{Ownership, Run};
use super::fault::MemoryAccess;
use super::vma::{ObjectMapping, Source, Vma, VmaFlags};
use super::{Mm, Remains, State, page_numbers};
use crate::errno::SysResult;
use crate::platform::{Change, Perms};

/// Pages of the child that are entered at once, read-only: entries are cheap, faults are not.
const EAGER_PAGES: u64 = 4096;

impl Mm {
    /// The child's address space: private pages shared copy-on-write, shared mappings shared. `ENOMEM`.
    ///
    /// Writes of this process's other threads may come before or after the copy until it returns, as on Linux.
    pub fn fork(&self) -> SysResult<Arc<Mm>> {
        let child = Mm::new(&self.platform, self.layout, self.limits())?;
        *child.image.lock() = self.image();
        child.barriers.store(self.barriers.load(Ordering::Relaxed), Ordering::Relaxed);
        let mut remains = Remains::new(self.arena);
        // The host must not be writing into pages that become copy-on-write.
        let gate = self.io_gate.write();
        let state = self.state.write();
        let mut changes = Vec::new();
        {
            let mut copy = child.state.write();
            copy.brk_start = state.brk_start;
            copy.brk = state.brk;
            for vma in state.vmas.iter().filter(|vma| !vma.flags.contains(VmaFlags::DONTFORK)) {
                self.fork_vma(vma, &child, &mut copy);
                if vma.is_private() && vma.prot.perms().is_some_and(|perms| perms.contains(Perms::W)) {
                    let range = vma.start..vma.end;
                    let perms = vma.prot.perms().unwrap_or(Perms::R) - Perms::W;
                    changes.push(Change::Protect { range, perms });
                }
            }
            child.note_size(&copy);
            self.inherit_patches(&child, &copy)?;
        }
        // Should this fail, the pages of both stay reachable for writing by us: the child must not live.
        self.revoke(&changes, &mut remains)?;
        drop(state);
        drop(gate);
        child.enter_all();
        Ok(child)
    }

    fn fork_vma(&self, vma: &Vma, child: &Arc<Mm>, copy: &mut State) {
        let mut new = vma.clone();
        new.flags.remove(VmaFlags::LOCKED);
        if let Source::Object { mapping, .. } = &mut new.source {
            let (object, file) = (mapping.object.clone(), mapping.file.clone());
            *mapping = ObjectMapping::new(object, file, vma.flags, (child.id, Arc::downgrade(child)));
        }
        copy.vmas.insert(new);
        if vma.flags.intersects(VmaFlags::SHARED | VmaFlags::WIPEONFORK) {
            return;
        }
        let numbers = page_numbers(&(vma.start..vma.end));
        let mut pages = self.pages.lock();
        pages.set_ownership(numbers.clone(), Ownership::CopyOnWrite);
        let mut inherited = child.pages.lock();
        for run in pages.runs(numbers) {
            self.arena.retain(run.frames());
            inherited.insert(Run { ownership: Ownership::CopyOnWrite, ..run });
        }
        child.note_rss(&inherited);
    }

    /// Makes the first accesses of a program that is about to start, and enters what pages it has: best effort, so that it
    /// does not begin with a row of faults.
    pub fn prefault(&self, touches: &[(u64, MemoryAccess)]) {
        let state = self.state.read();
        for (addr, access) in touches {
            if let Some(vma) = state.vmas.find(*addr) {
                let _ = self.resolve(vma, *addr, *access);
            }
        }
        drop(state);
        self.enter_all();
    }

    /// Enters the private pages there are, as far as that is cheap.
    fn enter_all(&self) {
        let state = self.state.read();
        let mut left = EAGER_PAGES;
        for vma in state.vmas.iter() {
            let range = vma.start..vma.end;
            let present: u64 = {
                let pages = self.pages.lock();
                pages.runs(page_numbers(&range)).map(|run| u64::from(run.count)).sum()
            };
            if present > left {
                continue;
            }
            left -= present;
            self.enter_present(vma, &range, present);
        }
    }
}
