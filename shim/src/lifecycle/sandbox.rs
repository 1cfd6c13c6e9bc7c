//! The driver: containers run and go. How they come is in [`creation`], what is done with one that lives in [`operations`].

mod creation;
mod operations;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use caisson_proto::control as wire;
use caisson_proto::control::launch::SeccompMode;
use caisson_proto::control::{Reply, Request};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::error::{Failure, Kind};
use super::event::Event;
use super::resources::Resources;
use super::sentry::Sentry;
use super::state::{ExitInfo, Input, Phase};
use super::table::{Container, Process, Table};
use crate::control::{ControlError, Unasked};
use crate::launch::ExitKind;
use crate::launch::gofer::RootfsMount;
use crate::stdio::{Holds, Names, Streams, open};

/// For how long a client that does not read a process's output delays the news of its exit, and one that reads slowly.
const READER_STALLS: Duration = Duration::from_secs(2);
const READING_LASTS: Duration = Duration::from_secs(10);

/// What holds for the whole sandbox.
#[derive(Debug)]
pub struct Settings {
    /// Its ID: the first container's.
    pub id: String,
    /// Where sentry and gofers write their log.
    pub log: OwnedFd,
    /// Log level, unless an annotation says otherwise.
    pub log_level: String,
    /// The sentry's filter, unless an annotation says otherwise.
    pub seccomp: SeccompMode,
    /// Tracing, unless an annotation says otherwise.
    pub strace: Option<wire::Strace>,
}

/// Where a process's streams come from.
#[derive(Debug)]
pub enum Source {
    /// To be opened by name.
    Names(Names),
    /// Open already.
    Open(Streams),
}

/// A container to be created.
#[derive(Debug)]
pub struct CreateRequest {
    /// Its ID.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Where this runtime keeps its own files about it; may be the bundle.
    pub directory: PathBuf,
    /// Mounts of its root file system; none when it is a directory already.
    pub rootfs: Vec<RootfsMount>,
    /// Its streams.
    pub source: Source,
    /// Whether it has a terminal; `None` leaves it to the spec.
    pub terminal: Option<bool>,
    /// Annotations from elsewhere (runtime options); the spec's own win.
    pub annotations: BTreeMap<String, String>,
}

/// A process to be added.
#[derive(Debug)]
pub struct ExecRequest {
    /// The container.
    pub id: String,
    /// The process's ID.
    pub exec: String,
    /// What to run.
    pub process: wire::Process,
    /// Its streams.
    pub source: Source,
}

/// What is known about a process.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Where it is in its life.
    pub phase: Phase,
    /// Its pid.
    pub pid: u32,
    /// Its streams.
    pub names: Names,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// The container's bundle.
    pub bundle: String,
}

/// A sandbox. Cheap to clone; all clones are the same sandbox.
#[derive(Clone)]
pub struct Sandbox {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    table: Mutex<Table>,
    /// Held while a sentry is started, so that there is one.
    sentry: tokio::sync::Mutex<Option<Sentry>>,
}

impl Sandbox {
    /// An empty sandbox and its events, in the order in which they are to be published.
    pub fn new(settings: Settings) -> (Self, mpsc::UnboundedReceiver<Event>) {
        let (events, receiver) = mpsc::unbounded_channel();
        let table = Mutex::new(Table { containers: BTreeMap::new(), events });
        (Self { inner: Arc::new(Inner { settings, table, sentry: tokio::sync::Mutex::default() }) }, receiver)
    }

    /// True when it has no containers.
    pub fn is_empty(&self) -> bool {
        self.inner.table.lock().containers.is_empty()
    }

    async fn running(&self) -> Result<Sentry, Failure> {
        let gone = || Failure::new(Kind::Unavailable, "the sandbox's sentry is gone");
        self.inner.sentry.lock().await.clone().ok_or_else(gone)
    }

