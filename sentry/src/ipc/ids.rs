//! What the three kinds of System V objects share: identifiers, keys, permissions (`ipc/util.c` in Linux).
//!
//! An identifier is an index and the number of times that indexes have come around, so that an old one does not name a new
//! object for long.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::errno::{Errno, SysResult};
use crate::task::{Capability, Credentials};

/// Bits of an identifier that are the index (`IPCMNI_SHIFT`).
const INDEX_BITS: u32 = 15;
/// Fewest indexes that are used in turn (`ipc_min_cycle`).
const MIN_CYCLE: usize = 64;
/// `S_IRWXUGO`
const PERMISSIONS: u32 = 0o777;

/// A right on an object, for owner, group and others at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access(u32);

impl Access {
    /// Reading.
    pub const READ: Access = Access(0o444);
    /// Writing: altering semaphores, sending.
    pub const WRITE: Access = Access(0o222);
    /// Both.
    pub const READ_WRITE: Access = Access(0o666);

    /// With executing, for `SHM_EXEC`.
    pub fn and_execute(self) -> Access {
        Access(self.0 | 0o111)
    }

    /// What the low bits of a `*get` call's flags ask for.
    fn of_flags(flags: i32) -> Access {
        Access(flags.cast_unsigned() & PERMISSIONS)
    }
}

/// `struct kern_ipc_perm`: who may do what with an object.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // Linux's names
pub struct Perm {
    pub key: i32,
    pub uid: u32,
    pub gid: u32,
    pub cuid: u32,
    pub cgid: u32,
    pub mode: u32,
    /// Its identifier.
    pub id: i32,
    /// It has been removed.
    pub removed: bool,
}

impl Perm {
    /// `EACCES` unless `who` has the rights.
    pub fn check(&self, who: &Credentials, access: Access) -> SysResult {
        let wanted = (access.0 >> 6 | access.0 >> 3 | access.0) & 0o7;
        let granted = if who.euid == self.cuid || who.euid == self.uid {
            self.mode >> 6
        } else if in_group(who, self.cgid) || in_group(who, self.gid) {
            self.mode >> 3
        } else {
            self.mode
        };
        if wanted & !granted & 0o7 == 0 || who.has(Capability::IPC_OWNER) {
            Ok(())
        } else {
            Err(Errno::EACCES)
        }
    }

    /// `EPERM` unless `who` may change or remove it.
    pub fn check_owner(&self, who: &Credentials) -> SysResult {
        let owns = who.euid == self.cuid || who.euid == self.uid || who.has(Capability::SYS_ADMIN);
        if owns { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// `IPC_SET`: owner and permission bits.
    pub fn update(&mut self, new: &RawPerm) {
        (self.uid, self.gid) = (new.uid, new.gid);
        self.mode = self.mode & !PERMISSIONS | new.mode & PERMISSIONS;
    }

    /// As the guest sees it.
    pub fn to_raw(&self) -> RawPerm {
        RawPerm {
            key: self.key,
            uid: self.uid,
            gid: self.gid,
            cuid: self.cuid,
            cgid: self.cgid,
            mode: self.mode,
            seq: (self.id.cast_unsigned() >> INDEX_BITS) as u16,
            ..RawPerm::default()
        }
    }
}

/// The effective group counts here, not the file system's.
fn in_group(who: &Credentials, gid: u32) -> bool {
    who.egid == gid || who.groups.contains(&gid)
}

/// `struct ipc64_perm`
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
#[allow(missing_docs)] // Linux's names
pub struct RawPerm {
    pub key: i32,
    pub uid: u32,
    pub gid: u32,
    pub cuid: u32,
    pub cgid: u32,
    pub mode: u32,
    pub seq: u16,
    pub pad: [u16; 3],
    pub unused: [u64; 2],
}

const _: () = assert!(size_of::<RawPerm>() == size_of::<libc::ipc_perm>());

/// An object in a table.
pub trait Object {
    /// Its permissions.
    fn perm(&self) -> &Mutex<Perm>;
}

/// How `*get` looks for an object.
pub struct Request<'a> {
    /// The key, or `IPC_PRIVATE`.
    pub key: i32,
    /// `IPC_CREAT`, `IPC_EXCL` and permission bits.
    pub flags: i32,
    /// Who asks.
    pub who: &'a Credentials,
}

/// A table of objects.
pub struct Ids<T> {
    state: Mutex<State<T>>,
    limit: usize,
}

struct State<T> {
    objects: BTreeMap<u32, Arc<T>>,
    keys: HashMap<i32, u32>,
    last: Option<u32>,
    round: u32,
}

impl<T: Object> Ids<T> {
    /// An empty table for at most `limit` objects.
    pub fn new(limit: usize) -> Ids<T> {
        let state = State { objects: BTreeMap::new(), keys: HashMap::new(), last: None, round: 0 };
        Ids { state: Mutex::new(state), limit }
    }

