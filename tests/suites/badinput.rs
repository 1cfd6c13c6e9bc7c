//! Broken and hostile input, exhausted resources, and killed helpers: a clear error or the right status, nothing left,
//! nothing hung, and no other container affected.
//!
//! Every test runs beside a container that must come through unharmed ([`with_neighbour`]).

#![forbid(unsafe_code)]

use caisson_tests::bed::{Bed, Image};
use caisson_tests::bundle::Bundle;
use caisson_tests::command::{Command, Finished, eventually};
use caisson_tests::container::Container;
use caisson_tests::leaks;
use caisson_tests::suite::{self, Outcome};
use serde_json::{Value, json};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    suite::main(
        "badinput",
        Bed::new,
        caisson_tests::tests![
            config_is_no_json,
            config_is_missing,
            config_of_wrong_types,
            config_with_hostile_values,
            root_is_missing,
            program_for_another_machine,
            truncated_programs,
            program_that_interprets_itself,
            mutated_programs,
            script_without_its_interpreter,
            hundred_thousand_arguments,
            fork_bomb_under_a_limit,
            memory_limit_is_reached,
            disk_is_full,
            unreadable_file,
            closed_input,
            containerd_is_killed_and_restarted,
            shim_is_killed,
            sentry_is_killed,
            gofer_is_killed,
            sandbox_is_killed_while_it_starts,
        ],
    )
}

/// Runs a test beside a container that must still answer and still hold its file afterwards.
fn with_neighbour(bed: &Bed, test: impl FnOnce(&Bed, &Container<'_>)) -> Outcome {
    let neighbour = bed.sh("echo mine >/file; sleep 1000").detach();
    neighbour.expect_status("RUNNING");
    test(bed, &neighbour);
    assert_eq!(neighbour.exec(&["cat", "/file"]).ok(), "mine\n", "the neighbour was affected");
    neighbour.expect_status("RUNNING");
    Ok(())
}

fn bundle<'bed>(bed: &'bed Bed, args: &[&str]) -> Bundle<'bed> {
    Bundle::new(bed, Image::Busybox, args)
}

/// Runs a bundle that cannot be run: it must fail by itself, with words, and leave no container.
#[track_caller]
fn refused(bundle: &Bundle<'_>) -> Finished {
    let run = bundle.run().limit(Duration::from_secs(30)).run();
    assert!(run.code.is_some_and(|code| code != 0 && code < 128), "expected to be refused: {run}");
    assert!(!run.stderr.trim().is_empty(), "refused without a word: {run}");
    assert!(!run.stderr.contains("panicked"), "{run}");
    assert!(bundle.state().is_none(), "a container is left after {run}");
    run
}

fn config_is_no_json(bed: &Bed) -> Outcome {
    with_neighbour(bed, |bed, _| {
        for bytes in [
            &b""[..],
            b"{",
            b"[]",
            b"null",
            b"\xff\xfe\x00",
            b"{\"ociVersion\": \"1.0.2\"",
            b"0",
            b"\"text\"",
        ] {
            let bundle = bundle(bed, &["true"]);
            refused(bundle.write_raw(bytes));
        }
        let bundle = bundle(bed, &["true"]);
        let deep = "[".repeat(100_000);
        refused(bundle.write_raw(deep.as_bytes()));
    })
}

fn config_is_missing(bed: &Bed) -> Outcome {
    with_neighbour(bed, |bed, _| {
        let run = refused(&bundle(bed, &["true"]));
        assert!(run.stderr.contains("config.json"), "{run}");
    })
}

/// The configuration with the value at a path replaced (`null` removes it).
fn bent(bed: &Bed, path: &str, value: Value) -> Finished {
    let mut bundle = bundle(bed, &["true"]);
    match bundle.config.pointer_mut(path) {
        Some(place) => *place = value,
        None => panic!("the configuration has no {path}"),
    }
    refused(bundle.write())
}

