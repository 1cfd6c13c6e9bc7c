//! Every message does what the system call of its name does, and fails as it fails.
//!
//! Each story runs three times: against the library in this process, and against the confined program by socket and by channel. What a message does in the
//! served directory is compared with what Linux does to a twin directory beside it.

mod support;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use caisson_proto::lisafs::reply::{Donated, Listed, MountFlags, StatFs, WalkEnd, Walked};
use caisson_proto::lisafs::request::*;
use caisson_proto::lisafs::*;
use rustix::io::Errno;
use support::*;

/// A served directory, its twin, and a client.
struct Story {
    client: Client,
    served: PathBuf,
    twin: PathBuf,
}

fn tell(options: &Options, story: impl Fn(&mut Story)) {
    let run = |server: &mut dyn Server, way: Way| {
        let dir = scratch();
        let (served, twin) = (dir.path().join("served"), dir.path().join("twin"));
        fs::create_dir(&served).unwrap();
        fs::create_dir(&twin).unwrap();
        let mut client = Client::new(server, &served, options);
        if way == Way::Channel {
            client.channel = Some(client.open_channel().unwrap());
        }
        story(&mut Story { client, served, twin });
    };
    let mut library = InProcess::default();
    run(&mut library, Way::Socket);
    library.join();
    for way in [Way::Socket, Way::Channel] {
        let mut program = Program::default();
        run(&mut program, way);
        program.join();
    }
}

/// How a client sends its requests.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Socket,
    Channel,
}

/// The errno of a failed call on the twin.
fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    result.err().map(|error| Errno::from_io_error(&error).unwrap())
}

fn assert_like(attr: &Attr, path: &Path) {
    let host = fs::symlink_metadata(path).unwrap();
    assert_eq!((attr.ino, attr.mode(), u64::from(attr.nlink)), (host.ino(), host.mode(), host.nlink()));
    assert_eq!(
        (attr.uid, attr.gid, attr.size, attr.blocks),
        (host.uid(), host.gid(), host.size(), host.blocks())
    );
    assert_eq!((attr.mtime.seconds, i64::from(attr.mtime.nanoseconds)), (host.mtime(), host.mtime_nsec()));
    assert_eq!((attr.ctime.seconds, i64::from(attr.ctime.nanoseconds)), (host.ctime(), host.ctime_nsec()));
    assert_eq!((attr.atime.seconds, i64::from(attr.atime.nanoseconds)), (host.atime(), host.atime_nsec()));
    assert_eq!(rustix::fs::makedev(attr.dev.major, attr.dev.minor), host.dev());
}

#[test]
fn a_mount_says_hello_once() {
    tell(&Options::default(), |s| {
        assert_eq!(s.client.mounted.flags, MountFlags::empty());
        assert_like(&s.client.root.attr.clone(), &s.served);
        let again = Request::Mount { version: VERSION, max_message: MAX_MESSAGE as u32 };
        assert_eq!(s.client.fails(&again), Errno::ALREADY);
        let other = Request::Mount { version: VERSION + 1, max_message: MAX_MESSAGE as u32 };
        assert_eq!(s.client.fails(&other), Errno::PROTONOSUPPORT);
    });
}

#[test]
fn walks_find_what_stat_finds() {
    tell(&Options::default(), |s| {
        fs::create_dir_all(s.served.join("a/b/c")).unwrap();
        fs::write(s.served.join("a/b/file"), b"hello").unwrap();
        std::os::unix::fs::symlink("b/file", s.served.join("a/link")).unwrap();
        let root = s.client.root.fd;
        let file = s.client.find("a/b/file");
        assert_like(&file.attr, &s.served.join("a/b/file"));
        assert_like(&s.client.stat(file.fd).unwrap(), &s.served.join("a/b/file"));
        assert_eq!(s.client.walk(root, "a/missing").unwrap_err(), Errno::NOENT);
        assert_eq!(s.client.walk(root, "a/missing/x").unwrap_err(), Errno::NOENT);
        assert_eq!(s.client.walk(root, "a/b/file/x").unwrap_err(), Errno::NOTDIR);
        assert_eq!(s.client.walk(file.fd, "x").unwrap_err(), Errno::NOTDIR);
        let names = ["a", "link", "x"].map(name).to_vec();
        let request = Request::Walk { dir: root, flags: WalkFlags::empty(), names };
        let (payload, _) = s.client.call(&request).unwrap();
        let walked = Walked::parse(&payload).unwrap();
        assert_eq!((walked.end, walked.nodes.len()), (WalkEnd::Symlink, 2));
        assert_eq!(walked.target.unwrap().as_bytes(), b"b/file");
        let link = Found { fd: walked.nodes[1].fd.unwrap(), attr: walked.nodes[1].attr };
        assert_like(&s.client.stat(link.fd).unwrap(), &s.served.join("a/link"));
        assert_eq!(s.client.call(&Request::ReadLink { fd: link.fd }).unwrap().0, b"b/file");
        assert_eq!(s.client.fails(&Request::ReadLink { fd: file.fd }), Errno::INVAL);
        assert_eq!(s.client.keep(link.fd, OpenFlags::READ), Err(Errno::LOOP));
        // No components: the same file under another id. Attributes only: no ids.
        let (payload, _) =
            s.client.call(&Request::Walk { dir: root, flags: WalkFlags::empty(), names: vec![] }).unwrap();
        let again = Walked::parse(&payload).unwrap().nodes[0];
        assert_eq!(again.attr.ino, s.client.root.attr.ino);
        assert_ne!(again.fd, Some(root));
        let request =
            Request::Walk { dir: root, flags: WalkFlags::ATTR_ONLY, names: vec![name("a"), name("b")] };
        let (payload, _) = s.client.call(&request).unwrap();
        assert!(Walked::parse(&payload).unwrap().nodes.iter().all(|node| node.fd.is_none()));
    });
}

