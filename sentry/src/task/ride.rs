//! Threads of a process take turns in one vCPU.
//!
//! A thread that waits on a futex without a deadline is *parked*: its call has ended as far as the call's handler goes, its private half is free
//! ([`Handover`]), and the run loop sleeps for it ([`parked`]). So a dispatcher that sees such a thread woken, and the thread that woke it wait in its
//! turn, can let the one go on in the vCPU of the other ([`Handover::hand_over`], [`crate::platform::Switch`]): without an exit, and without
//! waking a host thread.
//!
//! ```text
//!  carrier A (host thread in KVM_RUN)           dispatcher                      passenger B (host thread sleeps in `parked`)
//!  wake B ────────────────────────────────────▶ holds B back for some microseconds
//!  wait   ────────────────────────────────────▶ parks A; B goes on in A's vCPU  riding, aboard
//!         ◀──────────────────────────────────── A goes on, B is parked again    riding, at rest
//!  KVM_RUN returns with B aboard: B gets registers and exit, its thread wakes; A goes on as any parked thread
//! ```
//! [`Ride`] is the part of it that belongs to a task's private half, and is changed under its lock only. Who runs in a vCPU is the platform's to
//! know; the two agree because both change while the slot's call is being answered.
//!
//! Whether a woken thread is held back is learnt by thread: only wakers that went on to wait several times in a row are worth it, and one that
//! did not wait is not trusted for a while.
//!
//! Locks: of two private halves the second is only tried, but for the carrier's thread, which gives the passenger back: nobody who has a
//! passenger's half waits for another.

use std::cell::{Cell, RefCell};
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::MutexGuard;

use super::futex::{Parked, Sleeper, Wish};
use super::handover::{Handover, Held};
use super::run::State;
use super::{Task, TaskLocal, current, rseq, run};
use crate::errno::{Errno, SysResult};
use crate::platform::{Exit, Place, Registers, Switch};
use crate::syscalls::numbers;
use crate::wait::WaitOutcome;

/// So often in a row a thread must have waited after it woke another, for that one to be held back.
const TRUSTED: i8 = 3;
/// What a thread starts with after it did not wait.
const DISTRUSTED: i8 = -16;
/// A wait so many calls after a wake-up still counts as following it.
const SOON: u8 = 4;
/// Single-step flag: such a thread counts instructions.
const FLAG_TF: u64 = 1 << 8;

/// A task's part in taking turns.
#[derive(Default)]
pub struct Ride {
    /// What it waits on, while it is parked.
    pub(super) wait: Option<Arc<Sleeper>>,
    /// Itself.
    pub(super) home: Weak<Handover>,
    /// It rides in the vCPU of another task, aboard if it does not wait.
    riding: bool,
    /// Who rides aboard in this one's vCPU, and since when.
    carries: Option<(Arc<Handover>, Instant)>,
    /// Nanoseconds that others ran in its vCPU since it last left the guest.
    others: u64,
    /// With what it came back from another's vCPU.
    returned: Option<Exit>,
    /// What the table of patched sites said when it went aboard.
    entered: u64,
    /// How far it is trusted to wait after it woke another.
    trust: i8,
    /// How many calls ago it woke a parked thread.
    since_wake: Option<u8>,
}

/// A thread that is woken and has not been told.
struct HeldBack {
    sleeper: Arc<Sleeper>,
    home: Arc<Handover>,
}

thread_local! {
    /// In a dispatcher that makes a call of a futex: whether it may hold back whom that wakes.
    static MAY_HOLD: Cell<Option<bool>> = const { Cell::new(None) };
    static WOKE: Cell<bool> = const { Cell::new(false) };
    static HELD: RefCell<Option<HeldBack>> = const { RefCell::new(None) };
    static WISH: Cell<Option<Wish>> = const { Cell::new(None) };
}

/// The call would wait for that, if this thread could sleep.
pub(super) fn wish(wish: Wish) {
    WISH.set(Some(wish));
}

/// The thread is woken by the call in progress: whether it is held back, and need not be told yet.
pub(super) fn hold(sleeper: &Arc<Sleeper>) -> bool {
    let Some(trusted) = MAY_HOLD.get() else { return false };
    let Some(home) = sleeper.home() else { return false };
    if !current::is_in(home.task().thread_group()) {
        return false;
    }
    WOKE.set(true);
    if !trusted || holds() {
        return false;
    }
    HELD.set(Some(HeldBack { sleeper: sleeper.clone(), home }));
    true
}

