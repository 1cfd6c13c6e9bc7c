//! A container's mount namespace, built from a plan: root, mounts in OCI order, devices, masked and read-only paths.
//!
//! Missing mount points are created, as runc does. The kernel acts with all rights, but inside the container's tree: a
//! symbolic link in the image leads to a place in the image.
//!
//! A `/dev` that is a tmpfs of its own gets the OCI runtime specification's default devices and links.

use std::sync::Arc;

use super::inode::{Device, FileSystem, FileType, NodeKind};
use super::mount::{Mount, MountFlags, Superblock};
use super::mount_namespace::{MountNamespace, Recursive};
use super::path::VfsPath;
use super::registries::{MountRequest, Registries};
use super::{Caller, WalkFlags};
use crate::errno::{Errno, SysResult};
use crate::task::PidNamespace;
use crate::task::namespaces::IpcNamespace;

/// What a container's tree is to look like.
pub struct MountPlan {
    /// The root file system.
    pub root: Arc<dyn FileSystem>,
    /// What `/proc/mounts` shows as its source.
    pub root_source: Vec<u8>,
    /// Flags of the root mount; read-only takes effect once everything else is in place.
    pub root_flags: MountFlags,
    /// Mounts, in order.
    pub mounts: Vec<PlannedMount>,
    /// Devices besides the default ones.
    pub devices: Vec<PlannedDevice>,
    /// Paths that are to look empty.
    pub masked: Vec<Vec<u8>>,
    /// Paths that are to be read-only.
    pub read_only: Vec<Vec<u8>>,
}

/// One mount.
pub struct PlannedMount {
    /// Where, absolute.
    pub destination: Vec<u8>,
    /// What.
    pub source: MountSource,
    /// Flags of the mount.
    pub flags: MountFlags,
}

/// What is mounted.
pub enum MountSource {
    /// A file system that is already there (bind mounts, served by a gofer), and what `/proc/mounts` shows as its source.
    Ready(Arc<dyn FileSystem>, Vec<u8>),
    /// A new one of a registered type.
    Type {
        /// The type.
        fs_type: Vec<u8>,
        /// The source.
        source: Vec<u8>,
        /// Options of the type, comma-separated.
        options: Vec<u8>,
    },
}

/// A device node.
#[derive(Clone, Debug)]
pub struct PlannedDevice {
    /// Where, absolute.
    pub path: Vec<u8>,
    /// `CharDevice`, `BlockDevice` or `Fifo`.
    pub file_type: FileType,
    /// Its number.
    pub device: Device,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What failed, and where.
#[derive(Debug, thiserror::Error)]
#[error("{what} {path:?}: {errno}")]
pub struct PlanError {
    /// The operation.
    pub what: &'static str,
    /// The path in the container.
    pub path: String,
    /// Why.
    pub errno: Errno,
}

fn failed<'p>(what: &'static str, path: &'p [u8]) -> impl Fn(Errno) -> PlanError + 'p {
    move |errno| PlanError { what, path: String::from_utf8_lossy(path).into_owned(), errno }
}

/// Name, minor number (major 1 or 5) of the devices that every container has.
const DEFAULT_DEVICES: &[(&str, Device)] = &[
    ("/dev/null", Device { major: 1, minor: 3 }),
    ("/dev/zero", Device { major: 1, minor: 5 }),
    ("/dev/full", Device { major: 1, minor: 7 }),
    ("/dev/random", Device { major: 1, minor: 8 }),
    ("/dev/urandom", Device { major: 1, minor: 9 }),
    ("/dev/tty", Device { major: 5, minor: 0 }),
];

/// Target and name of the links that every container has.
const DEFAULT_LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
];

struct Builder<'a> {
    registries: &'a Registries,
    pid_namespace: &'a Arc<PidNamespace>,
    ipc_namespace: &'a Arc<IpcNamespace>,
    namespace: Arc<MountNamespace>,
    caller: Caller<'static>,
}

/// Builds the namespace.
pub fn build(
    plan: MountPlan,
    registries: &Registries,
    pid_namespace: &Arc<PidNamespace>,
    ipc_namespace: &Arc<IpcNamespace>,
) -> Result<Arc<MountNamespace>, PlanError> {
    let superblock = Superblock::new(plan.root, &plan.root_source).map_err(failed("mount", b"/"))?;
    let root = Mount::new(superblock, plan.root_flags - MountFlags::RDONLY);
    let namespace = MountNamespace::new(root.clone());
    let caller = Caller::kernel(namespace.root());
    let builder = Builder { registries, pid_namespace, ipc_namespace, namespace, caller };
    for mount in &plan.mounts {
        builder.mount(mount)?;
    }
    builder.populate_dev(&plan.devices)?;
    for path in &plan.read_only {
        builder.make_read_only(path)?;
    }
    for path in &plan.masked {
        builder.mask(path)?;
    }
    root.set_flags(plan.root_flags).map_err(failed("remount", b"/"))?;
    Ok(builder.namespace)
}

