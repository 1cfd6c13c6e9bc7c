//! The client against the real server, over a socket, in one process.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use caisson_gofer::host::{Host, Mounts};
use caisson_gofer::{MountOptions, Session, serve};
use caisson_proto::lisafs::reply::MountFlags as Allows;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, socketpair};

use super::*;
use crate::io::{KernelDst, KernelSrc};
use crate::vfs::{
    Caller, DentryCache, DirEntry, DirSink, File, FileType, Mount, MountFlags, NewInode, NodeKind, OpenFlags,
    RenameFlags, SetAttr, Superblock, VfsPath, Whence,
};

/// A served directory, mounted.
pub(super) struct Served {
    pub(super) dir: tempfile::TempDir,
    pub(super) fs: Arc<GoferFs>,
    pub(super) path: VfsPath,
    session: Arc<Session>,
    /// A second end of the server's socket, to cut the connection with.
    pub(super) wire: OwnedFd,
    server: Option<JoinHandle<()>>,
}

pub(super) fn serve_dir(sharing: Sharing) -> Served {
    serve_dir_with(sharing, 100_000)
}

/// With a gofer that holds at most so many objects.
pub(super) fn serve_dir_with(sharing: Sharing, objects: usize) -> Served {
    let dir = tempfile::tempdir().unwrap();
    let (server, client) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let root = rustix::fs::open(dir.path(), rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    let options = MountOptions { flags: Allows::empty(), mounts: Mounts::Stay, objects };
    let session = Arc::new(Session::new(Arc::new(Host::from_proc().unwrap()), root, options).unwrap());
    let wire = server.try_clone().unwrap();
    let serving = session.clone();
    let server = std::thread::spawn(move || serve(&serving, server).unwrap());
    let fs = GoferFs::mount(client, sharing, Device { major: 0, minor: 77 }).unwrap();
    let superblock = Superblock::new(fs.clone(), b"rootfs").unwrap();
    let path = Mount::new(superblock, MountFlags::empty()).root_path();
    Served { dir, fs, path, session, wire, server: Some(server) }
}

impl Served {
    fn root(&self) -> Arc<dyn Inode> {
        self.fs.root().unwrap()
    }

    pub(super) fn host(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The gofer dies.
    pub(super) fn cut(&mut self) {
        rustix::net::shutdown(&self.wire, Shutdown::Both).unwrap();
        self.server.take().unwrap().join().unwrap();
    }

    fn open(&self, inode: &Arc<dyn Inode>, flags: OpenFlags) -> SysResult<Arc<File>> {
        let ops = inode.open(&Caller::kernel(self.path.clone()), &self.path, flags)?;
        Ok(File::new(ops, inode.clone(), Some(self.path.clone()), flags))
    }
}

fn mine(mode: u32) -> NewInode {
    NewInode { mode, uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
}

fn read_all(file: &File) -> Vec<u8> {
    let mut buffer = vec![0; 1 << 16];
    let mut dst = KernelDst::new(&mut buffer);
    file.read_at(&mut dst, 0).unwrap();
    let filled = dst.filled();
    buffer.truncate(filled);
    buffer
}

#[derive(Default)]
struct Names {
    names: Vec<(String, u64)>,
    room: usize,
}

impl DirSink for Names {
    fn emit(&mut self, entry: DirEntry<'_>) -> bool {
        if self.room == 0 {
            return false;
        }
        self.room -= 1;
        self.names.push((String::from_utf8(entry.name.to_vec()).unwrap(), entry.next));
        true
    }
}

#[test]
fn a_created_file_is_there_on_the_host_with_its_data() {
    let served = serve_dir(Sharing::Exclusive);
    let root = served.root();
    let inode = root.create(b"f", mine(0o640)).unwrap();
    let file = served.open(&inode, OpenFlags::RDWR).unwrap();
    assert_eq!(file.write(&mut KernelSrc::new(b"hello")), Ok(5));
    assert_eq!(file.write_at(&mut KernelSrc::new(b"J"), 0), Ok(1));
    assert_eq!(fs::read(served.host("f")).unwrap(), b"Jello");
    assert_eq!(read_all(&file), b"Jello");
    let attr = inode.attr().unwrap();
    let host = fs::metadata(served.host("f")).unwrap();
    assert_eq!((attr.size, attr.mode, attr.ino), (5, 0o640, host.ino()));
    assert_eq!(attr.dev, Device { major: 0, minor: 77 });
    assert_eq!((attr.mtime.sec, i64::from(attr.mtime.nsec)), (host.mtime(), host.mtime_nsec()));
    assert_eq!(root.create(b"f", mine(0o640)).err(), Some(Errno::EEXIST));
    assert_eq!(root.lookup(b"none").err(), Some(Errno::ENOENT));
    assert_eq!(inode.lookup(b"x").err(), Some(Errno::ENOTDIR));
    for bad in [&b""[..], b".", b"..", b"a/b"] {
        assert_eq!(root.lookup(bad).err(), Some(Errno::EINVAL));
    }
}

#[test]
fn a_known_file_needs_no_gofer() {
    let mut served = serve_dir(Sharing::Exclusive);
    fs::write(served.host("f"), b"data").unwrap();
    let inode = served.root().lookup(b"f").unwrap();
    drop(served.open(&inode, OpenFlags::empty()).unwrap());
    let other = served.root().mkdir(b"d", mine(0o755)).unwrap();
    served.cut();
    // Open, read, stat, close: all from what is there.
    let file = served.open(&inode, OpenFlags::empty()).unwrap();
    assert_eq!(read_all(&file), b"data");
    assert_eq!(inode.attr().unwrap().size, 4);
    assert_eq!(other.attr().unwrap().mode, 0o755);
    // What needs it fails at once, and goes on failing.
    for _ in 0..3 {
        assert_eq!(served.root().lookup(b"f").err(), Some(Errno::EIO));
        assert_eq!(served.root().mkdir(b"x", mine(0o755)).err(), Some(Errno::EIO));
        assert_eq!(served.open(&inode, OpenFlags::RDWR).err(), Some(Errno::EIO));
    }
}

#[test]
fn appending_goes_to_the_end_whoever_else_writes() {
    let served = serve_dir(Sharing::Shared);
    let inode = served.root().create(b"log", mine(0o644)).unwrap();
    let file = served.open(&inode, OpenFlags::WRONLY | OpenFlags::APPEND).unwrap();
    file.write(&mut KernelSrc::new(b"one ")).unwrap();
    fs::OpenOptions::new()
        .append(true)
        .open(served.host("log"))
        .unwrap()
        .write_all_at(b"two ", 4)
        .unwrap_or(());
    let host = fs::OpenOptions::new().write(true).open(served.host("log")).unwrap();
    host.write_all_at(b"two ", 4).unwrap();
    file.write(&mut KernelSrc::new(b"three")).unwrap();
    assert_eq!(fs::read(served.host("log")).unwrap(), b"one two three");
}

#[test]
fn two_names_are_one_inode_and_ids_are_given_back() {
    let served = serve_dir(Sharing::Exclusive);
    let root = served.root();
    let one = root.create(b"one", mine(0o644)).unwrap();
    root.link(b"two", &one).unwrap();
    let two = root.lookup(b"two").unwrap();
    assert!(Arc::ptr_eq(&one, &two));
    assert_eq!(one.attr().unwrap().nlink, 2);
    root.unlink(b"one", &one).unwrap();
    assert_eq!(two.attr().unwrap().nlink, 1);
    drop((one, two));
    for i in 0..2000 {
        let name = format!("n{i}");
        root.mknod(name.as_bytes(), mine(0o600), NodeKind::Fifo).unwrap();
    }
    assert!(served.session.objects() < 2 * CLOSE_BATCH, "{} ids", served.session.objects());
}

#[test]
fn shared_directories_notice_what_others_do() {
    let served = serve_dir(Sharing::Shared);
    fs::write(served.host("f"), b"old").unwrap();
    let root = served.root();
    assert_eq!(root.dentry_cache(), DentryCache::Revalidate);
    let inode = root.lookup(b"f").unwrap();
    assert!(root.revalidate(b"f", &inode));
    fs::write(served.host("f"), b"longer").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1));
    assert_eq!(inode.attr().unwrap().size, 6);
    fs::write(served.host("g"), b"new").unwrap();
    fs::rename(served.host("g"), served.host("f")).unwrap();
    assert!(!root.revalidate(b"f", &inode), "another file has the name now");
    let new = root.lookup(b"f").unwrap();
    assert!(!Arc::ptr_eq(&inode, &new));
    fs::remove_file(served.host("f")).unwrap();
    assert!(!root.revalidate(b"f", &new));
}

#[test]
fn renames_and_removals_show_in_attributes() {
    let served = serve_dir(Sharing::Exclusive);
    let root = served.root();
    let a = root.create(b"a", mine(0o644)).unwrap();
    let b = root.create(b"b", mine(0o644)).unwrap();
    let dir = root.mkdir(b"dir", mine(0o755)).unwrap();
    assert_eq!(b.attr().unwrap().nlink, 1);
    root.rename(b"a", &root, b"b", RenameFlags::empty()).unwrap();
    // The VFS tells both files.
    a.names_changed();
    b.names_changed();
    assert_eq!(b.attr().unwrap().nlink, 0, "replaced");
    root.rename(b"b", &dir, b"moved", RenameFlags::NOREPLACE).unwrap();
    assert!(served.host("dir/moved").exists());
    assert!(Arc::ptr_eq(&dir.lookup(b"moved").unwrap(), &a));
    assert_eq!(root.rename(b"none", &dir, b"x", RenameFlags::empty()), Err(Errno::ENOENT));
    assert_eq!(root.rmdir(b"dir", &dir), Err(Errno::ENOTEMPTY));
    dir.unlink(b"moved", &a).unwrap();
    root.rmdir(b"dir", &dir).unwrap();
    assert_eq!(root.attr().unwrap().nlink, 2);
    assert_eq!(dir.create(b"x", mine(0o644)).err(), Some(Errno::ENOENT), "a removed directory");
}

#[test]
fn attributes_change_on_the_host() {
    let served = serve_dir(Sharing::Exclusive);
    let root = served.root();
    let inode = root.create(b"f", mine(0o644)).unwrap();
    inode.set_attr(&SetAttr { mode: Some(0o4711), size: Some(123), ..SetAttr::default() }).unwrap();
    let host = fs::metadata(served.host("f")).unwrap();
    assert_eq!((host.permissions().mode() & 0o7777, host.len()), (0o4711, 123));
    assert!(inode.has_set_id());
    assert_eq!(inode.attr().unwrap().size, 123);
    let link = root.symlink(b"l", b"../target", mine(0o777)).unwrap();
    assert_eq!(link.readlink(&Caller::kernel(served.path.clone())).unwrap(), b"../target");
    assert_eq!(link.file_type(), FileType::Symlink);
    assert_eq!(root.set_attr(&SetAttr { size: Some(1), ..SetAttr::default() }), Err(Errno::EISDIR));
}

#[test]
fn a_late_answer_does_not_hide_a_write() {
    for sharing in [Sharing::Exclusive, Sharing::Shared] {
        let served = serve_dir(sharing);
        let root = served.root();
        let inode = root.create(b"f", mine(0o644)).unwrap();
        let file = served.open(&inode, OpenFlags::WRONLY).unwrap();
        let (done, mut wrong) = (AtomicBool::new(false), 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    inode.set_attr(&SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();
                    assert!(root.revalidate(b"f", &inode));
                    assert!(Arc::ptr_eq(&root.lookup(b"f").unwrap(), &inode));
                }
            });
            for size in 1..1_000 {
                file.write(&mut KernelSrc::new(b"x")).unwrap();
                // Answers that are under way get the time to arrive.
                std::thread::sleep(Duration::from_micros(50));
                wrong += usize::from(inode.attr().unwrap().size != size);
            }
            done.store(true, Ordering::Relaxed);
        });
        assert_eq!(wrong, 0, "{sharing:?}");
    }
}

