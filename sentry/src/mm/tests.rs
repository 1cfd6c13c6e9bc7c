//! Tests of whole address spaces on the fake platform: guest accesses go through its tables only.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::fault::HUGE;
use super::*;
use crate::io::{IoDst, IoSrc};
use crate::platform::Exit;
use crate::platform::fake::{self, FakePlatform, FakeSpace};

const RW: Prot = Prot::READ.union(Prot::WRITE);

struct Guest {
    mm: Arc<Mm>,
}

impl Guest {
    fn new(arena: &'static Arena) -> Guest {
        let platform: Arc<dyn Platform> = FakePlatform::with_arena(arena);
        let layout = Layout::new(&mut Entropy::seeded(7), 8 << 20, Randomize::Yes);
        Guest { mm: Mm::new(&platform, layout, MemoryLimits::default()).unwrap() }
    }

    fn access<T>(&self, act: impl Fn(&FakeSpace) -> Result<T, Exit>) -> Result<T, FaultOutcome> {
        for _ in 0..3 {
            match act(FakeSpace::of(self.mm.space())) {
                Ok(value) => return Ok(value),
                Err(Exit::PageFault { addr, write, exec, .. }) => {
                    match self.mm.fault(addr, MemoryAccess::from_exit(write, exec)) {
                        FaultOutcome::Resolved => {}
                        other => return Err(other),
                    }
                }
                Err(Exit::HostFault) => match self.mm.host_fault() {
                    FaultOutcome::Resolved => {}
                    other => return Err(other),
                },
                Err(other) => panic!("{other:?}"),
            }
        }
        panic!("the access faults for ever");
    }

    fn load(&self, addr: u64) -> Result<u8, FaultOutcome> {
        self.access(|space| space.load(addr))
    }

    fn store(&self, addr: u64, value: u8) -> Result<(), FaultOutcome> {
        self.access(|space| space.store(addr, value))
    }

    fn map(&self, addr: u64, len: u64, flags: MapFlags) -> SysResult<u64> {
        self.mm.mmap(MapRequest { addr, len, prot: RW, flags, backing: None })
    }

    fn anonymous(&self, pages: u64) -> u64 {
        self.map(0, pages * PAGE_SIZE, MapFlags::empty()).unwrap()
    }

    fn mapped_ranges(&self) -> Vec<(u64, u64)> {
        self.mm.mappings().iter().map(|vma| (vma.start, vma.end)).collect()
    }
}

#[test]
fn fresh_memory_is_zero_and_keeps_what_is_written() {
    let guest = Guest::new(fake::shared_arena());
    let at = guest.anonymous(40);
    assert_eq!(guest.load(at), Ok(0));
    guest.store(at + 5 * PAGE_SIZE + 3, 9).unwrap();
    assert_eq!(guest.load(at + 5 * PAGE_SIZE + 3), Ok(9));
    let mut byte = [0];
    guest.mm.read_bytes(at + 5 * PAGE_SIZE + 3, &mut byte).unwrap();
    assert_eq!(byte, [9]);
    guest.mm.write_bytes(at + 39 * PAGE_SIZE, &[1; 4096]).unwrap();
    assert_eq!(guest.load(at + 40 * PAGE_SIZE - 1), Ok(1));
    assert_eq!(guest.load(at + 40 * PAGE_SIZE), Err(FaultOutcome::NotMapped));
    assert_eq!(guest.mm.write_bytes(at + 40 * PAGE_SIZE - 2, &[1; 4]), Err(Errno::EFAULT));
    assert_eq!(guest.load(u64::MAX), Err(FaultOutcome::NotMapped));
}

#[test]
fn strings_are_read_to_their_nul_and_no_further() {
    let guest = Guest::new(fake::shared_arena());
    let start = guest.anonymous(2);
    let end = start + 2 * PAGE_SIZE;
    let text: Vec<u8> = (0..300_u32).map(|at| b'a' + (at % 26) as u8).collect();
    // Wherever it lies among the lines of the cache, over the end of a page, and up to the end of what is mapped.
    for at in (start..start + 66).chain(start + PAGE_SIZE - 310..start + PAGE_SIZE).chain([end - 301]) {
        for len in [0, 1, 63, 64, 65, 300] {
            let mut with_nul = text[..len].to_vec();
            with_nul.push(0);
            guest.mm.write_bytes(at, &with_nul).unwrap();
            assert_eq!(guest.mm.read_c_string(at, len + 1).as_deref(), Ok(&text[..len]), "{len} at {at:#x}");
            assert_eq!(guest.mm.read_c_string(at, len), Err(Errno::ENAMETOOLONG), "{len} at {at:#x}");
        }
    }
    guest.mm.write_bytes(end - 300, &text).unwrap();
    assert_eq!(guest.mm.read_c_string(end - 300, 301), Err(Errno::EFAULT));
    assert_eq!(guest.mm.read_c_string(end - 300, 300), Err(Errno::ENAMETOOLONG));
    assert_eq!(guest.mm.read_c_string(end, 10), Err(Errno::EFAULT));
    assert_eq!(guest.mm.read_c_string(u64::MAX, 10), Err(Errno::EFAULT));
}

