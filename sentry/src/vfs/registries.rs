//! What a kernel's VFS is told at its start: drivers of devices, types of file systems.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;

use super::caller::Caller;
use super::inode::FileSystem;
use super::special::SpecialFiles;
use crate::errno::{Errno, SysResult};
use crate::task::PidNamespace;
use crate::task::namespaces::IpcNamespace;

/// A request to mount a file system of some type.
pub struct MountRequest<'a> {
    /// Who asks.
    pub caller: &'a Caller<'a>,
    /// The device, or whatever the type makes of it.
    pub source: &'a [u8],
    /// Comma-separated options of the type.
    pub options: &'a [u8],
    /// Whose processes a procfs shows; the caller's own where it is absent.
    pub pid_namespace: Option<Arc<PidNamespace>>,
    /// Whose message queues an mqueue file system shows; the caller's own where it is absent.
    pub ipc_namespace: Option<Arc<IpcNamespace>>,
}

/// Makes a file system of one type. `EINVAL` for options it does not know.
pub type MakeFileSystem = dyn Fn(&MountRequest<'_>) -> SysResult<Arc<dyn FileSystem>> + Send + Sync;

/// Drivers and file system types of a kernel.
#[derive(Default)]
pub struct Registries {
    /// Drivers of device nodes.
    pub special: SpecialFiles,
    types: RwLock<BTreeMap<&'static str, Arc<MakeFileSystem>>>,
}

impl Registries {
    /// Lets `mount(2)` and container plans make file systems of type `name`.
    pub fn register_type(&self, name: &'static str, make: Arc<MakeFileSystem>) {
        self.types.write().insert(name, make);
    }

    /// Makes one. `ENODEV` for an unknown type.
    pub fn make(&self, fs_type: &[u8], request: &MountRequest<'_>) -> SysResult<Arc<dyn FileSystem>> {
        let name = std::str::from_utf8(fs_type).map_err(|_| Errno::ENODEV)?;
        let make = self.types.read().get(name).cloned().ok_or(Errno::ENODEV)?;
        make(request)
    }

    /// The names of all types (`/proc/filesystems`).
    pub fn types(&self) -> Vec<&'static str> {
        self.types.read().keys().copied().collect()
    }
}
