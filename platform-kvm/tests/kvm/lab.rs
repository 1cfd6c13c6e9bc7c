//! A machine, an address space and a place for code.

use caisson_platform_kvm::{
    AddressSpace, Alignment, Arena, ArenaConfig, Exit, Frame, FrameRange, Gpa, GuestThread, Kicker, Machine,
    MachineConfig, Perms, Registers, open_kvm,
};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

pub const PAGE: u64 = 4096;
pub const HUGE: u64 = 2 << 20;
/// Where programs are placed.
pub const CODE: u64 = 0x40_0000;
/// Top of a small stack.
pub const STACK_TOP: u64 = 0x7000_0000;
pub const R: Perms = Perms::R;
pub const RW: Perms = Perms::R.union(Perms::W);
pub const RX: Perms = Perms::R.union(Perms::X);

/// The arena of all tests.
pub fn arena() -> &'static Arena {
    static ARENA: OnceLock<&'static Arena> = OnceLock::new();
    ARENA.get_or_init(|| {
        let config = ArenaConfig { anonymous_bytes: 256 << 20, window_bytes: 64 << 20, max_frames: u32::MAX };
        Arena::new(config).expect("arena")
    })
}

/// A count of iterations, scaled to the speed of the host, at least `least`.
pub fn scaled(count: u64, least: u64) -> u64 {
    let scale = std::env::var("CAISSON_TEST_SCALE").ok().and_then(|s| s.parse::<f64>().ok()).unwrap_or(1.0);
    ((count as f64 * scale) as u64).max(least)
}

/// Whether the host's CPU is QEMU's interpreter, which leaves out some exceptions of real CPUs.
pub fn interpreted_cpu() -> bool {
    std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("QEMU TCG"))
}

pub struct Lab {
    pub arena: &'static Arena,
    pub machine: Arc<Machine>,
    pub space: Arc<AddressSpace>,
}

impl Lab {
    pub fn new() -> Lab {
        Lab::with(MachineConfig::default())
    }

    pub fn with(config: MachineConfig) -> Lab {
        let machine = Machine::new(open_kvm().expect("kvm"), arena(), config).expect("machine");
        let space = machine.new_address_space().expect("space");
        let lab = Lab { arena: arena(), machine, space };
        lab.new_page(STACK_TOP - PAGE, RW);
        lab
    }

    /// Another address space of the machine, with the stack and the same program as this one.
    pub fn beside(&self) -> Lab {
        let space = self.machine.new_address_space().expect("space");
        for gva in [CODE, STACK_TOP - PAGE] {
            let (gpa, perms) = self.space.lookup(gva).expect("loaded");
            space.map(gva, gpa, PAGE, perms).expect("map");
        }
        Lab { arena: self.arena, machine: self.machine.clone(), space }
    }

    /// Copies a program to `CODE`.
    pub fn load(&self, program: &[u8]) {
        self.load_at(CODE, program);
    }

    pub fn load_at(&self, gva: u64, program: &[u8]) {
        let frame = self.frame();
        self.arena.write(self.arena.gpa(frame), program).expect("program fits");
        self.space.map(gva, self.arena.gpa(frame), PAGE, RX).expect("map");
    }

    pub fn frame(&self) -> Frame {
        self.arena.alloc(1, Alignment::Page).expect("frame").first
    }

    /// Maps a fresh page.
    pub fn new_page(&self, gva: u64, perms: Perms) -> Gpa {
        let gpa = self.arena.gpa(self.frame());
        self.space.map(gva, gpa, PAGE, perms).expect("map");
        gpa
    }

    pub fn thread(&self) -> GuestThread {
        self.machine.new_thread()
    }

    /// Runs on a new thread from `registers` to the first exit.
    pub fn run(&self, registers: &mut Registers) -> Exit {
        self.thread().run(registers, &self.space).expect("run")
    }

    pub fn word(&self, gpa: Gpa) -> u64 {
        let mut bytes = [0; 8];
        self.arena.read(gpa, &mut bytes).expect("read");
        u64::from_le_bytes(bytes)
    }

    pub fn set_word(&self, gpa: Gpa, word: u64) {
        self.arena.write(gpa, &word.to_le_bytes()).expect("write");
    }
}

/// Registers for a program at `CODE`.
pub fn start() -> Registers {
    Registers { rip: CODE, rsp: STACK_TOP - 64, rflags: 0x202, ..Default::default() }
}

pub fn free(frames: FrameRange) {
    arena().release(frames);
}

/// Runs `body` beside a dispatcher of the machine.
pub fn served(machine: &Arc<Machine>, body: impl FnOnce()) {
    std::thread::scope(|scope| {
        scope.spawn(|| machine.serve_calls());
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        machine.stop_serving();
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Says that the test is over, also when it fails.
pub struct Over<'a>(pub &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Runs `body` while the threads are kicked in turn, after pauses of up to half a millisecond.
pub fn kicked<T>(kickers: &[Kicker], body: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (turn, kicker) in (0_u64..).zip(kickers.iter().cycle()) {
                if done.load(Ordering::Acquire) {
                    break;
                }
                kicker.kick();
                std::thread::sleep(Duration::from_micros(turn * 37 % 500));
            }
        });
        let _over = Over(&done);
        body()
    })
}

/// Kicks the threads every 2 ms for a while, and then until they have seen that it is over.
pub fn kick_to_the_end(kickers: &[Kicker], done: &AtomicBool) {
    let end = Instant::now() + Duration::from_millis(scaled(1500, 300));
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(2));
        kickers.iter().for_each(Kicker::kick);
    }
    done.store(true, Ordering::Release);
    std::thread::sleep(Duration::from_millis(5));
    kickers.iter().for_each(Kicker::kick);
}
