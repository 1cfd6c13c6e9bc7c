//! Why an operation on a container failed, in terms that both a gRPC status and a command's exit can be made of.

use caisson_proto::control::ErrorCode;
use thiserror::Error;

use super::state::Refused;
use crate::cgroup::CgroupError;
use crate::control::ControlError;
use crate::launch::LaunchError;
use crate::spec::SpecError;
use crate::stdio::StdioError;

/// Kinds of failure; each is one gRPC code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// No such container or process, or it has ended.
    NotFound,
    /// The ID is taken.
    AlreadyExists,
    /// Not in this state.
    FailedPrecondition,
    /// The request or the bundle makes no sense.
    InvalidArgument,
    /// Not done by this runtime.
    Unimplemented,
    /// The program cannot be run; the message is runc's.
    Program,
    /// The sentry is gone.
    Unavailable,
    /// Anything else.
    Internal,
}

/// A failed operation.
#[derive(Debug, Clone, Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind.
    pub kind: Kind,
    /// What happened, naming the thing.
    pub message: String,
}

impl Failure {
    /// A failure of a kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub(super) fn no_container(id: &str) -> Self {
        Self::new(Kind::NotFound, format!("container {id:?} does not exist"))
    }

    pub(super) fn no_process(id: &str, exec: &str) -> Self {
        Self::new(Kind::NotFound, format!("process {exec:?} does not exist in container {id:?}"))
    }

    pub(super) fn refused(action: &str, refused: Refused) -> Self {
        Self::new(Kind::FailedPrecondition, format!("cannot {action}: {refused}"))
    }

    pub(super) fn internal(what: &str, error: impl std::fmt::Display) -> Self {
        Self::new(Kind::Internal, format!("{what}: {error}"))
    }
}

impl From<SpecError> for Failure {
    fn from(error: SpecError) -> Self {
        let kind = match &error {
            SpecError::Unsupported(_) => Kind::Unimplemented,
            SpecError::Read { .. } | SpecError::Host { .. } => Kind::NotFound,
            SpecError::Parse { .. } | SpecError::Invalid(_) => Kind::InvalidArgument,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<LaunchError> for Failure {
    fn from(error: LaunchError) -> Self {
        Self::new(Kind::Internal, error.to_string())
    }
}

impl From<CgroupError> for Failure {
    fn from(error: CgroupError) -> Self {
        Self::new(Kind::Internal, error.to_string())
    }
}

impl From<StdioError> for Failure {
    fn from(error: StdioError) -> Self {
        let kind = match &error {
            StdioError::Scheme { .. } => Kind::Unimplemented,
            StdioError::Open { .. } => Kind::InvalidArgument,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        let kind = match error.code() {
            // runc: "process already finished".
            _ if error.errno() == Some(libc::ESRCH.unsigned_abs()) => Kind::NotFound,
            Some(ErrorCode::NotFound) => Kind::NotFound,
            Some(ErrorCode::AlreadyExists) => Kind::AlreadyExists,
            Some(ErrorCode::FailedPrecondition) => Kind::FailedPrecondition,
            Some(ErrorCode::InvalidArgument) => Kind::InvalidArgument,
            Some(ErrorCode::Unimplemented) => Kind::Unimplemented,
            Some(ErrorCode::ProgramNotFound | ErrorCode::ProgramNotRunnable) => Kind::Program,
            Some(ErrorCode::Internal | ErrorCode::ResourceExhausted) => Kind::Internal,
            None if matches!(error, ControlError::Gone(_)) => Kind::Unavailable,
            None => Kind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}
