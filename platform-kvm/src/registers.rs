//! The guest's registers and the reasons for leaving the guest.

/// User-visible registers. Segment selectors are fixed: cs 0x33, ss 0x2b.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the CPU's names
#[repr(C)]
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    /// Bits that ring 3 may not change (IF, IOPL, VM, …) are forced on entry.
    pub rflags: u64,
    /// Must be in the lower half to take effect; others are an [`crate::Error::Invalid`] of `run`.
    pub fs_base: u64,
    pub gs_base: u64,
}

impl Registers {
    /// Selector of 64-bit user code, for signal frames.
    pub const USER_CS: u16 = 0x33;
    /// Selector of user data and stack, for signal frames.
    pub const USER_SS: u16 = 0x2b;
}

/// Why the guest stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// `syscall` was executed: number in rax, arguments in rdi, rsi, rdx, r10, r8, r9. rip is past the instruction, rcx = rip,
    /// r11 = rflags, as Linux leaves them.
    Syscall,
    /// A memory access was refused. rip is at the instruction, which runs again when the guest is resumed. May be spurious:
    /// the entry may meanwhile grant the access.
    PageFault {
        /// The address.
        addr: u64,
        /// A write (else a read or an instruction fetch).
        write: bool,
        /// An instruction fetch.
        exec: bool,
        /// An entry was present but did not grant the access.
        present: bool,
    },
    /// Any other exception. rip is as the CPU leaves it: past the instruction for traps (#DB from TF, #BP, #OF), at it for faults.
    Exception {
        /// Vector: 0 #DE, 1 #DB, 3 #BP, 4 #OF, 5 #BR, 6 #UD, 7 #NM, 11 #NP, 12 #SS, 13 #GP, 16 #MF, 17 #AC, 19 #XM, …
        vector: u8,
        /// Error code, 0 where the vector has none.
        error_code: u32,
        /// For #DB the value of DR6; for an access or jump to the upper half where the host tells it, that address; else 0.
        addr: u64,
    },
    /// A kick. The registers are those of the interrupted guest.
    Interrupted,
    /// The host could not back a guest access: a mapped host file shrank, or writing a page back failed (disk full). The access
    /// was not made and rip is at the instruction. KVM gives no address: call
    /// [`crate::AddressSpace::revoke_unbacked`], then run again, and the guest takes a `PageFault` that carries it.
    HostFault,
}
