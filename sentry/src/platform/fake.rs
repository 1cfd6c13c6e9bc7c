//! A platform without KVM, for tests: a real arena, page tables in a map, guest threads that play a script.
//!
//! [`FakeSpace::touch`] accesses guest memory as the CPU would, through the tables only: what a test touches has been mapped
//! by the code under test. [`FakePlatform::push`] scripts what the next thread's `run` returns.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::{
    Arena, ArenaConfig, Change, Exit, FpuState, FrameRange, GVA_END, Gpa, GuestThread, InPlace, Kick, Kicker,
    PAGE_SIZE, Perms, Platform, Registers, Space, Stragglers,
};
use crate::errno::{Errno, SysResult};

/// Bytes of an XSAVE area with AVX.
const XSTATE_SIZE: usize = 832;

/// The arena that all tests share which do not count frames.
pub fn shared_arena() -> &'static Arena {
    static SHARED: OnceLock<&'static Arena> = OnceLock::new();
    SHARED.get_or_init(|| new_arena(u32::MAX))
}

/// An arena of its own (2 GiB of addresses, leaked), in which at most `max_frames` frames can be in use.
pub fn new_arena(max_frames: u32) -> &'static Arena {
    Arena::new(ArenaConfig { anonymous_bytes: 1 << 30, window_bytes: 1 << 30, max_frames })
        .expect("the host has address space")
}

/// One scripted step of a guest thread: looks at and changes the registers, and says why the guest stopped.
pub type Step = Box<dyn FnMut(&mut Registers, &FakeSpace) -> Exit + Send>;

/// A platform whose guest threads play scripts.
pub struct FakePlatform {
    arena: &'static Arena,
    scripts: Mutex<VecDeque<VecDeque<Step>>>,
}

impl FakePlatform {
    /// Over the arena that tests share.
    pub fn new() -> Arc<FakePlatform> {
        FakePlatform::with_arena(shared_arena())
    }

    /// Over an arena of the test's own, e.g. to count its frames.
    pub fn with_arena(arena: &'static Arena) -> Arc<FakePlatform> {
        Arc::new(FakePlatform { arena, scripts: Mutex::default() })
    }

    /// The next thread that is created plays `steps`; at their end its `run` fails with `EIO`.
    pub fn push(&self, steps: impl IntoIterator<Item = Step>) {
        self.scripts.lock().push_back(steps.into_iter().collect());
    }
}

impl crate::wait::Assist for FakePlatform {}

impl Platform for FakePlatform {
    fn new_space(&self) -> SysResult<Arc<dyn Space>> {
        Ok(Arc::new(FakeSpace { arena: self.arena, tables: Mutex::default() }))
    }

    fn new_thread(&self) -> SysResult<Box<dyn GuestThread>> {
        let script = self.scripts.lock().pop_front().unwrap_or_default();
        Ok(Box::new(FakeThread { script, kicked: Arc::default(), fpu: FpuState::initial(XSTATE_SIZE) }))
    }

    fn arena(&self) -> &'static Arena {
        self.arena
    }

    fn tsc_khz(&self) -> u32 {
        0
    }

    fn xstate_size(&self) -> usize {
        XSTATE_SIZE
    }

    fn xcr0(&self) -> u64 {
        7
    }

    fn describe(&self) -> String {
        "fake".to_owned()
    }
}

#[derive(Default)]
struct Tables {
    /// By page number.
    entries: BTreeMap<u64, (Gpa, Perms)>,
    maps: usize,
    revokes: usize,
    /// Who is in the guest, if anybody.
    inside: Option<Arc<FakeStraggler>>,
}

/// A thread that is in the guest of a [`FakeSpace`].
#[derive(Default)]
pub struct FakeStraggler {
    left: AtomicBool,
    expelled: AtomicBool,
}

impl FakeStraggler {
    /// It leaves.
    pub fn leave(&self) {
        self.left.store(true, Ordering::SeqCst);
    }

    /// Whether it was made to.
    pub fn was_expelled(&self) -> bool {
        self.expelled.load(Ordering::SeqCst)
    }
}

struct FakeStragglers(Arc<FakeStraggler>);

impl Stragglers for FakeStragglers {
    fn are_gone(&self) -> bool {
        self.0.left.load(Ordering::SeqCst)
    }

