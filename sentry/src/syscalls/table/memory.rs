//! System calls for address spaces.

use super::Entry;

/// This family's lines.
#[rustfmt::skip]
pub const CALLS: &[Entry] = &[
];
