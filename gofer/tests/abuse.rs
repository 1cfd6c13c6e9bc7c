//! A hostile client: whatever it sends, it gets an errno, its connection lives on, other connections do not notice, nothing
//! outside the root is seen or touched, and nothing is left over when it goes.

mod support;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use caisson_proto::lisafs::reply::{MountFlags, Opened, WalkEnd, Walked};
use caisson_proto::lisafs::request::*;
use caisson_proto::lisafs::*;
use rustix::io::Errno;
use rustix::net::Shutdown;
use support::*;

/// A served directory beside one that is not served, a hostile client, and a bystander.
struct Attack {
    client: Client,
    bystander: Client,
    served: PathBuf,
    outside: PathBuf,
}

fn attack(options: &Options, run: impl Fn(&mut Attack)) {
    let with = |server: &mut dyn Server| {
        let dir = scratch();
        let (served, outside) = (dir.path().join("served"), dir.path().join("outside"));
        fs::create_dir(&served).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), b"secret").unwrap();
        fs::write(served.join("file"), b"file").unwrap();
        let client = Client::new(server, &served, options);
        let bystander = Client::new(server, &served, options);
        let mut attack = Attack { client, bystander, served, outside };
        run(&mut attack);
        attack.bystander.find("file");
        assert_eq!(fs::read(attack.outside.join("secret")).unwrap(), b"secret");
        assert_eq!(fs::read_dir(&attack.outside).unwrap().count(), 1);
    };
    let mut library = InProcess::default();
    with(&mut library);
    library.join();
    let mut program = Program::default();
    with(&mut program);
    program.join();
}

/// Sends raw bytes and returns the errno of the reply.
fn answer(client: &Client, bytes: &[u8]) -> u16 {
    send_raw(&client.socket, bytes, &[]).unwrap();
    receive_raw(&client.socket).expect("a reply").0.errno
}

fn errno(errno: Errno) -> u16 {
    errno.raw_os_error() as u16
}

#[test]
fn broken_frames_get_an_answer() {
    attack(&Options::default(), |a| {
        let good = packet(7, &Request::Stat { fd: a.client.root.fd });
        for length in 1..good.len() {
            assert_eq!(answer(&a.client, &good[..length]), errno(Errno::BADMSG), "cut to {length}");
        }
        let mut longer = good.clone();
        longer.push(0);
        assert_eq!(answer(&a.client, &longer), errno(Errno::BADMSG));
        let mut lies = good.clone();
        lies[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(answer(&a.client, &lies), errno(Errno::BADMSG));
        assert_eq!(answer(&a.client, &vec![0xff; MAX_MESSAGE + 1000]), errno(Errno::BADMSG), "too long");
        let last = *MessageId::ALL.last().unwrap() as u16;
        for unknown in [0, last + 1, 99, u16::MAX] {
            let header = Header { length: 0, message: unknown, errno: 0, tag: 1, fds: 0 };
            assert_eq!(answer(&a.client, &header.to_bytes()), errno(Errno::NOSYS));
        }
        a.client.stat(a.client.root.fd).unwrap();
    });
}

#[test]
fn nothing_goes_before_the_mount() {
    let dir = scratch();
    let mut server = InProcess::default();
    let socket = server.connect(dir.path(), &Options::default());
    let ask = |request: &Request<'_>| {
        send_raw(&socket, &packet(1, request), &[]).unwrap();
        receive_raw(&socket).unwrap().0.errno
    };
    for raw in [1, 1 << 32, u64::MAX] {
        assert_eq!(ask(&Request::Stat { fd: FdId::new(raw).unwrap() }), errno(Errno::NOTCONN));
    }
    assert_eq!(ask(&Request::Channel), errno(Errno::NOTCONN));
    let small = Request::Mount { version: VERSION, max_message: 16 };
    assert_eq!(ask(&small), errno(Errno::MSGSIZE));
    assert_eq!(ask(&Request::Mount { version: VERSION, max_message: u32::MAX }), 0);
    drop(socket);
    server.join();
}

