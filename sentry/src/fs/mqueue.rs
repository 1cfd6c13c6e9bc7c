//! `mqueue`: the names of the POSIX message queues of an ipc namespace, `mq_open`'s and `/dev/mqueue`'s alike.
//!
//! There is one [`MqueueFs`] per namespace, however often it is mounted. A queue is an inode whose file shows its status; it
//! lives until its name is gone and nobody has it open. `mq_open` changes names behind the VFS's back, so the VFS asks.
//!
//! Lock order: names, then the charges. Both are leaves for the VFS.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::pseudo::{Entry, OpenDir};
use crate::errno::{Errno, SysResult};
use crate::io::IoDst;
use crate::ipc::mqueue::{Mqueue, Notice, Settings, USUAL};
use crate::task::{Capability, Credentials, Resource, Task, current};
use crate::time::Timespec;
use crate::vfs::attachments::Attachments;
use crate::vfs::inode::{Access, NewInode};
use crate::vfs::{
    Attr, Caller, DentryCache, Device, File, FileOps, FileSystem, FileType, FsStat, Inode, OpenFlags,
    SetAttr, VfsPath, Whence,
};
use crate::wait::{PollEvents, WaitQueue};

/// `MQUEUE_MAGIC` of `ipc/mqueue.c`, which no header exports.
const MAGIC: u64 = 0x1980_0202;
/// Longest name in bytes.
const NAME_MAX: usize = 255;
/// Most queues of those without `CAP_SYS_RESOURCE` (`fs.mqueue.queues_max`).
const MAX_QUEUES: usize = 256;
/// The size that a queue's file shows (`FILENT_SIZE`).
const FILE_SIZE: u64 = 80;

/// The queues of a namespace.
pub struct MqueueFs {
    device: Device,
    root: Arc<Root>,
    names: Mutex<BTreeMap<Vec<u8>, Arc<Node>>>,
    next_ino: AtomicU64,
    charges: Arc<Mutex<Charges>>,
    /// Bytes of all messages.
    bytes: Arc<AtomicUsize>,
    me: Weak<MqueueFs>,
}

/// What queues cost, also those without a name.
#[derive(Default)]
struct Charges {
    queues: usize,
    by_user: BTreeMap<u32, u64>,
}

/// The part of one queue; given back when it is dropped.
struct Charge {
    charges: Arc<Mutex<Charges>>,
    uid: u32,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut charges = self.charges.lock();
        charges.queues = charges.queues.saturating_sub(1);
        if let Some(bytes) = charges.by_user.get_mut(&self.uid) {
            *bytes = bytes.saturating_sub(self.bytes);
            if *bytes == 0 {
                charges.by_user.remove(&self.uid);
            }
        }
    }
}

fn attributes(device: Device, ino: u64, file_type: FileType, new: NewInode) -> Attr {
    let now = Timespec::now_realtime();
    Attr {
        dev: device,
        ino,
        file_type,
        mode: new.mode,
        nlink: if file_type == FileType::Directory { 2 } else { 1 },
        uid: new.uid,
        gid: new.gid,
        rdev: Device::default(),
        size: if file_type == FileType::Directory { 0 } else { FILE_SIZE },
        blksize: 4096,
        blocks: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: None,
    }
}

/// `chmod` and `chown`; sizes are not kept.
fn change(attr: &Mutex<Attr>, change: &SetAttr) {
    let mut attr = attr.lock();
    attr.mode = change.mode.unwrap_or(attr.mode);
    attr.uid = change.uid.unwrap_or(attr.uid);
    attr.gid = change.gid.unwrap_or(attr.gid);
    attr.ctime = Timespec::now_realtime();
}

impl MqueueFs {
    /// A namespace without queues.
    pub fn new() -> Arc<MqueueFs> {
        let device = Device::new_anonymous();
        let everybody = NewInode { mode: 0o1777, uid: 0, gid: 0 };
        let attr = attributes(device, 1, FileType::Directory, everybody);
        Arc::new_cyclic(|me: &Weak<MqueueFs>| MqueueFs {
            device,
            root: Arc::new(Root {
                fs: me.clone(),
                attr: Mutex::new(attr),
                attachments: Attachments::default(),
            }),
            names: Mutex::default(),
            next_ino: AtomicU64::new(2),
            charges: Arc::default(),
            bytes: Arc::default(),
            me: me.clone(),
        })
    }

    /// The queue of a name. `ENOENT`, `EACCES` for what cannot be a name, `ENAMETOOLONG`.
    pub fn find(&self, name: &[u8]) -> SysResult<Arc<Node>> {
        check_name(name)?;
        self.names.lock().get(name).cloned().ok_or(Errno::ENOENT)
    }

    /// Whether `who` may add and remove names. `EACCES`.
    pub fn may_change(&self, who: &Credentials) -> SysResult {
        self.root.permission(who, Access::WRITE | Access::EXEC)
    }

