use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use linux_raw_sys::general as linux;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::termios::{SetArg, tcgetattr, tcsetattr};

use super::control::{Apply, Flush};
use super::devpts::{self, Instance, Options};
use super::host::HostTerminal;
use super::master::Master;
use super::slave::Slave;
use super::termios::{Termios, WindowSize};
use super::*;
use crate::fs::anonymous::AnonymousInode;
use crate::fs::hostfile::poller::HostPoller;
use crate::io::{KernelDst, KernelSrc};
use crate::vfs::{File, FileSystem, OpenFlags};
use crate::wait::{WaitOutcome, Waiter};

/// A pair of ours.
struct Pair {
    tty: Arc<Tty>,
    master: Arc<File>,
    slave: Arc<File>,
    instance: Arc<Instance>,
    timers: Arc<Timers>,
    _fs: Arc<dyn FileSystem>,
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.timers.stop();
    }
}

fn pair_with(flags: OpenFlags) -> Pair {
    let timers = Timers::new();
    let fs: Arc<dyn FileSystem> = devpts::mount(Options::parse(b"").unwrap(), &timers);
    let instance = Instance::of(&fs).unwrap();
    let master = instance.create_pair(0, 0).unwrap();
    let tty = master.tty().clone();
    assert_eq!(tty.open_slave().err(), Some(Errno::EIO), "locked");
    tty.unlock();
    let slave = tty.open_slave().unwrap();
    let file = |ops| AnonymousInode::detached(ops, OpenFlags::RDWR | flags);
    Pair { master: file(Arc::new(master)), slave: file(Arc::new(slave)), tty, instance, timers, _fs: fs }
}

fn pair() -> Pair {
    pair_with(OpenFlags::NONBLOCK)
}

fn write(file: &File, data: &[u8]) -> SysResult<usize> {
    file.write(&mut KernelSrc::new(data))
}

fn read(file: &File, len: usize) -> SysResult<Vec<u8>> {
    let mut buf = vec![0; len];
    let count = file.read(&mut KernelDst::new(&mut buf))?;
    buf.truncate(count);
    Ok(buf)
}

fn read_all(file: &File) -> Vec<u8> {
    let mut all = Vec::new();
    while let Ok(data) = read(file, 4096) {
        all.extend(data);
    }
    all
}

/// A pair of the host's.
struct HostPair {
    master: OwnedFd,
    slave: OwnedFd,
}

impl HostPair {
    fn new() -> HostPair {
        let pair = nix::pty::openpty(None, None).unwrap();
        for fd in [&pair.master, &pair.slave] {
            fcntl(fd, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK)).unwrap();
        }
        HostPair { master: pair.master, slave: pair.slave }
    }

    fn apply(&self, termios: &Termios) {
        let mut raw: libc::termios = tcgetattr(&self.slave).unwrap().into();
        (raw.c_iflag, raw.c_oflag, raw.c_lflag) = (termios.input, termios.output, termios.local);
        for (host, ours) in raw.c_cc.iter_mut().zip(termios.chars) {
            *host = ours;
        }
        tcsetattr(&self.slave, SetArg::TCSANOW, &raw.into()).unwrap();
    }

    /// The host works asynchronously: waits for `expected` bytes, then a moment for more.
    fn read_output(&self, expected: usize) -> Vec<u8> {
        let limit = Instant::now() + Duration::from_secs(2);
        let mut all = Vec::new();
        loop {
            let patience = if all.len() < expected { 20u8 } else { 1 };
            let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            let ready = nix::poll::poll(&mut fds, PollTimeout::from(patience)).unwrap() > 0;
            if !ready && (all.len() >= expected || Instant::now() > limit) {
                return all;
            }
            let mut buf = [0; 4096];
            if let Ok(count) = nix::unistd::read(&self.master, &mut buf) {
                all.extend_from_slice(&buf[..count]);
            }
        }
    }

    fn wait_for_input(&self) -> bool {
        let mut fds = [PollFd::new(self.slave.as_fd(), PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, PollTimeout::from(1000u16)).unwrap() > 0
    }

    /// Raw input: as much as is expected, and whatever else is there then.
    fn read_input(&self, expected: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < expected && self.wait_for_input() {
            all.extend(self.read_line().unwrap());
        }
        all.extend(self.read_line().unwrap_or_default());
        all
    }

    fn read_line(&self) -> SysResult<Vec<u8>> {
        let mut buf = [0; 64];
        let count = nix::unistd::read(&self.slave, &mut buf)?;
        Ok(buf[..count].to_vec())
    }
}

