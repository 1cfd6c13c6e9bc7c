//! Where `syscall` leads: code that posts the call in the vCPU's slot and spins until it is answered.
//!
//! Every vCPU has a copy of its own with the address of its slot in it, so finding the slot costs no register and no
//! memory access. Two versions, one per way of running ring 0:
//! - *native*: ring-0 code and a slot in the vCPU's page, neither visible to ring 3. Returns by `sysretq`.
//! - *emulated*: `syscall` goes to LSTAR without leaving ring 3, so this is ring-3 code, in the lower half (the upper half is
//!   not executed natively), and the slot is a page of the address space that runs. Whoever can write to it are the threads of
//!   that very process. Returns by `popfq` on a stack in the slot, and `jmp`; were it in ring 0, the program would be then, so it
//!   looks first (a stack pointer that is not canonical is enough for KVM to emulate `syscall` in full).
//!
//! The second has another entry, for call sites that are patched ([`PatchedEntry`]): there the return address is in rcx as
//! after `syscall`, and the flags are still where they were.
//!
//! The code is data to this process: it is never executed here. Whatever it is interrupted at, [`Place::of`] says
//! where the user's registers are then.

use super::faulting::Spot;
use super::slot;
use crate::blob::blob;
use crate::layout::{PORT_ANSWERED, PORT_SYSCALL, USER_SLOT_TO_STUB};
use core::arch::global_asm;

/// Bytes between the copies of two vCPUs.
pub(crate) const STUB_LEN: u64 = 256;
/// Turns of the loop for a call that was claimed just when it was to be withdrawn.
const SPINS: u32 = 600;
const FLAG_TF: u32 = 1 << 8;

