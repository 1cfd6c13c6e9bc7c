//! Makes the mount points that a read-only root file system lacks, as runc does, before it becomes read-only.
//!
//! The image's links are followed, but never out of its root ([`ResolveFlags::IN_ROOT`]). What cannot be made is left to the
//! sentry, which names the mount that fails for it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;

/// A place that a mount needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    /// Absolute, without `.` and `..`.
    pub path: PathBuf,
    /// What is mounted there.
    pub kind: MountPointKind,
}

/// What a mount point has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountPointKind {
    /// A directory.
    Directory,
    /// Anything else: an empty file.
    File,
}

/// The mount points that lie in the root itself, not in one of the mounts before them.
pub(crate) fn in_root<'m>(mounts: impl Iterator<Item = (&'m Path, MountPointKind)>) -> Vec<MountPoint> {
    let mut above: Vec<&Path> = Vec::new();
    let mut found = Vec::new();
    for (path, kind) in mounts {
        if !above.iter().any(|mount| path.starts_with(mount)) {
            found.push(MountPoint { path: path.to_owned(), kind });
        }
        above.push(path);
    }
    found
}

/// Makes what is missing of `points` in the directory `root`.
pub(crate) fn make(root: impl AsFd, points: &[MountPoint]) {
    for point in points {
        // The sentry says what is wrong with a place that is still missing when it mounts there.
        let _ = make_one(root.as_fd(), point);
    }
}

fn make_one(root: impl AsFd, point: &MountPoint) -> Result<(), Errno> {
    let inside = point.path.strip_prefix("/").unwrap_or(&point.path);
    let parent = inside.parent().unwrap_or(Path::new(""));
    let mut at = directory(&root, Path::new("."))?;
    let mut reached = PathBuf::new();
    for name in parent.components() {
        reached.push(name);
        at = enter(&root, &at, &reached)?;
    }
    match (point.kind, inside.file_name()) {
        (_, None) => Ok(()),
        (MountPointKind::Directory, Some(_)) => enter(&root, &at, inside).map(drop),
        (MountPointKind::File, Some(name)) => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            openat2(&at, name, flags, Mode::from_raw_mode(0o755), resolve).map(drop)
        }
    }
}

/// Opens the directory `path` of `root`, made in its parent directory `at` if it is missing.
fn enter(root: impl AsFd, at: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    match directory(&root, path) {
        Err(Errno::NOENT) => {}
        done => return done,
    }
    mkdirat(at, path.file_name().ok_or(Errno::INVAL)?, Mode::from_raw_mode(0o755))?;
    directory(root, path)
}

fn directory(root: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;

    use super::MountPointKind::{Directory, File as Plain};
    use super::*;

    #[test]
    fn what_lies_in_another_mount_is_not_the_root_s() {
        let mounts =
            [("/proc", Directory), ("/dev", Directory), ("/dev/shm", Directory), ("/etc/hosts", Plain)];
        let found = in_root(mounts.iter().map(|(path, kind)| (Path::new(*path), *kind)));
        let paths: Vec<_> = found.iter().map(|point| point.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/proc", "/dev", "/etc/hosts"]);
    }

    #[test]
    fn missing_places_are_made_and_none_outside() {
        let dir = std::env::temp_dir().join(format!("caisson-mount-points-{}", std::process::id()));
        let (root, outside) = (dir.join("root"), dir.join("outside"));
        fs::create_dir_all(&root).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(root.join("kept"), "kept").unwrap();
        symlink(&outside, root.join("absolute")).unwrap();
        symlink("../outside", root.join("relative")).unwrap();
        symlink("made", root.join("inside")).unwrap();
        let wanted = [
            ("/made/here", Directory),
            ("/made/file", Plain),
            ("/inside/too", Directory),
            ("/kept", Plain),
            ("/kept/below", Directory),
            ("/relative/escaped", Directory),
            ("/absolute/escaped", Plain),
            ("/", Directory),
        ];
        let points: Vec<_> =
            wanted.iter().map(|&(path, kind)| MountPoint { path: path.into(), kind }).collect();
        make(File::open(&root).unwrap(), &points);
        assert!(root.join("made/here").is_dir() && root.join("made/file").is_file());
        assert!(root.join("made/too").is_dir());
        assert_eq!(fs::read(root.join("kept")).unwrap(), b"kept");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        fs::remove_dir_all(dir).unwrap();
    }
}