    fn watch_sentry(&self, sentry: Sentry, mut events: mpsc::Receiver<Unasked>) {
        let this = self.clone();
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                match event {
                    Unasked::Exit(exit) => {
                        // Those behind it wait, too: exits are told in order.
                        this.output_read(&exit).await;
                        this.exited(exit);
                    }
                    Unasked::Oom(id) => drop(this.inner.table.lock().events.send(Event::Oom { id })),
                    Unasked::Gone(why) => {
                        log::info!("control connection: {why}");
                        break;
                    }
                }
            }
            // Without its connection a sentry is of no use, whatever it is doing.
            sentry.process.kill();
            let how = sentry.process.wait().await;
            this.sentry_died(&sentry, how).await;
        });
    }

    async fn sentry_died(&self, sentry: &Sentry, how: ExitKind) {
        {
            let mut slot = self.inner.sentry.lock().await;
            // One that was taken out on purpose has no containers any more, and another may have come since.
            if slot.as_ref().is_none_or(|s| !s.process.is(&sentry.process)) {
                return;
            }
            *slot = None;
        }
        let status = match how {
            ExitKind::Signal(signal) => u32::try_from(signal).unwrap_or(9).saturating_add(128),
            ExitKind::Code(_) => 137,
        };
        self.report_host_oom().await;
        let mut table = self.inner.table.lock();
        if !table.containers.is_empty() {
            log::warn!("the sentry ended with {how}");
        }
        table.end_all(None, ExitInfo { status, at_unix_nanos: now() });
    }

    /// Publishes an OOM event for every container whose cgroup counts a kill.
    async fn report_host_oom(&self) {
        let groups: Vec<(String, Resources)> = {
            let table = self.inner.table.lock();
            let entry = |(id, c): (&String, &Container)| c.resources.clone().map(|r| (id.clone(), r));
            table.containers.iter().filter(|(_, c)| !c.oom_reported).filter_map(entry).collect()
        };
        let count =
            move || groups.into_iter().filter(|(_, r)| r.group().oom_kills() > 0).map(|(id, _)| id).collect();
        let killed: Vec<String> = blocking(count).await.unwrap_or_default();
        let mut table = self.inner.table.lock();
        for id in killed {
            if let Ok(container) = table.container(&id) {
                container.oom_reported = true;
            }
            let _ = table.events.send(Event::Oom { id });
        }
    }

    fn watch_gofer(&self, id: String, gofer: super::monitor::Monitored) {
        let this = self.clone();
        tokio::spawn(async move {
            let how = gofer.wait().await;
            let alive =
                this.inner.table.lock().container(&id).is_ok_and(|c| !c.deleting && !stopped(c.init.phase));
            if !alive {
                return;
            }
            log::warn!("the gofer of container {id} ended with {how}; killing the container");
            let kill = wire::Kill { container_id: id.clone(), exec_id: String::new(), signal: 9, all: true };
            let killed = match this.running().await {
                Ok(sentry) => sentry.client.order(Request::Kill(kill)).await.map_err(Failure::from),
                Err(failure) => Err(failure),
            };
            if let Err(failure) = killed {
                log::warn!("killing container {id}: {failure}");
            }
        });
    }

    /// Waits until the client has read what the process wrote, as long as it goes on reading.
    async fn output_read(&self, exit: &wire::Exit) {
        let Some(process) = &exit.process else { return };
        let unread = || {
            let mut table = self.inner.table.lock();
            table.process(&process.container_id, &process.exec_id).map_or(0, |p| p.holds.unread())
        };
        let begun = Instant::now();
        let (mut left, mut last_read, mut pause) = (unread(), begun, Duration::from_millis(1));
        while left > 0 && last_read.elapsed() < READER_STALLS && begun.elapsed() < READING_LASTS {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
            let before = std::mem::replace(&mut left, unread());
            if left != before {
                last_read = Instant::now();
            }
        }
    }

    fn exited(&self, exit: wire::Exit) {
        let Some(process) = exit.process else { return };
        let info = ExitInfo { status: exit.status, at_unix_nanos: exit.at_unix_nanos };
        let (id, exec) = (&process.container_id, &process.exec_id);
        let mut table = self.inner.table.lock();
        if exec.is_empty() {
            // The end of pid 1 is the end of its pid namespace; execs must be reported before the container.
            let execs: Vec<String> =
                table.container(id).map(|c| c.execs.keys().cloned().collect()).unwrap_or_default();
            let killed = ExitInfo { status: 137, ..info };
            for exec in &execs {
                if table.process(id, exec).is_ok_and(|p| !matches!(p.phase, Phase::Creating | Phase::Created))
                {
                    let _ = table.apply(id, exec, Input::Exited(killed), "end");
                }
            }
        }
        if let Err(failure) = table.apply(id, exec, Input::Exited(info), "end") {
            log::warn!("the sentry reported an exit that does not fit: {failure}");
        }
    }

    /// Starts a container (`exec` empty) or an added process; gives its pid.
    ///
    /// # Errors
    /// [`Failure`]. A container that could not be started is as it was; a process too.
    pub async fn start(&self, id: &str, exec: &str) -> Result<u32, Failure> {
        let sentry = self.running().await;
        let waiting = {
            let mut table = self.inner.table.lock();
            let waiting = table.process(id, exec)?.waiting.take();
            if let Err(failure) = table.apply(id, exec, Input::StartBegun, "start") {
                table.process(id, exec)?.waiting = waiting;
                return Err(failure);
            }
            waiting
        };
        let this = self.clone();
        let (id, exec) = (id.to_owned(), exec.to_owned());
        let started = tokio::spawn(async move {
            let outcome = match sentry {
                Ok(sentry) => this.ask_start(&sentry, &id, &exec, waiting).await,
                Err(failure) => Err(failure),
            };
            let mut table = this.inner.table.lock();
            match outcome {
                Ok(pid) => {
                    let process = table.process(&id, &exec)?;
                    if !exec.is_empty() {
                        process.pid = pid;
                    }
                    let pid = process.pid;
                    table.apply(&id, &exec, Input::Started, "start")?;
                    Ok(pid)
                }
                Err(failure) => {
                    table.process(&id, &exec)?.holds.release();
                    table.apply(&id, &exec, Input::StartFailed, "start")?;
                    Err(failure)
                }
            }
        });
        started.await.unwrap_or_else(|e| Err(Failure::internal("starting", e)))
    }

    async fn ask_start(
        &self,
        sentry: &Sentry,
        id: &str,
        exec: &str,
        waiting: Option<(wire::Process, Source)>,
    ) -> Result<u32, Failure> {
        let container_id = id.to_owned();
        let reply = match waiting {
            None if exec.is_empty() => {
                sentry.client.ask(Request::Start(wire::Start { container_id }), &[]).await?
            }
            None => return Err(Failure::new(Kind::FailedPrecondition, "the process was started before")),
            Some((process, source)) => {
                let (streams, holds) = opened(source, process.terminal).await?;
                self.inner.table.lock().process(id, exec)?.holds = holds;
                let mut fds = Vec::new();
                let stdio = Some(streams.describe(&mut fds));
                let exec_id = exec.to_owned();
                let request = wire::Exec { container_id, exec_id, process: Some(process), stdio };
                sentry.client.ask(Request::Exec(request), &fds).await?
            }
        };
        match reply {
            Reply::Started(started) => Ok(started.pid),
            _ => Err(ControlError::WrongReply.into()),
        }
    }

    /// Adds a process to a running container; [`Sandbox::start`] runs it.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn exec(&self, request: ExecRequest) -> Result<(), Failure> {
        let ExecRequest { id, exec, process, source } = request;
        if !wire::valid_id(&exec) {
            return Err(Failure::new(Kind::InvalidArgument, format!("process ID {exec:?} is not valid")));
        }
        let mut table = self.inner.table.lock();
        let container = table.container(&id)?;
        if stopped(container.init.phase) {
            return Err(Failure::new(Kind::FailedPrecondition, format!("container {id:?} has stopped")));
        }
        if container.execs.contains_key(&exec) {
            return Err(Failure::new(Kind::AlreadyExists, format!("process {exec:?} already exists")));
        }
        let names = match &source {
            Source::Names(names) => names.clone(),
            Source::Open(_) => Names::default(),
        };
        let mut added = Process::new(names, process.terminal);
        added.waiting = Some((process, source));
        container.execs.insert(exec.clone(), added);
        table.apply(&id, &exec, Input::Created, "add the process").map(drop)
    }

    /// Sends a signal to a process, or to all of a container.
    ///
    /// # Errors
    /// [`Kind::NotFound`] also when the process has ended, as runc says it.
    pub async fn kill(&self, id: &str, exec: &str, signal: u32, all: bool) -> Result<(), Failure> {
        let phase = self.inner.table.lock().process(id, exec)?.phase;
        if stopped(phase) {
            return Err(Failure::new(Kind::NotFound, "process already finished"));
        }
        if phase == Phase::Created && !exec.is_empty() {
            return Err(Failure::new(Kind::FailedPrecondition, "cannot signal: it has not been started"));
        }
        let sentry = self.running().await?;
        let kill = wire::Kill { container_id: id.to_owned(), exec_id: exec.to_owned(), signal, all };
        match sentry.client.order(Request::Kill(kill)).await {
            Err(ControlError::Timeout(_)) if signal == libc::SIGKILL.unsigned_abs() => {
                log::warn!("the sentry does not answer; killing it");
                sentry.process.kill();
                Ok(())
            }
            Err(error) if error.errno() == Some(libc::ESRCH.unsigned_abs()) => {
                Err(Failure::new(Kind::NotFound, "process already finished"))
            }
            other => Ok(other?),
        }
    }

    /// Waits for a process's end.
    ///
    /// # Errors
    /// No such process, or it is deleted meanwhile without having ended.
    pub async fn wait(&self, id: &str, exec: &str) -> Result<ExitInfo, Failure> {
        let mut exited = self.inner.table.lock().process(id, exec)?.exited.subscribe();
        let seen = exited.wait_for(Option::is_some).await.map(|exit| *exit);
        seen.ok().flatten().ok_or_else(|| Failure::no_process(id, exec))
    }

    /// Forgets an ended process. For a container: gives everything back.
    ///
    /// # Errors
    /// [`Kind::FailedPrecondition`] while it runs.
    pub async fn delete(&self, id: &str, exec: &str) -> Result<(u32, ExitInfo), Failure> {
        if exec.is_empty() { self.delete_container(id).await } else { self.delete_exec(id, exec).await }
    }

    async fn delete_exec(&self, id: &str, exec: &str) -> Result<(u32, ExitInfo), Failure> {
        let removed = {
            let mut table = self.inner.table.lock();
            let process = table.process(id, exec)?;
            let exit = match process.phase {
                Phase::Stopped(exit) => exit,
                // Never started: nothing to report but that it is gone.
                Phase::Created => ExitInfo { status: 0, at_unix_nanos: now() },
                _ => return Err(Failure::new(Kind::FailedPrecondition, "cannot delete a running process")),
            };
            let pid = process.pid;
            table.container(id)?.execs.remove(exec);
            (pid, exit)
        };
        if let Ok(sentry) = self.running().await {
            let process = wire::ProcessRef { container_id: id.to_owned(), exec_id: exec.to_owned() };
            let _ = sentry.client.order(Request::Delete(process)).await;
        }
        Ok(removed)
    }

    async fn delete_container(&self, id: &str) -> Result<(u32, ExitInfo), Failure> {
        {
            let mut table = self.inner.table.lock();
            let container = table.container(id)?;
            if container.deleting {
                return Err(Failure::new(Kind::FailedPrecondition, "it is already being deleted"));
            }
            match container.init.phase {
                Phase::Stopped(_) | Phase::Created => container.deleting = true,
                _ => return Err(Failure::new(Kind::FailedPrecondition, "cannot delete a running container")),
            }
            // One that was never started ends now.
            let _ = table.apply(id, "", Input::Exited(ExitInfo { status: 137, at_unix_nanos: now() }), "end");
        }
        let this = self.clone();
        let id = id.to_owned();
        let work = tokio::spawn(async move {
            let last = this.inner.table.lock().containers.len() == 1;
            let sentry = this.inner.sentry.lock().await.clone();
            match sentry {
                // Nobody else lives in it: its death closes everything at once.
                Some(sentry) if last => {
                    sentry.process.kill();
                    sentry.process.wait().await;
                    *this.inner.sentry.lock().await = None;
                }
                Some(sentry) => {
                    let process = wire::ProcessRef { container_id: id.clone(), exec_id: String::new() };
                    if let Err(error) = sentry.client.order(Request::Delete(process)).await {
                        log::warn!("the sentry did not delete container {id}: {error}");
                    }
                }
                None => {}
            }
            let resources = this.inner.table.lock().container(&id)?.resources.take();
            if let Some(resources) = resources {
                resources.release().await;
            }
            let mut table = this.inner.table.lock();
            let container = table.containers.remove(&id).ok_or_else(|| Failure::no_container(&id))?;
            let pid = container.init.pid;
            let Phase::Stopped(exit) = container.init.phase else {
                return Err(Failure::new(Kind::Internal, "a deleted container had not stopped"));
            };
            let _ = table.events.send(Event::Deleted { id, pid, exit });
            Ok((pid, exit))
        });
        work.await.unwrap_or_else(|e| Err(Failure::internal("deleting", e)))
    }

    async fn end_if_empty(&self) {
        if self.is_empty()
            && let Some(sentry) = self.inner.sentry.lock().await.take()
        {
            sentry.process.kill();
            sentry.process.wait().await;
        }
    }

    /// Ends everything at once: all processes end with 137, all resources go. For a shim that was told to stop.
    pub async fn destroy(&self) {
        if let Some(sentry) = self.inner.sentry.lock().await.take() {
            sentry.process.kill();
            sentry.process.wait().await;
        }
        let containers = {
            let mut table = self.inner.table.lock();
            table.end_all(None, ExitInfo { status: 137, at_unix_nanos: now() });
            std::mem::take(&mut table.containers)
        };
        for resources in containers.into_values().filter_map(|c| c.resources) {
            resources.release().await;
        }
    }
}

fn stopped(phase: Phase) -> bool {
    matches!(phase, Phase::Stopped(_))
}

async fn opened(source: Source, terminal: bool) -> Result<(Streams, Holds), Failure> {
    match source {
        Source::Names(names) => Ok(blocking(move || open(&names, terminal)).await??),
        Source::Open(streams) => Ok((streams, Holds::default())),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Failure::internal("a step", e))
}

pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

/// The directory of a bundle, absolute.
///
/// # Errors
/// [`Kind::NotFound`].
pub fn bundle_path(path: &Path) -> Result<PathBuf, Failure> {
    path.canonicalize().map_err(|e| Failure::new(Kind::NotFound, format!("bundle {}: {e}", path.display())))
}