global_asm!(
    ".pushsection .rodata.caisson_exitless, \"a\", @progbits",
    ".macro caisson_exitless name, ring3",
    ".balign 64",
    ".globl caisson_exitless_\\name\\()_start",
    ".hidden caisson_exitless_\\name\\()_start",
    ".globl caisson_exitless_\\name\\()_saved",
    ".hidden caisson_exitless_\\name\\()_saved",
    ".globl caisson_exitless_\\name\\()_posted",
    ".hidden caisson_exitless_\\name\\()_posted",
    ".globl caisson_exitless_\\name\\()_answered",
    ".hidden caisson_exitless_\\name\\()_answered",
    ".globl caisson_exitless_\\name\\()_unmade",
    ".hidden caisson_exitless_\\name\\()_unmade",
    ".globl caisson_exitless_\\name\\()_call",
    ".hidden caisson_exitless_\\name\\()_call",
    ".globl caisson_exitless_\\name\\()_patched",
    ".hidden caisson_exitless_\\name\\()_patched",
    ".globl caisson_exitless_\\name\\()_away",
    ".hidden caisson_exitless_\\name\\()_away",
    ".globl caisson_exitless_\\name\\()_back",
    ".hidden caisson_exitless_\\name\\()_back",
    ".globl caisson_exitless_\\name\\()_end",
    ".hidden caisson_exitless_\\name\\()_end",
    "caisson_exitless_\\name\\()_start:",
    // movabs [slot], rax; movabs rax, slot. The operands are filled in per vCPU.
    ".byte 0x48, 0xa3",
    ".quad 0",
    ".byte 0x48, 0xb8",
    ".quad 0",
    "mov [rax + {rcx}], rcx",
    "mov [rax + {r11}], r11",
    "mov [rax + {rsp}], rsp",
    "caisson_exitless_\\name\\()_saved:",
    // In a state in which KVM does not run ring 3 natively it emulates `syscall` as well, and that enters ring 0. The host leads back from there.
    ".if \\ring3",
    "mov ecx, cs",
    "test cl, 3",
    "jz 4f",
    ".endif",
    "mov ecx, [rax + {awake}]",
    "test ecx, ecx",
    "jz 4f",
    "test r11d, {tf}",
    "jnz 4f",
    "mov [rax + {rdi}], rdi",
    "mov [rax + {rsi}], rsi",
    "mov [rax + {rdx}], rdx",
    "mov [rax + {r10}], r10",
    "mov [rax + {r8}], r8",
    "mov [rax + {r9}], r9",
    "mov dword ptr [rax + {state}], {is_posted}",
    "caisson_exitless_\\name\\()_posted:",
    "1:",
    "mov r11d, [rax + {state}]",
    "cmp r11d, {is_done}",
    "jae 2f",
    "pause",
    "sub ecx, 1",
    "jnz 1b",
    // Nobody came, and ecx is 0: withdraw the call, unless somebody comes this very moment.
    "mov r11, rax",
    "lea eax, [rcx + {is_posted}]",
    "mov cl, {is_withdrawn}",
    "lock cmpxchg [r11 + {state}], ecx",
    "mov rax, r11",
    "je 4f",
    "mov ecx, {spins}",
    "jmp 1b",
    "2:",
    "jne 3f",
    // A buffer of the call is often on the stack, and with it what the program needs first.
    "prefetchw [rsp]",
    "mov r11, [rax + {r11}]",
    ".if \\ring3",
    "lea rsp, [rax + {stack}]",
    "push r11",
    "popfq",
    "mov rsp, [rax + {rsp}]",
    ".endif",
    "mov rcx, [rax + {rcx}]",
    "mov rax, [rax + {result}]",
    ".if \\ring3",
    "jmp rcx",
    ".else",
    "sysretq",
    ".endif",
    "3:",
    "cmp r11d, {is_refused}",
    "je 4f",
    ".if \\ring3",
    "cmp r11d, {is_switched}",
    "jne 5f",
    "jmp qword ptr [rax + {switch}]",
    "5:",
    ".endif",
    "mov r11, [rax + {r11}]",
    "mov rcx, [rax + {rcx}]",
    "mov rax, [rax + {result}]",
    "caisson_exitless_\\name\\()_answered:",
    "out {port_answered}, al",
    "ud2",
    "caisson_exitless_\\name\\()_unmade:",
    "4:",
    "mov r11, [rax + {r11}]",
    "mov rcx, [rax + {rcx}]",
    "mov rax, [rax]",
    "caisson_exitless_\\name\\()_call:",
    "out {port_call}, al",
    "ud2",
    // Patched call sites come here: r11 gets the flags, by way of the word of stack.
    "caisson_exitless_\\name\\()_patched:",
    ".if \\ring3",
    // What the program has just stored may wait for a line that the dispatcher has read; this one is fetched meanwhile.
    "lea r11, [rip + caisson_exitless_\\name\\()_start - {ahead}]",
    "prefetchw [r11 + {kind}]",
    // Its other bytes are 0: answers leave them so.
    "mov byte ptr [r11 + {kind}], {is_patched}",
    "mov [r11 + {rsp}], rsp",
    "lea rsp, [r11 + {stack}]",
    "caisson_exitless_\\name\\()_away:",
    "pushfq",
    "pop r11",
    "mov rsp, [rip + caisson_exitless_\\name\\()_start - {ahead} + {rsp}]",
    "caisson_exitless_\\name\\()_back:",
    "jmp caisson_exitless_\\name\\()_start",
    ".else",
    "caisson_exitless_\\name\\()_away:",
    "caisson_exitless_\\name\\()_back:",
    ".endif",
    "caisson_exitless_\\name\\()_end:",
    ".endm",
    "caisson_exitless native, 0",
    "caisson_exitless user, 1",
    ".popsection",
    rcx = const slot::RCX,
    r11 = const slot::R11,
    rsp = const slot::RSP,
    rdi = const slot::RDI,
    rsi = const slot::RSI,
    rdx = const slot::RDX,
    r10 = const slot::R10,
    r8 = const slot::R8,
    r9 = const slot::R9,
    result = const slot::RESULT,
    state = const slot::STATE,
    awake = const slot::AWAKE,
    kind = const slot::KIND,
    is_patched = const slot::PATCHED,
    stack = const slot::STACK_TOP,
    tf = const FLAG_TF,
    spins = const SPINS,
    is_posted = const slot::POSTED,
    is_done = const slot::DONE,
    is_refused = const slot::REFUSED,
    is_withdrawn = const slot::WITHDRAWN,
    is_switched = const slot::SWITCHED,
    switch = const slot::SWITCH,
    ahead = const USER_SLOT_TO_STUB,
    port_answered = const PORT_ANSWERED,
    port_call = const PORT_SYSCALL,
);

/// Where the address of the slot stands in the code.
const OPERANDS: [usize; 2] = [2, 12];

/// A version of the code and its landmarks, as offsets from its start.
#[derive(Debug)]
pub(crate) struct Stub {
    code: &'static [u8],
    saved: u64,
    posted: u64,
    /// From here on the call was not made, for whatever reason.
    unmade: u64,
    /// The `out` after an answer that wants the thread to leave.
    pub answered: u64,
    /// The `out` that makes the call by an exit.
    pub call: u64,
    /// The second entry; from `away` to `back` rsp is in the slot.
    pub patched: u64,
    away: u64,
    back: u64,
}

/// How a patched call site gets to the syscall stub of the vCPU it runs on (emulated ring 0): if the word at `gs:[check]` is `value`, it jumps to
/// the address at `gs:[entry]` with the return address in rcx and the call's other registers and flags in place. There it is as after
/// a `syscall` in front of the return address; r11 need not be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PatchedEntry {
    /// Offset of the word that says that GS is right.
    pub check: u32,
    /// What that word holds.
    pub value: u32,
    /// Offset of the address to jump to.
    pub entry: u32,
}

