//! Names of flags and constants for traces.

use linux_raw_sys::general as linux;

/// `open` flags besides the access mode.
pub const OPEN: &[(u64, &str)] = &[
    (linux::O_CREAT as u64, "O_CREAT"),
    (linux::O_EXCL as u64, "O_EXCL"),
    (linux::O_NOCTTY as u64, "O_NOCTTY"),
    (linux::O_TRUNC as u64, "O_TRUNC"),
    (linux::O_APPEND as u64, "O_APPEND"),
    (linux::O_NONBLOCK as u64, "O_NONBLOCK"),
    (linux::O_DSYNC as u64, "O_DSYNC"),
    (linux::O_DIRECT as u64, "O_DIRECT"),
    (linux::O_DIRECTORY as u64, "O_DIRECTORY"),
    (linux::O_NOFOLLOW as u64, "O_NOFOLLOW"),
    (linux::O_NOATIME as u64, "O_NOATIME"),
    (linux::O_CLOEXEC as u64, "O_CLOEXEC"),
    (linux::O_PATH as u64, "O_PATH"),
    (linux::__O_TMPFILE as u64, "O_TMPFILE"),
];

/// `mmap` protections.
pub const PROT: &[(u64, &str)] = &[
    (linux::PROT_READ as u64, "PROT_READ"),
    (linux::PROT_WRITE as u64, "PROT_WRITE"),
    (linux::PROT_EXEC as u64, "PROT_EXEC"),
    (linux::PROT_GROWSDOWN as u64, "PROT_GROWSDOWN"),
];

/// `mmap` flags.
pub const MAP: &[(u64, &str)] = &[
    (linux::MAP_SHARED as u64, "MAP_SHARED"),
    (linux::MAP_PRIVATE as u64, "MAP_PRIVATE"),
    (linux::MAP_FIXED as u64, "MAP_FIXED"),
    (linux::MAP_ANONYMOUS as u64, "MAP_ANONYMOUS"),
    (linux::MAP_GROWSDOWN as u64, "MAP_GROWSDOWN"),
    (linux::MAP_DENYWRITE as u64, "MAP_DENYWRITE"),
    (linux::MAP_LOCKED as u64, "MAP_LOCKED"),
    (linux::MAP_NORESERVE as u64, "MAP_NORESERVE"),
    (linux::MAP_POPULATE as u64, "MAP_POPULATE"),
    (linux::MAP_STACK as u64, "MAP_STACK"),
    (linux::MAP_HUGETLB as u64, "MAP_HUGETLB"),
    (linux::MAP_FIXED_NOREPLACE as u64, "MAP_FIXED_NOREPLACE"),
];

/// `clone` flags.
pub const CLONE: &[(u64, &str)] = &[
    (linux::CLONE_VM as u64, "CLONE_VM"),
    (linux::CLONE_FS as u64, "CLONE_FS"),
    (linux::CLONE_FILES as u64, "CLONE_FILES"),
    (linux::CLONE_SIGHAND as u64, "CLONE_SIGHAND"),
    (linux::CLONE_PIDFD as u64, "CLONE_PIDFD"),
    (linux::CLONE_PTRACE as u64, "CLONE_PTRACE"),
    (linux::CLONE_VFORK as u64, "CLONE_VFORK"),
    (linux::CLONE_PARENT as u64, "CLONE_PARENT"),
    (linux::CLONE_THREAD as u64, "CLONE_THREAD"),
    (linux::CLONE_NEWNS as u64, "CLONE_NEWNS"),
    (linux::CLONE_SYSVSEM as u64, "CLONE_SYSVSEM"),
    (linux::CLONE_SETTLS as u64, "CLONE_SETTLS"),
    (linux::CLONE_PARENT_SETTID as u64, "CLONE_PARENT_SETTID"),
    (linux::CLONE_CHILD_CLEARTID as u64, "CLONE_CHILD_CLEARTID"),
    (linux::CLONE_CHILD_SETTID as u64, "CLONE_CHILD_SETTID"),
    (linux::CLONE_NEWUTS as u64, "CLONE_NEWUTS"),
    (linux::CLONE_NEWIPC as u64, "CLONE_NEWIPC"),
    (linux::CLONE_NEWUSER as u64, "CLONE_NEWUSER"),
    (linux::CLONE_NEWPID as u64, "CLONE_NEWPID"),
    (linux::CLONE_NEWNET as u64, "CLONE_NEWNET"),
];

