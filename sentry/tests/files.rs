//! File calls in a sandbox against the host: the same program, the same output. Skipped, loudly, without KVM.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use caisson_gofer::host::{Host, Mounts};
use caisson_gofer::{MountOptions, Session};
use caisson_proto::lisafs::reply::MountFlags as Allows;
use caisson_sentry::fs::gofer::{GoferFs, Sharing};
use caisson_sentry::vfs::plan::{MountSource, PlannedMount};
use caisson_sentry::vfs::{Device, MountFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

fn program() -> &'static [u8] {
    static PROGRAM: OnceLock<Vec<u8>> = OnceLock::new();
    PROGRAM.get_or_init(|| support::compile("files", include_str!("guest/files.c")))
}

/// A directory and the program in it, gone when dropped.
struct Place(PathBuf);

impl Place {
    fn new(section: &str) -> Place {
        // The program's expectations are tmpfs's.
        let path = PathBuf::from(format!("/dev/shm/caisson-files-{}-{section}", std::process::id()));
        std::fs::create_dir_all(path.join("work")).unwrap();
        std::fs::write(path.join("program"), program()).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path.join("program"), mode).unwrap();
        Place(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn on_host(section: &str) -> String {
    let place = Place::new(section);
    let output = Command::new(place.0.join("program"))
        .arg(place.0.join("work"))
        .arg(section)
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{section} on the host: {:?}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// How many lines further on two texts may meet again.
const AHEAD: usize = 8;

/// The lines that only one side has, `-` the host's and `+` the sandbox's.
fn differences(host: &str, sandbox: &str) -> Vec<String> {
    let (mut host, mut sandbox): (Vec<&str>, Vec<&str>) = (host.lines().collect(), sandbox.lines().collect());
    let mut found = Vec::new();
    while !host.is_empty() || !sandbox.is_empty() {
        let meeting = (0..AHEAD * 2)
            .flat_map(|sum| (0..=sum).map(move |a| (a, sum - a)))
            .find(|&(a, b)| host.get(a).is_some() && host.get(a) == sandbox.get(b));
        let (a, b) = meeting.unwrap_or((host.len(), sandbox.len()));
        found.extend(host.drain(..a).map(|line| format!("- {line}")));
        found.extend(sandbox.drain(..b).map(|line| format!("+ {line}")));
        let both = host.iter().zip(&sandbox).take_while(|(a, b)| a == b).count();
        host.drain(..both);
        sandbox.drain(..both);
    }
    found
}

/// Whose files the sandbox's are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Backing {
    Tmpfs,
    Gofer,
}

/// Serves a directory of the host; the server ends with the connection.
fn serve(dir: &Path) -> PlannedMount {
    let (server, client) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let root = rustix::fs::open(dir, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    let options = MountOptions { flags: Allows::empty(), mounts: Mounts::Stay, objects: 100_000 };
    let session = Arc::new(Session::new(Arc::new(Host::from_proc().unwrap()), root, options).unwrap());
    std::thread::spawn(move || caisson_gofer::serve(&session, server));
    let fs = GoferFs::mount(client, Sharing::Exclusive, Device::new_anonymous()).unwrap();
    PlannedMount {
        destination: b"/work".to_vec(),
        source: MountSource::Ready(fs, b"work".to_vec()),
        flags: MountFlags::empty(),
    }
}

fn is_about(line: &str, topics: &[&str]) -> bool {
    topics.iter().any(|topic| line.contains(topic))
}

fn compare(section: &str, backing: Backing, except: &[&str]) {
    let place = (backing == Backing::Gofer).then(|| Place::new(&format!("{section}-gofer")));
    let (name, directory) = match backing {
        Backing::Tmpfs => (section.to_string(), "/tmp"),
        Backing::Gofer => (format!("{section}-gofer"), "/work"),
    };
    let mounts = place.iter().map(|place| serve(&place.0.join("work"))).collect();
    let result = support::run_with_mounts(&name, program(), &[directory, section], mounts);
    let Some((got, status)) = result else { return };
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: {section} compares what root may do");
        return;
    }
    let expected = on_host(section);
    let mut differences = differences(&expected, &got);
    differences.retain(|line| !is_about(line, except));
    assert!(differences.is_empty() && status == 0, "{section}: status {status}\n{}", differences.join("\n"));
}

macro_rules! sections {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            compare(stringify!($name), Backing::Tmpfs, &[]);
        }
    )*};
}

sections! {
    descriptors reading sizes limits modes directories opening fifos locks watching memory_files attributes mounts
}

/// What differs on a gofer's files, and why.
const GOFER_DIFFERS: &[&str] = &[
    // The buffer is looked at before the end of the file is known.
    "read(fd, (void *)1, 1)",
    // It makes no device nodes.
    "\"null\"",
    " null: mode",
    // And so no whiteouts; the directory listed afterwards shows it.
    "RENAME_WHITEOUT",
    " al: mode",
    "loop1:10 loop2:10",
];

/// The same sections on files that a gofer serves from a tmpfs of the host.
mod gofer {
    use super::{Backing, GOFER_DIFFERS, compare};

    macro_rules! sections {
        ($($name:ident)*) => {$(
            #[test]
            fn $name() {
                compare(stringify!($name), Backing::Gofer, GOFER_DIFFERS);
            }
        )*};
    }

    sections! { reading limits modes directories fifos locks }
}
