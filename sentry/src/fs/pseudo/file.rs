//! Made-up regular files.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{Node, Owner, PseudoFs};
use crate::errno::{Errno, SysResult};
use crate::io::{IoDst, IoSrc};
use crate::vfs::attachments::Attachments;
use crate::vfs::{
    Attr, Caller, File, FileOps, FileSystem, FileType, Inode, OpenFlags, SetAttr, VfsPath, Whence,
};

/// The longest write a made-up file takes at once, in bytes; Linux's limit is a page, too.
const MAX_WRITE: usize = 4096;

/// Where a file's bytes come from.
pub trait Text: Owner + 'static {
    /// The whole content, now.
    fn text(&self) -> SysResult<Vec<u8>>;

    /// Takes a write of at most a page that begins at `offset`.
    fn write(&self, data: &[u8], offset: u64) -> SysResult {
        let _ = (data, offset);
        Err(Errno::EINVAL)
    }

    /// Called with the opener's context; may refuse (`/proc/PID/mem` of another user).
    fn check_open(&self, caller: &Caller<'_>, flags: OpenFlags) -> SysResult {
        let _ = (caller, flags);
        Ok(())
    }
}

/// A [`Text`] that needs no state but a plain function.
pub struct TextFn(pub fn() -> Vec<u8>);

impl Owner for TextFn {}

impl Text for TextFn {
    fn text(&self) -> SysResult<Vec<u8>> {
        Ok((self.0)())
    }
}

/// A file inode over a [`Text`].
pub struct PseudoFile<T> {
    node: Node,
    source: Arc<T>,
}

impl<T: Text> PseudoFile<T> {
    /// A file with permission bits `mode`.
    pub fn inode(fs: &Arc<PseudoFs>, mode: u32, source: T) -> Arc<dyn Inode> {
        Arc::new(PseudoFile {
            node: Node::new(fs, FileType::Regular, mode, &source),
            source: Arc::new(source),
        })
    }
}

impl<T: Text> Inode for PseudoFile<T> {
    fn attr(&self) -> SysResult<Attr> {
        Ok(self.node.attr(self.source.owner(), 1, 0))
    }

    fn file_type(&self) -> FileType {
        FileType::Regular
    }

    fn set_attr(&self, change: &SetAttr) -> SysResult {
        self.node.set_attr(self.source.owner(), change);
        Ok(())
    }

    fn file_system(&self) -> SysResult<Arc<dyn FileSystem>> {
        self.node.file_system()
    }

    fn open(&self, caller: &Caller<'_>, _path: &VfsPath, flags: OpenFlags) -> SysResult<Arc<dyn FileOps>> {
        self.source.check_open(caller, flags)?;
        Ok(Arc::new(OpenText { source: self.source.clone(), snapshot: Mutex::new(None) }))
    }

    fn attachments(&self) -> &Attachments {
        &self.node.attachments
    }
}

/// An open made-up file with the copy its reader is working through.
struct OpenText<T> {
    source: Arc<T>,
    snapshot: Mutex<Option<Vec<u8>>>,
}

impl<T: Text> FileOps for OpenText<T> {
    fn read(&self, _file: &File, dst: &mut dyn IoDst, offset: &mut u64) -> SysResult<usize> {
        let mut snapshot = self.snapshot.lock();
        if *offset == 0 || snapshot.is_none() {
            *snapshot = Some(self.source.text()?);
        }
        let text = snapshot.as_deref().unwrap_or_default();
        let rest = usize::try_from(*offset).ok().and_then(|at| text.get(at..)).unwrap_or_default();
        if rest.is_empty() {
            return Ok(0);
        }
        let read = dst.put(rest)?;
        *offset = offset.saturating_add(read as u64);
        Ok(read)
    }

    fn write(&self, _file: &File, src: &mut dyn IoSrc, offset: &mut u64) -> SysResult<usize> {
        let mut data = vec![0; src.remaining().min(MAX_WRITE)];
        let len = src.take(&mut data)?;
        self.source.write(data.get(..len).unwrap_or_default(), *offset)?;
        *offset = offset.saturating_add(len as u64);
        Ok(len)
    }

    fn seekable(&self) -> bool {
        true
    }

    fn seek(&self, _file: &File, current: u64, offset: i64, whence: Whence) -> SysResult<u64> {
        let base = match whence {
            Whence::Start => 0,
            Whence::Current => current,
            _ => return Err(Errno::EINVAL),
        };
        base.checked_add_signed(offset).ok_or(Errno::EINVAL)
    }
}
