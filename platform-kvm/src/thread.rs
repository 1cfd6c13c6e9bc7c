//! Guest threads.

use crate::error::Error;
use crate::exitless::admission::Turn;
use crate::exitless::{Answer, Boarding, Place};
use crate::fpu::FpuState;
use crate::kick::{Gate, Kicker};
use crate::layout::RIDE_VCPUS;
use crate::machine::Machine;
use crate::pool::{Seat, ThreadSlot};
use crate::registers::{Exit, Registers};
use crate::space::{AddressSpace, GVA_END};
use crate::vcpu::Left;
use parking_lot::Mutex;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// First address of the upper half.
const UPPER_HALF: u64 = 0xffff_8000_0000_0000;

/// One guest thread: FPU state, and a vCPU while it has one. Owned by one host thread at a time.
#[derive(Debug)]
pub struct GuestThread {
    machine: Arc<Machine>,
    slot: Arc<ThreadSlot>,
    /// The space in whose list of runners the gate is, and its id.
    attached: Weak<AddressSpace>,
    attached_id: u64,
    /// Unique in the machine, never 0.
    number: u64,
    answer: Option<Answerer>,
    /// See [`GuestThread::take_own`].
    own: Option<Registers>,
    turn: Turn,
}

/// Who answers a thread's posted calls.
struct Answerer {
    answer: Weak<dyn Answer>,
    handles: fn(u64) -> bool,
}

impl std::fmt::Debug for Answerer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Answerer")
    }
}

impl GuestThread {
    pub(crate) fn new(machine: Arc<Machine>) -> GuestThread {
        let slot =
            Arc::new(ThreadSlot { gate: Arc::new(Gate::default()), seat: Mutex::new(Seat::default()) });
        let number = machine.next_thread();
        GuestThread {
            machine,
            slot,
            attached: Weak::new(),
            attached_id: 0,
            number,
            answer: None,
            own: None,
            turn: Turn::default(),
        }
    }

    /// Runs guest code from `registers` in `space` until something needs the kernel; `registers` are then the guest's.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an fs or gs base that is not canonical. [`Error::Shutdown`], [`Error::UnexpectedExit`],
    /// [`Error::StubFault`], [`Error::Host`]: the guest thread is lost.
    pub fn run(&mut self, registers: &mut Registers, space: &Arc<AddressSpace>) -> Result<Exit, Error> {
        if let Some(exit) = impossible(registers)? {
            return Ok(if self.slot.gate.take_kick() { Exit::Interrupted } else { exit });
        }
        self.attach(space);
        let slot = self.slot.clone();
        let mut seat = slot.seat.lock();
        loop {
            let turn = self.turn(&slot, &mut seat, registers, space);
            let turn = turn.and_then(|exit| {
                let vcpu = seat.vcpu.as_mut().filter(|_| exit.is_some());
                self.own = vcpu.map_or(Ok(None), |vcpu| self.machine.dispatch().disembark(vcpu))?;
                Ok(exit)
            });
            match turn {
                Ok(Some(exit)) => return Ok(exit),
                Ok(None) => {}
                Err(error) => {
                    // A vCPU that failed may be in any state: nobody gets it again.
                    if let Some(vcpu) = seat.vcpu.take() {
                        self.machine.pool().discard(vcpu);
                    }
                    return Err(error);
                }
            }
        }
    }

    /// To be called before `run`, with nothing held that others need: waits while there are more guests that do little but call than processors for
    /// them beside those who answer. `slept`: the thread has slept since it was in the guest. Returns how long it waited.
    pub fn await_turn(&mut self, slept: bool) -> Duration {
        let dispatch = self.machine.dispatch();
        let ticks = dispatch.await_turn(&mut self.turn, &self.slot.gate, slept);
        dispatch.duration(ticks)
    }

