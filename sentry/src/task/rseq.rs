//! Restartable sequences (`rseq(2)`).
//!
//! A thread registers a `struct rseq` in its memory. The kernel keeps the processor's number there, and a thread that is moved,
//! preempted or gets a signal inside the critical section that the struct points at goes on at that section's abort handler.
//!
//! What "processor" means is in [`super::processors`]: a thread of an address space with several threads has a place while it
//! is in the guest. If it comes back to another place, or to its old one after somebody else has had it, the section is
//! aborted. The only thread of an address space has nobody to be preempted by, so only signals abort its sections; that costs
//! it one comparison on its way into the guest.
//!
//! [`RseqState`] is the task's private half. The run loop calls [`enter`] before and [`leave`] after every stay in the guest; a
//! registration, `clone`, a change of affinity and `membarrier` take effect at the next [`enter`].

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use zerocopy::FromBytes;

use super::processors::{Processors, Tenant};
use super::signal::{Action, SigInfo, Signal};
use super::{Task, TaskLocal};
use crate::errno::{Errno, SysResult};
use crate::mm::Mm;
use crate::platform::GVA_END;

/// `struct rseq` (`linux/rseq.h`): `cpu_id_start` and `cpu_id`, 32 bits each, at its start, …
const OFFSET_OF_CS: u64 = 8;
/// … 64 bits of `rseq_cs`, 32 of `flags`, …
const OFFSET_OF_FLAGS: u64 = 16;
/// … and `node_id` and `mm_cid`, 32 bits each.
const OFFSET_OF_NODE: u64 = 20;
/// Bytes of `struct rseq` that mean something here (`AT_RSEQ_FEATURE_SIZE`).
pub const FEATURE_SIZE: u64 = 28;
/// How a longer `struct rseq` than the first version's must be aligned (`AT_RSEQ_ALIGN`).
pub const ALIGN: u64 = 32;
/// Bytes of the first version.
const ORIGINAL_SIZE: u32 = 32;

/// `RSEQ_CPU_ID_UNINITIALIZED`
const UNINITIALIZED: u32 = u32::MAX;

/// `struct rseq_cs`
#[derive(Clone, Copy, Debug, FromBytes)]
#[repr(C)]
struct CriticalSection {
    version: u32,
    flags: u32,
    start: u64,
    length: u64,
    abort: u64,
}

/// A thread's registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Address of the struct.
    pub address: u64,
    /// Its length in bytes.
    pub len: u32,
    /// What stands before every abort handler.
    pub signature: u32,
}

/// The private half of a task.
#[derive(Default)]
pub struct RseqState {
    registration: Option<Registration>,
    /// The places of the address space, if it has had several threads.
    processors: Option<Arc<Processors>>,
    place: Option<(Tenant, u32)>,
    /// The struct does not say where the thread runs, or the thread may have been preempted.
    stale: bool,
}

impl RseqState {
    /// `rseq` without flags. Linux's errors: `EINVAL`, `EPERM` (another signature), `EBUSY`, `EFAULT`.
    pub fn register(&mut self, mm: &Mm, new: Registration) -> SysResult {
        if let Some(old) = self.registration {
            return Err(match () {
                () if (old.address, old.len) != (new.address, new.len) => Errno::EINVAL,
                () if old.signature != new.signature => Errno::EPERM,
                () => Errno::EBUSY,
            });
        }
        if new.len < ORIGINAL_SIZE || !new.address.is_multiple_of(ALIGN) {
            return Err(Errno::EINVAL);
        }
        let end = new.address.checked_add(new.len.into());
        if end.is_none_or(|end| end > GVA_END) {
            return Err(Errno::EFAULT);
        }
        // What lies there from before must not look like a critical section.
        let section: u64 = mm.copy_in(new.address.wrapping_add(OFFSET_OF_CS))?;
        if section != 0 {
            mm.copy_out(new.address.wrapping_add(OFFSET_OF_CS), &0u64)?;
        }
        self.registration = Some(new);
        self.stale = true;
        Ok(())
    }

    /// `rseq` with `RSEQ_FLAG_UNREGISTER`: `EINVAL`, `EPERM` (another signature), `EFAULT`.
    pub fn unregister(&mut self, mm: &Mm, which: Registration) -> SysResult {
        let Some(old) = self.registration else { return Err(Errno::EINVAL) };
        if (old.address, old.len) != (which.address, which.len) {
            return Err(Errno::EINVAL);
        }
        if old.signature != which.signature {
            return Err(Errno::EPERM);
        }
        mm.copy_out(old.address, &[0, UNINITIALIZED])?;
        mm.copy_out(old.address.wrapping_add(OFFSET_OF_NODE), &[0u32, 0])?;
        self.registration = None;
        self.give_up_place();
        Ok(())
    }

    /// Another thread shares the address space from now on.
    pub fn share(&mut self, processors: Arc<Processors>) {
        self.processors = Some(processors);
    }

    /// What a child with a copy of the memory starts with.
    pub fn fork(&self) -> RseqState {
        RseqState { registration: self.registration, processors: None, place: None, stale: true }
    }

    fn give_up_place(&mut self) {
        if let (Some(processors), Some((tenant, cpu))) = (&self.processors, self.place.take()) {
            processors.give_up(&tenant, cpu);
        }
    }

