//! The harness: runs a suite's tests one after the other, checks after each that nothing is left over, and counts.
//!
//! A small one of our own, because the standard one can neither skip at run time, nor share a containerd between
//! tests and take it down at the end, nor look for left-overs between them.
//!
//! What is known to fail is listed in `known-failures` with a reason: such a failure counts as skipped, and a listed test
//! that passes fails, so that the list stays true.
//!
//! Arguments are parts of test names to run; none means all. The last line is `SUITE: N passed, N failed, N skipped`.

use crate::bed::Bed;
use crate::leaks::{self, Snapshot};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Why a test did not run. A test returns it as an error; it is printed and counted.
#[derive(Debug)]
pub struct Skip(pub String);

/// What a test returns; it fails by panicking.
pub type Outcome = Result<(), Skip>;

/// A named test.
pub struct Test {
    pub name: String,
    pub run: Box<dyn Fn(&Bed) -> Outcome>,
}

/// Makes the list of tests from the names of functions.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        vec![$($crate::suite::Test { name: stringify!($name).to_string(), run: Box::new($name) }),*]
    };
}

/// Counts of a run.
#[derive(Default)]
struct Count {
    passed: usize,
    failed: usize,
    skipped: usize,
}

/// Runs the tests that the arguments name. `prepare` makes the test bed.
pub fn main(suite: &str, prepare: fn() -> Bed, tests: Vec<Test>) -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let chosen =
        tests.iter().filter(|test| wanted.is_empty() || wanted.iter().any(|part| test.name.contains(part)));
    let mut count = Count::default();
    let deadline = Instant::now() + limit();
    {
        let bed = prepare();
        println!("{suite}: {}", bed.describe());
        let known = if bed.is_caisson() { known_failures(suite, &tests) } else { BTreeMap::new() };
        for test in chosen {
            if Instant::now() > deadline {
                count.failed += 1;
                println!("{suite}: FAILED  {} (not started: the suite's time is over)", test.name);
                continue;
            }
            run_one(suite, test, &bed, known.get(&test.name), &mut count);
        }
    }
    println!("{suite}: {} passed, {} failed, {} skipped", count.passed, count.failed, count.skipped);
    if count.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How long a suite may take before its remaining tests are given up: `CAISSON_SUITE_SECONDS`, else 13 minutes.
fn limit() -> Duration {
    let seconds = std::env::var("CAISSON_SUITE_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(780))
}

/// The lines of `known-failures` for a suite: test name to reason. Panics on a line that names no test of the suite, so
/// that the list cannot outlive what it lists.
fn known_failures(suite: &str, tests: &[Test]) -> BTreeMap<String, String> {
    let lines = include_str!("../known-failures").lines().map(str::trim);
    let mut known = BTreeMap::new();
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let mut words = line.splitn(3, char::is_whitespace);
        let (of, name, reason) =
            (words.next(), words.next(), words.next().map(str::trim).unwrap_or_default());
        if of != Some(suite) {
            continue;
        }
        let name = name.unwrap_or_default();
        assert!(!reason.is_empty(), "known-failures: {line} has no reason");
        assert!(tests.iter().any(|test| test.name == name), "known-failures: {suite} has no test {name}");
        known.insert(name.to_string(), reason.to_string());
    }
    known
}

fn run_one(suite: &str, test: &Test, bed: &Bed, known: Option<&String>, count: &mut Count) {
    let before = Snapshot::take(bed);
    let started = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let outcome = (test.run)(bed);
        leaks::expect_none_since(&before, bed);
        outcome
    }));
    let took = started.elapsed();
    let name = &test.name;
    match (outcome, known) {
        (Ok(Ok(())), None) => {
            count.passed += 1;
            println!("{suite}: ok      {name} ({took:.1?})");
        }
        (Ok(Ok(())), Some(reason)) => {
            count.failed += 1;
            println!(
                "{suite}: FAILED  {name} ({took:.1?}): it passes; take it out of known-failures ({reason})"
            );
        }
        (Ok(Err(Skip(reason))), _) => {
            count.skipped += 1;
            println!("{suite}: SKIPPED {name}: {reason}");
        }
        (Err(_), Some(reason)) => {
            count.skipped += 1;
            println!("{suite}: SKIPPED {name}: known to fail: {reason}");
        }
        (Err(_), None) => {
            count.failed += 1;
            println!("{suite}: FAILED  {name} ({took:.1?})");
            bed.show_log_since_last_look();
        }
    }
}
