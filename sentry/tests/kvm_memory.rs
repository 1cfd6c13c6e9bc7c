//! Guest code in a real address space: faults, copy-on-write and the vDSO on the machine's KVM.
//! Without a usable `/dev/kvm` the tests say so and pass.

use std::sync::Arc;
use std::time::Instant;

use caisson_platform_kvm::{MachineConfig, open_kvm};
use caisson_sentry::loader::vdso::{self, Vdso};
use caisson_sentry::mm::{
    Entropy, FaultOutcome, Layout, MapFlags, MapRequest, MemoryAccess, MemoryLimits, Mm, Prot, Randomize,
};
use caisson_sentry::platform::kvm::KvmPlatform;
use caisson_sentry::platform::{Arena, ArenaConfig, Exit, GuestThread, PAGE_SIZE, Platform, Registers};
use caisson_sentry::time::{Clocks, Counter, SystemClock};

/// `loop: movb $1,(%rdi); add $4096,%rdi; dec %rsi; jnz loop; syscall`
const TOUCH: &[u8] = b"\xc6\x07\x01\x48\x81\xc7\x00\x10\x00\x00\x48\xff\xce\x75\xf1\x0f\x05";
/// `loop: movzbl (%rdi),%eax; add %rax,%rbx; add $4096,%rdi; dec %rsi; jnz loop; syscall`
const SUM: &[u8] = b"\x0f\xb6\x07\x48\x01\xc3\x48\x81\xc7\x00\x10\x00\x00\x48\xff\xce\x75\xee\x0f\x05";
/// `loop: push %rdx; push %rdi; push %rsi; call *%rdx; pop %rsi; pop %rdi; pop %rdx; dec %rbx; jnz loop; syscall`
const CALL: &[u8] = b"\x52\x57\x56\xff\xd2\x5e\x5f\x5a\x48\xff\xcb\x75\xf3\x0f\x05";

fn platform() -> Option<Arc<dyn Platform>> {
    let kvm = match open_kvm() {
        Ok(kvm) => kvm,
        Err(error) => {
            eprintln!("skipped: {error}");
            return None;
        }
    };
    let config = ArenaConfig { anonymous_bytes: 4 << 30, window_bytes: 1 << 30, max_frames: u32::MAX };
    let arena = Arena::new(config).unwrap();
    Some(KvmPlatform::new(kvm, arena, MachineConfig::default()).unwrap())
}

struct Guest {
    mm: Arc<Mm>,
    thread: Box<dyn GuestThread>,
    code: u64,
    stack: u64,
}

impl Guest {
    fn new(platform: &Arc<dyn Platform>, mm: Arc<Mm>) -> Guest {
        let code = anonymous(&mm, PAGE_SIZE, Prot::all());
        let stack = anonymous(&mm, 16 * PAGE_SIZE, Prot::READ | Prot::WRITE) + 15 * PAGE_SIZE;
        Guest { thread: platform.new_thread().unwrap(), mm, code, stack }
    }

    /// Runs code until its system call; returns the registers and the faults it took.
    fn run(&mut self, code: &[u8], mut registers: Registers) -> (Registers, u32) {
        self.mm.write_bytes(self.code, code).unwrap();
        registers.rip = self.code;
        registers.rsp = self.stack;
        registers.rflags = 2;
        let mut faults = 0;
        loop {
            match self.thread.run(&mut registers, self.mm.space()).unwrap() {
                Exit::Syscall => return (registers, faults),
                Exit::PageFault { addr, write, exec, .. } => {
                    faults += 1;
                    assert!(faults < 100_000, "faults for ever at {addr:#x}");
                    let outcome = self.mm.fault(addr, MemoryAccess::from_exit(write, exec));
                    assert_eq!(outcome, FaultOutcome::Resolved, "at {addr:#x}");
                }
                Exit::Interrupted => {}
                other => panic!("{other:?} at {:#x}", registers.rip),
            }
        }
    }
}

fn anonymous(mm: &Mm, len: u64, prot: Prot) -> u64 {
    mm.mmap(MapRequest { addr: 0, len, prot, flags: MapFlags::empty(), backing: None }).unwrap()
}

fn new_mm(platform: &Arc<dyn Platform>) -> Arc<Mm> {
    let layout = Layout::new(&mut Entropy::from_host(), 8 << 20, Randomize::Yes);
    Mm::new(platform, layout, MemoryLimits::default()).unwrap()
}

#[test]
fn memory_clocks_and_fork() {
    let Some(platform) = platform() else { return };
    let arena = platform.arena();
    eprintln!("{}", platform.describe());
    touch_and_fork(&platform);
    assert_eq!(arena.frames_in_use(), 0, "every frame came back");
    clocks(&platform);
    assert_eq!(arena.frames_in_use(), 0, "every frame came back");
}

