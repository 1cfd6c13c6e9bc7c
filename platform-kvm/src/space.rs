//! Address spaces: guest page tables in memory that no guest mapping can reach.
//!
//! Four levels, entries of 4 KiB and 2 MiB. An empty entry may be filled and rights may be added at any time: the guest's next
//! fault walks the tables again, on every host. Everything else is a revocation: [`crate::revoke`].
//!
//! Invariants, under the `tree` lock:
//! - leaf entries below [`GVA_END`] point into the arena only, non-leaf entries into the table zone only;
//! - every entry of the lower half has the user bit, the stub's entry in the upper half has not;
//! - dirty bits are always set, and accessed bits but in entries that [`AddressSpace::map_ahead`] made: so the CPU and KVM write to
//!   a table only to set the accessed bit of one of those, and what takes an entry away or changes it does so atomically.

use crate::arena::{Gpa, PAGE_SIZE};
use crate::error::Error;
use crate::exitless::PatchedEntry;
use crate::exitless::ride::{self, Context};
use crate::exitless::slot::{LEN, SlotMemory};
use crate::host_mode::{Paging, Ring0};
use crate::kick::Gate;
use crate::layout::{CONTROL_GPA, STUBS_PER_PAGE, USER_REGION_GVA, USER_REGION_STUBS, USER_REGION_SWITCH};
use crate::machine::Machine;
use crate::tables::*;
use crate::vcpu::Target;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// First guest-virtual address that an application cannot have: 2 MiB before the end of the lower half, which is where the slots and syscall
/// stubs of emulated ring 0 are. (On Linux a guard page before that end.)
pub const GVA_END: u64 = USER_REGION_GVA;
/// Bytes of a second-level entry.
pub(crate) const HUGE: u64 = 2 << 20;

bitflags::bitflags! {
    /// Rights of a mapping. The architecture has no execute-only or write-only pages: any right includes reading.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Perms: u8 {
        /// Reads.
        const R = 1;
        /// Writes.
        const W = 2;
        /// Instruction fetches.
        const X = 4;
    }
}

/// A loss of rights over a page-aligned range of guest-virtual addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Nothing is mapped there afterwards.
    Unmap(Range<u64>),
    /// Rights outside `perms` are taken away from what is mapped; nothing is ever added. Empty `perms` unmap.
    Protect {
        /// Where.
        range: Range<u64>,
        /// What may stay.
        perms: Perms,
    },
}

/// One set of page tables: the lower half belongs to the application, the upper half to the ring-0 stub.
#[derive(Debug)]
pub struct AddressSpace {
    /// Unique in the machine, never 0, never reused.
    id: u64,
    pub(crate) machine: Arc<Machine>,
    root: Table,
    /// Guards every entry of the lower half. Held while a revocation waits for vCPUs.
    pub(crate) tree: Mutex<()>,
    /// Counts revocations; a vCPU that saw another value flushes its TLB before it enters ring 3 (nested paging).
    pub(crate) tlb_generation: AtomicU64,
    /// Pages of slots and contexts (emulated ring 0).
    slots: Mutex<SlotPages>,
    /// See [`AddressSpace::set_trampolines`]: start and end.
    trampolines: [AtomicU64; 2],
    /// Gates of the threads that ran here last. A thread is in the list before it enters the guest.
    pub(crate) runners: Mutex<Vec<Arc<Gate>>>,
}

/// The pages of slots and contexts of an address space.
#[derive(Debug, Default)]
struct SlotPages {
    /// By their number in the user region.
    pages: BTreeMap<u32, Table>,
    /// vCPUs that were given a slot here.
    users: BTreeSet<u32>,
}

/// A mapping request that has been checked.
#[derive(Clone, Copy)]
struct Mapping {
    gva: u64,
    gpa: u64,
    len: u64,
    perms: Perms,
    /// Bits of the leaf entries besides.
    bits: u64,
}

