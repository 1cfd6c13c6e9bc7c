//! System calls for ids, capabilities, limits, system information, prctl.

use super::Entry;

/// This family's lines.
#[rustfmt::skip]
pub const CALLS: &[Entry] = &[
];
