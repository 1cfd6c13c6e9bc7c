//! What an inode's attributes are now, and the changes that make what was known old.

use std::sync::atomic::Ordering;

use caisson_proto::lisafs as wire;

use super::GoferFs;
use super::attributes::Asked;
use super::handle::Want;
use super::inode::GoferInode;
use super::witness::About;
use crate::errno::SysResult;

impl GoferInode {
    /// The attributes, from where they are had most cheaply.
    pub(super) fn current(&self) -> SysResult<wire::Attr> {
        self.current_on(&*self.fs()?)
    }

    /// [`GoferInode::current`] for a caller that has the file system at hand.
    pub(super) fn current_on(&self, fs: &GoferFs) -> SysResult<wire::Attr> {
        let written = self.written.load(Ordering::Relaxed);
        if written && self.windows.get().is_none_or(|windows| !windows.mappings().is_mapped()) {
            // This time still: it may have been written to the last moment.
            self.written.store(false, Ordering::Relaxed);
        }
        if !fs.is_exclusive() {
            return self.current_shared(fs, written);
        }
        let owner_known = {
            let cached = self.attr.lock();
            if cached.usable(fs) && !written {
                return Ok(cached.attr);
            }
            cached.owner_known()
        };
        let handle = if owner_known { self.handles.lock().get(Want::Read) } else { None };
        if let Some(handle) = handle {
            let mut cached = self.attr.lock();
            cached.read(handle.fd())?;
            return Ok(cached.attr);
        }
        let asked = self.attr.lock().asking();
        let attr = fs.client().stat(self.fd())?;
        self.attr.lock().learn(asked, attr);
        Ok(attr)
    }

    /// The attributes of a file that others change, too: what a descriptor tells now, or the gofer.
    fn current_shared(&self, fs: &GoferFs, written: bool) -> SysResult<wire::Attr> {
        match self.seen() {
            Some(host) => {
                if let Some(attr) = self.attr.lock().proven(&host) {
                    return Ok(attr);
                }
            }
            None => {
                let cached = self.attr.lock();
                if cached.usable(fs) && !written {
                    return Ok(cached.attr);
                }
            }
        }
        self.want_witness(fs, About::Attributes);
        let asked = self.attr.lock().asking();
        let attr = fs.client().stat(self.fd())?;
        self.attr.lock().learn(asked, attr);
        Ok(attr)
    }

    /// What a descriptor of it tells, if there is one.
    fn seen(&self) -> Option<rustix::fs::Stat> {
        self.witness().look().or_else(|| {
            let handle = self.handles.lock().get(Want::Read)?;
            rustix::fs::fstat(handle.fd()).ok()
        })
    }

    /// A change of the file by ourselves, from before it is made until it is dropped.
    pub(super) fn changing(&self) -> Changing<'_> {
        Changing { begun: self.attr.lock().begin(), inode: self }
    }
}

/// A change that is being made. What is learned meanwhile is not kept.
pub(super) struct Changing<'a> {
    inode: &'a GoferInode,
    begun: Asked,
}

impl Changing<'_> {
    /// It is made, and these are the attributes after it. Only for who holds [`GoferInode::order`].
    pub(super) fn done(self, attr: wire::Attr) {
        self.inode.attr.lock().end_with(self.begun, attr);
        std::mem::forget(self);
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.inode.attr.lock().end();
    }
}
