//! `clone`, `clone3`, `fork`, `vfork`.
//!
//! The child is built completely before it becomes visible; a failure on the way leaves nothing behind. The parent then
//! links it under the task tree lock and hands it to its host thread.

use std::sync::Arc;

use bitflags::bitflags;
use linux_raw_sys::general as linux;

use super::birth::{GroupParts, Parentage, TaskParts, link};
use super::rseq::RseqState;
use super::signal::{Signal, SignalHandlers};
use super::vfork::VforkDone;
use super::{
    Capability, Namespaces, Pid, PidNamespace, Resource, SyscallContext, Task, TaskLocal, ThreadGroup, Work,
    run,
};
use crate::errno::{Errno, SysResult};
use crate::ipc::Actor;
use crate::ipc::undo::UndoList;
use crate::mm::Mm;
use crate::vfs::{Fd, FsContext};

bitflags! {
    /// The flags of `clone3(2)`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[allow(missing_docs)] // Linux's names
    pub struct CloneFlags: u64 {
        const NEWTIME = linux::CLONE_NEWTIME as u64;
        const VM = linux::CLONE_VM as u64;
        const FS = linux::CLONE_FS as u64;
        const FILES = linux::CLONE_FILES as u64;
        const SIGHAND = linux::CLONE_SIGHAND as u64;
        const PIDFD = linux::CLONE_PIDFD as u64;
        const PTRACE = linux::CLONE_PTRACE as u64;
        const VFORK = linux::CLONE_VFORK as u64;
        const PARENT = linux::CLONE_PARENT as u64;
        const THREAD = linux::CLONE_THREAD as u64;
        const NEWNS = linux::CLONE_NEWNS as u64;
        const SYSVSEM = linux::CLONE_SYSVSEM as u64;
        const SETTLS = linux::CLONE_SETTLS as u64;
        const PARENT_SETTID = linux::CLONE_PARENT_SETTID as u64;
        const CHILD_CLEARTID = linux::CLONE_CHILD_CLEARTID as u64;
        const DETACHED = linux::CLONE_DETACHED as u64;
        const UNTRACED = linux::CLONE_UNTRACED as u64;
        const CHILD_SETTID = linux::CLONE_CHILD_SETTID as u64;
        const NEWCGROUP = linux::CLONE_NEWCGROUP as u64;
        const NEWUTS = linux::CLONE_NEWUTS as u64;
        const NEWIPC = linux::CLONE_NEWIPC as u64;
        const NEWUSER = linux::CLONE_NEWUSER as u64;
        const NEWPID = linux::CLONE_NEWPID as u64;
        const NEWNET = linux::CLONE_NEWNET as u64;
        const IO = linux::CLONE_IO as u64;
        const CLEAR_SIGHAND = linux::CLONE_CLEAR_SIGHAND;
    }
}

impl CloneFlags {
    /// Those that make a namespace.
    pub const NEW_NAMESPACES: CloneFlags = CloneFlags::NEWNS
        .union(CloneFlags::NEWUTS)
        .union(CloneFlags::NEWIPC)
        .union(CloneFlags::NEWPID)
        .union(CloneFlags::NEWNET);
}

/// What to clone.
#[derive(Clone, Copy, Debug)]
pub struct CloneArgs {
    /// What is shared.
    pub flags: CloneFlags,
    /// What the parent gets at the child's end.
    pub exit_signal: Option<Signal>,
    /// The child's stack pointer; 0 keeps the parent's.
    pub stack: u64,
    /// The child's FS base (`SETTLS`).
    pub tls: u64,
    /// Where the parent's memory gets the child's tid (`PARENT_SETTID`).
    pub parent_tid: u64,
    /// Where the child's memory gets its tid (`CHILD_SETTID`), and where it is cleared (`CHILD_CLEARTID`).
    pub child_tid: u64,
    /// Where the parent's memory gets the pidfd (`PIDFD`).
    pub pidfd: u64,
}

