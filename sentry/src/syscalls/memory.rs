//! Address spaces: mmap and its like, advice, locking, other processes' memory.

use std::sync::Arc;

use linux_raw_sys::general as linux;

use super::Args;
use crate::errno::{Errno, SysResult};
use crate::io::{IoDst, IoSrc};
use crate::mm::{
    Advice, Invalidate, LockMode, MapBacking, MapFlags, MapRequest, MemoryLimits, Mm, Prot, RemapFlags,
    UNLIMITED, UserIo, WriteBack,
};
use crate::platform::PAGE_SIZE;
use crate::task::{Capability, Resource, SyscallContext, Task};
use crate::vfs::mount::MountFlags;
use crate::vfs::{File, OpenFlags};

/// The limits a task's memory calls obey now.
pub fn memory_limits(task: &Task) -> MemoryLimits {
    let limits = task.thread_group().rlimits();
    let soft = |resource| limits.get(resource).soft;
    let unlocked = task.credentials().has(Capability::IPC_LOCK);
    MemoryLimits {
        address_space: soft(Resource::As),
        data: soft(Resource::Data),
        stack: soft(Resource::Stack),
        locked: if unlocked { UNLIMITED } else { soft(Resource::Memlock) },
    }
}

/// The caller's memory, with its limits as they are now.
fn limited_mm(ctx: &SyscallContext<'_>) -> Arc<Mm> {
    let mm = ctx.task.mm();
    mm.set_limits(memory_limits(ctx.task));
    mm
}

fn result(addr: u64) -> SysResult<usize> {
    usize::try_from(addr).map_err(|_| Errno::EOVERFLOW)
}

/// `mmap`
pub fn mmap(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let (addr, len, offset) = (args.raw(0), args.raw(1), args.raw(5));
    let raw = args.uint(3);
    let prot = Prot::from_bits_truncate(args.uint(2));
    if !offset.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    let anonymous = raw & linux::MAP_ANONYMOUS != 0;
    let file = if anonymous { None } else { Some(ctx.task.file(args.raw(4))?) };
    let kind = raw & linux::MAP_TYPE;
    let shared = match kind {
        linux::MAP_PRIVATE => false,
        linux::MAP_SHARED => true,
        linux::MAP_SHARED_VALIDATE if anonymous => return Err(Errno::EINVAL),
        linux::MAP_SHARED_VALIDATE if raw & !KNOWN_FLAGS != 0 => return Err(Errno::EOPNOTSUPP),
        linux::MAP_SHARED_VALIDATE => true,
        _ => return Err(Errno::EINVAL),
    };
    if raw & linux::MAP_HUGETLB != 0 {
        // No pages are reserved for hugetlbfs.
        return Err(if anonymous { Errno::ENOMEM } else { Errno::EINVAL });
    }
    if len == 0 {
        return Err(Errno::EINVAL);
    }
    let mut flags = MapFlags::from_bits_truncate(raw) - MapFlags::SHARED;
    flags.set(MapFlags::SHARED, shared);
    if shared && flags.contains(MapFlags::GROWSDOWN) {
        return Err(Errno::EINVAL);
    }
    let mm = limited_mm(ctx);
    if flags.contains(MapFlags::LOCKED) && mm.limits().locked == 0 {
        return Err(Errno::EPERM);
    }
    let backing = file.map(|file| backing(file, offset, len, prot, shared)).transpose()?;
    result(mm.mmap(MapRequest { addr, len, prot, flags, backing })?)
}

/// What `mmap` shows of a file, if it may.
fn backing(file: Arc<File>, offset: u64, len: u64, prot: Prot, shared: bool) -> SysResult<MapBacking> {
    let open = file.flags();
    if open.contains(OpenFlags::PATH) {
        return Err(Errno::EBADF);
    }
    // The largest file there can be.
    if offset.checked_add(len).is_none_or(|end| i64::try_from(end).is_err()) {
        return Err(Errno::EOVERFLOW);
    }
    if !open.readable() || (shared && prot.contains(Prot::WRITE) && !open.writable()) {
        return Err(Errno::EACCES);
    }
    let noexec = file.path().is_some_and(|path| path.mount().flags().contains(MountFlags::NOEXEC));
    if noexec && prot.contains(Prot::EXEC) {
        return Err(Errno::EPERM);
    }
    let object = file.ops().mappable(&file)?;
    let sealed = shared && !object.may_be_written();
    if sealed && prot.contains(Prot::WRITE) {
        return Err(Errno::EPERM);
    }
    let mut max_prot = Prot::all();
    max_prot.set(Prot::WRITE, !shared || (open.writable() && !sealed));
    max_prot.set(Prot::EXEC, !noexec);
    Ok(MapBacking { object, offset, file: Some(file), max_prot })
}

