//! What people do with `ctr`, against whatever containerd and runtime the bed has: flags of `run`, verbs of `task`,
//! order of events, input, terminals, exit codes.

#![forbid(unsafe_code)]

use caisson_tests::bed::{Bed, Image};
use caisson_tests::command::{Command, eventually};
use caisson_tests::container::Container;
use caisson_tests::suite::{self, Outcome, Skip};
use nix::sys::signal::Signal;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    suite::main(
        "ctr",
        Bed::new,
        caisson_tests::tests![
            output_and_exit_status,
            standard_error_is_kept_apart,
            much_output_is_complete,
            death_by_signal_is_128_plus,
            command_not_found_is_reported,
            command_not_executable_is_reported,
            environment_and_directory,
            user_by_number,
            hostname_and_namespaces_are_its_own,
            binds_read_write_and_read_only,
            bind_of_a_single_file,
            files_keep_their_owners,
            nested_binds,
            the_hosts_changes_show_behind_files_that_came_ahead,
            tmpfs_mount,
            read_only_root,
            root_is_writable_and_private,
            default_devices,
            default_mounts,
            masked_and_read_only_paths,
            memory_limit_is_applied,
            cpus_limit_is_applied,
            input_is_read_to_its_end,
            output_is_read_to_its_end,
            closing_input_ends_a_reader,
            null_io,
            detached_lifecycle,
            signals_reach_the_first_process,
            sigterm_ends_a_handler,
            kill_all_signals_everybody,
            exec_output_status_and_environment,
            exec_of_nothing_is_reported,
            exec_as_user_in_directory,
            exec_is_killed_alone,
            exec_ends_with_the_container,
            pause_stops_and_resume_continues,
            ps_lists_processes,
            metrics_have_figures,
            attach_shows_output,
            terminal_session,
            terminal_resize,
            terminal_exec,
            events_come_in_order,
            delete_of_a_running_task_is_refused,
            zombies_are_reaped_by_the_first_process,
            ten_execs_at_once,
        ],
    )
}

fn output_and_exit_status(bed: &Bed) -> Outcome {
    assert_eq!(bed.sh("echo hello").ok(), "hello\n");
    assert_eq!(bed.sh("true").run().code, Some(0));
    for code in [1, 7, 126, 127, 255] {
        bed.sh(&format!("exit {code}")).run().exited(code);
    }
    Ok(())
}

fn standard_error_is_kept_apart(bed: &Bed) -> Outcome {
    let run = bed.sh("echo out; echo err >&2").run().exited(0);
    assert_eq!(run.stdout, "out\n");
    assert!(run.stderr.contains("err") && !run.stderr.contains("out"), "{run}");
    Ok(())
}

fn much_output_is_complete(bed: &Bed) -> Outcome {
    let text = bed.sh("seq 1 200000").ok();
    let expected: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    assert!(text == expected, "{} bytes instead of {}", text.len(), expected.len());
    Ok(())
}

fn death_by_signal_is_128_plus(bed: &Bed) -> Outcome {
    for (signal, number) in [("SEGV", 11), ("KILL", 9), ("TERM", 15), ("ABRT", 6)] {
        // The first process of a pid namespace cannot kill itself; its child can, and the shell reports that.
        bed.sh(&format!("sh -c 'kill -{signal} $$'; exit $?")).run().exited(128 + number);
    }
    let container = bed.sh("sleep 100").detach();
    container.kill("SIGKILL").ok();
    container.expect_status("STOPPED");
    assert_eq!(container.delete_task(), 137);
    Ok(())
}

fn command_not_found_is_reported(bed: &Bed) -> Outcome {
    let run = bed.container(Image::Busybox).args(["no-such-program"]).run();
    let run = run.failed_saying("no-such-program");
    assert!(run.stderr.contains("not found") || run.stderr.contains("no such file"), "{run}");
    bed.container(Image::Busybox)
        .args(["/bin/no-such-program"])
        .run()
        .failed_saying("no such file or directory");
    Ok(())
}

fn command_not_executable_is_reported(bed: &Bed) -> Outcome {
    bed.container(Image::Busybox).args(["/etc/passwd"]).run().failed_saying("permission denied");
    bed.container(Image::Busybox).args(["/etc"]).run().failed_saying("/etc");
    Ok(())
}

