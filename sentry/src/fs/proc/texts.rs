//! The smaller text files of a process.

use std::fmt::Write;
use std::sync::Arc;

use super::process::{OwnedDir, Subject};
use crate::errno::{Errno, SysResult};
use crate::fs::pseudo::{PseudoFs, StaticDir};
use crate::task::{Capability, Resource, rlimit};
use crate::vfs::mount_namespace::MountInfo;

fn line(value: impl std::fmt::Display) -> SysResult<Vec<u8>> {
    Ok(format!("{value}\n").into_bytes())
}

/// `cgroup`: the root of a single hierarchy, which is what a container with a cgroup namespace sees.
pub fn cgroup(subject: &Subject) -> SysResult<Vec<u8>> {
    subject.task()?;
    line("0::/")
}

/// `comm`
pub fn comm(subject: &Subject) -> SysResult<Vec<u8>> {
    let mut name = subject.task()?.comm();
    name.push(b'\n');
    Ok(name)
}

/// A write to `comm`, allowed to threads of the same process.
pub fn set_comm(subject: &Subject, data: &[u8]) -> SysResult {
    let task = subject.task()?;
    let own = crate::task::current::current()
        .is_some_and(|writer| Arc::ptr_eq(writer.thread_group(), task.thread_group()));
    if !own {
        return Err(Errno::EINVAL);
    }
    let name = data.split(|&byte| byte == b'\n' || byte == 0).next().unwrap_or_default();
    task.set_comm(name);
    Ok(())
}

/// `uid_map` and `gid_map`: one user namespace, so ids are what they are.
pub fn id_map(subject: &Subject) -> SysResult<Vec<u8>> {
    subject.task()?;
    line(format_args!("{:10} {:10} {:10}", 0, 0, u32::MAX))
}

/// `io`
pub fn io(subject: &Subject) -> SysResult<Vec<u8>> {
    subject.task()?;
    const NAMES: [&str; 7] =
        ["rchar", "wchar", "syscr", "syscw", "read_bytes", "write_bytes", "cancelled_write_bytes"];
    Ok(NAMES.map(|name| format!("{name}: 0\n")).concat().into_bytes())
}

/// `limits`
pub fn limits(subject: &Subject) -> SysResult<Vec<u8>> {
    #[rustfmt::skip]
    const ROWS: [(&str, Resource, &str); 16] = [
        ("Max cpu time", Resource::Cpu, "seconds"),
        ("Max file size", Resource::Fsize, "bytes"),
        ("Max data size", Resource::Data, "bytes"),
        ("Max stack size", Resource::Stack, "bytes"),
        ("Max core file size", Resource::Core, "bytes"),
        ("Max resident set", Resource::Rss, "bytes"),
        ("Max processes", Resource::Nproc, "processes"),
        ("Max open files", Resource::Nofile, "files"),
        ("Max locked memory", Resource::Memlock, "bytes"),
        ("Max address space", Resource::As, "bytes"),
        ("Max file locks", Resource::Locks, "locks"),
        ("Max pending signals", Resource::Sigpending, "signals"),
        ("Max msgqueue size", Resource::Msgqueue, "bytes"),
        ("Max nice priority", Resource::Nice, ""),
        ("Max realtime priority", Resource::Rtprio, ""),
        ("Max realtime timeout", Resource::Rttime, "us"),
    ];
    let task = subject.task()?;
    let show =
        |value: u64| if value == rlimit::INFINITY { "unlimited".to_owned() } else { value.to_string() };
    let mut text = format!("{:<25} {:<20} {:<20} {:<10}\n", "Limit", "Soft Limit", "Hard Limit", "Units");
    for (name, resource, unit) in ROWS {
        let limit = task.rlimit(resource);
        let _ = writeln!(text, "{name:<25} {:<20} {:<20} {unit:<10}", show(limit.soft), show(limit.hard));
    }
    Ok(text.into_bytes())
}

/// `loginuid`: never set.
pub fn loginuid(subject: &Subject) -> SysResult<Vec<u8>> {
    subject.task()?;
    Ok(u32::MAX.to_string().into_bytes())
}

/// Octal escapes for the characters that separate fields.
fn escape(text: &[u8]) -> String {
    let mut out = String::new();
    for &byte in text {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => {
                let _ = write!(out, "\\{byte:03o}");
            }
            _ => out.push(char::from(byte)),
        }
    }
    out
}

fn mount_list(subject: &Subject) -> SysResult<Vec<MountInfo>> {
    let task = subject.task()?;
    let places = task.fs().places();
    Ok(task.namespaces().mount.list(&places.root))
}

/// `mounts`
pub fn mounts(subject: &Subject) -> SysResult<Vec<u8>> {
    let mut text = Vec::new();
    for mount in mount_list(subject)? {
        let row = format!(
            "{} {} {} {}{} 0 0\n",
            escape(&mount.source),
            escape(&mount.mountpoint),
            mount.fs_type,
            mount.flags.show(),
            mount.fs_options,
        );
        text.extend(row.chars().map(|c| c as u8));
    }
    Ok(text)
}