#[test]
fn created_files_are_the_host_s_files() {
    tell(&Options::default(), |s| {
        let root = s.client.root.fd;
        let (file, donated) = s.client.create(root, "new").unwrap();
        assert_eq!((file.attr.permissions, file.attr.kind), (0o644, FileKind::Regular));
        fs::File::from(donated).write_all_at(b"data", 3).unwrap();
        assert_eq!(fs::read(s.served.join("new")).unwrap(), b"\0\0\0data");
        assert_like(&s.client.stat(file.fd).unwrap(), &s.served.join("new"));
        assert_eq!(s.client.create(root, "new").err(), Some(Errno::EXIST));
        assert_eq!(s.client.create(file.fd, "x").err(), Some(Errno::NOTDIR));
        std::os::unix::fs::symlink("/nowhere", s.served.join("dangling")).unwrap();
        assert_eq!(s.client.create(root, "dangling").err(), Some(Errno::EXIST));
        let set_id = NewFile { permissions: 0o6755, ..mine(0) };
        let flags = OpenFlags::READ | OpenFlags::KEEP;
        s.client.call(&Request::Create { dir: root, name: name("setid"), flags, new: set_id }).unwrap();
        assert_eq!(fs::metadata(s.served.join("setid")).unwrap().mode() & 0o7777, 0o6755);
        let removed =
            s.client.node(&Request::Mkdir { dir: root, name: name("gone"), new: mine(0o755) }).unwrap();
        fs::remove_dir(s.served.join("gone")).unwrap();
        assert_eq!(s.client.create(removed.fd, "x").err(), Some(Errno::NOENT));
    });
}

#[test]
fn files_without_a_name_get_one_by_a_link() {
    tell(&Options::default(), |s| {
        let root = s.client.root.fd;
        let flags = OpenFlags::READ | OpenFlags::WRITE | OpenFlags::DONATE;
        let new = NewFile { permissions: 0o2640, ..mine(0) };
        let create = |dir| Request::CreateUnnamed { dir, flags, new };
        let (payload, mut fds) = s.client.call(&create(root)).unwrap();
        let created = reply::Created::parse(&payload).unwrap();
        assert_eq!((created.attr.nlink, created.attr.permissions), (0, 0o2640));
        fs::File::from(fds.pop().unwrap()).write_all_at(b"hidden", 0).unwrap();
        assert_eq!(fs::read_dir(&s.served).unwrap().count(), 0);
        let link = Request::Link { dir: root, name: name("shown"), target: created.node };
        let shown = s.client.node(&link).unwrap();
        assert_eq!((shown.attr.ino, shown.attr.nlink), (created.attr.ino, 1));
        assert_eq!(fs::read(s.served.join("shown")).unwrap(), b"hidden");
        assert_eq!(s.client.call(&create(shown.fd)).err(), Some(Errno::NOTDIR));
    });
}

#[test]
fn new_objects_get_the_owner_that_the_message_names() {
    if !is_root() {
        eprintln!("skipped: needs root to give files away");
        return;
    }
    tell(&Options::default(), |s| {
        let root = s.client.root.fd;
        let new = NewFile { owner: Owner::new(12345, 54321).unwrap(), permissions: 0o4711 };
        let owner = new.owner;
        let flags = OpenFlags::WRITE | OpenFlags::DONATE;
        s.client.call(&Request::Create { dir: root, name: name("file"), flags, new }).unwrap();
        s.client.call(&Request::Mkdir { dir: root, name: name("dir"), new }).unwrap();
        let fifo = Request::Mknod {
            dir: root,
            name: name("fifo"),
            kind: FileKind::Fifo,
            rdev: Device::default(),
            new,
        };
        s.client.call(&fifo).unwrap();
        let target = LinkTarget::new(b"/etc/passwd").unwrap();
        s.client.call(&Request::Symlink { dir: root, name: name("link"), target, owner }).unwrap();
        for (name, permissions) in [("file", 0o4711), ("dir", 0o4711), ("fifo", 0o4711), ("link", 0o777)] {
            let host = fs::symlink_metadata(s.served.join(name)).unwrap();
            assert_eq!((host.uid(), host.gid(), host.mode() & 0o7777), (12345, 54321, permissions), "{name}");
        }
    });
}

