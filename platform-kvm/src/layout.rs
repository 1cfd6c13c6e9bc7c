//! Where the machine keeps its own things, guest-physical and guest-virtual, and the selectors and ports of the stub.
//!
//! ```text
//! guest-physical                          guest-virtual (all supervisor only)
//! CONTROL_GPA  stub page, descriptor page, CONTROL_GVA, in the same order
//!              user stub page,
//!              pages of syscall stubs,
//!              one page per vCPU
//! FLUSH_GPA    the slot that is toggled   –
//! TABLES_GPA   page tables                –
//! GPA_BASE     the arena                  lower half, as the address spaces say
//! ```

/// Control pages.
pub(crate) const CONTROL_GPA: u64 = 0x10_0000;
/// One page whose memory slot is deleted and created again to make KVM drop every shadow page.
pub(crate) const FLUSH_GPA: u64 = 0x8000_0000;
/// Page-table pages.
pub(crate) const TABLES_GPA: u64 = 4 << 30;
/// Bytes of the table zone; it ends before `GPA_BASE`.
pub(crate) const TABLES_LEN: u64 = 8 << 30;

/// Guest-virtual address of the control pages: the last but one GiB, PML4 entry 511, PDPT entry 510.
pub(crate) const CONTROL_GVA: u64 = 0xffff_ffff_8000_0000;
/// Index of that address in the root and in the next table.
pub(crate) const CONTROL_ROOT_INDEX: usize = (CONTROL_GVA >> 39) as usize % 512;
pub(crate) const CONTROL_PDPT_INDEX: usize = (CONTROL_GVA >> 30) as usize % 512;

/// Pages before the first syscall stub: stub, descriptors, user stub.
pub(crate) const SHARED_PAGES: u32 = 3;
/// Syscall stubs in a page, and slots in a page.
pub(crate) const STUBS_PER_PAGE: u32 = 16;
/// In every address space of a host that emulates ring 0, at the end of the lower half: pages of slots, then of syscall stubs. No
/// application mapping can be here: [`crate::GVA_END`] is its start. It has a page table of its own.
pub(crate) const USER_REGION_GVA: u64 = 0x7fff_ffe0_0000;
/// First stub page of that region, and so the most pages of slots.
pub(crate) const USER_REGION_STUBS: u32 = 128;
/// From a vCPU's slot there to its syscall stub: both have the same length.
pub(crate) const USER_SLOT_TO_STUB: u64 = USER_REGION_STUBS as u64 * 4096;
/// As many vCPUs as fit there with their slots and stubs. The last stub page holds the code that switches threads.
pub(crate) const MAX_VCPUS: u32 = (USER_REGION_STUBS - 1) * STUBS_PER_PAGE;
/// Page of that region with the code that switches threads ([`crate::exitless::ride`]).
pub(crate) const USER_REGION_SWITCH: u32 = 2 * USER_REGION_STUBS - 1;
/// First page of contexts of switched threads: two per vCPU, for the first [`RIDE_VCPUS`] vCPUs.
pub(crate) const USER_REGION_CONTEXTS: u32 = 2 * USER_REGION_STUBS;
/// vCPUs in which threads can be switched: as many as there is room for contexts.
pub(crate) const RIDE_VCPUS: u32 = USER_REGION_STUBS;
/// The one control page that ring 3 may execute.
pub(crate) const USER_STUB_PAGE: u64 = 2;
/// Where `syscall` of 32-bit code goes on hosts that do not switch rings for it.
pub(crate) const USER_STUB_COMPAT: u64 = CONTROL_GVA + USER_STUB_PAGE * 4096;

// Offsets in the stub page.
pub(crate) const STUB_COMPAT: u64 = 0x10;
pub(crate) const STUB_IRET: u64 = 0x20;
pub(crate) const STUB_SYSRET: u64 = 0x30;
pub(crate) const STUB_LOAD_CR3: u64 = 0x40;
/// Entry of vector v is at `STUB_VECTORS + v * STUB_VECTOR_LEN`.
pub(crate) const STUB_VECTORS: u64 = 0x100;
pub(crate) const STUB_VECTOR_LEN: u64 = 16;
/// Where page faults are posted (native ring 0; [`crate::exitless::faulting`]).
pub(crate) const STUB_FAULT: u64 = 0x400;
pub(crate) const VECTOR_PAGE_FAULT: u64 = 14;
/// Vectors with a gate.
pub(crate) const VECTORS: u64 = 32;

// Offsets in the descriptor page.
pub(crate) const GDT_OFFSET: u64 = 0;
pub(crate) const GDT_LEN: u16 = 10 * 8;
pub(crate) const IDT_OFFSET: u64 = 0x800;
pub(crate) const IDT_LEN: u16 = 32 * 16;

// Offsets in a vCPU's page.
/// `[cr3, rax]` for `STUB_LOAD_CR3`, followed by the frame.
pub(crate) const PAGE_CR3: u64 = 0x000;
/// What `iretq` pops: rip, cs, rflags, rsp, ss.
pub(crate) const PAGE_FRAME: u64 = 0x010;
/// 64-bit TSS.
pub(crate) const PAGE_TSS: u64 = 0x080;
/// Bytes of the TSS without I/O bitmap: ring 3 has no ports.
pub(crate) const TSS_LEN: u64 = 104;
/// Bytes of its I/O bitmap for ports 0 to 0x3f, and the byte of ones that ends it.
pub(crate) const BITMAP_LEN: u64 = 9;
/// The slot through which it posts system calls (native ring 0).
pub(crate) const PAGE_SLOT: u64 = 0x100;
/// Top of the stack (IST 1) that exceptions push to.
pub(crate) const PAGE_STACK_TOP: u64 = 0x1000;

pub(crate) const KERNEL_CS: u16 = 0x10;
pub(crate) const KERNEL_SS: u16 = 0x18;
/// Base of the selectors that `sysretq` loads: +8 for ss, +16 for cs.
pub(crate) const SYSRET_BASE: u16 = 0x23;
pub(crate) const USER_SS: u16 = 0x2b;
pub(crate) const USER_CS: u16 = 0x33;
pub(crate) const TSS_SELECTOR: u16 = 0x40;

/// `out` ports that tell the exits apart. Nothing else in the VM has ports.
pub(crate) const PORT_SYSCALL: u16 = 0x20;
pub(crate) const PORT_COMPAT: u16 = 0x21;
/// A call that was posted has been answered, and the thread must leave with the result.
pub(crate) const PORT_ANSWERED: u16 = 0x22;
/// A page fault that nobody has resolved ([`crate::exitless::faulting`]).
pub(crate) const PORT_FAULT: u16 = 0x23;
/// Vector v exits at `PORT_VECTORS + v`.
pub(crate) const PORT_VECTORS: u16 = 0x40;
