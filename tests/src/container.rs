//! A container under containerd: described by a builder, then run to its end or left running and worked on.

use crate::bed::{Bed, Image};
use crate::command::{Command, Finished, eventually};
use std::path::PathBuf;
use std::time::Duration;

/// How long a container may take to get into a state.
const PATIENCE: Duration = Duration::from_secs(20);

/// What `ctr run` will be told.
pub struct ContainerBuilder<'bed> {
    bed: &'bed Bed,
    image: Image,
    id: String,
    flags: Vec<String>,
    args: Vec<String>,
    input: Option<Vec<u8>>,
    limit: Duration,
}

impl<'bed> ContainerBuilder<'bed> {
    pub(crate) fn new(bed: &'bed Bed, image: Image, id: String) -> Self {
        let limit = Duration::from_secs(60);
        ContainerBuilder { bed, image, id, flags: Vec::new(), args: Vec::new(), input: None, limit }
    }

    /// Flags of `ctr run`, as words.
    pub fn flags<S: Into<String>>(mut self, flags: impl IntoIterator<Item = S>) -> Self {
        self.flags.extend(flags.into_iter().map(Into::into));
        self
    }

    /// The command and its arguments.
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// A bind mount.
    pub fn bind(self, source: &std::path::Path, destination: &str, options: &str) -> Self {
        let mount = format!("type=bind,src={},dst={destination},options={options}", source.display());
        self.flags(["--mount".to_string(), mount])
    }

    /// Bytes for its standard input, given once its task runs; then the end of input.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Some(bytes.into());
        self
    }

    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// The words of `ctr` that run it.
    pub fn words(&self, more: &[&str]) -> Vec<String> {
        let fifo_dir = self.bed.containerd().fifo_dir();
        let mut words = vec!["run".to_string()];
        words.extend(more.iter().map(ToString::to_string));
        words.extend(["--runtime".into(), self.bed.runtime.clone()]);
        words.extend(["--fifo-dir".into(), fifo_dir.display().to_string()]);
        words.extend(["--cgroup".into(), format!("/{}", self.id)]);
        if self.bed.every_call_exits() {
            words.extend(["--annotation".into(), "dev.caisson.exitless=off".into()]);
        }
        words.extend(self.flags.iter().cloned());
        words.extend([self.bed.image(self.image).to_string(), self.id.clone()]);
        words.extend(self.args.iter().cloned());
        words
    }

    /// Runs it in the foreground to its end and removes it.
    #[track_caller]
    pub fn run(self) -> Finished {
        let command = self.bed.ctr().args(self.words(&["--rm"])).limit(self.limit);
        let _removed = self.handle();
        match self.input {
            // ctr loses an end of input that it meets before the task exists: so input starts when the task runs.
            Some(bytes) => Command::new("sh")
                .args(["-c", "fifo=$0; exec \"$@\" <\"$fifo\""])
                .arg(self.bed.feed_when_running(&self.id, bytes))
                .args(command.words())
                .limit(self.limit)
                .run(),
            None => command.run(),
        }
    }

    /// Its standard output; panics unless it exited with 0.
    #[track_caller]
    pub fn ok(self) -> String {
        self.run().ok()
    }

    /// Starts it in the background: `ctr run -d`. Its output goes nowhere.
    #[track_caller]
    pub fn detach(self) -> Container<'bed> {
        let container = self.handle();
        self.bed.ctr().args(self.words(&["-d", "--null-io"])).limit(self.limit).ok();
        container
    }

    /// Runs it on a terminal of `script`, typing `typed` a little at a time after its task has come up; what the
    /// terminal showed is the standard output.
    #[track_caller]
    pub fn on_terminal(self, typed: &[&str]) -> Finished {
        let line = quoted(&self.bed.ctr().args(self.words(&["--rm", "-t"])).words());
        let _removed = self.handle();
        let typing: String =
            typed.iter().map(|text| format!("printf %s {}; sleep 0.4; ", quote(text))).collect();
        let shell = format!(
            "(sleep 1.5; {typing} sleep 0.3) | exec script -qec {} /dev/null",
            quote(&format!("stty rows 33 cols 99; {line}"))
        );
        Command::new("sh").args(["-c", &shell]).limit(self.limit).run()
    }

    /// A handle that removes the container when dropped, whatever became of it.
    pub fn handle(&self) -> Container<'bed> {
        Container { bed: self.bed, id: self.id.clone() }
    }
}

