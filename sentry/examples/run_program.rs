//! Runs programs of the host in a container without a shim and a gofer: the quickest way to try the kernel.
//!
//! ```text
//! run_program [--strace] [--counters] [--exitless=off] [--root HOST_DIR] [--bind HOST_DIR] [--dir HOST_DIR]… [--file HOST_FILE]… -- PROGRAM [ARG]…
//! ```
//! The root is a host directory behind a gofer in this process, or an empty tmpfs, with `/proc`, `/dev`, `/tmp` and copies of the
//! named files and directories at the same places, and at `/srv` a host directory that is shared with others. Standard streams are passed on; the exit status is the program's, as a shell reports it.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use caisson_platform_kvm::{Arena, ArenaConfig, MachineConfig, open_kvm};
use caisson_sentry::fs::gofer::{GoferFs, Sharing};
use caisson_sentry::fs::register::register_all;
use caisson_sentry::fs::tmpfs::{Tmpfs, TmpfsOptions};
use caisson_sentry::io::KernelSrc;
use caisson_sentry::kernel::container::{
    ContainerSpec, ExitListener, NamespacePlan, ProcessExit, ProcessSpec, StdioSpec,
};
use caisson_sentry::kernel::system_info::SystemInfo;
use caisson_sentry::kernel::{Kernel, KernelConfig};
use caisson_sentry::mm::patch_counters;
use caisson_sentry::platform::Platform;
use caisson_sentry::platform::kvm::KvmPlatform;
use caisson_sentry::task::Credentials;
use caisson_sentry::vfs::open::OpenHow;
use caisson_sentry::vfs::plan::{MountPlan, MountSource, PlannedMount};
use caisson_sentry::vfs::{Caller, Device, FileSystem, Mount, MountFlags, MountNamespace, Superblock};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

struct Silent;

impl ExitListener for Silent {
    fn process_exited(&self, _: ProcessExit) {}
}

#[derive(Default)]
struct Options {
    strace: bool,
    counters: bool,
    exits: bool,
    root: Option<PathBuf>,
    bind: Option<PathBuf>,
    copies: Vec<PathBuf>,
    command: Vec<String>,
}

fn options() -> Options {
    let mut options = Options::default();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--strace" => options.strace = true,
            "--counters" => options.counters = true,
            "--exitless=off" => options.exits = true,
            "--root" => options.root = args.next().map(PathBuf::from),
            "--bind" => options.bind = args.next().map(PathBuf::from),
            "--dir" | "--file" => options.copies.extend(args.next().map(PathBuf::from)),
            "--" => options.command = args.by_ref().collect(),
            other => panic!("unknown option {other}"),
        }
    }
    assert!(!options.command.is_empty(), "no program given");
    options
}

/// Copies a host path into the tree, with its parents.
fn copy(caller: &Caller<'_>, path: &Path) {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::PermissionsExt;
    let mut parents: Vec<&Path> = path.ancestors().skip(1).collect();
    parents.reverse();
    for parent in parents.into_iter().filter(|parent| parent.parent().is_some()) {
        let _ = caller.mkdir(caller.root(), parent.as_os_str().as_bytes(), 0o755);
    }
    let name = path.as_os_str().as_bytes();
    let meta = std::fs::symlink_metadata(path).expect("the path exists");
    if meta.is_symlink() {
        let target = std::fs::read_link(path).expect("link");
        let _ = caller.symlink(target.as_os_str().as_bytes(), caller.root(), name);
    } else if meta.is_dir() {
        let _ = caller.mkdir(caller.root(), name, meta.permissions().mode() & 0o7777);
        for entry in std::fs::read_dir(path).expect("directory") {
            copy(caller, &entry.expect("entry").path());
        }
    } else if meta.is_file() {
        let data = std::fs::read(path).expect("file");
        let flags = (libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC) as u32;
        let how = OpenHow::from_open(flags, meta.permissions().mode() & 0o7777).expect("flags");
        let file = caller.open(caller.root(), name, &how, &mut |_, _| unreachable!()).expect("create");
        let mut rest = data.as_slice();
        while !rest.is_empty() {
            let written = file.write(&mut KernelSrc::new(rest)).expect("write");
            rest = &rest[written..];
        }
    }
}

