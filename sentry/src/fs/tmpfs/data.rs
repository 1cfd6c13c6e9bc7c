//! The contents of regular files.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use bitflags::bitflags;
use linux_raw_sys::general as linux;
use parking_lot::Mutex;

use super::Limits;
use super::inode::TmpInode;
use crate::errno::{Errno, SysResult};
use crate::io::{IoDst, IoSrc};
use crate::mm::{Backing, Mappable, MappingIdentity, MappingSet};
use crate::mm::{FrameStore, PageBudget};
use crate::platform::PAGE_SIZE;
use crate::vfs::attributes::MAX_SIZE;
use crate::vfs::{Device, File, FileOps, OpenFlags, Whence};

bitflags! {
    /// What may not be done to a memfd any more (`F_ADD_SEALS`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Seals: u32 {
        /// No more seals.
        const SEAL = linux::F_SEAL_SEAL;
        /// It cannot shrink.
        const SHRINK = linux::F_SEAL_SHRINK;
        /// It cannot grow.
        const GROW = linux::F_SEAL_GROW;
        /// It cannot be written to.
        const WRITE = linux::F_SEAL_WRITE;
        /// It cannot be written to, except through mappings that exist.
        const FUTURE_WRITE = linux::F_SEAL_FUTURE_WRITE;
        /// Its executable bits stay.
        const EXEC = linux::F_SEAL_EXEC;
    }
}

impl Seals {
    /// Seals that forbid `write`.
    const NO_WRITE: Seals = Seals::WRITE.union(Seals::FUTURE_WRITE);
}

/// Size and pages of a file.
///
/// Shrinking sets the size, takes the pages out of every mapping, and only then out of the store: a fault that saw the old
/// size is over before its page is taken.
pub struct FileData {
    store: FrameStore,
    budget: Arc<PageBudget>,
    size: AtomicU64,
    /// Held by whatever changes size or contents by call, so that appends and truncations do not mix.
    writing: Mutex<()>,
    seals: AtomicU32,
    mappings: MappingSet,
    device: Device,
    ino: AtomicU64,
}

impl FileData {
    pub(super) fn new(limits: &Limits, seals: Seals) -> Arc<FileData> {
        Arc::new(FileData {
            store: FrameStore::new(limits.arena, Some(limits.pages.clone())),
            budget: limits.pages.clone(),
            size: AtomicU64::new(0),
            writing: Mutex::new(()),
            seals: AtomicU32::new(seals.bits()),
            mappings: MappingSet::default(),
            device: limits.device,
            ino: AtomicU64::new(0),
        })
    }

