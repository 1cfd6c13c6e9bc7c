//! Taking rights away.
//!
//! # What can be stale
//! - *Nested paging*: a CPU's TLB and paging-structure caches, tagged with nothing but the address space in CR3.
//! - *Shadow paging*: KVM's shadow tables. KVM does not see that the host writes a guest table; it walks the tables again only
//!   when the guest faults. And a vCPU that is inside a fault may have read an entry before we changed it and install its
//!   translation after that.
//!
//! # What `revoke` does, in this order, under the space's `tree` lock
//! 1. Changes the entries.
//! 2. Counts the space's `tlb_generation` up.
//! 3. Gets every thread that is inside the guest in this space out to user space and waits until it is. (Threads that are
//!    outside, the caller among them, need nothing.) Now no fault is half done, and each vCPU passes [`crate::kick`]'s handshake
//!    before it walks the tables again.
//! 4. Nested: nothing more. A vCPU whose generation is old loads CR3 before it enters ring 3, which flushes what the CPU holds.
//!    Shadow: makes the host's mm notify KVM about the *data* pages that lost rights, which drops every translation to them,
//!    in whatever shadow page it is: [`drop_translations`].
//! 5. Only now writes entries of another shape (a table where a 2 MiB entry was) and frees what was unlinked.
//!
//! # In place (shadow paging only)
//! [`AddressSpace::revoke_in_place`] leaves step 3 out. What a vCPU has half done is then settled by KVM and by the caller:
//! - *a fault that is to install a translation*: KVM reads the guest entries of every level again under its `mmu_lock` and installs only what they
//!   still say; the notifier takes the same lock. If the fault has it first, the notifier finds its translation; if the notifier has it first, the
//!   fault sees the changed entry and starts again. The same holds for translations that KVM adds beside the one it was asked for.
//! - *an access that KVM makes itself* (it emulates an instruction): it goes to the host's memory without a translation, and nothing takes it
//!   back. It has ended when the vCPU has left the guest. So the caller keeps the pages until then: [`Stragglers`].
//!
//! An entry whose accessed bit is clear when it is taken away has never been used for any of this: CPU and KVM set the bit, by an atomic exchange
//! with the entry they have read, before they do anything with the translation. It needs no revocation at all.
//!
//! # Why tables are not simply reused (shadow paging)
//! KVM's shadow pages are filed under the guest page they shadow, and a non-leaf shadow entry survives the guest entry it was
//! made from. If an unlinked table became another table, the old link would show its new contents. So:
//! - a table page that was unlinked stays in quarantine, empty, until a full flush (a memory slot is deleted and created
//!   again, upon which KVM drops every shadow page);
//! - `revoke` never unlinks tables of a live space; only dropping the space does;
//! - a 2 MiB leaf is replaced by another block's, or by a table, after a full flush only: [`crate::large`].

use crate::arena::{FrameRange, Gpa, KEPT_DIRTY, PAGE_SIZE};
use crate::error::Error;
use crate::host_mode::Paging;
use crate::machine::Machine;
use crate::space::{AddressSpace, Change, GVA_END, HUGE, Perms, index, perms_of};
use crate::stragglers::Stragglers;
use crate::tables::*;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// From this many separate ranges on, dropping every shadow page is cheaper than notifying about each range (measured: 8 µs
/// per range against 0.3 ms, plus what it costs all the others to fault their pages in again).
const FLUSH_RANGES: usize = 128;
/// Ranges with so little between them are notified as one: the pages between lose their translations for nothing, which costs
/// less than another call.
const MERGE_GAP: u64 = 8 * PAGE_SIZE;

/// Telling the host that it may take so many frames, one by one, costs as much as other ways to notify.
const FEW: u32 = 256;

