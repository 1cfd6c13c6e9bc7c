//! How credentials change: the `set*id` family, capability sets, bounding and ambient sets.
//!
//! Pure functions from old credentials to new ones, so that the rules of `credentials(7)` and `capabilities(7)` can be
//! tested without a task. `u32::MAX` means "leave alone" where the calls say so.

use linux_raw_sys::general as linux;

use super::credentials::{Capability, Credentials};
use crate::errno::{Errno, SysResult};

/// "Leave this id alone" (`-1`).
pub const KEEP: u32 = u32::MAX;

const SECBIT_NO_SETUID_FIXUP: u32 = libc::SECBIT_NO_SETUID_FIXUP as u32;
const SECBIT_KEEP_CAPS: u32 = libc::SECBIT_KEEP_CAPS as u32;

/// A triple of real, effective and saved id to set; [`KEEP`] leaves one alone.
#[derive(Clone, Copy, Debug)]
pub struct Ids {
    /// Real.
    pub real: u32,
    /// Effective.
    pub effective: u32,
    /// Saved.
    pub saved: u32,
}

fn or_keep(new: u32, old: u32) -> u32 {
    if new == KEEP { old } else { new }
}

impl Credentials {
    /// `setuid`.
    pub fn with_uid(&self, uid: u32) -> SysResult<Credentials> {
        valid(uid)?;
        let mut new = self.clone();
        if self.has(Capability::SETUID) {
            (new.uid, new.suid) = (uid, uid);
        } else if uid != self.uid && uid != self.suid {
            return Err(Errno::EPERM);
        }
        (new.euid, new.fsuid) = (uid, uid);
        Ok(new.after_uid_change(self))
    }

    /// `setgid`.
    pub fn with_gid(&self, gid: u32) -> SysResult<Credentials> {
        valid(gid)?;
        let mut new = self.clone();
        if self.has(Capability::SETGID) {
            (new.gid, new.sgid) = (gid, gid);
        } else if gid != self.gid && gid != self.sgid {
            return Err(Errno::EPERM);
        }
        (new.egid, new.fsgid) = (gid, gid);
        Ok(new)
    }

    /// `setreuid`.
    pub fn with_reuid(&self, real: u32, effective: u32) -> SysResult<Credentials> {
        if !self.has(Capability::SETUID) {
            let real_ok = [KEEP, self.uid, self.euid].contains(&real);
            let effective_ok = [KEEP, self.uid, self.euid, self.suid].contains(&effective);
            if !(real_ok && effective_ok) {
                return Err(Errno::EPERM);
            }
        }
        let mut new = self.clone();
        new.uid = or_keep(real, self.uid);
        new.euid = or_keep(effective, self.euid);
        if real != KEEP || (effective != KEEP && effective != self.uid) {
            new.suid = new.euid;
        }
        new.fsuid = new.euid;
        Ok(new.after_uid_change(self))
    }

    /// `setregid`.
    pub fn with_regid(&self, real: u32, effective: u32) -> SysResult<Credentials> {
        if !self.has(Capability::SETGID) {
            let real_ok = [KEEP, self.gid, self.egid].contains(&real);
            let effective_ok = [KEEP, self.gid, self.egid, self.sgid].contains(&effective);
            if !(real_ok && effective_ok) {
                return Err(Errno::EPERM);
            }
        }
        let mut new = self.clone();
        new.gid = or_keep(real, self.gid);
        new.egid = or_keep(effective, self.egid);
        if real != KEEP || (effective != KEEP && effective != self.gid) {
            new.sgid = new.egid;
        }
        new.fsgid = new.egid;
        Ok(new)
    }

    /// `setresuid`.
    pub fn with_resuid(&self, ids: Ids) -> SysResult<Credentials> {
        let own = [KEEP, self.uid, self.euid, self.suid];
        if !self.has(Capability::SETUID)
            && ![ids.real, ids.effective, ids.saved].iter().all(|id| own.contains(id))
        {
            return Err(Errno::EPERM);
        }
        let mut new = self.clone();
        new.uid = or_keep(ids.real, self.uid);
        new.euid = or_keep(ids.effective, self.euid);
        new.suid = or_keep(ids.saved, self.suid);
        new.fsuid = new.euid;
        Ok(new.after_uid_change(self))
    }

