//! Carries the shim's requests out.
//!
//! ```text
//!  waiting ──Configure──▶ running ──Shutdown, end of the connection──▶ over
//! ```

use std::os::fd::OwnedFd;
use std::sync::Arc;

use caisson_proto::control as proto;
use caisson_proto::control::launch::SWITCH_EXITLESS;
use proto::{ErrorCode, ProcessRef, Reply, Request, ToSentry, ToShim};
use thiserror::Error;

use super::connection::{Connection, ConnectionError};
use super::convert::{self, Descriptors};
use super::exits::{Exits, exit_message};
use crate::fs::register::register_all;
use crate::kernel::container::{ContainerError, ContainerStats, ProcessInfo};
use crate::kernel::system_info::SystemInfo;
use crate::kernel::{Kernel, KernelConfig};
use crate::platform::kvm::KvmPlatform;
use crate::platform::{Arena, ArenaConfig};

/// Why the sandbox ended otherwise than by `Shutdown`.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The connection broke.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The first request was something else than `Configure`.
    #[error("the first request must be Configure")]
    NotConfigured,
    /// The shim is of another version.
    #[error("the shim speaks version {0} of the control protocol, this sentry {VERSION}", VERSION = proto::VERSION)]
    Version(u32),
    /// The platform or the kernel could not be set up.
    #[error("cannot set up the sandbox: {0}")]
    SetUp(String),
}

/// Guest address space that is reserved for anonymous memory beyond the memory limit, in bytes: fragmentation, page tables.
const ANONYMOUS_SLACK: u64 = 1 << 30;
/// Address space for windows onto host files, in bytes.
const WINDOWS: u64 = 64 << 30;

/// A sandbox that has been set up.
struct Server {
    connection: Arc<Connection>,
    kernel: Arc<Kernel>,
    exits: Arc<Exits>,
}

/// Serves the shim until it asks for the end or goes away. `info` was read before confinement.
///
/// # Errors
/// [`ServeError`]; whatever ran has been killed.
pub fn serve(connection: Connection, info: SystemInfo) -> Result<(), ServeError> {
    let connection = Arc::new(connection);
    let Some(server) = configure(&connection, info)? else { return Ok(()) };
    let server = Arc::new(server);
    let result = server.run();
    server.kernel.shutdown();
    result
}

fn configure(connection: &Arc<Connection>, info: SystemInfo) -> Result<Option<Server>, ServeError> {
    let Some(message) = connection.receive()? else { return Ok(None) };
    let decoded = ToSentry::decode_checked(&message.bytes, message.fds.len());
    let Ok((number, Request::Configure(request))) = decoded else { return Err(ServeError::NotConfigured) };
    let result = if request.version == proto::VERSION {
        set_up(connection, &request, message.fds, info)
    } else {
        Err(ServeError::Version(request.version))
    };
    let reply = match &result {
        Ok(server) => Reply::Configured(proto::Configured {
            version: proto::VERSION,
            platform: server.kernel.platform().describe(),
        }),
        Err(error) => Reply::Error(proto::Error::new(ErrorCode::Internal, error.to_string())),
    };
    connection.send(&ToShim { number, reply: Some(reply) });
    result.map(Some)
}

fn set_up(
    connection: &Arc<Connection>,
    request: &proto::Configure,
    fds: Vec<OwnedFd>,
    mut info: SystemInfo,
) -> Result<Server, ServeError> {
    let failed = |error: &dyn std::fmt::Display| ServeError::SetUp(error.to_string());
    let kvm = Descriptors::new(fds).take(request.kvm_fd).ok_or(ServeError::NotConfigured)?;
    if request.memory != 0 {
        info.memory_total = info.memory_total.min(request.memory);
    }
    if request.cpus != 0 {
        info.cpus = info.cpus.min(request.cpus);
    }
    let frames = u32::try_from(info.memory_total / 4096).unwrap_or(u32::MAX);
    let config = ArenaConfig {
        anonymous_bytes: info.memory_total.saturating_add(ANONYMOUS_SLACK),
        window_bytes: WINDOWS,
        max_frames: frames,
    };
    let arena = Arena::new(config).map_err(|error| failed(&error))?;
    let platform = KvmPlatform::new(kvm, arena, Default::default()).map_err(|error| failed(&error))?;
    let off = |switch: &proto::KeyValue| switch.key == SWITCH_EXITLESS && switch.value == "off";
    if !request.switches.iter().any(off) {
        platform.start_dispatchers().map_err(|error| failed(&error))?;
    }
    let exits = Exits::new(connection.clone());
    let hostname = if request.hostname.is_empty() { "caisson".into() } else { request.hostname.clone() };
    let config = KernelConfig { hostname, system_info: info };
    let kernel = Kernel::new(platform, exits.clone(), config).map_err(|error| failed(&error))?;
    register_all(&kernel);
    kernel.set_strace(request.strace.as_ref().is_some_and(|strace| strace.enabled));
    Ok(Server { connection: connection.clone(), kernel, exits })
}