/// The host directory, served by a gofer's thread.
fn gofer(root: &Path, sharing: Sharing) -> Arc<dyn FileSystem> {
    use caisson_gofer::{MountOptions, Session, host, serve};
    let (server, client) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .expect("socketpair");
    let root = rustix::fs::open(root, OFlags::PATH, Mode::empty()).expect("the root exists");
    let flags = caisson_proto::lisafs::reply::MountFlags::empty();
    let options = MountOptions { flags, mounts: host::Mounts::Cross, objects: 1 << 20 };
    let host = Arc::new(host::Host::from_proc().expect("proc"));
    let session = Arc::new(Session::new(host, root, options).expect("session"));
    std::thread::spawn(move || serve(&session, server));
    GoferFs::mount(client, sharing, Device::new_anonymous()).expect("mount")
}

fn mount(place: &str, fs_type: &str) -> PlannedMount {
    PlannedMount {
        destination: place.into(),
        source: MountSource::Type { fs_type: fs_type.into(), source: fs_type.into(), options: Vec::new() },
        flags: MountFlags::empty(),
    }
}

/// What the program runs on and with.
fn start_kernel(options: &Options) -> (Arc<KvmPlatform>, Arc<Kernel>) {
    let arena = Arena::new(ArenaConfig::default()).expect("arena");
    let platform =
        KvmPlatform::new(open_kvm().expect("kvm"), arena, MachineConfig::default()).expect("machine");
    if !options.exits {
        platform.start_dispatchers().expect("a thread");
    }
    let config = KernelConfig { hostname: "caisson".into(), system_info: SystemInfo::from_host() };
    let kernel = Kernel::new(platform.clone(), Arc::new(Silent), config).expect("kernel");
    register_all(&kernel);
    kernel.set_strace(options.strace);
    (platform, kernel)
}

fn mount_plan(options: &Options) -> MountPlan {
    let root: Arc<dyn FileSystem> = match &options.root {
        Some(host) => gofer(host, Sharing::Exclusive),
        None => Tmpfs::new(TmpfsOptions::default()).expect("tmpfs"),
    };
    let superblock = Superblock::new(root.clone(), b"tmpfs").expect("superblock");
    let namespace = MountNamespace::new(Mount::new(superblock, MountFlags::empty()));
    let caller = Caller::kernel(namespace.root());
    for place in &options.copies {
        copy(&caller, &std::path::absolute(place).expect("path"));
    }
    let mut mounts = vec![mount("/proc", "proc"), mount("/sys", "sysfs"), mount("/dev", "tmpfs")];
    if let Some(host) = &options.bind {
        let source = MountSource::Ready(gofer(host, Sharing::Shared), b"shared".to_vec());
        mounts.push(PlannedMount { destination: "/srv".into(), source, flags: MountFlags::empty() });
    }
    MountPlan {
        root,
        root_source: b"tmpfs".to_vec(),
        root_flags: MountFlags::empty(),
        mounts,
        devices: Vec::new(),
        masked: Vec::new(),
        read_only: Vec::new(),
    }
}

fn process(options: &Options) -> ProcessSpec {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().ok();
    let stdout = std::io::stdout().as_fd().try_clone_to_owned().ok();
    let stderr = std::io::stderr().as_fd().try_clone_to_owned().ok();
    ProcessSpec {
        args: options.command.iter().map(|arg| arg.clone().into_bytes()).collect(),
        env: vec![b"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".to_vec(), b"HOME=/".to_vec()],
        cwd: b"/".to_vec(),
        credentials: Credentials::root(),
        umask: 0o022,
        rlimits: Vec::new(),
        oom_score_adj: 0,
        stdio: StdioSpec::Files { stdin, stdout, stderr },
    }
}

fn main() -> ExitCode {
    let options = options();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_target(false).init();
    let (platform, kernel) = start_kernel(&options);
    let spec = ContainerSpec {
        id: "one".into(),
        process: process(&options),
        mounts: mount_plan(&options),
        hostname: String::new(),
        domainname: String::new(),
        pids_max: 0,
        namespaces: NamespacePlan::default(),
    };
    if let Err(error) = kernel.create_container(spec) {
        eprintln!("{error}");
        return ExitCode::from(127);
    }
    kernel.start("one").expect("start");
    let exit = kernel.wait("one", "").expect("wait");
    if options.counters {
        for (name, count) in platform.counters().into_iter().chain(patch_counters()) {
            eprintln!("{count:>12} {name}");
        }
    }
    ExitCode::from(u8::try_from(exit.status.shell_status()).unwrap_or(255))
}
