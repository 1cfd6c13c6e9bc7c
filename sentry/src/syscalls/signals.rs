//! Signals: dispositions, masks, sending, waiting.

use std::sync::Arc;
use std::time::Instant;

use linux_raw_sys::general as linux;

use super::Args;
use super::time::{RawTime, duration};
use crate::errno::{Errno, SysResult};
use crate::task::pidfd::PidFd;
use crate::task::signal::frame::{self, set_alt_stack};
use crate::task::signal::send::Origin;
use crate::task::signal::{Action, Disposition, SIGINFO_SIZE, SigInfo, Signal, SignalSet};
use crate::task::{AfterCall, AltStack, Capability, SyscallContext, Task, ThreadGroup};
use crate::time::clock_id::after;
use crate::vfs::OpenFlags;
use crate::wait::WaitOutcome;

/// The flags of `sigaction` that the kernel keeps (`UAPI_SA_FLAGS`).
const KNOWN_FLAGS: u32 = linux::SA_NOCLDSTOP
    | linux::SA_NOCLDWAIT
    | linux::SA_SIGINFO
    | linux::SA_ONSTACK
    | linux::SA_RESTART
    | linux::SA_NODEFER
    | linux::SA_RESETHAND
    | linux::SA_EXPOSE_TAGBITS
    | linux::SA_RESTORER;

fn check_set_size(size: u64) -> SysResult {
    if size == 8 { Ok(()) } else { Err(Errno::EINVAL) }
}

/// A signal set in guest memory.
fn read_set(ctx: &SyscallContext<'_>, addr: u64) -> SysResult<SignalSet> {
    Ok(SignalSet::from_bits(ctx.task.mm().copy_in(addr)?))
}

/// `rt_sigaction(2)`
pub fn rt_sigaction(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    check_set_size(args.raw(3))?;
    let signal = Signal::new(args.int(0))?;
    let mm = ctx.task.mm();
    let new = if args.raw(1) == 0 { None } else { Some(decode_action(mm.copy_in(args.raw(1))?)) };
    if new.is_some() && SignalSet::UNBLOCKABLE.contains(signal) {
        return Err(Errno::EINVAL);
    }
    let handlers = ctx.task.thread_group().handlers();
    let old = match new {
        None => handlers.get(signal),
        Some(action) => {
            let old = handlers.set(signal, action);
            if action.ignores(signal) {
                ctx.task.thread_group().discard_pending(signal);
            }
            old
        }
    };
    if args.raw(2) != 0 {
        mm.copy_out(args.raw(2), &encode_action(&old))?;
    }
    Ok(0)
}

/// `struct kernel_sigaction`: handler, flags, restorer, mask.
fn decode_action([handler, flags, restorer, mask]: [u64; 4]) -> Action {
    const SIG_DFL: u64 = libc::SIG_DFL as u64;
    const SIG_IGN: u64 = libc::SIG_IGN as u64;
    let disposition = match handler {
        SIG_DFL => Disposition::Default,
        SIG_IGN => Disposition::Ignore,
        address => Disposition::Handler(address),
    };
    let mask = SignalSet::from_bits(mask).blockable();
    Action { disposition, flags: flags & u64::from(KNOWN_FLAGS), restorer, mask }
}

fn encode_action(action: &Action) -> [u64; 4] {
    let handler = match action.disposition {
        Disposition::Default => libc::SIG_DFL as u64,
        Disposition::Ignore => libc::SIG_IGN as u64,
        Disposition::Handler(address) => address,
    };
    [handler, action.flags, action.restorer, action.mask.bits()]
}

/// `rt_sigprocmask(2)`
pub fn rt_sigprocmask(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    check_set_size(args.raw(3))?;
    let old = ctx.task.blocked_signals();
    if args.raw(1) != 0 {
        let set = read_set(ctx, args.raw(1))?;
        let new = match args.uint(0) {
            linux::SIG_BLOCK => old.union(set),
            linux::SIG_UNBLOCK => old.minus(set),
            linux::SIG_SETMASK => set,
            _ => return Err(Errno::EINVAL),
        };
        ctx.task.replace_mask(new.blockable());
    }
    if args.raw(2) != 0 {
        ctx.task.mm().copy_out(args.raw(2), &old.bits())?;
    }
    Ok(0)
}