fn show(data: &[u8]) -> String {
    data.escape_ascii().to_string()
}

/// Types and writes the same on both, and compares what is shown after each step and what is read at the end.
fn compare(termios: &Termios, steps: &[(Step, Vec<u8>)]) {
    let (ours, host) = (pair(), HostPair::new());
    ours.tty.set_termios(*termios, Apply::Now).unwrap();
    host.apply(termios);
    let context = format!("{termios:?} {steps:?}");
    for (step, data) in steps {
        match step {
            Step::Type => {
                assert_eq!(write(&ours.master, data), Ok(data.len()), "{context}");
                assert_eq!(nix::unistd::write(&host.master, data), Ok(data.len()));
            }
            Step::Write => {
                assert_eq!(write(&ours.slave, data), Ok(data.len()), "{context}");
                assert_eq!(nix::unistd::write(&host.slave, data), Ok(data.len()));
            }
        }
        let shown = read_all(&ours.master);
        let expected = host.read_output(shown.len());
        assert_eq!(show(&shown), show(&expected), "after {step:?} {} in {context}", show(data));
    }
    if termios.local & linux::ICANON == 0 {
        let found = read_all(&ours.slave);
        assert_eq!(show(&found), show(&host.read_input(found.len())), "read in {context}");
        return;
    }
    for _ in 0..20 {
        let found = read(&ours.slave, 64);
        if found.is_ok() {
            host.wait_for_input();
        }
        let expected = host.read_line();
        assert_eq!(found.as_deref().map(show), expected.as_deref().map(show), "read in {context}");
        if found.is_err() {
            return;
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Type,
    Write,
}

fn typed(text: &str) -> Vec<(Step, Vec<u8>)> {
    vec![(Step::Type, text.as_bytes().to_vec())]
}

fn with(change: impl FnOnce(&mut Termios)) -> Termios {
    let mut termios = Termios::standard();
    change(&mut termios);
    termios
}

#[test]
fn defaults_are_the_hosts() {
    let host = HostPair::new();
    let raw: libc::termios = tcgetattr(&host.slave).unwrap().into();
    let ours = Termios::standard();
    assert_eq!(
        (ours.input, ours.output, ours.control, ours.local),
        (raw.c_iflag, raw.c_oflag, raw.c_cflag, raw.c_lflag)
    );
    assert_eq!(ours.chars, raw.c_cc[..termios::NCCS]);
    assert_eq!((Termios::SHORT, Termios::LONG, size_of::<Termios>()), (36, 44, 44));
}

#[test]
fn editing_matches_the_host() {
    let standard = Termios::standard();
    let scripts = [
        "hello\n",
        "helo\x7flo\x7f\x7f\n",
        "one two  three\x17\x17x\n",
        "some text\x15other\n",
        "a\tb\x7f\x7f\x7fc\n",
        "ab\x01\x02\x7f\x7f\x7f\n",
        "\x16\x03\x16\x7fx\n",
        "abc\x12def\n",
        "abc\x04def\x04\x04",
        "\x04\n\x04x\n",
        "line\rnext\r",
        "\x7f\x15\x17\n",
        "tab\tat\tends\t\x17\x17\x17\n",
        "\x1b[A\x1bOB\n",
        "stop\x13this\x11go\n",
        "\u{e9}\u{e8}x\x7f\x7f\x7f\n",
    ];
    for script in scripts {
        compare(&standard, &typed(script));
        compare(&with(|t| t.input |= linux::IUTF8), &typed(script));
        for flag in [
            linux::ECHO,
            linux::ECHOE,
            linux::ECHOK,
            linux::ECHOKE,
            linux::ECHOCTL,
            linux::IEXTEN,
            linux::ICANON,
        ] {
            compare(&with(|t| t.local &= !flag), &typed(script));
        }
        compare(&with(|t| t.local |= linux::ECHOPRT), &typed(script));
        compare(&with(|t| t.local = linux::ICANON | linux::ECHONL), &typed(script));
    }
}

#[test]
fn output_processing_matches_the_host() {
    let texts: [&[u8]; 5] = [
        b"a\nb\r\nc\td\x08e\n",
        b"\r\rx\r\n",
        b"12345678\t9\n\t\t",
        b"mixed Case \x01\x7f\n",
        "\u{e9}\tx".as_bytes(),
    ];
    let flags = [
        0,
        linux::OPOST,
        linux::OPOST | linux::ONLCR,
        linux::OPOST | linux::ONLCR | linux::XTABS,
        linux::OPOST | linux::OCRNL | linux::ONLRET,
        linux::OPOST | linux::ONOCR,
        linux::OPOST | linux::OLCUC | linux::ONLCR,
        linux::OPOST | linux::ONLRET,
    ];
    for output in flags {
        for text in texts {
            let steps = vec![
                (Step::Write, text.to_vec()),
                (Step::Type, b"x\ty\x7f\x7f\n".to_vec()),
                (Step::Write, text.to_vec()),
            ];
            compare(&with(|t| t.output = output), &steps);
        }
    }
}

/// A deterministic generator.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }

    fn some_of(&mut self, flags: &[u32]) -> u32 {
        flags.iter().filter(|_| self.below(3) > 0).fold(0, |all, flag| all | flag)
    }
}

#[test]
fn random_typing_matches_the_host() {
    let mut random = Random(42);
    let alphabet = b"abcd XYZ_9\t\t\n\r\x7f\x7f\x15\x17\x16\x12\x04\x01\x1b\xc3\xa9\xff;";
    for _ in 0..if std::env::var_os("LONG").is_some() { 20_000 } else { 250 } {
        let termios = with(|t| {
            t.input = random.some_of(&[linux::ICRNL, linux::IXON, linux::INLCR, linux::IUTF8])
                | if random.below(8) == 0 { linux::IGNCR | linux::ISTRIP | linux::PARMRK } else { 0 };
            t.output = random.some_of(&[linux::OPOST, linux::ONLCR])
                | if random.below(5) == 0 { linux::XTABS } else { 0 };
            t.local = random.some_of(&[linux::ICANON, linux::ECHO, linux::ECHO, linux::IEXTEN])
                | random.some_of(&[linux::ECHOE, linux::ECHOK, linux::ECHOKE, linux::ECHOCTL])
                | if random.below(6) == 0 { linux::ECHOPRT | linux::ECHONL } else { 0 };
            t.chars[linux::VEOL as usize] = b';';
        });
        let steps: Vec<_> = (0..1 + random.below(4))
            .map(|_| {
                let data = (0..random.below(30)).map(|_| alphabet[random.below(alphabet.len())]).collect();
                (if random.below(5) == 0 { Step::Write } else { Step::Type }, data)
            })
            .collect();
        compare(&termios, &steps);
    }
}

#[test]
fn raw_reads_wait_for_min_and_time() {
    let p = pair_with(OpenFlags::empty());
    let raw = |min, time| {
        let termios = with(|t| {
            t.local = 0;
            t.chars[linux::VMIN as usize] = min;
            t.chars[linux::VTIME as usize] = time;
        });
        p.tty.set_termios(termios, Apply::Now).unwrap();
    };
    raw(3, 0);
    write(&p.master, b"ab").unwrap();
    assert_eq!(read(&p.slave, 10), Err(Errno::EAGAIN));
    assert!(!p.slave.poll().contains(PollEvents::IN));
    assert_eq!(read(&p.slave, 2).unwrap(), b"ab", "no more than asked for is waited for");
    write(&p.master, b"cde").unwrap();
    assert!(p.slave.poll().contains(PollEvents::IN));
    assert_eq!(read(&p.slave, 10).unwrap(), b"cde");
    raw(0, 0);
    assert_eq!(read(&p.slave, 10).unwrap(), b"");

    let wait_read = || {
        let waiter = Waiter::new();
        let _registration = p.slave.ops().wait_queue().unwrap().register(PollEvents::IN, waiter.clone());
        let start = Instant::now();
        loop {
            waiter.arm();
            match read(&p.slave, 10) {
                Err(Errno::EAGAIN) => {
                    let limit = Instant::now() + Duration::from_secs(10);
                    assert_eq!(waiter.wait(Some(limit)), WaitOutcome::Notified);
                }
                other => return (other.unwrap(), start.elapsed()),
            }
        }
    };
    raw(0, 1);
    let (data, took) = wait_read();
    assert!(data.is_empty() && took >= Duration::from_millis(100), "{took:?}");
    raw(5, 1);
    write(&p.master, b"xy").unwrap();
    let (data, took) = wait_read();
    assert_eq!(data, b"xy");
    assert!(took >= Duration::from_millis(90), "{took:?}");
}

#[test]
fn buffers_are_bounded() {
    let p = pair();
    let mut total = 0;
    while let Ok(count) = write(&p.slave, &[b'x'; 1000]) {
        total += count;
    }
    assert!((16_000..=17_000).contains(&total), "{total}");
    assert_eq!(p.slave.poll(), PollEvents::empty());
    assert!(!read(&p.master, 5000).unwrap().is_empty());
    assert!(p.slave.poll().contains(PollEvents::OUT));
    read_all(&p.master);

    // An endless line: what is beyond the limit is lost, but it can be ended.
    assert_eq!(write(&p.master, &[b'a'; 6000]), Ok(6000));
    assert_eq!(read(&p.slave, 10), Err(Errno::EAGAIN));
    assert_eq!(write(&p.master, b"\n"), Ok(1));
    let line = read(&p.slave, 10_000).unwrap();
    assert_eq!((line.len(), line.last()), (4096, Some(&b'\n')));
    read_all(&p.master);

    p.tty.set_termios(with(|t| t.local = 0), Apply::Now).unwrap();
    let mut total = 0;
    while let Ok(count) = write(&p.master, &[b'r'; 1000]) {
        total += count;
    }
    assert_eq!(total, 4095);
    assert!(!p.master.poll().contains(PollEvents::OUT));
    assert_eq!(read_all(&p.slave).len(), 4095);
    assert!(p.master.poll().contains(PollEvents::OUT));
}

#[test]
fn ends_come_and_go_as_on_the_host() {
    let p = pair();
    assert_eq!(read(&p.master, 1), Err(Errno::EAGAIN));
    assert_eq!(p.master.poll(), PollEvents::WRITABLE);
    write(&p.slave, b"last").unwrap();
    let Pair { .. } = &p;
    let slave = p.tty.open_slave().unwrap();
    drop(slave);
    assert!(!p.master.poll().contains(PollEvents::HUP), "another slave is open");
    let tty = p.tty.clone();
    let (master, slave) = (p.master.clone(), p.slave.clone());
    let instance = p.instance.clone();
    let (timers, fs) = (p.timers.clone(), p._fs.clone());
    drop(p);
    drop(slave);
    assert_eq!(master.poll(), PollEvents::READABLE | PollEvents::WRITABLE | PollEvents::HUP);
    assert_eq!(read(&master, 10).unwrap(), b"last");
    assert_eq!(read(&master, 10), Err(Errno::EIO));
    let slave = AnonymousInode::detached(Arc::new(tty.open_slave().unwrap()), OpenFlags::RDWR);
    assert_eq!(read(&master, 10), Err(Errno::EAGAIN));
    assert!(instance.node(0).is_some());
    drop(master);
    assert!(instance.node(0).is_none());
    assert_eq!(read(&slave, 10).unwrap(), b"");
    assert_eq!(write(&slave, b"x"), Err(Errno::EIO));
    assert!(slave.poll().contains(PollEvents::HUP | PollEvents::ERR | PollEvents::IN | PollEvents::OUT));
    assert_eq!(tty.open_slave().err(), Some(Errno::EIO));
    drop((timers, fs));
}

#[test]
fn signal_characters_flush_and_echo() {
    let p = pair();
    let mut effects = Effects::default();
    p.tty.lock().line.receive(b"abc\x03d\x1a\x1c", &mut effects);
    assert_eq!(effects.signals, [Signal::INT, Signal::TSTP, Signal::QUIT]);
    assert!(effects.flushed);
    assert_eq!(read_all(&p.master), b"^\\", "earlier echoes are flushed");
    write(&p.master, b"\n").unwrap();
    assert_eq!(read(&p.slave, 10).unwrap(), b"\n");
    p.tty.set_termios(with(|t| t.local |= linux::NOFLSH), Apply::Now).unwrap();
    write(&p.master, b"ab\x03c\n").unwrap();
    assert_eq!(read(&p.slave, 10).unwrap(), b"abc\n");
}

#[test]
fn flow_control_and_packet_mode() {
    let p = pair();
    p.tty.lock().packet_mode = true;
    write(&p.slave, b"one").unwrap();
    assert_eq!(read(&p.master, 10).unwrap(), b"\0one");
    write(&p.master, b"\x13").unwrap();
    assert!(p.master.poll().contains(PollEvents::PRI));
    assert_eq!(read(&p.master, 10).unwrap(), [linux::TIOCPKT_STOP as u8]);
    assert_eq!(write(&p.slave, b"two"), Err(Errno::EAGAIN));
    assert!(!p.slave.poll().contains(PollEvents::OUT));
    write(&p.master, b"q").unwrap();
    assert_eq!(read(&p.master, 10), Err(Errno::EAGAIN), "echo is held back");
    write(&p.master, b"\x11").unwrap();
    assert_eq!(read(&p.master, 10).unwrap(), [linux::TIOCPKT_START as u8]);
    assert_eq!(read(&p.master, 10).unwrap(), b"\0q");
    p.tty.flow(u64::from(linux::TCOOFF)).unwrap();
    write(&p.master, b"\x11").unwrap();
    assert_eq!(write(&p.slave, b"x"), Err(Errno::EAGAIN), "^Q does not undo TCOOFF");
    p.tty.flow(u64::from(linux::TCOON)).unwrap();
    assert_eq!(write(&p.slave, b"x"), Ok(1));
    p.tty.flush(Flush::Both).unwrap();
    let status = read(&p.master, 10).unwrap();
    assert_ne!(u32::from(status[0]) & (linux::TIOCPKT_FLUSHREAD | linux::TIOCPKT_FLUSHWRITE), 0);
    assert_eq!(read(&p.master, 10), Err(Errno::EAGAIN));
}

#[test]
fn switching_modes_keeps_what_was_typed() {
    let p = pair();
    let (canonical, raw) = (Termios::standard(), with(|t| t.local = 0));
    write(&p.master, b"abc").unwrap();
    assert_eq!(read(&p.slave, 10), Err(Errno::EAGAIN));
    p.tty.set_termios(raw, Apply::Now).unwrap();
    assert_eq!(read(&p.slave, 2).unwrap(), b"ab");
    p.tty.set_termios(canonical, Apply::Now).unwrap();
    assert_eq!(read(&p.slave, 10).unwrap(), b"c", "readable although no line was ended");
    write(&p.master, b"gone\n").unwrap();
    p.tty.set_termios(raw, Apply::AfterFlush).unwrap();
    assert_eq!(read(&p.slave, 10), Err(Errno::EAGAIN));
}

#[test]
fn devpts_numbers_and_names() {
    let timers = Timers::new();
    assert_eq!(Options::parse(b"bogus=1"), Err(Errno::EINVAL));
    let options = Options::parse(b"newinstance,ptmxmode=0666,mode=0620,gid=5,max=2").unwrap();
    let fs: Arc<dyn FileSystem> = devpts::mount(options, &timers);
    let root = fs.root().unwrap();
    let instance = Instance::of(&fs).unwrap();
    let first = instance.create_pair(1000, 1000).unwrap();
    let second = instance.create_pair(1000, 1000).unwrap();
    assert_eq!((first.tty().index(), second.tty().index()), (0, 1));
    assert_eq!(instance.create_pair(0, 0).err(), Some(Errno::ENOSPC));
    let attr = root.lookup(b"1").unwrap().attr().unwrap();
    assert_eq!((attr.mode, attr.uid, attr.gid, attr.rdev.major, attr.rdev.minor), (0o620, 1000, 5, 136, 1));
    assert_eq!(root.lookup(b"ptmx").unwrap().attr().unwrap().mode, 0o666);
    for name in [&b"2"[..], b"01", b"+1", b"x"] {
        assert_eq!(root.lookup(name).err(), Some(Errno::ENOENT));
    }
    drop(first);
    assert!(root.lookup(b"0").is_err());
    assert_eq!(instance.create_pair(0, 0).unwrap().tty().index(), 0);
    let weak = Arc::downgrade(second.tty());
    drop(second);
    assert!(weak.upgrade().is_none(), "a closed pair is freed");
}

#[test]
fn host_terminal_copies_both_ways() {
    let p = pair();
    let poller = HostPoller::new().unwrap();
    let (input_read, input_write) = nix::unistd::pipe().unwrap();
    let (output_read, output_write) = nix::unistd::pipe().unwrap();
    let master: Master = p.instance.create_pair(0, 0).unwrap();
    let window = WindowSize { rows: 24, columns: 80, ..WindowSize::default() };
    let terminal = HostTerminal::new(master, &poller, Some(input_read), Some(output_write), window).unwrap();
    let slave: Slave = terminal.tty().open_slave().unwrap();
    let slave = AnonymousInode::detached(Arc::new(slave), OpenFlags::RDWR | OpenFlags::NONBLOCK);
    assert_eq!(terminal.tty().window(), window);
    nix::unistd::write(&input_write, b"typed\n").unwrap();
    let waiter = Waiter::new();
    let registration = slave.ops().wait_queue().unwrap().register(PollEvents::IN, waiter.clone());
    let limit = || Some(Instant::now() + Duration::from_secs(10));
    while !slave.poll().contains(PollEvents::IN) {
        assert_eq!(waiter.wait(limit()), WaitOutcome::Notified);
    }
    drop(registration);
    assert_eq!(read(&slave, 100).unwrap(), b"typed\n");

    // More than the host's pipe and the pair's buffer hold together.
    let reader = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut std::fs::File::from(output_read), &mut text).unwrap();
        text
    });
    let waiter = Waiter::new();
    let registration = slave.ops().wait_queue().unwrap().register(PollEvents::OUT, waiter.clone());
    let text = vec![b'z'; 200_000];
    let mut rest = &text[..];
    while !rest.is_empty() {
        waiter.arm();
        match write(&slave, rest) {
            Ok(count) => rest = &rest[count..],
            Err(_) => assert_eq!(waiter.wait(limit()), WaitOutcome::Notified),
        }
    }
    drop(registration);
    assert!(terminal.drain(Duration::from_secs(10)));
    terminal.resize(50, 100);
    assert_eq!(terminal.tty().window().rows, 50);
    terminal.close_input();
    drop(terminal);
    assert_eq!(read(&slave, 1).unwrap(), b"", "hung up");
    let shown = reader.join().unwrap();
    assert_eq!(shown.len(), b"typed\r\n".len() + text.len());
    assert!(shown.starts_with(b"typed\r\nzzz"));
}
