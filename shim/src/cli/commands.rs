//! The commands, one function each.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::Failed;
use super::args::{Arguments, Command, Create, Exec, ListFormat, Run};
use super::container::{ask, claim, delete, start_monitor, state};
use super::process::{console, foreground, hold_signals, of_exec};
use super::store::{Place, ids};
use super::wire::{Ask, Say};
use super::{monitor, show, spec_file};

type Outcome = Result<u8, Failed>;

/// Runs the command; gives the exit status.
///
/// # Errors
/// What to say, and the exit status for that.
pub(super) fn run(arguments: &Arguments) -> Outcome {
    let place = |id: &str| Place::existing(&arguments.root, id);
    match &arguments.command {
        Command::Run(run) => run_container(arguments, run),
        Command::Create(create) => create_container(arguments, create, true).map(|_| 0),
        Command::Start { id } => simple(&place(id)?, &Ask::Start),
        Command::State { id } => print(&serde_json::to_string_pretty(&state(&place(id)?)?)?),
        Command::Kill { id, signal, all } => {
            let signal = number(signal).ok_or_else(|| format!("unknown signal {signal:?}"))?;
            simple(&place(id)?, &Ask::Kill { signal, all: *all })
        }
        Command::Delete { id, force } => match place(id) {
            Ok(place) => delete(&place, *force).map(|()| 0),
            // As runc: a forced delete of nothing is done.
            Err(_) if *force => Ok(0),
            Err(failed) => Err(failed),
        },
        Command::Exec(exec) => run_exec(arguments, exec).map_err(|failed| Failed { code: 255, ..failed }),
        Command::Ps { format, id, .. } => ps(&place(id)?, *format),
        Command::List { format, quiet } => list(&arguments.root, *format, *quiet),
        Command::Pause { id } => simple(&place(id)?, &Ask::Pause),
        Command::Resume { id } => simple(&place(id)?, &Ask::Resume),
        Command::Events { id, stats, interval } => events(&place(id)?, *stats, interval),
        Command::Debug { id } => match ask(&place(id)?, &Ask::Debug, &[])? {
            Say::Text(text) => print(&text),
            _ => Ok(1),
        },
        Command::Spec { bundle } => write_spec(bundle),
        Command::Do { command } => do_command(arguments, command),
        Command::Features => print(&serde_json::to_string_pretty(&spec_file::features())?),
        Command::Monitor { id } => Ok(monitor::run(arguments, id).map(|()| 0)?),
    }
}

fn print(text: &str) -> Outcome {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text.trim_end())?;
    Ok(0)
}

fn simple(place: &Place, what: &Ask) -> Outcome {
    ask(place, what, &[]).map(|_| 0)
}

/// A signal's number by number or name, with or without `SIG`.
fn number(text: &str) -> Option<u32> {
    if let Ok(number) = text.parse::<u32>() {
        return Some(number).filter(|n| *n <= 64);
    }
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    if let Ok(signal) = name.parse::<Signal>() {
        return u32::try_from(signal as i32).ok();
    }
    // Real-time signals: SIGRTMIN is 34 for the C library, 64 is the last.
    let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest.get(1..)?.parse::<u32>().ok() };
    match (name.strip_prefix("SIGRTMIN"), name.strip_prefix("SIGRTMAX")) {
        (Some(rest), _) => 34u32.checked_add(offset(rest)?).filter(|n| *n <= 64),
        (_, Some(rest)) => 64u32.checked_sub(offset(rest)?).filter(|n| *n >= 34),
        _ => None,
    }
}

