//! Futexes: sleeping on a word of guest memory.
//!
//! Waiters of a key are in the bucket its hash selects. The word is compared under the bucket's lock and wakers take that lock
//! after they have changed the word, so no wake-up is lost. Woken waiters are taken out of the bucket by the waker and notified
//! after its lock is released; nobody wakes in vain.
//!
//! Locks: two buckets at a time in the order of their index; under a bucket only memory access (which may take the address space's
//! locks) and a waiter's own lock.
//!
//! Not there: `FUTEX_WAIT_REQUEUE_PI`, `FUTEX_CMP_REQUEUE_PI`.

pub mod pi;
pub mod robust;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};

use super::handover::Handover;
use super::{AfterCall, SyscallContext, Task, ride};
use crate::errno::{Errno, SysResult};
use crate::mm::{FutexKey, FutexScope, Mm};
use crate::platform::Kicker;
use crate::wait::{self, WaitOutcome, Waiter};

/// Buckets; a power of two.
const BUCKETS: usize = 256;
/// Matches every waiter.
pub const MATCH_ANY: u32 = u32::MAX;

/// Every futex of the sandbox that somebody waits on.
pub struct Futexes {
    hasher: RandomState,
    buckets: Vec<Mutex<Bucket>>,
}

type Bucket = VecDeque<Queued>;

/// A waiter's place in a bucket.
struct Queued {
    key: FutexKey,
    bitset: u32,
    sleeper: Arc<Sleeper>,
    /// The thread id the word gets when it is handed over (priority-inheritance futexes).
    pi_tid: Option<u32>,
}

/// A waiting thread.
pub(super) struct Sleeper {
    waiter: Arc<Waiter>,
    woken: AtomicBool,
    /// Its task, if the thread waits in a way that lets it go on in another's vCPU.
    parked: Option<Parked>,
    /// Where it is queued; a requeue changes it. With several words (`futex_waitv`) each has its own sleeper.
    key: Mutex<FutexKey>,
}

/// See [`super::ride`].
pub(super) struct Parked {
    pub home: Weak<Handover>,
    /// Its host thread is in the guest, for another task, and must be got out to notice anything.
    pub carrier: Option<Kicker>,
}

/// What a waiting call names.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    pub word: Word,
    pub expected: u32,
    pub bitset: u32,
}

impl Sleeper {
    fn new(task: &Task, key: &FutexKey, parked: Option<Parked>) -> Arc<Sleeper> {
        let (waiter, key) = (task.waiter().clone(), Mutex::new(key.clone()));
        Arc::new(Sleeper { waiter, woken: AtomicBool::new(false), parked, key })
    }

    /// Where its private half is, if it can be handed a vCPU.
    pub(super) fn home(&self) -> Option<Arc<Handover>> {
        self.parked.as_ref()?.home.upgrade()
    }

    /// Tells its thread that it is woken.
    pub(super) fn notify(&self) {
        self.waiter.notify();
        if let Some(Parked { carrier: Some(kicker), .. }) = &self.parked {
            kicker.kick();
        }
    }

    pub(super) fn is_woken(&self) -> bool {
        self.woken.load(Ordering::Acquire)
    }
}

/// Sleepers to notify once no lock is held.
#[derive(Default)]
struct Woken(Vec<Arc<Sleeper>>);

impl Woken {
    fn add(&mut self, sleeper: Arc<Sleeper>) {
        sleeper.woken.store(true, Ordering::Release);
        self.0.push(sleeper);
    }

    fn notify(self) -> usize {
        match &self.0[..] {
            [only] if ride::hold(only) => {}
            all => all.iter().for_each(|sleeper| sleeper.notify()),
        }
        self.0.len()
    }
}

impl Default for Futexes {
    fn default() -> Self {
        let buckets = (0..BUCKETS).map(|_| Mutex::default()).collect();
        Futexes { hasher: RandomState::new(), buckets }
    }
}

/// A futex word as a call names it.
#[derive(Clone, Copy, Debug)]
pub struct Word {
    /// Its address.
    pub addr: u64,
    /// Who may share it.
    pub scope: FutexScope,
}

/// What `FUTEX_WAKE_OP` does to the second word and how it compares its old value.
#[derive(Clone, Copy, Debug)]
pub struct WakeOp {
    op: u32,
    cmp: u32,
    oparg: u32,
    cmparg: i32,
}

