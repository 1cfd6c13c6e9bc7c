//! `prctl`: settings of a task and its process that have no call of their own.

use std::sync::Arc;

use linux_raw_sys::prctl as linux;

use super::Args;
use crate::errno::{Errno, SysResult};
use crate::task::set_ids::capability;
use crate::task::{Capability, Credentials, Signal, SyscallContext};

/// Longest name with its NUL (`TASK_COMM_LEN`).
const COMM_LEN: usize = 16;

/// `prctl`
pub fn prctl(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    match args.uint(0) {
        linux::PR_SET_NAME => set_name(ctx, args.raw(1)),
        linux::PR_GET_NAME => get_name(ctx, args.raw(1)),
        linux::PR_SET_PDEATHSIG => set_parent_death_signal(ctx, args.raw(1)),
        linux::PR_GET_PDEATHSIG => {
            let signal = ctx.task.attributes().parent_death_signal.map_or(0, Signal::number);
            ctx.task.mm().copy_out(args.raw(1), &signal).map(|()| 0)
        }
        linux::PR_SET_CHILD_SUBREAPER => {
            ctx.task.thread_group().set_child_subreaper(args.raw(1) != 0);
            Ok(0)
        }
        linux::PR_GET_CHILD_SUBREAPER => {
            let set = i32::from(ctx.task.thread_group().is_child_subreaper());
            ctx.task.mm().copy_out(args.raw(1), &set).map(|()| 0)
        }
        linux::PR_SET_DUMPABLE => match args.raw(1) {
            value @ 0..=1 => {
                ctx.task.update_attributes(|attributes| attributes.dumpable = value != 0);
                Ok(0)
            }
            _ => Err(Errno::EINVAL),
        },
        linux::PR_GET_DUMPABLE => Ok(usize::from(ctx.task.attributes().dumpable)),
        linux::PR_SET_TIMERSLACK => {
            ctx.task.update_attributes(|attributes| {
                attributes.timer_slack =
                    if args.raw(1) == 0 { attributes.default_timer_slack } else { args.raw(1) };
            });
            Ok(0)
        }
        linux::PR_GET_TIMERSLACK => {
            usize::try_from(ctx.task.attributes().timer_slack).map_err(|_| Errno::EINVAL)
        }
        linux::PR_GET_TID_ADDRESS => {
            let address = ctx.local.clear_child_tid;
            ctx.task.mm().copy_out(args.raw(1), &address).map(|()| 0)
        }
        // Accepted: advice about transparent huge pages and hardware error handling has no effect here.
        linux::PR_SET_THP_DISABLE if args.raw(2) | args.raw(3) | args.raw(4) == 0 => Ok(0),
        linux::PR_GET_THP_DISABLE if args.raw(1) | args.raw(2) | args.raw(3) | args.raw(4) != 0 => {
            Err(Errno::EINVAL)
        }
        linux::PR_GET_THP_DISABLE | linux::PR_GET_SECCOMP | linux::PR_MCE_KILL_GET => Ok(0),
        linux::PR_GET_TSC => ctx.task.mm().copy_out(args.raw(1), &(linux::PR_TSC_ENABLE as i32)).map(|()| 0),
        linux::PR_SET_TSC if args.raw(1) == u64::from(linux::PR_TSC_ENABLE) => Ok(0),
        _ => credentials(ctx, args),
    }
}

/// The options that change or show credentials.
fn credentials(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let who = ctx.task.credentials();
    match args.uint(0) {
        linux::PR_SET_NO_NEW_PRIVS if args.raw(1) == 1 && args.raw(2) | args.raw(3) | args.raw(4) == 0 => {
            replace(ctx, Credentials { no_new_privs: true, ..(*who).clone() })
        }
        linux::PR_GET_NO_NEW_PRIVS if args.raw(1) | args.raw(2) | args.raw(3) | args.raw(4) == 0 => {
            Ok(usize::from(who.no_new_privs))
        }
        linux::PR_SET_KEEPCAPS if args.raw(1) <= 1 => {
            let keep = libc::SECBIT_KEEP_CAPS as u32;
            if who.securebits & libc::SECBIT_KEEP_CAPS_LOCKED as u32 != 0 {
                return Err(Errno::EPERM);
            }
            let securebits = if args.raw(1) == 1 { who.securebits | keep } else { who.securebits & !keep };
            replace(ctx, Credentials { securebits, ..(*who).clone() })
        }
        linux::PR_GET_KEEPCAPS => Ok(usize::from(who.securebits & libc::SECBIT_KEEP_CAPS as u32 != 0)),
        linux::PR_SET_SECUREBITS => replace(ctx, who.with_securebits(args.uint(1))?),
        linux::PR_GET_SECUREBITS => Ok(who.securebits as usize),
        linux::PR_CAPBSET_READ => Ok(usize::from(who.bounding.contains(capability(args.raw(1))?))),
        linux::PR_CAPBSET_DROP => replace(ctx, who.without_bounding(capability(args.raw(1))?)?),
        linux::PR_CAP_AMBIENT => ambient(ctx, args, &who),
        _ => Err(Errno::EINVAL),
    }
}

fn replace(ctx: &SyscallContext<'_>, new: Credentials) -> SysResult<usize> {
    ctx.task.set_credentials(Arc::new(new));
    Ok(0)
}

fn ambient(ctx: &SyscallContext<'_>, args: &Args, who: &Credentials) -> SysResult<usize> {
    match args.uint(1) {
        linux::PR_CAP_AMBIENT_CLEAR_ALL if args.raw(2) | args.raw(3) | args.raw(4) == 0 => {
            replace(ctx, Credentials { ambient: Capability::empty(), ..who.clone() })
        }
        linux::PR_CAP_AMBIENT_IS_SET => Ok(usize::from(who.ambient.contains(capability(args.raw(2))?))),
        linux::PR_CAP_AMBIENT_RAISE => replace(ctx, who.with_ambient(capability(args.raw(2))?)?),
        linux::PR_CAP_AMBIENT_LOWER => {
            let ambient = who.ambient - capability(args.raw(2))?;
            replace(ctx, Credentials { ambient, ..who.clone() })
        }
        _ => Err(Errno::EINVAL),
    }
}

fn set_name(ctx: &SyscallContext<'_>, address: u64) -> SysResult<usize> {
    let name = match ctx.task.mm().read_c_string(address, COMM_LEN) {
        Err(Errno::ENAMETOOLONG) => {
            let mut cut = [0; COMM_LEN - 1];
            ctx.task.mm().read_bytes(address, &mut cut)?;
            cut.to_vec()
        }
        other => other?,
    };
    ctx.task.set_comm(&name);
    Ok(0)
}

fn get_name(ctx: &SyscallContext<'_>, address: u64) -> SysResult<usize> {
    let mut name = ctx.task.comm();
    name.resize(COMM_LEN, 0);
    ctx.task.mm().write_bytes(address, &name)?;
    Ok(0)
}

fn set_parent_death_signal(ctx: &SyscallContext<'_>, number: u64) -> SysResult<usize> {
    let signal = Signal::or_none(i32::try_from(number).map_err(|_| Errno::EINVAL)?)?;
    ctx.task.update_attributes(|attributes| attributes.parent_death_signal = signal);
    Ok(0)
}