/// Clones the calling task; returns the child's tid in the caller's namespace.
pub fn clone(ctx: &mut SyscallContext<'_>, args: &CloneArgs) -> SysResult<i32> {
    check(ctx, args)?;
    // As in Linux: with a signal at hand the call is made again after it, so that a signal sent to the job before the fork
    // is not missed by the child.
    if ctx.task.work().intersects(Work::SIGNAL | Work::STOP | Work::KILL) {
        return Err(Errno::ERESTARTNOINTR);
    }
    let (child, local) = build(ctx, args)?;
    let done = local.vfork_done.clone();
    let kernel = ctx.kernel().clone();
    let here = ctx.task.pid_namespace().ok_or(Errno::EAGAIN)?;
    let tid = child.pid().number_in(&here);
    if args.flags.contains(CloneFlags::PARENT_SETTID) {
        // Linux ignores a bad address here.
        let _ = ctx.task.mm().copy_out(args.parent_tid, &tid);
    }
    let start = kernel.reserve_thread()?;
    let pidfd = install_pidfd(ctx, args, &child)?;
    if let Err(errno) = make_visible(ctx, args, &child) {
        if let Some(fd) = pidfd {
            let _ = ctx.task.files().close(fd);
        }
        return Err(errno);
    }
    start.go(child, local);
    if let Some(done) = done {
        done.wait(ctx.task);
    }
    Ok(tid)
}

fn make_visible(ctx: &SyscallContext<'_>, args: &CloneArgs, child: &Arc<Task>) -> SysResult {
    let mut tree = ctx.kernel().tree();
    let me = ctx.task.thread_group();
    let parent = if args.flags.contains(CloneFlags::PARENT) { me.parent() } else { Some(me.clone()) };
    let parentage = match &parent {
        _ if args.flags.contains(CloneFlags::THREAD) => Parentage::Thread,
        Some(parent) => Parentage::Child(parent),
        None => Parentage::Outside,
    };
    link(&mut tree, child, parentage)
}

