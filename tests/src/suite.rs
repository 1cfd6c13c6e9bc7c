//! The harness: runs a suite's tests one after the other, checks after each that nothing is left over, and counts.
//!
//! A small one of our own, because the standard one can neither skip at run time, nor share a containerd between
//! tests and take it down at the end, nor look for left-overs between them.
//!
//! Arguments are parts of test names to run; none means all. The last line is `SUITE: N passed, N failed, N skipped`.

use crate::bed::Bed;
use crate::leaks::{self, Snapshot};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

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
    {
        let bed = prepare();
        println!("{suite}: {}", bed.describe());
        for test in chosen {
            run_one(suite, test, &bed, &mut count);
        }
    }
    println!("{suite}: {} passed, {} failed, {} skipped", count.passed, count.failed, count.skipped);
    if count.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_one(suite: &str, test: &Test, bed: &Bed, count: &mut Count) {
    let before = Snapshot::take(bed);
    let started = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let outcome = (test.run)(bed);
        leaks::expect_none_since(&before, bed);
        outcome
    }));
    let took = started.elapsed();
    match outcome {
        Ok(Ok(())) => {
            count.passed += 1;
            println!("{suite}: ok      {} ({took:.1?})", test.name);
        }
        Ok(Err(Skip(reason))) => {
            count.skipped += 1;
            println!("{suite}: SKIPPED {}: {reason}", test.name);
        }
        Err(_) => {
            count.failed += 1;
            println!("{suite}: FAILED  {} ({took:.1?})", test.name);
            bed.show_log_since_last_look();
        }
    }
}
