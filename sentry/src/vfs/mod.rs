//! The virtual file system: paths, mounts, dentries, open file descriptions, descriptor tables.
//!
//! Read [`inode`] (what a file system implements), [`file`] (what an open file does), then [`path`], [`walk`] (how paths
//! are resolved), [`dentry`] (the name cache) and [`mount`]. Everything is done on behalf of a [`Caller`].
//!
//! Lock order: a superblock's rename lock, a directory's `modify` lock (ancestors first), dentry children and places,
//! inode locks of the file systems, then data locks. The mount tree is a leaf apart from places of dentries.

mod absent;
pub mod attachments;
pub mod attributes;
pub mod caller;
mod create;
pub mod dentry;
#[cfg(test)]
mod differential;
pub mod fd_table;
pub mod file;
pub mod inode;
pub mod inotify;
pub mod internal;
pub mod listing;
pub mod locks;
pub mod mount;
pub mod mount_namespace;
pub mod notify;
pub mod open;
pub mod path;
pub mod permission;
pub mod plan;
pub mod recent;
pub mod registries;
mod remove;
mod rename;
pub mod special;
pub mod times;
pub mod walk;

pub use caller::{Caller, FsContext, FsPlaces};
pub use dentry::Dentry;
pub use fd_table::{Fd, FdTable};
pub use file::{DirEntry, DirSink, File, FileOps, OUTER_POSITION, OpenFlags, Whence};
pub use inode::{
    Access, Attr, DentryCache, Device, FileSystem, FileType, FsStat, Inode, LinkTarget, NewInode, NodeKind,
    RenameFlags, SetAttr, SetTime,
};
pub use mount::{Mount, MountFlags, Superblock};
pub use mount_namespace::MountNamespace;
pub use open::OpenHow;
pub use path::{PathText, VfsPath};
pub use special::SpecialFiles;
pub use walk::{Last, Parent, WalkFlags};
