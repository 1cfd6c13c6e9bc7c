//! System calls for signals.

use super::{Entry, call};
use crate::syscalls::signals;

/// This family's lines.
#[rustfmt::skip]
pub const CALLS: &[Entry] = &[
    call!(rt_sigaction,      signals::rt_sigaction,      [Signal Ptr Ptr Size],        Full, ""),
    call!(rt_sigprocmask,    signals::rt_sigprocmask,    [Int SigSet Ptr Size],        Full, ""),
    call!(rt_sigreturn,      signals::rt_sigreturn,      [],                           Full, ""),
    call!(pause,             signals::pause,             [],                           Full, ""),
    call!(kill,              signals::kill,              [Pid Signal],                 Full, ""),
    call!(rt_sigpending,     signals::rt_sigpending,     [Ptr Size],                   Full, ""),
    call!(rt_sigtimedwait,   signals::rt_sigtimedwait,   [SigSet Ptr Timespec Size],   Full, ""),
    call!(rt_sigqueueinfo,   signals::rt_sigqueueinfo,   [Pid Signal Ptr],             Full, ""),
    call!(rt_sigsuspend,     signals::rt_sigsuspend,     [SigSet Size],                Full, ""),
    call!(sigaltstack,       signals::sigaltstack,       [Ptr Ptr],                    Full, ""),
    call!(tkill,             signals::tkill,             [Pid Signal],                 Full, ""),
    call!(restart_syscall,   signals::restart_syscall,   [],                           Full, ""),
    call!(tgkill,            signals::tgkill,            [Pid Pid Signal],             Full, ""),
    call!(rt_tgsigqueueinfo, signals::rt_tgsigqueueinfo, [Pid Pid Signal Ptr],         Full, ""),
    call!(pidfd_send_signal, signals::pidfd_send_signal, [Fd Signal Ptr Hex],          Full, ""),
];
