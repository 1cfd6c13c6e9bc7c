//! Signal numbers and sets.

use linux_raw_sys::general as linux;

use crate::errno::{Errno, SysResult};

/// A signal: 1 to 64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signal(u8);

macro_rules! signals {
    ($($name:ident = $number:ident),* $(,)?) => {
        #[allow(missing_docs)]
        impl Signal {
            $(pub const $name: Signal = Signal(linux::$number as u8);)*

            /// Linux's name, e.g. `SIGINT`; real-time signals are all `SIGRT`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Signal::$name => stringify!($number),)*
                    _ => "SIGRT",
                }
            }
        }
    };
}

signals! {
    HUP = SIGHUP, INT = SIGINT, QUIT = SIGQUIT, ILL = SIGILL, TRAP = SIGTRAP, ABRT = SIGABRT, BUS = SIGBUS,
    FPE = SIGFPE, KILL = SIGKILL, USR1 = SIGUSR1, SEGV = SIGSEGV, USR2 = SIGUSR2, PIPE = SIGPIPE, ALRM = SIGALRM,
    TERM = SIGTERM, STKFLT = SIGSTKFLT, CHLD = SIGCHLD, CONT = SIGCONT, STOP = SIGSTOP, TSTP = SIGTSTP,
    TTIN = SIGTTIN, TTOU = SIGTTOU, URG = SIGURG, XCPU = SIGXCPU, XFSZ = SIGXFSZ, VTALRM = SIGVTALRM,
    PROF = SIGPROF, WINCH = SIGWINCH, IO = SIGIO, PWR = SIGPWR, SYS = SIGSYS,
}

impl Signal {
    /// The highest signal number.
    pub const MAX: u8 = 64;
    /// The first real-time signal.
    pub const RT_MIN: Signal = Signal(linux::SIGRTMIN as u8);

    /// From a number of the guest; `EINVAL` unless it is 1 to 64.
    pub fn new(number: i32) -> SysResult<Signal> {
        match u8::try_from(number) {
            Ok(number) if (1..=Signal::MAX).contains(&number) => Ok(Signal(number)),
            _ => Err(Errno::EINVAL),
        }
    }

    /// As [`Signal::new`], where 0 (only check) is `None`.
    pub fn or_none(number: i32) -> SysResult<Option<Signal>> {
        if number == 0 { Ok(None) } else { Signal::new(number).map(Some) }
    }

    /// Its number.
    pub const fn number(self) -> i32 {
        self.0 as i32
    }

    /// 0 to 63, for tables.
    pub const fn index(self) -> usize {
        self.0.saturating_sub(1) as usize
    }

    /// Whether several of it can be pending.
    pub fn is_realtime(self) -> bool {
        self >= Signal::RT_MIN
    }

    /// What happens without a handler (`signal(7)`).
    pub fn default_action(self) -> DefaultAction {
        match self {
            Signal::CHLD | Signal::URG | Signal::WINCH => DefaultAction::Ignore,
            Signal::CONT => DefaultAction::Continue,
            Signal::STOP | Signal::TSTP | Signal::TTIN | Signal::TTOU => DefaultAction::Stop,
            Signal::QUIT
            | Signal::ILL
            | Signal::TRAP
            | Signal::ABRT
            | Signal::BUS
            | Signal::FPE
            | Signal::SEGV
            | Signal::XCPU
            | Signal::XFSZ
            | Signal::SYS => DefaultAction::Core,
            _ => DefaultAction::Terminate,
        }
    }
}

impl std::fmt::Debug for Signal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_realtime() {
            write!(f, "SIGRT_{}", self.0.saturating_sub(linux::SIGRTMIN as u8))
        } else {
            f.write_str(self.name())
        }
    }
}

/// What a signal does when nobody handles it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultAction {
    /// End the process.
    Terminate,
    /// End the process and say that it dumped core.
    Core,
    /// Nothing.
    Ignore,
    /// Stop the process.
    Stop,
    /// Continue the process if it is stopped.
    Continue,
}

/// A set of signals; bit n-1 is signal n, as in the guest's `sigset_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SignalSet(u64);

impl SignalSet {
    /// No signal.
    pub const EMPTY: SignalSet = SignalSet(0);
    /// `SIGKILL` and `SIGSTOP`, which can be neither blocked nor handled.
    pub const UNBLOCKABLE: SignalSet = SignalSet::of(&[Signal::KILL, Signal::STOP]);
    /// What stops a process by default.
    pub const STOPPING: SignalSet = SignalSet::of(&[Signal::STOP, Signal::TSTP, Signal::TTIN, Signal::TTOU]);
    /// What an instruction of the thread itself raises; delivered before others.
    pub const SYNCHRONOUS: SignalSet =
        SignalSet::of(&[Signal::SEGV, Signal::BUS, Signal::ILL, Signal::TRAP, Signal::FPE, Signal::SYS]);

    /// The set of these signals.
    pub const fn of(signals: &[Signal]) -> SignalSet {
        let mut bits = 0;
        let mut rest = signals;
        while let [first, tail @ ..] = rest {
            bits |= 1u64 << first.index();
            rest = tail;
        }
        SignalSet(bits)
    }

    /// From the guest's bits.
    pub const fn from_bits(bits: u64) -> SignalSet {
        SignalSet(bits)
    }

    /// The guest's bits.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// A mask of blocked signals: without those that cannot be blocked.
    pub const fn blockable(self) -> SignalSet {
        self.minus(SignalSet::UNBLOCKABLE)
    }

    /// Whether it holds no signal.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether `signal` is in it.
    pub const fn contains(self, signal: Signal) -> bool {
        self.0 & (1 << signal.index()) != 0
    }

    /// In either.
    pub const fn union(self, other: SignalSet) -> SignalSet {
        SignalSet(self.0 | other.0)
    }

    /// In both.
    pub const fn intersection(self, other: SignalSet) -> SignalSet {
        SignalSet(self.0 & other.0)
    }

    /// In this one only.
    pub const fn minus(self, other: SignalSet) -> SignalSet {
        SignalSet(self.0 & !other.0)
    }

    /// All others.
    pub const fn complement(self) -> SignalSet {
        SignalSet(!self.0)
    }

    /// Adds one.
    pub fn add(&mut self, signal: Signal) {
        self.0 |= 1 << signal.index();
    }

    /// Removes one.
    pub fn remove(&mut self, signal: Signal) {
        self.0 &= !(1 << signal.index());
    }

    /// The lowest signal in it.
    pub fn lowest(self) -> Option<Signal> {
        (self.0 != 0).then(|| Signal(self.0.trailing_zeros() as u8 + 1))
    }
}
