//! Made-up symbolic links.

use std::sync::Arc;

use super::{Node, Owner, PseudoFs};
use crate::errno::{Errno, SysResult};
use crate::vfs::attachments::Attachments;
use crate::vfs::{
    Attr, Caller, FileOps, FileSystem, FileType, Inode, LinkTarget, OpenFlags, SetAttr, VfsPath,
};

/// Where a link leads.
pub trait Link: Owner + 'static {
    /// What `readlink` shows to this reader.
    fn text(&self, caller: &Caller<'_>) -> SysResult<Vec<u8>>;

    /// What following it means; magic links jump.
    fn target(&self, caller: &Caller<'_>) -> SysResult<LinkTarget> {
        self.text(caller).map(LinkTarget::Path)
    }
}

/// A fixed path.
impl Link for &'static str {
    fn text(&self, _caller: &Caller<'_>) -> SysResult<Vec<u8>> {
        Ok(self.as_bytes().to_vec())
    }
}

impl Owner for &'static str {}

/// A link inode over a [`Link`].
pub struct PseudoLink<L> {
    node: Node,
    source: L,
}

impl<L: Link> PseudoLink<L> {
    /// A link; `mode` is what `lstat` shows.
    pub fn inode(fs: &Arc<PseudoFs>, mode: u32, source: L) -> Arc<dyn Inode> {
        Arc::new(PseudoLink { node: Node::new(fs, FileType::Symlink, mode, &source), source })
    }
}

impl<L: Link> Inode for PseudoLink<L> {
    fn attr(&self) -> SysResult<Attr> {
        Ok(self.node.attr(self.source.owner(), 1, 0))
    }

    fn file_type(&self) -> FileType {
        FileType::Symlink
    }

    fn set_attr(&self, change: &SetAttr) -> SysResult {
        self.node.set_attr(self.source.owner(), change);
        Ok(())
    }

    fn file_system(&self) -> SysResult<Arc<dyn FileSystem>> {
        self.node.file_system()
    }

    fn readlink(&self, caller: &Caller<'_>) -> SysResult<Vec<u8>> {
        self.source.text(caller)
    }

    fn follow(&self, caller: &Caller<'_>) -> SysResult<LinkTarget> {
        self.source.target(caller)
    }

    fn open(&self, _caller: &Caller<'_>, _path: &VfsPath, _flags: OpenFlags) -> SysResult<Arc<dyn FileOps>> {
        Err(Errno::ELOOP)
    }

    fn attachments(&self) -> &Attachments {
        &self.node.attachments
    }
}
