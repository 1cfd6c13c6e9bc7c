//! `msgget`, `msgsnd`, `msgrcv`, `msgctl`.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Args;
use crate::errno::{Errno, SysResult};
use crate::ipc::ids::{Access, Object, RawPerm, Request, linux_flags};
use crate::ipc::msg::{self, Message, Queue, Wanted};
use crate::ipc::{Actor, Ipc};
use crate::task::{Capability, SyscallContext, block};
use crate::wait::PollEvents;

/// `struct msqid64_ds`
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct RawQueue {
    perm: RawPerm,
    times: [i64; 3],
    bytes: u64,
    messages: u64,
    limit: u64,
    sender: i32,
    receiver: i32,
    unused: [u64; 2],
}

const _: () = assert!(size_of::<RawQueue>() == size_of::<libc::msqid_ds>());

/// `MSG_STAT_ANY` (`linux/msg.h`), which libc lacks.
const MSG_STAT_ANY: i32 = 13;
/// Bytes of a message's type.
const KIND: u64 = size_of::<i64>() as u64;

/// `msgget(key_t key, int flags)`
pub fn msgget(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let ipc = Ipc::current(ctx)?;
    let who = ctx.task.credentials();
    let request = Request { key: args.int(0), flags: args.int(1), who: &who };
    let id = ipc.msg.get(&request, |_| Ok(()), |perm| Ok(ipc.msg.make(perm)))?;
    usize::try_from(id).map_err(|_| Errno::EINVAL)
}

/// A wait that is over: forbidden from the start, or interrupted.
fn outcome<T>(result: SysResult<T>, nowait: bool, nothing: Errno) -> SysResult<T> {
    match result {
        Err(Errno::EAGAIN) if nowait => Err(nothing),
        Err(Errno::ERESTARTSYS) => Err(Errno::ERESTARTNOHAND),
        other => other,
    }
}

/// `msgsnd(int id, const void *message, size_t size, int flags)`
pub fn msgsnd(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let mm = ctx.task.mm();
    let kind: i64 = mm.copy_in(args.raw(1))?;
    let len = usize::try_from(args.raw(2)).unwrap_or(usize::MAX);
    if len > msg::MAX_MESSAGE || args.int(0) < 0 || kind < 1 {
        return Err(Errno::EINVAL);
    }
    let mut text = vec![0; len];
    mm.read_bytes(args.raw(1).wrapping_add(KIND), &mut text)?;
    let queue = Ipc::current(ctx)?.msg.find(args.int(0))?;
    let (message, who) = (Message { kind, text }, Actor::of(ctx.task));
    let attempt = |ctx: &mut SyscallContext<'_>| {
        queue.perm().lock().check(&ctx.task.credentials(), Access::WRITE)?;
        queue.send(&message, who)
    };
    let nowait = args.int(3) & linux_flags::IPC_NOWAIT != 0;
    let result = if nowait {
        attempt(ctx)
    } else {
        block::until(ctx, queue.space(), PollEvents::WRITABLE, None, attempt)
    };
    outcome(result, nowait, Errno::EAGAIN).map(|()| 0)
}

fn wanted(kind: i64, flags: i32) -> SysResult<Wanted> {
    let has = |flag: i32| flags & flag != 0;
    if has(libc::MSG_COPY) {
        if has(libc::MSG_EXCEPT) || !has(linux_flags::IPC_NOWAIT) {
            return Err(Errno::EINVAL);
        }
        // Linux finds nothing at a negative place.
        return Ok(Wanted::CopyOf(usize::try_from(kind).unwrap_or(usize::MAX)));
    }
    Ok(match kind {
        0 => Wanted::Any,
        kind if kind < 0 => Wanted::UpTo(kind.checked_neg().unwrap_or(i64::MAX)),
        kind if has(libc::MSG_EXCEPT) => Wanted::Not(kind),
        kind => Wanted::Kind(kind),
    })
}