#[test]
fn walking_through_memory_takes_few_faults_and_then_huge_pages() {
    let guest = Guest::new(fake::new_arena(u32::MAX));
    let at = guest.anonymous(16 * HUGE);
    for page in 0..16 * HUGE {
        guest.store(at + page * PAGE_SIZE, 1).unwrap();
    }
    assert!(guest.mm.fault_count() < 16 + 10, "{} faults", guest.mm.fault_count());
    assert_eq!(guest.mm.usage().rss_anonymous, 16 * HUGE * PAGE_SIZE);
    let lone = guest.anonymous(2 * HUGE + 1);
    guest.store(lone + HUGE * PAGE_SIZE, 1).unwrap();
    assert!(guest.mm.usage().rss_anonymous <= (16 * HUGE + 16) * PAGE_SIZE, "a lone touch stays small");
}

#[test]
fn walking_downwards_ramps_up_too() {
    let guest = Guest::new(fake::shared_arena());
    let at = guest.anonymous(4 * HUGE);
    for page in (0..4 * HUGE).rev() {
        guest.store(at + page * PAGE_SIZE, 1).unwrap();
    }
    assert!(guest.mm.fault_count() < 16, "{} faults", guest.mm.fault_count());
}

#[test]
fn protection_is_enforced_and_restored() {
    let guest = Guest::new(fake::shared_arena());
    let at = guest.anonymous(4);
    guest.store(at, 7).unwrap();
    guest.mm.mprotect(at, PAGE_SIZE, Prot::READ).unwrap();
    assert_eq!(guest.store(at, 8), Err(FaultOutcome::Denied));
    assert_eq!(guest.mm.write_bytes(at, &[8]), Err(Errno::EFAULT));
    assert_eq!(guest.load(at), Ok(7));
    guest.mm.mprotect(at, PAGE_SIZE, Prot::empty()).unwrap();
    assert_eq!(guest.load(at), Err(FaultOutcome::Denied));
    guest.mm.mprotect(at, PAGE_SIZE, RW).unwrap();
    guest.store(at, 8).unwrap();
    assert_eq!(guest.mapped_ranges(), [(at, at + 4 * PAGE_SIZE)], "equal neighbours are one again");
    assert_eq!(guest.mm.mprotect(at, 5 * PAGE_SIZE, Prot::READ), Err(Errno::ENOMEM));
    assert_eq!(guest.store(at + 3 * PAGE_SIZE, 1), Err(FaultOutcome::Denied), "what was mapped is changed");
}

#[test]
fn fork_shares_until_somebody_writes() {
    let arena = fake::new_arena(10_000);
    let parent = Guest::new(arena);
    let at = parent.anonymous(600);
    for page in 0..600 {
        parent.store(at + page * PAGE_SIZE, 1).unwrap();
    }
    let before = arena.frames_in_use();
    let child = Guest { mm: parent.mm.fork().unwrap() };
    assert_eq!(arena.frames_in_use(), before, "no page is copied");
    child.store(at, 2).unwrap();
    parent.store(at + 300 * PAGE_SIZE, 3).unwrap();
    assert_eq!((parent.load(at), child.load(at)), (Ok(1), Ok(2)));
    assert_eq!((parent.load(at + 300 * PAGE_SIZE), child.load(at + 300 * PAGE_SIZE)), (Ok(3), Ok(1)));
    // A kernel write breaks sharing like a guest's.
    child.mm.write_bytes(at + 500 * PAGE_SIZE, &[5]).unwrap();
    assert_eq!((parent.load(at + 500 * PAGE_SIZE), child.load(at + 500 * PAGE_SIZE)), (Ok(1), Ok(5)));
    let grandchild = Guest { mm: child.mm.fork().unwrap() };
    drop(child);
    assert_eq!(grandchild.load(at + 500 * PAGE_SIZE), Ok(5));
    drop(grandchild);
    let alone = arena.frames_in_use();
    parent.store(at + 100 * PAGE_SIZE, 4).unwrap();
    assert_eq!(arena.frames_in_use(), alone, "the last owner writes in place");
    drop(parent);
    assert_eq!(arena.frames_in_use(), 0);
}

#[test]
fn shared_memory_stays_shared_across_fork() {
    let arena = fake::new_arena(10_000);
    let parent = Guest::new(arena);
    let at = parent.map(0, 8 * PAGE_SIZE, MapFlags::SHARED).unwrap();
    let child = Guest { mm: parent.mm.fork().unwrap() };
    child.store(at + PAGE_SIZE, 6).unwrap();
    assert_eq!(parent.load(at + PAGE_SIZE), Ok(6));
    let scope = FutexScope::Shared;
    assert_eq!(parent.mm.futex_key(at, scope).unwrap(), child.mm.futex_key(at, scope).unwrap());
    assert_ne!(
        parent.mm.futex_key(at, FutexScope::Private).unwrap(),
        child.mm.futex_key(at, FutexScope::Private).unwrap()
    );
    parent.mm.madvise(at, 8 * PAGE_SIZE, Advice::Remove).unwrap();
    assert_eq!((parent.load(at + PAGE_SIZE), child.load(at + PAGE_SIZE)), (Ok(0), Ok(0)));
    drop((parent, child));
    assert_eq!(arena.frames_in_use(), 0);
}