/// What a pass over the tables has done so far.
struct Pass {
    shadow: bool,
    /// Some entry lost rights.
    lost: bool,
    /// Guest-physical ranges that lost rights (shadow paging only).
    data: Vec<Range<u64>>,
    /// Guest-physical ranges whose contents nobody needs, sorted, and whether an entry of them lost rights.
    spent: Vec<(Range<u64>, bool)>,
    /// What the host is told about those.
    advice: i32,
    /// Entries to write when nobody can use the old ones any more.
    later: Vec<(Table, usize, u64)>,
    unlinked: Vec<Table>,
    /// A 2 MiB entry could not be split and was unmapped instead.
    out_of_memory: bool,
}

impl AddressSpace {
    /// Takes rights away. When it returns, no vCPU can use the old rights any more, also none that runs in this space now.
    /// Batch: a call costs tens of microseconds on shadow paging, however many changes it carries.
    ///
    /// # Errors
    /// [`Error::Invalid`] for misaligned ranges (then nothing was changed); [`Error::OutOfMemory`] when splitting a 2 MiB
    /// entry needs a table page (the whole entry is then unmapped, so that no right survives); [`Error::Host`].
    pub fn revoke(&self, changes: &[Change]) -> Result<(), Error> {
        check(changes)?;
        let _tree = self.tree.lock();
        self.revoke_locked(changes)
    }

    /// Whether [`AddressSpace::revoke_in_place`] does anything on this host.
    pub fn revokes_in_place(&self) -> bool {
        self.machine.mode().paging == Paging::Shadow
    }

    /// Takes rights away while the threads that are in the guest stay there: no instruction uses the old rights when it returns, but see
    /// [`Stragglers`]. `spent` are frames that the changes unmap and whose contents nobody needs: that is cheaper. `None` where the host's
    /// paging needs every vCPU out: nothing was changed, call [`AddressSpace::revoke`].
    ///
    /// # Errors
    /// As [`AddressSpace::revoke`].
    pub fn revoke_in_place(
        &self,
        changes: &[Change],
        spent: &[FrameRange],
    ) -> Result<Option<Stragglers>, Error> {
        if !self.revokes_in_place() {
            return Ok(None);
        }
        check(changes)?;
        let _tree = self.tree.lock();
        let mut pass = self.change_entries(changes, spent);
        if !pass.lost {
            return Ok(Some(Stragglers::default()));
        }
        fence(Ordering::SeqCst);
        let stragglers = Stragglers::of(&self.runners.lock());
        self.finish(&mut pass)?;
        Ok(Some(stragglers))
    }

    /// `revoke` for a caller that holds the `tree` lock and has checked the ranges.
    pub(crate) fn revoke_locked(&self, changes: &[Change]) -> Result<(), Error> {
        let mut pass = self.change_entries(changes, &[]);
        if !pass.lost {
            return Ok(());
        }
        self.tlb_generation.fetch_add(1, Ordering::SeqCst);
        self.expel();
        self.finish(&mut pass)
    }

    fn change_entries(&self, changes: &[Change], spent: &[FrameRange]) -> Pass {
        let (spent, advice) = self.advised(spent);
        let mut pass = Pass {
            shadow: self.machine.mode().paging == Paging::Shadow,
            lost: false,
            data: Vec::new(),
            spent,
            advice,
            later: Vec::new(),
            unlinked: Vec::new(),
            out_of_memory: false,
        };
        for change in changes {
            match change {
                Change::Unmap(range) => self.change(&mut pass, range, Perms::empty()),
                Change::Protect { range, perms } => self.change(&mut pass, range, *perms),
            }
        }
        pass
    }

    /// The ranges of frames that nobody needs, sorted, and by what advice the host is notified about them; none if they are too many for the one
    /// and too few for the other.
    fn advised(&self, spent: &[FrameRange]) -> (Vec<(Range<u64>, bool)>, i32) {
        let frames = spent.iter().fold(0, |sum: u32, range| sum.saturating_add(range.count));
        let advice = match frames {
            0..=FEW => libc::MADV_FREE,
            // They are given back when they are free, by just that.
            _ if frames > KEPT_DIRTY => libc::MADV_DONTNEED,
            _ => return (Vec::new(), 0),
        };
        let of_frames = |range: &FrameRange| {
            let start = self.machine.arena().gpa(range.first).0;
            (start..start + u64::from(range.count) * PAGE_SIZE, false)
        };
        let mut ranges = spent.iter().map(of_frames).collect::<Vec<_>>();
        ranges.sort_unstable_by_key(|(range, _)| range.start);
        (ranges, advice)
    }