/// `msgrcv(int id, void *message, size_t size, long type, int flags)`
pub fn msgrcv(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let flags = args.int(4);
    let room = i64::try_from(args.raw(2)).ok().and_then(|room| usize::try_from(room).ok());
    let (Some(room), true) = (room, args.int(0) >= 0) else { return Err(Errno::EINVAL) };
    let wanted = wanted(args.raw(3) as i64, flags)?;
    let queue = Ipc::current(ctx)?.msg.find(args.int(0))?;
    let (cut, who) = (flags & libc::MSG_NOERROR != 0, Actor::of(ctx.task));
    let attempt = |ctx: &mut SyscallContext<'_>| {
        queue.perm().lock().check(&ctx.task.credentials(), Access::READ)?;
        queue.receive(wanted, room, cut, who)
    };
    let nowait = flags & linux_flags::IPC_NOWAIT != 0;
    let result = if nowait {
        attempt(ctx)
    } else {
        block::until(ctx, queue.arrival(), PollEvents::READABLE, None, attempt)
    };
    let message = outcome(result, nowait, Errno::ENOMSG)?;
    let text = message.text.get(..room).unwrap_or(&message.text);
    let mm = ctx.task.mm();
    mm.copy_out(args.raw(1), &message.kind)?;
    mm.write_bytes(args.raw(1).wrapping_add(KIND), text)?;
    Ok(text.len())
}

/// `msgctl(int id, int command, struct msqid_ds *buf)`
pub fn msgctl(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let (id, addr) = (args.int(0), args.raw(2));
    let command = args.int(1) & !linux_flags::IPC_64;
    if id < 0 || command < 0 {
        return Err(Errno::EINVAL);
    }
    let ipc = Ipc::current(ctx)?;
    let who = ctx.task.credentials();
    match command {
        libc::IPC_INFO | libc::MSG_INFO => info(ctx, &ipc, command, addr),
        libc::IPC_STAT => stat(ctx, &*ipc.msg.find(id)?, addr, true).map(|()| 0),
        libc::MSG_STAT | MSG_STAT_ANY => {
            let queue = ipc.msg.at(id)?;
            stat(ctx, &queue, addr, command == libc::MSG_STAT)?;
            let id = queue.perm().lock().id;
            usize::try_from(id).map_err(|_| Errno::EINVAL)
        }
        libc::IPC_SET => {
            let new: RawQueue = ctx.task.mm().copy_in(addr)?;
            let queue = ipc.msg.find(id)?;
            let mut perm = queue.perm().lock();
            perm.check_owner(&who)?;
            if new.limit > msg::QUEUE_BYTES && !who.has(Capability::SYS_RESOURCE) {
                return Err(Errno::EPERM);
            }
            perm.update(&new.perm);
            drop(perm);
            queue.set_limit(new.limit);
            Ok(0)
        }
        libc::IPC_RMID => {
            let queue = ipc.msg.find(id)?;
            queue.perm().lock().check_owner(&who)?;
            ipc.msg.destroy(&queue).map(|()| 0)
        }
        _ => Err(Errno::EINVAL),
    }
}

fn stat(ctx: &SyscallContext<'_>, queue: &Queue, addr: u64, checked: bool) -> SysResult {
    let perm = queue.perm().lock().clone();
    if checked {
        perm.check(&ctx.task.credentials(), Access::READ)?;
    }
    let status = queue.status();
    let [sender, receiver] = status.last.map(|who| who.seen_by(ctx.task));
    let raw = RawQueue {
        perm: perm.to_raw(),
        times: status.times,
        bytes: status.bytes,
        messages: status.messages,
        limit: status.limit,
        sender,
        receiver,
        unused: [0; 2],
    };
    ctx.task.mm().copy_out(addr, &raw)
}

/// `IPC_INFO`, `MSG_INFO`: `struct msginfo`.
fn info(ctx: &SyscallContext<'_>, ipc: &Ipc, command: i32, addr: u64) -> SysResult<usize> {
    /// `MSGSSZ`, `MSGSEG`
    const SEGMENT_SIZE: i32 = 16;
    const SEGMENTS: i32 = 0xffff;
    let int = |value: usize| i32::try_from(value).unwrap_or(i32::MAX);
    let (queues, highest) = ipc.msg.usage();
    let (most, limit) = (int(msg::MAX_QUEUES), msg::QUEUE_BYTES as i32);
    let (pool, map, total) = match command {
        libc::MSG_INFO => {
            let (messages, bytes) = ipc.msg.load();
            (int(queues), int(messages), i32::try_from(bytes).unwrap_or(i32::MAX))
        }
        // `MSGPOOL` (in KiB), `MSGMAP`, `MSGTQL`
        _ => (most.saturating_mul(limit / 1024), limit, limit),
    };
    let raw = [pool, map, int(msg::MAX_MESSAGE), limit, most, SEGMENT_SIZE, total, SEGMENTS];
    ctx.task.mm().copy_out(addr, &raw)?;
    usize::try_from(highest).map_err(|_| Errno::EINVAL)
}
