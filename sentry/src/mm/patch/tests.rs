//! Patched sites of whole address spaces, on the fake platform.

use std::sync::Arc;

use super::*;
use crate::mm::anonymous_object::AnonymousObject;
use crate::mm::mappable::{Mappable, MappingIdentity};
use crate::mm::{
    Advice, Discard, Entropy, Layout, MapBacking, MapFlags, MapRequest, MemoryLimits, Randomize,
};
use crate::platform::fake::{self, FakePlatform, FakeSpace};
use crate::platform::{Exit, Platform, Registers};

const TEXT: u64 = 0x40_0000;
/// Where the two sites are in the text, and where their calls return to.
const MOV: u64 = 0x100;
const MOV_BEHIND: u64 = TEXT + MOV + 7;
const CMP: u64 = 0x200;
const CMP_BEHIND: u64 = TEXT + CMP + 2;

struct Program {
    arena: &'static Arena,
    mm: Arc<Mm>,
    /// The same object, as a file shows it.
    file: u64,
    original: Vec<u8>,
}

impl Program {
    fn new(arena: &'static Arena) -> Program {
        let platform: Arc<dyn Platform> = FakePlatform::with_arena(arena);
        let layout = Layout::new(&mut Entropy::seeded(7), 8 << 20, Randomize::Yes);
        let mm = Mm::new(&platform, layout, MemoryLimits::default()).unwrap();
        let object: Arc<dyn Mappable> = AnonymousObject::new(arena, PAGE_SIZE, MappingIdentity::default());
        let map = |addr, prot, flags| {
            let backing = MapBacking { object: object.clone(), offset: 0, file: None, max_prot: Prot::all() };
            mm.mmap(MapRequest { addr, len: PAGE_SIZE, prot, flags, backing: Some(backing) }).unwrap()
        };
        let file = map(0, Prot::READ | Prot::WRITE, MapFlags::SHARED);
        map(TEXT, Prot::READ | Prot::EXEC, MapFlags::FIXED | MapFlags::DENYWRITE);
        let mut original = vec![0x90; PAGE];
        let (mov, cmp) = (MOV as usize, CMP as usize);
        original[mov..mov + 7].copy_from_slice(&[0xb8, 39, 0, 0, 0, 0x0f, 0x05]);
        original[cmp..cmp + 8].copy_from_slice(&[0x0f, 0x05, 0x48, 0x3d, 1, 0xf0, 0xff, 0xff]);
        mm.write_bytes(file, &original).unwrap();
        Program { arena, mm, file, original }
    }

    fn patched(arena: &'static Arena) -> Program {
        let program = Program::new(arena);
        program.mm.patch_site(MOV_BEHIND, 39);
        program.mm.patch_site(CMP_BEHIND, 1);
        assert_eq!(program.jumps(), [true, true]);
        program
    }

    fn bytes(&self, at: u64) -> Vec<u8> {
        let mut bytes = vec![0; PAGE];
        self.mm.read_bytes(at, &mut bytes).unwrap();
        bytes
    }

    /// Whether the two sites are jumps now; nothing else ever changes.
    fn jumps(&self) -> [bool; 2] {
        jumps(&self.mm, &self.original)
    }

    fn target(&self) -> u64 {
        self.mm.patches.sites.read().sites[&(TEXT + CMP)].target
    }
}

fn jumps(mm: &Mm, original: &[u8]) -> [bool; 2] {
    let mut text = vec![0; PAGE];
    mm.read_bytes(TEXT, &mut text).unwrap();
    let found = [MOV, CMP].map(|site| text[site as usize] == 0xe9);
    for (site, found) in [MOV, CMP].into_iter().zip(found) {
        let site = site as usize..site as usize + decode::JUMP;
        if found {
            text[site.clone()].copy_from_slice(&original[site]);
        }
    }
    assert!(text == original, "bytes beside the sites have changed");
    found
}

fn execute(mm: &Mm, addr: u64) -> Option<u8> {
    FakeSpace::of(mm.space()).touch(addr, Perms::X).ok()?;
    FakeSpace::of(mm.space()).load(addr).ok()
}

#[test]
fn the_file_and_the_list_of_mappings_stay_as_they_are() {
    let program = Program::new(fake::shared_arena());
    let before = program.mm.mappings().len();
    let size = program.mm.total_bytes();
    program.mm.patch_site(MOV_BEHIND, 39);
    program.mm.patch_site(CMP_BEHIND, 1);
    assert_eq!(program.jumps(), [true, true]);
    assert_eq!(program.bytes(program.file), program.original);
    assert_eq!((program.mm.mappings().len(), program.mm.total_bytes()), (before, size));
    assert_eq!(program.mm.read_bytes(program.target(), &mut [0]), Err(Errno::EFAULT));
    assert_eq!(execute(&program.mm, program.target()), Some(0x65));
    // A second time there is nothing to patch, and nothing where no call is.
    program.mm.patch_site(CMP_BEHIND, 1);
    program.mm.patch_site(TEXT + 0x300, 1);
    program.mm.patch_site(program.file + CMP + 2, 1);
    assert_eq!(program.jumps(), [true, true]);
    assert_eq!(program.mm.patches.sites.read().sites.len(), 2);
}

