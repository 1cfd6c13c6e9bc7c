//! Control messages (`cmsg(3)`): descriptors and credentials that travel with data.
//!
//! Descriptors in flight are [`Rights`]. They are counted per user ([`MAX_PER_MESSAGE`] in a message, `RLIMIT_NOFILE` in
//! flight) and dropped without recursion: a socket in a queue of a socket in a queue … of any depth is taken apart in a
//! loop. Cycles of sockets in each other's queues are found by [`super::unix::garbage`].

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, LazyLock};

use linux_raw_sys::net as linux;
use parking_lot::Mutex;

use crate::errno::{Errno, SysResult};
use crate::task::{Capability, Credentials, Pid, PidNamespace, Resource, Task};
use crate::vfs::File;

/// Most descriptors in one message (`SCM_MAX_FD`).
pub const MAX_PER_MESSAGE: usize = 253;
/// Bytes of a `struct cmsghdr`.
const HEADER: usize = size_of::<linux::cmsghdr>();
/// Control messages are aligned to this.
const ALIGN: usize = size_of::<usize>();
/// Bytes of a `struct ucred`.
const UCRED: usize = 12;

/// Who sends: process and real or chosen ids.
#[derive(Clone)]
pub struct Identity {
    /// The process; none for the kernel.
    pub pid: Option<Arc<Pid>>,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Identity {
    /// Nobody: what a receiver sees for data sent before it asked for credentials.
    pub fn nobody() -> Identity {
        Identity { pid: None, uid: 65534, gid: 65534 }
    }

    /// What a task stamps on its data: its process and real ids.
    pub fn of(task: &Arc<Task>) -> Identity {
        let who = task.credentials();
        Identity { pid: Some(task.thread_group().pid().clone()), uid: who.uid, gid: who.gid }
    }

    /// What a peer is shown of a task that connects or listens: its process and effective ids.
    pub fn effective(task: &Arc<Task>) -> Identity {
        let who = task.credentials();
        Identity { pid: Some(task.thread_group().pid().clone()), uid: who.euid, gid: who.egid }
    }

    /// Whether data of both may be read as one.
    pub fn same(&self, other: &Identity) -> bool {
        let pids = match (&self.pid, &other.pid) {
            (Some(a), Some(b)) => a.numbers_eq(b),
            (None, None) => true,
            _ => false,
        };
        pids && (self.uid, self.gid) == (other.uid, other.gid)
    }

    /// `struct ucred` with the pid of `namespace`.
    pub fn to_bytes(&self, namespace: Option<&PidNamespace>) -> [u8; UCRED] {
        let pid = match (&self.pid, namespace) {
            (Some(pid), Some(namespace)) => pid.number_in(namespace),
            _ => 0,
        };
        let mut bytes = [0; UCRED];
        let fields =
            pid.to_ne_bytes().into_iter().chain(self.uid.to_ne_bytes()).chain(self.gid.to_ne_bytes());
        bytes.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        bytes
    }

    /// A `struct ucred` that a task chose. `EPERM` unless they are its own ids or it may pretend.
    fn chosen(task: &Arc<Task>, raw: &[u8]) -> SysResult<Identity> {
        let word = |at: usize| raw.get(at..).and_then(|rest| rest.first_chunk::<4>()).copied();
        let (Some(pid), Some(uid), Some(gid)) = (word(0), word(4), word(8)) else {
            return Err(Errno::EINVAL);
        };
        let (pid, uid, gid) = (i32::from_ne_bytes(pid), u32::from_ne_bytes(uid), u32::from_ne_bytes(gid));
        let who = task.credentials();
        let own = task.thread_group().pid();
        let own_pid = pid == own.own();
        let own_uid = [who.uid, who.euid, who.suid].contains(&uid) || who.has(Capability::SETUID);
        let own_gid = [who.gid, who.egid, who.sgid].contains(&gid) || who.has(Capability::SETGID);
        if !(own_uid && own_gid && (own_pid || who.has(Capability::SYS_ADMIN))) {
            return Err(Errno::EPERM);
        }
        let pid = if own_pid {
            own.clone()
        } else {
            task.pid_namespace().and_then(|namespace| namespace.find(pid)).ok_or(Errno::ESRCH)?
        };
        Ok(Identity { pid: Some(pid), uid, gid })
    }
}

static IN_FLIGHT: LazyLock<Mutex<HashMap<u32, usize>>> = LazyLock::new(Mutex::default);

thread_local! {
    static DROPPING: Cell<bool> = const { Cell::new(false) };
    static TO_DROP: RefCell<VecDeque<Arc<File>>> = const { RefCell::new(VecDeque::new()) };
}

/// Descriptions on their way to another process.
pub struct Rights {
    files: Vec<Arc<File>>,
    /// Whose count they are in, and how many are.
    counted: (u32, usize),
}

impl Rights {
    /// Puts `files` in flight for a user. `EINVAL` for too many in a message, `ETOOMANYREFS` for too many in flight.
    pub fn new(files: Vec<Arc<File>>, who: &Credentials, limit: u64) -> SysResult<Rights> {
        if files.len() > MAX_PER_MESSAGE {
            return Err(Errno::EINVAL);
        }
        let exempt = who.has(Capability::SYS_RESOURCE) || who.has(Capability::SYS_ADMIN);
        let mut in_flight = IN_FLIGHT.lock();
        let count = in_flight.entry(who.uid).or_default();
        if *count as u64 > limit && !exempt {
            return Err(Errno::ETOOMANYREFS);
        }
        *count = count.saturating_add(files.len());
        drop(in_flight);
        Ok(Rights { counted: (who.uid, files.len()), files })
    }

