//! Interval timers (`setitimer`) and POSIX timers (`timer_create`) of a process, and its limit of CPU time.
//!
//! A [`ProcessTimer`] knows when it fires next, on a clock of its own: host time, or the process's CPU time. Host-time timers
//! sit in the [`Timers`] service. A CPU-time timer waits there for the shortest real time in which the process could use up
//! what is left, and looks again.
//!
//! Locks: a process's timer table, then a timer's state; signals are sent with neither held.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use linux_raw_sys::general as linux;
use parking_lot::Mutex;

use super::clock_id::{Clock, after};
use super::{TimerHandle, TimerTarget, Timers, Timespec};
use crate::errno::{Errno, SysResult};
use crate::task::rlimit::INFINITY;
use crate::task::signal::SigFields;
use crate::task::{Resource, SigInfo, Signal, SyscallContext, Task, ThreadGroup};

/// Most POSIX timers of a process.
const MAX_TIMERS: usize = 1024;
/// A periodic timer expires no sooner than this after it has expired (Linux's default timer slack); what it misses counts.
const PERIODIC_GRAIN: Duration = Duration::from_micros(50);
/// CPU-time timers are looked at no more often than this.
const CPU_GRAIN: Duration = Duration::from_millis(1);

/// What a timer measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Real time.
    Host,
    /// User time of the process.
    User,
    /// User and system time of the process.
    Cpu,
}

/// What an expiry does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notify {
    /// Nothing (`SIGEV_NONE`).
    Nothing,
    /// An interval timer's signal.
    Interval(Signal),
    /// A POSIX timer's signal to the process.
    Process(Signal, u64),
    /// `RLIMIT_CPU` is reached.
    CpuLimit,
    /// A POSIX timer's signal to one thread, by thread id in the process's namespace.
    Thread(Signal, u64, i32),
}

/// A timer's setting: time left until the next expiry (`None` = disarmed) and the interval after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Setting {
    /// Time left.
    pub value: Option<Duration>,
    /// Interval; zero for a single shot.
    pub interval: Duration,
}

/// One timer of a process.
pub struct ProcessTimer {
    id: i32,
    clock: Clock,
    measure: Measure,
    notify: Notify,
    group: Weak<ThreadGroup>,
    /// The thread whose time it measures; `None` for the whole process.
    thread: Option<Weak<Task>>,
    state: Mutex<State>,
    this: Weak<ProcessTimer>,
}

#[derive(Default)]
struct State {
    /// When it fires next.
    next: Option<Moment>,
    interval: Duration,
    handle: Option<TimerHandle>,
    /// Expiries beyond the one that was signalled, of the signal that was taken last.
    overrun: i32,
}

/// A point on the timer's own clock.
#[derive(Clone, Copy, Debug)]
enum Moment {
    Host(Instant),
    /// Nanoseconds of CPU time.
    Cpu(u64),
}

impl ProcessTimer {
    fn new(
        id: i32,
        clock: Clock,
        notify: Notify,
        group: &Arc<ThreadGroup>,
        measure: Measure,
        thread: Option<&Arc<Task>>,
    ) -> Arc<ProcessTimer> {
        let (group, thread) = (Arc::downgrade(group), thread.map(Arc::downgrade));
        Arc::new_cyclic(|this| ProcessTimer {
            id,
            clock,
            measure,
            notify,
            group,
            thread: thread.clone(),
            state: Mutex::default(),
            this: this.clone(),
        })
    }

    /// Its clock's time, for absolute settings.
    pub fn clock_now(&self, ctx: &SyscallContext<'_>) -> SysResult<Timespec> {
        match self.measure {
            Measure::Host => self.clock.now(ctx),
            _ => Ok(Timespec::from_nanos(i64::try_from(self.cpu_nanos()).unwrap_or(i64::MAX))),
        }
    }

    fn cpu_nanos(&self) -> u64 {
        let (user, system) = match &self.thread {
            // The time of a thread that has ended stands still where nobody waits for it.
            Some(thread) => thread.upgrade().map_or((0, 0), |task| task.cpu_nanos()),
            None => self.group.upgrade().map_or((0, 0), |group| group.cpu_nanos()),
        };
        if self.measure == Measure::User { user } else { user.wrapping_add(system) }
    }

    /// Its present setting.
    pub fn get(&self) -> Setting {
        let state = self.state.lock();
        let value = state.next.map(|next| match next {
            Moment::Host(at) => at.saturating_duration_since(Instant::now()),
            Moment::Cpu(at) => Duration::from_nanos(at.saturating_sub(self.cpu_nanos())),
        });
        // An armed timer never shows zero, which would mean disarmed.
        Setting { value: value.map(|left| left.max(Duration::from_nanos(1))), interval: state.interval }
    }

    /// Changes the setting, returning the former. A value of zero fires at once.
    pub fn set(&self, timers: &Arc<Timers>, new: Setting) -> Setting {
        self.set_late(timers, new, Duration::ZERO)
    }

