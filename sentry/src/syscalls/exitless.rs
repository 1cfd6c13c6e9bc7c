//! Which system calls a dispatcher may answer while the caller's thread stays in the guest.
//!
//! In the list is what needs neither the caller's registers nor its thread, and either cannot sleep or sleeps only before its first side
//! effect (then the dispatcher declines, and the call is made again by an exit). Everything else exits:
//! - what starts, ends or replaces threads and processes, changes base registers, or returns from a signal;
//! - what always sleeps: `pause`, `nanosleep`, `sigsuspend`, `wait4`, …; so does what swaps the signal mask for the time of a sleep;
//! - what takes much memory away, or takes it where the vCPU has to leave the guest for that anyway ([`crate::wait::decline_unless`]);
//! - `MSG_WAITALL`, and writes of more than a MiB, which take too long. (A write that would sleep after a part of its work is gone on with by the
//!   caller's own thread: [`crate::task::SyscallContext::goes_on_by_exit`].)

use std::sync::OnceLock;

use linux_raw_sys::general::MAP_FIXED;
use linux_raw_sys::ioctl;
use linux_raw_sys::net::MSG_WAITALL;
use linux_raw_sys::prctl::{PR_GET_NAME, PR_SET_NAME};

use super::table::MAX_NUMBER;
use super::{Args, numbers as n};

/// Longer writes keep a dispatcher from other calls for too long, in bytes.
pub(super) const LONG: u64 = 1 << 20;

/// What programs ask of descriptors often; other commands may do anything.
const IOCTLS: &[u32] =
    &[ioctl::FIONREAD, ioctl::FIONBIO, ioctl::FIOCLEX, ioctl::FIONCLEX, ioctl::TCGETS, ioctl::TIOCGWINSZ];

const CALLS: &[u32] = &[
    // Files.
    n::read,
    n::pread64,
    n::preadv,
    n::preadv2,
    n::readv,
    n::write,
    n::pwrite64,
    n::writev,
    n::pwritev,
    n::pwritev2,
    n::lseek,
    n::open,
    n::openat,
    n::openat2,
    n::creat,
    n::close,
    n::stat,
    n::lstat,
    n::fstat,
    n::newfstatat,
    n::statx,
    n::access,
    n::faccessat,
    n::faccessat2,
    n::readlink,
    n::readlinkat,
    n::getdents,
    n::getdents64,
    n::getcwd,
    n::chdir,
    n::fchdir,
    n::mkdir,
    n::mkdirat,
    n::mknod,
    n::mknodat,
    n::rmdir,
    n::unlink,
    n::unlinkat,
    n::rename,
    n::renameat,
    n::renameat2,
    n::link,
    n::linkat,
    n::symlink,
    n::symlinkat,
    n::chmod,
    n::fchmod,
    n::fchmodat,
    n::fchmodat2,
    n::chown,
    n::fchown,
    n::lchown,
    n::fchownat,
    n::utimensat,
    n::utime,
    n::utimes,
    n::futimesat,
    n::truncate,
    n::ftruncate,
    n::fsync,
    n::fdatasync,
    n::statfs,
    n::fstatfs,
    n::umask,
    n::dup,
    n::dup2,
    n::dup3,
    n::fcntl,
    n::ioctl,
    n::flock,
    n::fadvise64,
    n::getxattr,
    n::lgetxattr,
    n::fgetxattr,
    n::listxattr,
    n::llistxattr,
    n::flistxattr,
    n::setxattr,
    n::lsetxattr,
    n::fsetxattr,
    n::removexattr,
    n::lremovexattr,
    n::fremovexattr,
    n::close_range,
    // Events and descriptors.
    n::poll,
    n::ppoll,
    n::select,
    n::pselect6,
    n::epoll_create,
    n::epoll_create1,
    n::epoll_ctl,
    n::epoll_wait,
    n::epoll_pwait,
    n::epoll_pwait2,
    n::eventfd,
    n::eventfd2,
    n::signalfd,
    n::signalfd4,
    n::timerfd_create,
    n::timerfd_settime,
    n::timerfd_gettime,
    n::pipe,
    n::pipe2,
    n::inotify_init,
    n::inotify_init1,
    n::inotify_add_watch,
    n::inotify_rm_watch,
    n::memfd_create,
    // Sockets.
    n::socket,
    n::socketpair,
    n::bind,
    n::listen,
    n::accept,
    n::accept4,
    n::getsockname,
    n::getpeername,
    n::setsockopt,
    n::getsockopt,
    n::shutdown,
    n::sendto,
    n::recvfrom,
    n::recvmsg,
    n::sendmsg,
    // System V's objects.
    n::shmget,
    n::shmctl,
    n::semget,
    n::semctl,
    n::msgget,
    n::msgctl,
    n::msgsnd,
    n::msgrcv,
    // Who and where.
    n::getpid,
    n::gettid,
    n::getppid,
    n::getuid,
    n::geteuid,
    n::getgid,
    n::getegid,
    n::getgroups,
    n::getresuid,
    n::getresgid,
    n::getpgrp,
    n::getpgid,
    n::getsid,
    n::getpriority,
    n::uname,
    n::sysinfo,
    n::getrlimit,
    n::getrusage,
    n::times,
    n::getcpu,
    n::sched_getaffinity,
    n::sched_getattr,
    n::sched_getparam,
    n::sched_getscheduler,
    n::sched_get_priority_max,
    n::sched_get_priority_min,
    n::sched_rr_get_interval,
    n::prctl,
    n::capget,
    n::set_tid_address,
    n::set_robust_list,
    n::get_robust_list,
    n::getrandom,
    n::prlimit64,
    // Memory.
    n::mmap,
    n::munmap,
    n::mprotect,
    n::madvise,
    n::brk,
    n::mincore,
    // Signals and time.
    n::rt_sigaction,
    n::rt_sigprocmask,
    n::rt_sigpending,
    n::sigaltstack,
    n::kill,
    n::tgkill,
    n::tkill,
    n::rt_sigqueueinfo,
    n::rt_tgsigqueueinfo,
    n::pidfd_open,
    n::pidfd_send_signal,
    n::futex,
    n::clock_gettime,
    n::clock_getres,
    n::gettimeofday,
    n::time,
    n::alarm,
    n::setitimer,
    n::getitimer,
    n::timer_create,
    n::timer_settime,
    n::timer_gettime,
    n::timer_getoverrun,
    n::timer_delete,
];

