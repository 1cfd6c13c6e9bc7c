//! `PR_SET_CHILD_SUBREAPER`: processes that adopt their descendants' orphans.

use std::sync::Arc;

use super::ThreadGroup;

impl ThreadGroup {
    /// Whether it adopts its descendants' orphans.
    pub fn is_child_subreaper(&self) -> bool {
        self.relations().child_subreaper
    }

    /// Makes it adopt its descendants' orphans, or stop doing so. Descendants that live already count, too.
    pub fn set_child_subreaper(self: &Arc<Self>, on: bool) {
        let _tree = self.kernel().tree();
        self.relations().child_subreaper = on;
        if !on {
            return;
        }
        let mut pending = self.children();
        while let Some(group) = pending.pop() {
            group.relations().below_subreaper = true;
            pending.extend(group.children());
        }
    }
}
