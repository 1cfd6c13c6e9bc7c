//! What a container and its processes look like to the sentry: the OCI spec after the shim has read, checked and flattened it.
//!
//! Numbers are Linux's (`RLIMIT_*`, `MS_*`, `CAP_*` bits, `AT_*`), so that the sentry needs no tables of names. Fields called `…_fd`
//! are indexes into the descriptors that came with the message.

use prost::{Enumeration, Message, Oneof};

/// A container to be created.
#[derive(Clone, PartialEq, Message)]
pub struct Container {
    /// Its ID; see [`super::valid_id`].
    #[prost(string, tag = "1")]
    pub id: String,
    /// Its first process, pid 1 of its pid namespace.
    #[prost(message, optional, tag = "2")]
    pub process: Option<Process>,
    /// Host name in its UTS namespace; empty keeps the sandbox's.
    #[prost(string, tag = "3")]
    pub hostname: String,
    /// NIS domain name in its UTS namespace.
    #[prost(string, tag = "4")]
    pub domainname: String,
    /// Its root file system.
    #[prost(message, optional, tag = "5")]
    pub root: Option<Root>,
    /// Mounts, in the order in which they are to be made.
    #[prost(message, repeated, tag = "6")]
    pub mounts: Vec<Mount>,
    /// Device nodes beyond the default ones.
    #[prost(message, repeated, tag = "7")]
    pub devices: Vec<Device>,
    /// Paths to be made unreadable: files are covered by `/dev/null`, directories by an empty read-only tmpfs.
    #[prost(bytes = "vec", repeated, tag = "8")]
    pub masked_paths: Vec<Vec<u8>>,
    /// Paths to be made read-only.
    #[prost(bytes = "vec", repeated, tag = "9")]
    pub readonly_paths: Vec<Vec<u8>>,
    /// Kernel parameters to be written below `/proc/sys`, keys in dotted form.
    #[prost(message, repeated, tag = "10")]
    pub sysctls: Vec<KeyValue>,
    /// Namespaces that the container asks for. A kind that is absent is the sandbox's.
    #[prost(message, repeated, tag = "11")]
    pub namespaces: Vec<Namespace>,
    /// Limits that the sentry enforces or shows.
    #[prost(message, optional, tag = "12")]
    pub limits: Option<Limits>,
    /// The system-call filter for the container's processes.
    #[prost(message, optional, tag = "13")]
    pub seccomp: Option<Seccomp>,
    /// Path shown in `/proc/self/cgroup`; empty shows `/`.
    #[prost(string, tag = "14")]
    pub cgroups_path: String,
    /// Propagation flags (`MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`, `MS_REC`) of the root; 0 is Linux's default.
    #[prost(uint64, tag = "15")]
    pub root_propagation: u64,
    /// Whose file descriptions are the first process's standard streams.
    #[prost(message, optional, tag = "16")]
    pub stdio: Option<Stdio>,
    /// Overrides the sandbox's tracing for this container.
    #[prost(message, optional, tag = "17")]
    pub strace: Option<Strace>,
}

/// A process that is started from outside: a container's first or an `exec`.
#[derive(Clone, PartialEq, Message)]
pub struct Process {
    /// `argv`; at least one. `argv[0]` is looked up in the `PATH` of `env` when it has no slash.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub args: Vec<Vec<u8>>,
    /// `envp`, each `NAME=value`.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub env: Vec<Vec<u8>>,
    /// Absolute working directory; created when it is missing (as runc does).
    #[prost(bytes = "vec", tag = "3")]
    pub cwd: Vec<u8>,
    /// Who it runs as.
    #[prost(message, optional, tag = "4")]
    pub user: Option<User>,
    /// Its capability sets; absent means none at all.
    #[prost(message, optional, tag = "5")]
    pub capabilities: Option<Capabilities>,
    /// Its resource limits; a resource that is absent keeps the sandbox's default.
    #[prost(message, repeated, tag = "6")]
    pub rlimits: Vec<Rlimit>,
    /// Sets `PR_SET_NO_NEW_PRIVS`.
    #[prost(bool, tag = "7")]
    pub no_new_privs: bool,
    /// Value of `/proc/self/oom_score_adj`.
    #[prost(sint32, optional, tag = "8")]
    pub oom_score_adj: Option<i32>,
    /// True: the standard streams are a new pseudo-terminal, which is also the controlling terminal.
    #[prost(bool, tag = "9")]
    pub terminal: bool,
    /// Size of that terminal at the start.
    #[prost(message, optional, tag = "10")]
    pub window: Option<WindowSize>,
}

