//! What the sentry tells the shim: one reply per request, and events.

use prost::{Enumeration, Message, Oneof};

/// Everything that travels from the sentry to the shim.
#[derive(Clone, PartialEq, Message)]
pub struct ToShim {
    /// Number of the request that this answers; 0 for an event.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// What is said. Absent when this side does not know it.
    #[prost(oneof = "Reply", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 21")]
    pub reply: Option<Reply>,
}

/// Replies (tags below 20) and events (from 20 on).
#[derive(Clone, PartialEq, Oneof)]
pub enum Reply {
    /// The request failed.
    #[prost(message, tag = "2")]
    Error(Error),
    /// The request was carried out; there is nothing more to say.
    #[prost(message, tag = "3")]
    Done(Done),
    /// To `Configure`.
    #[prost(message, tag = "4")]
    Configured(Configured),
    /// To `CreateContainer`.
    #[prost(message, tag = "5")]
    Created(Started),
    /// To `Start` and `Exec`.
    #[prost(message, tag = "6")]
    Started(Started),
    /// To `Processes`.
    #[prost(message, tag = "7")]
    Processes(Processes),
    /// To `Stats`.
    #[prost(message, tag = "8")]
    Stats(Stats),
    /// To `Wait`.
    #[prost(message, tag = "9")]
    Exited(Exit),
    /// To `Debug`.
    #[prost(message, tag = "10")]
    Debug(DebugReply),
    /// Event: a process that was started from outside has ended.
    #[prost(message, tag = "20")]
    ExitEvent(Exit),
    /// Event: the sentry's own OOM killer has acted in this container.
    #[prost(message, tag = "21")]
    OomEvent(super::ContainerRef),
}

/// Why a request failed.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Error {
    /// What kind of failure.
    #[prost(enumeration = "ErrorCode", tag = "1")]
    pub code: i32,
    /// Linux's number for it where one fits, else 0.
    #[prost(uint32, tag = "2")]
    pub errno: u32,
    /// One line for people, naming the thing: `exec: "foo": executable file not found in $PATH`.
    #[prost(string, tag = "3")]
    pub message: String,
}

impl Error {
    /// An error without an errno.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code: code.into(), errno: 0, message: message.into() }
    }

    /// The same error with Linux's number for it.
    #[must_use]
    pub fn with_errno(self, errno: u32) -> Self {
        Self { errno, ..self }
    }
}

/// Kinds of failure; the shim maps each to a gRPC code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum ErrorCode {
    /// The sentry failed for a reason of its own.
    Internal = 0,
    /// The request makes no sense.
    InvalidArgument = 1,
    /// No such container or process.
    NotFound = 2,
    /// The ID is taken.
    AlreadyExists = 3,
    /// Not in this state (start twice, exec in a paused container, …).
    FailedPrecondition = 4,
    /// This sentry does not know the request, or not this part of it.
    Unimplemented = 5,
    /// A limit was reached.
    ResourceExhausted = 6,
    /// The program or its interpreter does not exist: what a shell reports as 127.
    ProgramNotFound = 7,
    /// The program exists but cannot be run (permission, format, architecture): 126.
    ProgramNotRunnable = 8,
}

/// Nothing more to say.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Done {}

/// The sandbox is set up.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Configured {
    /// [`super::VERSION`] of the sentry.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Host mode that the platform's probe found, for the log (`ring0=emulated paging=shadow`).
    #[prost(string, tag = "2")]
    pub platform: String,
}

/// A process exists or runs.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Started {
    /// Its pid in the sandbox's first pid namespace.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
}

/// How a process ended.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Exit {
    /// Which process.
    #[prost(message, optional, tag = "1")]
    pub process: Option<super::ProcessRef>,
    /// Its pid.
    #[prost(uint32, tag = "2")]
    pub pid: u32,
    /// Exit status as runc reports it: the code, or 128 plus the signal.
    #[prost(uint32, tag = "3")]
    pub status: u32,
    /// When, in nanoseconds since 1970.
    #[prost(uint64, tag = "4")]
    pub at_unix_nanos: u64,
}

/// The processes of a container.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Processes {
    /// Thread-group leaders, by pid. The sentry leaves the last ones out when the reply would get too long.
    #[prost(message, repeated, tag = "1")]
    pub processes: Vec<ProcessInfo>,
}

/// One process.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ProcessInfo {
    /// Pid in the container's pid namespace.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// Its parent there; 0 when that is outside.
    #[prost(uint32, tag = "2")]
    pub ppid: u32,
    /// Effective user ID.
    #[prost(uint32, tag = "3")]
    pub uid: u32,
    /// `/proc/pid/comm`, at most 15 bytes.
    #[prost(bytes = "vec", tag = "4")]
    pub comm: Vec<u8>,
    /// Its ID when it was started from outside by `Exec`.
    #[prost(string, tag = "5")]
    pub exec_id: String,
    /// CPU time used, in nanoseconds.
    #[prost(uint64, tag = "6")]
    pub cpu_nanos: u64,
    /// When it started, in nanoseconds since 1970.
    #[prost(uint64, tag = "7")]
    pub started_unix_nanos: u64,
    /// Threads.
    #[prost(uint32, tag = "8")]
    pub threads: u32,
    /// `argv`, joined by spaces and cut at 4096 bytes.
    #[prost(bytes = "vec", tag = "9")]
    pub command: Vec<u8>,
    /// Name of the controlling terminal (`pts/0`), or empty.
    #[prost(string, tag = "10")]
    pub terminal: String,
}

/// What a container uses, as its kernel counts.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Stats {
    /// Time in guest code, in nanoseconds.
    #[prost(uint64, tag = "1")]
    pub user_nanos: u64,
    /// Time in the sentry on its behalf, in nanoseconds.
    #[prost(uint64, tag = "2")]
    pub system_nanos: u64,
    /// Memory in use, in bytes.
    #[prost(uint64, tag = "3")]
    pub memory: u64,
    /// Most that ever was.
    #[prost(uint64, tag = "4")]
    pub memory_peak: u64,
    /// The part of `memory` that is anonymous.
    #[prost(uint64, tag = "5")]
    pub anonymous: u64,
    /// Tasks now.
    #[prost(uint64, tag = "6")]
    pub pids: u64,
    /// Most tasks; 0 is no limit.
    #[prost(uint64, tag = "7")]
    pub pids_limit: u64,
    /// Minor page faults.
    #[prost(uint64, tag = "8")]
    pub minor_faults: u64,
    /// Page faults that read a file.
    #[prost(uint64, tag = "9")]
    pub major_faults: u64,
}

/// Internals.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct DebugReply {
    /// Calls per system call since the start.
    #[prost(message, repeated, tag = "1")]
    pub syscalls: Vec<SyscallCount>,
    /// One line per task.
    #[prost(string, repeated, tag = "2")]
    pub tasks: Vec<String>,
    /// What the platform counts.
    #[prost(message, repeated, tag = "3")]
    pub counters: Vec<Counter>,
}

/// Something that is counted.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Counter {
    /// What.
    #[prost(string, tag = "1")]
    pub name: String,
    /// How often since the start.
    #[prost(uint64, tag = "2")]
    pub value: u64,
}

/// How often a system call was made.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct SyscallCount {
    /// Its name, or its number when it has none.
    #[prost(string, tag = "1")]
    pub name: String,
    /// How often.
    #[prost(uint64, tag = "2")]
    pub calls: u64,
    /// False: the sentry does not implement it and answered `ENOSYS`.
    #[prost(bool, tag = "3")]
    pub implemented: bool,
}