fn config_of_wrong_types(bed: &Bed) -> Outcome {
    with_neighbour(bed, |bed, _| {
        for (path, value) in [
            ("/process", json!("text")),
            ("/process/args", json!({"a": 1})),
            ("/process/args", json!([])),
            ("/process/user/uid", json!("root")),
            ("/process/user/uid", json!(-1)),
            ("/process/user/uid", json!(99_999_999_999_u64)),
            ("/root", json!(7)),
            ("/mounts", json!("none")),
            ("/linux/namespaces", json!([{"type": 7}])),
            ("/process/rlimits", json!([{"type": "RLIMIT_NOFILE", "soft": "many", "hard": 1}])),
        ] {
            bent(bed, path, value);
        }
    })
}

fn config_with_hostile_values(bed: &Bed) -> Outcome {
    with_neighbour(bed, |bed, _| {
        for (path, value) in [
            ("/root/path", json!("/no/such/root")),
            ("/root/path", json!("/etc/passwd")),
            ("/process/cwd", json!("relative")),
            ("/process/cwd", json!("/etc/passwd")),
            ("/process/args", json!([""])),
            ("/process/rlimits", json!([{"type": "RLIMIT_NONSENSE", "soft": 1, "hard": 1}])),
            ("/mounts/0", json!({"destination": "/x", "type": "nonsense", "source": "x"})),
            (
                "/mounts/0",
                json!({"destination": "/x", "type": "bind", "source": "/no/such/source", "options": ["bind"]}),
            ),
            ("/linux/namespaces", json!([{"type": "nonsense"}])),
        ] {
            bent(bed, path, value);
        }
        // A mount over a link that leads out of the root stays inside.
        let root = bed.scratch("evil-root");
        Command::new("cp").arg("-a").arg(bed.image_root(Image::Busybox).join(".")).arg(&root).ok();
        let outside = bed.scratch("outside");
        std::os::unix::fs::symlink(&outside, root.join("link")).ok();
        let mut bundle = bundle(bed, &["true"]);
        bundle.config["root"] = json!({"path": root, "readonly": false});
        let mounts = bundle.config["mounts"].as_array_mut().map(|mounts| {
            mounts.push(json!({"destination": "/link/deep", "type": "tmpfs", "source": "tmpfs"}));
        });
        assert!(mounts.is_some());
        bundle.write().run().run();
        assert!(!outside.join("deep").exists(), "a mount point was made outside of the root");
    })
}

fn root_is_missing(bed: &Bed) -> Outcome {
    with_neighbour(bed, |bed, _| {
        let run = bent(bed, "/root/path", json!("/no/such/directory"));
        assert!(run.stderr.contains("/no/such/directory"), "{run}");
    })
}

/// Runs a program file in a container; it must end in some way, soon, with everything still in order.
fn run_program(bed: &Bed, bytes: &[u8]) -> Finished {
    let place = bed.scratch("program");
    std::fs::write(place.join("program"), bytes).ok();
    Command::new("chmod").args(["755"]).arg(place.join("program")).ok();
    let container = bed.container(Image::Busybox).args(["/p/program", "true"]).bind(&place, "/p", "rbind:ro");
    let run = container.limit(Duration::from_secs(30)).run();
    assert!(run.code.is_some(), "it hangs: {run}");
    assert!(!run.stderr.contains("panicked"), "{run}");
    run
}

fn busybox_bytes(bed: &Bed) -> Vec<u8> {
    std::fs::read(bed.image_root(Image::Busybox).join("bin/busybox")).unwrap_or_default()
}

fn program_for_another_machine(bed: &Bed) -> Outcome {
    with_neighbour(bed, |bed, _| {
        let mut program = busybox_bytes(bed);
        for machine in [183_u16, 3, 0, 0xffff] {
            program.splice(18..20, machine.to_le_bytes());
            run_program(bed, &program).failed_saying("exec format error");
        }
    })
}