fn environment_and_directory(bed: &Bed) -> Outcome {
    let run = bed.sh("echo $COLOR:$SPACES:$PWD").flags([
        "--env",
        "COLOR=red",
        "--env",
        "SPACES=a b",
        "--cwd",
        "/tmp",
    ]);
    assert_eq!(run.ok(), "red:a b:/tmp\n");
    Ok(())
}

fn user_by_number(bed: &Bed) -> Outcome {
    let script = "id -u; id -g; grep CapEff /proc/self/status; touch /root/x 2>&1";
    if !bed.ctr().args(["run", "--help"]).ok().contains("--user") {
        return Err(Skip("this ctr has no `run --user`; the suite `cli` covers it".into()));
    }
    let run = bed.sh(script).flags(["--user", "65534:65534"]).run();
    assert!(run.stdout.starts_with("65534\n65534\nCapEff:\t0000000000000000\n"), "{run}");
    assert!(run.stdout.contains("Permission denied"), "{run}");
    Ok(())
}

fn hostname_and_namespaces_are_its_own(bed: &Bed) -> Outcome {
    let out = bed.sh("echo $$; ls -d /proc/[0-9]* | wc -l; ls /proc/1/ns | tr '\\n' ' '").ok();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.first(), Some(&"1"), "the first process is 1");
    // sh, ls and wc at most.
    assert!(
        lines.get(1).and_then(|count| count.parse::<u32>().ok()).is_some_and(|count| count <= 4),
        "{out}"
    );
    for kind in ["ipc", "mnt", "net", "pid", "user", "uts"] {
        assert!(out.contains(kind), "no {kind} in /proc/1/ns: {out}");
    }
    Ok(())
}

fn binds_read_write_and_read_only(bed: &Bed) -> Outcome {
    let (rw, ro) = (bed.scratch("rw"), bed.scratch("ro"));
    std::fs::write(ro.join("given"), "from the host\n").ok();
    let script = "cat /ro/given; echo new >/ro/x 2>/dev/null || echo refused; echo kept >/rw/made; mkdir /rw/d; \
                  mv /rw/made /rw/d/moved; chmod 640 /rw/d/moved; ln -s moved /rw/d/link";
    let out = bed.sh(script).bind(&rw, "/rw", "rbind:rw").bind(&ro, "/ro", "rbind:ro").ok();
    assert_eq!(out, "from the host\nrefused\n");
    assert_eq!(std::fs::read_to_string(rw.join("d/link")).unwrap_or_default(), "kept\n");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(rw.join("d/moved")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o7777, 0o640);
    assert!(!ro.join("x").exists());
    Ok(())
}

fn bind_of_a_single_file(bed: &Bed) -> Outcome {
    let file = bed.scratch("file").join("hosts");
    std::fs::write(&file, "127.0.0.1 caisson\n").ok();
    let out = bed.sh("cat /etc/hosts; echo more >>/etc/hosts").bind(&file, "/etc/hosts", "bind:rw").ok();
    assert_eq!(out, "127.0.0.1 caisson\n");
    assert_eq!(std::fs::read_to_string(&file).unwrap_or_default(), "127.0.0.1 caisson\nmore\n");
    Ok(())
}

fn files_keep_their_owners(bed: &Bed) -> Outcome {
    let shared = bed.scratch("owners");
    let script = "for d in / /b; do cd $d; echo x >f; chown 1000:1001 f; echo y >>f; stat -c '%u %g' f; \
                  exec 5<>f; echo z >&5; stat -c '%u %g' f; stat -L -c '%u %g' /proc/self/fd/5; done";
    let out = bed.sh(script).bind(&shared, "/b", "rbind:rw").ok();
    assert_eq!(out, "1000 1001\n".repeat(6));
    let owner = std::fs::metadata(shared.join("f")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&owner), 1000);
    Ok(())
}

fn nested_binds(bed: &Bed) -> Outcome {
    let (outer, inner) = (bed.scratch("outer"), bed.scratch("inner"));
    std::fs::create_dir_all(outer.join("a/b")).ok();
    std::fs::write(outer.join("a/hidden"), "outer\n").ok();
    std::fs::write(inner.join("seen"), "inner\n").ok();
    let script = "cat /o/a/hidden; ls /o/a/b; cat /o/a/b/seen; echo x 2>/dev/null >/o/a/b/y || echo refused";
    let out = bed.sh(script).bind(&outer, "/o", "rbind:rw").bind(&inner, "/o/a/b", "rbind:ro").ok();
    assert_eq!(out, "outer\nseen\ninner\nrefused\n");
    Ok(())
}

