//! System calls for files, directories, paths, descriptors, mounts.

use super::Entry;

/// This family's lines.
#[rustfmt::skip]
pub const CALLS: &[Entry] = &[
];
