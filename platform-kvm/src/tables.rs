//! Pages for page tables: a zone of their own, at guest-physical addresses that no guest mapping may name.
//!
//! A root page stays a root page for ever, with the stub's entry in place: a vCPU whose address space is gone still enters
//! ring 0 through its old root before it loads another one.
//!
//! Under shadow paging a freed page goes to quarantine (see [`crate::revoke`]), and the whole quarantine becomes free after one
//! full flush. Freed pages are zeroed at once, so a stale pointer to one finds nothing.

use crate::arena::reservation::Reservation;
use crate::arena::{Gpa, PAGE_SIZE};
use crate::error::{Error, OutOfMemory};
use crate::exitless::ride::Context;
use crate::exitless::slot::{LEN, SlotMemory};
use crate::layout::{CONTROL_ROOT_INDEX, TABLES_GPA, TABLES_LEN};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Entries of a table.
pub(crate) const ENTRIES: usize = 512;

pub(crate) const PRESENT: u64 = 1;
pub(crate) const WRITABLE: u64 = 1 << 1;
pub(crate) const USER: u64 = 1 << 2;
/// The CPU, or KVM for it, sets this atomically before it uses an entry.
pub(crate) const ACCESSED: u64 = 1 << 5;
/// Always set, so that nobody but this crate changes it.
pub(crate) const DIRTY: u64 = 1 << 6;
/// In a second-level entry: maps 2 MiB.
pub(crate) const LARGE: u64 = 1 << 7;
pub(crate) const NO_EXECUTE: u64 = 1 << 63;
pub(crate) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A page of the zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Table(u32);

impl Table {
    pub(crate) fn gpa(self) -> Gpa {
        Gpa(TABLES_GPA + u64::from(self.0) * PAGE_SIZE)
    }

    /// The table that a non-leaf entry points to.
    pub(crate) fn of_entry(entry: u64) -> Table {
        Table((((entry & ADDRESS).wrapping_sub(TABLES_GPA)) / PAGE_SIZE) as u32)
    }

    /// A non-leaf entry that points here and restricts nothing.
    pub(crate) fn to_entry(self) -> u64 {
        self.gpa().0 | PRESENT | WRITABLE | USER | ACCESSED
    }
}

#[derive(Debug)]
pub(crate) struct TableZone {
    memory: Reservation,
    max: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Pages from here on have never been used.
    frontier: u32,
    in_use: u32,
    free: Vec<Table>,
    free_roots: Vec<Table>,
    quarantine: Vec<Table>,
    quarantined_roots: Vec<Table>,
    /// Root entry of the stub.
    stub_entry: u64,
}

impl TableZone {
    pub(crate) fn new(max: u32) -> Result<TableZone, Error> {
        let max = max.min((TABLES_LEN / PAGE_SIZE) as u32);
        let bytes = usize::try_from(TABLES_LEN).map_err(|_| Error::Invalid("table zone"))?;
        let memory = Reservation::lazy_memory(bytes)?;
        // Advice only; without THP in the kernel it is refused, which is as good.
        let _ = memory.advise(0, bytes, libc::MADV_NOHUGEPAGE);
        Ok(TableZone { memory, max, state: Mutex::new(State::default()) })
    }

    pub(crate) fn memory(&self) -> &Reservation {
        &self.memory
    }

    /// Sets the root entry that every root gets from now on.
    pub(crate) fn set_stub_entry(&self, entry: u64) {
        self.state.lock().stub_entry = entry;
    }

    /// An empty table. The caller makes sure that its memory slot exists.
    pub(crate) fn alloc(&self) -> Result<Table, OutOfMemory> {
        let mut state = self.state.lock();
        if let Some(table) = state.free.pop() {
            state.in_use += 1;
            return Ok(table);
        }
        self.grow(&mut state)
    }

    /// A root with nothing but the stub.
    pub(crate) fn alloc_root(&self) -> Result<Table, OutOfMemory> {
        let mut state = self.state.lock();
        if let Some(root) = state.free_roots.pop() {
            state.in_use += 1;
            return Ok(root);
        }
        let root = self.grow(&mut state)?;
        self.entry(root, CONTROL_ROOT_INDEX).store(state.stub_entry, Ordering::Release);
        Ok(root)
    }

