//! Standard streams of containers: opens what containerd names and hands the descriptors over; no byte passes through the shim.
//!
//! A FIFO is opened twice. The sentry gets the end that the process uses; the shim keeps the other one ([`Holds`]):
//! - the writing end of stdin, so that the process sees no end of file when the client has not connected yet or containerd
//!   restarts. `CloseIO` lets go of it.
//! - the reading end of stdout and stderr, so that the process gets no `SIGPIPE` while containerd is away. The process's exit lets go of it.
//!   Clients (`ctr`, for one) stop reading when they hear of the exit: so they hear of it when they have read all ([`Holds::unread`]).
//!
//! Read ends are opened first, so that opening never blocks.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use caisson_proto::control::Stdio;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use thiserror::Error;

/// Why a stream cannot be used.
#[derive(Debug, Error)]
pub enum StdioError {
    /// A scheme that is not served.
    #[error("{stream} {uri:?}: the scheme is not supported; use a FIFO or file://")]
    Scheme {
        /// Which stream.
        stream: &'static str,
        /// As given.
        uri: String,
    },
    /// It cannot be opened.
    #[error("{stream} {path}: {error}")]
    Open {
        /// Which stream.
        stream: &'static str,
        /// Its path.
        path: String,
        /// Why.
        error: io::Error,
    },
}

/// Names of the streams as containerd gives them; empty is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// Standard input.
    pub stdin: String,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// The streams of one process, for the sentry.
#[derive(Debug, Default)]
pub struct Streams {
    /// Readable.
    pub stdin: Option<OwnedFd>,
    /// Writable.
    pub stdout: Option<OwnedFd>,
    /// Writable.
    pub stderr: Option<OwnedFd>,
}

/// What the shim keeps open meanwhile.
#[derive(Debug, Default)]
pub struct Holds {
    stdin: Option<OwnedFd>,
    outputs: Vec<OwnedFd>,
}

impl Holds {
    /// Lets the process see the end of its input once the client's end is closed too.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// How many bytes of output the client has not read yet.
    pub fn unread(&self) -> u64 {
        self.outputs.iter().filter_map(|reader| rustix::io::ioctl_fionread(reader).ok()).sum()
    }

    /// Lets go of everything.
    pub fn release(&mut self) {
        self.stdin = None;
        self.outputs.clear();
    }
}

impl Streams {
    /// Adds the descriptors to `fds` and gives the message that names them by index.
    pub fn describe<'a>(&'a self, fds: &mut Vec<BorrowedFd<'a>>) -> Stdio {
        let mut add = |fd: &'a Option<OwnedFd>| {
            let fd = fd.as_ref()?;
            let index = u32::try_from(fds.len()).ok();
            fds.push(fd.as_fd());
            index
        };
        Stdio { stdin_fd: add(&self.stdin), stdout_fd: add(&self.stdout), stderr_fd: add(&self.stderr) }
    }
}

/// Opens the named streams. With a terminal standard error is not opened: it is the terminal's output too.
///
/// # Errors
/// [`StdioError`] naming the stream.
pub fn open(names: &Names, terminal: bool) -> Result<(Streams, Holds), StdioError> {
    let mut streams = Streams::default();
    let mut holds = Holds::default();
    if let Some(path) = path_of("stdin", &names.stdin)? {
        let (reader, writer) = fifo("stdin", path)?;
        streams.stdin = Some(reader);
        holds.stdin = writer;
    }
    if !names.stdout.is_empty() {
        streams.stdout = Some(output("stdout", &names.stdout, &mut holds)?);
    }
    if !names.stderr.is_empty() && !terminal {
        streams.stderr = Some(output("stderr", &names.stderr, &mut holds)?);
    }
    Ok((streams, holds))
}

fn path_of<'a>(stream: &'static str, name: &'a str) -> Result<Option<&'a Path>, StdioError> {
    match name.split_once("://") {
        _ if name.is_empty() => Ok(None),
        None => Ok(Some(Path::new(name))),
        Some(("fifo", path)) => Ok(Some(Path::new(path))),
        Some(_) => Err(StdioError::Scheme { stream, uri: name.to_owned() }),
    }
}

