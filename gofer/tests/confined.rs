//! What the running program may still do, read from `/proc`; how it ends; and which of its rules nothing needs.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use caisson_gofer::confine::rules::RULES;
use caisson_proto::lisafs::launch::{GoferConfig, GoferMount, Root};
use support::*;

fn status(pid: u32, key: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_once(':').unwrap().1.trim().to_owned()
}

#[test]
fn little_is_left_to_do() {
    let dir = scratch();
    fs::write(dir.path().join("file"), b"x").unwrap();
    let mut server = Program::default();
    let mut client = Client::new(&mut server, dir.path(), &Options::default());
    client.stat(client.root.fd).unwrap();
    let pid = server.children[0].id();
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    assert_eq!(status(pid, "Seccomp:"), "2");
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETFCAP, as far as we have them ourselves.
    let ours = u64::from_str_radix(&status(std::process::id(), "CapPrm"), 16).unwrap();
    let keeps = ours & (1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 31);
    for set in ["CapEff", "CapPrm"] {
        assert_eq!(status(pid, set), format!("{keeps:016x}"), "{set}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(status(pid, set), "0000000000000000", "{set}");
    }
    if is_root() {
        assert_eq!(status(pid, "CapBnd"), format!("{keeps:016x}"));
    }
    // Its connection, its root, proc, standard error.
    let deadline = Instant::now() + Duration::from_secs(5);
    while fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() > 4 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let targets: Vec<_> = open.map(|fd| fs::read_link(fd.unwrap().path()).unwrap_or_default()).collect();
    assert_eq!(targets.len(), 4, "{targets:?}");
    drop(client);
    server.join();
}

#[test]
fn it_ends_with_its_last_connection() {
    let dir = scratch();
    let ((server_a, client_a), (server_b, client_b)) = (pair(), pair());
    let mount = |socket: &dyn AsRawFd| GoferMount {
        socket_fd: socket.as_raw_fd(),
        root: Some(Root::Path(dir.path().to_str().unwrap().to_owned())),
        ..GoferMount::default()
    };
    let config = GoferConfig { mounts: vec![mount(&server_a), mount(&server_b)], ..GoferConfig::default() };
    let mut child = spawn(&[], &config, &[server_a.as_fd(), server_b.as_fd()]);
    drop((server_a, server_b));
    let (a, mut b) = (Client::mount(client_a), Client::mount(client_b));
    drop(a);
    std::thread::sleep(Duration::from_millis(50));
    assert!(child.try_wait().unwrap().is_none(), "one connection is left");
    b.stat(b.root.fd).unwrap();
    drop(b);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_killed_gofer_hangs_up() {
    let dir = scratch();
    let mut server = Program::default();
    let client = Client::new(&mut server, dir.path(), &Options::default());
    let child = &mut server.children[0];
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(receive_raw(&client.socket).is_none());
}

#[test]
fn it_dies_with_its_parent() {
    let dir = scratch();
    let (server, client) = pair();
    // A shell that starts it and is killed: what is left would keep the connection open.
    let config = GoferConfig {
        mounts: vec![GoferMount {
            socket_fd: server.as_raw_fd(),
            root: Some(Root::Path(dir.path().to_str().unwrap().to_owned())),
            ..GoferMount::default()
        }],
        ..GoferConfig::default()
    };
    let wrapper = ["sh", "-c", "\"$@\"; true", "sh"].map(str::to_owned);
    let mut shell = spawn(&wrapper, &config, &[server.as_fd()]);
    drop(server);
    let client = Client::mount(client);
    shell.kill().unwrap();
    shell.wait().unwrap();
    assert!(receive_raw(&client.socket).is_none(), "the gofer is gone, too");
}

/// Runs the program with a broken configuration and returns what it says.
fn refusal(config: &[u8]) -> String {
    let (read, write) = rustix::pipe::pipe().unwrap();
    rustix::io::fcntl_setfd(&read, rustix::io::FdFlags::empty()).unwrap();
    rustix::io::write(&write, config).unwrap();
    drop(write);
    let output = Command::new(env!("CARGO_BIN_EXE_caisson-gofer"))
        .args(["--config-fd", &read.as_raw_fd().to_string()])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_broken_configuration_is_told_in_a_line() {
    use prost::Message;
    assert!(refusal(b"\xff\xff\xff").contains("decoding the configuration"));
    assert!(refusal(b"").contains("lacks mounts"));
    let mount = |socket_fd, root| GoferMount {
        socket_fd,
        destination: "/data".into(),
        root,
        ..GoferMount::default()
    };
    let config = |mount| GoferConfig { mounts: vec![mount], ..GoferConfig::default() }.encode_to_vec();
    assert!(refusal(&config(mount(0, None))).contains("the root of mount /data"));
    let nowhere = Some(Root::Path("/does/not/exist".into()));
    assert!(refusal(&config(mount(0, nowhere))).contains("/data: opening the root: No such file"));
    assert!(refusal(&config(mount(987, Some(Root::Path("/".into()))))).contains("descriptor 987"));
    assert!(refusal(&config(mount(0, Some(Root::Fd(0))))).contains("given twice"));
    for line in [refusal(b""), refusal(b"\xff")] {
        assert_eq!(line.trim_end().lines().count(), 1, "{line}");
    }
}

/// Rules that the suite's workload below does not get to, and why they are there all the same.
const UNUSED: &[(&str, &str)] = &[
    ("restart_syscall", "only when the process is stopped in a timed wait"),
    ("rt_sigreturn", "only when a signal is caught"),
    ("rt_sigaction", "only on the way to an abort"),
    ("getpid", "only on the way to an abort"),
    ("tgkill", "only on the way to an abort"),
    ("sched_yield", "only under contention"),
    ("clock_nanosleep", "only while a channel's thread ends"),
    ("brk", "whether the heap grows is the allocator's business"),
    ("mremap", "whether a block moves is the allocator's business"),
    ("madvise", "whether a stack is given back is the C library's business"),
    ("getrandom", "whether the allocator wants randomness is its business"),
    ("read", "whether a thread's heap shrinks is the allocator's business"),
    ("mprotect", "whether a thread's heap grows is the allocator's business"),
    ("rseq", "older C libraries do without"),
    ("fsync", "in the workload, but file systems may be spared it by the suite's settings"),
];

/// Every message once, and the program's end.
fn workload(client: &mut Client, dir: &Path) {
    use caisson_proto::lisafs::request::*;
    use caisson_proto::lisafs::*;
    let root = client.root.fd;
    let (file, _) = client.create(root, "f").unwrap();
    let both = OpenFlags::READ | OpenFlags::WRITE;
    let kept = client.keep(file.fd, both).unwrap();
    let _ = client.call(&Request::Open { fd: file.fd, flags: both | OpenFlags::KEEP | OpenFlags::DONATE });
    let x = XattrName::new(b"user.x").unwrap();
    let new = mine(0o6700);
    let target = LinkTarget::new(b"t").unwrap();
    let set = SetAttr {
        size: Some(3),
        uid: Some(my_ids().uid()),
        permissions: Some(0o600),
        mtime: SetTime::Now,
        ..SetAttr::default()
    };
    let all = [
        Request::Mkdir { dir: root, name: name("d"), new },
        Request::Mknod { dir: root, name: name("p"), kind: FileKind::Fifo, rdev: Device::default(), new },
        Request::Symlink { dir: root, name: name("s"), target, owner: new.owner },
        Request::Link { dir: root, name: name("l"), target: file.fd },
        Request::Rename {
            old_dir: root,
            old_name: name("l"),
            new_dir: root,
            new_name: name("m"),
            flags: RenameFlags::empty(),
        },
        Request::Unlink { dir: root, name: name("m"), kind: UnlinkKind::File },
        Request::SetAttr { fd: file.fd, set },
        Request::StatFs { fd: root },
        Request::SyncFs { fd: root },
        Request::SetXattr { fd: file.fd, name: x, value: b"v", flags: XattrFlags::empty() },
        Request::GetXattr { fd: file.fd, name: x },
        Request::ListXattr { fd: file.fd },
        Request::RemoveXattr { fd: file.fd, name: x },
        Request::Write { fd: kept, offset: 0, data: b"data" },
        Request::Read { fd: kept, offset: 0, length: 4 },
        Request::Fallocate { fd: kept, mode: AllocateMode::empty(), offset: 0, length: 10 },
        Request::Fsync { fds: vec![kept] },
        Request::Flush { fd: kept },
    ];
    for request in &all {
        if let Err(errno) = client.call(request) {
            assert_eq!(errno, rustix::io::Errno::OPNOTSUPP, "{request:?}");
        }
    }
    let channel = client.open_channel().unwrap();
    channel.call(1, &Request::Stat { fd: root }).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    channel.call(2, &Request::Stat { fd: root }).unwrap();
    let link = client.find("s").fd;
    client.call(&Request::ReadLink { fd: link }).unwrap();
    client.list(root, 1024).unwrap();
    let dir_fd = client.keep(root, OpenFlags::READ).unwrap();
    let (payload, _) = client.call(&Request::ReadDir { fd: dir_fd, position: 0, max: 1024 }).unwrap();
    assert!(!payload.is_empty());
    client.call(&Request::ReadDir { fd: dir_fd, position: 0, max: 1024 }).unwrap();
    let bind = Request::Bind { dir: root, name: name("b"), kind: SocketKind::Stream, new };
    let bound = reply::Created::parse(&client.call(&bind).unwrap().0).unwrap();
    client.call(&Request::Listen { fd: bound.open.unwrap(), backlog: 1 }).unwrap();
    client.call(&Request::Connect { fd: bound.node, kind: SocketKind::Stream }).unwrap();
    client.call(&Request::Accept { fd: bound.open.unwrap() }).unwrap();
    assert!(dir.join("b").exists());
}

#[test]
fn no_rule_is_there_for_nothing() {
    if Command::new("strace").arg("-V").output().is_err() {
        eprintln!("skipped: no strace");
        return;
    }
    let (dir, logs) = (scratch(), scratch());
    let log = logs.path().join("log");
    let wrapper = ["strace", "-f", "-qq", "-o", log.to_str().unwrap()].map(str::to_owned).to_vec();
    let mut server = Program { wrapper, ..Program::default() };
    use caisson_proto::lisafs::reply::MountFlags;
    let mut client =
        Client::new(&mut server, dir.path(), &with_flags(MountFlags::BIND | MountFlags::CONNECT));
    workload(&mut client, dir.path());
    drop(client);
    server.join();
    let text = fs::read_to_string(&log).unwrap();
    // Only what comes behind the filter counts.
    let filter =
        text.rfind("SECCOMP_SET_MODE_FILTER").or_else(|| text.rfind("PR_SET_SECCOMP")).expect("a filter");
    let used: BTreeSet<&str> = text[filter..]
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(' ')?.1.trim_start().split_once('(').map(|(name, _)| name))
        .collect();
    let ruled: BTreeSet<&str> = RULES.iter().map(|rule| rule.name).collect();
    let excused: BTreeSet<&str> = UNUSED.iter().map(|(name, _)| *name).collect();
    let idle: Vec<_> = ruled.difference(&used).filter(|name| !excused.contains(**name)).collect();
    assert!(idle.is_empty(), "never used: {idle:?}");
    let stale: Vec<_> = excused.difference(&ruled).collect();
    assert!(stale.is_empty(), "excused but not ruled: {stale:?}");
}
