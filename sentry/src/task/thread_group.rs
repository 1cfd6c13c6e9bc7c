//! Thread groups: what Linux's user space calls a process.
//!
//! Three kinds of state with a lock each: *relations* (members, parent, children, process group; changed only under the kernel's
//! task tree lock, read under their own), *signals* (shared pending queue, stop and exit state) and limits.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard, RwLock};

use super::pid::Pid;
use super::process_group::ProcessGroup;
use super::rlimit::{Resource, Rlimit, Rlimits};
use super::signal::{ExitStatus, PendingQueue, Signal, SignalHandlers};
use super::{Credentials, Task};
use crate::errno::{Errno, SysResult};
use crate::kernel::Kernel;
use crate::kernel::cgroup::Cgroup;
use crate::time::Timespec;
use crate::time::process_timers::ProcessTimers;
use crate::wait::WaitQueue;

/// A process.
pub struct ThreadGroup {
    kernel: Arc<Kernel>,
    cgroup: Arc<Cgroup>,
    pid: Arc<Pid>,
    relations: Mutex<Relations>,
    signals: Mutex<GroupSignals>,
    handlers: RwLock<Arc<SignalHandlers>>,
    rlimits: RwLock<Arc<Rlimits>>,
    /// Sleepers in `wait4`: notified when a child changes state.
    children_changed: WaitQueue,
    /// Notified once, when the process has become a zombie (pidfds) and when threads leave (exec).
    exit_queue: WaitQueue,
    exited: AtomicBool,
    /// Threads that have not begun to exit.
    live: AtomicUsize,
    started: Timespec,
    oom_score_adj: AtomicI32,
    times: GroupTimes,
    timers: ProcessTimers,
}

/// Who belongs to whom. See the module documentation for its locking.
pub struct Relations {
    /// The thread whose pid is the process's; stays when it has exited before the others.
    pub leader: Option<Arc<Task>>,
    /// Live threads, the leader first while it lives.
    pub members: Vec<Arc<Task>>,
    /// Parent; none for processes started from outside.
    pub parent: Weak<ThreadGroup>,
    /// Children, zombies included.
    pub children: Vec<Arc<ThreadGroup>>,
    /// Job.
    pub process_group: Arc<ProcessGroup>,
    /// What the parent gets at the end; `None` for `clone` without a signal.
    pub exit_signal: Option<Signal>,
    /// `PR_SET_CHILD_SUBREAPER`.
    pub child_subreaper: bool,
    /// Some ancestor is a subreaper.
    pub below_subreaper: bool,
    /// Has called `execve`: `setpgid` by its parent is refused from then on.
    pub has_execed: bool,
    /// How the leader ended; the process's status if nobody called `exit_group` and no signal ended it.
    pub leader_status: Option<ExitStatus>,
}

/// Whether the process is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopState {
    /// No.
    Running,
    /// Its threads are on their way; how many still run.
    Stopping {
        /// Why.
        signal: Signal,
        /// Threads that have not stopped yet.
        remaining: usize,
    },
    /// All its threads stand.
    Stopped {
        /// Why.
        signal: Signal,
    },
}

/// A change of state short of the end that `wait4` can report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParentEvent {
    /// Stopped by this signal.
    Stopped(Signal),
    /// Continued.
    Continued,
}

/// Signal state of a process.
pub struct GroupSignals {
    /// Pending for any thread.
    pub shared: PendingQueue,
    /// Stop state.
    pub stop: StopState,
    /// Set once the process is ending: every thread is to exit with it.
    pub exit: Option<ExitStatus>,
    /// The thread that is in `execve` and wants all others dead.
    pub exec: Weak<Task>,
    /// An init process: immune to its own namespace's signals without handlers.
    pub unkillable: bool,
    /// What `wait4` has not reported yet.
    pub parent_event: Option<ParentEvent>,
    /// The parent has not been told yet of a continuation.
    pub continued_untold: bool,
}