    /// `setresgid`.
    pub fn with_resgid(&self, ids: Ids) -> SysResult<Credentials> {
        let own = [KEEP, self.gid, self.egid, self.sgid];
        if !self.has(Capability::SETGID)
            && ![ids.real, ids.effective, ids.saved].iter().all(|id| own.contains(id))
        {
            return Err(Errno::EPERM);
        }
        let mut new = self.clone();
        new.gid = or_keep(ids.real, self.gid);
        new.egid = or_keep(ids.effective, self.egid);
        new.sgid = or_keep(ids.saved, self.sgid);
        new.fsgid = new.egid;
        Ok(new)
    }

    /// `setfsuid`; a value that is not allowed changes nothing.
    pub fn with_fsuid(&self, fsuid: u32) -> Credentials {
        let mut new = self.clone();
        if [self.uid, self.euid, self.suid, self.fsuid].contains(&fsuid)
            || self.has(Capability::SETUID) && fsuid != KEEP
        {
            new.fsuid = fsuid;
            let of_files = file_capabilities();
            if self.securebits & SECBIT_NO_SETUID_FIXUP == 0 {
                if self.fsuid == 0 && fsuid != 0 {
                    new.effective -= of_files;
                } else if self.fsuid != 0 && fsuid == 0 {
                    new.effective |= new.permitted & of_files;
                }
            }
        }
        new
    }

    /// `setfsgid`; a value that is not allowed changes nothing.
    pub fn with_fsgid(&self, fsgid: u32) -> Credentials {
        let mut new = self.clone();
        if [self.gid, self.egid, self.sgid, self.fsgid].contains(&fsgid)
            || self.has(Capability::SETGID) && fsgid != KEEP
        {
            new.fsgid = fsgid;
        }
        new
    }

    /// What happens to capability sets when user ids move to or from 0 (`cap_emulate_setxuid`).
    fn after_uid_change(mut self, old: &Credentials) -> Credentials {
        if self.securebits & SECBIT_NO_SETUID_FIXUP != 0 {
            return self;
        }
        let had_root = [old.uid, old.euid, old.suid].contains(&0);
        let has_root = [self.uid, self.euid, self.suid].contains(&0);
        if had_root && !has_root {
            if self.securebits & SECBIT_KEEP_CAPS == 0 {
                self.permitted = Capability::empty();
                self.effective = Capability::empty();
            }
            self.ambient = Capability::empty();
        }
        if old.euid == 0 && self.euid != 0 {
            self.effective = Capability::empty();
        }
        if old.euid != 0 && self.euid == 0 {
            self.effective = self.permitted;
        }
        self
    }

    /// `capset`.
    pub fn with_capabilities(
        &self,
        effective: Capability,
        permitted: Capability,
        inheritable: Capability,
    ) -> SysResult<Credentials> {
        let inheritable_limit = self.inheritable | self.permitted;
        if !self.has(Capability::SETPCAP) && !inheritable_limit.contains(inheritable) {
            return Err(Errno::EPERM);
        }
        if !(self.inheritable | self.bounding).contains(inheritable)
            || !self.permitted.contains(permitted)
            || !permitted.contains(effective)
        {
            return Err(Errno::EPERM);
        }
        let mut new = self.clone();
        (new.effective, new.permitted, new.inheritable) = (effective, permitted, inheritable);
        new.ambient &= permitted & inheritable;
        Ok(new)
    }

    /// `PR_CAPBSET_DROP`.
    pub fn without_bounding(&self, capability: Capability) -> SysResult<Credentials> {
        if !self.has(Capability::SETPCAP) {
            return Err(Errno::EPERM);
        }
        let mut new = self.clone();
        new.bounding -= capability;
        Ok(new)
    }

