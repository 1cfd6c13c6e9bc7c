//! The directory of a process (`/proc/N`) or of a thread (`/proc/N/task/M`).

use std::sync::{Arc, Weak};

use super::descriptors::{FdDir, FdView};
use super::links::{Magic, MagicLink, NamespaceLink, Which};
use super::{memory, root, status, texts};
use crate::errno::{Errno, SysResult};
use crate::fs::pseudo::{
    Directory, Entry, Owner, PseudoDir, PseudoFile, PseudoFs, PseudoLink, StaticDir, Text,
};
use crate::task::{Capability, PidNamespace, Task, ThreadGroup};
use crate::vfs::caller::Caller;
use crate::vfs::{DentryCache, FileType, Inode, OpenFlags};

/// Whether a directory speaks of a whole process or of one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// `/proc/N`
    Process,
    /// `/proc/N/task/M`
    Thread,
}

/// Whom a file describes, and in whose numbers.
#[derive(Clone)]
pub struct Subject {
    task: Weak<Task>,
    namespace: Arc<PidNamespace>,
    /// Process or thread.
    pub view: View,
    ino: u64,
}

impl Subject {
    /// `task`, in the numbers of `namespace`.
    pub fn new(task: &Arc<Task>, namespace: &Arc<PidNamespace>, view: View) -> Subject {
        let number = u64::from(task.pid().outermost().unsigned_abs());
        let ino = (number << 17) | (u64::from(view == View::Thread) << 16) | (1 << 48);
        Subject { task: Arc::downgrade(task), namespace: namespace.clone(), view, ino }
    }

    /// The task; `ESRCH` once it is gone.
    pub fn task(&self) -> SysResult<Arc<Task>> {
        self.task.upgrade().ok_or(Errno::ESRCH)
    }

    /// The pid namespace whose numbers are shown.
    pub fn namespace(&self) -> &Arc<PidNamespace> {
        &self.namespace
    }

    /// An inode number for the `n`th thing of this directory (0 is the directory itself).
    pub fn numbered(&self, n: u64) -> Numbered {
        Numbered { subject: self.clone(), n }
    }

    /// Whether `caller` may look into the process (`ptrace_may_access`): its own, or same user and dumpable, or privileged.
    pub fn may_inspect(&self, caller: &Caller<'_>) -> SysResult {
        let task = self.task()?;
        if caller.task.is_some_and(|own| Arc::ptr_eq(task.thread_group(), own.thread_group())) {
            return Ok(());
        }
        let (who, whom) = (&caller.credentials, task.credentials());
        let same_user = [whom.uid, whom.euid, whom.suid].iter().all(|&uid| uid == who.fsuid);
        let same_group = [whom.gid, whom.egid, whom.sgid].iter().all(|&gid| gid == who.fsgid);
        let open = task.attributes().dumpable && who.permitted.contains(whom.permitted);
        let privileged = who.has(Capability::SYS_PTRACE);
        if (same_user && same_group && open) || privileged { Ok(()) } else { Err(Errno::EACCES) }
    }

    /// The directory's inode.
    pub fn directory(self, fs: &Arc<PseudoFs>) -> Arc<dyn Inode> {
        PseudoDir::inode(fs, 0o555, ProcessDir { fs: Arc::downgrade(fs), subject: self })
    }
}

impl Owner for Subject {
    fn owner(&self) -> (u32, u32) {
        match self.task.upgrade() {
            Some(task) if task.attributes().dumpable => {
                let who = task.credentials();
                (who.euid, who.egid)
            }
            _ => (0, 0),
        }
    }

    fn ino(&self) -> Option<u64> {
        Some(self.ino)
    }
}

/// A file of a directory: same owner, a number of its own.
#[derive(Clone)]
pub struct Numbered {
    /// Whose.
    pub subject: Subject,
    n: u64,
}

impl Owner for Numbered {
    fn owner(&self) -> (u32, u32) {
        self.subject.owner()
    }

    fn ino(&self) -> Option<u64> {
        Some(self.subject.ino.wrapping_add(self.n))
    }
}

/// Who may open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Whoever the mode lets in.
    Mode,
    /// Who may inspect the process.
    Inspect,
}

type Show = fn(&Subject) -> SysResult<Vec<u8>>;
type Store = fn(&Subject, &[u8]) -> SysResult;

/// A text file of a process.
struct ProcessFile {
    at: Numbered,
    guard: Guard,
    show: Show,
    store: Option<Store>,
}

impl Owner for ProcessFile {
    fn owner(&self) -> (u32, u32) {
        self.at.owner()
    }

    fn ino(&self) -> Option<u64> {
        self.at.ino()
    }
}

impl Text for ProcessFile {
    fn text(&self) -> SysResult<Vec<u8>> {
        (self.show)(&self.at.subject)
    }

