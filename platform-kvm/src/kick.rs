//! Getting a thread out of the guest.

/// The real-time signal that interrupts KVM_RUN. The crate installs a handler for it in [`crate::Machine::new`]; nobody
/// else may block or handle it. A seccomp filter must allow `tgkill(own pid, *, KICK_SIGNAL)` and `rt_sigreturn`.
pub const KICK_SIGNAL: i32 = 36;

/// Makes one guest thread return from [`crate::GuestThread::run`].
#[derive(Debug, Clone)]
pub struct Kicker {
    _private: (),
}

impl Kicker {
    /// Makes the current, or else the next, `run()` return [`crate::Exit::Interrupted`]. Several kicks before that `run()`
    /// returns count as one. Sends a signal only while the thread is in the guest. Never blocks.
    pub fn kick(&self) {
        todo!()
    }
}
