//! devpts: the directory of pseudo-terminals.
//!
//! Every mount is an instance of its own, as in Linux since 4.7: `ptmx` in it makes pairs in it, and a pair's slave has
//! a node in it as long as its master is open.
//!
//! Not there yet: `max=` is checked per instance only; there is no sandbox-wide `kernel.pty.max`.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use linux_raw_sys::general as linux;
use parking_lot::Mutex;

use super::Tty;
use super::master::Master;
use crate::errno::{Errno, SysResult};
use crate::fs::pseudo::{Directory, Entry, Owner, PseudoDir, PseudoFs};
use crate::time::{Timers, Timespec};
use crate::vfs::attachments::Attachments;
use crate::vfs::inode::SetTime;
use crate::vfs::{Attr, Caller, Device, FileOps, FileSystem, FileType, Inode, OpenFlags, SetAttr, VfsPath};

/// `/dev/ptmx`.
pub const PTMX: Device = Device { major: 5, minor: 2 };
/// Pairs an instance may have unless `max=` says less (`NR_UNIX98_PTY_MAX` is 2²⁰; this bounds our memory).
const MAX_PAIRS: u32 = 4096;
/// Inode numbers as in Linux: the root, ptmx, then the slaves.
const ROOT_INO: u64 = 1;
const PTMX_INO: u64 = 2;
const FIRST_SLAVE_INO: u64 = 3;

/// Mount options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Owner of slaves; the opener if absent.
    pub uid: Option<u32>,
    /// Group of slaves; the opener's if absent.
    pub gid: Option<u32>,
    /// Permission bits of slaves.
    pub mode: u32,
    /// Permission bits of `ptmx`.
    pub ptmx_mode: u32,
    /// Most pairs.
    pub max: u32,
}

impl Options {
    /// From the text of `mount(2)`. `EINVAL` for what devpts does not know.
    pub fn parse(text: &[u8]) -> SysResult<Options> {
        let mut options = Options { uid: None, gid: None, mode: 0o600, ptmx_mode: 0, max: MAX_PAIRS };
        let text = std::str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
        for option in text.split(',').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let number = |radix| u32::from_str_radix(value, radix).map_err(|_| Errno::EINVAL);
            match name {
                "newinstance" => {}
                "uid" => options.uid = Some(number(10)?),
                "gid" => options.gid = Some(number(10)?),
                "mode" => options.mode = number(8)? & 0o777,
                "ptmxmode" => options.ptmx_mode = number(8)? & 0o777,
                "max" => options.max = number(10)?.min(MAX_PAIRS),
                _ => return Err(Errno::EINVAL),
            }
        }
        Ok(options)
    }
}

/// One devpts.
pub struct Instance {
    fs: Weak<PseudoFs>,
    device: Device,
    options: Options,
    timers: Arc<Timers>,
    created: Timespec,
    nodes: Mutex<BTreeMap<u32, Arc<PtsNode>>>,
}

/// A new, empty devpts.
pub fn mount(options: Options, timers: &Arc<Timers>) -> Arc<PseudoFs> {
    let device = Device::new_anonymous();
    let fs = PseudoFs::new("devpts", u64::from(linux::DEVPTS_SUPER_MAGIC), device);
    let instance = Arc::new(Instance {
        fs: Arc::downgrade(&fs),
        device,
        options,
        timers: timers.clone(),
        created: Timespec::now_realtime(),
        nodes: Mutex::default(),
    });
    let ptmx = Arc::new(PtmxNode {
        attr: Mutex::new(instance.node_attr(PTMX_INO, options.ptmx_mode, (0, 0), PTMX)),
        instance: instance.clone(),
        attachments: Attachments::default(),
    });
    fs.set_root(PseudoDir::inode(&fs, 0o755, Root { instance, ptmx }));
    fs
}

impl Instance {
    /// The instance that `fs` is, if it is one.
    pub fn of(fs: &Arc<dyn FileSystem>) -> Option<Arc<Instance>> {
        let root = fs.root().ok()?;
        Instance::of_inode(&root.lookup(b"ptmx").ok()?)
    }

    /// The instance a `ptmx` node makes pairs in.
    pub fn of_inode(inode: &Arc<dyn Inode>) -> Option<Arc<Instance>> {
        inode.downcast::<PtmxNode>().map(|node| node.instance.clone())
    }

    /// Makes a pair whose slave belongs to `uid` and `gid` unless mount options say otherwise. `ENOSPC` beyond `max`.
    pub fn create_pair(self: &Arc<Self>, uid: u32, gid: u32) -> SysResult<Master> {
        let mut nodes = self.nodes.lock();
        let free = (0u32..).zip(nodes.keys()).find(|(free, used)| free != *used).map(|(free, _)| free);
        let index = free.unwrap_or_else(|| u32::try_from(nodes.len()).unwrap_or(u32::MAX));
        if index >= self.options.max {
            return Err(Errno::ENOSPC);
        }
        let tty = Tty::new(index, Arc::downgrade(self), &self.timers);
        let owner = (self.options.uid.unwrap_or(uid), self.options.gid.unwrap_or(gid));
        let ino = FIRST_SLAVE_INO.saturating_add(u64::from(index));
        let node = Arc::new(PtsNode {
            attr: Mutex::new(self.node_attr(ino, self.options.mode, owner, tty.slave_device())),
            fs: self.fs.clone(),
            tty: tty.clone(),
            attachments: Attachments::default(),
        });
        nodes.insert(index, node);
        Ok(Master::new(tty))
    }

