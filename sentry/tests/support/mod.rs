//! A kernel on this machine's `/dev/kvm` that runs static C programs, for the tests that boot one. Skipped, loudly, without KVM.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use caisson_platform_kvm::{Arena, ArenaConfig, MachineConfig, open_kvm};
use caisson_sentry::Errno;
use caisson_sentry::fs::register::register_all;
use caisson_sentry::fs::tmpfs::{Tmpfs, TmpfsOptions};
use caisson_sentry::io::KernelSrc;
use caisson_sentry::kernel::container::{
    ContainerSpec, ExitListener, NamespacePlan, ProcessExit, ProcessSpec, StdioSpec,
};
use caisson_sentry::kernel::system_info::SystemInfo;
use caisson_sentry::kernel::{Kernel, KernelConfig};
use caisson_sentry::platform::kvm::KvmPlatform;
use caisson_sentry::task::Credentials;
use caisson_sentry::vfs::plan::{MountPlan, MountSource, PlannedMount};
use caisson_sentry::vfs::{
    Caller, FileSystem, Mount, MountFlags, MountNamespace, OpenFlags, OpenHow, Superblock, VfsPath,
};
use parking_lot::Mutex;

struct Exits(Mutex<mpsc::Sender<ProcessExit>>);

impl ExitListener for Exits {
    fn process_exited(&self, exit: ProcessExit) {
        let _ = self.0.lock().send(exit);
    }
}

struct Sandbox {
    kernel: Arc<Kernel>,
    exits: Mutex<mpsc::Receiver<ProcessExit>>,
}

/// One sandbox for all tests of this file: an arena is for ever.
fn sandbox() -> Option<&'static Sandbox> {
    static SANDBOX: OnceLock<Option<Sandbox>> = OnceLock::new();
    SANDBOX
        .get_or_init(|| {
            let _ = tracing_subscriber::fmt()
                .with_writer(std::io::stderr)
                .with_max_level(tracing::Level::WARN)
                .try_init();
            let kvm = match open_kvm() {
                Ok(kvm) => kvm,
                Err(error) => {
                    eprintln!("SKIPPED: {error}");
                    return None;
                }
            };
            let config = ArenaConfig { anonymous_bytes: 4 << 30, window_bytes: 4 << 30, max_frames: 1 << 18 };
            let arena = Arena::new(config).unwrap();
            let platform = KvmPlatform::new(kvm, arena, MachineConfig::default()).unwrap();
            let (sender, exits) = mpsc::channel();
            let config = KernelConfig { hostname: "boot".into(), system_info: SystemInfo::from_host() };
            let kernel = Kernel::new(platform, Arc::new(Exits(Mutex::new(sender))), config).unwrap();
            register_all(&kernel);
            kernel.set_strace(std::env::var_os("STRACE").is_some());
            Some(Sandbox { kernel, exits: Mutex::new(exits) })
        })
        .as_ref()
}

/// Compiles `source` statically and returns the program's bytes.
pub fn compile(name: &str, source: &str) -> Vec<u8> {
    let dir = std::env::temp_dir().join(format!("caisson-boot-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (input, output) = (dir.join("a.c"), dir.join("a.out"));
    std::fs::write(&input, source).unwrap();
    let status =
        Command::new("gcc").args(["-static", "-O1", "-pthread", "-o"]).arg(&output).arg(&input).status();
    assert!(status.unwrap().success());
    let program = std::fs::read(&output).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    program
}

fn root_with(program: &[u8]) -> Arc<dyn FileSystem> {
    let fs: Arc<dyn FileSystem> =
        Tmpfs::new(TmpfsOptions { mode: Some(0o755), ..TmpfsOptions::default() }).unwrap();
    let superblock = Superblock::new(fs.clone(), b"tmpfs").unwrap();
    let namespace = MountNamespace::new(Mount::new(superblock, MountFlags::empty()));
    let caller = Caller::kernel(namespace.root());
    let how = OpenHow::from_open((OpenFlags::CREAT | OpenFlags::WRONLY).bits(), 0o755).unwrap();
    let mut special = |_: &VfsPath, _: OpenFlags| Err(Errno::ENXIO);
    let file = caller.open(caller.root(), b"/program", &how, &mut special).unwrap();
    assert_eq!(file.write(&mut KernelSrc::new(program)).unwrap(), program.len());
    fs
}

/// Runs a program; its output and its exit status as a shell would see it.
#[allow(dead_code)] // not every test file does
pub fn run(name: &str, source: &str, args: &[&str]) -> Option<(String, u32)> {
    sandbox()?;
    run_with_mounts(name, &compile(name, source), args, Vec::new())
}

/// Runs a compiled program, likewise.
#[allow(dead_code)] // not every test file does
pub fn run_program(name: &str, program: &[u8], args: &[&str]) -> Option<(String, u32)> {
    run_with_mounts(name, program, args, Vec::new())
}

/// Runs a compiled program in a container with more mounts.
pub fn run_with_mounts(
    name: &str,
    program: &[u8],
    args: &[&str],
    more: Vec<PlannedMount>,
) -> Option<(String, u32)> {
    let sandbox = sandbox()?;
    let receiver = sandbox.exits.lock();
    let typed = |fs_type: &str, destination: &str| PlannedMount {
        destination: destination.into(),
        source: MountSource::Type { fs_type: fs_type.into(), source: fs_type.into(), options: Vec::new() },
        flags: MountFlags::empty(),
    };
    let (mut reader, writer) = std::io::pipe().unwrap();
    let stderr = writer.try_clone().unwrap();
    let mut argv = vec![b"/program".to_vec()];
    argv.extend(args.iter().map(|arg| arg.as_bytes().to_vec()));
    let spec = ContainerSpec {
        id: name.into(),
        process: ProcessSpec {
            args: argv,
            env: vec![b"PATH=/".to_vec()],
            cwd: b"/".to_vec(),
            credentials: Credentials::root(),
            umask: 0o022,
            rlimits: Vec::new(),
            oom_score_adj: 0,
            stdio: StdioSpec::Files {
                stdin: None,
                stdout: Some(OwnedFd::from(writer)),
                stderr: Some(OwnedFd::from(stderr)),
            },
        },
        mounts: MountPlan {
            root: root_with(program),
            root_source: b"tmpfs".to_vec(),
            root_flags: MountFlags::empty(),
            mounts: [typed("proc", "/proc"), typed("tmpfs", "/dev"), typed("tmpfs", "/tmp")]
                .into_iter()
                .chain(more)
                .collect(),
            devices: Vec::new(),
            masked: Vec::new(),
            read_only: Vec::new(),
        },
        hostname: String::new(),
        domainname: String::new(),
        pids_max: 0,
        namespaces: NamespacePlan::default(),
    };
    sandbox.kernel.create_container(spec).unwrap();
    sandbox.kernel.start(name).unwrap();
    let exit = receiver.recv_timeout(Duration::from_secs(60)).expect("the program should end");
    sandbox.kernel.delete(name, "").unwrap();
    let mut output = String::new();
    reader.read_to_string(&mut output).unwrap();
    Some((output, exit.status.shell_status()))
}