/// A directory is gone through file by file, and half way the host changes what is behind the names to come.
fn the_hosts_changes_show_behind_files_that_came_ahead(bed: &Bed) -> Outcome {
    use std::fs;
    let shared = bed.scratch("ahead");
    let dir = shared.join("d");
    let file = |i: usize| dir.join(format!("f{i:02}"));
    fs::create_dir(&dir).unwrap();
    (0..60).for_each(|i| fs::write(file(i), format!("old {i}\n")).unwrap());
    fs::write(shared.join("other"), "elsewhere\n").unwrap();
    // Times of the last change are told apart from later ones after some ticks of the host's clock.
    std::thread::sleep(Duration::from_millis(100));
    let script = "n=0; for f in /s/d/f*; do { read -r line <$f; } 2>/dev/null || line=gone; echo \"${f##*/} $line\"; \
                  n=$((n + 1)); [ $n != 30 ] || { : >/s/half; until [ -e /s/go ]; do sleep 0.05; done; }; done";
    let change = |i: usize| match i % 5 {
        0 => fs::remove_file(file(i)),
        1 => fs::write(shared.join("new"), format!("renamed {i}\n"))
            .and_then(|()| fs::rename(shared.join("new"), file(i))),
        2 => fs::write(file(i), format!("written {i}\n")),
        3 => fs::remove_file(file(i)).and_then(|()| std::os::unix::fs::symlink("../other", file(i))),
        _ => Ok(()),
    };
    let expected = (0..60).map(|i| {
        let line = match (i < 30, i % 5) {
            (true, _) | (_, 4) => format!("old {i}"),
            (_, 0) => "gone".to_owned(),
            (_, 1) => format!("renamed {i}"),
            (_, 2) => format!("written {i}"),
            _ => "elsewhere".to_owned(),
        };
        format!("f{i:02} {line}\n")
    });
    let out = std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = eventually(Duration::from_secs(20), || shared.join("half").exists());
            (30..60).for_each(|i| change(i).unwrap());
            fs::write(shared.join("go"), "").unwrap();
        });
        bed.sh(script).bind(&shared, "/s", "rbind:rw").ok()
    });
    assert_eq!(out, expected.collect::<String>());
    Ok(())
}

fn tmpfs_mount(bed: &Bed) -> Outcome {
    let mount = "type=tmpfs,src=tmpfs,dst=/scratch,options=size=1048576:mode=700";
    let script = "stat -f -c %T /scratch; stat -c %a /scratch; dd if=/dev/zero of=/scratch/x bs=1M count=2 2>&1 | grep -o 'No space.*'; \
                  stat -c %s /scratch/x";
    let out = bed.sh(script).flags(["--mount", mount]).ok();
    assert_eq!(out, "tmpfs\n700\nNo space left on device\n1048576\n");
    Ok(())
}

fn read_only_root(bed: &Bed) -> Outcome {
    let run = bed
        .sh("touch /x; touch /dev/shm/ok && echo shm; cat /etc/group | head -1")
        .flags(["--read-only"])
        .run();
    assert_eq!(run.stdout, "shm\nroot:x:0:\n");
    assert!(run.stderr.contains("Read-only file system"), "{run}");
    Ok(())
}

fn root_is_writable_and_private(bed: &Bed) -> Outcome {
    assert_eq!(bed.sh("echo mine >/etc/motd; rm /etc/group; cat /etc/motd").ok(), "mine\n");
    assert_eq!(bed.sh("test -e /etc/motd || ls /etc/group").ok(), "/etc/group\n");
    Ok(())
}

fn default_devices(bed: &Bed) -> Outcome {
    let script = "for d in null zero full random urandom tty; do stat -c '%n %F %t:%T %a' /dev/$d; done; \
                  head -c 4 /dev/zero | od -An -tx1; echo x >/dev/full; head -c 8 /dev/urandom | wc -c; \
                  for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done; cat /dev/null | wc -c";
    let run = bed.sh(script).run();
    let expected = "/dev/null character special file 1:3 666\n/dev/zero character special file 1:5 666\n\
                    /dev/full character special file 1:7 666\n/dev/random character special file 1:8 666\n\
                    /dev/urandom character special file 1:9 666\n/dev/tty character special file 5:0 666\n \
                    00 00 00 00\n8\n/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n0\n";
    assert_eq!(run.stdout, expected);
    assert!(run.stderr.contains("No space left on device"), "{run}");
    Ok(())
}