    /// What comes after the vCPUs.
    fn finish(&self, pass: &mut Pass) -> Result<(), Error> {
        let dropped = match pass.shadow {
            true if pass.later.is_empty() => drop_translations(&self.machine, pass),
            // What the leaves leave behind must go before the tables come.
            true => self.machine.flush_everything(),
            false => Ok(()),
        };
        let tables = self.machine.tables();
        for (table, at, entry) in pass.later.drain(..) {
            if dropped.is_ok() {
                tables.entry(table, at).store(entry, Ordering::SeqCst);
            } else {
                pass.unlinked.push(Table::of_entry(entry));
            }
        }
        tables.free(&pass.unlinked, None, pass.shadow);
        dropped?;
        if pass.out_of_memory { Err(crate::error::OutOfMemory.into()) } else { Ok(()) }
    }

    /// Changes the entries of a range: rights outside `keep` go.
    fn change(&self, pass: &mut Pass, range: &Range<u64>, keep: Perms) {
        let mut gva = range.start;
        while gva < range.end {
            match self.existing_directory(gva) {
                Err(next) => gva = next,
                Ok(directory) => {
                    let stop = range.end.min((gva | (HUGE - 1)) + 1);
                    self.change_part(pass, directory, gva..stop, keep);
                    gva = stop;
                }
            }
        }
    }

    /// `change` within one second-level entry.
    fn change_part(&self, pass: &mut Pass, directory: Table, part: Range<u64>, keep: Perms) {
        let tables = self.machine.tables();
        let at = index(part.start, 2);
        let slot = tables.entry(directory, at);
        let entry = slot.load(Ordering::Relaxed);
        let whole = part.end - part.start == HUGE;
        if entry & PRESENT == 0 {
            // An earlier change of this batch may have split it.
            let split = pass.later.iter().find(|(table, index, _)| (*table, *index) == (directory, at));
            if let Some(table) = split.map(|(_, _, link)| Table::of_entry(*link)) {
                self.change_table(pass, table, part, keep);
            }
            return;
        }
        if entry & LARGE == 0 {
            let table = Table::of_entry(entry);
            self.change_table(pass, table, part, keep);
            if whole && keep.is_empty() && !pass.shadow {
                slot.store(0, Ordering::SeqCst);
                pass.unlinked.push(table);
                pass.lost = true;
            }
            return;
        }
        let kept = restrict(entry, keep);
        if kept == entry {
            return;
        }
        if whole && keep.is_empty() {
            pass.note(self.take_leaf(slot), HUGE);
            return;
        }
        if whole {
            pass.note(restrict_in(slot, keep), HUGE);
            return;
        }
        // The entry goes and comes back as a table when no CPU holds the old translation (some CPUs do not bear both sizes), nor KVM a trace of it.
        let entry = self.take_leaf(slot);
        pass.note(entry, HUGE);
        pass.lost = true;
        match self.split(entry, &part, keep) {
            Ok(table) => pass.later.push((directory, at, table.to_entry())),
            Err(_) => pass.out_of_memory = true,
        }
    }

    fn change_table(&self, pass: &mut Pass, table: Table, part: Range<u64>, keep: Perms) {
        let tables = self.machine.tables();
        for gva in part.step_by(PAGE_SIZE as usize) {
            let slot = tables.entry(table, index(gva, 1));
            let entry = slot.load(Ordering::Relaxed);
            if entry & PRESENT == 0 {
                continue;
            }
            if restrict(entry, keep) != entry {
                pass.note(restrict_in(slot, keep), PAGE_SIZE);
            }
        }
    }

