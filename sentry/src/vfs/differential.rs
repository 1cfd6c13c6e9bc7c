//! The same calls on the host's file system and on tmpfs: every result must be the same.
//!
//! Sequences are random but the same in every run. Both sides work in a directory so deep that no path of theirs can leave
//! the tree upwards.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use caisson_gofer::host::{Host as GoferHost, Mounts};
use caisson_gofer::{MountOptions, Session};
use caisson_proto::lisafs::reply::MountFlags as Allows;
use nix::fcntl::{AtFlags, OFlag, RenameFlags as HostRename};
use nix::sys::stat::{Mode, SFlag};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::errno::{Errno, SysResult};
use crate::fs::gofer::{GoferFs, Sharing};
use crate::fs::tmpfs::{Tmpfs, TmpfsOptions};
use crate::task::{Capability, Credentials};
use crate::vfs::{
    Caller, Device, DirEntry, DirSink, FileSystem, FsContext, Mount, MountFlags, MountNamespace, NodeKind,
    OpenHow, RenameFlags, Superblock, WalkFlags,
};

/// More levels than links can be followed upwards in one walk.
const DEPTH: usize = 48;

/// One call.
#[derive(Clone, Debug)]
enum Call {
    Mkdir(String, u32),
    Mkfifo(String, u32),
    Rmdir(String),
    Unlink(String),
    Rename(String, String, u32),
    Link(String, String, bool),
    Symlink(String, String),
    Open(String, i32, u32),
    Stat(String, bool),
    Readlink(String),
    Truncate(String, u64),
    Chmod(String, u32),
    List(String),
}

/// What a call says.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Done,
    Text(String),
    Names(Vec<String>),
    /// Full mode, links, size (0 for directories).
    File(u32, u64, u64),
}

fn describe(mode: u32, nlink: u64, size: u64) -> Answer {
    let directory = mode & libc::S_IFMT == libc::S_IFDIR;
    Answer::File(mode, nlink, if directory { 0 } else { size })
}

struct Host {
    top: PathBuf,
    /// The working directory by descriptor: who may not search the directories above may still work in it.
    base: PathBuf,
    _directory: std::fs::File,
}

impl Host {
    fn new() -> Host {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let top = scratch().join(format!("caisson-differential-{}-{number}", std::process::id()));
        let base = (0..DEPTH).fold(top.clone(), |path, _| path.join("n"));
        std::fs::create_dir_all(&base).unwrap();
        let directory = std::fs::File::open(&base).unwrap();
        let base = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
        Host { top, base, _directory: directory }
    }

    fn run(&self, call: &Call) -> Result<Answer, Errno> {
        use nix::{fcntl, sys::stat, unistd};
        let at = |path: &str| {
            let mut full = self.base.as_os_str().to_os_string();
            full.push("/");
            full.push(path);
            PathBuf::from(full)
        };
        let mode = Mode::from_bits_truncate;
        let show = |stat: stat::FileStat| describe(stat.st_mode, stat.st_nlink, stat.st_size as u64);
        let done = |result: nix::Result<()>| result.map(|()| Answer::Done);
        let cwd = fcntl::AT_FDCWD;
        Ok(match call {
            Call::Mkdir(path, bits) => done(unistd::mkdir(&at(path), mode(*bits)))?,
            Call::Mkfifo(path, bits) => done(stat::mknod(&at(path), SFlag::S_IFIFO, mode(*bits), 0))?,
            Call::Rmdir(path) => done(unistd::unlinkat(cwd, &at(path), unistd::UnlinkatFlags::RemoveDir))?,
            Call::Unlink(path) => done(unistd::unlink(&at(path)))?,
            Call::Rename(old, new, flags) => {
                let flags = HostRename::from_bits_truncate(*flags);
                done(fcntl::renameat2(cwd, &at(old), cwd, &at(new), flags))?
            }
            Call::Link(old, new, follow) => {
                let flags = if *follow { AtFlags::AT_SYMLINK_FOLLOW } else { AtFlags::empty() };
                done(unistd::linkat(cwd, &at(old), cwd, &at(new), flags))?
            }
            Call::Symlink(target, path) => done(unistd::symlinkat(target.as_str(), cwd, &at(path)))?,
            Call::Open(path, flags, bits) => {
                let flags = OFlag::from_bits_retain(*flags | libc::O_NONBLOCK);
                show(stat::fstat(&fcntl::open(&at(path), flags, mode(*bits))?)?)
            }
            Call::Stat(path, true) => show(stat::stat(&at(path))?),
            Call::Stat(path, false) => show(stat::lstat(&at(path))?),
            Call::Readlink(path) => Answer::Text(fcntl::readlink(&at(path))?.to_string_lossy().into_owned()),
            Call::Truncate(path, size) => done(unistd::truncate(&at(path), *size as i64))?,
            Call::Chmod(path, bits) => {
                done(stat::fchmodat(cwd, &at(path), mode(*bits), stat::FchmodatFlags::FollowSymlink))?
            }
            Call::List(path) => {
                let entries = std::fs::read_dir(at(path))?;
                let mut names: Vec<String> =
                    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
                names.sort();
                Answer::Names(names)
            }
        })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.top);
    }
}