    /// Makes a queue for `creator`. `EEXIST`; `ENOSPC` and `EMFILE` at limits.
    pub fn make(
        &self,
        name: &[u8],
        new: NewInode,
        settings: Settings,
        creator: &Task,
    ) -> SysResult<Arc<Node>> {
        check_name(name)?;
        let mut names = self.names.lock();
        if names.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let charge = self.charge(new.uid, settings.charge(), creator)?;
        let ino = self.next_ino.fetch_add(1, Ordering::Relaxed);
        let node = Arc::new(Node {
            fs: self.me.clone(),
            attr: Mutex::new(attributes(self.device, ino, FileType::Regular, new)),
            attachments: Attachments::default(),
            queue: Mqueue::new(settings, self.bytes.clone()),
            _charge: charge,
        });
        names.insert(name.to_vec(), node.clone());
        Ok(node)
    }

    fn charge(&self, uid: u32, bytes: u64, creator: &Task) -> SysResult<Charge> {
        let mut charges = self.charges.lock();
        if charges.queues >= MAX_QUEUES && !creator.credentials().has(Capability::SYS_RESOURCE) {
            return Err(Errno::ENOSPC);
        }
        let used = charges.by_user.get(&uid).copied().unwrap_or(0);
        let sum = used.checked_add(bytes).ok_or(Errno::EMFILE)?;
        if sum > creator.rlimit(Resource::Msgqueue).soft {
            return Err(Errno::EMFILE);
        }
        charges.by_user.insert(uid, sum);
        charges.queues = charges.queues.saturating_add(1);
        Ok(Charge { charges: self.charges.clone(), uid, bytes })
    }

    /// `mq_unlink`: `ENOENT`; `EACCES` and `EPERM` as for any file in a sticky directory.
    pub fn unlink(&self, name: &[u8], who: &Credentials) -> SysResult {
        let node = self.find(name)?;
        self.may_change(who)?;
        let owners = [node.attr.lock().uid, self.root.attr.lock().uid];
        if !owners.contains(&who.fsuid) && !who.has(Capability::FOWNER) {
            return Err(Errno::EPERM);
        }
        self.remove(name, &node)
    }

    fn remove(&self, name: &[u8], node: &Node) -> SysResult {
        let mut names = self.names.lock();
        let same = names.get(name).is_some_and(|found| std::ptr::eq(Arc::as_ptr(found), node));
        if !same {
            return Err(Errno::ENOENT);
        }
        let gone = names.remove(name);
        drop(names);
        node.attr.lock().nlink = 0;
        drop(gone);
        Ok(())
    }
}

fn check_name(name: &[u8]) -> SysResult {
    match name {
        b"" => Err(Errno::ENOENT),
        b"." | b".." => Err(Errno::EACCES),
        name if name.contains(&b'/') => Err(Errno::EACCES),
        name if name.len() > NAME_MAX => Err(Errno::ENAMETOOLONG),
        _ => Ok(()),
    }
}

impl FileSystem for MqueueFs {
    fn name(&self) -> &'static str {
        "mqueue"
    }

    fn root(&self) -> SysResult<Arc<dyn Inode>> {
        Ok(self.root.clone())
    }

    fn device(&self) -> Device {
        self.device
    }

    fn statfs(&self) -> SysResult<FsStat> {
        Ok(FsStat { magic: MAGIC, block_size: 4096, name_max: NAME_MAX as u64, ..FsStat::default() })
    }
}

/// The directory.
struct Root {
    fs: Weak<MqueueFs>,
    attr: Mutex<Attr>,
    attachments: Attachments,
}

impl Root {
    fn fs(&self) -> SysResult<Arc<MqueueFs>> {
        self.fs.upgrade().ok_or(Errno::ESTALE)
    }
}

impl Inode for Root {
    fn attr(&self) -> SysResult<Attr> {
        Ok(self.attr.lock().clone())
    }

    fn file_type(&self) -> FileType {
        FileType::Directory
    }

    fn set_attr(&self, new: &SetAttr) -> SysResult {
        change(&self.attr, new);
        Ok(())
    }

    fn file_system(&self) -> SysResult<Arc<dyn FileSystem>> {
        Ok(self.fs()?)
    }

    fn dentry_cache(&self) -> DentryCache {
        DentryCache::Revalidate
    }

    fn revalidate(&self, name: &[u8], child: &Arc<dyn Inode>) -> bool {
        let found = self.fs().and_then(|fs| fs.find(name));
        let same = |node: &Arc<Node>| {
            child.downcast::<Node>().is_some_and(|child| std::ptr::eq(child, Arc::as_ptr(node)))
        };
        found.as_ref().is_ok_and(same)
    }

    fn lookup(&self, name: &[u8]) -> SysResult<Arc<dyn Inode>> {
        Ok(self.fs()?.find(name)?)
    }

    fn create(&self, name: &[u8], new: NewInode) -> SysResult<Arc<dyn Inode>> {
        let creator = current::current().ok_or(Errno::EPERM)?;
        Ok(self.fs()?.make(name, new, USUAL, &creator)?)
    }

    fn unlink(&self, name: &[u8], child: &Arc<dyn Inode>) -> SysResult {
        self.fs()?.remove(name, child.downcast::<Node>().ok_or(Errno::ENOENT)?)
    }

