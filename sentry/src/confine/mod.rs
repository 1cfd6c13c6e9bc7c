//! Confinement: what the sentry gives up before the first guest instruction.
//!
//! The launcher starts the sentry as root of a new user namespace (an unprivileged ID on the host) in new pid, ipc, net, mount and uts
//! namespaces, with the control socket and the log as its only descriptors. [`confine`] does the rest, while the process is still
//! single-threaded: an empty read-only root, no capability in any set, `no_new_privs`, not dumpable, no core files, and
//! a system-call allow-list ([`rules`], data with a reason per line).
//!
//! The order is forced: mounts need capabilities, the filter needs `no_new_privs` and must come last because it forbids
//! everything that the steps before it did. Whatever reads files (CPU counts, `/proc`) must happen before.
//!
//! Not there yet: Landlock, which would add nothing to an empty root.

mod filter;
pub mod rules;

use std::ffi::CString;

use caisson_proto::control::launch::SeccompMode;
use caps::CapSet;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, pivot_root};
use thiserror::Error;

/// Which step failed; the sentry must not run a guest then.
#[derive(Debug, Error)]
pub enum ConfineError {
    /// No directory of the host's root could be covered, or the pivot failed.
    #[error(
        "cannot move to an empty root ({step}): {errno}; was the sentry started in new user and mount namespaces?"
    )]
    Root {
        /// The call that failed.
        step: &'static str,
        /// Why.
        errno: Errno,
    },
    /// A capability set could not be emptied.
    #[error("cannot drop the {0:?} capabilities: {1}")]
    Capabilities(CapSet, String),
    /// `prctl` or `setrlimit` failed.
    #[error("cannot set {0}: {1}")]
    Process(&'static str, Errno),
    /// The filter could not be built or loaded.
    #[error("cannot load the system-call filter: {0}")]
    Filter(String),
}

/// Gives up everything. Call once, before any thread is started and before anything from outside is read.
///
/// # Errors
/// [`ConfineError`] names the step. The process is partly confined then and should exit.
pub fn confine(seccomp: SeccompMode) -> Result<(), ConfineError> {
    limits()?;
    empty_root()?;
    drop_capabilities()?;
    prctl::set_no_new_privs().map_err(|e| ConfineError::Process("no_new_privs", e))?;
    // After the capability changes, which the kernel answers with dumpable := suid_dumpable.
    prctl::set_dumpable(false).map_err(|e| ConfineError::Process("dumpable", e))?;
    filter::apply(seccomp)
}

fn limits() -> Result<(), ConfineError> {
    // The guest's descriptors are backed by host descriptors, so the soft limit of 1024 is too low.
    let (_, hard) =
        getrlimit(Resource::RLIMIT_NOFILE).map_err(|e| ConfineError::Process("RLIMIT_NOFILE", e))?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(|e| ConfineError::Process("RLIMIT_NOFILE", e))?;
    // Guest memory must not end up in a core file on the host.
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|e| ConfineError::Process("RLIMIT_CORE", e))?;
    umask(Mode::from_bits_truncate(0o077));
    if let Ok(name) = CString::new("caisson-sentry") {
        // Started through a descriptor, so the kernel's own guess at the name is a number.
        prctl::set_name(&name).map_err(|e| ConfineError::Process("the process name", e))?;
    }
    Ok(())
}

fn empty_root() -> Result<(), ConfineError> {
    let at = |step| move |errno| ConfineError::Root { step, errno };
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(at("private propagation"))?;
    // Any directory will do to hang the tmpfs on; not every host has every one of these.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let mut last = Errno::ENOENT;
    let place = ["/tmp", "/proc", "/sys", "/dev", "/run"].into_iter().find(|dir| {
        mount(Some("none"), *dir, Some("tmpfs"), flags, Some("size=4k,nr_inodes=1,mode=0555"))
            .map_err(|errno| last = errno)
            .is_ok()
    });
    chdir(place.ok_or(ConfineError::Root { step: "mount of the tmpfs", errno: last })?)
        .map_err(at("chdir"))?;
    // The old root is stacked on the new one and then taken off with everything below it (`man 2 pivot_root`).
    pivot_root(".", ".").map_err(at("pivot_root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(at("umount of the old root"))?;
    chdir("/").map_err(at("chdir /"))?;
    mount(none, "/", none, flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY, none)
        .map_err(at("read-only remount"))
}

fn drop_capabilities() -> Result<(), ConfineError> {
    // Bounding first: emptying it needs CAP_SETPCAP, which the later ones take away.
    for set in [CapSet::Bounding, CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted]
    {
        caps::clear(None, set).map_err(|e| ConfineError::Capabilities(set, e.to_string()))?;
    }
    Ok(())
}