    /// `PR_CAP_AMBIENT_RAISE`.
    pub fn with_ambient(&self, capability: Capability) -> SysResult<Credentials> {
        let no_raise = libc::SECBIT_NO_CAP_AMBIENT_RAISE as u32;
        if !(self.permitted & self.inheritable).contains(capability) || self.securebits & no_raise != 0 {
            return Err(Errno::EPERM);
        }
        let mut new = self.clone();
        new.ambient |= capability;
        Ok(new)
    }

    /// `PR_SET_SECUREBITS`.
    pub fn with_securebits(&self, bits: u32) -> SysResult<Credentials> {
        const ALL: u32 = 0xff;
        // The odd bits lock the even bit below them.
        let locked = (self.securebits >> 1) & 0x55;
        let unlocking = self.securebits & 0xaa & !bits;
        if bits & !ALL != 0 || (self.securebits ^ bits) & locked != 0 || unlocking != 0 {
            return Err(Errno::EPERM);
        }
        if !self.has(Capability::SETPCAP) {
            return Err(Errno::EPERM);
        }
        Ok(Credentials { securebits: bits, ..self.clone() })
    }
}

fn valid(id: u32) -> SysResult {
    if id == KEEP { Err(Errno::EINVAL) } else { Ok(()) }
}

/// The capabilities that follow the file-system user id.
fn file_capabilities() -> Capability {
    Capability::CHOWN
        | Capability::DAC_OVERRIDE
        | Capability::DAC_READ_SEARCH
        | Capability::FOWNER
        | Capability::FSETID
        | Capability::LINUX_IMMUTABLE
        | Capability::MKNOD
        | Capability::MAC_OVERRIDE
}

/// A capability by its number.
pub fn capability(number: u64) -> SysResult<Capability> {
    let bit = u32::try_from(number).ok().and_then(|n| 1u64.checked_shl(n)).ok_or(Errno::EINVAL)?;
    Capability::from_bits(bit).ok_or(Errno::EINVAL)
}

/// Version numbers of `capget`'s header.
pub const CAPABILITY_VERSIONS: [(u32, usize); 3] = [
    (linux::_LINUX_CAPABILITY_VERSION_1, 1),
    (linux::_LINUX_CAPABILITY_VERSION_2, 2),
    (linux::_LINUX_CAPABILITY_VERSION_3, 2),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> Credentials {
        Credentials::new(1000, 1000, vec![], Capability::empty())
    }

    #[test]
    fn root_becomes_a_user_for_good() {
        let new = Credentials::root().with_uid(1000).unwrap();
        assert_eq!((new.uid, new.euid, new.suid, new.fsuid), (1000, 1000, 1000, 1000));
        assert_eq!((new.permitted, new.effective), (Capability::empty(), Capability::empty()));
        assert_eq!(new.with_uid(0), Err(Errno::EPERM));
    }

    #[test]
    fn effective_id_comes_and_goes_with_its_capabilities() {
        let away = Credentials::root().with_resuid(Ids { real: KEEP, effective: 1000, saved: KEEP }).unwrap();
        assert_eq!((away.effective, away.permitted), (Capability::empty(), Capability::all()));
        let back = away.with_resuid(Ids { real: KEEP, effective: 0, saved: KEEP }).unwrap();
        assert_eq!(back.effective, Capability::all());
    }

    #[test]
    fn users_move_only_between_their_ids() {
        assert!(user().with_reuid(1000, 1000).is_ok());
        assert_eq!(user().with_reuid(0, KEEP), Err(Errno::EPERM));
        assert_eq!(user().with_gid(0), Err(Errno::EPERM));
        assert_eq!(user().with_uid(KEEP), Err(Errno::EINVAL));
        assert_eq!(user().with_fsuid(0).fsuid, 1000);
    }

    #[test]
    fn capabilities_only_shrink() {
        let some = Capability::CHOWN | Capability::KILL;
        let root = Credentials::root();
        let less = root.with_capabilities(some, some, Capability::empty()).unwrap();
        let none = Capability::empty();
        assert_eq!(less.with_capabilities(none, some | Capability::FOWNER, none), Err(Errno::EPERM));
        assert_eq!(less.with_capabilities(some, Capability::KILL, none), Err(Errno::EPERM));
        assert_eq!(less.with_ambient(Capability::KILL), Err(Errno::EPERM));
    }
}
