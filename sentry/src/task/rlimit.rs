//! Resource limits (`getrlimit(2)`).

use linux_raw_sys::general as linux;

use crate::errno::{Errno, SysResult};

/// No limit.
pub const INFINITY: u64 = u64::MAX;

/// A limited resource, numbered as `RLIMIT_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs)] // Linux's names
pub enum Resource {
    Cpu = linux::RLIMIT_CPU,
    Fsize = linux::RLIMIT_FSIZE,
    Data = linux::RLIMIT_DATA,
    Stack = linux::RLIMIT_STACK,
    Core = linux::RLIMIT_CORE,
    Rss = linux::RLIMIT_RSS,
    Nproc = linux::RLIMIT_NPROC,
    Nofile = linux::RLIMIT_NOFILE,
    Memlock = linux::RLIMIT_MEMLOCK,
    As = linux::RLIMIT_AS,
    Locks = linux::RLIMIT_LOCKS,
    Sigpending = linux::RLIMIT_SIGPENDING,
    Msgqueue = linux::RLIMIT_MSGQUEUE,
    Nice = linux::RLIMIT_NICE,
    Rtprio = linux::RLIMIT_RTPRIO,
    Rttime = linux::RLIMIT_RTTIME,
}

impl Resource {
    /// Every resource, in the order of their numbers.
    pub const ALL: [Resource; 16] = [
        Resource::Cpu,
        Resource::Fsize,
        Resource::Data,
        Resource::Stack,
        Resource::Core,
        Resource::Rss,
        Resource::Nproc,
        Resource::Nofile,
        Resource::Memlock,
        Resource::As,
        Resource::Locks,
        Resource::Sigpending,
        Resource::Msgqueue,
        Resource::Nice,
        Resource::Rtprio,
        Resource::Rttime,
    ];

    /// From its number; `EINVAL` for one Linux does not have.
    pub fn new(number: u32) -> SysResult<Resource> {
        Resource::ALL.get(number as usize).copied().ok_or(Errno::EINVAL)
    }
}

/// A soft and a hard limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rlimit {
    /// What is enforced (`rlim_cur`).
    pub soft: u64,
    /// How far an unprivileged process may raise it (`rlim_max`).
    pub hard: u64,
}

/// The limits of a thread group.
#[derive(Clone, Debug)]
pub struct Rlimits([Rlimit; 16]);

impl Default for Rlimits {
    /// What Linux gives its first process, with the usual distribution's `RLIMIT_NOFILE`.
    fn default() -> Self {
        let mut limits = [Rlimit { soft: INFINITY, hard: INFINITY }; 16];
        let mut set = |resource: Resource, soft, hard| {
            if let Some(slot) = limits.get_mut(resource as usize) {
                *slot = Rlimit { soft, hard };
            }
        };
        set(Resource::Stack, 8 << 20, INFINITY);
        set(Resource::Core, 0, INFINITY);
        set(Resource::Nofile, 1024, 1 << 20);
        set(Resource::Memlock, 8 << 20, 8 << 20);
        set(Resource::Sigpending, 63_000, 63_000);
        set(Resource::Msgqueue, 819_200, 819_200);
        set(Resource::Nice, 0, 0);
        set(Resource::Rtprio, 0, 0);
        Rlimits(limits)
    }
}

impl Rlimits {
    /// One limit.
    pub fn get(&self, resource: Resource) -> Rlimit {
        self.0.get(resource as usize).copied().unwrap_or(Rlimit { soft: INFINITY, hard: INFINITY })
    }

    /// Replaces one limit, unchecked.
    pub fn set(&mut self, resource: Resource, limit: Rlimit) {
        if let Some(slot) = self.0.get_mut(resource as usize) {
            *slot = limit;
        }
    }
}
