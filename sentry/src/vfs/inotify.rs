//! inotify: an instance is a queue of events from watched inodes.
//!
//! A watch keeps the inode, and while the watched name exists also its dentry, so that later walks find the same inode.
//!
//! Lock order: an inode's watch list, then the instance's state. The instance never calls into a watch list while it holds
//! its state.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use linux_raw_sys::general as linux;
use parking_lot::Mutex;

use super::dentry::Dentry;
use super::file::{File, FileOps, Whence};
use super::inode::Inode;
use super::notify::{Event, Watch};
use super::path::VfsPath;
use crate::errno::{Errno, SysResult};
use crate::io::IoDst;
use crate::task::SyscallContext;
use crate::wait::{PollEvents, WaitQueue};

/// Most events that wait (`fs.inotify.max_queued_events`).
const QUEUED_MAX: usize = 16_384;
/// Most watches of an instance (`fs.inotify.max_user_watches`).
const WATCHES_MAX: usize = 65_536;
/// Size of `struct inotify_event` without the name.
const HEADER: usize = 16;

/// The events a watch can ask for.
const ALL_EVENTS: u32 = linux::IN_ACCESS
    | linux::IN_MODIFY
    | linux::IN_ATTRIB
    | linux::IN_CLOSE_WRITE
    | linux::IN_CLOSE_NOWRITE
    | linux::IN_OPEN
    | linux::IN_MOVED_FROM
    | linux::IN_MOVED_TO
    | linux::IN_DELETE
    | linux::IN_CREATE
    | linux::IN_DELETE_SELF
    | linux::IN_MOVE_SELF;

/// What `/proc/*/fdinfo` shows of a watch.
const SHOWN: u32 = ALL_EVENTS | linux::IN_EXCL_UNLINK | linux::IN_ONESHOT;

/// Every bit `inotify_add_watch` takes.
pub const VALID_MASK: u32 = ALL_EVENTS
    | linux::IN_ONLYDIR
    | linux::IN_DONT_FOLLOW
    | linux::IN_EXCL_UNLINK
    | linux::IN_MASK_CREATE
    | linux::IN_MASK_ADD
    | linux::IN_ONESHOT;

/// An inotify instance, the operations of its description.
pub struct Inotify {
    this: Weak<Inotify>,
    state: Mutex<State>,
    queue: WaitQueue,
}

#[derive(Default)]
struct State {
    events: VecDeque<Queued>,
    watches: BTreeMap<i32, Arc<InotifyWatch>>,
    last_wd: i32,
}

#[derive(Clone, PartialEq, Eq)]
struct Queued {
    wd: i32,
    mask: u32,
    cookie: u32,
    name: Option<Vec<u8>>,
}

impl Queued {
    /// Bytes of the name field: with a NUL, padded to a multiple of the header.
    fn name_field(&self) -> usize {
        self.name.as_ref().map_or(0, |name| (name.len() + 1).next_multiple_of(HEADER))
    }

    fn encode(&self) -> Vec<u8> {
        let field = self.name_field();
        let mut bytes = Vec::with_capacity(HEADER + field);
        bytes.extend_from_slice(&self.wd.to_ne_bytes());
        bytes.extend_from_slice(&self.mask.to_ne_bytes());
        bytes.extend_from_slice(&self.cookie.to_ne_bytes());
        bytes.extend_from_slice(&u32::try_from(field).unwrap_or(0).to_ne_bytes());
        bytes.extend_from_slice(self.name.as_deref().unwrap_or_default());
        bytes.resize(HEADER + field, 0);
        bytes
    }
}

struct InotifyWatch {
    instance: Weak<Inotify>,
    wd: i32,
    mask: AtomicU32,
    inode: Arc<dyn Inode>,
    dentry: Mutex<Option<Arc<Dentry>>>,
}

impl Watch for InotifyWatch {
    fn event(&self, event: &Event<'_>) -> bool {
        let mask = self.mask.load(Ordering::Relaxed);
        let wanted = event.mask & mask & ALL_EVENTS != 0;
        let hidden = mask & linux::IN_EXCL_UNLINK != 0 && event.unlinked && event.name.is_some();
        let Some(instance) = self.instance.upgrade() else { return false };
        if !wanted || hidden {
            return true;
        }
        let mut shown = event.mask & (ALL_EVENTS | linux::IN_ISDIR | linux::IN_UNMOUNT);
        if shown & (linux::IN_MOVE_SELF | linux::IN_DELETE_SELF) != 0 {
            shown &= !linux::IN_ISDIR;
        }
        let name = event.name.map(<[u8]>::to_vec);
        instance.push(Queued { wd: self.wd, mask: shown, cookie: event.cookie, name });
        if mask & linux::IN_ONESHOT != 0 {
            instance.forget(self.wd);
            return false;
        }
        true
    }

    fn unlinked(&self) {
        let dentry = self.dentry.lock().take();
        drop(dentry);
    }

    fn gone(&self) {
        if let Some(instance) = self.instance.upgrade() {
            instance.forget(self.wd);
        }
    }
}

impl Inotify {
    /// An instance without watches.
    pub fn new() -> Arc<Inotify> {
        Arc::new_cyclic(|this| Inotify {
            this: this.clone(),
            state: Mutex::default(),
            queue: WaitQueue::new(),
        })
    }