/// Credentials of a process.
#[derive(Clone, PartialEq, Message)]
pub struct User {
    /// Real, effective, saved and file-system user ID.
    #[prost(uint32, tag = "1")]
    pub uid: u32,
    /// The same for the group.
    #[prost(uint32, tag = "2")]
    pub gid: u32,
    /// File-creation mask; absent is 022.
    #[prost(uint32, optional, tag = "3")]
    pub umask: Option<u32>,
    /// Supplementary groups.
    #[prost(uint32, repeated, tag = "4")]
    pub additional_gids: Vec<u32>,
}

/// Capability sets as bit masks: bit `n` is the capability numbered `n`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Capabilities {
    /// The bounding set.
    #[prost(fixed64, tag = "1")]
    pub bounding: u64,
    /// The effective set.
    #[prost(fixed64, tag = "2")]
    pub effective: u64,
    /// The permitted set.
    #[prost(fixed64, tag = "3")]
    pub permitted: u64,
    /// The inheritable set.
    #[prost(fixed64, tag = "4")]
    pub inheritable: u64,
    /// The ambient set.
    #[prost(fixed64, tag = "5")]
    pub ambient: u64,
}

/// One `setrlimit`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Rlimit {
    /// `RLIMIT_*`.
    #[prost(uint32, tag = "1")]
    pub resource: u32,
    /// `rlim_cur`; all ones is unlimited.
    #[prost(uint64, tag = "2")]
    pub soft: u64,
    /// `rlim_max`.
    #[prost(uint64, tag = "3")]
    pub hard: u64,
}

/// A terminal's size in characters.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct WindowSize {
    /// Rows; at most 65535.
    #[prost(uint32, tag = "1")]
    pub rows: u32,
    /// Columns; at most 65535.
    #[prost(uint32, tag = "2")]
    pub columns: u32,
}

/// Standard streams of a process that is started from outside. An absent stream is `/dev/null`.
///
/// Without a terminal the descriptors (pipes, FIFOs, sockets or files) become the process's 0, 1 and 2. With one the sentry makes
/// a pseudo-terminal and copies `stdin_fd` into its master and the master into `stdout_fd`; `stderr_fd` is unused.
/// The file description may be shared with strangers: `O_NONBLOCK` must not be set on it.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Stdio {
    /// Readable descriptor.
    #[prost(uint32, optional, tag = "1")]
    pub stdin_fd: Option<u32>,
    /// Writable descriptor.
    #[prost(uint32, optional, tag = "2")]
    pub stdout_fd: Option<u32>,
    /// Writable descriptor.
    #[prost(uint32, optional, tag = "3")]
    pub stderr_fd: Option<u32>,
}

/// The root file system.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Root {
    /// Connection to the gofer; its attach point is the root directory.
    #[prost(uint32, tag = "1")]
    pub gofer_fd: u32,
    /// True: mounted read-only.
    #[prost(bool, tag = "2")]
    pub readonly: bool,
}

/// One mount.
#[derive(Clone, PartialEq, Message)]
pub struct Mount {
    /// Absolute path inside the container; missing parts are created.
    #[prost(bytes = "vec", tag = "1")]
    pub destination: Vec<u8>,
    /// File system type (`proc`, `tmpfs`, …); `bind` for a mount through the gofer or of another place in the container.
    #[prost(string, tag = "2")]
    pub kind: String,
    /// `MS_*` flags out of the options.
    #[prost(uint64, tag = "3")]
    pub flags: u64,
    /// Propagation flags out of the options, to be applied by a second `mount`; 0 is none.
    #[prost(uint64, tag = "4")]
    pub propagation: u64,
    /// The remaining options, joined by commas (`size=65536k,mode=755`).
    #[prost(string, tag = "5")]
    pub data: String,
    /// Connection to the gofer whose attach point is the mount's source.
    #[prost(uint32, optional, tag = "6")]
    pub gofer_fd: Option<u32>,
    /// True: the source is a directory, so a missing destination is created as one; otherwise as an empty file.
    #[prost(bool, tag = "7")]
    pub source_is_dir: bool,
    /// Source as the spec names it (shown in `/proc/mounts`).
    #[prost(bytes = "vec", tag = "8")]
    pub source: Vec<u8>,
}

