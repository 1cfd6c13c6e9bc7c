//! The OCI command line over bundles, as runc's users know it: `caisson`, or `runc` as the judge.

#![forbid(unsafe_code)]

use caisson_tests::bed::{Bed, Image};
use caisson_tests::bundle::Bundle;
use caisson_tests::command::{Command, eventually};
use caisson_tests::suite::{self, Outcome};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    suite::main(
        "cli",
        Bed::new,
        caisson_tests::tests![
            run_prints_and_exits,
            run_reads_its_input,
            run_with_pid_file,
            run_as_user,
            root_is_read_only_as_configured,
            rlimits_are_set,
            hostname_is_set,
            lifecycle_step_by_step,
            start_only_once,
            create_refuses_a_used_id,
            kill_and_delete,
            delete_of_a_running_container_is_refused,
            force_delete,
            exec_in_a_running_container,
            exec_with_process_file,
            ps_and_list,
            pause_and_resume,
            events_stats,
            debug_counts_system_calls,
            every_call_can_be_made_to_exit,
            an_idle_container_uses_no_processor_time,
            terminal_by_console_socket,
            spec_writes_a_configuration,
            features_and_version,
            unknown_container,
            log_file_in_json,
            do_runs_over_the_hosts_root,
        ],
    )
}

fn busybox<'bed>(bed: &'bed Bed, script: &str) -> Bundle<'bed> {
    Bundle::new(bed, Image::Busybox, &["sh", "-c", script])
}

/// Creates and starts a container that runs until it is killed.
fn sleeping(bed: &Bed) -> Bundle<'_> {
    started(busybox(bed, "trap 'exit 3' TERM; while :; do sleep 0.1; done"))
}

fn started(bundle: Bundle<'_>) -> Bundle<'_> {
    bundle.write().create().ok();
    bundle.cli(&["start"]).ok();
    assert!(eventually(Duration::from_secs(10), || bundle.status() == "running"), "{}", bundle.status());
    bundle
}

fn expect_status(bundle: &Bundle<'_>, status: &str) {
    let there = eventually(Duration::from_secs(10), || bundle.status() == status);
    assert!(there, "{:?} instead of {status:?}", bundle.status());
}

fn run_prints_and_exits(bed: &Bed) -> Outcome {
    for code in [0, 1, 42, 255] {
        let run =
            busybox(bed, &format!("echo out; echo err >&2; exit {code}")).write().run().run().exited(code);
        assert_eq!((run.stdout.as_str(), run.stderr.trim()), ("out\n", "err"));
    }
    busybox(bed, "sh -c 'kill -KILL $$'; exit $?").write().run().run().exited(137);
    Ok(())
}

fn run_reads_its_input(bed: &Bed) -> Outcome {
    let run = busybox(bed, "cat; echo end").write().run().input("some\ninput\n").run().exited(0);
    assert_eq!(run.stdout, "some\ninput\nend\n");
    Ok(())
}

fn run_with_pid_file(bed: &Bed) -> Outcome {
    let bundle = sleeping(bed);
    let pid = bundle.state().unwrap_or_default()["pid"].as_u64().unwrap_or(0);
    assert!(pid > 1 && std::path::Path::new(&format!("/proc/{pid}")).exists(), "{pid}");
    let file = bundle.dir.join("pid");
    let other = busybox(bed, "true");
    let words =
        bed.cli().args(["run", "--pid-file"]).arg(&file).arg("--bundle").arg(&other.dir).arg(&other.id);
    other.write();
    words.ok();
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(text.parse::<u32>().is_ok_and(|pid| pid > 1), "{text:?}");
    Ok(())
}

fn run_as_user(bed: &Bed) -> Outcome {
    let mut bundle = busybox(bed, "id -u; id -g; id -G; umask; grep -E 'Cap(Prm|Eff)' /proc/self/status");
    bundle.config["process"]["user"] =
        json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 63});
    let out = bundle.write().run().ok();
    assert_eq!(out, "1000\n1001\n1001 5 6\n0077\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n");
    Ok(())
}

fn root_is_read_only_as_configured(bed: &Bed) -> Outcome {
    let script = "touch /x 2>&1; touch /tmp/ok && echo tmp; cat /proc/mounts | grep ' / ' | grep -o ' ro'";
    let out = busybox(bed, script).write().run().ok();
    assert!(out.contains("Read-only file system") && out.contains("tmp\n ro\n"), "{out}");
    Ok(())
}

fn rlimits_are_set(bed: &Bed) -> Outcome {
    let mut bundle = busybox(bed, "ulimit -n; ulimit -Hn; ulimit -c; ulimit -s");
    bundle.config["process"]["rlimits"] = json!([
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_STACK", "soft": 4194304, "hard": 8388608}
    ]);
    assert_eq!(bundle.write().run().ok(), "100\n200\n0\n4096\n");
    Ok(())
}

