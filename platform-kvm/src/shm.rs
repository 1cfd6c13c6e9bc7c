//! Memory shared with another process: bytes to copy and words to sleep on, safe to use whatever the other side does.
//!
//! This has nothing to do with KVM; it is here because this crate is where unsafe code lives. The gofer and its client keep
//! their fast channels in it.
//!
//! The other process may write any of it at any time. So there is never a reference to plain bytes in it, every access is atomic
//! (by words of eight bytes, relaxed), and a caller that checks what it has copied out checks its own copy. The memory cannot
//! be cut short under us, which would be a `SIGBUS`: [`SharedMemory::map`] insists on a memfd that is sealed against shrinking.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::io::Errno;
use rustix::thread::futex;

/// A mapping of a sealed memfd.
#[derive(Debug)]
pub struct SharedMemory {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and lives as long as the value.
unsafe impl Send for SharedMemory {}
// SAFETY: all access through `&self` is by atomics.
unsafe impl Sync for SharedMemory {}

/// How a wait for a word ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// The word got the value while we looked.
    Seen,
    /// The word has the value, but we slept on it.
    Woken,
    /// It had not, for so long.
    TimedOut,
}

/// How long looking is worth it before sleeping, learnt from how it went: where both sides have a CPU, a short look spares
/// both a call to the host; where they share one, looking keeps the other side from answering.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    spins: u32,
}

impl Patience {
    /// About 50 µs on a CPU whose pause instruction is slow.
    const MOST: u32 = 1024;
    const LEAST: u32 = 32;

    /// How often to look.
    pub const fn spins(self) -> u32 {
        self.spins
    }

    /// Takes note of how a wait ended: twice as much after a success, half as much after a sleep.
    pub fn learn(&mut self, waited: Waited) {
        self.spins = match waited {
            Waited::Seen => self.spins.saturating_mul(2).min(Self::MOST),
            Waited::Woken | Waited::TimedOut => (self.spins / 2).max(Self::LEAST),
        };
    }
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { spins: Self::MOST }
    }
}

/// What to wait for and how.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// Offset of the word.
    pub word: usize,
    /// The value to wait for.
    pub value: u32,
    /// Offset of the word that is 1 while we sleep, so that the other side knows that it has to wake us.
    pub sleeping: usize,
    /// How often to look before sleeping.
    pub spins: u32,
    /// How long to sleep at most; `None` without end.
    pub timeout: Option<Duration>,
}

