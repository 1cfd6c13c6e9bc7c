//! `shmget`, `shmat`, `shmdt`, `shmctl`.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Args;
use crate::errno::{Errno, SysResult};
use crate::ipc::ids::{Access, Object, RawPerm, Request, linux_flags};
use crate::ipc::shm::{self, Segment};
use crate::ipc::{Actor, Ipc};
use crate::mm::{Attach, Prot};
use crate::platform::PAGE_SIZE;
use crate::task::{Capability, SyscallContext};

/// `struct shmid64_ds`
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct RawSegment {
    perm: RawPerm,
    size: u64,
    attached: i64,
    detached: i64,
    changed: i64,
    creator: i32,
    last: i32,
    attachments: u64,
    unused: [u64; 2],
}

const _: () = assert!(size_of::<RawSegment>() == size_of::<libc::shmid_ds>());

/// `shmget(key_t key, size_t size, int flags)`
pub fn shmget(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let (size, flags) = (args.raw(1), args.int(2));
    let ipc = Ipc::current(ctx)?;
    let who = ctx.task.credentials();
    let request = Request { key: args.int(0), flags, who: &who };
    let fits = |segment: &Segment| if segment.size() < size { Err(Errno::EINVAL) } else { Ok(()) };
    let id = ipc.shm.get(&request, fits, |perm| {
        if !(1..=shm::MAX_SIZE).contains(&size) || flags & libc::SHM_HUGETLB != 0 {
            return Err(Errno::EINVAL);
        }
        ipc.shm.make(perm, size)
    })?;
    usize::try_from(id).map_err(|_| Errno::EINVAL)
}

/// `shmat(int id, const void *addr, int flags)`
pub fn shmat(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let flags = args.int(2);
    let has = |flag: i32| flags & flag != 0;
    let place = match args.raw(1) {
        0 if has(libc::SHM_REMAP) => return Err(Errno::EINVAL),
        0 => Attach::Anywhere,
        addr if addr.is_multiple_of(PAGE_SIZE) || has(libc::SHM_RND) => {
            let addr = addr & !(PAGE_SIZE - 1);
            match () {
                () if has(libc::SHM_REMAP) && addr == 0 => return Err(Errno::EINVAL),
                () if has(libc::SHM_REMAP) => Attach::Over(addr),
                () => Attach::At(addr),
            }
        }
        _ => return Err(Errno::EINVAL),
    };
    let (mut prot, mut access) = if has(libc::SHM_RDONLY) {
        (Prot::READ, Access::READ)
    } else {
        (Prot::READ | Prot::WRITE, Access::READ_WRITE)
    };
    if has(libc::SHM_EXEC) {
        prot |= Prot::EXEC;
        access = access.and_execute();
    }
    let segment = Ipc::current(ctx)?.shm.find(args.int(0))?;
    segment.perm().lock().check(&ctx.task.credentials(), access)?;
    let size = segment.size();
    if let Attach::At(addr) | Attach::Over(addr) = place
        && addr.checked_add(size).is_none()
    {
        return Err(Errno::EINVAL);
    }
    let attached = ctx.task.mm().attach(segment.clone(), size, place, prot);
    // It may have been marked for destruction meanwhile.
    segment.leave_if_unused();
    let addr = attached?;
    segment.note_attached(Actor::of(ctx.task));
    usize::try_from(addr).map_err(|_| Errno::ENOMEM)
}

/// `shmdt(const void *addr)`
pub fn shmdt(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    ctx.task.mm().detach(args.raw(0)).map(|()| 0)
}

/// `shmctl(int id, int command, struct shmid_ds *buf)`
pub fn shmctl(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let (id, addr) = (args.int(0), args.raw(2));
    let command = args.int(1) & !linux_flags::IPC_64;
    if id < 0 || command < 0 {
        return Err(Errno::EINVAL);
    }
    let ipc = Ipc::current(ctx)?;
    let who = ctx.task.credentials();
    match command {
        libc::IPC_INFO => info(ctx, &ipc, addr),
        SHM_INFO => usage(ctx, &ipc, addr),
        libc::IPC_STAT => stat(ctx, &*ipc.shm.find(id)?, addr, true).map(|()| 0),
        SHM_STAT | SHM_STAT_ANY => {
            let segment = ipc.shm.at(id)?;
            stat(ctx, &segment, addr, command == SHM_STAT)?;
            let id = segment.perm().lock().id;
            usize::try_from(id).map_err(|_| Errno::EINVAL)
        }
        libc::IPC_SET => {
            let new: RawSegment = ctx.task.mm().copy_in(addr)?;
            let segment = ipc.shm.find(id)?;
            let mut perm = segment.perm().lock();
            perm.check_owner(&who)?;
            perm.update(&new.perm);
            drop(perm);
            segment.note_changed();
            Ok(0)
        }
        libc::IPC_RMID => {
            let segment = ipc.shm.find(id)?;
            segment.perm().lock().check_owner(&who)?;
            ipc.shm.destroy(&segment);
            Ok(0)
        }
        libc::SHM_LOCK | libc::SHM_UNLOCK => {
            let segment = ipc.shm.find(id)?;
            let mut perm = segment.perm().lock();
            let owns = who.euid == perm.uid || who.euid == perm.cuid;
            if !owns && !who.has(Capability::IPC_LOCK) {
                return Err(Errno::EPERM);
            }
            perm.mode &= !shm::LOCKED;
            if command == libc::SHM_LOCK {
                perm.mode |= shm::LOCKED;
            }
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

/// Commands of `linux/shm.h` that libc lacks.
const SHM_STAT: i32 = 13;
const SHM_INFO: i32 = 14;
const SHM_STAT_ANY: i32 = 15;

fn stat(ctx: &SyscallContext<'_>, segment: &Segment, addr: u64, checked: bool) -> SysResult {
    let perm = segment.perm().lock().clone();
    if checked {
        perm.check(&ctx.task.credentials(), Access::READ)?;
    }
    let times = segment.times();
    let raw = RawSegment {
        perm: perm.to_raw(),
        size: segment.size(),
        attached: times.attached,
        detached: times.detached,
        changed: times.changed,
        creator: times.creator.seen_by(ctx.task),
        last: times.last.seen_by(ctx.task),
        attachments: segment.attachments(),
        unused: [0; 2],
    };
    ctx.task.mm().copy_out(addr, &raw)
}

fn highest(ipc: &Ipc) -> usize {
    usize::try_from(ipc.shm.usage().1).unwrap_or(0)
}

/// `IPC_INFO`: `struct shminfo64`.
fn info(ctx: &SyscallContext<'_>, ipc: &Ipc, addr: u64) -> SysResult<usize> {
    let most = shm::MAX_SEGMENTS as u64;
    ctx.task.mm().copy_out(addr, &[shm::MAX_SIZE, 1, most, most, shm::MAX_SIZE, 0, 0, 0, 0])?;
    Ok(highest(ipc))
}

/// `SHM_INFO`: `struct shm_info`.
fn usage(ctx: &SyscallContext<'_>, ipc: &Ipc, addr: u64) -> SysResult<usize> {
    let (asked, resident) = ipc.shm.total_pages();
    ctx.task.mm().copy_out(addr, &[ipc.shm.usage().0 as u64, asked, resident, 0, 0, 0])?;
    Ok(highest(ipc))
}