fn hostname_is_set(bed: &Bed) -> Outcome {
    let mut bundle = busybox(bed, "hostname; cat /proc/sys/kernel/hostname");
    bundle.config["hostname"] = json!("diver");
    assert_eq!(bundle.write().run().ok(), "diver\ndiver\n");
    Ok(())
}

fn lifecycle_step_by_step(bed: &Bed) -> Outcome {
    let bundle = busybox(bed, "echo ran; exit 7");
    bundle.write().create().ok();
    let state = bundle.state().unwrap_or_default();
    assert_eq!(state["status"], "created");
    assert_eq!(state["id"], json!(bundle.id));
    assert_eq!(state["bundle"].as_str().map(std::path::Path::new), Some(bundle.dir.as_path()));
    assert!(state["ociVersion"].is_string() && state["pid"].as_u64().is_some_and(|pid| pid > 1), "{state}");
    assert_eq!(bundle.output(), "", "nothing runs before start");
    bundle.cli(&["start"]).ok();
    expect_status(&bundle, "stopped");
    assert_eq!(bundle.output(), "ran\n");
    bundle.cli(&["delete"]).ok();
    assert!(bundle.state().is_none());
    Ok(())
}

fn start_only_once(bed: &Bed) -> Outcome {
    let bundle = sleeping(bed);
    assert_ne!(bundle.cli(&["start"]).run().code, Some(0));
    expect_status(&bundle, "running");
    Ok(())
}

fn create_refuses_a_used_id(bed: &Bed) -> Outcome {
    let bundle = sleeping(bed);
    let again = bundle.create().run();
    assert_ne!(again.code, Some(0));
    assert!(bundle.output().contains("exist"), "{}", bundle.output());
    expect_status(&bundle, "running");
    Ok(())
}

fn kill_and_delete(bed: &Bed) -> Outcome {
    let bundle = sleeping(bed);
    bundle.cli(&["kill"]).arg("USR1").run();
    bundle.cli(&["kill"]).arg("SIGTERM").ok();
    expect_status(&bundle, "stopped");
    assert_ne!(bundle.cli(&["kill"]).arg("9").run().code, Some(0), "a stopped container cannot be killed");
    bundle.cli(&["delete"]).ok();
    Ok(())
}

fn delete_of_a_running_container_is_refused(bed: &Bed) -> Outcome {
    let bundle = sleeping(bed);
    assert_ne!(bundle.cli(&["delete"]).run().code, Some(0));
    expect_status(&bundle, "running");
    Ok(())
}

fn force_delete(bed: &Bed) -> Outcome {
    let bundle = sleeping(bed);
    bundle.cli(&["delete", "--force"]).ok();
    assert!(bundle.state().is_none());
    bundle.cli(&["delete", "--force"]).ok();
    Ok(())
}

fn exec_in_a_running_container(bed: &Bed) -> Outcome {
    let bundle = sleeping(bed);
    assert_eq!(bundle.cli(&["exec"]).args(["echo", "hello"]).ok(), "hello\n");
    bundle.cli(&["exec"]).args(["sh", "-c", "exit 42"]).run().exited(42);
    let run = bundle.cli(&["exec", "--env", "A=b", "--cwd", "/tmp", "--user", "1000:1000"]);
    assert_eq!(run.args(["sh", "-c", "echo $A; pwd; id -u"]).ok(), "b\n/tmp\n1000\n");
    assert_eq!(bundle.cli(&["exec"]).args(["cat"]).input("typed").ok(), "typed");
    assert_ne!(bundle.cli(&["exec"]).args(["/no/such"]).run().code, Some(0));
    Ok(())
}

fn exec_with_process_file(bed: &Bed) -> Outcome {
    let bundle = sleeping(bed);
    let file = bundle.dir.join("process.json");
    let mut process = bundle.config["process"].clone();
    process["args"] = json!(["sh", "-c", "echo from a file; exit 8"]);
    std::fs::write(&file, process.to_string()).ok();
    let run = bundle.cli(&["exec", "--process", &file.display().to_string()]).run().exited(8);
    assert_eq!(run.stdout, "from a file\n");
    Ok(())
}

fn ps_and_list(bed: &Bed) -> Outcome {
    let bundle = sleeping(bed);
    let pids: Value = serde_json::from_str(&bundle.cli(&["ps", "--format", "json"]).ok()).unwrap_or_default();
    assert!(pids.as_array().is_some_and(|pids| !pids.is_empty()), "{pids}");
    let table = bed.cli().arg("list").ok();
    let line = table.lines().find(|line| line.starts_with(&bundle.id)).unwrap_or_default();
    assert!(line.contains("running"), "{table}");
    let list: Value =
        serde_json::from_str(&bed.cli().args(["list", "--format", "json"]).ok()).unwrap_or_default();
    assert!(
        list.as_array().is_some_and(|list| list.iter().any(|item| item["id"] == json!(bundle.id))),
        "{list}"
    );
    assert_eq!(bed.cli().args(["list", "-q"]).ok().trim(), bundle.id);
    Ok(())
}

