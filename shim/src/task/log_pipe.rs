//! Logs into the FIFO called `log` that containerd makes in the bundle.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use log::{LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;

struct Pipe {
    file: Mutex<File>,
    id: String,
}

/// Opens the FIFO without ever blocking: lines are lost while nobody reads and the pipe is full. Without a FIFO the log goes nowhere.
///
/// # Errors
/// When not even `/dev/null` can be opened.
pub(super) fn open(bundle: &Path) -> io::Result<File> {
    // Both ways: opening for writing alone fails while containerd is away, and writing then would be an error.
    let both =
        |path: &Path| OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path);
    both(&bundle.join("log")).or_else(|_| both(Path::new("/dev/null")))
}

/// Sends the `log` crate's lines there.
pub(super) fn install(file: File, id: &str, debug: bool) {
    let pipe = Pipe { file: Mutex::new(file), id: id.to_owned() };
    if log::set_boxed_logger(Box::new(pipe)).is_ok() {
        log::set_max_level(if debug { LevelFilter::Debug } else { LevelFilter::Info });
    }
}

impl Log for Pipe {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Other crates are chatty below warnings.
        metadata.target().starts_with("caisson") || metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            // logrus's text format, which containerd copies into its own log.
            let level = record.level().as_str().to_lowercase();
            let line = format!(
                "level={level} msg={:?} id={} runtime={}\n",
                record.args().to_string(),
                self.id,
                super::RUNTIME
            );
            let _ = self.file.lock().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}
