//! How a gofer is started.
//!
//! The launcher runs `caisson-gofer --config-fd N` and writes an encoded [`GoferConfig`] to the other end of N (a pipe, or a
//! memfd at offset 0), then closes it. All descriptor numbers in it are numbers in the gofer's table: the launcher makes them
//! inheritable.
//!
//! What the launcher provides:
//! - a fresh mount namespace (and pid, ipc, net, uts namespaces) whose root shows the container's root file system and its
//!   mounts and nothing else; a read-only mount is mounted read-only there too, `nosuid,nodev` is welcome;
//! - `SIGKILL` as parent-death signal is set by the gofer itself, for the thread that started it;
//! - a `proc` mount of the gofer's own pid namespace, given as descriptor ([`GoferConfig::proc_fd`]) so that it need not
//!   be visible in the root;
//! - one `SOCK_SEQPACKET` socketpair per mount, the other end for the sentry.
//!
//! A dynamically linked gofer needs its loader and libraries until it runs, so the launcher cannot start it in that small root. It
//! assembles the root below [`GoferConfig::new_root`], and the gofer pivots into it (`pivot_root(".", ".")`, then a lazy unmount of the
//! old root) as its very first step.
//!
//! What the gofer does before it serves: pivots, opens the roots, drops all capabilities but those its mounts need, sets
//! `no_new_privs`, closes every descriptor that the config does not name (standard error stays), installs its seccomp filter.
//! Then it writes one byte to [`GoferConfig::ready_fd`] and serves until all connections are closed: exit status 0. When
//! it cannot start, it prints one line on standard error and exits with status 1.

use prost::Message;

/// Largest encoded [`GoferConfig`] in bytes.
pub const CONFIG_MAX: usize = 1024 * 1024;
/// Name of the option that gives the config's descriptor.
pub const CONFIG_FD_OPTION: &str = "--config-fd";

/// What a gofer serves.
#[derive(Clone, PartialEq, Message)]
pub struct GoferConfig {
    /// The connections, at least one.
    #[prost(message, repeated, tag = "1")]
    pub mounts: Vec<GoferMount>,
    /// A descriptor of the root of a proc mount of the pid namespace that the gofer is in. Absent:
    /// `/proc` in the gofer's root is used.
    #[prost(int32, optional, tag = "2")]
    pub proc_fd: Option<i32>,
    /// Gets one byte when serving starts, then is closed.
    #[prost(int32, optional, tag = "3")]
    pub ready_fd: Option<i32>,
    /// Most descriptors of the whole process; 0 leaves the limit (`RLIMIT_NOFILE`) raised to its hard value.
    #[prost(uint64, tag = "4")]
    pub max_descriptors: u64,
    /// Where the launcher has assembled the root. Empty: the gofer's root is already the one to serve.
    #[prost(string, tag = "5")]
    pub new_root: String,
}

/// One mount and its connection.
#[derive(Clone, PartialEq, Message)]
pub struct GoferMount {
    /// The gofer's end of the mount's `SOCK_SEQPACKET` pair.
    #[prost(int32, tag = "1")]
    pub socket_fd: i32,
    /// Where the guest sees the mount: for messages only.
    #[prost(string, tag = "2")]
    pub destination: String,
    /// The root's place, as descriptor or as path.
    #[prost(oneof = "Root", tags = "3, 4")]
    pub root: Option<Root>,
    /// Refuse every change (`EROFS`).
    #[prost(bool, tag = "5")]
    pub read_only: bool,
    /// Walk into host mounts below the root (`rbind`). Without it they are refused (`EXDEV`).
    #[prost(bool, tag = "6")]
    pub recursive: bool,
    /// Let the guest connect to unix sockets that host processes have bound in this mount.
    #[prost(bool, tag = "7")]
    pub connect_sockets: bool,
    /// Let the guest bind unix sockets in this mount that host processes can connect to.
    #[prost(bool, tag = "8")]
    pub bind_sockets: bool,
    /// Let the guest create device nodes here. They are never opened on the host, but they are there: not for mounts that host
    /// users can see.
    #[prost(bool, tag = "9")]
    pub device_nodes: bool,
}

/// Where a mount's root is.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Root {
    /// A descriptor: a directory, or any file for a single-file mount. `O_PATH` is enough.
    #[prost(int32, tag = "3")]
    Fd(i32),
    /// An absolute path in the gofer's root. Symbolic links in it are followed by the kernel, within that root.
    #[prost(string, tag = "4")]
    Path(String),
}
