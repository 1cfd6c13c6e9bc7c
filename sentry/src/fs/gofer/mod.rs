//! Files that a gofer serves: the client of [`caisson_proto::lisafs`].
//!
//! A [`GoferFs`] is one connection and one mount. Names are the dentry cache's; here live inodes ([`inode`]), one per file of
//! the host for as long as anybody uses it, so that two names of a file are one object.
//!
//! What is cached, and what keeps it right:
//! - **Names.** [`Sharing::Exclusive`] (a container's root): nobody else changes the tree, so names, absences and attributes hold
//!   until this sentry changes them. [`Sharing::Shared`] (bind mounts): a walk looks at every directory's witness, or asks the gofer about the component.
//! - **Attributes** ([`attributes`]): exclusive ones hold until something that we do changes them on the host; they are then
//!   read again from the donated descriptor with one host call, or from the gofer. Owners only the gofer can tell.
//!   Shared ones are read from a descriptor of the file each time, a witness ([`witness`]) or an open file's, or asked for; what a walk
//!   has asked for 200 µs ago or less serves the call that walked.
//! - **Descriptors** ([`handle`]): an opened file's host descriptor stays with the inode, up to a number per file system, so
//!   that open, read, write, stat and close of a known file need no message. Data, and the page cache behind it, is the host's.
//!
//! - **Files not yet asked for** ([`ahead`]): who looks at many files of a directory gets them by the run.
//!
//! So what others do to a shared mount shows at the next look: names, sizes, modes and times at once, except that attributes just
//! asked for serve for 200 µs, and that the owner of a file that keeps changing may be the one of 2 ms ago.
//!
//! A gofer that is gone makes every operation fail with `EIO`, and nothing wait ([`connection`]).
//!
//! Lock order: an inode's `order` lock, its handles, its attributes, its windows; the file system's inode table, list of idle handles
//! and list of ids to close, what a directory knows ahead are leaves. No lock but `order` and the connection's own is held while a message is under way.
//!
//! Not there yet: locks (`flock`, `fcntl`) are the sentry's and not seen by other users of a shared directory; `inotify` does
//! not see what they do; `sync` leaves data that was written to the host's own write-back.

mod ahead;
#[cfg(test)]
mod ahead_tests;
mod attributes;
mod channel;
mod client;
#[cfg(test)]
mod coherence;
mod connection;
mod current;
mod directory;
mod file;
mod handle;
mod inode;
mod mapping;
#[cfg(test)]
mod tests;
mod witness;

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use caisson_proto::lisafs::reply::{MountFlags, Mounted};
use caisson_proto::lisafs::{self as wire, FdId, IDS_MAX};
use parking_lot::Mutex;

pub use inode::GoferInode;

use self::ahead::Lookout;
use self::client::Client;
use self::witness::{Witnesses, stamp_clock};
use crate::errno::{Errno, SysResult};
use crate::vfs::{Device, FileSystem, FsStat, Inode};

/// How many ids are collected before one message closes them all; fewer where the gofer has few.
const CLOSE_BATCH: usize = 512;
/// What part of the gofer's ids may wait to be closed.
const CLOSING: u64 = 32;
/// How many inodes that nobody has open keep their host descriptors, per file system.
const IDLE_HANDLES: usize = 256;
/// How many inodes that were changed and are gone are known by number.
const FORGOTTEN: usize = 256;

/// Who else changes the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody.
    Exclusive,
    /// Other containers, or the host.
    Shared,
}

/// A mount that a gofer serves.
pub struct GoferFs {
    client: Client,
    sharing: Sharing,
    device: Device,
    /// The root's device on the host: files on it are shown as being on `device`.
    host_device: wire::Device,
    flags: MountFlags,
    inodes: Mutex<HashMap<HostId, Weak<GoferInode>>>,
    /// The inodes that were changed and have gone, for [`Epoch`].
    forgotten: Mutex<Forgotten>,
    /// How many ids the gofer has for us.
    objects: u64,
    close_batch: usize,
    closing: Mutex<Vec<FdId>>,
    idle: Mutex<VecDeque<Weak<GoferInode>>>,
    witnesses: Witnesses,
    lookout: Lookout,
    root: OnceLock<Arc<GoferInode>>,
    itself: Weak<GoferFs>,
}

