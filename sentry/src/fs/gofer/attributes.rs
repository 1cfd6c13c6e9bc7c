//! An inode's attributes: the cached ones, and when they may be used.
//!
//! Answers and changes cross: what the gofer tells may be older than a write that was made, and noticed, while the answer was
//! under way. Every change therefore moves a count on, before it is made and after; an answer is cached only if the count is
//! what it was when the question was asked.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use caisson_proto::lisafs::{self as wire, FileKind, Timestamp};

use rustix::fs::Stat;

use super::GoferFs;
use super::witness::{settled, stamp_clock};
use crate::errno::SysResult;
use crate::time::Timespec;
use crate::vfs::{Attr, FileType, SetAttr, SetTime};

/// How long attributes of a shared mount that a walk has just brought serve the call that walked.
const JUST_WALKED: Duration = Duration::from_micros(200);

/// How long an owner that cannot be proven is believed: that of a file that is being written to, so that its ctime proves nothing.
const OWNER_LASTS: Duration = Duration::from_millis(2);

/// What of the cached attributes can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Trust {
    /// Nothing: the gofer must be asked.
    Nothing,
    /// The owner; the rest has changed since, and any descriptor of the file tells it.
    Owner,
    /// All.
    Whole,
}

/// How many changes there were when the gofer was asked, and what the clock said that stamps files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    changes: u64,
    clock: Timestamp,
}

/// Attributes as the gofer told them last.
pub(super) struct Cached {
    pub(super) attr: wire::Attr,
    trust: Trust,
    learned: Instant,
    /// When the gofer told the owner.
    told: Instant,
    /// The ctime that proves the owner: as long as it is the file's, so is the owner.
    proof: Option<Timestamp>,
    /// How many changes have begun or ended, for [`Asked`].
    changes: u64,
    /// How many are being made.
    under_way: u32,
}

impl Cached {
    /// As the gofer told them when it was asked at `clock` by the clock that stamps files.
    pub(super) fn new(attr: wire::Attr, clock: Timestamp) -> Cached {
        let now = Instant::now();
        let proof = settled(attr.ctime, clock).then_some(attr.ctime);
        Cached { attr, trust: Trust::Whole, learned: now, told: now, proof, changes: 0, under_way: 0 }
    }

    /// How many changes there were.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// They were told then already.
    pub(super) fn came_ahead(&mut self, told: Instant) {
        (self.learned, self.told) = (self.learned.min(told), self.told.min(told));
    }

    /// To be kept from before the gofer is asked.
    pub(super) fn asking(&self) -> Asked {
        Asked { changes: self.changes, clock: stamp_clock() }
    }

    /// The gofer's answer. False if it came too late to be believed later on.
    pub(super) fn learn(&mut self, asked: Asked, attr: wire::Attr) -> bool {
        let timely = self.changes == asked.changes && self.under_way == 0;
        if timely {
            self.tell(attr);
            self.trust = Trust::Whole;
            self.proof = settled(attr.ctime, asked.clock).then_some(attr.ctime);
        }
        timely
    }

    fn tell(&mut self, attr: wire::Attr) {
        self.attr = attr;
        self.learned = Instant::now();
        self.told = self.learned;
    }

    /// Something has changed the file: only its owner is what it was.
    pub(super) fn spoil(&mut self) {
        self.changes = self.changes.wrapping_add(1);
        self.trust = self.trust.min(Trust::Owner);
    }

    /// Somebody may have changed its owner.
    pub(super) fn distrust(&mut self) {
        self.trust = Trust::Nothing;
        self.proof = None;
    }

    /// A change begins: until it ends nothing is believed longer than the call that asks.
    pub(super) fn begin(&mut self) -> Asked {
        self.spoil();
        self.under_way = self.under_way.saturating_add(1);
        self.asking()
    }

