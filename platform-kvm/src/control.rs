//! The control pages: ring-0 stub, descriptor tables, and one page per vCPU.
//!
//! # The stub
//! Ring 0 holds entry and exit code only, counted by the instruction because some hosts emulate it.
//! Out of the guest it is always one `out`:
//! ```text
//! syscall  (LSTAR):  out PORT_SYSCALL, al       rcx, r11 and rsp are the user's, no stack is used; see crate::exitless::stub
//! vector v (gate v): out PORT_VECTORS + v, al   the CPU has pushed the user's frame on IST 1, the vCPU page's end
//! ```
//! and the host, which reads registers and frame, never resumes behind it. Into the guest the host points rip at
//! ```text
//! STUB_IRET:     iretq            rsp = the frame in the vCPU page, which the host has written
//! STUB_SYSRET:   sysretq          the user's rsp, rcx, r11 as they are (native ring 0 only)
//! STUB_LOAD_CR3: pop rax; mov cr3, rax; pop rax; iretq      new root, or a TLB flush
//! ```
//! A vCPU that was stopped in ring 3 is resumed there directly.
//!
//! Where ring 0 is emulated, `syscall` goes to LSTAR *without leaving ring 3*. There the syscall stub is a page that ring 3 may
//! execute, with the same `out`, and the TSS allows ring 3 those ports and no other. So a system call costs no emulated
//! instruction at all, neither way. Guest code may jump to the stub or execute such an `out` itself: the first is a
//! system call that returns to rcx, the second is answered like the #GP that it deserves.

use crate::arena::PAGE_SIZE;
use crate::arena::reservation::Reservation;
use crate::error::Error;
use crate::exitless::slot::{LEN, SlotMemory};
use crate::exitless::stub::{STUB_LEN, Stub};
use crate::exitless::{faulting, ride};
use crate::host_mode::Ring0;
use crate::layout::*;
use crate::registers::Registers;
use std::hash::{BuildHasher, RandomState};

/// The host's view of the control pages.
#[derive(Debug)]
pub(crate) struct Control {
    memory: Reservation,
    /// Pages of syscall stubs.
    stub_pages: u32,
    /// The two versions of the syscall stub.
    pub native: Stub,
    pub user: Stub,
    /// By what patched call sites know a slot. Another one in each machine, so that a program whose GS base is its own does not have it there.
    pub check: u32,
}

/// What an exception gate pushed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExceptionFrame {
    pub error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
}

impl ExceptionFrame {
    /// It is of 64-bit code of the program; other selectors are not offered.
    pub(crate) fn is_users(&self) -> bool {
        self.cs & 0xffff == u64::from(USER_CS)
    }

    /// Makes `registers` those at the instruction.
    pub(crate) fn restore(&self, registers: &mut Registers) {
        (registers.rip, registers.rflags, registers.rsp) = (self.rip, self.rflags, self.rsp);
    }
}

impl Control {
    pub(crate) fn new(max_vcpus: u32) -> Result<Control, Error> {
        let stub_pages = max_vcpus.div_ceil(STUBS_PER_PAGE);
        let pages = u64::from(SHARED_PAGES + stub_pages + 1 + max_vcpus);
        let bytes = usize::try_from(pages * PAGE_SIZE).map_err(|_| Error::Invalid("too many vCPUs"))?;
        let memory = Reservation::lazy_memory(bytes)?;
        let check = (RandomState::new().hash_one(0) as u32 & 0x7fff_ffff) | 0x4000_0001;
        let control = Control { memory, stub_pages, native: Stub::native(), user: Stub::user(), check };
        // Huge pages would make one vCPU's page cost 2 MiB; without THP in the kernel the advice is refused, which is as good.
        let _ = control.memory.advise(0, bytes, libc::MADV_NOHUGEPAGE);
        control.write_stub();
        control.write_descriptors();
        control.write_bytes(control.switch_page() * PAGE_SIZE, ride::code().0);
        for (ring0, page) in [(Ring0::Native, 0), (Ring0::Emulated, control.switch_page())] {
            let (offset, code, _) = faulting::code_at(ring0);
            control.write_bytes(page * PAGE_SIZE + offset, code);
        }
        Ok(control)
    }

    pub(crate) fn memory(&self) -> &Reservation {
        &self.memory
    }

    pub(crate) fn pages(&self) -> u64 {
        self.memory.len() as u64 / PAGE_SIZE
    }

    /// Pages of syscall stubs, as control pages.
    pub(crate) fn stub_pages(&self) -> std::ops::Range<u64> {
        let first = u64::from(SHARED_PAGES);
        first..first + u64::from(self.stub_pages)
    }

