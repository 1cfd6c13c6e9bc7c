//! What can be patched at a call site, and how: reads instructions, changes nothing.
//!
//! Two patterns, `S` being the address of the `syscall`:
//! 1. `mov $n,%eax; syscall`. The five bytes of the `mov` become a jump. Whoever jumps to `S` still finds a `syscall`.
//! 2. `syscall` and what follows it, up to at least five bytes, become a jump; what followed moves into the trampoline. The jump's
//!    displacement is such that at each place where an instruction began there is now a byte that is no instruction in 64-bit
//!    mode: who arrives there gets #UD and is sent to the moved copy.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};

/// Bytes of `jmp rel32`, which take the place of what was there.
pub(super) const JUMP: usize = 5;
/// Bytes of `syscall`.
const SYSCALL: usize = 2;
/// One-byte opcodes that 64-bit mode does not have and that no extension has taken.
const INVALID: [u8; 11] = [0x06, 0x07, 0x0e, 0x16, 0x17, 0x1e, 0x1f, 0x27, 0x2f, 0x37, 0x3f];
/// How far before a `mov` instructions are read to find out whether it is one, in bytes: from, to.
const LOOK_BACK: (usize, usize) = (96, 16);
/// Fewer readings than this prove nothing.
const FEWEST_READINGS: usize = 8;

/// How a site is to be patched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Where the jump goes.
    pub at: u64,
    /// The address behind the `syscall`.
    pub behind: u64,
    /// The number that the replaced `mov` loads (pattern 1).
    pub number: Option<u32>,
    /// Instructions that move (pattern 2), in order.
    pub moved: Vec<Moved>,
    /// Where the trampoline goes on.
    pub next: u64,
    /// The bytes that the jump replaces.
    pub original: [u8; JUMP],
}

/// An instruction that moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Moved {
    /// Where it was.
    pub address: u64,
    /// What it is.
    pub what: What,
}

/// An instruction, as it is written elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// The same bytes.
    Plain(Vec<u8>),
    /// `jmp` to an address.
    Jump(u64),
    /// `jcc` to an address; the condition is the low half of the opcode.
    Branch(u8, u64),
}

impl Plan {
    /// Whether a trampoline at `target` is in reach and leaves an invalid opcode wherever an instruction began.
    pub fn suits(&self, target: u64) -> bool {
        let Some(bytes) = self.jump(target) else { return false };
        self.moved.iter().all(|moved| {
            let offset = usize::try_from(moved.address.wrapping_sub(self.at)).unwrap_or(JUMP);
            bytes.get(offset).is_none_or(|byte| INVALID.contains(byte))
        })
    }

    /// The jump to `target`.
    pub fn jump(&self, target: u64) -> Option<[u8; JUMP]> {
        jump(self.at, target)
    }

    /// The bytes of the site that are spoken for.
    pub fn covers(&self) -> std::ops::Range<u64> {
        self.at..self.next.max(self.behind)
    }
}

/// `jmp` from `at` to `target`, if that is in reach.
pub(super) fn jump(at: u64, target: u64) -> Option<[u8; JUMP]> {
    let distance = i32::try_from(target.wrapping_sub(at.wrapping_add(JUMP as u64)).cast_signed()).ok()?;
    let mut bytes = [0xe9; JUMP];
    bytes.get_mut(1..)?.copy_from_slice(&distance.to_le_bytes());
    Some(bytes)
}

/// Lets the decoder build its tables now, and not while the first thread waits whose site is to be patched.
pub(super) fn prepare() {
    let _ = Decoder::new(64, &[0x90], DecoderOptions::NONE).decode();
}

/// How to patch the site of the call `number` that returns to `behind`, in the page `code` at `base`. `None`: not.
pub(super) fn plan(code: &[u8], base: u64, behind: u64, number: u64) -> Option<Plan> {
    let end = usize::try_from(behind.checked_sub(base)?).ok()?;
    let start = end.checked_sub(SYSCALL)?;
    if code.get(start..end)? != [0x0f, 0x05] {
        return None;
    }
    with_mov(code, base, start, number).or_else(|| with_followers(code, base, start))
}