    fn write(&self, data: &[u8], _offset: u64) -> SysResult {
        self.store.map_or(Err(Errno::EINVAL), |store| store(&self.at.subject, data))
    }

    fn check_open(&self, caller: &Caller<'_>, _flags: OpenFlags) -> SysResult {
        match self.guard {
            Guard::Mode => self.at.subject.task().map(drop),
            Guard::Inspect => self.at.subject.may_inspect(caller),
        }
    }
}

/// Name, mode, guard, content, and what a write does.
type Row = (&'static str, u32, Guard, Show, Option<Store>);

#[rustfmt::skip]
const FILES: &[Row] = &[
    ("auxv",          0o400, Guard::Inspect, memory::auxv,         None),
    ("cgroup",        0o444, Guard::Mode,    texts::cgroup,        None),
    ("cmdline",       0o444, Guard::Mode,    memory::cmdline,      None),
    ("comm",          0o644, Guard::Mode,    texts::comm,          Some(texts::set_comm)),
    ("environ",       0o400, Guard::Inspect, memory::environ,      None),
    ("gid_map",       0o644, Guard::Mode,    texts::id_map,        None),
    ("io",            0o400, Guard::Inspect, texts::io,            None),
    ("limits",        0o444, Guard::Mode,    texts::limits,        None),
    ("loginuid",      0o644, Guard::Mode,    texts::loginuid,      None),
    ("maps",          0o444, Guard::Inspect, memory::maps,         None),
    ("mountinfo",     0o444, Guard::Mode,    texts::mountinfo,     None),
    ("mounts",        0o444, Guard::Mode,    texts::mounts,        None),
    ("oom_adj",       0o644, Guard::Mode,    texts::oom_adj,       None),
    ("oom_score",     0o444, Guard::Mode,    texts::oom_score,     None),
    ("oom_score_adj", 0o644, Guard::Mode,    texts::oom_score_adj, Some(texts::set_oom_score_adj)),
    ("personality",   0o400, Guard::Inspect, texts::personality,   None),
    ("schedstat",     0o444, Guard::Mode,    texts::schedstat,     None),
    ("setgroups",     0o644, Guard::Mode,    texts::setgroups,     None),
    ("smaps",         0o444, Guard::Inspect, memory::smaps,        None),
    ("smaps_rollup",  0o444, Guard::Inspect, memory::smaps_rollup, None),
    ("stat",          0o444, Guard::Mode,    status::stat,         None),
    ("statm",         0o444, Guard::Mode,    status::statm,        None),
    ("status",        0o444, Guard::Mode,    status::status,       None),
    ("timerslack_ns", 0o666, Guard::Mode,    texts::timer_slack,   Some(texts::set_timer_slack)),
    ("uid_map",       0o644, Guard::Mode,    texts::id_map,        None),
    ("wchan",         0o444, Guard::Mode,    texts::wchan,         None),
];

const MAGIC: &[(&str, Which)] = &[("cwd", Which::Cwd), ("exe", Which::Exe), ("root", Which::Root)];
const DIRECTORIES: &[&str] = &["fd", "fdinfo", "net", "ns", "task"];

/// The process whose directory `inode` is; `ESRCH` once it is gone.
pub fn process_of(inode: &dyn Inode) -> Option<SysResult<Arc<ThreadGroup>>> {
    let subject = &inode.downcast::<PseudoDir<ProcessDir>>()?.source().subject;
    let group = || Ok(subject.task()?.thread_group().clone());
    (subject.view == View::Process).then(group)
}

struct ProcessDir {
    fs: Weak<PseudoFs>,
    subject: Subject,
}

impl ProcessDir {
    fn number(name: &[u8]) -> Option<u64> {
        let files = FILES.iter().map(|row| row.0);
        let names = files.chain(MAGIC.iter().map(|row| row.0)).chain(DIRECTORIES.iter().copied());
        names.zip(1u64..).find(|(known, _)| known.as_bytes() == name).map(|(_, n)| n)
    }

    fn subdirectory(&self, fs: &Arc<PseudoFs>, name: &[u8], at: Numbered) -> SysResult<Arc<dyn Inode>> {
        let fs_weak = self.fs.clone();
        Ok(match name {
            b"fd" => PseudoDir::inode(fs, 0o500, FdDir { fs: fs_weak, at, view: FdView::Link }),
            b"fdinfo" => PseudoDir::inode(fs, 0o555, FdDir { fs: fs_weak, at, view: FdView::Info }),
            b"ns" => PseudoDir::inode(fs, 0o511, NamespaceLink::directory(fs, &self.subject)),
            b"net" => PseudoDir::inode(fs, 0o555, texts::net_directory(fs, &self.subject)),
            b"task" if self.subject.view == View::Process => {
                PseudoDir::inode(fs, 0o555, TaskDir { fs: fs_weak, at })
            }
            _ => return Err(Errno::ENOENT),
        })
    }
}

impl Owner for ProcessDir {
    fn owner(&self) -> (u32, u32) {
        self.subject.owner()
    }

    fn ino(&self) -> Option<u64> {
        self.subject.ino()
    }
}

impl Directory for ProcessDir {
    fn lookup(&self, name: &[u8]) -> SysResult<Arc<dyn Inode>> {
        let fs = self.fs.upgrade().ok_or(Errno::ESTALE)?;
        self.subject.task()?;
        let at = self.subject.numbered(Self::number(name).ok_or(Errno::ENOENT)?);
        if let Some(&(_, mode, guard, show, store)) = FILES.iter().find(|row| row.0.as_bytes() == name) {
            return Ok(PseudoFile::inode(&fs, mode, ProcessFile { at, guard, show, store }));
        }
        if let Some(&(_, which)) = MAGIC.iter().find(|row| row.0.as_bytes() == name) {
            return Ok(PseudoLink::inode(&fs, 0o777, MagicLink { at, which: Magic::Place(which) }));
        }
        self.subdirectory(&fs, name, at)
    }

    fn entries(&self) -> SysResult<Vec<Entry>> {
        self.subject.task()?;
        let thread = self.subject.view == View::Thread;
        let files = FILES.iter().map(|row| (row.0, FileType::Regular));
        let links = MAGIC.iter().map(|row| (row.0, FileType::Symlink));
        let directories = DIRECTORIES.iter().filter(|name| !(thread && **name == "task"));
        let all = files.chain(links).chain(directories.map(|name| (*name, FileType::Directory)));
        let entry = |(name, file_type): (&str, FileType)| Entry {
            name: name.as_bytes().to_vec(),
            file_type,
            ino: Self::number(name.as_bytes()).and_then(|n| self.subject.numbered(n).ino()).unwrap_or(0),
        };
        Ok(all.map(entry).collect())
    }
}

/// `/proc/N/task`: the threads.
struct TaskDir {
    fs: Weak<PseudoFs>,
    at: Numbered,
}

impl Owner for TaskDir {
    fn owner(&self) -> (u32, u32) {
        self.at.owner()
    }

    fn ino(&self) -> Option<u64> {
        self.at.ino()
    }
}

impl Directory for TaskDir {
    fn lookup(&self, name: &[u8]) -> SysResult<Arc<dyn Inode>> {
        let fs = self.fs.upgrade().ok_or(Errno::ESTALE)?;
        let namespace = self.at.subject.namespace();
        let thread = namespace.task(root::number(name)?).ok_or(Errno::ENOENT)?;
        if !Arc::ptr_eq(thread.thread_group(), self.at.subject.task()?.thread_group()) {
            return Err(Errno::ENOENT);
        }
        Ok(Subject::new(&thread, namespace, View::Thread).directory(&fs))
    }

    fn entries(&self) -> SysResult<Vec<Entry>> {
        let namespace = self.at.subject.namespace();
        let group = self.at.subject.task()?.thread_group().clone();
        let mut threads = group.members();
        if threads.is_empty() {
            // A zombie still has its leader.
            threads.extend(group.leader());
        }
        let entry = |task: &Arc<Task>| Entry {
            name: task.pid().number_in(namespace).to_string().into_bytes(),
            file_type: FileType::Directory,
            ino: Subject::new(task, namespace, View::Thread).ino().unwrap_or(0),
        };
        Ok(threads.iter().map(entry).collect())
    }
}

/// A directory below a process's, with a fixed set of names.
pub struct OwnedDir {
    /// Whose.
    pub at: Numbered,
    /// The names.
    pub children: StaticDir,
}

impl Owner for OwnedDir {
    fn owner(&self) -> (u32, u32) {
        self.at.owner()
    }

    fn ino(&self) -> Option<u64> {
        self.at.ino()
    }
}

impl Directory for OwnedDir {
    fn lookup(&self, name: &[u8]) -> SysResult<Arc<dyn Inode>> {
        self.children.lookup(name)
    }

    fn entries(&self) -> SysResult<Vec<Entry>> {
        self.children.entries()
    }

    fn cache(&self) -> DentryCache {
        DentryCache::Never
    }
}

impl Subject {
    /// A text file below one of the process's directories.
    pub fn file(&self, fs: &Arc<PseudoFs>, n: u64, mode: u32, show: Show) -> Arc<dyn Inode> {
        let file = ProcessFile { at: self.numbered(n), guard: Guard::Mode, show, store: None };
        PseudoFile::inode(fs, mode, file)
    }
}
