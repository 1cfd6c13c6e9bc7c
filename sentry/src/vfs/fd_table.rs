//! Descriptor tables.

use std::sync::Arc;

use parking_lot::RwLock;

use super::file::File;
use crate::errno::{Errno, SysResult};

/// A file descriptor as the guest names it: not negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fd(u32);

impl Fd {
    /// From a register; `EBADF` for a negative number.
    pub fn from_arg(raw: u64) -> SysResult<Fd> {
        u32::try_from(raw as u32 as i32).map(Fd).map_err(|_| Errno::EBADF)
    }

    /// Its number.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The descriptors of a process; shared between threads, copied by `fork`.
#[derive(Default)]
pub struct FdTable {
    slots: RwLock<Vec<Option<Slot>>>,
}

#[derive(Clone)]
struct Slot {
    file: Arc<File>,
    close_on_exec: bool,
}

impl FdTable {
    /// The description behind `fd`; `EBADF` if there is none.
    pub fn get(&self, fd: Fd) -> SysResult<Arc<File>> {
        let slots = self.slots.read();
        slots.get(fd.index()).and_then(Option::as_ref).map(|slot| slot.file.clone()).ok_or(Errno::EBADF)
    }

    /// Installs `file` at the lowest free number from `at_least` on, below `limit`; `EMFILE` if there is none.
    pub fn install(&self, file: Arc<File>, close_on_exec: bool, at_least: u32, limit: u64) -> SysResult<Fd> {
        let mut slots = self.slots.write();
        let mut index = at_least as usize;
        while slots.get(index).is_some_and(Option::is_some) {
            index += 1;
        }
        let number = u32::try_from(index).map_err(|_| Errno::EMFILE)?;
        if u64::from(number) >= limit {
            return Err(Errno::EMFILE);
        }
        if slots.len() <= index {
            slots.resize(index + 1, None);
        }
        if let Some(slot) = slots.get_mut(index) {
            *slot = Some(Slot { file, close_on_exec });
        }
        Ok(Fd(number))
    }

    /// Closes `fd`, handing back its description so that it can be flushed and dropped outside the lock.
    pub fn close(&self, fd: Fd) -> SysResult<Arc<File>> {
        let mut slots = self.slots.write();
        slots.get_mut(fd.index()).and_then(Option::take).map(|slot| slot.file).ok_or(Errno::EBADF)
    }

    /// A copy for `fork`.
    pub fn fork(&self) -> FdTable {
        FdTable { slots: RwLock::new(self.slots.read().clone()) }
    }

    /// Takes out every descriptor marked close-on-exec.
    pub fn take_close_on_exec(&self) -> Vec<Arc<File>> {
        let mut slots = self.slots.write();
        let marked = slots.iter_mut().filter(|slot| slot.as_ref().is_some_and(|slot| slot.close_on_exec));
        marked.filter_map(|slot| slot.take().map(|slot| slot.file)).collect()
    }
}
