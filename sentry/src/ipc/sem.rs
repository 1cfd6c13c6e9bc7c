//! Semaphore sets (`semop(2)`).
//!
//! The operations of one call happen all or not at all. A call that cannot proceed notes what it waits for, so that
//! `GETNCNT` and `GETZCNT` can tell, and tries again whenever the set changes.
//!
//! What a process has to give back when it ends is kept with the set, by the number of its [`super::undo::UndoList`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::ids::{Ids, Object, Perm, linux_flags};
use super::{Actor, now};
use crate::errno::{Errno, SysResult};
use crate::wait::{PollEvents, WaitQueue};

/// Most sets, most semaphores of a set, of all sets, and most operations of a call (`kernel.sem`). Linux allows a thousand
/// times as many semaphores and counts on the memory cgroup.
pub const MAX_SETS: usize = 32_000;
/// See [`MAX_SETS`].
pub const MAX_PER_SET: usize = 32_000;
/// See [`MAX_SETS`].
pub const MAX_SEMAPHORES: usize = 1_024_000;
/// See [`MAX_SETS`].
pub const MAX_OPERATIONS: usize = 500;
/// Highest value (`SEMVMX`), and furthest adjustment at exit (`SEMAEM`).
pub const MAX_VALUE: i32 = 32_767;

/// `struct sembuf`
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Operation {
    /// Which semaphore.
    pub number: u16,
    /// What is added; 0 waits for zero.
    pub change: i16,
    /// `IPC_NOWAIT`, `SEM_UNDO`.
    pub flags: i16,
}

impl Operation {
    fn has(self, flag: i32) -> bool {
        i32::from(self.flags) & flag != 0
    }

    /// Whether it is undone when the process ends.
    pub fn undoes(self) -> bool {
        self.has(libc::SEM_UNDO)
    }
}

/// The sets of a namespace.
pub struct Sets {
    ids: Ids<Set>,
    /// Semaphores of all sets.
    total: Arc<AtomicUsize>,
}

impl Default for Sets {
    fn default() -> Self {
        Sets { ids: Ids::new(MAX_SETS), total: Arc::default() }
    }
}

impl std::ops::Deref for Sets {
    type Target = Ids<Set>;

    fn deref(&self) -> &Ids<Set> {
        &self.ids
    }
}

impl Sets {
    /// Semaphores of all sets.
    pub fn semaphores(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    /// A set of `len` semaphores, to be put into the table. `ENOSPC` when there are too many semaphores.
    pub fn make(&self, perm: Perm, len: usize) -> SysResult<Arc<Set>> {
        let room = |used: usize| used.checked_add(len).filter(|sum| *sum <= MAX_SEMAPHORES);
        self.total.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).map_err(|_| Errno::ENOSPC)?;
        Ok(Arc::new(Set::new(perm, len, self.total.clone())))
    }

    /// `IPC_RMID`: who waits gets `EIDRM`.
    pub fn destroy(&self, set: &Set) -> SysResult {
        self.remove(set)?;
        set.queue.notify(PollEvents::READABLE);
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Semaphore {
    value: u16,
    /// The last process that changed it (`sempid`).
    last: Actor,
}

/// What a waiting call waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// That a semaphore grows.
    Growth(u16),
    /// That a semaphore is zero.
    Zero(u16),
}

struct State {
    semaphores: Vec<Semaphore>,
    /// What is added at the end of a process, by the number of its list.
    undo: BTreeMap<u64, BTreeMap<u16, i16>>,
    waiting: BTreeMap<u64, Awaited>,
    next_ticket: u64,
    operated: i64,
    changed: i64,
}

/// A set.
pub struct Set {
    perm: Mutex<Perm>,
    state: Mutex<State>,
    queue: WaitQueue,
    len: usize,
    total: Arc<AtomicUsize>,
}

impl Drop for Set {
    fn drop(&mut self) {
        self.total.fetch_sub(self.len, Ordering::Relaxed);
    }
}

impl Object for Set {
    fn perm(&self) -> &Mutex<Perm> {
        &self.perm
    }
}

impl Set {
    /// `len` semaphores of value 0, which `total` has counted.
    fn new(perm: Perm, len: usize, total: Arc<AtomicUsize>) -> Set {
        let state = State {
            semaphores: vec![Semaphore::default(); len],
            undo: BTreeMap::new(),
            waiting: BTreeMap::new(),
            next_ticket: 0,
            operated: 0,
            changed: now(),
        };
        Set { perm: Mutex::new(perm), state: Mutex::new(state), queue: WaitQueue::new(), len, total }
    }

