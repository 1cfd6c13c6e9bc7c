//! procfs: processes and the system, as text.
//!
//! A mount shows one pid namespace. [`root`] is its top, [`process`] a process's or thread's directory, whose files are in
//! [`status`] (numbers), [`texts`] (the rest), [`memory`] (maps), [`descriptors`] and [`links`]. [`system`] and [`sys`]
//! describe the machine.
//!
//! Directories of processes are made at each look-up and hold the task weakly: a directory that outlives its process
//! answers `ESRCH`.
//!
//! Not there: per-process `net/` beyond `unix`, `mem`, `pagemap`, `timers`, `sched`.

pub mod descriptors;
pub mod links;
pub mod memory;
pub mod process;
pub use process::process_of;
pub mod root;
pub mod status;
pub mod sys;
pub mod system;
pub mod sysvipc;
pub mod texts;

use std::sync::Arc;

use crate::errno::SysResult;
use crate::fs::pseudo::PseudoFs;
use crate::kernel::Kernel;
use crate::task::PidNamespace;
use crate::vfs::{Device, FileSystem};

/// A new instance that shows `namespace`.
pub fn mount(
    kernel: &Arc<Kernel>,
    namespace: &Arc<PidNamespace>,
    device: Device,
) -> SysResult<Arc<dyn FileSystem>> {
    let fs = PseudoFs::new("proc", u64::from(linux_raw_sys::general::PROC_SUPER_MAGIC), device);
    let root = root::Root::inode(&fs, kernel, namespace)?;
    fs.set_root(root);
    Ok(fs)
}