    /// One entry into the guest. `None`: enter again.
    fn turn(
        &mut self,
        slot: &Arc<ThreadSlot>,
        seat: &mut Seat,
        registers: &mut Registers,
        space: &AddressSpace,
    ) -> Result<Option<Exit>, Error> {
        if !self.take_seat(slot, seat)? {
            return Ok(Some(Exit::Interrupted));
        }
        let Some(vcpu) = seat.vcpu.as_mut() else { return Ok(None) };
        let gate = &slot.gate;
        let memory =
            vcpu.bind(self.machine.dispatch(), self.machine.control(), space, self.number, &|| {
                (self.answer.as_ref().map(|answer| answer.answer.clone()), slot.gate.clone())
            })?;
        let moment = self.machine.arena().moment();
        gate.enter(vcpu.immediate_exit());
        if gate.take_kick() {
            gate.leave();
            self.machine.dispatch().is_not_coming(&mut self.turn);
            return Ok(Some(Exit::Interrupted));
        }
        let (control, dispatch, index) = (self.machine.control(), self.machine.dispatch(), vcpu.index());
        vcpu.prepare(control, registers, &space.target());
        let answered = dispatch.begin_stay(&mut self.turn, index, memory);
        let result = vcpu.run(control, registers);
        dispatch.leave(index);
        gate.leave();
        let handled = self.answer.as_ref().is_some_and(|answer| (answer.handles)(registers.rax));
        let by_call = handled && matches!(result, Ok(Left::Exit(Exit::Syscall)));
        dispatch.end_stay(&mut self.turn, index, answered, by_call);
        let mut left = result?;
        if let Left::InStub(place) = left {
            left = dispatch.settled(index, |ride| vcpu.settle(control, registers, place, ride))?;
        }
        match left {
            Left::Exit(Exit::Interrupted) => {
                let tell = gate.take_kick() || space.has_trampoline(registers.rip);
                Ok(tell.then_some(Exit::Interrupted))
            }
            // Another thread's revocation had the frame read-only just then.
            Left::Exit(Exit::HostFault) if self.machine.arena().was_toggled(moment) => Ok(None),
            Left::Exit(Exit::Syscall) => {
                dispatch.exited(&mut seat.history, handled, vcpu.take_withdrawn());
                Ok(Some(Exit::Syscall))
            }
            Left::Exit(exit) => {
                if let Exit::PageFault { present, .. } = exit {
                    let handled = !present && self.answer.is_some() && self.machine.posts_faults();
                    dispatch.faulted(&mut seat.history, handled, vcpu.take_withdrawn());
                }
                Ok(Some(exit))
            }
            Left::Answered | Left::Switched => {
                gate.take_kick();
                Ok(Some(Exit::Interrupted))
            }
            Left::Nothing | Left::InStub(_) => Ok(None),
        }
    }

    /// Makes sure that the thread has a vCPU. `false`: it must come out first, because it carries another thread and its vCPU is wanted.
    fn take_seat(&self, slot: &Arc<ThreadSlot>, seat: &mut Seat) -> Result<bool, Error> {
        let pool = self.machine.pool();
        if slot.gate.take_surrender()
            && let Some(vcpu) = &seat.vcpu
        {
            if self.machine.dispatch().is_carrying(vcpu.index()) {
                // Outside it is idle, and loses its vCPU then.
                return Ok(false);
            }
            pool.unseat(&self.machine, seat)?;
            pool.forget(slot);
        }
        if seat.vcpu.is_none() {
            pool.seat(&self.machine, slot, seat)?;
            slot.gate.cancel_surrender();
        }
        Ok(true)
    }

    /// Lets dispatchers answer this thread's calls by `answer` ([`crate::exitless`]). `handles` tells by their numbers which ones they
    /// may be able to answer: only those wake a dispatcher.
    pub fn answer_with(&mut self, answer: Weak<dyn Answer>, handles: fn(u64) -> bool) {
        self.answer = Some(Answerer { answer, handles });
    }

    /// After a `run` that ended while another thread ran in this one's vCPU ([`Boarding`]): what `run` returned, registers and exit, are
    /// that thread's, and these are this one's own.
    pub fn take_own(&mut self) -> Option<Registers> {
        self.own.take()
    }