/// A request for a creation with a name of the attacker's, which the client's own types would not let through.
fn with_raw_name(dir: FdId, raw: &[u8]) -> Vec<u8> {
    let mut payload = Vec::new();
    Request::Mkdir { dir, name: name("x"), new: mine(0o755) }.encode(&mut payload);
    payload.truncate(payload.len() - 3);
    payload.extend_from_slice(&(raw.len() as u16).to_le_bytes());
    payload.extend_from_slice(raw);
    let message = MessageId::Mkdir as u16;
    let header = Header { length: payload.len() as u32, message, errno: 0, tag: 1, fds: 0 };
    [header.to_bytes().as_slice(), &payload].concat()
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    attack(&Options::default(), |a| {
        let root = a.client.root.fd;
        for bad in [&b""[..], b".", b"..", b"/", b"../outside/x", b"a/b", b"/tmp/x", b"x\0", b"\0"] {
            assert_eq!(answer(&a.client, &with_raw_name(root, bad)), errno(Errno::INVAL), "{bad:?}");
        }
        assert_eq!(answer(&a.client, &with_raw_name(root, &[b'x'; 256])), errno(Errno::NAMETOOLONG));
        assert_eq!(answer(&a.client, &with_raw_name(root, &[b'x'; 255])), 0);
        // Dots that are names.
        for good in [&b"..."[..], b"..x", b".x", b"-"] {
            assert_eq!(answer(&a.client, &with_raw_name(root, good)), 0, "{good:?}");
        }
    });
}

#[test]
fn links_are_never_followed() {
    attack(&Options::default(), |a| {
        let root = a.client.root.fd;
        let outside = a.outside.to_str().unwrap();
        let links = [("absolute", outside), ("relative", "../outside"), ("loop", "loop"), ("up", "..")];
        for (link, target) in links {
            let target = LinkTarget::new(target.as_bytes()).unwrap();
            let request = Request::Symlink { dir: root, name: name(link), target, owner: my_ids() };
            let node = a.client.node(&request).unwrap();
            assert_eq!(node.attr.kind, FileKind::Symlink);
            assert_eq!(a.client.walk(root, &format!("{link}/secret")).unwrap_err(), Errno::LOOP);
            assert_eq!(a.client.walk(node.fd, "secret").unwrap_err(), Errno::LOOP);
            assert_eq!(a.client.keep(node.fd, OpenFlags::READ).unwrap_err(), Errno::LOOP);
            assert_eq!(a.client.donate(node.fd, OpenFlags::READ).err(), Some(Errno::LOOP));
            let inside = |name| Request::Mkdir { dir: node.fd, name, new: mine(0o755) };
            assert!(a.client.call(&inside(name("x"))).is_err());
            let create = Request::Create {
                dir: root,
                name: name(link),
                flags: OpenFlags::WRITE | OpenFlags::KEEP,
                new: mine(0o644),
            };
            assert_eq!(a.client.fails(&create), Errno::EXIST);
            let remove = Request::Unlink { dir: node.fd, name: name("secret"), kind: UnlinkKind::File };
            assert!(a.client.call(&remove).is_err());
            let into = Request::Rename {
                old_dir: root,
                old_name: name("file"),
                new_dir: node.fd,
                new_name: name("x"),
                flags: RenameFlags::empty(),
            };
            assert!(a.client.call(&into).is_err());
            let truncate = SetAttr { size: Some(0), ..SetAttr::default() };
            assert!(a.client.call(&Request::SetAttr { fd: node.fd, set: truncate }).is_err());
        }
    });
}

