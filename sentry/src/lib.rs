#![forbid(unsafe_code)]
//! Placeholder until its first module lands.
