//! Opening terminal device nodes: `/dev/tty`, `/dev/console`, `/dev/ptmx`, `/dev/pts/N`.

use std::sync::Arc;

use super::devpts::{Instance, PTMX, PtsNode};
use super::job::terminal_of;
use super::{SLAVE_MAJOR, Tty};
use crate::errno::{Errno, SysResult};
use crate::task::SyscallContext;
use crate::vfs::registries::{MountRequest, Registries};
use crate::vfs::special::DeviceOpen;
use crate::vfs::walk::WalkFlags;
use crate::vfs::{Caller, Device, FileOps, FileSystem, OpenFlags, VfsPath};

/// `/dev/tty`: the caller's terminal.
pub const TTY: Device = Device { major: 5, minor: 0 };
/// `/dev/console`: the container's terminal, which is its init's.
pub const CONSOLE: Device = Device { major: 5, minor: 1 };

/// Registers the drivers of terminals, and devpts.
pub fn register(registries: &Registries, timers: &Arc<crate::time::Timers>) {
    let special = &registries.special;
    special.register(TTY, Arc::new(open_own));
    special.register(CONSOLE, Arc::new(open_own));
    special.register(PTMX, Arc::new(open_master));
    special.register_major(SLAVE_MAJOR, Arc::new(open_slave));
    let timers = timers.clone();
    let make = move |request: &MountRequest<'_>| -> SysResult<Arc<dyn FileSystem>> {
        Ok(super::devpts::mount(super::devpts::Options::parse(request.options)?, &timers))
    };
    registries.register_type("devpts", Arc::new(make));
}

fn slave(ctx: &mut SyscallContext<'_>, tty: &Arc<Tty>, flags: OpenFlags) -> SysResult<Arc<dyn FileOps>> {
    let slave = tty.open_slave()?;
    if !flags.contains(OpenFlags::NOCTTY) && flags.readable() {
        tty.adopt_on_open(ctx.task);
    }
    Ok(Arc::new(slave))
}

/// `ENXIO` for a session without a terminal.
fn open_own(ctx: &mut SyscallContext<'_>, request: DeviceOpen<'_>) -> SysResult<Arc<dyn FileOps>> {
    let tty = terminal_of(ctx.task).ok_or(Errno::ENXIO)?;
    slave(ctx, &tty, request.flags | OpenFlags::NOCTTY)
}

fn open_slave(ctx: &mut SyscallContext<'_>, request: DeviceOpen<'_>) -> SysResult<Arc<dyn FileOps>> {
    // A node with the right number somewhere else leads to no instance.
    let tty = request.inode.downcast::<PtsNode>().ok_or(Errno::ENXIO)?.tty().clone();
    slave(ctx, &tty, request.flags)
}

/// The devpts a `ptmx` node belongs to is the one it is in, or the one mounted on `pts` beside it. `ENODEV` without one.
fn open_master(ctx: &mut SyscallContext<'_>, request: DeviceOpen<'_>) -> SysResult<Arc<dyn FileOps>> {
    let instance = match Instance::of_inode(request.inode) {
        Some(instance) => instance,
        None => beside(ctx, request.path).ok_or(Errno::ENODEV)?,
    };
    let who = ctx.task.credentials();
    Ok(Arc::new(instance.create_pair(who.fsuid, who.fsgid)?))
}

fn beside(ctx: &SyscallContext<'_>, ptmx: &VfsPath) -> Option<Arc<Instance>> {
    let caller = Caller::new(ctx.task.credentials(), &ctx.task.fs(), Some(ctx.task));
    let pts = caller.lookup(&ptmx.parent()?, b"pts", WalkFlags::FOLLOW).ok()?;
    Instance::of(&pts.inode().file_system().ok()?)
}
