//! Getting a thread out of the guest.
//!
//! Each guest thread has a [`Gate`] with one word: whether the thread is inside (between "about to call KVM_RUN" and "back
//! from it"), and an epoch that counts departures. Entering is a Dekker handshake with everybody who wants it out:
//!
//! ```text
//! thread                              kicker / revoker
//! immediate_exit = 0                  kicked = true  (or: page-table entries changed)
//! word |= IN           (SeqCst)       read word      (SeqCst)
//! read kicked, tlb_gen (SeqCst)       IN? send the signal (and, revoking, wait for the epoch to move)
//! KVM_RUN
//! word = next epoch    (SeqCst)
//! ```
//!
//! Either the thread sees the request after it has set IN, or the other side sees IN and sends the signal. The signal's
//! handler runs on the thread itself and sets `immediate_exit`, so a signal that arrives between the check and KVM_RUN makes
//! KVM_RUN return at once; one that arrives inside makes it return EINTR. A late signal costs an empty turn of the loop.
//! Leaving takes no lock, so a revoker that waits for a departure cannot be part of a cycle. A kick takes one leaf lock, to find the vCPU
//! that the thread runs in when that is another's.

use crate::error::Error;
use crate::exitless::admission::Waiter;
use parking_lot::Mutex;
use std::cell::Cell;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};

/// The real-time signal that interrupts KVM_RUN. The crate installs a handler for it in [`crate::Machine::new`]; nobody
/// else may block or handle it. A seccomp filter must allow `tgkill(own pid, *, KICK_SIGNAL)` and `rt_sigreturn`.
pub const KICK_SIGNAL: i32 = 36;

const IN: u32 = 1;
/// Somebody sleeps until the epoch moves.
const WAITED: u32 = 2;
const EPOCH: u32 = 4;

thread_local! {
    /// `kvm_run.immediate_exit` of the vCPU that this thread is about to run, for the signal handler.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
    static TID: Cell<i32> = const { Cell::new(0) };
}

/// Where a guest thread is, and what others want of it.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    word: AtomicU32,
    kicked: AtomicBool,
    /// The pool wants the thread's vCPU.
    surrender: AtomicBool,
    tid: AtomicI32,
    /// In whose vCPU the thread runs, if that is not its own ([`crate::exitless::ride`]). A leaf lock; leaving the guest does not take it.
    carrier: Mutex<Option<Arc<Gate>>>,
    /// Where the thread waits for its turn ([`crate::exitless::admission`]). A leaf lock, too.
    waiter: Mutex<Option<Arc<Waiter>>>,
}

impl Gate {
    /// The thread is about to run; `immediate_exit` is valid until `leave`.
    pub(crate) fn enter(&self, immediate_exit: *mut u8) {
        IMMEDIATE_EXIT.set(immediate_exit);
        // SAFETY: the caller owns the vCPU whose kvm_run holds this byte. Volatile: the handler and the kernel look at it too.
        unsafe { immediate_exit.write_volatile(0) };
        self.tid.store(own_tid(), Ordering::Relaxed);
        self.word.fetch_or(IN, Ordering::SeqCst);
    }

    /// The thread is back.
    pub(crate) fn leave(&self) {
        let next = (self.word.load(Ordering::Relaxed) & !(IN | WAITED)).wrapping_add(EPOCH);
        let old = self.word.swap(next, Ordering::SeqCst);
        if old & WAITED != 0 {
            futex_wake(&self.word);
        }
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }

    /// Whether there was a kick; it is then used up.
    pub(crate) fn take_kick(&self) -> bool {
        self.kicked.load(Ordering::SeqCst) && self.kicked.swap(false, Ordering::SeqCst)
    }

    /// Whether the pool wants the vCPU; the wish is then used up.
    pub(crate) fn take_surrender(&self) -> bool {
        self.surrender.load(Ordering::SeqCst) && self.surrender.swap(false, Ordering::SeqCst)
    }

    /// Asks the thread to give its vCPU back.
    pub(crate) fn ask_surrender(&self) {
        self.surrender.store(true, Ordering::SeqCst);
        self.interrupt();
    }

    /// Withdraws that request.
    pub(crate) fn cancel_surrender(&self) {
        self.surrender.store(false, Ordering::SeqCst);
    }

    /// See [`Kicker::kick`].
    pub(crate) fn kick(&self) {
        if !self.kicked.swap(true, Ordering::SeqCst) {
            self.interrupt();
            let carrier = self.carrier.lock().clone();
            if let Some(carrier) = carrier {
                carrier.kick();
            }
            if let Some(waiter) = &*self.waiter.lock() {
                waiter.call();
            }
        }
    }

    /// Whether there was a kick, which stays.
    pub(crate) fn is_kicked(&self) -> bool {
        self.kicked.load(Ordering::SeqCst)
    }

