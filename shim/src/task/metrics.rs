//! Figures of a cgroup as the messages that `ctr task metrics`, CRI and the kubelet decode.

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{self, Message, MessageField};

use crate::cgroup::Figures;

/// The `Any` for a Stats reply: version 1's message on version 1 hosts, version 2's on others.
///
/// # Errors
/// When the message cannot be encoded.
pub fn any(figures: &Figures, is_v2: bool) -> protobuf::Result<Any> {
    // The bare name: containerd's typeurl knows no prefix here.
    let (name, value) = if is_v2 {
        ("io.containerd.cgroups.v2.Metrics", unified(figures).write_to_bytes()?)
    } else {
        ("io.containerd.cgroups.v1.Metrics", legacy(figures).write_to_bytes()?)
    };
    Ok(Any { type_url: name.to_owned(), value, ..Any::default() })
}

fn legacy(f: &Figures) -> v1::Metrics {
    let pids = v1::PidsStat { current: f.pids, limit: bounded(f.pids_limit), ..Default::default() };
    let usage = v1::CPUUsage {
        total: f.cpu_total,
        kernel: f.cpu_system,
        user: f.cpu_user,
        per_cpu: f.cpu_each.clone(),
        ..Default::default()
    };
    let throttling = v1::Throttle {
        periods: f.periods,
        throttled_periods: f.throttled_periods,
        throttled_time: f.throttled_time,
        ..Default::default()
    };
    let cpu = v1::CPUStat {
        usage: MessageField::some(usage),
        throttling: MessageField::some(throttling),
        ..Default::default()
    };
    let oom = v1::MemoryOomControl { oom_kill: f.oom_kills, ..Default::default() };
    v1::Metrics {
        pids: MessageField::some(pids),
        cpu: MessageField::some(cpu),
        memory: MessageField::some(legacy_memory(f)),
        memory_oom_control: MessageField::some(oom),
        ..Default::default()
    }
}

fn legacy_memory(f: &Figures) -> v1::MemoryStat {
    let stat = |key: &str| f.memory_stat.get(key).copied().unwrap_or(0);
    let entry = |limit, usage, max, failcnt| {
        MessageField::some(v1::MemoryEntry { limit, usage, max, failcnt, ..Default::default() })
    };
    v1::MemoryStat {
        cache: stat("cache"),
        rss: stat("rss"),
        rss_huge: stat("rss_huge"),
        mapped_file: stat("mapped_file"),
        dirty: stat("dirty"),
        writeback: stat("writeback"),
        pg_pg_in: stat("pgpgin"),
        pg_pg_out: stat("pgpgout"),
        pg_fault: stat("pgfault"),
        pg_maj_fault: stat("pgmajfault"),
        inactive_anon: stat("inactive_anon"),
        active_anon: stat("active_anon"),
        inactive_file: stat("inactive_file"),
        active_file: stat("active_file"),
        unevictable: stat("unevictable"),
        hierarchical_memory_limit: stat("hierarchical_memory_limit"),
        hierarchical_swap_limit: stat("hierarchical_memsw_limit"),
        total_cache: stat("total_cache"),
        total_rss: stat("total_rss"),
        total_rss_huge: stat("total_rss_huge"),
        total_mapped_file: stat("total_mapped_file"),
        total_dirty: stat("total_dirty"),
        total_writeback: stat("total_writeback"),
        total_pg_pg_in: stat("total_pgpgin"),
        total_pg_pg_out: stat("total_pgpgout"),
        total_pg_fault: stat("total_pgfault"),
        total_pg_maj_fault: stat("total_pgmajfault"),
        total_inactive_anon: stat("total_inactive_anon"),
        total_active_anon: stat("total_active_anon"),
        total_inactive_file: stat("total_inactive_file"),
        total_active_file: stat("total_active_file"),
        total_unevictable: stat("total_unevictable"),
        usage: entry(f.memory_limit, f.memory, f.memory_peak, f.memory_failures),
        swap: entry(f.swap_limit, f.memory.saturating_add(f.swap), 0, 0),
        ..Default::default()
    }
}

fn unified(f: &Figures) -> v2::Metrics {
    let stat = |key: &str| f.memory_stat.get(key).copied().unwrap_or(0);
    let pids = v2::PidsStat { current: f.pids, limit: bounded(f.pids_limit), ..Default::default() };
    let cpu = v2::CPUStat {
        usage_usec: f.cpu_total.div_euclid(1000),
        user_usec: f.cpu_user.div_euclid(1000),
        system_usec: f.cpu_system.div_euclid(1000),
        nr_periods: f.periods,
        nr_throttled: f.throttled_periods,
        throttled_usec: f.throttled_time.div_euclid(1000),
        ..Default::default()
    };
    let memory = v2::MemoryStat {
        anon: stat("anon"),
        file: stat("file"),
        kernel_stack: stat("kernel_stack"),
        slab: stat("slab"),
        sock: stat("sock"),
        shmem: stat("shmem"),
        file_mapped: stat("file_mapped"),
        file_dirty: stat("file_dirty"),
        file_writeback: stat("file_writeback"),
        anon_thp: stat("anon_thp"),
        inactive_anon: stat("inactive_anon"),
        active_anon: stat("active_anon"),
        inactive_file: stat("inactive_file"),
        active_file: stat("active_file"),
        unevictable: stat("unevictable"),
        slab_reclaimable: stat("slab_reclaimable"),
        slab_unreclaimable: stat("slab_unreclaimable"),
        pgfault: stat("pgfault"),
        pgmajfault: stat("pgmajfault"),
        usage: f.memory,
        usage_limit: f.memory_limit,
        swap_usage: f.swap,
        swap_limit: f.swap_limit,
        max_usage: f.memory_peak,
        ..Default::default()
    };
    let events = v2::MemoryEvents { max: f.memory_failures, oom_kill: f.oom_kills, ..Default::default() };
    v2::Metrics {
        pids: MessageField::some(pids),
        cpu: MessageField::some(cpu),
        memory: MessageField::some(memory),
        memory_events: MessageField::some(events),
        ..Default::default()
    }
}

/// containerd shows a limit of 0 where there is none.
fn bounded(limit: u64) -> u64 {
    if limit == u64::MAX { 0 } else { limit }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_messages_carry_the_figures_under_their_bare_names() {
        let stat = [("total_inactive_file".to_owned(), 5), ("anon".to_owned(), 6)].into();
        let figures = Figures {
            cpu_total: 3_000_000,
            memory: 77,
            memory_stat: stat,
            pids: 4,
            pids_limit: u64::MAX,
            ..Figures::default()
        };
        let old = any(&figures, false).unwrap();
        assert_eq!(old.type_url, "io.containerd.cgroups.v1.Metrics");
        let old = v1::Metrics::parse_from_bytes(&old.value).unwrap();
        assert_eq!(
            (old.cpu.usage.total, old.memory.usage.usage, old.memory.total_inactive_file),
            (3_000_000, 77, 5)
        );
        assert_eq!((old.pids.current, old.pids.limit), (4, 0));
        let new = any(&figures, true).unwrap();
        assert_eq!(new.type_url, "io.containerd.cgroups.v2.Metrics");
        let new = v2::Metrics::parse_from_bytes(&new.value).unwrap();
        assert_eq!((new.cpu.usage_usec, new.memory.usage, new.memory.anon), (3000, 77, 6));
    }
}