    /// A change has ended.
    pub(super) fn end(&mut self) {
        self.spoil();
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// A change of attributes has ended and brought the new ones. Such changes are made one after the other.
    pub(super) fn end_with(&mut self, begun: Asked, attr: wire::Attr) {
        let alone = self.changes == begun.changes && self.under_way == 1;
        self.end();
        self.tell(attr);
        self.proof = None;
        self.trust = if alone { Trust::Whole } else { Trust::Owner };
    }

    /// Whether they still are the host's.
    pub(super) fn usable(&self, fs: &GoferFs) -> bool {
        self.trust == Trust::Whole && (fs.is_exclusive() || self.learned.elapsed() < JUST_WALKED)
    }

    /// Whether the owner is the host's, so far as a walk has to know.
    pub(super) fn owner_known(&self) -> bool {
        self.trust >= Trust::Owner
    }

    /// The attributes of a shared file of which `fstat` told this, if the owner is known to be the same. They are not kept: they are
    /// read again for the next who asks.
    pub(super) fn proven(&self, host: &Stat) -> Option<wire::Attr> {
        let attr = self.as_seen(host);
        let recent = || self.owner_known() && self.under_way == 0 && self.told.elapsed() < OWNER_LASTS;
        (self.proof == Some(attr.ctime) || recent()).then_some(attr)
    }

    /// All but the owner and the time of birth from what `fstat` told.
    fn as_seen(&self, host: &Stat) -> wire::Attr {
        let time = |seconds: i64, nanoseconds: u64| Timestamp {
            seconds,
            nanoseconds: u32::try_from(nanoseconds).unwrap_or(0),
        };
        wire::Attr {
            permissions: host.st_mode & wire::attr::PERMISSIONS,
            nlink: u32::try_from(host.st_nlink).unwrap_or(u32::MAX),
            size: u64::try_from(host.st_size).unwrap_or(0),
            blocks: u64::try_from(host.st_blocks).unwrap_or(0),
            atime: time(host.st_atime, host.st_atime_nsec),
            mtime: time(host.st_mtime, host.st_mtime_nsec),
            ctime: time(host.st_ctime, host.st_ctime_nsec),
            ..self.attr
        }
    }

    /// Reads them from a host descriptor of the same file; the time of birth stays, and so does the owner: the sentry's user
    /// namespace has one id, so that `fstat` calls everybody else's files those of 65534. Only the gofer can tell owners.
    pub(super) fn read(&mut self, fd: impl AsFd) -> SysResult<()> {
        self.attr = self.as_seen(&rustix::fs::fstat(fd)?);
        self.learned = Instant::now();
        if self.under_way == 0 && self.owner_known() {
            self.trust = Trust::Whole;
        }
        Ok(())
    }
}

/// The attributes as the guest sees them.
pub(super) fn to_vfs(fs: &GoferFs, attr: &wire::Attr) -> Attr {
    let time = |time: Timestamp| Timespec { sec: time.seconds, nsec: time.nanoseconds };
    Attr {
        dev: fs.shown_device(attr.dev),
        ino: attr.ino,
        file_type: file_type(attr.kind),
        mode: attr.permissions,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: crate::vfs::Device { major: attr.rdev.major, minor: attr.rdev.minor },
        size: attr.size,
        blksize: attr.block_size,
        blocks: attr.blocks,
        atime: time(attr.atime),
        mtime: time(attr.mtime),
        ctime: time(attr.ctime),
        btime: (attr.btime != Timestamp::default()).then(|| time(attr.btime)),
    }
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::Regular,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::Fifo,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// A change as the protocol has it.
pub(super) fn to_wire(change: &SetAttr) -> wire::SetAttr {
    let time = |time: Option<SetTime>| match time {
        None => wire::SetTime::Keep,
        Some(SetTime::Now) => wire::SetTime::Now,
        Some(SetTime::At(at)) => wire::SetTime::At(Timestamp { seconds: at.sec, nanoseconds: at.nsec }),
    };
    wire::SetAttr {
        size: change.size,
        uid: change.uid,
        gid: change.gid,
        permissions: change.mode.map(|mode| mode & wire::attr::PERMISSIONS),
        atime: time(change.atime),
        mtime: time(change.mtime),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_does_not_tell_the_owner() {
        let mine = tempfile::tempfile().unwrap();
        mine.set_len(5).unwrap();
        let somebody = wire::Attr { uid: 4_242, gid: 4_343, ..attr_of_nothing() };
        let mut cached = Cached::new(somebody, Timestamp::default());
        cached.spoil();
        cached.read(&mine).unwrap();
        assert_eq!(cached.trust, Trust::Whole);
        assert_eq!((cached.attr.uid, cached.attr.gid, cached.attr.size), (4_242, 4_343, 5));
    }

    #[test]
    fn what_was_asked_before_a_change_is_not_believed_after() {
        let of_size = |size| wire::Attr { size, ..attr_of_nothing() };
        let mut cached = Cached::new(of_size(0), Timestamp::default());
        let asked = cached.asking();
        cached.begin();
        assert!(!cached.learn(asked, of_size(1)), "the change is under way");
        let asked_meanwhile = cached.asking();
        cached.end();
        assert!(!cached.learn(asked_meanwhile, of_size(1)), "the answer may be older than the change");
        assert_eq!((cached.attr.size, cached.trust), (0, Trust::Owner));
        assert!(cached.learn(cached.asking(), of_size(2)));
        assert_eq!((cached.attr.size, cached.trust), (2, Trust::Whole));
        let first = cached.begin();
        cached.begin();
        cached.end();
        cached.end_with(first, of_size(3));
        assert_eq!(cached.trust, Trust::Owner, "another change was made beside it");
        let second = cached.begin();
        cached.end_with(second, of_size(4));
        assert_eq!((cached.attr.size, cached.trust), (4, Trust::Whole));
    }

    /// On kernels that stamp every change that somebody could have told apart with a time of its own, no test with files can show this.
    #[test]
    fn a_time_of_the_same_tick_proves_no_owner() {
        let file = tempfile::tempfile().unwrap();
        let host = rustix::fs::fstat(&file).unwrap();
        let told = wire::Attr { ctime: crate::fs::gofer::witness::ctime(&host), ..attr_of_nothing() };
        for (late, proves) in [(0, false), (19, false), (21, true)] {
            let mut cached = Cached::new(attr_of_nothing(), Timestamp::default());
            let mut asked = cached.asking();
            asked.clock = told.ctime;
            asked.clock.nanoseconds += late * 1_000_000;
            assert!(cached.learn(asked, told));
            std::thread::sleep(OWNER_LASTS);
            assert_eq!(cached.proven(&host).is_some(), proves, "told {late} ms after the change");
            cached.distrust();
            assert!(cached.proven(&host).is_none());
        }
    }

    fn attr_of_nothing() -> wire::Attr {
        let never = Timestamp::default();
        wire::Attr {
            ino: 1,
            dev: wire::Device::default(),
            kind: FileKind::Regular,
            permissions: 0,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: wire::Device::default(),
            size: 0,
            blocks: 0,
            block_size: 4096,
            atime: never,
            mtime: never,
            ctime: never,
            btime: never,
        }
    }
}
