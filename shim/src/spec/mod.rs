//! Turns a bundle's `config.json` into plain messages and plans.
//!
//! The file comes from containerd or a person and may be broken or hostile. Everything is checked here once; what comes out
//! ([`Converted`]) has no names, no relative paths and no OCI types in it, and the sentry checks it again.
//!
//! ```text
//!   config.json ─ load ─▶ Spec ─ convert ─▶ Container      (to the sentry)
//!                                           GoferSource…   (to the launcher: root first, then binds)
//!                                           cgroup::Limits (to the host's cgroups)
//! ```
//!
//! Not supported, and refused or ignored as runc on a kernel without it would: hooks (refused), seccomp notification, rdma, intelRdt, personality,
//! AppArmor and SELinux labels (ignored, as on a host without these LSMs).

pub mod mounts;
pub mod process;
mod resources;
mod seccomp;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use caisson_proto::control::{
    Container, Device, IdMapping, KeyValue, Namespace, NamespaceKind, Root, Strace, valid_id,
};
use oci_spec::runtime::{Linux, LinuxDeviceType, LinuxIdMapping, LinuxNamespaceType, Spec};
use thiserror::Error;

use crate::cgroup;
use crate::launch::gofer::GoferSource;

/// Longest `config.json`: 100,000 arguments of ordinary length fit several times.
const MAX_CONFIG: u64 = 32 << 20;

/// Annotation that turns system-call tracing on (`true`) or names the calls to trace (`openat,read`).
pub const STRACE_ANNOTATION: &str = "dev.caisson.strace";
/// Annotation that sets the sentry's log level.
pub const LOG_LEVEL_ANNOTATION: &str = "dev.caisson.log-level";
/// Annotation for the sentry's own filter: `enforce`, `log` or `off`.
pub const SECCOMP_ANNOTATION: &str = "dev.caisson.sentry-seccomp";

