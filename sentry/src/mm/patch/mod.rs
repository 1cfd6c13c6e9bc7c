//! Patched call sites: on hosts that emulate ring 0 a `syscall` costs a detour through the host's kernel, two microseconds. A site that is
//! called often gets a jump to a *trampoline* near it, which leads to the vCPU's syscall stub directly ([`PatchedEntry`]).
//!
//! ```text
//! dispatcher: Patches::called  ── often ──▶ refuses the call ──▶ its thread: Patches::take_due, Mm::patch_site
//! Mm::patch_site: decode (what can become a jump) → room (where the trampoline goes) → trampoline (its code)
//!                 → a private copy of the page with the jump in it replaces the page, as after a write
//! guest thread:   Patches::enter ▶ guest ▶ Patches::leave      rip in a trampoline ⇄ rip at the call site
//! ```
//! Outside of the guest a thread's registers are always the program's: as if nothing was patched. [`table`] keeps the books.
//!
//! # What is patched
//! Private mappings of programs and libraries that are executable and not writable. Code that a program makes itself is left alone.
//! A page that is mapped for execution is never written to: a copy replaces it through the space's revocation, so every thread sees
//! either the old site or the new one, whole. Both are right for a thread that stands in between: see [`decode`].
//! Whatever changes the text or takes it away undoes its sites first: `mprotect`, `munmap`, `mremap`, `madvise`, `mmap` over it, writes
//! through `/proc/PID/mem`. What is mapped where trampolines are makes them go first. A program that sets its GS base loses
//! all of it, for good.
//!
//! # Not there yet
//! A program that reads its own text sees the jumps; one that reads its GS base with `rdgsbase`, an address that is not its own. Sites
//! that reach over the end of a page are not patched. Changes of a library's file under a running program do not show in pages
//! with patched sites.

mod decode;
mod room;
mod table;
#[cfg(test)]
mod tests;
mod trampoline;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::extent_map::{Ownership, Run};
use super::fault::MemoryAccess;
use super::vma::{Prot, Source, Vma, VmaFlags};
use super::{MMAP_MIN_ADDR, Mm, Remains, State, page_down};
use crate::errno::{Errno, SysResult};
use crate::platform::{Alignment, Arena, Change, FrameRange, GVA_END, PAGE_SIZE, PatchedEntry, Perms};
use decode::Plan;
use room::{MOST_REGIONS, REGION};
use table::{MOST_SITES, Site, Sites};

pub use table::Patches;

/// Bytes of a page.
const PAGE: usize = PAGE_SIZE as usize;
/// No further than this from a site is its trampoline: a jump's reach, less what may lie between the ends of both.
const REACH: u64 = (1 << 31) - (4 << 20);
/// Distance of the libraries' trampolines from the highest library, in bytes.
const ABOVE: u64 = 64 << 10;
/// How far around a program or its libraries a hole is looked for.
const SEARCH: u64 = 1 << 30;
const READ_EXECUTE: Perms = Perms::R.union(Perms::X);

static PATCHED: AtomicU64 = AtomicU64::new(0);
static UNDONE: AtomicU64 = AtomicU64::new(0);

/// Gets ready, beside whatever else begins.
pub fn prepare() {
    decode::prepare();
}

