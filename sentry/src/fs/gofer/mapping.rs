//! Mapped files: windows of guest-physical memory onto a host file.
//!
//! A file is mapped in pieces of [`PIECE`], each a window of the arena onto the donated descriptor. A window is read-only
//! until somebody wants to write; it is then mapped again in its place, writable, without moving. Windows go when the
//! last mapping of the file is gone and the inode gives its descriptors up.
//!
//! Pages that the host file loses (others truncate it) fault in the guest as they would on Linux.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::handle::{Handle, Want};
use super::inode::GoferInode;
use crate::errno::{Errno, SysResult};
use crate::mm::{Backing, Mappable, MappingIdentity, MappingSet};
use crate::platform::{self, Gpa, PAGE_SIZE, WindowAccess, WindowRange};
use crate::vfs::Inode;

/// Bytes of the file per window: one large page entry.
const PIECE: u64 = 2 << 20;

/// The windows onto a file.
pub(super) struct FileMapping {
    inode: Weak<GoferInode>,
    windows: Mutex<BTreeMap<u64, Window>>,
    written: AtomicBool,
    mappings: MappingSet,
}

struct Window {
    range: WindowRange,
    access: WindowAccess,
    /// Keeps the descriptor: nothing else may hold it.
    _handle: Handle,
}

impl FileMapping {
    pub(super) fn new(inode: &Arc<GoferInode>) -> FileMapping {
        FileMapping {
            inode: Arc::downgrade(inode),
            windows: Mutex::default(),
            written: AtomicBool::new(false),
            mappings: MappingSet::default(),
        }
    }

    /// Whether anybody may be writing through a mapping, so that size and times on the host change without us.
    pub(super) fn is_written(&self) -> bool {
        self.written.load(Ordering::Relaxed)
    }

    /// The file is about to be cut to `size`: pages behind it leave the guest's address spaces first.
    pub(super) fn cut(&self, size: u64) {
        let start = size.next_multiple_of(PAGE_SIZE);
        self.mappings.invalidate(start, u64::MAX.saturating_sub(start));
    }

    fn window(&self, inode: &GoferInode, piece: u64, write: bool) -> SysResult<(WindowRange, bool)> {
        let mut windows = self.windows.lock();
        let known = windows.get(&piece).map(|window| (window.range, window.access));
        match known {
            Some((range, WindowAccess::ReadWrite)) => return Ok((range, true)),
            Some((range, WindowAccess::ReadOnly)) if !write => return Ok((range, false)),
            _ => {}
        }
        let handle = inode.handle(if write { Want::Write } else { Want::Read })?;
        let access = if write { WindowAccess::ReadWrite } else { WindowAccess::ReadOnly };
        let arena = platform::arena()?;
        let range = match known {
            Some((range, _)) => range,
            None => arena.window_alloc(PIECE / PAGE_SIZE).map_err(|_| Errno::ENOMEM)?,
        };
        if let Err(error) = arena.window_map(range, handle.fd(), piece, access) {
            if known.is_none() {
                arena.window_free(range);
            }
            return Err(Errno::from_host(error.raw_os_error().unwrap_or(0)));
        }
        if write {
            self.written.store(true, Ordering::Relaxed);
        }
        windows.insert(piece, Window { range, access, _handle: handle });
        Ok((range, write))
    }
}

impl Mappable for FileMapping {
    fn translate(&self, offset: u64, len: u64, write: bool) -> SysResult<Backing> {
        let inode = self.inode.upgrade().ok_or(Errno::EIO)?;
        let handle = inode.handle(if write { Want::Write } else { Want::Read })?;
        let end = inode.size_now(&handle)?.next_multiple_of(PAGE_SIZE);
        if offset >= end {
            return Err(Errno::EFAULT);
        }
        let piece = offset.checked_div(PIECE).and_then(|n| n.checked_mul(PIECE)).ok_or(Errno::EFAULT)?;
        let (range, writable) = self.window(&inode, piece, write)?;
        let within = offset.saturating_sub(piece);
        let len = len.min(PIECE.saturating_sub(within)).min(end.saturating_sub(offset));
        Ok(Backing { gpa: Gpa(range.start.0.saturating_add(within)), len, writable })
    }

    fn mappings(&self) -> &MappingSet {
        &self.mappings
    }

    fn identity(&self) -> MappingIdentity {
        let attr = self.inode.upgrade().and_then(|inode| inode.attr().ok());
        match attr {
            Some(attr) => MappingIdentity { name: Vec::new(), device: attr.dev, ino: attr.ino },
            None => MappingIdentity::default(),
        }
    }
}

impl Drop for FileMapping {
    fn drop(&mut self) {
        let Ok(arena) = platform::arena() else { return };
        for window in std::mem::take(self.windows.get_mut()).into_values() {
            arena.window_free(window.range);
        }
    }
}
