//! From the launcher's configuration to mounts that are ready to serve.
//!
//! The configuration comes from the launcher, which is trusted; its numbers are checked all the same, so that a mistake
//! gives a message and not another file's descriptor.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use caisson_proto::lisafs::launch::{CONFIG_MAX, GoferConfig, GoferMount, Root};
use caisson_proto::lisafs::reply::MountFlags;
use prost::Message;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use thiserror::Error;

use crate::host::{Host, Mounts};
use crate::limits;
use crate::session::{MountOptions, Session};

/// Why a gofer does not start.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// The configuration's descriptor cannot be read.
    #[error("reading the configuration: {0}")]
    Read(#[source] std::io::Error),
    /// It is no configuration.
    #[error("decoding the configuration: {0}")]
    Decode(#[from] prost::DecodeError),
    /// It is longer than [`CONFIG_MAX`].
    #[error("the configuration is longer than {CONFIG_MAX} bytes")]
    TooLong,
    /// It has no mounts, or a mount without a root.
    #[error("the configuration lacks {0}")]
    Missing(String),
    /// Two things have the same descriptor.
    #[error("descriptor {0} is given twice")]
    Twice(RawFd),
    /// A descriptor cannot be taken.
    #[error("descriptor {number} ({what}): {errno}")]
    Descriptor {
        /// Its number.
        number: RawFd,
        /// What it was to be.
        what: String,
        /// Why not.
        errno: Errno,
    },
    /// Something about a mount failed.
    #[error("mount {destination}: {what}: {errno}")]
    Mount {
        /// Where the guest sees it.
        destination: String,
        /// What failed.
        what: &'static str,
        /// Why.
        errno: Errno,
    },
    /// A step of the process's own set-up failed.
    #[error("{what}: {errno}")]
    Process {
        /// What failed.
        what: &'static str,
        /// Why.
        errno: Errno,
    },
}

/// A mount that is ready to be served.
#[derive(Debug)]
pub struct Prepared {
    /// Its session.
    pub session: Session,
    /// Its connection.
    pub socket: OwnedFd,
    /// Where the guest sees it.
    pub destination: String,
}

/// Everything that the configuration named, opened.
#[derive(Debug)]
pub struct Launch {
    /// The mounts.
    pub mounts: Vec<Prepared>,
    /// Gets a byte when serving starts.
    pub ready: Option<OwnedFd>,
    /// Whether any mount lets the client create device nodes.
    pub device_nodes: bool,
}

/// Takes descriptors by number. They are duplicated, never adopted: the numbers themselves are closed later with all others
/// that are not ours, so that no number can be closed that something else has got meanwhile.
#[derive(Debug)]
pub struct Inherited {
    own: OwnedFd,
    taken: BTreeSet<RawFd>,
}

impl Inherited {
    /// Looks at the process's own table.
    ///
    /// # Errors
    /// [`LaunchError::Process`] where the kernel has no pidfds.
    pub fn new() -> Result<Self, LaunchError> {
        let own = pidfd_open(getpid(), PidfdFlags::empty())
            .map_err(|errno| LaunchError::Process { what: "opening a pidfd of this process", errno })?;
        Ok(Self { own, taken: BTreeSet::new() })
    }

    /// A duplicate of descriptor `number`, which may be asked for once.
    ///
    /// # Errors
    /// [`LaunchError::Twice`], [`LaunchError::Descriptor`].
    pub fn take(&mut self, number: RawFd, what: &str) -> Result<OwnedFd, LaunchError> {
        if !self.taken.insert(number) {
            return Err(LaunchError::Twice(number));
        }
        pidfd_getfd(&self.own, number, PidfdGetfdFlags::empty()).map_err(|errno| LaunchError::Descriptor {
            number,
            what: what.to_owned(),
            errno,
        })
    }
}

/// Reads the configuration to its end.
///
/// # Errors
/// [`LaunchError::Read`], [`LaunchError::TooLong`], [`LaunchError::Decode`].
pub fn read(fd: OwnedFd) -> Result<GoferConfig, LaunchError> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(CONFIG_MAX).unwrap_or(u64::MAX).saturating_add(1);
    File::from(fd).take(limit).read_to_end(&mut bytes).map_err(LaunchError::Read)?;
    if bytes.len() > CONFIG_MAX {
        return Err(LaunchError::TooLong);
    }
    Ok(GoferConfig::decode(bytes.as_slice())?)
}

