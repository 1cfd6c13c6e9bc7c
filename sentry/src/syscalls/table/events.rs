//! System calls for poll, select, epoll, eventfd, timerfd, signalfd, inotify, pipes.

use super::{Entry, call};
use crate::syscalls::{events, pipes, poll};

/// This family's lines.
#[rustfmt::skip]
pub const CALLS: &[Entry] = &[
    call!(poll,             poll::poll,               [Ptr UInt Int],                     Full,    ""),
    call!(ppoll,            poll::ppoll,              [Ptr UInt Timespec SigSet Size],    Full,    ""),
    call!(select,           poll::select,             [Int Ptr Ptr Ptr Ptr],              Full,    ""),
    call!(pselect6,         poll::pselect6,           [Int Ptr Ptr Ptr Timespec Ptr],     Full,    ""),
    call!(epoll_create,     events::epoll_create,     [Int],                              Full,    ""),
    call!(epoll_create1,    events::epoll_create1,    [Hex],                              Full,    ""),
    call!(epoll_ctl,        events::epoll_ctl,        [Fd Int Fd Ptr],                    Full,    ""),
    call!(epoll_wait,       events::epoll_wait,       [Fd Ptr Int Int],                   Full,    ""),
    call!(epoll_pwait,      events::epoll_pwait,      [Fd Ptr Int Int SigSet Size],       Full,    ""),
    call!(epoll_pwait2,     events::epoll_pwait2,     [Fd Ptr Int Timespec SigSet Size],  Full,    ""),
    call!(eventfd,          events::eventfd,          [UInt],                             Full,    ""),
    call!(eventfd2,         events::eventfd2,         [UInt Hex],                         Full,    ""),
    call!(timerfd_create,   events::timerfd_create,   [Clock Hex],                        Full,    ""),
    call!(timerfd_settime,  events::timerfd_settime,  [Fd Hex Ptr Ptr],                   Partial, "a set host clock cancels at the next read"),
    call!(timerfd_gettime,  events::timerfd_gettime,  [Fd Ptr],                           Full,    ""),
    call!(signalfd,         events::signalfd,         [Fd SigSet Size],                   Full,    ""),
    call!(signalfd4,        events::signalfd4,        [Fd SigSet Size Hex],               Full,    ""),
    call!(pipe,             pipes::pipe,              [Ptr],                              Full,    ""),
    call!(pipe2,            pipes::pipe2,             [Ptr OpenFlags],                    Full,    ""),
];
