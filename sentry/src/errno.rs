//! The guest's error numbers.
//!
//! [`Errno`] is what every system call handler returns on failure. Besides Linux's public numbers it carries the
//! kernel-internal restart codes (512 and up, `include/linux/errno.h` in Linux), which never reach the guest: the
//! task's run loop turns them into a restart or into `EINTR` once it knows whether a signal handler runs.

use std::fmt;

use linux_raw_sys::errno;

/// A Linux error number, or one of the internal restart codes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(u16);

/// What kernel code returns: a value, or the error the guest will see.
pub type SysResult<T = ()> = Result<T, Errno>;

macro_rules! errnos {
    ($($name:ident)*) => {
        #[allow(missing_docs)]
        impl Errno {
            $(pub const $name: Errno = Errno(errno::$name as u16);)*

            /// The symbolic name, e.g. `ENOENT`, or `None` for a number Linux does not define.
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $(x if x == errno::$name as u16 => Some(stringify!($name)),)*
                    512 => Some("ERESTARTSYS"),
                    513 => Some("ERESTARTNOINTR"),
                    514 => Some("ERESTARTNOHAND"),
                    516 => Some("ERESTART_RESTARTBLOCK"),
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT ENOTBLK EBUSY EEXIST
    EXDEV ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE EROFS EMLINK EPIPE EDOM
    ERANGE EDEADLK ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY ELOOP ENOMSG EIDRM ENODATA ETIME ENOSR EPROTO EBADMSG
    EOVERFLOW ENOTUNIQ EBADFD EREMCHG ELIBACC ELIBBAD EILSEQ EUSERS ENOTSOCK EDESTADDRREQ EMSGSIZE EPROTOTYPE
    ENOPROTOOPT EPROTONOSUPPORT ESOCKTNOSUPPORT EOPNOTSUPP EPFNOSUPPORT EAFNOSUPPORT EADDRINUSE EADDRNOTAVAIL
    ENETDOWN ENETUNREACH ENETRESET ECONNABORTED ECONNRESET ENOBUFS EISCONN ENOTCONN ESHUTDOWN ETOOMANYREFS
    ETIMEDOUT ECONNREFUSED EHOSTDOWN EHOSTUNREACH EALREADY EINPROGRESS ESTALE EDQUOT ENOMEDIUM ECANCELED ENOKEY
    EKEYEXPIRED EKEYREVOKED EKEYREJECTED EOWNERDEAD ENOTRECOVERABLE EHWPOISON
}

impl Errno {
    /// Alias of `EAGAIN`, as in Linux.
    pub const EWOULDBLOCK: Errno = Errno::EAGAIN;
    /// Restart the call if the signal's handler has `SA_RESTART`, or if no handler runs; `EINTR` otherwise.
    pub const ERESTARTSYS: Errno = Errno(512);
    /// Always restart the call.
    pub const ERESTARTNOINTR: Errno = Errno(513);
    /// Restart only if no handler runs; `EINTR` otherwise, even with `SA_RESTART`.
    pub const ERESTARTNOHAND: Errno = Errno(514);
    /// Restart through `restart_syscall(2)` with the task's restart block (a deadline); `EINTR` if a handler runs.
    pub const ERESTART_RESTARTBLOCK: Errno = Errno(516);

    /// The number, positive, as in `errno.h`.
    pub const fn number(self) -> u16 {
        self.0
    }

    /// Takes a host error as it is; a host number that is no valid errno becomes `EIO`.
    pub fn from_host(raw: i32) -> Errno {
        match u16::try_from(raw) {
            Ok(n) if (1..512).contains(&n) => Errno(n),
            _ => Errno::EIO,
        }
    }

    /// Whether this is one of the internal restart codes.
    pub fn is_restart(self) -> bool {
        self.0 >= 512
    }

    /// The value for `rax`: the negated number in two's complement.
    pub fn to_rax(self) -> u64 {
        (-i64::from(self.0)) as u64
    }
}

impl From<nix::errno::Errno> for Errno {
    fn from(error: nix::errno::Errno) -> Self {
        Errno::from_host(error as i32)
    }
}

impl From<rustix::io::Errno> for Errno {
    fn from(error: rustix::io::Errno) -> Self {
        Errno::from_host(error.raw_os_error())
    }
}

impl From<std::io::Error> for Errno {
    fn from(error: std::io::Error) -> Self {
        error.raw_os_error().map_or(Errno::EIO, Errno::from_host)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?} ({})", std::io::Error::from_raw_os_error(i32::from(self.0)))
    }
}