#[test]
fn directories_list_in_pieces() {
    // One that the gofer tells in one answer, and one of several.
    for files in [0, 300, 4000] {
        let served = serve_dir(Sharing::Exclusive);
        let root = served.root();
        for i in 0..files {
            fs::write(served.host(&format!("file{i}")), b"").unwrap();
        }
        let file = served.open(&root, OpenFlags::DIRECTORY).unwrap();
        let (mut all, mut offset) = (Names::default(), 0);
        loop {
            let before = all.names.len();
            all.room = 7;
            file.ops().iterate(&file, &mut offset, &mut all).unwrap();
            if all.names.len() == before {
                break;
            }
        }
        assert_eq!(all.names.len(), files + 2);
        assert_eq!((all.names[0].0.as_str(), all.names[1].0.as_str()), (".", ".."));
        let different: std::collections::HashSet<_> = all.names.iter().map(|(name, _)| name).collect();
        assert_eq!(different.len(), files + 2);
        // From the middle, from the end, and anew from the start.
        for at in [99, 250, 100, 3900].into_iter().filter(|at| *at < files) {
            let mut again = Names { room: 1, ..Names::default() };
            let mut offset = all.names[at].1;
            file.ops().iterate(&file, &mut offset, &mut again).unwrap();
            assert_eq!(again.names[0], all.names[at + 1]);
        }
        let mut end = Names { room: 1, ..Names::default() };
        let mut offset = all.names[files + 1].1;
        file.ops().iterate(&file, &mut offset, &mut end).unwrap();
        assert!(end.names.is_empty());
        fs::write(served.host("late"), b"").unwrap();
        let mut offset = file.ops().seek(&file, offset, 0, Whence::Start).unwrap();
        let mut anew = Names { room: 10_000, ..Names::default() };
        file.ops().iterate(&file, &mut offset, &mut anew).unwrap();
        assert!(anew.names.iter().any(|(name, _)| name == "late"));
        assert_eq!(anew.names.len(), files + 3);
    }
}

