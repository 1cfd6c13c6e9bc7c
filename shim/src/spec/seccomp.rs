//! Seccomp profiles: names into the kernel's numbers, nothing else; the sentry compiles and enforces them.

use caisson_proto::control::{Seccomp, SeccompOperator, SeccompRule, SeccompTest};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction as A, LinuxSeccompArg, LinuxSeccompOperator as O};

use super::SpecError;

/// Converts a profile.
///
/// # Errors
/// [`SpecError::Unsupported`] for user notification, which needs an agent outside the sandbox.
pub(super) fn convert(profile: &LinuxSeccomp) -> Result<Seccomp, SpecError> {
    let rules = profile.syscalls().iter().flatten().map(|rule| {
        Ok(SeccompRule {
            names: rule.names().clone(),
            action: action(rule.action(), rule.errno_ret())?,
            tests: rule.args().iter().flatten().map(test).collect(),
        })
    });
    Ok(Seccomp {
        default_action: action(profile.default_action(), profile.default_errno_ret())?,
        architectures: profile.architectures().iter().flatten().map(ToString::to_string).collect(),
        flags: profile.flags().iter().flatten().map(ToString::to_string).collect(),
        rules: rules.collect::<Result<_, SpecError>>()?,
    })
}

fn action(action: A, errno: Option<u32>) -> Result<u32, SpecError> {
    let data = errno.unwrap_or(libc::EPERM.unsigned_abs()) & libc::SECCOMP_RET_DATA;
    Ok(match action {
        A::ScmpActKill | A::ScmpActKillThread => libc::SECCOMP_RET_KILL_THREAD,
        A::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        A::ScmpActTrap => libc::SECCOMP_RET_TRAP,
        A::ScmpActErrno => libc::SECCOMP_RET_ERRNO | data,
        A::ScmpActTrace => libc::SECCOMP_RET_TRACE | data,
        A::ScmpActAllow => libc::SECCOMP_RET_ALLOW,
        A::ScmpActLog => libc::SECCOMP_RET_LOG,
        A::ScmpActNotify => return Err(SpecError::Unsupported("seccomp action SCMP_ACT_NOTIFY")),
    })
}

fn test(arg: &LinuxSeccompArg) -> SeccompTest {
    let operator = match arg.op() {
        O::ScmpCmpNe => SeccompOperator::NotEqual,
        O::ScmpCmpLt => SeccompOperator::Less,
        O::ScmpCmpLe => SeccompOperator::LessOrEqual,
        O::ScmpCmpEq => SeccompOperator::Equal,
        O::ScmpCmpGe => SeccompOperator::GreaterOrEqual,
        O::ScmpCmpGt => SeccompOperator::Greater,
        O::ScmpCmpMaskedEq => SeccompOperator::MaskedEqual,
    };
    SeccompTest {
        index: u32::try_from(arg.index()).unwrap_or(u32::MAX),
        value: arg.value(),
        value_two: arg.value_two().unwrap_or(0),
        operator: operator.into(),
    }
}
