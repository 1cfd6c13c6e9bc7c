//! Witnesses: descriptors that show what becomes of shared files, so that the gofer need not be asked again.
//!
//! A file that is looked at again and again has its `O_PATH` descriptor donated. `fstat` on it is one host call; it tells everything
//! but the owner (the sentry's user namespace knows one id), and it proves the rest:
//! - **Owner.** Whoever changes it changes the file's ctime. While that is what it was when the gofer told the owner, the owner is the same.
//! - **Names.** Whoever adds, removes or replaces a name in a directory changes the directory's ctime. While that is what it was when the
//!   gofer was asked for a name, the answer is the same.
//!
//! Times are stamped by a clock that ticks every few milliseconds, and two changes in one tick look the same. So a ctime proves
//! something only if it was already [`settled`] when the gofer was asked: every later change gets another one. The gofer donates
//! descriptors only of file systems that are stamped by the host's own clock.
//!
//! Witnesses are kept for the files of a mount that were looked at most recently: for [`WITNESSES`] of them; fewer where the process may not
//! have many descriptors, or other mounts have a quarter of them.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use caisson_proto::lisafs::Timestamp;
use nix::time::{ClockId, clock_gettime};
use parking_lot::{Mutex, RwLock};
use rustix::fs::Stat;

use super::GoferFs;
use super::inode::GoferInode;

/// Most witnesses of a mount, if the process may have so many times as many descriptors.
const WITNESSES: usize = if cfg!(test) { 256 } else { 4096 };
const OF_DESCRIPTORS: usize = 16;
/// A mount has as many in any case.
const LEAST: usize = 128;
/// What part of the process's descriptors the witnesses of all mounts may be.
const OF_ALL: usize = 4;

/// The witnesses of all mounts: descriptors are the process's.
static IN_ALL: AtomicUsize = AtomicUsize::new(0);
/// Who is asked for twice within this time gets a witness. Who comes by once in a long walk does not. Tests, which others may keep waiting, rely on it.
const AGAIN: Duration = Duration::from_millis(if cfg!(test) { 20_000 } else { 20 });
/// A ctime this old, by the clock that stamps files, is not given to another change.
const TICK: Duration = Duration::from_millis(20);
/// The same where times are full milliseconds, as those of file systems that keep times in seconds are.
const COARSE_TICK: Duration = Duration::from_millis(2_100);

/// What the clock says that stamps files (`ktime_get_coarse_real_ts64`).
pub(super) fn stamp_clock() -> Timestamp {
    clock_gettime(ClockId::CLOCK_REALTIME_COARSE).map_or(Timestamp::default(), |now| Timestamp {
        seconds: now.tv_sec(),
        nanoseconds: u32::try_from(now.tv_nsec()).unwrap_or(0),
    })
}

/// Nanoseconds since 1970, wrapping; as good as the time itself for telling times apart.
fn nanoseconds(time: Timestamp) -> i64 {
    time.seconds.wrapping_mul(1_000_000_000).wrapping_add(i64::from(time.nanoseconds))
}

/// Whether every change made after `looked`, a reading of [`stamp_clock`], gets a later ctime than `changed`.
pub(super) fn settled(changed: Timestamp, looked: Timestamp) -> bool {
    let tick = if changed.nanoseconds.is_multiple_of(1_000_000) { COARSE_TICK } else { TICK };
    let age = nanoseconds(looked).wrapping_sub(nanoseconds(changed));
    u64::try_from(age).is_ok_and(|age| u128::from(age) >= tick.as_nanos())
}

/// The ctime in what `fstat` told.
pub(super) fn ctime(host: &Stat) -> Timestamp {
    Timestamp { seconds: host.st_ctime, nanoseconds: u32::try_from(host.st_ctime_nsec).unwrap_or(0) }
}

/// Where an inode stands with its witness.
#[derive(Default)]
pub(super) struct Witness {
    fd: RwLock<Option<OwnedFd>>,
    /// The gofer gives none for it.
    refused: AtomicBool,
    /// Looked at since it last was the oldest of all.
    looked: AtomicBool,
    /// When the gofer was last asked, in microseconds of [`since_start`], for attributes and for names.
    asked: [AtomicU64; 2],
    /// A witness is being asked for.
    asking: AtomicBool,
}

/// What the gofer is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum About {
    Attributes,
    Names,
}

fn since_start() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_micros()).unwrap_or(u64::MAX).max(1)
}

impl Witness {
    /// What it tells now; `None` if there is none.
    pub(super) fn look(&self) -> Option<Stat> {
        let fd = self.fd.read();
        let host = rustix::fs::fstat(fd.as_ref()?).ok()?;
        if !self.looked.load(Ordering::Relaxed) {
            self.looked.store(true, Ordering::Relaxed);
        }
        Some(host)
    }

