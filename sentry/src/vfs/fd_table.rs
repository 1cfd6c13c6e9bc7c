//! Descriptor tables.
//!
//! Slots are behind a reader-writer lock that lookups hold only to clone an `Arc`; free numbers are found in a bitmap from
//! the lowest word that may have one. Descriptions are flushed and dropped after the lock is released: their
//! `release` may do anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::file::File;
use crate::errno::{Errno, SysResult};

/// Most descriptors a table can hold (`fs.nr_open`).
pub const NR_OPEN: u64 = 1 << 20;

/// A file descriptor as the guest names it: not negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fd(u32);

impl Fd {
    /// From a register; `EBADF` for a negative number.
    pub fn from_arg(raw: u64) -> SysResult<Fd> {
        u32::try_from(raw as u32 as i32).map(Fd).map_err(|_| Errno::EBADF)
    }

    /// Its number.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The descriptors of a process; shared between threads, copied by `fork`.
pub struct FdTable {
    id: u64,
    slots: RwLock<Slots>,
}

#[derive(Clone)]
struct Slot {
    file: Arc<File>,
    close_on_exec: bool,
}

#[derive(Clone, Default)]
struct Slots {
    slots: Vec<Option<Slot>>,
    /// Bit set: in use. As long as `slots` needs.
    used: Vec<u64>,
    /// No word below this one has a free bit.
    first_free_word: usize,
}

impl Slots {
    fn get(&self, index: usize) -> Option<&Slot> {
        self.slots.get(index).and_then(Option::as_ref)
    }

    fn lowest_free(&self, at_least: usize) -> usize {
        let mut word = (at_least / 64).max(self.first_free_word);
        let mut skip = if word == at_least / 64 { at_least % 64 } else { 0 };
        loop {
            let used = self.used.get(word).copied().unwrap_or(0) | ((1u64 << skip) - 1);
            if used != u64::MAX {
                return word * 64 + used.trailing_ones() as usize;
            }
            word += 1;
            skip = 0;
        }
    }

    fn put(&mut self, index: usize, slot: Slot) -> Option<Slot> {
        if self.slots.len() <= index {
            self.slots.resize(index + 1, None);
            self.used.resize(index / 64 + 1, 0);
        }
        if let Some(word) = self.used.get_mut(index / 64) {
            *word |= 1 << (index % 64);
        }
        while self.used.get(self.first_free_word) == Some(&u64::MAX) {
            self.first_free_word += 1;
        }
        self.slots.get_mut(index).and_then(|old| old.replace(slot))
    }

    fn take(&mut self, index: usize) -> Option<Slot> {
        let slot = self.slots.get_mut(index)?.take()?;
        if let Some(word) = self.used.get_mut(index / 64) {
            *word &= !(1 << (index % 64));
        }
        self.first_free_word = self.first_free_word.min(index / 64);
        Some(slot)
    }
}

impl Default for FdTable {
    fn default() -> Self {
        FdTable::with(Slots::default())
    }
}

impl FdTable {
    fn with(slots: Slots) -> FdTable {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        FdTable { id: NEXT.fetch_add(1, Ordering::Relaxed), slots: RwLock::new(slots) }
    }

    /// Its number, never used again: who owns a process's record locks.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The description behind `fd`; `EBADF` if there is none.
    pub fn get(&self, fd: Fd) -> SysResult<Arc<File>> {
        self.slots.read().get(fd.index()).map(|slot| slot.file.clone()).ok_or(Errno::EBADF)
    }

    /// Whether `fd` is closed by `execve`.
    pub fn close_on_exec(&self, fd: Fd) -> SysResult<bool> {
        self.slots.read().get(fd.index()).map(|slot| slot.close_on_exec).ok_or(Errno::EBADF)
    }

    /// Changes that.
    pub fn set_close_on_exec(&self, fd: Fd, close_on_exec: bool) -> SysResult {
        let mut slots = self.slots.write();
        let slot = slots.slots.get_mut(fd.index()).and_then(Option::as_mut).ok_or(Errno::EBADF)?;
        slot.close_on_exec = close_on_exec;
        Ok(())
    }

