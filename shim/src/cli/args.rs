//! The command line's grammar: runc's names and meanings.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Run containers in a kernel of their own.
#[derive(Debug, Parser)]
#[command(name = "caisson", version = concat!("version ", env!("CARGO_PKG_VERSION")))]
pub struct Arguments {
    /// Directory for the state of containers.
    #[arg(long, global = true, default_value = "/run/caisson")]
    pub root: PathBuf,
    /// File to which errors are appended.
    #[arg(long, global = true)]
    pub log: Option<PathBuf>,
    /// How lines in that file look.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Whether system calls may be answered without leaving the guest (`off` is for comparison and for finding faults).
    #[arg(long, global = true, value_enum, default_value_t = Switch::On)]
    pub exitless: Switch,
    /// Log more.
    #[arg(long, global = true)]
    pub debug: bool,
    /// Taken for runc's sake; cgroup paths of systemd's form are always understood.
    #[arg(long, global = true, hide = true)]
    pub systemd_cgroup: bool,
    /// Taken for runc's sake.
    #[arg(long, global = true, hide = true)]
    pub rootless: Option<String>,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Format of the log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// `key=value`.
    Text,
    /// One object per line.
    Json,
}

/// Something that is there or is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// It is.
    On,
    /// It is not.
    Off,
}

/// Format of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ListFormat {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a container and run it.
    Run(Run),
    /// Create a container.
    Create(Create),
    /// Run a created container.
    Start { id: String },
    /// Print a container's state as JSON.
    State { id: String },
    /// Send a signal to a container's first process.
    Kill {
        id: String,
        #[arg(default_value = "SIGTERM")]
        signal: String,
        /// To all of its processes.
        #[arg(long, short)]
        all: bool,
    },
    /// Give back what a container holds.
    Delete {
        id: String,
        /// Kill it if it still runs.
        #[arg(long, short)]
        force: bool,
    },
    /// Run another process in a container.
    Exec(Box<Exec>),
    /// List the processes of a container.
    Ps {
        #[arg(long, short, value_enum, default_value_t = ListFormat::Table)]
        format: ListFormat,
        id: String,
        /// Options of `ps`, ignored.
        #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
        _rest: Vec<String>,
    },
    /// List containers.
    List {
        #[arg(long, short, value_enum, default_value_t = ListFormat::Table)]
        format: ListFormat,
        /// IDs only.
        #[arg(long, short)]
        quiet: bool,
    },
    /// Stop all processes of a container.
    Pause { id: String },
    /// Let them run again.
    Resume { id: String },
    /// Print statistics.
    Events {
        id: String,
        /// Once.
        #[arg(long)]
        stats: bool,
        /// Seconds between two lines (`5s`).
        #[arg(long, default_value = "5s")]
        interval: String,
    },
    /// Print what a container's kernel counts and how its tasks are.
    Debug { id: String },
    /// Write a configuration to begin with.
    Spec {
        /// Directory to write config.json into.
        #[arg(long, short, default_value = ".")]
        bundle: PathBuf,
    },
    /// Run a command over a read-only view of the host's files.
    Do {
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Say what this runtime can do, as JSON.
    Features,
    /// A container's background process; not for people.
    #[command(hide = true)]
    Monitor { id: String },
}

#[derive(Debug, Clone, Args)]
pub(super) struct Create {
    /// The bundle's directory.
    #[arg(long, short, default_value = ".")]
    pub bundle: PathBuf,
    /// Unix socket that gets the terminal's descriptor.
    #[arg(long)]
    pub console_socket: Option<PathBuf>,
    /// File for the pid.
    #[arg(long)]
    pub pid_file: Option<PathBuf>,
    /// Taken for runc's sake.
    #[arg(long, hide = true)]
    pub no_pivot: bool,
    /// Taken for runc's sake.
    #[arg(long, hide = true)]
    pub no_new_keyring: bool,
    /// Taken for runc's sake.
    #[arg(long, hide = true, default_value_t = 0)]
    pub preserve_fds: u32,
    /// The container's ID.
    pub id: String,
}

#[derive(Debug, Clone, Args)]
pub(super) struct Run {
    #[command(flatten)]
    pub create: Create,
    /// Do not wait for its end.
    #[arg(long, short)]
    pub detach: bool,
    /// Keep its state after its end.
    #[arg(long)]
    pub keep: bool,
}

#[derive(Debug, Clone, Args)]
pub(super) struct Exec {
    /// Unix socket that gets the terminal's descriptor.
    #[arg(long)]
    pub console_socket: Option<PathBuf>,
    /// Working directory.
    #[arg(long)]
    pub cwd: Option<String>,
    /// A variable, `NAME=value`; may be repeated.
    #[arg(long, short)]
    pub env: Vec<String>,
    /// With a terminal.
    #[arg(long, short)]
    pub tty: bool,
    /// `UID[:GID]`.
    #[arg(long, short)]
    pub user: Option<String>,
    /// Additional group; may be repeated.
    #[arg(long, short = 'g')]
    pub additional_gids: Vec<u32>,
    /// File with the process as JSON.
    #[arg(long, short)]
    pub process: Option<PathBuf>,
    /// Do not wait for its end.
    #[arg(long, short)]
    pub detach: bool,
    /// File for the pid.
    #[arg(long)]
    pub pid_file: Option<PathBuf>,
    /// Additional capability; may be repeated.
    #[arg(long, short)]
    pub cap: Vec<String>,
    /// Set no_new_privs.
    #[arg(long)]
    pub no_new_privs: bool,
    /// Taken for runc's sake.
    #[arg(long, hide = true, default_value_t = 0)]
    pub preserve_fds: u32,
    /// The container's ID.
    pub id: String,
    /// The command and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}
