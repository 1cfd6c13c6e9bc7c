//! What a connection holds: its ids and the objects behind them.
//!
//! An id is a slot's index and the slot's generation, which grows each time the slot is freed, so that an id that was closed
//! stays invalid when its slot is used again. The root is slot 0 and is never freed.
//!
//! Not here yet: a way to share one open object between connections; nobody needs it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use caisson_proto::lisafs::{FdId, FileKind};
use parking_lot::Mutex;
use rustix::io::Errno;

/// A file found by a walk or a creation.
#[derive(Debug)]
pub struct Node {
    /// An `O_PATH` descriptor, or one for reading that the client has got, too ([`crate::host::Host::read_here`]). Of the latter the offset and
    /// the status flags are in the client's hands; no operation uses them.
    pub fd: OwnedFd,
    /// The file's type, which never changes.
    pub kind: FileKind,
}

/// A regular file that the server keeps open.
#[derive(Debug)]
pub struct OpenFile {
    /// The descriptor.
    pub fd: OwnedFd,
    /// Opened for reading.
    pub readable: bool,
    /// Opened for writing.
    pub writable: bool,
}

/// A directory that is being read.
#[derive(Debug)]
pub struct OpenDir {
    /// The descriptor, whose offset the mutex guards.
    pub fd: OwnedFd,
    /// Where the kernel's offset stands.
    pub position: Mutex<u64>,
}

/// What an id stands for.
#[derive(Clone, Debug)]
pub enum Object {
    /// A walked file.
    Node(Arc<Node>),
    /// An open file.
    File(Arc<OpenFile>),
    /// An open directory.
    Dir(Arc<OpenDir>),
    /// A bound socket.
    Socket(Arc<OwnedFd>),
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    object: Option<Object>,
}

/// A connection's ids.
#[derive(Debug)]
pub struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    limit: usize,
}

impl Table {
    /// An empty table for at most `limit` objects.
    pub const fn new(limit: usize) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), limit }
    }

    /// Adds an object.
    ///
    /// # Errors
    /// `EMFILE` when the table is full; the object is dropped.
    pub fn insert(&mut self, object: Object) -> Result<FdId, Errno> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < self.limit => {
                let index = u32::try_from(self.slots.len()).map_err(|_| Errno::MFILE)?;
                self.slots.push(Slot { generation: 1, object: None });
                index
            }
            None => return Err(Errno::MFILE),
        };
        let slot = usize::try_from(index).ok().and_then(|at| self.slots.get_mut(at)).ok_or(Errno::MFILE)?;
        slot.object = Some(object);
        FdId::new(pack(index, slot.generation)).ok_or(Errno::MFILE)
    }

    /// True when another `insert` would fail: asked before the host is made to create something.
    pub fn is_full(&self) -> bool {
        self.free.is_empty() && self.slots.len() >= self.limit
    }

    /// True when seven eighths of the table are in use: what is not asked for should not fill it. A client that keeps half of its ids for
    /// names and a quarter for what it has not been asked for does not get that far.
    pub fn is_crowded(&self) -> bool {
        let used = self.slots.len().saturating_sub(self.free.len());
        used >= self.limit.saturating_sub(self.limit / 8)
    }

    /// The object with this id.
    ///
    /// # Errors
    /// `EBADF` when there is none.
    pub fn get(&self, id: FdId) -> Result<Object, Errno> {
        let (index, generation) = unpack(id);
        self.slots
            .get(index)
            .filter(|slot| slot.generation == generation)
            .and_then(|slot| slot.object.clone())
            .ok_or(Errno::BADF)
    }

    /// Takes an object out; `None` for unknown ids and the root.
    pub fn remove(&mut self, id: FdId) -> Option<Object> {
        let (index, generation) = unpack(id);
        let slot = self.slots.get_mut(index).filter(|slot| index != 0 && slot.generation == generation)?;
        let object = slot.object.take()?;
        // A slot whose generations are used up is given up: no id is ever valid twice.
        if let Some(next) = slot.generation.checked_add(1) {
            slot.generation = next;
            self.free.extend(u32::try_from(index));
        }
        Some(object)
    }

    /// Objects in the table.
    pub fn len(&self) -> usize {
        self.slots.iter().filter(|slot| slot.object.is_some()).count()
    }

    /// True when nothing is in the table, not even a root.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

const fn pack(index: u32, generation: u32) -> u64 {
    ((generation as u64) << 32) | index as u64
}

fn unpack(id: FdId) -> (usize, u32) {
    let raw = id.get();
    let index = usize::try_from(raw & u64::from(u32::MAX)).unwrap_or(usize::MAX);
    (index, u32::try_from(raw >> 32).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object() -> Object {
        let fd = rustix::fs::memfd_create("t", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        Object::Socket(Arc::new(fd))
    }

    #[test]
    fn a_closed_id_stays_invalid_when_its_slot_is_used_again() {
        let mut table = Table::new(3);
        let root = table.insert(object()).unwrap();
        let first = table.insert(object()).unwrap();
        assert!(table.get(first).is_ok());
        assert!(table.remove(first).is_some());
        assert!(table.remove(first).is_none());
        let second = table.insert(object()).unwrap();
        assert_ne!(first, second);
        assert!(table.get(first).is_err());
        assert!(table.get(second).is_ok());
        assert!(table.remove(root).is_none(), "the root stays");
        assert_eq!(table.len(), 2);
    }

    #[test]
    fn a_full_table_says_so() {
        let mut table = Table::new(2);
        let _root = table.insert(object()).unwrap();
        let one = table.insert(object()).unwrap();
        assert!(table.is_full());
        assert_eq!(table.insert(object()).unwrap_err(), Errno::MFILE);
        table.remove(one);
        assert!(!table.is_full());
    }

    #[test]
    fn ids_from_thin_air_name_nothing() {
        let mut table = Table::new(8);
        let _root = table.insert(object()).unwrap();
        for raw in [1, 5, u64::MAX, 1 << 32 | 7, 2 << 32, u64::from(u32::MAX)] {
            let id = FdId::new(raw).unwrap();
            assert!(table.get(id).is_err(), "{raw:x}");
            assert!(table.remove(id).is_none());
        }
    }
}
