//! OCI bundles, and the OCI command line run over them: `caisson`, or `runc` where runc is the judge.

use crate::bed::{Bed, Image};
use crate::command::Command;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A bundle being described: `config.json` as a JSON value that a test may bend as it likes.
pub struct Bundle<'bed> {
    bed: &'bed Bed,
    pub dir: PathBuf,
    pub id: String,
    pub config: Value,
}

impl<'bed> Bundle<'bed> {
    /// A bundle over the image's files, read-only, that runs `args`.
    pub fn new(bed: &'bed Bed, image: Image, args: &[&str]) -> Bundle<'bed> {
        let id = bed.fresh_id();
        let dir = bed.dir.join("bundles").join(&id);
        std::fs::create_dir_all(&dir)
            .unwrap_or_else(|error| panic!("cannot make {}: {error}", dir.display()));
        let mut config = default_config(&bed.image_root(image), args);
        config["linux"]["cgroupsPath"] = json!(format!("/{id}"));
        Bundle { bed, dir, id, config }
    }

    /// Writes `config.json` as it now is.
    #[track_caller]
    pub fn write(&self) -> &Self {
        self.write_raw(self.config.to_string().as_bytes())
    }

    /// Writes any bytes as `config.json`.
    #[track_caller]
    pub fn write_raw(&self, bytes: &[u8]) -> &Self {
        let path = self.dir.join("config.json");
        std::fs::write(&path, bytes)
            .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
        self
    }

    /// The command line's `run` of this bundle, in the foreground.
    pub fn run(&self) -> Command {
        self.bed.cli().args(["run", "--bundle"]).arg(&self.dir).arg(&self.id)
    }

    /// Another verb of the command line on this bundle's container: `VERB [WORDS] ID`.
    pub fn cli(&self, words: &[&str]) -> Command {
        self.bed.cli().args(words).arg(&self.id)
    }

    /// `create`, whose container keeps this command's output open: so it goes to a file.
    pub fn create(&self) -> Command {
        self.create_with(&[])
    }

    /// The same with global switches of the command line.
    pub fn create_with(&self, switches: &[&str]) -> Command {
        let shell = "exec >\"$0\" 2>&1 </dev/null; exec \"$@\"";
        let words =
            self.bed.cli().args(switches).args(["create", "--bundle"]).arg(&self.dir).arg(&self.id).words();
        Command::new("sh").args(["-c", shell]).arg(self.output_path()).args(words)
    }

    /// What a container that was made with [`Bundle::create`] has printed.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.output_path()).unwrap_or_default()).into_owned()
    }

    fn output_path(&self) -> PathBuf {
        self.dir.join("output")
    }

    /// The container's state as the command line reports it; `None` when it knows no such container.
    pub fn state(&self) -> Option<Value> {
        let state = self.cli(&["state"]).run();
        (state.code == Some(0)).then(|| serde_json::from_str(&state.stdout).ok()).flatten()
    }

    /// `created`, `running`, `stopped`, `paused`; empty when there is no such container.
    pub fn status(&self) -> String {
        let state = self.state().unwrap_or_default();
        state["status"].as_str().unwrap_or_default().to_string()
    }
}

impl Drop for Bundle<'_> {
    fn drop(&mut self) {
        self.cli(&["delete", "--force"]).run();
        std::fs::remove_dir_all(&self.dir).ok();
    }
}

impl Bed {
    /// The OCI command line with a root of its own.
    pub fn cli(&self) -> Command {
        let program = if self.is_caisson() { self.release.join("caisson") } else { PathBuf::from("runc") };
        let switches: &[&str] = if self.every_call_exits() { &["--exitless=off"] } else { &[] };
        Command::new(program).arg("--root").arg(self.dir.join("cli")).args(switches)
    }
}

/// The configuration that `runc spec` describes, over `root`.
pub fn default_config(root: &Path, args: &[&str]) -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let mount = |destination: &str, kind: &str, options: Value| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true
        },
        "root": {"path": root, "readonly": true},
        "hostname": "caisson",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            mount("/dev", "tmpfs", json!(["nosuid", "strictatime", "mode=755", "size=65536k"])),
            mount("/dev/pts", "devpts", json!(["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"])),
            mount("/dev/shm", "tmpfs", json!(["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"])),
            mount("/dev/mqueue", "mqueue", json!(["nosuid", "noexec", "nodev"])),
            mount("/sys", "sysfs", json!(["nosuid", "noexec", "nodev", "ro"])),
            mount("/tmp", "tmpfs", json!(["nosuid", "nodev", "mode=1777"]))
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}
