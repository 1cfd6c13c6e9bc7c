//! Tasks: threads, thread groups, sessions, signals, credentials, and the loop that runs guest code.
//!
//! [`Task`] is what others may touch (under its locks). What only the task's own thread touches (registers, the platform
//! thread, saved masks) is [`TaskLocal`]. A system call gets both through [`SyscallContext`].
//!
//! Read [`thread_group`] next (what user space calls a process), then [`signal`], [`pid`] and [`process_group`].
//!
//! Lock order: the kernel's task tree ([`crate::kernel::Kernel::tree`]), relations of a group (parent before child), signal lock of a
//! group, signal lock of a task. `mm`, `files`, `fs`, `credentials`, `namespaces` are leaves that hand out an `Arc`.

pub mod attributes;
pub mod birth;
pub mod block;
pub mod clone;
pub mod context;
mod cpu_meter;
pub mod credentials;
pub mod current;
pub mod exception;
pub mod exec;
pub mod exit;
pub mod futex;
mod handover;
pub mod job_control;
pub mod namespaces;
mod operand;
pub mod pid;
pub mod pidfd;
pub mod process_group;
pub mod processors;
pub mod reap;
pub mod ride;
pub mod rlimit;
pub mod rseq;
pub mod run;
pub mod set_ids;
pub mod signal;
pub mod stop;
pub mod subreaper;
#[cfg(test)]
mod tests;
pub mod thread_group;
pub mod usage;
pub mod vfork;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bitflags::bitflags;
use parking_lot::{Mutex, MutexGuard, RwLock};

pub use attributes::Attributes;
pub use context::{
    AfterCall, AltStack, CurrentCall, FaultRecord, Own, RestartBlock, SyscallContext, TaskLocal,
};
pub use credentials::{Capability, Credentials};
pub use namespaces::Namespaces;
pub use pid::{Pid, PidNamespace};
pub use process_group::{ControllingTerminal, ProcessGroup, Session};
pub use processors::CpuMask;
pub use rlimit::{Resource, Rlimit};
pub use signal::{SigInfo, Signal, SignalSet};
pub use thread_group::ThreadGroup;

use crate::errno::SysResult;
use crate::fs::anonymous::{AnonymousInode, Pseudo, next_ino};
use crate::kernel::Kernel;
use crate::kernel::cgroup::PidCharge;
use crate::kernel::users::UserCharge;
use crate::mm::Mm;
use crate::platform::Kicker;
use crate::time::process_timers::note_taken;
use crate::vfs::file::File;
use crate::vfs::{FdTable, FsContext};
use crate::wait::{WaitQueue, Waiter};
use signal::{PendingQueue, SignalCount};

bitflags! {
    /// What a task has to look at before it goes on in the guest.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Work: u32 {
        /// A signal may be deliverable.
        const SIGNAL = 1;
        /// The process is stopping.
        const STOP = 1 << 1;
        /// The thread is to exit.
        const KILL = 1 << 2;
        /// The container is being paused.
        const FREEZE = 1 << 3;
    }
}

/// A guest thread, as everybody may see it.
pub struct Task {
    kernel: Arc<Kernel>,
    group: Arc<ThreadGroup>,
    pid: RwLock<Arc<Pid>>,
    waiter: Arc<Waiter>,
    kicker: Kicker,
    work: AtomicU32,
    /// See [`processors`].
    cpu: AtomicU32,
    /// It has had a place: see [`processors::Processors`].
    has_place: AtomicBool,
    /// It has to look after its restartable sequence before it goes on in the guest.
    disturbed: AtomicBool,
    exiting: AtomicBool,
    credentials: RwLock<Arc<Credentials>>,
    namespaces: RwLock<Arc<Namespaces>>,
    mm: RwLock<Arc<Mm>>,
    files: RwLock<Arc<FdTable>>,
    fs: RwLock<Arc<FsContext>>,
    /// Changes whenever one of `credentials`, `mm` and `fs` is replaced.
    own_version: AtomicU64,
    signals: Mutex<TaskSignals>,
    /// Its places under the limits of its user and of its container; given back when it is reaped.
    charges: Mutex<Charges>,
    /// Told of every signal sent to the thread or its process: signalfds and `sigtimedwait`.
    signal_queue: WaitQueue,
    comm: Mutex<Comm>,
    attributes: Mutex<Attributes>,
    user_nanos: AtomicU64,
    switches: AtomicU64,
    system_nanos: AtomicU64,
    started: Instant,
}

/// See [`Task::set_credentials`].
struct Charges {
    user: Option<UserCharge>,
    signals: Arc<SignalCount>,
    cgroup: Option<PidCharge>,
}

/// `/proc/*/comm`: at most 15 bytes.
pub type Comm = Vec<u8>;