#[test]
fn a_directory_swapped_for_a_link_during_walks_leads_nowhere() {
    let dir = scratch();
    let (served, outside) = (dir.path().join("served"), dir.path().join("outside"));
    fs::create_dir_all(served.join("real")).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(served.join("real/secret"), b"inside").unwrap();
    fs::write(outside.join("secret"), b"outside").unwrap();
    symlink(&outside, served.join("evil")).unwrap();
    symlink("../outside", served.join("evil2")).unwrap();
    let mut server = InProcess::default();
    let mut client = Client::new(&mut server, &served, &Options::default());
    let stop = Arc::new(AtomicBool::new(false));
    let swapper = std::thread::spawn({
        let (stop, served) = (Arc::clone(&stop), served.clone());
        move || {
            let root = fs::File::open(&served).unwrap();
            while !stop.load(Ordering::Relaxed) {
                for evil in ["evil", "evil2"] {
                    let exchange = rustix::fs::RenameFlags::EXCHANGE;
                    rustix::fs::renameat_with(&root, "real", &root, evil, exchange).unwrap();
                    rustix::fs::renameat_with(&root, "real", &root, evil, exchange).unwrap();
                }
            }
        }
    });
    let (end, root) = (Instant::now() + Duration::from_secs(1), client.root.fd);
    let (mut found, mut stopped) = (0, 0);
    while Instant::now() < end {
        match client.walk(root, "real/secret") {
            Ok(file) => {
                let open = client.donate(file.fd, OpenFlags::READ).unwrap();
                let mut bytes = [0; 16];
                let count = rustix::io::pread(&open, &mut bytes, 0).unwrap();
                assert_eq!(&bytes[..count], b"inside");
                found += 1;
                client.call(&Request::Close { fds: vec![file.fd] }).unwrap();
            }
            Err(Errno::LOOP) => stopped += 1,
            Err(errno) => panic!("{errno}"),
        }
        // Every walk leaves the directory's id behind: start over when there is no room.
        if server.sessions[0].objects() > 4000 {
            drop(std::mem::replace(&mut client, Client::new(&mut server, &served, &Options::default())));
            server.sessions.rotate_left(1);
        }
    }
    stop.store(true, Ordering::Relaxed);
    swapper.join().unwrap();
    assert!(found > 10 && stopped > 10, "the race was on: {found} {stopped}");
    drop(client);
    server.join();
}

#[test]
fn ids_are_worth_nothing_elsewhere_or_afterwards() {
    attack(&Options::default(), |a| {
        let file = a.client.find("file").fd;
        a.client.call(&Request::Close { fds: vec![file, file] }).unwrap();
        assert_eq!(a.client.stat(file), Err(Errno::BADF));
        let next = a.client.find("file").fd;
        assert_ne!(file, next);
        assert_eq!(a.client.stat(file), Err(Errno::BADF), "its slot is used again");
        // The other connection's ids: what it holds under the same number, or nothing.
        fs::create_dir(a.served.join("theirs")).unwrap();
        let ids: Vec<_> = (0..50).map(|_| a.bystander.find("theirs").fd).collect();
        let rename = Request::Rename {
            old_dir: a.client.root.fd,
            old_name: name("file"),
            new_dir: ids[49],
            new_name: name("x"),
            flags: RenameFlags::empty(),
        };
        assert_eq!(a.client.fails(&rename), Errno::BADF);
        assert_eq!(
            a.client.fails(&Request::Link { dir: a.client.root.fd, name: name("y"), target: ids[49] }),
            Errno::BADF
        );
        // The root stays.
        a.client.call(&Request::Close { fds: vec![a.client.root.fd] }).unwrap();
        a.client.stat(a.client.root.fd).unwrap();
    });
}