impl AddressSpace {
    pub(crate) fn new(machine: &Arc<Machine>, id: u64) -> Result<AddressSpace, Error> {
        let root = machine.alloc_root()?;
        let space = AddressSpace {
            id,
            machine: machine.clone(),
            root,
            tree: Mutex::new(()),
            tlb_generation: AtomicU64::new(0),
            slots: Mutex::default(),
            trampolines: [AtomicU64::new(0), AtomicU64::new(0)],
            runners: Mutex::new(Vec::new()),
        };
        // The slots that the first vCPUs need, so that running out of tables is an error here and not of `run`.
        if machine.mode().ring0 == Ring0::Emulated {
            space.slot(0)?;
        }
        Ok(space)
    }

    /// Maps `len` bytes at `gva` to `gpa` with exactly `perms`. All are multiples of 4 KiB; 2 MiB entries are used wherever
    /// both addresses are congruent and the memory is backed by huge pages. Filling empty entries and adding rights is cheap; where
    /// something else was mapped, or rights are lost, this revokes first.
    ///
    /// # Errors
    /// [`Error::Invalid`] for misaligned or foreign addresses and empty `perms`, [`Error::OutOfMemory`] for table pages.
    /// What was mapped before the error stays mapped.
    pub fn map(&self, gva: u64, gpa: Gpa, len: u64, perms: Perms) -> Result<(), Error> {
        let mapping = self.check(gva, gpa, len, perms)?;
        self.machine.ensure_slots(gpa, len)?;
        let mapping = Mapping { bits: ACCESSED, ..mapping };
        let _tree = self.tree.lock();
        let mut conflicts = Vec::new();
        self.fill(mapping, &mut conflicts)?;
        if conflicts.is_empty() {
            return Ok(());
        }
        let unmap = conflicts.drain(..).map(Change::Unmap).collect::<Vec<_>>();
        self.revoke_locked(&unmap)?;
        self.fill(mapping, &mut conflicts)?;
        if conflicts.is_empty() {
            Ok(())
        } else {
            Err(Error::Invalid("mapping over a mapping that did not go away"))
        }
    }

    /// Like [`AddressSpace::map`], for memory that the guest may never touch: where it has not, taking the mapping away costs next to
    /// nothing, because the CPU marks an entry before it uses it. Touching is dearer (KVM does not fill in neighbours). Fills empty
    /// entries only; what else is there stays as it is.
    ///
    /// # Errors
    /// As [`AddressSpace::map`].
    pub fn map_ahead(&self, gva: u64, gpa: Gpa, len: u64, perms: Perms) -> Result<(), Error> {
        let mapping = self.check(gva, gpa, len, perms)?;
        self.machine.ensure_slots(gpa, len)?;
        let _tree = self.tree.lock();
        self.fill(mapping, &mut Vec::new())
    }

    fn check(&self, gva: u64, gpa: Gpa, len: u64, perms: Perms) -> Result<Mapping, Error> {
        if !(gva | gpa.0 | len).is_multiple_of(PAGE_SIZE) || len == 0 {
            return Err(Error::Invalid("a mapping must consist of whole pages"));
        }
        if gva.checked_add(len).is_none_or(|end| end > GVA_END) {
            return Err(Error::Invalid("a mapping must lie in the lower half"));
        }
        if !self.machine.arena().contains(gpa, len) {
            return Err(Error::Invalid("a mapping must show arena memory"));
        }
        if perms.is_empty() {
            return Err(Error::Invalid("a mapping needs rights"));
        }
        Ok(Mapping { gva, gpa: gpa.0, len, perms, bits: 0 })
    }

    /// Fills what can be filled without a revocation; the ranges of the rest go to `conflicts`.
    fn fill(&self, mapping: Mapping, conflicts: &mut Vec<Range<u64>>) -> Result<(), Error> {
        let end = mapping.gva + mapping.len;
        let mut gva = mapping.gva;
        while gva < end {
            let stop = end.min((gva | (HUGE - 1)) + 1);
            let part = Mapping { gva, gpa: mapping.gpa + (gva - mapping.gva), len: stop - gva, ..mapping };
            self.fill_part(part, conflicts)?;
            gva = stop;
        }
        Ok(())
    }

