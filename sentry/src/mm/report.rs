//! What `/proc` shows of an address space.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::private_pages::bytes;
use super::vma::{Prot, Source, Vma, VmaFlags};
use super::{Mm, page_numbers};
use crate::platform::PAGE_SIZE;
use crate::vfs::{Device, File};
use std::sync::Arc;

/// Entries that are looked at to find the resident pages of objects (1 GiB): beyond, sizes are too low rather than late.
const MOST_LOOKUPS: u64 = 1 << 18;

/// A mapping, for `/proc/*/{maps,smaps,map_files}`.
#[derive(Clone)]
pub struct VmaReport {
    /// First address.
    pub start: u64,
    /// Address after the last byte.
    pub end: u64,
    /// Protection.
    pub prot: Prot,
    /// Properties.
    pub flags: VmaFlags,
    /// Offset in the object, in bytes; 0 for anonymous memory.
    pub offset: u64,
    /// Device of the object.
    pub device: Device,
    /// Inode number of the object; 0 for none.
    pub ino: u64,
    /// Path or label; empty for anonymous memory. Where there is a `file`, its current path is the better name.
    pub name: Vec<u8>,
    /// The description it was mapped through.
    pub file: Option<Arc<File>>,
    /// Bytes of private pages.
    pub private_bytes: u64,
    /// Nothing but private pages is mapped here.
    pub anonymous: bool,
}

/// Sizes of an address space in bytes, for `/proc/*/{status,statm,stat}` and `getrusage`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUsage {
    /// Mapped (`VmSize`).
    pub total: u64,
    /// Most that was mapped (`VmPeak`).
    pub peak: u64,
    /// Locked (`VmLck`).
    pub locked: u64,
    /// Private writable memory without the stack (`VmData`).
    pub data: u64,
    /// The stack (`VmStk`).
    pub stack: u64,
    /// Executable mappings of files (`VmExe` + `VmLib`).
    pub exec: u64,
    /// Private pages (`RssAnon`).
    pub rss_anonymous: u64,
    /// Entered pages of private file mappings (`RssFile`).
    pub rss_file: u64,
    /// Entered pages of shared objects (`RssShmem`).
    pub rss_shared: u64,
    /// Most private pages there were (`VmHWM`).
    pub peak_rss: u64,
}

impl MemoryUsage {
    /// `VmRSS`
    pub fn rss(&self) -> u64 {
        self.rss_anonymous + self.rss_file + self.rss_shared
    }
}

impl Mm {
    /// All mappings, in order.
    pub fn mappings(&self) -> Vec<VmaReport> {
        let stack = self.image.lock().start_stack;
        let state = self.state.read();
        let heap = state.brk_start..state.brk;
        let report = |vma: &Vma| {
            let private = self.private_pages(page_numbers(&(vma.start..vma.end)));
            let mut report = VmaReport {
                start: vma.start,
                end: vma.end,
                prot: vma.prot,
                flags: vma.flags,
                offset: 0,
                device: Device::default(),
                ino: 0,
                name: Vec::new(),
                file: None,
                private_bytes: bytes(private),
                anonymous: matches!(vma.source, Source::Anonymous),
            };
            match &vma.source {
                Source::Object { mapping, offset } => {
                    let identity = mapping.object.identity();
                    report.offset = if vma.flags.contains(VmaFlags::SPECIAL) { 0 } else { *offset };
                    report.device = identity.device;
                    report.ino = identity.ino;
                    report.name = identity.name;
                    report.file = mapping.file.clone();
                }
                Source::Anonymous if vma.start < heap.end && vma.end > heap.start => {
                    report.name = b"[heap]".to_vec();
                }
                Source::Anonymous if (vma.start..vma.end).contains(&stack) => {
                    report.name = b"[stack]".to_vec();
                }
                Source::Anonymous => {}
            }
            report
        };
        state.vmas.iter().map(report).collect()
    }

    /// Its sizes.
    pub fn usage(&self) -> MemoryUsage {
        let state = self.state.read();
        let mut usage = MemoryUsage {
            total: state.vmas.bytes(),
            peak: self.peak_bytes.load(Ordering::Relaxed),
            locked: state.vmas.locked_bytes(),
            data: state.vmas.data_bytes(),
            rss_anonymous: bytes(self.pages.lock().pages()),
            ..Default::default()
        };
        let mut budget = MOST_LOOKUPS;
        for vma in state.vmas.iter() {
            if vma.flags.contains(VmaFlags::GROWSDOWN) {
                usage.stack += vma.len();
            }
            if matches!(vma.source, Source::Anonymous) {
                continue;
            }
            if vma.prot.contains(Prot::EXEC) {
                usage.exec += vma.len();
            }
            let entered = self.entered_object_pages(vma.start..vma.end, &mut budget);
            if vma.is_private() {
                usage.rss_file += bytes(entered);
            } else {
                usage.rss_shared += bytes(entered);
            }
        }
        let peak = bytes(self.peak_rss_pages.load(Ordering::Relaxed));
        usage.peak_rss = peak.max(usage.rss_anonymous) + usage.rss_file + usage.rss_shared;
        usage
    }

    /// Bytes mapped in all (`VmSize`), cheaply.
    pub fn total_bytes(&self) -> u64 {
        self.state.read().vmas.bytes()
    }

    /// Page faults resolved so far (`min_flt`).
    pub fn fault_count(&self) -> u64 {
        self.minor_faults.load(Ordering::Relaxed)
    }

    /// Private pages in a range of page numbers.
    fn private_pages(&self, pages: Range<u64>) -> u64 {
        self.pages.lock().runs(pages).map(|run| u64::from(run.count)).sum()
    }

    /// Bytes of the object mapped at `reports` that are entered, without private copies, for each of them (`smaps`).
    pub fn object_bytes_entered(&self, reports: &[VmaReport]) -> Vec<u64> {
        let mut budget = MOST_LOOKUPS;
        let entered = |vma: &VmaReport| match vma.anonymous {
            true => 0,
            false => bytes(self.entered_object_pages(vma.start..vma.end, &mut budget)),
        };
        reports.iter().map(entered).collect()
    }

    /// Pages of an object that are entered, without private copies. Looks at `budget` pages at most.
    fn entered_object_pages(&self, addresses: Range<u64>, budget: &mut u64) -> u64 {
        let range = page_numbers(&addresses);
        let range = range.start..range.end.min(range.start.saturating_add(*budget));
        *budget -= range.end - range.start;
        let private = self.private_pages(range.clone());
        let entered = range.filter(|page| self.space.lookup(page * PAGE_SIZE).is_some()).count();
        (entered as u64).saturating_sub(private)
    }
}
