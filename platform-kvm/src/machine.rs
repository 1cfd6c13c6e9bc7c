//! The virtual machine.

use crate::arena::Arena;
use crate::error::{Error, ProbeError};
use crate::host_mode::HostMode;
use crate::space::AddressSpace;
use crate::thread::GuestThread;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Limits of a machine.
#[derive(Debug, Clone)]
pub struct MachineConfig {
    /// At most this many vCPUs exist; when more threads want to run, idle ones lose theirs with their state saved.
    pub max_vcpus: u32,
    /// Freed page-table pages that are kept unused (shadow paging) before one full flush makes them usable again.
    pub quarantine_pages: u32,
}

impl Default for MachineConfig {
    fn default() -> Self {
        MachineConfig { max_vcpus: 512, quarantine_pages: 1024 }
    }
}

/// Opens `/dev/kvm`.
///
/// # Errors
/// A [`ProbeError`] that says what to do.
pub fn open_kvm() -> Result<OwnedFd, ProbeError> {
    todo!()
}

/// The host's time stamp counter, which is also the guest's.
pub fn rdtsc() -> u64 {
    todo!()
}

/// The VM: page-table memory, memory slots, vCPUs.
#[derive(Debug)]
pub struct Machine {
    _private: (),
}

impl Machine {
    /// Creates the VM over `arena` and probes the host. `kvm` is an open `/dev/kvm`. Installs the handlers of
    /// [`crate::KICK_SIGNAL`].
    ///
    /// # Errors
    /// [`Error::Probe`] with a sentence for the user, [`Error::ArenaTooLarge`].
    pub fn new(_kvm: OwnedFd, _arena: &'static Arena, _config: MachineConfig) -> Result<Arc<Machine>, Error> {
        todo!()
    }

    /// What the probe found.
    pub fn mode(&self) -> HostMode {
        todo!()
    }

    /// The arena this machine runs on.
    pub fn arena(&self) -> &'static Arena {
        todo!()
    }

    /// An empty address space.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] without table pages.
    pub fn new_address_space(self: &Arc<Self>) -> Result<Arc<AddressSpace>, Error> {
        todo!()
    }

    /// A guest thread with the initial FPU state. It takes a vCPU at its first `run()`.
    pub fn new_thread(self: &Arc<Self>) -> GuestThread {
        todo!()
    }

    /// Frequency of the time stamp counter in kHz, 0 if the host does not tell.
    pub fn tsc_khz(&self) -> u32 {
        todo!()
    }

    /// Bytes of the XSAVE area for the features the guest may use.
    pub fn xstate_size(&self) -> usize {
        todo!()
    }

    /// The XCR0 of the guest: which state components exist.
    pub fn xcr0(&self) -> u64 {
        todo!()
    }
}