    /// The slave's node.
    pub fn node(&self, index: u32) -> Option<Arc<dyn Inode>> {
        self.nodes.lock().get(&index).map(|node| node.clone() as Arc<dyn Inode>)
    }

    /// The master was closed.
    pub(super) fn remove(&self, index: u32) {
        let node = self.nodes.lock().remove(&index);
        drop(node);
    }

    fn node_attr(&self, ino: u64, mode: u32, (uid, gid): (u32, u32), rdev: Device) -> Attr {
        let now = Timespec::now_realtime().max(self.created);
        Attr {
            dev: self.device,
            ino,
            file_type: FileType::CharDevice,
            mode,
            nlink: 1,
            uid,
            gid,
            rdev,
            size: 0,
            blksize: 1024,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: None,
        }
    }
}

/// The root directory's names.
struct Root {
    instance: Arc<Instance>,
    ptmx: Arc<PtmxNode>,
}

impl Owner for Root {
    fn ino(&self) -> Option<u64> {
        Some(ROOT_INO)
    }
}

impl Directory for Root {
    fn lookup(&self, name: &[u8]) -> SysResult<Arc<dyn Inode>> {
        if name == b"ptmx" {
            return Ok(self.ptmx.clone());
        }
        let text = std::str::from_utf8(name).map_err(|_| Errno::ENOENT)?;
        let index: u32 = text.parse().map_err(|_| Errno::ENOENT)?;
        // "+1" and "01" parse, but are no names.
        let node = self.instance.node(index).filter(|_| index.to_string() == text);
        node.ok_or(Errno::ENOENT)
    }

    fn entries(&self) -> SysResult<Vec<Entry>> {
        let entry = |name: String, ino| Entry { name: name.into(), file_type: FileType::CharDevice, ino };
        let mut entries = vec![entry("ptmx".into(), PTMX_INO)];
        let slaves = self.instance.nodes.lock();
        entries.extend(
            slaves
                .keys()
                .map(|&index| entry(index.to_string(), FIRST_SLAVE_INO.saturating_add(u64::from(index)))),
        );
        Ok(entries)
    }
}

/// The node that makes pairs.
pub struct PtmxNode {
    instance: Arc<Instance>,
    attr: Mutex<Attr>,
    attachments: Attachments,
}

/// A slave's node.
pub struct PtsNode {
    fs: Weak<PseudoFs>,
    tty: Arc<Tty>,
    attr: Mutex<Attr>,
    attachments: Attachments,
}

impl PtmxNode {
    fn owner(&self) -> &Weak<PseudoFs> {
        &self.instance.fs
    }
}

impl PtsNode {
    fn owner(&self) -> &Weak<PseudoFs> {
        &self.fs
    }

    /// The pair.
    pub fn tty(&self) -> &Arc<Tty> {
        &self.tty
    }
}

fn change_attr(attr: &mut Attr, change: &SetAttr) {
    let now = Timespec::now_realtime();
    let at = |time: SetTime| match time {
        SetTime::Now => now,
        SetTime::At(time) => time,
    };
    attr.mode = change.mode.unwrap_or(attr.mode);
    attr.uid = change.uid.unwrap_or(attr.uid);
    attr.gid = change.gid.unwrap_or(attr.gid);
    attr.atime = change.atime.map_or(attr.atime, at);
    attr.mtime = change.mtime.map_or(attr.mtime, at);
    attr.ctime = now;
}

macro_rules! device_node {
    ($node:ty) => {
        impl Inode for $node {
            fn attr(&self) -> SysResult<Attr> {
                Ok(self.attr.lock().clone())
            }

            fn file_type(&self) -> FileType {
                FileType::CharDevice
            }

            fn has_set_id(&self) -> bool {
                false
            }

            fn set_attr(&self, change: &SetAttr) -> SysResult {
                change_attr(&mut self.attr.lock(), change);
                Ok(())
            }

            fn file_system(&self) -> SysResult<Arc<dyn FileSystem>> {
                Ok(self.owner().upgrade().ok_or(Errno::ESTALE)?)
            }

            fn open(&self, _: &Caller<'_>, _: &VfsPath, _: OpenFlags) -> SysResult<Arc<dyn FileOps>> {
                Err(Errno::ENXIO)
            }

            fn attachments(&self) -> &Attachments {
                &self.attachments
            }
        }
    };
}

device_node!(PtmxNode);
device_node!(PtsNode);
