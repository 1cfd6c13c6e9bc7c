//! The host threads that guest threads run on.
//!
//! Each guest thread has one for its life. A host thread whose guest thread has exited waits a little while for the next one, because
//! making a thread costs more than a fork's bookkeeping. Idle threads are few and end by themselves.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;

use crate::errno::{Errno, SysResult};

/// Bytes of stack. Guest threads never recurse deeply; the deepest path (a walk through a mount, a gofer call) stays far below.
pub(crate) const STACK_SIZE: usize = 256 << 10;
/// Idle threads that are kept.
const MAX_IDLE: usize = 8;
/// How long a thread stays idle.
const LINGER: Duration = Duration::from_secs(2);

type Job = Box<dyn FnOnce() + Send>;

/// The pool of idle host threads.
#[derive(Default)]
pub struct HostThreads {
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    next_id: u64,
    waiting: Vec<(u64, SyncSender<Job>)>,
}

impl HostThreads {
    /// An empty pool.
    pub fn new() -> Arc<HostThreads> {
        Arc::default()
    }

    /// Runs `job` on a thread of its own. `EAGAIN` when the host refuses another thread; the job is dropped then.
    pub fn run(self: &Arc<Self>, job: Job) -> SysResult {
        let mut job = job;
        loop {
            let waiting = self.idle.lock().waiting.pop();
            let Some((_, sender)) = waiting else { return self.spawn(job) };
            match sender.send(job) {
                Ok(()) => return Ok(()),
                // It stopped waiting at this moment.
                Err(back) => job = back.0,
            }
        }
    }

    fn spawn(self: &Arc<Self>, job: Job) -> SysResult {
        let pool = self.clone();
        let builder = std::thread::Builder::new().name("guest".into()).stack_size(STACK_SIZE);
        builder.spawn(move || pool.serve(job)).map(drop).map_err(|_| Errno::EAGAIN)
    }

    fn serve(&self, first: Job) {
        first();
        loop {
            let (sender, receiver) = sync_channel(1);
            let id = {
                let mut idle = self.idle.lock();
                if idle.waiting.len() >= MAX_IDLE {
                    return;
                }
                idle.next_id = idle.next_id.wrapping_add(1);
                let id = idle.next_id;
                idle.waiting.push((id, sender));
                id
            };
            match receiver.recv_timeout(LINGER) {
                Ok(job) => job(),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    let taken = {
                        let mut idle = self.idle.lock();
                        let before = idle.waiting.len();
                        idle.waiting.retain(|(other, _)| *other != id);
                        before == idle.waiting.len()
                    };
                    // Somebody holds our sender and is about to use it.
                    match taken.then(|| receiver.recv()) {
                        Some(Ok(job)) => job(),
                        _ => return,
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_job_runs_once() {
        let pool = HostThreads::new();
        let ran = Arc::new(AtomicUsize::new(0));
        for _ in 0..200 {
            let ran = ran.clone();
            pool.run(Box::new(move || {
                ran.fetch_add(1, Ordering::SeqCst);
            }))
            .unwrap();
        }
        for _ in 0..1000 {
            if ran.load(Ordering::SeqCst) == 200 {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("{} of 200 jobs ran", ran.load(Ordering::SeqCst));
    }
}
