//! What identifies a futex word.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::Mm;
use super::mappable::Mappable;
use crate::errno::{Errno, SysResult};

/// The identity of a futex word, equal for all who wait on the same word.
#[derive(Clone)]
pub struct FutexKey(Kind);

#[derive(Clone)]
enum Kind {
    /// `FUTEX_PRIVATE_FLAG`: this address space only.
    Private { mm: u64, addr: u64 },
    /// A shared futex in memory that nobody else can map.
    Anonymous { mm: u64, addr: u64 },
    /// A shared futex in a shared object, which the key keeps alive.
    Object { object: Arc<dyn Mappable>, offset: u64 },
}

impl FutexKey {
    fn parts(&self) -> (u8, u64, u64) {
        match &self.0 {
            Kind::Private { mm, addr } => (0, *mm, *addr),
            Kind::Anonymous { mm, addr } => (1, *mm, *addr),
            Kind::Object { object, offset } => {
                (2, std::ptr::from_ref(object.mappings()).addr() as u64, *offset)
            }
        }
    }
}

impl PartialEq for FutexKey {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for FutexKey {}

impl Hash for FutexKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}

impl std::fmt::Debug for FutexKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (kind, whose, at) = self.parts();
        write!(f, "FutexKey({kind}, {whose:#x}, {at:#x})")
    }
}

/// Whether a futex call carries `FUTEX_PRIVATE_FLAG`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FutexScope {
    /// It does: only threads of this process use the word.
    Private,
    /// It does not.
    Shared,
}

impl Mm {
    /// The key of the futex word at `addr`. `EINVAL` if it is not aligned to 4 bytes, `EFAULT` if it is outside of user memory
    /// or, for a shared one, not mapped.
    pub fn futex_key(&self, addr: u64, scope: FutexScope) -> SysResult<FutexKey> {
        if !addr.is_multiple_of(4) {
            return Err(Errno::EINVAL);
        }
        if addr >= crate::platform::GVA_END {
            return Err(Errno::EFAULT);
        }
        if scope == FutexScope::Private {
            return Ok(FutexKey(Kind::Private { mm: self.id, addr }));
        }
        let state = self.state.read();
        let vma = state.vmas.find(addr).ok_or(Errno::EFAULT)?;
        Ok(FutexKey(match vma.object_at(addr) {
            Some((mapping, offset)) if !vma.is_private() => {
                Kind::Object { object: mapping.object.clone(), offset }
            }
            _ => Kind::Anonymous { mm: self.id, addr },
        }))
    }
}