    fn push(&self, event: Queued) {
        {
            let mut state = self.state.lock();
            if state.events.back() == Some(&event) {
                return;
            }
            if state.events.len() >= QUEUED_MAX {
                let overflow = Queued { wd: -1, mask: linux::IN_Q_OVERFLOW, cookie: 0, name: None };
                if state.events.back() == Some(&overflow) {
                    return;
                }
                state.events.push_back(overflow);
            } else {
                state.events.push_back(event);
            }
        }
        self.queue.notify(PollEvents::READABLE);
    }

    /// The watch has ended by itself.
    fn forget(&self, wd: i32) {
        let watch = self.state.lock().watches.remove(&wd);
        if watch.is_some() {
            self.push(Queued { wd, mask: linux::IN_IGNORED, cookie: 0, name: None });
        }
    }

    /// Watches `path` for `mask`, or changes its watch (`inotify_add_watch`). Returns the watch descriptor.
    pub fn add_watch(&self, path: &VfsPath, mask: u32) -> SysResult<i32> {
        let inode = path.inode();
        let mut state = self.state.lock();
        let known =
            state.watches.values().find(|watch| super::dentry::same_object(&watch.inode, inode)).cloned();
        if let Some(watch) = known {
            if mask & linux::IN_MASK_CREATE != 0 {
                return Err(Errno::EEXIST);
            }
            let old = if mask & linux::IN_MASK_ADD != 0 { watch.mask.load(Ordering::Relaxed) } else { 0 };
            watch.mask.store(old | mask, Ordering::Relaxed);
            return Ok(watch.wd);
        }
        if state.watches.len() >= WATCHES_MAX {
            return Err(Errno::ENOSPC);
        }
        let wd = state.last_wd.checked_add(1).ok_or(Errno::ENOSPC)?;
        state.last_wd = wd;
        let watch = Arc::new(InotifyWatch {
            instance: self.this.clone(),
            wd,
            mask: AtomicU32::new(mask),
            inode: inode.clone(),
            dentry: Mutex::new(Some(path.dentry().clone())),
        });
        state.watches.insert(wd, watch.clone());
        drop(state);
        inode.attachments().watches().add(watch);
        Ok(wd)
    }

    /// Ends a watch (`inotify_rm_watch`); `EINVAL` if there is none of that number.
    pub fn remove_watch(&self, wd: i32) -> SysResult {
        let watch = self.state.lock().watches.remove(&wd).ok_or(Errno::EINVAL)?;
        watch.inode.attachments().watches().remove(&*watch);
        self.push(Queued { wd, mask: linux::IN_IGNORED, cookie: 0, name: None });
        Ok(())
    }

    fn pending_bytes(&self) -> usize {
        self.state.lock().events.iter().map(|event| HEADER + event.name_field()).sum()
    }
}

impl FileOps for Inotify {
    fn read(&self, _file: &File, dst: &mut dyn IoDst, _offset: &mut u64) -> SysResult<usize> {
        let mut done: usize = 0;
        loop {
            let event = {
                let mut state = self.state.lock();
                let Some(event) = state.events.front() else { break };
                if dst.remaining() < HEADER + event.name_field() {
                    if done == 0 {
                        return Err(Errno::EINVAL);
                    }
                    break;
                }
                state.events.pop_front()
            };
            let Some(event) = event else { break };
            match dst.put(&event.encode()) {
                Ok(put) => done = done.saturating_add(put),
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        if done == 0 { Err(Errno::EAGAIN) } else { Ok(done) }
    }

    fn seek(&self, _file: &File, current: u64, _offset: i64, _whence: Whence) -> SysResult<u64> {
        Ok(current)
    }

    fn poll(&self, _file: &File) -> PollEvents {
        if self.state.lock().events.is_empty() { PollEvents::empty() } else { PollEvents::READABLE }
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.queue)
    }

    fn ioctl(
        &self,
        ctx: &mut SyscallContext<'_>,
        _file: &Arc<File>,
        command: u32,
        arg: u64,
    ) -> SysResult<usize> {
        if command != linux_raw_sys::ioctl::FIONREAD {
            return Err(Errno::ENOTTY);
        }
        let bytes = i32::try_from(self.pending_bytes()).unwrap_or(i32::MAX);
        ctx.task.mm().copy_out(arg, &bytes)?;
        Ok(0)
    }

    fn release(&self, _file: &File) {
        let watches = std::mem::take(&mut self.state.lock().watches);
        for watch in watches.into_values() {
            watch.inode.attachments().watches().remove(&*watch);
        }
    }

    fn anonymous_name(&self) -> Option<String> {
        Some("anon_inode:inotify".into())
    }

    fn fdinfo(&self) -> String {
        let state = self.state.lock();
        let line = |watch: &Arc<InotifyWatch>| {
            let attr = watch.inode.attr();
            let (ino, device) = attr.map_or((0, 0), |attr| (attr.ino, attr.dev.encode()));
            let mask = watch.mask.load(Ordering::Relaxed) & SHOWN;
            format!("inotify wd:{:x} ino:{ino:x} sdev:{device:x} mask:{mask:x} ignored_mask:0\n", watch.wd)
        };
        // The newest first, as Linux has it.
        state.watches.values().rev().map(line).collect()
    }
}
