//! How a container comes to be: its configuration is read, its cgroup made, its gofer and, for the first one, the sentry
//! started; then the sentry is told of it.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use caisson_proto::control as wire;
use caisson_proto::control::launch::SeccompMode;
use caisson_proto::control::{Reply, Request};

use super::{CreateRequest, Sandbox, Source, blocking, opened};
use crate::control::ControlError;
use crate::lifecycle::error::{Failure, Kind};
use crate::lifecycle::resources::{Resources, start_gofer};
use crate::lifecycle::sentry::{Plan, Sentry, launch};
use crate::lifecycle::state::Input;
use crate::lifecycle::table::{Container, Process};
use crate::spec::{self, Converted};
use crate::stdio::{Names, Streams};

impl Sandbox {
    /// Creates a container; gives its pid.
    ///
    /// # Errors
    /// [`Failure`]; nothing of the container is left then.
    pub async fn create(&self, request: CreateRequest) -> Result<u32, Failure> {
        let id = request.id.clone();
        if !wire::valid_id(&id) {
            return Err(Failure::new(Kind::InvalidArgument, format!("container ID {id:?} is not valid")));
        }
        let names = match &request.source {
            Source::Names(names) => names.clone(),
            Source::Open(_) => Names::default(),
        };
        {
            let mut table = self.inner.table.lock();
            if table.containers.contains_key(&id) {
                return Err(Failure::new(Kind::AlreadyExists, format!("container {id:?} already exists")));
            }
            let container = Container {
                init: Process::new(names, request.terminal.unwrap_or(false)),
                execs: BTreeMap::new(),
                bundle: request.bundle.display().to_string(),
                rootfs: request.rootfs.clone(),
                resources: None,
                deleting: false,
                oom_reported: false,
            };
            table.containers.insert(id.clone(), container);
        }
        // In a task of its own: a client that goes away must not leave half a container.
        let this = self.clone();
        let made = tokio::spawn(async move { this.make(request).await });
        let outcome = made.await.unwrap_or_else(|e| Err(Failure::internal("creating the container", e)));
        if outcome.is_err() {
            let container = self.inner.table.lock().containers.remove(&id);
            self.end_if_empty().await;
            if let Some(resources) = container.and_then(|c| c.resources) {
                resources.release().await;
            }
        }
        outcome
    }

    async fn make(&self, request: CreateRequest) -> Result<u32, Failure> {
        let id = request.id.clone();
        let converted = converted(&request).await?;
        let terminal =
            request.terminal.unwrap_or(converted.container.process.as_ref().is_some_and(|p| p.terminal));
        let (streams, holds) = opened(request.source, terminal).await?;
        let directory = request.directory.clone();
        let resources = Resources::new(&directory, &converted.cgroup);
        self.inner.table.lock().container(&id)?.resources = Some(resources.clone());
        let limits = converted.limits.clone();
        blocking(move || resources.make_cgroup(&limits)).await??;
        let log = self.log()?;
        let gofer = start_gofer(directory, &converted, request.rootfs, log);
        // Both take their time to start, so they do it together.
        let (sentry, gofer) = tokio::join!(self.sentry(&converted), gofer);
        let (gofer, connections) = gofer?;
        {
            let mut table = self.inner.table.lock();
            let container = table.container(&id)?;
            container.init.terminal = terminal;
            container.init.holds = holds;
            if let Some(resources) = &mut container.resources {
                resources.gofer = Some(gofer.clone());
                // Only the container that the sandbox is named after cleans the sentry up.
                let own = sentry.as_ref().ok().filter(|_| id == self.inner.settings.id);
                resources.note(own.map(|s| &s.process));
            }
        }
        self.watch_gofer(id.clone(), gofer);
        let sentry = sentry?;
        let mut message = converted.container;
        if let Some(process) = &mut message.process {
            process.terminal = terminal;
        }
        tell(&sentry, message, &streams, &connections).await?;
        // What containerd calls the pid is a process of the host: the sentry.
        let pid = u32::try_from(sentry.process.pid().as_raw()).unwrap_or(0);
        let mut table = self.inner.table.lock();
        table.process(&id, "")?.pid = pid;
        table.apply(&id, "", Input::Created, "create")?;
        Ok(pid)
    }

