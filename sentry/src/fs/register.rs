//! Tells a kernel's VFS which file system types and device drivers there are.

use std::sync::{Arc, Weak};

use super::pseudo::{PseudoDir, PseudoFs, StaticDir};
use super::tmpfs::Tmpfs;
use super::{devices, proc, sysfs, tty};
use crate::errno::{Errno, SysResult};
use crate::ipc::Ipc;
use crate::kernel::Kernel;
use crate::vfs::registries::MountRequest;
use crate::vfs::{Device, FileSystem};

/// Registers everything. Call once, right after the kernel has been made.
pub fn register_all(kernel: &Arc<Kernel>) {
    let registries = kernel.vfs();
    Tmpfs::register(registries);
    devices::register(&registries.special);
    tty::drivers::register(registries, kernel.timers());
    register_proc(kernel);
    register_sysfs(kernel);
    registries.register_type("mqueue", Arc::new(mqueue));
    for (name, magic) in [("cgroup", CGROUP_MAGIC), ("cgroup2", CGROUP2_MAGIC)] {
        let make = move |_: &MountRequest<'_>| empty(name, magic);
        registries.register_type(name, Arc::new(make));
    }
}

const CGROUP_MAGIC: u64 = linux_raw_sys::general::CGROUP_SUPER_MAGIC as u64;
const CGROUP2_MAGIC: u64 = linux_raw_sys::general::CGROUP2_SUPER_MAGIC as u64;

fn upgrade(kernel: &Weak<Kernel>) -> SysResult<Arc<Kernel>> {
    kernel.upgrade().ok_or(Errno::ENODEV)
}

fn register_proc(kernel: &Arc<Kernel>) {
    let weak = Arc::downgrade(kernel);
    let make = move |request: &MountRequest<'_>| {
        let own = || request.caller.task.and_then(|task| task.pid_namespace());
        let namespace = request.pid_namespace.clone().or_else(own).ok_or(Errno::EPERM)?;
        proc::mount(&upgrade(&weak)?, &namespace, Device::new_anonymous())
    };
    kernel.vfs().register_type("proc", Arc::new(make));
}

/// The message queues of an ipc namespace: the same file system at each mount.
fn mqueue(request: &MountRequest<'_>) -> SysResult<Arc<dyn FileSystem>> {
    let own = || request.caller.task.map(|task| task.namespaces().ipc.clone());
    let namespace = request.ipc_namespace.clone().or_else(own).ok_or(Errno::EPERM)?;
    Ok(Ipc::in_namespace(&namespace)?.mqueues.clone())
}

fn register_sysfs(kernel: &Arc<Kernel>) {
    let weak = Arc::downgrade(kernel);
    let make = move |_: &MountRequest<'_>| sysfs::mount(&upgrade(&weak)?, Device::new_anonymous());
    kernel.vfs().register_type("sysfs", Arc::new(make));
}

/// A file system with nothing in it: cgroup hierarchies, which the sandbox does not have inside.
fn empty(name: &'static str, magic: u64) -> SysResult<Arc<dyn FileSystem>> {
    let fs = PseudoFs::new(name, magic, Device::new_anonymous());
    fs.set_root(PseudoDir::inode(&fs, 0o555, StaticDir::new()));
    Ok(fs)
}
