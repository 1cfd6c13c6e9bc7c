//! Making tasks and thread groups, and putting them into the tree.
//!
//! A task is built completely, its host thread reserved and everything that can fail done, before it becomes visible: from
//! [`link`] on nothing fails.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::{Mutex, RwLock};

use super::process_group::ProcessGroup;
use super::rlimit::Rlimits;
use super::rseq::RseqState;
use super::signal::{Signal, SignalHandlers, SignalSet};
use super::thread_group::{Relations, StopState};
use super::{
    AfterCall, AltStack, Attributes, Charges, Comm, Credentials, CurrentCall, FaultRecord, Namespaces, Pid,
    Resource, Task, TaskLocal, TaskSignals, ThreadGroup, Work,
};
use crate::errno::{Errno, SysResult};
use crate::kernel::cgroup::Cgroup;
use crate::kernel::{Kernel, TaskTree};
use crate::mm::Mm;
use crate::platform::{GuestThread, Kicker, Registers};
use crate::vfs::{FdTable, FsContext};
use crate::wait::{WaitQueue, Waiter};

/// What a new task starts with.
pub struct TaskParts {
    /// Who may do what.
    pub credentials: Arc<Credentials>,
    /// Where it lives.
    pub namespaces: Arc<Namespaces>,
    /// Memory.
    pub mm: Arc<Mm>,
    /// Descriptors.
    pub files: Arc<FdTable>,
    /// Root, working directory, umask.
    pub fs: Arc<FsContext>,
    /// Blocked signals.
    pub blocked: SignalSet,
    /// Name.
    pub comm: Comm,
    /// Small settings.
    pub attributes: Attributes,
    /// Gets it out of the guest.
    pub kicker: Kicker,
}

/// What a new thread group starts with.
pub struct GroupParts {
    /// Container.
    pub cgroup: Arc<Cgroup>,
    /// Dispositions.
    pub handlers: Arc<SignalHandlers>,
    /// Limits.
    pub rlimits: Arc<Rlimits>,
    /// Its job; `None` makes a session of its own.
    pub job: Option<Arc<ProcessGroup>>,
    /// What its parent gets at its end.
    pub exit_signal: Option<Signal>,
    /// `oom_score_adj`.
    pub oom_score_adj: i32,
}

impl ThreadGroup {
    /// A process without threads yet.
    pub(crate) fn new(kernel: &Arc<Kernel>, pid: Arc<Pid>, parts: GroupParts) -> Arc<ThreadGroup> {
        let job = parts.job.clone().unwrap_or_else(|| ProcessGroup::new_session(&pid));
        let relations = Relations {
            leader: None,
            members: Vec::new(),
            parent: Weak::new(),
            children: Vec::new(),
            process_group: job,
            exit_signal: parts.exit_signal,
            child_subreaper: false,
            below_subreaper: false,
            has_execed: false,
            leader_status: None,
        };
        ThreadGroup::assemble(kernel, pid, parts, relations)
    }
}

impl Task {
    /// A thread of `group`. `EAGAIN` at a limit of its user or container.
    pub(crate) fn new(
        kernel: &Arc<Kernel>,
        group: Arc<ThreadGroup>,
        pid: Arc<Pid>,
        parts: TaskParts,
    ) -> SysResult<Arc<Task>> {
        let limit = group.rlimit(Resource::Nproc).soft;
        let who = &parts.credentials;
        let privileged =
            who.uid == 0 || who.has(super::Capability::SYS_RESOURCE) || who.has(super::Capability::SYS_ADMIN);
        let user = kernel.users().charge(who.uid);
        if !privileged && user.user().tasks() > limit {
            return Err(Errno::EAGAIN);
        }
        let cgroup = Some(group.cgroup().charge()?);
        let signals = user.user().signals().clone();
        let charges = Charges { user: Some(user), signals, cgroup };
        let cpus = kernel.system_info().cpus;
        let cpu = parts.attributes.affinity.nth(pid.own().cast_unsigned(), cpus);
        let task_signals = TaskSignals { blocked: parts.blocked.blockable(), ..TaskSignals::default() };
        Ok(Arc::new(Task {
            kernel: kernel.clone(),
            group,
            pid: RwLock::new(pid),
            waiter: Waiter::new(),
            kicker: parts.kicker,
            work: AtomicU32::new(0),
            cpu: AtomicU32::new(cpu),
            has_place: AtomicBool::new(false),
            disturbed: AtomicBool::new(false),
            exiting: AtomicBool::new(false),
            credentials: RwLock::new(parts.credentials),
            namespaces: RwLock::new(parts.namespaces),
            mm: RwLock::new(parts.mm),
            files: RwLock::new(parts.files),
            fs: RwLock::new(parts.fs),
            own_version: AtomicU64::new(0),
            signals: Mutex::new(task_signals),
            charges: Mutex::new(charges),
            signal_queue: WaitQueue::new(),
            comm: Mutex::new(parts.comm),
            attributes: Mutex::new(parts.attributes),
            user_nanos: AtomicU64::new(0),
            switches: AtomicU64::new(0),
            system_nanos: AtomicU64::new(0),
            started: Instant::now(),
        }))
    }
}