/// Signal state of a thread.
#[derive(Default)]
pub struct TaskSignals {
    /// Pending for this thread alone.
    pub pending: PendingQueue,
    /// The mask.
    pub blocked: SignalSet,
    /// What `rt_sigtimedwait` is waiting for, although it is blocked.
    pub awaited: SignalSet,
}

impl TaskSignals {
    /// Whether the signal must be kept even if its disposition is to ignore it.
    pub fn blocked_or_awaited(&self, signal: Signal) -> bool {
        self.blocked.contains(signal) || self.awaited.contains(signal)
    }
}

impl Task {
    /// The sandbox's kernel.
    pub fn kernel(&self) -> &Arc<Kernel> {
        &self.kernel
    }

    /// Its process.
    pub fn thread_group(&self) -> &Arc<ThreadGroup> {
        &self.group
    }

    /// Its thread id.
    pub fn pid(&self) -> Arc<Pid> {
        self.pid.read().clone()
    }

    /// Its thread id as it sees it itself (`gettid`).
    pub fn tid(&self) -> i32 {
        self.pid.read().own()
    }

    /// The pid namespace it lives in.
    pub fn pid_namespace(&self) -> Option<Arc<PidNamespace>> {
        self.pid.read().namespace().cloned()
    }

    /// Whether it is its process's leader.
    pub fn is_leader(&self) -> bool {
        self.group.pid().numbers_eq(&self.pid.read())
    }

    /// Where it sleeps.
    pub fn waiter(&self) -> &Arc<Waiter> {
        &self.waiter
    }

    /// What it may do.
    pub fn credentials(&self) -> Arc<Credentials> {
        self.credentials.read().clone()
    }

    /// Replaces its credentials. A new real user takes over what is counted per user.
    pub fn set_credentials(&self, credentials: Arc<Credentials>) {
        let uid = credentials.uid;
        let new = credentials.clone();
        let old = std::mem::replace(&mut *self.credentials.write(), credentials);
        self.own_changed();
        // Linux's commit_creds: whoever changes ids or gains rights is nobody's to trace, and outlives its parent quietly.
        let ids = |who: &Credentials| (who.euid, who.egid, who.fsuid, who.fsgid);
        if ids(&old) != ids(&new) || !old.permitted.contains(new.permitted) {
            self.update_attributes(|attributes| {
                attributes.dumpable = false;
                attributes.parent_death_signal = None;
            });
        }
        if old.uid != uid {
            let charge = self.kernel.users().charge(uid);
            let mut charges = self.charges.lock();
            charges.signals = charge.user().signals().clone();
            charges.user = Some(charge);
        }
    }

    /// The namespaces it lives in.
    pub fn namespaces(&self) -> Arc<Namespaces> {
        self.namespaces.read().clone()
    }

    /// Replaces its namespaces.
    pub fn set_namespaces(&self, namespaces: Arc<Namespaces>) {
        *self.namespaces.write() = namespaces;
    }

    /// Its memory. After its exit an empty address space.
    pub fn mm(&self) -> Arc<Mm> {
        self.mm.read().clone()
    }

    /// Its descriptors. After its exit an empty table.
    pub fn files(&self) -> Arc<FdTable> {
        self.files.read().clone()
    }

    /// Its root, working directory and umask.
    pub fn fs(&self) -> Arc<FsContext> {
        self.fs.read().clone()
    }

    /// Replaces its root, working directory and umask (`unshare`).
    pub fn set_fs(&self, fs: Arc<FsContext>) {
        *self.fs.write() = fs;
        self.own_changed();
    }

    /// See [`Own`].
    pub(crate) fn own_version(&self) -> u64 {
        self.own_version.load(Ordering::Relaxed)
    }

    fn own_changed(&self) {
        self.own_version.fetch_add(1, Ordering::Relaxed);
    }

    /// Replaces its descriptors (`unshare`, `close_range`).
    pub fn set_files(&self, files: Arc<FdTable>) {
        *self.files.write() = files;
    }

    /// The description behind a descriptor argument.
    pub fn file(&self, fd: u64) -> SysResult<Arc<File>> {
        self.files.read().get(crate::vfs::Fd::from_arg(fd)?)
    }

    /// One of its process's resource limits.
    pub fn rlimit(&self, resource: Resource) -> Rlimit {
        self.group.rlimit(resource)
    }

    /// Its name (`/proc/*/comm`).
    pub fn comm(&self) -> Comm {
        self.comm.lock().clone()
    }

    /// Sets its name, cut to 15 bytes.
    pub fn set_comm(&self, name: &[u8]) {
        *self.comm.lock() = name.get(..15).unwrap_or(name).to_vec();
    }

    /// Its small settings.
    pub fn attributes(&self) -> Attributes {
        self.attributes.lock().clone()
    }

    /// Changes its small settings.
    pub fn update_attributes(&self, change: impl FnOnce(&mut Attributes)) {
        change(&mut self.attributes.lock());
    }

