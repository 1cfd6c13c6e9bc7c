//! What reading a directory has in common in all file systems: positions, and the entries `.` and `..`.
//!
//! Position 0 is `.`, 1 is `..`; what the positions from [`FIRST`] on mean is the file system's.

use super::file::{DirEntry, DirSink, File, Whence};
use super::inode::FileType;
use crate::errno::{Errno, SysResult};

/// Position of the first entry after `.` and `..`.
pub const FIRST: u64 = 2;

/// `lseek` of a directory: `EINVAL` for anything but a position from the start or from `current`.
pub fn seek(current: u64, offset: i64, whence: Whence) -> SysResult<u64> {
    let base = match whence {
        Whence::Start => 0,
        Whence::Current => current,
        _ => return Err(Errno::EINVAL),
    };
    base.checked_add_signed(offset).filter(|position| *position <= i64::MAX as u64).ok_or(Errno::EINVAL)
}

/// Emits `.` and `..` if `offset` is before them; false when the sink is full.
///
/// `own` is the directory's number, which stands for `..` at the root: there the VFS leaves the file system.
pub fn dots(file: &File, own: u64, offset: &mut u64, sink: &mut dyn DirSink) -> bool {
    let file_type = FileType::Directory.dirent_type();
    while *offset < FIRST {
        let (name, ino) = if *offset == 0 { (&b"."[..], own) } else { (&b".."[..], above(file, own)) };
        let next = offset.saturating_add(1);
        if !sink.emit(DirEntry { ino, next, file_type, name }) {
            return false;
        }
        *offset = next;
    }
    true
}

fn above(file: &File, own: u64) -> u64 {
    let parent = file.path().and_then(|path| path.dentry().parent());
    parent.and_then(|dir| dir.inode()?.attr().ok()).map_or(own, |attr| attr.ino)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_stay_in_range() {
        assert_eq!(seek(5, 7, Whence::Start), Ok(7));
        assert_eq!(seek(5, -5, Whence::Current), Ok(0));
        for (offset, whence) in
            [(-6, Whence::Current), (-1, Whence::Start), (0, Whence::End), (0, Whence::Data)]
        {
            assert_eq!(seek(5, offset, whence), Err(Errno::EINVAL));
        }
        assert_eq!(seek(i64::MAX as u64, 1, Whence::Current), Err(Errno::EINVAL));
    }
}