impl SharedMemory {
    /// Maps the first `len` bytes.
    ///
    /// # Errors
    /// `EINVAL` when the file is not a memfd sealed against shrinking of at least `len` bytes, or `len` is 0; what `mmap` says.
    pub fn map(fd: BorrowedFd<'_>, len: usize) -> io::Result<SharedMemory> {
        let sealed = fcntl_get_seals(fd)?.contains(SealFlags::SHRINK);
        let size = usize::try_from(fstat(fd)?.st_size).unwrap_or(0);
        if !sealed || size < len || len == 0 {
            return Err(Errno::INVAL.into());
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice touches no memory that anybody knows.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(Errno::NOMEM)?;
        Ok(SharedMemory { base, len })
    }

    /// The 32-bit word at `offset`; `None` when it is outside or misaligned.
    pub fn word(&self, offset: usize) -> Option<&AtomicU32> {
        let end = offset.checked_add(size_of::<AtomicU32>())?;
        if end > self.len || !offset.is_multiple_of(align_of::<AtomicU32>()) {
            return None;
        }
        // SAFETY: `offset` lies within the mapping, as just checked.
        let word = unsafe { self.base.add(offset) };
        // SAFETY: the mapping is page aligned and `offset` a multiple of the word's alignment; it lives as long as `self`; all
        // access to it is atomic (module documentation).
        Some(unsafe { word.cast::<AtomicU32>().as_ref() })
    }

    /// Copies bytes out; false, and nothing is copied, when they are not all inside.
    #[must_use]
    pub fn read(&self, offset: usize, buf: &mut [u8]) -> bool {
        let Some((head, words, tail)) = self.split(offset, buf.len()) else { return false };
        let (first, rest) = buf.split_at_mut(head.len());
        let (middle, last) = rest.split_at_mut(words.len() * 8);
        let bytes = first.iter_mut().chain(last).zip(head.iter().chain(tail));
        bytes.for_each(|(to, from)| *to = from.load(Ordering::Relaxed));
        for (to, from) in middle.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&from.load(Ordering::Relaxed).to_ne_bytes());
        }
        true
    }

    /// Copies bytes in; false, and nothing is copied, when they do not all fit inside.
    #[must_use]
    pub fn write(&self, offset: usize, data: &[u8]) -> bool {
        let Some((head, words, tail)) = self.split(offset, data.len()) else { return false };
        let (first, rest) = data.split_at(head.len());
        let (middle, last) = rest.split_at(words.len() * 8);
        let bytes = first.iter().chain(last).zip(head.iter().chain(tail));
        bytes.for_each(|(from, to)| to.store(*from, Ordering::Relaxed));
        for (from, to) in middle.as_chunks::<8>().0.iter().zip(words) {
            to.store(u64::from_ne_bytes(*from), Ordering::Relaxed);
        }
        true
    }

    /// The bytes at `offset` as atomics: single ones up to an address that is a multiple of 8, words, and single ones again.
    fn split(&self, offset: usize, len: usize) -> Option<(&[AtomicU8], &[AtomicU64], &[AtomicU8])> {
        let end = offset.checked_add(len)?;
        if end > self.len {
            return None;
        }
        // SAFETY: `offset` is at most `self.len`, as just checked.
        let start = unsafe { self.base.add(offset) };
        // SAFETY: `len` bytes from there are within the mapping, which lives as long as `self`; an AtomicU8 has no alignment
        // and no invalid values, and all access is atomic (module documentation).
        let bytes: &[AtomicU8] = unsafe { std::slice::from_raw_parts(start.cast().as_ptr(), len) };
        // SAFETY: eight bytes are a valid AtomicU64, and `align_to` gives only aligned ones.
        Some(unsafe { bytes.align_to::<AtomicU64>() })
    }

    /// Waits until a word has a value: looks `spins` times, then sleeps on it. Sees all that the other side wrote before it
    /// [`SharedMemory::publish`]ed the value.
    pub fn wait(&self, wait: Wait) -> Waited {
        let (Some(word), Some(sleeping)) = (self.word(wait.word), self.word(wait.sleeping)) else {
            return Waited::TimedOut;
        };
        for _ in 0..wait.spins {
            if word.load(Ordering::Acquire) == wait.value {
                return Waited::Seen;
            }
            std::hint::spin_loop();
        }
        // SeqCst here and in `publish`: either we see the value, or the other side sees that we sleep.
        sleeping.store(1, Ordering::SeqCst);
        let now = word.load(Ordering::SeqCst);
        if now != wait.value {
            let timeout = wait.timeout.and_then(|timeout| futex::Timespec::try_from(timeout).ok());
            // Woken, interrupted, timed out, changed meanwhile: the word tells.
            let _ = futex::wait(word, futex::Flags::empty(), now, timeout.as_ref());
        }
        sleeping.store(0, Ordering::Relaxed);
        if word.load(Ordering::Acquire) == wait.value { Waited::Woken } else { Waited::TimedOut }
    }

    /// Gives a word a value, so that whoever finds it there sees everything that we wrote before, and wakes the other side if it
    /// says that it sleeps.
    pub fn publish(&self, word: usize, value: u32, peer_sleeping: usize) {
        let (Some(word), Some(sleeping)) = (self.word(word), self.word(peer_sleeping)) else { return };
        word.store(value, Ordering::SeqCst);
        if sleeping.load(Ordering::SeqCst) != 0 {
            // Nobody there is as good as somebody woken.
            let _ = futex::wake(word, futex::Flags::empty(), 1);
        }
    }

    /// Wakes everybody who sleeps on a word, whatever its value.
    pub fn wake_all(&self, word: usize) {
        if let Some(word) = self.word(word) {
            let _ = futex::wake(word, futex::Flags::empty(), i32::MAX.cast_unsigned());
        }
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `map` got; no reference into it outlives `self`.
        let done = unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert_eq!(done, 0, "unmapping our own range");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};
    use std::os::fd::{AsFd, OwnedFd};
    use std::sync::Arc;
    use std::time::Instant;

    fn memory(len: u64, seals: SealFlags) -> OwnedFd {
        let fd = memfd_create("shm-test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&fd, len).unwrap();
        fcntl_add_seals(&fd, seals).unwrap();
        fd
    }

    #[test]
    fn two_mappings_show_the_same_bytes_wherever_they_lie() {
        let fd = memory(8192, SealFlags::SHRINK);
        let (a, b) =
            (SharedMemory::map(fd.as_fd(), 8192).unwrap(), SharedMemory::map(fd.as_fd(), 8192).unwrap());
        let data: Vec<u8> = (0..200).collect();
        for offset in [0, 1, 7, 8, 4095, 8192 - 200] {
            for len in [0, 1, 7, 8, 9, 15, 16, 17, 200] {
                assert!(a.write(offset, &data[..len]));
                let mut out = vec![0; len];
                assert!(b.read(offset, &mut out));
                assert_eq!(out, data[..len], "{len} at {offset}");
            }
        }
        let mut out = [0; 16];
        assert!(
            !a.read(8192 - 15, &mut out) && !a.write(usize::MAX, &out) && !a.read(usize::MAX - 3, &mut out)
        );
        assert!(a.word(8188).is_some() && a.word(8189).is_none() && a.word(8192).is_none());
    }

    #[test]
    fn only_memory_that_cannot_shrink_is_mapped() {
        assert!(SharedMemory::map(memory(4096, SealFlags::empty()).as_fd(), 4096).is_err());
        assert!(SharedMemory::map(memory(4096, SealFlags::SHRINK).as_fd(), 8192).is_err());
        assert!(SharedMemory::map(memory(4096, SealFlags::SHRINK).as_fd(), 0).is_err());
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(SharedMemory::map(file.as_fd(), 1).is_err());
    }

    #[test]
    fn a_sleeper_is_woken_each_time() {
        let fd = memory(4096, SealFlags::SHRINK);
        let shared = Arc::new(SharedMemory::map(fd.as_fd(), 4096).unwrap());
        let other = shared.clone();
        let wait = |value, sleeping, spins| Wait { word: 0, value, sleeping, spins, timeout: None };
        let thread = std::thread::spawn(move || {
            for round in 0..2000 {
                while other.wait(wait(round * 2 + 1, 64, round % 50)) == Waited::TimedOut {}
                other.publish(0, round * 2 + 2, 128);
            }
        });
        for round in 0..2000 {
            shared.publish(0, round * 2 + 1, 64);
            while shared.wait(wait(round * 2 + 2, 128, (round * 7) % 50)) == Waited::TimedOut {}
        }
        thread.join().unwrap();
    }

    #[test]
    fn a_wait_ends_in_time() {
        let fd = memory(4096, SealFlags::SHRINK);
        let shared = SharedMemory::map(fd.as_fd(), 4096).unwrap();
        let start = Instant::now();
        let timeout = Some(Duration::from_millis(20));
        let wait = Wait { word: 0, value: 1, sleeping: 64, spins: 10, timeout };
        assert_eq!(shared.wait(wait), Waited::TimedOut);
        assert!(start.elapsed() >= Duration::from_millis(19));
    }
}
