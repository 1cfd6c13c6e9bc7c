//! The namespaces of a task, and the small ones among them.

use std::any::Any;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::pid::{PidNamespace, next_namespace_id};
use crate::vfs::MountNamespace;

/// Which namespaces a task lives in (`struct nsproxy`). Immutable: a change makes a new one.
#[derive(Clone)]
pub struct Namespaces {
    /// Host and domain name.
    pub uts: Arc<UtsNamespace>,
    /// SysV IPC and POSIX message queues.
    pub ipc: Arc<IpcNamespace>,
    /// Mounts.
    pub mount: Arc<MountNamespace>,
    /// Network devices, sockets, abstract unix names.
    pub net: Arc<NetNamespace>,
    /// Users: one per sandbox so far.
    pub user: Arc<UserNamespace>,
    /// The pid namespace of **children**; the task's own is that of its pid.
    pub pid_for_children: Arc<PidNamespace>,
}

/// Host name and NIS domain name.
pub struct UtsNamespace {
    id: u64,
    names: Mutex<UtsNames>,
}

/// The two names, at most 64 bytes each.
#[derive(Clone, Debug, Default)]
pub struct UtsNames {
    /// `nodename`.
    pub host: Vec<u8>,
    /// `domainname`.
    pub domain: Vec<u8>,
}

impl UtsNamespace {
    /// A namespace with these names.
    pub fn new(names: UtsNames) -> Arc<UtsNamespace> {
        Arc::new(UtsNamespace { id: next_namespace_id(), names: Mutex::new(names) })
    }

    /// Its number in `/proc/*/ns/uts`.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The names.
    pub fn names(&self) -> UtsNames {
        self.names.lock().clone()
    }

    /// Changes the names.
    pub fn update(&self, change: impl FnOnce(&mut UtsNames)) {
        change(&mut self.names.lock());
    }
}

macro_rules! stateful_namespace {
    ($name:ident, $what:literal) => {
        #[doc = $what]
        ///
        /// Its owner hangs its state here at first use, see `state_or`.
        pub struct $name {
            id: u64,
            state: OnceLock<Arc<dyn Any + Send + Sync>>,
        }

        impl $name {
            /// An empty namespace.
            #[allow(clippy::new_ret_no_self)]
            pub fn new() -> Arc<$name> {
                Arc::new($name { id: next_namespace_id(), state: OnceLock::new() })
            }

            /// Its number in `/proc/*/ns/`.
            pub fn id(&self) -> u64 {
                self.id
            }

            /// Its state, made by `make` at first use; `None` if somebody put another type there.
            pub fn state_or<T: Any + Send + Sync>(&self, make: impl FnOnce() -> Arc<T>) -> Option<Arc<T>> {
                self.state.get_or_init(|| make()).clone().downcast().ok()
            }
        }
    };
}

stateful_namespace!(IpcNamespace, "SysV IPC objects and POSIX message queues.");
stateful_namespace!(NetNamespace, "Network devices, routes, ports and abstract unix names.");
stateful_namespace!(UserNamespace, "Users. There is one per sandbox; creating another is refused.");