    /// `fill` within one second-level entry.
    fn fill_part(&self, part: Mapping, conflicts: &mut Vec<Range<u64>>) -> Result<(), Error> {
        let tables = self.machine.tables();
        let directory = self.directory(part.gva)?;
        let slot = tables.entry(directory, index(part.gva, 2));
        let entry = slot.load(Ordering::Relaxed);
        let unlinks = self.machine.mode().paging == Paging::Nested;
        let is_table = entry & PRESENT != 0 && entry & LARGE == 0;
        let whole = part.len == HUGE
            && part.gpa.is_multiple_of(HUGE)
            && (unlinks || !is_table)
            && self.bears_leaf(part.gva, part.gpa, part.bits);
        if entry & PRESENT == 0 {
            self.settle_trace(entry, whole.then_some(part.gpa))?;
            if whole {
                slot.store(leaf(part.gpa, part.perms) | part.bits | LARGE, Ordering::SeqCst);
                return Ok(());
            }
            let table = self.machine.alloc_table()?;
            self.fill_table(table, part, conflicts);
            slot.store(table.to_entry(), Ordering::SeqCst);
            return Ok(());
        }
        if entry & LARGE != 0 {
            let wanted = leaf(part.gpa - part.gva % HUGE, part.perms) | part.bits | LARGE;
            match is_superset(wanted, entry) {
                _ if entry == wanted => {}
                true if whole && part.bits & ACCESSED != 0 => slot.store(wanted, Ordering::SeqCst),
                _ => conflicts.push(part.gva..part.gva + part.len),
            }
            return Ok(());
        }
        let table = Table::of_entry(entry);
        if whole && self.is_empty(table) {
            conflicts.push(part.gva..part.gva + part.len);
        } else {
            self.fill_table(table, part, conflicts);
        }
        Ok(())
    }

    fn fill_table(&self, table: Table, part: Mapping, conflicts: &mut Vec<Range<u64>>) {
        let tables = self.machine.tables();
        let mut offset = 0;
        while offset < part.len {
            let gva = part.gva + offset;
            let slot = tables.entry(table, index(gva, 1));
            let entry = slot.load(Ordering::Relaxed);
            let wanted = leaf(part.gpa + offset, part.perms) | part.bits;
            if entry & PRESENT == 0 || is_superset(wanted, entry) {
                // With the accessed bit, a store that overtakes the CPU's own setting of it loses nothing.
                if entry & PRESENT == 0 || (entry != wanted && part.bits & ACCESSED != 0) {
                    slot.store(wanted, Ordering::SeqCst);
                }
            } else {
                match conflicts.last_mut() {
                    Some(last) if last.end == gva => last.end += PAGE_SIZE,
                    _ => conflicts.push(gva..gva + PAGE_SIZE),
                }
            }
            offset += PAGE_SIZE;
        }
    }

    /// The table of 2 MiB entries for an address, created if missing.
    fn directory(&self, gva: u64) -> Result<Table, Error> {
        let mut table = self.root;
        for level in [4, 3] {
            let slot = self.machine.tables().entry(table, index(gva, level));
            let entry = slot.load(Ordering::Relaxed);
            table = if entry & PRESENT != 0 {
                Table::of_entry(entry)
            } else {
                let next = self.machine.alloc_table()?;
                slot.store(next.to_entry(), Ordering::SeqCst);
                next
            };
        }
        Ok(table)
    }

    /// The table of 2 MiB entries for an address, or the first address behind the hole.
    pub(crate) fn existing_directory(&self, gva: u64) -> Result<Table, u64> {
        let mut table = self.root;
        for level in [4, 3] {
            let entry = self.machine.tables().entry(table, index(gva, level)).load(Ordering::Relaxed);
            if entry & PRESENT == 0 {
                return Err((gva | (level_bytes(level) - 1)) + 1);
            }
            table = Table::of_entry(entry);
        }
        Ok(table)
    }

