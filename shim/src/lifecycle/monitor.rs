//! Watches a program of ours and reaps it, exactly once.

use std::sync::Arc;

use nix::unistd::Pid;
use std::os::fd::AsFd;
use tokio::sync::watch;

use crate::control::watch as watch_fd;
use crate::launch::{Child, ExitKind};

/// A sentry or gofer with somebody who reaps it.
#[derive(Debug, Clone)]
pub(super) struct Monitored {
    child: Arc<Child>,
    ended: watch::Receiver<Option<ExitKind>>,
}

impl Monitored {
    /// Starts to watch. Must be called within a tokio runtime.
    pub(super) fn new(child: Child) -> Self {
        let child = Arc::new(child);
        let (sender, ended) = watch::channel(None);
        let watched = child.clone();
        tokio::spawn(async move {
            let kind = reap(&watched).await;
            let _ = sender.send(Some(kind));
        });
        Self { child, ended }
    }

    pub(super) fn pid(&self) -> Pid {
        self.child.pid()
    }

    /// True when both watch the same process.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.child, &other.child)
    }

    /// Sends `SIGKILL` unless it has been reaped, after which the pid may be somebody else's.
    pub(super) fn kill(&self) {
        // The watcher reaps and reports in one step without an await in between, but on another thread: the pidfd is the proof.
        if self.ended.borrow().is_none() {
            self.child.kill();
        }
    }

    /// Waits until it has ended and was reaped.
    pub(super) async fn wait(&self) -> ExitKind {
        let mut ended = self.ended.clone();
        let seen = ended.wait_for(Option::is_some).await.map(|kind| *kind);
        seen.ok().flatten().unwrap_or(ExitKind::Signal(libc::SIGKILL))
    }
}

async fn reap(child: &Child) -> ExitKind {
    let watched = child.as_fd().try_clone_to_owned().and_then(watch_fd);
    if let Ok(pidfd) = watched {
        let _ = pidfd.readable().await;
    }
    // Readable means ended, so this does not wait; without a watched pidfd (out of descriptors) it has to.
    match child.reap() {
        Ok(Some(kind)) => kind,
        _ => child.wait().unwrap_or(ExitKind::Signal(libc::SIGKILL)),
    }
}