/// What is kept of what a process has used, beyond its live threads and its memory: see [`super::usage`]. Times in nanoseconds.
#[derive(Default)]
pub struct GroupTimes {
    /// User time of threads that have exited.
    pub dead_user: AtomicU64,
    /// System time of threads that have exited.
    pub dead_system: AtomicU64,
    /// User time of waited-for children.
    pub children_user: AtomicU64,
    /// System time of waited-for children.
    pub children_system: AtomicU64,
    /// Largest resident set of any descendant, in KiB.
    pub children_max_rss: AtomicU64,
    /// Minor faults of waited-for children.
    pub children_minor_faults: AtomicU64,
    /// Voluntary switches of waited-for children.
    pub children_switches: AtomicU64,
    /// Largest resident set of its former address spaces, in KiB.
    pub max_rss: AtomicU64,
    /// Minor faults in its former address spaces.
    pub minor_faults: AtomicU64,
    /// Voluntary switches of threads that have exited.
    pub dead_switches: AtomicU64,
}

impl ThreadGroup {
    pub(super) fn assemble(
        kernel: &Arc<Kernel>,
        pid: Arc<Pid>,
        parts: super::birth::GroupParts,
        relations: Relations,
    ) -> Arc<ThreadGroup> {
        let signals = GroupSignals {
            shared: PendingQueue::default(),
            stop: StopState::Running,
            exit: None,
            exec: Weak::new(),
            unkillable: pid.own() == 1,
            parent_event: None,
            continued_untold: false,
        };
        Arc::new(ThreadGroup {
            kernel: kernel.clone(),
            cgroup: parts.cgroup,
            pid,
            relations: Mutex::new(relations),
            signals: Mutex::new(signals),
            handlers: RwLock::new(parts.handlers),
            rlimits: RwLock::new(parts.rlimits),
            children_changed: WaitQueue::new(),
            exit_queue: WaitQueue::new(),
            exited: AtomicBool::new(false),
            live: AtomicUsize::new(0),
            started: Timespec::now_realtime(),
            oom_score_adj: AtomicI32::new(parts.oom_score_adj),
            times: GroupTimes::default(),
            timers: ProcessTimers::default(),
        })
    }

    /// The sandbox's kernel.
    pub fn kernel(&self) -> &Arc<Kernel> {
        &self.kernel
    }

    /// The container's limits and counters.
    pub fn cgroup(&self) -> &Arc<Cgroup> {
        &self.cgroup
    }

    /// The process id.
    pub fn pid(&self) -> &Arc<Pid> {
        &self.pid
    }

    /// The leader; gone once the process has been reaped.
    pub fn leader(&self) -> Option<Arc<Task>> {
        self.relations.lock().leader.clone()
    }

    /// Its live threads.
    pub fn members(&self) -> Vec<Arc<Task>> {
        self.relations.lock().members.clone()
    }

    /// How many threads live.
    pub fn thread_count(&self) -> usize {
        self.relations.lock().members.len()
    }

    /// Its parent.
    pub fn parent(&self) -> Option<Arc<ThreadGroup>> {
        self.relations.lock().parent.upgrade()
    }

    /// Its children, zombies included.
    pub fn children(&self) -> Vec<Arc<ThreadGroup>> {
        self.relations.lock().children.clone()
    }

    /// Its job.
    pub fn process_group(&self) -> Arc<ProcessGroup> {
        self.relations.lock().process_group.clone()
    }