/// Pattern 1.
fn with_mov(code: &[u8], base: u64, syscall: usize, number: u64) -> Option<Plan> {
    let start = syscall.checked_sub(JUMP)?;
    let original: [u8; JUMP] = code.get(start..syscall)?.try_into().ok()?;
    let [0xb8, loaded @ ..] = original else { return None };
    let loaded = u32::from_le_bytes(loaded);
    if u64::from(loaded) != number || !begins(code, start) {
        return None;
    }
    let behind = base + syscall as u64 + SYSCALL as u64;
    let at = base + start as u64;
    Some(Plan { at, behind, number: Some(loaded), moved: Vec::new(), next: behind, original })
}

/// Whether an instruction begins at `target`: nearly all readings that begin somewhere before it must come by. (x86 code read from the wrong
/// place falls into step after a few instructions.)
fn begins(code: &[u8], target: usize) -> bool {
    let (far, near) = LOOK_BACK;
    let (mut hits, mut misses) = (0_usize, 0_usize);
    for start in target.saturating_sub(far)..target.saturating_sub(near) {
        match reading(code, start, target) {
            Some(true) => hits += 1,
            Some(false) => misses += 1,
            None => {}
        }
    }
    let readings = hits + misses;
    readings >= FEWEST_READINGS && hits * 10 >= readings * 9
}