    /// Semaphores in the set.
    pub fn len(&self) -> usize {
        self.len
    }

    /// A set is never empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Notified when something changes.
    pub fn queue(&self) -> &WaitQueue {
        &self.queue
    }

    /// `sem_otime` and `sem_ctime`.
    pub fn times(&self) -> (i64, i64) {
        let state = self.state.lock();
        (state.operated, state.changed)
    }

    /// Notes a change of its permissions.
    pub fn note_changed(&self) {
        self.state.lock().changed = now();
    }

    /// Carries `operations` out, by `who` with the undo list `list`. `EAGAIN`: the call has to wait, and what for is in
    /// `ticket`. With `IPC_NOWAIT` `forbidden` is set as well. `ERANGE`, `EIDRM`.
    pub fn operate(
        &self,
        operations: &[Operation],
        who: Actor,
        list: Option<u64>,
        wait: &mut Waiting<'_>,
    ) -> SysResult {
        if self.perm.lock().removed {
            return Err(Errno::EIDRM);
        }
        let mut state = self.state.lock();
        let outcome = state.try_all(operations, list);
        match outcome {
            Ok(()) => {}
            Err(Blocked::Never(errno)) => return Err(errno),
            Err(Blocked::Now(operation)) => {
                wait.forbidden = operation.has(linux_flags::IPC_NOWAIT);
                if !wait.forbidden {
                    let awaited = match operation.change {
                        0 => Awaited::Zero(operation.number),
                        _ => Awaited::Growth(operation.number),
                    };
                    let ticket = *wait.ticket.get_or_insert_with(|| {
                        state.next_ticket = state.next_ticket.wrapping_add(1);
                        state.next_ticket
                    });
                    state.waiting.insert(ticket, awaited);
                }
                return Err(Errno::EAGAIN);
            }
        }
        state.operated = now();
        for operation in operations {
            if let Some(semaphore) = state.semaphores.get_mut(usize::from(operation.number)) {
                semaphore.last = who;
            }
        }
        drop(state);
        if operations.iter().any(|operation| operation.change != 0) {
            self.queue.notify(PollEvents::READABLE);
        }
        Ok(())
    }

    fn with<T>(&self, number: i32, act: impl FnOnce(&mut Semaphore) -> T) -> SysResult<T> {
        let number = usize::try_from(number).map_err(|_| Errno::EINVAL)?;
        self.state.lock().semaphores.get_mut(number).map(act).ok_or(Errno::EINVAL)
    }

    /// `GETVAL`; `EINVAL` for a semaphore that is not there.
    pub fn value(&self, number: i32) -> SysResult<u16> {
        self.with(number, |semaphore| semaphore.value)
    }

    /// `GETPID`
    pub fn last(&self, number: i32) -> SysResult<Actor> {
        self.with(number, |semaphore| semaphore.last)
    }

    /// `GETNCNT`, `GETZCNT`: calls that wait for this.
    pub fn waiting_for(&self, awaited: Awaited) -> usize {
        self.state.lock().waiting.values().filter(|waits| **waits == awaited).count()
    }

    /// `GETALL`
    pub fn values(&self) -> Vec<u16> {
        self.state.lock().semaphores.iter().map(|semaphore| semaphore.value).collect()
    }