    /// The slot of a vCPU of emulated ring 0 here; makes sure that it and its syscall stub are mapped.
    pub(crate) fn slot(&self, vcpu: u32) -> Result<SlotMemory, Error> {
        let tables = self.machine.tables();
        let offset = u64::from(vcpu % STUBS_PER_PAGE) * LEN;
        let number = vcpu / STUBS_PER_PAGE;
        let mut slots = self.slots.lock();
        slots.users.insert(vcpu);
        if let Some(page) = slots.pages.get(&number) {
            return Ok(tables.slot(*page, offset));
        }
        let page = self.machine.alloc_table()?;
        let mapped = self.map_slots(number, page);
        // Also when it is not mapped: it goes with the space.
        slots.pages.insert(number, page);
        mapped.map(|()| tables.slot(page, offset))
    }

    /// The contexts of threads that are switched in this vCPU, for vCPUs of which the slot has been asked for.
    pub(crate) fn contexts(&self, vcpu: u32) -> Result<[Context; 2], Error> {
        let mut slots = self.slots.lock();
        let mut context = |which: usize| -> Result<Context, Error> {
            let number = ride::context_page(vcpu, which);
            let page = match slots.pages.get(&number) {
                Some(page) => *page,
                None => {
                    let page = self.machine.alloc_table()?;
                    // Also when it is not mapped: it goes with the space.
                    slots.pages.insert(number, page);
                    self.map_slots(number, page)?;
                    page
                }
            };
            Ok(self.machine.tables().context(page, number))
        };
        Ok([context(0)?, context(1)?])
    }

    fn map_slots(&self, number: u32, page: Table) -> Result<(), Error> {
        let _tree = self.tree.lock();
        let tables = self.machine.tables();
        let directory = self.directory(USER_REGION_GVA)?;
        let link = tables.entry(directory, index(USER_REGION_GVA, 2));
        let entry = link.load(Ordering::Relaxed);
        let table = if entry & PRESENT != 0 {
            Table::of_entry(entry)
        } else {
            let table = self.machine.alloc_table()?;
            for (nth, control) in self.machine.control().stub_pages().enumerate() {
                let code = leaf(CONTROL_GPA + control * PAGE_SIZE, Perms::R | Perms::X) | ACCESSED;
                tables.entry(table, USER_REGION_STUBS as usize + nth).store(code, Ordering::SeqCst);
            }
            let switch = self.machine.control().switch_page();
            let code = leaf(CONTROL_GPA + switch * PAGE_SIZE, Perms::R | Perms::X) | ACCESSED;
            tables.entry(table, USER_REGION_SWITCH as usize).store(code, Ordering::SeqCst);
            link.store(table.to_entry(), Ordering::SeqCst);
            table
        };
        tables
            .entry(table, number as usize)
            .store(leaf(page.gpa().0, Perms::R | Perms::W) | ACCESSED, Ordering::SeqCst);
        Ok(())
    }

    fn is_empty(&self, table: Table) -> bool {
        (0..ENTRIES).all(|i| self.machine.tables().entry(table, i).load(Ordering::Relaxed) & PRESENT == 0)
    }

    /// What the entry for an address says: guest-physical address of that byte and rights.
    pub fn lookup(&self, gva: u64) -> Option<(Gpa, Perms)> {
        if gva >= GVA_END {
            return None;
        }
        let _tree = self.tree.lock();
        let tables = self.machine.tables();
        let directory = self.existing_directory(gva).ok()?;
        let entry = tables.entry(directory, index(gva, 2)).load(Ordering::Relaxed);
        if entry & PRESENT == 0 {
            return None;
        }
        if entry & LARGE != 0 {
            return Some((Gpa((entry & ADDRESS) + gva % HUGE), perms_of(entry)));
        }
        let entry = tables.entry(Table::of_entry(entry), index(gva, 1)).load(Ordering::Relaxed);
        (entry & PRESENT != 0).then(|| (Gpa((entry & ADDRESS) + gva % PAGE_SIZE), perms_of(entry)))
    }

    /// How patched call sites make their calls; `None` where ring 0 is native and a `syscall` is cheap.
    pub fn patched_entry(&self) -> Option<PatchedEntry> {
        (self.machine.mode().ring0 == Ring0::Emulated)
            .then(|| PatchedEntry::checking(self.machine.control().check))
    }

