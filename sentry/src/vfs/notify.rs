//! File events: who watches what, and what happened (`fsnotify`). [`super::inotify`] is the one kind of watcher so far.
//!
//! An operation tells [`accessed_by_name`] (a file, seen by the watchers of the file and of its directory), [`entry`]
//! (a name in a directory came or went) or [`object`] (the file itself moved or went). Each costs one load while nobody
//! watches anything in the sandbox.
//!
//! Lock order: a watch list is a leaf apart from the queues of the watchers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use linux_raw_sys::general as linux;
use parking_lot::Mutex;

use super::dentry::Dentry;
use super::inode::{FileType, Inode};

/// Watches in the whole process: the fast way out.
static WATCHES: AtomicUsize = AtomicUsize::new(0);

/// An event as a watcher gets it.
#[derive(Clone, Debug)]
pub struct Event<'a> {
    /// `IN_*`, with `IN_ISDIR`.
    pub mask: u32,
    /// Joins the two halves of a rename; 0 otherwise.
    pub cookie: u32,
    /// The name in the watched directory; `None` for the watched file itself.
    pub name: Option<&'a [u8]>,
    /// Whether the name has been removed already.
    pub unlinked: bool,
}

/// Somebody who watches an inode.
pub trait Watch: Send + Sync {
    /// Takes an event; called with the inode's watch list locked. `false` ends the watch.
    fn event(&self, event: &Event<'_>) -> bool;

    /// The name of the watched file was removed: whatever keeps its dentry alive is to be let go.
    fn unlinked(&self);

    /// The watched inode is gone.
    fn gone(&self);
}

/// The watches of one inode.
#[derive(Default)]
pub struct WatchList {
    list: Mutex<Vec<Arc<dyn Watch>>>,
}

impl WatchList {
    /// Adds a watch.
    pub fn add(&self, watch: Arc<dyn Watch>) {
        WATCHES.fetch_add(1, Ordering::AcqRel);
        self.list.lock().push(watch);
    }

    /// Removes a watch, if it is still there.
    pub fn remove(&self, watch: &dyn Watch) {
        let removed = {
            let mut list = self.list.lock();
            let position = list
                .iter()
                .position(|known| std::ptr::addr_eq(Arc::as_ptr(known), std::ptr::from_ref(watch)));
            position.map(|position| list.swap_remove(position))
        };
        if removed.is_some() {
            WATCHES.fetch_sub(1, Ordering::AcqRel);
        }
    }

    fn tell(&self, event: &Event<'_>) {
        let mut ended = Vec::new();
        {
            let mut list = self.list.lock();
            list.retain(|watch| {
                let stays = watch.event(event);
                if !stays {
                    ended.push(watch.clone());
                }
                stays
            });
        }
        WATCHES.fetch_sub(ended.len(), Ordering::AcqRel);
    }

    fn take_all(&self) -> Vec<Arc<dyn Watch>> {
        let all = std::mem::take(&mut *self.list.lock());
        WATCHES.fetch_sub(all.len(), Ordering::AcqRel);
        all
    }

    fn all(&self) -> Vec<Arc<dyn Watch>> {
        self.list.lock().clone()
    }
}

/// Whether anybody watches anything.
pub fn watched() -> bool {
    WATCHES.load(Ordering::Acquire) != 0
}

fn directory_bit(inode: &dyn Inode) -> u32 {
    if inode.file_type() == FileType::Directory { linux::IN_ISDIR } else { 0 }
}

fn tell(inode: &dyn Inode, event: &Event<'_>) {
    if let Some(watches) = inode.attachments().watches_if_any() {
        watches.tell(event);
    }
}

/// Something was done to the file at `dentry` (opened, read, written, changed): tells the watchers of the directory it
/// is in, and its own.
pub fn accessed_by_name(dentry: &Arc<Dentry>, mask: u32) {
    if !watched() {
        return;
    }
    let Some(inode) = dentry.inode() else { return };
    let mask = mask | directory_bit(&**inode);
    let unlinked = dentry.is_unlinked();
    let (parent, name) = dentry.place();
    if let Some(directory) = parent.as_ref().and_then(|parent| parent.inode()) {
        tell(&**directory, &Event { mask, cookie: 0, name: Some(&name), unlinked });
    }
    object(inode, mask);
}

/// A name in `directory` came (`IN_CREATE`, `IN_MOVED_TO`) or went (`IN_DELETE`, `IN_MOVED_FROM`).
pub fn entry(directory: &Arc<dyn Inode>, name: &[u8], child: &Arc<dyn Inode>, mask: u32, cookie: u32) {
    if watched() {
        let mask = mask | directory_bit(&**child);
        tell(&**directory, &Event { mask, cookie, name: Some(name), unlinked: false });
    }
}

/// Something happened to the file itself, whatever its name.
pub fn object(inode: &Arc<dyn Inode>, mask: u32) {
    if watched() {
        let mask = mask | directory_bit(&**inode);
        tell(&**inode, &Event { mask, cookie: 0, name: None, unlinked: false });
    }
}

/// A name of `inode` was removed: tells its watchers about the changed link count, and lets them drop the dentry.
pub fn unlinked(inode: &Arc<dyn Inode>) {
    if !watched() {
        return;
    }
    let Some(watches) = inode.attachments().watches_if_any() else { return };
    if inode.file_type() != FileType::Directory {
        object(inode, linux::IN_ATTRIB);
    }
    for watch in watches.all() {
        watch.unlinked();
    }
}

/// The last user of a removed name is gone: if it was the file's last name, its watches end.
pub(super) fn name_released(inode: &Arc<dyn Inode>) {
    if !watched() || inode.attachments().watches_if_any().is_none() {
        return;
    }
    let last = match inode.file_type() {
        FileType::Directory => true,
        _ => inode.attr().is_ok_and(|attr| attr.nlink == 0),
    };
    if last {
        tell(&**inode, &Event { mask: linux::IN_DELETE_SELF, cookie: 0, name: None, unlinked: true });
        end(inode);
    }
}

/// Ends all watches of an inode (it was deleted, or its file system unmounted).
pub fn end(inode: &Arc<dyn Inode>) {
    if let Some(watches) = inode.attachments().watches_if_any() {
        for watch in watches.take_all() {
            watch.gone();
        }
    }
}

/// A number that joins the two halves of a rename.
pub fn next_cookie() -> u32 {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed) as u32 | 1
}
