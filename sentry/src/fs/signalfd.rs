//! `signalfd(2)`: pending signals as records to read.
//!
//! Reading and polling concern the signals of whoever does it ([`crate::task::current`]), as in Linux: a child that inherited
//! the descriptor reads its own. The file's queue is fed from the signal queues of every task that has waited on it.
//!
//! Lock order: the list of feeders, then a task's signal queue.

use std::mem::offset_of;
use std::sync::{Arc, Weak};

use libc::signalfd_siginfo;
use parking_lot::Mutex;

use crate::errno::{Errno, SysResult};
use crate::io::IoDst;
use crate::task::signal::SigFields;
use crate::task::{SigInfo, SignalSet, Task, current};
use crate::vfs::{File, FileOps};
use crate::wait::{Observer, PollEvents, Registration, WaitQueue};

/// Bytes of a record.
const SIZE: usize = size_of::<signalfd_siginfo>();

/// The operations of a signalfd.
pub struct SignalFd {
    wanted: Mutex<SignalSet>,
    queue: Arc<WaitQueue>,
    feeders: Mutex<Vec<Feeder>>,
}

struct Feeder {
    task: Weak<Task>,
    _registration: Registration,
}

/// Passes a task's notifications on.
struct Forward(Arc<WaitQueue>);

impl Observer for Forward {
    fn notified(&self, _: PollEvents) {
        self.0.notify(PollEvents::READABLE);
    }
}

impl SignalFd {
    /// For the signals in `wanted`; `SIGKILL` and `SIGSTOP` are left out.
    pub fn new(wanted: SignalSet) -> SignalFd {
        SignalFd { wanted: Mutex::new(wanted.blockable()), queue: Arc::default(), feeders: Mutex::default() }
    }

    /// Replaces the set.
    pub fn set_wanted(&self, wanted: SignalSet) {
        *self.wanted.lock() = wanted.blockable();
        self.queue.notify(PollEvents::READABLE);
    }

    fn listen_to_current(&self) {
        let Some(task) = current::current() else { return };
        let mut feeders = self.feeders.lock();
        if feeders.iter().any(|feeder| std::ptr::eq(feeder.task.as_ptr(), Arc::as_ptr(&task))) {
            return;
        }
        feeders.retain(|feeder| feeder.task.strong_count() > 0);
        let forward = Arc::new(Forward(self.queue.clone()));
        let registration = task.signal_queue().register(PollEvents::READABLE, forward);
        feeders.push(Feeder { task: Arc::downgrade(&task), _registration: registration });
    }
}

impl FileOps for SignalFd {
    fn read(&self, _: &File, dst: &mut dyn IoDst, _: &mut u64) -> SysResult<usize> {
        if dst.remaining() < SIZE {
            return Err(Errno::EINVAL);
        }
        let task = current::current().ok_or(Errno::EAGAIN)?;
        let wanted = *self.wanted.lock();
        let mut done: usize = 0;
        while dst.remaining() >= SIZE {
            let Some(info) = task.take_signal(wanted) else { break };
            if dst.put(&record(&info))? < SIZE {
                return Err(Errno::EFAULT);
            }
            done = done.saturating_add(SIZE);
        }
        if done == 0 { Err(Errno::EAGAIN) } else { Ok(done) }
    }

    fn poll(&self, _: &File) -> PollEvents {
        let Some(task) = current::current() else { return PollEvents::empty() };
        let (own, shared) = task.pending_signals();
        let pending = own.union(shared).intersection(*self.wanted.lock());
        if pending.is_empty() { PollEvents::empty() } else { PollEvents::READABLE }
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        self.listen_to_current();
        Some(&self.queue)
    }

    fn pollable(&self) -> bool {
        true
    }

    fn anonymous_name(&self) -> Option<String> {
        Some("anon_inode:[signalfd]".into())
    }