#[test]
fn directories_and_special_files() {
    tell(&Options::default(), |s| {
        let root = s.client.root.fd;
        let mkdir = |new| Request::Mkdir { dir: root, name: name("dir"), new };
        let dir = s.client.node(&mkdir(mine(0o1750))).unwrap();
        assert_like(&dir.attr, &s.served.join("dir"));
        assert_eq!(dir.attr.permissions, 0o1750);
        assert_eq!(Some(s.client.fails(&mkdir(mine(0o755)))), errno(fs::create_dir(&s.served)));
        for (kind, file) in
            [(FileKind::Fifo, "fifo"), (FileKind::Socket, "socket"), (FileKind::Regular, "regular")]
        {
            let request = Request::Mknod {
                dir: dir.fd,
                name: name(file),
                kind,
                rdev: Device::default(),
                new: mine(0o600),
            };
            let made = s.client.node(&request).unwrap();
            assert_eq!(made.attr.kind, kind);
            assert_like(&made.attr, &s.served.join("dir").join(file));
            assert_eq!(s.client.fails(&request), Errno::EXIST);
        }
        // Neither a FIFO nor a socket is opened: that could block, and is the sentry's business.
        for file in ["dir/fifo", "dir/socket"] {
            let special = s.client.find(file);
            assert_eq!(s.client.keep(special.fd, OpenFlags::READ), Err(Errno::NXIO));
            assert_eq!(s.client.donate(special.fd, OpenFlags::WRITE).err(), Some(Errno::NXIO));
        }
        let kind = FileKind::CharDevice;
        let device = Request::Mknod {
            dir: root,
            name: name("null"),
            kind,
            rdev: Device { major: 1, minor: 3 },
            new: mine(0o666),
        };
        assert_eq!(s.client.fails(&device), Errno::PERM);
    });
}

#[test]
fn device_nodes_are_made_where_allowed_and_never_opened() {
    if !is_root() {
        eprintln!("skipped: needs root to make device nodes");
        return;
    }
    tell(&with_flags(MountFlags::DEVICE_NODES), |s| {
        let (kind, rdev) = (FileKind::CharDevice, Device { major: 1, minor: 3 });
        let request =
            Request::Mknod { dir: s.client.root.fd, name: name("null"), kind, rdev, new: mine(0o666) };
        let device = s.client.node(&request).unwrap();
        assert_eq!((device.attr.kind, device.attr.rdev), (kind, rdev));
        assert!(fs::metadata(s.served.join("null")).unwrap().file_type().is_char_device());
        assert_eq!(s.client.keep(device.fd, OpenFlags::READ), Err(Errno::NXIO));
    });
}

#[test]
fn links_and_unlinks() {
    tell(&Options::default(), |s| {
        let root = s.client.root.fd;
        let (file, _) = s.client.create(root, "one").unwrap();
        let link = |target| Request::Link { dir: root, name: name("two"), target };
        let two = s.client.node(&link(file.fd)).unwrap();
        assert_eq!((two.attr.ino, two.attr.nlink), (file.attr.ino, 2));
        assert_eq!(s.client.fails(&link(file.fd)), Errno::EXIST);
        assert_eq!(s.client.fails(&link(root)), Errno::PERM);
        let target = LinkTarget::new(b"one").unwrap();
        let soft = Request::Symlink { dir: root, name: name("soft"), target, owner: my_ids() };
        let soft = s.client.node(&soft).unwrap();
        assert_eq!(fs::read_link(s.served.join("soft")).unwrap().as_os_str().as_bytes(), b"one");
        // A second name for the link itself, not for what it points to.
        let hard = s.client.node(&Request::Link { dir: root, name: name("hard"), target: soft.fd }).unwrap();
        assert_eq!((hard.attr.ino, hard.attr.kind), (soft.attr.ino, FileKind::Symlink));
        let unlink = |file, kind| Request::Unlink { dir: root, name: name(file), kind };
        s.client.node(&Request::Mkdir { dir: root, name: name("dir"), new: mine(0o755) }).unwrap();
        s.client.create(root, "dir2").unwrap();
        fs::write(s.served.join("dir/x"), b"").unwrap();
        assert_eq!(s.client.fails(&unlink("dir", UnlinkKind::File)), Errno::ISDIR);
        assert_eq!(s.client.fails(&unlink("dir", UnlinkKind::Directory)), Errno::NOTEMPTY);
        assert_eq!(s.client.fails(&unlink("one", UnlinkKind::Directory)), Errno::NOTDIR);
        assert_eq!(s.client.fails(&unlink("none", UnlinkKind::File)), Errno::NOENT);
        fs::remove_file(s.served.join("dir/x")).unwrap();
        for (file, kind) in
            [("dir", UnlinkKind::Directory), ("one", UnlinkKind::File), ("soft", UnlinkKind::File)]
        {
            s.client.call(&unlink(file, kind)).unwrap();
            assert!(fs::symlink_metadata(s.served.join(file)).is_err());
        }
        // An unlinked file lives on under its id.
        s.client.call(&unlink("two", UnlinkKind::File)).unwrap();
        assert_eq!(s.client.stat(file.fd).unwrap().nlink, 0);
        let data = s.client.donate(file.fd, OpenFlags::READ | OpenFlags::WRITE).unwrap();
        fs::File::from(data).write_all_at(b"still", 0).unwrap();
        assert_eq!(s.client.stat(file.fd).unwrap().size, 5);
    });
}