/// Whether this dispatcher holds somebody back.
pub(super) fn holds() -> bool {
    HELD.with_borrow(Option::is_some)
}

/// Tells whom it holds back.
pub(super) fn release() -> bool {
    let held = HELD.take();
    if let Some(held) = &held {
        held.sleeper.notify();
    }
    held.is_some()
}

/// Until the result is dropped, a dispatcher makes a call on a futex.
pub(super) struct Answering;

impl Answering {
    pub(super) fn new(number: u64, ride: &Ride) -> Option<Answering> {
        let waits_or_wakes = number == u64::from(numbers::futex);
        waits_or_wakes.then(|| {
            MAY_HOLD.set(Some(ride.trust >= TRUSTED));
            WISH.set(None);
            Answering
        })
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        MAY_HOLD.set(None);
    }
}

impl Ride {
    /// A call was answered.
    pub(super) fn learn(&mut self, of_futex: bool) {
        self.since_wake = match self.since_wake {
            _ if of_futex && WOKE.take() => Some(0),
            Some(calls) if calls < SOON => Some(calls + 1),
            _ => None,
        };
    }

    /// A call is about to wait.
    fn waits(&mut self) {
        if self.since_wake.take().is_some() {
            self.trust = self.trust.saturating_add(1).min(TRUSTED);
        }
    }

    /// Somebody was held back for nothing.
    pub(super) fn disappointed(&mut self) {
        self.trust = DISTRUSTED;
    }
}

impl Handover {
    /// The call that was declined wants to wait on a futex: parks its task, whose private half is `local`, and lets the thread that is held back go on in
    /// `vcpu`. `None`: nothing was done.
    pub(super) fn hand_over(self: &Arc<Self>, local: &mut TaskLocal, vcpu: u32) -> Option<Switch> {
        let wish = WISH.take()?;
        local.ride.waits();
        let held = HELD.take()?;
        let switch = self.hand_over_to(local, &held, wish, vcpu);
        if switch.is_none() {
            held.sleeper.notify();
        }
        switch
    }

    fn hand_over_to(
        self: &Arc<Self>,
        local: &mut TaskLocal,
        held: &HeldBack,
        wish: Wish,
        vcpu: u32,
    ) -> Option<Switch> {
        let mut next = held.home.held().try_lock()?;
        let Held { local: next, own, .. } = &mut *next;
        let waits = next.ride.wait.as_ref().is_some_and(|sleeper| Arc::ptr_eq(sleeper, &held.sleeper));
        if !waits || !held.home.task().work().is_empty() || !can_share(local, next) {
            return None;
        }
        let switch = match (local.ride.riding, next.ride.riding, &next.ride.carries) {
            (true, _, Some((passenger, _))) if Arc::ptr_eq(passenger, self) => Switch::Back(0),
            (false, _, None) => match next.machine.board(&local.space, vcpu).ok()?? {
                Place::Again => Switch::Again(0),
                Place::New(boarding) => {
                    let (rip, entered) = next.patches.enter(next.registers.rip);
                    next.ride.entered = entered;
                    Switch::Board(Box::new(boarding), Box::new(Registers { rax: 0, rip, ..next.registers }))
                }
            },
            _ => return None,
        };
        if !rseq::enter_again(held.home.task(), &mut next.rseq) {
            return None;
        }
        let now = Instant::now();
        let back = matches!(switch, Switch::Back(_));
        let carrier = (!back).then(|| self.task().kicker.clone());
        let parked = Parked { home: Arc::downgrade(self), carrier };
        let task = self.task();
        let (mm, futexes) = (task.mm(), task.kernel().futexes());
        let queued = mm.futex_key(wish.word.addr, wish.word.scope);
        match queued.and_then(|key| futexes.enqueue(task, &mm, key, wish, Some(parked))) {
            Ok(sleeper) => local.ride.wait = Some(sleeper),
            Err(_) => {
                rseq::leave(next, now);
                return None;
            }
        }
        rseq::leave(local, now);
        own.refresh(held.home.task());
        next.ride.wait = None;
        if back {
            let ran = next.ride.end_of_turn(now);
            task.add_cpu_nanos(ran, 0);
        } else {
            next.ride.riding = true;
            local.ride.carries = Some((held.home.clone(), now));
        }
        task.count_switch();
        task.waiter().show_asleep(true);
        held.home.task().waiter().show_asleep(false);
        Some(switch)
    }
}