#[test]
fn threads_come_out_at_the_call_site_and_go_on_behind_it() {
    let program = Program::patched(fake::shared_arena());
    let patches = program.mm.patches();
    let (moved, entered) = patches.enter(CMP_BEHIND);
    assert_ne!(moved, CMP_BEHIND);
    let mut registers = Registers { rip: moved, ..Registers::default() };
    assert_eq!(patches.leave(entered, &mut registers, Exit::Interrupted), Exit::Interrupted);
    assert_eq!(registers.rip, CMP_BEHIND);
    // Before the call: it is made, whatever happened.
    let mut registers = Registers { rip: program.target(), rax: 1, ..Registers::default() };
    let fault = Exit::PageFault { addr: 0x60, write: false, exec: false, present: false };
    assert_eq!(patches.leave(entered, &mut registers, fault), Exit::Syscall);
    assert_eq!((registers.rip, registers.rax), (CMP_BEHIND, 1));
    // In the middle of the jump.
    let invalid = Exit::Exception { vector: 6, error_code: 0, addr: 0 };
    let mut registers = Registers { rip: CMP_BEHIND, ..Registers::default() };
    assert_eq!(patches.leave(entered, &mut registers, invalid), Exit::Interrupted);
    // The same after the site was undone meanwhile; but not for who entered later.
    program.mm.mprotect(TEXT, PAGE_SIZE, Prot::READ | Prot::WRITE | Prot::EXEC).unwrap();
    assert_eq!(patches.leave(entered, &mut registers, invalid), Exit::Interrupted);
    let (rip, entered) = patches.enter(CMP_BEHIND);
    assert_eq!(rip, CMP_BEHIND);
    assert_eq!(patches.leave(entered, &mut registers, invalid), invalid);
}

#[test]
fn changes_of_the_text_undo_its_sites() {
    let changes: [fn(&Mm); 4] = [
        |mm| mm.mprotect(TEXT, PAGE_SIZE, Prot::READ | Prot::WRITE).unwrap(),
        |mm| mm.madvise(TEXT, PAGE_SIZE, Advice::Discard(Discard::DontNeed)).unwrap(),
        |mm| assert_eq!(mm.write_forced(TEXT + CMP, &[0x0f]), Ok(1)),
        |mm| mm.give_up_patches(),
    ];
    for (nth, change) in changes.into_iter().enumerate() {
        let program = Program::patched(fake::shared_arena());
        change(&program.mm);
        assert_eq!(program.jumps(), if nth == 2 { [true, false] } else { [false, false] });
        // Threads may still be in there.
        assert_eq!(execute(&program.mm, program.target_of_old()), Some(0x65));
    }
}

impl Program {
    /// Where the second site's trampoline was.
    fn target_of_old(&self) -> u64 {
        let sites = self.mm.patches.sites.read();
        sites.trampolines.keys().copied().find(|start| execute(&self.mm, *start) == Some(0x65)).unwrap()
    }
}

#[test]
fn what_is_mapped_over_trampolines_makes_them_go() {
    let program = Program::patched(fake::shared_arena());
    let target = program.target();
    let request = MapRequest {
        addr: page_down(target),
        len: PAGE_SIZE,
        prot: Prot::READ,
        flags: MapFlags::FIXED,
        backing: None,
    };
    program.mm.mmap(request).unwrap();
    assert_eq!(program.jumps(), [false, false]);
    let mut byte = [1];
    program.mm.read_bytes(target, &mut byte).unwrap();
    assert_eq!(byte, [0]);
}

#[test]
fn a_child_has_the_same_sites_and_its_own_trampolines() {
    let arena = fake::new_arena(1000);
    let program = Program::new(arena);
    program.mm.patch_site(MOV_BEHIND, 39);
    let child = program.mm.fork().unwrap();
    let target = program.mm.patches.sites.read().sites[&(TEXT + MOV)].target;
    assert_eq!(execute(&child, target), Some(0xb8));
    // What one of them patches from now on is not the other's.
    child.patch_site(CMP_BEHIND, 1);
    assert_eq!(jumps(&child, &program.original), [true, true]);
    assert_eq!(program.jumps(), [true, false]);
    let own = child.patches.sites.read().sites[&(TEXT + CMP)].target;
    assert_eq!(execute(&child, own), Some(0x65));
    assert_ne!(execute(&program.mm, own), Some(0x65));
    program.mm.mprotect(TEXT, PAGE_SIZE, Prot::READ).unwrap();
    assert_eq!(program.jumps(), [false, false]);
    assert_eq!(jumps(&child, &program.original), [true, true]);
    drop(child);
    let arena = program.arena;
    drop(program);
    assert_eq!(arena.frames_in_use(), 0);
}