    pub(super) fn is_there(&self) -> bool {
        self.fd.read().is_some()
    }

    /// The gofer is about to be asked. Whether it was, not long ago: a witness would spare that.
    fn asked_again(&self, about: About) -> bool {
        let now = since_start();
        let [attributes, names] = &self.asked;
        let last = match about {
            About::Attributes => attributes,
            About::Names => names,
        };
        let before = last.swap(now, Ordering::Relaxed);
        before != 0 && u128::from(now.saturating_sub(before)) < AGAIN.as_micros()
    }

    /// Takes a descriptor. Whether there was none.
    fn keep(&self, fd: OwnedFd) -> bool {
        let old = self.fd.write().replace(fd);
        if old.is_none() {
            IN_ALL.fetch_add(1, Ordering::Relaxed);
        }
        old.is_none()
    }

    fn give_up(&self) {
        let fd = self.fd.write().take();
        if fd.is_some() {
            IN_ALL.fetch_sub(1, Ordering::Relaxed);
        }
        drop(fd);
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// A mount's witnesses, the one that has been there for longest first.
pub(super) struct Witnesses {
    all: Mutex<VecDeque<Weak<GoferInode>>>,
    most: usize,
    /// In all mounts, before this one has to make do with fewer.
    in_all: usize,
}

impl Witnesses {
    /// As many as the process can afford.
    pub(super) fn new() -> Witnesses {
        let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let descriptors =
            descriptors.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let most = (descriptors / OF_DESCRIPTORS).clamp(LEAST, WITNESSES);
        Witnesses { all: Mutex::default(), most, in_all: descriptors / OF_ALL }
    }

    /// How many there may be.
    #[cfg(test)]
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// `inode` has got one. Who is to lose his for it.
    fn add(&self, inode: Weak<GoferInode>) -> Option<std::sync::Arc<GoferInode>> {
        let mut all = self.all.lock();
        all.push_back(inode);
        let most = if IN_ALL.load(Ordering::Relaxed) > self.in_all { LEAST } else { self.most };
        // Each is passed over once at most.
        for _ in 0..self.most {
            if all.len() <= most {
                return None;
            }
            let Some(oldest) = all.pop_front().and_then(|oldest| oldest.upgrade()) else { continue };
            if !oldest.witness().looked.swap(false, Ordering::Relaxed) {
                return Some(oldest);
            }
            all.push_back(std::sync::Arc::downgrade(&oldest));
        }
        all.pop_front().and_then(|oldest| oldest.upgrade())
    }
}

impl GoferInode {
    /// The gofer is about to be asked about this file: gets a witness for it, if it was asked just before.
    pub(super) fn want_witness(&self, fs: &GoferFs, about: About) {
        let witness = self.witness();
        let wanted = witness.asked_again(about) && !witness.refused.load(Ordering::Relaxed);
        if !wanted || witness.is_there() || witness.asking.swap(true, Ordering::Acquire) {
            return;
        }
        match fs.client().witness(self.fd()) {
            Ok(fd) => self.set_witness(fs, fd),
            Err(_) => witness.refused.store(true, Ordering::Relaxed),
        }
        witness.asking.store(false, Ordering::Release);
    }

    pub(super) fn set_witness(&self, fs: &GoferFs, fd: OwnedFd) {
        if self.witness().keep(fd)
            && let Some(loser) = fs.witnesses().add(self.weak())
        {
            loser.witness().give_up();
        }
    }

    /// A number that stands for what is in this directory now: it is another one after every change of its names. `None` when that
    /// cannot be told.
    pub(super) fn names_now(&self) -> Option<u64> {
        self.look_at_names()?.1
    }

    /// What the witness tells of this directory, and with it [`GoferInode::names_now`]. `None` if there is no witness.
    pub(super) fn look_at_names(&self) -> Option<(Stat, Option<u64>)> {
        // The clock first: what changes after the look is stamped with what it says, or later.
        let clock = stamp_clock();
        let host = self.witness().look()?;
        let changed = ctime(&host);
        Some((host, settled(changed, clock).then(|| nanoseconds(changed).cast_unsigned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_settled_when_its_tick_is_over() {
        let at = |seconds, nanoseconds| Timestamp { seconds, nanoseconds };
        assert!(!settled(at(5, 123_456_789), at(5, 123_456_789)), "the same tick");
        assert!(!settled(at(5, 123_456_789), at(5, 143_456_788)));
        assert!(settled(at(5, 123_456_789), at(5, 143_456_789)));
        assert!(!settled(at(9, 1), at(5, 0)), "the clock was set back");
        assert!(!settled(at(5, 0), at(7, 0)), "times in seconds, or two of them");
        assert!(settled(at(5, 0), at(7, 100_000_000)));
        assert!(settled(at(-5, 1), at(5, 0)));
    }
}
