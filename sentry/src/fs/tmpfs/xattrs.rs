//! Extended attributes.

use std::collections::BTreeMap;

use linux_raw_sys::general as linux;
use parking_lot::Mutex;

use crate::errno::{Errno, SysResult};

/// Most bytes of names and values on one inode.
const TOTAL_MAX: usize = 128 * 1024;

/// The attributes of one inode.
#[derive(Default)]
pub(super) struct Xattrs(Mutex<Option<Box<ByName>>>);

type ByName = BTreeMap<Vec<u8>, Vec<u8>>;

impl Xattrs {
    pub fn get(&self, name: &[u8]) -> SysResult<Vec<u8>> {
        self.0.lock().as_ref().and_then(|map| map.get(name)).cloned().ok_or(Errno::ENODATA)
    }

    pub fn set(&self, name: &[u8], value: &[u8], flags: u32) -> SysResult {
        let mut map = self.0.lock();
        let map = map.get_or_insert_default();
        let exists = map.contains_key(name);
        if exists && flags & linux::XATTR_CREATE != 0 {
            return Err(Errno::EEXIST);
        }
        if !exists && flags & linux::XATTR_REPLACE != 0 {
            return Err(Errno::ENODATA);
        }
        let others = map.iter().filter(|(known, _)| known.as_slice() != name);
        let used: usize = others.map(|(name, value)| name.len() + value.len()).sum();
        if used.saturating_add(name.len()).saturating_add(value.len()) > TOTAL_MAX {
            return Err(Errno::ENOSPC);
        }
        map.insert(name.to_vec(), value.to_vec());
        Ok(())
    }

    pub fn remove(&self, name: &[u8]) -> SysResult {
        self.0.lock().as_mut().and_then(|map| map.remove(name)).map(|_| ()).ok_or(Errno::ENODATA)
    }

    pub fn list(&self) -> Vec<Vec<u8>> {
        self.0.lock().as_ref().map(|map| map.keys().cloned().collect()).unwrap_or_default()
    }
}
