//! `siginfo_t`: what comes along with a signal.

use linux_raw_sys::general as linux;

use super::number::Signal;
use crate::errno::SysResult;

/// A signal with its circumstances. Process ids in it are those of the receiver's pid namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigInfo {
    /// Which signal.
    pub signal: Signal,
    /// `si_errno`, nearly always 0.
    pub errno: i32,
    /// `si_code`: positive or `SI_KERNEL` from the kernel, 0 or negative from a process.
    pub code: i32,
    /// The rest.
    pub fields: SigFields,
}

/// The union in `siginfo_t`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // Linux's names
pub enum SigFields {
    /// Nothing but zeros.
    None,
    /// `kill`, `tgkill`.
    Kill { pid: i32, uid: u32 },
    /// A POSIX timer.
    Timer { id: i32, overrun: i32, value: u64 },
    /// `sigqueue`, `mq_notify`.
    Queue { pid: i32, uid: u32, value: u64 },
    /// `SIGCHLD`; times in clock ticks.
    Child { pid: i32, uid: u32, status: i32, utime: i64, stime: i64 },
    /// `SIGSEGV`, `SIGBUS`, `SIGILL`, `SIGFPE`, `SIGTRAP`.
    Fault { addr: u64 },
    /// `SIGIO`.
    Poll { band: i64, fd: i32 },
    /// `SIGSYS`.
    Syscall { addr: u64, number: i32, arch: u32 },
    /// As a process passed it to `rt_sigqueueinfo`: everything after the first three numbers.
    Raw(Box<[u8; 112]>),
}

/// Bytes of a `siginfo_t`.
pub const SIGINFO_SIZE: usize = 128;

impl SigInfo {
    /// A signal of the kernel itself (`SI_KERNEL`).
    pub fn kernel(signal: Signal) -> SigInfo {
        SigInfo { signal, errno: 0, code: linux::SI_KERNEL as i32, fields: SigFields::None }
    }

    /// A `kill` by `pid` of `uid`.
    pub fn kill(signal: Signal, pid: i32, uid: u32) -> SigInfo {
        SigInfo { signal, errno: 0, code: linux::SI_USER as i32, fields: SigFields::Kill { pid, uid } }
    }

    /// A fault at `addr` with a code such as `SEGV_MAPERR`.
    pub fn fault(signal: Signal, code: u32, addr: u64) -> SigInfo {
        SigInfo { signal, errno: 0, code: code as i32, fields: SigFields::Fault { addr } }
    }

    /// Whether it came from a process, which decides over permission and queueing.
    pub fn from_user(&self) -> bool {
        self.code <= 0
    }

    /// As the guest sees it.
    pub fn to_bytes(&self) -> [u8; SIGINFO_SIZE] {
        let mut out = Writer { bytes: [0; SIGINFO_SIZE], at: 0 };
        out.put(&self.signal.number().to_le_bytes());
        out.put(&self.errno.to_le_bytes());
        out.put(&self.code.to_le_bytes());
        out.at = 16;
        match &self.fields {
            SigFields::None => {}
            SigFields::Kill { pid, uid } => {
                out.put(&pid.to_le_bytes());
                out.put(&uid.to_le_bytes());
            }
            SigFields::Timer { id, overrun, value } => {
                out.put(&id.to_le_bytes());
                out.put(&overrun.to_le_bytes());
                out.put(&value.to_le_bytes());
            }
            SigFields::Queue { pid, uid, value } => {
                out.put(&pid.to_le_bytes());
                out.put(&uid.to_le_bytes());
                out.put(&value.to_le_bytes());
            }
            SigFields::Child { pid, uid, status, utime, stime } => {
                out.put(&pid.to_le_bytes());
                out.put(&uid.to_le_bytes());
                out.put(&status.to_le_bytes());
                out.at = 32;
                out.put(&utime.to_le_bytes());
                out.put(&stime.to_le_bytes());
            }
            SigFields::Fault { addr } => out.put(&addr.to_le_bytes()),
            SigFields::Poll { band, fd } => {
                out.put(&band.to_le_bytes());
                out.put(&fd.to_le_bytes());
            }
            SigFields::Syscall { addr, number, arch } => {
                out.put(&addr.to_le_bytes());
                out.put(&number.to_le_bytes());
                out.put(&arch.to_le_bytes());
            }
            SigFields::Raw(rest) => out.put(rest.as_slice()),
        }
        out.bytes
    }

    /// From a `siginfo_t` that a process passed in for `signal`; the number in the bytes does not count.
    pub fn from_user_bytes(signal: Signal, bytes: &[u8; SIGINFO_SIZE]) -> SysResult<SigInfo> {
        let word = |at: usize| {
            let part = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
            i32::from_le_bytes(part.copied().unwrap_or_default())
        };
        let rest = bytes.last_chunk::<112>().copied().unwrap_or([0; 112]);
        Ok(SigInfo { signal, errno: word(4), code: word(8), fields: SigFields::Raw(Box::new(rest)) })
    }
}

struct Writer {
    bytes: [u8; SIGINFO_SIZE],
    at: usize,
}

impl Writer {
    fn put(&mut self, data: &[u8]) {
        if let Some(room) = self.bytes.get_mut(self.at..).and_then(|rest| rest.get_mut(..data.len())) {
            room.copy_from_slice(data);
            self.at += data.len();
        }
    }
}