    fn expel(&self) {
        self.0.expelled.store(!self.are_gone(), Ordering::SeqCst);
        self.0.leave();
    }
}

/// Page tables as a map from page to entry.
pub struct FakeSpace {
    arena: &'static Arena,
    tables: Mutex<Tables>,
}

impl FakeSpace {
    /// The fake behind a space.
    pub fn of(space: &Arc<dyn Space>) -> &FakeSpace {
        let any: &dyn Any = space.as_ref();
        any.downcast_ref().expect("a space of the fake platform")
    }

    /// Translates like the CPU: the physical address, or the page fault that the access raises.
    pub fn touch(&self, gva: u64, wanted: Perms) -> Result<Gpa, Exit> {
        let entry = self.tables.lock().entries.get(&(gva / PAGE_SIZE)).copied();
        match entry {
            Some((gpa, perms)) if perms.contains(wanted) => Ok(Gpa(gpa.0 + gva % PAGE_SIZE)),
            entry => Err(Exit::PageFault {
                addr: gva,
                write: wanted.contains(Perms::W),
                exec: wanted.contains(Perms::X),
                present: entry.is_some(),
            }),
        }
    }

    /// Reads a byte as guest code would.
    pub fn load(&self, gva: u64) -> Result<u8, Exit> {
        let gpa = self.touch(gva, Perms::R)?;
        let mut byte = [0];
        self.arena.read(gpa, &mut byte).map_err(|_| Exit::HostFault)?;
        Ok(byte[0])
    }

    /// Writes a byte as guest code would.
    pub fn store(&self, gva: u64, value: u8) -> Result<(), Exit> {
        let gpa = self.touch(gva, Perms::W)?;
        self.arena.write(gpa, &[value]).map_err(|_| Exit::HostFault)
    }

    /// A thread is in the guest from now on.
    pub fn enter_guest(&self) -> Arc<FakeStraggler> {
        let inside = Arc::new(FakeStraggler::default());
        self.tables.lock().inside = Some(inside.clone());
        inside
    }

    /// Pages that are mapped.
    pub fn mapped_pages(&self) -> usize {
        self.tables.lock().entries.len()
    }

    /// How often `map` and `revoke` were called.
    pub fn calls(&self) -> (usize, usize) {
        let tables = self.tables.lock();
        (tables.maps, tables.revokes)
    }
}

fn check(start: u64, end: u64) -> SysResult {
    let aligned = start.is_multiple_of(PAGE_SIZE) && end.is_multiple_of(PAGE_SIZE);
    if aligned && start <= end && end <= GVA_END { Ok(()) } else { Err(Errno::EINVAL) }
}

impl Space for FakeSpace {
    fn map(&self, gva: u64, gpa: Gpa, len: u64, perms: Perms) -> SysResult {
        check(gva, gva.checked_add(len).ok_or(Errno::EINVAL)?)?;
        check(gpa.0 % PAGE_SIZE, GVA_END)?;
        if perms.is_empty() {
            return Err(Errno::EINVAL);
        }
        let mut tables = self.tables.lock();
        tables.maps += 1;
        for page in 0..len / PAGE_SIZE {
            tables.entries.insert(gva / PAGE_SIZE + page, (Gpa(gpa.0 + page * PAGE_SIZE), perms | Perms::R));
        }
        Ok(())
    }

    fn revoke(&self, changes: &[Change]) -> SysResult {
        let mut tables = self.tables.lock();
        tables.revokes += 1;
        for change in changes {
            let (range, perms) = match change {
                Change::Unmap(range) => (range, Perms::empty()),
                Change::Protect { range, perms } => (range, *perms),
            };
            check(range.start, range.end)?;
            let pages = range.start / PAGE_SIZE..range.end / PAGE_SIZE;
            if perms.is_empty() {
                let gone: Vec<u64> = tables.entries.range(pages).map(|(page, _)| *page).collect();
                for page in gone {
                    tables.entries.remove(&page);
                }
            } else {
                for (_, entry) in tables.entries.range_mut(pages) {
                    entry.1 &= perms;
                }
            }
        }
        Ok(())
    }

    fn revokes_in_place(&self) -> bool {
        true
    }

