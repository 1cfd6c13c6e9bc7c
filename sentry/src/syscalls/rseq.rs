//! `rseq(2)`: restartable sequences.

use super::Args;
use crate::errno::{Errno, SysResult};
use crate::task::SyscallContext;
use crate::task::rseq::Registration;

/// `RSEQ_FLAG_UNREGISTER` (`linux/rseq.h`).
const UNREGISTER: i32 = 1;

/// `rseq(2)`
pub fn rseq(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let which = Registration { address: args.raw(0), len: args.uint(1), signature: args.uint(3) };
    let mm = ctx.task.mm();
    match args.int(2) {
        0 => ctx.local.rseq.register(&mm, which)?,
        UNREGISTER => ctx.local.rseq.unregister(&mm, which)?,
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}
