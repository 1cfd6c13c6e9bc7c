//! Open directories.
//!
//! Positions: 0 is `.`, 1 is `..`, 2 is the gofer's start, and everything else is what the host's file system calls the place
//! behind an entry, so that `seekdir` works as on the host. No host file system calls the place behind a real entry 0, 1 or 2, since the
//! first two entries are `.` and `..` there as well.

use std::sync::Arc;

use caisson_proto::lisafs::reply::{Entries, Entry};
use caisson_proto::lisafs::{FdId, FileKind, MAX_DATA};
use parking_lot::Mutex;

use super::GoferFs;
use super::inode::GoferInode;
use crate::errno::{Errno, SysResult};
use crate::vfs::listing::{self, FIRST};
use crate::vfs::{DirEntry, DirSink, File, FileOps, Inode, Whence};

/// A directory that is being read.
pub(super) struct OpenDirectory {
    inode: Arc<GoferInode>,
    fs: Arc<GoferFs>,
    reading: Mutex<Reading>,
}

/// Entries that the gofer has sent, and which of them nobody has taken yet.
#[derive(Default)]
struct Reading {
    open: Option<FdId>,
    entries: Vec<u8>,
    /// They are those from the start to the end.
    whole: bool,
    /// Bytes of those that were taken.
    taken: usize,
    /// The position of what comes next.
    at: u64,
}

impl OpenDirectory {
    pub(super) fn new(inode: Arc<GoferInode>, fs: Arc<GoferFs>) -> OpenDirectory {
        OpenDirectory { inode, fs, reading: Mutex::default() }
    }
}

impl Reading {
    /// Makes the entries from `offset` on be there; false at the end.
    fn fill(&mut self, inode: &GoferInode, fs: &GoferFs, offset: u64) -> SysResult<bool> {
        if self.at == offset && self.taken < self.entries.len() {
            return Ok(true);
        }
        if self.whole && self.go_to(offset) {
            return Ok(self.taken < self.entries.len());
        }
        inode.being_listed();
        let max = u32::try_from(MAX_DATA).map_err(|_| Errno::EINVAL)?;
        if offset == FIRST && self.open.is_none() {
            (self.entries, self.open) = fs.client().list(inode.fd(), max)?;
            self.whole = self.open.is_none();
        } else {
            let open = match self.open {
                Some(open) => open,
                None => *self.open.insert(fs.client().open_dir(inode.fd())?),
            };
            let position = if offset == FIRST { 0 } else { offset };
            self.entries = fs.client().read_dir(open, position, max)?;
            self.whole = false;
        }
        (self.at, self.taken) = (offset, 0);
        Ok(!self.entries.is_empty())
    }

    /// Goes to a position among the entries; false if none of them has it.
    fn go_to(&mut self, offset: u64) -> bool {
        let mut rest = Entries::new(&self.entries);
        let (mut at, mut taken) = (FIRST, 0);
        while at != offset {
            let Some(Ok(entry)) = rest.next() else { return false };
            (at, taken) = (entry.next, self.entries.len().saturating_sub(rest.remaining()));
        }
        (self.at, self.taken) = (at, taken);
        true
    }

    /// Has the next entries read anew, from the start.
    fn rewind(&mut self) {
        (self.at, self.taken, self.entries, self.whole) = (FIRST, 0, Vec::new(), false);
    }

    /// Gives entries to the sink until it is full; false then.
    fn drain(&mut self, offset: &mut u64, sink: &mut dyn DirSink) -> SysResult<bool> {
        let mut rest = Entries::new(self.entries.get(self.taken..).unwrap_or_default());
        while let Some(entry) = rest.next() {
            let entry: Entry<'_> = entry.map_err(|_| Errno::EIO)?;
            let file_type = entry.kind.map_or(0, FileKind::dirent_type);
            let name = entry.name.as_bytes();
            if !sink.emit(DirEntry { ino: entry.ino, next: entry.next, file_type, name }) {
                return Ok(false);
            }
            self.taken = self.entries.len().saturating_sub(rest.remaining());
            self.at = entry.next;
            *offset = entry.next;
        }
        Ok(true)
    }
}

impl FileOps for OpenDirectory {
    fn iterate(&self, file: &File, offset: &mut u64, sink: &mut dyn DirSink) -> SysResult {
        if *offset < FIRST && !listing::dots(file, self.inode.attr()?.ino, offset, sink) {
            return Ok(());
        }
        let mut reading = self.reading.lock();
        loop {
            if !reading.fill(&self.inode, &self.fs, *offset)? || !reading.drain(offset, sink)? {
                return Ok(());
            }
        }
    }

    fn seekable(&self) -> bool {
        true
    }

    fn seek(&self, _file: &File, current: u64, offset: i64, whence: Whence) -> SysResult<u64> {
        let position = listing::seek(current, offset, whence)?;
        // Going back to the start reads the directory anew.
        if position == 0 {
            self.reading.lock().rewind();
        }
        Ok(position)
    }

    fn read(&self, _file: &File, _dst: &mut dyn crate::io::IoDst, _offset: &mut u64) -> SysResult<usize> {
        Err(Errno::EISDIR)
    }

    fn fsync(&self, _file: &File, _data_only: bool) -> SysResult {
        self.fs.client().fsync(self.inode.fd())
    }
}

impl Drop for OpenDirectory {
    fn drop(&mut self) {
        if let Some(open) = self.reading.get_mut().open {
            self.fs.close_later(open);
        }
    }
}
