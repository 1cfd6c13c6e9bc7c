//! Who a task is: user and group ids, capabilities.

use std::sync::Arc;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Args;
use crate::errno::{Errno, SysResult};
use crate::task::set_ids::{CAPABILITY_VERSIONS, Ids};
use crate::task::{Capability, Credentials, SyscallContext};

/// Linux's `NGROUPS_MAX`.
const MAX_GROUPS: usize = 65536;

fn apply(ctx: &SyscallContext<'_>, new: SysResult<Credentials>) -> SysResult<usize> {
    ctx.task.set_credentials(Arc::new(new?));
    Ok(0)
}

macro_rules! getters {
    ($($name:ident => $field:ident;)*) => {
        $(
            #[doc = concat!("`", stringify!($name), "`")]
            pub fn $name(ctx: &mut SyscallContext<'_>, _args: &Args) -> SysResult<usize> {
                Ok(ctx.task.credentials().$field as usize)
            }
        )*
    };
}

getters! {
    getuid => uid;
    geteuid => euid;
    getgid => gid;
    getegid => egid;
}

/// `setuid`
pub fn setuid(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    apply(ctx, ctx.task.credentials().with_uid(args.uint(0)))
}

/// `setgid`
pub fn setgid(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    apply(ctx, ctx.task.credentials().with_gid(args.uint(0)))
}

/// `setreuid`
pub fn setreuid(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    apply(ctx, ctx.task.credentials().with_reuid(args.uint(0), args.uint(1)))
}

/// `setregid`
pub fn setregid(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    apply(ctx, ctx.task.credentials().with_regid(args.uint(0), args.uint(1)))
}

fn ids(args: &Args) -> Ids {
    Ids { real: args.uint(0), effective: args.uint(1), saved: args.uint(2) }
}

/// `setresuid`
pub fn setresuid(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    apply(ctx, ctx.task.credentials().with_resuid(ids(args)))
}

/// `setresgid`
pub fn setresgid(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    apply(ctx, ctx.task.credentials().with_resgid(ids(args)))
}

fn put_triple(ctx: &SyscallContext<'_>, args: &Args, values: [u32; 3]) -> SysResult<usize> {
    let mm = ctx.task.mm();
    for (n, value) in values.iter().enumerate() {
        mm.copy_out(args.raw(n), value)?;
    }
    Ok(0)
}

/// `getresuid`
pub fn getresuid(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let who = ctx.task.credentials();
    put_triple(ctx, args, [who.uid, who.euid, who.suid])
}

/// `getresgid`
pub fn getresgid(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let who = ctx.task.credentials();
    put_triple(ctx, args, [who.gid, who.egid, who.sgid])
}

/// `setfsuid`: returns the former id, whether or not it changed.
pub fn setfsuid(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let old = ctx.task.credentials();
    ctx.task.set_credentials(Arc::new(old.with_fsuid(args.uint(0))));
    Ok(old.fsuid as usize)
}

/// `setfsgid`
pub fn setfsgid(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let old = ctx.task.credentials();
    ctx.task.set_credentials(Arc::new(old.with_fsgid(args.uint(0))));
    Ok(old.fsgid as usize)
}

/// `getgroups`
pub fn getgroups(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let room = usize::try_from(args.int(0)).map_err(|_| Errno::EINVAL)?;
    let who = ctx.task.credentials();
    if room != 0 {
        if room < who.groups.len() {
            return Err(Errno::EINVAL);
        }
        ctx.task.mm().write_bytes(args.raw(1), who.groups.as_bytes())?;
    }
    Ok(who.groups.len())
}

/// `setgroups`
pub fn setgroups(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let who = ctx.task.credentials();
    if !who.has(Capability::SETGID) {
        return Err(Errno::EPERM);
    }
    let count = usize::try_from(args.int(0)).map_err(|_| Errno::EINVAL)?;
    if count > MAX_GROUPS {
        return Err(Errno::EINVAL);
    }
    let mut groups = vec![0u32; count];
    ctx.task.mm().read_bytes(args.raw(1), groups.as_mut_bytes())?;
    groups.sort_unstable();
    apply(ctx, Ok(Credentials { groups, ..(*who).clone() }))
}

/// `struct __user_cap_header_struct`
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// How many data structs go with the header's version. An unknown version is answered with the one we prefer.
fn cap_words(ctx: &SyscallContext<'_>, address: u64) -> SysResult<(CapHeader, usize)> {
    let mm = ctx.task.mm();
    let header: CapHeader = mm.copy_in(address)?;
    match CAPABILITY_VERSIONS.iter().find(|(version, _)| *version == header.version) {
        Some(&(_, words)) => Ok((header, words)),
        None => {
            mm.copy_out(address, &linux_raw_sys::general::_LINUX_CAPABILITY_VERSION_3)?;
            Err(Errno::EINVAL)
        }
    }
}

/// `capget`
pub fn capget(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let (header, words) = match cap_words(ctx, args.raw(0)) {
        // A probe for the version: no data asked for.
        Err(Errno::EINVAL) if args.raw(1) == 0 => return Ok(0),
        other => other?,
    };
    if header.pid < 0 {
        return Err(Errno::EINVAL);
    }
    let who = if header.pid == 0 || header.pid == ctx.task.tid() {
        ctx.task.credentials()
    } else {
        let namespace = ctx.task.pid_namespace().ok_or(Errno::ESRCH)?;
        namespace.task(header.pid).ok_or(Errno::ESRCH)?.credentials()
    };
    if args.raw(1) == 0 {
        return Ok(0);
    }
    let half = |set: Capability, n: usize| (set.bits() >> (32 * n)) as u32;
    let data = [0, 1].map(|n| CapData {
        effective: half(who.effective, n),
        permitted: half(who.permitted, n),
        inheritable: half(who.inheritable, n),
    });
    ctx.task.mm().write_bytes(args.raw(1), data.get(..words).unwrap_or_default().as_bytes())?;
    Ok(0)
}

/// `capset`
pub fn capset(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let (header, words) = cap_words(ctx, args.raw(0))?;
    if header.pid != 0 && header.pid != ctx.task.tid() {
        return Err(Errno::EPERM);
    }
    let mut data = [CapData::default(); 2];
    ctx.task.mm().read_bytes(args.raw(1), data.get_mut(..words).unwrap_or_default().as_mut_bytes())?;
    let [low, high] = data;
    let join = |low: u32, high: u32| Capability::from_bits_truncate(u64::from(low) | u64::from(high) << 32);
    apply(
        ctx,
        ctx.task.credentials().with_capabilities(
            join(low.effective, high.effective),
            join(low.permitted, high.permitted),
            join(low.inheritable, high.inheritable),
        ),
    )
}
