//! Opening FIFOs: who waits for whom.

use std::sync::Arc;

use super::{Pipe, PipeEnd};
use crate::errno::{Errno, SysResult};
use crate::fs::anonymous::{AnonymousInode, next_ino};
use crate::task::{SyscallContext, block};
use crate::vfs::{Access, FileOps, Inode, OpenFlags};
use crate::wait::PollEvents;

/// Told to those who wait in `open` for a partner; no pipe ever reports it as readiness.
const PARTNER: PollEvents = PollEvents::RDBAND;

/// Opens the FIFO `inode`: the operations of a new description.
///
/// Blocks until the other end is open too, except with `O_NONBLOCK` (`ENXIO` for a writer without a reader) and `O_RDWR`.
/// `ERESTARTSYS` when interrupted.
pub fn open_fifo(
    ctx: &mut SyscallContext<'_>,
    inode: &Arc<dyn Inode>,
    flags: OpenFlags,
) -> SysResult<Arc<dyn FileOps>> {
    let pipe = inode.attachments().pipe_or(|| Pipe::new(next_ino())).ok_or(Errno::EIO)?;
    // A pipe without a name, opened again through `/proc/self/fd`, does not wait for a partner (Linux's `is_pipe`).
    if inode.downcast::<AnonymousInode>().is_some() {
        let (end, _) = pipe.open(flags - OpenFlags::NONBLOCK)?;
        return Ok(Arc::new(end));
    }
    let (end, wait) = pipe.open(flags)?;
    if let Some(wait) = wait {
        block::until(ctx, &pipe.queue, PARTNER, None, |_| {
            if wait.is_over(&pipe) { Ok(()) } else { Err(Errno::EAGAIN) }
        })?;
    }
    Ok(Arc::new(end))
}

/// What an `open` waits for: another partner than those that had joined before.
pub(super) enum PartnerWait {
    Writer { joined: u64 },
    Reader { joined: u64 },
}

impl PartnerWait {
    pub(super) fn is_over(&self, pipe: &Pipe) -> bool {
        let state = pipe.state.lock();
        match *self {
            PartnerWait::Writer { joined } => state.writers_joined != joined,
            PartnerWait::Reader { joined } => state.readers_joined != joined,
        }
    }
}

impl Pipe {
    /// Joins as `flags` say; the caller still has to wait if the second half says so.
    pub(super) fn open(self: &Arc<Pipe>, flags: OpenFlags) -> SysResult<(PipeEnd, Option<PartnerWait>)> {
        let mut access = Access::empty();
        access.set(Access::READ, flags.readable());
        access.set(Access::WRITE, flags.writable());
        let nonblocking = flags.contains(OpenFlags::NONBLOCK);
        if access == Access::WRITE && nonblocking && self.state.lock().readers == 0 {
            return Err(Errno::ENXIO);
        }
        let end = PipeEnd::join(self, access);
        self.queue.notify(PARTNER);
        let state = self.state.lock();
        let wait = if nonblocking {
            None
        } else if access == Access::READ && state.writers == 0 {
            Some(PartnerWait::Writer { joined: state.writers_joined })
        } else if access == Access::WRITE && state.readers == 0 {
            Some(PartnerWait::Reader { joined: state.readers_joined })
        } else {
            None
        };
        drop(state);
        Ok((end, wait))
    }
}
