//! File calls in a sandbox against the host: the same program, the same output. Skipped, loudly, without KVM.

mod support;

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

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

fn compare(section: &str) {
    let Some((got, status)) = support::run_program(section, program(), &["/tmp", section]) else { return };
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: {section} compares what root may do");
        return;
    }
    let expected = on_host(section);
    let differences = differences(&expected, &got);
    assert!(differences.is_empty() && status == 0, "{section}: status {status}\n{}", differences.join("\n"));
}

macro_rules! sections {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            compare(stringify!($name));
        }
    )*};
}

sections! {
    descriptors reading sizes limits modes directories opening fifos locks watching memory_files attributes mounts
}
