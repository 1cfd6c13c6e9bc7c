//! The memory devices (major 1): null, zero, full, random, urandom.
//!
//! [`register`] puts them into the registry of special files; terminals register themselves ([`crate::fs::tty`]).
//!
//! Not there yet: `/dev/mem` and friends (never), `/dev/kmsg`.

use std::sync::Arc;

use linux_raw_sys::ioctl as linux_ioctl;

use crate::errno::{Errno, SysResult};
use crate::fs::random;
use crate::io::{IoDst, IoSrc};
use crate::mm::{AnonymousObject, Mappable, MappingIdentity};
use crate::task::SyscallContext;
use crate::vfs::special::DeviceOpen;
use crate::vfs::{Device, File, FileOps, SpecialFiles, Whence};
use crate::wait::{PollEvents, WaitQueue};

/// Major number of the memory devices.
const MEM_MAJOR: u32 = 1;
/// What `RNDGETENTCNT` tells: a full pool, in bits.
const ENTROPY: i32 = 256;

/// Registers the drivers of the memory devices.
pub fn register(registry: &SpecialFiles) {
    for memory in [Memory::Null, Memory::Zero, Memory::Full, Memory::Random, Memory::Urandom] {
        let device = Device { major: MEM_MAJOR, minor: memory.minor() };
        let open = move |_: &mut SyscallContext<'_>, _: DeviceOpen<'_>| -> SysResult<Arc<dyn FileOps>> {
            Ok(Arc::new(MemoryDevice::new(memory)))
        };
        registry.register(device, Arc::new(open));
    }
}

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Nothing to read, takes everything.
    Null,
    /// Zeros to read, takes everything.
    Zero,
    /// Zeros to read, never has space.
    Full,
    /// Random bytes.
    Random,
    /// Random bytes.
    Urandom,
}

impl Memory {
    fn minor(self) -> u32 {
        match self {
            Memory::Null => 3,
            Memory::Zero => 5,
            Memory::Full => 7,
            Memory::Random => 8,
            Memory::Urandom => 9,
        }
    }

    fn is_random(self) -> bool {
        matches!(self, Memory::Random | Memory::Urandom)
    }
}

/// An open memory device.
pub struct MemoryDevice {
    memory: Memory,
    /// Never notified: the random devices are always ready, and still may be polled.
    queue: WaitQueue,
}

impl MemoryDevice {
    /// A description's operations.
    pub fn new(memory: Memory) -> MemoryDevice {
        MemoryDevice { memory, queue: WaitQueue::new() }
    }
}

impl FileOps for MemoryDevice {
    fn read(&self, _: &File, dst: &mut dyn IoDst, _: &mut u64) -> SysResult<usize> {
        match self.memory {
            Memory::Null => Ok(0),
            Memory::Zero | Memory::Full => dst.put_zeros(dst.remaining()),
            Memory::Random | Memory::Urandom => random::fill(dst),
        }
    }

    fn write(&self, _: &File, src: &mut dyn IoSrc, _: &mut u64) -> SysResult<usize> {
        match self.memory {
            Memory::Full => Err(Errno::ENOSPC),
            // Linux mixes what is written into the pool; the host's generator needs no help of ours.
            _ => Ok(src.remaining()),
        }
    }

    fn seekable(&self) -> bool {
        true
    }

    fn seek(&self, _: &File, _: u64, _: i64, _: Whence) -> SysResult<u64> {
        Ok(0)
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        self.memory.is_random().then_some(&self.queue)
    }

    fn poll(&self, _: &File) -> PollEvents {
        PollEvents::READABLE | PollEvents::WRITABLE
    }

    fn ioctl(&self, ctx: &mut SyscallContext<'_>, _: &Arc<File>, command: u32, arg: u64) -> SysResult<usize> {
        if !self.memory.is_random() {
            return Err(Errno::ENOTTY);
        }
        match command {
            linux_ioctl::RNDGETENTCNT => ctx.task.mm().copy_out(arg, &ENTROPY).map(|()| 0),
            linux_ioctl::RNDADDTOENTCNT | linux_ioctl::RNDCLEARPOOL | linux_ioctl::RNDZAPENTCNT => {
                Err(Errno::EPERM)
            }
            linux_ioctl::RNDADDENTROPY | linux_ioctl::RNDRESEEDCRNG => Err(Errno::EPERM),
            _ => Err(Errno::EINVAL),
        }
    }

    fn mappable(&self, _: &File) -> SysResult<Arc<dyn Mappable>> {
        /// As good as endless: any offset can be mapped, and pages come as they are touched.
        const ENDLESS: u64 = 1 << 62;
        if self.memory != Memory::Zero {
            return Err(Errno::ENODEV);
        }
        // Each mapping of /dev/zero is zeroes of its own, which only fork shares.
        let identity = MappingIdentity { name: b"/dev/zero".to_vec(), ..Default::default() };
        Ok(AnonymousObject::new(crate::platform::arena()?, ENDLESS, identity))
    }

    fn fsync(&self, _: &File, _: bool) -> SysResult {
        Err(Errno::EINVAL)
    }

    fn fallocate(&self, _: &File, _: u32, _: u64, _: u64) -> SysResult {
        Err(Errno::ENODEV)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::anonymous::AnonymousInode;
    use crate::io::{KernelDst, KernelSrc};
    use crate::vfs::OpenFlags;

    fn open(memory: Memory) -> Arc<File> {
        AnonymousInode::detached(Arc::new(MemoryDevice::new(memory)), OpenFlags::RDWR)
    }

    #[test]
    fn each_behaves_as_named() {
        let read = |memory| {
            let mut buf = [7; 64];
            let count = open(memory).read(&mut KernelDst::new(&mut buf)).unwrap();
            buf[..count].to_vec()
        };
        let write = |memory| open(memory).write(&mut KernelSrc::new(b"hello"));
        assert_eq!(read(Memory::Null), b"");
        assert_eq!(read(Memory::Zero), [0; 64]);
        assert_eq!(read(Memory::Full), [0; 64]);
        assert_ne!(read(Memory::Random), read(Memory::Urandom));
        assert_eq!(read(Memory::Random).len(), 64);
        assert_eq!(write(Memory::Full), Err(Errno::ENOSPC));
        for memory in [Memory::Null, Memory::Zero, Memory::Random, Memory::Urandom] {
            assert_eq!(write(memory), Ok(5));
        }
        assert!(open(Memory::Random).ops().pollable());
        assert!(!open(Memory::Null).ops().pollable());
    }
}
