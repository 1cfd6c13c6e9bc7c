//! The loop that runs a guest thread on its host thread.
//!
//! ```text
//!            ┌────────────────────────────── Guest ◀─────────────────────┐
//!            │ syscall          │ page fault, exception      │ kicked    │ nothing to look at
//!            ▼                  ▼                            ▼           │
//!         Syscall ──result──▶ Attend ◀── signal forced ──────┴───────────┤
//!            │ exit, exit_group │ killed, fatal signal      stop, pause, │
//!            ▼                  ▼                           handler frame┘
//!           Exit ◀──────────────┘
//! ```
//! *Attend* looks at the task's [`Work`]: death first, then stops, pauses and signals; only when nothing is left does the
//! thread enter the guest. A kick that arrives in between makes the guest return at once.

use std::sync::Arc;
use std::time::Instant;

use super::cpu_meter::CpuMeter;
use super::handover::{Handover, Held, run_guest};
use super::signal::deliver::{AfterSignals, deliver};
use super::signal::{ExitStatus, SigInfo, Signal};
use super::{
    AfterCall, CurrentCall, FaultRecord, SyscallContext, Task, TaskLocal, Work, current, exit, ride, rseq,
};
use crate::errno::Errno;
use crate::observe::strace::Trace;
use crate::platform::{Exit, GVA_END};
use crate::syscalls::{Args, table};
use crate::wait::take_slept;

/// Where the loop is. See the module documentation.
pub(super) enum State {
    Guest,
    Syscall,
    Attend,
    /// It waits, or another task's vCPU is where it runs.
    Parked,
    Exit(ExitStatus),
}

/// Runs a task to its end on the calling thread.
pub(crate) fn run(task: &Arc<Task>, local: TaskLocal) {
    let _current = current::enter(task.clone());
    let handover = Handover::new(task.clone(), local);
    let mut held = handover.lock();
    let mut state = State::Attend;
    let mut left_guest = Instant::now();
    let mut meter = CpuMeter::new(left_guest);
    let status = loop {
        state = match state {
            State::Guest => {
                let slept = take_slept();
                let waited = held.local.machine.await_turn(!slept.is_zero());
                if !rseq::enter(task, &mut held.local) {
                    state = State::Attend;
                    continue;
                }
                let entered = Instant::now();
                let stay = entered.saturating_duration_since(left_guest);
                let system = nanos(stay.saturating_sub(slept).saturating_sub(waited));
                held.own.refresh(task);
                let exit = run_guest(task, &mut held);
                let local = &mut held.local;
                left_guest = Instant::now();
                task.mm().reap();
                let user = nanos(left_guest.saturating_duration_since(entered));
                let user = user.saturating_sub(local.ride.take_others());
                let (user, system) = meter.charge(user, system, left_guest);
                task.add_cpu_nanos(user, system);
                let Some(exit) = exit else {
                    state = State::Parked;
                    continue;
                };
                if local.registers.gs_base != 0 && !local.patches.is_closed() {
                    // What patched sites find by GS is not there.
                    task.mm().give_up_patches();
                }
                rseq::leave(local, left_guest);
                match exit {
                    Ok(exit) => handle_exit(task, local, exit),
                    Err(error) => State::Exit(lost(task, error)),
                }
            }
            State::Syscall => system_call(task, &mut held),
            State::Attend => attend(task, &mut held.local),
            State::Parked => ride::parked(task, &mut held),
            State::Exit(status) => break status,
        };
    };
    let Held { local, own, .. } = &mut *held;
    exit::exit_thread(task, local, own, status);
}

