//! From the shim's messages to the kernel's plain data.
//!
//! `caisson_proto::control::check` has already vouched for lengths, IDs, descriptor indexes and paths.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use caisson_proto::control as proto;

use crate::errno::Errno;
use crate::fs::gofer::{GoferFs, Sharing};
use crate::kernel::container::{
    ContainerError, ContainerSpec, NamespacePlan, NamespaceSource, ProcessSpec, StdioSpec,
};
use crate::task::{Capability, Credentials, Resource, Rlimit};
use crate::vfs::plan::{MountPlan, MountSource, PlanError, PlannedDevice, PlannedMount};
use crate::vfs::{Device, FileSystem, FileType, MountFlags};

/// Linux's default mask of new files.
const DEFAULT_UMASK: u32 = 0o022;

/// The descriptors of a message; each is taken once.
pub struct Descriptors(Vec<Option<OwnedFd>>);

impl Descriptors {
    /// In the order in which they came.
    pub fn new(fds: Vec<OwnedFd>) -> Descriptors {
        Descriptors(fds.into_iter().map(Some).collect())
    }

    /// The descriptor with this index; `None` if there is none or it was taken.
    pub fn take(&mut self, index: u32) -> Option<OwnedFd> {
        self.0.get_mut(usize::try_from(index).ok()?)?.take()
    }
}

/// The container a `CreateContainer` describes.
///
/// # Errors
/// [`ContainerError`] when a gofer does not answer.
pub fn container(message: proto::Container, fds: &mut Descriptors) -> Result<ContainerSpec, ContainerError> {
    let process = message.process.unwrap_or_default();
    let mounts = mount_plan(&message.root, message.mounts, fds)?;
    let limits = message.limits.unwrap_or_default();
    Ok(ContainerSpec {
        process: process_spec(process, message.stdio, fds),
        mounts: MountPlan {
            devices: message.devices.iter().filter_map(device).collect(),
            masked: message.masked_paths,
            read_only: message.readonly_paths,
            ..mounts
        },
        id: message.id,
        hostname: message.hostname,
        domainname: message.domainname,
        pids_max: limits.pids.unwrap_or(0),
        namespaces: namespaces(&message.namespaces),
    })
}

fn gofer(
    path: &[u8],
    index: Option<u32>,
    sharing: Sharing,
    fds: &mut Descriptors,
) -> Result<Arc<dyn FileSystem>, ContainerError> {
    let failed = |errno| PlanError {
        what: "connect to the gofer of",
        path: String::from_utf8_lossy(path).into_owned(),
        errno,
    };
    let socket = index.and_then(|index| fds.take(index)).ok_or_else(|| failed(Errno::EBADF))?;
    let fs = GoferFs::mount(socket, sharing, Device::new_anonymous()).map_err(failed)?;
    Ok(fs)
}

fn mount_plan(
    root: &Option<proto::Root>,
    mounts: Vec<proto::Mount>,
    fds: &mut Descriptors,
) -> Result<MountPlan, ContainerError> {
    let root = root.unwrap_or_default();
    let root_flags = if root.readonly { MountFlags::RDONLY } else { MountFlags::empty() };
    let planned: Result<Vec<PlannedMount>, ContainerError> =
        mounts.into_iter().map(|mount| planned_mount(mount, fds)).collect();
    Ok(MountPlan {
        root: gofer(b"/", Some(root.gofer_fd), Sharing::Exclusive, fds)?,
        root_source: b"rootfs".to_vec(),
        root_flags: root_flags.with_atime_default(),
        mounts: planned?,
        devices: Vec::new(),
        masked: Vec::new(),
        read_only: Vec::new(),
    })
}

fn planned_mount(mount: proto::Mount, fds: &mut Descriptors) -> Result<PlannedMount, ContainerError> {
    let source = if mount.gofer_fd.is_some() {
        let fs = gofer(&mount.destination, mount.gofer_fd, Sharing::Shared, fds)?;
        MountSource::Ready(fs, mount.source)
    } else {
        MountSource::Type {
            fs_type: mount.kind.into_bytes(),
            source: mount.source,
            options: mount.data.into_bytes(),
        }
    };
    let flags = MountFlags::from_bits_truncate(u32::try_from(mount.flags & 0xffff_ffff).unwrap_or(0));
    Ok(PlannedMount { destination: mount.destination, source, flags })
}

fn device(message: &proto::Device) -> Option<PlannedDevice> {
    Some(PlannedDevice {
        path: message.path.clone(),
        file_type: FileType::from_mode(message.mode)?,
        device: Device { major: message.major, minor: message.minor },
        mode: message.mode & 0o7777,
        uid: message.uid,
        gid: message.gid,
    })
}

fn namespaces(asked: &[proto::Namespace]) -> NamespacePlan {
    let source = |kind: proto::NamespaceKind| match asked.iter().find(|namespace| namespace.kind() == kind) {
        None => NamespaceSource::Sandbox,
        Some(namespace) if namespace.of_container.is_empty() => NamespaceSource::New,
        Some(namespace) => NamespaceSource::Container(namespace.of_container.clone()),
    };
    NamespacePlan {
        pid: source(proto::NamespaceKind::Pid),
        ipc: source(proto::NamespaceKind::Ipc),
        uts: source(proto::NamespaceKind::Uts),
        net: source(proto::NamespaceKind::Network),
    }
}

/// The process that a message describes, with its standard streams.
pub fn process_spec(
    message: proto::Process,
    stdio: Option<proto::Stdio>,
    fds: &mut Descriptors,
) -> ProcessSpec {
    let user = message.user.clone().unwrap_or_default();
    let stdio = stdio.unwrap_or_default();
    let mut take = |index: Option<u32>| index.and_then(|index| fds.take(index));
    let (stdin, stdout, stderr) = (take(stdio.stdin_fd), take(stdio.stdout_fd), take(stdio.stderr_fd));
    let size = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    let window = message.window.map_or((0, 0), |window| (size(window.rows), size(window.columns)));
    ProcessSpec {
        credentials: credentials(&message, &user),
        rlimits: message.rlimits.iter().filter_map(rlimit).collect(),
        args: message.args,
        env: message.env,
        cwd: message.cwd,
        umask: user.umask.unwrap_or(DEFAULT_UMASK) & 0o777,
        oom_score_adj: message.oom_score_adj.unwrap_or(0),
        stdio: if message.terminal {
            StdioSpec::Terminal { input: stdin, output: stdout, window }
        } else {
            StdioSpec::Files { stdin, stdout, stderr }
        },
    }
}

fn credentials(message: &proto::Process, user: &proto::User) -> Credentials {
    let set = Capability::from_bits_truncate;
    let capabilities = message.capabilities.unwrap_or_default();
    let mut groups = user.additional_gids.clone();
    groups.sort_unstable();
    groups.dedup();
    Credentials {
        permitted: set(capabilities.permitted),
        effective: set(capabilities.effective),
        inheritable: set(capabilities.inheritable),
        bounding: set(capabilities.bounding),
        ambient: set(capabilities.ambient),
        no_new_privs: message.no_new_privs,
        ..Credentials::new(user.uid, user.gid, groups, Capability::empty())
    }
}

fn rlimit(message: &proto::Rlimit) -> Option<(Resource, Rlimit)> {
    let resource = Resource::new(message.resource).ok()?;
    Some((resource, Rlimit { soft: message.soft, hard: message.hard }))
}