fn truncated_programs(bed: &Bed) -> Outcome {
    with_neighbour(bed, |bed, _| {
        let program = busybox_bytes(bed);
        for length in [0, 1, 4, 16, 63, 64, 65, 120, 500, 4096, 100_000] {
            let run = run_program(bed, program.get(..length).unwrap_or(&program));
            assert_ne!(run.code, Some(0), "{length} bytes of a program ran: {run}");
        }
    })
}

fn program_that_interprets_itself(bed: &Bed) -> Outcome {
    with_neighbour(bed, |bed, _| {
        // A position-independent program that names itself as its interpreter: Linux loads it once more, and no further.
        let place = bed.scratch("cyclic");
        std::fs::write(place.join("x.c"), "int main(void) { return 0; }\n").ok();
        let flags = ["-fPIE", "-pie", "-Wl,--dynamic-linker=/p/x", "-o", "x", "x.c"];
        Command::new("gcc").args(flags).current_dir(&place).ok();
        let container = bed.container(Image::Busybox).args(["/p/x"]).bind(&place, "/p", "rbind:ro");
        let run = container.limit(Duration::from_secs(30)).run();
        assert!(run.code.is_some_and(|code| code != 0), "{run}");
    })
}

fn mutated_programs(bed: &Bed) -> Outcome {
    with_neighbour(bed, |bed, _| {
        let original = busybox_bytes(bed);
        // A fixed sequence (a linear congruence), so that a failure can be found again.
        let mut state = 20_261_122_u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 8
        };
        for _ in 0..25 {
            let mut program = original.clone();
            for _ in 0..4 {
                // Headers and program headers are where the loader looks.
                let place = (random() % 400) as usize;
                if let Some(byte) = program.get_mut(place) {
                    *byte = random() as u8;
                }
            }
            run_program(bed, &program);
        }
    })
}

fn script_without_its_interpreter(bed: &Bed) -> Outcome {
    with_neighbour(bed, |bed, _| {
        run_program(bed, b"#!/no/such/interpreter\n").failed_saying("no such file or directory");
        run_program(bed, b"#!/etc/passwd\n").failed_saying("permission denied");
        run_program(bed, b"#!/p/program\n").failed_saying("too many levels of symbolic links");
    })
}

fn hundred_thousand_arguments(bed: &Bed) -> Outcome {
    with_neighbour(bed, |bed, _| {
        let mut args = vec!["sh", "-c", "echo $#", "sh"];
        args.resize(100_004, "x");
        assert_eq!(bundle(bed, &args).write().run().ok(), "100000\n");
        let out = bed.sh("set -- $(seq 1 100000); /bin/busybox sh -c 'echo $#' sh \"$@\"").ok();
        assert_eq!(out, "100000\n");
        // One string over Linux's limit for one.
        let huge = "y".repeat(200_000);
        let bundle = bundle(bed, &["echo", &huge]);
        bundle.write().run().run().failed_saying("argument list too long");
    })
}

fn fork_bomb_under_a_limit(bed: &Bed) -> Outcome {
    with_neighbour(bed, |bed, neighbour| {
        let mut bomb = bundle(bed, &["sh", "-c", "f() { f | f & }; f; sleep 3; echo done"]);
        bomb.config["linux"]["resources"]["pids"] = json!({"limit": 40});
        bomb.write().create().ok();
        bomb.cli(&["start"]).ok();
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(neighbour.exec(&["echo", "quick"]).ok(), "quick\n");
        bomb.cli(&["kill"]).arg("KILL").run();
        bomb.cli(&["delete", "--force"]).limit(Duration::from_secs(30)).ok();
        assert!(bomb.state().is_none());
        // The limit itself: the shell says that it cannot fork.
        let mut limited =
            bundle(bed, &["sh", "-c", "for i in $(seq 1 60); do sleep 5 & done; echo unreachable"]);
        limited.config["linux"]["resources"]["pids"] = json!({"limit": 20});
        let run = limited.write().run().run();
        assert!(run.stderr.contains("fork") || run.stderr.contains("Resource temporarily"), "{run}");
    })
}