impl Ride {
    /// The passenger does not run any more: for how long it did.
    fn end_of_turn(&mut self, now: Instant) -> u64 {
        let Some((_, since)) = self.carries.take() else { return 0 };
        let ran = run::nanos(now.saturating_duration_since(since));
        self.others = self.others.saturating_add(ran);
        ran
    }

    /// Nanoseconds of the stay in the guest that has just ended in which others ran.
    pub(super) fn take_others(&mut self) -> u64 {
        std::mem::take(&mut self.others)
    }
}

/// Whether one of the two can go on where the other is.
fn can_share(one: &TaskLocal, next: &TaskLocal) -> bool {
    Arc::ptr_eq(&one.patches, &next.patches)
        && !one.patches.is_closed()
        && next.interrupted.is_none()
        && next.saved_mask.is_none()
        && next.registers.rflags & FLAG_TF == 0
}

/// A task's vCPU has left the guest at the end of a run. If another one was aboard, that one gets what there is; the task itself is
/// parked, and the result is true.
pub(super) fn give_back(
    local: &mut TaskLocal,
    registers: &mut Registers,
    exit: &SysResult<Exit>,
    (own, entered): (Option<Registers>, u64),
) -> bool {
    let Some(passenger) = local.ride.carries.as_ref().map(|(passenger, _)| passenger.clone()) else {
        return false;
    };
    let now = Instant::now();
    let ran = local.ride.end_of_turn(now);
    let mut theirs = std::mem::replace(registers, own.unwrap_or_default());
    local.patches.leave(entered, registers, Exit::Interrupted);
    let mut home = passenger.held().lock();
    let home = &mut home.local;
    // When the vCPU is lost, so is the process.
    let exit = exit.unwrap_or(Exit::Interrupted);
    let exit = home.patches.leave(home.ride.entered, &mut theirs, exit);
    rseq::leave(home, now);
    home.registers = theirs;
    home.ride.riding = false;
    home.ride.returned = Some(exit);
    passenger.task().add_cpu_nanos(ran, 0);
    passenger.task().waiter().notify();
    true
}

/// Sleeps for a parked task, or for one that rides, until there is something to do for its own thread.
pub(super) fn parked(task: &Arc<Task>, held: &mut MutexGuard<'_, Held>) -> State {
    loop {
        task.waiter().arm();
        let local = &mut held.local;
        if let Some(exit) = local.ride.returned.take() {
            return run::handle_exit(task, local, exit);
        }
        let Some(sleeper) = &local.ride.wait else {
            // It is aboard. Whoever wants something of it gets that vCPU out of the guest.
            MutexGuard::unlocked(held, || task.waiter().wait_uninterruptible());
            continue;
        };
        if sleeper.is_woken() {
            return end_of_wait(task, local, true);
        }
        let outcome = MutexGuard::unlocked(held, || task.sleep(None));
        let local = &mut held.local;
        if outcome == WaitOutcome::Interrupted
            && let Some(sleeper) = local.ride.wait.clone()
        {
            let withdrawn = task.kernel().futexes().withdraw(&sleeper);
            return end_of_wait(task, local, withdrawn.is_err() || sleeper.is_woken());
        }
    }
}

/// The call that the task is parked in ends, as its own thread sees it.
fn end_of_wait(task: &Arc<Task>, local: &mut TaskLocal, woken: bool) -> State {
    local.ride.wait = None;
    task.waiter().show_asleep(false);
    if std::mem::take(&mut local.ride.riding)
        && let Some(mut registers) = local.machine.ashore()
    {
        local.patches.leave(local.ride.entered, &mut registers, Exit::Interrupted);
        local.registers = registers;
    }
    if woken {
        local.registers.rax = 0;
    } else {
        local.registers.rax = local.call.number;
        local.interrupted = Some(Errno::ERESTARTSYS);
    }
    run::after_kernel(task, local)
}