/// A time before the gofer was asked for a file: how many changed inodes had been forgotten, and the clocks. If the file was among those that
/// were forgotten since, what the gofer tells of it may be older than our change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Epoch {
    forgotten: u64,
    clock: wire::Timestamp,
    at: Instant,
}

/// The latest of the inodes that were changed and forgotten.
#[derive(Default)]
struct Forgotten {
    count: u64,
    latest: VecDeque<HostId>,
}

impl Forgotten {
    fn add(&mut self, id: HostId) {
        self.count = self.count.wrapping_add(1);
        self.latest.push_front(id);
        self.latest.truncate(FORGOTTEN);
    }

    /// Whether this one may be among those since there were `count`.
    fn since(&self, count: u64, id: HostId) -> bool {
        let new = usize::try_from(self.count.wrapping_sub(count)).unwrap_or(usize::MAX);
        new > self.latest.len() || self.latest.iter().take(new).any(|forgotten| *forgotten == id)
    }
}

/// When an id is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Urgency {
    /// Some time: the file is there with it or without.
    Batch,
    /// At once: the id may be all that keeps a removed file's space.
    Now,
}

/// What tells the host's files apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HostId {
    device: wire::Device,
    ino: u64,
}

impl HostId {
    fn of(attr: &wire::Attr) -> HostId {
        HostId { device: attr.dev, ino: attr.ino }
    }
}

impl GoferFs {
    /// Mounts what the gofer at the other end of `socket` serves. The guest sees its files on `device`.
    ///
    /// # Errors
    /// `EIO` when the gofer is gone or talks nonsense, and what it says.
    pub fn mount(socket: OwnedFd, sharing: Sharing, device: Device) -> SysResult<Arc<GoferFs>> {
        let client = Client::new(socket)?;
        let mounted: Mounted = client.mount()?;
        let fs = Arc::new_cyclic(|itself| GoferFs {
            client,
            sharing,
            device,
            host_device: mounted.attr.dev,
            flags: mounted.flags,
            inodes: Mutex::default(),
            forgotten: Mutex::default(),
            objects: mounted.objects,
            close_batch: usize::try_from(mounted.objects / CLOSING)
                .map_or(CLOSE_BATCH, |part| part.min(CLOSE_BATCH)),
            closing: Mutex::default(),
            idle: Mutex::default(),
            witnesses: Witnesses::new(),
            lookout: Lookout::new(mounted.objects),
            root: OnceLock::new(),
            itself: itself.clone(),
        });
        let root = fs.inode(fs.epoch(), mounted.root, &mounted.attr, None);
        let _ = fs.root.set(root);
        Ok(fs)
    }