fn memory_limit_is_reached(bed: &Bed) -> Outcome {
    with_neighbour(bed, |bed, _| {
        let eater = "x=$(head -c 400m /dev/zero | tr '\\0' x); echo survived";
        let run = bed.sh(eater).flags(["--memory-limit", "67108864"]).run();
        assert!(run.code.is_some_and(|code| code != 0), "{run}");
        assert!(!run.stdout.contains("survived"), "{run}");
    })
}

fn disk_is_full(bed: &Bed) -> Outcome {
    with_neighbour(bed, |bed, _| {
        let place = bed.scratch("full");
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "full"]).arg(&place).ok();
        let script = "dd if=/dev/zero of=/full/x bs=64k count=100 2>&1 | grep -o 'No space left on device'; \
                      stat -c %s /full/x; rm /full/x; echo again >/full/y && cat /full/y";
        let run = bed.sh(script).bind(&place, "/full", "rbind:rw").run();
        Command::new("umount").arg(&place).ok();
        assert_eq!(run.stdout, "No space left on device\n1048576\nagain\n", "{run}");
    })
}

fn unreadable_file(bed: &Bed) -> Outcome {
    with_neighbour(bed, |bed, _| {
        let mut reader = bundle(
            bed,
            &["sh", "-c", "cat /p/secret; echo $?; ls /p/closed; echo $?; echo x >/p/new; echo $?"],
        );
        let place = bed.scratch("secret");
        std::fs::write(place.join("secret"), "secret\n").ok();
        std::fs::create_dir(place.join("closed")).ok();
        Command::new("chmod").arg("600").arg(place.join("secret")).ok();
        Command::new("chmod").arg("700").arg(place.join("closed")).ok();
        reader.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        let mount = json!({"destination": "/p", "type": "bind", "source": place, "options": ["rbind", "rw"]});
        if let Some(mounts) = reader.config["mounts"].as_array_mut() {
            mounts.push(mount);
        }
        let run = reader.write().run().run();
        assert_eq!(run.stdout, "1\n1\n1\n", "{run}");
        assert_eq!(run.stderr.matches("ermission denied").count(), 3, "{run}");
    })
}

fn closed_input(bed: &Bed) -> Outcome {
    with_neighbour(bed, |bed, _| {
        let bundle = bundle(bed, &["sh", "-c", "cat; echo end; exit 4"]);
        bundle.write();
        let words = bundle.run().words();
        let run = Command::new("sh")
            .args(["-c", "exec \"$@\" <&-", "sh"])
            .args(words)
            .limit(Duration::from_secs(30))
            .run();
        assert!(run.code.is_some(), "{run}");
        let quiet =
            Command::new("sh").args(["-c", "exec \"$@\" <&- >&- 2>&-", "sh"]).args(bundle.run().words());
        assert!(quiet.limit(Duration::from_secs(30)).run().code.is_some());
    })
}

fn containerd_is_killed_and_restarted(bed: &Bed) -> Outcome {
    with_neighbour(bed, |bed, _| {
        let container = bed.sh("trap 'exit 7' TERM; while :; do sleep 0.1; done").detach();
        container.expect_status("RUNNING");
        let pid = container.pid();
        bed.containerd().kill();
        std::thread::sleep(Duration::from_millis(500));
        bed.containerd().restart();
        container.expect_status("RUNNING");
        assert_eq!(container.pid(), pid);
        assert_eq!(container.exec(&["echo", "after"]).ok(), "after\n");
        container.kill("SIGTERM").ok();
        container.expect_status("STOPPED");
        assert_eq!(container.delete_task(), 7);
        // A container that ends while nobody listens has ended all the same.
        let short = bed.sh("sleep 1; exit 9").detach();
        bed.containerd().kill();
        std::thread::sleep(Duration::from_millis(2500));
        bed.containerd().restart();
        short.expect_status("STOPPED");
        assert_eq!(short.delete_task(), 9);
    })
}

