//! The containers of a sandbox and their life cycle.
//!
//! ```text
//! create ─▶ Created ──start──▶ Running ◀──resume── Paused
//!              │                 │  └──────pause────▶ │
//!              └───killed──▶ Stopped ◀────exit────────┘ (death ends a pause)
//!                               └──delete──▶ gone
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::Kernel;
use super::cgroup::Cgroup;
use super::container::{
    ContainerError, ContainerSpec, ContainerState, ContainerStats, NamespaceSource, ProcessExit, ProcessInfo,
    ProcessSpec, ProcessTerminal,
};
use super::launch::Launched;
use crate::errno::Errno;
use crate::task::clone::Reserved;
use crate::task::namespaces::{IpcNamespace, NetNamespace, UserNamespace, UtsNames, UtsNamespace};
use crate::task::signal::{ExitStatus, SigInfo, Signal};
use crate::task::{Namespaces, PidNamespace, Task, TaskLocal, ThreadGroup, Work};
use crate::time::Timespec;
use crate::vfs::plan;

/// How long `pause` and `shutdown` wait at most.
const PATIENCE: Duration = Duration::from_secs(10);

/// Every container, by ID.
#[derive(Default)]
pub struct Registry {
    containers: Mutex<BTreeMap<String, Container>>,
    /// Notified when a process from outside has ended.
    ended: Condvar,
}

struct Container {
    state: ContainerState,
    cgroup: Arc<Cgroup>,
    namespaces: Arc<Namespaces>,
    /// By exec ID; the first process's is empty.
    processes: BTreeMap<String, Process>,
}

struct Process {
    group: Arc<ThreadGroup>,
    pid: i32,
    exit: Option<ProcessExit>,
    waiting: Option<Waiting>,
    terminal: Option<Arc<dyn ProcessTerminal>>,
}

/// A process that has not been started.
struct Waiting {
    task: Arc<Task>,
    local: TaskLocal,
    thread: Reserved,
}

/// A container's namespaces but for its mounts.
struct SharedNamespaces {
    pid: Arc<PidNamespace>,
    uts: Arc<UtsNamespace>,
    ipc: Arc<IpcNamespace>,
    net: Arc<NetNamespace>,
    user: Arc<UserNamespace>,
}

type ContainerResult<T = ()> = Result<T, ContainerError>;
type Containers<'a> = MutexGuard<'a, BTreeMap<String, Container>>;

impl Process {
    fn new(launched: Launched) -> Process {
        let Launched { task, local, thread, terminal } = launched;
        let (group, pid) = (task.thread_group().clone(), task.pid().outermost());
        Process { group, pid, exit: None, waiting: Some(Waiting { task, local, thread }), terminal }
    }

    fn start(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            waiting.thread.go(waiting.task, waiting.local);
        }
    }
}

fn find<'a>(containers: &'a mut Containers<'_>, id: &str) -> ContainerResult<&'a mut Container> {
    containers.get_mut(id).ok_or_else(|| ContainerError::NotFound(id.into()))
}

fn find_process<'a>(container: &'a mut Container, id: &str, exec: &str) -> ContainerResult<&'a mut Process> {
    let missing = || ContainerError::NoProcess { container: id.into(), exec: exec.into() };
    container.processes.get_mut(exec).ok_or_else(missing)
}

fn expect_state(
    id: &str,
    container: &Container,
    wanted: ContainerState,
    word: &'static str,
) -> ContainerResult {
    if container.state == wanted {
        return Ok(());
    }
    Err(ContainerError::State { id: id.into(), state: container.state, wanted: word })
}

