//! Standard streams of processes from outside.

use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::Kernel;
use super::container::{ProcessTerminal, StdioSpec};
use crate::errno::{Errno, SysResult};
use crate::fs::anonymous::{AnonymousInode, Pseudo, next_ino};
use crate::fs::devices::{Memory, MemoryDevice};
use crate::fs::hostfile::poller::HostPoller;
use crate::fs::hostfile::{self, Sharing};
use crate::fs::tty::Tty;
use crate::fs::tty::devpts::{self, Instance, Options};
use crate::fs::tty::host::HostTerminal;
use crate::fs::tty::termios::WindowSize;
use crate::task::Task;
use crate::vfs::{Caller, FdTable, File, FileSystem, OpenFlags};

/// How long the end of a process waits for the outside to take what it wrote to its terminal.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// What the standard streams of all containers share: the thread that waits for host descriptors.
#[derive(Default)]
pub struct HostStdio {
    poller: OnceLock<Arc<HostPoller>>,
}

/// Standard streams that are ready: descriptors 0, 1 and 2, and the terminal if there is one.
pub struct Streams {
    /// In the order of their numbers.
    pub files: [Arc<File>; 3],
    /// The outside's handle on the terminal.
    pub terminal: Option<Arc<dyn ProcessTerminal>>,
    tty: Option<Arc<Tty>>,
}

impl Streams {
    /// Makes the terminal, if there is one, the controlling terminal of the session of `task`, which leads it.
    pub fn control(&self, task: &Task) {
        if let Some(tty) = &self.tty {
            tty.control(&task.thread_group().process_group());
        }
    }
}

impl Kernel {
    /// The thread that waits for host descriptors, started at first use.
    pub fn host_poller(&self) -> SysResult<Arc<HostPoller>> {
        if let Some(poller) = self.stdio.poller.get() {
            return Ok(poller.clone());
        }
        let poller = HostPoller::new()?;
        Ok(self.stdio.poller.get_or_init(|| poller).clone())
    }

    /// Opens the standard streams of a process in the tree that `caller` sees.
    pub(super) fn open_streams(self: &Arc<Self>, caller: &Caller<'_>, spec: StdioSpec) -> SysResult<Streams> {
        match spec {
            StdioSpec::Files { stdin, stdout, stderr } => {
                let open = |fd: Option<OwnedFd>| self.open_stream(caller, fd);
                let files = [open(stdin)?, open(stdout)?, open(stderr)?];
                Ok(Streams { files, terminal: None, tty: None })
            }
            StdioSpec::Terminal { input, output, window } => {
                self.open_terminal(caller, input, output, window)
            }
        }
    }

    fn open_stream(&self, _caller: &Caller<'_>, fd: Option<OwnedFd>) -> SysResult<Arc<File>> {
        match fd {
            Some(fd) => hostfile::open(&self.host_poller()?, fd, Sharing::Shared),
            None => Ok(null()),
        }
    }
}

impl Kernel {
    /// Makes a pair in the container's devpts (or in one of its own, if the container has none) and shows it outside.
    fn open_terminal(
        self: &Arc<Self>,
        caller: &Caller<'_>,
        input: Option<OwnedFd>,
        output: Option<OwnedFd>,
        (rows, columns): (u16, u16),
    ) -> SysResult<Streams> {
        let kernel = Caller::kernel(caller.root().clone());
        let mounted = kernel.lookup_path(b"/dev/pts").and_then(|place| place.inode().file_system()).ok();
        let mounted = mounted.and_then(|fs| Instance::of(&fs).map(|instance| (fs, instance)));
        let (fs, instance) = match mounted {
            Some(found) => found,
            None => {
                let fs: Arc<dyn FileSystem> = devpts::mount(Options::parse(b"ptmxmode=0666")?, self.timers());
                let instance = Instance::of(&fs).ok_or(Errno::ENODEV)?;
                (fs, instance)
            }
        };
        let master = instance.create_pair(caller.credentials.fsuid, caller.credentials.fsgid)?;
        let tty = master.tty().clone();
        let window = WindowSize { rows, columns, ..WindowSize::default() };
        let terminal = HostTerminal::new(master, &self.host_poller()?, input, output, window)?;
        let node = instance.node(tty.index()).ok_or(Errno::ENODEV)?;
        let path = kernel.lookup_path(tty.slave_path().as_bytes()).ok();
        let path = path.filter(|path| Arc::ptr_eq(path.inode(), &node));
        let file = tty.open_slave_file(node, path)?;
        let files = [file.clone(), file.clone(), file];
        let shown = Arc::new(ShownTerminal { terminal, _fs: fs });
        Ok(Streams { files, terminal: Some(shown), tty: Some(tty) })
    }
}

/// A terminal shown outside, and the file system its slave's node is in.
struct ShownTerminal {
    terminal: HostTerminal,
    _fs: Arc<dyn FileSystem>,
}

impl ProcessTerminal for ShownTerminal {
    fn resize(&self, rows: u16, columns: u16) {
        self.terminal.resize(rows, columns);
    }

    fn close_input(&self) {
        self.terminal.close_input();
    }

    fn process_ended(&self) {
        if !self.terminal.drain(DRAIN_LIMIT) {
            tracing::warn!("not everything a process wrote to its terminal could be shown");
        }
        self.terminal.detach();
    }
}

/// `/dev/null` without a place in the tree.
fn null() -> Arc<File> {
    let ops = Arc::new(MemoryDevice::new(Memory::Null));
    File::new(ops, AnonymousInode::new(Pseudo::Anonymous, next_ino(), 0, 0), None, OpenFlags::RDWR)
}

/// A descriptor table with the three streams.
pub(super) fn table(streams: &Streams) -> SysResult<Arc<FdTable>> {
    let table = FdTable::default();
    for file in &streams.files {
        table.install(file.clone(), false, 0, 3)?;
    }
    Ok(Arc::new(table))
}
