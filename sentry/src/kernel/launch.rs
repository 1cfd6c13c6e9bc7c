//! Starting processes from outside: a container's first, and `exec`.
//!
//! Everything that can fail happens before the process is visible: the program is found as runc finds it (so that the same
//! mistakes get the same words), loaded, its streams opened, a host thread reserved.

use std::sync::Arc;

use linux_raw_sys::general as linux;

use super::Kernel;
use super::cgroup::Cgroup;
use super::container::{ContainerError, ProcessSpec, ProcessTerminal};
use super::stdio;
use crate::errno::{Errno, SysResult};
use crate::loader::{self, Program};
use crate::mm::Randomize;
use crate::task::birth::{GroupParts, Parentage, TaskParts, link};
use crate::task::clone::Reserved;
use crate::task::rlimit::Rlimits;
use crate::task::signal::{Signal, SignalHandlers, SignalSet};
use crate::task::{Attributes, Namespaces, Pid, Task, TaskLocal, ThreadGroup};
use crate::vfs::{Caller, FileType, FsContext, WalkFlags};

/// A process that is ready to run.
pub(super) struct Launched {
    /// Its leader.
    pub task: Arc<Task>,
    /// Its leader's private half.
    pub local: TaskLocal,
    /// Where it will run.
    pub thread: Reserved,
    /// The outside's handle on its terminal.
    pub terminal: Option<Arc<dyn ProcessTerminal>>,
}

fn failed(what: &'static str) -> impl Fn(Errno) -> ContainerError {
    move |errno| ContainerError::Failed { what, errno }
}

impl Kernel {
    /// Prepares a process in `cgroup` and `namespaces`, visible but not running.
    pub(super) fn launch(
        self: &Arc<Self>,
        cgroup: &Arc<Cgroup>,
        namespaces: Arc<Namespaces>,
        spec: ProcessSpec,
    ) -> Result<Launched, ContainerError> {
        let fs = FsContext::new(namespaces.mount.root());
        enter_directory(&fs, &spec)?;
        fs.set_umask(spec.umask);
        let credentials = Arc::new(spec.credentials.clone());
        let caller = Caller::new(credentials.clone(), &fs, None);
        let path = find_program(&caller, &spec)?;
        let mut rlimits = Rlimits::default();
        for (resource, limit) in &spec.rlimits {
            rlimits.set(*resource, *limit);
        }
        let program = Program {
            caller: &caller,
            start: caller.cwd().clone(),
            path: path.clone(),
            shown: path.clone(),
            flags: WalkFlags::FOLLOW,
            argv: spec.args,
            envp: spec.env,
            rlimits: &rlimits,
            randomize: Randomize::Yes,
        };
        let loaded = loader::load(self, &program).map_err(|errno| not_runnable(&path, errno))?;
        let streams = self.open_streams(&caller, spec.stdio).map_err(failed("open standard streams"))?;
        let files = stdio::table(&streams).map_err(failed("open standard streams"))?;
        let make = failed("start process");
        let machine = self.platform().new_thread().map_err(&make)?;
        let pid = Pid::allocate(&namespaces.pid_for_children).map_err(&make)?;
        let group = GroupParts {
            cgroup: cgroup.clone(),
            handlers: Arc::new(SignalHandlers::default()),
            rlimits: Arc::new(rlimits),
            job: None,
            exit_signal: Some(Signal::CHLD),
            oom_score_adj: spec.oom_score_adj,
        };
        let group = ThreadGroup::new(self, pid.clone(), group);
        let parts = TaskParts {
            credentials: loaded.credentials,
            namespaces,
            mm: loaded.mm.clone(),
            files,
            fs,
            blocked: SignalSet::EMPTY,
            comm: loaded.comm,
            attributes: Attributes { dumpable: loaded.dumpable, ..Attributes::default() },
            kicker: machine.kicker(),
        };
        let task = Task::new(self, group, pid, parts).map_err(&make)?;
        let local = TaskLocal::new(machine, &loaded.mm, loaded.registers);
        let thread = self.reserve_thread().map_err(&make)?;
        link(&mut self.tree(), &task, Parentage::Outside).map_err(&make)?;
        streams.control(&task);
        Ok(Launched { task, local, thread, terminal: streams.terminal })
    }
}

