//! The shim proper: listens, serves, and goes when it is no longer needed.

use std::env;
use std::fs;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use caisson_proto::control::launch::SeccompMode;
use containerd_shim::Flags;
use containerd_shim_protos::shim_async::create_task;
use containerd_shim_protos::ttrpc::r#async::Server;
use containerd_shim_protos::ttrpc::r#async::transport::Listener;
use nix::unistd::{dup2_stdout, setsid};
use tokio::signal::unix::{SignalKind, signal};

use super::service::TaskService;
use super::{log_pipe, publisher};
use crate::lifecycle::{Sandbox, Settings};

/// A shim that nobody has asked anything in this time was started in vain.
const FIRST_REQUEST: Duration = Duration::from_secs(60);
/// Longest time for the last events to be taken.
const LAST_EVENTS: Duration = Duration::from_secs(5);

/// Serves until containerd or a signal ends it.
///
/// # Errors
/// One line for the `start` action that waits on our standard output.
pub async fn run(flags: &Flags) -> Result<(), String> {
    let at = |what: &str| {
        let what = what.to_owned();
        move |e: io::Error| format!("{what}: {e}")
    };
    let ttrpc = env::var("TTRPC_ADDRESS").map_err(|_| "TTRPC_ADDRESS is not set".to_owned())?;
    let path = flags.socket.trim_start_matches("unix://").to_owned();
    if path.is_empty() {
        return Err("-socket is missing".into());
    }
    // Fails for a group leader, which is no harm.
    let _ = setsid();
    survive_before_containers();
    let bundle = env::current_dir().map_err(at("the working directory"))?;
    let log = log_pipe::open(&bundle).map_err(at("opening the log"))?;
    let for_children = log.try_clone().map_err(at("opening the log"))?;
    log_pipe::install(log, &flags.id, flags.debug);

    let (sandbox, events) = Sandbox::new(Settings {
        id: flags.id.clone(),
        log: for_children.into(),
        log_level: if flags.debug { "debug".into() } else { "info".into() },
        seccomp: SeccompMode::Enforce,
        strace: None,
    });
    let publisher = publisher::start(ttrpc, flags.namespace.clone(), events);
    let service = TaskService::new(sandbox.clone());
    let mut terminate = signal(SignalKind::terminate()).map_err(at("SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(at("SIGINT"))?;
    let mut server = listen(&path, &service)?;
    server.start().await.map_err(|e| e.to_string())?;
    // From now on `start` has its answer: the end of file of our standard output.
    let null = fs::File::options().write(true).open("/dev/null").map_err(at("/dev/null"))?;
    dup2_stdout(null).map_err(|e| format!("standard output: {e}"))?;

    tokio::select! {
        () = service.told_to_exit() => log::debug!("told to exit"),
        () = unused(&service) => log::warn!("nobody has connected; leaving"),
        _ = terminate.recv() => log::info!("SIGTERM"),
        _ = interrupt.recv() => log::info!("SIGINT"),
    }
    // Nobody new finds us; the running calls are answered.
    let _ = fs::remove_file(&path);
    sandbox.destroy().await;
    drop(sandbox);
    server.stop_listen().await;
    let answered = tokio::time::timeout(Duration::from_secs(2), server.shutdown()).await;
    log::debug!("server ended: {}", answered.is_ok());
    drop((server, service));
    let _ = tokio::time::timeout(LAST_EVENTS, publisher).await;
    Ok(())
}

async fn unused(service: &TaskService) {
    tokio::time::sleep(FIRST_REQUEST).await;
    if service.used() {
        std::future::pending::<()>().await;
    }
}

fn listen(path: &str, service: &TaskService) -> Result<Server, String> {
    if let Some(directory) = Path::new(path).parent() {
        fs::create_dir_all(directory).map_err(|e| format!("{}: {e}", directory.display()))?;
    }
    let bind = || UnixListener::bind(path);
    // `start` found nobody listening there, so a socket that is left belongs to the dead.
    let bound = bind().or_else(|_| {
        let _ = fs::remove_file(path);
        bind()
    });
    let listener = bound.map_err(|e| format!("{path}: {e}"))?;
    let listener = Listener::try_from(listener).map_err(|e| format!("{path}: {e}"))?;
    let mut version3 = create_task(Arc::new(service.clone()));
    let version2 = create_task(Arc::new(service.clone()));
    for (name, methods) in version2 {
        version3.insert(name.replace("containerd.task.v3.", "containerd.task.v2."), methods);
    }
    Ok(Server::new().add_listener(listener).register_service(version3))
}

/// When memory is short, containers go before their shim and the shim before containerd.
fn survive_before_containers() {
    const FILE: &str = "/proc/self/oom_score_adj";
    let inherited = fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if let Some(score) = inherited {
        let _ = fs::write(FILE, score.saturating_add(1).min(1000).to_string());
    }
}
