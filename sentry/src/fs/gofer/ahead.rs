//! Looking ahead: who asks for many files of a directory gets the next ones with one message.
//!
//! A program that looks at every file of a tree would ask the gofer about each. So when names of one directory are asked for again
//! and again, or it has just been listed, the gofer is asked for a run of entries with all that a walk to them gives. They wait here until
//! they are looked up, for as long as the directory is known to be unchanged: an exclusive one until we change it ourselves, a shared one
//! while its witness says so ([`super::witness`]). Files of a shared mount come with a witness each, so what waits here tells nothing
//! old of them.
//!
//! Where files that were looked up this way are then opened, the next ones come with descriptors for reading.
//!
//! A dispatcher that answers a call waits for the gofer itself. *Measured* (two processors, `git status` of 20,000 files, which asks with 20 threads): leaving a
//! question for a run to the thread's own exit when its process has others took 0.75 s instead of 0.62 s; for a process with one thread it costs an exit, and
//! a dispatcher that has gone to sleep meanwhile.
//!
//! What waits is bounded: [`WAITING`] files of a directory, [`DIRECTORIES`] directories of a mount, and a quarter of the ids that the gofer has for it.
//! Directories of which no file was taken for longest lose theirs first.
//!
//! Lock order: the list of directories, a directory's state; neither is held while one of the gofer's answers is waited for; below them only leaves.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use caisson_proto::lisafs::reply::Donated;
use caisson_proto::lisafs::request::PlusFlags;
use caisson_proto::lisafs::{FdId, PLUS_MAX};
use parking_lot::Mutex;

use super::client::Found;
use super::handle::Handle;
use super::inode::GoferInode;
use super::{Epoch, GoferFs};

/// Most files of a directory that wait.
const WAITING: usize = 256;
/// Most directories of a mount of which files wait.
const DIRECTORIES: usize = 64;
/// Most files of a mount that wait, where the gofer has ids enough.
const WAITING_IN_ALL: u64 = 4096;
/// Questions that follow each other within this time belong together. Tests, which others may keep waiting, rely on it.
const SUCCESSION: Duration = Duration::from_millis(if cfg!(test) { 20_000 } else { 20 });
/// So many of them are worth a look ahead, in a directory that nobody has listed.
const MANY: u32 = 8;
/// So many, in one that was.
const FEW: u32 = 2;
/// How long ago that may have been.
const LISTED: Duration = Duration::from_secs(if cfg!(test) { 20 } else { 2 });
/// In so many directories the larger part of what came ahead was taken, before the next ones are taken for such from the start.
const HABIT: u32 = 4;
const HABIT_MAX: u32 = 16;
/// Files are donated ahead when so many more of them were opened than were not.
const APPETITE: u32 = 8;
const APPETITE_MAX: u32 = 64;

/// A file that was not asked for yet.
pub(super) struct Prepared {
    pub(super) found: Found,
    pub(super) donated: Option<Gift>,
    asked: Epoch,
}

/// A descriptor that came with it.
pub(super) enum Gift {
    File(OwnedFd),
    Witness(OwnedFd),
}

/// What a directory knows ahead.
#[derive(Default)]
pub(super) struct Ahead(Mutex<State>);

#[derive(Default)]
struct State {
    /// As of which version of the directory all this is right.
    version: u64,
    asked: u32,
    last_asked: Option<Instant>,
    listed: Option<Instant>,
    position: u64,
    /// The gofer is being asked.
    under_way: bool,
    /// There is no more, or it was not worth it.
    done: bool,
    waiting: HashMap<Vec<u8>, Prepared>,
    came: u32,
    taken: u32,
    /// The larger part of what came was taken.
    paid: bool,
    /// When one was last taken, by the count of all that were.
    used: u64,
}

impl State {
    /// Forgets what was known; the ids are to be closed.
    fn reset(&mut self, lookout: &Lookout, version: u64) -> Vec<FdId> {
        let waiting = self.clear(lookout);
        if self.came > 0 && !self.paid {
            lookout.wasted();
        }
        *self = State { version, listed: self.listed, ..State::default() };
        waiting
    }

    /// Nothing waits any more; the ids are to be closed.
    fn clear(&mut self, lookout: &Lookout) -> Vec<FdId> {
        lookout.waiting.fetch_sub(self.waiting.len(), Ordering::Relaxed);
        self.waiting.drain().map(|(_, prepared)| prepared.found.fd).collect()
    }

    fn add(&mut self, lookout: &Lookout, name: Vec<u8>, prepared: Prepared) -> Option<FdId> {
        let old = self.waiting.insert(name, prepared);
        if old.is_none() {
            lookout.waiting.fetch_add(1, Ordering::Relaxed);
        }
        old.map(|old| old.found.fd)
    }

    fn take(&mut self, lookout: &Lookout, name: &[u8]) -> Option<Prepared> {
        let prepared = self.waiting.remove(name)?;
        lookout.waiting.fetch_sub(1, Ordering::Relaxed);
        self.taken = self.taken.saturating_add(1);
        if !self.paid && self.taken > self.came / 2 {
            self.paid = true;
            lookout.paid();
        }
        self.used = lookout.taken.fetch_add(1, Ordering::Relaxed);
        Some(prepared)
    }

