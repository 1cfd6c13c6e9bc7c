//! System calls for poll, select, epoll, eventfd, timerfd, signalfd, inotify, pipes.

use super::Entry;

/// This family's lines.
#[rustfmt::skip]
pub const CALLS: &[Entry] = &[
];
