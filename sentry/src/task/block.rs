//! The one place where a task blocks.
//!
//! A call that may have to wait is written as an attempt that returns `EAGAIN` while it cannot proceed and has had no side
//! effect. [`until`] tries, registers, tries again, sleeps. The sleep ends early for signals, stops and the task's
//! death; the attempt is then abandoned with `ERESTARTSYS`, which the run loop turns into a restart or `EINTR`.

use std::time::Instant;

use super::SyscallContext;
use crate::errno::{Errno, SysResult};
use crate::wait::{self, Observer, PollEvents, WaitOutcome, WaitQueue};

/// Tries `attempt` until it returns something else than `EAGAIN`, sleeping on `queue` in between.
///
/// `ETIMEDOUT` when `deadline` passes, `ERESTARTSYS` when interrupted.
pub fn until<T>(
    ctx: &mut SyscallContext<'_>,
    queue: &WaitQueue,
    events: PollEvents,
    deadline: Option<Instant>,
    mut attempt: impl FnMut(&mut SyscallContext<'_>) -> SysResult<T>,
) -> SysResult<T> {
    let first = attempt(ctx);
    if !matches!(first, Err(Errno::EAGAIN)) {
        return first;
    }
    let now_or_never = deadline.is_some_and(|at| at <= Instant::now());
    if !now_or_never && wait::decline() {
        return Err(Errno::ERESTARTSYS);
    }
    let waiter = ctx.task.waiter().clone();
    let observer: std::sync::Arc<dyn Observer> = waiter.clone();
    let _registration = queue.register(events, observer);
    loop {
        waiter.arm();
        let result = attempt(ctx);
        if !matches!(result, Err(Errno::EAGAIN)) {
            return result;
        }
        match ctx.task.sleep(deadline) {
            WaitOutcome::Notified => {}
            WaitOutcome::Interrupted => return Err(Errno::ERESTARTSYS),
            WaitOutcome::TimedOut => return Err(Errno::ETIMEDOUT),
        }
    }
}