    fn open(&self, _: &Caller<'_>, _: &VfsPath, _: OpenFlags) -> SysResult<Arc<dyn FileOps>> {
        let fs = self.fs()?;
        let names = fs.names.lock();
        let entry = |(name, node): (&Vec<u8>, &Arc<Node>)| Entry {
            name: name.clone(),
            file_type: FileType::Regular,
            ino: node.attr.lock().ino,
        };
        Ok(Arc::new(OpenDir::new(self.attr.lock().ino, names.iter().map(entry).collect())))
    }

    fn attachments(&self) -> &Attachments {
        &self.attachments
    }
}

/// A queue as a file.
pub struct Node {
    fs: Weak<MqueueFs>,
    attr: Mutex<Attr>,
    attachments: Attachments,
    queue: Mqueue,
    _charge: Charge,
}

impl Node {
    /// A description of the queue, as `mq_open` makes it. `name` is what `/proc/*/fd` shows.
    pub fn describe(self: &Arc<Self>, name: &[u8], flags: OpenFlags) -> Arc<File> {
        let name = format!("/{}", String::from_utf8_lossy(name));
        let ops = Arc::new(OpenQueue { node: self.clone(), name: Some(name) });
        File::new(ops, self.clone(), None, flags)
    }
}

/// A node whose `Arc` is needed to open it: the VFS has only a reference.
impl Inode for Node {
    fn attr(&self) -> SysResult<Attr> {
        Ok(self.attr.lock().clone())
    }

    fn file_type(&self) -> FileType {
        FileType::Regular
    }

    fn set_attr(&self, new: &SetAttr) -> SysResult {
        change(&self.attr, new);
        Ok(())
    }

    fn file_system(&self) -> SysResult<Arc<dyn FileSystem>> {
        let fs: Arc<dyn FileSystem> = self.fs.upgrade().ok_or(Errno::ESTALE)?;
        Ok(fs)
    }

    fn open(&self, _: &Caller<'_>, path: &VfsPath, _: OpenFlags) -> SysResult<Arc<dyn FileOps>> {
        let inode: Arc<dyn std::any::Any + Send + Sync> = path.inode().clone();
        let node = inode.downcast::<Node>().map_err(|_| Errno::ESTALE)?;
        Ok(Arc::new(OpenQueue { node, name: None }))
    }

    fn attachments(&self) -> &Attachments {
        &self.attachments
    }
}

/// An open queue.
pub struct OpenQueue {
    node: Arc<Node>,
    name: Option<String>,
}

impl OpenQueue {
    /// The queue.
    pub fn queue(&self) -> &Mqueue {
        &self.node.queue
    }

    fn text(&self) -> String {
        let status = self.node.queue.status();
        let reader = current::current().and_then(|task| task.pid_namespace());
        let owner = status.registration.as_ref().and_then(|(owner, _)| owner.upgrade());
        let pid = match (owner, reader) {
            (Some(owner), Some(reader)) => owner.pid().number_in(&reader),
            _ => 0,
        };
        // `SIGEV_SIGNAL` is 0, as is nothing.
        let (kind, signal) = match status.registration {
            Some((_, Notice::Silent)) if pid != 0 => (libc::SIGEV_NONE, 0),
            Some((_, Notice::Signal(signal, _))) if pid != 0 => (libc::SIGEV_SIGNAL, signal.number()),
            _ => (0, 0),
        };
        format!("QSIZE:{:<10} NOTIFY:{kind:<5} SIGNO:{signal:<5} NOTIFY_PID:{pid:<6}\n", status.bytes)
    }
}

impl FileOps for OpenQueue {
    fn read(&self, _: &File, dst: &mut dyn IoDst, offset: &mut u64) -> SysResult<usize> {
        let text = self.text();
        let rest = usize::try_from(*offset).ok().and_then(|at| text.as_bytes().get(at..)).unwrap_or_default();
        if rest.is_empty() {
            return Ok(0);
        }
        let read = dst.put(rest)?;
        *offset = offset.saturating_add(read as u64);
        Ok(read)
    }

    fn seekable(&self) -> bool {
        true
    }

    fn seek(&self, _: &File, current: u64, offset: i64, whence: Whence) -> SysResult<u64> {
        let base = match whence {
            Whence::Start => 0,
            Whence::Current => current,
            Whence::End => FILE_SIZE,
            _ => return Err(Errno::EINVAL),
        };
        base.checked_add_signed(offset).ok_or(Errno::EINVAL)
    }

    fn poll(&self, _: &File) -> PollEvents {
        self.node.queue.poll()
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(self.node.queue.queue())
    }

    fn flush(&self, _: &File) -> SysResult {
        // Closing any of its descriptors ends a process's registration.
        if let Some(task) = current::current() {
            self.node.queue.unregister(task.thread_group());
        }
        Ok(())
    }

    fn anonymous_name(&self) -> Option<String> {
        let gone = self.node.attr.lock().nlink == 0;
        self.name.as_ref().map(|name| if gone { format!("{name} (deleted)") } else { name.clone() })
    }
}
