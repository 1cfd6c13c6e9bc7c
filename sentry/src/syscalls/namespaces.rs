//! `unshare` and `setns`.
//!
//! Not there yet: more than one user namespace; cgroup and time namespaces.

use std::sync::Arc;

use super::Args;
use crate::errno::{Errno, SysResult};
use crate::fs::nsfs::{Namespace, OpenNamespace};
use crate::task::clone::{self, CloneFlags};
use crate::task::pidfd::PidFd;
use crate::task::{Capability, SyscallContext};

/// `unshare(2)`
pub fn unshare(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    use CloneFlags as F;
    let flags = F::from_bits(args.raw(0)).ok_or(Errno::EINVAL)?;
    let known = F::THREAD
        | F::FS
        | F::NEWNS
        | F::SIGHAND
        | F::VM
        | F::FILES
        | F::SYSVSEM
        | F::NEWUTS
        | F::NEWIPC
        | F::NEWNET
        | F::NEWPID;
    if !known.contains(flags) {
        return Err(Errno::EINVAL);
    }
    if flags.intersects(F::THREAD | F::SIGHAND | F::VM) && ctx.task.thread_group().thread_count() > 1 {
        return Err(Errno::EINVAL);
    }
    if flags.intersects(F::NEW_NAMESPACES) && !ctx.task.credentials().has(crate::task::Capability::SYS_ADMIN)
    {
        return Err(Errno::EPERM);
    }
    // What is not mentioned stays shared.
    let keep_fs = if flags.intersects(F::FS | F::NEWNS) { F::empty() } else { F::FS };
    let (mut namespaces, fs) = clone::child_namespaces(ctx.task, (flags & F::NEW_NAMESPACES) | keep_fs)?;
    if flags.contains(F::NEWPID) {
        namespaces.pid_for_children = crate::task::PidNamespace::new(Some(&namespaces.pid_for_children))?;
    }
    if flags.intersects(F::SYSVSEM | F::NEWIPC) {
        drop(ctx.local.sem_undo.take());
    }
    if flags.contains(F::FILES) {
        let copy = ctx.task.files().fork();
        ctx.task.set_files(Arc::new(copy));
    }
    ctx.task.set_fs(fs);
    ctx.task.set_namespaces(Arc::new(namespaces));
    Ok(0)
}

/// `setns(int fd, int nstype)`
pub fn setns(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let (file, kinds) = (ctx.task.file(args.raw(0))?, args.uint(1));
    let wanted = if let Some(open) = file.ops_as::<OpenNamespace>() {
        let namespace = open.namespace();
        if kinds != 0 && kinds != namespace.clone_flag() {
            return Err(Errno::EINVAL);
        }
        vec![namespace.clone()]
    } else if let Some(process) = file.ops_as::<PidFd>() {
        of_process(ctx, process, kinds)?
    } else {
        return Err(Errno::EINVAL);
    };
    enter(ctx, &wanted)?;
    Ok(0)
}

/// The namespaces of these `kinds` that a process is in.
fn of_process(ctx: &SyscallContext<'_>, process: &PidFd, kinds: u32) -> SysResult<Vec<Namespace>> {
    let kinds = CloneFlags::from_bits(u64::from(kinds)).ok_or(Errno::EINVAL)?;
    if kinds.is_empty() || !CloneFlags::NEW_NAMESPACES.contains(kinds) {
        return Err(Errno::EINVAL);
    }
    let target = process.thread_group().leader().filter(|task| !task.is_exiting()).ok_or(Errno::ESRCH)?;
    if !super::process::may_trace(ctx.task, &target) {
        return Err(Errno::EPERM);
    }
    let theirs = target.namespaces();
    let all = [
        Namespace::User(theirs.user.clone()),
        Namespace::Mount(theirs.mount.clone()),
        Namespace::Uts(theirs.uts.clone()),
        Namespace::Ipc(theirs.ipc.clone()),
        Namespace::Pid(target.pid_namespace().ok_or(Errno::ESRCH)?),
        Namespace::Net(theirs.net.clone()),
    ];
    let asked = |namespace: &Namespace| kinds.bits() & u64::from(namespace.clone_flag()) != 0;
    Ok(all.into_iter().filter(asked).collect())
}

/// Moves the caller into all of `wanted`, or into none.
fn enter(ctx: &mut SyscallContext<'_>, wanted: &[Namespace]) -> SysResult {
    let credentials = ctx.task.credentials();
    let mut namespaces = crate::task::Namespaces::clone(&ctx.task.namespaces());
    let mut root = None;
    for namespace in wanted {
        // There is one user namespace, and nobody may enter his own.
        if matches!(namespace, Namespace::User(_)) {
            return Err(Errno::EINVAL);
        }
        if !credentials.has(Capability::SYS_ADMIN) {
            return Err(Errno::EPERM);
        }
        match namespace.clone() {
            Namespace::Ipc(ipc) => namespaces.ipc = ipc,
            Namespace::Net(net) => namespaces.net = net,
            Namespace::Uts(uts) => namespaces.uts = uts,
            Namespace::Pid(pid) => {
                if !pid.is_within(&*ctx.task.pid_namespace().ok_or(Errno::EINVAL)?) {
                    return Err(Errno::EINVAL);
                }
                namespaces.pid_for_children = pid;
            }
            Namespace::Mount(mount) => {
                if !credentials.has(Capability::SYS_CHROOT) {
                    return Err(Errno::EPERM);
                }
                // Threads that share their root and directory would not agree on the namespace.
                if ctx.task.thread_group().thread_count() > 1 {
                    return Err(Errno::EINVAL);
                }
                root = Some(mount.root());
                namespaces.mount = mount;
            }
            Namespace::User(_) => {}
        }
    }
    if wanted.iter().any(|namespace| matches!(namespace, Namespace::Ipc(_))) {
        // Adjustments belong to semaphores of the namespace that is left.
        drop(ctx.local.sem_undo.take());
    }
    if let Some(root) = root {
        let fs = ctx.task.fs().fork();
        fs.update(|places| (places.root, places.cwd) = (root.clone(), root));
        ctx.task.set_fs(fs);
    }
    ctx.task.set_namespaces(Arc::new(namespaces));
    Ok(())
}