/// `rt_sigpending(2)`
pub fn rt_sigpending(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    if args.raw(1) > 8 {
        return Err(Errno::EINVAL);
    }
    let (own, shared) = ctx.task.pending_signals();
    let pending = own.union(shared).intersection(ctx.task.blocked_signals());
    let bytes = pending.bits().to_le_bytes();
    let len = usize::try_from(args.raw(1)).unwrap_or(8);
    ctx.task.mm().write_bytes(args.raw(0), bytes.get(..len).unwrap_or(&bytes))?;
    Ok(0)
}

/// `rt_sigreturn(2)`: a bad frame is a `SIGSEGV`.
pub fn rt_sigreturn(ctx: &mut SyscallContext<'_>, _: &Args) -> SysResult<usize> {
    if frame::pop(ctx).is_err() {
        ctx.task.force_signal(SigInfo::kernel(Signal::SEGV));
    }
    ctx.local.after = AfterCall::Keep;
    Ok(0)
}

/// `rt_sigsuspend(2)`
pub fn rt_sigsuspend(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    check_set_size(args.raw(1))?;
    let mask = read_set(ctx, args.raw(0))?;
    ctx.set_temporary_mask(mask);
    sleep_until_signal(ctx)
}

/// `pause(2)`
pub fn pause(ctx: &mut SyscallContext<'_>, _: &Args) -> SysResult<usize> {
    sleep_until_signal(ctx)
}

fn sleep_until_signal(ctx: &mut SyscallContext<'_>) -> SysResult<usize> {
    while ctx.task.sleep(None) != WaitOutcome::Interrupted {}
    Err(Errno::ERESTARTNOHAND)
}

/// `rt_sigtimedwait(2)`
pub fn rt_sigtimedwait(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    check_set_size(args.raw(3))?;
    let wanted = read_set(ctx, args.raw(0))?.blockable();
    let deadline = match args.raw(2) {
        0 => None,
        at => Some(after(duration(ctx.task.mm().copy_in::<RawTime>(at)?.timespec()?))),
    };
    ctx.task.lock_signals().awaited = wanted;
    let found = await_signal(ctx, wanted, deadline);
    ctx.task.lock_signals().awaited = SignalSet::EMPTY;
    let info = found?;
    if args.raw(1) != 0 {
        ctx.task.mm().write_bytes(args.raw(1), &info.to_bytes())?;
    }
    usize::try_from(info.signal.number()).map_err(|_| Errno::EINVAL)
}

fn await_signal(
    ctx: &SyscallContext<'_>,
    wanted: SignalSet,
    deadline: Option<Instant>,
) -> SysResult<SigInfo> {
    loop {
        if let Some(info) = ctx.task.take_signal(wanted) {
            return Ok(info);
        }
        let failure = match ctx.task.sleep(deadline) {
            WaitOutcome::Notified => continue,
            WaitOutcome::TimedOut => Errno::EAGAIN,
            WaitOutcome::Interrupted => Errno::EINTR,
        };
        // It may have come at this moment.
        return ctx.task.take_signal(wanted).ok_or(failure);
    }
}

/// `sigaltstack(2)`
pub fn sigaltstack(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let mm = ctx.task.mm();
    let sp = ctx.local.registers.rsp;
    let old = ctx.local.alt_stack;
    if args.raw(0) != 0 {
        let [base, flags, size]: [u64; 3] = mm.copy_in(args.raw(0))?;
        set_alt_stack(ctx.local, AltStack { base, flags: flags as u32, size }, sp)?;
    }
    if args.raw(1) != 0 {
        let flags = old.state(sp) | (old.flags & linux::SS_AUTODISARM);
        mm.copy_out(args.raw(1), &[old.base, u64::from(flags), old.size])?;
    }
    Ok(0)
}

/// Whether the caller may send `signal` to `target` (`kill_ok_by_cred`; `SIGCONT` within a session is always allowed).
fn may_signal(ctx: &SyscallContext<'_>, target: &Task, signal: Option<Signal>) -> bool {
    let (mine, theirs) = (ctx.task.credentials(), target.credentials());
    let same_user = [mine.euid, mine.uid].iter().any(|id| *id == theirs.uid || *id == theirs.suid);
    let same_session = || {
        let session = |task: &Task| task.thread_group().process_group().session().clone();
        session(ctx.task).is(&session(target))
    };
    let same_process = Arc::ptr_eq(ctx.task.thread_group(), target.thread_group());
    same_process
        || same_user
        || mine.has(Capability::KILL)
        || (signal == Some(Signal::CONT) && same_session())
}