#[test]
fn renames() {
    tell(&Options::default(), |s| {
        let root = s.client.root.fd;
        for name in ["served", "twin"] {
            let at = s.served.parent().unwrap().join(name);
            fs::create_dir_all(at.join("d/sub")).unwrap();
            fs::create_dir(at.join("empty")).unwrap();
            fs::write(at.join("a"), b"a").unwrap();
            fs::write(at.join("b"), b"b").unwrap();
        }
        let rename = |old, new, flags| Request::Rename {
            old_dir: root,
            old_name: name(old),
            new_dir: root,
            new_name: name(new),
            flags,
        };
        let twin = fs::File::open(&s.twin).unwrap();
        let cases = [
            ("a", "d"),
            ("d", "a"),
            ("none", "x"),
            ("empty", "d"),
            ("d", "empty"),
            ("a", "b"),
            ("b", "b"),
            ("b", "c"),
        ];
        let kinds = [RenameFlags::NOREPLACE, RenameFlags::empty(), RenameFlags::EXCHANGE];
        for (old, new) in cases {
            for flags in kinds {
                let ours = s.client.call(&rename(old, new, flags)).map(|_| ());
                let host = rustix::fs::RenameFlags::from_bits(flags.bits()).unwrap();
                let theirs = rustix::fs::renameat_with(&twin, old, &twin, new, host);
                assert_eq!(ours, theirs, "{old} {new} {flags:?}");
            }
        }
        let tree = |path: &Path| {
            let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(tree(&s.served), tree(&s.twin));
        // Into its own child.
        let dir = s.client.node(&Request::Mkdir { dir: root, name: name("p"), new: mine(0o755) }).unwrap();
        let into = Request::Rename {
            old_dir: root,
            old_name: name("p"),
            new_dir: dir.fd,
            new_name: name("q"),
            flags: RenameFlags::empty(),
        };
        assert_eq!(s.client.fails(&into), Errno::INVAL);
        // An id follows its directory to another name.
        s.client.call(&rename("p", "moved", RenameFlags::empty())).unwrap();
        s.client.create(dir.fd, "inside").unwrap();
        assert!(s.served.join("moved/inside").exists());
    });
}

#[test]
fn attributes_change_as_by_hand() {
    tell(&Options::default(), |s| {
        let root = s.client.root.fd;
        let (file, _) = s.client.create(root, "f").unwrap();
        let mut set = |fd, set| {
            s.client
                .call(&Request::SetAttr { fd, set })
                .map(|(payload, _)| reply::attr::parse(&payload).unwrap())
        };
        let attr = set(file.fd, SetAttr { size: Some(5000), ..SetAttr::default() }).unwrap();
        assert_eq!(attr.size, 5000);
        let attr = set(file.fd, SetAttr { permissions: Some(0o4751), ..SetAttr::default() }).unwrap();
        assert_eq!(attr.permissions, 0o4751);
        let time = Timestamp { seconds: -1_000_000, nanoseconds: 5 };
        let times = SetAttr { mtime: SetTime::At(time), ..SetAttr::default() };
        let attr = set(file.fd, times).unwrap();
        assert_eq!(attr.mtime.seconds, -1_000_000);
        let before = attr.atime;
        let now = set(file.fd, SetAttr { atime: SetTime::Now, ..SetAttr::default() }).unwrap();
        assert!(now.atime >= before);
        assert_eq!(now.mtime, attr.mtime);
        assert_like(&now, &s.served.join("f"));
        assert_eq!(set(root, SetAttr { size: Some(0), ..SetAttr::default() }), Err(Errno::ISDIR));
        std::os::unix::fs::symlink("f", s.served.join("l")).unwrap();
        let link = s.client.find("l");
        let mut set = |fd, set| s.client.call(&Request::SetAttr { fd, set }).map(|_| ());
        assert_eq!(
            set(link.fd, SetAttr { permissions: Some(0o600), ..SetAttr::default() }),
            Err(Errno::OPNOTSUPP)
        );
        assert_eq!(set(link.fd, SetAttr { size: Some(0), ..SetAttr::default() }), Err(Errno::INVAL));
        set(link.fd, times).unwrap();
        assert_eq!(fs::symlink_metadata(s.served.join("l")).unwrap().mtime(), -1_000_000);
        set(link.fd, SetAttr { uid: Some(my_ids().uid()), ..SetAttr::default() }).unwrap();
    });
}

#[test]
fn opening_as_asked() {
    tell(&Options::default(), |s| {
        fs::write(s.served.join("f"), b"content").unwrap();
        let file = s.client.find("f");
        let read = s.client.donate(file.fd, OpenFlags::READ).unwrap();
        assert_eq!(rustix::io::pwrite(&read, b"x", 0), Err(Errno::BADF));
        let mut bytes = [0; 16];
        assert_eq!(rustix::io::pread(&read, &mut bytes, 0), Ok(7));
        let append = s.client.donate(file.fd, OpenFlags::WRITE | OpenFlags::APPEND).unwrap();
        rustix::io::write(&append, b"+").unwrap();
        assert_eq!(fs::read(s.served.join("f")).unwrap(), b"content+");
        s.client.donate(file.fd, OpenFlags::WRITE | OpenFlags::TRUNCATE).unwrap();
        assert_eq!(s.client.stat(file.fd).unwrap().size, 0);
        let root = s.client.root.fd;
        assert_eq!(s.client.donate(root, OpenFlags::READ).err(), Some(Errno::ISDIR));
        assert_eq!(s.client.keep(root, OpenFlags::READ | OpenFlags::WRITE).err(), Some(Errno::ISDIR));
    });
}

#[test]
fn witnesses_tell_what_becomes_of_a_file_and_open_nothing() {
    tell(&Options::default(), |s| {
        fs::create_dir(s.served.join("d")).unwrap();
        fs::write(s.served.join("d/f"), b"content").unwrap();
        std::os::unix::fs::symlink("f", s.served.join("d/l")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            s.served.join("d/p"),
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        for path in ["d", "d/f", "d/l"] {
            let fd = s.client.find(path).fd;
            let witness = s.client.witness(fd).unwrap();
            let (told, host) =
                (rustix::fs::fstat(&witness).unwrap(), fs::symlink_metadata(s.served.join(path)).unwrap());
            assert_eq!(
                (told.st_ino, told.st_mode, told.st_ctime_nsec.cast_signed()),
                (host.ino(), host.mode(), host.ctime_nsec())
            );
            let flags = rustix::fs::fcntl_getfl(&witness).unwrap();
            assert!(flags.contains(rustix::fs::OFlags::PATH), "{flags:?}");
            assert_eq!(rustix::io::pread(&witness, &mut [0; 4], 0), Err(Errno::BADF));
            assert_eq!(rustix::fs::ftruncate(&witness, 0), Err(Errno::BADF));
        }
        let file = s.client.find("d/f").fd;
        let witness = s.client.witness(file).unwrap();
        fs::write(s.served.join("d/f"), b"more content").unwrap();
        assert_eq!(rustix::fs::fstat(&witness).unwrap().st_size, 12);
        fs::remove_file(s.served.join("d/f")).unwrap();
        assert_eq!(rustix::fs::fstat(&witness).unwrap().st_nlink, 0);
        // Nothing of what may block or act when somebody opens it again, and no object that is not a file.
        let fifo = s.client.find("d/p").fd;
        assert_eq!(s.client.witness(fifo).err(), Some(Errno::OPNOTSUPP));
        s.client.call(&Request::Close { fds: vec![file] }).unwrap();
        assert_eq!(s.client.witness(file).err(), Some(Errno::BADF));
    });
}

#[test]
fn kept_files_are_read_written_and_allocated() {
    tell(&Options::default(), |s| {
        let (file, _) = s.client.create(s.client.root.fd, "f").unwrap();
        let both = s.client.keep(file.fd, OpenFlags::READ | OpenFlags::WRITE).unwrap();
        let only = s.client.keep(file.fd, OpenFlags::READ).unwrap();
        let data = vec![7; MAX_DATA];
        let (payload, _) = s.client.call(&Request::Write { fd: both, offset: 10, data: &data }).unwrap();
        assert_eq!(reply::written(&payload), Ok(65536));
        let read = |fd, offset, length| Request::Read { fd, offset, length };
        assert_eq!(s.client.call(&read(only, 0, 12)).unwrap().0, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 7]);
        assert_eq!(s.client.call(&read(only, 10 + 65530, 65536)).unwrap().0.len(), 6);
        assert_eq!(s.client.call(&read(only, 1 << 50, 10)).unwrap().0.len(), 0);
        assert_eq!(s.client.fails(&Request::Write { fd: only, offset: 0, data: b"x" }), Errno::BADF);
        assert_eq!(s.client.fails(&read(file.fd, 0, 1)), Errno::BADF, "a walked file is not open");
        let allocate = |fd, mode| Request::Fallocate { fd, mode, offset: 1 << 20, length: 4096 };
        s.client.call(&allocate(both, AllocateMode::KEEP_SIZE)).unwrap();
        assert_eq!(s.client.stat(both).unwrap().size, 65546);
        s.client.call(&allocate(both, AllocateMode::empty())).unwrap();
        assert_eq!(s.client.stat(both).unwrap().size, (1 << 20) + 4096);
        assert_eq!(s.client.fails(&allocate(only, AllocateMode::empty())), Errno::BADF);
        s.client.call(&Request::Fsync { fds: vec![both, file.fd, s.client.root.fd] }).unwrap();
        s.client.call(&Request::Flush { fd: both }).unwrap();
        s.client.call(&Request::SyncFs { fd: s.client.root.fd }).unwrap();
        let dir = s.client.keep(s.client.root.fd, OpenFlags::READ).unwrap();
        assert_eq!(s.client.fails(&read(dir, 0, 1)), Errno::ISDIR);
        let list = Request::ReadDir { fd: both, position: 0, max: 1024 };
        assert_eq!(s.client.fails(&list), Errno::NOTDIR);
    });
}

#[test]
fn directories_list_whole_and_from_any_position() {
    tell(&Options::default(), |s| {
        let root = s.client.root.fd;
        assert_eq!(s.client.list(root, 1024).unwrap(), Vec::<String>::new());
        let mut names: Vec<String> = (0..500).map(|i| format!("{}{i}", "n".repeat(i % 200))).collect();
        for name in &names {
            fs::write(s.served.join(name), b"").unwrap();
        }
        names.sort();
        assert_eq!(s.client.list(root, 1024).unwrap(), names);
        assert_eq!(s.client.list(root, MAX_DATA as u32).unwrap(), names);
        let open = s.client.keep(root, OpenFlags::READ).unwrap();
        let read = |position| Request::ReadDir { fd: open, position, max: 4096 };
        let (first, _) = s.client.call(&read(0)).unwrap();
        let entries: Vec<_> = reply::Entries::new(&first).map(Result::unwrap).collect();
        let (again, _) = s.client.call(&read(entries[3].next)).unwrap();
        let next = reply::Entries::new(&again).next().unwrap().unwrap();
        assert_eq!(next.name, entries[4].name);
        assert!(entries.iter().all(|e| e.kind == Some(FileKind::Regular)));
        assert_eq!(s.client.call(&read(0)).unwrap().0, first, "back to the start");
    });
}

#[test]
fn directories_open_and_list_at_once() {
    tell(&Options::default(), |s| {
        let root = s.client.root.fd;
        fs::create_dir(s.served.join("empty")).unwrap();
        fs::create_dir(s.served.join("many")).unwrap();
        fs::write(s.served.join("file"), b"").unwrap();
        std::os::unix::fs::symlink("many", s.served.join("link")).unwrap();
        let mut names: Vec<String> = (0..500).map(|i| format!("file{i}")).collect();
        names.iter().for_each(|name| fs::write(s.served.join("many").join(name), b"").unwrap());
        names.sort();
        for (dir, max, whole) in
            [("empty", 1024, true), ("many", 1024, false), ("many", 14_000, false), ("many", 65_536, true)]
        {
            let fd = s.client.find(dir).fd;
            let (payload, fds) = s.client.call(&Request::List { fd, max }).unwrap();
            assert!(fds.is_empty());
            let listed = Listed::parse(&payload).unwrap();
            assert!(listed.entries.len() <= max as usize);
            assert_eq!(listed.open.is_none(), whole, "{dir} {max}");
            let mut seen: Vec<_> = reply::Entries::new(listed.entries).map(Result::unwrap).collect();
            let mut rest = Vec::new();
            while let Some(open) = listed.open {
                let position = reply::Entries::new(&rest)
                    .last()
                    .map_or(seen.last().unwrap().next, |last| last.unwrap().next);
                let (more, _) = s.client.call(&Request::ReadDir { fd: open, position, max }).unwrap();
                if more.is_empty() {
                    s.client.call(&Request::Close { fds: vec![open] }).unwrap();
                    break;
                }
                rest.extend(more);
            }
            seen.extend(reply::Entries::new(&rest).map(Result::unwrap));
            let mut seen: Vec<_> =
                seen.iter().map(|e| String::from_utf8(e.name.as_bytes().to_vec()).unwrap()).collect();
            seen.sort();
            assert_eq!(seen, if dir == "empty" { Vec::new() } else { names.clone() }, "{dir} {max}");
        }
        for (other, errno) in [("file", Errno::NOTDIR), ("link", Errno::NOTDIR)] {
            let fd = s.client.find(other).fd;
            assert_eq!(s.client.fails(&Request::List { fd, max: 1024 }), errno, "{other}");
        }
        let open = s.client.keep(root, OpenFlags::READ).unwrap();
        assert_eq!(s.client.fails(&Request::List { fd: open, max: 1024 }), Errno::BADF);
        assert_eq!(
            s.client.fails(&Request::List { fd: FdId::new(u64::MAX).unwrap(), max: 1024 }),
            Errno::BADF
        );
    });
}

#[test]
fn a_listing_needs_an_id_only_if_there_is_more() {
    tell(&Options { objects: 2, ..Options::default() }, |s| {
        let root = s.client.root.fd;
        for i in 0..100 {
            fs::write(s.served.join(format!("f{i}")), b"").unwrap();
        }
        let _other = s.client.find("f1");
        assert_eq!(s.client.fails(&Request::List { fd: root, max: 1024 }), Errno::MFILE);
        let (payload, _) = s.client.call(&Request::List { fd: root, max: 65_536 }).unwrap();
        assert_eq!(reply::Entries::new(Listed::parse(&payload).unwrap().entries).count(), 100);
    });
}

#[test]
fn directories_list_with_their_files() {
    tell(&Options::default(), |s| {
        for i in 0..150 {
            fs::write(s.served.join(format!("f{i}")), vec![b'x'; i]).unwrap();
        }
        fs::create_dir(s.served.join("sub")).unwrap();
        std::os::unix::fs::symlink("f1", s.served.join("link")).unwrap();
        let root = s.client.root.fd;
        for flags in [PlusFlags::empty(), PlusFlags::READ, PlusFlags::WITNESS, PlusFlags::all()] {
            let open = s.client.keep(root, OpenFlags::READ).unwrap();
            let (mut position, mut seen, mut ids) = (0, Vec::new(), Vec::new());
            loop {
                // Open or not: the positions are the same.
                let dir = if position % 2 == 0 { open } else { root };
                let request = Request::ReadDirPlus { fd: dir, position, count: PLUS_MAX, flags };
                let (payload, fds) = s.client.call(&request).unwrap();
                let (mut fds, mut count) = (fds.into_iter(), 0);
                for entry in caisson_proto::lisafs::reply::Listing::new(&payload) {
                    let entry = entry.unwrap();
                    let path = s.served.join(std::ffi::OsStr::from_bytes(entry.name.as_bytes()));
                    let file = entry.file.unwrap();
                    if file.attr.kind != FileKind::Symlink {
                        // Reading a link's target counts as an access.
                        assert_like(&file.attr, &path);
                        assert_eq!(s.client.stat(file.fd).unwrap(), file.attr);
                    }
                    assert_eq!(file.target.is_some(), path.is_symlink());
                    let regular = file.attr.kind == FileKind::Regular;
                    let donated = match (regular, flags) {
                        (true, flags) if flags.contains(PlusFlags::READ) => Donated::File,
                        (_, flags) if flags.contains(PlusFlags::WITNESS) => Donated::Witness,
                        _ => Donated::Nothing,
                    };
                    assert_eq!(file.donated, donated, "{path:?} {flags:?}");
                    if donated != Donated::Nothing {
                        let fd = fds.next().unwrap();
                        let told = rustix::fs::fstat(&fd).unwrap();
                        assert_eq!(told.st_ino, file.attr.ino);
                        let is_path =
                            rustix::fs::fcntl_getfl(&fd).unwrap().contains(rustix::fs::OFlags::PATH);
                        assert_eq!(is_path, donated == Donated::Witness);
                    }
                    position = entry.next;
                    seen.push(path);
                    ids.push(file.fd);
                    count += 1;
                }
                assert!(fds.next().is_none());
                if count == 0 {
                    break;
                }
            }
            seen.sort();
            seen.dedup();
            assert_eq!(seen.len(), 152);
            // A plain listing goes on from there as well.
            let (plain, _) = s.client.call(&Request::ReadDir { fd: open, position: 0, max: 65536 }).unwrap();
            assert_eq!(caisson_proto::lisafs::reply::Entries::new(&plain).count(), 152);
            ids.push(open);
            s.client.call(&Request::Close { fds: ids }).unwrap();
        }
        let file = s.client.find("f1").fd;
        let bad = Request::ReadDirPlus { fd: file, position: 0, count: 1, flags: PlusFlags::empty() };
        assert_eq!(s.client.fails(&bad), Errno::BADF);
    });
}

#[test]
fn what_is_listed_ahead_leaves_room_for_what_is_asked_for() {
    tell(&Options { objects: 40, ..Options::default() }, |s| {
        for i in 0..100 {
            fs::write(s.served.join(format!("f{i}")), b"").unwrap();
        }
        let dir = s.client.keep(s.client.root.fd, OpenFlags::READ).unwrap();
        let request = Request::ReadDirPlus { fd: dir, position: 0, count: PLUS_MAX, flags: PlusFlags::all() };
        let (payload, _) = s.client.call(&request).unwrap();
        let files = caisson_proto::lisafs::reply::Listing::new(&payload)
            .filter(|entry| entry.as_ref().unwrap().file.is_some());
        assert_eq!(files.count(), 33);
        s.client.find("f7");
    });
}

#[test]
fn extended_attributes() {
    tell(&Options::default(), |s| {
        let (file, _) = s.client.create(s.client.root.fd, "f").unwrap();
        let x = |text: &'static str| XattrName::new(text.as_bytes()).unwrap();
        let set = |name, value, flags| Request::SetXattr { fd: file.fd, name, value, flags };
        if let Err(errno) = s.client.call(&set(x("user.a"), b"one", XattrFlags::empty())) {
            assert_eq!(errno, Errno::OPNOTSUPP);
            eprintln!("skipped: the file system has no user attributes");
            return;
        }
        let get = |name| Request::GetXattr { fd: file.fd, name };
        assert_eq!(s.client.call(&get(x("user.a"))).unwrap().0, b"one");
        assert_eq!(s.client.fails(&set(x("user.a"), b"", XattrFlags::CREATE)), Errno::EXIST);
        assert_eq!(s.client.fails(&set(x("user.b"), b"", XattrFlags::REPLACE)), Errno::NODATA);
        assert_eq!(s.client.fails(&get(x("user.b"))), Errno::NODATA);
        s.client.call(&set(x("user.empty"), b"", XattrFlags::CREATE)).unwrap();
        assert_eq!(s.client.call(&get(x("user.empty"))).unwrap().0, b"");
        let listed = s.client.call(&Request::ListXattr { fd: file.fd }).unwrap().0;
        let mut names: Vec<_> = listed.split(|b| *b == 0).filter(|n| !n.is_empty()).collect();
        names.sort();
        assert_eq!(names, [&b"user.a"[..], b"user.empty"]);
        s.client.call(&Request::RemoveXattr { fd: file.fd, name: x("user.a") }).unwrap();
        assert_eq!(s.client.fails(&Request::RemoveXattr { fd: file.fd, name: x("user.a") }), Errno::NODATA);
        for foreign in ["trusted.x", "security.selinux", "system.posix_acl_access", "user.", "nonsense"] {
            assert_eq!(
                s.client.fails(&set(x(foreign), b"v", XattrFlags::empty())),
                Errno::OPNOTSUPP,
                "{foreign}"
            );
            assert_eq!(s.client.fails(&get(x(foreign))), Errno::OPNOTSUPP, "{foreign}");
        }
        std::os::unix::fs::symlink("f", s.served.join("l")).unwrap();
        let link = s.client.find("l").fd;
        let through = Request::GetXattr { fd: link, name: x("user.empty") };
        assert!(s.client.call(&through).is_err(), "the link's own attributes, not its target's");
    });
}

#[test]
fn file_systems_have_attributes() {
    tell(&Options::default(), |s| {
        let (payload, _) = s.client.call(&Request::StatFs { fd: s.client.root.fd }).unwrap();
        let ours = StatFs::parse(&payload).unwrap();
        let host = rustix::fs::statfs(&s.served).unwrap();
        assert_eq!((ours.kind, ours.block_size), (host.f_type as u64, host.f_bsize as u64));
        assert_eq!((ours.blocks, ours.name_max), (host.f_blocks, host.f_namelen as u64));
    });
}

#[test]
fn read_only_means_read_only() {
    tell(&with_flags(MountFlags::READ_ONLY), |s| {
        fs::write(s.served.join("f"), b"x").unwrap();
        let (root, file) = (s.client.root.fd, s.client.find("f").fd);
        let (kind, rdev, new, name) = (FileKind::Fifo, Device::default(), mine(0o644), name("n"));
        let target = LinkTarget::new(b"t").unwrap();
        let xattr = XattrName::new(b"user.a").unwrap();
        let changes = [
            Request::Create { dir: root, name, flags: OpenFlags::READ | OpenFlags::KEEP, new },
            Request::CreateUnnamed { dir: root, flags: OpenFlags::WRITE | OpenFlags::KEEP, new },
            Request::Mkdir { dir: root, name, new },
            Request::Mknod { dir: root, name, kind, rdev, new },
            Request::Symlink { dir: root, name, target, owner: new.owner },
            Request::Link { dir: root, name, target: file },
            Request::Unlink { dir: root, name: support::name("f"), kind: UnlinkKind::File },
            Request::Rename {
                old_dir: root,
                old_name: support::name("f"),
                new_dir: root,
                new_name: name,
                flags: RenameFlags::empty(),
            },
            Request::SetAttr { fd: file, set: SetAttr { permissions: Some(0), ..SetAttr::default() } },
            Request::Open { fd: file, flags: OpenFlags::WRITE | OpenFlags::KEEP },
            Request::Open { fd: file, flags: OpenFlags::READ | OpenFlags::WRITE | OpenFlags::DONATE },
            Request::SetXattr { fd: file, name: xattr, value: b"", flags: XattrFlags::empty() },
            Request::RemoveXattr { fd: file, name: xattr },
            Request::Bind { dir: root, name, kind: SocketKind::Stream, new },
        ];
        for change in changes {
            assert_eq!(s.client.fails(&change), Errno::ROFS, "{change:?}");
        }
        assert_eq!(s.client.list(root, 4096).unwrap(), ["f"]);
        let open = s.client.donate(file, OpenFlags::READ).unwrap();
        assert_eq!(rustix::io::pwrite(&open, b"y", 0), Err(Errno::BADF));
        assert_eq!(rustix::fs::ftruncate(&open, 0), Err(Errno::INVAL));
    });
}

#[test]
fn a_single_file_is_a_mount_too() {
    let run = |server: &mut dyn Server| {
        let dir = scratch();
        let path = dir.path().join("resolv.conf");
        fs::write(&path, b"nameserver").unwrap();
        let mut client = Client::new(server, &path, &Options::default());
        let root = client.root;
        assert_eq!(root.attr.kind, FileKind::Regular);
        let open = client.donate(root.fd, OpenFlags::READ | OpenFlags::WRITE).unwrap();
        fs::File::from(open).write_all_at(b"N", 0).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"Nameserver");
        assert_eq!(client.walk(root.fd, "x").unwrap_err(), Errno::NOTDIR);
        assert_eq!(client.list(root.fd, 1024).unwrap_err(), Errno::NOTDIR);
        let set = SetAttr { permissions: Some(0o600), ..SetAttr::default() };
        client.call(&Request::SetAttr { fd: root.fd, set }).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    };
    let mut library = InProcess::default();
    run(&mut library);
    library.join();
    let mut program = Program::default();
    run(&mut program);
    program.join();
}

