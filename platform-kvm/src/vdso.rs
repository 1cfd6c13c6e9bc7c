//! Machine code of the vDSO: clocks read in the guest without leaving it.
//!
//! The code is position independent and finds its parameters at a fixed distance before itself: the page that ends
//! [`PARAMETERS_TO_TEXT`] bytes before the text begins. The kernel builds the ELF image around it, maps both read-only, and
//! is the only one who writes the parameters:
//!
//! | offset | type | meaning |
//! |---|---|---|
//! | 0 | u32 | sequence: odd while the page is being written |
//! | 8 | u64 | time stamp counter at the base |
//! | 16 | u64 | ticks after the base for which the page is valid; beyond, every function makes the system call |
//! | 24 | u64 | nanoseconds per tick, times 2^32 |
//! | 32 | u64 | `CLOCK_MONOTONIC` at the base, in nanoseconds |
//! | 64 + 8 n | i64 | clock n less `CLOCK_MONOTONIC`, in nanoseconds |
//!
//! Every function makes the system call instead of waiting when the page is being written, so nothing can hang on it.
//! The text is data to this process: it is never executed here.

use core::arch::global_asm;

/// Bytes from the parameters to the text: their own page, and the page of the ELF headers between them.
pub const PARAMETERS_TO_TEXT: u64 = 0x2000;

/// Clocks the code can compute, as a mask of `CLOCK_*`: REALTIME, MONOTONIC, MONOTONIC_RAW, both COARSE, BOOTTIME, TAI.
pub const CLOCKS: u32 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 11;

/// Offsets in the page of parameters.
pub mod parameter {
    #![allow(missing_docs)] // the table above
    pub const SEQUENCE: u64 = 0;
    pub const TSC_BASE: u64 = 8;
    pub const TSC_SPAN: u64 = 16;
    pub const MULTIPLIER: u64 = 24;
    pub const MONOTONIC: u64 = 32;
    pub const OFFSETS: u64 = 64;
}