    /// Installs `file` at the lowest free number from `at_least` on, below `limit`; `EMFILE` if there is none.
    pub fn install(&self, file: Arc<File>, close_on_exec: bool, at_least: u32, limit: u64) -> SysResult<Fd> {
        let mut slots = self.slots.write();
        let index = slots.lowest_free(at_least as usize);
        let number = u32::try_from(index).map_err(|_| Errno::EMFILE)?;
        if u64::from(number) >= limit.min(NR_OPEN) {
            return Err(Errno::EMFILE);
        }
        slots.put(index, Slot { file, close_on_exec });
        Ok(Fd(number))
    }

    /// Installs `file` at `fd`, closing what was there (`dup2`). `EBADF` from `limit` on.
    pub fn install_at(&self, file: Arc<File>, close_on_exec: bool, fd: Fd, limit: u64) -> SysResult {
        if u64::from(fd.0) >= limit.min(NR_OPEN) {
            return Err(Errno::EBADF);
        }
        let old = self.slots.write().put(fd.index(), Slot { file, close_on_exec });
        if let Some(old) = old {
            let _ = self.let_go(&old.file);
        }
        Ok(())
    }

    /// Closes `fd`. `EBADF` if it is not open; otherwise it is closed, whatever error flushing gives.
    pub fn close(&self, fd: Fd) -> SysResult {
        let slot = self.slots.write().take(fd.index()).ok_or(Errno::EBADF)?;
        self.let_go(&slot.file)
    }

    /// What `close` does besides freeing the number.
    fn let_go(&self, file: &Arc<File>) -> SysResult {
        super::locks::release_process(file, self.id);
        file.ops().flush(file)
    }

    /// The first number beyond what Linux has room for in such a table. `select` looks no further, so programs can tell: the
    /// table grows when a descriptor needs it (`alloc_fdtable`), and only a copy is smaller again.
    pub fn reach(&self) -> usize {
        const IN_PLACE: usize = 64;
        const STEP: usize = 128;
        match self.slots.read().slots.len() {
            0..=IN_PLACE => IN_PLACE,
            len => len.div_ceil(STEP).next_power_of_two().saturating_mul(STEP),
        }
    }

    /// A copy for `fork`.
    pub fn fork(&self) -> FdTable {
        let mut slots = self.slots.read().clone();
        let last = slots.slots.iter().rposition(Option::is_some);
        slots.slots.truncate(last.map_or(0, |last| last + 1));
        slots.used.truncate(slots.slots.len().div_ceil(64));
        slots.first_free_word = slots.first_free_word.min(slots.used.len());
        FdTable::with(slots)
    }

    /// A copy without the descriptors in `first..=last` (`close_range` with `CLOSE_RANGE_UNSHARE`).
    pub fn fork_without(&self, first: u32, last: u32) -> FdTable {
        let copy = self.fork();
        copy.close_range(first, last);
        copy
    }

    fn take_where(&self, mut wanted: impl FnMut(usize, &Slot) -> bool) -> Vec<Arc<File>> {
        let mut slots = self.slots.write();
        let open = slots.slots.iter().enumerate();
        let found: Vec<usize> = open
            .filter(|(index, slot)| slot.as_ref().is_some_and(|slot| wanted(*index, slot)))
            .map(|(index, _)| index)
            .collect();
        found.into_iter().filter_map(|index| slots.take(index)).map(|slot| slot.file).collect()
    }

    /// Closes every descriptor in `first..=last`.
    pub fn close_range(&self, first: u32, last: u32) {
        let range = first as usize..=last as usize;
        for file in self.take_where(|index, _| range.contains(&index)) {
            let _ = self.let_go(&file);
        }
    }

    /// Marks every open descriptor in `first..=last` as closed by `execve`.
    pub fn mark_close_on_exec(&self, first: u32, last: u32) {
        let mut slots = self.slots.write();
        let open = slots.slots.iter_mut().enumerate().skip(first as usize);
        for (_, slot) in open.take_while(|(index, _)| *index <= last as usize) {
            if let Some(slot) = slot {
                slot.close_on_exec = true;
            }
        }
    }

