//! Threads that were in the guest when rights were taken away without getting them out.

use crate::kick::Gate;
use std::sync::Arc;

/// The threads that were in the guest at some moment. Until each of them has left it, for whatever reason, the host may be in the
/// middle of something that it began for one of them before that moment, with a guest-physical address in its hands that no entry
/// shows any more. So what was mapped there must not be given to anybody else before [`Stragglers::are_gone`].
#[derive(Debug, Default)]
pub struct Stragglers {
    inside: Vec<(Arc<Gate>, u32)>,
}

impl Stragglers {
    /// Those of `gates` that are in the guest now.
    pub(crate) fn of(gates: &[Arc<Gate>]) -> Stragglers {
        let inside = gates.iter().filter_map(|gate| gate.inside().map(|word| (gate.clone(), word)));
        Stragglers { inside: inside.collect() }
    }

    /// Whether all of them have left the guest since. Never blocks.
    pub fn are_gone(&self) -> bool {
        self.inside.iter().all(|(gate, word)| !gate.still(*word))
    }

    /// Gets those out that are still there, and waits for it. As a revocation does, so the caller may hold what a thread does not need
    /// for leaving the guest.
    pub fn expel(&self) {
        let inside = self.inside.iter().filter(|(gate, word)| gate.still(*word));
        let inside = inside.inspect(|(gate, word)| gate.signal(*word)).collect::<Vec<_>>();
        for (gate, word) in inside {
            gate.wait_departure(*word);
        }
    }
}