impl Server {
    fn run(self: &Arc<Self>) -> Result<(), ServeError> {
        while let Some(message) = self.connection.receive()? {
            match ToSentry::decode_checked(&message.bytes, message.fds.len()) {
                Ok((number, Request::Shutdown(_))) => {
                    self.kernel.shutdown();
                    self.reply(number, Reply::Done(proto::Done {}));
                    return Ok(());
                }
                Ok((number, request)) => self.dispatch(number, request, Descriptors::new(message.fds)),
                Err(error) => {
                    let code = match error {
                        proto::DecodeError::Unknown(_) => ErrorCode::Unimplemented,
                        _ => ErrorCode::InvalidArgument,
                    };
                    let Some(number) = error.number() else { continue };
                    self.reply(number, Reply::Error(proto::Error::new(code, error.to_string())));
                }
            }
        }
        Ok(())
    }

    fn dispatch(self: &Arc<Self>, number: u64, request: Request, mut fds: Descriptors) {
        let may_wait = matches!(
            request,
            Request::CreateContainer(_)
                | Request::Exec(_)
                | Request::Pause(_)
                | Request::Wait(_)
                | Request::Delete(_)
        );
        if !may_wait {
            return self.answer(number, request, &mut fds);
        }
        let server = self.clone();
        let work = move || server.answer(number, request, &mut fds);
        if std::thread::Builder::new().name("control".into()).spawn(work).is_err() {
            let error = proto::Error::new(ErrorCode::ResourceExhausted, "the host refuses another thread");
            self.reply(number, Reply::Error(error));
        }
    }

    fn answer(&self, number: u64, request: Request, fds: &mut Descriptors) {
        match request {
            // These say `Started` themselves, before any exit event of the process.
            Request::Start(start) => {
                let process = ProcessRef { container_id: start.container_id.clone(), exec_id: String::new() };
                self.exits.held_back(&process, || {
                    self.reply_with(number, self.kernel.start(&start.container_id).map(started));
                });
            }
            Request::Exec(exec) => {
                let process =
                    ProcessRef { container_id: exec.container_id.clone(), exec_id: exec.exec_id.clone() };
                let spec = convert::process_spec(exec.process.unwrap_or_default(), exec.stdio, fds);
                self.exits.held_back(&process, || {
                    let pid = self.kernel.exec(&exec.container_id, &exec.exec_id, spec);
                    self.reply_with(number, pid.map(started));
                });
            }
            other => {
                let result = self.carry_out(other, fds);
                self.reply_with(number, result);
            }
        }
    }

    fn carry_out(&self, request: Request, fds: &mut Descriptors) -> Result<Reply, ContainerError> {
        let kernel = &self.kernel;
        let done = |()| Reply::Done(proto::Done {});
        match request {
            Request::CreateContainer(create) => {
                let spec = convert::container(create.container.unwrap_or_default(), fds)?;
                let pid = kernel.create_container(spec)?;
                Ok(Reply::Created(proto::Started { pid: u32::try_from(pid).unwrap_or(0) }))
            }
            Request::Kill(kill) => {
                let signal = i32::try_from(kill.signal).unwrap_or(0);
                if kill.all {
                    kernel.signal_all(&kill.container_id, signal).map(done)
                } else {
                    kernel.signal(&kill.container_id, &kill.exec_id, signal).map(done)
                }
            }
            Request::Wait(process) => {
                let exit = kernel.wait(&process.container_id, &process.exec_id)?;
                Ok(Reply::Exited(exit_message(&exit)))
            }
            Request::Pause(container) => kernel.pause(&container.container_id).map(done),
            Request::Resume(container) => kernel.resume(&container.container_id).map(done),
            Request::Processes(container) => {
                let processes = kernel.processes(&container.container_id)?;
                Ok(Reply::Processes(proto::Processes {
                    processes: processes.into_iter().map(process_info).collect(),
                }))
            }
            Request::Stats(container) => Ok(Reply::Stats(stats(&kernel.stats(&container.container_id)?))),
            Request::ResizePty(resize) => {
                let process = resize.process.unwrap_or_default();
                let window = resize.window.unwrap_or_default();
                let size = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
                let (rows, columns) = (size(window.rows), size(window.columns));
                kernel.resize_pty(&process.container_id, &process.exec_id, rows, columns).map(done)
            }
            Request::CloseStdin(process) => {
                kernel.close_stdin(&process.container_id, &process.exec_id).map(done)
            }
            Request::Delete(process) => kernel.delete(&process.container_id, &process.exec_id).map(done),
            Request::Update(update) => match update.limits.and_then(|limits| limits.pids) {
                Some(pids) => kernel.set_pids_max(&update.container_id, pids).map(done),
                None => Ok(done(())),
            },
            Request::Debug(debug) => Ok(Reply::Debug(self.debug(debug))),
            Request::Configure(_) | Request::Start(_) | Request::Exec(_) | Request::Shutdown(_) => {
                let errno = crate::errno::Errno::EALREADY;
                Err(ContainerError::Failed { what: "configure twice", errno })
            }
        }
    }

