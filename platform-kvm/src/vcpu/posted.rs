//! A vCPU's slot and syscall stub.

use super::convert::{exception, not_offered};
use super::{Left, Vcpu};
use crate::control::Control;
use crate::error::Error;
use crate::exitless::faulting::{self, Spot};
use crate::exitless::ride::{self, Ride};
use crate::exitless::slot::{self, SlotMemory};
use crate::exitless::stub::{Place, Stub};
use crate::exitless::{Answer, Dispatch};
use crate::host_mode::Ring0;
use crate::kick::Gate;
use crate::layout::VECTOR_PAGE_FAULT;
use crate::registers::{Exit, Registers};
use crate::space::AddressSpace;
use std::sync::{Arc, Weak};

impl Vcpu {
    /// Its number.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// Makes the slot ready for calls of the thread with this number in `space`.
    pub(crate) fn bind(
        &mut self,
        dispatch: &Dispatch,
        control: &Control,
        space: &AddressSpace,
        thread: u64,
        answer: &dyn Fn() -> (Option<Weak<dyn Answer>>, Arc<Gate>),
    ) -> Result<SlotMemory, Error> {
        if let Some(memory) = self.slot
            && self.bound_to == (thread, space.id())
        {
            return Ok(memory);
        }
        let memory = match self.ring0 {
            Ring0::Native => control.slot(self.index).ok_or(Error::Invalid("no such vCPU"))?,
            Ring0::Emulated => {
                let memory = space.slot(self.index)?;
                memory.set_entry(self.stub + control.user.patched, control.check);
                memory
            }
        };
        dispatch.bind(self.index, memory, space.id(), answer());
        self.slot = Some(memory);
        self.bound_to = (thread, space.id());
        Ok(memory)
    }

    pub(super) fn syscall_stub<'a>(&self, control: &'a Control) -> &'a Stub {
        match self.ring0 {
            Ring0::Native => &control.native,
            Ring0::Emulated => &control.user,
        }
    }

    /// Where in its syscall stub an instruction is.
    pub(super) fn place(&self, control: &Control, rip: u64) -> Option<Place> {
        if self.ring0 == Ring0::Emulated
            && let Some(saved) = ride::place(rip)
        {
            return Some(Place::Switching { saved });
        }
        if let Some(spot) = Spot::of(self.ring0, rip) {
            return Some(Place::Faulting(spot));
        }
        self.syscall_stub(control).place(rip.checked_sub(self.stub)?)
    }

    /// The code that posts page faults has left the guest with one that nobody has resolved.
    pub(super) fn fault_by_exit(&self, registers: &mut Registers, cr2: u64) -> Option<Exit> {
        let pushed = faulting::pushed(&self.slot?);
        pushed.restore(registers);
        Some(if pushed.is_users() {
            exception(VECTOR_PAGE_FAULT as u8, pushed.error_code as u32, cr2, pushed.rflags)
        } else {
            not_offered()
        })
    }

    /// The vCPU was stopped in that code: makes `registers` those at the instruction that faulted, which will fault again if nothing was done
    /// about it.
    fn settle_fault(&self, control: &Control, memory: &SlotMemory, registers: &mut Registers, spot: Spot) {
        let (pushed, saved) = match self.ring0 {
            Ring0::Native => {
                (control.read_frame(self.index, VECTOR_PAGE_FAULT as u8), control.read_saved(self.index))
            }
            Ring0::Emulated => (faulting::pushed(memory), (memory.get(slot::RAX), memory.get(slot::RCX))),
        };
        if spot == Spot::Saved {
            (registers.rax, registers.rcx) = saved;
        }
        pushed.restore(registers);
        memory.end(0);
    }

    /// Whether the last call was posted and nobody came; asked once per call.
    pub(crate) fn take_withdrawn(&self) -> bool {
        let withdrawn = self.slot.filter(|memory| memory.state() == slot::WITHDRAWN);
        withdrawn.inspect(|memory| memory.set_state(0)).is_some()
    }

    /// Finds out what became of the call in whose stub the guest was stopped, and makes `registers` the user's. No dispatcher
    /// works on the slot.
    pub(crate) fn settle(
        &mut self,
        control: &Control,
        registers: &mut Registers,
        place: Place,
        ride: Option<&Ride>,
    ) -> Result<Left, Error> {
        let Some(memory) = self.slot else { return Ok(Left::Nothing) };
        if let Place::Faulting(spot) = place {
            self.settle_fault(control, &memory, registers, spot);
            return Ok(Left::Exit(Exit::Interrupted));
        }
        let switching = match place {
            Place::Switching { saved } => Some(saved),
            Place::Posted => (memory.state() == slot::SWITCHED).then_some(false),
            _ => None,
        };
        if let (Some(saved), Some(ride)) = (switching, ride) {
            ride::complete(ride, self, &memory, registers, saved)?;
            memory.set_state(0);
            return Ok(Left::Switched);
        }
        if matches!(place, Place::Switching { .. }) {
            // Nobody sent it there. It goes on there, which the lower half's end forbids.
            return Ok(Left::Switched);
        }
        let mut result = None;
        if matches!(place, Place::RaxSaved | Place::Saved | Place::Posted) {
            registers.rax = memory.get(slot::RAX);
        }
        if matches!(place, Place::Patched | Place::PatchedAway) {
            registers.r11 = registers.rflags;
        }
        if place == Place::PatchedAway {
            registers.rsp = memory.get(slot::RSP);
        }
        if matches!(place, Place::Saved | Place::Posted) {
            registers.rcx = memory.get(slot::RCX);
            registers.r11 = memory.get(slot::R11);
        }
        if place == Place::Posted {
            registers.rsp = memory.get(slot::RSP);
            match memory.state() {
                slot::DONE | slot::LEAVE => result = Some(memory.get(slot::RESULT)),
                _ => memory.set_state(0),
            }
        }
        registers.rip = registers.rcx;
        registers.rflags = registers.r11;
        Ok(match result {
            Some(value) => {
                registers.rax = value;
                Left::Answered
            }
            None => Left::Exit(Exit::Syscall),
        })
    }
}
