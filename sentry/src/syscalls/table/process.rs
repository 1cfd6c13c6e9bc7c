//! System calls for processes and threads: clone, execve, exit, wait, sessions, scheduling.

use super::{Entry, call};
use crate::syscalls::{process, rseq, sched};

/// This family's lines.
#[rustfmt::skip]
pub const CALLS: &[Entry] = &[
    call!(sched_yield,            sched::sched_yield,            [],                          Full,    ""),
    call!(getpid,                 process::getpid,               [],                          Full,    ""),
    call!(clone,                  process::clone,                [CloneFlags Ptr Ptr Ptr Ptr], Partial, "no user, cgroup and time namespaces"),
    call!(fork,                   process::fork,                 [],                          Full,    ""),
    call!(vfork,                  process::vfork,                [],                          Full,    ""),
    call!(execve,                 process::execve,               [Path Strings Strings],      Full,    ""),
    call!(exit,                   process::exit,                 [Int],                       Full,    ""),
    call!(wait4,                  process::wait4,                [Pid Ptr Hex Ptr],           Partial, "rusage has times only; __WNOTHREAD has no effect"),
    call!(setpgid,                process::setpgid,              [Pid Pid],                   Full,    ""),
    call!(getppid,                process::getppid,              [],                          Full,    ""),
    call!(getpgrp,                process::getpgrp,              [],                          Full,    ""),
    call!(setsid,                 process::setsid,               [],                          Full,    ""),
    call!(getpgid,                process::getpgid,              [Pid],                       Full,    ""),
    call!(getsid,                 process::getsid,               [Pid],                       Full,    ""),
    call!(getpriority,            sched::getpriority,            [Int Pid],                   Full,    ""),
    call!(setpriority,            sched::setpriority,            [Int Pid Int],               Partial, "kept, but without effect"),
    call!(sched_setparam,         sched::sched_setparam,         [Pid Ptr],                   Partial, "kept, but without effect"),
    call!(sched_getparam,         sched::sched_getparam,         [Pid Ptr],                   Full,    ""),
    call!(sched_setscheduler,     sched::sched_setscheduler,     [Pid Int Ptr],               Partial, "kept, but without effect"),
    call!(sched_getscheduler,     sched::sched_getscheduler,     [Pid],                       Full,    ""),
    call!(sched_get_priority_max, sched::sched_get_priority_max, [Int],                       Full,    ""),
    call!(sched_get_priority_min, sched::sched_get_priority_min, [Int],                       Full,    ""),
    call!(sched_rr_get_interval,  sched::sched_rr_get_interval,  [Pid Ptr],                   Full,    ""),
    call!(arch_prctl,             process::arch_prctl,           [Hex Ptr],                   Partial, "FS and GS base only"),
    call!(gettid,                 process::gettid,               [],                          Full,    ""),
    call!(sched_setaffinity,      sched::sched_setaffinity,      [Pid Size Ptr],              Partial, "names the processor; the host schedules"),
    call!(sched_getaffinity,      sched::sched_getaffinity,      [Pid Size Ptr],              Full,    ""),
    call!(set_tid_address,        process::set_tid_address,      [Ptr],                       Full,    ""),
    call!(exit_group,             process::exit_group,           [Int],                       Full,    ""),
    call!(waitid,                 process::waitid,               [Int Pid Ptr Hex Ptr],       Partial, "rusage has times only; __WNOTHREAD has no effect"),
    call!(ioprio_set,             sched::ioprio_set,             [Int Pid Hex],               Partial, "kept, but without effect"),
    call!(ioprio_get,             sched::ioprio_get,             [Int Pid],                   Full,    ""),
    call!(unshare,                process::unshare,              [CloneFlags],                Partial, "no user, cgroup and time namespaces"),
    call!(sched_setattr,          sched::sched_setattr,          [Pid Ptr Hex],               Partial, "kept, but without effect; no deadline policy"),
    call!(sched_getattr,          sched::sched_getattr,          [Pid Ptr UInt Hex],          Full,    ""),
    call!(execveat,               process::execveat,             [Fd Path Strings Strings Hex], Full,  ""),
    call!(rseq,                   rseq::rseq,                    [Ptr UInt Hex Hex],          Full,    ""),
    call!(pidfd_open,             process::pidfd_open,           [Pid Hex],                   Full,    ""),
    call!(clone3,                 process::clone3,               [Ptr Size],                  Partial, "no user, cgroup and time namespaces, no chosen pids"),
    call!(pidfd_getfd,            process::pidfd_getfd,          [Fd Fd Hex],                 Full,    ""),
];
