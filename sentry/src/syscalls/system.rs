//! The machine and its limits: names, memory, resource limits and usage, randomness.

use std::sync::Arc;

use linux_raw_sys::general as linux;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Args;
use crate::errno::{Errno, SysResult};
use crate::kernel::system_info::{RELEASE, VERSION};
use crate::mm::UserIo;
use crate::task::namespaces::UtsNames;
use crate::task::{Capability, Resource, Rlimit, SyscallContext, ThreadGroup};

/// Length of each `utsname` field with its NUL (`__NEW_UTS_LEN` + 1).
pub(crate) const UTS_FIELD: usize = 65;

/// `uname`
pub fn uname(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let names = ctx.task.namespaces().uts.names();
    let fields: [&[u8]; 6] =
        [b"Linux", &names.host, RELEASE.as_bytes(), VERSION.as_bytes(), b"x86_64", &names.domain];
    let mut text = Vec::with_capacity(UTS_FIELD * 6);
    for field in fields {
        let start = text.len();
        text.extend_from_slice(field.get(..UTS_FIELD - 1).unwrap_or(field));
        text.resize(start + UTS_FIELD, 0);
    }
    ctx.task.mm().write_bytes(args.raw(0), &text)?;
    Ok(0)
}

fn set_uts(
    ctx: &SyscallContext<'_>,
    args: &Args,
    change: impl FnOnce(&mut UtsNames, Vec<u8>),
) -> SysResult<usize> {
    if !ctx.task.credentials().has(Capability::SYS_ADMIN) {
        return Err(Errno::EPERM);
    }
    let len = usize::try_from(args.int(1)).map_err(|_| Errno::EINVAL)?;
    if len >= UTS_FIELD {
        return Err(Errno::EINVAL);
    }
    let mut name = vec![0; len];
    ctx.task.mm().read_bytes(args.raw(0), &mut name)?;
    ctx.task.namespaces().uts.update(|names| change(names, name));
    Ok(0)
}

/// `sethostname`
pub fn sethostname(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    set_uts(ctx, args, |names, name| names.host = name)
}

/// `setdomainname`
pub fn setdomainname(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    set_uts(ctx, args, |names, name| names.domain = name)
}

/// `struct sysinfo`
#[derive(Clone, Copy, Default, IntoBytes, Immutable)]
#[repr(C)]
struct SysInfo {
    uptime: i64,
    loads: [u64; 3],
    total_ram: u64,
    free_ram: u64,
    shared_ram: u64,
    buffer_ram: u64,
    total_swap: u64,
    free_swap: u64,
    procs: u16,
    pad: [u8; 6],
    total_high: u64,
    free_high: u64,
    mem_unit: u32,
    tail: u32,
}

/// `sysinfo`
pub fn sysinfo(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let kernel = ctx.kernel();
    let info = kernel.system_info();
    let (_, tasks, _) = kernel.task_counts();
    let value = SysInfo {
        // A second that has begun counts.
        uptime: i64::try_from(info.booted.elapsed().as_nanos().div_ceil(1_000_000_000)).unwrap_or(i64::MAX),
        total_ram: info.memory_total,
        free_ram: info.memory_total.saturating_sub(kernel.memory_used()),
        procs: u16::try_from(tasks).unwrap_or(u16::MAX),
        mem_unit: 1,
        ..SysInfo::default()
    };
    ctx.task.mm().copy_out(args.raw(0), &value)?;
    Ok(0)
}

/// `struct rlimit`
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawLimit {
    soft: u64,
    hard: u64,
}

impl From<Rlimit> for RawLimit {
    fn from(limit: Rlimit) -> Self {
        RawLimit { soft: limit.soft, hard: limit.hard }
    }
}

/// `getrlimit`
pub fn getrlimit(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let limit: RawLimit = ctx.task.rlimit(Resource::new(args.uint(0))?).into();
    ctx.task.mm().copy_out(args.raw(1), &limit)?;
    Ok(0)
}

/// `setrlimit`
pub fn setrlimit(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let resource = Resource::new(args.uint(0))?;
    let new: RawLimit = ctx.task.mm().copy_in(args.raw(1))?;
    set_limit(ctx, ctx.task.thread_group(), resource, new)?;
    Ok(0)
}