    /// A file was asked for that is not here. Whether to look ahead, and from where.
    fn miss(&mut self, lookout: &Lookout) -> bool {
        let now = Instant::now();
        let succession = self.last_asked.is_some_and(|last| now.duration_since(last) < SUCCESSION);
        self.asked = if succession { self.asked.saturating_add(1) } else { 1 };
        self.last_asked = Some(now);
        let listed = self.listed.is_some_and(|listed| now.duration_since(listed) < LISTED);
        if self.came >= RUN && self.came > self.taken.saturating_mul(4) {
            // Others are looked up than come.
            self.done = true;
        }
        let enough = match (listed, lookout.is_usual()) {
            (true, true) => 1,
            (true, false) | (false, true) => FEW,
            (false, false) => MANY,
        };
        !self.done && !self.under_way && self.asked >= enough
    }
}

/// The directories of a mount of which files wait, and whether it is worth donating them.
pub(super) struct Lookout {
    directories: Mutex<Vec<Weak<GoferInode>>>,
    /// How many files were taken so far.
    taken: AtomicU64,
    /// How many files wait in all.
    waiting: AtomicUsize,
    /// How many may.
    most: usize,
    appetite: AtomicU32,
    /// In how many more directories what came was taken than not.
    habit: AtomicU32,
}

impl Lookout {
    /// For a mount of which the gofer holds at most `objects`.
    pub(super) fn new(objects: u64) -> Lookout {
        let most = usize::try_from((objects / 4).min(WAITING_IN_ALL)).unwrap_or(0);
        Lookout {
            directories: Mutex::default(),
            taken: AtomicU64::new(1),
            waiting: AtomicUsize::new(0),
            most,
            appetite: AtomicU32::new(0),
            habit: AtomicU32::new(0),
        }
    }

