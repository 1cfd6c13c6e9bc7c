//! Starts a container's gofer in a mount namespace that shows the container's files and nothing else.
//!
//! A thread of its own makes the mount namespace, because `unshare(CLONE_NEWNS)` acts on a thread and the work in between is too much for
//! a freshly cloned child. The thread stays for as long as the gofer lives: the gofer asks to be killed when its parent *thread*
//! dies, and that must mean the shim.
//!
//! ```text
//!   staging/          a tmpfs, the gofer's root after it pivots
//!     proc            of the gofer's own pid namespace
//!     m0  m1  m2 …    bind mounts of the root file system and of the sources of bind mounts
//! ```

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use caisson_proto::lisafs::launch::{CONFIG_FD_OPTION, GoferConfig, GoferMount, Root};
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{Pid, pipe2};
use prost::Message;

use super::mount_points::{self, MountPoint};
use super::spawn::{Spawn, SpawnError, spawn};
use super::{Child, LaunchError, programs};

/// Base name of the gofer's program.
pub const GOFER_PROGRAM: &str = "caisson-gofer";
/// Longest time a gofer may take until it serves, in milliseconds.
const READY_TIMEOUT: u16 = 10_000;

/// One mount that the gofer is to serve.
#[derive(Debug, Clone)]
pub struct GoferSource {
    /// Directory or file on the host.
    pub source: PathBuf,
    /// Where the container sees it; for messages.
    pub destination: String,
    /// Refuse changes.
    pub read_only: bool,
    /// Serve mounts below it too (`rbind`).
    pub recursive: bool,
    /// Receive mounts that the host makes below it later (`rslave`, `rshared`).
    pub receives_mounts: bool,
    /// The root file system, as opposed to a part of the host that others see as well.
    pub is_root: bool,
    /// What is made in it, if it is missing, before it becomes read-only.
    pub mount_points: Vec<MountPoint>,
}

/// A mount that makes up the root file system (an overlay, a bind, …), as containerd describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RootfsMount {
    /// File system type.
    pub kind: String,
    /// Device or directory.
    pub source: String,
    /// Options as words.
    pub options: Vec<String>,
}

/// What a gofer is started with.
pub struct GoferLaunch<'a> {
    /// Mounts to be made on the first source. They exist in the gofer's mount namespace only, so they end with it, whatever happens to us.
    pub rootfs: Vec<RootfsMount>,
    /// What it serves; the first is the root file system.
    pub sources: Vec<GoferSource>,
    /// An existing empty directory to assemble its root on. Nothing is visible there from outside.
    pub staging: &'a Path,
    /// Its standard error.
    pub log: BorrowedFd<'a>,
}

/// Starts a gofer and waits until it serves. Gives its process and one connection per source, in order.
///
/// `confine` runs while the child waits; it is to move the pid into the container's cgroup.
///
/// # Errors
/// [`LaunchError`]; neither process nor mount is left behind then.
pub fn start(
    launch: GoferLaunch<'_>,
    confine: impl FnOnce(Pid) -> io::Result<()> + Send + 'static,
) -> Result<(Child, Vec<OwnedFd>), LaunchError> {
    let failed = |(what, error): SpawnError| LaunchError::Host { program: GOFER_PROGRAM, what, error };
    let (path, program) = programs::open(GOFER_PROGRAM)?;
    let log = launch.log.try_clone_to_owned().map_err(|e| failed(("log".into(), e)))?;
    let staging = launch.staging.to_owned();
    let sources = launch.sources;
    let rootfs = launch.rootfs;
    let (sender, receiver) = mpsc::channel();
    let keeper = move || {
        let started = in_own_mounts(&path, &program, &rootfs, &sources, &staging, &log, confine);
        let pidfd = match started {
            Ok((child, connections)) => {
                let pidfd = child.as_fd().try_clone_to_owned();
                let _ = sender.send(Ok((child, connections)));
                pidfd
            }
            Err(e) => return drop(sender.send(Err(e))),
        };
        if let Ok(pidfd) = pidfd {
            wait_readable(pidfd.as_fd());
        }
    };
    thread::Builder::new()
        .name("gofer-keeper".into())
        .spawn(keeper)
        .map_err(|e| failed(("starting a thread".into(), e)))?;
    receiver.recv().map_err(|_| failed(("its thread".into(), io::Error::other("the thread ended"))))?
}

