//! Many containers: at once, and one after the other.

#![forbid(unsafe_code)]

use caisson_tests::bed::Bed;
use caisson_tests::command::eventually;
use caisson_tests::leaks;
use caisson_tests::suite::{self, Outcome};
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let tests = caisson_tests::tests![ten_at_once, ten_in_the_background, two_hundred_starts_in_a_row];
    suite::main("density", Bed::new, tests)
}

fn ten_at_once(bed: &Bed) -> Outcome {
    let builders: Vec<_> =
        (0..10).map(|n| bed.sh(&format!("seq 1 50000 | tail -n 1; sleep 1; exit {n}"))).collect();
    let handles: Vec<_> = builders.iter().map(|builder| builder.handle()).collect();
    let limit = Duration::from_secs(120);
    let running: Vec<_> = builders
        .iter()
        .map(|builder| bed.ctr().args(builder.words(&["--rm"])).limit(limit).start())
        .collect();
    for (code, run) in (0..10).zip(running) {
        assert_eq!(run.finish().exited(code).stdout, "50000\n");
    }
    drop(handles);
    Ok(())
}

fn ten_in_the_background(bed: &Bed) -> Outcome {
    let containers: Vec<_> =
        (0..10).map(|_| bed.sh("trap 'exit 3' TERM; while :; do sleep 0.2; done").detach()).collect();
    for container in &containers {
        container.expect_status("RUNNING");
        assert_eq!(container.exec(&["echo", "here"]).ok(), "here\n");
    }
    // The end of one is nothing to the others.
    let (first, rest) = containers.split_first().unwrap();
    first.kill("SIGKILL").ok();
    first.expect_status("STOPPED");
    for container in rest {
        assert_eq!(container.exec(&["echo", "still"]).ok(), "still\n");
        container.kill("SIGTERM").ok();
        container.expect_status("STOPPED");
        assert_eq!(container.delete_task(), 3);
    }
    Ok(())
}

fn two_hundred_starts_in_a_row(bed: &Bed) -> Outcome {
    let mut sockets = Vec::new();
    for number in 0..200 {
        let builder = bed.sh(&format!("echo {number}; exit {}", number % 5));
        sockets.extend(leaks::shim_socket(bed, builder.id()));
        let run = builder.run().exited(number % 5);
        assert_eq!(run.stdout, format!("{number}\n"));
    }
    let left = || sockets.iter().filter(|socket| socket.exists()).count();
    assert!(eventually(Duration::from_secs(5), || left() == 0), "{} sockets of shims are left", left());
    Ok(())
}
