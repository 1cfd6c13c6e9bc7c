//! The window zone: host files mapped into guest-physical memory.

use super::free_runs::FreeRuns;
use super::{Arena, Gpa, PAGE_SIZE, WindowAccess, WindowRange};
use crate::error::OutOfMemory;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Pages of a 2 MiB entry.
const HUGE_PAGES: u64 = 512;

impl Arena {
    /// Reserves `pages` consecutive pages of the window zone; nothing is mapped yet. Ranges of 512 pages and more start at a
    /// multiple of 2 MiB.
    ///
    /// # Errors
    /// [`OutOfMemory`] when the zone has no such hole.
    pub fn window_alloc(&self, pages: u64) -> Result<WindowRange, OutOfMemory> {
        if pages == 0 {
            return Err(OutOfMemory);
        }
        let align = if pages >= HUGE_PAGES { HUGE_PAGES } else { 1 };
        let first = self.windows.lock().take(pages, align).ok_or(OutOfMemory)?;
        Ok(WindowRange { start: Gpa(self.window_start().0 + first * PAGE_SIZE), pages })
    }

    /// Maps `range` (all or part of an allocated one) onto `fd` from the page-aligned `file_offset`, MAP_SHARED.
    ///
    /// # Errors
    /// What `mmap` says (EACCES for a descriptor that is not open for it, ENODEV, …); EINVAL for a misplaced range.
    pub fn window_map(
        &self,
        range: WindowRange,
        fd: BorrowedFd<'_>,
        file_offset: u64,
        access: WindowAccess,
    ) -> io::Result<()> {
        let (offset, len) = self.window_offset(range)?;
        let protection = match access {
            WindowAccess::ReadOnly => libc::PROT_READ,
            WindowAccess::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        };
        let file_offset =
            i64::try_from(file_offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        self.memory.map_over(offset, len, protection, libc::MAP_SHARED, fd.as_raw_fd(), file_offset)
    }

    /// Takes the mapping away; accesses fault from now on. Guest entries must have been revoked, or the guest exits with
    /// `HostFault`.
    ///
    /// # Errors
    /// What `mmap` says.
    pub fn window_unmap(&self, range: WindowRange) -> io::Result<()> {
        let (offset, len) = self.window_offset(range)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        self.memory.map_over(offset, len, libc::PROT_NONE, flags, -1, 0)
    }

    /// Unmaps what is mapped and returns the pages to the zone. `range` is exactly what `window_alloc` returned. If the host
    /// refuses to unmap, the pages are lost rather than reused.
    pub fn window_free(&self, range: WindowRange) {
        if self.window_unmap(range).is_ok() {
            let first = (range.start.0 - self.window_start().0) / PAGE_SIZE;
            self.windows.lock().give(first, range.pages);
        }
    }

    /// The window zone's free pages at the start.
    pub(super) fn all_windows(bytes: u64) -> FreeRuns {
        FreeRuns::new(bytes / PAGE_SIZE)
    }

    /// Offset in the reservation and length, if the range is page aligned, not empty and inside the window zone.
    fn window_offset(&self, range: WindowRange) -> io::Result<(usize, usize)> {
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        let len = range.pages.checked_mul(PAGE_SIZE).ok_or_else(invalid)?;
        if !self.in_window_zone(range.start, len) || !range.start.0.is_multiple_of(PAGE_SIZE) || len == 0 {
            return Err(invalid());
        }
        let offset = self.offset_of(range.start, len).ok_or_else(invalid)?;
        Ok((offset, usize::try_from(len).map_err(|_| invalid())?))
    }
}
