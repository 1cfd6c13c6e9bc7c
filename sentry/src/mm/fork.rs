//! `fork`: copying an address space without copying its pages.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::extent_map::{ExtentMap, Ownership, Run};
use super::fault::MemoryAccess;
use super::footprint::Footprint;
use super::habit::{Habit, Habitat};
use super::vma::{ObjectMapping, Prot, Source, Vma, VmaFlags};
use super::{Mm, Remains, State, page_numbers};
use crate::errno::SysResult;
use crate::platform::{Alignment, Change, PAGE_SIZE, Perms};

/// Pages of the child that are entered at once, read-only: entries are cheap, faults are not.
const EAGER_PAGES: u64 = 4096;
/// Pages of a program's segment that are entered at its start, in at most so many pieces.
const TEXT_PAGES: u64 = 512;
const MAX_PIECES: u32 = 16;
/// Pages of its data that are copied.
const DATA_PAGES: u64 = 8;

impl Mm {
    /// The child's address space: private pages shared copy-on-write, shared mappings shared. `ENOMEM`.
    ///
    /// Writes of this process's other threads may come before or after the copy until it returns, as on Linux.
    pub fn fork(&self) -> SysResult<Arc<Mm>> {
        let child = Mm::new(&self.platform, self.layout, self.limits())?;
        *child.image.lock() = self.image();
        child.barriers.store(self.barriers.load(Ordering::Relaxed), Ordering::Relaxed);
        let footprint = self.footprint.get_or_init(Footprint::new);
        let _ = child.footprint.set(footprint.clone());
        let written = footprint.written();
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
                let shared = self.fork_vma(vma, &child, &mut copy, &written);
                let Some(perms) = vma.prot.perms().filter(|perms| perms.contains(Perms::W)) else { continue };
                let addresses = |pages: Range<u64>| pages.start * PAGE_SIZE..pages.end * PAGE_SIZE;
                let protect = |pages| Change::Protect { range: addresses(pages), perms: perms - Perms::W };
                changes.extend(shared.into_iter().map(protect));
            }
            child.note_size(&copy);
            self.inherit_patches(&child, &copy)?;
        }
        // Should this fail, the pages of both stay reachable for writing by us: the child must not live.
        self.revoke(&changes, &mut remains)?;
        drop(state);
        drop(gate);
        child.enter_all();
        child.enter_read(&footprint.read());
        Ok(child)
    }

    /// Copies a mapping. Private pages become shared copy-on-write, except `written` ones, of which the child gets its own. Returns the
    /// page numbers that are shared.
    fn fork_vma(&self, vma: &Vma, child: &Arc<Mm>, copy: &mut State, written: &[u64]) -> Vec<Range<u64>> {
        let mut new = vma.clone();
        new.flags.remove(VmaFlags::LOCKED);
        if let Source::Object { mapping, .. } = &mut new.source {
            let (object, file) = (mapping.object.clone(), mapping.file.clone());
            *mapping = ObjectMapping::new(object, file, vma.flags, (child.id, Arc::downgrade(child)));
        }
        copy.vmas.insert(new);
        if !vma.is_private() {
            return Vec::new();
        }
        let numbers = page_numbers(&(vma.start..vma.end));
        if vma.flags.contains(VmaFlags::WIPEONFORK) {
            return Vec::new();
        }
        let mut pages = self.pages.lock();
        let mut inherited = child.pages.lock();
        let inside = written.iter().filter(|page| numbers.contains(page) && vma.prot.contains(Prot::WRITE));
        let mut shared = Vec::new();
        let mut at = numbers.start;
        for page in inside.copied().filter(|page| self.copy_ahead(&pages, &mut inherited, *page)) {
            shared.push(at..page);
            at = page + 1;
        }
        shared.push(at..numbers.end);
        shared.retain(|part| !part.is_empty());
        for part in &shared {
            pages.set_ownership(part.clone(), Ownership::CopyOnWrite);
            for run in pages.runs(part.clone()) {
                self.arena.retain(run.frames());
                inherited.insert(Run { ownership: Ownership::CopyOnWrite, ..run });
            }
        }
        child.note_rss(&inherited);
        shared
    }

    /// Gives the child its own copy of a page, which stays as it is: writable if it is exclusive, else shared with whom it is. Whether it could.
    fn copy_ahead(&self, pages: &ExtentMap, inherited: &mut ExtentMap, page: u64) -> bool {
        let Some(old) = pages.at(page) else { return false };
        let Ok(frames) = self.arena.alloc(1, Alignment::Page) else { return false };
        let new = Run { page, first: frames.first, count: 1, ownership: Ownership::Exclusive };
        if self.copy_pages(self.arena.gpa(old.first), &new) == 0 {
            self.arena.release(frames);
            return false;
        }
        inherited.insert(new);
        true
    }

    /// Enters what was read before at these page numbers. Best effort.
    fn enter_read(&self, pages: &[u64]) {
        let state = self.state.read();
        for page in pages {
            let addr = page.saturating_mul(PAGE_SIZE);
            if let Some(vma) = state.vmas.find(addr).filter(|vma| vma.object_at(addr).is_some()) {
                let _ = self.resolve(vma, addr, MemoryAccess::Read);
            }
        }
    }

    /// Makes the first accesses of a program that is about to start, and enters what pages it has: best effort, so that it
    /// does not begin with a row of faults.
    pub fn prefault(&self, touches: &[(u64, MemoryAccess)]) {
        let start = self.image().start_code;
        let state = self.state.read();
        let habits = self.take_up_habit(&state, start);
        for (addr, access) in touches.iter().chain(&habits) {
            if let Some(vma) = state.vmas.find(*addr) {
                let _ = self.resolve(vma, *addr, *access);
            }
        }
        state
            .vmas
            .iter()
            .filter(|vma| vma.flags.contains(VmaFlags::IMAGE))
            .for_each(|vma| self.enter_image(vma));
        let zeroes =
            |vma: &&Vma| matches!(vma.source, Source::Anonymous) && !vma.flags.contains(VmaFlags::GROWSDOWN);
        let zeroed: Vec<u64> = state.vmas.iter().filter(zeroes).map(|vma| vma.start).collect();
        drop(state);
        zeroed.into_iter().for_each(|start| self.map_ahead(start));
        self.enter_all();
    }

    /// What earlier processes have touched of the program whose text starts here; what this one touches besides is remembered.
    fn take_up_habit(&self, state: &State, start: u64) -> Vec<(u64, MemoryAccess)> {
        let Some((mapping, _)) = state.vmas.find(start).and_then(|vma| vma.object_at(start)) else {
            return Vec::new();
        };
        let habit = Habit::of(&mapping.object.identity());
        // Nothing else lies between a program and the place of its heap.
        let image = start / PAGE_SIZE..state.brk_start / PAGE_SIZE;
        let touched = habit.start();
        let _ = self.habitat.set(Habitat { habit, image: image.clone() });
        let address = |page: u64| image.start.saturating_add(page).saturating_mul(PAGE_SIZE);
        touched.into_iter().map(|(page, access)| (address(page), access)).collect()
    }

    /// Enters the beginning of a program's or library's segment, and copies its data if that is little: entries and copies are cheap, and a
    /// program that starts uses most of both. The caller holds `state`. Best effort.
    pub(super) fn enter_image(&self, vma: &Vma) {
        let data = vma.is_private() && vma.prot.contains(Prot::WRITE);
        let (access, most) =
            if data { (MemoryAccess::Write, DATA_PAGES) } else { (MemoryAccess::Read, TEXT_PAGES) };
        let end = vma.end.min(vma.start.saturating_add(most * PAGE_SIZE));
        let mut at = vma.start;
        for _ in 0..MAX_PIECES {
            if at >= end {
                break;
            }
            match self.resolve(vma, at, access) {
                Ok(piece) => at = at.saturating_add(piece.len.max(PAGE_SIZE)),
                Err(_) => break,
            }
        }
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
            self.enter_ahead(vma, &range);
        }
    }
}
