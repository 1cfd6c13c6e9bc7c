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
//! What waits is bounded: [`WAITING`] files of a directory, [`DIRECTORIES`] directories of a mount.
//!
//! Lock order: a directory's state is held while none of the gofer's answers is waited for; below it only leaves.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
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
const WAITING: usize = 192;
/// Most directories of a mount of which files wait.
const DIRECTORIES: usize = 16;
/// Questions that follow each other within this time belong together.
const SUCCESSION: Duration = Duration::from_millis(20);
/// So many of them are worth a look ahead, in a directory that nobody has listed.
const MANY: u32 = 8;
/// So many, in one that was.
const FEW: u32 = 2;
/// How long ago that may have been.
const LISTED: Duration = Duration::from_secs(2);
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
    open: Option<FdId>,
    position: u64,
    /// The gofer is being asked.
    under_way: bool,
    /// There is no more, or it was not worth it.
    done: bool,
    waiting: HashMap<Vec<u8>, Prepared>,
    came: u32,
    taken: u32,
}

impl State {
    /// Forgets what was known; the ids are to be closed.
    fn reset(&mut self, version: u64) -> Vec<FdId> {
        let listed = self.listed;
        let old = std::mem::replace(self, State { version, listed, ..State::default() });
        old.waiting.into_values().map(|prepared| prepared.found.fd).chain(old.open).collect()
    }

    /// A file was asked for that is not here. Whether to look ahead, and from where.
    fn miss(&mut self) -> bool {
        let now = Instant::now();
        let succession = self.last_asked.is_some_and(|last| now.duration_since(last) < SUCCESSION);
        self.asked = if succession { self.asked.saturating_add(1) } else { 1 };
        self.last_asked = Some(now);
        let listed = self.listed.is_some_and(|listed| now.duration_since(listed) < LISTED);
        if self.came >= 2 * RUN && self.came > self.taken.saturating_mul(4) {
            // Others are looked up than come.
            self.done = true;
        }
        !self.done && !self.under_way && self.asked >= if listed { FEW } else { MANY }
    }
}

/// The directories of a mount of which files wait, and whether it is worth donating them.
#[derive(Default)]
pub(super) struct Lookout {
    directories: Mutex<VecDeque<Weak<GoferInode>>>,
    appetite: AtomicU32,
}

impl Lookout {
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

    fn add(&self, directory: Weak<GoferInode>) -> Option<Arc<GoferInode>> {
        let mut directories = self.directories.lock();
        directories.push_back(directory);
        let oldest = if directories.len() > DIRECTORIES { directories.pop_front() } else { None };
        oldest.and_then(|oldest| oldest.upgrade())
    }
}

impl GoferInode {
    /// What stands for the names in this directory; `None` when nothing can be kept.
    fn version(&self, fs: &GoferFs) -> Option<u64> {
        if fs.is_exclusive() { Some(self.attr.lock().changes().wrapping_add(1)) } else { self.names_now() }
    }

    /// Somebody reads all names of this directory.
    pub(super) fn being_listed(&self) {
        self.ahead().0.lock().listed = Some(Instant::now());
    }

    /// The file with this name, if it came ahead of its time; else perhaps the next ones are asked for, and it is among them.
    pub(super) fn take_ahead(&self, fs: &GoferFs, name: &[u8]) -> Option<Arc<GoferInode>> {
        let version = self.version(fs)?;
        let (stale, prepared, look) = {
            let mut state = self.ahead().0.lock();
            let stale = if state.version == version { Vec::new() } else { state.reset(version) };
            let prepared = state.waiting.remove(name);
            if prepared.is_some() {
                state.taken = state.taken.saturating_add(1);
            }
            let look = prepared.is_none() && state.miss();
            state.under_way |= look;
            (stale, prepared, look)
        };
        stale.into_iter().for_each(|fd| fs.close_later(fd));
        let prepared = match prepared {
            None if look => {
                self.look_ahead(fs, version);
                let mut state = self.ahead().0.lock();
                let prepared = if state.version == version { state.waiting.remove(name) } else { None };
                state.taken = state.taken.saturating_add(u32::from(prepared.is_some()));
                prepared
            }
            prepared => prepared,
        };
        Some(fs.prepared_inode(prepared?))
    }

    /// Asks for the next files. The state says that this is under way.
    fn look_ahead(&self, fs: &GoferFs, version: u64) {
        let (open, position) = {
            let state = self.ahead().0.lock();
            (state.open, state.position)
        };
        let asked = fs.epoch();
        let answer = match open {
            Some(open) => Ok(open),
            None => fs.client().open_dir(self.fd()),
        }
        .map(|open| (open, fs.client().read_dir_plus(open, position, fs.lookout().wants(fs))));
        let mut close = Vec::new();
        {
            let mut state = self.ahead().0.lock();
            state.under_way = false;
            let Ok((opened, listing)) = answer else {
                state.done = true;
                return;
            };
            let (files, next) = listing.unwrap_or_default();
            if state.version != version {
                // The directory has changed meanwhile.
                close.extend(files.into_iter().map(|(_, found, _)| found.fd));
                close.push(opened);
            } else {
                state.open = Some(opened);
                if state.waiting.len() >= WAITING {
                    close.extend(state.waiting.drain().map(|(_, prepared)| prepared.found.fd));
                }
                state.came = state.came.saturating_add(u32::try_from(files.len()).unwrap_or(u32::MAX));
                match next {
                    Some(next) if !files.is_empty() => state.position = next,
                    _ => state.done = true,
                }
                for (name, found, donated) in files {
                    state.waiting.insert(name, Prepared { found, donated, asked });
                }
            }
        }
        close.into_iter().for_each(|fd| fs.close_later(fd));
        if position == 0
            && let Some(oldest) = fs.lookout().add(self.weak())
        {
            oldest.forget_ahead(fs);
        }
    }

    /// Nothing is kept ahead any more.
    pub(super) fn forget_ahead(&self, fs: &GoferFs) {
        let close = self.ahead().0.lock().reset(0);
        close.into_iter().for_each(|fd| fs.close_later(fd));
    }
}

impl Lookout {
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

/// Most entries of one answer.
pub(super) const RUN: u32 = PLUS_MAX;
