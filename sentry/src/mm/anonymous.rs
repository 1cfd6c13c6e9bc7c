//! The first touch of anonymous memory.
//!
//! How much is allocated then is a bet. An exit costs as much as twenty pages, and a page that is never used is lost to others. So a touch with
//! nothing around it gets little, which the host backs page by page as they are used; memory that is walked through gets more each time, and the
//! host backs it at once; and past half a huge page that was walked through, or where the program asks for it, whole huge pages come, which one
//! entry maps.

use std::ops::Range;

use super::extent_map::{ExtentMap, Ownership, Run};
use super::fault::{FaultOutcome, HUGE, Piece, block};
use super::frame_store::allocate_run;
use super::private_pages::bytes;
use super::vma::{Source, Vma, VmaFlags};
use super::{Mm, page_numbers};
use crate::platform::{Alignment, PAGE_SIZE, Perms};

/// Pages allocated by a touch with nothing around it.
pub(super) const FIRST: u32 = 16;

/// What a first touch allocates.
struct Plan {
    pages: Range<u64>,
    /// The program walks through its memory: it will use all of this.
    walk: bool,
}

impl Mm {
    /// First touch of anonymous memory: a run that grows with sequential use, up to a huge page.
    pub(super) fn private_new(
        &self,
        vma: &Vma,
        pages: &mut ExtentMap,
        addr: u64,
        perms: Perms,
    ) -> Result<Piece, FaultOutcome> {
        let page = addr / PAGE_SIZE;
        let Plan { pages: wanted, walk } = plan(vma, pages, page);
        let count = u32::try_from(wanted.end - wanted.start).unwrap_or(1);
        let before =
            if u64::from(count) == HUGE { self.space.block_before(bytes(wanted.start)) } else { None };
        let frames = match before.map(|block| self.arena.alloc_block(block)) {
            Some(Ok(frames)) => frames,
            _ => allocate_run(self.arena, wanted.start, count).map_err(|_| FaultOutcome::OutOfMemory)?,
        };
        let start = if frames.count == count { wanted.start } else { page };
        let run =
            Run { page: start, first: frames.first, count: frames.count, ownership: Ownership::Exclusive };
        pages.insert(run);
        self.note_rss(pages);
        self.enter(run, perms)?;
        let fresh = Some(run).filter(|_| walk);
        Ok(Piece { fresh, ..self.piece(&run, addr) })
    }

    /// Gives a new mapping of anonymous memory at `start` the pages that its first touch would, where they are few: the program is about to
    /// use it, and a fault costs ten times as much. Best effort.
    pub(super) fn map_ahead(&self, start: u64) {
        let state = self.state.read();
        let Some(vma) = state.vmas.find(start) else { return };
        let Some(perms) = vma.prot.perms().filter(|perms| perms.contains(Perms::W)) else { return };
        if !vma.is_private() || !matches!(vma.source, Source::Anonymous) {
            return;
        }
        let first = start / PAGE_SIZE;
        let mut pages = self.pages.lock();
        let end = (first + u64::from(FIRST)).min(vma.end / PAGE_SIZE);
        let end = pages.next_present(first).unwrap_or(u64::MAX).min(end);
        let Some(count) = u32::try_from(end.saturating_sub(first)).ok().filter(|count| *count > 0) else {
            return;
        };
        let Ok(frames) = self.arena.alloc(count, Alignment::Page) else { return };
        let run = Run { page: first, first: frames.first, count, ownership: Ownership::Exclusive };
        pages.insert(run);
        self.note_rss(&pages);
        // If there is no room for tables, the fault finds the pages.
        let _ = self.space.map_ahead(start, self.arena.gpa(run.first), u64::from(count) * PAGE_SIZE, perms);
    }

    /// Lets the host back a run now: KVM then enters neighbouring translations together instead of one by one, at a fraction
    /// of the cost. Called without locks; the guest may use the memory already.
    pub(super) fn back(&self, run: &Run) {
        self.arena.populate(run.frames());
    }
}

/// Which pages a first touch of anonymous memory at `page` allocates.
///
/// 64 KiB; as much again as lies populated next to it when the memory is walked through in either direction; the whole 2 MiB block
/// once half of one has been walked through, or when the program asked for huge pages.
fn plan(vma: &Vma, pages: &ExtentMap, page: u64) -> Plan {
    let first = u64::from(FIRST);
    let whole = block(vma, page, HUGE);
    let modest = block(vma, page, first);
    let plain = vma.flags.intersects(VmaFlags::NOHUGEPAGE | VmaFlags::RANDOM);
    let inside = page_numbers(&(vma.start..vma.end));
    // What lies populated directly below and above, as far as it matters.
    let below = pages.present_to_end(modest.start.saturating_sub(HUGE).max(inside.start)..modest.start);
    let above = pages.present_from_start(modest.end..(modest.end + HUGE).min(inside.end));
    let room = |range: Range<u64>| {
        // From `page`, as far as nothing is there.
        let end = pages.next_present(page).unwrap_or(u64::MAX).min(range.end);
        range.start.max(pages.hole_start(page))..end
    };
    let empty = room(whole.clone()) == whole && whole.end - whole.start == HUGE;
    let asked = vma.flags.contains(VmaFlags::HUGEPAGE);
    if plain {
        return Plan { pages: room(modest), walk: false };
    }
    if empty && (asked || below.max(above) >= HUGE / 2) {
        return Plan { pages: whole, walk: true };
    }
    let size = below.max(above).clamp(first, HUGE / 2);
    let pages = if below >= above {
        room(modest.start..(modest.start + size).min(whole.end))
    } else {
        room(modest.end.saturating_sub(size).max(whole.start)..modest.end)
    };
    Plan { pages, walk: size > first }
}
