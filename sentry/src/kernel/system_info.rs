//! The machine as the sandbox shows it: processors, memory, boot time, kernel version.
//!
//! Read from the host's `/proc` before confinement; what cannot be read falls back to one anonymous processor.

use std::time::Instant;

use crate::time::{Counter, Timespec};

/// The kernel release that `uname` shows. Programs compare it with the Linux version they need.
pub const RELEASE: &str = "6.12.0-caisson";
/// The kernel version string that `uname` shows.
pub const VERSION: &str = concat!("#1 SMP Caisson ", env!("CARGO_PKG_VERSION"));

/// A processor, in `/proc/cpuinfo`'s words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuModel {
    /// `vendor_id`
    pub vendor: String,
    /// `cpu family`
    pub family: String,
    /// `model`
    pub model: String,
    /// `model name`
    pub name: String,
    /// `stepping`
    pub stepping: String,
    /// `cpu MHz`
    pub mhz: String,
    /// `cache size`
    pub cache: String,
    /// `flags`, without what guest code cannot use.
    pub flags: String,
    /// `bogomips`
    pub bogomips: String,
}

/// What the guest is shown of its machine.
#[derive(Clone, Debug)]
pub struct SystemInfo {
    /// Processors online.
    pub cpus: u32,
    /// What kind they are.
    pub cpu: CpuModel,
    /// Memory in bytes: the host's, or the sandbox's limit if that is smaller.
    pub memory_total: u64,
    /// Whether the time stamp counters of all processors agree.
    pub counter: Counter,
    /// When the sandbox started, on the host's monotonic clock.
    pub booted: Instant,
    /// When the sandbox started, wall clock.
    pub booted_at: Timespec,
}

/// Flags that name features which guest code does not have: virtualization, protection keys, user interrupts, …
const HIDDEN_FLAGS: &[&str] =
    &["vmx", "svm", "pku", "ospke", "hypervisor", "user_shstk", "umip", "smep", "smap", "pcid"];

impl SystemInfo {
    /// Reads the host's `/proc`.
    pub fn from_host() -> SystemInfo {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let cpus = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
        let source = read("/sys/devices/system/clocksource/clocksource0/current_clocksource");
        let mut info = Self::parse(&read("/proc/cpuinfo"), &read("/proc/meminfo"), cpus);
        info.counter = Counter::of_clocksource(&source);
        info
    }

    /// From the texts of `cpuinfo` and `meminfo`.
    fn parse(cpuinfo: &str, meminfo: &str, cpus: u32) -> SystemInfo {
        let first = cpuinfo.split("\n\n").next().unwrap_or_default();
        let field = |name: &str, default: &str| {
            let mut pairs = first.lines().filter_map(|line| line.split_once(':'));
            let found = pairs.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim());
            found.unwrap_or(default).to_owned()
        };
        let flags = field("flags", "fpu tsc cx8 cmov fxsr sse sse2 syscall nx lm");
        let visible: Vec<&str> = flags.split(' ').filter(|flag| !HIDDEN_FLAGS.contains(flag)).collect();
        let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kib = total.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
        SystemInfo {
            counter: Counter::Untrusted,
            cpus,
            cpu: CpuModel {
                vendor: field("vendor_id", "unknown"),
                family: field("cpu family", "6"),
                model: field("model", "0"),
                name: field("model name", "unknown"),
                stepping: field("stepping", "0"),
                mhz: field("cpu MHz", "1000.000"),
                cache: field("cache size", "0 KB"),
                flags: visible.join(" "),
                bogomips: field("bogomips", "2000.00"),
            },
            memory_total: kib.unwrap_or(1 << 20).saturating_mul(1024),
            booted: Instant::now(),
            booted_at: Timespec::now_realtime(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_first_processor_and_hides_what_guests_lack() {
        let cpuinfo = "processor\t: 0\nmodel name\t: Fast CPU\nflags\t\t: fpu vmx avx2\n\nprocessor\t: 1\nmodel name\t: x\n";
        let info = SystemInfo::parse(cpuinfo, "MemFree: 1 kB\nMemTotal:       2048 kB\n", 2);
        assert_eq!((info.cpu.name.as_str(), info.cpu.flags.as_str()), ("Fast CPU", "fpu avx2"));
        assert_eq!((info.memory_total, info.cpus), (2 << 20, 2));
    }

    #[test]
    fn nothing_readable_still_gives_a_machine() {
        let info = SystemInfo::parse("", "", 1);
        assert_eq!((info.cpu.vendor.as_str(), info.memory_total), ("unknown", 1 << 30));
    }
}