    /// `SETVAL`, `SETALL`: sets consecutive values, and forgets what would be undone. `ERANGE`, `EINVAL`, `EIDRM`.
    pub fn set(&self, first: i32, values: &[u16], who: Actor) -> SysResult {
        if values.iter().any(|value| i32::from(*value) > MAX_VALUE) {
            return Err(Errno::ERANGE);
        }
        let first = usize::try_from(first).map_err(|_| Errno::EINVAL)?;
        if self.perm.lock().removed {
            return Err(Errno::EIDRM);
        }
        let mut state = self.state.lock();
        let State { semaphores, undo, changed, .. } = &mut *state;
        let range = first..first.checked_add(values.len()).ok_or(Errno::EINVAL)?;
        for (semaphore, value) in
            semaphores.get_mut(range.clone()).ok_or(Errno::EINVAL)?.iter_mut().zip(values)
        {
            *semaphore = Semaphore { value: *value, last: who };
        }
        for list in undo.values_mut() {
            list.retain(|number, _| !range.contains(&usize::from(*number)));
        }
        *changed = now();
        drop(state);
        self.queue.notify(PollEvents::READABLE);
        Ok(())
    }

    /// The end of a process: gives back what its list says.
    pub fn undo(&self, list: u64, who: Actor) {
        let mut state = self.state.lock();
        let Some(adjustments) = state.undo.remove(&list) else { return };
        for (number, adjustment) in adjustments {
            if let Some(semaphore) = state.semaphores.get_mut(usize::from(number)) {
                let value = i32::from(semaphore.value).saturating_add(i32::from(adjustment));
                semaphore.value = u16::try_from(value.clamp(0, MAX_VALUE)).unwrap_or(0);
                semaphore.last = who;
            }
        }
        state.operated = now();
        drop(state);
        self.queue.notify(PollEvents::READABLE);
    }
}

/// Why a call cannot proceed.
enum Blocked {
    /// It has to wait for this operation.
    Now(Operation),
    /// It never will.
    Never(Errno),
}

impl State {
    fn try_all(&mut self, operations: &[Operation], list: Option<u64>) -> Result<(), Blocked> {
        // Later operations see what earlier ones have done.
        let mut values: BTreeMap<u16, i32> = BTreeMap::new();
        let mut undo = list.and_then(|list| self.undo.get(&list).cloned()).unwrap_or_default();
        for operation in operations {
            let now =
                self.semaphores.get(usize::from(operation.number)).ok_or(Blocked::Never(Errno::EFBIG))?;
            let value = values.entry(operation.number).or_insert(i32::from(now.value));
            let change = i32::from(operation.change);
            let result = value.saturating_add(change);
            if (change == 0 && *value != 0) || result < 0 {
                return Err(Blocked::Now(*operation));
            }
            if result > MAX_VALUE {
                return Err(Blocked::Never(Errno::ERANGE));
            }
            if operation.undoes() {
                let adjustment = undo.entry(operation.number).or_insert(0);
                let new = i32::from(*adjustment).saturating_sub(change);
                let allowed = (-MAX_VALUE - 1..=MAX_VALUE).contains(&new);
                *adjustment =
                    i16::try_from(new).ok().filter(|_| allowed).ok_or(Blocked::Never(Errno::ERANGE))?;
            }
            *value = result;
        }
        for (number, value) in values {
            if let Some(semaphore) = self.semaphores.get_mut(usize::from(number)) {
                semaphore.value = u16::try_from(value).unwrap_or(0);
            }
        }
        undo.retain(|_, adjustment| *adjustment != 0);
        if let Some(list) = list {
            if undo.is_empty() {
                self.undo.remove(&list);
            } else {
                self.undo.insert(list, undo);
            }
        }
        Ok(())
    }
}

/// The place of a call among those that wait for a set; it leaves when this is dropped.
pub struct Waiting<'a> {
    set: &'a Set,
    ticket: Option<u64>,
    /// The operation that cannot proceed must not wait.
    pub forbidden: bool,
}

impl<'a> Waiting<'a> {
    /// A call on `set` that does not wait yet.
    pub fn new(set: &'a Set) -> Waiting<'a> {
        Waiting { set, ticket: None, forbidden: false }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.set.state.lock().waiting.remove(&ticket);
        }
    }
}
