//! What a program may do once it has started (`capabilities(7)`, "Transformation of capabilities during execve").

use linux_raw_sys::general as linux;

use crate::errno::{Errno, SysResult};
use crate::task::{Capability, Credentials};
use crate::vfs::File;
use crate::vfs::mount::MountFlags;

/// The outcome.
pub struct AfterExec {
    /// The new credentials.
    pub credentials: Credentials,
    /// Whether they came from the file rather than from the caller (`AT_SECURE`).
    pub secure: bool,
}

/// What a file's `security.capability` grants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct FileCapabilities {
    permitted: Capability,
    inheritable: Capability,
    effective: bool,
}

/// Credentials of `old` after starting `file`. `EPERM` when a file's effective capabilities cannot all be granted.
pub fn after_exec(old: &Credentials, file: &File) -> SysResult<AfterExec> {
    let attr = file.inode().attr()?;
    let trusted = file.path().is_some_and(|path| !path.mount().flags().contains(MountFlags::NOSUID));
    let honours = trusted && !old.no_new_privs;
    let mut new = old.clone();
    if honours && attr.mode & linux::S_ISUID != 0 {
        new.euid = attr.uid;
    }
    // Without group execution the bit means mandatory locking.
    if honours && attr.mode & linux::S_ISGID != 0 && attr.mode & linux::S_IXGRP != 0 {
        new.egid = attr.gid;
    }
    (new.suid, new.fsuid, new.sgid, new.fsgid) = (new.euid, new.euid, new.egid, new.egid);
    let set_id = new.euid != old.euid || new.egid != old.egid;
    let of_file = if honours { file_capabilities(file) } else { None };
    new.securebits &= !(libc::SECBIT_KEEP_CAPS as u32);
    capabilities(&mut new, of_file, set_id)?;
    let by_ids = new.euid != new.uid || new.egid != new.gid;
    let by_capabilities = new.uid != 0 && of_file.is_some() && !new.ambient.contains(new.effective);
    Ok(AfterExec { secure: by_ids || by_capabilities, credentials: new })
}

fn capabilities(new: &mut Credentials, of_file: Option<FileCapabilities>, set_id: bool) -> SysResult {
    let mut granted = of_file.unwrap_or_default();
    let privileged_file = of_file.is_some() || set_id;
    let root_counts = new.securebits & libc::SECBIT_NOROOT as u32 == 0;
    if root_counts && (new.uid == 0 || new.euid == 0) {
        granted = FileCapabilities {
            permitted: Capability::all(),
            inheritable: Capability::all(),
            effective: new.euid == 0 || granted.effective,
        };
    }
    if privileged_file {
        new.ambient = Capability::empty();
    }
    let wanted = granted.permitted;
    new.permitted =
        (new.inheritable & granted.inheritable) | (granted.permitted & new.bounding) | new.ambient;
    new.effective = if granted.effective { new.permitted } else { new.ambient };
    let from_file_alone = of_file.is_some() && !(root_counts && (new.uid == 0 || new.euid == 0));
    if from_file_alone && granted.effective && !new.permitted.contains(wanted) {
        return Err(Errno::EPERM);
    }
    Ok(())
}

/// Reads `security.capability` (`struct vfs_cap_data`, revisions 2 and 3); anything malformed grants nothing.
fn file_capabilities(file: &File) -> Option<FileCapabilities> {
    parse(&file.inode().get_xattr(b"security.capability").ok()?)
}

fn parse(data: &[u8]) -> Option<FileCapabilities> {
    const REVISION: u32 = 0xff00_0000;
    const REVISION_2: u32 = 0x0200_0000;
    const REVISION_3: u32 = 0x0300_0000;
    const EFFECTIVE: u32 = 1;
    let mut words = data.chunks_exact(4).filter_map(|word| word.try_into().ok().map(u32::from_le_bytes));
    let magic = words.next()?;
    let expected = match magic & REVISION {
        REVISION_2 => 20,
        REVISION_3 => 24,
        _ => return None,
    };
    if data.len() != expected {
        return None;
    }
    let [permitted_low, inheritable_low, permitted_high, inheritable_high] =
        [words.next()?, words.next()?, words.next()?, words.next()?];
    let join = |low: u32, high: u32| Capability::from_bits_truncate(u64::from(low) | u64::from(high) << 32);
    Some(FileCapabilities {
        permitted: join(permitted_low, permitted_high),
        inheritable: join(inheritable_low, inheritable_high),
        effective: magic & EFFECTIVE != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_keeps_its_bounding_set() {
        let mut who = Credentials::new(0, 0, vec![], Capability::CHOWN | Capability::KILL);
        capabilities(&mut who, None, false).unwrap();
        assert_eq!(who.permitted, Capability::CHOWN | Capability::KILL);
        assert_eq!(who.effective, who.permitted);
    }

    #[test]
    fn users_keep_only_ambient_capabilities() {
        let mut who = Credentials::new(1000, 1000, vec![], Capability::all());
        who.ambient = Capability::KILL;
        capabilities(&mut who, None, false).unwrap();
        assert_eq!((who.permitted, who.effective), (Capability::KILL, Capability::KILL));
        capabilities(&mut who, None, true).unwrap();
        assert_eq!(who.permitted, Capability::empty());
    }

    #[test]
    fn file_capabilities_are_all_or_nothing() {
        let data: Vec<u8> =
            [0x0200_0001u32, 1 << 13, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
        let net_raw = parse(&data);
        assert_eq!(net_raw.unwrap().permitted, Capability::NET_RAW);
        let mut who = Credentials::new(1000, 1000, vec![], Capability::empty());
        who.bounding = Capability::all();
        capabilities(&mut who, net_raw, false).unwrap();
        assert_eq!(who.effective, Capability::NET_RAW);
        who.bounding = Capability::empty();
        assert_eq!(capabilities(&mut who, net_raw, false), Err(Errno::EPERM));
        assert_eq!(parse(&data[..16]), None);
    }
}