fn default_mounts(bed: &Bed) -> Outcome {
    let out = bed.sh("mount | cut -d ' ' -f 3,5 | sort -u").ok();
    for line in [
        "/dev tmpfs",
        "/dev/mqueue mqueue",
        "/dev/pts devpts",
        "/dev/shm tmpfs",
        "/proc proc",
        "/run tmpfs",
        "/sys sysfs",
    ] {
        assert!(out.lines().any(|mounted| mounted == line), "no {line} in\n{out}");
    }
    Ok(())
}

fn masked_and_read_only_paths(bed: &Bed) -> Outcome {
    let script = "cat /proc/keys /proc/timer_list | wc -c; ls /proc/acpi /sys/firmware 2>/dev/null | grep -v : | wc -w; \
                  echo 1 2>/dev/null >/proc/sys/kernel/hostname || echo refused; echo b 2>/dev/null >/proc/sysrq-trigger || echo refused";
    assert_eq!(bed.sh(script).ok(), "0\n0\nrefused\nrefused\n");
    Ok(())
}

fn memory_limit_is_applied(bed: &Bed) -> Outcome {
    let run = bed
        .sh("head -c 300m /dev/zero | tail -c 299m | wc -c; echo over")
        .flags(["--memory-limit", "67108864"]);
    let run = run.run();
    assert!(!run.stdout.starts_with("313524224"), "tail held 299 MiB in spite of the limit: {run}");
    let small = bed.sh("head -c 16m /dev/zero | tail -c 15m | wc -c").flags(["--memory-limit", "134217728"]);
    assert_eq!(small.ok(), "15728640\n");
    Ok(())
}

fn cpus_limit_is_applied(bed: &Bed) -> Outcome {
    let container = bed.sh("while :; do :; done").flags(["--cpus", "0.2"]).detach();
    container.expect_status("RUNNING");
    let (started, before) = (std::time::Instant::now(), processor_seconds(&container));
    std::thread::sleep(Duration::from_millis(2500));
    let (wall, used) = (started.elapsed().as_secs_f64(), processor_seconds(&container) - before);
    assert!(
        used > 0.02 && used < 0.35 * wall,
        "{used:.2} s of processor time in {wall:.2} s with a limit of 0.2"
    );
    Ok(())
}

/// The processor time that the container has used, from its metrics.
fn processor_seconds(container: &Container<'_>) -> f64 {
    let metrics = container.task(&["metrics"]).ok();
    let figure = |name: &str, unit: f64| {
        let line = metrics.lines().find(|line| line.trim_start().starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|value| value / unit)
    };
    // The hierarchy's version decides about the name and the unit.
    figure("cpuacct.usage", 1e9).or(figure("cpu.usage_usec", 1e6)).unwrap_or(0.0)
}

fn input_is_read_to_its_end(bed: &Bed) -> Outcome {
    let text: String = (0..20_000).map(|number| format!("line {number}\n")).collect();
    let run = bed.sh("cat; echo end").input(text.clone()).run().exited(0);
    assert_eq!(run.stdout.len(), text.len() + 4);
    assert!(run.stdout.starts_with(&text) && run.stdout.ends_with("end\n"));
    Ok(())
}

/// The client hears of the exit long before it could write all of the output on.
fn output_is_read_to_its_end(bed: &Bed) -> Outcome {
    let container = bed.sh("seq 20000");
    let _removed = container.handle();
    let line = bed.ctr().args(container.words(&["--rm"])).words();
    let run =
        Command::new("sh").args(["-c", "\"$@\" | { sleep 0.7; cat; }", "sh"]).args(line).run().exited(0);
    let numbers: String = (1..=20_000).map(|number| format!("{number}\n")).collect();
    assert_eq!(run.stdout.len(), numbers.len());
    assert_eq!(run.stdout, numbers);
    Ok(())
}

fn closing_input_ends_a_reader(bed: &Bed) -> Outcome {
    assert_eq!(bed.sh("wc -c").input("").ok(), "0\n");
    assert_eq!(
        bed.sh("read line; echo \"got $line\"; read more || echo end").input("one\n").ok(),
        "got one\nend\n"
    );
    Ok(())
}