    /// The thread waits outside of the guest from now on, or does not any more. It looks for a kick after that.
    pub(crate) fn set_waiter(&self, waiter: Option<Arc<Waiter>>) {
        *self.waiter.lock() = waiter;
    }

    /// The thread runs in another's vCPU from now on, or does not any more. A kick that came before gets the other one out.
    pub(crate) fn set_carrier(&self, carrier: Option<&Arc<Gate>>) {
        *self.carrier.lock() = carrier.cloned();
        if let Some(carrier) = carrier.filter(|_| self.kicked.load(Ordering::SeqCst)) {
            carrier.kick();
        }
    }

    /// The word if the thread is inside.
    pub(crate) fn inside(&self) -> Option<u32> {
        Some(self.word.load(Ordering::SeqCst)).filter(|word| word & IN != 0)
    }

    /// Sends the signal if the thread is inside; returns the word then.
    pub(crate) fn interrupt(&self) -> Option<u32> {
        self.inside().inspect(|word| self.signal(*word))
    }

    /// Sends the signal unless the thread has left since `word` was read. A full signal queue (EAGAIN) is tried again.
    pub(crate) fn signal(&self, word: u32) {
        let tid = self.tid.load(Ordering::Relaxed);
        // SAFETY: getpid takes no arguments and cannot fail.
        let process = unsafe { libc::getpid() };
        while self.still(word) {
            // SAFETY: tgkill takes plain numbers; it reaches only threads of this process, where the handler is harmless.
            let sent = unsafe { libc::syscall(libc::SYS_tgkill, process, tid, KICK_SIGNAL) };
            if sent == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::EAGAIN) {
                return;
            }
            std::thread::yield_now();
        }
    }

    /// Whether the thread has not left since `word` was read.
    pub(crate) fn still(&self, word: u32) -> bool {
        (self.word.load(Ordering::SeqCst) | WAITED) == (word | WAITED)
    }

    /// Waits until the thread has left the guest since `word` was read.
    pub(crate) fn wait_departure(&self, word: u32) {
        loop {
            let now = self.word.load(Ordering::SeqCst);
            if (now | WAITED) != (word | WAITED) {
                return;
            }
            let waited = now | WAITED;
            if now != waited
                && self.word.compare_exchange(now, waited, Ordering::SeqCst, Ordering::SeqCst).is_err()
            {
                continue;
            }
            if !futex_wait(&self.word, waited) {
                // Timed out: the signal cannot be lost, but asking again costs nothing next to hanging.
                self.signal(waited);
            }
        }
    }
}

/// Makes one guest thread return from [`crate::GuestThread::run`].
#[derive(Debug, Clone)]
pub struct Kicker {
    gate: Arc<Gate>,
}

impl Kicker {
    pub(crate) fn new(gate: Arc<Gate>) -> Kicker {
        Kicker { gate }
    }

    /// Makes the current, or else the next, `run()` return [`crate::Exit::Interrupted`]. Several kicks before that `run()`
    /// returns count as one. A `run()` that was leaving the guest for another reason anyway reports that reason and leaves the
    /// kick to the next one. Sends a signal only while the thread is in the guest. Never blocks.
    pub fn kick(&self) {
        self.gate.kick();
    }
}

fn own_tid() -> i32 {
    let tid = TID.get();
    if tid != 0 {
        return tid;
    }
    // SAFETY: gettid takes no arguments and cannot fail.
    let tid = unsafe { libc::gettid() };
    TID.set(tid);
    tid
}

/// Sleeps while the word has this value, at most 100 ms. Returns whether it was woken or the word had changed.
fn futex_wait(word: &AtomicU32, value: u32) -> bool {
    let timeout = libc::timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the word and the timeout outlive the call.
    let result =
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, &raw const timeout) };
    result == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ETIMEDOUT)
}

fn futex_wake(word: &AtomicU32) {
    let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the word is valid; waking touches no memory.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, i32::MAX) };
}

extern "C" fn on_kick(_signal: i32) {
    let immediate_exit = IMMEDIATE_EXIT.get();
    if !immediate_exit.is_null() {
        // SAFETY: not null only between `enter` and `leave` of this very thread, which owns the vCPU then.
        unsafe { immediate_exit.write_volatile(1) };
    }
}

/// Installs the handler and unblocks the signal in the calling thread (and those it creates later).
pub(crate) fn install_handler() -> Result<(), Error> {
    // SAFETY: an all-zero sigaction is a valid value of that C struct.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_kick as *const () as usize;
    // SA_RESTART: a late signal must not break a system call of the sentry. KVM_RUN returns EINTR regardless.
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: `action` is initialised; the handler is async-signal-safe (one thread-local without initialiser, one store).
    if unsafe { libc::sigaction(KICK_SIGNAL, &action, ptr::null_mut()) } != 0 {
        return Err(Error::host("handling the kick signal"));
    }
    Ok(())
}