    /// `*get`: finds the object of a key, which `fits` may refuse, or makes one. `ENOENT`, `EEXIST`, `EACCES`, `ENOSPC`.
    pub fn get(
        &self,
        request: &Request<'_>,
        fits: impl FnOnce(&T) -> SysResult,
        make: impl FnOnce(Perm) -> SysResult<Arc<T>>,
    ) -> SysResult<i32> {
        let flag = |flag: u32| request.flags.cast_unsigned() & flag != 0;
        let (create, exclusive) = (flag(linux_flags::IPC_CREAT), flag(linux_flags::IPC_EXCL));
        let mut state = self.state.lock();
        let known = if request.key == linux_flags::IPC_PRIVATE { None } else { state.keys.get(&request.key) };
        if let Some(object) = known.and_then(|index| state.objects.get(index)) {
            if create && exclusive {
                return Err(Errno::EEXIST);
            }
            fits(object)?;
            let perm = object.perm().lock();
            perm.check(request.who, Access::of_flags(request.flags))?;
            return Ok(perm.id);
        }
        if request.key != linux_flags::IPC_PRIVATE && !create {
            return Err(Errno::ENOENT);
        }
        let (index, id) = state.next_id(self.limit)?;
        let perm = Perm {
            key: request.key,
            uid: request.who.euid,
            gid: request.who.egid,
            cuid: request.who.euid,
            cgid: request.who.egid,
            mode: request.flags.cast_unsigned() & PERMISSIONS,
            id,
            removed: false,
        };
        let object = make(perm)?;
        state.last = Some(index);
        state.round = id.cast_unsigned() >> INDEX_BITS;
        state.objects.insert(index, object);
        if request.key != linux_flags::IPC_PRIVATE {
            state.keys.insert(request.key, index);
        }
        Ok(id)
    }

    /// The object with an identifier; `EINVAL` if there is none.
    pub fn find(&self, id: i32) -> SysResult<Arc<T>> {
        let id = u32::try_from(id).map_err(|_| Errno::EINVAL)?;
        let found = self.state.lock().objects.get(&(id & index_mask())).cloned();
        found.filter(|object| object.perm().lock().id.cast_unsigned() == id).ok_or(Errno::EINVAL)
    }

    /// The object with an index (`*_STAT`); `EINVAL` if there is none.
    pub fn at(&self, index: i32) -> SysResult<Arc<T>> {
        let index = u32::try_from(index).map_err(|_| Errno::EINVAL)?;
        self.state.lock().objects.get(&(index & index_mask())).cloned().ok_or(Errno::EINVAL)
    }

    /// Makes the object's key free for another.
    pub fn forget_key(&self, object: &T) {
        let mut state = self.state.lock();
        let mut perm = object.perm().lock();
        let index = perm.id.cast_unsigned() & index_mask();
        if state.keys.get(&perm.key) == Some(&index) {
            state.keys.remove(&perm.key);
        }
        perm.key = linux_flags::IPC_PRIVATE;
    }

    /// Takes the object out; `EIDRM` if that has been done.
    pub fn remove(&self, object: &T) -> SysResult {
        let mut state = self.state.lock();
        let mut perm = object.perm().lock();
        if perm.removed {
            return Err(Errno::EIDRM);
        }
        perm.removed = true;
        let index = perm.id.cast_unsigned() & index_mask();
        if state.keys.get(&perm.key) == Some(&index) {
            state.keys.remove(&perm.key);
        }
        drop(perm);
        let gone = state.objects.remove(&index);
        drop(state);
        drop(gone);
        Ok(())
    }

    /// All objects, by index.
    pub fn list(&self) -> Vec<Arc<T>> {
        self.state.lock().objects.values().cloned().collect()
    }

    /// How many there are, and the highest index in use (0 if there is none).
    pub fn usage(&self) -> (usize, u32) {
        let state = self.state.lock();
        (state.objects.len(), state.objects.last_key_value().map_or(0, |(index, _)| *index))
    }
}

fn index_mask() -> u32 {
    (1 << INDEX_BITS) - 1
}

impl<T> State<T> {
    /// The next index in turn and the identifier that it gives (Linux's `ipc_idr_alloc`).
    fn next_id(&self, limit: usize) -> SysResult<(u32, i32)> {
        let used = self.objects.len();
        if used >= limit {
            return Err(Errno::ENOSPC);
        }
        let cycle = used.saturating_mul(3).div_euclid(2).clamp(MIN_CYCLE, 1 << INDEX_BITS);
        let cycle = u32::try_from(cycle).unwrap_or(1 << INDEX_BITS);
        let start = self.last.map_or(0, |last| last.saturating_add(1));
        let free = |index: &u32| !self.objects.contains_key(index);
        let index =
            (start..cycle).find(free).or_else(|| (0..cycle.max(start)).find(free)).ok_or(Errno::ENOSPC)?;
        let around = self.last.is_some_and(|last| index <= last);
        let round = self.round.wrapping_add(u32::from(around)) & (u32::MAX >> (INDEX_BITS + 1));
        Ok((index, (round << INDEX_BITS | index).cast_signed()))
    }
}

/// Flags and commands that all kinds share (`linux/ipc.h`).
pub mod linux_flags {
    /// `IPC_PRIVATE`
    pub const IPC_PRIVATE: i32 = libc::IPC_PRIVATE;
    /// `IPC_CREAT`
    pub const IPC_CREAT: u32 = libc::IPC_CREAT.cast_unsigned();
    /// `IPC_EXCL`
    pub const IPC_EXCL: u32 = libc::IPC_EXCL.cast_unsigned();
    /// `IPC_NOWAIT`
    pub const IPC_NOWAIT: i32 = libc::IPC_NOWAIT;
    /// Old programs add it to commands; on x86-64 it means nothing.
    pub const IPC_64: i32 = 0x100;
}