fn wait_readable(fd: BorrowedFd<'_>) {
    loop {
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::Error::EINTR) => {}
            _ => return,
        }
    }
}

fn in_own_mounts(
    path: &Path,
    program: &File,
    rootfs: &[RootfsMount],
    sources: &[GoferSource],
    staging: &Path,
    log: &OwnedFd,
    confine: impl FnOnce(Pid) -> io::Result<()>,
) -> Result<(Child, Vec<OwnedFd>), LaunchError> {
    let failed = |(what, error): SpawnError| LaunchError::Host { program: GOFER_PROGRAM, what, error };
    assemble(rootfs, sources, staging).map_err(failed)?;
    let plain = |e: nix::Error| failed(("descriptors".into(), e.into()));
    let null = File::open("/dev/null").map_err(|e| failed(("/dev/null".into(), e)))?;
    let (config_reader, config_writer) = pipe2(OFlag::O_CLOEXEC).map_err(plain)?;
    let (ready_reader, ready_writer) = pipe2(OFlag::O_CLOEXEC).map_err(plain)?;
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for _ in sources {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(plain)?;
        ours.push(a);
        theirs.push(b);
    }
    // 0 null, 1 and 2 log, 3 config, 4 ready, 5… connections.
    let mut fds = vec![null.as_fd(), log.as_fd(), log.as_fd(), config_reader.as_fd(), ready_writer.as_fd()];
    let first = i32::try_from(fds.len()).unwrap_or(i32::MAX);
    fds.extend(theirs.iter().map(AsFd::as_fd));
    let config = config(sources, staging, first).encode_to_vec();
    let text = |s: &[u8]| CString::new(s).map_err(|e| failed(("arguments".into(), e.into())));
    let proc = text(staging.join("proc").as_os_str().as_bytes())?;
    let what = Spawn {
        program: program.as_fd(),
        args: vec![text(path.as_os_str().as_bytes())?, text(CONFIG_FD_OPTION.as_bytes())?, text(b"3")?],
        env: Vec::new(),
        namespaces: CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWUTS,
        become_root: false,
        proc: Some(&proc),
        fds,
    };
    let child = spawn(&what, |pid| confine(pid).map_err(|e| ("moving it into its cgroup".to_owned(), e)))
        .map_err(failed)?;
    drop(what);
    drop((config_reader, ready_writer, theirs));
    match greet(config_writer, &config, ready_reader) {
        Ok(()) => Ok((child, ours)),
        Err(error) => {
            child.kill();
            let status = child.wait().map_or_else(|e| e.to_string(), |s| s.to_string());
            Err(match error {
                Some(error) => failed(("waiting until it serves".into(), error)),
                None => LaunchError::Died { program: GOFER_PROGRAM, status },
            })
        }
    }
}

/// Hands over the config and waits for the ready byte. `None`: it ended instead.
fn greet(writer: OwnedFd, config: &[u8], ready: OwnedFd) -> Result<(), Option<io::Error>> {
    let mut writer = File::from(writer);
    match writer.write_all(config) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Err(None),
        other => other.map_err(Some)?,
    }
    drop(writer);
    let mut fds = [PollFd::new(ready.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::from(READY_TIMEOUT)) {
        Ok(0) => return Err(Some(io::ErrorKind::TimedOut.into())),
        Ok(_) => {}
        Err(e) => return Err(Some(e.into())),
    }
    let mut byte = [0];
    match File::from(ready).read(&mut byte) {
        Ok(0) => Err(None),
        Ok(_) => Ok(()),
        Err(e) => Err(Some(e)),
    }
}

