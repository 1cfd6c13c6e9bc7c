//! The OCI command line, as runc's users know it.
//!
//! Every container has a *monitor*: a background process of this same program that plays the part that the shim plays under containerd (same
//! [`lifecycle`](crate::lifecycle)). Commands find it by a socket in the container's state directory and talk in single packets ([`wire`]); once the
//! container's first process has ended, the monitor gives everything back, notes the exit status and goes.
//!
//! ```text
//!   caisson create ──spawns──▶ caisson monitor ──▶ sentry, gofer
//!   caisson start, exec, … ──ROOT/ID/monitor.sock──┘
//!                              ROOT/ID/state.json    what `state` prints when nobody is alive
//! ```

mod args;
mod commands;
mod container;
mod monitor;
mod process;
mod show;
mod spec_file;
mod store;
mod terminal;
mod wire;

use std::fs::OpenOptions;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

pub use args::Arguments;

/// A failed command: what to print and the exit status.
#[derive(Debug)]
struct Failed {
    message: String,
    code: u8,
}

impl<E: std::fmt::Display> From<E> for Failed {
    fn from(error: E) -> Self {
        Self { message: error.to_string(), code: 1 }
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match commands::run(&arguments) {
        Ok(code) => ExitCode::from(code),
        Err(failed) => {
            report(&arguments, &failed.message);
            ExitCode::from(failed.code)
        }
    }
}

/// Says it on standard error and in the log file, whose JSON containerd and Docker read.
fn report(arguments: &Arguments, message: &str) {
    eprintln!("caisson: {message}");
    let Some(path) = &arguments.log else { return };
    let line = if arguments.log_format == args::LogFormat::Json {
        let time = show::rfc3339(crate::lifecycle::sandbox::now());
        serde_json::json!({"level": "error", "msg": message, "time": time}).to_string()
    } else {
        format!("level=error msg={message:?}")
    };
    if let Ok(mut file) = OpenOptions::new().append(true).create(true).open(path) {
        let _ = writeln!(file, "{line}");
    }
}