/// One device node.
#[derive(Clone, PartialEq, Message)]
pub struct Device {
    /// Absolute path inside the container.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// `S_IFCHR`, `S_IFBLK` or `S_IFIFO`, or-ed with the permissions.
    #[prost(uint32, tag = "2")]
    pub mode: u32,
    /// Major number.
    #[prost(uint32, tag = "3")]
    pub major: u32,
    /// Minor number.
    #[prost(uint32, tag = "4")]
    pub minor: u32,
    /// Owner.
    #[prost(uint32, tag = "5")]
    pub uid: u32,
    /// Group.
    #[prost(uint32, tag = "6")]
    pub gid: u32,
}

/// A key and its value.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct KeyValue {
    /// The key.
    #[prost(string, tag = "1")]
    pub key: String,
    /// The value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// A namespace that a container asks for.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Namespace {
    /// Which kind.
    #[prost(enumeration = "NamespaceKind", tag = "1")]
    pub kind: i32,
    /// Container of this sandbox whose namespace is joined; empty asks for a new one.
    #[prost(string, tag = "2")]
    pub of_container: String,
    /// User namespace only: ID mappings.
    #[prost(message, repeated, tag = "3")]
    pub uid_mappings: Vec<IdMapping>,
    /// User namespace only: ID mappings.
    #[prost(message, repeated, tag = "4")]
    pub gid_mappings: Vec<IdMapping>,
}

/// Linux's kinds of namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum NamespaceKind {
    /// Never sent; what an unknown value decodes to.
    Unknown = 0,
    /// `CLONE_NEWPID`.
    Pid = 1,
    /// `CLONE_NEWNS`.
    Mount = 2,
    /// `CLONE_NEWIPC`.
    Ipc = 3,
    /// `CLONE_NEWUTS`.
    Uts = 4,
    /// `CLONE_NEWNET`.
    Network = 5,
    /// `CLONE_NEWUSER`.
    User = 6,
    /// `CLONE_NEWCGROUP`.
    Cgroup = 7,
    /// `CLONE_NEWTIME`.
    Time = 8,
}

/// One line of `uid_map` or `gid_map`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct IdMapping {
    /// First ID inside.
    #[prost(uint32, tag = "1")]
    pub container_id: u32,
    /// First ID outside.
    #[prost(uint32, tag = "2")]
    pub host_id: u32,
    /// How many.
    #[prost(uint32, tag = "3")]
    pub size: u32,
}

/// Limits that are enforced or shown inside the sandbox. What the host's cgroup enforces is the shim's business.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Limits {
    /// Most tasks in the container (`pids.max`).
    #[prost(uint64, optional, tag = "1")]
    pub pids: Option<u64>,
    /// Memory in bytes: shown in `/proc/meminfo` and the cgroup files; the guest's OOM killer acts before the host's.
    #[prost(uint64, optional, tag = "2")]
    pub memory: Option<u64>,
    /// Memory and swap together in bytes; shown only.
    #[prost(uint64, optional, tag = "3")]
    pub memory_swap: Option<u64>,
    /// CPUs that the container sees (quota divided by period, rounded up, within its cpuset).
    #[prost(uint32, optional, tag = "4")]
    pub cpus: Option<u32>,
    /// CFS quota in microseconds; shown only.
    #[prost(int64, optional, tag = "5")]
    pub cpu_quota: Option<i64>,
    /// CFS period in microseconds; shown only.
    #[prost(uint64, optional, tag = "6")]
    pub cpu_period: Option<u64>,
    /// CPU shares; shown only.
    #[prost(uint64, optional, tag = "7")]
    pub cpu_shares: Option<u64>,
}