/// A container that may be running. Dropping it kills and removes it.
pub struct Container<'bed> {
    bed: &'bed Bed,
    pub id: String,
}

impl Container<'_> {
    /// `ctr task VERB`, to which a test adds what it needs; the container's id comes last.
    pub fn task(&self, words: &[&str]) -> Command {
        self.bed.ctr().arg("task").args(words).arg(&self.id)
    }

    /// Runs a command in it to its end.
    pub fn exec(&self, args: &[&str]) -> Finished {
        self.exec_with(&[], args).run()
    }

    /// The same with flags of `ctr task exec`.
    pub fn exec_with(&self, flags: &[&str], args: &[&str]) -> Command {
        let exec_id = self.bed.fresh_id();
        let fifo_dir = self.bed.containerd().fifo_dir();
        let command = self.bed.ctr().args(["task", "exec", "--exec-id", &exec_id]);
        command.arg("--fifo-dir").arg(fifo_dir).args(flags).arg(&self.id).args(args)
    }

    pub fn kill(&self, signal: &str) -> Finished {
        self.task(&["kill", "--signal", signal]).run()
    }

    /// `RUNNING`, `STOPPED`, `PAUSED`, `CREATED`; `None` when there is no task.
    pub fn status(&self) -> Option<String> {
        self.listed().map(|(_, status)| status)
    }

    /// The host's pid of the task's first process, as containerd was told.
    pub fn pid(&self) -> Option<i32> {
        self.listed().and_then(|(pid, _)| pid.parse().ok())
    }

    fn listed(&self) -> Option<(String, String)> {
        let list = self.bed.ctr().args(["task", "list"]).run().stdout;
        let mut words =
            list.lines().map(str::split_whitespace).find(|words| words.clone().next() == Some(&self.id))?;
        Some((words.nth(1)?.to_string(), words.next()?.to_string()))
    }

    /// Waits until its task is in `status`.
    #[track_caller]
    pub fn expect_status(&self, status: &str) {
        let there = eventually(PATIENCE, || self.status().as_deref() == Some(status));
        assert!(there, "{} is {:?}, not {status}", self.id, self.status());
    }

    /// Deletes the stopped task and hands out the exit status that containerd has for it.
    #[track_caller]
    pub fn delete_task(&self) -> i32 {
        // ctr exits with 0 and says the status in a warning, unless it was 0.
        let run = self.task(&["delete"]).run().exited(0);
        let code = run.stderr.split_once("non-zero exit code ").map(|(_, rest)| rest);
        let digits: String = code.unwrap_or("0").chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or_else(|_| panic!("no exit code in {run}"))
    }

    pub fn bundle(&self) -> PathBuf {
        self.bed.containerd().bundle(&self.id)
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let containerd = self.bed.containerd();
        let listed = containerd.try_ctr("container list -q").stdout;
        if listed.lines().any(|line| line == self.id) {
            containerd.try_ctr(&format!("task kill --signal KILL {}", self.id));
            containerd.try_ctr(&format!("task delete --force {}", self.id));
            containerd.try_ctr(&format!("container delete {}", self.id));
        }
    }
}

impl Bed {
    /// A FIFO into which `bytes` go when the container's task runs.
    fn feed_when_running(&self, id: &str, bytes: Vec<u8>) -> PathBuf {
        let fifo = self.scratch("stdin").join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU)
            .unwrap_or_else(|error| panic!("cannot make {}: {error}", fifo.display()));
        let (path, list, id) = (fifo.clone(), self.ctr().args(["task", "list"]).words(), id.to_string());
        std::thread::spawn(move || {
            let Ok(mut pipe) = std::fs::File::options().write(true).open(path) else { return };
            eventually(PATIENCE, || {
                let listed =
                    list.split_first().map(|(program, args)| Command::new(program).args(args).run().stdout);
                listed
                    .unwrap_or_default()
                    .lines()
                    .any(|line| line.starts_with(&id) && line.contains("RUNNING"))
            });
            std::io::Write::write_all(&mut pipe, &bytes).ok();
        });
        fifo
    }
}

/// A word as a POSIX shell reads it back.
pub fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

fn quoted(words: &[String]) -> String {
    words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ")
}
