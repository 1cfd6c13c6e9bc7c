//! Process ids and the namespaces they are numbered in.
//!
//! A [`Pid`] is Linux's `struct pid`: one number per pid namespace from the outermost that sees it down to its own. Tasks,
//! process groups and sessions hold it; when the last of them drops it, its numbers become free. Numbers are given out in
//! ascending order and wrap at `pid_max`.
//!
//! Locks: a namespace's table and a pid's links are leaves; the two are never held together.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Condvar, Mutex};

use super::Task;
use super::process_group::{ProcessGroup, Session};
use super::thread_group::ThreadGroup;
use crate::errno::{Errno, SysResult};

/// Linux's default `kernel.pid_max` on machines with many CPUs, and its upper bound.
pub const PID_MAX: i32 = 1 << 22;
/// After a wrap numbers start here (`RESERVED_PIDS`).
const RESERVED: i32 = 300;
/// Deepest nesting (`MAX_PID_NS_LEVEL`).
const MAX_LEVEL: usize = 32;

static NEXT_NAMESPACE_ID: AtomicU64 = AtomicU64::new(0xf000_0001);

/// A number for `/proc/*/ns/*`, unique among all namespaces of the sandbox.
pub fn next_namespace_id() -> u64 {
    NEXT_NAMESPACE_ID.fetch_add(1, Ordering::Relaxed)
}

/// A pid namespace.
pub struct PidNamespace {
    id: u64,
    /// Outermost first, without this one.
    ancestors: Vec<Arc<PidNamespace>>,
    /// One above the highest number (`kernel.pid_max`).
    max: AtomicI32,
    table: Mutex<PidTable>,
    /// Notified, with the table's lock, when a task in it has been reaped.
    departed: Condvar,
}

struct PidTable {
    last: i32,
    pids: BTreeMap<i32, Weak<Pid>>,
    init: Weak<ThreadGroup>,
    /// Init has died: nobody can be born here any more.
    closed: bool,
}

impl PidNamespace {
    /// A namespace below `parent`; `ENOSPC` when nested too deep.
    pub fn new(parent: Option<&Arc<PidNamespace>>) -> SysResult<Arc<PidNamespace>> {
        let mut ancestors = parent.map(|parent| parent.ancestors.clone()).unwrap_or_default();
        ancestors.extend(parent.cloned());
        if ancestors.len() > MAX_LEVEL {
            return Err(Errno::ENOSPC);
        }
        let table = PidTable { last: 0, pids: BTreeMap::new(), init: Weak::new(), closed: false };
        Ok(Arc::new(PidNamespace {
            id: next_namespace_id(),
            ancestors,
            max: AtomicI32::new(PID_MAX),
            table: Mutex::new(table),
            departed: Condvar::new(),
        }))
    }

    /// Its number in `/proc/*/ns/pid`.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The namespace around it.
    pub fn parent(&self) -> Option<&Arc<PidNamespace>> {
        self.ancestors.last()
    }

    /// Whether it is `other` or inside of `other`.
    pub fn is_within(&self, other: &PidNamespace) -> bool {
        self.id == other.id || self.ancestors.iter().any(|ancestor| ancestor.id == other.id)
    }

    /// One above the highest pid.
    pub fn pid_max(&self) -> i32 {
        self.max.load(Ordering::Relaxed)
    }

    /// The last pid given out (`/proc/loadavg`).
    pub fn last_pid(&self) -> i32 {
        self.table.lock().last
    }

    /// Its init process, which adopts orphans; `None` before the first process and after init's death.
    pub fn init(&self) -> Option<Arc<ThreadGroup>> {
        self.table.lock().init.upgrade()
    }

    pub(super) fn set_init(&self, init: &Arc<ThreadGroup>) {
        self.table.lock().init = Arc::downgrade(init);
    }

    /// No more births: init has died.
    pub(super) fn close(&self) {
        self.table.lock().closed = true;
    }

    /// The pid with this number.
    pub fn find(&self, number: i32) -> Option<Arc<Pid>> {
        self.table.lock().pids.get(&number).and_then(Weak::upgrade)
    }

    /// The thread with this number.
    pub fn task(&self, number: i32) -> Option<Arc<Task>> {
        self.find(number)?.task()
    }

    /// The thread group whose leader has this number.
    pub fn thread_group(&self, number: i32) -> Option<Arc<ThreadGroup>> {
        let pid = self.find(number)?;
        let group = pid.task()?.thread_group().clone();
        (group.pid().numbers_eq(&pid)).then_some(group)
    }

    /// The process group with this number.
    pub fn process_group(&self, number: i32) -> Option<Arc<ProcessGroup>> {
        self.find(number)?.process_group()
    }

    /// Every pid in it, ascending: for `/proc` and for signals to everybody.
    pub fn pids(&self) -> Vec<Arc<Pid>> {
        self.table.lock().pids.values().filter_map(Weak::upgrade).collect()
    }

