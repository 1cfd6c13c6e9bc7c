//! A private containerd: own root, state and sockets; started, restarted, killed and taken down by a suite.

use crate::command::{Command, Finished, eventually, tail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

/// A running containerd of ours. Dropping it ends it and takes down the mounts below its directory.
pub struct Containerd {
    dir: PathBuf,
    socket: PathBuf,
    bin: Option<PathBuf>,
    path: String,
    daemon: RefCell<Option<Child>>,
    seen_of_log: Cell<usize>,
}

impl Containerd {
    /// Starts the containerd whose binaries are in `bin` (or in PATH) with its files in `dir`; its runtimes are looked
    /// for in `bin`, then in `release`.
    pub fn start(dir: &Path, bin: Option<String>, release: &Path) -> Containerd {
        let release = std::fs::canonicalize(release).unwrap_or(release.to_path_buf());
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{}:{path}", bin.as_deref().unwrap_or("/usr/bin"), release.display());
        let containerd = Containerd {
            dir: dir.to_path_buf(),
            socket: dir.join("containerd.sock"),
            bin: bin.map(PathBuf::from),
            path,
            daemon: RefCell::new(None),
            seen_of_log: Cell::new(0),
        };
        for part in ["root", "state", "fifo", "opt", "tmp"] {
            std::fs::create_dir_all(dir.join(part)).ok();
        }
        let config = containerd.config();
        std::fs::write(dir.join("config.toml"), config)
            .unwrap_or_else(|error| panic!("cannot write its config: {error}"));
        containerd.launch();
        containerd
    }

    fn config(&self) -> String {
        let dir = self.dir.display();
        // Plugins that no test uses, by their names in 1.6, 1.7 and 2.x: they cost time and look at the system.
        let unused = [
            "io.containerd.grpc.v1.cri",
            "io.containerd.cri.v1.images",
            "io.containerd.cri.v1.runtime",
            "io.containerd.snapshotter.v1.btrfs",
            "io.containerd.snapshotter.v1.zfs",
            "io.containerd.snapshotter.v1.devmapper",
            "io.containerd.snapshotter.v1.aufs",
            "io.containerd.snapshotter.v1.blockfile",
            "io.containerd.nri.v1.nri",
            "io.containerd.tracing.processor.v1.otlp",
        ];
        format!(
            "version = 2\nroot = \"{dir}/root\"\nstate = \"{dir}/state\"\ntemp = \"{dir}/tmp\"\n\
             disabled_plugins = {unused:?}\n\
             [grpc]\n  address = \"{dir}/containerd.sock\"\n[ttrpc]\n  address = \"{dir}/containerd.sock.ttrpc\"\n\
             [debug]\n  level = \"info\"\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\n  path = \"{dir}/opt\"\n"
        )
    }

    fn launch(&self) {
        let log = File::options().create(true).append(true).open(self.log_path());
        let log = log.unwrap_or_else(|error| panic!("cannot make containerd's log: {error}"));
        let errors = log.try_clone().unwrap_or_else(|error| panic!("cannot share containerd's log: {error}"));
        let daemon = std::process::Command::new(self.program("containerd"))
            .arg("--config")
            .arg(self.dir.join("config.toml"))
            .env("PATH", &self.path)
            // Inherited by shims and what they start, by which left-overs are told from other people's.
            .env("CAISSON_TEST_RUN", &self.dir)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .process_group(0)
            .spawn();
        *self.daemon.borrow_mut() =
            Some(daemon.unwrap_or_else(|error| panic!("cannot start containerd: {error}")));
        let up = eventually(Duration::from_secs(20), || {
            self.ctr().arg("version").limit(Duration::from_secs(5)).run().code == Some(0)
        });
        assert!(up, "containerd did not come up; its log ends with:\n{}", tail(&self.log()));
    }

    /// Ends it without a chance to tidy up, as `kill -9` does; containers and shims go on.
    pub fn kill(&self) {
        self.end(Signal::SIGKILL);
    }

    /// Starts it again after [`Containerd::kill`].
    pub fn restart(&self) {
        self.launch();
    }

    fn end(&self, signal: Signal) {
        if let Some(mut daemon) = self.daemon.borrow_mut().take() {
            kill(Pid::from_raw(daemon.id().cast_signed()), signal).ok();
            if !eventually(Duration::from_secs(10), || !matches!(daemon.try_wait(), Ok(None))) {
                daemon.kill().ok();
                daemon.wait().ok();
            }
        }
    }

    /// The daemon's process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.daemon.borrow().as_ref().map(Child::id)
    }

    fn program(&self, name: &str) -> PathBuf {
        self.bin.as_ref().map_or(PathBuf::from(name), |bin| bin.join(name))
    }

    /// `ctr` on this containerd.
    pub fn ctr(&self) -> Command {
        Command::new(self.program("ctr")).arg("--address").arg(&self.socket)
    }

    /// Runs `ctr` with the words of a line, for calls whose outcome does not matter.
    pub fn try_ctr(&self, line: &str) -> Finished {
        self.ctr().args(line.split_whitespace()).limit(Duration::from_secs(20)).run()
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Where FIFOs of tasks go, so that none are left in the system's directory.
    pub fn fifo_dir(&self) -> PathBuf {
        self.dir.join("fifo")
    }

    /// The bundle of a container while its task exists.
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.dir.join("state/io.containerd.runtime.v2.task/default").join(id)
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("containerd.log")
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// Prints the new end of the log.
    pub fn show_log_since_last_look(&self) {
        let log = self.log();
        let new = log.get(self.seen_of_log.get()..).unwrap_or_default();
        let usual = ["level=info", "cleaning up after shim disconnected", "copy shim log"];
        let trouble: Vec<&str> =
            new.lines().filter(|line| !usual.iter().any(|words| line.contains(words))).collect();
        println!("  containerd's log: {}", tail(&trouble.join("\n")));
        self.seen_of_log.set(log.len());
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.end(Signal::SIGTERM);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut ours: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
        ours.retain(|point| Path::new(point).starts_with(&self.dir));
        for point in ours.iter().rev() {
            Command::new("umount").args(["-l", point]).run();
        }
    }
}
