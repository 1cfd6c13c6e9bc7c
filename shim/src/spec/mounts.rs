//! Mounts: option words into `MS_*` flags, bind sources into gofer connections.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use caisson_proto::control as wire;
use libc::c_ulong;
use oci_spec::runtime::Mount;

use super::SpecError;
use crate::launch::gofer::GoferSource;
use crate::launch::mount_points::{self, MountPoint, MountPointKind};

/// Option words: name, flags to set, flags to clear. `mount(8)`'s and runc's.
#[rustfmt::skip]
const WORDS: &[(&str, c_ulong, c_ulong)] = &[
    ("async", 0, libc::MS_SYNCHRONOUS),
    ("atime", 0, libc::MS_NOATIME),
    ("bind", libc::MS_BIND, 0),
    ("defaults", 0, 0),
    ("dev", 0, libc::MS_NODEV),
    ("diratime", 0, libc::MS_NODIRATIME),
    ("dirsync", libc::MS_DIRSYNC, 0),
    ("exec", 0, libc::MS_NOEXEC),
    ("mand", libc::MS_MANDLOCK, 0),
    ("noatime", libc::MS_NOATIME, 0),
    ("nodev", libc::MS_NODEV, 0),
    ("nodiratime", libc::MS_NODIRATIME, 0),
    ("noexec", libc::MS_NOEXEC, 0),
    ("nomand", 0, libc::MS_MANDLOCK),
    ("norelatime", 0, libc::MS_RELATIME),
    ("nostrictatime", 0, libc::MS_STRICTATIME),
    ("nosuid", libc::MS_NOSUID, 0),
    ("rbind", libc::MS_BIND | libc::MS_REC, 0),
    ("relatime", libc::MS_RELATIME, 0),
    ("remount", libc::MS_REMOUNT, 0),
    ("ro", libc::MS_RDONLY, 0),
    ("rro", libc::MS_RDONLY, 0),
    ("rw", 0, libc::MS_RDONLY),
    ("strictatime", libc::MS_STRICTATIME, 0),
    ("suid", 0, libc::MS_NOSUID),
    ("sync", libc::MS_SYNCHRONOUS, 0),
];

/// Words that a kernel of another time or an external tool understands; runc takes them without a flag too.
const IGNORED: &[&str] = &[
    "tmpcopyup",
    "copy",
    "nocopy",
    "idmap",
    "ridmap",
    "nofail",
    "_netdev",
    "user",
    "nouser",
    "auto",
    "noauto",
    "z",
    "Z",
];

/// Propagation flags of one word (`rslave`), or 0.
pub fn propagation(word: &str) -> u64 {
    match word {
        "private" => libc::MS_PRIVATE,
        "rprivate" => libc::MS_PRIVATE | libc::MS_REC,
        "slave" => libc::MS_SLAVE,
        "rslave" => libc::MS_SLAVE | libc::MS_REC,
        "shared" => libc::MS_SHARED,
        "rshared" => libc::MS_SHARED | libc::MS_REC,
        "unbindable" => libc::MS_UNBINDABLE,
        "runbindable" => libc::MS_UNBINDABLE | libc::MS_REC,
        _ => 0,
    }
}

/// Flags, propagation and data of a list of option words.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct Options {
    /// `MS_*`.
    pub flags: u64,
    /// `MS_SHARED` and its like.
    pub propagation: u64,
    /// What is left for the file system, joined by commas.
    pub data: String,
}

/// Parses option words.
pub fn options(words: &[String]) -> Options {
    let mut parsed = Options::default();
    let mut data = Vec::new();
    for word in words.iter().map(String::as_str) {
        if let Some((_, set, clear)) = WORDS.iter().find(|(name, ..)| *name == word) {
            parsed.flags = (parsed.flags & !clear) | set;
        } else if propagation(word) != 0 {
            parsed.propagation = propagation(word);
        } else if !IGNORED.contains(&word) && !word.is_empty() {
            data.push(word);
        }
    }
    parsed.data = data.join(",");
    parsed
}

/// Converts the spec's mounts, adding the sources of bind mounts to `sources`.
///
/// # Errors
/// Bad destinations, and bind sources that do not exist.
pub(super) fn convert(
    mounts: &[Mount],
    bundle: &Path,
    sources: &mut Vec<GoferSource>,
) -> Result<Vec<wire::Mount>, SpecError> {
    mounts.iter().map(|mount| one(mount, bundle, sources)).collect()
}

/// What the root file system must have for these mounts.
pub(super) fn mount_points(mounts: &[wire::Mount]) -> Vec<MountPoint> {
    mount_points::in_root(mounts.iter().map(|mount| {
        let kind = if mount.source_is_dir { MountPointKind::Directory } else { MountPointKind::File };
        (Path::new(OsStr::from_bytes(&mount.destination)), kind)
    }))
}

fn one(mount: &Mount, bundle: &Path, sources: &mut Vec<GoferSource>) -> Result<wire::Mount, SpecError> {
    let destination = destination(mount.destination())?;
    let parsed = options(mount.options().as_deref().unwrap_or_default());
    let kind = mount.typ().clone().unwrap_or_default();
    let bind = parsed.flags & libc::MS_BIND != 0 || kind == "bind" || kind == "rbind";
    let mut out = wire::Mount {
        destination: destination.as_os_str().as_bytes().to_vec(),
        kind: if bind { "bind".into() } else { kind },
        flags: parsed.flags,
        propagation: parsed.propagation,
        data: parsed.data,
        gofer_fd: None,
        source_is_dir: true,
        source: mount.source().as_ref().map(|s| s.as_os_str().as_bytes().to_vec()).unwrap_or_default(),
    };
    if out.kind.is_empty() {
        return Err(SpecError::Invalid(format!("mount on {}: type is missing", destination.display())));
    }
    if !bind {
        return Ok(out);
    }
    out.flags |= libc::MS_BIND;
    let named = mount.source().as_ref().ok_or_else(|| {
        SpecError::Invalid(format!("bind mount on {}: source is missing", destination.display()))
    })?;
    let failed = |error: io::Error| SpecError::Host { what: "bind mount source", path: named.clone(), error };
    // Relative sources are relative to the bundle; links are the host's business and are followed now.
    let source = bundle.join(named).canonicalize().map_err(failed)?;
    out.source_is_dir = source.metadata().map_err(failed)?.is_dir();
    out.gofer_fd = Some(u32::try_from(sources.len()).unwrap_or(u32::MAX));
    sources.push(GoferSource {
        source,
        destination: destination.display().to_string(),
        read_only: out.flags & libc::MS_RDONLY != 0,
        recursive: out.flags & libc::MS_REC != 0,
        receives_mounts: out.propagation & (libc::MS_SHARED | libc::MS_SLAVE) != 0,
        is_root: false,
        mount_points: Vec::new(),
    });
    Ok(out)
}

/// An absolute destination without `.` and `..`. Relative ones are taken from `/`, as runc does with a warning.
fn destination(path: &Path) -> Result<PathBuf, SpecError> {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            // Cannot leave the root, so it is just lexical here; links inside the container are the sentry's business.
            Component::ParentDir => drop(clean.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if path.as_os_str().is_empty() || clean.as_os_str().len() >= 4096 {
        return Err(SpecError::Invalid("a mount's destination is empty or too long".into()));
    }
    Ok(clean)
}
