//! Memory slots. Under shadow paging KVM keeps about 10 bytes per page of a slot, so slots grow with what is mapped:
//! each zone is cut into chunks of doubling size, and a chunk becomes a slot when the first guest entry points into it.

use crate::error::Error;
use crate::layout::FLUSH_GPA;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use parking_lot::Mutex;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const FIRST_CHUNK: u64 = 16 << 20;
const LARGEST_CHUNK: u64 = 1 << 30;
/// Shadow pages that KVM may have, 8 KiB of kernel memory each, which counts as the sandbox's.
const SHADOW_PAGES: libc::c_ulong = 8192;
/// `KVM_SET_NR_MMU_PAGES` of `linux/kvm.h`.
const SET_NR_MMU_PAGES: libc::c_ulong = libc::_IO(0xae, 0x44);
/// The slot of the flush page.
const FLUSH_SLOT: u32 = 0;

/// Host memory at guest-physical addresses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Zone {
    pub gpa: u64,
    pub hva: u64,
    pub len: u64,
}

#[derive(Debug)]
struct Chunk {
    zone: Zone,
    registered: AtomicBool,
}

#[derive(Debug)]
pub(crate) struct Slots {
    /// Sorted by address.
    chunks: Vec<Chunk>,
    /// Number of the next slot; guards registration and the flush slot.
    next: Mutex<u32>,
    flush: Zone,
    /// Full flushes that have begun, and the number of the last one that was completed.
    begun: AtomicU64,
    completed: AtomicU64,
}

impl Slots {
    /// `zones` in ascending order; `flush_hva` is the page that the flush slot shows.
    pub(crate) fn new(vm: &VmFd, zones: &[Zone], flush_hva: u64) -> Result<Slots, Error> {
        let mut chunks = Vec::new();
        for zone in zones {
            let mut offset = 0;
            let mut len = FIRST_CHUNK;
            while offset < zone.len {
                let part = len.min(zone.len - offset);
                let zone = Zone { gpa: zone.gpa + offset, hva: zone.hva + offset, len: part };
                chunks.push(Chunk { zone, registered: AtomicBool::new(false) });
                // The second chunk is as large as the first, so that all start at multiples of their own size.
                if offset > 0 {
                    len = (len * 2).min(LARGEST_CHUNK);
                }
                offset += part;
            }
        }
        let flush = Zone { gpa: FLUSH_GPA, hva: flush_hva, len: 4096 };
        set(vm, FLUSH_SLOT, flush)
            .map_err(|source| Error::Host { what: "creating a memory slot", source })?;
        let next = Mutex::new(FLUSH_SLOT + 1);
        Ok(Slots { chunks, next, flush, begun: AtomicU64::new(0), completed: AtomicU64::new(0) })
    }

    /// Makes sure that guest entries may point to the range.
    pub(crate) fn ensure(&self, vm: &VmFd, gpa: u64, len: u64) -> Result<(), Error> {
        let first = self.chunks.partition_point(|chunk| chunk.zone.gpa + chunk.zone.len <= gpa);
        for chunk in self.chunks.iter().skip(first) {
            if chunk.zone.gpa >= gpa.saturating_add(len) {
                break;
            }
            if !chunk.registered.load(Ordering::Acquire) {
                self.register(vm, chunk)?;
            }
        }
        Ok(())
    }

    #[cold]
    fn register(&self, vm: &VmFd, chunk: &Chunk) -> Result<(), Error> {
        let mut next = self.next.lock();
        if chunk.registered.load(Ordering::Relaxed) {
            return Ok(());
        }
        set(vm, *next, chunk.zone)
            .map_err(|source| Error::Host { what: "creating a memory slot", source })?;
        *next += 1;
        chunk.registered.store(true, Ordering::Release);
        Ok(())
    }

    /// Makes KVM drop all roots, shadow pages and cached translations. Costs every vCPU all its translations.
    pub(crate) fn flush_everything(&self, vm: &VmFd) -> Result<(), Error> {
        let _guard = self.next.lock();
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let gone = Zone { len: 0, ..self.flush };
        set(vm, FLUSH_SLOT, gone)
            .and_then(|()| set(vm, FLUSH_SLOT, self.flush))
            .map_err(|source| Error::Host { what: "toggling the flush slot", source })?;
        self.completed.store(number, Ordering::SeqCst);
        Ok(())
    }

    /// How many full flushes have begun.
    pub(crate) fn flushes_begun(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }

    /// The number of the last full flush that was completed. One that has a higher number than had begun at some moment began after it.
    pub(crate) fn flushes_completed(&self) -> u64 {
        self.completed.load(Ordering::SeqCst)
    }
}

/// Lets KVM have enough shadow pages. By itself it allows one for 50 pages of the slots, and ours are small at first: some processes together need
/// more, and then each new shadow page costs an old one, which is in use. Best effort: kernels may refuse.
pub(crate) fn allow_shadow_pages(vm: &VmFd) {
    // SAFETY: the request takes a number and touches no memory of this process.
    unsafe { libc::ioctl(vm.as_raw_fd(), SET_NR_MMU_PAGES, SHADOW_PAGES) };
}

fn set(vm: &VmFd, slot: u32, zone: Zone) -> io::Result<()> {
    let region = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: zone.gpa,
        memory_size: zone.len,
        userspace_addr: zone.hva,
    };
    // SAFETY: every zone is part of a reservation that is never unmapped and that no Rust reference covers, so the guest may
    // do to it what it likes.
    unsafe { vm.set_user_memory_region(region) }.map_err(|e| io::Error::from_raw_os_error(e.errno()))
}