    /// A file that was looked up ahead has been opened.
    pub(super) fn opened(&self) {
        let more = |appetite: u32| (appetite < APPETITE_MAX).then_some(appetite.saturating_add(1));
        let _ = self.appetite.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// A file that was donated ahead has not been opened.
    pub(super) fn left(&self) {
        let less = |appetite: u32| appetite.checked_sub(1);
        let _ = self.appetite.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// The larger part of what came of a directory was taken.
    fn paid(&self) {
        let more = |habit: u32| (habit < HABIT_MAX).then_some(habit.saturating_add(1));
        let _ = self.habit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// It was not.
    fn wasted(&self) {
        let less = |habit: u32| Some(habit.saturating_sub(HABIT / 2));
        let _ = self.habit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Whether those who ask for a file of a directory usually ask for the others.
    fn is_usual(&self) -> bool {
        self.habit.load(Ordering::Relaxed) >= HABIT
    }

    /// How many files wait.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Of how many directories.
    #[cfg(test)]
    pub(super) fn directories(&self) -> usize {
        self.directories.lock().len()
    }

    /// Files of one more directory wait.
    fn add(&self, fs: &GoferFs, directory: Weak<GoferInode>) {
        {
            let mut directories = self.directories.lock();
            if !directories.iter().any(|known| Weak::ptr_eq(known, &directory)) {
                directories.push(directory);
            }
        }
        self.keep_within_bounds(fs);
    }

    /// Forgets what waits in the directories of which none was taken for longest, until all bounds are kept.
    fn keep_within_bounds(&self, fs: &GoferFs) {
        // Dropped when no lock is held.
        let mut looked_at = Vec::new();
        loop {
            let oldest = {
                let mut directories = self.directories.lock();
                let few = self.waiting.load(Ordering::Relaxed) <= self.most;
                if few && directories.len() <= DIRECTORIES {
                    return;
                }
                directories.retain(|directory| directory.strong_count() > 0);
                let all = directories.iter().enumerate().filter_map(|(at, directory)| {
                    let directory = directory.upgrade()?;
                    let used = directory.ahead().0.lock().used;
                    looked_at.push(directory);
                    Some((used, at))
                });
                let Some((_, at)) = all.min() else { return };
                directories.swap_remove(at).upgrade()
            };
            if let Some(oldest) = oldest {
                oldest.forget_ahead(fs);
            }
        }
    }
}

impl GoferInode {
    /// How many files of this directory wait.
    #[cfg(test)]
    pub(super) fn waiting_ahead(&self) -> usize {
        self.ahead().0.lock().waiting.len()
    }

    /// Somebody reads all names of this directory.
    pub(super) fn being_listed(&self) {
        self.ahead().0.lock().listed = Some(Instant::now());
    }

    /// The file with this name, if it came ahead of its time; else perhaps the next ones are asked for, and it is among them.
    /// What waits is right as of `names`, which stands for the names in a shared directory; with 0 nothing can be kept.
    pub(super) fn take_ahead(&self, fs: &GoferFs, name: &[u8], names: u64) -> Option<Arc<GoferInode>> {
        let version = if fs.is_exclusive() { self.attr.lock().changes().wrapping_add(1) } else { names };
        if version == 0 {
            return None;
        }
        let (stale, prepared, look) = {
            let mut state = self.ahead().0.lock();
            let stale =
                if state.version == version { Vec::new() } else { state.reset(fs.lookout(), version) };
            let prepared = state.take(fs.lookout(), name);
            let look = prepared.is_none() && state.miss(fs.lookout());
            state.under_way |= look;
            (stale, prepared, look)
        };
        stale.into_iter().for_each(|fd| fs.close_later(fd));
        let prepared = match prepared {
            None if look => {
                self.look_ahead(fs, version);
                let mut state = self.ahead().0.lock();
                if state.version == version { state.take(fs.lookout(), name) } else { None }
            }
            prepared => prepared,
        };
        Some(fs.prepared_inode(prepared?))
    }

    /// Asks for the next files. The state says that this is under way.
    fn look_ahead(&self, fs: &GoferFs, version: u64) {
        let position = self.ahead().0.lock().position;
        let asked = fs.epoch();
        let answer =
            fs.client().read_dir_plus(self.fd(), position, fs.lookout().run(), fs.lookout().wants(fs));
        let mut close = Vec::new();
        {
            let mut state = self.ahead().0.lock();
            state.under_way = false;
            let (files, next) = answer.unwrap_or_default();
            if state.version != version {
                // The directory has changed meanwhile.
                close.extend(files.into_iter().map(|(_, found, _)| found.fd));
            } else {
                if state.waiting.len() >= WAITING {
                    close.extend(state.clear(fs.lookout()));
                }
                state.came = state.came.saturating_add(u32::try_from(files.len()).unwrap_or(u32::MAX));
                match next {
                    Some(next) if !files.is_empty() => state.position = next,
                    _ => state.done = true,
                }
                // The directory is in use even before the first is taken.
                state.used = fs.lookout().taken.load(Ordering::Relaxed);
                state.waiting.reserve(files.len());
                for (name, found, donated) in files {
                    close.extend(state.add(fs.lookout(), name, Prepared { found, donated, asked }));
                }
            }
        }
        close.into_iter().for_each(|fd| fs.close_later(fd));
        if position == 0 {
            fs.lookout().add(fs, self.weak());
        } else {
            fs.lookout().keep_within_bounds(fs);
        }
    }

    /// Nothing is kept ahead any more.
    pub(super) fn forget_ahead(&self, fs: &GoferFs) {
        let close = self.ahead().0.lock().reset(fs.lookout(), 0);
        close.into_iter().for_each(|fd| fs.close_later(fd));
    }
}

impl Lookout {
    /// How many entries to ask for.
    fn run(&self) -> u32 {
        if self.is_usual() { RUN } else { FIRST_RUN }
    }

    fn wants(&self, fs: &GoferFs) -> PlusFlags {
        let mut flags = PlusFlags::empty();
        flags.set(PlusFlags::WITNESS, !fs.is_exclusive());
        flags.set(PlusFlags::READ, self.appetite.load(Ordering::Relaxed) >= APPETITE);
        flags
    }
}

impl GoferFs {
    /// The inode of a file that came ahead.
    fn prepared_inode(&self, prepared: Prepared) -> Arc<GoferInode> {
        let Prepared { found, donated, asked } = prepared;
        let inode = self.inode(asked, found.fd, &found.attr, found.target);
        inode.attr.lock().came_ahead(asked.at);
        inode.came_ahead();
        match donated {
            Some(Gift::File(fd)) => inode.keep_gift(self, Handle::new(fd, false)),
            Some(Gift::Witness(fd)) => inode.set_witness(self, fd),
            None => {}
        }
        inode
    }
}

/// Files of a listing, and where to go on; `None` at the end.
pub(super) type Listed = (Vec<(Vec<u8>, Found, Option<Gift>)>, Option<u64>);

/// Reads a gofer's answer. Descriptors come in the order of the entries.
pub(super) fn read_listing(
    payload: &[u8],
    fds: Vec<OwnedFd>,
) -> Result<Listed, caisson_proto::lisafs::WireError> {
    let (mut files, mut next, mut count) = (Vec::new(), None, 0);
    let mut fds = fds.into_iter();
    for entry in caisson_proto::lisafs::reply::Listing::new(payload) {
        let entry = entry?;
        next = Some(entry.next);
        count += 1;
        let Some(file) = entry.file else { continue };
        let mut fd = || fds.next().ok_or(caisson_proto::lisafs::WireError::Field);
        let donated = match file.donated {
            Donated::Nothing => None,
            Donated::File => Some(Gift::File(fd()?)),
            Donated::Witness => Some(Gift::Witness(fd()?)),
        };
        let target = file.target.map(|target| target.as_bytes().to_vec());
        files.push((entry.name.as_bytes().to_vec(), Found { fd: file.fd, attr: file.attr, target }, donated));
    }
    // A short answer may have been cut for its size: only none at all is the end.
    Ok((files, if count == 0 { None } else { next }))
}

/// Most entries of one answer, and fewer as long as nobody knows whether they are wanted.
const RUN: u32 = PLUS_MAX;
const FIRST_RUN: u32 = PLUS_MAX / 2;