/// Opens what the configuration names. Changes the process: its descriptor limit, its umask, its working directory.
///
/// # Errors
/// A [`LaunchError`] that names the mount or the step.
pub fn prepare(config: GoferConfig, inherited: &mut Inherited) -> Result<Launch, LaunchError> {
    if config.mounts.is_empty() {
        return Err(LaunchError::Missing("mounts".to_owned()));
    }
    if !config.new_root.is_empty() {
        crate::confine::root::enter(&config.new_root)?;
    }
    let process = |what| move |errno| LaunchError::Process { what, errno };
    let descriptors = limits::raise_descriptor_limit(config.max_descriptors)
        .map_err(process("raising the limit of descriptors"))?;
    let objects = limits::objects_per_connection(descriptors, config.mounts.len());
    // Roots are opened before the working directory changes; paths are absolute all the same.
    let mut opened = Vec::new();
    for mount in config.mounts {
        opened.push((open_root(&mount, inherited)?, inherited.take(mount.socket_fd, "connection")?, mount));
    }
    let proc_mount = match config.proc_fd {
        Some(number) => inherited.take(number, "proc")?,
        None => openat(CWD, c"/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(process("opening /proc"))?,
    };
    let ready = config.ready_fd.map(|number| inherited.take(number, "ready")).transpose()?;
    rustix::process::umask(Mode::empty());
    let host = std::sync::Arc::new(Host::enter(proc_mount).map_err(process("entering proc"))?);
    let device_nodes = opened.iter().any(|(_, _, mount)| mount.device_nodes);
    let mut mounts = Vec::new();
    for (root, socket, mount) in opened {
        let options = options(&mount, objects);
        let session = Session::new(std::sync::Arc::clone(&host), root, options).map_err(|errno| {
            LaunchError::Mount { destination: mount.destination.clone(), what: "reading the root", errno }
        })?;
        mounts.push(Prepared { session, socket, destination: mount.destination });
    }
    Ok(Launch { mounts, ready, device_nodes })
}

fn open_root(mount: &GoferMount, inherited: &mut Inherited) -> Result<OwnedFd, LaunchError> {
    match &mount.root {
        None => Err(LaunchError::Missing(format!("the root of mount {}", mount.destination))),
        Some(Root::Fd(number)) => {
            let given = inherited.take(*number, "root")?;
            path_only(&given).map_err(|errno| LaunchError::Mount {
                destination: mount.destination.clone(),
                what: "opening the root",
                errno,
            })
        }
        Some(Root::Path(path)) => {
            openat(CWD, path.as_str(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| {
                LaunchError::Mount { destination: mount.destination.clone(), what: "opening the root", errno }
            })
        }
    }
}

/// The same file as `O_PATH`: a descriptor that was opened for more would be more than needs to be held.
fn path_only(fd: impl AsFd) -> Result<OwnedFd, Errno> {
    Host::from_proc().and_then(|host| host.path_to(&fd)).or_else(|_| rustix::io::fcntl_dupfd_cloexec(fd, 0))
}

fn options(mount: &GoferMount, objects: usize) -> MountOptions {
    let flag = |set: bool, flag: MountFlags| if set { flag } else { MountFlags::empty() };
    MountOptions {
        flags: flag(mount.read_only, MountFlags::READ_ONLY)
            | flag(mount.connect_sockets, MountFlags::CONNECT)
            | flag(mount.bind_sockets, MountFlags::BIND)
            | flag(mount.device_nodes, MountFlags::DEVICE_NODES),
        mounts: if mount.recursive { Mounts::Cross } else { Mounts::Stay },
        objects,
    }
}