fn null_io(bed: &Bed) -> Outcome {
    let run = bed.sh("echo lost; exit 5").flags(["--null-io"]).run().exited(5);
    assert_eq!(run.stdout, "");
    Ok(())
}

fn detached_lifecycle(bed: &Bed) -> Outcome {
    let container = bed.sh("trap 'exit 9' TERM; while :; do sleep 0.1; done").detach();
    container.expect_status("RUNNING");
    let pid = container.pid().unwrap_or(0);
    assert!(pid > 1 && std::path::Path::new(&format!("/proc/{pid}")).exists(), "pid {pid} is a live process");
    container.kill("SIGTERM").ok();
    container.expect_status("STOPPED");
    assert_eq!(container.delete_task(), 9);
    assert_eq!(container.status(), None);
    // The same container can be started again.
    bed.ctr().args(["task", "start", "-d", "--null-io", &container.id]).ok();
    container.expect_status("RUNNING");
    Ok(())
}

fn signals_reach_the_first_process(bed: &Bed) -> Outcome {
    let out = bed.scratch("signals");
    let script = "for s in HUP INT USR1 USR2 WINCH; do trap \"echo $s >>/out/seen\" $s; done; \
                  echo ready >>/out/seen; while :; do sleep 0.05; done";
    let container = bed.sh(script).bind(&out, "/out", "rbind:rw").detach();
    let seen = || std::fs::read_to_string(out.join("seen")).unwrap_or_default();
    assert!(eventually(Duration::from_secs(10), || seen() == "ready\n"));
    let mut expected = "ready\n".to_string();
    for signal in ["HUP", "INT", "USR1", "USR2", "WINCH"] {
        container.kill(&format!("SIG{signal}")).ok();
        expected += &format!("{signal}\n");
        assert!(
            eventually(Duration::from_secs(10), || seen() == expected),
            "{:?} is not {expected:?}",
            seen()
        );
    }
    // Without a handler, the first process ignores even SIGTERM.
    container.kill("SIGTERM").ok();
    std::thread::sleep(Duration::from_millis(300));
    container.expect_status("RUNNING");
    Ok(())
}

fn sigterm_ends_a_handler(bed: &Bed) -> Outcome {
    // ctr passes its own signals on to the container in the foreground.
    let mut words =
        bed.sh("trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.1; done").words(&["--rm"]);
    words.insert(0, "exec".into());
    let container = bed.ctr();
    let running = container.args(words.into_iter().skip(1)).start();
    let listed = || bed.ctr().args(["task", "list"]).run().stdout.contains("RUNNING");
    assert!(eventually(Duration::from_secs(10), listed));
    std::thread::sleep(Duration::from_millis(500));
    running.signal(Signal::SIGTERM);
    let run = running.finish().exited(3);
    assert_eq!(run.stdout, "up\nbye\n");
    Ok(())
}

fn kill_all_signals_everybody(bed: &Bed) -> Outcome {
    let container = bed.sh("sleep 100 & sleep 100 & wait").detach();
    container.task(&["kill", "--all", "--signal", "SIGKILL"]).ok();
    container.expect_status("STOPPED");
    assert_eq!(container.delete_task(), 137);
    Ok(())
}

fn exec_output_status_and_environment(bed: &Bed) -> Outcome {
    let container = bed.sh("export HIDDEN=1; sleep 100; true").flags(["--env", "COLOR=red"]).detach();
    assert_eq!(container.exec(&["echo", "hello"]).ok(), "hello\n");
    container.exec(&["sh", "-c", "exit 42"]).exited(42);
    container.exec(&["sh", "-c", "kill -9 $$"]).exited(137);
    assert_eq!(container.exec(&["sh", "-c", "echo $COLOR-$HIDDEN"]).ok(), "red-\n");
    assert_eq!(container.exec(&["sh", "-c", "cat /proc/1/comm"]).ok(), "sh\n");
    Ok(())
}

fn exec_of_nothing_is_reported(bed: &Bed) -> Outcome {
    let container = bed.sh("sleep 100").detach();
    container.exec(&["no-such-program"]).failed_saying("no-such-program");
    container.exec(&["/etc/passwd"]).failed_saying("permission denied");
    assert_eq!(container.exec(&["echo", "still there"]).ok(), "still there\n");
    Ok(())
}

