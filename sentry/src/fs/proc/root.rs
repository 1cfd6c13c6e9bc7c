//! The top of `/proc`: fixed names, then processes by number.

use std::sync::{Arc, Weak};

use super::process::{Subject, View};
use super::{links, sys, system, sysvipc};
use crate::errno::{Errno, SysResult};
use crate::fs::pseudo::{Directory, Entry, Owner, PseudoDir, PseudoFs, PseudoLink, StaticDir};
use crate::kernel::Kernel;
use crate::task::PidNamespace;
use crate::vfs::{FileType, Inode};

/// The root directory.
pub struct Root {
    fs: Weak<PseudoFs>,
    namespace: Arc<PidNamespace>,
    fixed: StaticDir,
}

impl Root {
    /// The root directory's inode.
    pub fn inode(
        fs: &Arc<PseudoFs>,
        kernel: &Arc<Kernel>,
        namespace: &Arc<PidNamespace>,
    ) -> SysResult<Arc<dyn Inode>> {
        let own = |thread| links::Own { namespace: namespace.clone(), thread };
        let fixed = StaticDir::new()
            .with("self", PseudoLink::inode(fs, 0o777, own(false)))
            .with("thread-self", PseudoLink::inode(fs, 0o777, own(true)))
            .with("mounts", PseudoLink::inode(fs, 0o777, "self/mounts"))
            .with("net", PseudoLink::inode(fs, 0o777, "self/net"))
            .with("sys", sys::directory(fs, kernel)?)
            .with("sysvipc", sysvipc::directory(fs, kernel))
            .with("tty", PseudoDir::inode(fs, 0o555, StaticDir::new()))
            .with("fs", PseudoDir::inode(fs, 0o555, StaticDir::new()));
        let fixed = system::add_to(fixed, fs, kernel);
        Ok(PseudoDir::inode(fs, 0o555, Root { fs: Arc::downgrade(fs), namespace: namespace.clone(), fixed }))
    }
}

impl Owner for Root {}

impl Directory for Root {
    fn lookup(&self, name: &[u8]) -> SysResult<Arc<dyn Inode>> {
        match self.fixed.lookup(name) {
            Err(Errno::ENOENT) => {}
            found => return found,
        }
        let fs = self.fs.upgrade().ok_or(Errno::ESTALE)?;
        // Threads are found by number, too, but not listed, as in Linux.
        let task = self.namespace.task(number(name)?).ok_or(Errno::ENOENT)?;
        Ok(Subject::new(&task, &self.namespace, View::Process).directory(&fs))
    }

    fn entries(&self) -> SysResult<Vec<Entry>> {
        let mut entries = self.fixed.entries()?;
        for group in self.namespace.thread_groups() {
            let Some(leader) = group.leader() else { continue };
            let subject = Subject::new(&leader, &self.namespace, View::Process);
            entries.push(Entry {
                name: group.pid().number_in(&self.namespace).to_string().into_bytes(),
                file_type: FileType::Directory,
                ino: subject.ino().unwrap_or(0),
            });
        }
        Ok(entries)
    }
}

/// A name that is a process or thread number: decimal without leading zeros.
pub fn number(name: &[u8]) -> SysResult<i32> {
    let canonical = name.first().is_some_and(|&first| first != b'0') && name.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(name).ok().filter(|_| canonical).ok_or(Errno::ENOENT)?;
    text.parse().map_err(|_| Errno::ENOENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_canonical() {
        assert_eq!(number(b"1"), Ok(1));
        assert_eq!(number(b"4194303"), Ok(4_194_303));
        for bad in [&b""[..], b"0", b"01", b"+1", b"1x", b"99999999999"] {
            assert_eq!(number(bad), Err(Errno::ENOENT), "{bad:?}");
        }
    }
}