/// Creates a container. Gives its directory and, for a terminal without a console socket, the near end.
fn create_container(
    arguments: &Arguments,
    create: &Create,
    detached: bool,
) -> Result<(Place, Option<std::os::fd::OwnedFd>), Failed> {
    let (place, spec) = claim(arguments, &create.id, &create.bundle)?;
    let made = (|| {
        let terminal = spec.process().as_ref().and_then(|p| p.terminal()).unwrap_or(false);
        if terminal && detached && create.console_socket.is_none() {
            return Err("cannot allocate a terminal for a detached container without --console-socket".into());
        }
        let ends = terminal.then(|| console(create.console_socket.as_deref())).transpose()?;
        start_monitor(arguments, &place, &create.id, !terminal)?;
        let (far, near) = ends.map_or((None, None), |(far, near)| (Some(far), near));
        let fds: Vec<BorrowedFd<'_>> = far.iter().map(AsFd::as_fd).collect();
        let Say::Pid(pid) = ask(&place, &Ask::Create, &fds)? else {
            return Err("the container's monitor answered with nonsense".into());
        };
        if let Some(path) = &create.pid_file {
            write_pid(path, pid)?;
        }
        Ok(near)
    })();
    match made {
        Ok(near) => Ok((place, near)),
        Err(failed) => {
            let _ = delete(&place, true);
            let _ = place.remove();
            Err(failed)
        }
    }
}

/// Writes a pid so that no reader sees half of it.
fn write_pid(path: &Path, pid: u32) -> Result<(), Failed> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    fs::write(&new, pid.to_string())
        .and_then(|()| fs::rename(&new, path))
        .map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(())
}

fn run_container(arguments: &Arguments, run: &Run) -> Outcome {
    let signals = hold_signals();
    let (place, near) = create_container(arguments, &run.create, run.detach)?;
    let ended = ask(&place, &Ask::Start, &[])
        .and_then(|_| if run.detach { Ok(0) } else { foreground(&place, "", near, signals) });
    if (run.detach && ended.is_ok()) || run.keep {
        return ended.map(code);
    }
    let deleted = delete(&place, true);
    let status = ended.map(code)?;
    deleted.map(|()| status)
}

fn code(status: u32) -> u8 {
    u8::try_from(status).unwrap_or(255)
}

fn run_exec(arguments: &Arguments, exec: &Exec) -> Outcome {
    let place = Place::existing(&arguments.root, &exec.id)?;
    let process = of_exec(&place, exec)?;
    let terminal = exec.tty || process.get("terminal").and_then(Value::as_bool).unwrap_or(false);
    if terminal && exec.detach && exec.console_socket.is_none() {
        return Err("cannot allocate a terminal for a detached process without --console-socket".into());
    }
    let signals = hold_signals();
    let name = format!("exec-{}-{}", std::process::id(), crate::lifecycle::sandbox::now());
    let ends = terminal.then(|| console(exec.console_socket.as_deref())).transpose()?;
    let (far, near) = ends.map_or((None, None), |(far, near)| (Some(far), near));
    let streams = (io::stdin(), io::stdout(), io::stderr());
    let fds = match &far {
        Some(far) => vec![far.as_fd()],
        None => vec![streams.0.as_fd(), streams.1.as_fd(), streams.2.as_fd()],
    };
    let what = Ask::Exec { exec: name.clone(), process: process.to_string(), terminal };
    let started = ask(&place, &what, &fds).map_err(|f| format!("exec failed: {}", f.message))?;
    drop(far);
    if let (Some(path), Say::Pid(pid)) = (&exec.pid_file, started) {
        write_pid(path, pid)?;
    }
    if exec.detach {
        return Ok(0);
    }
    foreground(&place, &name, near, signals).map(code)
}

fn ps(place: &Place, format: ListFormat) -> Outcome {
    let Say::Text(text) = ask(place, &Ask::Ps, &[])? else { return Ok(1) };
    let list: Value = serde_json::from_str(&text)?;
    match format {
        // runc prints the pids alone.
        ListFormat::Json => {
            let pids: Vec<&Value> =
                list.as_array().into_iter().flatten().filter_map(|p| p.get("pid")).collect();
            print(&serde_json::to_string(&pids)?)
        }
        ListFormat::Table => print(&show::process_table(&list)),
    }
}

