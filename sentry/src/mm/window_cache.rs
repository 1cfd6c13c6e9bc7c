//! Pieces of a host file in the arena's window zone.
//!
//! A file that the host keeps (served by the gofer, its descriptor donated) is mapped into the arena piece by piece as its
//! pages are asked for; the guest then maps the host's page cache itself. Pieces stay until the cache is told to
//! forget them, or until windows run short and nobody maps the file.
//!
//! Owner: one [`WindowCache`] per host file, held by its inode, whose [`super::Mappable`] implementation hands out
//! [`WindowCache::mappings`] and calls [`WindowCache::translate`].
//!
//! Locks: `pieces` is taken inside `translate`; the registry before it, and then only by `try_lock`.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;

pub use crate::platform::WindowAccess;

use super::mappable::{Backing, MappingSet};
use crate::errno::{Errno, SysResult};
use crate::platform::{Arena, Gpa, PAGE_SIZE, WindowRange};

/// Largest piece: pages of a 2 MiB entry, at the same place within it.
const PIECE_PAGES: u64 = 512;
/// Pieces that all caches together keep before those that nobody maps are given up; each is a mapping of the host process,
/// which has 65530 at most.
const MAX_PIECES: usize = 16384;

static CACHES: LazyLock<Mutex<Vec<Weak<WindowCache>>>> = LazyLock::new(Mutex::default);
static PIECES: AtomicUsize = AtomicUsize::new(0);

struct WindowPiece {
    range: WindowRange,
    access: WindowAccess,
}

/// See the module's documentation.
pub struct WindowCache {
    arena: &'static Arena,
    mappings: MappingSet,
    /// By page number in the file.
    pieces: Mutex<BTreeMap<u64, WindowPiece>>,
}

/// The host file that a piece is mapped from.
#[derive(Clone, Copy)]
pub struct WindowSource<'a> {
    /// A descriptor of it.
    pub fd: BorrowedFd<'a>,
    /// What the descriptor is open for.
    pub access: WindowAccess,
    /// The file's size in bytes now.
    pub size: u64,
}

impl WindowCache {
    /// An empty cache.
    pub fn new(arena: &'static Arena) -> Arc<WindowCache> {
        let cache =
            Arc::new(WindowCache { arena, mappings: MappingSet::default(), pieces: Mutex::default() });
        let mut caches = CACHES.lock();
        if caches.len() == caches.capacity() {
            caches.retain(|cache| cache.strong_count() > 0);
        }
        caches.push(Arc::downgrade(&cache));
        cache
    }

    /// Who maps the file.
    pub fn mappings(&self) -> &MappingSet {
        &self.mappings
    }

    /// Memory for the page-aligned `offset`, at most `len` bytes. `EFAULT` past the end of the file, `EACCES` for a write through
    /// a descriptor that is not open for it, `ENOMEM` without windows, or what the host's `mmap` says.
    pub fn translate(
        &self,
        source: WindowSource<'_>,
        offset: u64,
        len: u64,
        write: bool,
    ) -> SysResult<Backing> {
        if write && source.access == WindowAccess::ReadOnly {
            return Err(Errno::EACCES);
        }
        let page = offset / PAGE_SIZE;
        let file_pages = source.size.div_ceil(PAGE_SIZE);
        if page >= file_pages {
            return Err(Errno::EFAULT);
        }
        let mut pieces = self.pieces.lock();
        let found = pieces
            .range_mut(..=page)
            .next_back()
            .filter(|(start, piece)| page < **start + piece.range.pages)
            .map(|(start, piece)| (*start, piece));
        let (start, piece) = match found {
            Some((start, piece)) => {
                if write && piece.access == WindowAccess::ReadOnly {
                    // The same pages at the same place with more rights: nobody loses anything.
                    self.arena.window_map(piece.range, source.fd, start * PAGE_SIZE, source.access)?;
                    piece.access = source.access;
                }
                (start, &*piece)
            }
            None => {
                let start = (page - page % PIECE_PAGES).max(
                    pieces.range(..page).next_back().map_or(0, |(start, piece)| start + piece.range.pages),
                );
                let next = pieces.range(page..).next().map_or(u64::MAX, |(start, _)| *start);
                let end = (page - page % PIECE_PAGES + PIECE_PAGES).min(file_pages).min(next);
                let new = self.new_piece(source, start, end - start)?;
                (start, &*pieces.entry(start).or_insert(new))
            }
        };
        let skip = page - start;
        let pages = (piece.range.pages - skip).min(file_pages - page).min(len.div_ceil(PAGE_SIZE).max(1));
        Ok(Backing {
            gpa: Gpa(piece.range.start.0 + skip * PAGE_SIZE),
            len: pages * PAGE_SIZE,
            writable: piece.access == WindowAccess::ReadWrite,
        })
    }

    /// Gives all pieces up: after the file was replaced, or when it is closed. Takes them from whoever maps them first.
    pub fn clear(&self) {
        self.mappings.invalidate(0, u64::MAX);
        self.free_all(&mut self.pieces.lock());
    }

    /// Gives all pieces up if nobody maps the file.
    pub fn trim(&self) {
        if let Some(mut pieces) = self.pieces.try_lock()
            && !self.mappings.is_mapped()
        {
            self.free_all(&mut pieces);
        }
    }

    fn new_piece(&self, source: WindowSource<'_>, start: u64, pages: u64) -> SysResult<WindowPiece> {
        if PIECES.load(Ordering::Relaxed) >= MAX_PIECES {
            sweep();
        }
        let alloc = || self.arena.window_alloc(pages);
        let range = alloc()
            .or_else(|_| {
                sweep();
                alloc()
            })
            .map_err(|_| Errno::ENOMEM)?;
        let map = || self.arena.window_map(range, source.fd, start * PAGE_SIZE, source.access);
        let mapped = map().or_else(|error| {
            if error.raw_os_error() != Some(libc::ENOMEM) {
                return Err(error);
            }
            sweep();
            map()
        });
        if let Err(error) = mapped {
            self.arena.window_free(range);
            return Err(error.into());
        }
        PIECES.fetch_add(1, Ordering::Relaxed);
        Ok(WindowPiece { range, access: source.access })
    }

    fn free_all(&self, pieces: &mut BTreeMap<u64, WindowPiece>) {
        for (_, piece) in std::mem::take(pieces) {
            self.arena.window_free(piece.range);
            PIECES.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Gives up the pieces of files that nobody maps. Skips caches that are in use just now (also the caller's own).
fn sweep() {
    let caches: Vec<Arc<WindowCache>> = CACHES.lock().iter().filter_map(Weak::upgrade).collect();
    for cache in caches {
        cache.trim();
    }
}

impl Drop for WindowCache {
    fn drop(&mut self) {
        let mut pieces = std::mem::take(self.pieces.get_mut());
        self.free_all(&mut pieces);
    }
}
