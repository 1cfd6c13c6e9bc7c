//! The two properties in which hosts differ, found by running a small guest.

/// How the host runs ring-0 guest code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ring0 {
    /// On the CPU.
    Native,
    /// Instruction by instruction in software, about 1 µs each; without `sysretq`.
    Emulated,
}

/// How guest-virtual addresses are translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paging {
    /// The CPU walks the guest's tables (EPT, NPT).
    Nested,
    /// KVM keeps shadow tables and does not see entries that the host writes.
    Shadow,
}

/// What the probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostMode {
    /// How ring-0 code runs.
    pub ring0: Ring0,
    /// How addresses are translated.
    pub paging: Paging,
}
