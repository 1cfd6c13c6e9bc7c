//! Moves the process into the small root that the launcher has assembled.

use nix::mount::{MntFlags, umount2};
use nix::unistd::{chdir, pivot_root};
use rustix::io::Errno;

use crate::config::LaunchError;

/// Makes `new_root` (a mount point in this process's own mount namespace) the root and takes everything else away.
///
/// # Errors
/// [`LaunchError::Process`] that names the step.
pub fn enter(new_root: &str) -> Result<(), LaunchError> {
    let at = |what| {
        move |errno: nix::Error| LaunchError::Process { what, errno: Errno::from_raw_os_error(errno as i32) }
    };
    chdir(new_root).map_err(at("entering the new root"))?;
    // The old root is stacked on the new one, then detached with everything below it (`man 2 pivot_root`).
    pivot_root(".", ".").map_err(at("pivot_root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(at("detaching the old root"))?;
    chdir("/").map_err(at("entering the root"))
}