impl TaskLocal {
    /// The private half of a task that starts in `registers`.
    pub(crate) fn new(machine: Box<dyn GuestThread>, mm: &Mm, registers: Registers) -> TaskLocal {
        TaskLocal {
            registers,
            machine,
            space: mm.space().clone(),
            patches: mm.patches().clone(),
            call: CurrentCall::default(),
            progress: None,
            restart: None,
            after: AfterCall::Result,
            interrupted: None,
            saved_mask: None,
            alt_stack: AltStack::default(),
            clear_child_tid: 0,
            rseq: RseqState::default(),
            sem_undo: None,
            robust_list: 0,
            vfork_done: None,
            ride: super::ride::Ride::default(),
            fault: FaultRecord::default(),
        }
    }
}

/// Whose child a new process becomes.
pub(crate) enum Parentage<'a> {
    /// A thread of an existing process.
    Thread,
    /// A child in the parent's job.
    Child(&'a Arc<ThreadGroup>),
    /// Started from outside: no parent, a session of its own.
    Outside,
}

/// Makes a task visible: pid, members, parent, job. A stop or a pause that came in between reaches it, too.
/// `EAGAIN` (restart the call) when its process is ending or a kill of everything is under way.
pub(crate) fn link(_tree: &mut TaskTree, task: &Arc<Task>, parentage: Parentage<'_>) -> SysResult {
    let group = task.thread_group();
    match parentage {
        Parentage::Thread => {
            let signals = group.lock_signals();
            if signals.exit.is_some() || signals.exec.strong_count() > 0 {
                return Err(Errno::EAGAIN);
            }
        }
        Parentage::Child(parent) => {
            let job = parent.process_group();
            job.add(group);
            let below = {
                let mut relations = parent.relations();
                relations.children.push(group.clone());
                relations.child_subreaper || relations.below_subreaper
            };
            let mut relations = group.relations();
            relations.process_group = job;
            relations.parent = Arc::downgrade(parent);
            relations.below_subreaper = below;
        }
        Parentage::Outside => group.process_group().add(group),
    }
    task.pid().set_task(Arc::downgrade(task));
    let mut relations = group.relations();
    let first = relations.leader.is_none();
    if first {
        relations.leader = Some(task.clone());
        if group.is_namespace_init()
            && let Some(namespace) = group.pid().namespace()
        {
            namespace.set_init(group);
        }
    }
    relations.members.push(task.clone());
    group.thread_born();
    let mut signals = group.lock_signals();
    match &mut signals.stop {
        StopState::Running => {}
        StopState::Stopping { remaining, .. } => {
            *remaining = remaining.saturating_add(1);
            task.kick(Work::STOP);
        }
        StopState::Stopped { .. } => task.kick(Work::STOP),
    }
    if group.cgroup().is_frozen() {
        task.kick(Work::FREEZE);
    }
    drop(signals);
    drop(relations);
    if first {
        group.timers().watch_cpu_limit(group);
    }
    Ok(())
}