    /// The page with the code that switches threads, as a control page.
    pub(crate) fn switch_page(&self) -> u64 {
        u64::from(SHARED_PAGES + self.stub_pages)
    }

    /// Writes a vCPU's syscall stub. Returns its address.
    pub(crate) fn write_syscall_stub(&self, vcpu: u32, ring0: Ring0) -> u64 {
        let offset = u64::from(SHARED_PAGES) * PAGE_SIZE + u64::from(vcpu) * STUB_LEN;
        let code = match ring0 {
            Ring0::Native => self.native.code(self.vcpu_gva(vcpu) + PAGE_SLOT),
            Ring0::Emulated => self.user.code(user_slot_gva(vcpu)),
        };
        self.write_bytes(offset, &code);
        match ring0 {
            Ring0::Native => CONTROL_GVA + offset,
            Ring0::Emulated => user_stub_gva(vcpu),
        }
    }

    /// The slot of a vCPU whose ring 0 is native.
    pub(crate) fn slot(&self, vcpu: u32) -> Option<SlotMemory> {
        let at = self.memory.checked((self.vcpu_offset(vcpu) + PAGE_SLOT) as usize, LEN as usize)?;
        // SAFETY: aligned, inside this zone, which lives as long as the machine; only slots and the guest's CPU use these bytes.
        Some(unsafe { SlotMemory::new(at) })
    }

    fn write_stub(&self) {
        const UD2: [u8; 2] = [0x0f, 0x0b];
        let out = |port: u16| [0xe6, port as u8, UD2[0], UD2[1]];
        self.write_bytes(STUB_COMPAT, &out(PORT_COMPAT));
        self.write_bytes(STUB_IRET, &[0x48, 0xcf]);
        self.write_bytes(STUB_SYSRET, &[0x48, 0x0f, 0x07]);
        // pop rax; mov cr3, rax; pop rax; iretq
        self.write_bytes(STUB_LOAD_CR3, &[0x58, 0x0f, 0x22, 0xd8, 0x58, 0x48, 0xcf]);
        self.write_bytes(USER_STUB_COMPAT - CONTROL_GVA, &out(PORT_COMPAT));
        for vector in 0..VECTORS {
            self.write_bytes(STUB_VECTORS + vector * STUB_VECTOR_LEN, &out(PORT_VECTORS + vector as u16));
        }
    }

    fn write_descriptors(&self) {
        // Accessed bits are set so that the CPU never writes here. Entry 4 would be 32-bit user code: not offered.
        let gdt: [(u16, u64); 4] = [
            (KERNEL_CS, 0x00af_9b00_0000_ffff),
            (KERNEL_SS, 0x00cf_9300_0000_ffff),
            (USER_SS & !3, 0x00cf_f300_0000_ffff),
            (USER_CS & !3, 0x00af_fb00_0000_ffff),
        ];
        for (selector, descriptor) in gdt {
            self.write_word(PAGE_SIZE + GDT_OFFSET + u64::from(selector), descriptor);
        }
        for vector in 0..VECTORS {
            self.write_ring0_gate(vector);
        }
    }

    fn write_ring0_gate(&self, vector: u64) {
        let dpl = if vector == 3 || vector == 4 { 3 } else { 0 };
        self.write_gate(vector, CONTROL_GVA + STUB_VECTORS + vector * STUB_VECTOR_LEN, KERNEL_CS, (1, dpl));
    }

    /// An interrupt gate.
    fn write_gate(&self, vector: u64, target: u64, selector: u16, (ist, dpl): (u64, u64)) {
        // Type 14, present.
        let kind = ist | (0x8e | dpl << 5) << 8;
        let low = (target & 0xffff) | u64::from(selector) << 16 | kind << 32 | (target >> 16 & 0xffff) << 48;
        self.write_word(PAGE_SIZE + IDT_OFFSET + vector * 16, low);
        self.write_word(PAGE_SIZE + IDT_OFFSET + vector * 16 + 8, target >> 32);
    }

    /// Lets page faults be posted ([`faulting`]), or exit. No vCPU is in the guest.
    pub(crate) fn post_faults(&self, by: Option<Ring0>) {
        let Some(ring0) = by else { return self.write_ring0_gate(VECTOR_PAGE_FAULT) };
        let (_, _, gva) = faulting::code_at(ring0);
        let (selector, ist) = match ring0 {
            Ring0::Native => (KERNEL_CS, 1),
            Ring0::Emulated => (USER_CS, 2),
        };
        self.write_gate(VECTOR_PAGE_FAULT, gva, selector, (ist, 0));
    }