fn pause_and_resume(bed: &Bed) -> Outcome {
    let bundle = sleeping(bed);
    bundle.cli(&["pause"]).ok();
    expect_status(&bundle, "paused");
    bundle.cli(&["resume"]).ok();
    expect_status(&bundle, "running");
    assert_eq!(bundle.cli(&["exec"]).args(["echo", "awake"]).ok(), "awake\n");
    Ok(())
}

fn events_stats(bed: &Bed) -> Outcome {
    let bundle = sleeping(bed);
    let stats: Value = serde_json::from_str(&bundle.cli(&["events", "--stats"]).ok()).unwrap_or_default();
    assert_eq!(stats["type"], "stats");
    assert!(stats["data"]["memory"]["usage"]["usage"].as_u64().is_some_and(|bytes| bytes > 0), "{stats}");
    assert!(stats["data"]["cpu"]["usage"]["total"].as_u64().is_some_and(|time| time > 0), "{stats}");
    Ok(())
}

/// The figure with this name in what `debug` prints.
fn counted(text: &str, name: &str) -> u64 {
    let line =
        text.lines().find(|line| line.trim_start().split_once(' ').is_some_and(|(_, rest)| rest == name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Writes 20,000 bytes, one by one, and sleeps.
const BUSY_THEN_IDLE: &str = "dd if=/dev/zero of=/dev/null bs=1 count=20000 2>/dev/null; exec sleep 1000";

/// What `debug` prints of such a container once it sleeps.
fn busy_then_idle(bed: &Bed, switches: &[&str]) -> String {
    let bundle = busybox(bed, BUSY_THEN_IDLE);
    bundle.write().create_with(switches).ok();
    bundle.cli(&["start"]).ok();
    let mut text = String::new();
    let asleep = eventually(Duration::from_secs(20), || {
        text = bundle.cli(&["debug"]).ok();
        text.contains(" sleep sleeping ")
    });
    assert!(asleep, "{text}");
    assert!(counted(&text, "write") >= 20_000, "{text}");
    bundle.cli(&["delete", "--force"]).ok();
    text
}

fn debug_counts_system_calls(bed: &Bed) -> Outcome {
    bed.need_caisson()?;
    let text = busy_then_idle(bed, &[]);
    let (answered, exits) =
        (counted(&text, "calls answered without an exit"), counted(&text, "calls made by an exit"));
    // How many of them depends on how many processors are free; together they are all.
    assert!(answered + exits >= 40_000, "{text}");
    assert!(bed.exitless || answered == 0, "{text}");
    Ok(())
}

fn every_call_can_be_made_to_exit(bed: &Bed) -> Outcome {
    bed.need_caisson()?;
    // Where the whole suite runs so, the switch is there already.
    let switches: &[&str] = if bed.exitless { &["--exitless", "off"] } else { &[] };
    let text = busy_then_idle(bed, switches);
    assert_eq!(counted(&text, "calls answered without an exit"), 0, "{text}");
    assert!(counted(&text, "calls made by an exit") >= 40_000, "{text}");
    Ok(())
}

/// Clock ticks (of 10 ms) that a process has used.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |nth: usize| fields.get(nth).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    field(11) + field(12)
}

fn an_idle_container_uses_no_processor_time(bed: &Bed) -> Outcome {
    bed.need_caisson()?;
    let bundle = started(busybox(bed, BUSY_THEN_IDLE));
    let asleep =
        eventually(Duration::from_secs(20), || bundle.cli(&["debug"]).ok().contains(" sleep sleeping "));
    assert!(asleep, "{}", bundle.cli(&["debug"]).ok());
    let pid = bundle.state().and_then(|state| state["pid"].as_u64()).and_then(|pid| u32::try_from(pid).ok());
    let pid = pid.unwrap_or_default();
    let before = ticks(pid);
    assert!(before > 0, "no process {pid}");
    std::thread::sleep(Duration::from_secs(10));
    let used = ticks(pid) - before;
    assert!(used <= 1, "{used} ticks in ten idle seconds");
    Ok(())
}

fn terminal_by_console_socket(bed: &Bed) -> Outcome {
    use std::io::Read;
    use std::os::unix::net::UnixListener;
    let mut bundle = busybox(bed, "tty; stty size; exit 4");
    bundle.config["process"]["terminal"] = json!(true);
    bundle.config["process"]["consoleSize"] = json!({"height": 25, "width": 90});
    bundle.write();
    // A short one: a socket's address holds 107 bytes.
    let path = bed.dir.join("console");
    let listener = UnixListener::bind(&path).unwrap_or_else(|error| panic!("cannot listen: {error}"));
    let receiver = std::thread::spawn(move || {
        let (connection, _) = listener.accept().ok()?;
        let terminal = receive_descriptor(&connection)?;
        let mut shown = Vec::new();
        let mut terminal = std::fs::File::from(terminal);
        let mut part = [0; 256];
        // The terminal's end is EIO when the last program has closed it.
        while let Ok(count @ 1..) = terminal.read(&mut part) {
            shown.extend_from_slice(part.get(..count)?);
        }
        Some(String::from_utf8_lossy(&shown).into_owned())
    });
    let create = bed.cli().args(["create", "--console-socket"]).arg(&path).arg("--bundle").arg(&bundle.dir);
    let words = create.arg(&bundle.id).words();
    Command::new("sh").args(["-c", "exec >/dev/null 2>&1 </dev/null; exec \"$@\"", "sh"]).args(words).ok();
    bundle.cli(&["start"]).ok();
    expect_status(&bundle, "stopped");
    bundle.cli(&["delete"]).ok();
    let shown = receiver.join().ok().flatten().unwrap_or_default();
    assert!(shown.contains("/dev/pts/0\r\n") && shown.contains("25 90\r\n"), "{shown:?}");
    Ok(())
}

fn receive_descriptor(connection: &std::os::unix::net::UnixStream) -> Option<std::os::fd::OwnedFd> {
    use std::io::IoSliceMut;
    use std::os::fd::AsFd;
    let mut name = [0; 4096];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut name)];
    rustix::net::recvmsg(connection.as_fd(), &mut parts, &mut control, rustix::net::RecvFlags::empty())
        .ok()?;
    control.drain().find_map(|message| match message {
        rustix::net::RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    })
}