impl Kernel {
    fn containers(&self) -> Containers<'_> {
        self.registry.containers.lock()
    }

    /// Creates a container and loads its first process, which waits for [`Kernel::start`]. Returns its outermost pid.
    pub fn create_container(self: &Arc<Self>, spec: ContainerSpec) -> ContainerResult<i32> {
        let mut containers = self.containers();
        if containers.contains_key(&spec.id) {
            return Err(ContainerError::Exists(spec.id));
        }
        let shared = self.container_namespaces(&mut containers, &spec)?;
        // Mounting and loading ask the gofer, which may take a while: others must be able to work meanwhile.
        drop(containers);
        let mount = plan::build(spec.mounts, self.vfs(), &shared.pid, &shared.ipc)?;
        let SharedNamespaces { pid, uts, ipc, net, user } = shared;
        let namespaces = Arc::new(Namespaces { uts, ipc, mount, net, user, pid_for_children: pid });
        let cgroup = Cgroup::new(spec.pids_max);
        let launched = self.launch(&cgroup, namespaces.clone(), spec.process)?;
        let process = Process::new(launched);
        let pid = process.pid;
        let container = Container {
            state: ContainerState::Created,
            cgroup,
            namespaces,
            processes: BTreeMap::from([(String::new(), process)]),
        };
        let mut containers = self.containers();
        if containers.contains_key(&spec.id) {
            drop(containers);
            discard(container);
            return Err(ContainerError::Exists(spec.id));
        }
        containers.insert(spec.id, container);
        Ok(pid)
    }

    fn container_namespaces(
        &self,
        containers: &mut Containers<'_>,
        spec: &ContainerSpec,
    ) -> ContainerResult<SharedNamespaces> {
        let mut of = |source: &NamespaceSource| match source {
            NamespaceSource::Container(id) => {
                find(containers, id).map(|other| Some(other.namespaces.clone()))
            }
            _ => Ok(None),
        };
        let shared = self.shared_namespaces();
        let plan = &spec.namespaces;
        let is_new = |source: &NamespaceSource| *source == NamespaceSource::New;
        let failed = |errno| ContainerError::Failed { what: "create pid namespace", errno };
        let pid = match of(&plan.pid)? {
            Some(other) => other.pid_for_children.clone(),
            None if is_new(&plan.pid) => PidNamespace::new(Some(self.pid_namespace())).map_err(failed)?,
            None => self.pid_namespace().clone(),
        };
        let uts = match of(&plan.uts)? {
            Some(other) => other.uts.clone(),
            None if is_new(&plan.uts) => UtsNamespace::new(host_names(shared.uts.names(), spec)),
            None => shared.uts.clone(),
        };
        let ipc = match of(&plan.ipc)? {
            Some(other) => other.ipc.clone(),
            None if is_new(&plan.ipc) => IpcNamespace::new(),
            None => shared.ipc.clone(),
        };
        let net = match of(&plan.net)? {
            Some(other) => other.net.clone(),
            None if is_new(&plan.net) => NetNamespace::new(),
            None => shared.net.clone(),
        };
        let user = shared.user.clone();
        Ok(SharedNamespaces { pid, uts, ipc, net, user })
    }

    /// Lets a created container run. Returns its first process's outermost pid.
    pub fn start(&self, id: &str) -> ContainerResult<i32> {
        let mut containers = self.containers();
        let container = find(&mut containers, id)?;
        expect_state(id, container, ContainerState::Created, "created")?;
        container.state = ContainerState::Running;
        let process = find_process(container, id, "")?;
        process.start();
        Ok(process.pid)
    }

    /// Starts another process in a running container. `exec` is its ID, unique in the container. Returns its outermost pid.
    pub fn exec(self: &Arc<Self>, id: &str, exec: &str, spec: ProcessSpec) -> ContainerResult<i32> {
        let (cgroup, namespaces) = {
            let mut containers = self.containers();
            let container = find(&mut containers, id)?;
            expect_state(id, container, ContainerState::Running, "running")?;
            if container.processes.contains_key(exec) {
                return Err(ContainerError::Exists(exec.into()));
            }
            (container.cgroup.clone(), container.namespaces.clone())
        };
        let mut process = Process::new(self.launch(&cgroup, namespaces, spec)?);
        let mut containers = self.containers();
        let taken = containers.get(id).is_none_or(|container| container.processes.contains_key(exec));
        if taken {
            drop(containers);
            process.group.kill();
            process.start();
            return Err(ContainerError::Exists(exec.into()));
        }
        let container = find(&mut containers, id)?;
        let pid = process.pid;
        // Known before it runs, so that its end finds it here.
        container.processes.insert(exec.into(), process);
        find_process(container, id, exec)?.start();
        Ok(pid)
    }

    /// Sends a signal (0 only checks) to a process from outside; `exec` is empty for the container's first.
    /// [`ContainerError::Failed`] with `ESRCH` when it has ended.
    pub fn signal(&self, id: &str, exec: &str, signal: i32) -> ContainerResult {
        let failed = |errno| ContainerError::Failed { what: "signal process", errno };
        let signal = Signal::or_none(signal).map_err(failed)?;
        let group = {
            let mut containers = self.containers();
            let container = find(&mut containers, id)?;
            let process = find_process(container, id, exec)?;
            if process.exit.is_some() {
                return Err(failed(Errno::ESRCH));
            }
            process.group.clone()
        };
        if let Some(signal) = signal {
            group.send_signal(SigInfo::kill(signal, 0, 0));
            self.let_the_dead_go(id, exec, signal);
        }
        Ok(())
    }

    /// A process that has not been started and is killed must run in order to die.
    fn let_the_dead_go(&self, id: &str, exec: &str, signal: Signal) {
        if signal != Signal::KILL {
            return;
        }
        let mut containers = self.containers();
        if let Some(process) = containers.get_mut(id).and_then(|container| container.processes.get_mut(exec))
        {
            process.start();
        }
    }

    /// Sends a signal to every process of the container.
    pub fn signal_all(&self, id: &str, signal: i32) -> ContainerResult {
        let failed = |errno| ContainerError::Failed { what: "signal container", errno };
        let signal = Signal::or_none(signal).map_err(failed)?;
        let cgroup = find(&mut self.containers(), id)?.cgroup.clone();
        let Some(signal) = signal else { return Ok(()) };
        for group in self.groups_of(&cgroup) {
            group.send_signal(SigInfo::kill(signal, 0, 0));
        }
        self.let_the_dead_go(id, "", signal);
        Ok(())
    }

    /// Every process of a container that has not ended, by pid.
    fn groups_of(&self, cgroup: &Arc<Cgroup>) -> Vec<Arc<ThreadGroup>> {
        let groups = self.pid_namespace().thread_groups().into_iter();
        groups.filter(|group| Arc::ptr_eq(group.cgroup(), cgroup) && !group.has_exited()).collect()
    }

    /// How a process from outside ended, if it has.
    pub fn exit_of(&self, id: &str, exec: &str) -> ContainerResult<Option<ProcessExit>> {
        let mut containers = self.containers();
        let container = find(&mut containers, id)?;
        Ok(find_process(container, id, exec)?.exit.clone())
    }

    /// Waits until a process from outside has ended.
    pub fn wait(&self, id: &str, exec: &str) -> ContainerResult<ProcessExit> {
        let mut containers = self.containers();
        loop {
            let container = find(&mut containers, id)?;
            if let Some(exit) = &find_process(container, id, exec)?.exit {
                return Ok(exit.clone());
            }
            self.registry.ended.wait(&mut containers);
        }
    }

    /// Stops every task of the container without it noticing; returns when all stand still.
    pub fn pause(&self, id: &str) -> ContainerResult {
        let cgroup = {
            let mut containers = self.containers();
            let container = find(&mut containers, id)?;
            expect_state(id, container, ContainerState::Running, "running")?;
            container.state = ContainerState::Paused;
            container.cgroup.clone()
        };
        cgroup.set_frozen(true);
        let tasks = || {
            let pids = self.pid_namespace().pids().into_iter();
            let tasks = pids.filter_map(|pid| pid.task());
            let ours = tasks.filter(|task| Arc::ptr_eq(task.thread_group().cgroup(), &cgroup));
            ours.filter(|task| !task.is_exiting())
        };
        for task in tasks() {
            task.kick(Work::FREEZE);
        }
        if cgroup.wait_standing(Instant::now() + PATIENCE, || tasks().count() as u64) {
            return Ok(());
        }
        let _ = self.resume(id);
        Err(ContainerError::Failed { what: "pause container", errno: Errno::ETIMEDOUT })
    }

    /// Undoes [`Kernel::pause`].
    pub fn resume(&self, id: &str) -> ContainerResult {
        let mut containers = self.containers();
        let container = find(&mut containers, id)?;
        expect_state(id, container, ContainerState::Paused, "paused")?;
        container.state = ContainerState::Running;
        container.cgroup.set_frozen(false);
        let cgroup = container.cgroup.clone();
        drop(containers);
        for pid in self.pid_namespace().pids() {
            if let Some(task) = pid.task().filter(|task| Arc::ptr_eq(task.thread_group().cgroup(), &cgroup)) {
                task.waiter().notify();
            }
        }
        Ok(())
    }

    /// Where the container is in its life.
    pub fn state(&self, id: &str) -> ContainerResult<ContainerState> {
        Ok(find(&mut self.containers(), id)?.state)
    }

    /// The namespaces of the container's first process, as it was created.
    pub fn namespaces_of(&self, id: &str) -> ContainerResult<Arc<Namespaces>> {
        Ok(find(&mut self.containers(), id)?.namespaces.clone())
    }

    /// The container's processes.
    pub fn processes(&self, id: &str) -> ContainerResult<Vec<ProcessInfo>> {
        let (cgroup, namespace, execs) = {
            let mut containers = self.containers();
            let container = find(&mut containers, id)?;
            let execs: Vec<(String, Arc<ThreadGroup>)> = container
                .processes
                .iter()
                .map(|(exec, process)| (exec.clone(), process.group.clone()))
                .collect();
            (container.cgroup.clone(), container.namespaces.pid_for_children.clone(), execs)
        };
        let groups = self.groups_of(&cgroup);
        Ok(groups.iter().filter_map(|group| describe(group, &namespace, &execs)).collect())
    }

    /// What the container uses.
    pub fn stats(&self, id: &str) -> ContainerResult<ContainerStats> {
        let cgroup = find(&mut self.containers(), id)?.cgroup.clone();
        let (mut user_nanos, mut system_nanos) = cgroup.dead_nanos();
        for task in self.groups_of(&cgroup).iter().flat_map(|group| group.members()) {
            let (user, system) = task.cpu_nanos();
            user_nanos = user_nanos.wrapping_add(user);
            system_nanos = system_nanos.wrapping_add(system);
        }
        let memory = self.memory_used();
        Ok(ContainerStats {
            user_nanos,
            system_nanos,
            pids: cgroup.pids(),
            pids_max: cgroup.pids_max(),
            memory,
        })
    }

    fn terminal_of(&self, id: &str, exec: &str) -> ContainerResult<Option<Arc<dyn ProcessTerminal>>> {
        let mut containers = self.containers();
        let container = find(&mut containers, id)?;
        Ok(find_process(container, id, exec)?.terminal.clone())
    }

    /// Changes the size of a process's terminal; nothing happens if it has none.
    pub fn resize_pty(&self, id: &str, exec: &str, rows: u16, columns: u16) -> ContainerResult {
        if let Some(terminal) = self.terminal_of(id, exec)? {
            terminal.resize(rows, columns);
        }
        Ok(())
    }

    /// Tells a terminal's input that no more is coming.
    pub fn close_stdin(&self, id: &str, exec: &str) -> ContainerResult {
        if let Some(terminal) = self.terminal_of(id, exec)? {
            terminal.close_input();
        }
        Ok(())
    }

    /// Changes the limit of tasks; 0 lifts it.
    pub fn set_pids_max(&self, id: &str, max: u64) -> ContainerResult {
        find(&mut self.containers(), id)?.cgroup.set_pids_max(max);
        Ok(())
    }

    /// Forgets a process that has ended; for the container's first (`exec` empty) frees everything the container held.
    pub fn delete(&self, id: &str, exec: &str) -> ContainerResult {
        let mut containers = self.containers();
        let container = find(&mut containers, id)?;
        let state = container.state;
        let process = find_process(container, id, exec)?;
        if process.exit.is_none() {
            return Err(ContainerError::State { id: id.into(), state, wanted: "stopped" });
        }
        let gone = container.processes.remove(exec);
        let container = if exec.is_empty() { containers.remove(id) } else { None };
        // File systems are let go without the lock.
        drop(containers);
        drop((gone, container));
        Ok(())
    }

    /// Kills everything and waits until it is gone.
    pub fn shutdown(&self) {
        let deadline = Instant::now() + PATIENCE;
        let ids: Vec<String> = self.containers().keys().cloned().collect();
        for id in &ids {
            let _ = self.signal_all(id, Signal::KILL.number());
        }
        let mut containers = self.containers();
        let alive = |containers: &BTreeMap<String, Container>| {
            let mut processes = containers.values().flat_map(|container| container.processes.values());
            processes.any(|process| process.exit.is_none())
        };
        while alive(&containers) {
            if self.registry.ended.wait_until(&mut containers, deadline).timed_out() {
                tracing::warn!("processes survive the shutdown");
                return;
            }
        }
    }

    /// A process without a parent has ended.
    pub(crate) fn process_ended(&self, group: &Arc<ThreadGroup>, status: ExitStatus, at: Timespec) {
        let (exit, terminal, stragglers) = {
            let mut containers = self.containers();
            let mut found = None;
            for (id, container) in containers.iter_mut() {
                let entry =
                    container.processes.iter_mut().find(|(_, process)| Arc::ptr_eq(&process.group, group));
                let Some((exec, process)) = entry else { continue };
                let exit =
                    ProcessExit { container: id.clone(), exec: exec.clone(), pid: process.pid, status, at };
                process.exit = Some(exit.clone());
                let terminal = process.terminal.take();
                let first = exec.is_empty();
                if first {
                    container.state = ContainerState::Stopped;
                    container.cgroup.set_frozen(false);
                }
                found = Some((exit, terminal, first.then(|| container.cgroup.clone())));
                break;
            }
            let Some(found) = found else { return };
            found
        };
        // In a shared pid namespace the others outlive the first process; a container does not.
        for straggler in stragglers.iter().flat_map(|cgroup| self.groups_of(cgroup)) {
            straggler.kill();
        }
        if let Some(terminal) = terminal {
            terminal.process_ended();
        }
        self.listener().process_exited(exit);
        let _containers = self.containers();
        self.registry.ended.notify_all();
    }
}