    fn revoke_in_place(&self, changes: &[Change], spent: &[FrameRange]) -> SysResult<InPlace> {
        self.revoke(changes)?;
        for range in spent {
            // Nobody may miss it.
            let bytes = usize::try_from(u64::from(range.count) * PAGE_SIZE).map_err(|_| Errno::EINVAL)?;
            self.arena.zero(self.arena.gpa(range.first), bytes).map_err(|_| Errno::EFAULT)?;
        }
        let inside = self.tables.lock().inside.clone().filter(|inside| !inside.left.load(Ordering::SeqCst));
        Ok(inside.map_or(InPlace::Done, |inside| InPlace::Stragglers(Box::new(FakeStragglers(inside)))))
    }

    fn revoke_unbacked(&self) -> SysResult<usize> {
        let mut tables = self.tables.lock();
        let before = tables.entries.len();
        let arena = self.arena;
        tables.entries.retain(|_, (gpa, _)| arena.read(*gpa, &mut [0]).is_ok());
        Ok(before - tables.entries.len())
    }

    fn patched_entry(&self) -> Option<super::PatchedEntry> {
        Some(super::PatchedEntry::checking(0x1234_5677))
    }

    fn lookup(&self, gva: u64) -> Option<(Gpa, Perms)> {
        let (gpa, perms) = self.tables.lock().entries.get(&(gva / PAGE_SIZE)).copied()?;
        Some((Gpa(gpa.0 + gva % PAGE_SIZE), perms))
    }
}

struct FakeThread {
    script: VecDeque<Step>,
    kicked: Arc<AtomicBool>,
    fpu: FpuState,
}

struct FakeKick(Arc<AtomicBool>);

impl Kick for FakeKick {
    fn kick(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl GuestThread for FakeThread {
    fn run(&mut self, registers: &mut Registers, space: &Arc<dyn Space>) -> SysResult<Exit> {
        if self.kicked.swap(false, Ordering::SeqCst) {
            return Ok(Exit::Interrupted);
        }
        let mut step = self.script.pop_front().ok_or(Errno::EIO)?;
        Ok(step(registers, FakeSpace::of(space)))
    }

    fn kicker(&self) -> Kicker {
        Kicker::new(FakeKick(self.kicked.clone()))
    }

    fn fpu(&mut self) -> SysResult<FpuState> {
        Ok(self.fpu.clone())
    }

    fn set_fpu(&mut self, state: &FpuState) -> SysResult {
        self.fpu = state.clone();
        Ok(())
    }

    fn reset_fpu(&mut self) -> SysResult {
        self.fpu = FpuState::initial(XSTATE_SIZE);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touch_goes_through_the_tables_only() {
        let platform = FakePlatform::new();
        let space = platform.new_space().unwrap();
        let frame = platform.arena().alloc(1, super::super::Alignment::Page).unwrap();
        let gpa = platform.arena().gpa(frame.first);
        let fake = FakeSpace::of(&space);
        assert!(matches!(fake.load(0x1000), Err(Exit::PageFault { addr: 0x1000, present: false, .. })));
        space.map(0x1000, gpa, PAGE_SIZE, Perms::R | Perms::W).unwrap();
        fake.store(0x1004, 7).unwrap();
        assert_eq!(fake.load(0x1004), Ok(7));
        space.revoke(&[Change::Protect { range: 0x1000..0x2000, perms: Perms::R }]).unwrap();
        assert!(matches!(fake.store(0x1004, 8), Err(Exit::PageFault { present: true, write: true, .. })));
        space.revoke(&[Change::Unmap(0x1000..0x2000)]).unwrap();
        assert_eq!(fake.mapped_pages(), 0);
        platform.arena().release(frame);
    }

    #[test]
    fn kicked_thread_is_interrupted_once() {
        let platform = FakePlatform::new();
        platform.push([Box::new(|_: &mut Registers, _: &FakeSpace| Exit::Syscall) as Step]);
        let mut thread = platform.new_thread().unwrap();
        let space = platform.new_space().unwrap();
        thread.kicker().kick();
        let mut registers = Registers::default();
        assert_eq!(thread.run(&mut registers, &space), Ok(Exit::Interrupted));
        assert_eq!(thread.run(&mut registers, &space), Ok(Exit::Syscall));
        assert_eq!(thread.run(&mut registers, &space), Err(Errno::EIO));
    }
}
