//! What a container holds on the host, taken step by step and given back whole.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::Failure;
use super::monitor::Monitored;
use super::record::{ProcessMark, Record, STAGING};
use crate::cgroup::{self, Cgroup, Limits};
use crate::launch::gofer::{GoferLaunch, RootfsMount, start};
use crate::spec::Converted;

/// Longest time for a gofer to end by itself after its connections have closed.
const GOFER_GRACE: Duration = Duration::from_millis(500);

/// A container's cgroup, gofer and directory.
#[derive(Debug, Clone)]
pub(super) struct Resources {
    pub bundle: PathBuf,
    pub cgroup: PathBuf,
    pub gofer: Option<Monitored>,
    pub record: Record,
}

impl Resources {
    /// Makes the cgroup with its limits.
    ///
    /// # Errors
    /// The limit or directory that failed. Call [`Resources::release`] in any case.
    pub(super) fn new(bundle: &Path, cgroup: &Path) -> Self {
        let record = Record { cgroup: Some(cgroup.to_owned()), ..Record::default() };
        Self { bundle: bundle.to_owned(), cgroup: cgroup.to_owned(), gofer: None, record }
    }

    pub(super) fn group(&self) -> Box<dyn Cgroup> {
        cgroup::open(&self.cgroup)
    }

    /// Makes the cgroup and sets its limits.
    ///
    /// # Errors
    /// The directory or limit that failed.
    pub(super) fn make_cgroup(&self, limits: &Limits) -> Result<(), Failure> {
        self.record.save(&self.bundle).map_err(|e| Failure::internal("writing to the bundle", e))?;
        let group = self.group();
        group.create()?;
        Ok(group.set(limits)?)
    }

    /// Notes who runs, for a later clean-up.
    pub(super) fn note(&mut self, sentry: Option<&Monitored>) {
        self.record.sentry = sentry.and_then(|s| ProcessMark::of(s.pid()));
        self.record.gofer = self.gofer.as_ref().and_then(|g| ProcessMark::of(g.pid()));
        if let Err(error) = self.record.save(&self.bundle) {
            log::warn!("writing to the bundle: {error}");
        }
    }

    /// Gives everything back. The sentry has closed its connections or is dead.
    pub(super) async fn release(self) {
        if let Some(gofer) = &self.gofer
            && tokio::time::timeout(GOFER_GRACE, gofer.wait()).await.is_err()
        {
            gofer.kill();
            gofer.wait().await;
        }
        let Self { bundle, cgroup, record, .. } = self;
        let _ = tokio::task::spawn_blocking(move || {
            // Processes are reaped already: their pids must not be signalled any more.
            let rest = Record { sentry: None, gofer: None, cgroup: record.cgroup.and(Some(cgroup)) };
            rest.clean(&bundle);
        })
        .await;
    }
}

/// Starts the gofer and gives one connection per source.
///
/// # Errors
/// The mount or step that failed.
pub(super) async fn start_gofer(
    bundle: PathBuf,
    converted: &Converted,
    rootfs: Vec<RootfsMount>,
    log: OwnedFd,
) -> Result<(Monitored, Vec<OwnedFd>), Failure> {
    let (cgroup, sources) = (converted.cgroup.clone(), converted.sources.clone());
    let score = converted.oom_score_adj.unwrap_or(0);
    let started = tokio::task::spawn_blocking(move || {
        let staging = bundle.join(STAGING);
        match fs::create_dir(&staging) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Failure::internal("making a directory in the bundle", e));
            }
            _ => {}
        }
        let launch = GoferLaunch { rootfs, sources, staging: &staging, log: log.as_fd() };
        let confine = move |pid| {
            fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string())?;
            cgroup::open(&cgroup).add(pid).map_err(io::Error::other)
        };
        start(launch, confine).map_err(Failure::from)
    });
    let (child, connections) = started.await.map_err(|e| Failure::internal("starting the gofer", e))??;
    Ok((Monitored::new(child), connections))
}
