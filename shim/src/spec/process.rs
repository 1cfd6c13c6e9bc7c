//! Processes: arguments, identity, capabilities, limits. Also used for the process specs of `exec`.

use caisson_proto::control::{Capabilities, Process, Rlimit, User, WindowSize};
use oci_spec::runtime as oci;
use oci_spec::runtime::PosixRlimitType as R;

use super::SpecError;

/// Converts a process.
///
/// # Errors
/// [`SpecError::Invalid`] naming the field.
pub fn convert(process: &oci::Process) -> Result<Process, SpecError> {
    let invalid = |what: &str| SpecError::Invalid(format!("process.{what}"));
    let args = process.args().clone().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(invalid("args is empty"));
    }
    let env = process.env().clone().unwrap_or_default();
    if args.iter().chain(&env).any(|s| s.contains('\0')) {
        return Err(invalid("args or env holds a NUL byte"));
    }
    let cwd = process.cwd();
    if !cwd.is_absolute() {
        return Err(invalid(&format!("cwd {:?} is not an absolute path", cwd.display())));
    }
    let user = process.user();
    let window = process
        .console_size()
        .as_ref()
        .map(|size| WindowSize { rows: clamp(size.height()), columns: clamp(size.width()) });
    Ok(Process {
        args: args.into_iter().map(String::into_bytes).collect(),
        env: env.into_iter().map(String::into_bytes).collect(),
        cwd: cwd.as_os_str().as_encoded_bytes().to_vec(),
        user: Some(User {
            uid: user.uid(),
            gid: user.gid(),
            umask: user.umask().map(|m| m & 0o777),
            additional_gids: user.additional_gids().clone().unwrap_or_default(),
        }),
        capabilities: process.capabilities().as_ref().map(capabilities),
        rlimits: process.rlimits().iter().flatten().map(rlimit).collect::<Result<_, _>>()?,
        no_new_privs: process.no_new_privileges().unwrap_or(false),
        oom_score_adj: process.oom_score_adj(),
        terminal: process.terminal().unwrap_or(false),
        window,
    })
}

fn clamp(value: u64) -> u32 {
    u32::from(u16::try_from(value).unwrap_or(u16::MAX))
}

fn capabilities(sets: &oci::LinuxCapabilities) -> Capabilities {
    let mask = |set: &Option<oci::Capabilities>| {
        // The spec's names and the kernel's numbers meet in the caps crate.
        set.iter()
            .flatten()
            .filter_map(|c| number(&c.to_string()))
            .fold(0u64, |mask, n| mask | 1u64.wrapping_shl(n))
    };
    Capabilities {
        bounding: mask(sets.bounding()),
        effective: mask(sets.effective()),
        permitted: mask(sets.permitted()),
        inheritable: mask(sets.inheritable()),
        ambient: mask(sets.ambient()),
    }
}

/// The kernel's number of a capability, with or without `CAP_` in front.
pub fn number(name: &str) -> Option<u32> {
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    full.parse::<caps::Capability>().ok().map(|c| u32::from(c.index()))
}

fn rlimit(limit: &oci::PosixRlimit) -> Result<Rlimit, SpecError> {
    let resource = match limit.typ() {
        R::RlimitCpu => libc::RLIMIT_CPU,
        R::RlimitFsize => libc::RLIMIT_FSIZE,
        R::RlimitData => libc::RLIMIT_DATA,
        R::RlimitStack => libc::RLIMIT_STACK,
        R::RlimitCore => libc::RLIMIT_CORE,
        R::RlimitRss => libc::RLIMIT_RSS,
        R::RlimitNproc => libc::RLIMIT_NPROC,
        R::RlimitNofile => libc::RLIMIT_NOFILE,
        R::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        R::RlimitAs => libc::RLIMIT_AS,
        R::RlimitLocks => libc::RLIMIT_LOCKS,
        R::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        R::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        R::RlimitNice => libc::RLIMIT_NICE,
        R::RlimitRtprio => libc::RLIMIT_RTPRIO,
        R::RlimitRttime => libc::RLIMIT_RTTIME,
    };
    if limit.soft() > limit.hard() {
        let text = format!("process.rlimits: {} has a soft limit above the hard one", limit.typ());
        return Err(SpecError::Invalid(text));
    }
    Ok(Rlimit { resource, soft: limit.soft(), hard: limit.hard() })
}