    /// A table that says what a 2 MiB entry said, less what `part` loses.
    fn split(&self, entry: u64, part: &Range<u64>, keep: Perms) -> Result<Table, Error> {
        let table = self.machine.alloc_table()?;
        let first = part.start & !(HUGE - 1);
        for i in 0..ENTRIES as u64 {
            let small = (entry & !LARGE) + i * PAGE_SIZE;
            let inside = part.contains(&(first + i * PAGE_SIZE));
            let small = if inside { restrict(small, keep) } else { small };
            self.machine.tables().entry(table, i as usize).store(small, Ordering::Relaxed);
        }
        Ok(table)
    }

    /// Gets every thread out that is in the guest in this space, and waits for it.
    fn expel(&self) {
        fence(Ordering::SeqCst);
        let runners = self.runners.lock();
        let inside =
            runners.iter().filter_map(|gate| gate.interrupt().map(|word| (gate, word))).collect::<Vec<_>>();
        for (gate, word) in inside {
            gate.wait_departure(word);
        }
    }

    /// After [`crate::Exit::HostFault`]: finds mapped window pages which the host cannot back any more, and unmaps them.
    /// Returns how many bytes were unmapped.
    ///
    /// Reads every mapped window page; only if all of them can be read, also tries the writable ones with a write that changes
    /// nothing (which dirties them).
    ///
    /// # Errors
    /// As [`AddressSpace::revoke`].
    pub fn revoke_unbacked(&self) -> Result<u64, Error> {
        let _tree = self.tree.lock();
        let arena = self.machine.arena();
        let unreadable = self.windows_where(|gpa, _| arena.read(gpa, &mut [0]).is_err());
        let broken = if unreadable.is_empty() {
            let unwritable = |gpa| arena.atomic_fetch_update_u32(gpa, |word| word).is_err();
            self.windows_where(|gpa, perms| perms.contains(Perms::W) && unwritable(gpa))
        } else {
            unreadable
        };
        let bytes = broken.iter().map(|range| range.end - range.start).sum();
        self.revoke_locked(&broken.into_iter().map(Change::Unmap).collect::<Vec<_>>())?;
        Ok(bytes)
    }

    /// Ranges of mapped window pages for which `test` holds.
    fn windows_where(&self, test: impl Fn(Gpa, Perms) -> bool) -> Vec<Range<u64>> {
        let mut found: Vec<Range<u64>> = Vec::new();
        let mut add = |gva: u64, entry: u64, bytes: u64| {
            let gpa = Gpa(entry & ADDRESS);
            let pages = (0..bytes).step_by(PAGE_SIZE as usize);
            let is_window = entry & PRESENT != 0 && self.machine.arena().in_window_zone(gpa, bytes);
            for offset in pages.filter(|_| is_window) {
                if test(Gpa(gpa.0 + offset), perms_of(entry)) {
                    match found.last_mut() {
                        Some(last) if last.end == gva + offset => last.end += PAGE_SIZE,
                        _ => found.push(gva + offset..gva + offset + PAGE_SIZE),
                    }
                }
            }
        };
        let tables = self.machine.tables();
        let mut gva = 0;
        while gva < GVA_END {
            let directory = match self.existing_directory(gva) {
                Ok(directory) => directory,
                Err(next) => {
                    gva = next;
                    continue;
                }
            };
            let entry = tables.entry(directory, index(gva, 2)).load(Ordering::Relaxed);
            if entry & LARGE != 0 {
                add(gva, entry, HUGE);
            } else if entry & PRESENT != 0 {
                for i in 0..ENTRIES {
                    let small = tables.entry(Table::of_entry(entry), i).load(Ordering::Relaxed);
                    add(gva + i as u64 * PAGE_SIZE, small, PAGE_SIZE);
                }
            }
            gva += HUGE;
        }
        found
    }
}

/// Whether the ranges are ones that can be mapped.
fn check(changes: &[Change]) -> Result<(), Error> {
    for change in changes {
        let (Change::Unmap(range) | Change::Protect { range, .. }) = change;
        if (range.start | range.end) % PAGE_SIZE != 0 || range.start > range.end || range.end > GVA_END {
            return Err(Error::Invalid("a change must cover whole pages of the lower half"));
        }
    }
    Ok(())
}