    fn grow(&self, state: &mut State) -> Result<Table, OutOfMemory> {
        if state.frontier >= self.max {
            return Err(OutOfMemory);
        }
        let table = Table(state.frontier);
        state.frontier += 1;
        state.in_use += 1;
        Ok(table)
    }

    /// Takes unlinked tables back: to the free list at once, or to quarantine. Returns the length of the quarantine.
    pub(crate) fn free(&self, tables: &[Table], root: Option<Table>, quarantine: bool) -> usize {
        for table in tables {
            self.clear(*table, 0..ENTRIES);
        }
        if let Some(root) = root {
            self.clear(root, 0..ENTRIES / 2);
        }
        let mut state = self.state.lock();
        state.in_use = state.in_use.saturating_sub((tables.len() + usize::from(root.is_some())) as u32);
        if quarantine {
            state.quarantine.extend_from_slice(tables);
            state.quarantined_roots.extend(root);
        } else {
            state.free.extend_from_slice(tables);
            state.free_roots.extend(root);
        }
        state.quarantine.len() + state.quarantined_roots.len()
    }

    /// Whether the quarantine is worth a flush: too many pages, or more than half of the tables there are.
    pub(crate) fn quarantine_is_full(&self, bound: u32) -> bool {
        let state = self.state.lock();
        let held = state.quarantine.len() + state.quarantined_roots.len();
        held >= bound as usize || (state.frontier >= self.max && held > 0 && state.free.is_empty())
    }

    /// Runs `flush` and then makes all pages usable that were in quarantine before it began.
    pub(crate) fn release_quarantine(&self, flush: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        let (tables, roots) = {
            let mut state = self.state.lock();
            (std::mem::take(&mut state.quarantine), std::mem::take(&mut state.quarantined_roots))
        };
        let flushed = flush();
        let mut state = self.state.lock();
        if flushed.is_ok() {
            state.free.extend(tables);
            state.free_roots.extend(roots);
        } else {
            state.quarantine.extend(tables);
            state.quarantined_roots.extend(roots);
        }
        flushed
    }

    /// Tables linked into some address space.
    pub(crate) fn in_use(&self) -> u32 {
        self.state.lock().in_use
    }

    fn clear(&self, table: Table, indices: std::ops::Range<usize>) {
        for index in indices {
            let entry = self.entry(table, index);
            if entry.load(Ordering::Relaxed) != 0 {
                entry.store(0, Ordering::Release);
            }
        }
    }

    /// A slot in a page of the zone that is used for slots instead of entries.
    pub(crate) fn slot(&self, page: Table, offset: u64) -> SlotMemory {
        let at = page.0 as usize * PAGE_SIZE as usize + (offset % PAGE_SIZE) as usize;
        let pointer = self.memory.checked(at, LEN as usize).unwrap_or_else(|| foreign_table(page));
        // SAFETY: inside this zone, which is never unmapped while the machine lives and only accessed atomically; offsets of slots are
        // multiples of their length.
        unsafe { SlotMemory::new(pointer) }
    }

    /// A page of the zone that keeps a thread's registers instead of entries, and is page `number` of the user region.
    pub(crate) fn context(&self, page: Table, number: u32) -> Context {
        let at = page.0 as usize * PAGE_SIZE as usize;
        let pointer = self.memory.checked(at, PAGE_SIZE as usize).unwrap_or_else(|| foreign_table(page));
        // SAFETY: a page of this zone, which is never unmapped while the machine lives and only accessed atomically.
        unsafe { Context::new(pointer, number) }
    }

    /// One entry. The guest's CPU reads it at any time.
    pub(crate) fn entry(&self, table: Table, index: usize) -> &AtomicU64 {
        let offset = table.0 as usize * PAGE_SIZE as usize + (index % ENTRIES) * 8;
        let pointer = self.memory.checked(offset, 8).unwrap_or_else(|| foreign_table(table));
        // SAFETY: an aligned word of this zone, which lives for ever, is zero-initialised and only accessed atomically.
        unsafe { AtomicU64::from_ptr(pointer.cast()) }
    }
}

/// An entry that points outside of the zone was never written by this crate: only a bug of ours gets here.
#[cold]
fn foreign_table(table: Table) -> ! {
    panic!("table {} is not in the zone", table.0)
}