/// Whether reading from `start` on comes by at `target`; `None` if it meets something that is no code.
fn reading(code: &[u8], start: usize, target: usize) -> Option<bool> {
    let mut decoder = Decoder::with_ip(64, code.get(start..)?, start as u64, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    while decoder.ip() < target as u64 {
        decoder.decode_out(&mut instruction);
        if instruction.is_invalid() {
            return None;
        }
    }
    Some(decoder.ip() == target as u64)
}

/// Pattern 2.
fn with_followers(code: &[u8], base: u64, syscall: usize) -> Option<Plan> {
    let original: [u8; JUMP] = code.get(syscall..syscall.checked_add(JUMP)?)?.try_into().ok()?;
    let first = syscall + SYSCALL;
    let at = base + syscall as u64;
    let behind = base + first as u64;
    let mut decoder = Decoder::with_ip(64, code.get(first..)?, behind, DecoderOptions::NONE);
    let mut moved = Vec::new();
    while decoder.ip() < at + JUMP as u64 {
        let address = decoder.ip();
        let instruction = decoder.decode();
        let from = usize::try_from(address - base).ok()?;
        let bytes = code.get(from..from.checked_add(instruction.len())?)?;
        moved.push(Moved { address, what: relocate(&instruction, bytes)? });
    }
    Some(Plan { at, behind, number: None, moved, next: decoder.ip(), original })
}

/// The instruction as it can be written elsewhere, if it can.
fn relocate(instruction: &Instruction, bytes: &[u8]) -> Option<What> {
    if instruction.is_invalid() || instruction.is_ip_rel_memory_operand() {
        return None;
    }
    let near = instruction.op0_kind() == OpKind::NearBranch64;
    match instruction.flow_control() {
        // `mov ss` and `pop ss` hold exceptions back over the next instruction, which is then another.
        FlowControl::Next if instruction.op0_register() == Register::SS => None,
        FlowControl::Next | FlowControl::Return => Some(What::Plain(bytes.to_vec())),
        FlowControl::UnconditionalBranch if near => Some(What::Jump(instruction.near_branch64())),
        FlowControl::ConditionalBranch if near && instruction.is_jcc_short_or_near() => {
            // The enumeration begins with "none", and goes on in the order of the opcodes.
            let condition = (instruction.condition_code() as u8).checked_sub(1)?;
            Some(What::Branch(condition, instruction.near_branch64()))
        }
        _ => None,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Where [`page`] is.
    pub const BASE: u64 = 0x40_0000;

    /// A page of nops with `before`, a `syscall` and `after` in it, and the address behind the `syscall`.
    pub fn page(before: &[u8], after: &[u8]) -> (Vec<u8>, u64) {
        let mut page = vec![0x90; 256];
        page.extend_from_slice(before);
        page.extend_from_slice(&[0x0f, 0x05]);
        let behind = BASE + page.len() as u64;
        page.extend_from_slice(after);
        page.resize(4096, 0x90);
        (page, behind)
    }

    fn planned(before: &[u8], after: &[u8], number: u64) -> Option<Plan> {
        let (page, behind) = page(before, after);
        plan(&page, BASE, behind, number)
    }

    #[test]
    fn a_mov_in_front_is_replaced() {
        let plan = planned(&[0xb8, 39, 0, 0, 0], &[0xc3], 39).unwrap();
        assert_eq!((plan.number, plan.at + 7, plan.next), (Some(39), plan.behind, plan.behind));
        assert_eq!(plan.original, [0xb8, 39, 0, 0, 0]);
        assert!(plan.moved.is_empty());
        // Another number was called: the mov does not belong to this call.
        assert_eq!(planned(&[0xb8, 39, 0, 0, 0], &[0x48, 0x89, 0xc7], 40).unwrap().number, None);
    }

    #[test]
    fn the_end_of_a_longer_instruction_is_no_mov() {
        for longer in [
            &[0x41, 0xb8, 1, 0, 0, 0][..],             // mov $1,%r8d
            &[0xc7, 0x44, 0x24, 0xb8, 1, 0, 0, 0][..], // movl $1,-0x48(%rsp)
            &[0xc7, 0x80, 0xb8, 1, 0, 0, 0, 0, 0, 0][..],
        ] {
            let plan = planned(longer, &[0x48, 0x89, 0xc7], 1).unwrap();
            assert_eq!(plan.number, None, "{longer:x?}");
        }
    }

    #[test]
    fn what_follows_moves() {
        // cmp $-4095,%rax; jae …
        let plan = planned(&[], &[0x48, 0x3d, 1, 0xf0, 0xff, 0xff, 0x73, 1], 1).unwrap();
        assert_eq!(plan.at + 2, plan.behind);
        assert_eq!(plan.next, plan.behind + 6);
        assert_eq!(
            plan.moved,
            [Moved { address: plan.behind, what: What::Plain(vec![0x48, 0x3d, 1, 0xf0, 0xff, 0xff]) }]
        );
        // test %eax,%eax; jns +5
        let plan = planned(&[], &[0x85, 0xc0, 0x79, 5], 1).unwrap();
        let to = plan.behind + 4 + 5;
        assert_eq!(plan.moved[1], Moved { address: plan.behind + 2, what: What::Branch(9, to) });
        // ret, and what lies behind it.
        let plan = planned(&[], &[0xc3, 0x0f, 0x1f, 0], 1).unwrap();
        assert_eq!(plan.moved.len(), 2);
        // A near jcc behind a prefix.
        let plan = planned(&[], &[0x3e, 0x0f, 0x85, 0, 1, 0, 0], 1).unwrap();
        assert_eq!(plan.moved[0].what, What::Branch(5, plan.behind + 7 + 0x100));
    }

    #[test]
    fn what_knows_its_place_stays() {
        for stays in [
            &[0xe8, 0, 0, 0, 0][..],             // call
            &[0x48, 0x8b, 0x05, 0, 0, 0, 0][..], // mov 0(%rip),%rax
            &[0x90, 0x0f, 0x05][..],             // nop; syscall
            &[0xcc, 0x90, 0x90][..],             // int3
            &[0x06, 0x90, 0x90][..],             // no instruction
            &[0xe3, 0x00, 0x90][..],             // jrcxz
        ] {
            assert_eq!(planned(&[], stays, 1), None, "{stays:x?}");
        }
        // Not at the end of a page.
        let page = [&[0x90; 4094][..], &[0x0f, 0x05]].concat();
        assert_eq!(plan(&page, BASE, BASE + 4096, 1), None);
        assert_eq!(plan(&page, BASE, BASE + 4095, 1), None);
    }

    #[test]
    fn old_beginnings_become_invalid_opcodes() {
        let plan = planned(&[], &[0x48, 0x3d, 1, 0xf0, 0xff, 0xff], 1).unwrap();
        let suiting = (0..1 << 16).map(|offset| BASE + 0x10_0000 + offset * 16);
        let mut found = 0;
        for target in suiting {
            let bytes = plan.jump(target).unwrap();
            assert_eq!(plan.suits(target), INVALID.contains(&bytes[2]));
            found += u32::from(plan.suits(target));
        }
        assert_eq!(found, 16 * 11 * 16);
        for byte in INVALID {
            let code = [byte, 0, 0, 0, 0, 0, 0, 0];
            assert!(Decoder::new(64, &code, DecoderOptions::NONE).decode().is_invalid());
        }
        assert!(!plan.suits(BASE + (3 << 30)), "out of reach");
    }
}
