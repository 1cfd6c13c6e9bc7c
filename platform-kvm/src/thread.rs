//! Guest threads.

use crate::error::Error;
use crate::fpu::FpuState;
use crate::kick::Kicker;
use crate::registers::{Exit, Registers};
use crate::space::AddressSpace;
use std::sync::Arc;

/// One guest thread: FPU state, and a vCPU while it has one. Owned by one host thread at a time.
#[derive(Debug)]
pub struct GuestThread {
    _private: (),
}

impl GuestThread {
    /// Runs guest code from `registers` in `space` until something needs the kernel; `registers` are then the guest's.
    ///
    /// # Errors
    /// [`Error::Shutdown`], [`Error::UnexpectedExit`], [`Error::StubFault`], [`Error::Host`]: the guest thread is lost.
    pub fn run(&mut self, _registers: &mut Registers, _space: &Arc<AddressSpace>) -> Result<Exit, Error> {
        todo!()
    }

    /// The FPU state.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn fpu(&mut self) -> Result<FpuState, Error> {
        todo!()
    }

    /// Replaces the FPU state.
    ///
    /// # Errors
    /// [`Error::BadFpuState`] when the bytes are not a state the CPU accepts; the old state stays.
    pub fn set_fpu(&mut self, _state: &FpuState) -> Result<(), Error> {
        todo!()
    }

    /// Back to the state after `execve`.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn reset_fpu(&mut self) -> Result<(), Error> {
        todo!()
    }

    /// A handle that gets this thread out of the guest.
    pub fn kicker(&self) -> Kicker {
        todo!()
    }
}