    pub(super) fn set_ino(&self, ino: u64) {
        self.ino.store(ino, Ordering::Relaxed);
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Allocated blocks of 512 bytes.
    pub fn blocks(&self) -> u64 {
        self.store.pages().saturating_mul(PAGE_SIZE / 512)
    }

    /// The seals.
    pub fn seals(&self) -> Seals {
        Seals::from_bits_retain(self.seals.load(Ordering::Acquire))
    }

    /// Adds seals. `EPERM` once sealed against that, `EBUSY` if writing is to be sealed while it is mapped.
    pub fn add_seals(&self, seals: Seals) -> SysResult {
        let _writing = self.writing.lock();
        if self.seals().contains(Seals::SEAL) {
            return Err(Errno::EPERM);
        }
        let seals_writing = seals.contains(Seals::WRITE) && !self.seals().contains(Seals::WRITE);
        if seals_writing && self.mappings.is_mapped_writable() {
            return Err(Errno::EBUSY);
        }
        self.seals.fetch_or(seals.bits(), Ordering::AcqRel);
        Ok(())
    }

    fn may_resize(&self, size: u64) -> SysResult {
        let seals = self.seals();
        let old = self.size();
        let sealed =
            (size < old && seals.contains(Seals::SHRINK)) || (size > old && seals.contains(Seals::GROW));
        if sealed { Err(Errno::EPERM) } else { Ok(()) }
    }

    /// Truncates or extends.
    pub fn set_size(&self, size: u64) -> SysResult {
        if size > MAX_SIZE {
            return Err(Errno::EFBIG);
        }
        let _writing = self.writing.lock();
        self.may_resize(size)?;
        let old = self.size.swap(size, Ordering::AcqRel);
        if size < old {
            self.mappings.invalidate_beyond(size);
            let end_of_page = size.next_multiple_of(PAGE_SIZE);
            drop(self.store.take(end_of_page / PAGE_SIZE..u64::MAX));
            self.store.zero(size, end_of_page.saturating_sub(size));
        }
        Ok(())
    }

    fn read(&self, dst: &mut dyn IoDst, offset: &mut u64) -> SysResult<usize> {
        let left = self.size().saturating_sub(*offset);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(dst.remaining());
        if len == 0 {
            return Ok(0);
        }
        let done = self.store.read(dst, *offset, len)?;
        *offset = offset.saturating_add(done as u64);
        Ok(done)
    }

    fn write(&self, src: &mut dyn IoSrc, offset: &mut u64, append: bool) -> SysResult<usize> {
        let _writing = self.writing.lock();
        let seals = self.seals();
        if seals.intersects(Seals::NO_WRITE) {
            return Err(Errno::EPERM);
        }
        let size = self.size();
        if append {
            *offset = size;
        }
        let mut room = MAX_SIZE.saturating_sub(*offset);
        if src.remaining() == 0 {
            return Ok(0);
        }
        if seals.contains(Seals::GROW) {
            room = size.saturating_sub(*offset);
            if room < src.remaining() as u64 {
                return Err(Errno::EPERM);
            }
        }
        if room == 0 {
            return Err(Errno::EFBIG);
        }
        let len = usize::try_from(room).unwrap_or(usize::MAX).min(src.remaining());
        let done = self.store.write(src, *offset, len)?;
        *offset = offset.saturating_add(done as u64);
        self.size.fetch_max(*offset, Ordering::AcqRel);
        Ok(done)
    }

    fn fallocate(&self, mode: u32, offset: u64, len: u64) -> SysResult {
        let keep_size = mode & linux::FALLOC_FL_KEEP_SIZE != 0;
        let punch = mode & linux::FALLOC_FL_PUNCH_HOLE != 0;
        if mode & !(linux::FALLOC_FL_KEEP_SIZE | linux::FALLOC_FL_PUNCH_HOLE) != 0 || (punch && !keep_size) {
            return Err(Errno::EOPNOTSUPP);
        }
        let end = offset.checked_add(len).filter(|end| *end <= MAX_SIZE).ok_or(Errno::EFBIG)?;
        let _writing = self.writing.lock();
        if punch {
            return self.punch(offset, end);
        }
        let grows = end > self.size() && !keep_size;
        if grows {
            self.may_resize(end)?;
        }
        let pages = end.div_ceil(PAGE_SIZE).saturating_sub(offset / PAGE_SIZE);
        let left = self.budget.limit().saturating_sub(self.budget.used());
        if pages > self.store.pages().saturating_add(left) {
            return Err(Errno::ENOSPC);
        }
        self.store.allocate(offset, len)?;
        if grows {
            self.size.fetch_max(end, Ordering::AcqRel);
        }
        Ok(())
    }

    /// Makes a hole; the caller holds the write lock.
    fn punch(&self, offset: u64, end: u64) -> SysResult {
        if self.seals().intersects(Seals::NO_WRITE) {
            return Err(Errno::EPERM);
        }
        let (first, last) = (offset.next_multiple_of(PAGE_SIZE), end / PAGE_SIZE * PAGE_SIZE);
        if first > last {
            self.store.zero(offset, end.saturating_sub(offset));
            return Ok(());
        }
        self.store.zero(offset, first.saturating_sub(offset));
        self.store.zero(last, end.saturating_sub(last));
        let taken = self.store.take(first / PAGE_SIZE..last / PAGE_SIZE);
        self.mappings.invalidate(first, last.saturating_sub(first));
        drop(taken);
        Ok(())
    }

    fn seek(&self, current: u64, offset: i64, whence: Whence) -> SysResult<u64> {
        let size = self.size();
        let inside = || u64::try_from(offset).ok().filter(|offset| *offset < size).ok_or(Errno::ENXIO);
        let base = match whence {
            Whence::Start => 0,
            Whence::Current => current,
            Whence::End => size,
            Whence::Data => {
                return self.store.next_data(inside()?).filter(|found| *found < size).ok_or(Errno::ENXIO);
            }
            Whence::Hole => return Ok(self.store.next_hole(inside()?).min(size)),
        };
        base.checked_add_signed(offset).filter(|position| *position <= MAX_SIZE).ok_or(Errno::EINVAL)
    }
}

impl Mappable for FileData {
    fn translate(&self, offset: u64, len: u64, _write: bool) -> SysResult<Backing> {
        let end = self.size().next_multiple_of(PAGE_SIZE);
        let left = end.checked_sub(offset).filter(|left| *left > 0).ok_or(Errno::EFAULT)?;
        // Linux answers a fault without space with SIGBUS, too.
        let backing = self.store.translate(offset, len.min(left)).map_err(|error| match error {
            Errno::ENOSPC => Errno::EFAULT,
            error => error,
        })?;
        let writable = backing.writable && !self.seals().intersects(Seals::WRITE);
        Ok(Backing { writable, ..backing })
    }

