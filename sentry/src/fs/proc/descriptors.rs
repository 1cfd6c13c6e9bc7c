//! `/proc/N/fd` and `/proc/N/fdinfo`.

use std::sync::{Arc, Weak};

use super::links::{Magic, MagicLink};
use super::process::Numbered;
use super::root;
use crate::errno::{Errno, SysResult};
use crate::fs::pseudo::{Directory, Entry, Owner, PseudoFile, PseudoFs, PseudoLink, Text};
use crate::vfs::{Fd, FileType, Inode, OpenFlags};

/// Inode numbers of descriptors start here within a process's.
const FIRST: u64 = 0x1000;

/// What a directory shows of each descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FdView {
    /// A link to the file.
    Link,
    /// Position, flags, and what the file adds.
    Info,
}

/// One of the two directories.
pub struct FdDir {
    /// The mount.
    pub fs: Weak<PseudoFs>,
    /// Whose.
    pub at: Numbered,
    /// Which.
    pub view: FdView,
}

impl Owner for FdDir {
    fn owner(&self) -> (u32, u32) {
        self.at.owner()
    }

    fn ino(&self) -> Option<u64> {
        self.at.ino()
    }
}

fn descriptor(name: &[u8]) -> SysResult<Fd> {
    let number = if name == b"0" { 0 } else { root::number(name)? };
    Fd::from_arg(u64::from(number.unsigned_abs()))
}

impl FdDir {
    fn numbered(&self, fd: Fd) -> Numbered {
        let n = FIRST
            .wrapping_add((fd.index() as u64 & 0x3fff) << 1)
            .wrapping_add(u64::from(self.view == FdView::Info));
        self.at.subject.numbered(n)
    }
}

impl Directory for FdDir {
    fn lookup(&self, name: &[u8]) -> SysResult<Arc<dyn Inode>> {
        let fs = self.fs.upgrade().ok_or(Errno::ESTALE)?;
        let fd = descriptor(name)?;
        let file = self.at.subject.task()?.files().get(fd).map_err(|_| Errno::ENOENT)?;
        let at = self.numbered(fd);
        Ok(match self.view {
            FdView::Info => PseudoFile::inode(&fs, 0o444, FdInfo { at, fd }),
            FdView::Link => {
                let flags = file.flags();
                let path_only = flags.contains(OpenFlags::PATH);
                let readable = if flags.readable() || path_only { 0o500 } else { 0 };
                let writable = if flags.writable() { 0o300 } else { 0 };
                PseudoLink::inode(&fs, readable | writable, MagicLink { at, which: Magic::Fd(fd) })
            }
        })
    }

    fn entries(&self) -> SysResult<Vec<Entry>> {
        let file_type = if self.view == FdView::Link { FileType::Symlink } else { FileType::Regular };
        let open = self.at.subject.task()?.files().list();
        let entry = |(fd, _): &(Fd, Arc<crate::vfs::File>)| Entry {
            name: fd.index().to_string().into_bytes(),
            file_type,
            ino: self.numbered(*fd).ino().unwrap_or(0),
        };
        Ok(open.iter().map(entry).collect())
    }
}

struct FdInfo {
    at: Numbered,
    fd: Fd,
}

impl Owner for FdInfo {
    fn owner(&self) -> (u32, u32) {
        self.at.owner()
    }

    fn ino(&self) -> Option<u64> {
        self.at.ino()
    }
}

impl Text for FdInfo {
    fn text(&self) -> SysResult<Vec<u8>> {
        let files = self.at.subject.task()?.files();
        let file = files.get(self.fd).map_err(|_| Errno::ENOENT)?;
        let cloexec = if files.close_on_exec(self.fd)? { OpenFlags::CLOEXEC } else { OpenFlags::empty() };
        let position = file.with_position(|position| *position);
        let flags = (file.flags() | cloexec).bits();
        let mount = file.path().map_or(0, |path| path.mount().id());
        let ino = file.inode().attr().map_or(0, |attr| attr.ino);
        let head = format!("pos:\t{position}\nflags:\t0{flags:o}\nmnt_id:\t{mount}\nino:\t{ino}\n");
        Ok((head + &file.ops().fdinfo()).into_bytes())
    }
}
