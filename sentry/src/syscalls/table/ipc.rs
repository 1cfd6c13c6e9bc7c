//! System calls for futexes, SysV IPC, POSIX message queues.

use super::Entry;

/// This family's lines.
#[rustfmt::skip]
pub const CALLS: &[Entry] = &[
];