#[test]
fn the_next_child_has_the_pages_ready_that_the_last_one_wrote() {
    let arena = fake::new_arena(10_000);
    let parent = Guest::new(arena);
    let at = parent.anonymous(40);
    (0..40).for_each(|page| parent.store(at + page * PAGE_SIZE, page as u8).unwrap());
    let write = |guest: &Guest, value: u8| {
        guest.store(at + 7 * PAGE_SIZE, value).unwrap();
        guest.store(at + 30 * PAGE_SIZE + 5, value).unwrap();
    };
    {
        let child = Guest { mm: parent.mm.fork().unwrap() };
        write(&child, 100);
        child.store(at, 100).unwrap();
        assert_eq!(child.mm.fault_count(), 3);
    }
    write(&parent, 101);
    for round in 0..3 {
        let before = parent.mm.fault_count();
        let child = Guest { mm: parent.mm.fork().unwrap() };
        assert_eq!(child.load(at + 7 * PAGE_SIZE), Ok(if round == 0 { 101 } else { 110 + round - 1 }));
        // Neither faults, and neither sees what the other writes. The first page is one that the parent leaves alone.
        child.store(at, 102).unwrap();
        assert_eq!(parent.load(at), Ok(0));
        write(&child, 102);
        write(&parent, 110 + round);
        assert_eq!((child.mm.fault_count(), parent.mm.fault_count()), (0, before));
        assert_eq!(child.load(at + 30 * PAGE_SIZE + 5), Ok(102));
        assert_eq!(parent.load(at + 30 * PAGE_SIZE + 5), Ok(110 + round));
        // The rest is shared as ever.
        assert_eq!(child.load(at + 8 * PAGE_SIZE), Ok(8));
        child.store(at + 20 * PAGE_SIZE, 1).unwrap();
        assert_eq!(parent.load(at + 20 * PAGE_SIZE), Ok(20));
    }
    drop(parent);
    assert_eq!(arena.frames_in_use(), 0);
}

#[test]
fn fork_flags_are_obeyed() {
    let parent = Guest::new(fake::shared_arena());
    let (gone, wiped) = (parent.anonymous(2), parent.anonymous(2));
    parent.store(gone, 1).unwrap();
    parent.store(wiped, 1).unwrap();
    let flags = |set| Advice::Flags { set, clear: VmaFlags::empty() };
    parent.mm.madvise(gone, PAGE_SIZE, flags(VmaFlags::DONTFORK)).unwrap();
    parent.mm.madvise(wiped, PAGE_SIZE, flags(VmaFlags::WIPEONFORK)).unwrap();
    let child = Guest { mm: parent.mm.fork().unwrap() };
    assert_eq!(child.load(gone), Err(FaultOutcome::NotMapped));
    assert_eq!(child.load(wiped), Ok(0));
    assert_eq!((parent.load(gone), parent.load(wiped)), (Ok(1), Ok(1)));
}

#[test]
fn discarded_memory_is_zero_again() {
    let guest = Guest::new(fake::shared_arena());
    let at = guest.anonymous(4);
    guest.store(at + PAGE_SIZE, 1).unwrap();
    guest.mm.madvise(at, 4 * PAGE_SIZE, Advice::Discard(Discard::DontNeed)).unwrap();
    assert_eq!(guest.load(at + PAGE_SIZE), Ok(0));
    let hole = guest.mm.madvise(at, 5 * PAGE_SIZE, Advice::Discard(Discard::DontNeed));
    assert_eq!(hole, Err(Errno::ENOMEM));
}

#[test]
fn stack_grows_to_its_limit_and_no_further() {
    let guest = Guest::new(fake::shared_arena());
    let top = guest.mm.layout().stack_top;
    let flags = MapFlags::GROWSDOWN | MapFlags::FIXED;
    guest.map(top - 2 * PAGE_SIZE, 2 * PAGE_SIZE, flags).unwrap();
    guest.store(top - (1 << 20), 1).unwrap();
    guest.mm.write_bytes(top - (2 << 20), &[1]).unwrap();
    assert_eq!(guest.store(top - (8 << 20) - 1, 1), Err(FaultOutcome::NotMapped));
    assert_eq!(guest.mm.usage().stack, 2 << 20);
    // Something below within the guard gap stops it earlier.
    guest.map(top - (4 << 20), PAGE_SIZE, MapFlags::FIXED).unwrap();
    assert_eq!(guest.store(top - (4 << 20) + 2 * PAGE_SIZE, 1), Err(FaultOutcome::NotMapped));
    let hint = guest.map(top - (2 << 20) - 8 * PAGE_SIZE, PAGE_SIZE, MapFlags::empty()).unwrap();
    assert!(hint < top - (3 << 20), "a hint inside the guard gap is not taken");
}

#[test]
fn places_are_chosen_as_linux_does() {
    let guest = Guest::new(fake::shared_arena());
    let first = guest.anonymous(3);
    assert_eq!(first + 3 * PAGE_SIZE, guest.mm.layout().mmap_base);
    let second = guest.anonymous(1);
    assert_eq!(second, first - PAGE_SIZE);
    guest.mm.munmap(first, PAGE_SIZE).unwrap();
    assert_eq!(guest.anonymous(1), first, "the highest hole is taken");
    assert_eq!(guest.map(0x10_0000, 4096, MapFlags::empty()), Ok(0x10_0000));
    assert_eq!(guest.map(0x10_0000, 4096, MapFlags::FIXED_NOREPLACE), Err(Errno::EEXIST));
    assert_eq!(guest.map(0x1000, 4096, MapFlags::FIXED), Err(Errno::EPERM));
    assert_eq!(guest.map(1, 4096, MapFlags::FIXED), Err(Errno::EINVAL));
    assert_eq!(guest.map(GVA_END, 4096, MapFlags::FIXED), Err(Errno::ENOMEM));
    assert_eq!(guest.map(0, u64::MAX, MapFlags::empty()), Err(Errno::ENOMEM));
    assert_eq!(guest.map(0, 0, MapFlags::empty()), Err(Errno::EINVAL));
    assert!(guest.map(0, 4096, MapFlags::LOW_32BIT).unwrap() < 1 << 31);
    let huge = guest.map(0, 4 << 20, MapFlags::empty()).unwrap();
    assert!(huge.is_multiple_of(2 << 20));
}

