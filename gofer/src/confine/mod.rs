//! What the process gives up before it reads the first message.
//!
//! In this order: its parent's death kills it; capabilities; `no_new_privs`; descriptors that nobody named; system calls. What
//! file systems it sees is the launcher's part ([`caisson_proto::lisafs::launch`]).

pub mod capabilities;
pub mod root;
pub mod rules;
pub mod seccomp;

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::config::{Launch, LaunchError};

/// Has the kernel kill this process when the thread that started it is gone.
///
/// # Errors
/// [`LaunchError::Process`].
pub fn die_with_parent() -> Result<(), LaunchError> {
    step("setting the parent-death signal", set_parent_process_death_signal(Some(Signal::KILL)))
}

/// Gives everything up that serving `launch` does not need. There must be no other thread yet.
///
/// # Errors
/// [`LaunchError::Process`] that names the step; the process must not serve then.
pub fn confine(launch: &Launch) -> Result<(), LaunchError> {
    step("closing descriptors", close_others(&launch.descriptors()))?;
    step("dropping capabilities", capabilities::keep_only(&capabilities::needed(launch.device_nodes)))?;
    step("setting no_new_privs", rustix::thread::set_no_new_privs(true))?;
    step("installing the system call filter", seccomp::install())
}

fn step(what: &'static str, done: Result<(), Errno>) -> Result<(), LaunchError> {
    done.map_err(|errno| LaunchError::Process { what, errno })
}

/// Closes every descriptor but these and standard error. The working directory is `/proc/self/fd`.
fn close_others(keep: &BTreeSet<RawFd>) -> Result<(), Errno> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(".").map_err(from_io)? {
        numbers
            .extend(entry.map_err(from_io)?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    for number in numbers {
        if number != STDERR && !keep.contains(&number) {
            match nix::unistd::close(number) {
                // The listing's own descriptor is closed by now.
                Ok(()) | Err(nix::errno::Errno::EBADF) => {}
                Err(errno) => return Err(Errno::from_raw_os_error(errno as i32)),
            }
        }
    }
    Ok(())
}

fn from_io(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

const STDERR: RawFd = 2;

impl Launch {
    /// The numbers of the descriptors that are in use.
    fn descriptors(&self) -> BTreeSet<RawFd> {
        let mut numbers = BTreeSet::new();
        for mount in &self.mounts {
            numbers.insert(mount.socket.as_raw_fd());
            numbers.extend(mount.session.descriptors());
        }
        numbers.extend(self.ready.as_ref().map(OwnedFd::as_raw_fd));
        numbers
    }
}
