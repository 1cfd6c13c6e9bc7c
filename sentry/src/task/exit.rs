//! How threads and processes end.
//!
//! ```text
//! exit_thread: leave futexes and memory → leave the process ─┬─ other threads live: gone (the leader waits as a zombie)
//!                                                            └─ last one: end of the process
//! end of the process: init takes its namespace along → children get a new parent → jobs that got orphaned →
//!                     session's terminal → zombie → parent told ─┬─ parent waits for children: reaped by wait4
//!                                                                └─ parent does not care, or there is none: reaped at once
//! ```
//! Everything from leaving the process on happens under the task tree lock, so that a parent sees either a live child or a zombie.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use linux_raw_sys::general as linux;

use super::job_control::rouse_if_orphaned;
use super::signal::send::Origin;
use super::signal::{Action, Disposition, ExitStatus, SigFields, SigInfo, Signal};
use super::thread_group::{ParentEvent, ThreadGroup};
use super::{Own, PidNamespace, Task, TaskLocal, Work};
use crate::kernel::TaskTree;
use crate::time::Timespec;
use crate::wait::PollEvents;

impl ThreadGroup {
    /// Ends the whole process: every thread is told to exit. The first caller's status counts.
    pub fn exit(&self, status: ExitStatus) -> ExitStatus {
        let members = self.members();
        let mut signals = self.lock_signals();
        let status = *signals.exit.get_or_insert(status);
        signals.stop = super::thread_group::StopState::Running;
        drop(signals);
        for task in members {
            task.kick(Work::KILL);
        }
        status
    }

    /// Kills the process as `SIGKILL` from outside does.
    pub fn kill(self: &Arc<Self>) {
        self.send_signal(SigInfo::kernel(Signal::KILL));
    }
}

/// Ends a thread. Runs on its own host thread, as its last act. `status` is its own; a process that is ending has its own idea.
pub(super) fn exit_thread(task: &Arc<Task>, local: &mut TaskLocal, own: &mut Own, status: ExitStatus) {
    task.exiting.store(true, Ordering::Release);
    let group = task.thread_group().clone();
    let last = group.thread_dying();
    leave_stop(task, &group);
    hand_over_signals(task, &group);
    super::futex::robust::leave_memory(task, local);
    // Borrowed memory is its owner's affair.
    if last && local.vfork_done.is_none() {
        group.note_memory(&task.mm());
    }
    release_memory(task, local);
    drop(local.sem_undo.take());
    task.release_resources();
    own.refresh(task);
    if last {
        group.timers().on_exit(task.kernel().timers());
    }
    if last && group.is_namespace_init() {
        end_namespace(task, &group);
    }
    let kernel = task.kernel().clone();
    let mut tree = kernel.tree();
    let told = leave_process(&mut tree, task, &group, status);
    drop(tree);
    told.into_iter().for_each(|tell| tell());
}

/// The thread no longer counts for a stop that is under way.
fn leave_stop(task: &Arc<Task>, group: &Arc<ThreadGroup>) {
    if let Some(event) = group.count_stopped(task) {
        group.notify_parent(event);
    }
}

/// Process-wide signals that this thread was to take go to another.
fn hand_over_signals(task: &Arc<Task>, group: &Arc<ThreadGroup>) {
    if group.lock_signals().shared.set().is_empty() {
        return;
    }
    for other in group.members() {
        if !Arc::ptr_eq(&other, task) && !other.is_exiting() {
            other.kick(Work::SIGNAL);
        }
    }
}

/// Lets go of the address space; a parent in `vfork` goes on.
pub(super) fn release_memory(task: &Arc<Task>, local: &mut TaskLocal) {
    if let Some(done) = local.vfork_done.take() {
        done.finish();
    }
    let empty = task.kernel().empty_mm();
    local.move_to(&empty);
    task.replace_mm(empty);
}

/// Init of a pid namespace dies: so does everybody in it, before init itself becomes a zombie.
fn end_namespace(init: &Arc<Task>, group: &Arc<ThreadGroup>) {
    let Some(namespace) = group.pid().namespace().cloned() else { return };
    namespace.close();
    // Orphans that end from now on are nobody's business.
    group.handlers().set(Signal::CHLD, Action { disposition: Disposition::Ignore, ..Action::default() });
    loop {
        kill_namespace(&namespace, group);
        let kernel = init.kernel();
        {
            let mut tree = kernel.tree();
            reap_zombie_children(&mut tree, group);
        }
        if namespace.is_deserted_but_for(group) {
            return;
        }
        namespace.wait_for_departure();
    }
}

