//! What a thread leaves in memory when it exits or calls `execve`: robust locks marked, its thread id cleared.

use std::sync::Arc;

use linux_raw_sys::general as linux;

use super::{MATCH_ANY, Word};
use crate::errno::SysResult;
use crate::mm::{FutexScope, Mm};
use crate::task::{Task, TaskLocal};

/// Entries of a robust list that are looked at (`ROBUST_LIST_LIMIT`).
const LIMIT: usize = 2048;
/// Lowest bit of a list pointer: a priority-inheritance futex.
const PI: u64 = 1;

/// Frees the robust locks, clears the thread id and wakes whoever joins. Errors end the walk silently, as in Linux.
pub(in crate::task) fn leave_memory(task: &Arc<Task>, local: &mut TaskLocal) {
    let mm = task.mm();
    let head = std::mem::take(&mut local.robust_list);
    if head != 0 {
        let _ = walk(task, &mm, head);
    }
    let tid_at = std::mem::take(&mut local.clear_child_tid);
    if tid_at != 0 && mm.copy_out(tid_at, &0u32).is_ok() {
        let word = Word { addr: tid_at, scope: FutexScope::Shared };
        let _ = task.kernel().futexes().wake(&mm, word, 1, MATCH_ANY);
    }
}

/// `struct robust_list_head`: first entry, offset of the word from an entry, entry being locked or unlocked.
fn walk(task: &Arc<Task>, mm: &Mm, head: u64) -> SysResult {
    let [first, offset, pending]: [u64; 3] = mm.copy_in(head)?;
    let mut entry = first;
    for _ in 0..LIMIT {
        if entry & !PI == head {
            break;
        }
        let next = mm.copy_in::<u64>(entry & !PI);
        if entry != pending {
            mark_dead(task, mm, entry, offset, Pending::No)?;
        }
        entry = next?;
    }
    if pending & !PI != 0 {
        mark_dead(task, mm, pending, offset, Pending::Yes)?;
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pending {
    Yes,
    No,
}

/// If the exiting thread owns the lock: `FUTEX_OWNER_DIED`, and one waiter is woken.
fn mark_dead(task: &Arc<Task>, mm: &Mm, entry: u64, offset: u64, pending: Pending) -> SysResult {
    let addr = (entry & !PI).wrapping_add(offset);
    let me = task.tid().unsigned_abs();
    let word = Word { addr, scope: FutexScope::Shared };
    let private = Word { addr, scope: FutexScope::Private };
    let futexes = task.kernel().futexes();
    let wake = || -> SysResult {
        // Robust words are shared or private; the list does not tell.
        if futexes.wake(mm, word, 1, MATCH_ANY)? == 0 {
            futexes.wake(mm, private, 1, MATCH_ANY)?;
        }
        Ok(())
    };
    loop {
        let old = mm.load_u32(addr)?;
        let owner = old & linux::FUTEX_TID_MASK;
        // Died between unlocking and waking: the waiter would sleep for ever.
        if pending == Pending::Yes && entry & PI == 0 && owner == 0 {
            return wake();
        }
        if owner != me {
            return Ok(());
        }
        let new = (old & linux::FUTEX_WAITERS) | linux::FUTEX_OWNER_DIED;
        if mm.compare_exchange_u32(addr, old, new)? != old {
            continue;
        }
        if old & linux::FUTEX_WAITERS != 0 {
            if entry & PI != 0 {
                futexes.hand_over_dead(mm, word)?;
                futexes.hand_over_dead(mm, private)?;
            } else {
                wake()?;
            }
        }
        return Ok(());
    }
}