fn list(root: &Path, format: ListFormat, quiet: bool) -> Outcome {
    let states: Vec<Value> =
        ids(root).iter().filter_map(|id| state(&Place::existing(root, id).ok()?).ok()).collect();
    let word =
        |state: &Value, key: &str| state.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    if quiet {
        let names: Vec<String> = states.iter().map(|s| word(s, "id")).collect();
        return if names.is_empty() { Ok(0) } else { print(&names.join("\n")) };
    }
    if format == ListFormat::Json {
        return print(&serde_json::to_string(&states)?);
    }
    let mut table = format!("{:<24} {:<10} {:<10} {:<40} {}\n", "ID", "PID", "STATUS", "BUNDLE", "CREATED");
    for s in &states {
        let pid = s.get("pid").and_then(Value::as_u64).unwrap_or(0);
        let line = format!(
            "{:<24} {:<10} {:<10} {:<40} {}\n",
            word(s, "id"),
            pid,
            word(s, "status"),
            word(s, "bundle"),
            word(s, "created")
        );
        table.push_str(&line);
    }
    print(&table)
}

fn events(place: &Place, once: bool, interval: &str) -> Outcome {
    let seconds =
        interval.trim_end_matches('s').parse::<u64>().map_err(|_| format!("--interval {interval:?}"))?;
    loop {
        let Say::Text(text) = ask(place, &Ask::Stats, &[])? else { return Ok(1) };
        print(&text)?;
        if once {
            return Ok(0);
        }
        std::thread::sleep(Duration::from_secs(seconds.max(1)));
    }
}

fn write_spec(bundle: &Path) -> Outcome {
    let path = bundle.join("config.json");
    let file = fs::OpenOptions::new().write(true).create_new(true).open(&path);
    let mut file = file.map_err(|e| format!("{}: {e}", path.display()))?;
    file.write_all(serde_json::to_string_pretty(&spec_file::template())?.as_bytes())?;
    file.write_all(b"\n")?;
    Ok(0)
}

fn do_command(arguments: &Arguments, command: &[String]) -> Outcome {
    let id = format!("do-{}", std::process::id());
    let bundle = std::env::temp_dir().join(format!("caisson-{id}"));
    fs::create_dir(&bundle).map_err(|e| format!("{}: {e}", bundle.display()))?;
    let terminal = io::IsTerminal::is_terminal(&io::stdin()) && io::IsTerminal::is_terminal(&io::stdout());
    let env: Vec<String> = std::env::vars()
        .filter(|(name, _)| matches!(name.as_str(), "PATH" | "TERM" | "HOME" | "LANG"))
        .map(|(n, v)| format!("{n}={v}"))
        .collect();
    let cwd = std::env::current_dir()?;
    let config = spec_file::over_host(&id, command, &cwd, &env, terminal);
    let written = fs::write(bundle.join("config.json"), config.to_string());
    let create = Create {
        bundle: bundle.clone(),
        console_socket: None,
        pid_file: None,
        no_pivot: false,
        no_new_keyring: false,
        preserve_fds: 0,
        id,
    };
    let outcome = match written {
        Ok(()) => run_container(arguments, &Run { create, detach: false, keep: false }),
        Err(error) => Err(error.into()),
    };
    let _ = fs::remove_dir_all(&bundle);
    outcome
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn signals_by_any_name() {
        assert_eq!(
            ["9", "KILL", "sigkill", "SIGTERM", "0"].map(number),
            [Some(9), Some(9), Some(9), Some(15), Some(0)]
        );
        assert_eq!(
            ["RTMIN", "RTMIN+3", "SIGRTMAX-1", "RTMAX"].map(number),
            [Some(34), Some(37), Some(63), Some(64)]
        );
        assert_eq!(["65", "-1", "FOO", "", "RTMIN+99", "RTMAX-99"].map(number), [None; 6]);
    }
}