fn kill_namespace(namespace: &PidNamespace, init: &Arc<ThreadGroup>) {
    for member in namespace.thread_groups() {
        if !Arc::ptr_eq(&member, init) && !member.has_exited() {
            member.kill();
        }
    }
}

fn reap_zombie_children(tree: &mut TaskTree, parent: &Arc<ThreadGroup>) {
    for child in parent.children() {
        if child.has_exited() {
            release(tree, &child);
        }
    }
}

type Tell = Box<dyn FnOnce()>;

/// Takes the thread out of its process; what is to be told to others without the tree lock is returned.
fn leave_process(
    tree: &mut TaskTree,
    task: &Arc<Task>,
    group: &Arc<ThreadGroup>,
    status: ExitStatus,
) -> Vec<Tell> {
    let (user, system) = task.cpu_nanos();
    group.times().dead_user.fetch_add(user, Ordering::Relaxed);
    group.times().dead_system.fetch_add(system, Ordering::Relaxed);
    group.times().dead_switches.fetch_add(task.switches(), Ordering::Relaxed);
    group.cgroup().add_time(user, system);
    let last = {
        let mut relations = group.relations();
        relations.members.retain(|member| !Arc::ptr_eq(member, task));
        if task.is_leader() {
            relations.leader_status = Some(status);
        }
        relations.members.is_empty()
    };
    if !task.is_leader() {
        retire_thread(task);
    }
    let tell = if last { end_process(tree, group) } else { Vec::new() };
    // An execve that waits for the others, and pidfds.
    group.exit_queue().notify(PollEvents::READABLE);
    if let Some(exec) = group.lock_signals().exec.upgrade() {
        exec.waiter().notify();
    }
    tell
}

/// A thread that nobody waits for: its number is free again.
pub(super) fn retire_thread(task: &Arc<Task>) {
    let pid = task.pid();
    pid.set_task(std::sync::Weak::new());
    task.discharge();
    pid.tell_departure();
}

/// The last thread is gone: the process becomes a zombie.
fn end_process(tree: &mut TaskTree, group: &Arc<ThreadGroup>) -> Vec<Tell> {
    let job = group.process_group();
    let parent = group.parent();
    {
        let leader_status = group.relations().leader_status;
        let mut signals = group.lock_signals();
        signals.exit.get_or_insert(leader_status.unwrap_or(ExitStatus::Exited(0)));
        signals.parent_event = None;
    }
    group.set_exited();
    find_new_parents(tree, group);
    rouse_if_orphaned(&job);
    if group.is_session_leader() {
        end_session(&job);
    }
    let status = group.exit_status().unwrap_or(ExitStatus::Exited(0));
    match parent {
        Some(parent) => {
            if !announce(group, &parent, status) {
                release(tree, group);
            }
            parent.children_changed().notify(PollEvents::READABLE);
            Vec::new()
        }
        None => {
            let at = Timespec::now_realtime();
            release(tree, group);
            let group = group.clone();
            vec![Box::new(move || group.kernel().clone().process_ended(&group, status, at))]
        }
    }
}

/// The session of a leader that ends loses its terminal.
fn end_session(job: &Arc<super::ProcessGroup>) {
    let Some(terminal) = job.session().set_terminal(None) else { return };
    if let Some(foreground) = terminal.foreground() {
        foreground.signal(&SigInfo::kernel(Signal::HUP));
        foreground.signal(&SigInfo::kernel(Signal::CONT));
    }
    terminal.session_ended();
}

/// Children go to the nearest subreaper, else to the namespace's init.
fn find_new_parents(tree: &mut TaskTree, group: &Arc<ThreadGroup>) {
    let children = std::mem::take(&mut group.relations().children);
    if children.is_empty() {
        return;
    }
    let guardian = find_guardian(group);
    for child in children {
        let job = child.process_group();
        send_parent_death_signals(&child);
        match &guardian {
            Some(guardian) if !Arc::ptr_eq(guardian, &child) => {
                {
                    let mut relations = child.relations();
                    relations.parent = Arc::downgrade(guardian);
                    relations.exit_signal = Some(Signal::CHLD);
                }
                guardian.relations().children.push(child.clone());
                if child.has_exited() {
                    let status = child.exit_status().unwrap_or(ExitStatus::Exited(0));
                    if !announce(&child, guardian, status) {
                        release(tree, &child);
                    }
                    guardian.children_changed().notify(PollEvents::READABLE);
                }
            }
            _ => {
                child.relations().parent = std::sync::Weak::new();
                if child.has_exited() {
                    release(tree, &child);
                }
            }
        }
        rouse_if_orphaned(&job);
    }
}

