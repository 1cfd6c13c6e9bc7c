//! System calls for processes and threads: clone, execve, exit, wait, sessions, scheduling.

use super::Entry;

/// This family's lines.
#[rustfmt::skip]
pub const CALLS: &[Entry] = &[
];
