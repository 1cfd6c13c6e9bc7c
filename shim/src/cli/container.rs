//! A container as commands see it: its directory and, if it lives, its monitor.

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Failed;
use super::args::{Arguments, LogFormat, Switch};
use super::show;
use super::store::{Place, Stored};
use super::wire::{self, Ask, Say};

/// Longest time for a monitor to begin to listen.
const LISTEN: Duration = Duration::from_secs(20);

/// Asks the monitor once.
///
/// # Errors
/// What the monitor says, or "container is not running" when there is none.
pub(super) fn ask(place: &Place, ask: &Ask, fds: &[BorrowedFd<'_>]) -> Result<Say, Failed> {
    let socket = wire::dial(&place.socket()).map_err(|_| Failed::from("container is not running"))?;
    ask_on(&socket, ask, fds)
}

/// Asks on an open connection.
///
/// # Errors
/// What the monitor says.
pub(super) fn ask_on(socket: &OwnedFd, ask: &Ask, fds: &[BorrowedFd<'_>]) -> Result<Say, Failed> {
    wire::send(socket, ask, fds)?;
    match wire::receive(socket)? {
        Some((Say::Failed(text), _)) => Err(text.into()),
        Some((said, _)) => Ok(said),
        None => Err("the container's monitor has ended".into()),
    }
}

/// The word for where the container is, asking its monitor if there is one.
pub(super) fn status(place: &Place) -> String {
    match ask(place, &Ask::Status, &[]) {
        Ok(Say::Text(word)) => word,
        _ => "stopped".into(),
    }
}

/// What `state` prints.
///
/// # Errors
/// Those of the state directory.
pub(super) fn state(place: &Place) -> Result<Value, Failed> {
    let stored = place.load()?;
    let status = status(place);
    let pid = if status == "stopped" { 0 } else { stored.pid };
    Ok(json!({
        "ociVersion": "1.0.2",
        "id": stored.id,
        "pid": pid,
        "status": status,
        "bundle": stored.bundle,
        "rootfs": stored.bundle.join("rootfs"),
        "created": show::rfc3339(stored.created),
        "annotations": stored.annotations,
        "owner": "",
    }))
}

/// Starts the monitor of a container whose directory was just made. It takes over this program's standard streams.
///
/// # Errors
/// When it does not begin to listen.
pub(super) fn start_monitor(
    arguments: &Arguments,
    place: &Place,
    id: &str,
    streams: bool,
) -> Result<(), Failed> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--root").arg(fs::canonicalize(&arguments.root)?);
    if let Some(log) = &arguments.log {
        command.arg("--log").arg(log);
        command.args(["--log-format", if arguments.log_format == LogFormat::Json { "json" } else { "text" }]);
    }
    if arguments.debug {
        command.arg("--debug");
    }
    if arguments.exitless == Switch::Off {
        command.args(["--exitless", "off"]);
    }
    command.args(["monitor", id]);
    if !streams {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    }
    let mut child = command.spawn()?;
    let begun = Instant::now();
    while wire::dial(&place.socket()).is_err() {
        if let Some(status) = child.try_wait()? {
            return Err(format!("the container's monitor ended while starting: {status}").into());
        }
        if begun.elapsed() > LISTEN {
            let _ = child.kill();
            let _ = child.wait();
            return Err("the container's monitor does not answer".into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Claims the ID and writes down what is known.
///
/// # Errors
/// A used ID, or a bundle without a valid configuration.
pub(super) fn claim(
    arguments: &Arguments,
    id: &str,
    bundle: &Path,
) -> Result<(Place, oci_spec::runtime::Spec), Failed> {
    let place = Place::of(&arguments.root, id)?;
    let bundle = crate::lifecycle::sandbox::bundle_path(bundle)?;
    let spec = crate::spec::load(&bundle)?;
    let stored = Stored {
        id: id.to_owned(),
        bundle,
        pid: 0,
        created: crate::lifecycle::sandbox::now(),
        annotations: spec.annotations().clone().unwrap_or_default().into_iter().collect(),
        exit: None,
    };
    place.claim(&stored)?;
    Ok((place, spec))
}

/// Gives everything back: through the monitor, or after it.
///
/// # Errors
/// When the container still runs and `force` is not given.
pub(super) fn delete(place: &Place, force: bool) -> Result<(), Failed> {
    if let Ok(socket) = wire::dial(&place.socket()) {
        ask_on(&socket, &Ask::Delete { force }, &[])?;
        // The monitor closes the connection when it is gone.
        let _ = wire::receive::<Say>(&socket);
    }
    place.remove().map_err(|e: io::Error| format!("{}: {e}", place.path().display()))?;
    Ok(())
}