fn exec_as_user_in_directory(bed: &Bed) -> Outcome {
    let container = bed.sh("sleep 100").detach();
    let run = container.exec_with(&["--cwd", "/tmp", "--user", "65534"], &["sh", "-c", "pwd; id -u"]);
    assert_eq!(run.ok(), "/tmp\n65534\n");
    Ok(())
}

fn exec_is_killed_alone(bed: &Bed) -> Outcome {
    let container = bed.sh("sleep 100").detach();
    let exec = container.exec_with(&[], &["sleep", "99"]).start();
    let there = || container.exec(&["ps"]).stdout.contains("sleep 99");
    assert!(eventually(Duration::from_secs(10), there));
    container.exec(&["sh", "-c", "kill -9 $(ps | awk '/[s]leep 99/ {print $1}')"]).ok();
    exec.finish().exited(137);
    container.expect_status("RUNNING");
    Ok(())
}

fn exec_ends_with_the_container(bed: &Bed) -> Outcome {
    let container = bed.sh("sleep 100").detach();
    let exec = container.exec_with(&[], &["sleep", "99"]).start();
    assert!(eventually(Duration::from_secs(10), || container.exec(&["ps"]).stdout.contains("sleep 99")));
    container.kill("SIGKILL").ok();
    exec.finish().exited(137);
    container.expect_status("STOPPED");
    Ok(())
}

fn pause_stops_and_resume_continues(bed: &Bed) -> Outcome {
    let out = bed.scratch("ticks");
    let script = "while :; do echo tick >>/out/ticks; sleep 0.05; done";
    let container = bed.sh(script).bind(&out, "/out", "rbind:rw").detach();
    let ticks = || std::fs::read_to_string(out.join("ticks")).unwrap_or_default().len();
    assert!(eventually(Duration::from_secs(10), || ticks() > 0));
    container.task(&["pause"]).ok();
    container.expect_status("PAUSED");
    std::thread::sleep(Duration::from_millis(200));
    let then = ticks();
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(ticks(), then, "a paused container goes on");
    container.task(&["resume"]).ok();
    container.expect_status("RUNNING");
    assert!(eventually(Duration::from_secs(10), || ticks() > then), "a resumed container stands still");
    Ok(())
}

fn ps_lists_processes(bed: &Bed) -> Outcome {
    let container = bed.sh("sleep 100 & sleep 100 & wait").detach();
    // The first process, by the pid that containerd knows, or by the container's own numbers where those are all there is.
    let pid = container.pid().unwrap_or_default().to_string();
    let rows = || {
        let table = container.task(&["ps"]).ok();
        table
            .lines()
            .skip(1)
            .filter_map(|line| Some(line.split_whitespace().next()?.to_string()))
            .collect::<Vec<_>>()
    };
    let complete = || rows().len() == 3 && rows().iter().any(|row| *row == pid || row == "1");
    assert!(eventually(Duration::from_secs(10), complete), "{:?}", rows());
    Ok(())
}

