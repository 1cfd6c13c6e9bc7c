//! Epolls that watch epolls: no cycles, and not too deep.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::Epoll;
use crate::errno::{Errno, SysResult};
use crate::vfs::File;

/// Most epolls in a chain (Linux: `EP_MAX_NESTS` links).
pub(super) const MAX_DEPTH: usize = 5;

/// Serializes every change to who watches whom.
static NESTING: Mutex<()> = Mutex::new(());

/// Lets the epoll `outer` (behind `own`) watch `inner` through `insert`; `ELOOP` for a cycle or a chain that is too long.
pub(super) fn link(
    own: &Arc<File>,
    outer: &Epoll,
    inner: &Epoll,
    insert: impl FnOnce() -> SysResult,
) -> SysResult {
    let _nesting = NESTING.lock();
    if below(inner, outer, MAX_DEPTH)?.saturating_add(above(outer, MAX_DEPTH)) > MAX_DEPTH {
        return Err(Errno::ELOOP);
    }
    insert()?;
    let mut parents = inner.parents.lock();
    parents.retain(|parent| parent.strong_count() > 0);
    parents.push(Arc::downgrade(own));
    Ok(())
}

/// `own` no longer watches `inner`.
pub(super) fn unlink(own: &Arc<File>, inner: &Epoll) {
    let _nesting = NESTING.lock();
    let mut parents = inner.parents.lock();
    if let Some(index) = parents.iter().position(|parent| std::ptr::eq(parent.as_ptr(), Arc::as_ptr(own))) {
        parents.swap_remove(index);
    }
}

/// Epolls in the longest chain from `from` downwards, itself included; `ELOOP` if `forbidden` is among them.
fn below(from: &Epoll, forbidden: &Epoll, limit: usize) -> SysResult<usize> {
    if std::ptr::eq(from, forbidden) || limit == 0 {
        return Err(Errno::ELOOP);
    }
    let mut deepest = Ok(0);
    from.for_each_child(|child| {
        if let Ok(known) = deepest {
            deepest = below(child, forbidden, limit.saturating_sub(1)).map(|depth| depth.max(known));
        }
    });
    deepest.map(|depth| depth.saturating_add(1))
}

/// Epolls in the longest chain from `from` upwards, itself included.
fn above(from: &Epoll, limit: usize) -> usize {
    if limit == 0 {
        return 1;
    }
    let parents: Vec<Arc<File>> = from.parents.lock().iter().filter_map(Weak::upgrade).collect();
    let heights = parents
        .iter()
        .filter_map(|parent| parent.ops_as::<Epoll>())
        .map(|parent| above(parent, limit.saturating_sub(1)));
    heights.max().unwrap_or(0).saturating_add(1)
}
