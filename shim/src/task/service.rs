//! The Task API: 17 methods, each decodes, calls [`Sandbox`], encodes.
//!
//! One implementation answers `containerd.task.v2.Task` and `containerd.task.v3.Task`, whose messages are the same on the wire.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use caisson_proto::control::Limits as InsideLimits;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest,
    PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest,
    StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, Status, UpdateTaskRequest,
    WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::shim_async::Task;
use containerd_shim_protos::ttrpc::r#async::TtrpcContext;
use containerd_shim_protos::ttrpc::{self, Code};
use oci_spec::runtime::{LinuxResources, Process};
use tokio::sync::Notify;

use super::publisher::timestamp;
use super::{metrics, options};
use crate::launch::gofer::RootfsMount;
use crate::lifecycle::sandbox::bundle_path;
use crate::lifecycle::state::Phase;
use crate::lifecycle::{CreateRequest, ExecRequest, Failure, Kind, Sandbox, Source};
use crate::spec;
use crate::stdio::Names;

/// The service. Clones share everything.
#[derive(Clone)]
pub struct TaskService {
    sandbox: Sandbox,
    used: Arc<AtomicBool>,
    exit: Arc<Notify>,
}

impl TaskService {
    /// A service for a sandbox.
    pub fn new(sandbox: Sandbox) -> Self {
        Self { sandbox, used: Arc::default(), exit: Arc::default() }
    }

    /// True once anything has been asked.
    pub fn used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// Waits until containerd has told an empty shim to go.
    pub async fn told_to_exit(&self) {
        self.exit.notified().await;
    }

    fn touch(&self) {
        self.used.store(true, Ordering::Relaxed);
    }
}

/// The gRPC status for a failure.
fn status(failure: Failure) -> ttrpc::Error {
    let code = match failure.kind {
        Kind::NotFound => Code::NOT_FOUND,
        Kind::AlreadyExists => Code::ALREADY_EXISTS,
        Kind::FailedPrecondition => Code::FAILED_PRECONDITION,
        Kind::InvalidArgument => Code::INVALID_ARGUMENT,
        Kind::Unimplemented => Code::UNIMPLEMENTED,
        Kind::Unavailable => Code::UNAVAILABLE,
        Kind::Program | Kind::Internal => Code::UNKNOWN,
    };
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, failure.message))
}

/// Puts runc's words in front, which people and their scripts look for.
fn worded(words: &str, failure: Failure) -> ttrpc::Error {
    let message = match failure.kind {
        Kind::Program => format!("{words}: unable to start container process: {}", failure.message),
        Kind::Internal | Kind::Unavailable => format!("{words}: {}", failure.message),
        _ => failure.message,
    };
    status(Failure { message, ..failure })
}

fn invalid(what: impl Into<String>) -> ttrpc::Error {
    status(Failure::new(Kind::InvalidArgument, what))
}

type Answer<T> = ttrpc::Result<T>;

#[async_trait]
impl Task for TaskService {
    async fn state(&self, _: &TtrpcContext, r: StateRequest) -> Answer<StateResponse> {
        self.touch();
        let known = self.sandbox.snapshot(&r.id, &r.exec_id).map_err(status)?;
        let mut answer = StateResponse {
            id: r.id,
            exec_id: r.exec_id,
            bundle: known.bundle,
            pid: known.pid,
            stdin: known.names.stdin,
            stdout: known.names.stdout,
            stderr: known.names.stderr,
            terminal: known.terminal,
            ..StateResponse::default()
        };
        let state = match known.phase {
            Phase::Creating | Phase::Created | Phase::Starting(_) => Status::CREATED,
            Phase::Running => Status::RUNNING,
            Phase::Paused => Status::PAUSED,
            Phase::Stopped(exit) => {
                answer.exit_status = exit.status;
                answer.exited_at = timestamp(exit.at_unix_nanos);
                Status::STOPPED
            }
        };
        answer.status = state.into();
        Ok(answer)
    }

    async fn create(&self, _: &TtrpcContext, r: CreateTaskRequest) -> Answer<CreateTaskResponse> {
        self.touch();
        if !r.checkpoint.is_empty() {
            return Err(status(Failure::new(
                Kind::Unimplemented,
                "restoring from a checkpoint is not supported",
            )));
        }
        let annotations = match r.options.as_ref() {
            Some(any) => options::annotations(&any.type_url, &any.value).map_err(status)?,
            None => Default::default(),
        };
        let mount = |m: containerd_shim_protos::api::Mount| RootfsMount {
            kind: m.type_,
            source: m.source,
            options: m.options,
        };
        let bundle = bundle_path(Path::new(&r.bundle)).map_err(status)?;
        let request = CreateRequest {
            id: r.id,
            directory: bundle.clone(),
            bundle,
            rootfs: r.rootfs.into_iter().map(mount).collect(),
            source: Source::Names(Names { stdin: r.stdin, stdout: r.stdout, stderr: r.stderr }),
            terminal: Some(r.terminal),
            annotations,
        };
        let words = "OCI runtime create failed";
        let pid = self.sandbox.create(request).await.map_err(|f| worded(words, f))?;
        Ok(CreateTaskResponse { pid, ..CreateTaskResponse::default() })
    }