    /// Closes every descriptor marked close-on-exec. The result holds their descriptions; drop it outside of locks.
    pub fn take_close_on_exec(&self) -> Vec<Arc<File>> {
        let files = self.take_where(|_, slot| slot.close_on_exec);
        for file in &files {
            let _ = self.let_go(file);
        }
        files
    }

    /// Every open descriptor and its description, in order (`/proc/*/fd`).
    pub fn list(&self) -> Vec<(Fd, Arc<File>)> {
        let slots = self.slots.read();
        let open = slots.slots.iter().enumerate();
        open.filter_map(|(index, slot)| Some((Fd(u32::try_from(index).ok()?), slot.as_ref()?.file.clone())))
            .collect()
    }
}

impl Drop for FdTable {
    fn drop(&mut self) {
        for file in self.take_where(|_, _| true) {
            let _ = self.let_go(&file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::anonymous::AnonymousInode;
    use crate::vfs::{FileOps, OpenFlags};

    struct Nothing;
    impl FileOps for Nothing {}

    fn file() -> Arc<File> {
        AnonymousInode::detached(Arc::new(Nothing), OpenFlags::RDWR)
    }

    #[test]
    fn numbers_are_the_lowest_free_ones() {
        let table = FdTable::default();
        for expected in 0..200 {
            assert_eq!(table.install(file(), false, 0, 1024), Ok(Fd(expected)));
        }
        for closed in [130, 3, 64] {
            table.close(Fd(closed)).unwrap();
        }
        assert_eq!(table.install(file(), false, 10, 1024), Ok(Fd(64)));
        assert_eq!(table.install(file(), false, 0, 1024), Ok(Fd(3)));
        assert_eq!(table.install(file(), false, 0, 1024), Ok(Fd(130)));
        assert_eq!(table.install(file(), false, 500, 1024), Ok(Fd(500)));
        assert_eq!(table.install(file(), false, 0, 1024), Ok(Fd(200)));
        assert_eq!(table.install(file(), false, 0, 201), Err(Errno::EMFILE));
        assert_eq!(table.install(file(), false, 1024, 1024), Err(Errno::EMFILE));
    }

    #[test]
    fn reaches_as_far_as_linuxs_table() {
        let table = FdTable::default();
        assert_eq!(table.reach(), 64);
        for (number, reach) in
            [(63, 64), (64, 128), (127, 128), (128, 256), (255, 256), (256, 512), (900, 1024)]
        {
            table.install_at(file(), false, Fd(number), 1024).unwrap();
            assert_eq!(table.reach(), reach, "{number}");
        }
        table.close(Fd(900)).unwrap();
        assert_eq!((table.reach(), table.fork().reach()), (1024, 512));
        table.close_range(0, 2000);
        let copy = table.fork();
        assert_eq!((copy.reach(), copy.install(file(), false, 0, 1024)), (64, Ok(Fd(0))));
    }

    #[test]
    fn agrees_with_a_model() {
        let table = FdTable::default();
        let mut model = std::collections::BTreeSet::new();
        let mut seed = 7u64;
        for _ in 0..4000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let number = (seed >> 33) as u32 % 300;
            match seed >> 62 {
                0 => assert_eq!(table.close(Fd(number)).is_ok(), model.remove(&number)),
                1 => {
                    table.install_at(file(), false, Fd(number), 1024).unwrap();
                    model.insert(number);
                }
                _ => {
                    let free = (number / 4..).find(|n| !model.contains(n)).unwrap();
                    assert_eq!(table.install(file(), false, number / 4, 100_000), Ok(Fd(free)));
                    model.insert(free);
                }
            }
        }
        let open: Vec<u32> = table.list().iter().map(|(fd, _)| fd.0).collect();
        assert!(open.iter().eq(model.iter()));
    }

    #[test]
    fn close_on_exec_belongs_to_the_descriptor() {
        let table = FdTable::default();
        let shared = file();
        let one = table.install(shared.clone(), true, 0, 1024).unwrap();
        let two = table.install(shared, false, 0, 1024).unwrap();
        assert_eq!(table.take_close_on_exec().len(), 1);
        assert_eq!(table.get(one).err(), Some(Errno::EBADF));
        assert!(table.get(two).is_ok());
    }
}