/// The checks of Linux's `copy_process`, in its order.
fn check(ctx: &SyscallContext<'_>, args: &CloneArgs) -> SysResult {
    use CloneFlags as F;
    let flags = args.flags;
    let both = |pair: F| flags.contains(pair);
    let bad = both(F::NEWNS | F::FS)
        || both(F::NEWUSER | F::FS)
        || (flags.contains(F::THREAD) && !flags.contains(F::SIGHAND))
        || (flags.contains(F::SIGHAND) && !flags.contains(F::VM))
        || both(F::SIGHAND | F::CLEAR_SIGHAND)
        || (flags.contains(F::PARENT) && ctx.task.thread_group().is_namespace_init())
        || (flags.contains(F::THREAD) && flags.intersects(F::NEWUSER | F::NEWPID))
        || both(F::PIDFD | F::DETACHED);
    if bad {
        return Err(Errno::EINVAL);
    }
    let privileged = F::NEW_NAMESPACES | F::NEWCGROUP | F::NEWTIME;
    if flags.intersects(privileged) && !ctx.task.credentials().has(Capability::SYS_ADMIN) {
        return Err(Errno::EPERM);
    }
    // As on a kernel that was built without them.
    if flags.intersects(F::NEWUSER | F::NEWCGROUP | F::NEWTIME) {
        return Err(Errno::EINVAL);
    }
    if flags.contains(F::SETTLS) && args.tls >= crate::platform::GVA_END {
        return Err(Errno::EPERM);
    }
    let children = ctx.task.namespaces().pid_for_children.clone();
    let own = ctx.task.pid_namespace().ok_or(Errno::EAGAIN)?;
    if flags.contains(F::THREAD) && children.id() != own.id() {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

/// The child, complete but unknown to anybody.
fn build(ctx: &mut SyscallContext<'_>, args: &CloneArgs) -> SysResult<(Arc<Task>, TaskLocal)> {
    let flags = args.flags;
    let parent = ctx.task;
    let kernel = parent.kernel();
    let (namespaces, fs) = child_namespaces(parent, flags)?;
    let pid = Pid::allocate(&child_pid_namespace(parent, &namespaces, flags)?)?;
    let group = if flags.contains(CloneFlags::THREAD) {
        parent.thread_group().clone()
    } else {
        child_group(parent, pid.clone(), args)
    };
    let mut machine = kernel.platform().new_thread()?;
    machine.set_fpu(&ctx.local.machine.fpu()?)?;
    let mm = if flags.contains(CloneFlags::VM) { parent.mm() } else { fork_memory(parent)? };
    let files = parent.files();
    let files = if flags.contains(CloneFlags::FILES) { files } else { Arc::new(files.fork()) };
    let parts = TaskParts {
        credentials: parent.credentials(),
        namespaces: Arc::new(namespaces),
        mm: mm.clone(),
        files,
        fs,
        blocked: parent.blocked_signals(),
        comm: parent.comm(),
        attributes: parent.attributes().inherited(),
        kicker: machine.kicker(),
    };
    let child = Task::new(kernel, group, pid, parts)?;
    let tid = child.tid();
    if flags.contains(CloneFlags::CHILD_SETTID) {
        let _ = mm.copy_out(args.child_tid, &tid);
    }
    let mut registers = ctx.local.registers;
    registers.rax = 0;
    if args.stack != 0 {
        registers.rsp = args.stack;
    }
    if flags.contains(CloneFlags::SETTLS) {
        registers.fs_base = args.tls;
    }
    let fresh_stack = flags.contains(CloneFlags::VM) && !flags.contains(CloneFlags::VFORK);
    let mut local = TaskLocal::new(machine, &mm, registers);
    local.rseq = child_rseq(ctx, &mm, flags);
    if flags.contains(CloneFlags::SYSVSEM) {
        let list = || UndoList::new(Actor::of(parent));
        local.sem_undo = Some(ctx.local.sem_undo.get_or_insert_with(list).clone());
    }
    if !fresh_stack {
        local.alt_stack = ctx.local.alt_stack;
    }
    if flags.contains(CloneFlags::CHILD_CLEARTID) {
        local.clear_child_tid = args.child_tid;
    }
    if flags.contains(CloneFlags::VFORK) {
        local.vfork_done = Some(VforkDone::new(parent));
    }
    Ok((child, local))
}

/// With shared memory the child registers for itself, and both need places from now on; `vfork` leaves the memory to one at a
/// time.
fn child_rseq(ctx: &mut SyscallContext<'_>, mm: &Mm, flags: CloneFlags) -> RseqState {
    if !flags.contains(CloneFlags::VM) {
        return ctx.local.rseq.fork();
    }
    let mut child = RseqState::default();
    let places = if flags.contains(CloneFlags::VFORK) {
        mm.shared_processors()
    } else {
        Some(mm.share_processors(ctx.kernel().system_info().cpus))
    };
    if let Some(places) = places {
        ctx.local.rseq.share(places.clone());
        child.share(places);
    }
    child
}

fn fork_memory(parent: &Task) -> SysResult<Arc<Mm>> {
    parent.mm().fork()
}

fn child_group(parent: &Arc<Task>, pid: Arc<Pid>, args: &CloneArgs) -> Arc<ThreadGroup> {
    let group = parent.thread_group();
    let handlers = group.handlers();
    let handlers = if args.flags.contains(CloneFlags::SIGHAND) {
        handlers
    } else {
        let copy = SignalHandlers::fork(&handlers);
        if args.flags.contains(CloneFlags::CLEAR_SIGHAND) {
            copy.reset_handlers();
        }
        Arc::new(copy)
    };
    // A sibling is told of as the caller itself would be.
    let exit_signal = if args.flags.contains(CloneFlags::PARENT) {
        group.relations().exit_signal
    } else {
        args.exit_signal
    };
    let parts = GroupParts {
        cgroup: group.cgroup().clone(),
        handlers,
        rlimits: group.rlimits(),
        job: Some(group.process_group()),
        exit_signal,
        oom_score_adj: group.oom_score_adj(),
    };
    ThreadGroup::new(parent.kernel(), pid, parts)
}

/// Namespaces and directories of the child.
pub(crate) fn child_namespaces(parent: &Task, flags: CloneFlags) -> SysResult<(Namespaces, Arc<FsContext>)> {
    let mut namespaces = Namespaces::clone(&parent.namespaces());
    let fs = parent.fs();
    let fs = if flags.contains(CloneFlags::FS) { fs } else { fs.fork() };
    if flags.contains(CloneFlags::NEWUTS) {
        namespaces.uts = super::namespaces::UtsNamespace::new(namespaces.uts.names());
    }
    if flags.contains(CloneFlags::NEWIPC) {
        namespaces.ipc = super::namespaces::IpcNamespace::new();
    }
    if flags.contains(CloneFlags::NEWNET) {
        namespaces.net = super::namespaces::NetNamespace::new();
    }
    if flags.contains(CloneFlags::NEWNS) {
        let (mounts, moved) = namespaces.mount.copy()?;
        fs.update(|places| {
            places.root = moved(&places.root);
            places.cwd = moved(&places.cwd);
        });
        namespaces.mount = mounts;
    }
    Ok((namespaces, fs))
}

fn child_pid_namespace(
    parent: &Task,
    namespaces: &Namespaces,
    flags: CloneFlags,
) -> SysResult<Arc<PidNamespace>> {
    if flags.contains(CloneFlags::THREAD) {
        return parent.pid_namespace().ok_or(Errno::EAGAIN);
    }
    if flags.contains(CloneFlags::NEWPID) {
        return PidNamespace::new(Some(&namespaces.pid_for_children));
    }
    Ok(namespaces.pid_for_children.clone())
}

/// `CLONE_PIDFD`: installs the descriptor and writes its number to the parent's memory. Until the child is visible whoever
/// uses it sees a process that has not started.
fn install_pidfd(ctx: &SyscallContext<'_>, args: &CloneArgs, child: &Arc<Task>) -> SysResult<Option<Fd>> {
    if !args.flags.contains(CloneFlags::PIDFD) {
        return Ok(None);
    }
    let file = super::pidfd::open(ctx, child.thread_group(), crate::vfs::OpenFlags::empty());
    let limit = ctx.task.rlimit(Resource::Nofile).soft;
    let fd = ctx.task.files().install(file, true, 0, limit)?;
    let number = i32::try_from(fd.index()).map_err(|_| Errno::EMFILE)?;
    if let Err(errno) = ctx.task.mm().copy_out(args.pidfd, &number) {
        let _ = ctx.task.files().close(fd);
        return Err(errno);
    }
    Ok(Some(fd))
}

/// A host thread that waits to run a task.
pub(crate) struct Reserved(pub(crate) std::sync::mpsc::SyncSender<(Arc<Task>, TaskLocal)>);

impl Reserved {
    /// Runs the task on it.
    pub(crate) fn go(self, task: Arc<Task>, local: TaskLocal) {
        // The thread waits for exactly this, so the send cannot fail while it lives.
        let _ = self.0.send((task, local));
    }
}

/// What a reserved host thread does.
pub(crate) fn serve(receiver: &std::sync::mpsc::Receiver<(Arc<Task>, TaskLocal)>) {
    let _fuse = Fuse;
    if let Ok((task, local)) = receiver.recv() {
        run::run(&task, local);
    }
}

/// A bug that panics on a guest's thread would leave a process that never ends: the sandbox ends instead, which the shim sees.
pub(crate) struct Fuse;

impl Drop for Fuse {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}
