//! The system call table.
//!
//! One aligned line per call, grouped by family (the files beside this one). A line is
//! `call!(name, handler, [arguments], support, "what is missing")`. Everything that speaks of system calls reads it:
//! dispatch ([`find`]), strace , counters, and the generated page `docs/compatibility.md`.

use std::sync::OnceLock;

use super::Handler;

mod events;
mod files;
mod identity;
mod ipc;
mod memory;
mod process;
mod signals;
mod sockets;
mod time;

/// How strace prints an argument, and how the compatibility page names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// File descriptor, or `AT_FDCWD`.
    Fd,
    /// Signed decimal.
    Int,
    /// Unsigned decimal.
    UInt,
    /// Hexadecimal.
    Hex,
    /// Address.
    Ptr,
    /// NUL-terminated path or string in guest memory.
    Path,
    /// NULL-terminated array of strings (`argv`, `envp`).
    Strings,
    /// Bytes the guest passes in; the next argument is their length.
    InBytes,
    /// Bytes the call returns; the result is their length.
    OutBytes,
    /// A byte count.
    Size,
    /// A file offset.
    Offset,
    /// Octal permissions.
    Mode,
    /// `open` flags.
    OpenFlags,
    /// A signal number.
    Signal,
    /// A signal set in guest memory.
    SigSet,
    /// A `timespec` in guest memory.
    Timespec,
    /// A socket address in guest memory; the next argument is its length.
    SockAddr,
    /// `mmap` protection.
    Prot,
    /// `mmap` flags.
    MapFlags,
    /// `clone` flags.
    CloneFlags,
    /// `ioctl` command.
    Ioctl,
    /// A process or thread id.
    Pid,
    /// A clock.
    Clock,
    /// A futex operation.
    FutexOp,
}

/// How much of a call works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// All that a container can ask of it.
    Full,
    /// The note says what is missing.
    Partial,
}

/// One system call.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Its number on x86-64.
    pub number: u32,
    /// Its name.
    pub name: &'static str,
    /// The function behind it.
    pub handler: Handler,
    /// Its arguments.
    pub args: &'static [Arg],
    /// How much of it works.
    pub support: Support,
    /// What is missing; empty if nothing is.
    pub note: &'static str,
}

/// One line of the table.
macro_rules! call {
    ($name:ident, $handler:expr, [$($arg:ident)*], $support:ident, $note:literal) => {
        $crate::syscalls::table::Entry {
            number: $crate::syscalls::numbers::$name,
            name: stringify!($name),
            handler: $handler,
            args: &[$($crate::syscalls::table::Arg::$arg),*],
            support: $crate::syscalls::table::Support::$support,
            note: $note,
        }
    };
}
#[allow(unused_imports)]
pub(crate) use call;

const FAMILIES: &[&[Entry]] = &[
    files::CALLS,
    events::CALLS,
    identity::CALLS,
    ipc::CALLS,
    memory::CALLS,
    process::CALLS,
    signals::CALLS,
    sockets::CALLS,
    time::CALLS,
];

/// Numbers beyond this are not looked up (Linux 6.12's highest is below it).
pub const MAX_NUMBER: usize = 512;

fn index() -> &'static [Option<&'static Entry>; MAX_NUMBER] {
    static INDEX: OnceLock<[Option<&'static Entry>; MAX_NUMBER]> = OnceLock::new();
    INDEX.get_or_init(|| {
        let mut index = [None; MAX_NUMBER];
        for entry in all() {
            if let Some(slot) = index.get_mut(entry.number as usize) {
                *slot = Some(entry);
            }
        }
        index
    })
}

/// Every implemented call.
pub fn all() -> impl Iterator<Item = &'static Entry> {
    FAMILIES.iter().flat_map(|family| family.iter())
}

/// The call with this number; `None` means `ENOSYS`.
pub fn find(number: u64) -> Option<&'static Entry> {
    index().get(usize::try_from(number).ok()?).copied().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_appears_once_and_fits() {
        let mut seen = std::collections::BTreeMap::new();
        for entry in all() {
            assert!((entry.number as usize) < MAX_NUMBER, "{}", entry.name);
            if let Some(other) = seen.insert(entry.number, entry.name) {
                panic!("{} and {other} share number {}", entry.name, entry.number);
            }
        }
    }

    #[test]
    fn partial_calls_say_what_is_missing() {
        for entry in all() {
            assert_eq!(entry.support == Support::Partial, !entry.note.is_empty(), "{}", entry.name);
            assert!(entry.args.len() <= 6, "{}", entry.name);
        }
    }
}