#[test]
fn heap_grows_and_shrinks() {
    let guest = Guest::new(fake::shared_arena());
    guest.mm.set_brk_start(0x60_0123);
    assert_eq!(guest.mm.brk(0), 0x60_0123);
    assert_eq!(guest.mm.brk(0x60_5001), 0x60_5001);
    guest.store(0x60_5fff, 1).unwrap();
    assert_eq!(guest.mm.brk(0x60_2000), 0x60_2000);
    assert_eq!(guest.load(0x60_5fff), Err(FaultOutcome::NotMapped));
    guest.map(0x60_8000, PAGE_SIZE, MapFlags::FIXED).unwrap();
    assert_eq!(guest.mm.brk(0x60_9000), 0x60_2000, "something is in the way");
    guest.mm.set_limits(MemoryLimits { data: 0x3000, ..MemoryLimits::default() });
    assert_eq!(guest.mm.brk(0x60_7000), 0x60_2000);
}

#[test]
fn limits_give_linuxs_errors() {
    let guest = Guest::new(fake::shared_arena());
    let limits = MemoryLimits { address_space: 16 * PAGE_SIZE, locked: 2 * PAGE_SIZE, ..Default::default() };
    guest.mm.set_limits(limits);
    let at = guest.anonymous(10);
    assert_eq!(guest.map(0, 7 * PAGE_SIZE, MapFlags::empty()), Err(Errno::ENOMEM));
    assert_eq!(guest.map(at, 10 * PAGE_SIZE, MapFlags::FIXED), Ok(at), "replacing needs no more");
    assert_eq!(guest.mm.mlock(at, 3 * PAGE_SIZE, LockMode::Now), Err(Errno::ENOMEM));
    assert_eq!(guest.mm.mlock(at, 2 * PAGE_SIZE, LockMode::Now), Ok(()));
    assert_eq!(guest.mm.mlock(at + PAGE_SIZE, PAGE_SIZE, LockMode::Now), Ok(()), "already counted");
    assert_eq!(guest.map(0, PAGE_SIZE, MapFlags::LOCKED), Err(Errno::EAGAIN));
    let locked = guest.mm.madvise(at, PAGE_SIZE, Advice::Discard(Discard::DontNeed));
    assert_eq!(locked, Err(Errno::EINVAL));
    guest.mm.munlockall();
    assert_eq!(guest.mm.usage().locked, 0);
}

#[test]
fn out_of_memory_is_an_outcome() {
    let guest = Guest::new(fake::new_arena(8));
    let at = guest.anonymous(100);
    let outcomes: Vec<_> = (0..20).map(|page| guest.store(at + page * PAGE_SIZE, 1)).collect();
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 8);
    assert_eq!(outcomes.last(), Some(&Err(FaultOutcome::OutOfMemory)));
    assert_eq!(guest.mm.write_bytes(at + 50 * PAGE_SIZE, &[1]), Err(Errno::ENOMEM));
}

#[test]
fn moved_memory_keeps_its_contents() {
    let arena = fake::new_arena(10_000);
    let guest = Guest::new(arena);
    let at = guest.anonymous(4);
    let _wall = guest.map(at + 4 * PAGE_SIZE, PAGE_SIZE, MapFlags::FIXED).unwrap();
    guest.store(at + 3 * PAGE_SIZE, 3).unwrap();
    let old = 4 * PAGE_SIZE;
    let stay = RemapFlags::empty();
    assert_eq!(guest.mm.mremap(at, old, 8 * PAGE_SIZE, stay, 0), Err(Errno::ENOMEM));
    let moved = guest.mm.mremap(at, old, 8 * PAGE_SIZE, RemapFlags::MAYMOVE, 0).unwrap();
    assert_eq!(guest.load(moved + 3 * PAGE_SIZE), Ok(3));
    assert_eq!(guest.load(at), Err(FaultOutcome::NotMapped));
    assert_eq!(guest.mm.mremap(moved, 8 * PAGE_SIZE, old, stay, 0), Ok(moved));
    assert_eq!(guest.load(moved + old), Err(FaultOutcome::NotMapped));
    let fixed = RemapFlags::MAYMOVE | RemapFlags::FIXED;
    assert_eq!(guest.mm.mremap(moved, old, old, fixed, 0x100_0000), Ok(0x100_0000));
    assert_eq!(guest.load(0x100_0000 + 3 * PAGE_SIZE), Ok(3));
    let kept = RemapFlags::MAYMOVE | RemapFlags::DONTUNMAP;
    let copy = guest.mm.mremap(0x100_0000, old, old, kept, 0).unwrap();
    assert_eq!(guest.load(copy + 3 * PAGE_SIZE), Ok(3));
    assert_eq!(guest.load(0x100_0000 + 3 * PAGE_SIZE), Ok(0));
    assert_eq!(guest.mm.mremap(0x300_0000, old, old, stay, 0), Err(Errno::EFAULT));
    assert_eq!(guest.mm.mremap(copy, old, 0, stay, 0), Err(Errno::EINVAL));
    assert_eq!(guest.mm.mremap(copy, 0, old, RemapFlags::MAYMOVE, 0), Err(Errno::EINVAL), "private");
    drop(guest);
    assert_eq!(arena.frames_in_use(), 0);
}