/// One request of every kind that takes an id, with this id.
fn requests(fd: FdId, dir: FdId) -> Vec<Request<'static>> {
    let (name, new) = (name("n"), mine(0o644));
    let x = XattrName::new(b"user.x").unwrap();
    let target = LinkTarget::new(b"t").unwrap();
    vec![
        Request::Walk { dir: fd, flags: WalkFlags::empty(), names: vec![name] },
        Request::Walk { dir: fd, flags: WalkFlags::empty(), names: vec![] },
        Request::Stat { fd },
        Request::SetAttr { fd, set: SetAttr { size: Some(1), ..SetAttr::default() } },
        Request::SetAttr {
            fd,
            set: SetAttr { permissions: Some(0o700), mtime: SetTime::Now, ..SetAttr::default() },
        },
        Request::Open { fd, flags: OpenFlags::READ | OpenFlags::DONATE },
        Request::Open { fd, flags: OpenFlags::READ | OpenFlags::WRITE | OpenFlags::KEEP },
        Request::Create { dir: fd, name, flags: OpenFlags::READ | OpenFlags::KEEP, new },
        Request::CreateUnnamed { dir: fd, flags: OpenFlags::WRITE | OpenFlags::KEEP, new },
        Request::Mkdir { dir: fd, name, new },
        Request::Mknod { dir: fd, name, kind: FileKind::Fifo, rdev: Device::default(), new },
        Request::Symlink { dir: fd, name, target, owner: new.owner },
        Request::Link { dir: fd, name, target: fd },
        Request::Link { dir, name, target: fd },
        Request::Unlink { dir: fd, name, kind: UnlinkKind::File },
        Request::Unlink { dir: fd, name, kind: UnlinkKind::Directory },
        Request::Rename {
            old_dir: fd,
            old_name: name,
            new_dir: dir,
            new_name: name,
            flags: RenameFlags::empty(),
        },
        Request::Rename {
            old_dir: dir,
            old_name: name,
            new_dir: fd,
            new_name: name,
            flags: RenameFlags::EXCHANGE,
        },
        Request::ReadDir { fd, position: 0, max: 1024 },
        Request::ReadDir { fd, position: i64::MAX as u64, max: 1024 },
        Request::ReadDir { fd, position: u64::MAX, max: 65536 },
        Request::List { fd, max: 1024 },
        Request::List { fd, max: 65536 },
        Request::ReadDirPlus { fd, position: 0, count: PLUS_MAX, flags: PlusFlags::all() },
        Request::ReadDirPlus { fd, position: u64::MAX, count: 1, flags: PlusFlags::empty() },
        Request::ReadLink { fd },
        Request::GetXattr { fd, name: x },
        Request::SetXattr { fd, name: x, value: b"v", flags: XattrFlags::empty() },
        Request::ListXattr { fd },
        Request::RemoveXattr { fd, name: x },
        Request::Fsync { fds: vec![fd; 3] },
        Request::Fallocate { fd, mode: AllocateMode::PUNCH_HOLE, offset: 0, length: 1 },
        Request::Fallocate {
            fd,
            mode: AllocateMode::empty(),
            offset: i64::MAX as u64,
            length: i64::MAX as u64,
        },
        Request::Flush { fd },
        Request::StatFs { fd },
        Request::SyncFs { fd },
        Request::Connect { fd, kind: SocketKind::Stream },
        Request::Bind { dir: fd, name, kind: SocketKind::Datagram, new },
        Request::Listen { fd, backlog: u32::MAX },
        Request::Accept { fd },
        Request::Read { fd, offset: i64::MAX as u64, length: 65536 },
        Request::Write { fd, offset: i64::MAX as u64, data: b"x" },
        Request::Close { fds: vec![fd] },
    ]
}

#[test]
fn every_message_with_every_kind_of_id() {
    attack(&with_flags(MountFlags::BIND | MountFlags::CONNECT), |a| {
        let root = a.client.root.fd;
        fs::create_dir(a.served.join("dir")).unwrap();
        symlink("file", a.served.join("link")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, a.served.join("fifo"), rustix::fs::Mode::RUSR).unwrap();
        let sockets = ["sock0", "sock1"].map(|n| {
            let new = mine(0o600);
            let (payload, _) = a
                .client
                .call(&Request::Bind { dir: root, name: name(n), kind: SocketKind::Stream, new })
                .unwrap();
            reply::Created::parse(&payload).unwrap()
        });
        for count in 0..requests(root, root).len() {
            let kept = |client: &mut Client, path, flags| {
                let fd = client.find(path).fd;
                client.keep(fd, flags).unwrap()
            };
            let ids = [
                a.client.find("dir").fd,
                a.client.find("file").fd,
                a.client.find("link").fd,
                a.client.find("fifo").fd,
                kept(&mut a.client, "file", OpenFlags::READ),
                kept(&mut a.client, "dir", OpenFlags::READ),
                sockets[0].node,
                sockets[1].open.unwrap(),
                FdId::new(u64::MAX).unwrap(),
            ];
            for fd in ids {
                // Any answer will do; that there is one is the point.
                let _ = a.client.call(&requests(fd, root)[count]);
            }
            let mut used = ids.to_vec();
            used.truncate(6);
            a.client.call(&Request::Close { fds: used }).unwrap();
            let unlink = |kind| Request::Unlink { dir: root, name: name("n"), kind };
            let _ = a.client.call(&unlink(UnlinkKind::File));
            let _ = a.client.call(&unlink(UnlinkKind::Directory));
        }
        a.client.stat(root).unwrap();
    });
}

