//! The virtual file system: paths, mounts, dentries, open file descriptions, descriptor tables.
//!
//! Read [`inode`] (what a file system implements), [`file`] (what an open file does), then [`path`] (walking).
//!
//! Lock order: mount tree, dentry children, inode locks of the file systems, then data locks. Renames take the
//! file system's rename lock first.

pub mod attachments;
pub mod fd_table;
pub mod file;
pub mod fs_context;
pub mod inode;
pub mod path;
pub mod permission;

pub use fd_table::{Fd, FdTable};
pub use file::{DirEntry, DirSink, File, FileOps, OpenFlags, Whence};
pub use fs_context::{FsContext, MountNamespace};
pub use inode::{
    Access, Attr, DentryCache, Device, FileSystem, FileType, FsStat, Inode, LinkTarget, NewInode, NodeKind,
    RenameFlags, SetAttr, SetTime,
};
pub use path::VfsPath;