    fn mappings(&self) -> &MappingSet {
        &self.mappings
    }

    fn may_be_written(&self) -> bool {
        !self.seals().intersects(Seals::NO_WRITE)
    }

    fn identity(&self) -> MappingIdentity {
        let ino = self.ino.load(Ordering::Relaxed);
        MappingIdentity { name: Vec::new(), device: self.device, ino }
    }

    fn punch_hole(&self, offset: u64, len: u64) -> SysResult {
        let _writing = self.writing.lock();
        self.punch(offset, offset.saturating_add(len))
    }
}

/// The operations of an open regular file; its state is the inode's.
struct RegularOps;

/// The one object of them.
pub(super) fn operations() -> Arc<dyn FileOps> {
    static OPS: LazyLock<Arc<dyn FileOps>> = LazyLock::new(|| Arc::new(RegularOps));
    OPS.clone()
}

fn inode(file: &File) -> SysResult<&TmpInode> {
    file.inode().downcast().ok_or(Errno::EIO)
}

impl FileOps for RegularOps {
    fn read(&self, file: &File, dst: &mut dyn IoDst, offset: &mut u64) -> SysResult<usize> {
        inode(file)?.data()?.read(dst, offset)
    }

    fn write(&self, file: &File, src: &mut dyn IoSrc, offset: &mut u64) -> SysResult<usize> {
        let inode = inode(file)?;
        let append = file.flags().contains(OpenFlags::APPEND);
        let written = inode.data()?.write(src, offset, append)?;
        if written > 0 {
            inode.modified();
        }
        Ok(written)
    }

    fn seekable(&self) -> bool {
        true
    }

    fn seek(&self, file: &File, current: u64, offset: i64, whence: Whence) -> SysResult<u64> {
        inode(file)?.data()?.seek(current, offset, whence)
    }

    fn mappable(&self, file: &File) -> SysResult<Arc<dyn Mappable>> {
        Ok(inode(file)?.data()?.clone())
    }

    fn fsync(&self, _file: &File, _data_only: bool) -> SysResult {
        Ok(())
    }

    fn fallocate(&self, file: &File, mode: u32, offset: u64, len: u64) -> SysResult {
        let inode = inode(file)?;
        inode.data()?.fallocate(mode, offset, len)?;
        inode.modified();
        Ok(())
    }
}