    /// Every thread group in it, by ascending pid, zombies included.
    pub fn thread_groups(&self) -> Vec<Arc<ThreadGroup>> {
        let groups = self.pids().into_iter().filter_map(|pid| {
            let task = pid.task()?;
            task.is_leader().then(|| task.thread_group().clone())
        });
        groups.collect()
    }

    /// Whether only threads of `init` are left in it.
    pub(super) fn is_deserted_but_for(&self, init: &Arc<ThreadGroup>) -> bool {
        self.pids().iter().filter_map(|pid| pid.task()).all(|task| Arc::ptr_eq(task.thread_group(), init))
    }

    /// Sleeps until a task in it has been reaped, or a little while.
    pub(super) fn wait_for_departure(&self) {
        self.departed.wait_for(&mut self.table.lock(), std::time::Duration::from_millis(20));
    }

    fn allocate(&self) -> SysResult<i32> {
        let max = self.pid_max();
        let mut table = self.table.lock();
        if table.closed {
            return Err(Errno::ENOMEM);
        }
        let first = if table.last.saturating_add(1) >= max { RESERVED.min(max - 1) } else { table.last + 1 };
        let free_from = |table: &PidTable, from: i32| {
            let mut candidate = from;
            for (&used, _) in table.pids.range(from..) {
                if used != candidate {
                    break;
                }
                candidate = candidate.saturating_add(1);
            }
            (candidate < max).then_some(candidate)
        };
        let number = free_from(&table, first)
            .or_else(|| free_from(&table, RESERVED))
            .or_else(|| free_from(&table, 2))
            .ok_or(Errno::EAGAIN)?;
        table.last = number;
        table.pids.insert(number, Weak::new());
        Ok(number)
    }

    fn publish(&self, number: i32, pid: &Arc<Pid>) {
        if let Some(slot) = self.table.lock().pids.get_mut(&number) {
            *slot = Arc::downgrade(pid);
        }
    }

    fn free(&self, number: i32) {
        self.table.lock().pids.remove(&number);
    }
}

/// A process id: its number in every namespace that sees it.
pub struct Pid {
    /// Outermost first.
    numbers: Vec<(Arc<PidNamespace>, i32)>,
    links: Mutex<Links>,
}

#[derive(Default)]
struct Links {
    task: Weak<Task>,
    process_group: Weak<ProcessGroup>,
    session: Weak<Session>,
}

impl Pid {
    /// A fresh pid in `namespace` and all around it. `EAGAIN` without a free number, `ENOMEM` when init has died.
    pub fn allocate(namespace: &Arc<PidNamespace>) -> SysResult<Arc<Pid>> {
        let mut pid = Pid { numbers: Vec::new(), links: Mutex::default() };
        for space in namespace.ancestors.iter().chain([namespace]) {
            // On failure the drop of `pid` frees what it got so far.
            let number = space.allocate()?;
            pid.numbers.push((space.clone(), number));
        }
        let pid = Arc::new(pid);
        for (space, number) in &pid.numbers {
            space.publish(*number, &pid);
        }
        Ok(pid)
    }

    /// Its number in `namespace`; 0 if it is not visible there.
    pub fn number_in(&self, namespace: &PidNamespace) -> i32 {
        let seen = self.numbers.iter().find(|(space, _)| space.id == namespace.id);
        seen.map_or(0, |(_, number)| *number)
    }

    /// Its number in its own namespace: what the process sees of itself.
    pub fn own(&self) -> i32 {
        self.numbers.last().map_or(0, |(_, number)| *number)
    }

    /// Its number in the outermost namespace.
    pub fn outermost(&self) -> i32 {
        self.numbers.first().map_or(0, |(_, number)| *number)
    }

    /// Its own namespace.
    pub fn namespace(&self) -> Option<&Arc<PidNamespace>> {
        self.numbers.last().map(|(space, _)| space)
    }

    /// Whether it is the same pid.
    pub fn numbers_eq(&self, other: &Pid) -> bool {
        std::ptr::eq(self, other)
    }

    /// The thread with this pid.
    pub fn task(&self) -> Option<Arc<Task>> {
        self.links.lock().task.upgrade()
    }

    /// The process group with this id.
    pub fn process_group(&self) -> Option<Arc<ProcessGroup>> {
        self.links.lock().process_group.upgrade()
    }

    /// The session with this id.
    pub fn session(&self) -> Option<Arc<Session>> {
        self.links.lock().session.upgrade()
    }

    /// Tells the namespaces that see it that its task has been reaped.
    pub(super) fn tell_departure(&self) {
        for (space, _) in &self.numbers {
            let _table = space.table.lock();
            space.departed.notify_all();
        }
    }

    pub(super) fn set_task(&self, task: Weak<Task>) {
        self.links.lock().task = task;
    }

    pub(super) fn set_process_group(&self, group: &Arc<ProcessGroup>) {
        self.links.lock().process_group = Arc::downgrade(group);
    }

    pub(super) fn set_session(&self, session: &Arc<Session>) {
        self.links.lock().session = Arc::downgrade(session);
    }
}

impl Drop for Pid {
    fn drop(&mut self) {
        for (space, number) in &self.numbers {
            space.free(*number);
        }
    }
}