impl PatchedEntry {
    /// The one of a machine whose slots hold `value`, which fits into 31 bits.
    pub const fn checking(value: u32) -> PatchedEntry {
        PatchedEntry { check: slot::CHECK as u32, value, entry: slot::ENTRY as u32 }
    }
}

/// Where the user's registers are at some instruction of the stub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the second entry: r11 is not the flags yet, which are in rflags; the call was not made yet.
    Patched,
    /// The same, and rsp is in the slot.
    PatchedAway,
    /// All in place; the call was not made yet.
    Untouched,
    /// rax is in the slot; the call was not made yet.
    RaxSaved,
    /// rax, rcx, r11 are in the slot; the call was not made yet.
    Saved,
    /// As `Saved`, and the slot's state says what has become of the call.
    Posted,
    /// In the code that posts page faults.
    Faulting(Spot),
    /// In the code that switches threads; the registers of the one that waits are in its context, or not yet.
    Switching {
        /// They are.
        saved: bool,
    },
}

impl Stub {
    /// The ring-0 version.
    pub(crate) fn native() -> Stub {
        Stub::new(
            blob!(caisson_exitless_native_start caisson_exitless_native_saved caisson_exitless_native_posted
            caisson_exitless_native_answered caisson_exitless_native_unmade caisson_exitless_native_call
            caisson_exitless_native_patched caisson_exitless_native_away caisson_exitless_native_back,
            caisson_exitless_native_end),
        )
    }

    /// The ring-3 version.
    pub(crate) fn user() -> Stub {
        Stub::new(blob!(caisson_exitless_user_start caisson_exitless_user_saved caisson_exitless_user_posted
            caisson_exitless_user_answered caisson_exitless_user_unmade caisson_exitless_user_call
            caisson_exitless_user_patched caisson_exitless_user_away caisson_exitless_user_back,
            caisson_exitless_user_end))
    }

    /// Of the labels in the order of the code.
    fn new((code, labels): (&'static [u8], [u64; 8])) -> Stub {
        let [saved, posted, answered, unmade, call, patched, away, back] = labels;
        Stub { code, saved, posted, unmade, answered, call, patched, away, back }
    }

    /// The code for a slot at this guest-virtual address.
    pub(crate) fn code(&self, slot: u64) -> Vec<u8> {
        let mut code = self.code.to_vec();
        for at in OPERANDS {
            if let Some(operand) = code.get_mut(at..at + 8) {
                operand.copy_from_slice(&slot.to_le_bytes());
            }
        }
        code
    }

    /// Where the registers are when rip is this far behind the start; `None` outside of the code.
    pub(crate) fn place(&self, offset: u64) -> Option<Place> {
        Some(match offset {
            0 => Place::Untouched,
            _ if offset < self.saved => Place::RaxSaved,
            _ if offset < self.posted => Place::Saved,
            _ if offset < self.unmade => Place::Posted,
            _ if offset < self.patched => Place::Saved,
            _ if offset < self.away => Place::Patched,
            _ if offset < self.back => Place::PatchedAway,
            _ if offset < self.code.len() as u64 => Place::Untouched,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_fits_and_names_its_slot() {
        for stub in [Stub::native(), Stub::user()] {
            assert!(stub.code.len() as u64 <= STUB_LEN, "{}", stub.code.len());
            let code = stub.code(0x7fff_1234_5678_9a00);
            assert_eq!(&code[..2], &[0x48, 0xa3]);
            assert_eq!(&code[2..10], &0x7fff_1234_5678_9a00_u64.to_le_bytes());
            assert_eq!(&code[10..12], &[0x48, 0xb8]);
            assert_eq!(&code[12..20], &0x7fff_1234_5678_9a00_u64.to_le_bytes());
            assert_eq!(code[stub.call as usize..][..2], [0xe6, PORT_SYSCALL as u8]);
            assert_eq!(code[stub.answered as usize..][..2], [0xe6, PORT_ANSWERED as u8]);
        }
    }

    #[test]
    fn places_follow_one_another() {
        let stub = Stub::user();
        assert_eq!(stub.place(0), Some(Place::Untouched));
        assert_eq!(stub.place(10), Some(Place::RaxSaved));
        assert_eq!(stub.place(stub.saved), Some(Place::Saved));
        assert_eq!(stub.place(stub.posted), Some(Place::Posted));
        assert_eq!(stub.place(stub.answered), Some(Place::Posted));
        assert_eq!(stub.place(stub.call), Some(Place::Saved));
        assert_eq!(stub.place(stub.patched), Some(Place::Patched));
        assert_eq!(stub.place(stub.away), Some(Place::PatchedAway));
        assert_eq!(stub.place(stub.back), Some(Place::Untouched));
        assert_eq!(stub.place(STUB_LEN), None);
    }
}
