//! What commands print.

use caisson_proto::control::{DebugReply, ProcessInfo};
use serde_json::{Value, json};

use crate::cgroup::Figures;
use crate::lifecycle::state::Phase;

/// The OCI word for a phase.
pub(super) fn status(phase: Phase) -> &'static str {
    match phase {
        Phase::Creating => "creating",
        Phase::Created | Phase::Starting(_) => "created",
        Phase::Running => "running",
        Phase::Paused => "paused",
        Phase::Stopped(_) => "stopped",
    }
}

/// Processes as JSON, for the command to print either way.
pub(super) fn processes(list: &[ProcessInfo]) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let entry = |p: &ProcessInfo| {
        let command = if p.command.is_empty() { text(&p.comm) } else { text(&p.command) };
        json!({"uid": p.uid, "pid": p.pid, "ppid": p.ppid, "tty": p.terminal, "cpu": p.cpu_nanos, "cmd": command})
    };
    Value::from(list.iter().map(entry).collect::<Vec<_>>()).to_string()
}

/// A table like that of `ps -ef`.
pub(super) fn process_table(list: &Value) -> String {
    let mut out = format!("{:<8} {:>7} {:>7} {:<8} {:>8} CMD\n", "UID", "PID", "PPID", "TTY", "TIME");
    for p in list.as_array().into_iter().flatten() {
        let number = |key: &str| p.get(key).and_then(Value::as_u64).unwrap_or(0);
        let word = |key: &str| p.get(key).and_then(Value::as_str).unwrap_or_default();
        let seconds = number("cpu").div_euclid(1_000_000_000);
        let time = format!(
            "{:02}:{:02}:{:02}",
            seconds.div_euclid(3600),
            seconds.div_euclid(60).rem_euclid(60),
            seconds.rem_euclid(60)
        );
        let tty = if word("tty").is_empty() { "?" } else { word("tty") };
        let line = format!(
            "{:<8} {:>7} {:>7} {:<8} {:>8} {}\n",
            number("uid"),
            number("pid"),
            number("ppid"),
            tty,
            time,
            word("cmd")
        );
        out.push_str(&line);
    }
    out
}

/// Counters, then system calls from the most frequent down, then tasks.
pub(super) fn debug(reply: &DebugReply) -> String {
    let mut syscalls = reply.syscalls.clone();
    syscalls.sort_by_key(|call| std::cmp::Reverse(call.calls));
    let mut lines: Vec<String> =
        reply.counters.iter().map(|c| format!("{:>12} {}", c.value, c.name)).collect();
    lines.extend(syscalls.iter().map(|call| {
        let note = if call.implemented { "" } else { " (not implemented)" };
        format!("{:>12} {}{note}", call.calls, call.name)
    }));
    lines.extend(reply.tasks.iter().map(|task| format!("task {task}")));
    lines.join("\n")
}

/// A line of `events`.
pub(super) fn stats(id: &str, f: &Figures) -> String {
    let memory = json!({
        "cache": f.memory_stat.get("cache").or_else(|| f.memory_stat.get("file")),
        "usage": {"limit": f.memory_limit, "usage": f.memory, "max": f.memory_peak, "failcnt": f.memory_failures},
        "swap": {"limit": f.swap_limit, "usage": f.swap},
        "raw": f.memory_stat,
    });
    let cpu = json!({
        "usage": {"total": f.cpu_total, "percpu": f.cpu_each, "kernel": f.cpu_system, "user": f.cpu_user},
        "throttling": {"periods": f.periods, "throttledPeriods": f.throttled_periods, "throttledTime": f.throttled_time},
    });
    let limit = if f.pids_limit == u64::MAX { 0 } else { f.pids_limit };
    let pids = json!({"current": f.pids, "limit": limit});
    json!({"type": "stats", "id": id, "data": {"cpu": cpu, "memory": memory, "pids": pids}}).to_string()
}

/// A time in nanoseconds since 1970 in the form that the OCI tools use, UTC.
pub(super) fn rfc3339(unix_nanos: u64) -> String {
    const DAY: u64 = 86_400;
    let seconds = unix_nanos.div_euclid(1_000_000_000);
    let (days, rest) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    // Civil from days, after Howard Hinnant's description: years that begin in March have their leap day at the end.
    let shifted = days.saturating_add(719_468);
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = day_of_era
        .saturating_sub(day_of_era.div_euclid(1460))
        .saturating_add(day_of_era.div_euclid(36_524))
        .saturating_sub(day_of_era.div_euclid(146_096))
        .div_euclid(365);
    let before = year_of_era
        .saturating_mul(365)
        .saturating_add(year_of_era.div_euclid(4))
        .saturating_sub(year_of_era.div_euclid(100));
    let day_of_year = day_of_era.saturating_sub(before);
    let month_index = day_of_year.saturating_mul(5).saturating_add(2).div_euclid(153);
    let day = day_of_year
        .saturating_sub(month_index.saturating_mul(153).saturating_add(2).div_euclid(5))
        .saturating_add(1);
    let month = if month_index < 10 { month_index.saturating_add(3) } else { month_index.saturating_sub(9) };
    let year = era.saturating_mul(400).saturating_add(year_of_era).saturating_add(u64::from(month <= 2));
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        rest.div_euclid(3600),
        rest.div_euclid(60).rem_euclid(60),
        rest.rem_euclid(60),
        unix_nanos.rem_euclid(1_000_000_000)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(rfc3339(951_827_696_000_000_007), "2000-02-29T12:34:56.000000007Z");
        assert_eq!(rfc3339(1_795_335_708_000_000_000), "2026-11-22T08:21:48.000000000Z");
    }

    #[test]
    fn listings_hold_what_they_are_given() {
        let info = ProcessInfo {
            pid: 7,
            ppid: 1,
            comm: b"sh".to_vec(),
            cpu_nanos: 3_725_000_000_000,
            ..ProcessInfo::default()
        };
        let list: Value = serde_json::from_str(&processes(&[info])).unwrap();
        assert_eq!(list[0]["pid"], 7);
        let table = process_table(&list);
        assert!(table.contains("01:02:05 sh") && table.starts_with("UID"), "{table}");
        let figures = Figures { memory: 5, cpu_total: 6, pids_limit: u64::MAX, ..Figures::default() };
        let line: Value = serde_json::from_str(&stats("c", &figures)).unwrap();
        assert_eq!(
            (line["data"]["memory"]["usage"]["usage"].as_u64(), line["data"]["pids"]["limit"].as_u64()),
            (Some(5), Some(0))
        );
    }
}