impl WakeOp {
    /// Decodes the argument; `ENOSYS` for unknown operations.
    pub fn decode(raw: u32) -> SysResult<WakeOp> {
        use linux_raw_sys::general as linux;
        let sign_extend = |value: u32| ((value << 20) as i32) >> 20;
        let (op, cmp) = ((raw >> 28) & 7, (raw >> 24) & 15);
        let mut oparg = sign_extend(raw >> 12) as u32;
        if (raw >> 28) & linux::FUTEX_OP_OPARG_SHIFT != 0 {
            oparg = 1u32.wrapping_shl(oparg & 31);
        }
        if op > linux::FUTEX_OP_XOR || cmp > linux::FUTEX_OP_CMP_GE {
            return Err(Errno::ENOSYS);
        }
        Ok(WakeOp { op, cmp, oparg, cmparg: sign_extend(raw) })
    }

    fn apply(self, old: u32) -> u32 {
        use linux_raw_sys::general as linux;
        match self.op {
            linux::FUTEX_OP_SET => self.oparg,
            linux::FUTEX_OP_ADD => old.wrapping_add(self.oparg),
            linux::FUTEX_OP_OR => old | self.oparg,
            linux::FUTEX_OP_ANDN => old & !self.oparg,
            _ => old ^ self.oparg,
        }
    }

    fn compare(self, old: u32) -> bool {
        use linux_raw_sys::general as linux;
        let (old, arg) = (old as i32, self.cmparg);
        match self.cmp {
            linux::FUTEX_OP_CMP_EQ => old == arg,
            linux::FUTEX_OP_CMP_NE => old != arg,
            linux::FUTEX_OP_CMP_LT => old < arg,
            linux::FUTEX_OP_CMP_LE => old <= arg,
            linux::FUTEX_OP_CMP_GT => old > arg,
            _ => old >= arg,
        }
    }
}

impl Futexes {
    fn index(&self, key: &FutexKey) -> usize {
        (self.hasher.hash_one(key) as usize) % self.buckets.len().max(1)
    }

