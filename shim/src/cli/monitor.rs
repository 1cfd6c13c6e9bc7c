//! A container's background process.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use caisson_proto::control::launch::{SWITCH_EXITLESS, SeccompMode};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};
use tokio::runtime::Handle;

use super::args::{Arguments, Switch};
use super::show;
use super::store::{Place, Stored};
use super::wire::{self, Ask, Say};
use crate::lifecycle::state::Phase;
use crate::lifecycle::{CreateRequest, ExecRequest, Failure, Kind, Sandbox, Settings, Source};
use crate::spec;
use crate::stdio::Streams;

/// A monitor whose container was never created goes after this time.
const CREATE: Duration = Duration::from_secs(30);
/// How long answers to others are waited for once the container is deleted.
const ANSWERS: Duration = Duration::from_millis(100);

struct Monitor {
    id: String,
    place: Place,
    sandbox: Sandbox,
    annotations: BTreeMap<String, String>,
    streams: parking_lot::Mutex<Option<[OwnedFd; 3]>>,
    done: tokio::sync::Notify,
    /// Requests that are being answered.
    busy: tokio::sync::watch::Sender<usize>,
}

/// Serves container `id` until it has ended or was deleted.
///
/// # Errors
/// When it cannot begin to listen; the command that started it sees that it has ended.
pub(super) fn run(arguments: &Arguments, id: &str) -> io::Result<()> {
    let place = Place::existing(&arguments.root, id).map_err(|f| io::Error::other(f.message))?;
    let _ = setsid();
    // First, so that what goes wrong here is still said where the command's user reads it.
    let listener = wire::listener(&place.socket())?;
    let (streams, log) = take_streams(arguments)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let settings = Settings {
        id: id.to_owned(),
        log,
        log_level: if arguments.debug { "debug".into() } else { "warn".into() },
        seccomp: SeccompMode::Enforce,
        strace: None,
    };
    let exitless =
        (arguments.exitless == Switch::Off).then(|| (SWITCH_EXITLESS.to_owned(), "off".to_owned()));
    let annotations = exitless.into_iter().collect();
    runtime.block_on(async {
        let (sandbox, events) = Sandbox::new(settings);
        drop(events);
        let monitor = Arc::new(Monitor {
            id: id.to_owned(),
            place,
            sandbox,
            annotations,
            streams: parking_lot::Mutex::new(Some(streams)),
            done: tokio::sync::Notify::new(),
            busy: tokio::sync::watch::Sender::new(0),
        });
        monitor.clone().listen(Handle::current(), listener);
        let idle = async {
            tokio::time::sleep(CREATE).await;
            if monitor.streams.lock().is_none() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = monitor.done.notified() => {}
            () = idle => {}
        }
        // Lets the answers that others still wait for go out.
        let _ = tokio::time::timeout(ANSWERS, monitor.busy.subscribe().wait_for(|count| *count == 0)).await;
        monitor.sandbox.destroy().await;
    });
    // Threads that still talk to somebody end with the process.
    Ok(())
}

/// Takes over this program's standard streams, which become the container's. Returns them and where errors go from now on.
fn take_streams(arguments: &Arguments) -> io::Result<([OwnedFd; 3], OwnedFd)> {
    let own = |fd: &dyn AsFd| fd.as_fd().try_clone_to_owned();
    let streams = [own(&io::stdin())?, own(&io::stdout())?, own(&io::stderr())?];
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    let log = match &arguments.log {
        Some(path) => OpenOptions::new().append(true).create(true).open(path)?,
        None => null,
    };
    dup2_stderr(&log)?;
    Ok((streams, log.into()))
}

impl Monitor {
    /// Converses with everybody who calls, each on a thread of its own.
    fn listen(self: Arc<Self>, handle: Handle, listener: OwnedFd) {
        std::thread::spawn(move || {
            while let Ok(connection) = wire::next(&listener) {
                let (monitor, handle) = (self.clone(), handle.clone());
                std::thread::spawn(move || monitor.converse(&handle, &connection));
            }
        });
    }

    fn converse(&self, handle: &Handle, connection: &OwnedFd) {
        while let Ok(Some((ask, fds))) = wire::receive::<Ask>(connection) {
            let last = matches!(ask, Ask::Delete { .. });
            self.busy.send_modify(|count| *count += 1);
            let said = handle.block_on(self.answer(ask, fds)).unwrap_or_else(|f| Say::Failed(worded(f)));
            let deleted = last && !matches!(said, Say::Failed(_));
            let sent = wire::send(connection, &said, &[]);
            self.busy.send_modify(|count| *count -= 1);
            if deleted {
                self.done.notify_one();
            }
            if sent.is_err() {
                return;
            }
        }
    }