    fn log(&self) -> Result<OwnedFd, Failure> {
        self.inner.settings.log.try_clone().map_err(|e| Failure::internal("log", e))
    }

    /// The running sentry; starts one if there is none, in the cgroup of the container that needs it.
    async fn sentry(&self, first: &Converted) -> Result<Sentry, Failure> {
        let mut slot = self.inner.sentry.lock().await;
        if let Some(sentry) = &*slot {
            return Ok(sentry.clone());
        }
        let settings = &self.inner.settings;
        let annotation = |key: &str| first.annotations.get(key).cloned();
        let seccomp = annotation(spec::SECCOMP_ANNOTATION).map_or(Ok(settings.seccomp), |text| {
            let unknown =
                || Failure::new(Kind::InvalidArgument, format!("{}: {text:?}", spec::SECCOMP_ANNOTATION));
            SeccompMode::parse(&text).ok_or_else(unknown)
        })?;
        let switches = first.annotations.iter().filter(|(key, _)| key.starts_with("dev.caisson."));
        let limits = first.container.limits.unwrap_or_default();
        let plan = Plan {
            sandbox_id: settings.id.clone(),
            hostname: first.container.hostname.clone(),
            log: self.log()?,
            log_level: annotation(spec::LOG_LEVEL_ANNOTATION).unwrap_or_else(|| settings.log_level.clone()),
            seccomp,
            // Not the shim's own, which is low so that the shim outlives its containers.
            oom_score_adj: Some(first.oom_score_adj.unwrap_or(0)),
            cgroup: first.cgroup.clone(),
            memory: limits.memory.unwrap_or(0),
            cpus: limits.cpus.unwrap_or(0),
            strace: first.container.strace.clone().or_else(|| settings.strace.clone()),
            switches: switches.map(|(k, v)| wire::KeyValue { key: k.clone(), value: v.clone() }).collect(),
        };
        let (sentry, events) = launch(plan).await?;
        *slot = Some(sentry.clone());
        self.watch_sentry(sentry.clone(), events);
        Ok(sentry)
    }
}

/// The bundle's configuration, with the request's annotations where it has none of that name.
async fn converted(request: &CreateRequest) -> Result<Converted, Failure> {
    let (id, bundle, own_root) = (request.id.clone(), request.bundle.clone(), !request.rootfs.is_empty());
    let convert = move || {
        let rootfs = own_root.then(|| bundle.join("rootfs"));
        let spec = spec::load(&bundle)?;
        spec::convert(&id, &bundle, &spec, rootfs.as_deref())
    };
    let mut converted = blocking(convert).await??;
    for (key, value) in &request.annotations {
        converted.annotations.entry(key.clone()).or_insert_with(|| value.clone());
    }
    converted.container.strace = converted.annotations.get(spec::STRACE_ANNOTATION).map(|v| spec::strace(v));
    Ok(converted)
}

/// Tells the sentry of a container.
async fn tell(
    sentry: &Sentry,
    mut message: wire::Container,
    streams: &Streams,
    connections: &[OwnedFd],
) -> Result<(), Failure> {
    let mut fds: Vec<BorrowedFd<'_>> = connections.iter().map(AsFd::as_fd).collect();
    message.stdio = Some(streams.describe(&mut fds));
    let request = Request::CreateContainer(wire::CreateContainer { container: Some(message) });
    match sentry.client.ask(request, &fds).await {
        Ok(Reply::Created(_)) => Ok(()),
        Ok(_) => Err(ControlError::WrongReply.into()),
        Err(ControlError::Gone(_)) => {
            sentry.process.kill();
            let how = sentry.process.wait().await;
            let text = format!("the sentry ended with {how} while it created the container; see its log");
            Err(Failure::new(Kind::Unavailable, text))
        }
        Err(error) => Err(error.into()),
    }
}
