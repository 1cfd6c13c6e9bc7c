//! What a container and a process from outside are to be. Plain data, filled by the control server from the shim's messages.
//!
//! The life cycle is on [`super::Kernel`]: `create_container` → `start` → (`exec`, `signal`, `pause`, …) → exit → `delete`.

use std::os::fd::OwnedFd;

use crate::errno::Errno;
use crate::task::credentials::Credentials;
use crate::task::rlimit::{Resource, Rlimit};
use crate::task::signal::ExitStatus;
use crate::time::Timespec;
use crate::vfs::plan::{MountPlan, PlanError};

/// A container to be created.
pub struct ContainerSpec {
    /// Its ID, unique in the sandbox.
    pub id: String,
    /// Its first process: pid 1 of a new pid namespace, unless it joins one.
    pub process: ProcessSpec,
    /// Its mounts, root included.
    pub mounts: MountPlan,
    /// Host name; empty keeps the sandbox's.
    pub hostname: String,
    /// NIS domain name.
    pub domainname: String,
    /// Most tasks; 0 is no limit.
    pub pids_max: u64,
    /// Where its namespaces come from.
    pub namespaces: NamespacePlan,
}

/// Where a container's namespaces come from. Its mount namespace is [`ContainerSpec::mounts`].
#[derive(Clone, Debug, Default)]
pub struct NamespacePlan {
    /// Process ids.
    pub pid: NamespaceSource,
    /// SysV IPC and message queues.
    pub ipc: NamespaceSource,
    /// Host name.
    pub uts: NamespaceSource,
    /// Network.
    pub net: NamespaceSource,
}

/// Where one namespace comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NamespaceSource {
    /// A new one.
    #[default]
    New,
    /// The sandbox's own.
    Sandbox,
    /// That of another container of this sandbox.
    Container(String),
}

/// A process to be started from outside: a container's first, or an `exec`.
pub struct ProcessSpec {
    /// `argv`; the first is looked up in `PATH` when it has no slash.
    pub args: Vec<Vec<u8>>,
    /// `envp`, each `NAME=value`.
    pub env: Vec<Vec<u8>>,
    /// Working directory, absolute; created when missing.
    pub cwd: Vec<u8>,
    /// Ids, groups, capability sets, `no_new_privs`.
    pub credentials: Credentials,
    /// File-creation mask.
    pub umask: u32,
    /// Limits that differ from the defaults.
    pub rlimits: Vec<(Resource, Rlimit)>,
    /// `/proc/self/oom_score_adj`.
    pub oom_score_adj: i32,
    /// Standard streams.
    pub stdio: StdioSpec,
}

/// The standard streams of a process from outside.
pub enum StdioSpec {
    /// Host descriptors become 0, 1 and 2; an absent one is `/dev/null`.
    Files {
        /// Readable.
        stdin: Option<OwnedFd>,
        /// Writable.
        stdout: Option<OwnedFd>,
        /// Writable.
        stderr: Option<OwnedFd>,
    },
    /// A new pseudo-terminal becomes 0, 1, 2 and the controlling terminal; its master is copied from and to these.
    Terminal {
        /// Readable: what is typed.
        input: Option<OwnedFd>,
        /// Writable: what is shown.
        output: Option<OwnedFd>,
        /// Size at the start: rows and columns.
        window: (u16, u16),
    },
}

/// Why a container operation failed.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// No such container.
    #[error("container {0:?} does not exist")]
    NotFound(String),
    /// No such process in the container.
    #[error("process {exec:?} does not exist in container {container:?}")]
    NoProcess {
        /// The container.
        container: String,
        /// The process's ID.
        exec: String,
    },
    /// The ID is taken.
    #[error("{0:?} already exists")]
    Exists(String),
    /// Not possible in this state.
    #[error("container {id:?} is {state}, not {wanted}")]
    State {
        /// The container.
        id: String,
        /// What it is.
        state: ContainerState,
        /// What it would have to be.
        wanted: &'static str,
    },
    /// The program is not there: what a shell reports as 127.
    #[error("exec: {program:?}: {reason}")]
    ProgramNotFound {
        /// As the user named it.
        program: String,
        /// As runc words it: `executable file not found in $PATH`, `stat /x: no such file or directory`.
        reason: String,
    },
    /// The program cannot be run: what a shell reports as 126.
    #[error("exec {program:?}: {errno}")]
    ProgramNotRunnable {
        /// Its path.
        program: String,
        /// Why.
        errno: Errno,
    },
    /// The working directory cannot be entered.
    #[error("chdir to cwd ({path:?}) set in config.json failed: {errno}")]
    Chdir {
        /// The directory.
        path: String,
        /// Why.
        errno: Errno,
    },
    /// A mount or a device could not be made.
    #[error(transparent)]
    Mounts(#[from] PlanError),
    /// Something else that Linux has a number for.
    #[error("{what}: {errno}")]
    Failed {
        /// The operation.
        what: &'static str,
        /// Why.
        errno: Errno,
    },
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Its first process is loaded and waits.
    Created,
    /// Runs.
    Running,
    /// All its tasks stand still.
    Paused,
    /// Its first process has ended.
    Stopped,
}

impl std::fmt::Display for ContainerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ContainerState::Created => "created",
            ContainerState::Running => "running",
            ContainerState::Paused => "paused",
            ContainerState::Stopped => "stopped",
        })
    }
}

/// How a process from outside ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessExit {
    /// Its container.
    pub container: String,
    /// Its ID; empty for the container's first process.
    pub exec: String,
    /// Its pid in the sandbox's outermost namespace.
    pub pid: i32,
    /// How.
    pub status: ExitStatus,
    /// When, by the wall clock.
    pub at: Timespec,
}

/// One line of `ps`.
#[derive(Clone, Debug)]
pub struct ProcessInfo {
    /// Pid in the container's pid namespace.
    pub pid: i32,
    /// Parent's pid there; 0 when it is outside.
    pub ppid: i32,
    /// Effective user ID.
    pub uid: u32,
    /// `/proc/*/comm`.
    pub comm: Vec<u8>,
    /// ID of a process from outside; empty for others.
    pub exec: String,
    /// CPU time used, in nanoseconds.
    pub cpu_nanos: u64,
    /// When it started, by the wall clock.
    pub started: Timespec,
    /// Threads.
    pub threads: u32,
    /// `argv` joined by spaces, at most 4096 bytes.
    pub command: Vec<u8>,
    /// Controlling terminal (`pts/0`), or empty.
    pub terminal: String,
}

/// The outside's handle on a process's terminal.
pub trait ProcessTerminal: Send + Sync {
    /// Changes its size; the foreground job gets `SIGWINCH`.
    fn resize(&self, rows: u16, columns: u16);
    /// No more input is coming.
    fn close_input(&self);
    /// Its process has ended: shows what is left to be shown and lets go of the outside.
    fn process_ended(&self);
}

/// What a container uses.
#[derive(Clone, Copy, Debug, Default)]
pub struct ContainerStats {
    /// Time in guest code, in nanoseconds.
    pub user_nanos: u64,
    /// Time in the sentry on its behalf, in nanoseconds.
    pub system_nanos: u64,
    /// Tasks now.
    pub pids: u64,
    /// Most tasks; 0 is no limit.
    pub pids_max: u64,
    /// Resident memory, in bytes.
    pub memory: u64,
}

/// Receives the ends of processes from outside, in order, each once. Called without locks held; must not block for long.
pub trait ExitListener: Send + Sync {
    /// A process has ended.
    fn process_exited(&self, exit: ProcessExit);
}
