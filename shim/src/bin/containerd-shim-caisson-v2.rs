//! `containerd-shim-caisson-v2`: containerd starts it by name; see [`caisson_shim::task`].
#![forbid(unsafe_code)]

use std::process::ExitCode;

use caisson_shim::task::{RUNTIME, bootstrap, delete, serve};
use containerd_shim::Flags;
use containerd_shim_protos::protobuf::Message;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let flags = match containerd_shim::parse(&args) {
        Ok(flags) => flags,
        Err(error) => return fail(&error.to_string()),
    };
    if flags.version {
        println!("{RUNTIME}: version {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    let outcome = match flags.action.as_str() {
        _ if flags.info => info().and_then(|bytes| bootstrap::reply(&bytes).map_err(|e| e.to_string())),
        "start" => bootstrap::start(&flags)
            .map_err(|e| e.to_string())
            .and_then(|bytes| bootstrap::reply(&bytes).map_err(|e| e.to_string())),
        "delete" => delete::run(&flags)
            .map_err(|e| e.to_string())
            .and_then(|bytes| bootstrap::reply(&bytes).map_err(|e| e.to_string())),
        "" => return serving(&flags),
        other => Err(format!("unknown action {other:?}")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => fail(&message),
    }
}

fn serving(flags: &Flags) -> ExitCode {
    // Few threads: a shim waits nearly all the time, and there may be hundreds on a host.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let served = match runtime {
        Ok(runtime) => runtime.block_on(serve::run(flags)),
        Err(error) => Err(error.to_string()),
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // Read by the `start` action that waits for us.
            println!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn info() -> Result<Vec<u8>, String> {
    let mut info = containerd_shim_protos::types::introspection::RuntimeInfo {
        name: RUNTIME.to_owned(),
        ..Default::default()
    };
    info.version.mut_or_insert_default().version = env!("CARGO_PKG_VERSION").to_owned();
    info.write_to_bytes().map_err(|e| e.to_string())
}

fn fail(message: &str) -> ExitCode {
    eprintln!("{RUNTIME}: {message}");
    ExitCode::FAILURE
}