/// What `MAP_SHARED_VALIDATE` accepts besides the type.
const KNOWN_FLAGS: u32 = linux::MAP_TYPE
    | linux::MAP_FIXED
    | linux::MAP_FIXED_NOREPLACE
    | linux::MAP_GROWSDOWN
    | linux::MAP_DENYWRITE
    | linux::MAP_EXECUTABLE
    | linux::MAP_LOCKED
    | linux::MAP_NORESERVE
    | linux::MAP_POPULATE
    | linux::MAP_NONBLOCK
    | linux::MAP_STACK
    | linux::MAP_32BIT
    | linux::MAP_UNINITIALIZED;

/// `munmap`
pub fn munmap(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    ctx.task.mm().munmap(args.raw(0), args.raw(1))?;
    Ok(0)
}

/// `mprotect`
pub fn mprotect(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let (mut addr, mut len) = (args.raw(0), args.raw(1));
    let raw = args.uint(2);
    let grows = linux::PROT_GROWSDOWN | linux::PROT_GROWSUP;
    let prot = Prot::from_bits_truncate(raw);
    if raw & grows == grows || raw & !(grows | linux::PROT_SEM | Prot::all().bits()) != 0 {
        return Err(Errno::EINVAL);
    }
    let mm = limited_mm(ctx);
    if raw & linux::PROT_GROWSUP != 0 {
        return Err(Errno::EINVAL); // no stack grows up on x86
    }
    if raw & linux::PROT_GROWSDOWN != 0 && len > 0 && addr.is_multiple_of(PAGE_SIZE) {
        let start = mm.growsdown_start(addr)?;
        len = len.saturating_add(addr.saturating_sub(start));
        addr = addr.min(start);
    }
    mm.mprotect(addr, len, prot)?;
    Ok(0)
}

/// `mremap`
pub fn mremap(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let flags = RemapFlags::from_bits(args.uint(3)).ok_or(Errno::EINVAL)?;
    let mm = limited_mm(ctx);
    result(mm.mremap(args.raw(0), args.raw(1), args.raw(2), flags, args.raw(4))?)
}

/// `brk`
pub fn brk(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    result(limited_mm(ctx).brk(args.raw(0)))
}

/// `madvise`
pub fn madvise(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let advice = Advice::from_raw(args.uint(2))?;
    ctx.task.mm().madvise(args.raw(0), args.raw(1), advice)?;
    Ok(0)
}

/// `mincore`
pub fn mincore(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    /// Pages asked about at once, so that the answer never gets large.
    const STEP: u64 = 4096;
    let (addr, mut out) = (args.raw(0), args.raw(2));
    let mm = ctx.task.mm();
    let end = addr.checked_add(args.raw(1)).ok_or(Errno::ENOMEM)?;
    if !addr.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    let mut at = addr;
    while at < end {
        let len = (end - at).min(STEP * PAGE_SIZE);
        let answer = mm.mincore(at, len)?;
        mm.write_bytes(out, &answer)?;
        out = out.saturating_add(answer.len() as u64);
        at = at.saturating_add(len);
    }
    Ok(0)
}

/// `msync`
pub fn msync(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let flags = args.uint(2);
    let both = linux::MS_ASYNC | linux::MS_SYNC;
    if flags & !(both | linux::MS_INVALIDATE) != 0 || flags & both == both {
        return Err(Errno::EINVAL);
    }
    let write_back = if flags & linux::MS_SYNC != 0 { WriteBack::Sync } else { WriteBack::None };
    let invalidate = if flags & linux::MS_INVALIDATE != 0 { Invalidate::Yes } else { Invalidate::No };
    ctx.task.mm().msync(args.raw(0), args.raw(1), write_back, invalidate)?;
    Ok(0)
}

