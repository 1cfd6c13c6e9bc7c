//! Calls that dispatchers make, from the posted request to the answer, without a guest and its machine.
//!
//! With `CAISSON_BENCH_CALLS=1000000` in the environment, the test prints what each of them costs; use a release build, and
//! `--nocapture`.

use std::time::Instant;

use caisson_gofer::host::{Host, Mounts};
use caisson_gofer::{MountOptions, Session, serve};
use caisson_platform_kvm::LooseSlot;
use linux_raw_sys::general::AT_FDCWD;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::super::Namespaces;
use super::*;
use crate::fs::gofer::{GoferFs, Sharing};
use crate::fs::tmpfs::{Tmpfs, TmpfsOptions};
use crate::kernel::testing::{MEMORY, TestKernel};
use crate::syscalls::numbers as n;
use crate::vfs::{Device, FileSystem, Mount, MountFlags, MountNamespace, Superblock};

/// Where the paths and buffers of the calls are.
const PATH: u64 = MEMORY;
const BUFFER: u64 = MEMORY + 0x2000;

fn gofer(dir: &std::path::Path) -> Arc<dyn FileSystem> {
    let (server, client) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let root = rustix::fs::open(dir, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    let flags = caisson_proto::lisafs::reply::MountFlags::empty();
    let options = MountOptions { flags, mounts: Mounts::Stay, objects: 1000 };
    let session = Session::new(Arc::new(Host::from_proc().unwrap()), root, options).unwrap();
    let session = Arc::new(session);
    std::thread::spawn(move || serve(&session, server));
    GoferFs::mount(client, Sharing::Exclusive, Device::new_anonymous()).unwrap()
}

struct Guest {
    handover: Arc<Handover>,
    slot: LooseSlot,
    _kernel: TestKernel,
}

impl Guest {
    /// A guest thread whose root is this file system.
    fn new(root: Arc<dyn FileSystem>) -> Guest {
        let kernel = TestKernel::boot();
        let (task, local) = kernel.prepare([]);
        let superblock = Superblock::new(root, b"root").unwrap();
        let namespace = MountNamespace::new(Mount::new(superblock, MountFlags::empty()));
        task.fs().update(|places| {
            places.root = namespace.root();
            places.cwd = namespace.root();
        });
        let mut namespaces = Namespaces::clone(&task.namespaces());
        namespaces.mount = namespace;
        task.set_namespaces(Arc::new(namespaces));
        Guest { handover: Handover::new(task, local), slot: LooseSlot::default(), _kernel: kernel }
    }

    fn call(&mut self, number: u32, args: &[u64]) -> u64 {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        self.slot.call(&*self.handover, number.into(), all).unwrap()
    }

    fn mm(&self) -> Arc<crate::mm::Mm> {
        self.handover.task.mm()
    }

    fn put(&self, at: u64, text: &[u8]) {
        self.mm().write_bytes(at, text).unwrap();
    }
}

fn calls() -> u32 {
    std::env::var("CAISSON_BENCH_CALLS").ok().and_then(|calls| calls.parse().ok()).unwrap_or(50)
}

/// Makes the calls of `round` again and again. Prints the least of several measurements.
fn repeat(name: &str, guest: &mut Guest, mut round: impl FnMut(&mut Guest)) {
    let wanted = std::env::var("CAISSON_BENCH_ROW").unwrap_or_default();
    if !name.contains(&wanted) {
        return;
    }
    let mut least = f64::MAX;
    for _ in 0..5 {
        let begun = Instant::now();
        for _ in 0..calls() / 5 {
            round(guest);
        }
        least = least.min(begun.elapsed().as_nanos() as f64 * 5.0 / f64::from(calls()));
    }
    println!("{name:24} {least:8.1} ns");
}

fn pair_in_buffer(guest: &Guest) -> [u64; 2] {
    guest.mm().copy_in::<[u32; 2]>(BUFFER).unwrap().map(u64::from)
}

fn files(guest: &mut Guest, on: &str) {
    const AT: u64 = AT_FDCWD as u64;
    let name = |call: &str| format!("{call} ({on})");
    guest.put(PATH, b"/etc/passwd\0");
    repeat(&name("stat"), guest, |guest| {
        assert_eq!(guest.call(n::newfstatat, &[AT, PATH, BUFFER, 0]), 0);
    });
    repeat(&name("open+close"), guest, |guest| {
        let fd = guest.call(n::openat, &[AT, PATH, 0, 0]);
        assert!(fd < 10);
        assert_eq!(guest.call(n::close, &[fd]), 0);
    });
    guest.put(PATH, b"/none\0");
    repeat(&name("stat of nothing"), guest, |guest| {
        let result = guest.call(n::newfstatat, &[AT, PATH, BUFFER, 0]);
        assert_eq!(result as i64, -i64::from(linux_raw_sys::errno::ENOENT));
    });
    guest.put(PATH, b"/etc/passwd\0");
    let fd = guest.call(n::openat, &[AT, PATH, 2, 0]);
    repeat(&name("pread 64"), guest, |guest| {
        assert_eq!(guest.call(n::pread64, &[fd, BUFFER, 64, 0]), 64);
    });
    repeat(&name("pwrite 4096"), guest, |guest| {
        assert_eq!(guest.call(n::pwrite64, &[fd, BUFFER, 4096, 0]), 4096);
    });
    guest.call(n::close, &[fd]);
}

#[test]
fn calls_of_dispatchers() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("etc")).unwrap();
    std::fs::write(dir.path().join("etc/passwd"), [b'x'; 4096]).unwrap();
    let guest = &mut Guest::new(gofer(dir.path()));
    repeat("getpid", guest, |guest| {
        assert!(guest.call(n::getpid, &[]) > 0);
    });
    files(guest, "root");

    guest.call(n::pipe2, &[BUFFER, 0]);
    let [reader, writer] = pair_in_buffer(guest);
    repeat("pipe write+read", guest, |guest| {
        assert_eq!(guest.call(n::write, &[writer, BUFFER, 1]), 1);
        assert_eq!(guest.call(n::read, &[reader, BUFFER, 1]), 1);
    });
    guest.call(n::socketpair, &[1, 1, 0, BUFFER]);
    let [one, other] = pair_in_buffer(guest);
    repeat("unix write+read 64", guest, |guest| {
        assert_eq!(guest.call(n::write, &[one, BUFFER, 64]), 64);
        assert_eq!(guest.call(n::read, &[other, BUFFER, 64]), 64);
    });

    let guest = &mut Guest::new(Tmpfs::new(TmpfsOptions::default()).unwrap());
    guest.put(PATH, b"/etc\0");
    assert_eq!(guest.call(n::mkdir, &[PATH, 0o755]), 0);
    guest.put(PATH, b"/etc/passwd\0");
    let fd = guest.call(n::open, &[PATH, 0o102, 0o644]);
    assert_eq!(guest.call(n::pwrite64, &[fd, BUFFER, 4096, 0]), 4096);
    files(guest, "tmpfs");
}
