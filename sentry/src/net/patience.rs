//! How long a call on a socket waits: `O_NONBLOCK`, `MSG_DONTWAIT`, `SO_RCVTIMEO`, `SO_SNDTIMEO`.

use std::time::{Duration, Instant};

use crate::errno::{Errno, SysResult};
use crate::task::{SyscallContext, block};
use crate::vfs::File;
use crate::wait::{PollEvents, WaitQueue};

/// How long a call waits.
#[derive(Clone, Copy, Debug)]
pub enum Patience {
    /// Not at all.
    None,
    /// Until then.
    Until(Instant),
    /// For ever.
    Endless,
}

impl Patience {
    /// Of a call on `file` that began now, with the socket's `timeout` for what it does.
    pub fn new(file: &File, dontwait: bool, timeout: Option<Duration>) -> Patience {
        if dontwait || file.nonblocking() {
            return Patience::None;
        }
        timeout
            .and_then(|timeout| Instant::now().checked_add(timeout))
            .map_or(Patience::Endless, Patience::Until)
    }

    /// Tries until it is not `EAGAIN`. That is also the error when time is up; and a wait with an end is not restarted after
    /// signals (`EINTR`).
    pub fn until<T>(
        self,
        ctx: &mut SyscallContext<'_>,
        queue: &WaitQueue,
        events: PollEvents,
        mut attempt: impl FnMut(&mut SyscallContext<'_>) -> SysResult<T>,
    ) -> SysResult<T> {
        let deadline = match self {
            Patience::None => return attempt(ctx),
            Patience::Until(deadline) => Some(deadline),
            Patience::Endless => None,
        };
        match block::until(ctx, queue, events, deadline, attempt) {
            Err(Errno::ETIMEDOUT) if deadline.is_some() => Err(Errno::EAGAIN),
            Err(Errno::ERESTARTSYS) if deadline.is_some() => Err(Errno::EINTR),
            other => other,
        }
    }
}