fn config(sources: &[GoferSource], staging: &Path, first_fd: i32) -> GoferConfig {
    let mounts =
        sources.iter().zip(first_fd..).zip(0usize..).map(|((source, socket_fd), index)| GoferMount {
            socket_fd,
            destination: source.destination.clone(),
            root: Some(Root::Path(format!("/m{index}"))),
            read_only: source.read_only,
            recursive: source.recursive,
            // Sockets of host processes are reachable only where the spec mounts them on purpose.
            connect_sockets: !source.is_root,
            bind_sockets: !source.is_root && !source.read_only,
            device_nodes: source.is_root,
        });
    GoferConfig {
        mounts: mounts.collect(),
        proc_fd: None,
        ready_fd: Some(4),
        max_descriptors: 0,
        new_root: staging.display().to_string(),
    }
}

/// Makes this thread's mount namespace and builds the small root in it.
fn assemble(rootfs: &[RootfsMount], sources: &[GoferSource], staging: &Path) -> Result<(), SpawnError> {
    let at = |what: String| move |e: nix::Error| (what, io::Error::from(e));
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).map_err(at("unshare".into()))?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .map_err(at("slave propagation".into()))?;
    if let Some(root) = sources.first() {
        mount_rootfs(rootfs, &root.source)?;
    }
    // All sources are opened before the tmpfs covers anything. They must be of this namespace to be bound.
    let opened = sources
        .iter()
        .map(|s| {
            let file =
                OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(&s.source);
            file.map_err(|e| (format!("{} (mounted on {})", s.source.display(), s.destination), e))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("caisson"), staging, Some("tmpfs"), flags, Some("mode=0755,size=64k"))
        .map_err(at(format!("tmpfs on {}", staging.display())))?;
    mount(none, staging, none, MsFlags::MS_PRIVATE, none).map_err(at("private staging".into()))?;
    let io_at = |what: &str| {
        let what = what.to_owned();
        move |e| (what, e)
    };
    fs::create_dir(staging.join("proc")).map_err(io_at("proc"))?;
    for ((source, file), index) in sources.iter().zip(&opened).zip(0usize..) {
        mount_points::make(file, &source.mount_points);
        bind(source, file, &staging.join(format!("m{index}")))?;
    }
    Ok(())
}

/// Mounts what containerd describes. A long list of overlay layers is mounted from their common directory, which changes the working
/// directory: of this thread only, since it has its own since `unshare`.
fn mount_rootfs(mounts: &[RootfsMount], target: &Path) -> Result<(), SpawnError> {
    for one in mounts {
        let text = |s: &'_ str| if s.is_empty() { None } else { Some(s.to_owned()) };
        containerd_shim::mount::mount_rootfs(
            text(&one.kind).as_deref(),
            text(&one.source).as_deref(),
            &one.options,
            target,
        )
        .map_err(|e| {
            (
                format!("mounting {} of type {} on {}", one.source, one.kind, target.display()),
                io::Error::other(e.to_string()),
            )
        })?;
    }
    Ok(())
}

fn bind(source: &GoferSource, file: &File, target: &Path) -> Result<(), SpawnError> {
    let name = source.source.display().to_string();
    let at = |what: &str| {
        let what = format!("{what} of {name}");
        move |e: nix::Error| (what, io::Error::from(e))
    };
    let made = match file.metadata() {
        Ok(m) if m.is_dir() => fs::create_dir(target),
        Ok(_) => File::create(target).map(drop),
        Err(e) => Err(e),
    };
    made.map_err(|e| (format!("mount point for {name}"), e))?;
    let none: Option<&str> = None;
    let recursive = if source.recursive { MsFlags::MS_REC } else { MsFlags::empty() };
    let from = format!("/proc/thread-self/fd/{}", file.as_raw_fd());
    mount(Some(from.as_str()), target, none, MsFlags::MS_BIND | recursive, none).map_err(at("bind mount"))?;
    if !source.receives_mounts {
        mount(none, target, none, MsFlags::MS_PRIVATE | recursive, none)
            .map_err(at("private propagation"))?;
    }
    let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    if source.read_only {
        flags |= MsFlags::MS_RDONLY;
    }
    mount(none, target, none, flags, none).map_err(at("remount"))
}