    async fn start(&self, _: &TtrpcContext, r: StartRequest) -> Answer<StartResponse> {
        self.touch();
        let words = if r.exec_id.is_empty() {
            "OCI runtime start failed"
        } else {
            "OCI runtime exec failed: exec failed"
        };
        let pid = self.sandbox.start(&r.id, &r.exec_id).await.map_err(|f| worded(words, f))?;
        Ok(StartResponse { pid, ..StartResponse::default() })
    }

    async fn delete(&self, _: &TtrpcContext, r: DeleteRequest) -> Answer<DeleteResponse> {
        self.touch();
        let (pid, exit) = self.sandbox.delete(&r.id, &r.exec_id).await.map_err(status)?;
        Ok(DeleteResponse {
            pid,
            exit_status: exit.status,
            exited_at: timestamp(exit.at_unix_nanos),
            ..DeleteResponse::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, r: PidsRequest) -> Answer<PidsResponse> {
        self.touch();
        let known = self.sandbox.snapshot(&r.id, "").map_err(status)?;
        // Before it runs and after it has ended, the sentry stands for the container.
        let list = match known.phase {
            Phase::Running | Phase::Paused => self.sandbox.processes(&r.id).await.map_err(status)?,
            _ => Vec::new(),
        };
        let entry =
            |p: caisson_proto::control::ProcessInfo| ProcessInfo { pid: p.pid, ..ProcessInfo::default() };
        Ok(PidsResponse { processes: list.into_iter().map(entry).collect(), ..PidsResponse::default() })
    }

    async fn pause(&self, _: &TtrpcContext, r: PauseRequest) -> Answer<Empty> {
        self.touch();
        self.sandbox.pause(&r.id).await.map_err(status)?;
        Ok(Empty::default())
    }

    async fn resume(&self, _: &TtrpcContext, r: ResumeRequest) -> Answer<Empty> {
        self.touch();
        self.sandbox.resume(&r.id).await.map_err(status)?;
        Ok(Empty::default())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> Answer<Empty> {
        self.touch();
        Err(status(Failure::new(Kind::Unimplemented, "checkpoints are not supported")))
    }

    async fn kill(&self, _: &TtrpcContext, r: KillRequest) -> Answer<Empty> {
        self.touch();
        self.sandbox.kill(&r.id, &r.exec_id, r.signal, r.all).await.map_err(status)?;
        Ok(Empty::default())
    }

    async fn exec(&self, _: &TtrpcContext, r: ExecProcessRequest) -> Answer<Empty> {
        self.touch();
        let any = r.spec.as_ref().ok_or_else(|| invalid("the process's spec is missing"))?;
        let parsed: Process =
            serde_json::from_slice(&any.value).map_err(|e| invalid(format!("process spec: {e}")))?;
        let mut process = spec::process::convert(&parsed).map_err(|e| status(e.into()))?;
        process.terminal = r.terminal;
        let request = ExecRequest {
            id: r.id,
            exec: r.exec_id,
            process,
            source: Source::Names(Names { stdin: r.stdin, stdout: r.stdout, stderr: r.stderr }),
        };
        self.sandbox.exec(request).map_err(status)?;
        Ok(Empty::default())
    }

    async fn resize_pty(&self, _: &TtrpcContext, r: ResizePtyRequest) -> Answer<Empty> {
        self.touch();
        self.sandbox.resize(&r.id, &r.exec_id, r.height, r.width).await.map_err(status)?;
        Ok(Empty::default())
    }

    async fn close_io(&self, _: &TtrpcContext, r: CloseIORequest) -> Answer<Empty> {
        self.touch();
        if r.stdin {
            self.sandbox.close_stdin(&r.id, &r.exec_id).map_err(status)?;
        }
        Ok(Empty::default())
    }

    async fn update(&self, _: &TtrpcContext, r: UpdateTaskRequest) -> Answer<Empty> {
        self.touch();
        let any = r.resources.as_ref().ok_or_else(|| invalid("the resources are missing"))?;
        let parsed: LinuxResources =
            serde_json::from_slice(&any.value).map_err(|e| invalid(format!("resources: {e}")))?;
        let (outside, inside): (_, InsideLimits) = spec::limits(&parsed).map_err(|e| status(e.into()))?;
        self.sandbox.update(&r.id, outside, inside).await.map_err(status)?;
        Ok(Empty::default())
    }

    async fn wait(&self, _: &TtrpcContext, r: WaitRequest) -> Answer<WaitResponse> {
        self.touch();
        let exit = self.sandbox.wait(&r.id, &r.exec_id).await.map_err(status)?;
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at: timestamp(exit.at_unix_nanos),
            ..WaitResponse::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, r: StatsRequest) -> Answer<StatsResponse> {
        self.touch();
        let (figures, is_v2) = self.sandbox.figures(&r.id).await.map_err(status)?;
        let any =
            metrics::any(&figures, is_v2).map_err(|e| status(Failure::new(Kind::Internal, e.to_string())))?;
        Ok(StatsResponse { stats: MessageField::some(any), ..StatsResponse::default() })
    }

    async fn connect(&self, _: &TtrpcContext, r: ConnectRequest) -> Answer<ConnectResponse> {
        self.touch();
        let task_pid = self.sandbox.snapshot(&r.id, "").map_or(0, |known| known.pid);
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..ConnectResponse::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, r: ShutdownRequest) -> Answer<Empty> {
        self.touch();
        // It comes after every container's Delete, so in a pod it mostly does not mean us.
        if self.sandbox.is_empty() || r.now {
            self.exit.notify_one();
        }
        Ok(Empty::default())
    }
}
