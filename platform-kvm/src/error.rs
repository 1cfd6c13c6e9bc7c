//! What can go wrong, one variant per failed operation.

use std::io;

/// No frame is free, or the arena's configured limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("guest memory is exhausted")]
pub struct OutOfMemory;

/// Guest memory could not be reached: the backing is missing or a host file is shorter than its mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("guest memory fault after {done} bytes")]
pub struct Fault {
    /// Bytes that were transferred before the fault.
    pub done: usize,
}

/// Why `/dev/kvm` cannot be used, as a sentence that tells the user what to do.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// There is no device node.
    #[error(
        "/dev/kvm does not exist: load the kvm module (kvm_intel, kvm_amd) or enable virtualization for this machine"
    )]
    Missing,
    /// The node is there but may not be opened.
    #[error("/dev/kvm cannot be opened ({0}): run as root or as a member of the group that owns it")]
    Denied(io::Error),
    /// The node opens but KVM refuses what we need.
    #[error("/dev/kvm is not usable: {what} ({source})")]
    Unusable {
        /// The operation that failed.
        what: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A capability we depend on is not there.
    #[error("/dev/kvm lacks {0}: a newer host kernel is needed")]
    Lacks(&'static str),
    /// The probe's guest did something that no known host does.
    #[error("/dev/kvm runs guest code in an unexpected way: {0}")]
    Strange(String),
}

/// A failure of the host, of KVM or of the caller's arguments. Never caused by guest code alone, except where noted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host's KVM was found unusable while the machine was set up.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// A host call failed.
    #[error("{what}: {source}")]
    Host {
        /// The operation that failed.
        what: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Frames or table pages ran out.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// An address, a length or a range that the call cannot accept.
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// The arena does not fit into the guest-physical address space of this CPU.
    #[error("the arena ends at guest-physical {end:#x}, beyond this CPU's {bits} address bits")]
    ArenaTooLarge {
        /// First guest-physical address after the arena.
        end: u64,
        /// Guest-physical address bits.
        bits: u32,
    },
    /// The vCPU shut down (triple fault). The thread cannot go on; kill it.
    #[error("the vCPU shut down at rip {rip:#x}")]
    Shutdown {
        /// Last instruction pointer.
        rip: u64,
    },
    /// A fault inside the ring-0 stub: a bug of this crate.
    #[error("exception {vector} (error {error_code:#x}) inside the ring-0 stub at {rip:#x}")]
    StubFault {
        /// Exception vector.
        vector: u8,
        /// Error code.
        error_code: u64,
        /// Instruction pointer.
        rip: u64,
    },
    /// KVM_RUN left the guest for a reason that this crate does not arrange for.
    #[error("unexpected vCPU exit {reason} (detail {detail:#x}) at rip {rip:#x}")]
    UnexpectedExit {
        /// `kvm_run.exit_reason`.
        reason: u32,
        /// Suberror, port or hardware reason.
        detail: u64,
        /// Instruction pointer.
        rip: u64,
    },
    /// `set_fpu` was given a state the CPU refuses (reserved bits, unknown components). Guest-controlled bytes may cause it.
    #[error("the FPU state is not valid")]
    BadFpuState,
}

impl Error {
    pub(crate) fn host(what: &'static str) -> Error {
        Error::Host { what, source: io::Error::last_os_error() }
    }
}
