//! From a file and its arguments to an address space that is ready to run.
//!
//! [`load`] follows `#!` lines to the file that will run ([`script`]), works out the new credentials from it
//! ([`credentials`]), and builds a fresh [`Mm`] with the program, its interpreter, the vDSO and the first stack. Until the
//! caller installs that, nothing of the old program has changed, so every failure is an errno of `execve`.
//!
//! [`elf`] turns bytes into checked headers, [`image`] maps segments, [`stack`] lays out arguments and the auxiliary vector.
//!
//! Not there: core dumps, `binfmt_misc`, 32-bit programs.

pub mod credentials;
pub mod elf;
pub mod image;
pub mod script;
pub mod stack;
#[cfg(test)]
mod tests;
pub mod vdso;

use std::sync::Arc;

use crate::errno::{Errno, SysResult};
use crate::io::KernelDst;
use crate::kernel::Kernel;
use crate::mm::{Entropy, Layout, MemoryAccess, MemoryLimits, Mm, Randomize};
use crate::platform::Registers;
use crate::task::rlimit::Rlimits;
use crate::task::{Capability, Credentials, Resource};
use crate::vfs::attachments::DenyWrite;
use crate::vfs::{Caller, File, VfsPath, WalkFlags};

/// How many interpreters of interpreters are followed (`BINPRM_BUF` recursion in Linux: 5 rewrites).
const MAX_SCRIPTS: usize = 5;

/// A program to be started.
pub struct Program<'a> {
    /// Who starts it.
    pub caller: &'a Caller<'a>,
    /// Where a relative path starts.
    pub start: VfsPath,
    /// The path given to `execve`.
    pub path: Vec<u8>,
    /// How the program is told of that path: the same, or below `/dev/fd` for `execveat` (`AT_EXECFN`, a script's name).
    pub shown: Vec<u8>,
    /// How to look at its last component (`AT_SYMLINK_NOFOLLOW`, `AT_EMPTY_PATH`).
    pub flags: WalkFlags,
    /// `argv`
    pub argv: Vec<Vec<u8>>,
    /// `envp`
    pub envp: Vec<Vec<u8>>,
    /// Limits of its address space.
    pub rlimits: &'a Rlimits,
    /// Whether addresses are random (`ADDR_NO_RANDOMIZE`).
    pub randomize: Randomize,
}

/// A program ready to run.
pub struct LoadedImage {
    /// Its memory.
    pub mm: Arc<Mm>,
    /// Its first registers.
    pub registers: Registers,
    /// What it may do.
    pub credentials: Arc<Credentials>,
    /// Whether starting it gave it rights its caller did not have (`AT_SECURE`).
    pub secure: bool,
    /// The task's new name.
    pub comm: Vec<u8>,
    /// Whether its file cannot be read by its user: `/proc` belongs to root then.
    pub dumpable: bool,
}

/// An executable file, and the promise that nobody writes to it.
struct Executable {
    file: Arc<File>,
    deny: DenyWrite,
}

/// The file that will run, with its final arguments.
struct Resolved {
    executable: Executable,
    header: elf::Header,
    args: Vec<Vec<u8>>,
}

/// Loads a program. `ENOEXEC` for anything but a program of this machine, `ENOENT` or `EACCES` for it or its interpreters, `ELOOP`
/// for too many of them, `E2BIG` for too many strings, `ENOMEM`, `ETXTBSY`.
pub fn load(kernel: &Arc<Kernel>, program: &Program<'_>) -> SysResult<LoadedImage> {
    let found = resolve(program)?;
    let gained = credentials::after_exec(&program.caller.credentials, &found.executable.file)?;
    let limits = memory_limits(program.rlimits, &gained.credentials);
    let mut entropy = Entropy::from_host();
    let layout = Layout::new(&mut entropy, limits.stack, program.randomize);
    stack::check_limits(&found.args, &program.envp, &program.shown, limits.stack)?;
    let interpreter = match found.header.interpreter(&found.executable.file)? {
        Some(path) => {
            let Executable { file, .. } =
                open(program.caller, program.caller.cwd(), &path, WalkFlags::FOLLOW)?;
            let header = elf::Header::of_interpreter(&file)?;
            Some((file, header))
        }
        None => None,
    };
    let mm = Mm::new(kernel.platform(), layout, limits)?;
    let (entry, stack_pointer) =
        fill(kernel, &mm, program, &found, interpreter.as_ref(), &gained, &mut entropy)?;
    let file = &found.executable.file;
    let data = mm.image().start_data;
    mm.prefault(&[
        (entry, MemoryAccess::Execute),
        (stack_pointer, MemoryAccess::Write),
        (data, MemoryAccess::Write),
    ]);
    let readable = file.inode().permission(&gained.credentials, crate::vfs::Access::READ).is_ok();
    let Executable { file, deny } = found.executable;
    let comm = match program.path.rsplit(|&byte| byte == b'/').next() {
        Some(name) if !name.is_empty() => name.to_vec(),
        // An open file: the name it was opened by.
        _ => file.path().map(|path| path.dentry().place().1.to_vec()).unwrap_or_default(),
    };
    mm.update_image(|image| {
        image.exe = Some(file);
        image.deny_write = Some(deny);
    });
    Ok(LoadedImage {
        mm,
        registers: Registers { rip: entry, rsp: stack_pointer, rflags: 0x202, ..Registers::default() },
        comm,
        dumpable: readable && !gained.secure,
        secure: gained.secure,
        credentials: Arc::new(gained.credentials),
    })
}

