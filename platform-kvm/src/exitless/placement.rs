//! On which processor a dispatcher polls: not on the one whose guest it is to answer.
//!
//! A scheduler likes to put a thread where the one that woke it runs. For a dispatcher that is the one wrong place: it would poll while the guest
//! does not run, find nothing, and take it that processors are scarce. So it leaves that processor, and stays away until it is woken
//! from where it is.

use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

/// This thread.
const OWN: Pid = Pid::from_raw(0);

/// The processor this thread runs on.
pub(super) fn processor() -> Option<usize> {
    sched_getcpu().ok()
}

/// Where the calling thread may run.
pub(super) struct Placement {
    /// Where it may run if nobody is in its way; `None` if the host does not tell.
    all: Option<CpuSet>,
}

impl Placement {
    pub(super) fn new() -> Placement {
        Placement { all: sched_getaffinity(OWN).ok() }
    }

    /// Leaves `other` if this thread is there. It stays where there is no other place.
    pub(super) fn keep_off(&mut self, other: Option<usize>) {
        let (Some(mut set), Some(other)) = (self.all, other) else { return };
        if processor() == Some(other) && set.unset(other).is_ok() {
            // Refused when nothing would be left.
            let _ = sched_setaffinity(OWN, &set);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_the_processor_of_its_waker() {
        std::thread::spawn(|| {
            let mut placement = Placement::new();
            let places = placement
                .all
                .map_or(0, |set| (0..CpuSet::count()).filter(|n| set.is_set(*n) == Ok(true)).count());
            for _ in 0..20 {
                let here = processor();
                placement.keep_off(here);
                assert!(places < 2 || processor() != here);
            }
        })
        .join()
        .unwrap();
    }
}