/// Whose files the sandbox's are.
#[derive(Clone, Copy, Debug)]
enum Backing {
    Tmpfs,
    Gofer(Sharing),
}

struct Sandbox {
    _namespace: Arc<MountNamespace>,
    fs: Arc<FsContext>,
    caller: Caller<'static>,
    _served: Option<Served>,
}

/// A directory of the host and the server for it, which ends with the connection.
struct Served {
    _dir: tempfile::TempDir,
}

fn serve() -> (Served, OwnedFd) {
    let dir = tempfile::tempdir_in(scratch()).unwrap();
    let (server, client) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let root = rustix::fs::open(dir.path(), rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    let options = MountOptions { flags: Allows::empty(), mounts: Mounts::Stay, objects: 100_000 };
    let session = Arc::new(Session::new(Arc::new(GoferHost::from_proc().unwrap()), root, options).unwrap());
    std::thread::spawn(move || caisson_gofer::serve(&session, server));
    (Served { _dir: dir }, client)
}

fn file_system(backing: Backing) -> (Arc<dyn FileSystem>, Option<Served>) {
    match backing {
        Backing::Tmpfs => (Tmpfs::new(TmpfsOptions::default()).unwrap(), None),
        Backing::Gofer(sharing) => {
            let (served, client) = serve();
            (GoferFs::mount(client, sharing, Device::new_anonymous()).unwrap(), Some(served))
        }
    }
}

/// A place on a tmpfs, if there is one.
fn scratch() -> PathBuf {
    let shm = PathBuf::from("/dev/shm");
    if shm.is_dir() { shm } else { std::env::temp_dir() }
}

/// The credentials of this process, or those it has while its file-system ids are `id`.
fn credentials(id: Option<u32>) -> Arc<Credentials> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let (uid, gid) = id.map_or((uid.as_raw(), gid.as_raw()), |id| (id, id));
    let capabilities = if uid == 0 { Capability::all() } else { Capability::empty() };
    let groups = nix::unistd::getgroups().unwrap().iter().map(|gid| gid.as_raw()).collect();
    Arc::new(Credentials::new(uid, gid, groups, capabilities))
}

impl Sandbox {
    fn become_user(&mut self, id: u32) {
        self.caller = Caller::new(credentials(Some(id)), &self.fs, None);
    }

    fn new(backing: Backing) -> Sandbox {
        let (fs, served) = file_system(backing);
        let superblock = Superblock::new(fs, b"files").unwrap();
        let namespace = MountNamespace::new(Mount::new(superblock, MountFlags::empty()));
        let fs = FsContext::new(namespace.root());
        let credentials = credentials(None);
        let root = Caller::kernel(namespace.root());
        let base = (0..DEPTH).fold(namespace.root(), |at, _| root.mkdir(&at, b"n", 0o755).unwrap());
        root.chown(&base, Some(credentials.uid), Some(credentials.gid)).unwrap();
        fs.set_cwd(base);
        // The umask of this process, which nothing here changes.
        let umask = nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
        nix::sys::stat::umask(umask);
        fs.set_umask(umask.bits());
        Sandbox { _namespace: namespace, caller: Caller::new(credentials, &fs, None), fs, _served: served }
    }

