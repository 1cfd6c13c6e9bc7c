//! The first stack: argument and environment strings, pointers to them, the auxiliary vector.
//!
//! ```text
//!  stack top ─▶ 8 zero bytes
//!               path of execve, environment strings, argument strings   (descending)
//!               "x86_64", 16 random bytes, alignment
//!               auxiliary vector, 0; envp[], NULL; argv[], NULL; argc   ◀─ stack pointer, 16-byte aligned
//! ```

use std::sync::Arc;

use linux_raw_sys::auxvec as linux;

use crate::errno::{Errno, SysResult};
use crate::mm::{ImageInfo, MapFlags, MapRequest, Mm, Prot, UNLIMITED};
use crate::platform::PAGE_SIZE;
use crate::task::{Credentials, rseq};

/// Longest single string with its NUL (`MAX_ARG_STRLEN`).
const MAX_STRING: usize = 32 * 4096;
/// Room for strings that is there whatever the stack limit says (`ARG_MAX`).
const MIN_STRINGS: u64 = 128 << 10;
/// Most room for strings: three quarters of the default stack limit.
const MAX_STRINGS: u64 = 6 << 20;
/// Room below the strings that is mapped from the start, in bytes (Linux's `stack_expand`).
const HEADROOM: u64 = 128 << 10;
/// `AT_HWCAP2`: user space may use `rdfsbase` and its like.
const HWCAP2_FSGSBASE: u64 = 1 << 1;

/// What goes onto the stack besides the auxiliary vector.
pub struct Content<'a> {
    /// `argv`
    pub args: &'a [Vec<u8>],
    /// `envp`
    pub env: &'a [Vec<u8>],
    /// The path given to `execve`.
    pub asked: &'a [u8],
    /// Whether code may run there.
    pub executable: bool,
}

/// Values of the auxiliary vector.
pub struct Auxv {
    /// Address of the vDSO.
    pub vdso: u64,
    /// Address of the program headers.
    pub headers: u64,
    /// Their number.
    pub header_count: u16,
    /// Where the interpreter was loaded.
    pub interpreter_base: u64,
    /// The program's own entry.
    pub entry: u64,
    /// Least size of a signal stack in bytes.
    pub min_signal_stack: u64,
    /// `AT_SECURE`
    pub secure: bool,
    /// `AT_RANDOM`
    pub random: [u8; 16],
}

/// A finished stack.
pub struct Built {
    /// The stack pointer.
    pub pointer: u64,
    args: (u64, u64),
    env: (u64, u64),
    auxv: Vec<(u64, u64)>,
}

impl Built {
    /// Notes where the strings are, for `/proc`.
    pub fn describe(&self, image: &mut ImageInfo) {
        image.start_stack = self.pointer;
        (image.arg_start, image.arg_end) = self.args;
        (image.env_start, image.env_end) = self.env;
        image.auxv.clone_from(&self.auxv);
    }
}

/// `E2BIG` if the strings do not fit into a quarter of the stack limit, or one of them is too long.
pub fn check_limits(args: &[Vec<u8>], env: &[Vec<u8>], asked: &[u8], stack_limit: u64) -> SysResult {
    let quarter = if stack_limit == UNLIMITED { MAX_STRINGS } else { stack_limit / 4 };
    let limit = quarter.clamp(MIN_STRINGS, MAX_STRINGS);
    let mut total = asked.len() as u64 + 1;
    for text in args.iter().chain(env) {
        if text.len() >= MAX_STRING {
            return Err(Errno::E2BIG);
        }
        // Each string costs a pointer, too.
        total = total.saturating_add(text.len() as u64).saturating_add(9);
    }
    if total > limit { Err(Errno::E2BIG) } else { Ok(()) }
}

/// Bytes that grow downwards from the top of the stack.
struct Down {
    top: u64,
    /// In reverse order.
    bytes: Vec<u8>,
}

impl Down {
    fn pointer(&self) -> u64 {
        self.top.wrapping_sub(self.bytes.len() as u64)
    }

    fn push(&mut self, data: &[u8]) -> u64 {
        self.bytes.extend(data.iter().rev());
        self.pointer()
    }

    fn push_string(&mut self, text: &[u8]) -> u64 {
        self.push(&[0]);
        self.push(text)
    }

    fn push_word(&mut self, word: u64) -> u64 {
        self.push(&word.to_le_bytes())
    }