/// An object of a few pages, each byte of page n being n + 1, in frames it gives back on truncation.
struct Pages {
    store: FrameStore,
    size: parking_lot::Mutex<u64>,
    mappings: MappingSet,
}

impl Pages {
    fn new(arena: &'static Arena, pages: u8) -> Arc<Pages> {
        let store = FrameStore::new(arena, None);
        for page in 0..pages {
            let backing = store.translate(u64::from(page) * PAGE_SIZE, PAGE_SIZE).unwrap();
            arena.write(backing.gpa, &[page + 1; 4096]).unwrap();
        }
        let size = parking_lot::Mutex::new(u64::from(pages) * PAGE_SIZE);
        Arc::new(Pages { store, size, mappings: MappingSet::default() })
    }

    fn truncate(&self, size: u64) {
        *self.size.lock() = size;
        let taken = self.store.take(size.div_ceil(PAGE_SIZE)..u64::MAX);
        self.mappings.invalidate_beyond(size);
        drop(taken);
    }
}

impl Mappable for Pages {
    fn translate(&self, offset: u64, len: u64, _write: bool) -> SysResult<Backing> {
        let end = self.size.lock().next_multiple_of(PAGE_SIZE);
        let left = end.checked_sub(offset).filter(|left| *left > 0).ok_or(Errno::EFAULT)?;
        self.store.translate(offset, len.min(left))
    }
    fn mappings(&self) -> &MappingSet {
        &self.mappings
    }
    fn identity(&self) -> MappingIdentity {
        MappingIdentity {
            name: b"/pages".to_vec(),
            ino: std::ptr::from_ref(self) as u64,
            ..Default::default()
        }
    }
}

fn map_object(guest: &Guest, object: &Arc<Pages>, pages: u64, flags: MapFlags, max: Prot) -> SysResult<u64> {
    let backing = MapBacking { object: object.clone(), offset: 0, file: None, max_prot: max };
    let prot = RW & max;
    guest.mm.mmap(MapRequest { addr: 0, len: pages * PAGE_SIZE, prot, flags, backing: Some(backing) })
}

#[test]
fn private_mapping_of_an_object_copies_what_is_written() {
    let arena = fake::new_arena(10_000);
    let object = Pages::new(arena, 6);
    let guest = Guest::new(arena);
    let at = map_object(&guest, &object, 8, MapFlags::empty(), Prot::all()).unwrap();
    assert_eq!(guest.load(at + 2 * PAGE_SIZE), Ok(3));
    guest.store(at + 2 * PAGE_SIZE, 99).unwrap();
    guest.mm.write_bytes(at + 4 * PAGE_SIZE, &[88]).unwrap();
    assert_eq!((guest.load(at + 2 * PAGE_SIZE), guest.load(at + 2 * PAGE_SIZE + 1)), (Ok(99), Ok(3)));
    assert_eq!(guest.load(at + 4 * PAGE_SIZE + 1), Ok(5));
    let other = Guest { mm: guest.mm.fork().unwrap() };
    assert_eq!(other.load(at + 2 * PAGE_SIZE), Ok(99));
    other.store(at + 2 * PAGE_SIZE, 77).unwrap();
    assert_eq!(guest.load(at + 2 * PAGE_SIZE), Ok(99));
    assert_eq!(guest.load(at + 6 * PAGE_SIZE), Err(FaultOutcome::Bus));
    object.truncate(PAGE_SIZE);
    assert_eq!(guest.load(at + 2 * PAGE_SIZE), Err(FaultOutcome::Bus), "private copies go, too");
    assert_eq!(guest.load(at), Ok(1));
    assert!(object.mappings.is_mapped());
    drop((guest, other));
    assert!(!object.mappings.is_mapped());
    drop(object);
    assert_eq!(arena.frames_in_use(), 0);
}

/// Programs initialise their data in any order: few faults, each page's own content, and nothing beyond what there was room for.
#[test]
fn data_of_a_program_is_copied_in_blocks() {
    let arena = fake::new_arena(10_000);
    let object = Pages::new(arena, 200);
    let guest = Guest::new(arena);
    let in_use = arena.frames_in_use();
    let image = MapFlags::DENYWRITE;
    let at = map_object(&guest, &object, 200, image, Prot::all()).unwrap();
    // Some pages are there before.
    guest.mm.write_bytes(at + 130 * PAGE_SIZE, &[77]).unwrap();
    let before = guest.mm.minor_faults.load(Ordering::Relaxed);
    for page in (0..200).rev() {
        guest.store(at + page * PAGE_SIZE, 250).unwrap();
    }
    let faults = guest.mm.minor_faults.load(Ordering::Relaxed) - before;
    assert!(faults <= 24, "{faults} faults");
    for page in 0..200 {
        assert_eq!(guest.load(at + page * PAGE_SIZE), Ok(250));
        assert_eq!(guest.load(at + page * PAGE_SIZE + 1), Ok(page as u8 + 1));
        let mut byte = [0];
        arena.read(object.translate(page * PAGE_SIZE, PAGE_SIZE, false).unwrap().gpa, &mut byte).unwrap();
        assert_eq!(byte, [page as u8 + 1], "the object stays as it is");
    }
    assert_eq!(arena.frames_in_use() - in_use, 200);
    drop(guest);
    drop(object);
    assert_eq!(arena.frames_in_use(), 0);
}