/// Our processes of a program, without those in `others`.
fn processes_of(bed: &Bed, program: &str, others: &[u32]) -> Vec<u32> {
    let is = |pid: &u32| {
        let link = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        link.file_name().is_some_and(|name| name == program)
    };
    leaks::our_processes(bed).into_iter().filter(|pid| is(pid) && !others.contains(pid)).collect()
}

fn kill_now(pids: &[u32]) {
    for pid in pids {
        let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).ok();
    }
}

/// Kills the processes of one container's `program`: its task must be over soon, and be removable.
fn kill_helper(bed: &Bed, program: &str) {
    let before = processes_of(bed, program, &[]);
    let container = bed.sh("while :; do echo x >/tmp/x; sleep 0.05; done").detach();
    container.expect_status("RUNNING");
    let exec = container.exec_with(&[], &["sleep", "1000"]).start();
    std::thread::sleep(Duration::from_millis(500));
    let new = processes_of(bed, program, &before);
    assert!(!new.is_empty(), "no process of {program} is new");
    kill_now(&new);
    let over =
        eventually(Duration::from_secs(15), || container.status().is_none_or(|status| status != "RUNNING"));
    assert!(over, "the task of a dead {program} is {:?}", container.status());
    let run = exec.finish();
    assert!(run.code.is_some_and(|code| code != 0), "{run}");
    bed.ctr().args(["task", "delete", "--force", &container.id]).run();
    assert_eq!(container.status(), None);
    // ctr itself forgets the FIFOs of an exec whose shim is gone.
    for entry in std::fs::read_dir(bed.containerd().fifo_dir()).into_iter().flatten().flatten() {
        std::fs::remove_dir_all(entry.path()).ok();
    }
}

fn shim_is_killed(bed: &Bed) -> Outcome {
    let program = if bed.is_caisson() { "containerd-shim-caisson-v2" } else { "containerd-shim-runc-v2" };
    with_neighbour(bed, |bed, _| kill_helper(bed, program))
}

fn sentry_is_killed(bed: &Bed) -> Outcome {
    bed.need_caisson()?;
    with_neighbour(bed, |bed, _| kill_helper(bed, "caisson-sentry"))
}

fn gofer_is_killed(bed: &Bed) -> Outcome {
    bed.need_caisson()?;
    with_neighbour(bed, |bed, _| kill_helper(bed, "caisson-gofer"))
}

fn sandbox_is_killed_while_it_starts(bed: &Bed) -> Outcome {
    bed.need_caisson()?;
    with_neighbour(bed, |bed, _| {
        for (round, program) in ["caisson-sentry", "caisson-gofer", "containerd-shim-caisson-v2"]
            .iter()
            .cycle()
            .take(12)
            .enumerate()
        {
            let before = processes_of(bed, program, &[]);
            let builder = bed.sh("sleep 1000");
            let container = builder.handle();
            let start =
                bed.ctr().args(builder.words(&["-d", "--null-io"])).limit(Duration::from_secs(40)).start();
            // A little later each time, to meet another moment of the start.
            std::thread::sleep(Duration::from_millis(20 + 15 * round as u64));
            eventually(Duration::from_secs(3), || !processes_of(bed, program, &before).is_empty());
            kill_now(&processes_of(bed, program, &before));
            let run = start.finish();
            assert!(run.code.is_some(), "`ctr run` hangs after the death of {program}: {run}");
            // The death may be noticed a moment after `ctr run` was answered: what counts is that it can be removed soon.
            let mut said = String::new();
            let gone = eventually(Duration::from_secs(15), || {
                let delete = bed.ctr().args(["task", "delete", "--force", &container.id]);
                said = delete.limit(Duration::from_secs(30)).run().to_string();
                !Path::new(&container.bundle()).exists()
            });
            assert!(gone, "a bundle is left after the death of {program} in round {round}: {run}\n{said}");
        }
    })
}
