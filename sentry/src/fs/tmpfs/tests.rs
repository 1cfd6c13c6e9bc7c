//! tmpfs through the VFS, without a task.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Tmpfs, TmpfsOptions};
use crate::errno::{Errno, SysResult};
use crate::io::{KernelDst, KernelSrc};
use crate::task::{Capability, Credentials};
use crate::vfs::{
    Caller, DirEntry, DirSink, File, FsContext, Mount, MountFlags, MountNamespace, OpenFlags, OpenHow,
    RenameFlags, Superblock, VfsPath, Whence,
};

pub(crate) fn mounted(options: &str) -> Arc<MountNamespace> {
    let fs = Tmpfs::new(TmpfsOptions::parse(options.as_bytes()).unwrap()).unwrap();
    let superblock = Superblock::new(fs, b"tmpfs").unwrap();
    MountNamespace::new(Mount::new(superblock, MountFlags::empty()))
}

pub(crate) fn root_of(options: &str) -> (Arc<MountNamespace>, Caller<'static>) {
    let namespace = mounted(options);
    let caller = Caller::kernel(namespace.root());
    (namespace, caller)
}

pub(crate) fn open(caller: &Caller<'_>, path: &str, flags: u32) -> SysResult<Arc<File>> {
    let how = OpenHow::from_open(flags, 0o644)?;
    caller.open(caller.cwd(), path.as_bytes(), &how, &mut |_, _| Err(Errno::ENXIO))
}

fn create(caller: &Caller<'_>, path: &str) -> Arc<File> {
    open(caller, path, (OpenFlags::CREAT | OpenFlags::RDWR).bits()).unwrap()
}

fn names(file: &File) -> Vec<String> {
    struct All(Vec<String>);
    impl DirSink for All {
        fn emit(&mut self, entry: DirEntry<'_>) -> bool {
            self.0.push(String::from_utf8_lossy(entry.name).into_owned());
            true
        }
    }
    let mut all = All(Vec::new());
    file.with_position(|position| file.ops().iterate(file, position, &mut all)).unwrap();
    all.0
}

fn path(caller: &Caller<'_>, text: &str) -> SysResult<VfsPath> {
    caller.lookup_path(text.as_bytes())
}

#[test]
fn data_holes_and_sizes() {
    let (_namespace, caller) = root_of("");
    let file = create(&caller, "/f");
    assert_eq!(file.write(&mut KernelSrc::new(b"hello")), Ok(5));
    assert_eq!(file.write_at(&mut KernelSrc::new(b"end"), 10_000), Ok(3));
    let mut buf = [1; 8];
    assert_eq!(file.read_at(&mut KernelDst::new(&mut buf), 4998), Ok(8));
    assert_eq!(buf, [0; 8]);
    let seek = |offset, whence| file.with_position(|p| file.ops().seek(&file, *p, offset, whence));
    assert_eq!(seek(0, Whence::Hole), Ok(4096));
    assert_eq!(seek(4096, Whence::Data), Ok(8192));
    assert_eq!(seek(10_003, Whence::Data), Err(Errno::ENXIO));
    assert_eq!(seek(0, Whence::End), Ok(10_003));
    let attr = file.inode().attr().unwrap();
    assert_eq!((attr.size, attr.blocks), (10_003, 16));
    caller.truncate_file(&file, 3).unwrap();
    caller.truncate_file(&file, 8).unwrap();
    let mut buf = [1; 8];
    assert_eq!(file.read_at(&mut KernelDst::new(&mut buf), 0), Ok(8));
    assert_eq!(&buf, b"hel\0\0\0\0\0");
}

#[test]
fn half_of_the_memory_is_the_default_limit() {
    let (_namespace, caller) = root_of("");
    let space = caller.cwd().inode().file_system().unwrap().statfs().unwrap();
    let half = u64::from(crate::platform::arena().unwrap().frames_max() / 2);
    assert_eq!((space.blocks, space.files, space.block_size), (half, half, 4096));
}

#[test]
fn limits_give_enospc() {
    let (_namespace, caller) = root_of("size=8k,nr_inodes=3");
    let file = create(&caller, "/f");
    assert_eq!(file.write(&mut KernelSrc::new(&[1; 20_000])), Ok(8192));
    assert_eq!(file.write(&mut KernelSrc::new(&[1])), Err(Errno::ENOSPC));
    create(&caller, "/g");
    assert_eq!(caller.mkdir(caller.cwd(), b"/d", 0o755).err(), Some(Errno::ENOSPC));
    drop(file);
    caller.unlink(caller.cwd(), b"/f").unwrap();
    caller.mkdir(caller.cwd(), b"/d", 0o755).unwrap();
    assert_eq!(open(&caller, "/g", 1).unwrap().write(&mut KernelSrc::new(&[1; 4096])), Ok(4096));
}

