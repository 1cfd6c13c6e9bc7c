//! The capabilities of a serving gofer, and why each is needed.

use caps::{CapSet, Capability, CapsHashSet};
use rustix::io::Errno;

/// A capability and what would fail without it.
struct Need {
    capability: Capability,
    #[allow(dead_code, reason = "read by people")]
    reason: &'static str,
}

const NEEDS: &[Need] = &[
    Need { capability: Capability::CAP_CHOWN, reason: "new files get the guest's ids; chown" },
    Need {
        capability: Capability::CAP_DAC_OVERRIDE,
        reason: "opens and lists files of any owner; the sentry checks permissions",
    },
    Need {
        capability: Capability::CAP_FOWNER,
        reason: "chmod, utimes, sticky directories and hard links of files of any owner",
    },
    Need {
        capability: Capability::CAP_FSETID,
        reason: "chmod keeps the set-group-id bit of files of any group",
    },
    Need { capability: Capability::CAP_SETFCAP, reason: "setcap in the guest (security.capability)" },
];

const DEVICES: Need =
    Need { capability: Capability::CAP_MKNOD, reason: "mknod, on mounts that allow device nodes" };

/// The capabilities to keep.
pub fn needed(device_nodes: bool) -> CapsHashSet {
    let devices = device_nodes.then_some(DEVICES.capability);
    NEEDS.iter().map(|need| need.capability).chain(devices).collect()
}

/// Drops all others, from every set, for good.
///
/// # Errors
/// `EPERM` when a set cannot be changed.
pub fn keep_only(keep: &CapsHashSet) -> Result<(), Errno> {
    let permitted = caps::read(None, CapSet::Permitted).map_err(|_| Errno::PERM)?;
    let keep: CapsHashSet = keep.intersection(&permitted).copied().collect();
    if permitted.contains(&Capability::CAP_SETPCAP) {
        // No program is ever executed, but what is not there cannot come back.
        for capability in caps::all() {
            if !keep.contains(&capability)
                && caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false)
            {
                caps::drop(None, CapSet::Bounding, capability).map_err(|_| Errno::PERM)?;
            }
        }
    }
    caps::clear(None, CapSet::Ambient).map_err(|_| Errno::PERM)?;
    caps::set(None, CapSet::Effective, &keep).map_err(|_| Errno::PERM)?;
    caps::set(None, CapSet::Permitted, &keep).map_err(|_| Errno::PERM)?;
    caps::clear(None, CapSet::Inheritable).map_err(|_| Errno::PERM)
}