    /// Whether the gofer refuses every change.
    pub fn is_read_only(&self) -> bool {
        self.flags.contains(MountFlags::READ_ONLY)
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    fn lookout(&self) -> &Lookout {
        &self.lookout
    }

    fn witnesses(&self) -> &Witnesses {
        &self.witnesses
    }

    pub(crate) fn is_exclusive(&self) -> bool {
        self.sharing == Sharing::Exclusive
    }

    /// To be kept from before the gofer is asked for a file.
    pub(crate) fn epoch(&self) -> Epoch {
        let forgotten = self.forgotten.lock().count;
        Epoch { forgotten, clock: stamp_clock(), at: Instant::now() }
    }

    /// The inode for a file that the gofer, when asked at `asked`, has named `fd`: the one that is known, or a new one.
    pub(crate) fn inode(
        &self,
        asked: Epoch,
        fd: FdId,
        attr: &wire::Attr,
        target: Option<Vec<u8>>,
    ) -> Arc<GoferInode> {
        let id = HostId::of(attr);
        let known = {
            let mut inodes = self.inodes.lock();
            match inodes.get(&id).and_then(Weak::upgrade) {
                Some(known) => known,
                None => {
                    let fs = (self.itself.clone(), self.sharing);
                    let inode = Arc::new_cyclic(|itself| {
                        GoferInode::new(itself.clone(), fs, fd, attr, target, asked)
                    });
                    inodes.insert(id, Arc::downgrade(&inode));
                    if self.forgotten.lock().since(asked.forgotten, id) {
                        inode.distrust();
                    }
                    return inode;
                }
            }
        };
        // Of an exclusive file we know better than an answer that may be older than our latest change.
        if !self.is_exclusive() {
            known.distrust();
        }
        self.close_later(fd);
        known
    }

    /// An inode is gone: its entry goes, unless the file has got a new one meanwhile, and its id is closed.
    fn forget(&self, (id, fd): (HostId, FdId), changed: bool, urgency: Urgency) {
        if changed {
            self.forgotten.lock().add(id);
        }
        {
            let mut inodes = self.inodes.lock();
            if inodes.get(&id).is_some_and(|inode| inode.strong_count() == 0) {
                inodes.remove(&id);
            }
        }
        self.close(fd, urgency);
    }

    /// Closes an id with the next batch.
    pub(crate) fn close_later(&self, fd: FdId) {
        self.close(fd, Urgency::Batch);
    }

    fn close(&self, fd: FdId, urgency: Urgency) {
        let batch = {
            let mut closing = self.closing.lock();
            closing.push(fd);
            if urgency == Urgency::Batch && closing.len() < self.close_batch {
                return;
            }
            std::mem::take(&mut *closing)
        };
        for part in batch.chunks(IDS_MAX) {
            // A failure means that the gofer is gone, and the ids with it.
            let _ = self.client.close(part);
        }
    }

    /// `inode` has got a host descriptor: it may keep it until enough others have got one after it.
    pub(crate) fn keeps_handle(&self, inode: &Arc<GoferInode>) {
        let oldest = {
            let mut idle = self.idle.lock();
            idle.push_back(Arc::downgrade(inode));
            if idle.len() > IDLE_HANDLES { idle.pop_front() } else { None }
        };
        if let Some(oldest) = oldest.and_then(|weak| weak.upgrade()) {
            oldest.give_up_handles();
        }
    }

    /// How a host device is shown.
    pub(crate) fn shown_device(&self, host: wire::Device) -> Device {
        if host == self.host_device { self.device } else { Device { major: host.major, minor: host.minor } }
    }
}

impl FileSystem for GoferFs {
    fn name(&self) -> &'static str {
        "gofer"
    }

    fn root(&self) -> SysResult<Arc<dyn Inode>> {
        self.root.get().cloned().map(|root| root as Arc<dyn Inode>).ok_or(Errno::EIO)
    }

    fn device(&self) -> Device {
        self.device
    }

    fn statfs(&self) -> SysResult<FsStat> {
        let root = self.root.get().ok_or(Errno::EIO)?;
        let host = self.client.stat_fs(root.fd())?;
        Ok(FsStat {
            magic: host.kind,
            block_size: host.block_size,
            blocks: host.blocks,
            blocks_free: host.blocks_free,
            blocks_available: host.blocks_available,
            files: host.files,
            files_free: host.files_free,
            name_max: host.name_max,
        })
    }

    /// Every name that is kept keeps an id. A quarter is for what waits to be asked for ([`ahead`]), another for what is in use.
    fn names_kept(&self) -> usize {
        usize::try_from(self.objects / 2).unwrap_or(usize::MAX)
    }

    fn sync(&self) -> SysResult {
        let root = self.root.get().ok_or(Errno::EIO)?;
        match self.client.sync_fs(root.fd()) {
            // A mount of a single device node or socket has nothing to write.
            Err(Errno::ENXIO) => Ok(()),
            done => done,
        }
    }

    fn show_options(&self) -> String {
        match self.sharing {
            Sharing::Exclusive => ",exclusive".to_owned(),
            Sharing::Shared => ",shared".to_owned(),
        }
    }
}