fn spec_writes_a_configuration(bed: &Bed) -> Outcome {
    let place = bed.scratch("spec");
    bed.cli().arg("spec").current_dir(&place).ok();
    let text = std::fs::read_to_string(place.join("config.json")).unwrap_or_default();
    let spec: Value = serde_json::from_str(&text).unwrap_or_default();
    assert!(
        spec["ociVersion"].is_string()
            && spec["process"]["args"][0] == "sh"
            && spec["root"]["path"] == "rootfs",
        "{text}"
    );
    assert_ne!(
        bed.cli().arg("spec").current_dir(&place).run().code,
        Some(0),
        "it must not write over a file"
    );
    Ok(())
}

fn features_and_version(bed: &Bed) -> Outcome {
    let features: Value = serde_json::from_str(&bed.cli().arg("features").ok()).unwrap_or_default();
    assert!(features["ociVersionMax"].is_string() && features["mountOptions"].is_array(), "{features}");
    let namespaces = features["linux"]["namespaces"].as_array().cloned().unwrap_or_default();
    assert!(namespaces.contains(&json!("pid")), "{features}");
    assert!(bed.cli().arg("--version").ok().contains("version") || bed.is_caisson());
    assert!(bed.cli().arg("--help").ok().contains("create"));
    Ok(())
}

fn unknown_container(bed: &Bed) -> Outcome {
    for verb in ["state", "start", "delete", "pause", "resume"] {
        let run = bed.cli().args([verb, "no-such-container"]).run();
        assert!(run.code.is_some_and(|code| code != 0), "{run}");
        assert!(run.stderr.contains("does not exist") || run.stderr.contains("not found"), "{run}");
    }
    let run = bed.cli().args(["run", "--bundle", "/no/such/bundle", "../evil"]).run();
    assert!(run.code.is_some_and(|code| code != 0), "{run}");
    Ok(())
}

fn log_file_in_json(bed: &Bed) -> Outcome {
    let log = bed.scratch("log").join("log.json");
    bed.cli().arg("--log").arg(&log).args(["--log-format", "json", "state", "no-such-container"]).run();
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    let line: Value = serde_json::from_str(text.lines().last().unwrap_or_default()).unwrap_or_default();
    assert_eq!(line["level"], "error", "{text}");
    assert!(line["msg"].as_str().is_some_and(|words| words.contains("exist")), "{text}");
    Ok(())
}

fn do_runs_over_the_hosts_root(bed: &Bed) -> Outcome {
    bed.need_caisson()?;
    let run = bed.cli().args([
        "do",
        "sh",
        "-c",
        "test -e /etc/debian_version && echo debian; touch /etc/x 2>&1; exit 6",
    ]);
    let run = run.run().exited(6);
    assert!(run.stdout.starts_with("debian\n") && run.stdout.contains("Read-only"), "{run}");
    Ok(())
}
