//! `stat`, `statm` and `status` of a process or thread.

use std::fmt::Write;
use std::sync::Arc;

use super::process::{Subject, View};
use super::system::USER_HZ;
use crate::errno::SysResult;
use crate::mm::MemoryUsage;
use crate::task::{Resource, Task};
use crate::vfs::Device;

/// Nanoseconds per clock tick.
const TICK: u64 = 1_000_000_000 / USER_HZ;
const PAGE: u64 = 4096;

/// A task's state letter and its word in `status`.
fn state(task: &Task) -> (char, &'static str) {
    let group = task.thread_group();
    if group.has_exited() {
        ('Z', "zombie")
    } else if task.is_exiting() {
        ('X', "dead")
    } else if group.is_stopped() {
        ('T', "stopped")
    } else if task.waiter().is_asleep() {
        ('S', "sleeping")
    } else {
        ('R', "running")
    }
}

/// When it started, in clock ticks since boot.
fn started_ticks(task: &Task) -> u64 {
    let up = task.kernel().system_info().booted.elapsed().saturating_sub(task.age());
    u64::try_from(up.as_nanos() / u128::from(TICK)).unwrap_or(0)
}

fn usage(task: &Task) -> MemoryUsage {
    if task.is_exiting() { MemoryUsage::default() } else { task.mm().usage() }
}

/// The terminal's number in `stat`'s own encoding.
fn tty_number(device: Device) -> u32 {
    (device.minor & 0xff) | (device.major << 8) | ((device.minor & !0xff) << 12)
}

/// `stat`
pub fn stat(subject: &Subject) -> SysResult<Vec<u8>> {
    let task = subject.task()?;
    let group = task.thread_group();
    let namespace = subject.namespace();
    let job = group.process_group();
    let terminal = job.session().terminal();
    let (user, system) = if subject.view == View::Process { group.cpu_nanos() } else { task.cpu_nanos() };
    let times = group.times();
    let load =
        |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed) / TICK;
    let attributes = task.attributes();
    let image = task.mm().image();
    let memory = usage(&task);
    let (pending, shared) = task.pending_signals();
    let (ignored, caught) = group.handlers().summary();
    let started = started_ticks(&task);
    let foreground = terminal.as_ref().and_then(|terminal| terminal.foreground());
    let mut text = Vec::new();
    text.extend_from_slice(format!("{} (", task.pid().number_in(namespace)).as_bytes());
    text.extend_from_slice(&task.comm());
    let rest = [
        format!(") {}", state(&task).0),
        group.parent().map_or(0, |parent| parent.pid().number_in(namespace)).to_string(),
        job.pid().number_in(namespace).to_string(),
        job.session().pid().number_in(namespace).to_string(),
        terminal.as_ref().map_or(0, |terminal| tty_number(terminal.device())).to_string(),
        foreground.map_or(-1, |group| group.pid().number_in(namespace)).to_string(),
        "4194304 0 0 0 0".into(),
        format!(
            "{} {} {} {}",
            user / TICK,
            system / TICK,
            load(&times.children_user),
            load(&times.children_system)
        ),
        format!("{} {}", attributes.nice.saturating_add(20), attributes.nice),
        format!("{} 0 {started}", group.thread_count().max(1)),
        format!("{} {} {}", memory.total, memory.rss() / PAGE, group.rlimit(Resource::Rss).soft),
        format!("{} {} {} 0 0", image.start_code, image.end_code, image.start_stack),
        format!(
            "{} {}",
            pending.union(shared).bits() & 0x7fff_ffff,
            task.blocked_signals().bits() & 0x7fff_ffff
        ),
        format!("{} {}", ignored.bits() & 0x7fff_ffff, caught.bits() & 0x7fff_ffff),
        format!("0 0 0 17 {}", task.cpu()),
        format!("{} {} 0 0 0", attributes.sched_priority, attributes.sched_policy),
        format!("{} {} {}", image.start_data, image.end_data, task.mm().heap().start),
        format!("{} {} {} {}", image.arg_start, image.arg_end, image.env_start, image.env_end),
        group.exit_status().map_or(0, |status| status.wait_status()).to_string(),
    ];
    text.extend_from_slice(rest.join(" ").as_bytes());
    text.push(b'\n');
    Ok(text)
}

/// `statm`
pub fn statm(subject: &Subject) -> SysResult<Vec<u8>> {
    let task = subject.task()?;
    let memory = usage(&task);
    let image = task.mm().image();
    let text = image.end_code.saturating_sub(image.start_code).div_ceil(PAGE);
    let [size, resident, shared, data] =
        [memory.total, memory.rss(), memory.rss_file.saturating_add(memory.rss_shared), memory.data]
            .map(|bytes| bytes / PAGE);
    Ok(format!("{size} {resident} {shared} {text} 0 {data} 0\n").into_bytes())
}