global_asm!(
    ".pushsection .rodata.caisson_vdso, \"a\", @progbits",
    ".balign 64",
    // Global, because the functions that name them may be inlined into other crates.
    ".globl caisson_vdso_text",
    ".hidden caisson_vdso_text",
    ".globl caisson_vdso_entries",
    ".hidden caisson_vdso_entries",
    "caisson_vdso_text:",
    // Nanoseconds of clock edi into rax, or a jump to `\\fallback`. Uses rax, rcx, rdx, r8, r9. Keeps rdi, rsi.
    ".macro caisson_vdso_nanoseconds fallback",
    "lea r8, [rip + caisson_vdso_text - {to_text}]",
    "77:",
    "mov r9d, [r8]",
    "test r9d, 1",
    "jnz \\fallback",
    "lfence",
    "rdtsc",
    "shl rdx, 32",
    "or rax, rdx",
    "sub rax, [r8 + {base}]",
    "cmp rax, [r8 + {span}]",
    "ja \\fallback",
    "mul qword ptr [r8 + {multiplier}]",
    "shrd rax, rdx, 32",
    "add rax, [r8 + {monotonic}]",
    "mov ecx, edi",
    "add rax, [r8 + rcx * 8 + {offsets}]",
    "cmp r9d, [r8]",
    "jne 77b",
    ".endm",
    // rax nanoseconds -> rdx seconds, rcx nanoseconds of the second. Uses r10.
    ".macro caisson_vdso_split",
    "mov rcx, rax",
    "shr rax, 9",
    "movabs r10, 0x44B82FA09B5A53", // n / 10^9 = ((n >> 9) * this) >> 75
    "mul r10",
    "shr rdx, 11",
    "imul rax, rdx, 1000000000",
    "sub rcx, rax",
    ".endm",
    ".balign 16",
    "caisson_vdso_clock_gettime:",
    "cmp edi, 11",
    "ja 2f",
    "mov eax, {clocks}",
    "bt eax, edi",
    "jnc 2f",
    "caisson_vdso_nanoseconds 2f",
    "caisson_vdso_split",
    "mov [rsi], rdx",
    "mov [rsi + 8], rcx",
    "xor eax, eax",
    "ret",
    "2:",
    "mov eax, {nr_clock_gettime}",
    "syscall",
    "ret",
    ".balign 16",
    "caisson_vdso_gettimeofday:",
    "mov r11, rdi",
    "test rdi, rdi",
    "jz 3f",
    "xor edi, edi",
    "caisson_vdso_nanoseconds 2f",
    "caisson_vdso_split",
    "mov [r11], rdx",
    "imul rcx, rcx, 274877907", // microseconds: n / 1000 = (n * this) >> 38 for n < 2^32
    "shr rcx, 38",
    "mov [r11 + 8], rcx",
    "3:",
    "test rsi, rsi",
    "jz 4f",
    "mov qword ptr [rsi], 0",
    "4:",
    "xor eax, eax",
    "ret",
    "2:",
    "mov rdi, r11",
    "mov eax, {nr_gettimeofday}",
    "syscall",
    "ret",
    ".balign 16",
    "caisson_vdso_time:",
    "mov r11, rdi",
    "xor edi, edi",
    "caisson_vdso_nanoseconds 2f",
    "caisson_vdso_split",
    "mov rax, rdx",
    "test r11, r11",
    "jz 3f",
    "mov [r11], rax",
    "3:",
    "ret",
    "2:",
    "mov rdi, r11",
    "mov eax, {nr_time}",
    "syscall",
    "ret",
    ".balign 16",
    "caisson_vdso_clock_getres:",
    "cmp edi, 11",
    "ja 2f",
    "mov eax, {clocks}",
    "bt eax, edi",
    "jnc 2f",
    "test rsi, rsi",
    "jz 3f",
    "mov eax, {coarse}",
    "bt eax, edi",
    "mov eax, 1",
    "mov ecx, {coarse_resolution}",
    "cmovc eax, ecx",
    "mov qword ptr [rsi], 0",
    "mov [rsi + 8], rax",
    "3:",
    "xor eax, eax",
    "ret",
    "2:",
    "mov eax, {nr_clock_getres}",
    "syscall",
    "ret",
    ".balign 16",
    "caisson_vdso_getcpu:",
    "mov eax, {nr_getcpu}",
    "syscall",
    "ret",
    "caisson_vdso_text_end:",
    // Where things are, for `code` below.
    ".balign 8",
    "caisson_vdso_entries:",
    ".quad caisson_vdso_text_end - caisson_vdso_text",
    ".quad caisson_vdso_clock_gettime - caisson_vdso_text",
    ".quad caisson_vdso_gettimeofday - caisson_vdso_text",
    ".quad caisson_vdso_time - caisson_vdso_text",
    ".quad caisson_vdso_clock_getres - caisson_vdso_text",
    ".quad caisson_vdso_getcpu - caisson_vdso_text",
    ".popsection",
    to_text = const PARAMETERS_TO_TEXT,
    base = const parameter::TSC_BASE,
    span = const parameter::TSC_SPAN,
    multiplier = const parameter::MULTIPLIER,
    monotonic = const parameter::MONOTONIC,
    offsets = const parameter::OFFSETS,
    clocks = const CLOCKS,
    coarse = const COARSE,
    coarse_resolution = const COARSE_RESOLUTION,
    nr_clock_gettime = const libc::SYS_clock_gettime,
    nr_gettimeofday = const libc::SYS_gettimeofday,
    nr_time = const libc::SYS_time,
    nr_clock_getres = const libc::SYS_clock_getres,
    nr_getcpu = const libc::SYS_getcpu,
);

/// `CLOCK_REALTIME_COARSE`, `CLOCK_MONOTONIC_COARSE`
const COARSE: u32 = 1 << 5 | 1 << 6;
/// Resolution of the coarse clocks in nanoseconds.
pub const COARSE_RESOLUTION: u32 = 4_000_000;

unsafe extern "C" {
    static caisson_vdso_text: u8;
    static caisson_vdso_entries: [u64; 6];
}