    fn fdinfo(&self) -> String {
        format!("sigmask:\t{:016x}\n", self.wanted.lock().bits())
    }
}

/// The `signalfd_siginfo` of a signal.
fn record(info: &SigInfo) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    let mut put = |offset: usize, value: &[u8]| {
        let end = offset.saturating_add(value.len());
        if let Some(room) = bytes.get_mut(offset..end) {
            room.copy_from_slice(value);
        }
    };
    macro_rules! set {
        ($($field:ident = $value:expr),* $(,)?) => {{
             $(put(offset_of!(signalfd_siginfo, $field), &$value.to_ne_bytes());)*
        }};
    }
    set!(ssi_signo = info.signal.number(), ssi_errno = info.errno, ssi_code = info.code);
    match &info.fields {
        SigFields::None => {}
        SigFields::Kill { pid, uid } => set!(ssi_pid = pid, ssi_uid = uid),
        SigFields::Timer { id, overrun, value } => {
            set!(ssi_tid = id, ssi_overrun = overrun, ssi_ptr = value, ssi_int = *value as i32);
        }
        SigFields::Queue { pid, uid, value } => {
            set!(ssi_pid = pid, ssi_uid = uid, ssi_ptr = value, ssi_int = *value as i32);
        }
        SigFields::Child { pid, uid, status, utime, stime } => {
            set!(ssi_pid = pid, ssi_uid = uid, ssi_status = status, ssi_utime = utime, ssi_stime = stime);
        }
        SigFields::Fault { addr } => set!(ssi_addr = addr),
        SigFields::Poll { band, fd } => set!(ssi_band = *band as u32, ssi_fd = fd),
        SigFields::Syscall { addr, number, arch } => {
            set!(ssi_call_addr = addr, ssi_syscall = number, ssi_arch = arch);
        }
        SigFields::Raw(raw) => {
            let word = |at: usize| raw.get(at..).and_then(|rest| rest.first_chunk::<4>()).copied();
            let (pid, uid) = (word(0).unwrap_or_default(), word(4).unwrap_or_default());
            let (low, high) = (word(8).unwrap_or_default(), word(12).unwrap_or_default());
            let value = u64::from(u32::from_ne_bytes(low)) | u64::from(u32::from_ne_bytes(high)) << 32;
            set!(ssi_pid = i32::from_ne_bytes(pid), ssi_uid = u32::from_ne_bytes(uid));
            set!(ssi_ptr = value, ssi_int = value as i32);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Signal;

    #[test]
    fn records_have_linux_layout() {
        let field = |bytes: &[u8], at: usize| i32::from_ne_bytes(*bytes[at..].first_chunk().unwrap());
        let kill = record(&SigInfo::kill(Signal::TERM, 42, 1000));
        assert_eq!((field(&kill, 0), field(&kill, 12), field(&kill, 16)), (15, 42, 1000));
        let info = SigInfo {
            signal: Signal::CHLD,
            errno: 0,
            code: 1,
            fields: SigFields::Child { pid: 7, uid: 8, status: 9, utime: 10, stime: 11 },
        };
        let child = record(&info);
        assert_eq!((field(&child, 8), field(&child, 12), field(&child, 40)), (1, 7, 9));
        assert_eq!((field(&child, 56), field(&child, 64)), (10, 11));
        let queue = SigInfo {
            fields: SigFields::Queue { pid: 1, uid: 2, value: 0x1_0000_0005 },
            ..SigInfo::kernel(Signal::USR1)
        };
        let queue = record(&queue);
        assert_eq!((field(&queue, 44), field(&queue, 48), field(&queue, 52)), (5, 5, 1));
    }

    #[test]
    fn nobody_reads_without_a_task() {
        let fd = SignalFd::new(SignalSet::of(&[Signal::KILL, Signal::HUP]));
        assert_eq!(*fd.wanted.lock(), SignalSet::of(&[Signal::HUP]));
        assert!(fd.wait_queue().is_some());
    }
}