    fn run(&self, call: &Call) -> SysResult<Answer> {
        let caller = &self.caller;
        let cwd = caller.cwd();
        let find = |path: &str, follow: bool| {
            let flags = if follow { WalkFlags::FOLLOW } else { WalkFlags::empty() };
            caller.lookup(cwd, path.as_bytes(), flags)
        };
        Ok(match call {
            Call::Mkdir(path, mode) => caller.mkdir(cwd, path.as_bytes(), *mode).map(|_| Answer::Done)?,
            Call::Mkfifo(path, mode) => {
                caller.mknod(cwd, path.as_bytes(), *mode, NodeKind::Fifo).map(|_| Answer::Done)?
            }
            Call::Rmdir(path) => caller.rmdir(cwd, path.as_bytes()).map(|()| Answer::Done)?,
            Call::Unlink(path) => caller.unlink(cwd, path.as_bytes()).map(|()| Answer::Done)?,
            Call::Rename(old, new, flags) => {
                let flags = RenameFlags::from_bits_truncate(*flags);
                caller.rename((cwd, old.as_bytes()), (cwd, new.as_bytes()), flags)?;
                Answer::Done
            }
            Call::Link(old, new, follow) => {
                caller.link(&find(old, *follow)?, cwd, new.as_bytes()).map(|_| Answer::Done)?
            }
            Call::Symlink(target, path) => {
                caller.symlink(target.as_bytes(), cwd, path.as_bytes()).map(|_| Answer::Done)?
            }
            Call::Open(path, flags, mode) => {
                let how = OpenHow::from_open((*flags | libc::O_NONBLOCK) as u32, *mode)?;
                // FIFOs as the host's with O_NONBLOCK and no partner.
                let writes = *flags & libc::O_ACCMODE == libc::O_WRONLY;
                let fifo = if writes { Err(Errno::ENXIO) } else { Ok(()) };
                let mut special = |_: &_, _| fifo.map(|()| Arc::new(NoOps) as Arc<dyn super::FileOps>);
                let file = caller.open(cwd, path.as_bytes(), &how, &mut special)?;
                let attr = file.inode().attr()?;
                describe(attr.full_mode(), u64::from(attr.nlink), attr.size)
            }
            Call::Stat(path, follow) => {
                let attr = find(path, *follow)?.inode().attr()?;
                describe(attr.full_mode(), u64::from(attr.nlink), attr.size)
            }
            Call::Readlink(path) => {
                let text = find(path, false)?.inode().readlink(caller)?;
                Answer::Text(String::from_utf8_lossy(&text).into_owned())
            }
            Call::Truncate(path, size) => {
                caller.truncate(&find(path, true)?, *size).map(|()| Answer::Done)?
            }
            Call::Chmod(path, mode) => caller.chmod(&find(path, true)?, *mode).map(|()| Answer::Done)?,
            Call::List(path) => self.list(path)?,
        })
    }

    fn list(&self, path: &str) -> SysResult<Answer> {
        struct Names(Vec<String>);
        impl DirSink for Names {
            fn emit(&mut self, entry: DirEntry<'_>) -> bool {
                if entry.name != b"." && entry.name != b".." {
                    self.0.push(String::from_utf8_lossy(entry.name).into_owned());
                }
                true
            }
        }
        let flags = libc::O_DIRECTORY | libc::O_NONBLOCK;
        let how = OpenHow::from_open(flags as u32, 0)?;
        let refuse = &mut |_: &_, _| Err(Errno::ENXIO);
        let file = self.caller.open(self.caller.cwd(), path.as_bytes(), &how, refuse)?;
        let mut names = Names(Vec::new());
        file.with_position(|position| file.ops().iterate(&file, position, &mut names))?;
        names.0.sort();
        Ok(Answer::Names(names.0))
    }
}

struct NoOps;
impl super::FileOps for NoOps {}

struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % below
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.next(of.len())].clone()
    }

    fn name(&mut self) -> &'static str {
        self.pick(&["a", "b", "c", "d", "a", "b", "c", "d", "a", "b", ".", ".."])
    }

    fn path(&mut self) -> String {
        let mut path = String::new();
        let components = self.pick(&[1, 1, 1, 2, 2, 3]);
        let mut ups = 0;
        for n in 0..components {
            if n > 0 {
                path.push_str(self.pick(&["/", "/", "/", "//", "/./"]));
            }
            let mut name = self.name();
            // Not out of the working directory, except into it again.
            if name == ".." {
                ups += 1;
                if ups > n - n / 2 {
                    name = "a";
                }
            }
            path.push_str(name);
        }
        if self.next(8) == 0 {
            path.push('/');
        }
        path
    }

    fn target(&mut self) -> String {
        self.pick(&["a", "b", "c", "d", "../a", "../b", "a/b", "./c", "..", ".", "b/", "nowhere", "a/../b"])
            .into()
    }

    fn call(&mut self) -> Call {
        let mode = self.pick(&[0o777, 0o755, 0o644, 0o600, 0o4755, 0o2755, 0o1777, 0o700]);
        match self.next(30) {
            0..4 => Call::Mkdir(self.path(), mode),
            4..6 => Call::Rmdir(self.path()),
            6..9 => Call::Unlink(self.path()),
            9..14 => {
                let flags = self.pick(&[
                    0,
                    0,
                    0,
                    libc::RENAME_NOREPLACE,
                    libc::RENAME_EXCHANGE,
                    libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE,
                ]);
                Call::Rename(self.path(), self.path(), flags)
            }
            14..16 => Call::Link(self.path(), self.path(), self.next(2) == 0),
            16..18 => Call::Symlink(self.target(), self.path()),
            18..24 => {
                let access = self.pick(&[libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR, libc::O_RDWR]);
                let mut flags = access;
                for flag in [
                    libc::O_CREAT,
                    libc::O_CREAT,
                    libc::O_EXCL,
                    libc::O_TRUNC,
                    libc::O_DIRECTORY,
                    libc::O_NOFOLLOW,
                    libc::O_PATH,
                    libc::O_TMPFILE,
                ] {
                    let likely = if flag == libc::O_CREAT { 2 } else { 6 };
                    if self.next(likely) == 0 && (flag != libc::O_TMPFILE || self.next(4) == 0) {
                        flags |= flag;
                    }
                }
                Call::Open(self.path(), flags, mode)
            }
            24 => Call::Stat(self.path(), self.next(2) == 0),
            25 => Call::Readlink(self.path()),
            26 => Call::Truncate(self.path(), self.pick(&[0, 5, 5000])),
            27 => Call::Chmod(self.path(), mode),
            28 => Call::List(self.path()),
            _ => Call::Mkfifo(self.path(), mode),
        }
    }
}

