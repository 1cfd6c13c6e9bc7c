//! System calls for futexes, SysV IPC, POSIX message queues.

use super::{Entry, call};
use crate::syscalls::futex;

/// This family's lines.
#[rustfmt::skip]
pub const CALLS: &[Entry] = &[
    call!(futex,           futex::futex,           [Ptr FutexOp UInt Ptr Ptr Hex], Partial, "no FUTEX_WAIT_REQUEUE_PI; no priority inheritance"),
    call!(set_robust_list, futex::set_robust_list, [Ptr Size],                     Full,    ""),
    call!(get_robust_list, futex::get_robust_list, [Pid Ptr Ptr],                  Partial, "own list only"),
    call!(futex_waitv,     futex::futex_waitv,     [Ptr UInt Hex Timespec Clock],  Full,    ""),
];
