//! How many descriptors a connection may make the process hold.
//!
//! The process's limit, less a reserve for what the server itself needs while it works, is shared out evenly among the
//! connections: one client at its bound does not take anything from another.

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors per connection that are not in its table: sockets, channels, what one request holds while it is served.
pub const RESERVE_PER_CONNECTION: usize = 64;
/// Descriptors of the process itself.
pub const RESERVE: usize = 32;
/// Most objects of one connection, whatever the process's limit is: bounds the table's memory.
pub const OBJECTS_MAX: usize = 1 << 20;

/// Raises the process's limit to its hard value, or to `wanted` if that is not zero and lower, and returns it.
///
/// # Errors
/// What `setrlimit(2)` says.
pub fn raise_descriptor_limit(wanted: u64) -> Result<usize, Errno> {
    let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(OBJECTS_MAX as u64);
    let limit = if wanted == 0 { hard } else { hard.min(wanted) };
    setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum: Some(limit) })?;
    Ok(usize::try_from(limit).unwrap_or(OBJECTS_MAX))
}

/// How many objects each of `connections` may hold under a process limit of `descriptors`; at least one.
pub fn objects_per_connection(descriptors: usize, connections: usize) -> usize {
    let share = descriptors.saturating_sub(RESERVE).checked_div(connections.max(1)).unwrap_or(0);
    share.saturating_sub(RESERVE_PER_CONNECTION).clamp(1, OBJECTS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_and_reserves_fit_into_the_limit() {
        for descriptors in [256, 1024, 65_536, 1 << 20] {
            for connections in [1, 2, 3] {
                let each = objects_per_connection(descriptors, connections) + RESERVE_PER_CONNECTION;
                assert!(each * connections + RESERVE <= descriptors, "{descriptors} {connections}");
            }
        }
        assert_eq!(objects_per_connection(0, 0), 1);
        assert_eq!(objects_per_connection(usize::MAX, 1), OBJECTS_MAX);
    }
}
