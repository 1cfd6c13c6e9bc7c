//! System calls for futexes, SysV IPC, POSIX message queues.

use super::{Entry, call};
use crate::syscalls::{futex, mqueue, msg, sem, shm};

/// This family's lines.
#[rustfmt::skip]
pub const CALLS: &[Entry] = &[
    call!(shmget,          shm::shmget,            [Hex Size Hex],                 Partial, "no huge pages"),
    call!(shmat,           shm::shmat,             [Int Ptr Hex],                  Full,    ""),
    call!(shmctl,          shm::shmctl,            [Int Int Ptr],                  Full,    ""),
    call!(semget,          sem::semget,            [Hex Int Hex],                  Full,    ""),
    call!(semop,           sem::semop,             [Int Ptr Size],                 Full,    ""),
    call!(semctl,          sem::semctl,            [Int Int Int Hex],              Full,    ""),
    call!(shmdt,           shm::shmdt,             [Ptr],                          Full,    ""),
    call!(msgget,          msg::msgget,            [Hex Hex],                      Full,    ""),
    call!(msgsnd,          msg::msgsnd,            [Int Ptr Size Hex],             Full,    ""),
    call!(msgrcv,          msg::msgrcv,            [Int Ptr Size Int Hex],         Full,    ""),
    call!(msgctl,          msg::msgctl,            [Int Int Ptr],                  Full,    ""),
    call!(semtimedop,      sem::semtimedop,        [Int Ptr Size Timespec],        Full,    ""),
    call!(futex,           futex::futex,           [Ptr FutexOp UInt Ptr Ptr Hex], Partial, "no FUTEX_WAIT_REQUEUE_PI; no priority inheritance"),
    call!(mq_open,         mqueue::mq_open,        [Path OpenFlags Mode Ptr],      Full,    ""),
    call!(mq_unlink,       mqueue::mq_unlink,      [Path],                         Full,    ""),
    call!(mq_timedsend,    mqueue::mq_timedsend,   [Fd InBytes Size UInt Timespec], Full,   ""),
    call!(mq_timedreceive, mqueue::mq_timedreceive, [Fd OutBytes Size Ptr Timespec], Full,  ""),
    call!(mq_notify,       mqueue::mq_notify,      [Fd Ptr],                       Partial, "no SIGEV_THREAD, which needs netlink"),
    call!(mq_getsetattr,   mqueue::mq_getsetattr,  [Fd Ptr Ptr],                   Full,    ""),
    call!(set_robust_list, futex::set_robust_list, [Ptr Size],                     Full,    ""),
    call!(get_robust_list, futex::get_robust_list, [Pid Ptr Ptr],                  Partial, "own list only"),
    call!(futex_waitv,     futex::futex_waitv,     [Ptr UInt Hex Timespec Clock],  Full,    ""),
];