/// The sender as the target sees it, and whether it is outside of the target's pid namespace.
fn sender(ctx: &SyscallContext<'_>, target: &ThreadGroup) -> (i32, u32, Origin) {
    let uid = ctx.task.credentials().uid;
    let Some(theirs) = target.pid().namespace() else { return (0, uid, Origin::Inside) };
    let pid = ctx.task.thread_group().pid().number_in(theirs);
    (pid, uid, if pid == 0 { Origin::Outside } else { Origin::Inside })
}

fn kill_process(ctx: &SyscallContext<'_>, target: &Arc<ThreadGroup>, signal: Option<Signal>) -> SysResult {
    let leader = target.leader().ok_or(Errno::ESRCH)?;
    if !may_signal(ctx, &leader, signal) {
        return Err(Errno::EPERM);
    }
    let Some(signal) = signal else { return Ok(()) };
    let (pid, uid, origin) = sender(ctx, target);
    target.send_signal_from(SigInfo::kill(signal, pid, uid), origin)
}

/// Sends to all of them: fine if one got it, else the last error, `ESRCH` if there are none.
fn kill_many(
    ctx: &SyscallContext<'_>,
    targets: impl IntoIterator<Item = Arc<ThreadGroup>>,
    signal: Option<Signal>,
) -> SysResult {
    let mut result = Err(Errno::ESRCH);
    for target in targets {
        match kill_process(ctx, &target, signal) {
            Ok(()) => result = Ok(()),
            Err(errno) if result.is_err() => result = Err(errno),
            Err(_) => {}
        }
    }
    result
}

/// `kill(2)`
pub fn kill(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let pid = args.int(0);
    let namespace = ctx.task.pid_namespace().ok_or(Errno::ESRCH)?;
    let signal = Signal::or_none(args.int(1));
    match pid {
        1.. => {
            let task = namespace.task(pid).ok_or(Errno::ESRCH)?;
            kill_process(ctx, task.thread_group(), signal?)?;
        }
        0 => kill_many(ctx, ctx.task.thread_group().process_group().members(), signal?)?,
        -1 => {
            let me = ctx.task.thread_group();
            let all = namespace.thread_groups().into_iter();
            let others = all.filter(|group| {
                group.pid().number_in(&namespace) > 1 && !Arc::ptr_eq(group, me) && !group.has_exited()
            });
            kill_many(ctx, others, signal?)?;
        }
        i32::MIN => return Err(Errno::ESRCH),
        _ => {
            let job = namespace.process_group(pid.saturating_neg()).ok_or(Errno::ESRCH)?;
            kill_many(ctx, job.members(), signal?)?;
        }
    }
    Ok(0)
}

fn kill_thread(ctx: &SyscallContext<'_>, tgid: Option<i32>, tid: i32, signal: i32) -> SysResult<usize> {
    if tid <= 0 || tgid.is_some_and(|tgid| tgid <= 0) {
        return Err(Errno::EINVAL);
    }
    let namespace = ctx.task.pid_namespace().ok_or(Errno::ESRCH)?;
    let target = namespace.task(tid).ok_or(Errno::ESRCH)?;
    let group = target.thread_group();
    if tgid.is_some_and(|tgid| group.pid().number_in(&namespace) != tgid) {
        return Err(Errno::ESRCH);
    }
    let signal = Signal::or_none(signal)?;
    if !may_signal(ctx, &target, signal) {
        return Err(Errno::EPERM);
    }
    let Some(signal) = signal else { return Ok(0) };
    let (pid, uid, origin) = sender(ctx, group);
    let info = SigInfo { code: linux::SI_TKILL, ..SigInfo::kill(signal, pid, uid) };
    target.send_signal_from(info, origin)?;
    Ok(0)
}

/// `tkill(2)`
pub fn tkill(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    kill_thread(ctx, None, args.int(0), args.int(1))
}

/// `tgkill(2)`
pub fn tgkill(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    kill_thread(ctx, Some(args.int(0)), args.int(1), args.int(2))
}

/// A `siginfo_t` that a process passes in for `signal`. `EPERM` for one that only the kernel or `tgkill` may make, unless it
/// is for the caller itself.
fn read_info(ctx: &SyscallContext<'_>, addr: u64, signal: Signal, to_self: bool) -> SysResult<SigInfo> {
    let mut bytes = [0; SIGINFO_SIZE];
    ctx.task.mm().read_bytes(addr, &mut bytes)?;
    let info = SigInfo::from_user_bytes(signal, &bytes)?;
    if (info.code >= 0 || info.code == linux::SI_TKILL) && !to_self {
        return Err(Errno::EPERM);
    }
    Ok(info)
}

