//! The links in `/proc`: `self`, and the magic ones that jump instead of naming a path.

use std::sync::Arc;

use super::process::{Numbered, OwnedDir, Subject};
use crate::errno::{Errno, SysResult};
use crate::fs::nsfs::Namespace;
use crate::fs::pseudo::{Link, Owner, PseudoFs, PseudoLink, StaticDir};
use crate::task::{PidNamespace, Task};
use crate::vfs::caller::Caller;
use crate::vfs::{Fd, File, LinkTarget, VfsPath};

/// `/proc/self` and `/proc/thread-self`.
pub struct Own {
    /// Whose numbers.
    pub namespace: Arc<PidNamespace>,
    /// The thread instead of the process.
    pub thread: bool,
}

impl Owner for Own {}

impl Link for Own {
    fn text(&self, caller: &Caller<'_>) -> SysResult<Vec<u8>> {
        let task = caller.task.ok_or(Errno::ENOENT)?;
        let process = task.thread_group().pid().number_in(&self.namespace);
        if process == 0 {
            return Err(Errno::ENOENT);
        }
        if !self.thread {
            return Ok(process.to_string().into_bytes());
        }
        let thread = task.pid().number_in(&self.namespace);
        Ok(format!("{process}/task/{thread}").into_bytes())
    }
}

/// Places of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Working directory.
    Cwd,
    /// Executable.
    Exe,
    /// Root directory.
    Root,
}

/// What a magic link stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Magic {
    /// A place.
    Place(Which),
    /// A descriptor.
    Fd(Fd),
}

/// A magic link of a process.
pub struct MagicLink {
    /// Whose.
    pub at: Numbered,
    /// To what.
    pub which: Magic,
}

impl Owner for MagicLink {
    fn owner(&self) -> (u32, u32) {
        self.at.owner()
    }

    fn ino(&self) -> Option<u64> {
        self.at.ino()
    }
}

enum Found {
    Place(VfsPath),
    File(Arc<File>),
}

impl MagicLink {
    fn find(&self, task: &Task) -> SysResult<Found> {
        match self.which {
            Magic::Place(Which::Cwd) => Ok(Found::Place(task.fs().places().cwd.clone())),
            Magic::Place(Which::Root) => Ok(Found::Place(task.fs().places().root.clone())),
            Magic::Place(Which::Exe) => task.mm().image().exe.map(Found::File).ok_or(Errno::ENOENT),
            Magic::Fd(fd) => task.files().get(fd).map(Found::File).map_err(|_| Errno::ENOENT),
        }
    }
}

/// What `readlink` shows for an open file.
pub fn file_text(file: &File, root: &VfsPath) -> Vec<u8> {
    match (file.ops().anonymous_name(), file.path()) {
        (Some(name), _) => name.into_bytes(),
        (None, Some(path)) => path.text(root).for_link(),
        (None, None) => b"anon_inode:[unknown]".to_vec(),
    }
}

impl Link for MagicLink {
    fn text(&self, caller: &Caller<'_>) -> SysResult<Vec<u8>> {
        self.at.subject.may_inspect(caller)?;
        Ok(match self.find(&*self.at.subject.task()?)? {
            Found::Place(path) => path.text(caller.root()).for_link(),
            Found::File(file) => file_text(&file, caller.root()),
        })
    }

    fn target(&self, caller: &Caller<'_>) -> SysResult<LinkTarget> {
        self.at.subject.may_inspect(caller)?;
        Ok(match self.find(&*self.at.subject.task()?)? {
            Found::Place(path) => LinkTarget::Jump(path),
            Found::File(file) => match file.path() {
                Some(path) => LinkTarget::Jump(path.clone()),
                None => LinkTarget::Reopen(file),
            },
        })
    }
}

/// `/proc/N/ns/*`: a namespace, shown by its kind and number.
pub struct NamespaceLink {
    at: Numbered,
    find: fn(&Task) -> SysResult<Namespace>,
}

type NamespaceRow = (&'static str, fn(&Task) -> SysResult<Namespace>);

const NAMESPACES: &[NamespaceRow] = &[
    ("ipc", |task| Ok(Namespace::Ipc(task.namespaces().ipc.clone()))),
    ("mnt", |task| Ok(Namespace::Mount(task.namespaces().mount.clone()))),
    ("net", |task| Ok(Namespace::Net(task.namespaces().net.clone()))),
    ("pid", |task| task.pid_namespace().map(Namespace::Pid).ok_or(Errno::ESRCH)),
    ("pid_for_children", |task| Ok(Namespace::Pid(task.namespaces().pid_for_children.clone()))),
    ("user", |task| Ok(Namespace::User(task.namespaces().user.clone()))),
    ("uts", |task| Ok(Namespace::Uts(task.namespaces().uts.clone()))),
];

impl NamespaceLink {
    /// The directory `ns`.
    pub fn directory(fs: &Arc<PseudoFs>, subject: &Subject) -> OwnedDir {
        const FIRST: u64 = 200;
        let mut children = StaticDir::new();
        for (&(name, find), n) in NAMESPACES.iter().zip(FIRST..) {
            let link = NamespaceLink { at: subject.numbered(n), find };
            children = children.with(name, PseudoLink::inode(fs, 0o777, link));
        }
        OwnedDir { at: subject.numbered(FIRST - 1), children }
    }
}

impl Owner for NamespaceLink {
    fn owner(&self) -> (u32, u32) {
        self.at.owner()
    }

    fn ino(&self) -> Option<u64> {
        self.at.ino()
    }
}

impl Link for NamespaceLink {
    fn text(&self, caller: &Caller<'_>) -> SysResult<Vec<u8>> {
        self.at.subject.may_inspect(caller)?;
        Ok((self.find)(&*self.at.subject.task()?)?.text().into_bytes())
    }

    fn target(&self, caller: &Caller<'_>) -> SysResult<LinkTarget> {
        self.at.subject.may_inspect(caller)?;
        Ok(LinkTarget::Jump((self.find)(&*self.at.subject.task()?)?.place()))
    }
}
