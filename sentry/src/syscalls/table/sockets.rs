//! System calls for sockets.

use super::{Entry, call};
use crate::syscalls::{messages, sockets};

/// This family's lines.
#[rustfmt::skip]
pub const CALLS: &[Entry] = &[
    call!(socket,      sockets::socket,      [Int Int Int],                       Partial, "AF_UNIX only"),
    call!(socketpair,  sockets::socketpair,  [Int Int Int Ptr],                   Partial, "AF_UNIX only"),
    call!(bind,        sockets::bind,        [Fd SockAddr UInt],                  Full,    ""),
    call!(connect,     sockets::connect,     [Fd SockAddr UInt],                  Full,    ""),
    call!(listen,      sockets::listen,      [Fd Int],                            Full,    ""),
    call!(accept,      sockets::accept,      [Fd Ptr Ptr],                        Full,    ""),
    call!(accept4,     sockets::accept4,     [Fd Ptr Ptr Hex],                    Full,    ""),
    call!(getsockname, sockets::getsockname, [Fd Ptr Ptr],                        Full,    ""),
    call!(getpeername, sockets::getpeername, [Fd Ptr Ptr],                        Full,    ""),
    call!(shutdown,    sockets::shutdown,    [Fd Int],                            Full,    ""),
    call!(setsockopt,  sockets::setsockopt,  [Fd Int Int Ptr UInt],               Partial, "no filters, no SO_PEEK_OFF"),
    call!(getsockopt,  sockets::getsockopt,  [Fd Int Int Ptr Ptr],                Partial, "no SO_PEERPIDFD, SO_PEERGROUPS, SO_COOKIE"),
    call!(sendto,      messages::sendto,      [Fd InBytes Size Hex SockAddr UInt], Partial, "no MSG_OOB"),
    call!(sendmsg,     messages::sendmsg,     [Fd Ptr Hex],                        Partial, "no MSG_OOB"),
    call!(sendmmsg,    messages::sendmmsg,    [Fd Ptr UInt Hex],                   Partial, "no MSG_OOB"),
    call!(recvfrom,    messages::recvfrom,    [Fd OutBytes Size Hex Ptr Ptr],      Partial, "no MSG_OOB"),
    call!(recvmsg,     messages::recvmsg,     [Fd Ptr Hex],                        Partial, "no MSG_OOB"),
    call!(recvmmsg,    messages::recvmmsg,    [Fd Ptr UInt Hex Timespec],          Partial, "no MSG_OOB"),
];