/// A container that lost a race for its ID: its process never runs a guest instruction.
fn discard(mut container: Container) {
    for process in container.processes.values_mut() {
        process.group.kill();
        process.start();
    }
}

fn host_names(mut names: UtsNames, spec: &ContainerSpec) -> UtsNames {
    if !spec.hostname.is_empty() {
        names.host = spec.hostname.clone().into_bytes();
    }
    if !spec.domainname.is_empty() {
        names.domain = spec.domainname.clone().into_bytes();
    }
    names
}

fn describe(
    group: &Arc<ThreadGroup>,
    namespace: &Arc<PidNamespace>,
    execs: &[(String, Arc<ThreadGroup>)],
) -> Option<ProcessInfo> {
    let leader = group.leader()?;
    let exec = execs.iter().find(|(_, other)| Arc::ptr_eq(other, group)).map(|(exec, _)| exec.clone());
    let (user, system) = group.cpu_nanos();
    let terminal = group.process_group().session().terminal().map(|terminal| terminal.name());
    Some(ProcessInfo {
        pid: group.pid().number_in(namespace),
        ppid: group.parent().map_or(0, |parent| parent.pid().number_in(namespace)),
        uid: leader.credentials().euid,
        comm: leader.comm(),
        exec: exec.unwrap_or_default(),
        cpu_nanos: user.wrapping_add(system),
        started: group.started(),
        threads: u32::try_from(group.thread_count()).unwrap_or(u32::MAX),
        command: command_line(&leader),
        terminal: terminal.unwrap_or_default(),
    })
}

/// `argv` as its memory has it now, with spaces between; the name in brackets where that cannot be read.
fn command_line(task: &Task) -> Vec<u8> {
    let mm = task.mm();
    let image = mm.image();
    let len = usize::try_from(image.arg_end.saturating_sub(image.arg_start)).unwrap_or(0).min(4096);
    let mut text = vec![0; len];
    let read = mm.read_some(image.arg_start, &mut text).unwrap_or(0);
    text.truncate(read);
    while text.last() == Some(&0) {
        text.pop();
    }
    if text.is_empty() {
        return [b"[".as_slice(), &task.comm(), b"]"].concat();
    }
    for byte in &mut text {
        if *byte == 0 {
            *byte = b' ';
        }
    }
    text
}