#[test]
fn a_million_opens_end_in_an_error() {
    let options = Options { objects: 500, ..Options::default() };
    let dir = scratch();
    fs::write(dir.path().join("file"), b"x").unwrap();
    let opens: u32 = 1_000_000;
    let mut server = InProcess::default();
    let mut client = Client::new(&mut server, dir.path(), &options);
    let mut bystander = Client::new(&mut server, dir.path(), &options);
    let fd = client.find("file").fd;
    // Without waiting for the answers: a million round trips would only test patience.
    let socket = client.socket.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        for tag in 0..opens {
            let request = Request::Open { fd, flags: OpenFlags::READ | OpenFlags::KEEP };
            send_raw(&socket, &packet(tag, &request), &[]).unwrap();
        }
    });
    let (mut opened, mut refused) = (0, 0);
    for tag in 0..opens {
        let (header, payload, _) = receive_raw(&client.socket).unwrap();
        assert_eq!(header.tag, tag);
        match header.errno {
            0 => opened += u32::from(Opened::parse(&payload).unwrap().fd.is_some()),
            code => {
                assert_eq!(code, errno(Errno::MFILE));
                refused += 1;
            }
        }
    }
    sender.join().unwrap();
    assert_eq!(opened + refused, opens);
    assert!(opened < 500);
    // Nothing that needs an object works, what needs none does; a close makes room; nobody else is short of any.
    assert_eq!(client.walk(client.root.fd, "file").unwrap_err(), Errno::MFILE);
    let mkdir = Request::Mkdir { dir: client.root.fd, name: name("d"), new: mine(0o755) };
    assert_eq!(client.fails(&mkdir), Errno::MFILE);
    assert!(!dir.path().join("d").exists(), "nothing was made that could not be handed out");
    client.stat(fd).unwrap();
    client.call(&Request::Close { fds: vec![fd] }).unwrap();
    client.find("file");
    bystander.find("file");
    drop((client, bystander));
    server.join();
}

