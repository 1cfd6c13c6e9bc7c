//! Priority-inheritance futexes, without the inheritance: every thread has the same priority here, so what is left is that the
//! word names its owner and is handed to the longest waiter.

use std::sync::Arc;
use std::time::Instant;

use linux_raw_sys::general as linux;

use super::{Futexes, MATCH_ANY, Queued, Sleeper, Woken, Word};
use crate::errno::{Errno, SysResult};
use crate::mm::Mm;
use crate::task::Task;

/// Whether a lock attempt may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// `FUTEX_TRYLOCK_PI`.
    Once,
    /// `FUTEX_LOCK_PI`, until a deadline.
    Until(Option<Instant>),
}

impl Futexes {
    /// Takes the lock. `EDEADLK` if the caller has it, `ESRCH` if its owner does not exist, `EAGAIN` for a failed single attempt.
    pub fn lock_pi(&self, task: &Arc<Task>, word: Word, attempt: Attempt) -> SysResult {
        let mm = task.mm();
        let key = mm.futex_key(word.addr, word.scope)?;
        let me = task.tid().unsigned_abs() & linux::FUTEX_TID_MASK;
        mm.load_u32(word.addr)?;
        task.waiter().arm();
        let sleeper = loop {
            let mut bucket = self.bucket(self.index(&key))?;
            let old = mm.load_u32(word.addr)?;
            let owner = old & linux::FUTEX_TID_MASK;
            if owner == me {
                return Err(Errno::EDEADLK);
            }
            if owner == 0 {
                let waiters = bucket.iter().any(|queued| queued.key == key && queued.pi_tid.is_some());
                let flag = if waiters { linux::FUTEX_WAITERS } else { 0 };
                let new = me | flag | (old & linux::FUTEX_OWNER_DIED);
                if mm.compare_exchange_u32(word.addr, old, new)? == old {
                    return Ok(());
                }
                continue;
            }
            let Attempt::Until(_) = attempt else { return Err(Errno::EAGAIN) };
            let exists = i32::try_from(owner).ok().and_then(|tid| task.pid_namespace()?.task(tid)).is_some();
            if !exists {
                return Err(Errno::ESRCH);
            }
            let contended = old | linux::FUTEX_WAITERS;
            if mm.compare_exchange_u32(word.addr, old, contended)? != old {
                continue;
            }
            let sleeper = Sleeper::new(task, &key, None);
            bucket.push_back(Queued { key, bitset: MATCH_ANY, sleeper: sleeper.clone(), pi_tid: Some(me) });
            break sleeper;
        };
        let Attempt::Until(deadline) = attempt else { return Err(Errno::EAGAIN) };
        match self.sleep(task, &[sleeper], deadline) {
            Ok(_) => Ok(()),
            // Linux restarts an interrupted lock always.
            Err(Errno::ERESTARTSYS) => Err(Errno::ERESTARTNOINTR),
            Err(errno) => Err(errno),
        }
    }

    /// Gives the lock to the longest waiter, or frees it. `EPERM` for somebody who has not got it.
    pub fn unlock_pi(&self, task: &Arc<Task>, word: Word) -> SysResult {
        let mm = task.mm();
        let key = mm.futex_key(word.addr, word.scope)?;
        let me = task.tid().unsigned_abs() & linux::FUTEX_TID_MASK;
        mm.load_u32(word.addr)?;
        let mut bucket = self.bucket(self.index(&key))?;
        loop {
            let old = mm.load_u32(word.addr)?;
            if old & linux::FUTEX_TID_MASK != me {
                return Err(Errno::EPERM);
            }
            let mut waiters = bucket.iter().enumerate().filter(|(_, q)| q.key == key && q.pi_tid.is_some());
            let next = waiters.next().map(|(index, queued)| (index, queued.pi_tid.unwrap_or(0)));
            let more = if waiters.next().is_some() { linux::FUTEX_WAITERS } else { 0 };
            let new = next.map_or(0, |(_, tid)| tid | more);
            if mm.compare_exchange_u32(word.addr, old, new)? != old {
                continue;
            }
            let mut woken = Woken::default();
            if let Some(queued) = next.and_then(|(index, _)| bucket.remove(index)) {
                woken.add(queued.sleeper);
            }
            drop(bucket);
            woken.notify();
            return Ok(());
        }
    }

    /// The owner died: the longest waiter gets the lock, which stays marked.
    pub(super) fn hand_over_dead(&self, mm: &Mm, word: Word) -> SysResult {
        let key = mm.futex_key(word.addr, word.scope)?;
        let mut bucket = self.bucket(self.index(&key))?;
        let Some(index) = bucket.iter().position(|queued| queued.key == key && queued.pi_tid.is_some())
        else {
            return Ok(());
        };
        let Some(queued) = bucket.remove(index) else { return Ok(()) };
        let more = bucket.iter().any(|other| other.key == key && other.pi_tid.is_some());
        let waiters = if more { linux::FUTEX_WAITERS } else { 0 };
        let new = queued.pi_tid.unwrap_or(0) | waiters | linux::FUTEX_OWNER_DIED;
        mm.fetch_update_u32(word.addr, |_| new)?;
        let mut woken = Woken::default();
        woken.add(queued.sleeper);
        drop(bucket);
        woken.notify();
        Ok(())
    }
}