/// An OCI seccomp profile.
#[derive(Clone, PartialEq, Message)]
pub struct Seccomp {
    /// `SECCOMP_RET_*` for calls that no rule names (with the errno in the low half).
    #[prost(uint32, tag = "1")]
    pub default_action: u32,
    /// Names of architectures (`SCMP_ARCH_X86_64`, …).
    #[prost(string, repeated, tag = "2")]
    pub architectures: Vec<String>,
    /// Names of flags (`SECCOMP_FILTER_FLAG_LOG`, …).
    #[prost(string, repeated, tag = "3")]
    pub flags: Vec<String>,
    /// The rules.
    #[prost(message, repeated, tag = "4")]
    pub rules: Vec<SeccompRule>,
}

/// One rule of a seccomp profile: these calls, with arguments that pass every test, get that action.
#[derive(Clone, PartialEq, Message)]
pub struct SeccompRule {
    /// System-call names; unknown ones are ignored.
    #[prost(string, repeated, tag = "1")]
    pub names: Vec<String>,
    /// `SECCOMP_RET_*` with the errno in the low half.
    #[prost(uint32, tag = "2")]
    pub action: u32,
    /// Tests on arguments.
    #[prost(message, repeated, tag = "3")]
    pub tests: Vec<SeccompTest>,
}

/// One test on a system call's argument.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct SeccompTest {
    /// Which argument, 0 to 5.
    #[prost(uint32, tag = "1")]
    pub index: u32,
    /// What to compare with (for [`SeccompOperator::MaskedEqual`]: the mask).
    #[prost(uint64, tag = "2")]
    pub value: u64,
    /// Second operand of [`SeccompOperator::MaskedEqual`].
    #[prost(uint64, tag = "3")]
    pub value_two: u64,
    /// How to compare.
    #[prost(enumeration = "SeccompOperator", tag = "4")]
    pub operator: i32,
}

/// `SCMP_CMP_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum SeccompOperator {
    /// Never sent; what an unknown value decodes to.
    Unknown = 0,
    /// `!=`
    NotEqual = 1,
    /// `<`
    Less = 2,
    /// `<=`
    LessOrEqual = 3,
    /// `==`
    Equal = 4,
    /// `>=`
    GreaterOrEqual = 5,
    /// `>`
    Greater = 6,
    /// `(argument & value) == value_two`
    MaskedEqual = 7,
}

/// System-call tracing to the log.
#[derive(Clone, PartialEq, Message)]
pub struct Strace {
    /// Trace at all.
    #[prost(bool, tag = "1")]
    pub enabled: bool,
    /// Only these calls; empty is all.
    #[prost(string, repeated, tag = "2")]
    pub calls: Vec<String>,
    /// Longest string or buffer shown, in bytes; 0 is the sentry's default.
    #[prost(uint32, tag = "3")]
    pub max_bytes: u32,
}

/// What a sandbox's network is.
#[derive(Clone, PartialEq, Oneof)]
pub enum Network {
    /// Loopback only.
    #[prost(bool, tag = "20")]
    None(bool),
    /// Interfaces of the pod's network namespace, each with a packet socket.
    #[prost(message, tag = "21")]
    Interfaces(Interfaces),
    /// The host's own sockets are passed through.
    #[prost(bool, tag = "22")]
    Host(bool),
}

/// The pod's interfaces as the shim found them.
#[derive(Clone, PartialEq, Message)]
pub struct Interfaces {
    /// One per link other than loopback.
    #[prost(message, repeated, tag = "1")]
    pub links: Vec<Link>,
}

/// A network interface outside, and the socket that carries its frames.
#[derive(Clone, PartialEq, Message)]
pub struct Link {
    /// Name (`eth0`).
    #[prost(string, tag = "1")]
    pub name: String,
    /// Link-layer address, 6 bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub address: Vec<u8>,
    /// Maximum transmission unit in bytes.
    #[prost(uint32, tag = "3")]
    pub mtu: u32,
    /// `AF_PACKET` socket that is bound to the interface.
    #[prost(uint32, tag = "4")]
    pub packet_fd: u32,
    /// Addresses with their prefix length, as text (`10.1.0.7/16`).
    #[prost(string, repeated, tag = "5")]
    pub addresses: Vec<String>,
    /// Routes: destination in CIDR form, then the gateway or nothing.
    #[prost(message, repeated, tag = "6")]
    pub routes: Vec<KeyValue>,
}
