//! System calls for clocks, timers, sleeping.

use super::{Entry, call};
use crate::syscalls::time;

/// This family's lines.
#[rustfmt::skip]
pub const CALLS: &[Entry] = &[
    call!(nanosleep,        time::nanosleep,        [Timespec Ptr],            Full,    ""),
    call!(getitimer,        time::getitimer,        [Int Ptr],                 Full,    ""),
    call!(alarm,            time::alarm,            [UInt],                    Full,    ""),
    call!(setitimer,        time::setitimer,        [Int Ptr Ptr],             Full,    ""),
    call!(gettimeofday,     time::gettimeofday,     [Ptr Ptr],                 Full,    ""),
    call!(times,            time::times,            [Ptr],                     Full,    ""),
    call!(settimeofday,     time::settimeofday,     [Ptr Ptr],                 Partial, "EPERM: containers cannot set clocks"),
    call!(time,             time::time,             [Ptr],                     Full,    ""),
    call!(timer_create,     time::timer_create,     [Clock Ptr Ptr],           Partial, "not on the CPU time of other processes"),
    call!(timer_settime,    time::timer_settime,    [Int Hex Ptr Ptr],         Full,    ""),
    call!(timer_gettime,    time::timer_gettime,    [Int Ptr],                 Full,    ""),
    call!(timer_getoverrun, time::timer_getoverrun, [Int],                     Full,    ""),
    call!(timer_delete,     time::timer_delete,     [Int],                     Full,    ""),
    call!(clock_settime,    time::clock_settime,    [Clock Timespec],          Partial, "EPERM: containers cannot set clocks"),
    call!(clock_gettime,    time::clock_gettime,    [Clock Ptr],               Full,    ""),
    call!(clock_getres,     time::clock_getres,     [Clock Ptr],               Full,    ""),
    call!(clock_nanosleep,  time::clock_nanosleep,  [Clock Hex Timespec Ptr],  Full,    ""),
];
