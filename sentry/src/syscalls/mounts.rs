//! Mounting.

use linux_raw_sys::general as linux;

use super::Args;
use super::path_args::{self, read_path};
use crate::errno::{Errno, SysResult};
use crate::task::{Capability, SyscallContext};
use crate::vfs::mount_namespace::{Recursive, Unmount};
use crate::vfs::registries::MountRequest;
use crate::vfs::{Caller, Mount, MountFlags, Superblock, VfsPath, WalkFlags};

/// The flags that make a mount shared, private, …: accepted, every mount is private.
const PROPAGATION: u32 = linux::MS_SHARED | linux::MS_PRIVATE | linux::MS_SLAVE | linux::MS_UNBINDABLE;

fn require_admin(caller: &Caller<'_>) -> SysResult {
    if caller.credentials.has(Capability::SYS_ADMIN) { Ok(()) } else { Err(Errno::EPERM) }
}

fn optional_string(ctx: &SyscallContext<'_>, addr: u64) -> SysResult<Vec<u8>> {
    if addr == 0 { Ok(Vec::new()) } else { read_path(ctx, addr) }
}

/// `mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data)`
pub fn mount(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let caller = path_args::caller(ctx);
    let mut flags = args.uint(3);
    // An old magic number in the upper half is ignored.
    if flags & linux::MS_MGC_MSK == linux::MS_MGC_VAL {
        flags &= !linux::MS_MGC_MSK;
    }
    let fs_type = optional_string(ctx, args.raw(2))?;
    let source = optional_string(ctx, args.raw(0))?;
    let data = optional_string(ctx, args.raw(4))?;
    let target = read_path(ctx, args.raw(1))?;
    let target = caller.lookup_path(&target)?;
    require_admin(&caller)?;
    let mount_flags = MountFlags::from_bits_truncate(flags);
    let recursive = if flags & linux::MS_REC != 0 { Recursive::Yes } else { Recursive::No };
    let namespace = ctx.task.namespaces().mount.clone();
    if flags & (linux::MS_REMOUNT | linux::MS_BIND) == linux::MS_REMOUNT | linux::MS_BIND {
        require_mount_root(&target)?;
        target.mount().set_flags(mount_flags)?;
    } else if flags & linux::MS_REMOUNT != 0 {
        remount(&target, mount_flags, &data)?;
    } else if flags & linux::MS_BIND != 0 {
        let source = caller.lookup_path(&source)?;
        namespace.bind(&source, &target, recursive)?;
    } else if flags & PROPAGATION != 0 {
        if (flags & PROPAGATION).count_ones() != 1
            || flags & !(PROPAGATION | linux::MS_REC | linux::MS_SILENT) != 0
        {
            return Err(Errno::EINVAL);
        }
        require_mount_root(&target)?;
    } else if flags & linux::MS_MOVE != 0 {
        let source = caller.lookup_path(&source)?;
        namespace.move_mount(&source, &target)?;
    } else {
        let request = MountRequest {
            caller: &caller,
            source: &source,
            options: &data,
            pid_namespace: ctx.task.pid_namespace(),
            ipc_namespace: None,
        };
        let fs = ctx.kernel().vfs().make(&fs_type, &request)?;
        let superblock = Superblock::new(fs, if source.is_empty() { b"none" } else { &source })?;
        superblock.set_read_only(mount_flags.contains(MountFlags::RDONLY));
        namespace.attach(&Mount::new(superblock, mount_flags - MountFlags::RDONLY), &target)?;
    }
    Ok(0)
}

fn require_mount_root(target: &VfsPath) -> SysResult {
    if target.is_mount_root() { Ok(()) } else { Err(Errno::EINVAL) }
}

/// `MS_REMOUNT` without `MS_BIND`: the options of the file system, its read-only flag, and this mount's flags.
fn remount(target: &VfsPath, flags: MountFlags, data: &[u8]) -> SysResult {
    require_mount_root(target)?;
    let mount = target.mount();
    mount.superblock().fs().reconfigure(data)?;
    let read_only = flags.contains(MountFlags::RDONLY);
    if read_only && mount.has_writers() {
        return Err(Errno::EBUSY);
    }
    mount.superblock().set_read_only(read_only);
    mount.set_flags(flags - MountFlags::RDONLY)
}

/// `umount2(const char *target, int flags)`
pub fn umount2(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let flags = args.uint(1);
    let (force, detach) = (linux::MNT_FORCE, linux::MNT_DETACH);
    let (expire, nofollow) = (linux::MNT_EXPIRE, linux::UMOUNT_NOFOLLOW);
    if flags & !(force | detach | expire | nofollow) != 0 {
        return Err(Errno::EINVAL);
    }
    let caller = path_args::caller(ctx);
    let path = read_path(ctx, args.raw(0))?;
    let walk = if flags & nofollow != 0 { WalkFlags::empty() } else { WalkFlags::FOLLOW };
    let place = caller.lookup(caller.cwd(), &path, walk)?;
    require_admin(&caller)?;
    if flags & expire != 0 {
        // The first call only marks the mount; nothing here ever expires.
        let alone = flags & (force | detach) == 0;
        return Err(if alone { Errno::EAGAIN } else { Errno::EINVAL });
    }
    if place.same(caller.root()) && flags & detach == 0 {
        return Err(Errno::EBUSY);
    }
    let how = if flags & detach != 0 { Unmount::Detach } else { Unmount::Idle };
    ctx.task.namespaces().mount.unmount(place, how)?;
    Ok(0)
}

/// `pivot_root(const char *new_root, const char *put_old)`
pub fn pivot_root(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let caller = path_args::caller(ctx);
    require_admin(&caller)?;
    let directory = |addr| {
        let flags = WalkFlags::FOLLOW | WalkFlags::DIRECTORY;
        caller.lookup(caller.cwd(), &read_path(ctx, addr)?, flags)
    };
    let new_root = directory(args.raw(0))?;
    let put_old = directory(args.raw(1))?;
    let old_root = caller.root().clone();
    let namespace = ctx.task.namespaces().mount.clone();
    namespace.pivot_root(&old_root, &new_root, &put_old)?;
    // Every task whose root or working directory was the old root moves to the new one.
    for group in ctx.kernel().pid_namespace().thread_groups() {
        for task in group.members() {
            task.fs().update(|places| {
                for place in [&mut places.root, &mut places.cwd] {
                    if place.same(&old_root) {
                        *place = new_root.clone();
                    }
                }
            });
        }
    }
    Ok(0)
}
