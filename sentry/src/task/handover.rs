//! A task's private half while its thread is in the guest: dispatchers answer the guest's posted calls with it.
//!
//! The task's own thread holds the lock while it is in the kernel and gives it up around the guest. A dispatcher only tries it, and
//! takes the posted call under it, so a call is made once, by one of the two. What a dispatcher cannot do is refused *before any side
//! effect*, and the task's own thread makes the call: calls that change the registers, the thread or what is mapped in
//! it ([`crate::syscalls::exitless`]), and calls that would sleep ([`crate::wait::declining`]).

use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};

use super::{AfterCall, CurrentCall, Own, SyscallContext, Task, TaskLocal, current, operand, ride, run};
use crate::errno::SysResult;
use crate::mm::{FaultOutcome, MemoryAccess};
use crate::platform::{
    Answer, Answered, Exit, FpuState, GuestThread, Kick, Kicker, Posted, Registers, Request, Space, Where,
};
use crate::syscalls::{Args, exitless, numbers, table};
use crate::wait;

#[cfg(test)]
#[path = "handover_tests.rs"]
mod tests;

/// See the module documentation.
pub struct Handover {
    task: Arc<Task>,
    held: Mutex<Held>,
}

/// What the task's own thread works with, or a dispatcher.
pub(super) struct Held {
    pub(super) local: TaskLocal,
    /// Of the moment at which the thread went into the guest, where it replaces nothing.
    pub(super) own: Own,
    /// For [`current::lend`].
    for_current: Option<Arc<Task>>,
    /// Where the instruction is, and what it accessed, whose page fault was resolved last, if nothing was asked for since.
    last_fault: Option<(u64, u64)>,
}

impl Handover {
    pub(super) fn new(task: Arc<Task>, local: TaskLocal) -> Arc<Handover> {
        let held = Held { local, own: Own::of(&task), for_current: Some(task.clone()), last_fault: None };
        let handover = Arc::new(Handover { task, held: Mutex::new(held) });
        let answer: Weak<dyn Answer> = Arc::downgrade(&(handover.clone() as Arc<dyn Answer>));
        let mut held = handover.held.lock();
        held.local.ride.home = Arc::downgrade(&handover);
        held.local.machine.answer_with(answer, exitless::handles);
        drop(held);
        handover
    }

    pub(super) fn task(&self) -> &Arc<Task> {
        &self.task
    }

    /// The private half, for those who give it back or only try.
    pub(super) fn held(&self) -> &Mutex<Held> {
        &self.held
    }

    /// What the task's own thread works with.
    pub(super) fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock()
    }
}

/// Runs guest code; dispatchers may use the task's private half meanwhile. `None`: when its vCPU came out another task was running in it, which has got
/// what there was, and this one is parked.
pub(super) fn run_guest(task: &Task, held: &mut MutexGuard<'_, Held>) -> Option<SysResult<Exit>> {
    held.last_fault = None;
    let local = &mut held.local;
    let mut machine = std::mem::replace(&mut local.machine, Box::new(InGuest));
    let (mut registers, space, patches) = (local.registers, local.space.clone(), local.patches.clone());
    let (rip, entered) = patches.enter(registers.rip);
    registers.rip = rip;
    let exit = MutexGuard::unlocked(held, || machine.run(&mut registers, &space));
    let local = &mut held.local;
    let own = machine.take_own();
    local.machine = machine;
    let parked = ride::give_back(local, &mut registers, &exit, (own, entered));
    if parked {
        local.registers = registers;
        if let Err(error) = exit {
            run::lost(task, error);
        }
        return None;
    }
    let exit = exit.map(|exit| patches.leave(entered, &mut registers, exit));
    local.registers = registers;
    Some(exit)
}

