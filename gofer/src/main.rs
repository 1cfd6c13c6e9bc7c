#![forbid(unsafe_code)]
//! `caisson-gofer --config-fd N`: reads its configuration, confines itself, serves until its connections close.

use std::io::Write;
use std::os::fd::RawFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use caisson_gofer::config::{self, Inherited, Launch, LaunchError};
use caisson_gofer::{confine, serve};
use caisson_proto::lisafs::launch::CONFIG_FD_OPTION;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["--version"] => {
            println!("caisson-gofer {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        [option, number] if *option == CONFIG_FD_OPTION => match number.parse() {
            Ok(number) => run(number),
            Err(_) => fail(&format!("{CONFIG_FD_OPTION} {number}: not a number")),
        },
        _ => fail(&format!("usage: caisson-gofer {CONFIG_FD_OPTION} N")),
    }
}

fn fail(message: &str) -> ExitCode {
    complain(message);
    ExitCode::FAILURE
}

/// One line on standard error; nobody reading it is not a reason to fail.
fn complain(message: &str) {
    let _ = writeln!(std::io::stderr(), "caisson-gofer: {message}");
}

fn run(config_fd: RawFd) -> ExitCode {
    match prepare(config_fd) {
        Ok(launch) => serve_all(launch),
        Err(error) => fail(&error.to_string()),
    }
}

fn prepare(config_fd: RawFd) -> Result<Launch, LaunchError> {
    confine::die_with_parent()?;
    let mut inherited = Inherited::new()?;
    let config = config::read(inherited.take(config_fd, "configuration")?)?;
    let launch = config::prepare(config, &mut inherited)?;
    drop(inherited);
    confine::confine(&launch)?;
    Ok(launch)
}

/// A thread per connection; the end of the last is the end of the process.
fn serve_all(launch: Launch) -> ExitCode {
    let mut threads = Vec::new();
    for mount in launch.mounts {
        let name = mount.destination.clone();
        let thread = thread::Builder::new().name("connection".to_owned()).spawn(move || {
            if let Err(errno) = serve(&Arc::new(mount.session), mount.socket) {
                complain(&format!("mount {}: connection lost: {errno}", mount.destination));
            }
        });
        match thread {
            Ok(thread) => threads.push(thread),
            Err(error) => return fail(&format!("mount {name}: starting a thread: {error}")),
        }
    }
    if let Some(ready) = launch.ready {
        // A launcher that no longer listens has its reasons; the connections tell when it is over.
        let _ = rustix::io::write(ready, b"R");
    }
    let mut clean = true;
    for thread in threads {
        clean &= thread.join().is_ok();
    }
    if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