/// `rt_sigqueueinfo(2)`
pub fn rt_sigqueueinfo(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let namespace = ctx.task.pid_namespace().ok_or(Errno::ESRCH)?;
    let pid = args.int(0);
    let number = args.int(1);
    // The null signal has no number to carry an info; only existence and permission count.
    let signal = Signal::or_none(number)?;
    let to_self = ctx.task.thread_group().pid().own() == pid;
    let info = read_info(ctx, args.raw(2), signal.unwrap_or(Signal::HUP), to_self)?;
    let target = namespace.task(pid).ok_or(Errno::ESRCH)?;
    if !may_signal(ctx, &target, signal) {
        return Err(Errno::EPERM);
    }
    if signal.is_some() {
        let group = target.thread_group();
        let (_, _, origin) = sender(ctx, group);
        group.send_signal_from(info, origin)?;
    }
    Ok(0)
}

/// `rt_tgsigqueueinfo(2)`
pub fn rt_tgsigqueueinfo(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let namespace = ctx.task.pid_namespace().ok_or(Errno::ESRCH)?;
    let (tgid, tid) = (args.int(0), args.int(1));
    if tgid <= 0 || tid <= 0 {
        return Err(Errno::EINVAL);
    }
    let signal = Signal::or_none(args.int(2))?;
    let to_self = ctx.task.tid() == tid;
    let info = read_info(ctx, args.raw(3), signal.unwrap_or(Signal::HUP), to_self)?;
    let target = namespace.task(tid).ok_or(Errno::ESRCH)?;
    if target.thread_group().pid().number_in(&namespace) != tgid {
        return Err(Errno::ESRCH);
    }
    if !may_signal(ctx, &target, signal) {
        return Err(Errno::EPERM);
    }
    if signal.is_some() {
        let (_, _, origin) = sender(ctx, target.thread_group());
        target.send_signal_from(info, origin)?;
    }
    Ok(0)
}

/// `pidfd_send_signal(2)`
pub fn pidfd_send_signal(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    if args.raw(3) as u32 != 0 {
        return Err(Errno::EINVAL);
    }
    let file = ctx.task.file(args.raw(0))?;
    let group = match file.ops_as::<PidFd>() {
        Some(pidfd) => pidfd.thread_group().clone(),
        // The directory of a process does as well.
        None if file.flags().contains(OpenFlags::PATH) => return Err(Errno::EBADF),
        None => crate::fs::proc::process_of(&**file.inode()).ok_or(Errno::EBADF)??,
    };
    let signal = Signal::or_none(args.int(1))?;
    let leader = group.leader().ok_or(Errno::ESRCH)?;
    let namespace = ctx.task.pid_namespace().ok_or(Errno::ESRCH)?;
    if group.pid().number_in(&namespace) == 0 {
        return Err(Errno::EINVAL);
    }
    if args.raw(2) == 0 {
        kill_process(ctx, &group, signal)?;
        return Ok(0);
    }
    let to_self = Arc::ptr_eq(ctx.task.thread_group(), &group);
    let mut bytes = [0; SIGINFO_SIZE];
    ctx.task.mm().read_bytes(args.raw(2), &mut bytes)?;
    let claimed = bytes.first_chunk::<4>().map_or(0, |word| i32::from_le_bytes(*word));
    if claimed != args.int(1) {
        return Err(Errno::EINVAL);
    }
    let info = SigInfo::from_user_bytes(signal.unwrap_or(Signal::HUP), &bytes)?;
    if (info.code >= 0 || info.code == linux::SI_TKILL) && !to_self {
        return Err(Errno::EPERM);
    }
    if !may_signal(ctx, &leader, signal) {
        return Err(Errno::EPERM);
    }
    if signal.is_some() {
        let (_, _, origin) = sender(ctx, &group);
        group.send_signal_from(info, origin)?;
    }
    Ok(0)
}

/// `restart_syscall(2)`: the interrupted call goes on with its first deadline.
pub fn restart_syscall(ctx: &mut SyscallContext<'_>, _: &Args) -> SysResult<usize> {
    let block = ctx.local.restart.take().ok_or(Errno::EINTR)?;
    ctx.local.call = block.call;
    let entry = super::table::find(block.call.number).ok_or(Errno::EINTR)?;
    (entry.handler)(ctx, &block.call.args)
}
