//! `membarrier`: a memory barrier on every CPU that runs threads of this process.
//!
//! Taking a translation away forces every vCPU that runs in the space out of the guest, which is a barrier (and serializes
//! the instruction stream) wherever it matters. So a barrier maps one page and takes it away again.

use std::sync::atomic::Ordering;

use super::{Mm, page_down};
use crate::errno::{Errno, SysResult};
use crate::mm::fault::MemoryAccess;
use crate::platform::{Change, PAGE_SIZE};

impl Mm {
    /// Notes that the process means to use a kind of barrier (the command with which it registered).
    pub fn register_barrier(&self, command: u32) {
        self.barriers.fetch_or(command, Ordering::Relaxed);
    }

    /// Whether it has registered so.
    pub fn barrier_registered(&self, command: u32) -> bool {
        self.barriers.load(Ordering::Relaxed) & command != 0
    }

    /// The barrier. `ENOMEM`.
    pub fn barrier(&self) -> SysResult {
        let preferred = self.image.lock().vdso.unwrap_or(0);
        let state = self.state.read();
        let readable = |at: u64| state.vmas.find(at).filter(|vma| !vma.prot.is_empty());
        let vma = readable(preferred).or_else(|| state.vmas.iter().find(|vma| !vma.prot.is_empty()));
        let Some(vma) = vma else { return Ok(()) };
        let page = page_down(preferred.clamp(vma.start, vma.end - 1));
        // Also when it is mapped: it may be so ahead of its use, and costs nobody a thing then.
        self.resolve(vma, page, MemoryAccess::Read).map_err(|_| Errno::ENOMEM)?;
        self.space.revoke(&[Change::Unmap(page..page + PAGE_SIZE)])
    }
}
