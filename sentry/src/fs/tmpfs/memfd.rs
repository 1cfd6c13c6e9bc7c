//! memfds: unnamed files of a tmpfs that nobody mounts, with seals.

use std::sync::{Arc, OnceLock};

use super::data::Seals;
use super::inode::TmpInode;
use super::{Tmpfs, TmpfsOptions};
use crate::errno::{Errno, SysResult};
use crate::task::Credentials;
use crate::vfs::{Caller, File, Inode, NewInode, OpenFlags};

/// The instance behind all memfds.
fn instance() -> SysResult<&'static Arc<Tmpfs>> {
    static INSTANCE: OnceLock<Arc<Tmpfs>> = OnceLock::new();
    if let Some(instance) = INSTANCE.get() {
        return Ok(instance);
    }
    let unlimited = TmpfsOptions { size: Some(0), inodes: Some(0), ..TmpfsOptions::default() };
    let made = Tmpfs::new(unlimited)?;
    Ok(INSTANCE.get_or_init(|| made))
}

/// A new memfd, open for reading and writing; `/proc/*/fd` shows it as `/memfd:NAME (deleted)`.
pub fn create(caller: &Caller<'_>, name: &[u8], seals: Seals) -> SysResult<Arc<File>> {
    let owner: &Credentials = &caller.credentials;
    let mode = if seals.contains(Seals::EXEC) { 0o666 } else { 0o777 };
    let new = NewInode { mode, uid: owner.fsuid, gid: owner.fsgid };
    let inode: Arc<dyn Inode> = TmpInode::unnamed(instance()?.limits(), new, seals)?;
    let mut shown = b"memfd:".to_vec();
    shown.extend_from_slice(name);
    let place = crate::vfs::internal::place(&shown, inode.clone());
    let ops = inode.open(caller, &place, OpenFlags::RDWR)?;
    Ok(File::new(ops, inode, Some(place), OpenFlags::RDWR | OpenFlags::LARGEFILE))
}

/// The seals of a memfd or tmpfs file; `EINVAL` for any other.
pub fn seals(file: &File) -> SysResult<Seals> {
    let inode = file.inode().downcast::<TmpInode>().ok_or(Errno::EINVAL)?;
    Ok(inode.data()?.seals())
}

/// Adds seals (`F_ADD_SEALS`). `EPERM` if it is not open for writing, or sealed against that.
pub fn add_seals(file: &File, seals: u32) -> SysResult {
    let inode = file.inode().downcast::<TmpInode>().ok_or(Errno::EINVAL)?;
    let data = inode.data()?;
    if !file.flags().writable() {
        return Err(Errno::EPERM);
    }
    let mut seals = Seals::from_bits(seals).ok_or(Errno::EINVAL)?;
    // As Linux: a file that can be executed and is sealed that way cannot be written to either.
    if seals.contains(Seals::EXEC) && inode.attr()?.mode & 0o111 != 0 {
        seals |= Seals::SHRINK | Seals::GROW | Seals::WRITE | Seals::FUTURE_WRITE;
    }
    data.add_seals(seals)
}
