//! File locks: record locks of processes (`fcntl`), of descriptions (`F_OFD_*`), and `flock`.
//!
//! They hang on the inode. A process's locks belong to its descriptor table and go with the first descriptor of the file it
//! closes; the others go with the description. Waiting is the caller's ([`crate::task::block`] on [`FileLocks::queue`]); while a
//! process waits it is entered in [`Waiting`], which finds deadlocks.
//!
//! Lock order: an inode's lock list, then the table of who waits for whom; both leaves.
//!
//! Not there yet: locks are not seen by other users of a shared bind mount outside the sandbox.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;

use super::file::File;
use crate::errno::{Errno, SysResult};
use crate::wait::{PollEvents, WaitQueue};

/// Last byte a lock can cover: to the end of the file, however long it gets.
pub const LAST: u64 = i64::MAX as u64;

/// Most records on one file.
const RECORDS_MAX: usize = 65_536;

/// Longest chain of waiting processes that is searched for a deadlock, as Linux.
const CHAIN_MAX: usize = 10;

/// Who owns a record lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A process, by its descriptor table's number.
    Process(u64),
    /// A description, by its address.
    Description(usize),
}

impl Owner {
    /// The description as an owner.
    pub fn description(file: &Arc<File>) -> Owner {
        Owner::Description(Arc::as_ptr(file).addr())
    }
}

/// Shared or exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `F_RDLCK`, `LOCK_SH`
    Shared,
    /// `F_WRLCK`, `LOCK_EX`
    Exclusive,
}

/// A locked range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Whose.
    pub owner: Owner,
    /// What `F_GETLK` shows: the process, or -1.
    pub pid: i32,
    /// Shared or exclusive.
    pub mode: Mode,
    /// First byte.
    pub first: u64,
    /// Last byte, at most [`LAST`].
    pub last: u64,
}

impl Record {
    fn overlaps(&self, first: u64, last: u64) -> bool {
        self.first <= last && first <= self.last
    }

    fn conflicts(&self, other: &Record) -> bool {
        self.owner != other.owner
            && self.overlaps(other.first, other.last)
            && (self.mode == Mode::Exclusive || other.mode == Mode::Exclusive)
    }
}

/// The locks of one inode.
#[derive(Default)]
pub struct FileLocks {
    state: Mutex<State>,
    queue: WaitQueue,
}

#[derive(Default)]
struct State {
    /// In order of their first byte.
    records: Vec<Record>,
    whole: Vec<(usize, Mode)>,
}

impl State {
    /// Cuts `first..=last` out of the owner's records.
    fn cut(&mut self, owner: Owner, first: u64, last: u64) {
        let mut kept = Vec::with_capacity(self.records.len());
        for record in self.records.drain(..) {
            if record.owner != owner || !record.overlaps(first, last) {
                kept.push(record);
                continue;
            }
            if record.first < first {
                kept.push(Record { last: first.saturating_sub(1), ..record });
            }
            if record.last > last {
                kept.push(Record { first: last.saturating_add(1), ..record });
            }
        }
        self.records = kept;
    }

    /// Adds a record that overlaps none of its owner's, joined with neighbours of the same mode.
    fn add(&mut self, mut new: Record) {
        self.records.retain(|old| {
            let same = old.owner == new.owner && old.mode == new.mode;
            let touches = same
                && (old.last.checked_add(1) == Some(new.first) || new.last.checked_add(1) == Some(old.first));
            if touches {
                new.first = new.first.min(old.first);
                new.last = new.last.max(old.last);
            }
            !touches
        });
        let at = self.records.partition_point(|record| record.first < new.first);
        self.records.insert(at, new);
    }
}

impl FileLocks {
    /// Notified (`IN`) when a lock goes.
    pub fn queue(&self) -> &WaitQueue {
        &self.queue
    }

    /// A lock that keeps `wanted` from being set (`F_GETLK`).
    pub fn conflict(&self, wanted: &Record) -> Option<Record> {
        self.state.lock().records.iter().find(|record| record.conflicts(wanted)).copied()
    }

    /// Sets `wanted` in place of whatever its owner has there. `Err` holds the lock that is in the way.
    pub fn try_set(&self, wanted: Record) -> Result<(), Blocked> {
        let mut state = self.state.lock();
        if let Some(record) = state.records.iter().find(|record| record.conflicts(&wanted)) {
            return Err(Blocked::By(record.owner));
        }
        if state.records.len() >= RECORDS_MAX {
            return Err(Blocked::Full);
        }
        let weaker = state.records.iter().any(|record| {
            record.owner == wanted.owner
                && record.mode == Mode::Exclusive
                && wanted.mode == Mode::Shared
                && record.overlaps(wanted.first, wanted.last)
        });
        state.cut(wanted.owner, wanted.first, wanted.last);
        state.add(wanted);
        drop(state);
        if weaker {
            self.queue.notify(PollEvents::IN);
        }
        Ok(())
    }

    /// Unlocks `first..=last` of the owner's. `ENOLCK` if that needs a record too many.
    pub fn unlock(&self, owner: Owner, first: u64, last: u64) -> SysResult {
        let mut state = self.state.lock();
        if !state.records.iter().any(|record| record.owner == owner && record.overlaps(first, last)) {
            return Ok(());
        }
        if state.records.len() >= RECORDS_MAX && first > 0 && last < LAST {
            return Err(Errno::ENOLCK);
        }
        state.cut(owner, first, last);
        drop(state);
        self.queue.notify(PollEvents::IN);
        Ok(())
    }