    /// What was in rax and rcx at a page fault (native ring 0).
    pub(crate) fn read_saved(&self, vcpu: u32) -> (u64, u64) {
        let top = self.vcpu_offset(vcpu) + PAGE_STACK_TOP;
        (self.read_word(top - 56), self.read_word(top - 64))
    }

    /// Prepares the page of a new vCPU.
    pub(crate) fn write_tss(&self, vcpu: u32) {
        let at = self.vcpu_offset(vcpu) + PAGE_TSS;
        let stack = self.vcpu_gva(vcpu) + PAGE_STACK_TOP;
        // rsp0 at 4, ist1 at 36: both misaligned for u64 by 4, as the TSS has it.
        self.write_bytes(at + 4, &stack.to_le_bytes());
        self.write_bytes(at + 36, &stack.to_le_bytes());
        // And ist2: the end of the slot.
        self.write_bytes(at + 44, &(user_slot_gva(vcpu) + LEN).to_le_bytes());
        self.write_bytes(at + 102, &(TSS_LEN as u16).to_le_bytes());
        // In force only where the TSS's limit covers it.
        let mut bitmap = [0xff; BITMAP_LEN as usize];
        for port in [PORT_SYSCALL, PORT_COMPAT, PORT_ANSWERED, PORT_FAULT] {
            bitmap[usize::from(port / 8)] &= !(1 << (port % 8));
        }
        self.write_bytes(at + TSS_LEN, &bitmap);
    }

    /// Writes what `STUB_IRET` and `STUB_LOAD_CR3` pop.
    pub(crate) fn write_frame(&self, vcpu: u32, cr3: u64, rax: u64, rip: u64, rflags: u64, rsp: u64) {
        let at = self.vcpu_offset(vcpu);
        let frame = [cr3, rax, rip, u64::from(USER_CS), rflags, rsp, u64::from(USER_SS)];
        for (index, word) in frame.into_iter().enumerate() {
            self.write_word(at + PAGE_CR3 + index as u64 * 8, word);
        }
    }

    /// Reads what gate `vector` pushed.
    pub(crate) fn read_frame(&self, vcpu: u32, vector: u8) -> ExceptionFrame {
        let top = self.vcpu_offset(vcpu) + PAGE_STACK_TOP;
        let word = |index: u64| self.read_word(top - 40 + index * 8);
        ExceptionFrame {
            error_code: if has_error_code(vector) { self.read_word(top - 48) } else { 0 },
            rip: word(0),
            cs: word(1),
            rflags: word(2),
            rsp: word(3),
        }
    }

    fn vcpu_offset(&self, vcpu: u32) -> u64 {
        (self.switch_page() + 1 + u64::from(vcpu)) * PAGE_SIZE
    }

    /// Guest-virtual address of a vCPU's page.
    pub(crate) fn vcpu_gva(&self, vcpu: u32) -> u64 {
        CONTROL_GVA + self.vcpu_offset(vcpu)
    }

    fn write_bytes(&self, offset: u64, bytes: &[u8]) {
        if let Some(to) = self.memory.checked(offset as usize, bytes.len()) {
            // SAFETY: inside this zone's memory, which only this module and the guest's CPU access, by raw pointers; the caller
            // runs before the vCPU whose page it is, or holds that vCPU.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        }
    }

    fn write_word(&self, offset: u64, word: u64) {
        if let Some(to) = self.memory.checked(offset as usize, 8) {
            // SAFETY: as in `write_bytes`; every offset used is a multiple of 8.
            unsafe { to.cast::<u64>().write_volatile(word) };
        }
    }

    fn read_word(&self, offset: u64) -> u64 {
        let Some(from) = self.memory.checked(offset as usize, 8) else { return 0 };
        // SAFETY: as in `write_word`.
        unsafe { from.cast::<u64>().read_volatile() }
    }
}

/// Where a vCPU's slot is in an address space (emulated ring 0).
pub(crate) fn user_slot_gva(vcpu: u32) -> u64 {
    USER_REGION_GVA + u64::from(vcpu) * LEN
}

/// Where a vCPU's syscall stub is in an address space (emulated ring 0).
pub(crate) fn user_stub_gva(vcpu: u32) -> u64 {
    USER_REGION_GVA + u64::from(USER_REGION_STUBS) * PAGE_SIZE + u64::from(vcpu) * STUB_LEN
}

/// Whether the CPU pushes an error code for a vector.
pub(crate) fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}
