//! The code that a patched site jumps to, and what the registers mean at each of its instructions.
//!
//! ```text
//!        mov   $n, %eax                 (pattern 1)
//!        mov   %gs:check, %rcx          is GS the slot of this vCPU?
//!        lea   -value(%rcx), %rcx       without touching the flags
//!        jrcxz post
//!        syscall                        no: the program has set GS
//! back:  lea   site, %rcx               where the call returns to, either way
//!        …                              moved instructions (pattern 2)
//!        jmp   next
//! post:  lea   back, %rcx
//!        jmp   *%gs:entry               the vCPU's stub, which returns to rcx
//! ```

use super::decode::{Plan, What, jump};
use crate::platform::{Exit, PatchedEntry, Registers};

/// Trampolines begin at multiples of this.
pub(super) const ALIGN: u64 = 16;
/// Bytes of the longest that is built.
const LONGEST: usize = 160;

/// What rip means inside a trampoline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spot {
    /// The call has not been made.
    Before,
    /// It has; rcx is not right yet.
    Behind,
    /// The program is at this address.
    At(u64),
}

/// A trampoline.
#[derive(Clone, Debug)]
pub(super) struct Trampoline {
    /// Address behind the `syscall` of its site.
    behind: u64,
    number: Option<u32>,
    /// Offsets at which another meaning begins, in order.
    spots: Vec<(u64, Spot)>,
    len: u64,
}

/// A trampoline's code with what goes with it.
pub(super) struct Built {
    pub code: Vec<u8>,
    pub trampoline: Trampoline,
    /// Addresses of the program whose instructions have moved here, and where to.
    pub entrances: Vec<(u64, u64)>,
}

struct Writer {
    start: u64,
    code: Vec<u8>,
    spots: Vec<(u64, Spot)>,
}

impl Writer {
    fn here(&self) -> u64 {
        self.start + self.code.len() as u64
    }

    fn spot(&mut self, spot: Spot) {
        self.spots.push((self.code.len() as u64, spot));
    }

    fn put(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
    }

    /// An instruction that ends with the distance from its end to `target`.
    fn relative(&mut self, opcode: &[u8], target: u64) -> Option<()> {
        let end = self.here() + opcode.len() as u64 + 4;
        let distance = i32::try_from(target.wrapping_sub(end).cast_signed()).ok()?;
        self.put(opcode);
        self.put(&distance.to_le_bytes());
        Some(())
    }
}

/// The trampoline of `plan` at `start`; `None` if something is out of its reach.
pub(super) fn build(plan: &Plan, start: u64, entry: &PatchedEntry) -> Option<Built> {
    let mut w = Writer { start, code: Vec::with_capacity(LONGEST), spots: Vec::new() };
    let mut entrances = Vec::new();
    w.spot(Spot::Before);
    if let Some(number) = plan.number {
        w.put(&[0xb8]);
        w.put(&number.to_le_bytes());
    }
    w.put(&[0x65, 0x48, 0x8b, 0x0c, 0x25]);
    w.put(&entry.check.to_le_bytes());
    w.put(&[0x48, 0x8d, 0x89]);
    w.put(&entry.value.wrapping_neg().to_le_bytes());
    w.put(&[0xe3, 0]);
    let jrcxz = w.code.len();
    w.put(&[0x0f, 0x05]);
    let back = w.here();
    w.spot(Spot::Behind);
    w.relative(&[0x48, 0x8d, 0x0d], plan.behind)?;
    for moved in &plan.moved {
        w.spot(Spot::At(moved.address));
        entrances.push((moved.address, w.here()));
        match &moved.what {
            What::Plain(bytes) => w.put(bytes),
            What::Jump(target) => w.relative(&[0xe9], *target)?,
            What::Branch(condition, target) => w.relative(&[0x0f, 0x80 | condition], *target)?,
        }
    }
    w.spot(Spot::At(plan.next));
    w.put(&jump(w.here(), plan.next)?);
    let post = w.code.len();
    if let Some(to) = w.code.get_mut(jrcxz - 1) {
        *to = u8::try_from(post - jrcxz).ok().filter(|distance| *distance < 0x80)?;
    }
    w.spot(Spot::Before);
    w.relative(&[0x48, 0x8d, 0x0d], back)?;
    w.put(&[0x65, 0xff, 0x24, 0x25]);
    w.put(&entry.entry.to_le_bytes());
    let len = w.code.len() as u64;
    let trampoline = Trampoline { behind: plan.behind, number: plan.number, spots: w.spots, len };
    Some(Built { code: w.code, trampoline, entrances })
}

/// Most bytes that the trampoline of a plan has.
pub(super) fn room(plan: &Plan) -> u64 {
    let moved = |what: &What| match what {
        What::Plain(bytes) => bytes.len() as u64,
        What::Jump(_) | What::Branch(..) => 6,
    };
    54 + plan.moved.iter().map(|moved_one| moved(&moved_one.what)).sum::<u64>()
}

impl Trampoline {
    pub fn len(&self) -> u64 {
        self.len
    }