    /// `flock`: `EAGAIN` if another description has it. As on Linux a change of mode gives the old lock up first.
    pub fn try_flock(&self, file: &Arc<File>, mode: Mode) -> SysResult {
        let owner = Arc::as_ptr(file).addr();
        let mut state = self.state.lock();
        if state.whole.contains(&(owner, mode)) {
            return Ok(());
        }
        let before = state.whole.len();
        state.whole.retain(|(known, _)| *known != owner);
        let gave_up = state.whole.len() != before;
        let blocked =
            state.whole.iter().any(|(_, other)| mode == Mode::Exclusive || *other == Mode::Exclusive);
        if !blocked {
            state.whole.push((owner, mode));
        }
        drop(state);
        if gave_up {
            self.queue.notify(PollEvents::IN);
        }
        if blocked { Err(Errno::EAGAIN) } else { Ok(()) }
    }

    /// `flock(LOCK_UN)`.
    pub fn flock_release(&self, owner: usize) {
        let mut state = self.state.lock();
        let before = state.whole.len();
        state.whole.retain(|(known, _)| *known != owner);
        let changed = state.whole.len() != before;
        drop(state);
        if changed {
            self.queue.notify(PollEvents::IN);
        }
    }

    fn release(&self, owner: Owner) {
        let _ = self.unlock(owner, 0, LAST);
    }
}

/// Why a lock was not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// Somebody has it.
    By(Owner),
    /// There are too many.
    Full,
}

/// Removes the record locks that the process with this descriptor table has on the file.
pub(super) fn release_process(file: &Arc<File>, table: u64) {
    if let Some(locks) = file.inode().attachments().locks_if_any() {
        locks.release(Owner::Process(table));
    }
}

/// Removes the locks of a description that is going away.
pub(super) fn release_description(file: &File) {
    if let Some(locks) = file.inode().attachments().locks_if_any() {
        let address = std::ptr::from_ref(file).addr();
        locks.release(Owner::Description(address));
        locks.flock_release(address);
    }
}

/// A process waiting for a record lock, entered while this lives.
pub struct Waiting(Owner);

fn waiting() -> &'static Mutex<HashMap<Owner, Owner>> {
    static WAITING: LazyLock<Mutex<HashMap<Owner, Owner>>> = LazyLock::new(Mutex::default);
    &WAITING
}

impl Waiting {
    /// Enters that `owner` waits for `holder`; `EDEADLK` if `holder` waits, directly or not, for `owner`.
    pub fn enter(owner: Owner, holder: Owner) -> SysResult<Waiting> {
        let mut waiting = waiting().lock();
        let mut at = holder;
        for _ in 0..CHAIN_MAX {
            if at == owner {
                return Err(Errno::EDEADLK);
            }
            match waiting.get(&at) {
                Some(next) => at = *next,
                None => break,
            }
        }
        waiting.insert(owner, holder);
        Ok(Waiting(owner))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        waiting().lock().remove(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(owner: u64, mode: Mode, first: u64, last: u64) -> Record {
        Record { owner: Owner::Process(owner), pid: owner as i32, mode, first, last }
    }

    /// One byte at a time: owner and mode of each of 64 bytes.
    #[derive(Default)]
    struct Model(Vec<HashMap<u64, Mode>>);

    impl Model {
        fn set(&mut self, owner: u64, mode: Option<Mode>, first: u64, last: u64) -> bool {
            self.0.resize(64, HashMap::new());
            let range = first as usize..=last as usize;
            if let Some(mode) = mode {
                let blocked = self.0[range.clone()].iter().any(|byte| {
                    byte.iter()
                        .any(|(o, m)| *o != owner && (mode == Mode::Exclusive || *m == Mode::Exclusive))
                });
                if blocked {
                    return false;
                }
            }
            for byte in &mut self.0[range] {
                match mode {
                    Some(mode) => byte.insert(owner, mode),
                    None => byte.remove(&owner),
                };
            }
            true
        }
    }

    #[test]
    fn records_agree_with_a_byte_model() {
        let locks = FileLocks::default();
        let mut model = Model::default();
        let mut seed = 3u64;
        for _ in 0..20_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let owner = (seed >> 60) % 3;
            let first = (seed >> 50) % 64;
            let last = (first + (seed >> 40) % 16).min(63);
            let mode = match (seed >> 33) % 3 {
                0 => None,
                1 => Some(Mode::Shared),
                _ => Some(Mode::Exclusive),
            };
            let expected = model.set(owner, mode, first, last);
            let got = match mode {
                None => locks.unlock(Owner::Process(owner), first, last).is_ok(),
                Some(mode) => locks.try_set(record(owner, mode, first, last)).is_ok(),
            };
            assert_eq!(got, expected);
        }
        let mut bytes = vec![HashMap::new(); 64];
        for record in &locks.state.lock().records {
            let Owner::Process(owner) = record.owner else { panic!() };
            for byte in &mut bytes[record.first as usize..=record.last as usize] {
                assert_eq!(byte.insert(owner, record.mode), None, "records of an owner overlap");
            }
        }
        assert_eq!(bytes, model.0);
    }

    #[test]
    fn neighbours_join() {
        let locks = FileLocks::default();
        for first in [0, 20, 10] {
            locks.try_set(record(1, Mode::Shared, first, first + 9)).unwrap();
        }
        assert_eq!(locks.state.lock().records, vec![record(1, Mode::Shared, 0, 29)]);
    }

    #[test]
    fn circles_are_found() {
        let owner = |n| Owner::Process(u64::MAX - n);
        let _one = Waiting::enter(owner(1), owner(2)).unwrap();
        let _two = Waiting::enter(owner(2), owner(3)).unwrap();
        assert_eq!(Waiting::enter(owner(3), owner(1)).err(), Some(Errno::EDEADLK));
        assert!(Waiting::enter(owner(3), owner(4)).is_ok());
    }
}