/// A call on which this host's settings of `fs.protected_*` have no say; the sandbox has 1 for links and 0 for the others.
fn without_host_policy(mut call: Call) -> Call {
    let set = |name: &str| {
        std::fs::read_to_string(format!("/proc/sys/fs/protected_{name}")).is_ok_and(|text| text.trim() != "0")
    };
    let sticky_differs = set("regular") || set("fifos");
    match &mut call {
        Call::Symlink(_, path) if !set("symlinks") => Call::List(path.clone()),
        Call::Link(_, path, _) if !set("hardlinks") => Call::List(path.clone()),
        Call::Mkdir(_, mode) | Call::Chmod(_, mode) if sticky_differs => {
            *mode &= 0o6777;
            call
        }
        _ => call,
    }
}

/// Who makes the calls.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Users {
    /// This process as it is.
    Own,
    /// Root and two others in turn (needs root).
    Several,
}

/// Runs `calls` random calls on both sides; how many succeeded.
fn compare(seed: u64, calls: usize, backing: Backing, users: Users) -> usize {
    let (host, mut sandbox) = (Host::new(), Sandbox::new(backing));
    let mut random = Random(seed);
    let mut history: Vec<(u32, Call, Result<Answer, Errno>)> = Vec::new();
    let start = [
        Call::Mkdir("a".into(), 0o755),
        Call::Mkdir("a/b".into(), 0o755),
        Call::Open("a/c".into(), libc::O_CREAT | libc::O_RDWR, 0o644),
        Call::Mkdir("d".into(), 0o755),
        Call::Chmod(".".into(), 0o777),
    ];
    for n in 0..calls {
        let call = start.get(n).cloned().unwrap_or_else(|| random.call());
        let call = if users == Users::Several { without_host_policy(call) } else { call };
        let user =
            if n < start.len() || users == Users::Own { 0 } else { random.pick(&[0, 1000, 1000, 1001]) };
        if users == Users::Several {
            sandbox.become_user(user);
            // These ids belong to this thread alone.
            nix::unistd::setfsgid(user.into());
            nix::unistd::setfsuid(user.into());
        }
        let expected = host.run(&call);
        if users == Users::Several {
            nix::unistd::setfsuid(0.into());
            nix::unistd::setfsgid(0.into());
        }
        let got = sandbox.run(&call);
        if got != expected {
            for (user, call, answer) in &history {
                if answer.is_ok() {
                    eprintln!("    {user}: {call:?} = {answer:?}");
                }
            }
            panic!("seed {seed}, user {user}: {call:?}\n   host: {expected:?}\nsandbox: {got:?}");
        }
        history.push((user, call, expected));
    }
    history.iter().filter(|(_, _, answer)| answer.is_ok()).count()
}

fn compare_many(sequences: u64, backing: Backing, users: Users) {
    if users == Users::Several && !nix::unistd::geteuid().is_root() {
        return;
    }
    let calls = 120;
    let succeeded: usize = (0..sequences).map(|seed| compare(seed, calls, backing, users)).sum();
    let all = sequences as usize * calls;
    assert!(succeeded > all / 6, "only {succeeded} of {all} calls succeeded: the sequences test too little");
}

#[test]
fn random_calls_on_tmpfs_have_the_host_s_results() {
    compare_many(300, Backing::Tmpfs, Users::Own);
}

#[test]
fn random_calls_of_several_users_on_tmpfs_have_the_host_s_results() {
    compare_many(300, Backing::Tmpfs, Users::Several);
}

#[test]
fn random_calls_on_a_gofer_s_files_have_the_host_s_results() {
    compare_many(60, Backing::Gofer(Sharing::Exclusive), Users::Own);
    compare_many(60, Backing::Gofer(Sharing::Shared), Users::Own);
}

#[test]
fn random_calls_of_several_users_on_a_gofer_s_files_have_the_host_s_results() {
    compare_many(60, Backing::Gofer(Sharing::Exclusive), Users::Several);
}