/// An object comes in pieces: reading around an address reaches over their ends.
#[test]
fn reading_around_spans_the_pieces_of_an_object() {
    let arena = fake::new_arena(10_000);
    let object = Pages::new(arena, 100);
    let guest = Guest::new(arena);
    // The second piece begins at page 40.
    drop(object.store.take(40..41));
    arena.alloc(1, crate::platform::Alignment::Page).unwrap();
    let backing = object.store.translate(40 * PAGE_SIZE, PAGE_SIZE).unwrap();
    arena.write(backing.gpa, &[41; 4096]).unwrap();
    let at = guest
        .mm
        .mmap(MapRequest {
            addr: 0x1000_0000,
            len: 100 * PAGE_SIZE,
            prot: Prot::READ,
            flags: MapFlags::empty(),
            backing: Some(MapBacking {
                object: object.clone(),
                offset: 0,
                file: None,
                max_prot: Prot::all(),
            }),
        })
        .unwrap();
    let before = guest.mm.minor_faults.load(Ordering::Relaxed);
    for page in (0..100).rev() {
        assert_eq!(guest.load(at + page * PAGE_SIZE), Ok(page as u8 + 1));
    }
    let faults = guest.mm.minor_faults.load(Ordering::Relaxed) - before;
    assert!(faults <= 3, "{faults} faults for three pieces");
}

/// A program that is started again has the pages it used the last time.
#[test]
fn programs_find_what_they_touched_before() {
    let arena = fake::new_arena(10_000);
    let object = Pages::new(arena, 100);
    let faults = |step: u64| {
        let guest = Guest::new(arena);
        let image = MapFlags::DENYWRITE;
        let at = map_object(&guest, &object, 100, image, Prot::all()).unwrap();
        let zeroes = guest.map(at + 100 * PAGE_SIZE, 100 * PAGE_SIZE, MapFlags::FIXED).unwrap();
        guest.mm.update_image(|image| image.start_code = at);
        guest.mm.set_brk_start(zeroes + 100 * PAGE_SIZE);
        guest.mm.prefault(&[]);
        let before = guest.mm.minor_faults.load(Ordering::Relaxed);
        for page in (20..190).step_by(step as usize) {
            guest.store(at + page * PAGE_SIZE, 1).unwrap();
            assert_eq!(guest.load(at + page * PAGE_SIZE), Ok(1));
        }
        guest.mm.minor_faults.load(Ordering::Relaxed) - before
    };
    let first = faults(30);
    assert!(first >= 3, "{first} faults");
    assert_eq!(faults(30), 0);
}

#[test]
fn shared_mapping_of_an_object_writes_through_where_it_may() {
    let arena = fake::new_arena(10_000);
    let object = Pages::new(arena, 4);
    let (writer, reader) = (Guest::new(arena), Guest::new(arena));
    let to = map_object(&writer, &object, 4, MapFlags::SHARED, Prot::all()).unwrap();
    let from = map_object(&reader, &object, 4, MapFlags::SHARED, Prot::READ).unwrap();
    writer.store(to + PAGE_SIZE, 50).unwrap();
    assert_eq!(reader.load(from + PAGE_SIZE), Ok(50));
    assert_eq!(reader.store(from, 1), Err(FaultOutcome::Denied));
    assert_eq!(reader.mm.mprotect(from, PAGE_SIZE, RW), Err(Errno::EACCES));
    object.truncate(0);
    assert_eq!(writer.load(to), Err(FaultOutcome::Bus));
    assert_eq!(reader.mm.read_bytes(from, &mut [0]), Err(Errno::EFAULT));
}

#[test]
fn forced_writes_make_private_copies() {
    let arena = fake::new_arena(10_000);
    let object = Pages::new(arena, 2);
    let guest = Guest::new(arena);
    let at = map_object(&guest, &object, 2, MapFlags::empty(), Prot::all()).unwrap();
    guest.mm.mprotect(at, 2 * PAGE_SIZE, Prot::READ | Prot::EXEC).unwrap();
    assert_eq!(guest.mm.write_forced(at + 1, &[0xcc, 0xcd]), Ok(2));
    assert_eq!((guest.load(at), guest.load(at + 1), guest.load(at + 2)), (Ok(1), Ok(0xcc), Ok(0xcd)));
    assert_eq!(guest.store(at, 1), Err(FaultOutcome::Denied), "the right was not kept");
}

