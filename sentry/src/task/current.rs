//! The task on whose behalf this host thread works.
//!
//! A few objects answer differently to different callers although their operations carry no context: reading a
//! signalfd takes *the reader's* signals, a terminal asks for the reader's process group, a unix socket stamps the
//! sender's credentials, `/dev/tty` and `/proc/self` mean the caller's. They ask here.
//!
//! A task's own thread calls [`enter`] once for its life; a dispatcher thread calls [`lend`] around each call it answers.
//! Threads of the kernel itself (timers, host pump) have no current task.

use std::cell::RefCell;
use std::sync::Arc;

use super::{Task, ThreadGroup};

thread_local! {
    static CURRENT: RefCell<Option<Arc<Task>>> = const { RefCell::new(None) };
}

/// The current task, if this thread works for one.
pub fn current() -> Option<Arc<Task>> {
    CURRENT.with_borrow(Clone::clone)
}

/// Whether this thread works for a task of that process.
pub fn is_in(group: &Arc<ThreadGroup>) -> bool {
    CURRENT.with_borrow(|task| task.as_ref().is_some_and(|task| Arc::ptr_eq(task.thread_group(), group)))
}

/// Makes `task` current until the result is dropped, which puts back what was current before.
#[must_use = "dropping the result leaves the task"]
pub fn enter(task: Arc<Task>) -> Entered {
    Entered { previous: CURRENT.replace(Some(task)) }
}

/// As [`enter`], with a task that `from` has for this: it gets it back, which spares the counting.
#[must_use = "dropping the result leaves the task"]
pub fn lend(from: &mut Option<Arc<Task>>) -> Lent<'_> {
    let previous = CURRENT.replace(from.take());
    Lent { from, previous }
}

/// See [`lend`].
pub struct Lent<'a> {
    from: &'a mut Option<Arc<Task>>,
    previous: Option<Arc<Task>>,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        *self.from = CURRENT.replace(self.previous.take());
    }
}

/// See [`enter`].
pub struct Entered {
    previous: Option<Arc<Task>>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let left = CURRENT.replace(self.previous.take());
        drop(left);
    }
}