    /// Its blocked signals.
    pub fn blocked_signals(&self) -> SignalSet {
        self.signals.lock().blocked
    }

    /// Signals pending for it: its own, and its process's.
    pub fn pending_signals(&self) -> (SignalSet, SignalSet) {
        let shared = self.group.lock_signals().shared.set();
        (self.signals.lock().pending.set(), shared)
    }

    /// Takes a pending signal out of `wanted`, its own before its process's (`signalfd`, `sigtimedwait`).
    pub fn take_signal(&self, wanted: SignalSet) -> Option<SigInfo> {
        let mut group = self.group.lock_signals();
        let own = self.signals.lock().pending.take(wanted);
        let taken = own.or_else(|| group.shared.take(wanted));
        drop(group);
        if let Some(info) = &taken {
            note_taken(&self.group, info);
        }
        taken
    }

    /// Notified of every signal that is sent to it or its process.
    pub fn signal_queue(&self) -> &WaitQueue {
        &self.signal_queue
    }

    pub(crate) fn lock_signals(&self) -> MutexGuard<'_, TaskSignals> {
        self.signals.lock()
    }

    pub(crate) fn signal_count(&self) -> Arc<SignalCount> {
        self.charges.lock().signals.clone()
    }

    /// User and system time so far, in nanoseconds.
    pub fn cpu_nanos(&self) -> (u64, u64) {
        (self.user_nanos.load(Ordering::Relaxed), self.system_nanos.load(Ordering::Relaxed))
    }

    /// Books the time of the current stay in the guest by getting the task out of it; harmless when it is not there.
    pub fn book_cpu_time(&self) {
        self.kicker.kick();
    }

    /// How long it has existed.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether it has begun to exit.
    pub fn is_exiting(&self) -> bool {
        self.exiting.load(Ordering::Acquire)
    }

    /// Gives it something to look at: wakes it if it sleeps, and gets it out of the guest.
    pub fn kick(&self, work: Work) {
        let before = self.work.fetch_or(work.bits(), Ordering::AcqRel);
        self.waiter.interrupt();
        if work.intersects(Work::KILL | Work::FREEZE | Work::STOP) {
            // Gets it out of waits that signals do not end.
            self.waiter.notify();
        }
        // Nobody but the task itself clears a bit, and it looks again before it enters the guest.
        if before & work.bits() != work.bits() {
            self.kicker.kick();
        }
    }

    /// What it has to look at.
    pub fn work(&self) -> Work {
        Work::from_bits_retain(self.work.load(Ordering::Acquire))
    }

    /// Whether it is to die before it does anything else.
    pub fn is_killed(&self) -> bool {
        self.work().contains(Work::KILL)
    }

    pub(crate) fn clear_work(&self, work: Work) {
        self.work.fetch_and(!work.bits(), Ordering::AcqRel);
    }

    pub(crate) fn add_cpu_nanos(&self, user: u64, system: u64) {
        self.user_nanos.fetch_add(user, Ordering::Relaxed);
        self.system_nanos.fetch_add(system, Ordering::Relaxed);
    }

    pub(crate) fn resume_from_stop(&self) {
        self.clear_work(Work::STOP);
        self.waiter.notify();
    }

    pub(crate) fn replace_mm(&self, mm: Arc<Mm>) -> Arc<Mm> {
        let old = std::mem::replace(&mut *self.mm.write(), mm);
        self.own_changed();
        old
    }

    /// Lets go of descriptors and directories (exit).
    pub(crate) fn release_resources(&self) {
        let files = std::mem::take(&mut *self.files.write());
        let fs = std::mem::replace(&mut *self.fs.write(), nowhere());
        self.own_changed();
        drop((files, fs));
    }

    /// Gives back what limits count; its pid and what it was are gone afterwards.
    pub(crate) fn discharge(&self) {
        let mut charges = self.charges.lock();
        charges.user = None;
        charges.cgroup = None;
    }
}

/// Where tasks are that have exited.
fn nowhere() -> Arc<FsContext> {
    static NOWHERE: LazyLock<Arc<FsContext>> = LazyLock::new(|| {
        let inode = AnonymousInode::new(Pseudo::Anonymous, next_ino(), 0, 0);
        FsContext::new(crate::vfs::internal::place(b"/", inode))
    });
    NOWHERE.clone()
}

impl Task {
    /// Replaces the mask, returning the former; newly unblocked signals are looked at before the guest goes on.
    pub(crate) fn replace_mask(self: &Arc<Self>, mask: SignalSet) -> SignalSet {
        let old = std::mem::replace(&mut self.signals.lock().blocked, mask);
        let (own, shared) = self.pending_signals();
        if !own.union(shared).minus(mask).is_empty() {
            self.kick(Work::SIGNAL);
        }
        old
    }
}