    /// Pushes strings so that the first ends up lowest, and returns their addresses in order.
    fn push_strings(&mut self, strings: &[Vec<u8>]) -> Vec<u64> {
        let mut addresses: Vec<u64> = strings.iter().rev().map(|text| self.push_string(text)).collect();
        addresses.reverse();
        addresses
    }
}

/// Maps the stack of `mm` and fills it.
pub fn build(mm: &Arc<Mm>, content: &Content<'_>, aux: &Auxv, who: &Credentials) -> SysResult<Built> {
    let mut down = Down { top: mm.layout().stack_top, bytes: Vec::new() };
    down.push_word(0);
    let asked = down.push_string(content.asked);
    let env_end = down.pointer();
    let env = down.push_strings(content.env);
    let env_start = down.pointer();
    let args = down.push_strings(content.args);
    let arg_start = down.pointer();
    let platform = down.push_string(b"x86_64");
    let random = down.push(&aux.random);
    while !down.pointer().is_multiple_of(16) {
        down.push(&[0]);
    }
    let auxv = vector(aux, who, &Strings { asked, platform, random });
    // argc, argv with NULL, envp with NULL, auxv: an odd number of words needs one more for alignment.
    if (args.len() + env.len() + 3) % 2 == 1 {
        down.push_word(0);
    }
    for &(kind, value) in auxv.iter().rev() {
        down.push_word(value);
        down.push_word(kind);
    }
    for list in [&env, &args] {
        down.push_word(0);
        for &address in list.iter().rev() {
            down.push_word(address);
        }
    }
    let pointer = down.push_word(args.len() as u64);
    map(mm, pointer, content.executable)?;
    down.bytes.reverse();
    mm.write_bytes(pointer, &down.bytes)?;
    Ok(Built { pointer, args: (arg_start, env_start), env: (env_start, env_end), auxv })
}

/// Addresses of strings that the auxiliary vector names.
struct Strings {
    asked: u64,
    platform: u64,
    random: u64,
}

fn vector(aux: &Auxv, who: &Credentials, strings: &Strings) -> Vec<(u64, u64)> {
    let pairs = [
        (linux::AT_SYSINFO_EHDR, aux.vdso),
        (linux::AT_HWCAP, u64::from(caisson_platform_kvm::cpu_features())),
        (linux::AT_PAGESZ, PAGE_SIZE),
        (linux::AT_CLKTCK, 100),
        (linux::AT_PHDR, aux.headers),
        (linux::AT_PHENT, 56),
        (linux::AT_PHNUM, u64::from(aux.header_count)),
        (linux::AT_BASE, aux.interpreter_base),
        (linux::AT_FLAGS, 0),
        (linux::AT_ENTRY, aux.entry),
        (linux::AT_UID, u64::from(who.uid)),
        (linux::AT_EUID, u64::from(who.euid)),
        (linux::AT_GID, u64::from(who.gid)),
        (linux::AT_EGID, u64::from(who.egid)),
        (linux::AT_SECURE, u64::from(aux.secure)),
        (linux::AT_RANDOM, strings.random),
        (linux::AT_HWCAP2, HWCAP2_FSGSBASE),
        (linux::AT_RSEQ_FEATURE_SIZE, rseq::FEATURE_SIZE),
        (linux::AT_RSEQ_ALIGN, rseq::ALIGN),
        (linux::AT_EXECFN, strings.asked),
        (linux::AT_PLATFORM, strings.platform),
        (linux::AT_MINSIGSTKSZ, aux.min_signal_stack),
        (linux::AT_NULL, 0),
    ];
    pairs
        .iter()
        .filter(|&&(kind, value)| kind != linux::AT_SYSINFO_EHDR || value != 0)
        .map(|&(kind, value)| (u64::from(kind), value))
        .collect()
}

fn map(mm: &Mm, pointer: u64, executable: bool) -> SysResult {
    let start = pointer.saturating_sub(HEADROOM) & !(PAGE_SIZE - 1);
    let mut prot = Prot::READ | Prot::WRITE;
    prot.set(Prot::EXEC, executable);
    let request = MapRequest {
        addr: start,
        len: mm.layout().stack_top.saturating_sub(start),
        prot,
        flags: MapFlags::FIXED_NOREPLACE | MapFlags::GROWSDOWN,
        backing: None,
    };
    mm.mmap(request).map(drop)
}