    /// A thread left the guest `offset` bytes into this trampoline: makes its registers the program's, at the call site, and says
    /// what has happened to it there.
    pub fn leave(&self, offset: u64, registers: &mut Registers, exit: Exit) -> Exit {
        const STEP: u8 = 1;
        let spot = self.spots.iter().rev().find(|(start, _)| *start <= offset);
        match (spot.map_or(Spot::Before, |(_, spot)| *spot), exit) {
            (Spot::At(address), _) => registers.rip = address,
            (Spot::Behind, _) => {
                registers.rip = self.behind;
                registers.rcx = self.behind;
            }
            // A program that steps through itself is behind the `mov`.
            (Spot::Before, Exit::Exception { vector: STEP, .. }) if self.number.is_some() && offset == 0 => {
                registers.rax = self.number.unwrap_or(0).into();
                registers.rip = self.behind.wrapping_sub(2);
            }
            // Whatever it was, the call comes first.
            (Spot::Before, _) => {
                if let Some(number) = self.number {
                    registers.rax = number.into();
                }
                registers.r11 = registers.rflags;
                registers.rcx = self.behind;
                registers.rip = self.behind;
                return Exit::Syscall;
            }
        }
        exit
    }
}

#[cfg(test)]
mod tests {
    use super::super::decode::plan;
    use super::super::decode::tests::{BASE, page};
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction};

    const AT: u64 = 0x20_0000;
    const ENTRY: PatchedEntry = PatchedEntry::checking(0x1234_5677);

    fn site(before: &[u8], after: &[u8]) -> Plan {
        let (page, behind) = page(before, after);
        plan(&page, BASE, behind, 39).unwrap()
    }

    fn instructions(built: &Built) -> Vec<Instruction> {
        Decoder::with_ip(64, &built.code, AT, DecoderOptions::NONE).into_iter().collect()
    }

    #[test]
    fn it_leads_to_the_entry_and_back() {
        for plan in [
            site(&[0xb8, 39, 0, 0, 0], &[]),
            site(&[], &[0x48, 0x3d, 1, 0xf0, 0xff, 0xff]),
            site(&[], &[0x85, 0xc0, 0x79, 5]),
            site(&[], &[0xc3, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0]),
        ] {
            let built = build(&plan, AT, &ENTRY).unwrap();
            assert!(built.code.len() as u64 <= room(&plan) && built.code.len() <= LONGEST);
            let all = instructions(&built);
            assert!(all.iter().all(|i| !i.is_invalid()));
            assert_eq!(all.last().unwrap().flow_control(), FlowControl::IndirectBranch);
            let jrcxz = all.iter().find(|i| i.is_jcx_short()).unwrap();
            let post = all.iter().find(|i| i.ip() == jrcxz.near_branch64()).expect("an instruction is there");
            let syscall = all.iter().find(|i| i.code() == iced_x86::Code::Syscall).unwrap();
            assert_eq!(post.ip_rel_memory_address(), syscall.next_ip());
            let back = all.iter().find(|i| i.ip() == syscall.next_ip()).unwrap();
            assert_eq!(back.ip_rel_memory_address(), plan.behind);
            assert!(all.iter().any(|i| i.is_jmp_short_or_near() && i.near_branch64() == plan.next));
            assert_eq!(built.entrances.len(), plan.moved.len());
            for (_, to) in &built.entrances {
                assert!(all.iter().any(|i| i.ip() == *to));
            }
        }
    }

    #[test]
    fn registers_are_the_programs_wherever_it_is_left() {
        let plan = site(&[], &[0x85, 0xc0, 0x79, 5]);
        let built = build(&plan, AT, &ENTRY).unwrap();
        for instruction in instructions(&built) {
            let offset = instruction.ip() - AT;
            let mut registers = Registers {
                rax: 7,
                rcx: 1,
                r11: 2,
                rflags: 0x246,
                rip: instruction.ip(),
                ..Registers::default()
            };
            let exit = built.trampoline.leave(offset, &mut registers, Exit::Interrupted);
            if exit == Exit::Syscall {
                assert_eq!((registers.rax, registers.rip), (7, plan.behind));
                assert_eq!((registers.rcx, registers.r11), (plan.behind, 0x246));
            } else {
                let places = [plan.behind, plan.behind + 2, plan.next];
                assert!(places.contains(&registers.rip), "{:x}", registers.rip);
                assert_eq!(registers.r11, 2);
            }
        }
    }

    #[test]
    fn a_step_into_it_is_a_step_over_the_mov() {
        let plan = site(&[0xb8, 39, 0, 0, 0], &[]);
        let built = build(&plan, AT, &ENTRY).unwrap();
        let step = Exit::Exception { vector: 1, error_code: 0, addr: 0 };
        let mut registers = Registers { rip: AT, rcx: 5, ..Registers::default() };
        assert_eq!(built.trampoline.leave(0, &mut registers, step), step);
        assert_eq!((registers.rax, registers.rip, registers.rcx), (39, plan.behind - 2, 5));
        assert_eq!(built.trampoline.leave(0, &mut registers, Exit::Interrupted), Exit::Syscall);
    }
}