/// `status`
pub fn status(subject: &Subject) -> SysResult<Vec<u8>> {
    let task = subject.task()?;
    let mut text = identity(subject, &task);
    memory(&mut text, &task);
    signals(&mut text, &task);
    rights(&mut text, &task);
    let mut out = b"Name:\t".to_vec();
    for byte in task.comm() {
        match byte {
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\\' => out.extend_from_slice(b"\\\\"),
            byte => out.push(byte),
        }
    }
    out.extend_from_slice(text.as_bytes());
    Ok(out)
}

fn identity(subject: &Subject, task: &Arc<Task>) -> String {
    let namespace = subject.namespace();
    let group = task.thread_group();
    let who = task.credentials();
    let (letter, word) = state(task);
    let own = task.pid().number_in(namespace);
    let parent = group.parent().map_or(0, |parent| parent.pid().number_in(namespace));
    let job = group.process_group();
    let mut text = String::new();
    let _ = write!(
        text,
        "\nUmask:\t{:04o}\nState:\t{letter} ({word})\nTgid:\t{}\nNgid:\t0\nPid:\t{own}\nPPid:\t{parent}\nTracerPid:\t0\n\
         Uid:\t{}\t{}\t{}\t{}\nGid:\t{}\t{}\t{}\t{}\nFDSize:\t{}\nGroups:\t",
        task.fs().umask(),
        group.pid().number_in(namespace),
        who.uid,
        who.euid,
        who.suid,
        who.fsuid,
        who.gid,
        who.egid,
        who.sgid,
        who.fsgid,
        task.files().list().len().next_power_of_two().max(64),
    );
    for gid in &who.groups {
        let _ = write!(text, "{gid} ");
    }
    let _ = write!(
        text,
        "\nNStgid:\t{}\nNSpid:\t{own}\nNSpgid:\t{}\nNSsid:\t{}\nKthread:\t0\n",
        group.pid().number_in(namespace),
        job.pid().number_in(namespace),
        job.session().pid().number_in(namespace),
    );
    text
}

fn memory(text: &mut String, task: &Task) {
    if task.is_exiting() || task.thread_group().has_exited() {
        return;
    }
    let memory = usage(task);
    let image = task.mm().image();
    let code = image.end_code.saturating_sub(image.start_code);
    let rows = [
        ("VmPeak", memory.peak),
        ("VmSize", memory.total),
        ("VmLck", memory.locked),
        ("VmPin", 0),
        ("VmHWM", memory.peak_rss.max(memory.rss())),
        ("VmRSS", memory.rss()),
        ("RssAnon", memory.rss_anonymous),
        ("RssFile", memory.rss_file),
        ("RssShmem", memory.rss_shared),
        ("VmData", memory.data),
        ("VmStk", memory.stack),
        ("VmExe", code),
        ("VmLib", memory.exec.saturating_sub(code)),
        ("VmPTE", 0),
        ("VmSwap", 0),
    ];
    for (name, bytes) in rows {
        let _ = writeln!(text, "{name}:\t{:8} kB", bytes / 1024);
    }
    let _ = write!(text, "CoreDumping:\t0\nTHP_enabled:\t1\n");
}

fn signals(text: &mut String, task: &Arc<Task>) {
    let group = task.thread_group();
    let (pending, shared) = task.pending_signals();
    let (ignored, caught) = group.handlers().summary();
    let _ = write!(
        text,
        "Threads:\t{}\nSigQ:\t{}/{}\nSigPnd:\t{:016x}\nShdPnd:\t{:016x}\nSigBlk:\t{:016x}\nSigIgn:\t{:016x}\nSigCgt:\t{:016x}\n",
        group.thread_count().max(1),
        task.signal_count().get(),
        group.rlimit(Resource::Sigpending).soft,
        pending.bits(),
        shared.bits(),
        task.blocked_signals().bits(),
        ignored.bits(),
        caught.bits(),
    );
}

fn rights(text: &mut String, task: &Task) {
    let who = task.credentials();
    let cpus = task.kernel().system_info().cpus;
    let affinity = task.attributes().affinity;
    let (mask, list) = (affinity.hex(cpus), affinity.list(cpus));
    let _ = write!(
        text,
        "CapInh:\t{:016x}\nCapPrm:\t{:016x}\nCapEff:\t{:016x}\nCapBnd:\t{:016x}\nCapAmb:\t{:016x}\nNoNewPrivs:\t{}\n\
         Seccomp:\t0\nSeccomp_filters:\t0\nSpeculation_Store_Bypass:\tvulnerable\nCpus_allowed:\t{mask}\n\
         Cpus_allowed_list:\t{list}\nMems_allowed:\t1\nMems_allowed_list:\t0\nvoluntary_ctxt_switches:\t{}\n\
         nonvoluntary_ctxt_switches:\t0\n",
        who.inheritable.bits(),
        who.permitted.bits(),
        who.effective.bits(),
        who.bounding.bits(),
        who.ambient.bits(),
        u8::from(who.no_new_privs),
        task.switches(),
    );
}