#[test]
fn host_files_move_straight_into_guest_memory() {
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;
    let guest = Guest::new(fake::shared_arena());
    let at = guest.anonymous(8);
    let mut file = tempfile();
    file.write_all(b"0123456789").unwrap();
    let mut io = UserIo::buffer(&guest.mm, at + 4090, 100).unwrap();
    assert_eq!(io.read_from_host(file.as_fd(), Some(2), 100), Ok(8));
    assert_eq!(IoDst::remaining(&io), 92);
    let mut buf = [0; 9];
    guest.mm.read_bytes(at + 4090, &mut buf).unwrap();
    assert_eq!(&buf, b"23456789\0");
    let iov = [[at + 4092, 3], [at + 4090, 2]];
    guest.mm.copy_out_slice(at, &iov).unwrap();
    let mut io = UserIo::vector(&guest.mm, at, 2).unwrap();
    assert_eq!(io.write_to_host(file.as_fd(), Some(10), 4), Ok(4));
    assert_eq!(IoSrc::remaining(&io), 1);
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "01234567894562");
    assert_eq!(UserIo::buffer(&guest.mm, u64::MAX, 2).map(drop), Err(Errno::EFAULT));
    assert_eq!(UserIo::vector(&guest.mm, at, 1025).map(drop), Err(Errno::EINVAL));
    let mut nowhere = UserIo::buffer(&guest.mm, 0x1000, 4).unwrap();
    assert_eq!(nowhere.read_from_host(file.as_fd(), Some(0), 4), Err(Errno::EFAULT));
}

fn tempfile() -> std::fs::File {
    use std::os::fd::OwnedFd;
    let flags = nix::sys::memfd::MFdFlags::empty();
    let fd: OwnedFd = nix::sys::memfd::memfd_create(c"mm-test", flags).unwrap();
    std::fs::File::from(fd)
}

/// A host file behind a window cache, as a gofer's file is.
struct HostFile {
    file: std::fs::File,
    windows: Arc<WindowCache>,
}

impl Mappable for HostFile {
    fn translate(&self, offset: u64, len: u64, write: bool) -> SysResult<Backing> {
        use std::os::fd::AsFd;
        let size = self.file.metadata().map_err(Errno::from)?.len();
        let source = WindowSource { fd: self.file.as_fd(), access: WindowAccess::ReadWrite, size };
        self.windows.translate(source, offset, len, write)
    }
    fn mappings(&self) -> &MappingSet {
        self.windows.mappings()
    }
    fn identity(&self) -> MappingIdentity {
        MappingIdentity::default()
    }
}

#[test]
fn windows_show_the_host_file_and_survive_its_shrinking() {
    use std::os::unix::fs::FileExt;
    let guest = Guest::new(fake::shared_arena());
    let host = tempfile();
    host.set_len(3 * PAGE_SIZE + 1).unwrap();
    let file = host.try_clone().unwrap();
    let object: Arc<dyn Mappable> = Arc::new(HostFile { file, windows: WindowCache::new(guest.mm.arena()) });
    let backing = |offset| MapBacking { object: object.clone(), offset, file: None, max_prot: Prot::all() };
    let map = |offset, flags| {
        let backing = Some(backing(offset));
        guest.mm.mmap(MapRequest { addr: 0, len: 8 * PAGE_SIZE, prot: RW, flags, backing }).unwrap()
    };
    let (shared, private) = (map(0, MapFlags::SHARED), map(PAGE_SIZE, MapFlags::empty()));
    host.write_at(b"abc", PAGE_SIZE).unwrap();
    assert_eq!((guest.load(shared + PAGE_SIZE), guest.load(private + 2)), (Ok(b'a'), Ok(b'c')));
    guest.store(shared + PAGE_SIZE, b'x').unwrap();
    guest.store(private + 1, b'y').unwrap();
    let mut text = [0; 3];
    host.read_at(&mut text, PAGE_SIZE).unwrap();
    assert_eq!(&text, b"xbc");
    assert_eq!(guest.load(shared + 4 * PAGE_SIZE), Err(FaultOutcome::Bus));
    // The host shrinks the file behind our back: entries are there, the memory is not.
    host.set_len(PAGE_SIZE).unwrap();
    assert_eq!(guest.load(shared + 2 * PAGE_SIZE), Err(FaultOutcome::Bus));
    assert_eq!(guest.mm.read_bytes(shared + PAGE_SIZE, &mut [0]), Err(Errno::EFAULT));
    assert_eq!(guest.load(private + 1), Ok(b'y'));
    assert_eq!(guest.load(shared), Ok(0));
    // It grows again, beyond the first window.
    host.set_len(6 * PAGE_SIZE).unwrap();
    assert_eq!(guest.load(shared + 5 * PAGE_SIZE), Ok(0));
}