    /// Says where the trampolines of patched call sites are (on hosts that emulate ring 0). From then on threads whose GS base is 0 run with
    /// it at their vCPU's slot ([`crate::PatchedEntry`]), and one that is interrupted in that range comes back with
    /// [`crate::Exit::Interrupted`], which is spurious if nobody has kicked it.
    pub fn set_trampolines(&self, range: Range<u64>) {
        let [start, end] = &self.trampolines;
        start.store(range.start, Ordering::Relaxed);
        end.store(range.end, Ordering::Release);
    }

    pub(crate) fn has_trampoline(&self, rip: u64) -> bool {
        let [start, end] = &self.trampolines;
        rip < end.load(Ordering::Acquire) && rip >= start.load(Ordering::Relaxed)
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// What a vCPU must load to run here. Read after the thread's gate says IN.
    pub(crate) fn target(&self) -> Target {
        Target {
            space: self.id,
            cr3: self.root.gpa().0,
            tlb_generation: self.tlb_generation.load(Ordering::SeqCst),
            mode: self.machine.mode(),
            patched: self.trampolines[1].load(Ordering::Relaxed) != 0,
        }
    }

    /// From now on, revocations wait for this thread while it is in the guest.
    pub(crate) fn attach(&self, gate: &Arc<Gate>) {
        self.runners.lock().push(gate.clone());
    }

    /// The thread runs elsewhere.
    pub(crate) fn detach(&self, gate: &Arc<Gate>) {
        self.runners.lock().retain(|other| !Arc::ptr_eq(other, gate));
    }

    /// Every table below the root.
    fn all_tables(&self) -> Vec<Table> {
        let tables = self.machine.tables();
        let mut found = Vec::new();
        let mut level = vec![self.root];
        for depth in 0..3 {
            let width = if depth == 0 { ENTRIES / 2 } else { ENTRIES };
            let mut next = Vec::new();
            for table in level {
                let entries = (0..width).map(|i| tables.entry(table, i).load(Ordering::Relaxed));
                let links = entries.filter(|e| e & PRESENT != 0 && !(depth == 2 && e & LARGE != 0));
                next.extend(links.map(Table::of_entry));
            }
            found.extend_from_slice(&next);
            level = next;
        }
        found
    }
}

impl Drop for AddressSpace {
    /// No thread runs here any more: `run` holds a reference. vCPUs that still have the root loaded enter ring 0 only, and load
    /// another root before ring 3.
    fn drop(&mut self) {
        let mut tables = self.all_tables();
        let slots = self.slots.get_mut();
        slots.users.iter().for_each(|vcpu| self.machine.dispatch().unbind(*vcpu, self.id));
        tables.extend(slots.pages.values());
        self.machine.places().forget(self.id);
        let shadow = self.machine.mode().paging == Paging::Shadow;
        self.machine.tables().free(&tables, Some(self.root), shadow);
        self.machine.flush_quarantine_if_full();
    }
}

/// Index into the table of a level (4 is the root).
pub(crate) fn index(gva: u64, level: u32) -> usize {
    (gva >> (12 + 9 * (level - 1))) as usize % ENTRIES
}

fn level_bytes(level: u32) -> u64 {
    1 << (12 + 9 * (level - 1))
}

/// A 4 KiB leaf entry that nobody has used.
fn leaf(gpa: u64, perms: Perms) -> u64 {
    let mut entry = gpa | PRESENT | USER | DIRTY;
    if perms.contains(Perms::W) {
        entry |= WRITABLE;
    }
    if !perms.contains(Perms::X) {
        entry |= NO_EXECUTE;
    }
    entry
}

pub(crate) fn perms_of(entry: u64) -> Perms {
    let mut perms = Perms::R;
    perms.set(Perms::W, entry & WRITABLE != 0);
    perms.set(Perms::X, entry & NO_EXECUTE == 0);
    perms
}

/// Whether `wanted` maps the same memory as `entry` with at least its rights.
fn is_superset(wanted: u64, entry: u64) -> bool {
    wanted & ADDRESS == entry & ADDRESS && perms_of(wanted).contains(perms_of(entry))
}