    async fn answer(&self, ask: Ask, fds: Vec<OwnedFd>) -> Result<Say, Failure> {
        let (id, sandbox) = (self.id.as_str(), &self.sandbox);
        match ask {
            Ask::Create => self.create(fds).await,
            Ask::Start => {
                let pid = sandbox.start(id, "").await?;
                Ok(Say::Pid(pid))
            }
            Ask::Kill { signal, all } => sandbox.kill(id, "", signal, all).await.map(|()| Say::Done),
            Ask::Wait { exec } => Ok(Say::Exited(sandbox.wait(id, &exec).await?.status)),
            Ask::Exec { exec, process, terminal } => self.exec(exec, &process, terminal, fds).await,
            Ask::DeleteExec { exec } => Ok(Say::Exited(sandbox.delete(id, &exec).await?.1.status)),
            Ask::Ps => {
                let list = sandbox.processes(id).await?;
                Ok(Say::Text(show::processes(&list)))
            }
            Ask::Stats => {
                let (figures, _) = sandbox.figures(id).await?;
                Ok(Say::Text(show::stats(id, &figures)))
            }
            Ask::Debug => Ok(Say::Text(show::debug(&sandbox.debug().await?))),
            Ask::Pause => sandbox.pause(id).await.map(|()| Say::Done),
            Ask::Resume => sandbox.resume(id).await.map(|()| Say::Done),
            Ask::Resize { exec, rows, columns } => {
                sandbox.resize(id, &exec, rows.into(), columns.into()).await.map(|()| Say::Done)
            }
            Ask::Status => Ok(Say::Text(show::status(sandbox.snapshot(id, "")?.phase).to_owned())),
            Ask::Delete { force } => self.delete(force).await,
        }
    }

    async fn create(&self, fds: Vec<OwnedFd>) -> Result<Say, Failure> {
        let stored = self.place.load().map_err(|e| Failure::new(Kind::Internal, e.to_string()))?;
        let inherited = self.streams.lock().take();
        let [stdin, stdout, stderr] =
            inherited.ok_or_else(|| Failure::new(Kind::FailedPrecondition, "it was created before"))?;
        let streams = match fds.into_iter().next() {
            Some(terminal) => terminal_streams(terminal)?,
            None => Streams { stdin: Some(stdin), stdout: Some(stdout), stderr: Some(stderr) },
        };
        let request = CreateRequest {
            id: self.id.clone(),
            bundle: stored.bundle.clone(),
            directory: self.place.path().to_owned(),
            rootfs: Vec::new(),
            source: Source::Open(streams),
            terminal: None,
            annotations: self.annotations.clone(),
        };
        let created = self.sandbox.create(request).await;
        let pid = match created {
            Ok(pid) => pid,
            Err(failure) => {
                self.done.notify_one();
                return Err(failure);
            }
        };
        let stored = Stored { pid, ..stored };
        self.place.save(&stored).map_err(|e| Failure::new(Kind::Internal, e.to_string()))?;
        let (sandbox, id, place) = (self.sandbox.clone(), self.id.clone(), self.place.clone());
        tokio::spawn(async move {
            // The status outlives us: it is what `state` and `delete` need when we are gone.
            if let Ok(exit) = sandbox.wait(&id, "").await {
                let _ = place.save(&Stored { exit: Some(exit.status), ..stored });
            }
        });
        Ok(Say::Pid(pid))
    }

    async fn exec(
        &self,
        exec: String,
        process: &str,
        terminal: bool,
        fds: Vec<OwnedFd>,
    ) -> Result<Say, Failure> {
        let invalid = |what: String| Failure::new(Kind::InvalidArgument, what);
        let parsed: oci_spec::runtime::Process =
            serde_json::from_str(process).map_err(|e| invalid(format!("process: {e}")))?;
        let mut process = spec::process::convert(&parsed)?;
        process.terminal = terminal;
        let mut fds = fds.into_iter();
        let streams = if terminal {
            terminal_streams(fds.next().ok_or_else(|| invalid("the terminal is missing".into()))?)?
        } else {
            Streams { stdin: fds.next(), stdout: fds.next(), stderr: fds.next() }
        };
        let request =
            ExecRequest { id: self.id.clone(), exec: exec.clone(), process, source: Source::Open(streams) };
        self.sandbox.exec(request)?;
        match self.sandbox.start(&self.id, &exec).await {
            Ok(pid) => Ok(Say::Pid(pid)),
            Err(failure) => {
                let _ = self.sandbox.delete(&self.id, &exec).await;
                Err(failure)
            }
        }
    }

    async fn delete(&self, force: bool) -> Result<Say, Failure> {
        let phase = self.sandbox.snapshot(&self.id, "")?.phase;
        let over = matches!(phase, Phase::Stopped(_) | Phase::Created);
        if !over && !force {
            let text =
                format!("cannot delete container {} that is not stopped: {}", self.id, show::status(phase));
            return Err(Failure::new(Kind::FailedPrecondition, text));
        }
        if !over {
            let _ = self.sandbox.kill(&self.id, "", libc::SIGKILL.unsigned_abs(), true).await;
            let ended = tokio::time::timeout(Duration::from_secs(10), self.sandbox.wait(&self.id, "")).await;
            if ended.is_err() {
                // `destroy` at our end does what asking nicely did not.
                return Ok(Say::Done);
            }
        }
        self.sandbox.delete(&self.id, "").await.map(|_| Say::Done)
    }
}

fn terminal_streams(terminal: OwnedFd) -> Result<Streams, Failure> {
    let other = terminal.try_clone().map_err(|e| Failure::new(Kind::Internal, e.to_string()))?;
    Ok(Streams { stdin: Some(terminal), stdout: Some(other), stderr: None })
}

fn worded(failure: Failure) -> String {
    match failure.kind {
        Kind::Program => format!("unable to start container process: {}", failure.message),
        _ => failure.message,
    }
}
