//! Queues of pending signals.
//!
//! A standard signal is pending at most once; a real-time signal as often as `RLIMIT_SIGPENDING` allows. When the limit is reached
//! signals of the kernel and `kill` are still recorded without their details, as Linux does; `sigqueue` gets `EAGAIN`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use linux_raw_sys::general as linux;

use super::info::{SigFields, SigInfo};
use super::number::SignalSet;
use crate::errno::{Errno, SysResult};

/// How many signals the processes of one user have queued.
#[derive(Default)]
pub struct SignalCount(AtomicU64);

/// One unit of a [`SignalCount`].
struct Counted(Arc<SignalCount>);

impl Counted {
    fn new(count: &Arc<SignalCount>, limit: u64) -> Option<Counted> {
        if count.0.fetch_add(1, Ordering::Relaxed) >= limit {
            count.0.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Counted(count.clone()))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl SignalCount {
    /// Signals queued now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Pending signals of a thread or of a thread group.
#[derive(Default)]
pub struct PendingQueue {
    set: SignalSet,
    queue: VecDeque<(SigInfo, Counted)>,
}

impl PendingQueue {
    /// What is pending.
    pub fn set(&self) -> SignalSet {
        self.set
    }

    /// Adds a signal. `Ok(false)`: it was a standard signal that is pending already. `EAGAIN` as described above.
    pub fn push(&mut self, info: SigInfo, count: &Arc<SignalCount>, limit: u64) -> SysResult<bool> {
        let signal = info.signal;
        if self.merge(&info) {
            return Ok(false);
        }
        if !signal.is_realtime() && self.set.contains(signal) {
            return Ok(false);
        }
        // Signals that an instruction raised must not lose their address (Linux: override_rlimit).
        let exempt = !signal.is_realtime() && !info.from_user() || info.code == linux::SI_USER as i32;
        let limit = if exempt && !signal.is_realtime() { u64::MAX } else { limit };
        match Counted::new(count, limit) {
            Some(unit) => self.queue.push_back((info, unit)),
            None if signal.is_realtime() && info.code != linux::SI_USER as i32 => return Err(Errno::EAGAIN),
            None => {}
        }
        self.set.add(signal);
        Ok(true)
    }

    /// A timer has one signal at a time: if it is pending already, its overrun grows.
    fn merge(&mut self, info: &SigInfo) -> bool {
        let SigFields::Timer { id, overrun: more, .. } = info.fields else { return false };
        for (pending, _) in self.queue.iter_mut().filter(|(pending, _)| pending.signal == info.signal) {
            match &mut pending.fields {
                SigFields::Timer { id: of, overrun, .. } if *of == id => {
                    *overrun = overrun.saturating_add(more).saturating_add(1);
                    return true;
                }
                _ => {}
            }
        }
        false
    }

    /// Takes the next signal out of `wanted`: synchronous ones first, then the lowest number, in order of arrival.
    pub fn take(&mut self, wanted: SignalSet) -> Option<SigInfo> {
        let ready = self.set.intersection(wanted);
        let synchronous = ready.intersection(SignalSet::SYNCHRONOUS);
        let signal = if synchronous.is_empty() { ready.lowest()? } else { synchronous.lowest()? };
        let position = self.queue.iter().position(|(info, _)| info.signal == signal);
        let taken = position.and_then(|position| self.queue.remove(position));
        if !self.queue.iter().any(|(info, _)| info.signal == signal) {
            self.set.remove(signal);
        }
        // Recorded without details: Linux shows a plain kill from nobody.
        Some(taken.map_or_else(|| SigInfo::kill(signal, 0, 0), |(info, _)| info))
    }

    /// Drops every pending signal in `which`.
    pub fn discard(&mut self, which: SignalSet) {
        self.set = self.set.minus(which);
        self.queue.retain(|(info, _)| !which.contains(info.signal));
    }

    /// Whether any of `which` is pending.
    pub fn intersects(&self, which: SignalSet) -> bool {
        !self.set.intersection(which).is_empty()
    }
}