/// Sites patched and undone in this sandbox so far, each with its name.
pub fn counters() -> [(&'static str, u64); 2] {
    [
        ("call sites patched", PATCHED.load(Ordering::Relaxed)),
        ("patched call sites undone", UNDONE.load(Ordering::Relaxed)),
    ]
}

/// The frames of an address space's trampolines, which go back after its translations.
pub(super) struct TrampolineFrames {
    arena: &'static Arena,
    patches: Arc<Patches>,
}

impl TrampolineFrames {
    pub fn new(arena: &'static Arena, patches: Arc<Patches>) -> TrampolineFrames {
        TrampolineFrames { arena, patches }
    }

    /// Leaks them: somebody may still reach them.
    pub fn keep(&self) {
        self.patches.sites.write().room.pages.clear();
    }
}

impl Drop for TrampolineFrames {
    fn drop(&mut self) {
        self.patches.sites.write().room.release(self.arena);
    }
}

impl Mm {
    /// Its patched call sites.
    pub fn patches(&self) -> &Arc<Patches> {
        &self.patches
    }

    /// Patches the site of the call `number` that returns to `behind`, if that can be done.
    pub fn patch_site(&self, behind: u64, number: u64) {
        let Some(entry) = self.space.patched_entry() else { return };
        let state = self.state.write();
        if !self.patches.is_closed() && self.patch_locked(&state, behind, number, &entry).is_some() {
            PATCHED.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn patch_locked(&self, state: &State, behind: u64, number: u64, entry: &PatchedEntry) -> Option<()> {
        let syscall = behind.checked_sub(2)?;
        let vma = state.vmas.find(syscall).filter(|vma| is_text(vma))?;
        let base = page_down(syscall);
        let mut code = self.read_page(vma, base)?;
        let plan = decode::plan(code.as_slice(), base, behind, number)?;
        let mut sites = self.patches.sites.write();
        if sites.patched >= MOST_SITES || sites.any_in(&plan.covers()) {
            return None;
        }
        let target = self.place_trampoline(state, &mut sites, &plan)?;
        let built = trampoline::build(&plan, target, entry)?;
        self.write_trampoline(&mut sites, target, &built.code)?;
        edit(&mut code, base, plan.at, &plan.jump(target)?);
        // Threads may come by as soon as the page is there; what they meet is known to the table by the time they leave.
        let at = plan.at;
        sites.add(Site { plan, target }, built.trampoline, &built.entrances);
        if self.replace_page(vma, base, &code).is_err() {
            sites.forget(at);
            return None;
        }
        Some(())
    }

    /// Undoes every site and patches no more: the program has a use for GS.
    pub fn give_up_patches(&self) {
        self.patches.close();
        let state = self.state.write();
        let _ = self.unpatch(&state, &(0..GVA_END));
    }

    /// Text in the range is about to change: its sites become what they were. `ENOMEM`.
    pub(super) fn unpatch(&self, state: &State, range: &Range<u64>) -> SysResult {
        if !self.patches.is_active() {
            return Ok(());
        }
        let mut sites = self.patches.sites.write();
        let hit: Vec<u64> = sites.in_range(range).map(|site| site.plan.at).collect();
        self.restore(state, &mut sites, &hit)
    }

    /// Text in the range is gone.
    pub(super) fn forget_patches(&self, range: &Range<u64>) {
        if !self.patches.is_active() {
            return;
        }
        let mut sites = self.patches.sites.write();
        let hit: Vec<u64> = sites.in_range(range).map(|site| site.plan.at).collect();
        for at in hit {
            sites.forget(at);
            UNDONE.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Something is about to be mapped in the range: no trampolines there. `ENOMEM`.
    pub(super) fn make_room(&self, state: &State, range: &Range<u64>, remains: &mut Remains) -> SysResult {
        if !self.patches.is_active() {
            return Ok(());
        }
        let mut sites = self.patches.sites.write();
        loop {
            let overlaps = |region: &&Range<u64>| region.start < range.end && range.start < region.end;
            let Some(region) = sites.room.regions.iter().find(overlaps).cloned() else { return Ok(()) };
            let users = sites.sites.values().filter(|site| region.contains(&site.target));
            let users: Vec<u64> = users.map(|site| site.plan.at).collect();
            self.restore(state, &mut sites, &users)?;
            self.revoke(&[Change::Unmap(region.clone())], remains)?;
            // Threads that were inside have been got out, and ask the table where they are.
            sites.bury(region.clone());
            let Some((_, frames)) = sites.room.remove(&region) else { return Ok(()) };
            if !remains.frames_are_lost {
                frames.into_iter().for_each(|frames| self.arena.release(frames));
            }
        }
    }

    /// Puts the original bytes of sites back, page by page.
    fn restore(&self, state: &State, sites: &mut Sites, which: &[u64]) -> SysResult {
        let mut by_page: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for at in which {
            by_page.entry(page_down(*at)).or_default().push(*at);
        }
        for (base, all) in by_page {
            let vma = state.vmas.find(base).ok_or(Errno::ENOMEM)?;
            let mut code = self.read_page(vma, base).ok_or(Errno::ENOMEM)?;
            for site in all.iter().filter_map(|at| sites.sites.get(at)) {
                edit(&mut code, base, site.plan.at, &site.plan.original);
            }
            self.replace_page(vma, base, &code)?;
            for at in all {
                sites.forget(at);
                UNDONE.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// The bytes of a page of text.
    fn read_page(&self, vma: &Vma, base: u64) -> Option<Box<[u8; PAGE]>> {
        let piece = self.resolve(vma, base, MemoryAccess::Execute).ok()?;
        let mut bytes = Box::new([0; PAGE]);
        self.arena.read(piece.gpa, bytes.as_mut_slice()).ok()?;
        Some(bytes)
    }

    /// Replaces a page of private text by a private copy that says something else. The caller holds `state` for writing.
    fn replace_page(&self, vma: &Vma, base: u64, bytes: &[u8; PAGE]) -> SysResult {
        let perms = vma.prot.perms().ok_or(Errno::ENOMEM)?;
        let frames = self.arena.alloc(1, Alignment::Page).map_err(|_| Errno::ENOMEM)?;
        let run =
            Run { page: base / PAGE_SIZE, first: frames.first, count: 1, ownership: Ownership::Exclusive };
        self.settle();
        let written = self.arena.write(self.arena.gpa(frames.first), bytes).map_err(|_| Errno::ENOMEM);
        let mut pages = self.pages.lock();
        // Replacing the entry revokes the old one, so the old frame is out of reach when it is let go.
        if written.is_err() || self.enter(run, perms).is_err() {
            self.arena.release(frames);
            return Err(Errno::ENOMEM);
        }
        for old in pages.remove(run.page..run.end()) {
            self.arena.release(old.frames());
        }
        pages.insert(run);
        self.note_rss(&pages);
        Ok(())
    }

    /// An address for the trampoline of a plan, in a region that may be new.
    fn place_trampoline(&self, state: &State, sites: &mut Sites, plan: &Plan) -> Option<u64> {
        let len = trampoline::room(plan);
        let near = |region: &Range<u64>| region.start.abs_diff(plan.at) < REACH;
        if !sites.room.regions.iter().any(near) {
            let region = self.new_region(state, plan.at).filter(|region| {
                let overlaps = |other: &Range<u64>| other.start < region.end && region.start < other.end;
                near(region)
                    && sites.room.regions.len() < MOST_REGIONS
                    && !sites.room.regions.iter().any(overlaps)
            })?;
            sites.room.regions.push(region);
            self.space.set_trampolines(sites.room.bounds());
            self.patches.activate(&sites.room.regions);
        }
        sites.room.find(plan, len)
    }

    /// A hole where `mmap` would not put anything of itself: above the libraries, or below the program.
    fn new_region(&self, state: &State, site: u64) -> Option<Range<u64>> {
        let above = self.layout.mmap_base.checked_add(ABOVE)?;
        let start = if above.abs_diff(site) < SEARCH {
            state.vmas.gap_bottom_up(REGION, above..above.checked_add(SEARCH / 2)?.min(GVA_END))?
        } else {
            let end = page_down(site).checked_sub(REGION)?;
            let start = end.saturating_sub(SEARCH).max(MMAP_MIN_ADDR);
            if start >= end {
                return None;
            }
            state.vmas.gap_top_down(REGION, start..end)?
        };
        Some(start..start.checked_add(REGION)?)
    }

    /// Writes a trampoline where nothing was. That its page may be mapped for execution does no harm: nobody is in that part yet.
    fn write_trampoline(&self, sites: &mut Sites, target: u64, code: &[u8]) -> Option<()> {
        let page = page_down(target);
        let map = |frames: FrameRange| {
            self.space.map(page, self.arena.gpa(frames.first), PAGE_SIZE, READ_EXECUTE).ok()
        };
        let frame = match sites.room.pages.get(&page).map(|page| page.frame) {
            Some(frame) if self.arena.is_unique(frame) => frame,
            old => {
                let frames = self.arena.alloc(1, Alignment::Page).ok()?;
                let gpa = self.arena.gpa(frames.first);
                self.settle();
                // Shared with a child or a parent since a fork: ours from now on.
                let filled = match old {
                    Some(old) => self.arena.copy(self.arena.gpa(old), gpa, PAGE),
                    None => self.arena.write(gpa, &[INT3; PAGE]),
                };
                if filled.is_err() || map(frames).is_none() {
                    self.arena.release(frames);
                    return None;
                }
                match old {
                    Some(old) => {
                        sites.room.replace(page, frames.first);
                        self.arena.release(FrameRange { first: old, count: 1 });
                    }
                    None => sites.room.add_page(page, frames.first),
                }
                frames.first
            }
        };
        let mut gpa = self.arena.gpa(frame);
        gpa.0 += target - page;
        self.arena.write(gpa, code).ok()?;
        sites.room.take(target, code.len() as u64);
        Some(())
    }

    /// The child of a `fork` has the same text, and so the same trampolines. The caller holds the parent's `state`, and `copy` is the
    /// child's.
    pub(super) fn inherit_patches(&self, child: &Mm, copy: &State) -> SysResult {
        if !self.patches.is_active() {
            return Ok(());
        }
        let mut sites = self.patches.sites.read().clone();
        let mut entered = Ok(());
        for (address, page) in &sites.room.pages {
            self.arena.retain(page.frames());
            let gpa = self.arena.gpa(page.frame);
            entered = entered.and(child.space.map(*address, gpa, PAGE_SIZE, READ_EXECUTE));
        }
        let missing: Vec<u64> =
            sites.sites.keys().filter(|at| copy.vmas.find(**at).is_none()).copied().collect();
        for at in missing {
            sites.forget(at);
        }
        sites.forget_former();
        child.space.set_trampolines(sites.room.bounds());
        *child.patches.sites.write() = sites;
        child.patches.inherit(&self.patches);
        entered
    }
}

/// What fills a page of trampolines.
const INT3: u8 = 0xcc;

/// Whether call sites in a mapping may be patched.
fn is_text(vma: &Vma) -> bool {
    let object = matches!(vma.source, Source::Object { .. });
    object
        && vma.is_private()
        && vma.flags.contains(VmaFlags::IMAGE)
        && !vma.flags.contains(VmaFlags::SPECIAL)
        && vma.prot.contains(Prot::EXEC)
        && !vma.prot.contains(Prot::WRITE)
}

/// Puts `bytes` at address `at` of a page.
fn edit(page: &mut [u8; PAGE], base: u64, at: u64, bytes: &[u8]) {
    let offset = usize::try_from(at.wrapping_sub(base)).unwrap_or(PAGE);
    if let Some(place) = offset.checked_add(bytes.len()).and_then(|end| page.get_mut(offset..end)) {
        place.copy_from_slice(bytes);
    }
}
