//! Kernels for unit tests: the fake platform, processes whose threads play scripts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use linux_raw_sys::general as linux;

use super::cgroup::Cgroup;
use super::container::{ExitListener, ProcessExit};
use super::system_info::SystemInfo;
use super::{Kernel, KernelConfig};
use crate::fs::tmpfs::{Tmpfs, TmpfsOptions};
use crate::mm::{Entropy, Layout, MapFlags, MapRequest, MemoryLimits, Mm, Prot, Randomize};
use crate::platform::fake::{FakePlatform, FakeSpace, Step};
use crate::platform::{Exit, Platform, Registers};
use crate::task::birth::{GroupParts, Parentage, TaskParts, link};
use crate::task::rlimit::Rlimits;
use crate::task::signal::{Signal, SignalHandlers, SignalSet};
use crate::task::{Attributes, Credentials, Namespaces, Pid, PidNamespace, Task, TaskLocal, ThreadGroup};
use crate::vfs::{FdTable, FsContext, Mount, MountFlags, MountNamespace, Superblock};

struct Silent;

impl ExitListener for Silent {
    fn process_exited(&self, _: ProcessExit) {}
}

/// Where tests have readable and writable memory.
pub const MEMORY: u64 = 0x10_0000;
/// Bytes of it.
pub const MEMORY_SIZE: u64 = 64 << 10;

/// A kernel on a fake platform.
pub struct TestKernel {
    /// The kernel.
    pub kernel: Arc<Kernel>,
    /// Its platform; push scripts before threads are made.
    pub platform: Arc<FakePlatform>,
    /// What its processes live in.
    pub namespaces: Arc<Namespaces>,
    /// The container.
    pub cgroup: Arc<Cgroup>,
}

impl TestKernel {
    /// A kernel with one pid namespace besides its own.
    pub fn boot() -> TestKernel {
        let platform = FakePlatform::new();
        let config = KernelConfig { hostname: "test".into(), system_info: SystemInfo::from_host() };
        let kernel = Kernel::new(platform.clone(), Arc::new(Silent), config).unwrap();
        let root = Superblock::new(Tmpfs::new(TmpfsOptions::default()).unwrap(), b"tmpfs").unwrap();
        let mount = MountNamespace::new(Mount::new(root, MountFlags::empty()));
        let shared = kernel.shared_namespaces();
        let namespaces = Namespaces {
            uts: shared.uts.clone(),
            ipc: shared.ipc.clone(),
            mount,
            net: shared.net.clone(),
            user: shared.user.clone(),
            pid_for_children: PidNamespace::new(Some(kernel.pid_namespace())).unwrap(),
        };
        TestKernel { kernel, platform, namespaces: Arc::new(namespaces), cgroup: Cgroup::new(0) }
    }

    /// The pid namespace that processes are in.
    pub fn pids(&self) -> &Arc<PidNamespace> {
        &self.namespaces.pid_for_children
    }

    /// A process from outside that is visible and does not run; its first thread would play `steps`.
    pub fn prepare(&self, steps: impl IntoIterator<Item = Step>) -> (Arc<Task>, TaskLocal) {
        self.platform.push(steps);
        let machine = self.platform.new_thread().unwrap();
        let platform: Arc<dyn Platform> = self.platform.clone();
        let layout = Layout::new(&mut Entropy::seeded(7), 8 << 20, Randomize::No);
        let mm = Mm::new(&platform, layout, MemoryLimits::default()).unwrap();
        let prot = Prot::READ | Prot::WRITE;
        let request =
            MapRequest { addr: MEMORY, len: MEMORY_SIZE, prot, flags: MapFlags::FIXED, backing: None };
        assert_eq!(mm.mmap(request), Ok(MEMORY));
        let pid = Pid::allocate(self.pids()).unwrap();
        let parts = GroupParts {
            cgroup: self.cgroup.clone(),
            handlers: Arc::new(SignalHandlers::default()),
            rlimits: Arc::new(Rlimits::default()),
            job: None,
            exit_signal: Some(Signal::CHLD),
            oom_score_adj: 0,
        };
        let group = ThreadGroup::new(&self.kernel, pid.clone(), parts);
        let parts = TaskParts {
            credentials: Arc::new(Credentials::root()),
            namespaces: self.namespaces.clone(),
            mm: mm.clone(),
            files: Arc::new(FdTable::default()),
            fs: FsContext::new(self.namespaces.mount.root()),
            blocked: SignalSet::EMPTY,
            comm: b"test".to_vec(),
            attributes: Attributes::default(),
            kicker: machine.kicker(),
        };
        let task = Task::new(&self.kernel, group, pid, parts).unwrap();
        let registers =
            Registers { rip: 0x40_0000, rsp: MEMORY + MEMORY_SIZE, rflags: 0x202, ..Registers::default() };
        let local = TaskLocal::new(machine, &mm, registers);
        link(&mut self.kernel.tree(), &task, Parentage::Outside).unwrap();
        (task, local)
    }

    /// Starts a process from outside.
    pub fn spawn(&self, steps: impl IntoIterator<Item = Step>) -> Arc<Task> {
        let (task, local) = self.prepare(steps);
        self.kernel.reserve_thread().unwrap().go(task.clone(), local);
        task
    }

    /// Waits until nobody is left in the namespace and the container.
    pub fn expect_deserted(&self) {
        // The test itself may still hold a task, and with it a number.
        let nobody = || self.pids().pids().iter().all(|pid| pid.task().is_none());
        eventually("everybody is gone", || nobody() && self.cgroup.pids() == 0);
    }
}

/// Fails the test if `condition` does not come true within ten seconds.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A step that makes a system call.
pub fn call(number: u32, args: [u64; 6]) -> Step {
    Box::new(move |registers: &mut Registers, _: &FakeSpace| {
        set_call(registers, number, args);
        Exit::Syscall
    })
}

/// Puts a call into the registers, as the `syscall` instruction leaves them.
pub fn set_call(registers: &mut Registers, number: u32, args: [u64; 6]) {
    registers.rax = number.into();
    [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] = args;
    registers.rip = registers.rip.wrapping_add(2);
}

/// A step that makes a system call after looking at the result of the one before.
pub fn call_after(number: u32, args: [u64; 6], mut look: impl FnMut(&Registers) + Send + 'static) -> Step {
    Box::new(move |registers: &mut Registers, _: &FakeSpace| {
        look(registers);
        set_call(registers, number, args);
        Exit::Syscall
    })
}

/// A step that ends the process.
pub fn exit_group(status: u64) -> Step {
    call(linux::__NR_exit_group, [status, 0, 0, 0, 0, 0])
}

/// A script that blocks for ever, restarting whenever the kernel asks for it.
pub fn sleep_for_ever() -> Vec<Step> {
    (0..1000).map(|_| call(linux::__NR_pause, [0; 6])).collect()
}
