//! `eventfd(2)`: a counter to wait on.
//!
//! Lock order: the counter is a leaf.

use linux_raw_sys::general as linux;
use parking_lot::Mutex;

use super::anonymous::next_ino;
use crate::errno::{Errno, SysResult};
use crate::io::{IoDst, IoSrc};
use crate::vfs::{File, FileOps};
use crate::wait::{PollEvents, WaitQueue};

/// Highest value a write may leave behind.
const MAX: u64 = u64::MAX - 1;
/// Bytes of a transfer.
const SIZE: usize = size_of::<u64>();

/// What a read takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// The whole count.
    All,
    /// One (`EFD_SEMAPHORE`).
    One,
}

/// The operations of an eventfd.
pub struct EventFd {
    count: Mutex<u64>,
    take: Take,
    queue: WaitQueue,
    id: u64,
}

impl EventFd {
    /// A counter that starts at `initial`.
    pub fn new(initial: u32, take: Take) -> EventFd {
        EventFd { count: Mutex::new(u64::from(initial)), take, queue: WaitQueue::new(), id: next_ino() }
    }

    /// Adds to the counter from inside the kernel; saturates at its maximum.
    pub fn signal(&self, value: u64) {
        let mut count = self.count.lock();
        *count = count.saturating_add(value);
        drop(count);
        self.queue.notify(PollEvents::READABLE);
    }
}

impl FileOps for EventFd {
    fn read(&self, _: &File, dst: &mut dyn IoDst, _: &mut u64) -> SysResult<usize> {
        if dst.remaining() < SIZE {
            return Err(Errno::EINVAL);
        }
        let mut count = self.count.lock();
        if *count == 0 {
            return Err(Errno::EAGAIN);
        }
        let taken = match self.take {
            Take::All => *count,
            Take::One => 1,
        };
        *count = count.saturating_sub(taken);
        drop(count);
        self.queue.notify(PollEvents::WRITABLE);
        match dst.put(&taken.to_ne_bytes())? {
            SIZE => Ok(SIZE),
            _ => Err(Errno::EFAULT),
        }
    }

    fn write(&self, _: &File, src: &mut dyn IoSrc, _: &mut u64) -> SysResult<usize> {
        if src.remaining() < SIZE {
            return Err(Errno::EINVAL);
        }
        let mut bytes = [0; SIZE];
        if src.take(&mut bytes)? < SIZE {
            return Err(Errno::EFAULT);
        }
        let value = u64::from_ne_bytes(bytes);
        if value == u64::MAX {
            return Err(Errno::EINVAL);
        }
        let mut count = self.count.lock();
        match count.checked_add(value) {
            Some(sum) if sum <= MAX => *count = sum,
            _ => return Err(Errno::EAGAIN),
        }
        drop(count);
        self.queue.notify(PollEvents::READABLE);
        Ok(SIZE)
    }

    fn poll(&self, _: &File) -> PollEvents {
        let count = *self.count.lock();
        let mut events = PollEvents::empty();
        events.set(PollEvents::READABLE, count > 0);
        events.set(PollEvents::WRITABLE, count < MAX);
        events.set(PollEvents::ERR, count == u64::MAX);
        events
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.queue)
    }

    fn anonymous_name(&self) -> Option<String> {
        Some("anon_inode:[eventfd]".into())
    }

    fn fdinfo(&self) -> String {
        let semaphore = u32::from(self.take == Take::One) * linux::EFD_SEMAPHORE;
        let count = *self.count.lock();
        format!("eventfd-count: {count:16x}\neventfd-id: {}\neventfd-semaphore: {semaphore}\n", self.id)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::fs::anonymous::AnonymousInode;
    use crate::io::{KernelDst, KernelSrc};
    use crate::vfs::OpenFlags;

    fn eventfd(initial: u32, take: Take) -> Arc<File> {
        AnonymousInode::detached(Arc::new(EventFd::new(initial, take)), OpenFlags::RDWR)
    }

    fn read(file: &File) -> SysResult<u64> {
        let mut buf = [0; 16];
        let count = file.read(&mut KernelDst::new(&mut buf))?;
        assert_eq!(count, 8);
        Ok(u64::from_ne_bytes(*buf.first_chunk().unwrap()))
    }

    fn write(file: &File, value: u64) -> SysResult<usize> {
        file.write(&mut KernelSrc::new(&value.to_ne_bytes()))
    }

    #[test]
    fn counts_and_empties() {
        let file = eventfd(3, Take::All);
        assert_eq!(write(&file, 4), Ok(8));
        assert_eq!(read(&file), Ok(7));
        assert_eq!(read(&file), Err(Errno::EAGAIN));
        assert_eq!(file.poll(), PollEvents::WRITABLE);
        assert_eq!(write(&file, u64::MAX), Err(Errno::EINVAL));
        assert_eq!(write(&file, MAX), Ok(8));
        assert_eq!(file.poll(), PollEvents::READABLE);
        assert_eq!(write(&file, 1), Err(Errno::EAGAIN));
        assert_eq!(write(&file, 0), Ok(8));
        assert_eq!(read(&file), Ok(MAX));
        assert_eq!(file.read(&mut KernelDst::new(&mut [0; 7])), Err(Errno::EINVAL));
        assert_eq!(file.write(&mut KernelSrc::new(&[0; 7])), Err(Errno::EINVAL));
    }

    #[test]
    fn semaphore_gives_one_at_a_time() {
        let file = eventfd(2, Take::One);
        assert_eq!((read(&file), read(&file), read(&file)), (Ok(1), Ok(1), Err(Errno::EAGAIN)));
    }
}
