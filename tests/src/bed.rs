//! The test bed: one directory, one private containerd and the images, all made on first use and taken down with it.
//!
//! Environment, set by suite.sh:
//! `CAISSON_TEST_RUNTIME` (default `io.containerd.caisson.v2`), `CAISSON_TEST_RELEASE` (directory of the release
//! binaries), `CAISSON_TEST_CONTAINERD` (directory of the containerd to use; default: the system's binaries),
//! `CAISSON_TEST_DEBIAN` (directory made by debian-root.sh), `CAISSON_CACHE`, `CAISSON_TEST_EXITLESS` (`off`: every system call of
//! every sandbox leaves the guest).

use crate::command::Command;
use crate::container::ContainerBuilder;
use crate::containerd::Containerd;
use crate::suite::Skip;
use std::cell::{Cell, OnceCell};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The root file systems that tests run in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Image {
    /// Debian's static busybox.
    Busybox,
    /// The Debian 12 tree of debian-root.sh.
    Debian,
}

/// See the module's text.
pub struct Bed {
    /// Everything that a suite makes is below it.
    pub dir: PathBuf,
    /// Stands in names of cgroups and containers, so that left-overs can be told from other people's.
    pub run: String,
    pub runtime: String,
    /// Where the release binaries are.
    pub release: PathBuf,
    /// Whether system calls may be answered without leaving the guest.
    pub exitless: bool,
    containerd: OnceCell<Containerd>,
    busybox: OnceCell<()>,
    debian: OnceCell<()>,
    containers: Cell<u32>,
}

impl Bed {
    /// Reads the environment and makes the directory.
    pub fn new() -> Bed {
        let run = format!("caisson-tests-{}", std::process::id());
        let dir = std::env::temp_dir().join(&run);
        std::fs::create_dir_all(&dir)
            .unwrap_or_else(|error| panic!("cannot make {}: {error}", dir.display()));
        Bed {
            dir,
            run,
            runtime: setting("CAISSON_TEST_RUNTIME").unwrap_or("io.containerd.caisson.v2".into()),
            release: setting("CAISSON_TEST_RELEASE").unwrap_or("target/release".into()).into(),
            exitless: setting("CAISSON_TEST_EXITLESS").as_deref() != Some("off"),
            containerd: OnceCell::new(),
            busybox: OnceCell::new(),
            debian: OnceCell::new(),
            containers: Cell::new(0),
        }
    }

    /// One line about what is under test.
    pub fn describe(&self) -> String {
        format!(
            "runtime {}, containerd {}{}",
            self.runtime,
            containerd_directory().unwrap_or("of the system".into()),
            if self.every_call_exits() { ", every call by an exit" } else { "" }
        )
    }

    /// Whether the runtime under test is Caisson, and not the one that the tests were proven with.
    pub fn is_caisson(&self) -> bool {
        self.runtime.contains("caisson")
    }

    /// Whether the runtime is told to make every system call by an exit.
    pub fn every_call_exits(&self) -> bool {
        self.is_caisson() && !self.exitless
    }

    /// Skips a test of what only Caisson has.
    pub fn need_caisson(&self) -> Result<(), Skip> {
        if self.is_caisson() { Ok(()) } else { Err(Skip(format!("not for {}", self.runtime))) }
    }

    /// The private containerd, started on first use.
    pub fn containerd(&self) -> &Containerd {
        self.containerd.get_or_init(|| Containerd::start(&self.dir, containerd_directory(), &self.release))
    }

    /// `ctr`, talking to the private containerd.
    pub fn ctr(&self) -> Command {
        self.containerd().ctr()
    }

    /// The image's name, after importing it on first use.
    pub fn image(&self, image: Image) -> &'static str {
        let (once, name, file) = match image {
            Image::Busybox => {
                (&self.busybox, "docker.io/caisson/busybox:latest", cache().join("busybox-image.tar"))
            }
            Image::Debian => {
                (&self.debian, "docker.io/caisson/debian:latest", debian_directory().join("image.tar"))
            }
        };
        once.get_or_init(|| {
            let import = self.ctr().args(["images", "import"]).arg(&file);
            import.limit(Duration::from_secs(180)).ok();
        });
        name
    }

    /// A directory with the image's files, for tests that read or bind them (never written to).
    pub fn image_root(&self, image: Image) -> PathBuf {
        match image {
            Image::Debian => debian_directory().join("root"),
            Image::Busybox => {
                let root = self.dir.join("busybox-root");
                if !root.exists() {
                    for part in ["bin", "dev", "etc", "proc", "root", "run", "sys", "tmp"] {
                        std::fs::create_dir_all(root.join(part)).ok();
                    }
                    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").ok();
                    std::fs::write(root.join("etc/group"), "root:x:0:\n").ok();
                    Command::new("cp").arg("/bin/busybox").arg(root.join("bin/busybox")).ok();
                    for applet in Command::new("/bin/busybox")
                        .arg("--list")
                        .ok()
                        .lines()
                        .filter(|name| *name != "busybox")
                    {
                        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).ok();
                    }
                }
                root
            }
        }
    }

    /// A container to be described and run, under an id of its own.
    pub fn container(&self, image: Image) -> ContainerBuilder<'_> {
        ContainerBuilder::new(self, image, self.fresh_id())
    }

    /// A busybox container running `script` in its shell.
    pub fn sh(&self, script: &str) -> ContainerBuilder<'_> {
        self.container(Image::Busybox).args(["sh", "-c", script])
    }

    /// A Debian container running `script` in bash.
    pub fn bash(&self, script: &str) -> ContainerBuilder<'_> {
        self.container(Image::Debian).args(["bash", "-c", script])
    }

    /// A container id that was not used before.
    pub fn fresh_id(&self) -> String {
        self.containers.set(self.containers.get() + 1);
        format!("{}-c{}", self.run, self.containers.get())
    }

    /// A new directory for a test's files.
    pub fn scratch(&self, name: &str) -> PathBuf {
        let path = self.dir.join("scratch").join(format!("{name}-{}", self.fresh_id()));
        std::fs::create_dir_all(&path)
            .unwrap_or_else(|error| panic!("cannot make {}: {error}", path.display()));
        path
    }

    /// Prints what containerd and the shims logged since the last time, for a test that failed.
    pub fn show_log_since_last_look(&self) {
        if let Some(containerd) = self.containerd.get() {
            containerd.show_log_since_last_look();
        }
    }

    /// The running containerd, if a test has started one.
    pub fn started_containerd(&self) -> Option<&Containerd> {
        self.containerd.get()
    }
}

impl Default for Bed {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        drop(self.containerd.take());
        std::fs::remove_dir_all(&self.dir).ok();
    }
}

fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn containerd_directory() -> Option<String> {
    setting("CAISSON_TEST_CONTAINERD")
}

/// Where downloads and images are kept between runs.
pub fn cache() -> PathBuf {
    setting("CAISSON_CACHE")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(&setting("HOME").unwrap_or("/root".into())).join(".cache/caisson-tests"))
}

fn debian_directory() -> PathBuf {
    match setting("CAISSON_TEST_DEBIAN") {
        Some(directory) => directory.into(),
        None => panic!("CAISSON_TEST_DEBIAN is not set: run the suite through suite.sh"),
    }
}
