//! The framework of the end-to-end suites: small words for containerd, containers, bundles, guest programs and
//! left-overs, so that a test reads as a story of twenty lines.
//!
//! A suite is a program in `suites/` that hands a list of functions to [`suite::main`]. Every function gets the
//! [`bed::Bed`]: a private containerd, the images, and the runtime that is under test. The suites know nothing of
//! Caisson's insides: `CAISSON_TEST_RUNTIME=io.containerd.runc.v2` runs the same tests with runc, which is how a test
//! is shown to be right before the sandbox is judged by it.
//!
//! Start with [`bed`] and [`container`]; [`leaks`] says what may not be left behind.
//!
//! Every wait is bounded: commands run under [`command::Command`], which kills the whole process group at its limit.

#![forbid(unsafe_code)]

pub mod bed;
pub mod bundle;
pub mod command;
pub mod container;
pub mod containerd;
pub mod guest;
pub mod leaks;
pub mod suite;