#[test]
fn the_process_s_limit_is_an_error_too() {
    let dir = scratch();
    fs::write(dir.path().join("file"), b"x").unwrap();
    let mut server = Program::default();
    // The program gets a limit of so many descriptors, and shares them out less its own.
    let mut client = Client::new(&mut server, dir.path(), &Options { objects: 300, ..Options::default() });
    let fd = client.find("file").fd;
    let mut refused = 0;
    for _ in 0..2000 {
        match client.keep(fd, OpenFlags::READ) {
            Ok(_) => {}
            Err(errno) => {
                assert_eq!(errno, Errno::MFILE);
                refused += 1;
            }
        }
    }
    assert!(refused > 1600, "{refused}");
    // Donations need no room in the table.
    for _ in 0..1000 {
        client.donate(fd, OpenFlags::READ).unwrap();
    }
    drop(client);
    server.join();
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
fn descriptors_that_nobody_asked_for_are_dropped() {
    let dir = scratch();
    let mut server = Program::default();
    let mut client = Client::new(&mut server, dir.path(), &Options::default());
    let pid = server.children[0].id();
    client.stat(client.root.fd).unwrap();
    let before = descriptors(pid);
    let gift = fs::File::open("/dev/null").unwrap();
    let gifts = vec![gift.as_fd(); 253];
    for tag in 0..100 {
        let request = packet(tag, &Request::Stat { fd: client.root.fd });
        send_raw(&client.socket, &request, &gifts).unwrap();
        assert_eq!(receive_raw(&client.socket).unwrap().0.errno, 0);
    }
    assert!(descriptors(pid) <= before, "{} after {before}", descriptors(pid));
    // A client that leaves without a word leaves nothing.
    drop(client);
    server.join();
}

#[test]
fn half_closed_connections_end() {
    let dir = scratch();
    for how in [Shutdown::Read, Shutdown::Write, Shutdown::Both] {
        let mut server = InProcess::default();
        let client = Client::new(&mut server, dir.path(), &Options::default());
        rustix::net::shutdown(&client.socket, how).unwrap();
        let _ = send_raw(&client.socket, &packet(1, &Request::Stat { fd: client.root.fd }), &[]);
        // With its client still there, and with requests unanswered.
        server.join();
    }
}

#[test]
fn a_client_that_never_reads_holds_up_only_itself() {
    let dir = scratch();
    fs::write(dir.path().join("file"), b"x").unwrap();
    let mut server = InProcess::default();
    let mut deaf = Client::new(&mut server, dir.path(), &Options::default());
    let fd = deaf.find("file").fd;
    rustix::io::ioctl_fionbio(&deaf.socket, true).unwrap();
    let request = packet(1, &Request::Open { fd, flags: OpenFlags::READ | OpenFlags::DONATE });
    while send_raw(&deaf.socket, &request, &[]).is_ok() {}
    let mut other = Client::new(&mut server, dir.path(), &Options::default());
    for _ in 0..100 {
        other.find("file");
    }
    drop((deaf, other));
    server.join();
}

#[test]
fn channels_are_bounded_and_end_with_their_connection() {
    attack(&Options::default(), |a| {
        let root = a.client.root.fd;
        let channels: Vec<_> = (0..CHANNELS_MAX).map(|_| a.client.open_channel().unwrap()).collect();
        assert_eq!(a.client.open_channel().err(), Some(Errno::MFILE));
        for (tag, channel) in channels.iter().enumerate() {
            channel.call(tag as u32, &Request::Stat { fd: root }).unwrap();
            // A channel opens channels no more than its connection does.
            assert_eq!(channel.call(7, &Request::Channel).err(), Some(Errno::MFILE));
        }
        // Half of them hang up first; the rest is left as it is, one with a request under way, one in a mess.
        for channel in &channels[..4] {
            rustix::net::shutdown(&channel.socket, Shutdown::Both).unwrap();
        }
        channels[5].shared.publish(channel::STATE, channel::REQUEST, channel::SERVER_SLEEPING);
        channels[6].shared.publish(channel::STATE, 0xdead, channel::SERVER_SLEEPING);
    });
}

#[test]
fn a_channel_s_memory_says_what_it_likes() {
    attack(&Options::default(), |a| {
        let channel = a.client.open_channel().unwrap();
        let stat = packet(3, &Request::Stat { fd: a.client.root.fd });
        let ask = |bytes: &[u8]| {
            assert!(channel.shared.write(channel::MESSAGE, bytes));
            channel.shared.publish(channel::STATE, channel::REQUEST, channel::SERVER_SLEEPING);
            assert!(channel.await_reply(Duration::from_secs(5)));
            let mut header = [0; 16];
            assert!(channel.shared.read(channel::MESSAGE, &mut header));
            Header::parse(&header).unwrap().0.errno
        };
        assert_eq!(ask(&stat), 0);
        for (at, value) in [(0, 0xff), (3, 0xff), (4, 0xff), (6, 1), (14, 1)] {
            let mut bad = stat.clone();
            bad[at] ^= value;
            assert_ne!(ask(&bad), 0, "byte {at}");
        }
        assert_eq!(ask(&stat), 0);
        // Everything changes all the time, the length above all, while the server reads it.
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut length = 0_u32;
                while !stop.load(Ordering::Relaxed) {
                    length = length.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let value = if length & 1 == 0 { length } else { length >> 16 };
                    assert!(channel.shared.write(channel::MESSAGE, &value.to_le_bytes()));
                }
            });
            let end = Instant::now() + Duration::from_millis(300);
            while Instant::now() < end {
                assert!(channel.shared.write(channel::MESSAGE + 4, &stat[4..]));
                channel.shared.publish(channel::STATE, channel::REQUEST, channel::SERVER_SLEEPING);
                assert!(channel.await_reply(Duration::from_secs(5)));
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(ask(&stat), 0);
    });
}

#[test]
fn a_channel_whose_descriptors_nobody_takes_holds_up_only_itself() {
    let dir = scratch();
    fs::write(dir.path().join("file"), b"x").unwrap();
    let mut server = InProcess::default();
    let mut client = Client::new(&mut server, dir.path(), &Options::default());
    let fd = client.find("file").fd;
    let channel = client.open_channel().unwrap();
    let open = packet(1, &Request::Open { fd, flags: OpenFlags::READ | OpenFlags::DONATE });
    let stuck = (0..100_000).any(|_| {
        assert!(channel.shared.write(channel::MESSAGE, &open));
        channel.shared.publish(channel::STATE, channel::REQUEST, channel::SERVER_SLEEPING);
        !channel.await_reply(Duration::from_millis(300))
    });
    assert!(stuck, "the socket is full");
    client.find("file");
    drop((client, channel));
    server.join();
}