fn find_guardian(group: &Arc<ThreadGroup>) -> Option<Arc<ThreadGroup>> {
    let namespace = group.pid().namespace()?;
    let mut ancestor = if group.relations().below_subreaper { group.parent() } else { None };
    while let Some(candidate) = ancestor {
        let in_namespace = candidate.pid().number_in(namespace) != 0;
        if !in_namespace || candidate.is_namespace_init() {
            break;
        }
        if candidate.relations().child_subreaper && !candidate.has_exited() {
            return Some(candidate);
        }
        ancestor = candidate.parent();
    }
    let mut namespace = Some(namespace);
    while let Some(current) = namespace {
        if let Some(init) = current.init()
            && !Arc::ptr_eq(&init, group)
            && !init.has_exited()
        {
            return Some(init);
        }
        namespace = current.parent();
    }
    None
}

fn send_parent_death_signals(child: &Arc<ThreadGroup>) {
    for task in child.members() {
        if let Some(signal) = task.attributes().parent_death_signal {
            task.send_signal(SigInfo { code: linux::SI_USER as i32, ..SigInfo::kill(signal, 0, 0) });
        }
    }
}

/// Tells the parent that a child is a zombie; `false` if the parent wants no zombies.
fn announce(child: &Arc<ThreadGroup>, parent: &Arc<ThreadGroup>, status: ExitStatus) -> bool {
    let Some(signal) = child.relations().exit_signal else { return true };
    let handlers = parent.handlers();
    let ignored = handlers.get(Signal::CHLD).disposition == Disposition::Ignore;
    let reaps = signal == Signal::CHLD && handlers.reaps_children();
    if !(signal == Signal::CHLD && ignored) {
        let _ = parent.send_signal_from(child_info(child, parent, signal, status), Origin::Outside);
    }
    !reaps
}

fn child_info(child: &ThreadGroup, parent: &ThreadGroup, signal: Signal, status: ExitStatus) -> SigInfo {
    let (code, status) = match status {
        ExitStatus::Exited(code) => (linux::CLD_EXITED, i32::from(code)),
        ExitStatus::Signaled { signal, core: false } => (linux::CLD_KILLED, signal.number()),
        ExitStatus::Signaled { signal, core: true } => (linux::CLD_DUMPED, signal.number()),
    };
    SigInfo { signal, errno: 0, code: code as i32, fields: child_fields(child, parent, status) }
}

/// The `SIGCHLD` part of a `siginfo_t`, with ids as the parent sees them and times in clock ticks.
pub(super) fn child_fields(child: &ThreadGroup, parent: &ThreadGroup, status: i32) -> SigFields {
    const TICK: u64 = 10_000_000;
    let (user, system) = child.cpu_nanos();
    let pid = parent.pid().namespace().map_or(0, |namespace| child.pid().number_in(namespace));
    let uid = child.leader().map_or(0, |leader| leader.credentials().uid);
    SigFields::Child { pid, uid, status, utime: (user / TICK) as i64, stime: (system / TICK) as i64 }
}

impl ThreadGroup {
    /// Tells the parent of a stop or a continuation: `SIGCHLD` unless it set `SA_NOCLDSTOP`, and wakes its `wait4`.
    pub(super) fn notify_parent(self: &Arc<Self>, event: ParentEvent) {
        let Some(parent) = self.parent() else { return };
        let (code, status) = match event {
            ParentEvent::Stopped(signal) => (linux::CLD_STOPPED, signal.number()),
            ParentEvent::Continued => (linux::CLD_CONTINUED, Signal::CONT.number()),
        };
        let action = parent.handlers().get(Signal::CHLD);
        if action.disposition != Disposition::Ignore && !action.has(linux::SA_NOCLDSTOP) {
            let fields = child_fields(self, &parent, status);
            parent.send_signal(SigInfo { signal: Signal::CHLD, errno: 0, code: code as i32, fields });
        }
        parent.children_changed().notify(PollEvents::READABLE);
    }
}

/// Forgets a zombie: its parent, its job and its pid do not know it any more.
pub(super) fn release(_tree: &mut TaskTree, group: &Arc<ThreadGroup>) {
    let parent = group.parent();
    if let Some(parent) = parent {
        parent.relations().children.retain(|child| !Arc::ptr_eq(child, group));
    }
    group.process_group().remove(group);
    let leader = group.relations().leader.take();
    if let Some(leader) = leader {
        retire_thread(&leader);
    }
    group.exit_queue().notify(PollEvents::READABLE | PollEvents::HUP);
}