/// `mlock`
pub fn mlock(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    limited_mm(ctx).mlock(args.raw(0), args.raw(1), LockMode::Now)?;
    Ok(0)
}

/// `mlock2`
pub fn mlock2(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let mode = match args.uint(2) {
        0 => LockMode::Now,
        linux::MLOCK_ONFAULT => LockMode::OnFault,
        _ => return Err(Errno::EINVAL),
    };
    limited_mm(ctx).mlock(args.raw(0), args.raw(1), mode)?;
    Ok(0)
}

/// `munlock`
pub fn munlock(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    ctx.task.mm().munlock(args.raw(0), args.raw(1))?;
    Ok(0)
}

/// `mlockall`
pub fn mlockall(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let flags = args.uint(0);
    let (current, future) = (flags & linux::MCL_CURRENT != 0, flags & linux::MCL_FUTURE != 0);
    let known = linux::MCL_CURRENT | linux::MCL_FUTURE | linux::MCL_ONFAULT;
    if flags & !known != 0 || !(current || future) {
        return Err(Errno::EINVAL);
    }
    let mode = if flags & linux::MCL_ONFAULT != 0 { LockMode::OnFault } else { LockMode::Now };
    limited_mm(ctx).mlockall(current.then_some(mode), future.then_some(mode))?;
    Ok(0)
}

/// `munlockall`
pub fn munlockall(ctx: &mut SyscallContext<'_>, _args: &Args) -> SysResult<usize> {
    ctx.task.mm().munlockall();
    Ok(0)
}

/// `mseal`
pub fn mseal(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    if args.raw(2) != 0 {
        return Err(Errno::EINVAL);
    }
    ctx.task.mm().mseal(args.raw(0), args.raw(1))?;
    Ok(0)
}

/// `pkey_mprotect`: without protection keys, only key -1 exists.
pub fn pkey_mprotect(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    if args.int(3) != -1 {
        return Err(Errno::EINVAL);
    }
    mprotect(ctx, args)
}

/// `pkey_alloc`: the CPU has no protection keys.
pub fn pkey_alloc(_ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let rights = linux::PKEY_DISABLE_ACCESS | linux::PKEY_DISABLE_WRITE;
    if args.raw(0) != 0 || args.raw(1) & !u64::from(rights) != 0 {
        return Err(Errno::EINVAL);
    }
    Err(Errno::ENOSPC)
}

/// `pkey_free`
pub fn pkey_free(_ctx: &mut SyscallContext<'_>, _args: &Args) -> SysResult<usize> {
    Err(Errno::EINVAL)
}

