//! What may happen to a process next: a pure function, so that every order of events can be tried by a test.
//!
//! ```text
//!            Created          StartBegun           Started            Paused
//!  Creating ───────▶ Created ───────────▶ Starting ───────▶ Running ◀────────▶ Paused
//!                       │  ▲                  │  │             │     Resumed     │
//!                       │  └──── StartFailed ─┘  │             │                 │
//!                       │                        │ (kept until │ Exited          │ Exited
//!                       │ Exited                 │  Started)   ▼                 │
//!                       └────────────────────────┴─────────▶ Stopped ◀───────────┘
//! ```
//!
//! Containers' first processes and execs share it; only the former are paused. The [`Note`]s are what is to be published, in order: the
//! order of containerd's events holds because of this function and nothing else.

use thiserror::Error;

/// How and when a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitInfo {
    /// Exit code, or 128 plus the signal.
    pub status: u32,
    /// Nanoseconds since 1970.
    pub at_unix_nanos: u64,
}

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The sentry has been asked to load it.
    Creating,
    /// Loaded, not running.
    Created,
    /// The sentry has been asked to run it; it may have ended before we heard that it runs.
    Starting(Option<ExitInfo>),
    /// Running.
    Running,
    /// Standing still.
    Paused,
    /// Ended.
    Stopped(ExitInfo),
}

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// The sentry has loaded it.
    Created,
    /// Somebody wants it started.
    StartBegun,
    /// The sentry says it runs.
    Started,
    /// The sentry could not start it.
    StartFailed,
    /// It stands still.
    Paused,
    /// It runs again.
    Resumed,
    /// It has ended.
    Exited(ExitInfo),
}

/// What is to be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// `/tasks/create` or `/tasks/exec-added`.
    Created,
    /// `/tasks/start` or `/tasks/exec-started`.
    Started,
    /// `/tasks/paused`.
    Paused,
    /// `/tasks/resumed`.
    Resumed,
    /// `/tasks/exit`.
    Exited(ExitInfo),
}

/// The thing cannot happen now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{}", match .phase {
    Phase::Creating => "it is still being created",
    Phase::Created => "it has not been started",
    Phase::Starting(_) => "it is being started",
    Phase::Running => "it is already running",
    Phase::Paused => "it is paused",
    Phase::Stopped(_) => "it has stopped",
})]
pub struct Refused {
    /// Where the process is instead.
    pub phase: Phase,
}

/// The next phase and what to publish.
///
/// # Errors
/// [`Refused`] when the input does not fit the phase; nothing changes then.
pub fn next(phase: Phase, input: Input) -> Result<(Phase, Vec<Note>), Refused> {
    use Phase as P;
    match (phase, input) {
        (P::Creating, Input::Created) => Ok((P::Created, vec![Note::Created])),
        (P::Created, Input::StartBegun) => Ok((P::Starting(None), vec![])),
        (P::Starting(None), Input::Started) => Ok((P::Running, vec![Note::Started])),
        (P::Starting(Some(exit)), Input::Started) => {
            Ok((P::Stopped(exit), vec![Note::Started, Note::Exited(exit)]))
        }
        (P::Starting(None), Input::StartFailed) => Ok((P::Created, vec![])),
        // The sentry died while it started: the exit is the truth, and nobody was told of a start.
        (P::Starting(Some(exit)), Input::StartFailed) => Ok((P::Stopped(exit), vec![Note::Exited(exit)])),
        (P::Running, Input::Paused) => Ok((P::Paused, vec![Note::Paused])),
        (P::Paused, Input::Resumed) => Ok((P::Running, vec![Note::Resumed])),
        (P::Starting(None), Input::Exited(exit)) => Ok((P::Starting(Some(exit)), vec![])),
        (P::Created | P::Running | P::Paused, Input::Exited(exit)) => {
            Ok((P::Stopped(exit), vec![Note::Exited(exit)]))
        }
        // One exit is enough: the sentry's event and its death may both report one.
        (P::Starting(Some(_)) | P::Stopped(_), Input::Exited(_)) => Ok((phase, vec![])),
        _ => Err(Refused { phase }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INPUTS: [Input; 8] = [
        Input::Created,
        Input::StartBegun,
        Input::Started,
        Input::StartFailed,
        Input::Paused,
        Input::Resumed,
        Input::Exited(ExitInfo { status: 0, at_unix_nanos: 1 }),
        Input::Exited(ExitInfo { status: 137, at_unix_nanos: 2 }),
    ];

    /// Every sequence of seven inputs, refused ones skipped: the published notes must always be in a legal order.
    #[test]
    fn whatever_happens_notes_are_in_order() {
        let mut seen_full = 0;
        for mut code in 0..INPUTS.len().pow(7) {
            let mut phase = Phase::Creating;
            let mut notes = vec![];
            for _ in 0..7 {
                let input = INPUTS[code % INPUTS.len()];
                code /= INPUTS.len();
                if let Ok((to, said)) = next(phase, input) {
                    phase = to;
                    notes.extend(said);
                }
            }
            let at = |wanted: fn(&Note) -> bool| notes.iter().position(wanted);
            let count = |wanted: fn(&Note) -> bool| notes.iter().filter(|n| wanted(n)).count();
            let created = at(|n| *n == Note::Created);
            let started = at(|n| *n == Note::Started);
            let exited = at(|n| matches!(n, Note::Exited(_)));
            assert!(count(|n| *n == Note::Created) <= 1);
            assert!(count(|n| *n == Note::Started) <= 1);
            assert!(count(|n| matches!(n, Note::Exited(_))) <= 1);
            assert!(notes.is_empty() || created == Some(0), "{notes:?}");
            if let Some(exited) = exited {
                assert_eq!(exited + 1, notes.len(), "something came after the exit: {notes:?}");
                assert!(matches!(phase, Phase::Stopped(_)));
            }
            if let Some(pause) = at(|n| matches!(n, Note::Paused | Note::Resumed)) {
                assert!(started.is_some_and(|s| s < pause), "{notes:?}");
            }
            seen_full += usize::from(started.is_some() && exited.is_some());
        }
        assert!(seen_full > 1000);
    }

    #[test]
    fn an_exit_that_overtakes_the_start_is_kept() {
        let exit = ExitInfo { status: 3, at_unix_nanos: 9 };
        let (phase, notes) = next(Phase::Starting(None), Input::Exited(exit)).unwrap();
        assert!(notes.is_empty());
        let (phase, notes) = next(phase, Input::Started).unwrap();
        assert_eq!((phase, notes), (Phase::Stopped(exit), vec![Note::Started, Note::Exited(exit)]));
    }

    #[test]
    fn a_stopped_process_stays_stopped() {
        let exit = ExitInfo { status: 3, at_unix_nanos: 9 };
        for input in INPUTS {
            match next(Phase::Stopped(exit), input) {
                Ok((phase, notes)) => assert_eq!((phase, notes), (Phase::Stopped(exit), vec![])),
                Err(refused) => assert_eq!(refused.to_string(), "it has stopped"),
            }
        }
    }
}
