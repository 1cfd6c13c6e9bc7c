//! Finds the sentry's and the gofer's binaries.

use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::LaunchError;

/// Directory that overrides all others, for tests and unusual installations.
pub const DIRECTORY_VARIABLE: &str = "CAISSON_LIBEXEC";

const SYSTEM: [&str; 4] =
    ["/usr/local/libexec/caisson", "/usr/libexec/caisson", "/usr/local/bin", "/usr/bin"];

/// Opens the binary called `name`: in `$CAISSON_LIBEXEC`, else beside this program, else where packages put it.
///
/// The descriptor is what gets executed, so the file cannot be exchanged in between and needs to be reachable for the launcher only.
///
/// # Errors
/// [`LaunchError::NotFound`] lists the places.
pub fn open(name: &'static str) -> Result<(PathBuf, File), LaunchError> {
    let places = directories(env::var_os(DIRECTORY_VARIABLE).as_deref(), env::current_exe().ok().as_deref());
    for directory in &places {
        let path = directory.join(name);
        if let Ok(file) = File::open(&path)
            && file.metadata().is_ok_and(|m| m.is_file())
        {
            return Ok((path, file));
        }
    }
    let places = places.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
    Err(LaunchError::NotFound { program: name, places })
}

fn directories(variable: Option<&OsStr>, own: Option<&Path>) -> Vec<PathBuf> {
    if let Some(directory) = variable.filter(|d| !d.is_empty()) {
        return vec![directory.into()];
    }
    let beside = own.and_then(Path::parent).map(Path::to_owned);
    beside.into_iter().chain(SYSTEM.iter().map(PathBuf::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_wins_then_the_neighbours() {
        assert_eq!(directories(Some(OsStr::new("/x")), Some(Path::new("/a/b"))), [PathBuf::from("/x")]);
        let places = directories(Some(OsStr::new("")), Some(Path::new("/a/b")));
        assert_eq!(places.first(), Some(&PathBuf::from("/a")));
        assert_eq!(places.len(), 1 + SYSTEM.len());
    }
}
