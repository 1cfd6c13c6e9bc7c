//! The system calls of a serving gofer: one rule a line, each with its reason. Everything else kills the process.
//!
//! A test runs the conformance suite under `strace` and tells which rules nothing has used.

use libc::c_long;

/// What an argument must be, compared as a 64-bit number (32 bits where the kernel looks at no more).
#[derive(Clone, Copy, Debug)]
pub enum Argument {
    /// Argument `.0` equals `.1`.
    Is(u8, u64),
    /// Argument `.0` has none of the bits `.1`.
    Without(u8, u64),
}

use Argument::{Is, Without};

/// An allowed call.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Its number.
    pub number: c_long,
    /// Its name, as `strace` prints it.
    pub name: &'static str,
    /// All of these must hold.
    pub arguments: &'static [Argument],
    /// What it is for.
    pub reason: &'static str,
}

macro_rules! rules {
    ($($name:ident $arguments:expr, $reason:literal;)*) => {
        &[$(Rule { number: sys::$name, name: stringify!($name), arguments: &$arguments, reason: $reason },)*]
    };
}

macro_rules! numbers {
    ($($name:ident = $number:ident,)*) => {
        #[allow(non_upper_case_globals, reason = "names as the kernel and strace spell them")]
        mod sys { $(pub(super) const $name: libc::c_long = libc::$number;)* }
    };
}

const EXEC: u64 = libc::PROT_EXEC as u64;
const CREATING: u64 = (libc::O_CREAT | (libc::O_TMPFILE & !libc::O_DIRECTORY)) as u64;
/// The flags with which glibc starts a thread, and nothing else that `clone` could make.
const THREAD: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID) as u64;
const AF_UNIX: u64 = libc::AF_UNIX as u64;

/// The allow-list.
#[rustfmt::skip]
pub const RULES: &[Rule] = rules! {
    recvmsg         [],                                     "requests";
    sendmsg         [],                                     "replies and donated descriptors";
    openat2         [],                                     "walks and creations, one component";
    openat          [Without(2, CREATING)],                 "opens a walked file again through proc";
    close           [],                                     "closed ids";
    statx           [],                                     "attributes";
    fstatfs         [],                                     "statfs; keeps off files of proc mounts";
    readlinkat      [],                                     "targets of symbolic links";
    getdents64      [],                                     "directory entries";
    lseek           [],                                     "position in a directory";
    pread64         [],                                     "reads of kept files";
    pwrite64        [],                                     "writes of kept files";
    ftruncate       [],                                     "truncate; size of channel memory";
    fallocate       [],                                     "fallocate";
    fsync           [],                                     "fsync";
    syncfs          [],                                     "sync";
    mkdirat         [],                                     "mkdir";
    mknodat         [],                                     "mknod";
    symlinkat       [],                                     "symlink";
    linkat          [],                                     "link";
    unlinkat        [],                                     "unlink, rmdir";
    renameat2       [],                                     "rename";
    fchmodat        [],                                     "chmod";
    fchownat        [],                                     "chown, owner of new files";
    utimensat       [],                                     "utimes";
    getxattr        [],                                     "xattrs";
    setxattr        [],                                     "xattrs";
    listxattr       [],                                     "xattrs";
    removexattr     [],                                     "xattrs";
    socket          [Is(0, AF_UNIX)],                       "bind and connect, where a mount allows them";
    connect         [],                                     "connect to a unix socket";
    bind            [],                                     "bind a unix socket";
    listen          [],                                     "listen on a unix socket";
    accept4         [],                                     "accept on a unix socket";
    fcntl           [Is(1, libc::F_DUPFD_CLOEXEC as u64)],  "a second descriptor to donate";
    fcntl           [Is(1, libc::F_GETFD as u64)],          "debug builds of std look at a descriptor before they close it";
    fcntl           [Is(1, libc::F_ADD_SEALS as u64)],      "channel memory cannot shrink";
    fcntl           [Is(1, libc::F_GET_SEALS as u64)],      "checks them before mapping";
    fstat           [],                                     "size of channel memory before mapping";
    shutdown        [],                                     "frees a channel's thread that waits for its client";
    ioctl           [Is(1, libc::FIONBIO)],          "connections block";
    socketpair      [Is(0, AF_UNIX)],                       "a channel's socket";
    memfd_create    [],                                     "a channel's memory";
    read            [],                                     "glibc reads vm/overcommit_memory when a thread's heap shrinks";
    write           [],                                     "ready byte; messages on standard error";
    futex           [],                                     "locks; sleeping on a channel";
    mmap            [Without(2, EXEC)],                     "heap, stacks, channel memory";
    mprotect        [Without(2, EXEC)],                     "guard pages of stacks, heap";
    munmap          [],                                     "heap, stacks, channel memory";
    mremap          [],                                     "heap";
    madvise         [],                                     "heap, stacks of ended threads";
    brk             [],                                     "heap";
    clone           [Is(0, THREAD)],                        "threads of connections and channels";
    clone3          [],                                     "answered ENOSYS by the second filter: its flags cannot be checked";
    set_robust_list [],                                     "thread start";
    rseq            [],                                     "thread start";
    prctl           [Is(0, libc::PR_SET_NAME as u64)],      "thread names";
    sigaltstack     [],                                     "thread start and end";
    rt_sigprocmask  [],                                     "thread start and end";
    rt_sigreturn    [],                                     "a debugger's or the kernel's signals";
    rt_sigaction    [],                                     "abort after a panic";
    gettid          [],                                     "thread start; abort after a panic";
    getpid          [],                                     "abort after a panic";
    tgkill          [],                                     "abort after a panic";
    sched_getaffinity [],                                   "glibc reads a thread's stack bounds";
    sched_yield     [],                                     "contended locks; waiting for a channel's thread";
    clock_nanosleep [],                                     "waiting for a channel's thread";
    getrandom       [],                                     "heap start of a thread";
    restart_syscall [],                                     "a stopped and continued futex wait";
    exit            [],                                     "thread end";
    exit_group      [],                                     "end";
};