impl Builder<'_> {
    fn find(&self, path: &[u8]) -> SysResult<VfsPath> {
        self.caller.lookup(self.caller.root(), path, WalkFlags::empty())
    }

    fn mount(&self, planned: &PlannedMount) -> Result<(), PlanError> {
        let path = planned.destination.as_slice();
        let error = failed("mount", path);
        let superblock = match &planned.source {
            MountSource::Ready(fs, source) => Superblock::new(fs.clone(), source),
            MountSource::Type { fs_type, source, options } => {
                let request = MountRequest {
                    caller: &self.caller,
                    source,
                    options,
                    pid_namespace: Some(self.pid_namespace.clone()),
                    ipc_namespace: Some(self.ipc_namespace.clone()),
                };
                self.registries.make(fs_type, &request).and_then(|fs| Superblock::new(fs, source))
            }
        }
        .map_err(&error)?;
        let file_type = superblock.fs().root().map_err(&error)?.file_type();
        let place = self.mount_point(path, file_type).map_err(failed("create mount point", path))?;
        let mount = Mount::new(superblock, planned.flags.with_atime_default());
        self.namespace.attach(&mount, &place).map_err(&error)
    }

    /// The place to mount on, created with its parents if it is missing.
    fn mount_point(&self, path: &[u8], file_type: FileType) -> SysResult<VfsPath> {
        match self.find(path) {
            Err(Errno::ENOENT) => {}
            other => return other,
        }
        let parent =
            path.iter().rposition(|&byte| byte == b'/').and_then(|at| path.get(..at)).unwrap_or_default();
        self.make_directories(parent)?;
        if file_type == FileType::Directory {
            self.make_directories(path)?;
            self.find(path)
        } else {
            self.caller.create(self.caller.root(), path, 0o755)
        }
    }

    fn make_directories(&self, path: &[u8]) -> SysResult {
        let ends = path.iter().enumerate().filter(|&(_, &byte)| byte == b'/').map(|(at, _)| at);
        for end in ends.chain([path.len()]).filter(|&end| end > 0) {
            let prefix = path.get(..end).unwrap_or(path);
            match self.caller.mkdir(self.caller.root(), prefix, 0o755) {
                Ok(_) | Err(Errno::EEXIST) => {}
                // A read-only file system refuses before it looks whether the directory is there.
                Err(errno) => drop(self.find(prefix).map_err(|_| errno)?),
            }
        }
        Ok(())
    }

    fn populate_dev(&self, devices: &[PlannedDevice]) -> Result<(), PlanError> {
        let own = self
            .find(b"/dev")
            .is_ok_and(|dev| dev.is_mount_root() && dev.mount().superblock().fs().name() == "tmpfs");
        if own {
            for &(path, device) in DEFAULT_DEVICES {
                let path = path.as_bytes().to_vec();
                self.device(&PlannedDevice {
                    path,
                    file_type: FileType::CharDevice,
                    device,
                    mode: 0o666,
                    uid: 0,
                    gid: 0,
                })?;
            }
            for &(target, path) in DEFAULT_LINKS {
                match self.caller.symlink(target.as_bytes(), self.caller.root(), path.as_bytes()) {
                    Ok(_) | Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(failed("create link", path.as_bytes())(errno)),
                }
            }
        }
        devices.iter().try_for_each(|device| self.device(device))
    }

    fn device(&self, planned: &PlannedDevice) -> Result<(), PlanError> {
        let error = failed("create device", &planned.path);
        let kind = match planned.file_type {
            FileType::CharDevice => NodeKind::CharDevice(planned.device),
            FileType::BlockDevice => NodeKind::BlockDevice(planned.device),
            FileType::Fifo => NodeKind::Fifo,
            _ => return Err(error(Errno::EINVAL)),
        };
        let parent =
            planned.path.iter().rposition(|&byte| byte == b'/').and_then(|at| planned.path.get(..at));
        self.make_directories(parent.unwrap_or_default()).map_err(&error)?;
        match self.caller.mknod(self.caller.root(), &planned.path, planned.mode & 0o777, kind) {
            Ok(place) => self.caller.chown(&place, Some(planned.uid), Some(planned.gid)).map_err(error),
            Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(error(errno)),
        }
    }

    /// Shows an empty, read-only directory or `/dev/null` instead of what is there; a missing path needs no mask.
    fn mask(&self, path: &[u8]) -> Result<(), PlanError> {
        let error = failed("mask", path);
        let place = match self.find(path) {
            Ok(place) => place,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            Err(errno) => return Err(error(errno)),
        };
        if place.inode().file_type() != FileType::Directory {
            let null = self.find(b"/dev/null").map_err(&error)?;
            return self.namespace.bind(&null, &place, Recursive::No).map(drop).map_err(error);
        }
        let request = MountRequest {
            caller: &self.caller,
            source: b"tmpfs",
            options: b"size=0k",
            pid_namespace: None,
            ipc_namespace: None,
        };
        let fs = self.registries.make(b"tmpfs", &request).map_err(&error)?;
        let superblock = Superblock::new(fs, b"tmpfs").map_err(&error)?;
        let mount = Mount::new(superblock, MountFlags::RDONLY.with_atime_default());
        self.namespace.attach(&mount, &place).map_err(error)
    }

    fn make_read_only(&self, path: &[u8]) -> Result<(), PlanError> {
        let error = failed("make read-only", path);
        let place = match self.find(path) {
            Ok(place) => place,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            Err(errno) => return Err(error(errno)),
        };
        let mount = self.namespace.bind(&place, &place, Recursive::Yes).map_err(&error)?;
        mount.set_flags(mount.flags() | MountFlags::RDONLY).map_err(error)
    }
}