#[test]
fn mapped_pages_are_the_file_s() {
    let served = serve_dir(Sharing::Exclusive);
    fs::write(served.host("f"), vec![b'x'; 5000]).unwrap();
    let inode = served.root().lookup(b"f").unwrap();
    let file = served.open(&inode, OpenFlags::empty()).unwrap();
    let mapping = file.ops().mappable(&file).unwrap();
    let arena = crate::platform::arena().unwrap();
    let backing = mapping.translate(0, 1 << 20, false).unwrap();
    assert_eq!((backing.len, backing.writable), (8192, false));
    let mut bytes = [0; 5001];
    arena.read(backing.gpa, &mut bytes).unwrap();
    assert_eq!((bytes[4999], bytes[5000]), (b'x', 0));
    assert_eq!(mapping.translate(8192, 4096, false).err(), Some(Errno::EFAULT), "behind the end");
    // Wanting to write keeps the place and makes it writable; the host's file sees it.
    let second = mapping.translate(4096, 4096, true).unwrap();
    assert_eq!((second.gpa.0, second.writable), (backing.gpa.0 + 4096, true));
    arena.write(second.gpa, b"mapped").unwrap();
    assert_eq!(&fs::read(served.host("f")).unwrap()[4096..4102], b"mapped");
    assert_eq!(mapping.identity().ino, fs::metadata(served.host("f")).unwrap().ino());
}