    fn bucket(&self, index: usize) -> SysResult<MutexGuard<'_, Bucket>> {
        self.buckets.get(index).map(Mutex::lock).ok_or(Errno::EINVAL)
    }

    /// Wakes up to `count` waiters of a word whose bitset meets `bitset`; returns how many.
    pub fn wake(&self, mm: &Mm, word: Word, count: usize, bitset: u32) -> SysResult<usize> {
        if bitset == 0 {
            return Err(Errno::EINVAL);
        }
        let key = reachable_key(mm, word)?;
        let mut bucket = self.bucket(self.index(&key))?;
        let woken = take(&mut bucket, &key, count, bitset);
        drop(bucket);
        Ok(woken.notify())
    }

    /// Sleeps on a word while it holds `expected`. `EAGAIN` if it does not, `ETIMEDOUT`, `ERESTARTSYS` when interrupted.
    pub fn wait(
        &self,
        task: &Arc<Task>,
        word: Word,
        expected: u32,
        bitset: u32,
        deadline: Option<Instant>,
    ) -> SysResult {
        let (mm, wish) = (task.mm(), Wish { word, expected, bitset });
        let key = self.before_wait(task, &mm, &wish)?;
        let sleeper = self.enqueue(task, &mm, key, wish, None)?;
        self.sleep(task, &[sleeper], deadline).map(drop)
    }

    /// Begins a wait without deadline that goes on outside of the call, in [`super::ride`]: puts the thread into its bucket. Errors as
    /// [`Futexes::wait`].
    pub fn park(&self, ctx: &mut SyscallContext<'_>, wish: Wish) -> SysResult {
        let (task, mm) = (ctx.task, ctx.task.mm());
        let key = self.before_wait(task, &mm, &wish).inspect_err(|errno| {
            if *errno == Errno::ERESTARTSYS {
                ride::wish(wish);
            }
        })?;
        let parked = Parked { home: ctx.local.ride.home.clone(), carrier: None };
        let sleeper = self.enqueue(task, &mm, key, wish, Some(parked))?;
        ctx.local.ride.wait = Some(sleeper);
        ctx.local.after = AfterCall::Park;
        Ok(())
    }

    /// What can be said before the thread is put into its bucket: `EAGAIN`, and `ERESTARTSYS` for who may not sleep. Faults the page in
    /// before a lock is held.
    fn before_wait(&self, task: &Task, mm: &Mm, wish: &Wish) -> SysResult<FutexKey> {
        if wish.bitset == 0 {
            return Err(Errno::EINVAL);
        }
        let key = mm.futex_key(wish.word.addr, wish.word.scope)?;
        if mm.load_u32(wish.word.addr)? != wish.expected {
            if wait::may_sleep() {
                task.kernel().platform().passed();
            }
            return Err(Errno::EAGAIN);
        }
        if wait::decline() {
            return Err(Errno::ERESTARTSYS);
        }
        task.waiter().arm();
        Ok(key)
    }

    /// Sleeps until one of `sleepers` is woken and returns its index; takes the others out of their buckets.
    fn sleep(
        &self,
        task: &Arc<Task>,
        sleepers: &[Arc<Sleeper>],
        deadline: Option<Instant>,
    ) -> SysResult<usize> {
        let failure = loop {
            if sleepers.iter().any(|sleeper| sleeper.is_woken()) {
                break Errno::EAGAIN;
            }
            match task.sleep(deadline) {
                WaitOutcome::Notified => {}
                WaitOutcome::TimedOut => break Errno::ETIMEDOUT,
                WaitOutcome::Interrupted => break Errno::ERESTARTSYS,
            }
        };
        for sleeper in sleepers {
            self.withdraw(sleeper)?;
        }
        // A wake-up that came before the withdrawal counts.
        sleepers.iter().position(|sleeper| sleeper.is_woken()).ok_or(failure)
    }

    /// Takes a sleeper out of its bucket, wherever a requeue has moved it, unless it has been woken.
    pub(super) fn withdraw(&self, sleeper: &Arc<Sleeper>) -> SysResult {
        while !sleeper.is_woken() {
            let key = sleeper.key.lock().clone();
            let mut bucket = self.bucket(self.index(&key))?;
            let place = bucket.iter().position(|queued| Arc::ptr_eq(&queued.sleeper, sleeper));
            if let Some(place) = place {
                bucket.remove(place);
                return Ok(());
            }
        }
        Ok(())
    }

    /// Wakes up to `wake` waiters of `from` and moves up to `requeue` others to `to`. With `expected` the word must hold it
    /// (`EAGAIN` otherwise). Returns how many were woken, and how many were moved.
    pub fn requeue(
        &self,
        mm: &Mm,
        (from, to): (Word, Word),
        (wake, requeue): (usize, usize),
        expected: Option<u32>,
    ) -> SysResult<(usize, usize)> {
        let (key, target) = (reachable_key(mm, from)?, reachable_key(mm, to)?);
        if expected.is_some() {
            mm.load_u32(from.addr)?;
        }
        let (mut source, mut destination) = self.lock_two(self.index(&key), self.index(&target))?;
        if let Some(expected) = expected
            && mm.load_u32(from.addr)? != expected
        {
            return Err(Errno::EAGAIN);
        }
        let woken = take(&mut source, &key, wake, MATCH_ANY);
        let mut moved = VecDeque::new();
        let mut index = 0;
        while moved.len() < requeue && key != target {
            match source.get(index) {
                None => break,
                Some(queued) if queued.key == key => moved.extend(source.remove(index)),
                Some(_) => index += 1,
            }
        }
        let count = if key == target {
            source.iter().filter(|q| q.key == key).count().min(requeue)
        } else {
            moved.len()
        };
        let into = destination.as_mut().unwrap_or(&mut source);
        for mut queued in moved {
            *queued.sleeper.key.lock() = target.clone();
            queued.key = target.clone();
            into.push_back(queued);
        }
        drop((source, destination));
        Ok((woken.notify(), count))
    }

    /// `FUTEX_WAKE_OP`: changes `second`, wakes waiters of `first`, and of `second` if its old value passes the comparison.
    pub fn wake_op(
        &self,
        mm: &Mm,
        (first, second): (Word, Word),
        (count, second_count): (usize, usize),
        op: WakeOp,
    ) -> SysResult<usize> {
        let key = mm.futex_key(first.addr, first.scope)?;
        let other = mm.futex_key(second.addr, second.scope)?;
        mm.load_u32(second.addr)?;
        let (mut bucket, mut other_bucket) = self.lock_two(self.index(&key), self.index(&other))?;
        let old = mm.fetch_update_u32(second.addr, |old| op.apply(old))?;
        let woken = take(&mut bucket, &key, count, MATCH_ANY);
        let more = if op.compare(old) {
            take(other_bucket.as_mut().unwrap_or(&mut bucket), &other, second_count, MATCH_ANY)
        } else {
            Woken::default()
        };
        drop((bucket, other_bucket));
        Ok(woken.notify() + more.notify())
    }

    /// Locks two buckets in order; the second is `None` if it is the first.
    #[allow(clippy::type_complexity)]
    fn lock_two(
        &self,
        first: usize,
        second: usize,
    ) -> SysResult<(MutexGuard<'_, Bucket>, Option<MutexGuard<'_, Bucket>>)> {
        Ok(match first.cmp(&second) {
            std::cmp::Ordering::Equal => (self.bucket(first)?, None),
            std::cmp::Ordering::Less => {
                let low = self.bucket(first)?;
                (low, Some(self.bucket(second)?))
            }
            std::cmp::Ordering::Greater => {
                let low = self.bucket(second)?;
                (self.bucket(first)?, Some(low))
            }
        })
    }

    /// `futex_waitv`: sleeps on several words; returns the index of one that was woken.
    pub fn wait_any(
        &self,
        task: &Arc<Task>,
        words: &[(Word, u32)],
        deadline: Option<Instant>,
    ) -> SysResult<usize> {
        let mm = task.mm();
        let mut sleepers = Vec::with_capacity(words.len());
        task.waiter().arm();
        for (word, expected) in words {
            let wish = Wish { word: *word, expected: *expected, bitset: MATCH_ANY };
            let queued = mm.futex_key(word.addr, word.scope).and_then(|key| {
                // Faults the page in before a lock is held.
                mm.load_u32(word.addr)?;
                self.enqueue(task, &mm, key, wish, None)
            });
            match queued {
                Ok(sleeper) => sleepers.push(sleeper),
                Err(errno) => {
                    for sleeper in &sleepers {
                        self.withdraw(sleeper)?;
                    }
                    let woken = sleepers.iter().position(|sleeper: &Arc<Sleeper>| sleeper.is_woken());
                    return woken.ok_or(errno);
                }
            }
        }
        self.sleep(task, &sleepers, deadline)
    }

    /// Puts the thread into the bucket of `key`, which is the word's, if that holds what is expected (`EAGAIN` otherwise).
    pub(super) fn enqueue(
        &self,
        task: &Task,
        mm: &Mm,
        key: FutexKey,
        Wish { word, expected, bitset }: Wish,
        parked: Option<Parked>,
    ) -> SysResult<Arc<Sleeper>> {
        let mut bucket = self.bucket(self.index(&key))?;
        if mm.load_u32(word.addr)? != expected {
            return Err(Errno::EAGAIN);
        }
        let sleeper = Sleeper::new(task, &key, parked);
        bucket.push_back(Queued { key, bitset, sleeper: sleeper.clone(), pi_tid: None });
        Ok(sleeper)
    }

    /// How many threads wait on any futex.
    pub fn waiters(&self) -> usize {
        self.buckets.iter().map(|bucket| bucket.lock().len()).sum()
    }
}

/// The key of a word that is not necessarily looked at: to find out who may share it, Linux looks at the page (`EFAULT`).
fn reachable_key(mm: &Mm, word: Word) -> SysResult<FutexKey> {
    if word.scope == FutexScope::Shared {
        mm.load_u32(word.addr)?;
    }
    mm.futex_key(word.addr, word.scope)
}

/// Takes up to `count` matching waiters out of a bucket, oldest first.
fn take(bucket: &mut Bucket, key: &FutexKey, count: usize, bitset: u32) -> Woken {
    let mut woken = Woken::default();
    let mut index = 0;
    while woken.0.len() < count {
        match bucket.get(index) {
            None => break,
            Some(queued) if queued.key == *key && queued.bitset & bitset != 0 && queued.pi_tid.is_none() => {
                if let Some(queued) = bucket.remove(index) {
                    woken.add(queued.sleeper);
                }
            }
            Some(_) => index += 1,
        }
    }
    woken
}