#[test]
fn everything_removed_is_freed() {
    let (namespace, caller) = root_of("size=1m,nr_inodes=100");
    let cwd = caller.cwd();
    for round in 0..50 {
        caller.mkdir(cwd, b"/d", 0o755).unwrap();
        create(&caller, "/d/f").write(&mut KernelSrc::new(&[1; 10_000])).unwrap();
        create(&caller, "/d/g").write(&mut KernelSrc::new(&[1; 10_000])).unwrap();
        caller.mkdir(cwd, b"/e", 0o755).unwrap();
        assert!(path(&caller, "/d/none").is_err());
        caller.rename((cwd, b"/d/f"), (cwd, b"/d/g"), RenameFlags::empty()).unwrap();
        caller.unlink(cwd, b"/d/g").unwrap();
        let how = if round % 2 == 0 { RenameFlags::empty() } else { RenameFlags::EXCHANGE };
        caller.rename((cwd, b"/d"), (cwd, b"/e"), how).unwrap();
        let _ = caller.rmdir(cwd, b"/d");
        caller.rmdir(cwd, b"/e").unwrap();
        let stat = namespace.root().mount().superblock().fs().statfs().unwrap();
        assert_eq!((stat.files - stat.files_free, stat.blocks - stat.blocks_free), (1, 0));
    }
}

#[test]
fn an_unlinked_file_lives_while_it_is_open() {
    let (_namespace, caller) = root_of("");
    let file = create(&caller, "/f");
    caller.unlink(caller.cwd(), b"/f").unwrap();
    assert_eq!(path(&caller, "/f").err(), Some(Errno::ENOENT));
    assert_eq!(file.write(&mut KernelSrc::new(b"x")), Ok(1));
    assert_eq!(file.inode().attr().unwrap().nlink, 0);
    assert_eq!(file.path().unwrap().text(caller.root()).for_link(), b"/f (deleted)");
}

#[test]
fn unnamed_files_can_be_linked_unless_exclusive() {
    let (_namespace, caller) = root_of("");
    let tmpfile = (OpenFlags::TMPFILE_BIT | OpenFlags::DIRECTORY | OpenFlags::RDWR).bits();
    let file = open(&caller, "/", tmpfile).unwrap();
    file.write(&mut KernelSrc::new(b"data")).unwrap();
    caller.link(file.path().unwrap(), caller.cwd(), b"/named").unwrap();
    assert_eq!(path(&caller, "/named").unwrap().inode().attr().unwrap().nlink, 1);
    let exclusive = open(&caller, "/", tmpfile | OpenFlags::EXCL.bits()).unwrap();
    assert_eq!(caller.link(exclusive.path().unwrap(), caller.cwd(), b"/x").err(), Some(Errno::ENOENT));
}

#[test]
fn readers_of_a_changing_directory_see_what_stays_once() {
    let (_namespace, caller) = root_of("");
    for n in 0..1000 {
        create(&caller, &format!("/stays{n}"));
        create(&caller, &format!("/goes{n}"));
    }
    let directory = open(&caller, "/", 0).unwrap();
    struct Some(Vec<String>, usize);
    impl DirSink for Some {
        fn emit(&mut self, entry: DirEntry<'_>) -> bool {
            if self.1 == 0 {
                return false;
            }
            self.1 -= 1;
            self.0.push(String::from_utf8_lossy(entry.name).into_owned());
            true
        }
    }
    let mut seen = BTreeMap::new();
    let mut round = 0;
    loop {
        let mut sink = Some(Vec::new(), 7);
        directory.with_position(|p| directory.ops().iterate(&directory, p, &mut sink)).unwrap();
        if sink.0.is_empty() {
            break;
        }
        for name in sink.0 {
            *seen.entry(name).or_insert(0) += 1;
        }
        if round < 1000 {
            caller.unlink(caller.cwd(), format!("/goes{}", (round * 7) % 1000).as_bytes()).unwrap();
            if round < 200 {
                create(&caller, &format!("/new{round}"));
            }
        }
        round += 1;
    }
    for n in 0..1000 {
        assert_eq!(seen.get(&format!("stays{n}")), Option::Some(&1));
    }
    assert!(seen.values().all(|count| *count == 1));
}