pub(super) fn nanos(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The platform cannot run this thread any more: the process dies as of a fault it cannot handle.
pub(super) fn lost(task: &Task, error: Errno) -> ExitStatus {
    tracing::error!(tid = task.tid(), %error, "the platform lost a guest thread");
    let status = ExitStatus::Signaled { signal: Signal::SEGV, core: false };
    task.thread_group().exit(status)
}

pub(super) fn handle_exit(task: &Arc<Task>, local: &mut TaskLocal, exit: Exit) -> State {
    match exit {
        Exit::Syscall => State::Syscall,
        Exit::Interrupted => State::Attend,
        Exit::PageFault { addr, write, exec, present } => {
            page_fault(task, local, Access { addr, write, exec, present })
        }
        Exit::Exception { vector, error_code, addr } => {
            local.fault = FaultRecord { vector: vector.into(), error_code: error_code.into(), ..local.fault };
            let info = super::exception::signal_of(local, vector, addr);
            task.force_signal(info);
            State::Attend
        }
        Exit::HostFault => {
            if local.space.revoke_unbacked().is_err() {
                task.force_signal(SigInfo::kernel(Signal::BUS));
            }
            after_kernel(task, local)
        }
    }
}

/// A page fault as the platform reports it.
struct Access {
    addr: u64,
    write: bool,
    exec: bool,
    present: bool,
}

fn page_fault(task: &Arc<Task>, local: &mut TaskLocal, access: Access) -> State {
    if let Err(info) = super::exception::resolve_fault(task, access.addr, access.write, access.exec) {
        // As the CPU would say it: present, write, user, fetch.
        let bit = |on: bool, value: u64| if on { value } else { 0 };
        let error_code = bit(access.present, 1) | bit(access.write, 2) | 4 | bit(access.exec, 16);
        local.fault = FaultRecord { vector: 14, error_code, address: access.addr };
        task.force_signal(info);
    }
    after_kernel(task, local)
}

/// The quick way back: nothing to look at is the usual case.
pub(super) fn after_kernel(task: &Arc<Task>, local: &TaskLocal) -> State {
    if task.work().is_empty() && local.interrupted.is_none() && local.saved_mask.is_none() {
        State::Guest
    } else {
        State::Attend
    }
}

fn system_call(task: &Arc<Task>, held: &mut Held) -> State {
    let Held { local, own, .. } = held;
    own.refresh(task);
    let r = &local.registers;
    if local.patches.take_due(r.rip) {
        task.mm().patch_site(r.rip, r.rax);
    }
    let args = Args([r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9]);
    local.call = CurrentCall { number: r.rax, args, deadline: None };
    local.after = AfterCall::Result;
    let result = dispatch(&mut SyscallContext { task, own, local });
    own.refresh(task);
    local.progress = None;
    match local.after {
        AfterCall::Exit(status) => return State::Exit(status),
        AfterCall::Park if result.is_ok() => return State::Parked,
        AfterCall::Keep if result.is_ok() => return after_kernel(task, local),
        _ => {}
    }
    match result {
        Ok(value) => local.registers.rax = value as u64,
        Err(code) if code.is_restart() => local.interrupted = Some(code),
        Err(errno) => local.registers.rax = errno.to_rax(),
    }
    // A call that ended of itself gets its mask back before any signal is looked at (Linux: restore_saved_sigmask_unless).
    let was_interrupted = local.interrupted.is_some() || result == Err(Errno::EINTR);
    if !was_interrupted && let Some(mask) = local.saved_mask.take() {
        task.replace_mask(mask);
    }
    after_kernel(task, local)
}

/// Finds the call's handler and runs it; unknown calls are counted and are `ENOSYS`.
pub(crate) fn dispatch(ctx: &mut SyscallContext<'_>) -> crate::SysResult<usize> {
    let call = ctx.local.call;
    let kernel = ctx.kernel().clone();
    let Some(entry) = table::find(call.number) else {
        kernel.counters().missing(call.number);
        return Err(Errno::ENOSYS);
    };
    kernel.counters().count(call.number);
    if !kernel.straces() {
        return (entry.handler)(ctx, &call.args);
    }
    let trace = Trace::begin(&ctx.task.mm(), entry, &call.args);
    let result = (entry.handler)(ctx, &call.args);
    tracing::info!(target: "strace", tid = ctx.task.tid(), "{}", trace.end(&ctx.task.mm(), &result));
    result
}

/// Looks at the task's work until there is none.
fn attend(task: &Arc<Task>, local: &mut TaskLocal) -> State {
    loop {
        task.waiter().clear_interrupt();
        let work = task.work();
        if work.contains(Work::KILL) {
            return State::Exit(death_of(task));
        }
        if work.contains(Work::STOP) {
            task.stand_stopped();
            continue;
        }
        if work.contains(Work::FREEZE) {
            task.stand_while_frozen();
            continue;
        }
        match deliver(task, local) {
            AfterSignals::Again => {}
            AfterSignals::Exit(status) => return State::Exit(status),
            AfterSignals::Continue => break,
        }
    }
    if local.registers.rip >= GVA_END {
        // Linux takes the general protection fault when it returns there.
        task.force_signal(SigInfo::kernel(Signal::SEGV));
        local.registers.rip = 0;
        return State::Attend;
    }
    after_kernel(task, local)
}

/// With what status a killed thread exits: its process's if that is ending, else (an `execve` elsewhere in it) quietly.
fn death_of(task: &Task) -> ExitStatus {
    task.thread_group().lock_signals().exit.unwrap_or(ExitStatus::Exited(0))
}
