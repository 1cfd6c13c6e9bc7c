//! From a file and its arguments to an address space that is ready to run.
//!
//! Two steps, because credentials change in between: [`Program::resolve`] follows `#!` lines to the file that will run;
//! the caller works out the new credentials from that file; [`Program::load`] builds a fresh [`Mm`] with the program, its
//! interpreter, the vDSO and the first stack. Until the caller installs that, nothing of the old program has changed, so
//! every failure is an errno of `execve`.
//!
//! [`elf`] turns bytes into checked headers, [`script`] reads `#!` lines, [`image`] maps segments, [`stack`] lays out
//! arguments and the auxiliary vector.

pub mod elf;
pub mod image;
pub mod script;
pub mod stack;

use std::sync::Arc;

use crate::errno::{Errno, SysResult};
use crate::io::KernelDst;
use crate::mm::{Entropy, Layout, MemoryLimits, Mm, Randomize};
use crate::platform::Platform;
use crate::task::Credentials;
use crate::vfs::File;

/// How many interpreters of interpreters are followed (`BINPRM_BUF` recursion in Linux: 5 rewrites).
const MAX_SCRIPTS: usize = 5;

/// Opens a file for execution by its path, as the caller of `execve` sees it, with the checks `execve` makes.
pub type OpenForExec<'a> = dyn FnMut(&[u8]) -> SysResult<Arc<File>> + 'a;

/// The file that will run, with its final arguments.
pub struct Program {
    /// The ELF file.
    pub file: Arc<File>,
    /// `argv`.
    pub args: Vec<Vec<u8>>,
    /// The path that was asked for (`AT_EXECFN`).
    pub asked: Vec<u8>,
    /// The task's new name.
    pub comm: Vec<u8>,
    header: elf::Header,
}

/// What else a program starts with.
pub struct Environment<'a> {
    /// Where guest code will run.
    pub platform: &'a Arc<dyn Platform>,
    /// `envp`.
    pub env: &'a [Vec<u8>],
    /// Ids for the auxiliary vector.
    pub credentials: &'a Credentials,
    /// Whether it gains rights by starting (`AT_SECURE`).
    pub secure: bool,
    /// Memory limits of the new address space; the stack's bounds arguments, too.
    pub limits: MemoryLimits,
    /// `ADDR_NO_RANDOMIZE`.
    pub randomize: Randomize,
    /// Least size of a signal stack (`AT_MINSIGSTKSZ`), in bytes.
    pub min_signal_stack: u64,
    /// Maps the vDSO into a new address space and returns its address.
    pub map_vdso: &'a dyn Fn(&Arc<Mm>) -> SysResult<u64>,
}

/// A program ready to run.
pub struct LoadedImage {
    /// Its memory.
    pub mm: Arc<Mm>,
    /// First instruction: the interpreter's, if there is one.
    pub entry: u64,
    /// First stack pointer.
    pub stack_pointer: u64,
}

impl Program {
    /// Finds the ELF file behind `file`, following `#!` lines. `asked` is the path given to `execve`.
    ///
    /// `ENOEXEC` for anything but a program of this machine, `ENOENT` or `EACCES` for interpreters, `ELOOP` for too many of them.
    pub fn resolve(
        file: Arc<File>,
        asked: &[u8],
        args: Vec<Vec<u8>>,
        open: &mut OpenForExec<'_>,
    ) -> SysResult<Program> {
        let mut file = file;
        let mut args = args;
        let mut path = asked.to_vec();
        for _ in 0..=MAX_SCRIPTS {
            let mut head = [0; script::HEAD];
            let len = read_at(&file, 0, &mut head)?;
            let head = head.get(..len).unwrap_or_default();
            let Some(line) = script::parse(head)? else {
                let header = elf::Header::read(&file, head)?;
                let comm = asked.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
                return Ok(Program { header, file, args, comm: comm.to_vec(), asked: asked.to_vec() });
            };
            let rest = args.get(1..).unwrap_or_default();
            let mut new = vec![line.interpreter.clone()];
            new.extend(line.argument);
            new.push(path);
            new.extend_from_slice(rest);
            args = new;
            file = open(&line.interpreter)?;
            path = line.interpreter;
        }
        Err(Errno::ELOOP)
    }

    /// Builds the address space. The caller has worked out the credentials from [`Program::file`].
    pub fn load(&self, with: &Environment<'_>, open: &mut OpenForExec<'_>) -> SysResult<LoadedImage> {
        let mut entropy = Entropy::from_host();
        let layout = Layout::new(&mut entropy, with.limits.stack, with.randomize);
        stack::check_limits(&self.args, with.env, &self.asked, with.limits.stack)?;
        let interpreter = match self.header.interpreter(&self.file)? {
            Some(path) => {
                let file = open(&path)?;
                let header = elf::Header::of_interpreter(&file)?;
                Some((file, header))
            }
            None => None,
        };
        let mm = Mm::new(with.platform, layout, with.limits)?;
        let place = if interpreter.is_some() { image::Place::Program } else { image::Place::Anywhere };
        let program = image::map(&mm, &self.file, &self.header, place)?;
        let runtime = match &interpreter {
            Some((file, header)) => Some(image::map(&mm, file, header, image::Place::Anywhere)?),
            None => None,
        };
        let heap = program.end.checked_add(layout.brk_offset).ok_or(Errno::ENOMEM)?;
        mm.set_brk_start(heap);
        let vdso = (with.map_vdso)(&mm)?;
        let entry = runtime.as_ref().map_or(program.entry, |runtime| runtime.entry);
        let auxv = stack::Auxv {
            vdso,
            headers: program.headers,
            header_count: self.header.segment_count(),
            interpreter_base: runtime.as_ref().map_or(0, |runtime| runtime.bias),
            entry: program.entry,
            min_signal_stack: with.min_signal_stack,
            secure: with.secure,
            random: entropy.next_bytes(),
        };
        let content = stack::Content {
            args: &self.args,
            env: with.env,
            asked: &self.asked,
            executable: self.header.executable_stack,
        };
        let built = stack::build(&mm, &content, &auxv, with.credentials)?;
        mm.update_image(|image| {
            program.describe(image);
            built.describe(image);
            image.vdso = Some(vdso);
            image.exe = Some(self.file.clone());
        });
        Ok(LoadedImage { mm, entry, stack_pointer: built.pointer })
    }
}

/// Reads up to `buf.len()` bytes at `offset`; less only at the end of the file.
fn read_at(file: &File, offset: u64, buf: &mut [u8]) -> SysResult<usize> {
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