/// The code and where its functions begin.
#[derive(Debug, Clone)]
pub struct VdsoCode {
    /// The text.
    pub text: &'static [u8],
    /// Functions by name: offsets in the text.
    pub functions: [(&'static str, u64); 5],
}

/// The vDSO's code.
pub fn code() -> VdsoCode {
    // SAFETY: the assembly above defines six words there, read-only and never written.
    let entries = unsafe { &caisson_vdso_entries };
    let len = usize::try_from(entries[0]).unwrap_or(0);
    let start = &raw const caisson_vdso_text;
    // SAFETY: the first word is the distance of the two labels that enclose the text, which is read-only data.
    let text = unsafe { std::slice::from_raw_parts(start, len) };
    VdsoCode {
        text,
        functions: [
            ("clock_gettime", entries[1]),
            ("gettimeofday", entries[2]),
            ("time", entries[3]),
            ("clock_getres", entries[4]),
            ("getcpu", entries[5]),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_lie_inside_the_text_and_nothing_is_relocated() {
        let code = code();
        assert!(code.text.len() < 4096, "one page holds it");
        for (name, offset) in code.functions {
            let offset = usize::try_from(offset).unwrap();
            assert!(offset < code.text.len() && offset % 16 == 0, "{name}");
        }
        // `lea r8, [rip + displacement]`, wherever it is, points at the parameters.
        let lea = [0x4c, 0x8d, 0x05];
        let found: Vec<usize> =
            (0..code.text.len() - 7).filter(|at| code.text[*at..].starts_with(&lea)).collect();
        assert_eq!(found.len(), 3);
        for at in found {
            let displacement = i32::from_le_bytes(code.text[at + 3..at + 7].try_into().unwrap());
            let target = i64::try_from(at + 7).unwrap() + i64::from(displacement);
            assert_eq!(target, -i64::try_from(PARAMETERS_TO_TEXT).unwrap());
        }
    }

    /// The code in memory of its own, with parameters of the test's choice, called on this CPU.
    struct Loaded {
        pages: *mut u8,
    }

    impl Loaded {
        const LEN: usize = 3 * 4096;

        fn new(words: &[(u64, u64)]) -> Loaded {
            let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: a fresh mapping, wherever the kernel likes.
            let pages = unsafe { libc::mmap(std::ptr::null_mut(), Loaded::LEN, prot, flags, -1, 0) };
            assert_ne!(pages, libc::MAP_FAILED);
            let pages: *mut u8 = pages.cast();
            let text = code().text;
            // SAFETY: the mapping is long enough; nobody else knows it.
            let to = unsafe { pages.add(0x2000) };
            // SAFETY: as above.
            unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), to, text.len()) };
            for (offset, word) in words {
                // SAFETY: offsets are those of the table, in the first page.
                let at = unsafe { pages.add(usize::try_from(*offset).unwrap()) }.cast::<u64>();
                // SAFETY: as above; aligned by the table.
                unsafe { at.write(*word) };
            }
            Loaded { pages }
        }

        fn call(&self, name: &str, a: u64, b: *mut [i64; 2]) -> i64 {
            let (_, offset) = code().functions.into_iter().find(|(n, _)| *n == name).unwrap();
            // SAFETY: inside the text that was copied there.
            let entry = unsafe { self.pages.add(0x2000 + usize::try_from(offset).unwrap()) };
            // SAFETY: the assembly follows the C calling convention with two pointer-sized arguments.
            let function: extern "C" fn(u64, *mut [i64; 2]) -> i64 = unsafe { std::mem::transmute(entry) };
            function(a, b)
        }
    }

    impl Drop for Loaded {
        fn drop(&mut self) {
            // SAFETY: the mapping made in `new`.
            unsafe { libc::munmap(self.pages.cast(), Loaded::LEN) };
        }
    }

    #[test]
    fn clocks_are_computed_from_the_parameters() {
        // One tick is 0 ns: the result is the base, whatever the counter says.
        let base = 1_700_000_123_999_999_999u64;
        for nanos in [0, 1, 999_999_999, 1_000_000_000, base, i64::MAX.cast_unsigned() - 1000] {
            let realtime = 1000u64;
            let loaded = Loaded::new(&[
                (parameter::TSC_SPAN, u64::MAX),
                (parameter::MONOTONIC, nanos),
                (parameter::OFFSETS, realtime),
            ]);
            let mut out = [-1, -1];
            assert_eq!(loaded.call("clock_gettime", 1, &mut out), 0);
            assert_eq!(out.map(i64::cast_unsigned), [nanos / 1_000_000_000, nanos % 1_000_000_000]);
            assert_eq!(loaded.call("clock_gettime", 0, &mut out), 0);
            let real = nanos + realtime;
            assert_eq!(out.map(i64::cast_unsigned), [real / 1_000_000_000, real % 1_000_000_000]);
            let mut tv = [-1, -1];
            assert_eq!(loaded.call("gettimeofday", (&raw mut tv).addr() as u64, std::ptr::null_mut()), 0);
            assert_eq!(tv.map(i64::cast_unsigned), [real / 1_000_000_000, real % 1_000_000_000 / 1000]);
            assert_eq!(loaded.call("time", 0, std::ptr::null_mut()).cast_unsigned(), real / 1_000_000_000);
        }
    }

    #[test]
    fn ticks_are_scaled() {
        // Half a nanosecond a tick, from now on.
        let start = crate::machine::rdtsc();
        let loaded = Loaded::new(&[
            (parameter::TSC_BASE, start),
            (parameter::TSC_SPAN, u64::MAX / 2),
            (parameter::MULTIPLIER, 1 << 31),
        ]);
        let mut out = [0, 0];
        loaded.call("clock_gettime", 1, &mut out);
        let end = crate::machine::rdtsc();
        let nanos = (out[0] * 1_000_000_000 + out[1]).cast_unsigned();
        assert!(nanos <= (end - start) / 2 && nanos > 0);
    }

    #[test]
    fn without_valid_parameters_the_system_call_answers() {
        let mut real = [0, 0];
        for words in [vec![], vec![(parameter::SEQUENCE, 1), (parameter::TSC_SPAN, u64::MAX)]] {
            let loaded = Loaded::new(&words);
            assert_eq!(loaded.call("clock_gettime", 0, &mut real), 0);
            assert!(real[0] > 1_600_000_000);
            // The system call `time` tells the second of the last timer tick, as the coarse clock does, and may be behind
            // the fine one: by as much as ticks are late, and one second if the second has just begun.
            let mut coarse = [0, 0];
            assert_eq!(loaded.call("clock_gettime", 5, &mut coarse), 0);
            let seconds = loaded.call("time", 0, std::ptr::null_mut());
            let mut tv = [0, 0];
            assert_eq!(loaded.call("gettimeofday", (&raw mut tv).addr() as u64, std::ptr::null_mut()), 0);
            assert!((coarse[0]..=tv[0]).contains(&seconds), "{coarse:?} {seconds} {tv:?}");
            assert!(tv[0] >= real[0] && tv[1] < 1_000_000);
            // CPU time clocks and unknown ones are the kernel's.
            assert_eq!(loaded.call("clock_gettime", 2, &mut real), 0);
            assert_eq!(loaded.call("clock_gettime", 10, &mut real), -i64::from(libc::EINVAL));
            assert_eq!(
                loaded.call("clock_gettime", u64::MAX, &mut real) & 0xfff,
                0xfff & -i64::from(libc::EINVAL)
            );
            // Four bytes are written, which zeroes would not show: this may be processor 0.
            let mut cpu = [-1; 2];
            assert_eq!(loaded.call("getcpu", (&raw mut cpu).addr() as u64, std::ptr::null_mut()), 0);
            assert_ne!(cpu[0], -1);
        }
    }

    #[test]
    fn resolutions_are_linuxs() {
        let loaded = Loaded::new(&[]);
        let mut out = [-1, -1];
        for (clock, nanos) in [(0, 1), (1, 1), (5, 4_000_000), (6, 4_000_000), (7, 1)] {
            assert_eq!(loaded.call("clock_getres", clock, &mut out), 0);
            assert_eq!(out, [0, nanos]);
        }
        assert_eq!(loaded.call("clock_getres", 1, std::ptr::null_mut()), 0);
        assert_eq!(loaded.call("clock_getres", 77, &mut out), -i64::from(libc::EINVAL));
    }
}
