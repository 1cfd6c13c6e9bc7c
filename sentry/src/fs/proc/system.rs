//! Files at the top of `/proc` that describe the machine, not a process.
//!
//! Each is a plain function of the kernel; [`SystemFile`] makes a file of it.

use std::fmt::Write;
use std::sync::Arc;

use crate::errno::SysResult;
use crate::fs::pseudo::{Owner, PseudoFile, PseudoFs, StaticDir, Text};
use crate::kernel::Kernel;
use crate::kernel::system_info::{RELEASE, VERSION};

/// Clock ticks per second in `/proc` and `times(2)` (`USER_HZ`).
pub const USER_HZ: u64 = 100;

/// A file whose text is a function of the kernel.
pub struct SystemFile {
    /// Whose state it shows.
    pub kernel: Arc<Kernel>,
    /// The text.
    pub show: fn(&Kernel) -> String,
}

impl Owner for SystemFile {}

impl Text for SystemFile {
    fn text(&self) -> SysResult<Vec<u8>> {
        Ok((self.show)(&self.kernel).into_bytes())
    }
}

/// Name and content of a file.
type Row = (&'static str, fn(&Kernel) -> String);

/// Every such file.
const FILES: &[Row] = &[
    ("cmdline", |_| "caisson\n".into()),
    ("cpuinfo", cpuinfo),
    ("devices", |_| DEVICES.into()),
    ("filesystems", |_| FILESYSTEMS.into()),
    ("interrupts", |_| String::new()),
    ("loadavg", loadavg),
    ("meminfo", meminfo),
    ("modules", |_| String::new()),
    ("partitions", |_| "major minor  #blocks  name\n\n".into()),
    ("stat", stat),
    ("swaps", |_| "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n".into()),
    ("uptime", uptime),
    ("version", |_| format!("Linux version {RELEASE} {VERSION}\n")),
    ("vmstat", vmstat),
];

const FILESYSTEMS: &str =
    "nodev\tsysfs\nnodev\ttmpfs\nnodev\tproc\nnodev\tdevtmpfs\nnodev\tdevpts\nnodev\tmqueue\nnodev\t9p\n";
const DEVICES: &str =
    "Character devices:\n  1 mem\n  5 /dev/tty\n  5 /dev/console\n  5 /dev/ptmx\n136 pts\n\nBlock devices:\n";

/// Adds all of them to the root directory.
pub fn add_to(mut dir: StaticDir, fs: &Arc<PseudoFs>, kernel: &Arc<Kernel>) -> StaticDir {
    for &(name, show) in FILES {
        dir = dir.with(name, PseudoFile::inode(fs, 0o444, SystemFile { kernel: kernel.clone(), show }));
    }
    dir
}

fn cpuinfo(kernel: &Kernel) -> String {
    let info = kernel.system_info();
    let cpu = &info.cpu;
    let mut text = String::new();
    for n in 0..info.cpus {
        let _ = write!(
            text,
            "processor\t: {n}\nvendor_id\t: {}\ncpu family\t: {}\nmodel\t\t: {}\nmodel name\t: {}\nstepping\t: {}\n\
             cpu MHz\t\t: {}\ncache size\t: {}\nphysical id\t: 0\nsiblings\t: {}\ncore id\t\t: {n}\ncpu cores\t: {}\n\
             apicid\t\t: {n}\ninitial apicid\t: {n}\nfpu\t\t: yes\nfpu_exception\t: yes\ncpuid level\t: 13\nwp\t\t: yes\n\
             flags\t\t: {}\nbogomips\t: {}\nclflush size\t: 64\ncache_alignment\t: 64\n\
             address sizes\t: 48 bits physical, 48 bits virtual\npower management:\n\n",
            cpu.vendor,
            cpu.family,
            cpu.model,
            cpu.name,
            cpu.stepping,
            cpu.mhz,
            cpu.cache,
            info.cpus,
            info.cpus,
            cpu.flags,
            cpu.bogomips,
        );
    }
    text
}

fn meminfo(kernel: &Kernel) -> String {
    let total = kernel.system_info().memory_total / 1024;
    let used = kernel.memory_used() / 1024;
    let free = total.saturating_sub(used);
    let mut text = String::new();
    let rows: &[(&str, u64)] = &[
        ("MemTotal", total),
        ("MemFree", free),
        ("MemAvailable", free),
        ("Buffers", 0),
        ("Cached", 0),
        ("SwapCached", 0),
        ("Active", used),
        ("Inactive", 0),
        ("Active(anon)", used),
        ("Inactive(anon)", 0),
        ("Active(file)", 0),
        ("Inactive(file)", 0),
        ("Unevictable", 0),
        ("Mlocked", 0),
        ("SwapTotal", 0),
        ("SwapFree", 0),
        ("Dirty", 0),
        ("Writeback", 0),
        ("AnonPages", used),
        ("Mapped", 0),
        ("Shmem", 0),
        ("Slab", 0),
        ("SReclaimable", 0),
        ("SUnreclaim", 0),
        ("KernelStack", 0),
        ("PageTables", 0),
        ("CommitLimit", total),
        ("Committed_AS", used),
        ("VmallocTotal", 34_359_738_367),
        ("VmallocUsed", 0),
        ("HugePages_Total", 0),
        ("HugePages_Free", 0),
        ("Hugepagesize", 2048),
    ];
    for (name, value) in rows {
        let unit = if name.starts_with("HugePages_") { "" } else { " kB" };
        let _ = writeln!(text, "{:<16}{value:>8}{unit}", format!("{name}:"));
    }
    text
}

fn uptime(kernel: &Kernel) -> String {
    let up = kernel.system_info().booted.elapsed();
    let cpus = f64::from(kernel.system_info().cpus);
    let busy = kernel.cpu_time().as_secs_f64();
    format!("{:.2} {:.2}\n", up.as_secs_f64(), (up.as_secs_f64() * cpus - busy).max(0.0))
}

fn loadavg(kernel: &Kernel) -> String {
    let (running, tasks, last_pid) = kernel.task_counts();
    format!("0.00 0.00 0.00 {}/{tasks} {last_pid}\n", running.max(1))
}

fn stat(kernel: &Kernel) -> String {
    let info = kernel.system_info();
    let ticks = |seconds: f64| (seconds * USER_HZ as f64) as u64;
    let busy = ticks(kernel.cpu_time().as_secs_f64());
    let cpus = u64::from(info.cpus);
    let idle = ticks(info.booted.elapsed().as_secs_f64()).saturating_mul(cpus).saturating_sub(busy);
    let (running, _, last_pid) = kernel.task_counts();
    let mut text = format!("cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\n");
    for n in 0..cpus {
        let share = |value: u64| value.checked_div(cpus).unwrap_or(0);
        let _ = writeln!(text, "cpu{n} {} 0 0 {} 0 0 0 0 0 0", share(busy), share(idle));
    }
    let _ = write!(
        text,
        "intr 0\nctxt 0\nbtime {}\nprocesses {last_pid}\nprocs_running {}\nprocs_blocked 0\nsoftirq 0\n",
        info.booted_at.sec,
        running.max(1),
    );
    text
}

fn vmstat(kernel: &Kernel) -> String {
    let total = kernel.system_info().memory_total / 4096;
    let used = kernel.memory_used() / 4096;
    format!(
        "nr_free_pages {}\nnr_anon_pages {used}\npgfault 0\npgmajfault 0\npswpin 0\npswpout 0\n",
        total.saturating_sub(used)
    )
}
