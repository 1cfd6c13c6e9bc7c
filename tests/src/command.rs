//! Running a program to its end, with a limit on time: the only way in which the suites start programs.

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a command may take when the test does not say.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(60);

/// A program to run: `std::process::Command` with a limit and with input as bytes.
pub struct Command {
    inner: std::process::Command,
    input: Option<Vec<u8>>,
    limit: Duration,
    line: String,
}

/// What a program left: its output as text (lossy), how it ended, and how long that took.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The exit status; 128 + the signal's number when a signal ended it; `None` when it had to be stopped.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
    line: String,
}

impl Command {
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let line = program.as_ref().to_string_lossy().into_owned();
        Command { inner: std::process::Command::new(program), input: None, limit: DEFAULT_LIMIT, line }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.line.push(' ');
        self.line.push_str(&arg.as_ref().to_string_lossy());
        self.inner.arg(arg);
        self
    }

    pub fn args<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Self {
        args.into_iter().fold(self, Command::arg)
    }

    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.inner.env(key, value);
        self
    }

    pub fn current_dir(mut self, directory: impl AsRef<std::path::Path>) -> Self {
        self.inner.current_dir(directory);
        self
    }

    /// The program and its arguments.
    pub fn words(&self) -> Vec<String> {
        let args = self.inner.get_args();
        std::iter::once(self.inner.get_program())
            .chain(args)
            .map(|word| word.to_string_lossy().into_owned())
            .collect()
    }

    /// Bytes for its standard input, which ends after them; without this, input is /dev/null.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Some(bytes.into());
        self
    }

    /// The most it may take; then its whole process group is killed.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it to its end.
    pub fn run(self) -> Finished {
        self.start().finish()
    }

    /// Runs it and hands out what it printed; panics with all of its output when it failed.
    #[track_caller]
    pub fn ok(self) -> String {
        self.run().ok()
    }

    /// Starts it, to be waited for by [`Running::finish`].
    #[track_caller]
    pub fn start(mut self) -> Running {
        let started = Instant::now();
        let stdin = if self.input.is_some() { Stdio::piped() } else { Stdio::null() };
        self.inner.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = match self.inner.spawn() {
            Ok(child) => child,
            Err(error) => panic!("cannot start `{}`: {error}", self.line),
        };
        let stdout = child.stdout.take().map(read_all);
        let stderr = child.stderr.take().map(read_all);
        if let (Some(mut pipe), Some(bytes)) = (child.stdin.take(), self.input.take()) {
            // A program may end without reading its input: a broken pipe is its business.
            std::thread::spawn(move || pipe.write_all(&bytes).ok());
        }
        Running { child, stdout, stderr, started, limit: self.limit, line: self.line, over: false }
    }
}

fn read_all(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).ok();
        bytes
    })
}

/// A started program. Dropping it kills its process group.
pub struct Running {
    child: Child,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    started: Instant,
    limit: Duration,
    line: String,
    over: bool,
}

impl Running {
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    pub fn signal(&self, signal: Signal) {
        nix::sys::signal::kill(Pid::from_raw(self.pid()), signal).ok();
    }

    pub fn is_over(&mut self) -> bool {
        self.over = self.over || !matches!(self.child.try_wait(), Ok(None));
        self.over
    }

    /// Waits for the end, at most until the limit that the command was given.
    pub fn finish(mut self) -> Finished {
        let mut pause = Duration::from_millis(1);
        while !self.is_over() && self.started.elapsed() < self.limit {
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
        let stopped = !self.over;
        let took = self.started.elapsed();
        if stopped {
            self.kill();
        }
        let code = match self.child.wait() {
            Ok(status) if !stopped => status.code().or(status.signal().map(|signal| 128 + signal)),
            _ => None,
        };
        // A background process of the program may still hold its output open.
        self.kill();
        Finished {
            code,
            stdout: text(self.stdout.take()),
            stderr: text(self.stderr.take()),
            took,
            line: self.line.clone(),
        }
    }

    fn kill(&self) {
        killpg(Pid::from_raw(self.pid()), Signal::SIGKILL).ok();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.is_over() {
            self.kill();
            self.child.wait().ok();
        }
    }
}

fn text(reader: Option<JoinHandle<Vec<u8>>>) -> String {
    let bytes = reader.and_then(|reader| reader.join().ok()).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Finished {
    /// Its standard output; panics with all of its output unless it exited with 0.
    #[track_caller]
    pub fn ok(self) -> String {
        self.exited(0).stdout
    }

    /// Panics with all of its output unless it exited with `code`.
    #[track_caller]
    pub fn exited(self, code: i32) -> Self {
        assert!(self.code == Some(code), "expected exit status {code} from {self}");
        self
    }

    /// Panics unless it failed by itself, within its limit, and said `words` (in any case) on its standard error.
    #[track_caller]
    pub fn failed_saying(self, words: &str) -> Self {
        assert!(self.code.is_some_and(|code| code != 0), "expected a failure from {self}");
        assert!(
            self.stderr.to_lowercase().contains(&words.to_lowercase()),
            "expected {words:?} on the standard error of {self}"
        );
        self
    }

    /// Standard output without the white space around it.
    pub fn out(&self) -> &str {
        self.stdout.trim()
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ended = self.code.map_or("stopped at its limit".to_string(), |code| format!("status {code}"));
        let Finished { line, took, stdout, stderr, .. } = self;
        let line: String = line.chars().take(600).collect();
        write!(
            f,
            "`{line}`\n  ended with {ended} after {took:.1?}\n  stdout: {}\n  stderr: {}",
            tail(stdout),
            tail(stderr)
        )
    }
}

/// The last lines of a text, enough to see what went wrong.
pub fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines.get(lines.len().saturating_sub(25)..).unwrap_or_default().join("\n          ")
}

/// Tries `condition` until it holds; false when it did not within `limit`.
pub fn eventually(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