/// What is wrong with a bundle.
#[derive(Debug, Error)]
pub enum SpecError {
    /// The file cannot be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// Its path.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is not a runtime spec.
    #[error("{path} is not a valid OCI runtime configuration: {error}")]
    Parse {
        /// Its path.
        path: PathBuf,
        /// Where and why.
        error: serde_json::Error,
    },
    /// A value makes no sense.
    #[error("config.json: {0}")]
    Invalid(String),
    /// Something that this runtime does not do.
    #[error("config.json: {0} is not supported")]
    Unsupported(&'static str),
    /// A path on the host.
    #[error("{what} {path}: {error}")]
    Host {
        /// What it is for.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// Why it cannot be used.
        error: io::Error,
    },
}

/// A spec that can be acted on.
#[derive(Debug)]
pub struct Converted {
    /// For the sentry. Descriptor 0 is the root's gofer connection, 1… those of the bind mounts in order; streams come after them.
    pub container: Container,
    /// For the gofer, in the same order.
    pub sources: Vec<GoferSource>,
    /// For the host's cgroups.
    pub limits: cgroup::Limits,
    /// Where the cgroup is to be, below the hierarchies' roots, without a leading slash.
    pub cgroup: PathBuf,
    /// The sentry's `oom_score_adj` on the host.
    pub oom_score_adj: Option<i32>,
    /// Annotations.
    pub annotations: HashMap<String, String>,
}

/// Reads `config.json` in `bundle`.
///
/// # Errors
/// [`SpecError::Read`], [`SpecError::Parse`].
pub fn load(bundle: &Path) -> Result<Spec, SpecError> {
    let path = bundle.join("config.json");
    let mut text = Vec::new();
    let read = File::open(&path).and_then(|f| {
        // Opening a FIFO would have blocked already; anything endless is cut.
        f.take(MAX_CONFIG.saturating_add(1)).read_to_end(&mut text)
    });
    let read = match read {
        Ok(n) if n as u64 > MAX_CONFIG => Err(io::Error::from(io::ErrorKind::FileTooLarge)),
        other => other,
    };
    read.map_err(|error| SpecError::Read { path: path.clone(), error })?;
    serde_json::from_slice(&text).map_err(|error| SpecError::Parse { path, error })
}

/// Converts the spec of container `id` in `bundle`. `rootfs` overrides the spec's root path (where the shim has mounted it).
///
/// # Errors
/// Any but the two of [`load`].
pub fn convert(id: &str, bundle: &Path, spec: &Spec, rootfs: Option<&Path>) -> Result<Converted, SpecError> {
    if !valid_id(id) {
        return Err(SpecError::Invalid(format!("container ID {id:?} is not valid")));
    }
    refuse_unsupported(spec)?;
    let root = spec.root().as_ref().ok_or_else(|| SpecError::Invalid("root is missing".into()))?;
    let root_path = rootfs.map_or_else(|| bundle.join(root.path()), Path::to_owned);
    let readonly = root.readonly().unwrap_or(false);
    let root_path = directory("rootfs", &root_path)?;
    let linux = spec.linux().clone().unwrap_or_default();
    let mut sources = vec![GoferSource {
        source: root_path,
        destination: "/".into(),
        read_only: readonly,
        recursive: true,
        receives_mounts: false,
        is_root: true,
        mount_points: Vec::new(),
    }];
    let mounts = mounts::convert(spec.mounts().as_deref().unwrap_or_default(), bundle, &mut sources)?;
    if readonly && let Some(root) = sources.first_mut() {
        // Elsewhere the sentry makes them.
        root.mount_points = mounts::mount_points(&mounts);
    }
    let process = spec
        .process()
        .as_ref()
        .ok_or_else(|| SpecError::Invalid("process is missing".into()))
        .and_then(process::convert)?;
    let resources = resources::convert(linux.resources().as_ref())?;
    let oom_score_adj = process.oom_score_adj;
    let annotations = spec.annotations().clone().unwrap_or_default();
    let cgroup = cgroup::location(linux.cgroups_path().as_deref(), id).ok_or_else(|| {
        SpecError::Invalid(format!("linux.cgroupsPath {:?} is not valid", linux.cgroups_path()))
    })?;
    let container = Container {
        id: id.to_owned(),
        process: Some(process),
        hostname: spec.hostname().clone().unwrap_or_default(),
        domainname: spec.domainname().clone().unwrap_or_default(),
        root: Some(Root { gofer_fd: 0, readonly }),
        mounts,
        devices: devices(&linux)?,
        masked_paths: paths(linux.masked_paths().as_deref()),
        readonly_paths: paths(linux.readonly_paths().as_deref()),
        sysctls: sysctls(&linux),
        namespaces: namespaces(&linux),
        limits: Some(resources.inside),
        seccomp: linux.seccomp().as_ref().map(seccomp::convert).transpose()?,
        cgroups_path: format!("/{}", cgroup.display()),
        root_propagation: mounts::propagation(linux.rootfs_propagation().as_deref().unwrap_or_default()),
        stdio: None,
        strace: annotations.get(STRACE_ANNOTATION).map(|v| strace(v)),
    };
    Ok(Converted { container, sources, limits: resources.outside, cgroup, oom_score_adj, annotations })
}

/// Converts resources alone, for an update: what the host enforces, what the sentry does.
///
/// # Errors
/// Values that mean nothing.
pub fn limits(
    resources: &oci_spec::runtime::LinuxResources,
) -> Result<(cgroup::Limits, caisson_proto::control::Limits), SpecError> {
    let both = resources::convert(Some(resources))?;
    Ok((both.outside, both.inside))
}

/// Reads the tracing switch: a boolean, or the names of the calls.
pub fn strace(value: &str) -> Strace {
    match value.trim() {
        "" | "0" | "false" | "off" => Strace::default(),
        "1" | "true" | "on" | "all" => Strace { enabled: true, ..Strace::default() },
        calls => Strace {
            enabled: true,
            calls: calls.split(',').map(|c| c.trim().to_owned()).filter(|c| !c.is_empty()).collect(),
            max_bytes: 0,
        },
    }
}

fn refuse_unsupported(spec: &Spec) -> Result<(), SpecError> {
    if spec.windows().is_some() || spec.solaris().is_some() || spec.vm().is_some() {
        return Err(SpecError::Unsupported("a platform other than Linux"));
    }
    let hooks = spec.hooks().as_ref().is_some_and(|h| {
        [h.create_runtime(), h.create_container(), h.start_container(), h.poststart(), h.poststop()]
            .into_iter()
            .any(|list| list.as_ref().is_some_and(|l| !l.is_empty()))
    });
    if hooks { Err(SpecError::Unsupported("hooks")) } else { Ok(()) }
}

fn directory(what: &'static str, path: &Path) -> Result<PathBuf, SpecError> {
    let failed = |error| SpecError::Host { what, path: path.to_owned(), error };
    let real = path.canonicalize().map_err(failed)?;
    if !real.is_dir() {
        return Err(failed(io::ErrorKind::NotADirectory.into()));
    }
    Ok(real)
}

fn paths(list: Option<&[String]>) -> Vec<Vec<u8>> {
    list.unwrap_or_default().iter().map(|p| p.as_bytes().to_vec()).collect()
}

fn sysctls(linux: &Linux) -> Vec<KeyValue> {
    let mut list: Vec<KeyValue> = linux
        .sysctl()
        .iter()
        .flatten()
        .map(|(key, value)| KeyValue { key: key.replace('/', "."), value: value.clone() })
        .collect();
    list.sort_by(|a, b| a.key.cmp(&b.key));
    list
}

fn devices(linux: &Linux) -> Result<Vec<Device>, SpecError> {
    linux
        .devices()
        .iter()
        .flatten()
        .map(|device| {
            let path = device.path();
            let number = |n: i64| {
                u32::try_from(n).map_err(|_| {
                    SpecError::Invalid(format!("device {}: number {n} is out of range", path.display()))
                })
            };
            let kind = match device.typ() {
                LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
                LinuxDeviceType::B => libc::S_IFBLK,
                LinuxDeviceType::P => libc::S_IFIFO,
                LinuxDeviceType::A => {
                    return Err(SpecError::Invalid(format!("device {}: type \"a\"", path.display())));
                }
            };
            Ok(Device {
                path: path.as_os_str().as_encoded_bytes().to_vec(),
                mode: kind | (device.file_mode().unwrap_or(0o666) & 0o7777),
                major: number(device.major())?,
                minor: number(device.minor())?,
                uid: device.uid().unwrap_or(0),
                gid: device.gid().unwrap_or(0),
            })
        })
        .collect()
}

fn namespaces(linux: &Linux) -> Vec<Namespace> {
    let convert = |list: &Option<Vec<LinuxIdMapping>>| {
        let mapping = |m: &LinuxIdMapping| IdMapping {
            container_id: m.container_id(),
            host_id: m.host_id(),
            size: m.size(),
        };
        list.iter().flatten().map(mapping).collect::<Vec<_>>()
    };
    let kind = |typ: LinuxNamespaceType| match typ {
        LinuxNamespaceType::Pid => NamespaceKind::Pid,
        LinuxNamespaceType::Mount => NamespaceKind::Mount,
        LinuxNamespaceType::Ipc => NamespaceKind::Ipc,
        LinuxNamespaceType::Uts => NamespaceKind::Uts,
        LinuxNamespaceType::Network => NamespaceKind::Network,
        LinuxNamespaceType::User => NamespaceKind::User,
        LinuxNamespaceType::Cgroup => NamespaceKind::Cgroup,
        LinuxNamespaceType::Time => NamespaceKind::Time,
    };
    let requested = linux.namespaces().iter().flatten();
    requested
        .map(|namespace| {
            let user = namespace.typ() == LinuxNamespaceType::User;
            Namespace {
                kind: kind(namespace.typ()).into(),
                // A path names a namespace of the host. Which container of this sandbox that means is for the driver to fill in.
                of_container: String::new(),
                uid_mappings: if user { convert(linux.uid_mappings()) } else { Vec::new() },
                gid_mappings: if user { convert(linux.gid_mappings()) } else { Vec::new() },
            }
        })
        .collect()
}

#[cfg(test)]
mod tests;