impl Pass {
    /// An entry that lost rights, as it was.
    fn note(&mut self, entry: u64, len: u64) {
        if entry & ACCESSED == 0 {
            // No CPU, nor KVM for one, has used it: there is no translation, and none can be made of what the table says now.
            return;
        }
        let gpa = entry & ADDRESS;
        self.lost = true;
        if !self.shadow {
            return;
        }
        let after = self.spent.partition_point(|(range, _)| range.start <= gpa);
        if let Some((range, lost)) = after.checked_sub(1).and_then(|at| self.spent.get_mut(at))
            && range.end >= gpa + len
        {
            *lost = true;
            return;
        }
        match self.data.last_mut() {
            Some(last) if last.end == gpa => last.end += len,
            _ => self.data.push(gpa..gpa + len),
        }
    }
}

/// An entry without the rights outside `keep`.
fn restrict(entry: u64, keep: Perms) -> u64 {
    if keep.is_empty() {
        return 0;
    }
    let mut kept = entry;
    if !keep.contains(Perms::W) {
        kept &= !WRITABLE;
    }
    if !keep.contains(Perms::X) {
        kept |= NO_EXECUTE;
    }
    kept
}

/// Restricts an entry, whose accessed bit the CPU may be setting at this moment. Returns what it was.
fn restrict_in(slot: &AtomicU64, keep: Perms) -> u64 {
    let mut entry = slot.load(Ordering::SeqCst);
    while let Err(now) =
        slot.compare_exchange(entry, restrict(entry, keep), Ordering::SeqCst, Ordering::SeqCst)
    {
        entry = now;
    }
    entry
}

/// Makes KVM drop its translations to guest-physical ranges, by MMU notifiers: frames become read-only for the host for a
/// moment (which other users of the arena bear, see [`crate::arena`]'s toggles), the host is told that it may take the contents of
/// those that are spent, or must if they are many, file mappings drop the host's own page-table entries. If the host forbids either, everything is flushed.
fn drop_translations(machine: &Machine, pass: &mut Pass) -> Result<(), Error> {
    let spent = pass.spent.iter().filter(|(_, lost)| *lost).map(|(range, _)| range);
    let merged = merged(&mut pass.data, machine.arena().window_start().0);
    if merged.len() + spent.clone().count() > FLUSH_RANGES
        || spent.clone().any(|range| !notify_spent(machine, range, pass.advice))
        || merged.iter().any(|range| !notify(machine, range))
    {
        return machine.flush_everything();
    }
    Ok(())
}

/// The ranges, sorted, with those joined that have little between them.
fn merged(ranges: &mut Vec<Range<u64>>, windows: u64) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len().min(FLUSH_RANGES));
    for range in ranges.drain(..) {
        match merged.last_mut() {
            // The two zones are notified in different ways.
            Some(last)
                if last.end + MERGE_GAP >= range.start
                    && (last.start < windows) == (range.start < windows) =>
            {
                last.end = last.end.max(range.end);
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// Whether the notifier has run for a range of frames whose contents nobody needs.
fn notify_spent(machine: &Machine, range: &Range<u64>, advice: i32) -> bool {
    let arena = machine.arena();
    let len = range.end - range.start;
    let (Some(offset), Ok(bytes)) = (arena.offset_of(Gpa(range.start), len), usize::try_from(len)) else {
        return false;
    };
    Gpa(range.end) <= arena.window_start() && arena.memory().advise(offset, bytes, advice).is_ok()
}

/// Whether the notifier has run for the range.
fn notify(machine: &Machine, range: &Range<u64>) -> bool {
    let arena = machine.arena();
    let len = range.end - range.start;
    let (Some(offset), Ok(bytes)) = (arena.offset_of(Gpa(range.start), len), usize::try_from(len)) else {
        return false;
    };
    let memory = arena.memory();
    if arena.in_window_zone(Gpa(range.start), len) {
        return memory.advise(offset, bytes, libc::MADV_DONTNEED).is_ok();
    }
    if Gpa(range.end) > arena.window_start() {
        return false;
    }
    arena.toggle_writable(offset, bytes)
}
