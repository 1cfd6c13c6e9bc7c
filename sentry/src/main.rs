#![forbid(unsafe_code)]
//! `caisson-sentry`: started by the shim with the control socket as descriptor 0 and the log as 1 and 2.

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use caisson_proto::control::launch::{FLAG_LOG_LEVEL, FLAG_SANDBOX_ID, FLAG_SECCOMP, SeccompMode};
use caisson_sentry::confine::confine;
use caisson_sentry::control::{Connection, serve};
use caisson_sentry::kernel::system_info::SystemInfo;
use tracing::Level;

/// The command line; see `caisson_proto::control::launch`.
struct Options {
    sandbox_id: String,
    seccomp: SeccompMode,
    log_level: Level,
}

fn options() -> Result<Options, String> {
    let mut options =
        Options { sandbox_id: String::new(), seccomp: SeccompMode::Enforce, log_level: Level::WARN };
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let value = args.next().ok_or_else(|| format!("{flag} wants a value"))?;
        let bad = || format!("{flag} does not take {value:?}");
        match flag.as_str() {
            FLAG_SANDBOX_ID => options.sandbox_id = value,
            FLAG_SECCOMP => options.seccomp = SeccompMode::parse(&value).ok_or_else(bad)?,
            FLAG_LOG_LEVEL => options.log_level = value.parse().map_err(|_| bad())?,
            _ => return Err(format!("{flag} is not a flag of caisson-sentry")),
        }
    }
    Ok(options)
}

fn run() -> Result<(), String> {
    let options = options()?;
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(options.log_level)
        .with_ansi(false)
        .with_target(false)
        .init();
    let socket: OwnedFd = std::io::stdin().as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
    let info = SystemInfo::from_host();
    confine(options.seccomp).map_err(|error| error.to_string())?;
    tracing::debug!(sandbox = options.sandbox_id, "confined");
    serve(Connection::new(socket), info).map_err(|error| error.to_string())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("caisson-sentry: {error}");
            ExitCode::FAILURE
        }
    }
}