/// `mountinfo`
pub fn mountinfo(subject: &Subject) -> SysResult<Vec<u8>> {
    let mut text = Vec::new();
    for mount in mount_list(subject)? {
        let row = format!(
            "{} {} {}:{} {} {} {} - {} {} {}{}\n",
            mount.id,
            mount.parent,
            mount.device.major,
            mount.device.minor,
            escape(&mount.root),
            escape(&mount.mountpoint),
            mount.flags.show(),
            mount.fs_type,
            escape(&mount.source),
            if mount.fs_read_only { "ro" } else { "rw" },
            mount.fs_options,
        );
        text.extend(row.chars().map(|c| c as u8));
    }
    Ok(text)
}

/// `oom_adj`, the old scale of -17 to 15.
pub fn oom_adj(subject: &Subject) -> SysResult<Vec<u8>> {
    let score = subject.task()?.thread_group().oom_score_adj();
    line(if score == 1000 { 15 } else { score.saturating_mul(17) / 1000 })
}

/// `oom_score`
pub fn oom_score(subject: &Subject) -> SysResult<Vec<u8>> {
    let task = subject.task()?;
    let total = task.kernel().system_info().memory_total.max(1);
    let share = task.mm().usage().rss().saturating_mul(1000).checked_div(total).unwrap_or(0);
    let adjusted =
        i64::try_from(share).unwrap_or(1000).saturating_add(i64::from(task.thread_group().oom_score_adj()));
    line(adjusted.clamp(0, 2000))
}

/// `oom_score_adj`
pub fn oom_score_adj(subject: &Subject) -> SysResult<Vec<u8>> {
    line(subject.task()?.thread_group().oom_score_adj())
}

/// A write to `oom_score_adj`: `EINVAL` out of range, `EACCES` to lower it without privilege.
pub fn set_oom_score_adj(subject: &Subject, data: &[u8]) -> SysResult {
    let text = std::str::from_utf8(data).map_err(|_| Errno::EINVAL)?;
    let value: i32 = text.trim().parse().map_err(|_| Errno::EINVAL)?;
    if !(-1000..=1000).contains(&value) {
        return Err(Errno::EINVAL);
    }
    let group = subject.task()?.thread_group().clone();
    let privileged = crate::task::current::current()
        .is_some_and(|writer| writer.credentials().has(Capability::SYS_RESOURCE));
    if value < group.oom_score_adj() && !privileged {
        return Err(Errno::EACCES);
    }
    group.set_oom_score_adj(value);
    Ok(())
}

/// `personality`
pub fn personality(subject: &Subject) -> SysResult<Vec<u8>> {
    line(format_args!("{:08x}", subject.task()?.attributes().personality))
}

/// `timerslack_ns`
pub fn timer_slack(subject: &Subject) -> SysResult<Vec<u8>> {
    line(subject.task()?.attributes().timer_slack)
}

/// A write to `timerslack_ns`: nanoseconds, or 0 for the default. `EPERM` for another process without `CAP_SYS_NICE`.
pub fn set_timer_slack(subject: &Subject, data: &[u8]) -> SysResult {
    let text = std::str::from_utf8(data).map_err(|_| Errno::EINVAL)?;
    let slack: u64 = text.trim().parse().map_err(|_| Errno::EINVAL)?;
    let task = subject.task()?;
    let allowed = crate::task::current::current()
        .is_some_and(|writer| Arc::ptr_eq(&writer, &task) || writer.credentials().has(Capability::SYS_NICE));
    if !allowed {
        return Err(Errno::EPERM);
    }
    task.update_attributes(|attributes| {
        attributes.timer_slack = if slack == 0 { attributes.default_timer_slack } else { slack };
    });
    Ok(())
}

/// `schedstat`: time on the processor; waiting times and slices are not counted.
pub fn schedstat(subject: &Subject) -> SysResult<Vec<u8>> {
    let (user, system) = subject.task()?.cpu_nanos();
    line(format_args!("{} 0 0", user.wrapping_add(system)))
}

/// `setgroups`
pub fn setgroups(subject: &Subject) -> SysResult<Vec<u8>> {
    subject.task()?;
    line("allow")
}

/// `wchan`: where it sleeps is nobody's business.
pub fn wchan(subject: &Subject) -> SysResult<Vec<u8>> {
    subject.task()?;
    Ok(b"0".to_vec())
}

/// `net`: the tables of an empty network.
pub fn net_directory(fs: &Arc<PseudoFs>, subject: &Subject) -> OwnedDir {
    const FIRST: u64 = 300;
    type Row = (&'static str, fn(&Subject) -> SysResult<Vec<u8>>);
    const ROWS: &[Row] = &[
        ("dev", |_| Ok(DEV.into())),
        ("unix", |_| line("Num       RefCount Protocol Flags    Type St Inode Path")),
        ("tcp", |_| line(TCP)),
        ("tcp6", |_| line(TCP)),
        ("udp", |_| line(TCP)),
        ("udp6", |_| line(TCP)),
        ("route", |_| {
            line("Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT")
        }),
        ("if_inet6", |_| Ok(Vec::new())),
    ];
    let mut children = StaticDir::new();
    for (&(name, show), n) in ROWS.iter().zip(FIRST..) {
        children = children.with(name, subject.file(fs, n, 0o444, show));
    }
    OwnedDir { at: subject.numbered(FIRST - 1), children }
}

const TCP: &str =
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode";
const DEV: &str = "Inter-|   Receive                                                |  Transmit\n \
face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_are_escaped() {
        assert_eq!(escape(b"/a b\\c\n"), "/a\\040b\\134c\\012");
    }
}