fn set_limit(
    ctx: &SyscallContext<'_>,
    group: &Arc<ThreadGroup>,
    resource: Resource,
    new: RawLimit,
) -> SysResult<Rlimit> {
    /// `fs.nr_open`
    const NR_OPEN: u64 = 1 << 20;
    if resource == Resource::Nofile && new.hard > NR_OPEN {
        return Err(Errno::EPERM);
    }
    let new = Rlimit { soft: new.soft, hard: new.hard };
    let old = group.set_rlimit(resource, new, &ctx.task.credentials())?;
    if resource == Resource::Cpu {
        group.timers().watch_cpu_limit(group);
    }
    // A growing stack asks the address space.
    if let Some(task) = group.members().first() {
        task.mm().set_limits(super::memory::memory_limits(task));
    }
    Ok(old)
}

/// `prlimit64`
pub fn prlimit64(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let resource = Resource::new(args.uint(1))?;
    let new = match args.raw(2) {
        0 => None,
        address => Some(ctx.task.mm().copy_in::<RawLimit>(address)?),
    };
    let group = match args.int(0) {
        0 => ctx.task.thread_group().clone(),
        pid => {
            let namespace = ctx.task.pid_namespace().ok_or(Errno::ESRCH)?;
            let task = namespace.task(pid).ok_or(Errno::ESRCH)?;
            let (who, whom) = (ctx.task.credentials(), task.credentials());
            let other_user = [whom.euid, whom.suid, whom.uid].iter().any(|&uid| uid != who.uid);
            let other_group = [whom.egid, whom.sgid, whom.gid].iter().any(|&gid| gid != who.gid);
            if (other_user || other_group) && !who.has(Capability::SYS_RESOURCE) {
                return Err(Errno::EPERM);
            }
            task.thread_group().clone()
        }
    };
    let old = match new {
        Some(new) => set_limit(ctx, &group, resource, new)?,
        None => group.rlimit(resource),
    };
    if args.raw(3) != 0 {
        ctx.task.mm().copy_out(args.raw(3), &RawLimit::from(old))?;
    }
    Ok(0)
}

/// `getrusage`
pub fn getrusage(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let group = ctx.task.thread_group();
    let usage = match args.int(0) {
        who if who == linux::RUSAGE_SELF as i32 => group.usage(),
        linux::RUSAGE_CHILDREN => group.children_usage(),
        who if who == linux::RUSAGE_THREAD as i32 => ctx.task.usage(),
        _ => return Err(Errno::EINVAL),
    };
    ctx.task.mm().copy_out(args.raw(1), &usage.to_raw())?;
    Ok(0)
}

/// `getrandom`
pub fn getrandom(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    const KNOWN: u32 = linux::GRND_NONBLOCK | linux::GRND_RANDOM | linux::GRND_INSECURE;
    let flags = args.uint(2);
    let both = linux::GRND_RANDOM | linux::GRND_INSECURE;
    if flags & !KNOWN != 0 || flags & both == both {
        return Err(Errno::EINVAL);
    }
    let mut dst = UserIo::buffer(&ctx.own.mm, args.raw(0), args.raw(1))?;
    crate::fs::random::fill(&mut dst)
}

/// `personality`
pub fn personality(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let old = ctx.task.attributes().personality;
    if args.uint(0) != u32::MAX {
        ctx.task.update_attributes(|attributes| attributes.personality = args.uint(0));
    }
    Ok(old as usize)
}

/// `syslog`: an empty log.
pub fn syslog(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    const READ_ALL: i32 = 3;
    const SIZE_BUFFER: i32 = 10;
    match args.int(0) {
        READ_ALL if args.raw(1) == 0 || args.int(2) < 0 => Err(Errno::EINVAL),
        READ_ALL => Ok(0),
        SIZE_BUFFER => Ok(1 << 17),
        0..=9 if ctx.task.credentials().has(Capability::SYSLOG) => Ok(0),
        0..=9 => Err(Errno::EPERM),
        _ => Err(Errno::EINVAL),
    }
}

/// `getcpu`
pub fn getcpu(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let mm = ctx.task.mm();
    const NODE: u32 = 0;
    for (address, value) in [(args.raw(0), ctx.task.cpu()), (args.raw(1), NODE)] {
        if address != 0 {
            mm.copy_out(address, &value)?;
        }
    }
    Ok(0)
}
