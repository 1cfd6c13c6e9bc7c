//! What a vCPU carries from one exit to the next and a thread takes along when it changes vCPUs.

use super::{DataSegments, Vcpu};
use crate::error::Error;
use crate::fpu::FpuState;
use kvm_bindings::kvm_xsave;

impl Vcpu {
    /// Data segments as ring 3 left them.
    pub(crate) fn segments(&mut self) -> DataSegments {
        let sregs = &self.sync().sregs;
        DataSegments([sregs.ds, sregs.es, sregs.fs, sregs.gs])
    }

    /// Loads the data segments of another thread, or the initial ones.
    pub(crate) fn set_segments(&mut self, segments: Option<DataSegments>) {
        let DataSegments([ds, es, fs, gs]) = segments.unwrap_or(self.initial_segments);
        let sregs = &mut self.sync().sregs;
        (sregs.ds, sregs.es, sregs.fs, sregs.gs) = (ds, es, fs, gs);
        self.force_sregs = true;
    }

    /// The vCPU changes hands: forgets a half-done event of its old thread.
    pub(crate) fn disown(&mut self) {
        self.at_syscall = false;
        self.clear_events = true;
    }

    pub(crate) fn fpu(&self, size: usize) -> Result<FpuState, Error> {
        let area = self.fd.get_xsave().map_err(|e| host("KVM_GET_XSAVE", e))?;
        Ok(FpuState::from_words(&area.region, size))
    }

    pub(crate) fn set_fpu(&mut self, state: &FpuState) -> Result<(), Error> {
        let mut area = kvm_xsave::default();
        state.to_words(&mut area.region);
        // SAFETY: without dynamically enabled features (AMX, which XCR0 leaves out) KVM reads 4096 bytes, the size of the area.
        match unsafe { self.fd.set_xsave(&area) } {
            Ok(()) => Ok(()),
            Err(e) if e.errno() == libc::EINVAL => Err(Error::BadFpuState),
            Err(e) => Err(host("KVM_SET_XSAVE", e)),
        }
    }

    /// Loads a state that the guest could write to. What the CPU refuses becomes the initial state.
    pub(crate) fn set_fpu_of_guest(&mut self, state: &FpuState) -> Result<(), Error> {
        match self.set_fpu(state) {
            Err(Error::BadFpuState) => self.set_fpu(&FpuState::initial(state.as_bytes().len())),
            other => other,
        }
    }

    pub(crate) fn tsc_khz(&self) -> u32 {
        self.fd.get_tsc_khz().unwrap_or(0)
    }

    /// Makes the next `prepare` behave as if the last exit had been a system call: the probe's way to try `sysretq`.
    pub(crate) fn pretend_syscall(&mut self) {
        self.at_syscall = true;
    }

    /// Makes the next `prepare` load the root again.
    pub(crate) fn forget_space(&mut self) {
        self.space = 0;
    }
}

fn host(what: &'static str, e: kvm_ioctls::Error) -> Error {
    Error::Host { what, source: std::io::Error::from_raw_os_error(e.errno()) }
}
