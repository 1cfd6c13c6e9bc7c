//! Processes in the foreground: streams, terminals, signals, exit status; and the process spec of `exec`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use serde_json::{Value, json};

use super::Failed;
use super::args::Exec;
use super::container::ask;
use super::store::Place;
use super::terminal::{self, Raw};
use super::wire::{Ask, Say};
use crate::spec;

/// Signals that are passed on to a process in the foreground.
const FORWARDED: [Signal; 7] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

/// Blocks the signals that [`foreground`] passes on. To be called before the process starts, so that none is lost.
pub(super) fn hold_signals() -> SigSet {
    let mut set = SigSet::empty();
    FORWARDED.iter().for_each(|signal| set.add(*signal));
    let _ = pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), None);
    set
}

/// Stays with a running process until it ends: copies its terminal, passes signals on. Gives its exit status.
///
/// # Errors
/// When the monitor is gone without having said the status.
pub(super) fn foreground(
    place: &Place,
    exec: &str,
    master: Option<OwnedFd>,
    signals: SigSet,
) -> Result<u32, Failed> {
    let mut raw = None;
    let mut copier = None;
    let sized = master.as_ref().map(OwnedFd::try_clone).transpose()?;
    if let Some(master) = master {
        raw = Some(Raw::enter());
        copier = Some(thread::spawn(move || terminal::copy(master)));
    }
    let (to, name) = (place.clone(), exec.to_owned());
    let sized = Arc::new(sized);
    thread::spawn(move || {
        follow_size(&to, &name, sized.as_ref().as_ref());
        while let Ok(signal) = signals.wait() {
            if signal == Signal::SIGWINCH {
                follow_size(&to, &name, sized.as_ref().as_ref());
            } else if name.is_empty() {
                let signal = u32::try_from(signal as i32).unwrap_or(15);
                let _ = ask(&to, &Ask::Kill { signal, all: false }, &[]);
            }
        }
    });
    let status = match ask(place, &Ask::Wait { exec: exec.to_owned() }, &[])? {
        Say::Exited(status) => status,
        _ => return Err("the container's monitor answered with nonsense".into()),
    };
    if exec.is_empty() {
        return Ok(status);
    }
    let _ = ask(place, &Ask::DeleteExec { exec: exec.to_owned() }, &[]);
    // What the process wrote last may still be on its way.
    if let Some(copier) = copier {
        let _ = copier.join();
    }
    drop(raw);
    Ok(status)
}

fn follow_size(place: &Place, exec: &str, master: Option<&OwnedFd>) {
    if let (Some(master), Some((rows, columns))) = (master, terminal::size(io::stdin())) {
        terminal::set_size(master, rows, columns);
        let _ = ask(place, &Ask::Resize { exec: exec.to_owned(), rows, columns }, &[]);
    }
}

/// A terminal for a process: the far end for the sentry, and the near end unless a console socket got it.
///
/// # Errors
/// When there is no pseudo-terminal, or nobody at the socket.
pub(super) fn console(socket: Option<&Path>) -> Result<(OwnedFd, Option<OwnedFd>), Failed> {
    let (master, slave) = terminal::pair()?;
    match socket {
        Some(path) => {
            terminal::hand_over(path, &master)
                .map_err(|e| format!("console socket {}: {e}", path.display()))?;
            Ok((slave, None))
        }
        None => {
            if let Some((rows, columns)) = terminal::size(io::stdin()) {
                terminal::set_size(master.as_fd(), rows, columns);
            }
            Ok((slave, Some(master)))
        }
    }
}

/// The process of an `exec`: a file's, or the container's own with what the flags change.
///
/// # Errors
/// Files that cannot be read, and bad user names.
pub(super) fn of_exec(place: &Place, exec: &Exec) -> Result<Value, Failed> {
    if let Some(path) = &exec.process {
        let text = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
        return serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", path.display()).into());
    }
    if exec.command.is_empty() {
        return Err("process args cannot be empty".into());
    }
    let config = spec::load(&place.load()?.bundle)?;
    let mut process = serde_json::to_value(config.process())?;
    let object = process.as_object_mut().ok_or("the container's configuration has no process")?;
    object.insert("args".into(), json!(exec.command));
    object.insert("terminal".into(), json!(exec.tty));
    if let Some(cwd) = &exec.cwd {
        object.insert("cwd".into(), json!(cwd));
    }
    if exec.no_new_privs {
        object.insert("noNewPrivileges".into(), json!(true));
    }
    if let Some(env) = object.entry("env").or_insert_with(|| json!([])).as_array_mut() {
        env.extend(exec.env.iter().map(|e| json!(e)));
    }
    if let Some(user) = object.entry("user").or_insert_with(|| json!({})).as_object_mut() {
        if let Some(text) = &exec.user {
            let (uid, gid) = text.split_once(':').unwrap_or((text, ""));
            let number = |s: &str| s.parse::<u32>().map_err(|_| format!("--user {text:?}: not UID[:GID]"));
            user.insert("uid".into(), json!(number(uid)?));
            if !gid.is_empty() {
                user.insert("gid".into(), json!(number(gid)?));
            }
        }
        if !exec.additional_gids.is_empty() {
            user.insert("additionalGids".into(), json!(exec.additional_gids));
        }
    }
    add_capabilities(object, &exec.cap);
    Ok(process)
}

fn add_capabilities(process: &mut serde_json::Map<String, Value>, names: &[String]) {
    if names.is_empty() {
        return;
    }
    let sets = process.entry("capabilities").or_insert_with(|| json!({}));
    for set in ["bounding", "effective", "permitted"] {
        let list = sets.as_object_mut().map(|o| o.entry(set).or_insert_with(|| json!([])));
        if let Some(list) = list.and_then(Value::as_array_mut) {
            list.extend(names.iter().map(|n| json!(n)));
        }
    }
}