#[test]
fn unix_sockets_where_the_mount_allows_them() {
    tell(&with_flags(MountFlags::CONNECT | MountFlags::BIND), |s| {
        let root = s.client.root.fd;
        let host = std::os::unix::net::UnixListener::bind(s.served.join("host")).unwrap();
        let node = s.client.find("host");
        let (_, fds) = s.client.call(&Request::Connect { fd: node.fd, kind: SocketKind::Stream }).unwrap();
        host.accept().unwrap();
        assert_eq!(fds.len(), 1);
        let wrong = Request::Connect { fd: node.fd, kind: SocketKind::Datagram };
        assert_eq!(s.client.fails(&wrong), Errno::PROTOTYPE);
        let bind =
            |file| Request::Bind { dir: root, name: name(file), kind: SocketKind::Stream, new: mine(0o660) };
        let (payload, fds) = s.client.call(&bind("guest")).unwrap();
        let bound = reply::Created::parse(&payload).unwrap();
        assert_eq!((bound.attr.kind, bound.attr.permissions, fds.len()), (FileKind::Socket, 0o660, 1));
        assert_eq!(s.client.fails(&bind("guest")), Errno::ADDRINUSE);
        assert_eq!(s.client.fails(&bind(&"l".repeat(200))), Errno::NAMETOOLONG);
        let socket = bound.open.unwrap();
        s.client.call(&Request::Listen { fd: socket, backlog: u32::MAX }).unwrap();
        assert_eq!(s.client.fails(&Request::Accept { fd: socket }), Errno::AGAIN);
        let _peer = std::os::unix::net::UnixStream::connect(s.served.join("guest")).unwrap();
        assert_eq!(s.client.call(&Request::Accept { fd: socket }).unwrap().1.len(), 1);
    });
    tell(&Options::default(), |s| {
        let root = s.client.root.fd;
        let _host = std::os::unix::net::UnixListener::bind(s.served.join("host")).unwrap();
        let node = s.client.find("host");
        assert_eq!(
            s.client.fails(&Request::Connect { fd: node.fd, kind: SocketKind::Stream }),
            Errno::CONNREFUSED
        );
        let bind =
            Request::Bind { dir: root, name: name("guest"), kind: SocketKind::Stream, new: mine(0o660) };
        assert_eq!(s.client.fails(&bind), Errno::PERM);
    });
}
