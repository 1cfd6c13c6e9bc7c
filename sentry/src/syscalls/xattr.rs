//! Extended attributes.

use linux_raw_sys::general as linux;

use super::Args;
use super::path_args::{self, open_file, path, place_of};
use crate::errno::{Errno, SysResult};
use crate::task::{Capability, SyscallContext};
use crate::vfs::{Access, Caller, FileType, VfsPath, WalkFlags, notify};

/// Longest name with its NUL, largest value, largest list, in bytes.
const NAME_MAX: usize = 256;
const SIZE_MAX: usize = 65_536;
const LIST_MAX: usize = 65_536;

fn read_name(ctx: &SyscallContext<'_>, addr: u64) -> SysResult<Vec<u8>> {
    let name = ctx.task.mm().read_c_string(addr, NAME_MAX).map_err(|error| match error {
        Errno::ENAMETOOLONG => Errno::ERANGE,
        error => error,
    })?;
    if name.is_empty() { Err(Errno::ERANGE) } else { Ok(name) }
}

/// What may be done to the attribute `name` (Linux's `xattr_permission`).
fn check(caller: &Caller<'_>, place: &VfsPath, name: &[u8], access: Access) -> SysResult {
    let writes = access.contains(Access::WRITE);
    if writes {
        place.mount().require_writable()?;
    }
    let who = &caller.credentials;
    let inode = place.inode();
    if name.starts_with(b"user.") {
        let file_type = inode.file_type();
        if !matches!(file_type, FileType::Regular | FileType::Directory) {
            return Err(if writes { Errno::EPERM } else { Errno::ENODATA });
        }
        if writes && file_type == FileType::Directory {
            let attr = inode.attr()?;
            let foreign = attr.uid != who.fsuid && !who.has(Capability::FOWNER);
            if attr.mode & linux::S_ISVTX != 0 && foreign {
                return Err(Errno::EPERM);
            }
        }
        return inode.permission(who, access);
    }
    if name.starts_with(b"trusted.") {
        let allowed = who.has(Capability::SYS_ADMIN);
        return if allowed { Ok(()) } else { Err(if writes { Errno::EPERM } else { Errno::ENODATA }) };
    }
    if name.starts_with(b"security.") {
        let needed = if name == b"security.capability" { Capability::SETFCAP } else { Capability::SYS_ADMIN };
        return if !writes || who.has(needed) { Ok(()) } else { Err(Errno::EPERM) };
    }
    Err(Errno::EOPNOTSUPP)
}

/// Whose attributes a call is about.
#[derive(Clone, Copy)]
enum Target {
    Path,
    Link,
    Descriptor,
}

impl Target {
    fn place(self, ctx: &SyscallContext<'_>, caller: &Caller<'_>, arg: u64) -> SysResult<VfsPath> {
        match self {
            Target::Path => path(ctx, arg)?.lookup(caller, WalkFlags::FOLLOW),
            Target::Link => path(ctx, arg)?.lookup(caller, WalkFlags::empty()),
            Target::Descriptor => Ok(place_of(&*open_file(ctx, arg)?)),
        }
    }
}

fn set(ctx: &SyscallContext<'_>, args: &Args, target: Target) -> SysResult<usize> {
    let flags = args.uint(4);
    if flags & !(linux::XATTR_CREATE | linux::XATTR_REPLACE) != 0 {
        return Err(Errno::EINVAL);
    }
    let name = read_name(ctx, args.raw(1))?;
    let size = usize::try_from(args.raw(3)).ok().filter(|size| *size <= SIZE_MAX).ok_or(Errno::E2BIG)?;
    let mut value = vec![0; size];
    ctx.task.mm().read_bytes(args.raw(2), &mut value)?;
    let caller = path_args::caller(ctx);
    let place = target.place(ctx, &caller, args.raw(0))?;
    check(&caller, &place, &name, Access::WRITE)?;
    place.inode().set_xattr(&name, &value, flags)?;
    notify::accessed_by_name(place.dentry(), linux::IN_ATTRIB);
    Ok(0)
}

/// Writes `data` to a buffer of `size` bytes; a size of 0 only asks for the length. `ERANGE` if it does not fit.
fn give(ctx: &SyscallContext<'_>, addr: u64, size: u64, data: &[u8]) -> SysResult<usize> {
    if size != 0 {
        if data.len() as u64 > size {
            return Err(Errno::ERANGE);
        }
        ctx.task.mm().write_bytes(addr, data)?;
    }
    Ok(data.len())
}

fn get(ctx: &SyscallContext<'_>, args: &Args, target: Target) -> SysResult<usize> {
    let name = read_name(ctx, args.raw(1))?;
    let caller = path_args::caller(ctx);
    let place = target.place(ctx, &caller, args.raw(0))?;
    check(&caller, &place, &name, Access::READ)?;
    let value = place.inode().get_xattr(&name)?;
    give(ctx, args.raw(2), args.raw(3), &value)
}

fn list(ctx: &SyscallContext<'_>, args: &Args, target: Target) -> SysResult<usize> {
    let caller = path_args::caller(ctx);
    let place = target.place(ctx, &caller, args.raw(0))?;
    let privileged = caller.credentials.has(Capability::SYS_ADMIN);
    let mut text = Vec::new();
    for name in place.inode().list_xattr()? {
        if privileged || !name.starts_with(b"trusted.") {
            text.extend_from_slice(&name);
            text.push(0);
        }
    }
    if text.len() > LIST_MAX {
        return Err(Errno::E2BIG);
    }
    give(ctx, args.raw(1), args.raw(2), &text)
}

fn remove(ctx: &SyscallContext<'_>, args: &Args, target: Target) -> SysResult<usize> {
    let name = read_name(ctx, args.raw(1))?;
    let caller = path_args::caller(ctx);
    let place = target.place(ctx, &caller, args.raw(0))?;
    check(&caller, &place, &name, Access::WRITE)?;
    place.inode().remove_xattr(&name)?;
    notify::accessed_by_name(place.dentry(), linux::IN_ATTRIB);
    Ok(0)
}

macro_rules! calls {
    ($($name:ident = $action:ident($target:ident), $doc:literal;)*) => {$(
        #[doc = $doc]
        pub fn $name(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
            $action(ctx, args, Target::$target)
        }
    )*};
}

calls! {
    setxattr = set(Path), "`setxattr(const char *path, const char *name, const void *value, size_t size, int flags)`";
    lsetxattr = set(Link), "`lsetxattr`: of a symbolic link itself";
    fsetxattr = set(Descriptor), "`fsetxattr`: of an open file";
    getxattr = get(Path), "`getxattr(const char *path, const char *name, void *value, size_t size)`";
    lgetxattr = get(Link), "`lgetxattr`: of a symbolic link itself";
    fgetxattr = get(Descriptor), "`fgetxattr`: of an open file";
    listxattr = list(Path), "`listxattr(const char *path, char *list, size_t size)`";
    llistxattr = list(Link), "`llistxattr`: of a symbolic link itself";
    flistxattr = list(Descriptor), "`flistxattr`: of an open file";
    removexattr = remove(Path), "`removexattr(const char *path, const char *name)`";
    lremovexattr = remove(Link), "`lremovexattr`: of a symbolic link itself";
    fremovexattr = remove(Descriptor), "`fremovexattr`: of an open file";
}