    pub(crate) fn relations(&self) -> MutexGuard<'_, Relations> {
        self.relations.lock()
    }

    pub(crate) fn lock_signals(&self) -> MutexGuard<'_, GroupSignals> {
        self.signals.lock()
    }

    /// Its dispositions.
    pub fn handlers(&self) -> Arc<SignalHandlers> {
        self.handlers.read().clone()
    }

    pub(crate) fn set_handlers(&self, handlers: Arc<SignalHandlers>) {
        *self.handlers.write() = handlers;
    }

    /// One resource limit.
    pub fn rlimit(&self, resource: Resource) -> Rlimit {
        self.rlimits.read().get(resource)
    }

    /// All resource limits.
    pub fn rlimits(&self) -> Arc<Rlimits> {
        self.rlimits.read().clone()
    }

    /// Replaces a limit after the checks of `setrlimit`: `EINVAL` if soft exceeds hard, `EPERM` to raise the hard one without
    /// `CAP_SYS_RESOURCE`.
    pub fn set_rlimit(&self, resource: Resource, new: Rlimit, who: &Credentials) -> SysResult<Rlimit> {
        if new.soft > new.hard {
            return Err(Errno::EINVAL);
        }
        let mut limits = self.rlimits.write();
        let old = limits.get(resource);
        if new.hard > old.hard && !who.has(super::Capability::SYS_RESOURCE) {
            return Err(Errno::EPERM);
        }
        Arc::make_mut(&mut limits).set(resource, new);
        Ok(old)
    }

    /// Raises a soft limit by one, without any check.
    pub(crate) fn raise_soft_limit(&self, resource: Resource) {
        let mut limits = self.rlimits.write();
        let old = limits.get(resource);
        Arc::make_mut(&mut limits).set(resource, Rlimit { soft: old.soft.saturating_add(1), ..old });
    }

    pub(super) fn signal_limit(&self) -> u64 {
        self.rlimit(Resource::Sigpending).soft
    }

    /// Whether it has ended (it may still be a zombie).
    pub fn has_exited(&self) -> bool {
        self.exited.load(Ordering::Acquire)
    }

    /// How it ended.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        if self.has_exited() { self.signals.lock().exit } else { None }
    }

    /// Whether all its threads are stopped.
    pub fn is_stopped(&self) -> bool {
        matches!(self.signals.lock().stop, StopState::Stopped { .. })
    }

    /// Whether it is init of its pid namespace.
    pub fn is_namespace_init(&self) -> bool {
        self.pid.own() == 1
    }

    /// Sleepers in `wait4`.
    pub fn children_changed(&self) -> &WaitQueue {
        &self.children_changed
    }

    /// Notified when it ends (pidfds become readable then).
    pub fn exit_queue(&self) -> &WaitQueue {
        &self.exit_queue
    }

    /// When it started, by the wall clock.
    pub fn started(&self) -> Timespec {
        self.started
    }

    /// `/proc/*/oom_score_adj`.
    pub fn oom_score_adj(&self) -> i32 {
        self.oom_score_adj.load(Ordering::Relaxed)
    }

    /// Sets `/proc/*/oom_score_adj`.
    pub fn set_oom_score_adj(&self, value: i32) {
        self.oom_score_adj.store(value, Ordering::Relaxed);
    }

    /// Its interval and POSIX timers.
    pub fn timers(&self) -> &ProcessTimers {
        &self.timers
    }

    /// CPU time counters beyond those of live threads.
    pub fn times(&self) -> &GroupTimes {
        &self.times
    }

    /// User and system time of all its threads, dead ones included, in nanoseconds.
    pub fn cpu_nanos(&self) -> (u64, u64) {
        let mut user = self.times.dead_user.load(Ordering::Relaxed);
        let mut system = self.times.dead_system.load(Ordering::Relaxed);
        for task in self.relations.lock().members.iter() {
            let (task_user, task_system) = task.cpu_nanos();
            user = user.wrapping_add(task_user);
            system = system.wrapping_add(task_system);
        }
        (user, system)
    }

    pub(super) fn set_exited(&self) {
        self.exited.store(true, Ordering::Release);
    }

    pub(super) fn thread_born(&self) {
        self.live.fetch_add(1, Ordering::AcqRel);
    }

    /// Counts a thread that begins to exit; whether it was the last.
    pub(super) fn thread_dying(&self) -> bool {
        self.live.fetch_sub(1, Ordering::AcqRel) == 1
    }
}
