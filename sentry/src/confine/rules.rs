//! The system calls that a confined sentry may make: one line each, with the reason.
//!
//! What is not here kills the process. Absent on purpose: everything that takes a path (`open*`, `stat*`, `mount`, `unlink`, …), makes a
//! socket that leaves the sandbox (`socket`), runs a program (`execve*`), looks into processes (`ptrace`, `process_vm_readv`, `pidfd_*`), makes a
//! process (`fork`; `clone` only for threads), or makes memory executable. `clone3` hides its flags in memory, where a filter cannot see
//! them, so it fails with `ENOSYS` ([`UNSEEN`]) and the C library falls back to `clone`; `openat` fails likewise, it never opens anything.

use libc::c_long;

/// One allowed system call.
#[derive(Debug)]
pub struct Rule {
    /// Linux's number.
    pub number: c_long,
    /// Under which condition.
    pub when: When,
    /// What the sentry needs it for.
    pub why: &'static str,
}

/// Condition on a call's arguments (numbered from 0, compared as 32 bits).
#[derive(Debug, Clone, Copy)]
pub enum When {
    /// Any arguments.
    Always,
    /// The argument is one of these values.
    ArgIn(u8, &'static [u64]),
    /// The argument and-ed with the mask is the value.
    ArgMasked(u8, u64, u64),
    /// Any of these comparisons holds.
    AnyOf(&'static [Test]),
    /// The argument is this process's own pid.
    ArgIsOwnPid(u8),
}

/// One comparison; see [`When`].
#[derive(Debug, Clone, Copy)]
pub enum Test {
    /// Argument, value.
    Equal(u8, u64),
    /// Argument, mask, value.
    Masked(u8, u64, u64),
    /// Argument.
    OwnPid(u8),
}

const fn allow(number: c_long, why: &'static str) -> Rule {
    Rule { number, when: When::Always, why }
}

const fn allow_if(number: c_long, when: When, why: &'static str) -> Rule {
    Rule { number, when, why }
}

/// `_IOC_TYPE` of KVM's ioctls (`KVMIO` in `linux/kvm.h`) in its place in the number.
const KVM_IOCTLS: Test = Test::Masked(1, 0xff00, 0xae00);
const IOCTLS: When =
    When::AnyOf(&[KVM_IOCTLS, Test::Equal(1, libc::FIONBIO), Test::Equal(1, libc::FIONREAD)]);
const NOT_EXECUTABLE: When = When::ArgMasked(2, libc::PROT_EXEC as u64, 0);
const PRCTLS: &[u64] = &[libc::PR_SET_NAME as u64, libc::PR_SET_VMA as u64];
const FCNTLS: &[u64] = &[
    libc::F_DUPFD_CLOEXEC as u64,
    libc::F_GETFD as u64,
    libc::F_SETFD as u64,
    libc::F_GETFL as u64,
    libc::F_SETFL as u64,
    libc::F_ADD_SEALS as u64,
    libc::F_GET_SEALS as u64,
    libc::F_GETPIPE_SZ as u64,
];

/// Calls that fail with `ENOSYS` instead of killing, because the C library tries them and knows another way: `clone3` before
/// `clone`, and `openat` of `/sys/devices/system/cpu/online` when it counts processors for a new heap.
pub const UNSEEN: &[c_long] = &[libc::SYS_clone3, libc::SYS_openat];

/// The allow-list.
#[rustfmt::skip]
pub const RULES: &[Rule] = &[
    // The platform.
    allow_if(libc::SYS_ioctl, IOCTLS, "KVM_RUN and the other KVM requests; blocking mode and fill of donated pipes and sockets; no terminal or device ioctl"),

    // Memory of the guest and of ourselves.
    allow_if(libc::SYS_mmap, NOT_EXECUTABLE, "arena, windows onto donated files, thread stacks, the heap"),
    allow_if(libc::SYS_mprotect, NOT_EXECUTABLE, "revoking guest pages, guard pages of stacks"),
    allow(libc::SYS_munmap, "the reverse of mmap"),
    allow(libc::SYS_mremap, "growing large heap blocks"),
    allow(libc::SYS_madvise, "giving guest memory back, huge pages"),
    allow_if(libc::SYS_process_vm_writev, When::ArgIsOwnPid(0), "clearing guest frames of ours without making the host's entries dirty; what it may do a store may do, too"),
    allow(libc::SYS_brk, "the heap"),
    allow(libc::SYS_memfd_create, "memory that is shared between mappings"),
    allow(libc::SYS_ftruncate, "sizing those; truncating donated files"),
    allow(libc::SYS_fallocate, "punching holes into those; donated files"),
    allow(libc::SYS_membarrier, "a barrier on every thread of ours"),
    allow(libc::SYS_mincore, "which pages of a window are resident"),
    allow(libc::SYS_msync, "writing windows onto donated files back"),

    // Donated files and pipes. All of these act on descriptors we were given.
    allow(libc::SYS_read, "eventfds, pipes, standard streams"),
    allow(libc::SYS_write, "the same; log lines"),
    allow(libc::SYS_readv, "standard streams into scattered guest pages"),
    allow(libc::SYS_writev, "the reverse"),
    allow(libc::SYS_pread64, "donated files"),
    allow(libc::SYS_pwrite64, "donated files"),
    allow(libc::SYS_preadv, "donated files into scattered guest pages"),
    allow(libc::SYS_pwritev, "the reverse"),
    allow(libc::SYS_preadv2, "the same without blocking"),
    allow(libc::SYS_pwritev2, "the same without blocking"),
    allow(libc::SYS_lseek, "SEEK_DATA and SEEK_HOLE on donated files"),
    allow(libc::SYS_fstat, "what a donated descriptor is and has become; its relatives take paths, which would lead out of a donated directory"),
    allow(libc::SYS_fsync, "donated files"),
    allow(libc::SYS_fdatasync, "donated files"),
    allow(libc::SYS_sync_file_range, "donated files"),
    allow(libc::SYS_fadvise64, "donated files"),
    allow(libc::SYS_copy_file_range, "copies between donated files without a buffer"),
    allow(libc::SYS_sendfile, "the same towards pipes and sockets"),
    allow(libc::SYS_close, "the end of a descriptor"),
    allow(libc::SYS_dup, "a second owner of a descriptor"),
    allow(libc::SYS_dup3, "the same"),
    allow_if(libc::SYS_fcntl, When::ArgIn(1, FCNTLS), "duplicating, close-on-exec, status flags, sealing a memfd; no locks, no owner"),

    // Sockets we were given (control, gofer, packet, standard streams); none can be made but pairs.
    allow(libc::SYS_sendmsg, "replies; descriptors to the gofer"),
    allow(libc::SYS_recvmsg, "requests; donated descriptors"),
    allow(libc::SYS_sendto, "stream and packet sockets"),
    allow(libc::SYS_recvfrom, "the same"),
    allow(libc::SYS_sendmmsg, "packet sockets in batches"),
    allow(libc::SYS_recvmmsg, "the same"),
    allow(libc::SYS_shutdown, "ending one direction of a donated socket"),
    allow(libc::SYS_getsockopt, "what kind of socket was donated"),
    allow(libc::SYS_getsockname, "the same"),
    allow(libc::SYS_getpeername, "the same"),
    allow(libc::SYS_accept4, "a listening socket that the gofer donated"),
    allow_if(libc::SYS_socketpair, When::ArgIn(0, &[libc::AF_UNIX as u64]), "waking threads, gofer channels"),

    // Waiting and waking.
    allow(libc::SYS_futex, "locks; gofer channels; guest futexes on shared pages"),
    allow(libc::SYS_epoll_create1, "waiting for donated descriptors"),
    allow(libc::SYS_epoll_ctl, "the same"),
    allow(libc::SYS_epoll_wait, "the same"),
    allow(libc::SYS_epoll_pwait, "the same"),
    allow(libc::SYS_poll, "the same"),
    allow(libc::SYS_ppoll, "the same"),
    allow(libc::SYS_eventfd2, "waking a thread out of such a wait"),
    allow(libc::SYS_pipe2, "the same"),
    allow(libc::SYS_timerfd_create, "timers among the waits"),
    allow(libc::SYS_timerfd_settime, "the same"),
    allow(libc::SYS_nanosleep, "back-off"),
    allow(libc::SYS_clock_nanosleep, "guest sleeps"),
    allow(libc::SYS_restart_syscall, "the kernel's own continuation of interrupted sleeps"),

    // Time and chance.
    allow(libc::SYS_clock_gettime, "clocks the vDSO does not serve"),
    allow(libc::SYS_clock_getres, "their resolution"),
    allow(libc::SYS_gettimeofday, "hosts without a vDSO clock"),
    allow(libc::SYS_getrandom, "guest randomness, hash seeds"),

    // Threads of ours. Guest tasks are threads.
    allow(libc::SYS_clone3, "answered with ENOSYS by the first filter, so that the next line is used"),
    allow(libc::SYS_openat, "answered with ENOSYS by the first filter"),
    allow_if(libc::SYS_clone, When::ArgMasked(0, libc::CLONE_THREAD as u64, libc::CLONE_THREAD as u64), "starting a thread, never a process"),
    allow(libc::SYS_set_robust_list, "the start of a thread"),
    allow(libc::SYS_rseq, "the same"),
    allow(libc::SYS_sigaltstack, "the same"),
    allow(libc::SYS_gettid, "naming the thread to kick"),
    allow(libc::SYS_getpid, "the first argument of tgkill"),
    allow_if(libc::SYS_tgkill, When::ArgIsOwnPid(0), "kicking a vCPU out of the guest; threads of ours only"),
    allow(libc::SYS_sched_yield, "spinning politely"),
    allow(libc::SYS_sched_getaffinity, "the number of CPUs"),
    allow_if(libc::SYS_sched_setaffinity, When::ArgIn(0, &[0]), "binding this thread"),
    allow_if(libc::SYS_prctl, When::ArgIn(0, PRCTLS), "names of threads and of mappings"),
    allow(libc::SYS_exit, "the end of a thread"),
    allow(libc::SYS_exit_group, "the end of the sandbox"),

    // Signals to ourselves.
    allow(libc::SYS_rt_sigaction, "the kick's handler, the fault handler of guest memory copies"),
    allow(libc::SYS_rt_sigprocmask, "closing the window between check and wait"),
    allow(libc::SYS_rt_sigreturn, "the end of a handler"),
    allow(libc::SYS_rt_sigtimedwait, "taking a signal without a handler"),

    // Looking at ourselves.
    allow(libc::SYS_getrusage, "CPU time of threads, for guest accounting"),
    allow_if(libc::SYS_prlimit64, When::ArgIn(0, &[0]), "our own limits"),
    allow(libc::SYS_sysinfo, "the host's memory, for /proc/meminfo"),
    allow(libc::SYS_uname, "the C library asks when it starts threads on some hosts"),
    allow(libc::SYS_getuid, "the C library's security checks"),
    allow(libc::SYS_geteuid, "the same"),
];
