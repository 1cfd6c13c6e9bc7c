//! System calls for ids, capabilities, limits, system information, prctl.

use super::{Entry, call};
use crate::syscalls::{identity, prctl, system};

/// This family's lines.
#[rustfmt::skip]
pub const CALLS: &[Entry] = &[
    call!(uname,         system::uname,           [Ptr],                       Full,    ""),
    call!(getrlimit,     system::getrlimit,       [UInt Ptr],                  Full,    ""),
    call!(getrusage,     system::getrusage,       [Int Ptr],                   Partial, "no major faults, involuntary switches and block counts"),
    call!(sysinfo,       system::sysinfo,         [Ptr],                       Full,    ""),
    call!(getuid,        identity::getuid,        [],                          Full,    ""),
    call!(syslog,        system::syslog,          [Int Ptr Int],               Partial, "the log is empty"),
    call!(getgid,        identity::getgid,        [],                          Full,    ""),
    call!(setuid,        identity::setuid,        [UInt],                      Full,    ""),
    call!(setgid,        identity::setgid,        [UInt],                      Full,    ""),
    call!(geteuid,       identity::geteuid,       [],                          Full,    ""),
    call!(getegid,       identity::getegid,       [],                          Full,    ""),
    call!(setreuid,      identity::setreuid,      [Int Int],                   Full,    ""),
    call!(setregid,      identity::setregid,      [Int Int],                   Full,    ""),
    call!(getgroups,     identity::getgroups,     [Int Ptr],                   Full,    ""),
    call!(setgroups,     identity::setgroups,     [Int Ptr],                   Full,    ""),
    call!(setresuid,     identity::setresuid,     [Int Int Int],               Full,    ""),
    call!(getresuid,     identity::getresuid,     [Ptr Ptr Ptr],               Full,    ""),
    call!(setresgid,     identity::setresgid,     [Int Int Int],               Full,    ""),
    call!(getresgid,     identity::getresgid,     [Ptr Ptr Ptr],               Full,    ""),
    call!(setfsuid,      identity::setfsuid,      [Int],                       Full,    ""),
    call!(setfsgid,      identity::setfsgid,      [Int],                       Full,    ""),
    call!(capget,        identity::capget,        [Ptr Ptr],                   Full,    ""),
    call!(capset,        identity::capset,        [Ptr Ptr],                   Full,    ""),
    call!(personality,   system::personality,     [Hex],                       Partial, "kept, but without effect"),
    call!(prctl,         prctl::prctl,            [Int Hex Hex Hex Hex],       Partial, "no PR_SET_MM, PR_SET_SECCOMP, PR_SET_VMA"),
    call!(setrlimit,     system::setrlimit,       [UInt Ptr],                  Full,    ""),
    call!(sethostname,   system::sethostname,     [InBytes Int],               Full,    ""),
    call!(setdomainname, system::setdomainname,   [InBytes Int],               Full,    ""),
    call!(prlimit64,     system::prlimit64,       [Pid UInt Ptr Ptr],          Full,    ""),
    call!(getcpu,        system::getcpu,          [Ptr Ptr Ptr],               Full,    ""),
    call!(getrandom,     system::getrandom,       [OutBytes Size Hex],         Full,    ""),
];
