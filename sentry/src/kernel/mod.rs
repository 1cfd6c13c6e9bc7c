//! The sandbox: what all its containers share.
//!
//! [`Kernel`] owns the platform, the outermost namespaces, the task tree lock and the registry of containers. The control server
//! drives it through [`container`]'s plain data; [`registry`] holds the containers, [`launch`] starts processes from outside.
//!
//! Locks: the registry is taken before any task lock and never while one is held.

pub mod cgroup;
pub mod container;
pub mod host_threads;
pub mod launch;
pub mod registry;
pub mod services;
pub mod stdio;
pub mod system_info;
#[cfg(test)]
pub mod testing;
pub mod users;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;

use parking_lot::{Mutex, MutexGuard};

use crate::errno::SysResult;
use crate::mm::{Entropy, Layout, MemoryLimits, Mm, Randomize};
use crate::platform::Platform;
use crate::task::clone::{Reserved, serve};
use crate::task::futex::Futexes;
use crate::task::namespaces::{IpcNamespace, NetNamespace, UserNamespace, UtsNames, UtsNamespace};
use crate::task::{PidNamespace, Resource};
use container::ExitListener;
use host_threads::HostThreads;
use registry::Registry;
use system_info::SystemInfo;
use users::Users;

/// One sandbox's kernel.
pub struct Kernel {
    platform: Arc<dyn Platform>,
    pid_namespace: Arc<PidNamespace>,
    shared: SharedNamespaces,
    tree: Mutex<TaskTree>,
    listener: Arc<dyn ExitListener>,
    services: services::Services,
    users: Users,
    host_threads: Arc<HostThreads>,
    futexes: Futexes,
    /// What tasks have for memory once they have exited.
    empty_mm: Arc<Mm>,
    registry: Registry,
    stdio: stdio::HostStdio,
    strace: AtomicBool,
}

/// The sandbox's own namespaces, for containers that do not bring theirs.
pub struct SharedNamespaces {
    /// Host name.
    pub uts: Arc<UtsNamespace>,
    /// SysV IPC and message queues.
    pub ipc: Arc<IpcNamespace>,
    /// Network.
    pub net: Arc<NetNamespace>,
    /// Users.
    pub user: Arc<UserNamespace>,
}

/// What a kernel is started with.
pub struct KernelConfig {
    /// Host name of the sandbox.
    pub hostname: String,
    /// The machine as guests see it.
    pub system_info: SystemInfo,
}

/// The right to change who is whose parent, member or job. Its lock is the outermost of the task locks.
pub struct TaskTree {
    _private: (),
}

impl Kernel {
    /// A kernel without containers. `listener` is told of every process from outside that ends.
    pub fn new(
        platform: Arc<dyn Platform>,
        listener: Arc<dyn ExitListener>,
        config: KernelConfig,
    ) -> SysResult<Arc<Kernel>> {
        let mut entropy = Entropy::from_host();
        let layout = Layout::new(&mut entropy, 8 << 20, Randomize::Yes);
        let empty_mm = Mm::new(&platform, layout, MemoryLimits::default())?;
        let names = UtsNames { host: config.hostname.into_bytes(), domain: b"(none)".to_vec() };
        let shared = SharedNamespaces {
            uts: UtsNamespace::new(names),
            ipc: IpcNamespace::new(),
            net: NetNamespace::new(),
            user: UserNamespace::new(),
        };
        let services = services::Services::new(&platform, config.system_info)?;
        Ok(Arc::new(Kernel {
            platform,
            pid_namespace: PidNamespace::new(None)?,
            shared,
            tree: Mutex::new(TaskTree { _private: () }),
            listener,
            services,
            users: Users::default(),
            host_threads: HostThreads::new(),
            futexes: Futexes::default(),
            empty_mm,
            registry: Registry::default(),
            stdio: stdio::HostStdio::default(),
            strace: AtomicBool::new(false),
        }))
    }

    /// The platform that runs guest code.
    pub fn platform(&self) -> &Arc<dyn Platform> {
        &self.platform
    }

    /// The outermost pid namespace, which sees every task of the sandbox.
    pub fn pid_namespace(&self) -> &Arc<PidNamespace> {
        &self.pid_namespace
    }

    /// The sandbox's own namespaces.
    pub fn shared_namespaces(&self) -> &SharedNamespaces {
        &self.shared
    }

    /// Takes the task tree lock.
    pub fn tree(&self) -> MutexGuard<'_, TaskTree> {
        self.tree.lock()
    }

    /// What is counted per user.
    pub fn users(&self) -> &Users {
        &self.users
    }

    /// Who sleeps on which word of memory.
    pub fn futexes(&self) -> &Futexes {
        &self.futexes
    }

    /// Memory without anything in it.
    pub fn empty_mm(&self) -> Arc<Mm> {
        self.empty_mm.clone()
    }

    /// Who is told of exits.
    pub fn listener(&self) -> &Arc<dyn ExitListener> {
        &self.listener
    }

    /// Whether system calls are traced.
    pub fn straces(&self) -> bool {
        self.strace.load(Ordering::Relaxed)
    }

    /// Traces system calls to the log, or stops doing so.
    pub fn set_strace(&self, on: bool) {
        self.strace.store(on, Ordering::Relaxed);
    }

    /// A host thread that waits for a task to run. `EAGAIN` when the host has none.
    pub(crate) fn reserve_thread(&self) -> SysResult<Reserved> {
        let (sender, receiver) = sync_channel(1);
        self.host_threads.run(Box::new(move || serve(&receiver)))?;
        Ok(Reserved(sender))
    }

    /// The highest `RLIMIT_NOFILE` that anybody can have (`fs.nr_open`).
    pub fn max_open_files(&self) -> u64 {
        crate::task::rlimit::Rlimits::default().get(Resource::Nofile).hard
    }
}
