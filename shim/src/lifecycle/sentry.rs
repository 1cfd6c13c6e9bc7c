//! The sandbox's sentry: started with the first container, watched until it ends.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use caisson_proto::control::launch::SeccompMode;
use caisson_proto::control::{Configure, KeyValue, Network, Reply, Request, Strace, VERSION};
use tokio::sync::mpsc;

use super::error::{Failure, Kind};
use super::monitor::Monitored;
use crate::cgroup;
use crate::control::{Client, Unasked};
use crate::launch::sentry::{SentryLaunch, start};

/// A running sentry.
#[derive(Debug, Clone)]
pub(super) struct Sentry {
    pub client: Client,
    pub process: Monitored,
}

/// What a sentry is to be.
pub(super) struct Plan {
    pub sandbox_id: String,
    pub hostname: String,
    pub log: OwnedFd,
    pub log_level: String,
    pub seccomp: SeccompMode,
    pub oom_score_adj: Option<i32>,
    pub cgroup: PathBuf,
    pub memory: u64,
    pub cpus: u32,
    pub strace: Option<Strace>,
    pub switches: Vec<KeyValue>,
}

/// Starts and configures a sentry.
///
/// # Errors
/// A [`Failure`] that names the step; no process is left behind then.
pub(super) async fn launch(plan: Plan) -> Result<(Sentry, mpsc::Receiver<Unasked>), Failure> {
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm").map_err(no_kvm)?;
    let configure = Configure {
        version: VERSION,
        sandbox_id: plan.sandbox_id.clone(),
        hostname: plan.hostname.clone(),
        memory: plan.memory,
        cpus: plan.cpus,
        strace: plan.strace.clone(),
        switches: plan.switches.clone(),
        kvm_fd: 0,
        network: Some(Network::None(true)),
    };
    let started = tokio::task::spawn_blocking(move || {
        let launch = SentryLaunch {
            sandbox_id: &plan.sandbox_id,
            log: plan.log.as_fd(),
            log_level: &plan.log_level,
            seccomp: plan.seccomp,
            oom_score_adj: plan.oom_score_adj,
        };
        start(&launch, |pid| cgroup::open(&plan.cgroup).add(pid).map_err(io::Error::other))
    });
    let (child, socket) = started.await.map_err(|e| Failure::internal("starting the sentry", e))??;
    let process = Monitored::new(child);
    let configured = async {
        let (client, events) = Client::new(socket).map_err(|e| Failure::internal("control socket", e))?;
        match client.ask(Request::Configure(configure), &[kvm.as_fd()]).await? {
            Reply::Configured(said) if said.version == VERSION => {
                log::info!("sentry {} runs: {}", process.pid(), said.platform);
                Ok((client, events))
            }
            Reply::Configured(said) => Err(Failure::new(
                Kind::Internal,
                format!("the sentry speaks version {} of the control protocol, not {VERSION}", said.version),
            )),
            _ => Err(Failure::new(Kind::Internal, "the sentry did not answer Configure properly")),
        }
    };
    match configured.await {
        Ok((client, events)) => Ok((Sentry { client, process }, events)),
        Err(failure) => {
            process.kill();
            let how = process.wait().await;
            let hint = format!("{failure} (the sentry ended with {how}; see its log)");
            Err(Failure { message: hint, ..failure })
        }
    }
}

fn no_kvm(error: io::Error) -> Failure {
    let hint = match error.kind() {
        io::ErrorKind::NotFound => {
            "this host has no KVM: load the kvm module, or enable (nested) virtualization"
        }
        io::ErrorKind::PermissionDenied => "the runtime needs root",
        _ => "KVM cannot be used",
    };
    Failure::new(Kind::Unavailable, format!("/dev/kvm: {error}; {hint}"))
}