const SIGNALS: &[&str] = &[
    "0",
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGKILL",
    "SIGUSR1",
    "SIGSEGV",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGTERM",
    "SIGSTKFLT",
    "SIGCHLD",
    "SIGCONT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGWINCH",
    "SIGIO",
    "SIGPWR",
    "SIGSYS",
];

const CLOCKS: &[&str] = &[
    "CLOCK_REALTIME",
    "CLOCK_MONOTONIC",
    "CLOCK_PROCESS_CPUTIME_ID",
    "CLOCK_THREAD_CPUTIME_ID",
    "CLOCK_MONOTONIC_RAW",
    "CLOCK_REALTIME_COARSE",
    "CLOCK_MONOTONIC_COARSE",
    "CLOCK_BOOTTIME",
    "CLOCK_REALTIME_ALARM",
    "CLOCK_BOOTTIME_ALARM",
];

const FUTEX_OPS: &[&str] = &[
    "FUTEX_WAIT",
    "FUTEX_WAKE",
    "FUTEX_FD",
    "FUTEX_REQUEUE",
    "FUTEX_CMP_REQUEUE",
    "FUTEX_WAKE_OP",
    "FUTEX_LOCK_PI",
    "FUTEX_UNLOCK_PI",
    "FUTEX_TRYLOCK_PI",
    "FUTEX_WAIT_BITSET",
    "FUTEX_WAKE_BITSET",
    "FUTEX_WAIT_REQUEUE_PI",
    "FUTEX_CMP_REQUEUE_PI",
    "FUTEX_LOCK_PI2",
];

fn named(names: &[&str], value: u64) -> Option<String> {
    names.get(usize::try_from(value).ok()?).map(|name| (*name).to_owned())
}

/// `A|B|0x…` for a set of flags.
pub fn set(names: &[(u64, &str)], value: u64) -> String {
    let mut rest = value;
    let mut parts = Vec::new();
    for &(bit, name) in names {
        if bit != 0 && rest & bit == bit {
            parts.push(name.to_owned());
            rest &= !bit;
        }
    }
    if rest != 0 || parts.is_empty() {
        parts.push(format!("{rest:#x}"));
    }
    parts.join("|")
}

/// A signal's name, `SIGRT_n` for real-time ones.
pub fn signal(number: u64) -> String {
    named(SIGNALS, number).unwrap_or_else(|| match number {
        32..=64 => format!("SIGRT_{}", number - 32),
        _ => number.to_string(),
    })
}

/// A clock's name.
pub fn clock(id: u64) -> String {
    named(CLOCKS, id).unwrap_or_else(|| (id as i32).to_string())
}

/// A futex operation with its flags.
pub fn futex_op(op: u64) -> String {
    let flags = u64::from(linux::FUTEX_PRIVATE_FLAG | linux::FUTEX_CLOCK_REALTIME);
    let mut text = named(FUTEX_OPS, op & !flags).unwrap_or_else(|| format!("{op:#x}"));
    if op & u64::from(linux::FUTEX_PRIVATE_FLAG) != 0 {
        text.push_str("|FUTEX_PRIVATE_FLAG");
    }
    if op & u64::from(linux::FUTEX_CLOCK_REALTIME) != 0 {
        text.push_str("|FUTEX_CLOCK_REALTIME");
    }
    text
}

/// `open` flags with the access mode.
pub fn open(value: u64) -> String {
    let mode = match value & u64::from(linux::O_ACCMODE) {
        0 => "O_RDONLY",
        1 => "O_WRONLY",
        2 => "O_RDWR",
        _ => "O_ACCMODE",
    };
    match value & !u64::from(linux::O_ACCMODE) {
        0 => mode.to_owned(),
        rest => format!("{mode}|{}", set(OPEN, rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_it_knows_and_shows_the_rest() {
        assert_eq!(open(0o101), "O_WRONLY|O_CREAT");
        assert_eq!(set(PROT, 3), "PROT_READ|PROT_WRITE");
        assert_eq!(set(PROT, 0), "0x0");
        assert_eq!(set(PROT, 0x8000_0001), "PROT_READ|0x80000000");
        assert_eq!((signal(9), signal(34), signal(99)), ("SIGKILL".into(), "SIGRT_2".into(), "99".into()));
        assert_eq!(futex_op(129), "FUTEX_WAKE|FUTEX_PRIVATE_FLAG");
    }
}