fn touch_and_fork(platform: &Arc<dyn Platform>) {
    const PAGES: u64 = 16384;
    let mut guest = Guest::new(platform, new_mm(platform));
    let memory = anonymous(&guest.mm, PAGES * PAGE_SIZE, Prot::READ | Prot::WRITE);
    let all = Registers { rdi: memory, rsi: PAGES, ..Registers::default() };
    let start = Instant::now();
    let (_, faults) = guest.run(TOUCH, all);
    let each = start.elapsed().as_nanos() / u128::from(PAGES);
    eprintln!("first touch of {PAGES} pages: {faults} faults, {each} ns a page");
    assert!(faults < 64, "{faults} faults");

    let start = Instant::now();
    let mut child = Guest {
        mm: guest.mm.fork().unwrap(),
        thread: platform.new_thread().unwrap(),
        code: guest.code,
        stack: guest.stack,
    };
    eprintln!("fork of 64 MiB: {} us", start.elapsed().as_micros());
    // Both write their own half, and then see only that.
    guest.mm.write_bytes(memory, &[7]).unwrap();
    let mut seven = Registers { rdi: memory + PAGE_SIZE, rsi: 99, ..Registers::default() };
    child.mm.write_bytes(memory + 100 * PAGE_SIZE, &[9]).unwrap();
    guest.run(TOUCH, seven);
    let (sum, faults) = child.run(SUM, Registers { rsi: 200, ..all });
    assert_eq!(sum.rbx, 199 + 9);
    eprintln!("child read 200 pages with {faults} faults");
    let (sum, _) = guest.run(SUM, Registers { rsi: 200, ..all });
    assert_eq!(sum.rbx, 199 + 7);
    drop(child);
    // Alone again: writing is in place, and unmapping really takes pages away.
    seven.rsi = PAGES - 1;
    let before = platform.arena().frames_in_use();
    guest.run(TOUCH, seven);
    assert!(platform.arena().frames_in_use() <= before);
    let start = Instant::now();
    guest.mm.munmap(memory, PAGES * PAGE_SIZE).unwrap();
    eprintln!("munmap of 64 MiB: {} us", start.elapsed().as_micros());
    let fresh = anonymous(&guest.mm, PAGES * PAGE_SIZE, Prot::READ | Prot::WRITE);
    let (sum, _) = guest.run(SUM, Registers { rdi: fresh, rsi: 500, ..Registers::default() });
    assert_eq!(sum.rbx, 0, "new memory is zero, also where old translations were");
}

fn clocks(platform: &Arc<dyn Platform>) {
    let clocks = Clocks::new(platform, Counter::Synchronized).unwrap();
    let vdso = Vdso::new(platform.arena(), clocks.page()).unwrap();
    let mm = new_mm(platform);
    let header = vdso::map(&mm, &vdso).unwrap();
    let mut guest = Guest::new(platform, mm);
    let function = header + PAGE_SIZE + caisson_platform_kvm::vdso::code().functions[0].1;
    let out = anonymous(&guest.mm, PAGE_SIZE, Prot::READ | Prot::WRITE);
    let call = |clock: u64| Registers { rdx: function, rdi: clock, rsi: out, rbx: 1, ..Registers::default() };
    // Where the counter's frequency is not told, it takes a moment to measure.
    std::thread::sleep(std::time::Duration::from_millis(15));
    clocks.now(SystemClock::Monotonic);
    let mut worst = 0;
    for _ in 0..200 {
        let before = clocks.now(SystemClock::Monotonic);
        let (registers, _) = guest.run(CALL, call(1));
        let after = clocks.now(SystemClock::Monotonic);
        if registers.rax == 228 {
            continue; // it expired just now and made the system call
        }
        let time: [u64; 2] = [guest.mm.copy_in(out).unwrap(), guest.mm.copy_in(out + 8).unwrap()];
        let now = i64::try_from(time[0] * 1_000_000_000 + time[1]).unwrap();
        assert!(before <= now && now <= after, "{before} {now} {after}");
        worst = worst.max(after - before);
    }
    eprintln!("vDSO and calls agree; a round trip took {worst} ns at most");
    let mut best = u128::MAX;
    for _ in 0..5 {
        clocks.now(SystemClock::Monotonic);
        let start = Instant::now();
        guest.run(CALL, Registers { rbx: 10_000, ..call(1) });
        best = best.min(start.elapsed().as_nanos() / 10_000);
    }
    eprintln!("clock_gettime in the guest: {best} ns");
}
