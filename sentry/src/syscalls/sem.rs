//! `semget`, `semop`, `semtimedop`, `semctl`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Args;
use super::poll::read_timeout;
use crate::errno::{Errno, SysResult};
use crate::ipc::ids::{Access, Object, RawPerm, Request, linux_flags};
use crate::ipc::sem::{self, Awaited, Operation, Set, Waiting};
use crate::ipc::undo::UndoList;
use crate::ipc::{Actor, Ipc};
use crate::task::{SyscallContext, block};
use crate::wait::PollEvents;

/// `struct semid64_ds`
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct RawSet {
    perm: RawPerm,
    operated: i64,
    unused: u64,
    changed: i64,
    unused2: u64,
    len: u64,
    unused3: [u64; 2],
}

const _: () = assert!(size_of::<RawSet>() == size_of::<libc::semid_ds>());

/// `SEM_STAT_ANY` (`linux/sem.h`), which libc lacks.
const SEM_STAT_ANY: i32 = 20;

/// `semget(key_t key, int count, int flags)`
pub fn semget(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let len = usize::try_from(args.int(1)).map_err(|_| Errno::EINVAL)?;
    if len > sem::MAX_PER_SET {
        return Err(Errno::EINVAL);
    }
    let ipc = Ipc::current(ctx)?;
    let who = ctx.task.credentials();
    let request = Request { key: args.int(0), flags: args.int(2), who: &who };
    let fits = |set: &Set| if len > set.len() { Err(Errno::EINVAL) } else { Ok(()) };
    let id = ipc.sem.get(&request, fits, |perm| match len {
        0 => Err(Errno::EINVAL),
        len => ipc.sem.make(perm, len),
    })?;
    usize::try_from(id).map_err(|_| Errno::EINVAL)
}

/// `semop(int id, struct sembuf *operations, size_t count)`
pub fn semop(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    operate(ctx, args, None)
}

/// `semtimedop(…, const struct timespec *timeout)`
pub fn semtimedop(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let timeout = read_timeout(ctx, args.raw(3))?;
    operate(ctx, args, timeout)
}

fn operate(ctx: &mut SyscallContext<'_>, args: &Args, timeout: Option<Duration>) -> SysResult<usize> {
    let count = usize::try_from(args.raw(2)).unwrap_or(usize::MAX);
    if count < 1 || args.int(0) < 0 {
        return Err(Errno::EINVAL);
    }
    if count > sem::MAX_OPERATIONS {
        return Err(Errno::E2BIG);
    }
    let operations: Vec<Operation> = ctx.task.mm().copy_in_slice(args.raw(1), count)?;
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let set = Ipc::current(ctx)?.sem.find(args.int(0))?;
    if operations.iter().any(|operation| usize::from(operation.number) >= set.len()) {
        return Err(Errno::EFBIG);
    }
    let alters = operations.iter().any(|operation| operation.change != 0);
    let access = if alters { Access::WRITE } else { Access::READ };
    set.perm().lock().check(&ctx.task.credentials(), access)?;
    let list = operations.iter().any(|operation| operation.undoes()).then(|| undo_list(ctx, &set));
    let who = Actor::of(ctx.task);
    let mut waiting = Waiting::new(&set);
    let attempt = |_: &mut SyscallContext<'_>| match set.operate(&operations, who, list, &mut waiting) {
        // What must not wait is told apart from what has to.
        Err(Errno::EAGAIN) if waiting.forbidden => Ok(false),
        other => other.map(|()| true),
    };
    match block::until(ctx, set.queue(), PollEvents::READABLE, deadline, attempt) {
        Ok(true) => Ok(0),
        Ok(false) | Err(Errno::ETIMEDOUT) => Err(Errno::EAGAIN),
        // Never made again, whatever the handler asks for.
        Err(Errno::ERESTARTSYS) => Err(Errno::EINTR),
        Err(errno) => Err(errno),
    }
}

/// The number of the caller's undo list, on which `set` is noted.
fn undo_list(ctx: &mut SyscallContext<'_>, set: &Arc<Set>) -> u64 {
    let owner = Actor::of(ctx.task);
    let list = ctx.local.sem_undo.get_or_insert_with(|| UndoList::new(owner));
    list.note(set);
    list.id()
}

