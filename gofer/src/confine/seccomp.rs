//! The system call filter made from [`super::rules`].

use std::collections::BTreeMap;

use rustix::io::Errno;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::rules::{Argument, RULES};

/// Installs the filters for this thread and all that it starts.
///
/// # Errors
/// `EINVAL` when a rule cannot be compiled, `EPERM` when the kernel refuses.
pub fn install() -> Result<(), Errno> {
    // The last filter first: the allow-list would not let another be installed.
    for filter in [thread_filter(), allow_list()] {
        let program = filter.map_err(|_| Errno::INVAL)?;
        seccompiler::apply_filter(&program).map_err(|_| Errno::PERM)?;
    }
    Ok(())
}

/// The allow-list as a program: what is not in it kills the process.
///
/// # Errors
/// When a rule makes no sense to the compiler.
pub fn allow_list() -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for rule in RULES {
        let conditions = rule.arguments.iter().map(condition).collect::<Result<Vec<_>, _>>()?;
        let alternatives = rules.entry(rule.number).or_default();
        if !conditions.is_empty() {
            alternatives.push(SeccompRule::new(conditions)?);
        }
    }
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)?
        .try_into()
}

/// `clone3` hides its flags behind a pointer, so it does not exist: glibc then uses `clone`, whose flags the allow-list checks.
fn thread_filter() -> Result<BpfProgram, BackendError> {
    let enosys = SeccompAction::Errno(u32::try_from(libc::ENOSYS).unwrap_or(38));
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    SeccompFilter::new(rules, SeccompAction::Allow, enosys, TargetArch::x86_64)?.try_into()
}

fn condition(argument: &Argument) -> Result<SeccompCondition, BackendError> {
    let dword = SeccompCmpArgLen::Dword;
    match *argument {
        Argument::Is(index, value) if u32::try_from(value).is_ok() => {
            SeccompCondition::new(index, dword, SeccompCmpOp::Eq, value)
        }
        Argument::Is(index, value) => {
            SeccompCondition::new(index, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, value)
        }
        Argument::Without(index, bits) => {
            SeccompCondition::new(index, dword, SeccompCmpOp::MaskedEq(bits), 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::rules::Rule;
    use super::*;

    #[test]
    fn the_rules_compile_and_say_why() {
        assert!(!allow_list().unwrap().is_empty());
        assert!(!thread_filter().unwrap().is_empty());
        for Rule { name, reason, .. } in RULES {
            assert!(!reason.is_empty(), "{name}");
        }
    }

    #[test]
    fn a_call_with_and_without_conditions_would_lose_the_conditions() {
        for rule in RULES {
            let unconditional = RULES.iter().any(|r| r.number == rule.number && r.arguments.is_empty());
            let conditional = RULES.iter().any(|r| r.number == rule.number && !r.arguments.is_empty());
            assert!(!(unconditional && conditional), "{}", rule.name);
        }
    }
}