fn metrics_have_figures(bed: &Bed) -> Outcome {
    let container = bed.sh("while :; do :; done").detach();
    std::thread::sleep(Duration::from_millis(300));
    let metrics = container.task(&["metrics"]).ok();
    let figure = |name: &str| {
        let line = metrics.lines().find(|line| line.trim_start().starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    // The hierarchy's version decides about the names.
    let memory = figure("memory.usage_in_bytes").or(figure("memory.usage")).unwrap_or(0);
    let cpu = figure("cpuacct.usage").or(figure("cpu.usage_usec")).unwrap_or(0);
    assert!(memory > 100_000 && cpu > 10_000, "memory {memory}, cpu {cpu} in\n{metrics}");
    Ok(())
}

fn attach_shows_output(bed: &Bed) -> Outcome {
    let builder = bed.sh("i=0; while [ $i -lt 30 ]; do echo tick; i=$((i+1)); sleep 0.1; done; exit 4");
    let container = builder.handle();
    bed.ctr().args(builder.words(&["-d"])).ok();
    let run = container.task(&["attach"]).run();
    let run = run.exited(4);
    assert!(run.stdout.contains("tick\ntick\n"), "{run}");
    Ok(())
}

fn terminal_session(bed: &Bed) -> Outcome {
    let run = bed.container(Image::Busybox).args(["sh"]).on_terminal(&[
        "tty; stty size\r",
        "echo a$((40+2))b\r",
        "sleep 100\r",
        "\u{3}",
        "echo code $?\r",
        "cat >/tmp/typed\r",
        "text\r\u{4}",
        "cat /tmp/typed; exit 5\r",
    ]);
    let run = run.exited(5);
    let shown = run.stdout.replace('\r', "");
    for part in ["/dev/pts/0", "33 99", "a42b", "code 130", "^C", "\ntext\n"] {
        assert!(shown.contains(part), "no {part:?} in {run}");
    }
    Ok(())
}

fn terminal_resize(bed: &Bed) -> Outcome {
    // The terminal of `script` changes its size when told so on the host's side.
    let builder =
        bed.sh("trap 'stty size' WINCH; echo up; i=0; while [ $i -lt 40 ]; do sleep 0.1; i=$((i+1)); done");
    let _removed = builder.handle();
    let words = bed.ctr().args(builder.words(&["--rm", "-t"])).words();
    let line: Vec<String> = words.iter().map(|word| caisson_tests::container::quote(word)).collect();
    let inner =
        format!("stty rows 20 cols 70; (sleep 2; stty rows 21 cols 71 </dev/tty) & {}", line.join(" "));
    let run = Command::new("sh").args(["-c", "sleep 6 | exec script -qec \"$0\" /dev/null"]).arg(inner).run();
    assert!(run.stdout.contains("21 71"), "{run}");
    Ok(())
}

fn terminal_exec(bed: &Bed) -> Outcome {
    let container = bed.sh("sleep 100").detach();
    let words = container.exec_with(&["-t"], &["sh", "-c", "tty; stty size; exit 6"]).words();
    let line: Vec<String> = words.iter().map(|word| caisson_tests::container::quote(word)).collect();
    let inner = format!("stty rows 31 cols 91; {}", line.join(" "));
    let run = Command::new("sh").args(["-c", "sleep 3 | exec script -qec \"$0\" /dev/null"]).arg(inner).run();
    let run = run.exited(6);
    assert!(run.stdout.contains("/dev/pts/"), "{run}");
    Ok(())
}

fn events_come_in_order(bed: &Bed) -> Outcome {
    let watcher = bed.ctr().arg("events").limit(Duration::from_secs(6)).start();
    std::thread::sleep(Duration::from_millis(500));
    let container = bed.sh("sleep 100").detach();
    container.exec(&["true"]).ok();
    container.task(&["pause"]).ok();
    container.task(&["resume"]).ok();
    container.kill("SIGKILL").ok();
    container.expect_status("STOPPED");
    container.delete_task();
    let seen = watcher.finish().stdout;
    let topics: Vec<&str> = seen
        .lines()
        .filter(|line| line.contains(&container.id))
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with("/tasks/")))
        .collect();
    let expected =
        ["create", "start", "exec-added", "exec-started", "exit", "paused", "resumed", "exit", "delete"];
    let expected: Vec<String> = expected.iter().map(|topic| format!("/tasks/{topic}")).collect();
    // containerd 2.x also tells of the exec's deletion.
    let topics: Vec<&str> = match topics.iter().position(|topic| *topic == "/tasks/delete") {
        Some(5) if topics.len() == 10 => [&topics[..5], &topics[6..]].concat(),
        _ => topics,
    };
    assert_eq!(topics, expected, "{seen}");
    Ok(())
}

fn delete_of_a_running_task_is_refused(bed: &Bed) -> Outcome {
    let container = bed.sh("sleep 100").detach();
    container.task(&["delete"]).run().failed_saying("must be stopped");
    container.expect_status("RUNNING");
    Ok(())
}

fn zombies_are_reaped_by_the_first_process(bed: &Bed) -> Outcome {
    // Orphans become children of the first process, which the shell waits for.
    let script = "(sh -c 'sleep 0.1 & echo $! >/tmp/orphan'); sleep 0.5; p=$(cat /tmp/orphan); \
                  grep PPid /proc/$p/status 2>/dev/null || echo gone";
    let out = bed.sh(script).ok();
    assert!(out == "gone\n" || out == "PPid:\t1\n", "{out}");
    Ok(())
}

fn ten_execs_at_once(bed: &Bed) -> Outcome {
    let container = bed.sh("sleep 100").detach();
    let running: Vec<_> = (0..10)
        .map(|n| container.exec_with(&[], &["sh", "-c", &format!("sleep 0.3; exit {n}")]).start())
        .collect();
    for (code, exec) in (0..10).zip(running) {
        exec.finish().exited(code);
    }
    Ok(())
}