/// `semctl(int id, int number, int command, union semun argument)`
pub fn semctl(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let (id, number, argument) = (args.int(0), args.int(1), args.raw(3));
    let command = args.int(2) & !linux_flags::IPC_64;
    if id < 0 {
        return Err(Errno::EINVAL);
    }
    let ipc = Ipc::current(ctx)?;
    match command {
        libc::IPC_INFO | libc::SEM_INFO => info(ctx, &ipc, command, argument),
        libc::IPC_STAT => stat(ctx, &*ipc.sem.find(id)?, argument, true).map(|()| 0),
        libc::SEM_STAT | SEM_STAT_ANY => {
            let set = ipc.sem.at(id)?;
            stat(ctx, &set, argument, command == libc::SEM_STAT)?;
            let id = set.perm().lock().id;
            usize::try_from(id).map_err(|_| Errno::EINVAL)
        }
        libc::IPC_SET | libc::IPC_RMID => change(ctx, &ipc, id, command, argument),
        libc::GETVAL | libc::GETPID | libc::GETNCNT | libc::GETZCNT | libc::GETALL => {
            let set = ipc.sem.find(id)?;
            set.perm().lock().check(&ctx.task.credentials(), Access::READ)?;
            read(ctx, &set, number, command, argument)
        }
        libc::SETVAL | libc::SETALL => {
            let set = ipc.sem.find(id)?;
            if command == libc::SETVAL && !(0..=sem::MAX_VALUE).contains(&(argument as i32)) {
                return Err(Errno::ERANGE);
            }
            set.perm().lock().check(&ctx.task.credentials(), Access::WRITE)?;
            let (first, values) = match command {
                libc::SETVAL => (number, vec![argument as u16]),
                _ => (0, ctx.task.mm().copy_in_slice(argument, set.len())?),
            };
            set.set(first, &values, Actor::of(ctx.task)).map(|()| 0)
        }
        _ => Err(Errno::EINVAL),
    }
}

fn read(ctx: &SyscallContext<'_>, set: &Set, number: i32, command: i32, addr: u64) -> SysResult<usize> {
    if command == libc::GETALL {
        ctx.task.mm().copy_out_slice(addr, &set.values())?;
        return Ok(0);
    }
    let value = set.value(number)?;
    let number16 = u16::try_from(number).map_err(|_| Errno::EINVAL)?;
    Ok(match command {
        libc::GETPID => usize::try_from(set.last(number)?.seen_by(ctx.task)).unwrap_or(0),
        libc::GETNCNT => set.waiting_for(Awaited::Growth(number16)),
        libc::GETZCNT => set.waiting_for(Awaited::Zero(number16)),
        _ => usize::from(value),
    })
}

fn change(ctx: &SyscallContext<'_>, ipc: &Ipc, id: i32, command: i32, addr: u64) -> SysResult<usize> {
    let who = ctx.task.credentials();
    if command == libc::IPC_RMID {
        let set = ipc.sem.find(id)?;
        set.perm().lock().check_owner(&who)?;
        return ipc.sem.destroy(&set).map(|()| 0);
    }
    let new: RawSet = ctx.task.mm().copy_in(addr)?;
    let set = ipc.sem.find(id)?;
    let mut perm = set.perm().lock();
    perm.check_owner(&who)?;
    perm.update(&new.perm);
    drop(perm);
    set.note_changed();
    Ok(0)
}

fn stat(ctx: &SyscallContext<'_>, set: &Set, addr: u64, checked: bool) -> SysResult {
    let perm = set.perm().lock().clone();
    if checked {
        perm.check(&ctx.task.credentials(), Access::READ)?;
    }
    let (operated, changed) = set.times();
    let len = set.len() as u64;
    let raw = RawSet { perm: perm.to_raw(), operated, unused: 0, changed, unused2: 0, len, unused3: [0; 2] };
    ctx.task.mm().copy_out(addr, &raw)
}

/// `IPC_INFO`, `SEM_INFO`: `struct seminfo`.
fn info(ctx: &SyscallContext<'_>, ipc: &Ipc, command: i32, addr: u64) -> SysResult<usize> {
    let int = |value: usize| i32::try_from(value).unwrap_or(i32::MAX);
    let (sets, highest) = ipc.sem.usage();
    let all = int(sem::MAX_SEMAPHORES);
    let (in_use, semaphores) = match command {
        libc::SEM_INFO => (int(sets), int(ipc.sem.semaphores())),
        // `SEMUSZ`
        _ => (20, sem::MAX_VALUE),
    };
    let operations = int(sem::MAX_OPERATIONS);
    let (most, per_set) = (int(sem::MAX_SETS), int(sem::MAX_PER_SET));
    let raw = [all, most, all, all, per_set, operations, operations, in_use, sem::MAX_VALUE, semaphores];
    ctx.task.mm().copy_out(addr, &raw)?;
    usize::try_from(highest).map_err(|_| Errno::EINVAL)
}