    /// The descriptions.
    pub fn files(&self) -> &[Arc<File>] {
        &self.files
    }

    /// Takes them out, for a receiver to install or to look at (`MSG_PEEK` leaves the message its own).
    pub fn into_files(mut self) -> Vec<Arc<File>> {
        std::mem::take(&mut self.files)
    }
}

impl Drop for Rights {
    fn drop(&mut self) {
        let (uid, count) = self.counted;
        let mut in_flight = IN_FLIGHT.lock();
        if let Some(total) = in_flight.get_mut(&uid) {
            *total = total.saturating_sub(count);
            if *total == 0 {
                in_flight.remove(&uid);
            }
        }
        drop(in_flight);
        drop_files(std::mem::take(&mut self.files));
    }
}

/// Drops descriptions one after the other, whatever is nested in them.
pub fn drop_files(files: Vec<Arc<File>>) {
    TO_DROP.with_borrow_mut(|queue| queue.extend(files));
    if DROPPING.replace(true) {
        return;
    }
    while let Some(file) = TO_DROP.with_borrow_mut(VecDeque::pop_front) {
        drop(file);
    }
    DROPPING.set(false);
}

/// What comes along with a message that is sent.
#[derive(Default)]
pub struct Sent {
    /// Descriptors.
    pub rights: Option<Rights>,
    /// Credentials the sender chose.
    pub identity: Option<Identity>,
}

/// What came along with a message that was received.
#[derive(Default)]
pub struct Received {
    /// Descriptors.
    pub files: Vec<Arc<File>>,
    /// The sender, if the receiver wants to know.
    pub identity: Option<Identity>,
}

/// Decodes the control messages of a `sendmsg`. `EINVAL` for malformed or unknown ones, `EBADF`, `EPERM` for what they name.
pub fn decode(task: &Arc<Task>, mut bytes: &[u8]) -> SysResult<Sent> {
    let mut files = Vec::new();
    let mut sent = Sent::default();
    while bytes.len() >= HEADER {
        let (len, level, kind) = header(bytes).ok_or(Errno::EINVAL)?;
        let data = bytes.get(HEADER..len).ok_or(Errno::EINVAL)?;
        if level == linux::SOL_SOCKET {
            match kind {
                linux::SCM_RIGHTS => {
                    for number in data.chunks_exact(size_of::<i32>()) {
                        let fd = i32::from_ne_bytes(number.first_chunk().copied().unwrap_or_default());
                        files.push(task.file(fd as u32 as u64)?);
                        if files.len() > MAX_PER_MESSAGE {
                            return Err(Errno::EINVAL);
                        }
                    }
                }
                linux::SCM_CREDENTIALS if data.len() == UCRED => {
                    sent.identity = Some(Identity::chosen(task, data)?);
                }
                _ => return Err(Errno::EINVAL),
            }
        }
        bytes = bytes.get(len.next_multiple_of(ALIGN)..).unwrap_or_default();
    }
    if !files.is_empty() {
        let limit = task.rlimit(Resource::Nofile).soft;
        sent.rights = Some(Rights::new(files, &task.credentials(), limit)?);
    }
    Ok(sent)
}

fn header(bytes: &[u8]) -> Option<(usize, u32, u32)> {
    let (len, rest) = bytes.split_first_chunk::<8>()?;
    let (level, rest) = rest.split_first_chunk::<4>()?;
    let kind = rest.first_chunk::<4>()?;
    let len = usize::try_from(u64::from_ne_bytes(*len)).ok()?;
    (len >= HEADER).then_some((len, u32::from_ne_bytes(*level), u32::from_ne_bytes(*kind)))
}

/// Writes control messages into a buffer of the receiver's size.
pub struct Encoder {
    bytes: Vec<u8>,
    limit: usize,
    /// Something did not fit (`MSG_CTRUNC`).
    pub truncated: bool,
}

impl Encoder {
    /// For a buffer of `limit` bytes.
    pub fn new(limit: usize) -> Encoder {
        Encoder { bytes: Vec::new(), limit, truncated: false }
    }

    /// How many items of `size` bytes a message that starts here may have.
    pub fn room_for(&self, size: usize) -> usize {
        self.limit.saturating_sub(self.bytes.len()).saturating_sub(HEADER).checked_div(size).unwrap_or(0)
    }

    /// Appends a message; cut to what fits.
    pub fn put(&mut self, kind: u32, data: &[u8]) {
        let room = self.limit.saturating_sub(self.bytes.len());
        if room < HEADER {
            self.truncated = true;
            return;
        }
        let fits = data.len().min(room.saturating_sub(HEADER));
        self.truncated |= fits < data.len();
        let len = HEADER.saturating_add(fits);
        self.bytes.extend_from_slice(&(len as u64).to_ne_bytes());
        self.bytes.extend_from_slice(&linux::SOL_SOCKET.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(data.get(..fits).unwrap_or_default());
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN).min(self.limit), 0);
    }

    /// The messages.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}