    fn debug(&self, debug: proto::Debug) -> proto::DebugReply {
        let count = |(_, name, calls, missing): (u64, &'static str, u64, bool)| proto::SyscallCount {
            name: name.into(),
            calls,
            implemented: !missing,
        };
        let syscalls = if debug.syscalls { self.kernel.counters().report() } else { Vec::new() };
        let tasks = if debug.tasks { self.task_lines() } else { Vec::new() };
        let counter = |(name, value): (&str, u64)| proto::Counter { name: name.into(), value };
        let counters = self
            .kernel
            .platform()
            .counters()
            .into_iter()
            .chain(crate::mm::patch_counters())
            .map(counter)
            .collect();
        proto::DebugReply { syscalls: syscalls.into_iter().map(count).collect(), tasks, counters }
    }

    fn task_lines(&self) -> Vec<String> {
        let groups = self.kernel.pid_namespace().thread_groups();
        let threads = groups.iter().flat_map(|group| group.members());
        let line = |task: Arc<crate::task::Task>| {
            let state = if task.waiter().is_asleep() { "sleeping" } else { "running" };
            format!("{} {} {state} {:?}", task.pid().outermost(), task.comm().escape_ascii(), task.work())
        };
        threads.map(line).collect()
    }

    fn reply(&self, number: u64, reply: Reply) {
        self.connection.send(&ToShim { number, reply: Some(reply) });
    }

    fn reply_with(&self, number: u64, result: Result<Reply, ContainerError>) {
        self.reply(number, result.unwrap_or_else(|error| Reply::Error(error_message(&error))));
    }
}

fn started(pid: i32) -> Reply {
    Reply::Started(proto::Started { pid: u32::try_from(pid).unwrap_or(0) })
}

fn process_info(info: ProcessInfo) -> proto::ProcessInfo {
    let pid = |value: i32| u32::try_from(value).unwrap_or(0);
    proto::ProcessInfo {
        pid: pid(info.pid),
        ppid: pid(info.ppid),
        uid: info.uid,
        comm: info.comm,
        exec_id: info.exec,
        cpu_nanos: info.cpu_nanos,
        started_unix_nanos: u64::try_from(info.started.to_nanos()).unwrap_or(0),
        threads: info.threads,
        command: info.command,
        terminal: info.terminal,
    }
}

fn stats(stats: &ContainerStats) -> proto::Stats {
    proto::Stats {
        user_nanos: stats.user_nanos,
        system_nanos: stats.system_nanos,
        memory: stats.memory,
        memory_peak: stats.memory,
        anonymous: stats.memory,
        pids: stats.pids,
        pids_limit: stats.pids_max,
        minor_faults: 0,
        major_faults: 0,
    }
}

fn error_message(error: &ContainerError) -> proto::Error {
    let (code, errno) = match error {
        ContainerError::NotFound(_) | ContainerError::NoProcess { .. } => (ErrorCode::NotFound, 0),
        ContainerError::Exists(_) => (ErrorCode::AlreadyExists, 0),
        ContainerError::State { .. } => (ErrorCode::FailedPrecondition, 0),
        ContainerError::ProgramNotFound { .. } => (ErrorCode::ProgramNotFound, 0),
        ContainerError::ProgramNotRunnable { errno, .. } => (ErrorCode::ProgramNotRunnable, errno.number()),
        ContainerError::Mounts(error) => (ErrorCode::InvalidArgument, error.errno.number()),
        ContainerError::Failed { errno, .. } => (ErrorCode::Internal, errno.number()),
        _ => (ErrorCode::Internal, 0),
    };
    proto::Error::new(code, error.to_string()).with_errno(u32::from(errno))
}