/// Random calls against a model that knows the byte in each page of each process.
#[test]
fn random_calls_agree_with_a_model() {
    const BASE: u64 = 0x7000_0000_0000;
    const PAGES: u64 = 1500;
    type Model = BTreeMap<u64, (u8, bool)>;
    let arena = fake::new_arena(100_000);
    let mut seed = 0x1234_5678_9abc_def1u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) % below
    };
    let mut processes: Vec<(Guest, Model)> = vec![(Guest::new(arena), Model::new())];
    for step in 0..6000u32 {
        let count = processes.len() as u64;
        let which = usize::try_from(random(count)).unwrap();
        let (page, len) = (random(PAGES), 1 + random(if step % 7 == 0 { 700 } else { 20 }));
        let at = BASE + page * PAGE_SIZE;
        let (guest, model) = &mut processes[which];
        let all_mapped = |model: &Model| (page..page + len).all(|page| model.contains_key(&page));
        match random(20) {
            0..=2 => {
                assert_eq!(guest.map(at, len * PAGE_SIZE, MapFlags::FIXED), Ok(at));
                model.extend((page..page + len).map(|page| (page, (0, true))));
            }
            3 => {
                assert_eq!(guest.mm.munmap(at, len * PAGE_SIZE), Ok(()));
                model.retain(|at, _| !(page..page + len).contains(at));
            }
            4 => {
                let writable = random(2) == 0;
                let prot = if writable { RW } else { Prot::READ };
                let expected = if all_mapped(model) { Ok(()) } else { Err(Errno::ENOMEM) };
                let hole = (page..page + len).find(|page| !model.contains_key(page)).unwrap_or(page + len);
                assert_eq!(guest.mm.mprotect(at, len * PAGE_SIZE, prot), expected);
                for (_, entry) in model.range_mut(page..hole) {
                    entry.1 = writable;
                }
            }
            5 => {
                let discard = Advice::Discard(Discard::DontNeed);
                let expected = if all_mapped(model) { Ok(()) } else { Err(Errno::ENOMEM) };
                assert_eq!(guest.mm.madvise(at, len * PAGE_SIZE, discard), expected);
                for (_, entry) in model.range_mut(page..page + len) {
                    entry.0 = 0;
                }
            }
            6 if count < 5 => {
                let child = (Guest { mm: guest.mm.fork().unwrap() }, model.clone());
                processes.push(child);
            }
            7 if count > 1 => drop(processes.swap_remove(which)),
            8 if all_mapped(model) => {
                let target = random(PAGES);
                let apart = target + len <= page || page + len <= target;
                let uniform = {
                    let state = guest.mm.state.read();
                    state.vmas.find(at).is_some_and(|vma| vma.end >= at + len * PAGE_SIZE)
                };
                if apart && uniform {
                    let (bytes, to) = (len * PAGE_SIZE, BASE + target * PAGE_SIZE);
                    let flags = RemapFlags::MAYMOVE | RemapFlags::FIXED;
                    assert_eq!(guest.mm.mremap(at, bytes, bytes, flags, to), Ok(to));
                    for i in 0..len {
                        let entry = model.remove(&(page + i)).unwrap();
                        model.insert(target + i, entry);
                    }
                }
            }
            9..=12 => {
                let expected = match model.get(&page) {
                    None => Err(FaultOutcome::NotMapped),
                    Some((_, false)) => Err(FaultOutcome::Denied),
                    Some(_) => Ok(()),
                };
                let value = random(255) as u8;
                assert_eq!(guest.store(at + 8, value), expected, "step {step}");
                if expected.is_ok() {
                    model.get_mut(&page).unwrap().0 = value;
                }
            }
            13..=14 => {
                let ok = model.get(&page).is_some_and(|entry| entry.1);
                let value = random(255) as u8;
                assert_eq!(guest.mm.write_bytes(at + 8, &[value]).is_ok(), ok, "step {step}");
                if ok {
                    model.get_mut(&page).unwrap().0 = value;
                }
            }
            _ => {
                let expected = model.get(&page).map(|entry| entry.0).ok_or(FaultOutcome::NotMapped);
                assert_eq!(guest.load(at + 8), expected, "step {step}");
                let mut byte = [0];
                let read = guest.mm.read_bytes(at + 8, &mut byte).map(|()| byte[0]);
                assert_eq!(read.ok(), expected.ok(), "step {step}");
            }
        }
        if step % 500 == 0 {
            for (guest, model) in &processes {
                for (page, entry) in model {
                    assert_eq!(guest.load(BASE + page * PAGE_SIZE + 8), Ok(entry.0), "step {step}");
                }
                let mapped: u64 = guest.mapped_ranges().iter().map(|(start, end)| end - start).sum();
                assert_eq!(mapped, model.len() as u64 * PAGE_SIZE);
                assert_eq!(guest.mm.usage().total, mapped);
            }
        }
    }
    drop(processes);
    assert_eq!(arena.frames_in_use(), 0);
}

#[test]
fn threads_fault_copy_and_fork_at_once() {
    let arena = fake::new_arena(100_000);
    let guest = Arc::new(Guest::new(arena));
    let at = guest.anonymous(256);
    let threads: Vec<_> = (0..4u64)
        .map(|thread| {
            let guest = guest.clone();
            std::thread::spawn(move || {
                for round in 0..200u64 {
                    let addr = at + (round % 64 * 4 + thread) * PAGE_SIZE;
                    guest.store(addr, round as u8).unwrap();
                    guest.mm.write_bytes(addr + 1, &[round as u8; 100]).unwrap();
                    assert_eq!(guest.load(addr), Ok(round as u8));
                    assert_eq!(guest.mm.fetch_update_u32(addr + 512, |word| word + 1).map(drop), Ok(()));
                }
            })
        })
        .collect();
    for _ in 0..50 {
        let child = Guest { mm: guest.mm.fork().unwrap() };
        let byte = child.load(at).unwrap();
        child.store(at, 0xee).unwrap();
        assert_eq!(child.load(at), Ok(0xee), "{byte}");
    }
    for thread in threads {
        thread.join().unwrap();
    }
    for page in 0..256 {
        let word = guest.mm.load_u32(at + page * PAGE_SIZE + 512).unwrap();
        assert_eq!(word, (0..200).filter(|round| round % 64 == page / 4).count() as u32);
    }
    drop(guest);
    assert_eq!(arena.frames_in_use(), 0);
}
