//! Standard streams of processes from outside.

use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use super::Kernel;
use super::container::{ProcessTerminal, StdioSpec};
use crate::errno::{Errno, SysResult};
use crate::fs::anonymous::{AnonymousInode, Pseudo, next_ino};
use crate::fs::devices::{Memory, MemoryDevice};
use crate::fs::hostfile::poller::HostPoller;
use crate::fs::hostfile::{self, Sharing};
use crate::vfs::{Caller, FdTable, File, OpenFlags};

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
                Ok(Streams { files, terminal: None })
            }
            StdioSpec::Terminal { .. } => Err(Errno::ENOSYS),
        }
    }

    fn open_stream(&self, _caller: &Caller<'_>, fd: Option<OwnedFd>) -> SysResult<Arc<File>> {
        match fd {
            Some(fd) => hostfile::open(&self.host_poller()?, fd, Sharing::Shared),
            None => Ok(null()),
        }
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
