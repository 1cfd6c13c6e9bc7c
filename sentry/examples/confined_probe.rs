//! Confines itself as a sentry does, then tries one thing; `tests/confinement.rs` looks at what became of it.
//!
//! Prints `done` when the thing was carried out, `refused: …` when the kernel said no. Most are not refused but fatal.

use std::io::Write;
use std::process::Command;

use caisson_proto::control::launch::SeccompMode;

fn main() {
    let mut args = std::env::args().skip(1);
    let mode =
        args.next().and_then(|m| SeccompMode::parse(&m)).expect("the first argument is a seccomp mode");
    let what = args.next().expect("the second argument says what to try");
    caisson_sentry::confine::confine(mode).expect("confinement");
    let result: Result<(), String> = match what.as_str() {
        "nothing" => Ok(()),
        "thread" => std::thread::spawn(|| ()).join().map_err(|_| "the thread failed".to_owned()),
        "open" => std::fs::File::open("/etc/passwd").map(drop).map_err(|e| e.to_string()),
        "execve" => Command::new("/bin/true").status().map(drop).map_err(|e| e.to_string()),
        "socket" => std::net::UdpSocket::bind("127.0.0.1:0").map(drop).map_err(|e| e.to_string()),
        "ptrace" => nix::sys::ptrace::traceme().map_err(|e| e.to_string()),
        "mount" => {
            let none: Option<&str> = None;
            nix::mount::mount(none, "/", Some("tmpfs"), nix::mount::MsFlags::empty(), none)
                .map_err(|e| e.to_string())
        }
        "kill" => nix::sys::signal::kill(nix::unistd::Pid::from_raw(-1), None).map_err(|e| e.to_string()),
        "park" => {
            // Stays alive so that the test can read /proc.
            let _ = writeln!(std::io::stdout(), "parked");
            let _ = std::io::stdin().read_line(&mut String::new());
            Ok(())
        }
        other => Err(format!("unknown probe {other}")),
    };
    let _ = match result {
        Ok(()) => writeln!(std::io::stdout(), "done"),
        Err(e) => writeln!(std::io::stdout(), "refused: {e}"),
    };
}
