//! What one message costs, by socket and by fast channel, against the confined program: `cargo bench -p caisson-gofer`.

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use caisson_proto::lisafs::Request;
use caisson_proto::lisafs::request::{OpenFlags, WalkFlags};
use support::*;

const ROUNDS: u32 = 20_000;
const BATCHES: usize = 5;

fn main() {
    let dir = scratch();
    std::fs::write(dir.path().join("file"), b"x").unwrap();
    println!(
        "{:<28}{:>10}{:>10}   (median and spread of {BATCHES} batches, µs)",
        "message", "socket", "channel"
    );
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    for by_channel in [false, true] {
        let mut server = Program::default();
        let mut client = Client::new(&mut server, dir.path(), &Options::default());
        if by_channel {
            client.channel = Some(client.open_channel().unwrap());
        }
        let (root, file) = (client.root.fd, client.find("file").fd);
        let attr_only = Request::Walk { dir: root, flags: WalkFlags::ATTR_ONLY, names: vec![name("file")] };
        let donate = Request::Open { fd: file, flags: OpenFlags::READ | OpenFlags::DONATE };
        let messages = [
            ("stat", Request::Stat { fd: file }),
            ("walk, attributes", attr_only),
            ("open, donated", donate),
        ];
        for (name, request) in messages {
            let figure = measure(|| drop(client.call(&request).unwrap()));
            match rows.iter_mut().find(|row| row.0 == name) {
                Some(row) => row.1.push(figure),
                None => rows.push((name.to_owned(), vec![figure])),
            }
        }
        drop(client);
        server.join();
    }
    for (name, figures) in rows {
        println!("{name:<28}{:>16}{:>16}", figures[0], figures[1]);
    }
}

fn measure(mut act: impl FnMut()) -> String {
    let mut batches: Vec<Duration> = (0..BATCHES)
        .map(|_| {
            let start = Instant::now();
            (0..ROUNDS).for_each(|_| act());
            start.elapsed() / ROUNDS
        })
        .collect();
    batches.sort();
    let micros = |duration: Duration| duration.as_nanos() as f64 / 1000.0;
    let spread = micros(batches[BATCHES - 1]) - micros(batches[0]);
    format!("{:.2} ±{:.1}", micros(batches[BATCHES / 2]), spread / 2.0)
}