numbers! {
    recvmsg = SYS_recvmsg, sendmsg = SYS_sendmsg, openat2 = SYS_openat2, openat = SYS_openat, close = SYS_close,
    statx = SYS_statx, fstatfs = SYS_fstatfs, readlinkat = SYS_readlinkat, getdents64 = SYS_getdents64,
    lseek = SYS_lseek, pread64 = SYS_pread64, pwrite64 = SYS_pwrite64, ftruncate = SYS_ftruncate,
    fallocate = SYS_fallocate, fsync = SYS_fsync, syncfs = SYS_syncfs, mkdirat = SYS_mkdirat, mknodat = SYS_mknodat,
    symlinkat = SYS_symlinkat, linkat = SYS_linkat, unlinkat = SYS_unlinkat, renameat2 = SYS_renameat2,
    fchmodat = SYS_fchmodat, fchownat = SYS_fchownat, utimensat = SYS_utimensat, getxattr = SYS_getxattr,
    setxattr = SYS_setxattr, listxattr = SYS_listxattr, removexattr = SYS_removexattr, socket = SYS_socket,
    connect = SYS_connect, bind = SYS_bind, listen = SYS_listen, accept4 = SYS_accept4, fcntl = SYS_fcntl,
    fstat = SYS_fstat, shutdown = SYS_shutdown, ioctl = SYS_ioctl, socketpair = SYS_socketpair, memfd_create = SYS_memfd_create, read = SYS_read, write = SYS_write,
    futex = SYS_futex, mmap = SYS_mmap, mprotect = SYS_mprotect, munmap = SYS_munmap, mremap = SYS_mremap,
    madvise = SYS_madvise, brk = SYS_brk, clone = SYS_clone, clone3 = SYS_clone3,
    set_robust_list = SYS_set_robust_list, rseq = SYS_rseq, prctl = SYS_prctl, sigaltstack = SYS_sigaltstack,
    rt_sigprocmask = SYS_rt_sigprocmask, rt_sigreturn = SYS_rt_sigreturn, rt_sigaction = SYS_rt_sigaction,
    gettid = SYS_gettid, getpid = SYS_getpid, tgkill = SYS_tgkill, sched_getaffinity = SYS_sched_getaffinity,
    sched_yield = SYS_sched_yield, clock_nanosleep = SYS_clock_nanosleep, getrandom = SYS_getrandom,
    restart_syscall = SYS_restart_syscall, exit = SYS_exit, exit_group = SYS_exit_group,
}