/// Maps everything; returns the first instruction and the stack pointer.
fn fill(
    kernel: &Kernel,
    mm: &Arc<Mm>,
    program: &Program<'_>,
    found: &Resolved,
    interpreter: Option<&(Arc<File>, elf::Header)>,
    gained: &credentials::AfterExec,
    entropy: &mut Entropy,
) -> SysResult<(u64, u64)> {
    let place = if interpreter.is_some() { image::Place::Program } else { image::Place::Anywhere };
    let main = image::map(mm, &found.executable.file, &found.header, place)?;
    let runtime = match interpreter {
        Some((file, header)) => Some(image::map(mm, file, header, image::Place::Anywhere)?),
        None => None,
    };
    mm.set_brk_start(main.end.checked_add(mm.layout().brk_offset).ok_or(Errno::ENOMEM)?);
    let vdso = vdso::map(mm, kernel.vdso())?;
    let auxv = stack::Auxv {
        vdso,
        headers: main.headers,
        header_count: found.header.segment_count(),
        interpreter_base: runtime.as_ref().map_or(0, |runtime| runtime.bias),
        entry: main.entry,
        min_signal_stack: min_signal_stack(mm.platform().xstate_size()),
        secure: gained.secure,
        random: entropy.next_bytes(),
    };
    let content = stack::Content {
        args: &found.args,
        env: &program.envp,
        asked: &program.shown,
        executable: found.header.executable_stack,
    };
    let built = stack::build(mm, &content, &auxv, &gained.credentials)?;
    mm.update_image(|image| {
        main.describe(image);
        built.describe(image);
        image.vdso = Some(vdso).filter(|&address| address != 0);
    });
    Ok((runtime.map_or(main.entry, |runtime| runtime.entry), built.pointer))
}

fn open(caller: &Caller<'_>, start: &VfsPath, path: &[u8], flags: WalkFlags) -> SysResult<Executable> {
    let (file, deny) = caller.open_program(start, path, flags)?;
    Ok(Executable { file, deny })
}

/// Finds the ELF file behind the program, following `#!` lines.
fn resolve(program: &Program<'_>) -> SysResult<Resolved> {
    let mut executable = open(program.caller, &program.start, &program.path, program.flags)?;
    let mut args = program.argv.clone();
    if args.is_empty() {
        // Linux 5.18 and later: a program always has a name.
        args.push(Vec::new());
    }
    let mut path = program.shown.clone();
    for _ in 0..=MAX_SCRIPTS {
        let mut head = [0; script::HEAD];
        let len = read_at(&executable.file, 0, &mut head)?;
        let head = head.get(..len).unwrap_or_default();
        let Some(line) = script::parse(head)? else {
            let header = elf::Header::read(&executable.file, head)?;
            return Ok(Resolved { executable, header, args });
        };
        let rest = args.get(1..).unwrap_or_default();
        let mut new = vec![line.interpreter.clone()];
        new.extend(line.argument);
        new.push(path);
        new.extend_from_slice(rest);
        args = new;
        executable = open(program.caller, program.caller.cwd(), &line.interpreter, WalkFlags::FOLLOW)?;
        path = line.interpreter;
    }
    Err(Errno::ELOOP)
}

/// Bytes that a signal frame needs on the stack: the frame proper, the vector state with its end marker, alignment, red zone.
fn min_signal_stack(xstate_size: usize) -> u64 {
    const FRAME: u64 = 8 + 128 + 304 + 64 + 128 + 4;
    FRAME.saturating_add(u64::try_from(xstate_size).unwrap_or(0)).next_multiple_of(16)
}

/// The limits that memory calls obey.
pub fn memory_limits(rlimits: &Rlimits, who: &Credentials) -> MemoryLimits {
    let soft = |resource| rlimits.get(resource).soft;
    let locked = if who.has(Capability::IPC_LOCK) { crate::mm::UNLIMITED } else { soft(Resource::Memlock) };
    MemoryLimits {
        address_space: soft(Resource::As),
        data: soft(Resource::Data),
        stack: soft(Resource::Stack),
        locked,
    }
}

/// Reads up to `buf.len()` bytes at `offset`; less only at the end of the file.
pub(crate) fn read_at(file: &File, offset: u64, buf: &mut [u8]) -> SysResult<usize> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let mut dst = KernelDst::new(rest);
        let at = offset.checked_add(done as u64).ok_or(Errno::ENOEXEC)?;
        match file.read_at(&mut dst, at)? {
            0 => break,
            read => done = done.saturating_add(read),
        }
    }
    Ok(done)
}