/// Makes the working directory if it is missing, as runc does, and enters it with the process's own rights.
fn enter_directory(fs: &Arc<FsContext>, spec: &ProcessSpec) -> Result<(), ContainerError> {
    let root = fs.places().root.clone();
    let kernel = Caller::kernel(root.clone());
    let failed =
        |errno| ContainerError::Chdir { path: String::from_utf8_lossy(&spec.cwd).into_owned(), errno };
    match kernel.lookup_path(&spec.cwd) {
        Err(Errno::ENOENT) => make_directories(&kernel, &spec.cwd).map_err(failed)?,
        Err(errno) => return Err(failed(errno)),
        Ok(_) => {}
    }
    let place = kernel.lookup(&root, &spec.cwd, WalkFlags::DIRECTORY).map_err(failed)?;
    fs.set_cwd(place);
    Ok(())
}

fn make_directories(caller: &Caller<'_>, path: &[u8]) -> SysResult {
    let mut end = 0;
    while end < path.len() {
        let rest = path.get(end + 1..).unwrap_or_default();
        end = rest.iter().position(|byte| *byte == b'/').map_or(path.len(), |at| end + 1 + at);
        let prefix = path.get(..end).unwrap_or(path);
        match caller.mkdir(caller.root(), prefix, 0o755) {
            Ok(_) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Finds the program like Go's `exec.LookPath`, which is what runc uses and whose words its users know.
fn find_program(caller: &Caller<'_>, spec: &ProcessSpec) -> Result<Vec<u8>, ContainerError> {
    let name = spec.args.first().cloned().unwrap_or_default();
    let text = String::from_utf8_lossy(&name).into_owned();
    if name.contains(&b'/') {
        return match check_executable(caller, &name) {
            Ok(()) => Ok(name),
            Err(errno @ (Errno::ENOENT | Errno::ENOTDIR)) => {
                let reason = format!("stat {text}: {}", lowercase(errno));
                Err(ContainerError::ProgramNotFound { program: text, reason })
            }
            Err(errno) => Err(ContainerError::ProgramNotRunnable { program: text, errno }),
        };
    }
    let path = spec.env.iter().rev().find_map(|entry| entry.strip_prefix(b"PATH="));
    for directory in path.unwrap_or_default().split(|byte| *byte == b':') {
        let directory = if directory.is_empty() { b".".as_slice() } else { directory };
        let candidate = [directory, b"/", &name].concat();
        if check_executable(caller, &candidate).is_ok() {
            return Ok(candidate);
        }
    }
    let reason = "executable file not found in $PATH".to_owned();
    Err(ContainerError::ProgramNotFound { program: text, reason })
}

/// Go's `findExecutable`: a file, not a directory, with an execute bit for the caller.
fn check_executable(caller: &Caller<'_>, path: &[u8]) -> SysResult {
    let place = caller.lookup_path(path)?;
    if place.inode().file_type() == FileType::Directory {
        return Err(Errno::EISDIR);
    }
    if place.inode().attr()?.mode & (linux::S_IXUSR | linux::S_IXGRP | linux::S_IXOTH) == 0 {
        return Err(Errno::EACCES);
    }
    Ok(())
}

fn not_runnable(path: &[u8], errno: Errno) -> ContainerError {
    let program = String::from_utf8_lossy(path).into_owned();
    match errno {
        // The interpreter of a script or of an ELF file is missing.
        Errno::ENOENT => ContainerError::ProgramNotFound { program, reason: lowercase(errno) },
        errno => ContainerError::ProgramNotRunnable { program, errno },
    }
}

/// The text as Go prints it.
fn lowercase(errno: Errno) -> String {
    match errno {
        Errno::ENOENT => "no such file or directory".into(),
        Errno::EACCES => "permission denied".into(),
        Errno::ENOEXEC => "exec format error".into(),
        Errno::ENOTDIR => "not a directory".into(),
        Errno::EISDIR => "is a directory".into(),
        other => other.to_string(),
    }
}
