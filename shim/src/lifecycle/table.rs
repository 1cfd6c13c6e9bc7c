//! The table of containers and processes, and the only way to change a phase.

use std::collections::BTreeMap;

use caisson_proto::control::Process as ProcessSpec;
use tokio::sync::{mpsc, watch};

use super::error::Failure;
use super::event::Event;
use super::resources::Resources;
use super::sandbox::Source;
use super::state::{ExitInfo, Input, Note, Phase, Refused, next};
use crate::launch::gofer::RootfsMount;
use crate::stdio::{Holds, Names};

/// A process that was started from outside.
#[derive(Debug)]
pub(super) struct Process {
    pub phase: Phase,
    pub pid: u32,
    pub names: Names,
    pub terminal: bool,
    pub holds: Holds,
    /// For an exec that has not been started: what to run, on which streams.
    pub waiting: Option<(ProcessSpec, Source)>,
    pub exited: watch::Sender<Option<ExitInfo>>,
}

impl Process {
    pub(super) fn new(names: Names, terminal: bool) -> Self {
        let exited = watch::Sender::new(None);
        let (phase, holds) = (Phase::Creating, Holds::default());
        Self { phase, pid: 0, names, terminal, holds, waiting: None, exited }
    }
}

/// A container.
#[derive(Debug)]
pub(super) struct Container {
    pub init: Process,
    pub execs: BTreeMap<String, Process>,
    pub bundle: String,
    pub rootfs: Vec<RootfsMount>,
    pub resources: Option<Resources>,
    /// Somebody is deleting it.
    pub deleting: bool,
    /// The host's OOM killer has been reported.
    pub oom_reported: bool,
}

/// All containers of a sandbox.
#[derive(Debug)]
pub(super) struct Table {
    pub containers: BTreeMap<String, Container>,
    pub events: mpsc::UnboundedSender<Event>,
}

impl Table {
    pub(super) fn container(&mut self, id: &str) -> Result<&mut Container, Failure> {
        self.containers.get_mut(id).ok_or_else(|| Failure::no_container(id))
    }

    pub(super) fn process(&mut self, id: &str, exec: &str) -> Result<&mut Process, Failure> {
        let container = self.container(id)?;
        if exec.is_empty() {
            return Ok(&mut container.init);
        }
        container.execs.get_mut(exec).ok_or_else(|| Failure::no_process(id, exec))
    }

    /// Applies an input and queues what is to be published.
    ///
    /// # Errors
    /// No such process, or the input does not fit: `action` says what somebody wanted to do.
    pub(super) fn apply(
        &mut self,
        id: &str,
        exec: &str,
        input: Input,
        action: &str,
    ) -> Result<Phase, Failure> {
        let (phase, notes) = {
            let process = self.process(id, exec)?;
            let (phase, notes) =
                next(process.phase, input).map_err(|refused: Refused| Failure::refused(action, refused))?;
            process.phase = phase;
            (phase, notes)
        };
        for note in notes {
            self.publish(id, exec, note);
        }
        Ok(phase)
    }

    fn publish(&mut self, id: &str, exec: &str, note: Note) {
        let Ok(container) = self.container(id) else { return };
        let (id, exec) = (id.to_owned(), exec.to_owned());
        let init = &container.init;
        let pid = if exec.is_empty() { init.pid } else { container.execs.get(&exec).map_or(0, |p| p.pid) };
        let event = match note {
            Note::Created if exec.is_empty() => Event::Created {
                id: id.clone(),
                bundle: container.bundle.clone(),
                rootfs: container.rootfs.clone(),
                streams: init.names.clone(),
                terminal: init.terminal,
                pid,
            },
            Note::Created => Event::ExecAdded { id: id.clone(), exec: exec.clone() },
            Note::Started if exec.is_empty() => Event::Started { id: id.clone(), pid },
            Note::Started => Event::ExecStarted { id: id.clone(), exec: exec.clone(), pid },
            Note::Paused => Event::Paused { id: id.clone() },
            Note::Resumed => Event::Resumed { id: id.clone() },
            Note::Exited(exit) => Event::Exited { id: id.clone(), exec: exec.clone(), pid, exit },
        };
        let _ = self.events.send(event);
        if let Note::Exited(exit) = note
            && let Ok(process) = self.process(&id, &exec)
        {
            // After the event is queued: whoever waits must not overtake it.
            process.holds.release();
            process.exited.send_replace(Some(exit));
        }
    }

    /// Ends every process that has not ended: the sentry is dead.
    pub(super) fn end_all(&mut self, only: Option<&str>, exit: ExitInfo) {
        let ids: Vec<String> =
            self.containers.keys().filter(|id| only.is_none_or(|o| o == *id)).cloned().collect();
        for id in ids {
            let execs: Vec<String> =
                self.containers.get(&id).map(|c| c.execs.keys().cloned().collect()).unwrap_or_default();
            for exec in execs.iter().map(String::as_str).chain([""]) {
                let _ = self.apply(&id, exec, Input::Exited(exit), "end");
            }
        }
    }
}
