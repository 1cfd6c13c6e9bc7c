//! Made-up directories.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Node, Owner, PseudoFs};
use crate::errno::{Errno, SysResult};
use crate::vfs::attachments::Attachments;
use crate::vfs::listing::{self, FIRST};
use crate::vfs::{
    Attr, Caller, DentryCache, DirEntry, DirSink, File, FileOps, FileSystem, FileType, Inode, OpenFlags,
    SetAttr, VfsPath, Whence,
};

/// One name in a directory.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The name.
    pub name: Vec<u8>,
    /// Its type.
    pub file_type: FileType,
    /// Its inode number.
    pub ino: u64,
}

/// Where a directory's names come from.
pub trait Directory: Owner + 'static {
    /// The child `name`; `ENOENT` if there is none.
    fn lookup(&self, name: &[u8]) -> SysResult<Arc<dyn Inode>>;

    /// All names, in a stable order.
    fn entries(&self) -> SysResult<Vec<Entry>>;

    /// How long names may be cached.
    fn cache(&self) -> DentryCache {
        DentryCache::Never
    }
}

/// A directory inode over a [`Directory`].
pub struct PseudoDir<D: ?Sized = dyn Directory> {
    node: Node,
    source: D,
}

impl<D: Directory> PseudoDir<D> {
    /// A directory with permission bits `mode`.
    pub fn inode(fs: &Arc<PseudoFs>, mode: u32, source: D) -> Arc<dyn Inode> {
        Arc::new(PseudoDir { node: Node::new(fs, FileType::Directory, mode, &source), source })
    }
}

impl<D> PseudoDir<D> {
    /// What it is made from.
    pub fn source(&self) -> &D {
        &self.source
    }
}

impl<D: Directory> Inode for PseudoDir<D> {
    fn attr(&self) -> SysResult<Attr> {
        let subdirectories = match self.source.cache() {
            DentryCache::Never => 0,
            _ => self.source.entries()?.iter().filter(|entry| entry.file_type == FileType::Directory).count(),
        };
        let nlink = u32::try_from(subdirectories).unwrap_or(u32::MAX).saturating_add(2);
        Ok(self.node.attr(self.source.owner(), nlink, 0))
    }

    fn file_type(&self) -> FileType {
        FileType::Directory
    }

    fn set_attr(&self, change: &SetAttr) -> SysResult {
        self.node.set_attr(self.source.owner(), change);
        Ok(())
    }

    fn file_system(&self) -> SysResult<Arc<dyn FileSystem>> {
        self.node.file_system()
    }

    fn dentry_cache(&self) -> DentryCache {
        self.source.cache()
    }

    fn lookup(&self, name: &[u8]) -> SysResult<Arc<dyn Inode>> {
        self.source.lookup(name)
    }

    fn open(&self, _caller: &Caller<'_>, _path: &VfsPath, _flags: OpenFlags) -> SysResult<Arc<dyn FileOps>> {
        Ok(Arc::new(OpenDir { ino: self.node.ino(), entries: self.source.entries()? }))
    }

    fn attachments(&self) -> &Attachments {
        &self.node.attachments
    }
}

/// An open directory: the names it had when it was opened. Positions are 0 for `.`, 1 for `..`, then the entries.
pub(crate) struct OpenDir {
    ino: u64,
    entries: Vec<Entry>,
}

impl OpenDir {
    /// The directory number `ino`, with these names besides `.` and `..`.
    pub(crate) fn new(ino: u64, entries: Vec<Entry>) -> OpenDir {
        OpenDir { ino, entries }
    }
}

impl FileOps for OpenDir {
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
        if !listing::dots(file, self.ino, offset, sink) {
            return Ok(());
        }
        let taken = usize::try_from(offset.saturating_sub(FIRST)).unwrap_or(usize::MAX);
        for entry in self.entries.iter().skip(taken) {
            let next = offset.saturating_add(1);
            let file_type = entry.file_type.dirent_type();
            if !sink.emit(DirEntry { ino: entry.ino, next, file_type, name: &entry.name }) {
                return Ok(());
            }
            *offset = next;
        }
        Ok(())
    }

    fn fsync(&self, _file: &File, _data_only: bool) -> SysResult {
        Ok(())
    }
}

/// A directory whose names never change.
#[derive(Default)]
pub struct StaticDir {
    children: BTreeMap<Vec<u8>, (Arc<dyn Inode>, u64)>,
}

impl StaticDir {
    /// An empty directory.
    pub fn new() -> StaticDir {
        StaticDir::default()
    }

    /// Adds a child; a second one of the same name replaces the first.
    pub fn with(mut self, name: &str, child: Arc<dyn Inode>) -> StaticDir {
        let ino = child.attr().map_or(0, |attr| attr.ino);
        self.children.insert(name.as_bytes().to_vec(), (child, ino));
        self
    }
}

impl Owner for StaticDir {}

impl Directory for StaticDir {
    fn lookup(&self, name: &[u8]) -> SysResult<Arc<dyn Inode>> {
        self.children.get(name).map(|(child, _)| child.clone()).ok_or(Errno::ENOENT)
    }

    fn entries(&self) -> SysResult<Vec<Entry>> {
        let entry = |(name, (child, ino)): (&Vec<u8>, &(Arc<dyn Inode>, u64))| Entry {
            name: name.clone(),
            file_type: child.file_type(),
            ino: *ino,
        };
        Ok(self.children.iter().map(entry).collect())
    }

    fn cache(&self) -> DentryCache {
        DentryCache::Exclusive
    }
}
