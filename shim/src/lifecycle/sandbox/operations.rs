//! What is done with containers that live: pausing, looking, changing.

use caisson_proto::control as wire;
use caisson_proto::control::{Reply, Request};

use super::{Sandbox, Snapshot, blocking, stopped};
use crate::cgroup::{Figures, Limits};
use crate::control::ControlError;
use crate::lifecycle::error::Failure;
use crate::lifecycle::state::{Input, Phase, Refused};

impl Sandbox {
    /// Stops every task of a container.
    ///
    /// # Errors
    /// `FailedPrecondition` unless it runs.
    pub async fn pause(&self, id: &str) -> Result<(), Failure> {
        self.expect(id, |p| p == Phase::Running, "pause")?;
        let container_id = id.to_owned();
        self.running().await?.client.order(Request::Pause(wire::ContainerRef { container_id })).await?;
        self.inner.table.lock().apply(id, "", Input::Paused, "pause").map(drop)
    }

    /// Undoes [`Sandbox::pause`].
    ///
    /// # Errors
    /// `FailedPrecondition` unless it is paused.
    pub async fn resume(&self, id: &str) -> Result<(), Failure> {
        self.expect(id, |p| p == Phase::Paused, "resume")?;
        let container_id = id.to_owned();
        self.running().await?.client.order(Request::Resume(wire::ContainerRef { container_id })).await?;
        self.inner.table.lock().apply(id, "", Input::Resumed, "resume").map(drop)
    }

    fn expect(&self, id: &str, fits: impl Fn(Phase) -> bool, action: &str) -> Result<(), Failure> {
        let phase = self.inner.table.lock().process(id, "")?.phase;
        if fits(phase) { Ok(()) } else { Err(Failure::refused(action, Refused { phase })) }
    }

    /// The container's processes, as its kernel numbers them.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn processes(&self, id: &str) -> Result<Vec<wire::ProcessInfo>, Failure> {
        self.inner.table.lock().container(id)?;
        let container_id = id.to_owned();
        match self
            .running()
            .await?
            .client
            .ask(Request::Processes(wire::ContainerRef { container_id }), &[])
            .await?
        {
            Reply::Processes(list) => Ok(list.processes),
            _ => Err(ControlError::WrongReply.into()),
        }
    }

    /// Figures of the container's cgroup, and whether that is a v2 one.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn figures(&self, id: &str) -> Result<(Figures, bool), Failure> {
        let resources = self.inner.table.lock().container(id)?.resources.clone();
        let resources = resources.ok_or_else(|| Failure::no_container(id))?;
        blocking(move || {
            let group = resources.group();
            (group.figures(), group.is_v2())
        })
        .await
    }

    /// What the container's own kernel counts.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn stats(&self, id: &str) -> Result<wire::Stats, Failure> {
        let container_id = id.to_owned();
        match self
            .running()
            .await?
            .client
            .ask(Request::Stats(wire::ContainerRef { container_id }), &[])
            .await?
        {
            Reply::Stats(stats) => Ok(stats),
            _ => Err(ControlError::WrongReply.into()),
        }
    }

    /// What the sentry counts and how its tasks are, for people who look for a fault.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn debug(&self) -> Result<wire::DebugReply, Failure> {
        let all = wire::Debug { syscalls: true, tasks: true };
        match self.running().await?.client.ask(Request::Debug(all), &[]).await? {
            Reply::Debug(reply) => Ok(reply),
            _ => Err(ControlError::WrongReply.into()),
        }
    }

    /// Changes limits, outside and inside.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn update(&self, id: &str, outside: Limits, inside: wire::Limits) -> Result<(), Failure> {
        let resources = self.inner.table.lock().container(id)?.resources.clone();
        let resources = resources.ok_or_else(|| Failure::no_container(id))?;
        blocking(move || resources.group().set(&outside)).await??;
        let update = wire::Update { container_id: id.to_owned(), limits: Some(inside) };
        Ok(self.running().await?.client.order(Request::Update(update)).await?)
    }

    /// Changes a terminal's size.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn resize(&self, id: &str, exec: &str, rows: u32, columns: u32) -> Result<(), Failure> {
        let phase = self.inner.table.lock().process(id, exec)?.phase;
        if stopped(phase) || (phase == Phase::Created && !exec.is_empty()) {
            // ctr resizes right after the start; a process that has already ended has no size.
            return Ok(());
        }
        let process = Some(wire::ProcessRef { container_id: id.to_owned(), exec_id: exec.to_owned() });
        let window = Some(wire::WindowSize { rows: rows.min(0xffff), columns: columns.min(0xffff) });
        let request = Request::ResizePty(wire::ResizePty { process, window });
        Ok(self.running().await?.client.order(request).await?)
    }

    /// Lets a process see the end of its input.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn close_stdin(&self, id: &str, exec: &str) -> Result<(), Failure> {
        self.inner.table.lock().process(id, exec)?.holds.close_stdin();
        Ok(())
    }

    /// What is known about a process.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn snapshot(&self, id: &str, exec: &str) -> Result<Snapshot, Failure> {
        let mut table = self.inner.table.lock();
        let bundle = table.container(id)?.bundle.clone();
        let process = table.process(id, exec)?;
        let (phase, pid) = (process.phase, process.pid);
        Ok(Snapshot { phase, pid, names: process.names.clone(), terminal: process.terminal, bundle })
    }
}