fn output(stream: &'static str, name: &str, holds: &mut Holds) -> Result<OwnedFd, StdioError> {
    if let Some(path) = name.strip_prefix("file://") {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path);
        return file.map(OwnedFd::from).map_err(|error| StdioError::Open {
            stream,
            path: path.to_owned(),
            error,
        });
    }
    let path = path_of(stream, name)?.unwrap_or(Path::new(""));
    let (reader, writer) = fifo(stream, path)?;
    match writer {
        Some(writer) => {
            holds.outputs.push(reader);
            Ok(writer)
        }
        None => Ok(reader),
    }
}

/// Opens both ends of a FIFO, blocking ones. For anything else (a log file, `/dev/null`) one descriptor for both ways.
fn fifo(stream: &'static str, path: &Path) -> Result<(OwnedFd, Option<OwnedFd>), StdioError> {
    let failed = |error| StdioError::Open { stream, path: path.display().to_string(), error };
    let open = |read: bool, write: bool| {
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        OpenOptions::new().read(read).write(write).custom_flags(flags).open(path).map_err(failed)
    };
    // Kept open: were it closed again, the reader would see the end of the output.
    let early = if stream == "stdin" { None } else { await_reader(path) };
    let reader = open(true, false)?;
    if !reader.metadata().map_err(failed)?.file_type().is_fifo() {
        return Ok((blocking(open(true, stream != "stdin")?).map_err(failed)?, None));
    }
    let writer = early.map_or_else(|| open(false, true), Ok)?;
    let writer = blocking(writer).map_err(failed)?;
    Ok((blocking(reader).map_err(failed)?, Some(writer)))
}

/// Waits for whoever reads the output to open the FIFO, as runc's shim does: what a quick process writes before that would be lost
/// with the last descriptor. A reader that never comes delays the start, but does not prevent it.
fn await_reader(path: &Path) -> Option<File> {
    const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 5000 });
    let begun = Instant::now();
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    while begun.elapsed() < PATIENCE {
        match OpenOptions::new().write(true).custom_flags(flags).open(path) {
            Ok(writer) => return Some(writer),
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {}
            Err(_) => return None,
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    None
}

/// Clears `O_NONBLOCK`. The description is ours alone, so nobody else notices.
fn blocking(file: File) -> io::Result<OwnedFd> {
    let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
    fcntl(&file, FcntlArg::F_SETFL(flags & !OFlag::O_NONBLOCK))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn fifos_are_held_and_let_go() {
        let dir = std::env::temp_dir().join(format!("caisson-stdio-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = |n: &str| dir.join(n);
        for name in ["in", "out"] {
            mkfifo(&path(name), Mode::S_IRWXU).unwrap();
        }
        let names = Names {
            stdin: path("in").display().to_string(),
            stdout: format!("fifo://{}", path("out").display()),
            stderr: format!("file://{}", path("log").display()),
        };
        let (streams, mut holds) = open(&names, false).unwrap();
        let mut fds = Vec::new();
        let message = streams.describe(&mut fds);
        assert_eq!(
            (message.stdin_fd, message.stdout_fd, message.stderr_fd, fds.len()),
            (Some(0), Some(1), Some(2), 3)
        );
        // Nobody reads yet, and writing neither fails nor blocks.
        let mut writer = File::from(streams.stdout.unwrap());
        writer.write_all(b"early").unwrap();
        assert_eq!(holds.unread(), 5);
        let mut reader = File::open(path("out")).unwrap();
        drop(writer);
        holds.release();
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        assert_eq!(said, "early");
        // With the hold gone and no writer, stdin ends.
        let mut input = String::new();
        File::from(streams.stdin.unwrap()).read_to_string(&mut input).unwrap();
        assert_eq!(input, "");
        assert!(path("log").exists());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn other_schemes_are_refused_by_name() {
        for stdout in ["binary:///bin/logger?x=y", "npipe://x"] {
            let names = Names { stdout: stdout.into(), ..Names::default() };
            let error = open(&names, false).unwrap_err().to_string();
            assert!(error.contains("not supported") && error.contains(stdout), "{error}");
        }
        let names = Names { stdin: "/no/such/fifo".into(), ..Names::default() };
        assert!(open(&names, true).unwrap_err().to_string().starts_with("stdin /no/such/fifo: No such file"));
        assert!(open(&Names::default(), false).unwrap().0.stdin.is_none());
    }
}
