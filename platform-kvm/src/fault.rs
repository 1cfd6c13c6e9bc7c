//! Memory access that survives a missing page.
//!
//! The routines below are the only code that touches guest memory from the host. Each has one instruction that may fault; the
//! SIGSEGV/SIGBUS handler moves the instruction pointer from exactly these addresses to the routine's way out and passes
//! every other fault to whoever handled it before (by default: death of the process).

use std::ffi::c_void;
use std::io;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

core::arch::global_asm!(
    ".pushsection .text.caisson_guest_access,\"ax\",@progbits",
    // rdi = destination, rsi = source, rdx = bytes; returns the number of bytes not copied.
    ".global caisson_copy",
    "caisson_copy:",
    "mov rcx, rdx",
    ".global caisson_copy_fault",
    "caisson_copy_fault:",
    "rep movsb",
    ".global caisson_copy_out",
    "caisson_copy_out:",
    "mov rax, rcx",
    "ret",
    // rdi = destination, rsi = bytes; returns the number of bytes not cleared.
    ".global caisson_zero",
    "caisson_zero:",
    "mov rcx, rsi",
    "xor eax, eax",
    ".global caisson_zero_fault",
    "caisson_zero_fault:",
    "rep stosb",
    ".global caisson_zero_out",
    "caisson_zero_out:",
    "mov rax, rcx",
    "ret",
    // rdi = word; returns it zero-extended, or -1.
    ".global caisson_load32",
    "caisson_load32:",
    ".global caisson_load32_fault",
    "caisson_load32_fault:",
    "mov eax, dword ptr [rdi]",
    "ret",
    // rdi = word, esi = expected, edx = new; returns the word found, zero-extended, or -1.
    ".global caisson_cmpxchg32",
    "caisson_cmpxchg32:",
    "mov eax, esi",
    ".global caisson_cmpxchg32_fault",
    "caisson_cmpxchg32_fault:",
    "lock cmpxchg dword ptr [rdi], edx",
    "mov eax, eax",
    "ret",
    ".global caisson_word_out",
    "caisson_word_out:",
    "mov rax, -1",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    fn caisson_copy(to: *mut c_void, from: *const c_void, len: usize) -> usize;
    fn caisson_zero(to: *mut c_void, len: usize) -> usize;
    fn caisson_load32(word: *const u32) -> u64;
    fn caisson_cmpxchg32(word: *mut u32, expected: u32, new: u32) -> u64;
    static caisson_copy_fault: u8;
    static caisson_copy_out: u8;
    static caisson_zero_fault: u8;
    static caisson_zero_out: u8;
    static caisson_load32_fault: u8;
    static caisson_cmpxchg32_fault: u8;
    static caisson_word_out: u8;
}

/// Where each routine may fault, and where it continues then.
fn fixups() -> [(usize, usize); 4] {
    let at = |label: *const u8| label as usize;
    [
        (at(&raw const caisson_copy_fault), at(&raw const caisson_copy_out)),
        (at(&raw const caisson_zero_fault), at(&raw const caisson_zero_out)),
        (at(&raw const caisson_load32_fault), at(&raw const caisson_word_out)),
        (at(&raw const caisson_cmpxchg32_fault), at(&raw const caisson_word_out)),
    ]
}

/// Copies and returns the number of bytes that could not be copied.
///
/// # Safety
/// Each of the two ranges is either memory that the caller may access through raw pointers, or lies in an arena (where any
/// content is fine and a missing page is survived). `install_handler` has been called.
pub(crate) unsafe fn copy(to: *mut u8, from: *const u8, len: usize) -> usize {
    // SAFETY: the ranges are the caller's obligation; the routine follows the C calling convention and touches nothing else.
    unsafe { caisson_copy(to.cast(), from.cast(), len) }
}

/// Clears and returns the number of bytes that could not be cleared.
///
/// # Safety
/// The range lies in an arena, and `install_handler` has been called.
pub(crate) unsafe fn zero(to: *mut u8, len: usize) -> usize {
    // SAFETY: as in `copy`.
    unsafe { caisson_zero(to.cast(), len) }
}

/// Atomically loads a word (an aligned 4-byte `mov`), `None` if it is not backed.
///
/// # Safety
/// `word` is 4-byte aligned and lies in an arena; `install_handler` has been called.
pub(crate) unsafe fn load32(word: *const u32) -> Option<u32> {
    // SAFETY: as in `copy`.
    let value = unsafe { caisson_load32(word) };
    u32::try_from(value).ok()
}

/// Atomic compare-and-exchange; returns the word found, `None` if it is not backed.
///
/// # Safety
/// As `load32`.
pub(crate) unsafe fn compare_exchange32(word: *mut u32, expected: u32, new: u32) -> Option<u32> {
    // SAFETY: as in `copy`.
    let value = unsafe { caisson_cmpxchg32(word, expected, new) };
    u32::try_from(value).ok()
}

/// What handled SIGSEGV and SIGBUS before.
static PREVIOUS: OnceLock<[libc::sigaction; 2]> = OnceLock::new();

/// Installs the handler once per process.
pub(crate) fn install_handler() -> io::Result<()> {
    if PREVIOUS.get().is_some() {
        return Ok(());
    }
    static INSTALL: parking_lot::Mutex<()> = parking_lot::Mutex::new(());
    let _guard = INSTALL.lock();
    if PREVIOUS.get().is_some() {
        return Ok(());
    }
    let previous = [query(libc::SIGSEGV)?, query(libc::SIGBUS)?];
    // The value must be there before the handler can run.
    let _ = PREVIOUS.set(previous);
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: an all-zero sigaction is a valid value of that C struct.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        // SAFETY: `action` is initialised and the handler is async-signal-safe: it compares addresses and writes the context.
        if unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn query(signal: i32) -> io::Result<libc::sigaction> {
    let mut old = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: `old` is a valid place for the kernel to write one sigaction.
    if unsafe { libc::sigaction(signal, std::ptr::null(), old.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed is valid for this C struct, and the kernel has filled it.
    Ok(unsafe { old.assume_init() })
}

extern "C" fn handle(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    let ucontext = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel passes a valid ucontext to an SA_SIGINFO handler, ours alone until we return.
    let registers = unsafe { &mut (*ucontext).uc_mcontext.gregs };
    let rip = registers[libc::REG_RIP as usize] as usize;
    if let Some((_, out)) = fixups().into_iter().find(|(fault, _)| *fault == rip) {
        registers[libc::REG_RIP as usize] = out as i64;
        return;
    }
    pass_on(signal, info, context);
}

/// Not ours: calls the previous handler, or restores the default action so that the instruction faults again and kills us.
fn pass_on(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    let index = usize::from(signal == libc::SIGBUS);
    if let Some(previous) = PREVIOUS.get().and_then(|all| all.get(index)) {
        let handler = previous.sa_sigaction;
        if handler != libc::SIG_DFL && handler != libc::SIG_IGN && previous.sa_flags & libc::SA_SIGINFO != 0 {
            // SAFETY: with SA_SIGINFO the stored address is a function of this type, put there by its owner.
            let call: extern "C" fn(i32, *mut libc::siginfo_t, *mut c_void) =
                unsafe { std::mem::transmute(handler) };
            call(signal, info, context);
            return;
        }
    }
    // SAFETY: an all-zero sigaction is a valid value of that C struct, and means SIG_DFL.
    let default: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: `default` is initialised; sigaction is async-signal-safe.
    unsafe { libc::sigaction(signal, &default, std::ptr::null_mut()) };
}
