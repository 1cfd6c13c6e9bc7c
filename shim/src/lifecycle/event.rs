//! What happened, for whoever publishes it. Each is one of containerd's task events.

use super::state::ExitInfo;
use crate::launch::gofer::RootfsMount;
use crate::stdio::Names;

/// An event. `exec` is empty for a container's first process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// `/tasks/create`
    Created {
        /// The container.
        id: String,
        /// Its bundle.
        bundle: String,
        /// Its root file system's mounts.
        rootfs: Vec<RootfsMount>,
        /// Its streams.
        streams: Names,
        /// With a terminal.
        terminal: bool,
        /// Its pid.
        pid: u32,
    },
    /// `/tasks/start`
    Started {
        /// The container.
        id: String,
        /// Its pid.
        pid: u32,
    },
    /// `/tasks/exec-added`
    ExecAdded {
        /// The container.
        id: String,
        /// The process.
        exec: String,
    },
    /// `/tasks/exec-started`
    ExecStarted {
        /// The container.
        id: String,
        /// The process.
        exec: String,
        /// Its pid.
        pid: u32,
    },
    /// `/tasks/exit`
    Exited {
        /// The container.
        id: String,
        /// The process.
        exec: String,
        /// Its pid.
        pid: u32,
        /// How and when.
        exit: ExitInfo,
    },
    /// `/tasks/delete`
    Deleted {
        /// The container.
        id: String,
        /// Its pid.
        pid: u32,
        /// How and when it had ended.
        exit: ExitInfo,
    },
    /// `/tasks/paused`
    Paused {
        /// The container.
        id: String,
    },
    /// `/tasks/resumed`
    Resumed {
        /// The container.
        id: String,
    },
    /// `/tasks/oom`
    Oom {
        /// The container.
        id: String,
    },
}
