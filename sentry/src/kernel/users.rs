//! What is counted per real user id: processes (`RLIMIT_NPROC`) and queued signals (`RLIMIT_SIGPENDING`).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::task::signal::SignalCount;

/// One user's counters.
#[derive(Default)]
pub struct User {
    tasks: AtomicU64,
    signals: Arc<SignalCount>,
}

impl User {
    /// Queued signals.
    pub fn signals(&self) -> &Arc<SignalCount> {
        &self.signals
    }

    /// Threads of this user.
    pub fn tasks(&self) -> u64 {
        self.tasks.load(Ordering::Relaxed)
    }
}

/// A task's place in its user's count.
pub struct UserCharge(Arc<User>);

impl UserCharge {
    /// The user.
    pub fn user(&self) -> &Arc<User> {
        &self.0
    }
}

impl Drop for UserCharge {
    fn drop(&mut self) {
        self.0.tasks.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Every user with tasks.
#[derive(Default)]
pub struct Users {
    by_uid: Mutex<HashMap<u32, Weak<User>>>,
}

impl Users {
    /// Counts one more task of `uid`.
    pub fn charge(&self, uid: u32) -> UserCharge {
        let mut by_uid = self.by_uid.lock();
        let user = by_uid.get(&uid).and_then(Weak::upgrade).unwrap_or_else(|| {
            by_uid.retain(|_, user| user.strong_count() > 0);
            let user = Arc::new(User::default());
            by_uid.insert(uid, Arc::downgrade(&user));
            user
        });
        user.tasks.fetch_add(1, Ordering::Relaxed);
        UserCharge(user)
    }

    /// How many tasks `uid` has.
    pub fn tasks_of(&self, uid: u32) -> u64 {
        self.by_uid.lock().get(&uid).and_then(Weak::upgrade).map_or(0, |user| user.tasks())
    }
}