    /// Enters the guest under a number; `true` if it is not the one of before, or not without interruption.
    fn take_place(&mut self, task: &Task, disturbed: bool) -> bool {
        let Some(processors) = &self.processors else { return false };
        let (tenant, kept) = match self.place.take() {
            Some((tenant, cpu)) if disturbed => {
                processors.give_up(&tenant, cpu);
                (tenant, None)
            }
            Some((tenant, cpu)) => {
                let kept = processors.enter(&tenant, cpu).then_some(cpu);
                (tenant, kept)
            }
            None => (Tenant::new(task.kicker.clone()), None),
        };
        let cpu = kept.unwrap_or_else(|| processors.acquire(&tenant, &task.attributes().affinity));
        self.place = Some((tenant, cpu));
        if kept.is_none() {
            task.set_cpu(cpu);
            task.has_place.store(true, Ordering::Relaxed);
        }
        kept.is_none()
    }
}

impl Drop for RseqState {
    fn drop(&mut self) {
        self.give_up_place();
    }
}

/// Before a stay in the guest. `false`: the thread has got a signal instead, because its struct or section is bad.
pub(super) fn enter(task: &Arc<Task>, local: &mut TaskLocal) -> bool {
    if local.rseq.registration.is_none() {
        return true;
    }
    let disturbed = task.disturbed.load(Ordering::Acquire) && task.disturbed.swap(false, Ordering::AcqRel);
    let lost = local.rseq.take_place(task, disturbed);
    if !(lost || disturbed || local.rseq.stale) {
        return true;
    }
    local.rseq.stale = false;
    if refresh(task, local).is_ok() {
        return true;
    }
    leave(local, Instant::now());
    task.force_signal(SigInfo::kernel(Signal::SEGV));
    false
}

/// As [`enter`] for a thread that goes on in another's vCPU: `false` if there is more to do than to say that it is back.
pub(super) fn enter_again(task: &Task, rseq: &mut RseqState) -> bool {
    if rseq.registration.is_none() {
        return true;
    }
    if task.disturbed.load(Ordering::Acquire) || rseq.stale {
        return false;
    }
    match (&rseq.processors, &rseq.place) {
        (Some(processors), Some((tenant, cpu))) => processors.enter(tenant, *cpu),
        _ => false,
    }
}

/// After a stay in the guest that ended `at`.
pub(super) fn leave(local: &TaskLocal, at: Instant) {
    if let (Some(processors), Some((tenant, cpu))) = (&local.rseq.processors, &local.rseq.place) {
        processors.leave(tenant, *cpu, at);
    }
}

/// Restarts the critical section the thread is in, if any, and says where it runs. Any error is the guest's: `SIGSEGV`.
fn refresh(task: &Arc<Task>, local: &mut TaskLocal) -> SysResult {
    let Some(registration) = local.rseq.registration else { return Ok(()) };
    let mm = task.mm();
    restart_section(&mm, local, registration)?;
    let cpu = task.cpu();
    // Only the numbers of places are exclusive; who is alone in its address space needs no other than 0.
    let concurrency = local.rseq.place.as_ref().map_or(0, |(_, cpu)| *cpu);
    mm.copy_out(registration.address, &[cpu, cpu])?;
    mm.copy_out(registration.address.wrapping_add(OFFSET_OF_NODE), &[0, concurrency])
}

/// Before a handler's frame is pushed: a signal aborts the critical section that it interrupts. What is wrong with it is told
/// by `SIGSEGV`, which the process may not survive if that is the signal being delivered.
pub(super) fn before_handler(task: &Arc<Task>, local: &mut TaskLocal, signal: Signal) {
    let Some(registration) = local.rseq.registration else { return };
    if restart_section(&task.mm(), local, registration).is_err() {
        if signal == Signal::SEGV {
            task.thread_group().handlers().set(Signal::SEGV, Action::default());
        }
        task.force_signal(SigInfo::kernel(Signal::SEGV));
    }
}

/// Linux's `rseq_ip_fixup`.
fn restart_section(mm: &Mm, local: &mut TaskLocal, registration: Registration) -> SysResult {
    let pointer = registration.address.wrapping_add(OFFSET_OF_CS);
    let address: u64 = mm.copy_in(pointer)?;
    if address == 0 {
        return Ok(());
    }
    let section = read_section(mm, address, registration.signature)?;
    let inside = local.registers.rip.wrapping_sub(section.start) < section.length;
    if inside {
        // Flags that Linux has given up.
        let flags: u32 = mm.copy_in(registration.address.wrapping_add(OFFSET_OF_FLAGS))?;
        if section.flags != 0 || flags != 0 {
            return Err(Errno::EINVAL);
        }
    }
    mm.copy_out(pointer, &0u64)?;
    if inside {
        local.registers.rip = section.abort;
    }
    Ok(())
}

/// The critical section at `address`, checked as Linux checks it (`rseq_get_rseq_cs`).
fn read_section(mm: &Mm, address: u64, signature: u32) -> SysResult<CriticalSection> {
    if address >= GVA_END {
        return Err(Errno::EINVAL);
    }
    let section: CriticalSection = mm.copy_in(address)?;
    let end = section.start.checked_add(section.length).ok_or(Errno::EINVAL)?;
    let far = section.start >= GVA_END || end >= GVA_END || section.abort >= GVA_END;
    let abort_inside = section.abort.wrapping_sub(section.start) < section.length;
    if far || section.version > 0 || abort_inside {
        return Err(Errno::EINVAL);
    }
    let found: u32 = mm.copy_in(section.abort.wrapping_sub(4))?;
    if found == signature { Ok(section) } else { Err(Errno::EINVAL) }
}

#[cfg(test)]
#[path = "rseq_tests.rs"]
mod tests;
