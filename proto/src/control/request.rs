//! What the shim asks of the sentry.

use prost::{Message, Oneof};

use super::container::{Container, Limits, Network, Process, Stdio, Strace, WindowSize};

/// Everything that travels from the shim to the sentry.
#[derive(Clone, PartialEq, Message)]
pub struct ToSentry {
    /// The request's number, chosen by the shim; the reply carries it back. Not 0.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// What is asked. Absent when this side does not know it.
    #[prost(oneof = "Request", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17")]
    pub request: Option<Request>,
}

/// The requests.
// One exists at a time and none is stored, so a box around the largest would only cost an allocation.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, PartialEq, Oneof)]
pub enum Request {
    /// Answered by [`super::Reply::Configured`].
    #[prost(message, tag = "2")]
    Configure(Configure),
    /// Answered by [`super::Reply::Created`] once the program was found and loaded.
    #[prost(message, tag = "3")]
    CreateContainer(CreateContainer),
    /// Runs a created container; answered by [`super::Reply::Started`].
    #[prost(message, tag = "4")]
    Start(Start),
    /// Starts a further process; answered by [`super::Reply::Started`].
    #[prost(message, tag = "5")]
    Exec(Exec),
    /// Answered by [`super::Reply::Done`], or by an error with `ESRCH` in [`super::Error::errno`] when the process has ended.
    #[prost(message, tag = "6")]
    Kill(Kill),
    /// Asks for the exit again. Answered by [`super::Reply::Exited`] when the process ends, which may be at once.
    #[prost(message, tag = "7")]
    Wait(ProcessRef),
    /// Stops every task of the container without it noticing; answered by `Done` when they all stand still.
    #[prost(message, tag = "8")]
    Pause(ContainerRef),
    /// Undoes `Pause`.
    #[prost(message, tag = "9")]
    Resume(ContainerRef),
    /// Answered by [`super::Reply::Processes`].
    #[prost(message, tag = "10")]
    Processes(ContainerRef),
    /// Answered by [`super::Reply::Stats`].
    #[prost(message, tag = "11")]
    Stats(ContainerRef),
    /// Changes a terminal's size; the foreground process group gets `SIGWINCH`.
    #[prost(message, tag = "12")]
    ResizePty(ResizePty),
    /// Tells a terminal's input that no more is coming (a pipe's end of file needs no message).
    #[prost(message, tag = "13")]
    CloseStdin(ProcessRef),
    /// Forgets a process that has ended. For a container's first: frees everything the container held.
    #[prost(message, tag = "14")]
    Delete(ProcessRef),
    /// Changes limits that the sentry enforces or shows.
    #[prost(message, tag = "15")]
    Update(Update),
    /// Kills what runs and exits after answering `Done`.
    #[prost(message, tag = "16")]
    Shutdown(Shutdown),
    /// Asks for internals; answered by [`super::Reply::Debug`].
    #[prost(message, tag = "17")]
    Debug(Debug),
}

/// Sets up the sandbox. The first request, sent once.
#[derive(Clone, PartialEq, Message)]
pub struct Configure {
    /// [`super::VERSION`].
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The sandbox's ID.
    #[prost(string, tag = "2")]
    pub sandbox_id: String,
    /// Host name until a container brings its own.
    #[prost(string, tag = "3")]
    pub hostname: String,
    /// Most guest memory in bytes; 0 leaves it to the sentry (the host's memory).
    #[prost(uint64, tag = "4")]
    pub memory: u64,
    /// CPUs that guests see; 0 is the number of host CPUs that the sentry may run on.
    #[prost(uint32, tag = "5")]
    pub cpus: u32,
    /// Tracing for every container.
    #[prost(message, optional, tag = "6")]
    pub strace: Option<Strace>,
    /// Switches for developers (`dev.caisson.*` annotations that only the sentry understands).
    #[prost(message, repeated, tag = "7")]
    pub switches: Vec<super::KeyValue>,
    /// `/dev/kvm`, opened read-write.
    #[prost(uint32, tag = "8")]
    pub kvm_fd: u32,
    /// The network. Absent is [`Network::None`].
    #[prost(oneof = "Network", tags = "20, 21, 22")]
    pub network: Option<Network>,
}

/// Creates a container. Its descriptors are those that [`Container`] names by index.
#[derive(Clone, PartialEq, Message)]
pub struct CreateContainer {
    /// What it is to be.
    #[prost(message, optional, tag = "1")]
    pub container: Option<Container>,
}

/// Runs a created container.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Start {
    /// Which container.
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// Starts a further process in a running container.
#[derive(Clone, PartialEq, Message)]
pub struct Exec {
    /// Which container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// The process's ID, unique in the container.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// What to run.
    #[prost(message, optional, tag = "3")]
    pub process: Option<Process>,
    /// Its standard streams.
    #[prost(message, optional, tag = "4")]
    pub stdio: Option<Stdio>,
}

/// Sends a signal.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Kill {
    /// Which container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Which process; empty is the container's first.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// The signal's number; 0 only tests.
    #[prost(uint32, tag = "3")]
    pub signal: u32,
    /// True: every process of the container, whatever `exec_id` says.
    #[prost(bool, tag = "4")]
    pub all: bool,
}

/// Names a container.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ContainerRef {
    /// Which container.
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// Names a process that was started from outside.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct ProcessRef {
    /// Which container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Which process; empty is the container's first.
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// Changes a terminal's size.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ResizePty {
    /// Whose terminal.
    #[prost(message, optional, tag = "1")]
    pub process: Option<ProcessRef>,
    /// The new size.
    #[prost(message, optional, tag = "2")]
    pub window: Option<WindowSize>,
}

/// Changes limits.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Update {
    /// Which container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// The new limits; a field that is absent stays as it is.
    #[prost(message, optional, tag = "2")]
    pub limits: Option<Limits>,
}

/// Ends the sandbox.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Shutdown {}

/// Asks for internals.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Debug {
    /// Count the system calls per name.
    #[prost(bool, tag = "1")]
    pub syscalls: bool,
    /// State of every task, one line each.
    #[prost(bool, tag = "2")]
    pub tasks: bool,
}