#[test]
fn a_directory_tree_deeper_than_the_stack_goes_away() {
    let (namespace, mut caller) = root_of("");
    let mut at = caller.cwd().clone();
    for _ in 0..100_000 {
        at = caller.mkdir(&at, b"d", 0o755).unwrap();
    }
    caller.places = FsContext::new(namespace.root()).places();
    drop(at);
    drop(caller);
    drop(namespace);
}

#[test]
fn rename_moves_replaces_and_exchanges() {
    let (_namespace, caller) = root_of("");
    let cwd = caller.cwd();
    let rename =
        |old: &str, new: &str, flags| caller.rename((cwd, old.as_bytes()), (cwd, new.as_bytes()), flags);
    caller.mkdir(cwd, b"/a", 0o755).unwrap();
    caller.mkdir(cwd, b"/a/sub", 0o755).unwrap();
    caller.mkdir(cwd, b"/b", 0o755).unwrap();
    create(&caller, "/f");
    assert_eq!(rename("/a", "/a/sub/x", RenameFlags::empty()), Err(Errno::EINVAL));
    assert_eq!(rename("/a/sub", "/a", RenameFlags::empty()), Err(Errno::ENOTEMPTY));
    assert_eq!(rename("/f", "/b", RenameFlags::empty()), Err(Errno::EISDIR));
    assert_eq!(rename("/b", "/f", RenameFlags::empty()), Err(Errno::ENOTDIR));
    assert_eq!(rename("/f", "/a", RenameFlags::NOREPLACE), Err(Errno::EEXIST));
    rename("/f", "/a/sub", RenameFlags::EXCHANGE).unwrap();
    assert_eq!(names(&open(&caller, "/a", 0).unwrap()), [".", "..", "sub"]);
    assert_eq!(path(&caller, "/a").unwrap().inode().attr().unwrap().nlink, 2);
    rename("/f", "/b", RenameFlags::empty()).unwrap();
    rename("/b", "/a/moved", RenameFlags::empty()).unwrap();
    assert_eq!(path(&caller, "/a/moved").unwrap().text(caller.root()).bytes, b"/a/moved");
    rename("/a/sub", "/w", RenameFlags::WHITEOUT).unwrap();
    let whiteout = path(&caller, "/a/sub").unwrap().inode().attr().unwrap();
    assert_eq!((whiteout.full_mode(), whiteout.rdev), (0o020000, Default::default()));
}

#[test]
fn sticky_directories_and_permissions() {
    let (namespace, root) = root_of("");
    let user = |id| {
        let credentials = Arc::new(Credentials::new(id, id, Vec::new(), Capability::empty()));
        Caller::new(credentials, &FsContext::new(namespace.root()), None)
    };
    let (alice, bob) = (user(1000), user(1001));
    create(&alice, "/hers");
    assert_eq!(bob.unlink(bob.cwd(), b"/hers"), Err(Errno::EPERM));
    assert_eq!(open(&bob, "/hers", OpenFlags::RDWR.bits()).err(), Some(Errno::EACCES));
    assert_eq!(bob.chmod(&path(&bob, "/hers").unwrap(), 0o777), Err(Errno::EPERM));
    root.mkdir(root.cwd(), b"/private", 0o700).unwrap();
    assert_eq!(path(&bob, "/private/x").err(), Some(Errno::EACCES));
    // A link in a sticky directory is followed only if it is one's own.
    alice.symlink(b"/hers", alice.cwd(), b"/link").unwrap();
    assert_eq!(path(&bob, "/link").err(), Some(Errno::EACCES));
    assert!(path(&alice, "/link").is_ok());
    assert!(alice.unlink(alice.cwd(), b"/hers").is_ok());
}

