//! What a sentry is started with: descriptor numbers and flags that launcher and `main` must agree on.

/// The sentry's end of the control socket.
pub const CONTROL_FD: i32 = 3;
/// `/dev/kvm`, opened read-write by the launcher.
pub const KVM_FD: i32 = 4;
/// Where log lines go: one line per write, never blocking for long. Standard error goes to the same place.
pub const LOG_FD: i32 = 5;
/// First descriptor that must not be open when the sentry starts.
pub const FIRST_FREE_FD: i32 = 6;

/// Base name of the sentry's program.
pub const SENTRY_PROGRAM: &str = "caisson-sentry";
/// Flag: the sandbox's ID follows (it names threads and log lines only).
pub const FLAG_SANDBOX_ID: &str = "--sandbox-id";
/// Flag: one of `enforce` (default), `log` (violations reach the audit log; debugging only), `off` follows.
pub const FLAG_SECCOMP: &str = "--seccomp";
/// Flag: log level (`error`, `warn`, `info`, `debug`, `trace`) follows.
pub const FLAG_LOG_LEVEL: &str = "--log-level";

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