fn bits() -> &'static [u64; MAX_NUMBER.div_ceil(64)] {
    static BITS: OnceLock<[u64; MAX_NUMBER.div_ceil(64)]> = OnceLock::new();
    BITS.get_or_init(|| {
        let mut bits = [0; MAX_NUMBER.div_ceil(64)];
        for number in CALLS {
            if let Some(word) = bits.get_mut(*number as usize / 64) {
                *word |= 1 << (number % 64);
            }
        }
        bits
    })
}

/// Whether dispatchers make calls of this number at all.
pub fn handles(number: u64) -> bool {
    let word = usize::try_from(number / 64).ok().and_then(|index| bits().get(index));
    word.is_some_and(|word| word >> (number % 64) & 1 != 0)
}

/// Whether a dispatcher may make this very call.
pub fn suits(number: u64, args: &Args) -> bool {
    if !handles(number) {
        return false;
    }
    match u32::try_from(number).unwrap_or(u32::MAX) {
        n::write | n::sendto => args.raw(2) <= LONG,
        n::recvfrom => args.raw(3) & u64::from(MSG_WAITALL) == 0,
        n::recvmsg => args.raw(2) & u64::from(MSG_WAITALL) == 0,
        n::epoll_pwait | n::epoll_pwait2 => args.raw(4) == 0,
        n::ppoll => args.raw(3) == 0,
        n::pselect6 => args.raw(5) == 0,
        n::ioctl => IOCTLS.contains(&args.uint(1)),
        n::prctl => matches!(args.uint(0), PR_SET_NAME | PR_GET_NAME),
        n::mmap => args.raw(3) & u64::from(MAP_FIXED) == 0,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::super::table;
    use super::*;

    #[test]
    fn every_call_of_the_list_is_implemented() {
        for number in CALLS {
            assert!(table::find((*number).into()).is_some(), "{:?}", n::name((*number).into()));
        }
    }

    #[test]
    fn what_needs_the_callers_thread_exits() {
        let own = [
            n::clone,
            n::fork,
            n::vfork,
            n::execve,
            n::execveat,
            n::exit,
            n::exit_group,
            n::rt_sigreturn,
            n::arch_prctl,
        ];
        let sleeps = [
            n::nanosleep,
            n::clock_nanosleep,
            n::pause,
            n::rt_sigsuspend,
            n::wait4,
            n::waitid,
            n::rt_sigtimedwait,
        ];
        for number in own.into_iter().chain(sleeps) {
            assert!(!suits(number.into(), &Args([0; 6])), "{:?}", n::name(number.into()));
        }
        assert!(!handles(u64::MAX));
    }

    #[test]
    fn arguments_decide_where_a_call_may_stop_half_way() {
        let write = |len: u64| suits(n::write.into(), &Args([1, 0x1000, len, 0, 0, 0]));
        assert!(write(LONG) && !write(LONG + 1));
        let ppoll = |mask: u64| suits(n::ppoll.into(), &Args([0x1000, 1, 0, mask, 8, 0]));
        assert!(ppoll(0) && !ppoll(0x2000));
        let pselect = |mask: u64| suits(n::pselect6.into(), &Args([1, 0x1000, 0, 0, 0, mask]));
        assert!(pselect(0) && !pselect(0x2000));
        let ioctl = |command: u32| suits(n::ioctl.into(), &Args([0, command.into(), 0x1000, 0, 0, 0]));
        assert!(ioctl(ioctl::FIONBIO) && !ioctl(ioctl::TCSETSW));
        let mmap = |flags: u64| suits(n::mmap.into(), &Args([0, 4096, 3, flags, 0, 0]));
        assert!(mmap(0x22) && !mmap(0x32));
    }
}