/// Nanoseconds per operation, for a look at hot paths: `cargo test --release -- --ignored --nocapture costs`.
#[test]
#[ignore = "a measurement, not a test"]
fn costs_of_common_operations() {
    let (_namespace, caller) = root_of("");
    caller.mkdir(caller.cwd(), b"/usr", 0o755).unwrap();
    caller.mkdir(caller.cwd(), b"/usr/bin", 0o755).unwrap();
    let file = create(&caller, "/usr/bin/python3");
    file.write(&mut KernelSrc::new(&[7; 1 << 20])).unwrap();
    let measure = |name: &str, mut act: Box<dyn FnMut() + '_>| {
        let rounds = 200_000u32;
        let start = std::time::Instant::now();
        for _ in 0..rounds {
            act();
        }
        println!("{name:24} {:6} ns", (start.elapsed() / rounds).as_nanos());
    };
    measure(
        "walk of 3 components",
        Box::new(|| {
            let _ = path(&caller, "/usr/bin/python3").unwrap();
        }),
    );
    measure(
        "walk and attributes",
        Box::new(|| {
            let _ = path(&caller, "/usr/bin/python3").unwrap().inode().attr().unwrap();
        }),
    );
    measure(
        "open and close",
        Box::new(|| {
            let _ = open(&caller, "/usr/bin/python3", 0).unwrap();
        }),
    );
    measure(
        "missing name",
        Box::new(|| {
            let _ = path(&caller, "/usr/bin/nothing").err();
        }),
    );
    let mut buf = [0; 4096];
    measure(
        "read 64",
        Box::new(|| {
            let _ = file.read_at(&mut KernelDst::new(&mut buf[..64]), 4096);
        }),
    );
    measure(
        "read 4096",
        Box::new(|| {
            let _ = file.read_at(&mut KernelDst::new(&mut buf), 4096);
        }),
    );
    measure(
        "write 4096",
        Box::new(|| {
            let _ = file.write_at(&mut KernelSrc::new(&[1; 4096]), 4096);
        }),
    );
    measure("accessed", Box::new(|| crate::vfs::times::accessed(file.path().unwrap())));
    measure(
        "create and unlink",
        Box::new(|| {
            create(&caller, "/usr/new");
            caller.unlink(caller.cwd(), b"/usr/new").unwrap();
        }),
    );
}

/// Several threads change and walk one tree: nothing may hang, panic or leave the tree inconsistent.
#[test]
fn concurrent_changes_leave_a_consistent_tree() {
    let (namespace, caller) = root_of("");
    for n in 0..3 {
        caller.mkdir(caller.cwd(), format!("/d{n}").as_bytes(), 0o755).unwrap();
    }
    let work = |thread: u64, root: VfsPath| {
        let caller = Caller::kernel(root);
        let mut seed = thread.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut pick = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for _ in 0..6000 {
            let mut name = || match pick(3) {
                0 => format!("/d{}/x{}", pick(3), pick(4)),
                1 => format!("/d{}/x{}/y{}", pick(3), pick(4), pick(2)),
                _ => format!("/d{}", pick(4)),
            };
            let (one, two) = (name(), name());
            let cwd = caller.cwd();
            match pick(7) {
                0 => drop(caller.mkdir(cwd, one.as_bytes(), 0o755)),
                1 => drop(caller.rmdir(cwd, one.as_bytes())),
                2 => drop(open(&caller, &one, (OpenFlags::CREAT | OpenFlags::RDWR).bits())),
                3 => drop(caller.unlink(cwd, one.as_bytes())),
                4 => drop(caller.rename((cwd, one.as_bytes()), (cwd, two.as_bytes()), RenameFlags::EXCHANGE)),
                5 => drop(caller.rename((cwd, one.as_bytes()), (cwd, two.as_bytes()), RenameFlags::empty())),
                _ => drop(path(&caller, &one)),
            }
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let root = namespace.root();
            scope.spawn(move || work(thread, root));
        }
    });
    check_tree(&caller, "");
}

/// Every name that a directory lists is found by a walk, as the same file, with its own path; link counts add up.
fn check_tree(caller: &Caller<'_>, directory: &str) {
    let shown = if directory.is_empty() { "/" } else { directory };
    let listed = names(&open(caller, shown, 0).unwrap());
    let mut subdirectories = 0;
    for name in listed.iter().filter(|name| !name.starts_with('.')) {
        let child = format!("{directory}/{name}");
        let place = path(caller, &child).unwrap();
        assert_eq!(place.text(caller.root()).bytes, child.as_bytes());
        let attr = place.inode().attr().unwrap();
        if place.dentry().is_directory() {
            subdirectories += 1;
            check_tree(caller, &child);
        } else {
            assert_eq!(attr.nlink, 1, "{child}");
        }
    }
    let attr = path(caller, shown).unwrap().inode().attr().unwrap();
    assert_eq!(attr.nlink, 2 + subdirectories, "{shown}");
}