    /// Makes this thread, which is not in the guest, ready to go on in a vCPU that is in the guest in `space`. `None` where that is not possible.
    ///
    /// # Errors
    /// [`Error::Host`], [`Error::OutOfMemory`].
    pub fn board(&mut self, space: &Arc<AddressSpace>, vcpu: u32) -> Result<Option<Place>, Error> {
        let (machine, slot) = (&self.machine, &self.slot);
        let Some(xcr0) = machine.switches_threads().filter(|_| vcpu < RIDE_VCPUS) else { return Ok(None) };
        let Some(answer) = &self.answer else { return Ok(None) };
        let Some(mut seat) = slot.seat.try_lock() else { return Ok(None) };
        if seat.riding.is_some() || seat.ashore.is_some() {
            return Ok((seat.riding == Some(vcpu)).then_some(Place::Again));
        }
        if seat.vcpu.is_some() {
            machine.pool().unseat(machine, &mut seat)?;
            machine.pool().forget(slot);
        }
        drop(seat);
        Ok(Some(Place::New(Boarding {
            passenger: slot.clone(),
            answer: answer.answer.clone(),
            contexts: space.contexts(vcpu)?,
            vcpu,
            xstate_size: machine.xstate_size(),
            gs_base: if space.target().patched { crate::control::user_slot_gva(vcpu) } else { 0 },
            xcr0,
        })))
    }

    /// Takes back the registers of this thread, which rests in another's vCPU.
    pub fn ashore(&mut self) -> Option<Registers> {
        self.machine.dispatch().ashore(&self.slot)
    }

    /// Registers with the space for revocations.
    fn attach(&mut self, space: &Arc<AddressSpace>) {
        if self.attached_id == space.id() {
            return;
        }
        self.detach();
        space.attach(&self.slot.gate);
        self.attached = Arc::downgrade(space);
        self.attached_id = space.id();
    }

    fn detach(&mut self) {
        if let Some(old) = self.attached.upgrade() {
            old.detach(&self.slot.gate);
        }
        self.attached_id = 0;
    }

    /// The FPU state.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn fpu(&mut self) -> Result<FpuState, Error> {
        let seat = self.slot.seat.lock();
        let size = self.machine.xstate_size();
        match (&seat.vcpu, &seat.fpu) {
            (Some(vcpu), _) => vcpu.fpu(size),
            (None, Some(fpu)) => Ok(fpu.clone()),
            (None, None) => Ok(FpuState::initial(size)),
        }
    }

    /// Replaces the FPU state. Takes a vCPU if the thread has none, for only the CPU can tell whether the state is valid.
    ///
    /// # Errors
    /// [`Error::BadFpuState`] when the bytes are not a state the CPU accepts; the old state stays.
    pub fn set_fpu(&mut self, state: &FpuState) -> Result<(), Error> {
        let mut seat = self.slot.seat.lock();
        if seat.vcpu.is_none() {
            self.machine.pool().seat(&self.machine, &self.slot, &mut seat)?;
        }
        match seat.vcpu.as_mut() {
            Some(vcpu) => {
                vcpu.pristine = false;
                vcpu.set_fpu(state)
            }
            None => Err(Error::Invalid("no vCPU")),
        }
    }

    /// Back to the state after `execve`: FPU and data segments.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn reset_fpu(&mut self) -> Result<(), Error> {
        let mut seat = self.slot.seat.lock();
        seat.fpu = None;
        seat.segments = None;
        match seat.vcpu.as_mut() {
            Some(vcpu) if !vcpu.pristine => {
                vcpu.set_segments(None);
                vcpu.set_fpu(&FpuState::initial(self.machine.xstate_size()))
            }
            _ => Ok(()),
        }
    }

    /// A handle that gets this thread out of the guest.
    pub fn kicker(&self) -> Kicker {
        Kicker::new(self.slot.gate.clone())
    }
}

impl Drop for GuestThread {
    fn drop(&mut self) {
        self.detach();
        self.machine.dispatch().is_not_coming(&mut self.turn);
        let vcpu = self.slot.seat.lock().vcpu.take();
        if let Some(vcpu) = vcpu {
            self.machine.pool().forget(&self.slot);
            self.machine.pool().give(vcpu);
        }
    }
}

/// Registers that the CPU would refuse in ring 0, answered as ring 3 would have seen them.
fn impossible(registers: &Registers) -> Result<Option<Exit>, Error> {
    let canonical = |address: u64| !(1 << 47..UPPER_HALF).contains(&address);
    if !canonical(registers.fs_base) || !canonical(registers.gs_base) {
        return Err(Error::Invalid("fs or gs base is not canonical"));
    }
    let rip = registers.rip;
    Ok(if !canonical(rip) {
        Some(Exit::Exception { vector: 13, error_code: 0, addr: 0 })
    } else if rip >= GVA_END {
        Some(Exit::PageFault { addr: rip, write: false, exec: true, present: rip >= UPPER_HALF })
    } else {
        None
    })
}