#[test]
fn a_gofer_that_dies_while_it_is_asked_is_an_error() {
    // By socket and by channel: the second has made enough calls for one.
    for calls in [0, 100] {
        let mut served = serve_dir(Sharing::Exclusive);
        let root = served.root();
        for _ in 0..calls {
            assert_eq!(root.lookup(b"none").err(), Some(Errno::ENOENT));
        }
        let asking = std::thread::spawn(move || {
            loop {
                match root.lookup(b"none") {
                    Err(Errno::ENOENT) => {}
                    other => return other.err(),
                }
            }
        });
        std::thread::sleep(std::time::Duration::from_millis(30));
        served.cut();
        assert_eq!(asking.join().unwrap(), Some(Errno::EIO));
    }
}

#[test]
fn a_removed_file_s_space_comes_back_with_its_last_user() {
    let served = serve_dir(Sharing::Exclusive);
    let root = served.root();
    let inode = root.create(b"big", mine(0o644)).unwrap();
    let file = served.open(&inode, OpenFlags::RDWR).unwrap();
    let before = served.session.objects();
    root.unlink(b"big", &inode).unwrap();
    drop(inode);
    for _ in 0..20 {
        assert_eq!(file.write(&mut KernelSrc::new(&[1; 1 << 16])), Ok(1 << 16));
    }
    assert_eq!(served.session.objects(), before);
    drop(file);
    assert_eq!(served.session.objects(), before - 1, "no waiting for a batch");
    served.fs.sync().unwrap();
}

#[test]
fn threads_ask_side_by_side() {
    let served = serve_dir(Sharing::Exclusive);
    let root = served.root();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let root = &root;
            scope.spawn(move || {
                for i in 0..200 {
                    let name = format!("{thread}-{i}");
                    let inode = root.create(name.as_bytes(), mine(0o644)).unwrap();
                    let found = root.lookup(name.as_bytes()).unwrap();
                    assert!(Arc::ptr_eq(&inode, &found));
                    root.unlink(name.as_bytes(), &inode).unwrap();
                }
            });
        }
    });
    assert_eq!(fs::read_dir(served.dir.path()).unwrap().count(), 0);
}

#[test]
fn many_opened_files_keep_few_descriptors() {
    let served = serve_dir(Sharing::Exclusive);
    let root = served.root();
    // Other tests have descriptors of their own.
    let ours = |fd: &PathBuf| fs::read_link(fd).is_ok_and(|target| target.starts_with(served.dir.path()));
    let count = || fs::read_dir("/proc/self/fd").unwrap().map(|fd| fd.unwrap().path()).filter(ours).count();
    let inodes: Vec<_> = (0..3 * IDLE_HANDLES)
        .map(|i| {
            fs::write(served.host(&format!("f{i}")), i.to_string()).unwrap();
            root.lookup(format!("f{i}").as_bytes()).unwrap()
        })
        .collect();
    let before = count();
    for (i, inode) in inodes.iter().enumerate() {
        let file = served.open(inode, OpenFlags::empty()).unwrap();
        assert_eq!(read_all(&file), i.to_string().as_bytes());
    }
    assert!(count() < before + IDLE_HANDLES + 100, "{} after {before}", count());
    let first = served.open(&inodes[0], OpenFlags::empty()).unwrap();
    assert_eq!(read_all(&first), b"0", "opened again");
}