/// `membarrier`
pub fn membarrier(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    use linux::membarrier_cmd as cmd;
    const PRIVATE: u32 = cmd::MEMBARRIER_CMD_PRIVATE_EXPEDITED as u32;
    const REGISTER: u32 = cmd::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED as u32;
    const SYNC_CORE: u32 = cmd::MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE as u32;
    const REGISTER_SYNC_CORE: u32 = cmd::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE as u32;
    const RSEQ: u32 = cmd::MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ as u32;
    const REGISTER_RSEQ: u32 = cmd::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ as u32;
    const KNOWN: u32 = PRIVATE | REGISTER | SYNC_CORE | REGISTER_SYNC_CORE | RSEQ | REGISTER_RSEQ;
    const FLAG_CPU: u32 = linux::membarrier_cmd_flag::MEMBARRIER_CMD_FLAG_CPU as u32;
    // One processor of all may be meant; all of them are within that.
    if args.uint(1) != 0 && (args.uint(0), args.uint(1)) != (RSEQ, FLAG_CPU) {
        return Err(Errno::EINVAL);
    }
    let mm = ctx.task.mm();
    match args.uint(0) {
        0 => return result(u64::from(KNOWN)),
        command @ (REGISTER | REGISTER_SYNC_CORE | REGISTER_RSEQ) => mm.register_barrier(command),
        PRIVATE if mm.barrier_registered(REGISTER) => mm.barrier()?,
        SYNC_CORE if mm.barrier_registered(REGISTER_SYNC_CORE) => mm.barrier()?,
        RSEQ if mm.barrier_registered(REGISTER_RSEQ) => restart_sequences(ctx)?,
        PRIVATE | SYNC_CORE | RSEQ => return Err(Errno::EPERM),
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

/// No thread of the process is left in a restartable sequence that it began before: whoever is in one finds a kick waiting when
/// the barrier lets it go on, and restarts it.
fn restart_sequences(ctx: &SyscallContext<'_>) -> SysResult {
    for other in ctx.task.thread_group().members() {
        if !Arc::ptr_eq(&other, ctx.task) {
            other.disturb();
        }
    }
    ctx.task.mm().barrier()
}

/// Whether `ptrace` would let the caller look into a thread; `EPERM` if not.
pub(super) fn may_read(ctx: &SyscallContext<'_>, target: &Task) -> SysResult {
    if Arc::ptr_eq(target.thread_group(), ctx.task.thread_group()) {
        return Ok(());
    }
    let (who, whose) = (ctx.task.credentials(), target.credentials());
    let same = [whose.euid, whose.suid, whose.uid].iter().all(|uid| *uid == who.uid)
        && [whose.egid, whose.sgid, whose.gid].iter().all(|gid| *gid == who.gid)
        && who.permitted.contains(whose.permitted);
    if same || who.has(Capability::SYS_PTRACE) { Ok(()) } else { Err(Errno::EPERM) }
}

/// The memory of another process, as `ptrace` would let the caller have it. `ESRCH`, `EPERM`.
fn remote_mm(ctx: &SyscallContext<'_>, pid: i32) -> SysResult<Arc<Mm>> {
    let namespace = ctx.task.pid_namespace().ok_or(Errno::ESRCH)?;
    let target = namespace.task(pid).ok_or(Errno::ESRCH)?;
    may_read(ctx, &target)?;
    Ok(target.mm())
}

/// Moves bytes until either side is done or faults; an error counts only before the first byte.
fn transfer(from: &mut UserIo<'_>, to: &mut UserIo<'_>) -> SysResult<usize> {
    const CHUNK: usize = 64 << 10;
    let mut buf = vec![0; CHUNK.min(IoSrc::remaining(from))];
    let mut done: usize = 0;
    loop {
        let want = buf.len().min(IoDst::remaining(to));
        if want == 0 {
            return Ok(done);
        }
        let moved = from
            .take(buf.get_mut(..want).unwrap_or_default())
            .and_then(|got| Ok((got, to.put(buf.get(..got).unwrap_or_default())?)));
        match moved {
            Ok((got, put)) => {
                done = done.saturating_add(put);
                if got < want || put < got || got == 0 {
                    return Ok(done);
                }
            }
            Err(_) if done > 0 => return Ok(done),
            Err(errno) => return Err(errno),
        }
    }
}

/// `process_vm_readv`
pub fn process_vm_readv(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let (mut local, whose) = vm_sides(ctx, args)?;
    transfer(&mut remote_vector(ctx, &whose, args)?, &mut local)
}

/// `process_vm_writev`
pub fn process_vm_writev(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let (mut local, whose) = vm_sides(ctx, args)?;
    transfer(&mut local, &mut remote_vector(ctx, &whose, args)?)
}

/// The caller's side of a transfer, and whose memory the other is.
fn vm_sides<'a>(ctx: &SyscallContext<'a>, args: &Args) -> SysResult<(UserIo<'a>, Arc<Mm>)> {
    if args.raw(5) != 0 {
        return Err(Errno::EINVAL);
    }
    let local = UserIo::vector(&ctx.own.mm, args.raw(1), args.raw(2))?;
    Ok((local, remote_mm(ctx, args.int(0))?))
}

/// The remote side of a transfer: any addresses, checked when they are used.
fn remote_vector<'m>(ctx: &SyscallContext<'_>, remote: &'m Mm, args: &Args) -> SysResult<UserIo<'m>> {
    Ok(UserIo::vector(&ctx.own.mm, args.raw(3), args.raw(4))?.of_other(remote))
}