impl Handover {
    /// Resolves a page fault for the task, if that is all there is to it: who is to get a signal finds out by an exit.
    fn answer_fault(&self, held: &mut Held, request: &Request<'_>) -> Answered {
        let Some(faulting) = request.faulting() else { return Answered::Refused };
        let _current = current::lend(&mut held.for_current);
        let _declining = wait::declining();
        let mm = self.task.mm();
        let addr = match &faulting.at {
            Where::Address(addr) => Some(*addr),
            Where::Registers(registers) => {
                let addr = operand::address(&mm, registers, &faulting);
                // If it was that the last time, too, that was not it.
                addr.filter(|addr| {
                    let this = (registers.rip, *addr);
                    held.last_fault.replace(this) != Some(this)
                })
            }
        };
        let Some(addr) = addr else { return Answered::Refused };
        match mm.fault(addr, MemoryAccess::from_exit(faulting.write, faulting.exec)) {
            FaultOutcome::Resolved => Answered::Resolved,
            _ => Answered::Refused,
        }
    }
}

impl Answer for Handover {
    fn answer(&self, posted: &Posted<'_>) -> Option<Answered> {
        let mut held = self.held.try_lock()?;
        if !self.task.work().is_empty() {
            // Its thread is on its way out.
            return None;
        }
        let request = posted.claim()?;
        if request.is_fault() {
            return Some(self.answer_fault(&mut held, &request));
        }
        let args = Args(request.args);
        // A trace is to show every call once.
        let suits = exitless::suits(request.number, &args) && !self.task.kernel().straces();
        let Some(entry) = table::find(request.number).filter(|_| suits) else {
            return Some(Answered::Refused);
        };
        let Held { local, own, for_current, last_fault } = &mut *held;
        *last_fault = None;
        if !request.is_patched() && local.patches.called(request.rip()) {
            // Its thread patches the site on the way.
            return Some(Answered::Refused);
        }
        let _current = current::lend(for_current);
        let of_futex = ride::Answering::new(request.number, &local.ride);
        // Only this one looks at a register that is not an argument; reading it costs the guest time.
        if request.number == u64::from(numbers::sigaltstack) {
            local.registers.rsp = request.rsp();
        }
        local.call = CurrentCall { number: request.number, args, deadline: None };
        local.after = AfterCall::Result;
        local.progress = None;
        let declining = wait::declining();
        let result = (entry.handler)(&mut SyscallContext { task: &self.task, own, local }, &args);
        if declining.declined() && result.is_err() {
            local.restart = None;
            let switch = local.ride.home.upgrade().and_then(|own| own.hand_over(local, request.vcpu));
            if switch.is_some() {
                self.task.kernel().counters().count(request.number);
            }
            return Some(switch.map_or(Answered::Refused, Answered::Switch));
        }
        local.ride.learn(of_futex.is_some());
        let number = request.number;
        let answered = match result {
            Err(code) if code.is_restart() => {
                local.interrupted = Some(code);
                Answered::Leave(number)
            }
            result => {
                let value = result.map_or_else(|errno| errno.to_rax(), |value| value as u64);
                if self.task.work().is_empty() { request.done(value) } else { Answered::Leave(value) }
            }
        };
        self.task.kernel().counters().count(number);
        Some(answered)
    }

    fn holds(&self) -> bool {
        ride::holds()
    }

    fn release(&self) {
        if ride::release()
            && let Some(mut held) = self.held.try_lock()
        {
            held.local.ride.disappointed();
        }
    }
}

/// Stands for the machine context of a thread that is in the guest. Nobody runs it: a call that needs the context is not one that
/// dispatchers make.
struct InGuest;

impl Kick for InGuest {
    fn kick(&self) {}
}

impl GuestThread for InGuest {
    fn run(&mut self, _: &mut Registers, _: &Arc<dyn Space>) -> SysResult<Exit> {
        Err(crate::errno::Errno::EIO)
    }

    fn kicker(&self) -> Kicker {
        Kicker::new(InGuest)
    }

    fn fpu(&mut self) -> SysResult<FpuState> {
        Err(crate::errno::Errno::EIO)
    }

    fn set_fpu(&mut self, _: &FpuState) -> SysResult {
        Err(crate::errno::Errno::EIO)
    }

    fn reset_fpu(&mut self) -> SysResult {
        Err(crate::errno::Errno::EIO)
    }
}
