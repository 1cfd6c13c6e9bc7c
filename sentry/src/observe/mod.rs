//! Looking at a running sandbox: system call traces, counters, and the generated compatibility page.

pub mod compatibility;
pub mod counters;
pub mod flags;
pub mod strace;

pub use counters::SyscallCounters;
