//! What a sentry is started with: descriptors and flags that launcher and `main` must agree on.
//!
//! A sentry inherits three descriptors and nothing else: 0 is its end of the control socket, 1 and 2 are the log (one line per write,
//! which never blocks for long). Everything else, `/dev/kvm` included, arrives over the control socket. So its `main` can take ownership of
//! descriptors without unsafe code: `stdin().as_fd().try_clone_to_owned()`.

/// Base name of the sentry's program.
pub const SENTRY_PROGRAM: &str = "caisson-sentry";
/// Flag: the sandbox's ID follows (it names threads and log lines only).
pub const FLAG_SANDBOX_ID: &str = "--sandbox-id";
/// Flag: one of `enforce` (default), `log` (violations reach the audit log; debugging only), `off` follows.
pub const FLAG_SECCOMP: &str = "--seccomp";
/// Flag: log level (`error`, `warn`, `info`, `debug`, `trace`) follows.
pub const FLAG_LOG_LEVEL: &str = "--log-level";

/// Switch of `Configure`, and annotation: with the value `off` every system call leaves the guest.
pub const SWITCH_EXITLESS: &str = "dev.caisson.exitless";

/// How strictly the sentry's own system-call filter is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SeccompMode {
    /// A call outside the list kills the sentry.
    #[default]
    Enforce,
    /// A call outside the list is logged by the host's audit and let through. For finding misses; not confinement.
    Log,
    /// No filter at all. For debuggers only.
    Off,
}

impl SeccompMode {
    /// The flag's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Log => "log",
            Self::Off => "off",
        }
    }

    /// Reads the flag's value; `None` for anything that is not one of the three.
    pub fn parse(value: &str) -> Option<Self> {
        match value {
            "enforce" => Some(Self::Enforce),
            "log" => Some(Self::Log),
            "off" => Some(Self::Off),
            _ => None,
        }
    }
}
