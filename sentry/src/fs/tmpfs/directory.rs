//! The names in a directory, and reading them.
//!
//! Every entry gets the next number when it is made and keeps it; that number is its `getdents` position. So a reader sees
//! each entry that exists all the time exactly once, whatever is created or removed meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};

use super::inode::TmpInode;
use crate::errno::{Errno, SysResult};
use crate::vfs::listing::{self, FIRST};
use crate::vfs::{DirEntry, DirSink, File, FileOps, FileType, Inode, Whence};

/// The names of one directory.
pub(super) struct Entries {
    by_name: HashMap<Arc<[u8]>, u64>,
    by_position: BTreeMap<u64, (Arc<[u8]>, Arc<TmpInode>)>,
    next: u64,
}

impl Default for Entries {
    fn default() -> Self {
        Entries { by_name: HashMap::new(), by_position: BTreeMap::new(), next: FIRST }
    }
}

impl Entries {
    pub fn get(&self, name: &[u8]) -> Option<&Arc<TmpInode>> {
        self.by_name.get(name).and_then(|position| self.by_position.get(position)).map(|(_, inode)| inode)
    }

    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Adds a name; `EEXIST` if it is taken.
    pub fn add(&mut self, name: &[u8], inode: Arc<TmpInode>) -> SysResult {
        if self.by_name.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let name: Arc<[u8]> = Arc::from(name);
        let position = self.next;
        self.next = position.saturating_add(1);
        self.by_name.insert(name.clone(), position);
        self.by_position.insert(position, (name, inode));
        Ok(())
    }

    /// Removes a name and returns what it stood for.
    pub fn remove(&mut self, name: &[u8]) -> Option<Arc<TmpInode>> {
        let position = self.by_name.remove(name)?;
        self.by_position.remove(&position).map(|(_, inode)| inode)
    }

    /// Lets a name stand for another inode, in its place; returns the old one.
    pub fn replace(&mut self, name: &[u8], inode: Arc<TmpInode>) -> Option<Arc<TmpInode>> {
        let position = self.by_name.get(name)?;
        let slot = self.by_position.get_mut(position)?;
        Some(std::mem::replace(&mut slot.1, inode))
    }

    /// Takes all inodes out.
    pub fn drain(&mut self) -> impl Iterator<Item = Arc<TmpInode>> + use<> {
        self.by_name.clear();
        std::mem::take(&mut self.by_position).into_values().map(|(_, inode)| inode)
    }
}

/// The operations of an open directory; its state is the inode's and the description's position.
pub(super) struct DirectoryOps;

/// The one object of them.
pub(super) fn operations() -> Arc<dyn FileOps> {
    static OPS: LazyLock<Arc<dyn FileOps>> = LazyLock::new(|| Arc::new(DirectoryOps));
    OPS.clone()
}

/// How many entries are copied out of the lock at once.
const BATCH: usize = 128;

struct Copied {
    position: u64,
    ino: u64,
    file_type: FileType,
    name: Arc<[u8]>,
}

fn batch(inode: &TmpInode, from: u64) -> SysResult<Vec<Copied>> {
    let entries = inode.entries()?.read();
    let range = entries.by_position.range(from.max(FIRST)..).take(BATCH);
    let copy = |(position, (name, inode)): (&u64, &(Arc<[u8]>, Arc<TmpInode>))| Copied {
        position: *position,
        ino: inode.ino(),
        file_type: inode.file_type(),
        name: name.clone(),
    };
    Ok(range.map(copy).collect())
}

impl FileOps for DirectoryOps {
    fn seekable(&self) -> bool {
        true
    }

    fn read(&self, _file: &File, _dst: &mut dyn crate::io::IoDst, _offset: &mut u64) -> SysResult<usize> {
        Err(Errno::EISDIR)
    }

    fn seek(&self, _file: &File, current: u64, offset: i64, whence: Whence) -> SysResult<u64> {
        listing::seek(current, offset, whence)
    }

    fn iterate(&self, file: &File, offset: &mut u64, sink: &mut dyn DirSink) -> SysResult {
        let inode = file.inode().downcast::<TmpInode>().ok_or(Errno::EIO)?;
        if !listing::dots(file, inode.ino(), offset, sink) {
            return Ok(());
        }
        loop {
            let entries = batch(inode, *offset)?;
            if entries.is_empty() {
                return Ok(());
            }
            for entry in &entries {
                let next = entry.position.saturating_add(1);
                let file_type = entry.file_type.dirent_type();
                if !sink.emit(DirEntry { ino: entry.ino, next, file_type, name: &entry.name }) {
                    return Ok(());
                }
                *offset = next;
            }
        }
    }

    fn fsync(&self, _file: &File, _data_only: bool) -> SysResult {
        Ok(())
    }
}