#[test]
fn walks_have_a_longest_length() {
    attack(&Options::default(), |a| {
        let deep: PathBuf = std::iter::repeat_n("d", WALK_MAX).collect();
        fs::create_dir_all(a.served.join(&deep)).unwrap();
        a.client.find(deep.to_str().unwrap());
        let names = vec![name("d"); WALK_MAX + 1];
        let request = Request::Walk { dir: a.client.root.fd, flags: WalkFlags::ATTR_ONLY, names };
        assert_eq!(a.client.fails(&request), Errno::NAMETOOLONG);
    });
}

#[test]
fn a_root_that_is_removed_is_an_empty_place() {
    let dir = scratch();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    let mut server = InProcess::default();
    let mut client = Client::new(&mut server, &root, &Options::default());
    fs::remove_dir(&root).unwrap();
    assert_eq!(client.walk(client.root.fd, "x").unwrap_err(), Errno::NOENT);
    assert_eq!(client.create(client.root.fd, "x").err(), Some(Errno::NOENT));
    assert_eq!(client.list(client.root.fd, 1024).unwrap(), Vec::<String>::new());
    assert_eq!(client.stat(client.root.fd).unwrap().nlink, 0);
    drop(client);
    server.join();
}

#[test]
fn host_mounts_below_the_root_are_entered_only_where_allowed() {
    // /proc is a mount below / everywhere.
    for recursive in [false, true] {
        let mut server = InProcess::default();
        let mut client = Client::new(
            &mut server,
            Path::new("/"),
            &Options { recursive, flags: MountFlags::READ_ONLY, ..Options::default() },
        );
        let walked = client.walk(client.root.fd, "proc/self/maps");
        if recursive {
            // `self` is a link; by number, files of a proc mount can be seen but not opened: they may be our own memory.
            assert_eq!(walked.unwrap_err(), Errno::LOOP);
            let path = format!("proc/{}/maps", std::process::id());
            let maps = client.find(&path).fd;
            assert_eq!(client.donate(maps, OpenFlags::READ).err(), Some(Errno::ACCESS));
            assert_eq!(client.witness(maps).err(), Some(Errno::OPNOTSUPP));
            let exe = format!("proc/{}/exe", std::process::id());
            let exe = client.find(&exe);
            assert_eq!(exe.attr.kind, FileKind::Symlink);
            assert_eq!(client.donate(exe.fd, OpenFlags::READ).err(), Some(Errno::LOOP));
        } else {
            assert_eq!(walked.unwrap_err(), Errno::XDEV);
        }
        drop(client);
        server.join();
    }
}

/// Random requests, mostly well formed, from a seed.
#[test]
fn random_requests_harm_nobody() {
    attack(&with_flags(MountFlags::BIND | MountFlags::CONNECT), |a| {
        let mut state = 0x0123_4567_89ab_cdef_u64;
        let mut next = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) % below
        };
        let mut ids = vec![a.client.root.fd, a.client.find("file").fd];
        for round in 0..20_000_u32 {
            let (fd, dir) = (ids[next(ids.len() as u64) as usize], ids[next(ids.len() as u64) as usize]);
            let mut all = requests(fd, dir);
            let request = all.swap_remove(next(all.len() as u64) as usize);
            let mut bytes = packet(round, &request);
            if next(4) == 0 {
                let at = 16 + next(bytes.len() as u64 - 16) as usize;
                bytes[at] ^= 1 << next(8);
            }
            send_raw(&a.client.socket, &bytes, &[]).unwrap();
            let (header, payload, _) = receive_raw(&a.client.socket).expect("still there");
            assert_eq!(header.tag, round);
            if header.errno == 0 && header.message == MessageId::Walk as u16 {
                let walked = Walked::parse(&payload).unwrap();
                assert!(matches!(
                    walked.end,
                    WalkEnd::Complete
                        | WalkEnd::Missing
                        | WalkEnd::NotDirectory
                        | WalkEnd::Symlink
                        | WalkEnd::Failed(_)
                ));
                ids.extend(walked.nodes.iter().filter_map(|node| node.fd));
            } else if header.errno == 0 && header.message == MessageId::Open as u16 {
                ids.extend(Opened::parse(&payload).unwrap().fd);
            }
            if ids.len() > 200 {
                let rest = ids.split_off(1);
                for part in rest.chunks(IDS_MAX) {
                    a.client.call(&Request::Close { fds: part.to_vec() }).unwrap();
                }
            }
        }
        fs::remove_file(a.served.join("file")).ok();
        fs::write(a.served.join("file"), b"").unwrap();
    });
}