    /// The same for a first expiry that was due `late` ago, with those that would have followed it since.
    pub fn set_late(&self, timers: &Arc<Timers>, new: Setting, late: Duration) -> Setting {
        let old = self.get();
        let mut state = self.state.lock();
        let dropped = state.handle.take();
        state.interval = new.interval;
        state.overrun = 0;
        state.next = new.value.map(|value| match self.measure {
            Measure::Host => {
                let at = after(value);
                Moment::Host(at.checked_sub(late).unwrap_or(at))
            }
            _ => Moment::Cpu(
                self.cpu_nanos().saturating_add(u64::try_from(value.as_nanos()).unwrap_or(u64::MAX)),
            ),
        });
        self.arm(timers, &mut state, None);
        drop(state);
        drop(dropped);
        old
    }

    /// Expiries that the last signal that was taken stands for beyond the first.
    pub fn overrun(&self) -> i32 {
        self.state.lock().overrun
    }

    fn arm(&self, timers: &Arc<Timers>, state: &mut State, soonest: Option<Instant>) {
        let (Some(next), Some(this)) = (state.next, self.this.upgrade()) else { return };
        let at = match next {
            Moment::Host(at) => at,
            Moment::Cpu(at) => after(self.shortest_wait(at)),
        };
        let at = soonest.map_or(at, |soonest| at.max(soonest));
        state.handle = Some(timers.schedule(at, this));
    }

    /// How soon the process could have used its CPU time up to `at`, all its threads running.
    fn shortest_wait(&self, at: u64) -> Duration {
        let threads = match self.thread {
            Some(_) => 1,
            None => self.group.upgrade().map_or(1, |group| group.thread_count().max(1)),
        };
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let parallel = u64::try_from(threads.min(cpus)).unwrap_or(1);
        let left = at.saturating_sub(self.cpu_nanos());
        Duration::from_nanos(left.checked_div(parallel).unwrap_or(left)).max(CPU_GRAIN)
    }

    /// Steps past the present, counting expiries; `None` if the time has not come yet.
    fn expire(&self, state: &mut State) -> Option<u64> {
        let late = match state.next? {
            Moment::Host(at) => Instant::now().checked_duration_since(at)?,
            Moment::Cpu(at) => Duration::from_nanos(self.cpu_nanos().checked_sub(at)?),
        };
        let interval = state.interval.as_nanos();
        if interval == 0 {
            state.next = None;
            return Some(1);
        }
        let more = u64::try_from(late.as_nanos().checked_div(interval).unwrap_or(0)).unwrap_or(u64::MAX);
        let steps = more.saturating_add(1);
        let ahead = u64::try_from(interval).unwrap_or(u64::MAX).saturating_mul(steps);
        state.next = state.next.map(|next| match next {
            Moment::Host(at) => Moment::Host(at.checked_add(Duration::from_nanos(ahead)).unwrap_or(at)),
            Moment::Cpu(at) => Moment::Cpu(at.saturating_add(ahead)),
        });
        Some(steps)
    }

    fn signal(&self, group: &Arc<ThreadGroup>, overrun: u64) {
        let posix = |signal, value| SigInfo {
            signal,
            errno: 0,
            code: linux::SI_TIMER,
            fields: SigFields::Timer {
                id: self.id,
                overrun: i32::try_from(overrun).unwrap_or(i32::MAX),
                value,
            },
        };
        match self.notify {
            Notify::Nothing => {}
            Notify::Interval(signal) => group.send_signal(SigInfo::kernel(signal)),
            Notify::CpuLimit => enforce_cpu_limit(group),
            Notify::Process(signal, value) => group.send_signal(posix(signal, value)),
            Notify::Thread(signal, value, tid) => {
                if let Some(task) = group.members().iter().find(|task: &&Arc<Task>| task.tid() == tid) {
                    task.send_signal(posix(signal, value));
                }
            }
        }
    }
}

/// The process has used the CPU time of its soft limit or more: `SIGKILL` at the hard one, else `SIGXCPU` now and after each
/// further second (Linux's `check_process_timers`, which raises the soft limit for that).
fn enforce_cpu_limit(group: &Arc<ThreadGroup>) {
    let (user, system) = group.cpu_nanos();
    let used = Duration::from_nanos(user.wrapping_add(system)).as_secs();
    let limit = group.rlimit(Resource::Cpu);
    if used >= limit.hard {
        group.send_signal(SigInfo::kernel(Signal::KILL));
    } else if used >= limit.soft {
        group.send_signal(SigInfo::kernel(Signal::XCPU));
        group.raise_soft_limit(Resource::Cpu);
        group.timers().watch_cpu_limit(group);
    }
}

/// A signal was taken: if it is a timer's, `timer_getoverrun` shows its overrun from now on.
pub fn note_taken(group: &ThreadGroup, info: &SigInfo) {
    if let SigFields::Timer { id, overrun, .. } = info.fields
        && let Ok(timer) = group.timers().get(id)
    {
        timer.state.lock().overrun = overrun;
    }
}

