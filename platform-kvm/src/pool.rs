//! vCPUs and who has them.
//!
//! A thread keeps its vCPU for as long as it lives (moving one between host threads costs `synchronize_rcu` on older kernels).
//! When all vCPUs exist and another thread wants one, an idle thread loses its own, with its state saved; when no thread is
//! idle, one that is in the guest is asked to surrender, and the waiting threads are served in order.
//!
//! Locks: a thread that wants a vCPU holds its own seat. The pool's lock is taken under it and is a leaf; other seats are only
//! tried, never waited for.

use crate::error::Error;
use crate::exitless::History;
use crate::fpu::FpuState;
use crate::kick::Gate;
use crate::machine::Machine;
use crate::registers::Registers;
use crate::vcpu::{DataSegments, Vcpu};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// A guest thread's place for a vCPU, and its state while it has none.
#[derive(Debug)]
pub(crate) struct ThreadSlot {
    pub gate: Arc<Gate>,
    /// Held by the thread while it runs guest code.
    pub seat: Mutex<Seat>,
}

#[derive(Debug, Default)]
pub(crate) struct Seat {
    pub vcpu: Option<Vcpu>,
    /// `None`: the initial state.
    pub fpu: Option<FpuState>,
    pub segments: Option<DataSegments>,
    pub history: History,
    /// The vCPU of another thread in which this one runs or rests ([`crate::exitless::ride`]).
    pub riding: Option<u32>,
    /// Its registers, when it was put ashore there.
    pub ashore: Option<Registers>,
}

#[derive(Debug)]
pub(crate) struct VcpuPool {
    max: u32,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    free: Vec<Vcpu>,
    created: u32,
    /// Threads that have a vCPU, least recently seated first; some may be gone.
    holders: VecDeque<Weak<ThreadSlot>>,
    /// Tickets of the threads that wait, in order.
    waiting: VecDeque<u64>,
    next_ticket: u64,
}

impl VcpuPool {
    pub(crate) fn new(max: u32) -> VcpuPool {
        VcpuPool { max, state: Mutex::new(State::default()), changed: Condvar::new() }
    }

    /// Gives the thread a vCPU with the thread's state loaded.
    pub(crate) fn seat(
        &self,
        machine: &Machine,
        slot: &Arc<ThreadSlot>,
        seat: &mut Seat,
    ) -> Result<(), Error> {
        let mut vcpu = self.acquire(machine)?;
        vcpu.disown();
        if !(vcpu.pristine && seat.fpu.is_none() && seat.segments.is_none()) {
            let initial;
            let fpu = match &seat.fpu {
                Some(fpu) => fpu,
                None => {
                    initial = FpuState::initial(machine.xstate_size());
                    &initial
                }
            };
            if let Err(error) = vcpu.set_fpu_of_guest(fpu) {
                self.give(vcpu);
                return Err(error);
            }
            vcpu.set_segments(seat.segments);
        }
        seat.vcpu = Some(vcpu);
        let mut state = self.state.lock();
        if state.holders.len() > 2 * self.max as usize {
            state.holders.retain(|holder| holder.strong_count() > 0);
        }
        state.holders.push_back(Arc::downgrade(slot));
        Ok(())
    }

    /// Saves the thread's state and gives its vCPU back.
    pub(crate) fn unseat(&self, machine: &Machine, seat: &mut Seat) -> Result<(), Error> {
        if let Some(mut vcpu) = seat.vcpu.take() {
            let saved = save(machine, seat, &mut vcpu);
            self.give(vcpu);
            saved?;
        }
        Ok(())
    }

    /// Takes back the vCPU of a thread that ends.
    pub(crate) fn give(&self, vcpu: Vcpu) {
        self.state.lock().free.push(vcpu);
        self.changed.notify_all();
    }

    /// Takes back a vCPU that failed. Its number is not used again.
    pub(crate) fn discard(&self, vcpu: Vcpu) {
        drop(vcpu);
    }

    fn acquire(&self, machine: &Machine) -> Result<Vcpu, Error> {
        let ticket = {
            let mut state = self.state.lock();
            if state.waiting.is_empty() {
                if let Some(vcpu) = state.free.pop() {
                    return Ok(vcpu);
                }
                if state.created < self.max {
                    let index = state.created;
                    state.created += 1;
                    drop(state);
                    return machine.create_vcpu(index);
                }
            }
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.waiting.push_back(ticket);
            ticket
        };
        let result = self.wait(machine, ticket);
        self.state.lock().waiting.retain(|other| *other != ticket);
        self.changed.notify_all();
        result
    }

    /// Only the thread whose turn it is looks for a vCPU: with hundreds that wait, as many searches would have the processors.
    fn wait(&self, machine: &Machine, ticket: u64) -> Result<Vcpu, Error> {
        loop {
            {
                let mut state = self.state.lock();
                if state.waiting.front() != Some(&ticket) {
                    // Whoever is served tells the others; bounded all the same.
                    self.changed.wait_for(&mut state, Duration::from_millis(50));
                    continue;
                }
                if let Some(vcpu) = state.free.pop() {
                    return Ok(vcpu);
                }
            }
            if self.take_from_idle(machine)? {
                continue;
            }
            let mut state = self.state.lock();
            if state.free.is_empty() {
                // Bounded: a thread may turn idle without telling anybody.
                self.changed.wait_for(&mut state, Duration::from_millis(2));
            }
        }
    }

    /// Moves an idle thread's vCPU to the free list; if there is none, asks a running thread for its own.
    fn take_from_idle(&self, machine: &Machine) -> Result<bool, Error> {
        let holders = {
            let mut state = self.state.lock();
            state.holders.retain(|holder| holder.strong_count() > 0);
            state.holders.iter().filter_map(Weak::upgrade).collect::<Vec<_>>()
        };
        let mut running = None;
        for slot in &holders {
            let Some(mut seat) = slot.seat.try_lock() else {
                running = running.or(Some(slot));
                continue;
            };
            if seat.vcpu.is_some() {
                self.unseat(machine, &mut seat)?;
                self.forget(slot);
                return Ok(true);
            }
        }
        if let Some(slot) = running {
            slot.gate.ask_surrender();
        }
        Ok(false)
    }

    /// The thread has no vCPU any more.
    pub(crate) fn forget(&self, slot: &Arc<ThreadSlot>) {
        self.state.lock().holders.retain(|holder| !std::ptr::eq(holder.as_ptr(), Arc::as_ptr(slot)));
    }

    /// Counts a vCPU that is created outside of the pool.
    pub(crate) fn next_index(&self) -> u32 {
        let mut state = self.state.lock();
        state.created += 1;
        state.created - 1
    }

    /// How many vCPUs have been created.
    pub(crate) fn created(&self) -> u32 {
        self.state.lock().created
    }
}

fn save(machine: &Machine, seat: &mut Seat, vcpu: &mut Vcpu) -> Result<(), Error> {
    if vcpu.pristine {
        return Ok(());
    }
    seat.fpu = Some(vcpu.fpu(machine.xstate_size())?);
    seat.segments = Some(vcpu.segments());
    Ok(())
}
