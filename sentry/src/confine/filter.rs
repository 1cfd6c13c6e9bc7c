//! Builds the allow-list out of [`rules`](super::rules) and loads it.

use std::collections::BTreeMap;

use caisson_proto::control::launch::SeccompMode;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use super::ConfineError;
use super::rules::{RULES, Test, UNSEEN, When};

/// Loads the filter into this thread; threads started later inherit it.
///
/// # Errors
/// [`ConfineError::Filter`].
pub(super) fn apply(mode: SeccompMode) -> Result<(), ConfineError> {
    let otherwise = match mode {
        SeccompMode::Enforce => SeccompAction::KillProcess,
        SeccompMode::Log => SeccompAction::Log,
        SeccompMode::Off => return Ok(()),
    };
    let program = compile(otherwise, std::process::id())?;
    let load = |program: &BpfProgram| apply_filter(program).map_err(|e| ConfineError::Filter(e.to_string()));
    // Of two filters' answers the stricter holds, so the order does not matter.
    load(&unseen()?)?;
    load(&program)
}

/// The filter that hides [`UNSEEN`] calls from the C library.
///
/// # Errors
/// [`ConfineError::Filter`].
fn unseen() -> Result<BpfProgram, ConfineError> {
    let failed = |e: seccompiler::BackendError| ConfineError::Filter(e.to_string());
    let rules = UNSEEN.iter().map(|number| (*number, Vec::new())).collect();
    let missing = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(failed)?;
    SeccompFilter::new(rules, SeccompAction::Allow, missing, arch)
        .and_then(BpfProgram::try_from)
        .map_err(failed)
}

/// The BPF program; `pid` is this process's own, which some rules compare with.
///
/// # Errors
/// [`ConfineError::Filter`] when the table makes no sense.
pub(super) fn compile(otherwise: SeccompAction, pid: u32) -> Result<BpfProgram, ConfineError> {
    let failed = |e: seccompiler::BackendError| ConfineError::Filter(e.to_string());
    let mut map: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for rule in RULES {
        // An empty list of alternatives means "always", so a number must not be in the table both ways.
        let alternatives = map.entry(rule.number).or_default();
        for test in rule.when.tests() {
            let condition = condition(test, pid).map_err(failed)?;
            alternatives.push(SeccompRule::new(vec![condition]).map_err(failed)?);
        }
    }
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(failed)?;
    SeccompFilter::new(map, otherwise, SeccompAction::Allow, arch)
        .and_then(BpfProgram::try_from)
        .map_err(failed)
}

impl When {
    /// The alternatives, any of which lets the call through; none at all means that it always passes.
    pub(super) fn tests(&self) -> Vec<Test> {
        match *self {
            Self::Always => Vec::new(),
            Self::ArgIn(index, values) => values.iter().map(|value| Test::Equal(index, *value)).collect(),
            Self::ArgMasked(index, mask, value) => vec![Test::Masked(index, mask, value)],
            Self::AnyOf(tests) => tests.to_vec(),
            Self::ArgIsOwnPid(index) => vec![Test::OwnPid(index)],
        }
    }
}

fn condition(test: Test, pid: u32) -> Result<SeccompCondition, seccompiler::BackendError> {
    // Every argument that is tested is an int or an unsigned int to the kernel: it looks at the low half only, and so do we.
    let length = SeccompCmpArgLen::Dword;
    match test {
        Test::Equal(index, value) => SeccompCondition::new(index, length, SeccompCmpOp::Eq, value),
        Test::Masked(index, mask, value) => {
            SeccompCondition::new(index, length, SeccompCmpOp::MaskedEq(mask), value)
        }
        Test::OwnPid(index) => SeccompCondition::new(index, length, SeccompCmpOp::Eq, pid.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_table_compiles_and_fits_the_kernel() {
        let program = compile(SeccompAction::KillProcess, 1).unwrap();
        // BPF_MAXINSNS.
        assert!(program.len() < 4096, "{} instructions", program.len());
        assert!(!unseen().unwrap().is_empty());
    }

    #[test]
    fn every_call_is_listed_once_with_a_reason() {
        let mut seen = BTreeMap::new();
        for rule in RULES {
            assert!(!rule.why.is_empty());
            assert!(
                seen.insert(rule.number, rule.why).is_none(),
                "system call {} is listed twice",
                rule.number
            );
        }
    }

    #[test]
    fn nothing_that_reaches_the_host_is_listed() {
        for number in [
            libc::SYS_open,
            libc::SYS_openat2,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_mount,
            libc::SYS_move_mount,
            libc::SYS_pivot_root,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_kill,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_keyctl,
            libc::SYS_seccomp,
            libc::SYS_pidfd_getfd,
        ] {
            assert!(RULES.iter().all(|r| r.number != number), "system call {number} must not be allowed");
        }
    }
}