impl TimerTarget for ProcessTimer {
    fn expired(&self) {
        let Some(group) = self.group.upgrade().filter(|group| !group.has_exited()) else { return };
        if self.measure != Measure::Host {
            // Time spent in the guest is booked when a thread leaves it.
            for task in group.members() {
                task.book_cpu_time();
            }
        }
        let mut state = self.state.lock();
        let expired = self.expire(&mut state);
        let old = state.handle.take();
        self.arm(group.kernel().timers(), &mut state, Some(after(PERIODIC_GRAIN)));
        drop(state);
        drop(old);
        if let Some(count) = expired {
            self.signal(&group, count.saturating_sub(1));
        }
    }
}

/// The timers of a process.
#[derive(Default)]
pub struct ProcessTimers {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    intervals: [Option<Arc<ProcessTimer>>; 3],
    posix: BTreeMap<i32, Arc<ProcessTimer>>,
    cpu_limit: Option<Arc<ProcessTimer>>,
    next_id: i32,
}

impl ProcessTimers {
    /// The interval timer `ITIMER_*`; `EINVAL` for another number.
    pub fn interval(&self, which: u32, group: &Arc<ThreadGroup>) -> SysResult<Arc<ProcessTimer>> {
        let (measure, signal) = match which {
            linux::ITIMER_REAL => (Measure::Host, Signal::ALRM),
            linux::ITIMER_VIRTUAL => (Measure::User, Signal::VTALRM),
            linux::ITIMER_PROF => (Measure::Cpu, Signal::PROF),
            _ => return Err(Errno::EINVAL),
        };
        let mut table = self.table.lock();
        let slot = table.intervals.get_mut(which as usize).ok_or(Errno::EINVAL)?;
        let timer = slot.get_or_insert_with(|| {
            ProcessTimer::new(0, Clock::Monotonic, Notify::Interval(signal), group, measure, None)
        });
        Ok(timer.clone())
    }

    /// Creates a POSIX timer, on the CPU time of `thread` if there is one; `notify` gets its number. `EAGAIN` when there are too many, `EINVAL` for a clock without timers.
    pub fn create(
        &self,
        group: &Arc<ThreadGroup>,
        clock: Clock,
        thread: Option<&Arc<Task>>,
        notify: impl FnOnce(i32) -> Notify,
    ) -> SysResult<i32> {
        let measure = match clock {
            Clock::Realtime | Clock::Monotonic | Clock::Boottime | Clock::Tai => Measure::Host,
            Clock::ProcessCpu(_) | Clock::ThreadCpu(_) => Measure::Cpu,
            _ => return Err(Errno::EINVAL),
        };
        let mut table = self.table.lock();
        if table.posix.len() >= MAX_TIMERS {
            return Err(Errno::EAGAIN);
        }
        let mut id = table.next_id;
        while table.posix.contains_key(&id) {
            id = id.checked_add(1).unwrap_or(0);
        }
        table.next_id = id.checked_add(1).unwrap_or(0);
        table.posix.insert(id, ProcessTimer::new(id, clock, notify(id), group, measure, thread));
        Ok(id)
    }

    /// Sees to `RLIMIT_CPU` as it is now: call when the process is born and when the limit changes.
    pub fn watch_cpu_limit(&self, group: &Arc<ThreadGroup>) {
        let soft = group.rlimit(Resource::Cpu).soft;
        let timer = {
            let mut table = self.table.lock();
            if soft == INFINITY && table.cpu_limit.is_none() {
                return;
            }
            let make = || ProcessTimer::new(0, Clock::Monotonic, Notify::CpuLimit, group, Measure::Cpu, None);
            table.cpu_limit.get_or_insert_with(make).clone()
        };
        let used = Duration::from_nanos(timer.cpu_nanos());
        let value = (soft != INFINITY).then(|| Duration::from_secs(soft).saturating_sub(used));
        timer.set(group.kernel().timers(), Setting { value, interval: Duration::ZERO });
    }

    /// A POSIX timer by its number; `EINVAL` if there is none.
    pub fn get(&self, id: i32) -> SysResult<Arc<ProcessTimer>> {
        self.table.lock().posix.get(&id).cloned().ok_or(Errno::EINVAL)
    }

    /// Deletes a POSIX timer.
    pub fn delete(&self, timers: &Arc<Timers>, id: i32) -> SysResult {
        let timer = self.table.lock().posix.remove(&id).ok_or(Errno::EINVAL)?;
        timer.set(timers, Setting::default());
        Ok(())
    }

    /// What `execve` does: POSIX timers go, interval timers stay.
    pub fn on_exec(&self, timers: &Arc<Timers>) {
        let posix = std::mem::take(&mut self.table.lock().posix);
        for timer in posix.values() {
            timer.set(timers, Setting::default());
        }
    }

    /// What the end of the process does.
    pub fn on_exit(&self, timers: &Arc<Timers>) {
        let table = std::mem::take(&mut *self.table.lock());
        let others = table.intervals.iter().flatten().chain(&table.cpu_limit);
        for timer in table.posix.values().chain(others) {
            timer.set(timers, Setting::default());
        }
    }
}
