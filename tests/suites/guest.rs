//! Differential tests: every program of `guest/manifest` on the host and in a container, and those whose names start
//! with `file_` a second time with their files on a tmpfs.

#![forbid(unsafe_code)]

use caisson_tests::bed::{Bed, Image};
use caisson_tests::guest::{self, Entry};
use caisson_tests::suite::{self, Test};
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let mut tests = Vec::new();
    for entry in guest::manifest() {
        if entry.name.starts_with("file_") {
            tests.push(compare(entry.clone(), "/dev/shm", "_on_tmpfs"));
        }
        tests.push(compare(entry, "/tmp", ""));
    }
    suite::main("guest", Bed::new, tests)
}

fn compare(entry: Entry, directory: &'static str, suffix: &str) -> Test {
    let name = format!("{}{suffix}", entry.name);
    let run = move |bed: &Bed| {
        let program = guest::build(bed, &entry.name);
        let native = guest::verdict(&guest::run_natively(bed, &program));
        let container = bed
            .container(Image::Busybox)
            .args(["sh", "-c", guest::WRAPPER, &format!("/guest/{}", entry.name)])
            .flags(["--cwd", directory])
            .bind(&guest::directory(bed), "/guest", "rbind:ro")
            .limit(Duration::from_secs(60))
            .run();
        let difference = guest::difference(&native, &guest::verdict(&container));
        match (difference, &entry.differs) {
            (None, None) => {}
            (Some(lines), None) => panic!("{} is not as on the host:{lines}\n  {container}", entry.name),
            (Some(_), Some(_)) if bed.is_caisson() => {}
            (None, Some(reason)) if bed.is_caisson() => {
                panic!("{} is as on the host, but guest/manifest says: differs {reason}", entry.name)
            }
            // What another runtime does says nothing about a list of what this one lacks.
            (_, Some(_)) => {}
        }
        Ok(())
    };
    Test { name, run: Box::new(run) }
}
