//! Resource limits, divided in two: what the host's cgroups enforce and what the sentry enforces or shows.

use caisson_proto::control::Limits as Inside;
use oci_spec::runtime::LinuxResources;

use super::SpecError;
use crate::cgroup::Limits as Outside;

/// Threads of ours on top of the guest's tasks (each of which is a host thread): dispatcher, timers, control server, gofer.
const OWN_THREADS: u64 = 64;

/// Both halves.
#[derive(Debug, Default)]
pub(crate) struct Resources {
    pub inside: Inside,
    pub outside: Outside,
}

/// Converts the spec's resources; absent means no limits.
///
/// # Errors
/// Values that mean nothing.
pub(crate) fn convert(resources: Option<&LinuxResources>) -> Result<Resources, SpecError> {
    let Some(resources) = resources else { return Ok(Resources::default()) };
    let mut out = Resources::default();
    if let Some(memory) = resources.memory() {
        out.outside.memory = memory.limit();
        out.outside.memory_swap = memory.swap();
        out.outside.memory_reservation = memory.reservation();
        out.inside.memory = memory.limit().and_then(positive);
        out.inside.memory_swap = memory.swap().and_then(positive);
    }
    if let Some(cpu) = resources.cpu() {
        out.outside.cpu_shares = cpu.shares();
        out.outside.cpu_quota = cpu.quota();
        out.outside.cpu_period = cpu.period();
        out.outside.cpuset_cpus = cpu.cpus().clone().filter(|c| !c.is_empty());
        out.outside.cpuset_mems = cpu.mems().clone().filter(|c| !c.is_empty());
        for list in [&out.outside.cpuset_cpus, &out.outside.cpuset_mems].into_iter().flatten() {
            if !list.chars().all(|c| c.is_ascii_digit() || matches!(c, ',' | '-')) {
                return Err(SpecError::Invalid(format!(
                    "linux.resources.cpu: {list:?} is not a list of numbers"
                )));
            }
        }
        out.inside.cpu_quota = cpu.quota();
        out.inside.cpu_period = cpu.period();
        out.inside.cpu_shares = cpu.shares();
        out.inside.cpus = cpus(cpu.quota(), cpu.period(), out.outside.cpuset_cpus.as_deref());
    }
    if let Some(limit) = resources.pids().as_ref().map(|p| p.limit()).and_then(positive) {
        out.inside.pids = Some(limit);
        out.outside.pids = Some(limit.saturating_add(OWN_THREADS));
    }
    out.outside.blkio_weight = resources.block_io().as_ref().and_then(|b| b.weight()).filter(|w| *w > 0);
    out.outside.unified = resources.unified().clone().unwrap_or_default().into_iter().collect();
    Ok(out)
}

/// 0 and below mean "no limit" in every place of the spec that uses signed numbers.
fn positive(value: i64) -> Option<u64> {
    u64::try_from(value).ok().filter(|v| *v > 0)
}

/// CPUs to show: the quota in whole CPUs, rounded up, but not more than the cpuset has.
fn cpus(quota: Option<i64>, period: Option<u64>, set: Option<&str>) -> Option<u32> {
    let by_quota = match (quota.and_then(positive), period.unwrap_or(100_000)) {
        (Some(quota), period) if period > 0 => u32::try_from(quota.div_ceil(period)).ok(),
        _ => None,
    };
    match (by_quota, set.and_then(count)) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// How many CPUs a list like `0-3,8` names.
fn count(list: &str) -> Option<u32> {
    let mut total = 0u32;
    for part in list.split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        total = total.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(total).filter(|n| *n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_shown() {
        assert_eq!(cpus(None, None, None), None);
        assert_eq!(cpus(Some(150_000), Some(100_000), None), Some(2));
        assert_eq!(cpus(Some(10_000), Some(100_000), None), Some(1));
        assert_eq!(cpus(Some(-1), Some(100_000), Some("0-2,5")), Some(4));
        assert_eq!(cpus(Some(800_000), None, Some("1")), Some(1));
        assert_eq!(cpus(Some(1), Some(0), None), None);
        assert_eq!(count("3-1"), None);
        assert_eq!(count("0-4294967295"), None);
    }
}
