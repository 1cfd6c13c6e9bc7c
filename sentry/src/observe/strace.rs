//! System call traces in strace's manner: name, decoded arguments, result, time.
//!
//! A [`Trace`] is begun before the handler runs, because `execve` replaces the memory its arguments lie in, and ended with
//! the result, because buffers are filled by then. Reading guest memory for a trace never changes the call's outcome.

use std::fmt::Write;
use std::time::Instant;

use super::flags;
use crate::errno::SysResult;
use crate::mm::Mm;
use crate::syscalls::Args;
use crate::syscalls::table::{Arg, Entry};

/// How many bytes of a string or buffer are shown.
const SHOWN: usize = 48;
/// How many strings of an array are shown.
const STRINGS: usize = 12;

/// A system call under way.
pub struct Trace {
    line: String,
    /// A buffer that the call fills, to be shown once its length is known: position in `line` and address.
    output: Option<(usize, u64)>,
    begun: Instant,
}

impl Trace {
    /// Decodes name and arguments.
    pub fn begin(mm: &Mm, entry: &Entry, args: &Args) -> Trace {
        let mut line = String::with_capacity(96);
        line.push_str(entry.name);
        line.push('(');
        let mut output = None;
        for (n, &kind) in entry.args.iter().enumerate() {
            if n > 0 {
                line.push_str(", ");
            }
            if kind == Arg::OutBytes {
                output = Some((line.len(), args.raw(n)));
            } else {
                let next = args.raw(n.saturating_add(1));
                line.push_str(&argument(mm, kind, args.raw(n), next));
            }
        }
        line.push(')');
        Trace { line, output, begun: Instant::now() }
    }

    /// The whole line: `name(arguments) = result <seconds>`.
    pub fn end(mut self, mm: &Mm, result: &SysResult<usize>) -> String {
        if let Some((at, address)) = self.output {
            let shown = match result {
                Ok(len) => bytes(mm, address, *len),
                Err(_) => format!("{address:#x}"),
            };
            self.line.insert_str(at, &shown);
        }
        let _ = match result {
            Ok(value) if *value > 0xffff => write!(self.line, " = {value:#x}"),
            Ok(value) => write!(self.line, " = {value}"),
            Err(error) => write!(self.line, " = -1 {error}"),
        };
        let _ = write!(self.line, " <{:.6}>", self.begun.elapsed().as_secs_f64());
        self.line
    }
}

fn argument(mm: &Mm, kind: Arg, value: u64, next: u64) -> String {
    match kind {
        Arg::Fd if value as u32 as i32 == linux_raw_sys::general::AT_FDCWD => "AT_FDCWD".into(),
        Arg::Fd | Arg::Int | Arg::Pid => (value as i32).to_string(),
        Arg::UInt | Arg::Size => value.to_string(),
        Arg::Offset => (value as i64).to_string(),
        Arg::Hex | Arg::Ioctl => format!("{value:#x}"),
        Arg::Mode => format!("{:#o}", value as u32),
        Arg::OpenFlags => flags::open(value),
        Arg::Signal => flags::signal(value),
        Arg::Prot => flags::set(flags::PROT, value),
        Arg::MapFlags => flags::set(flags::MAP, value),
        Arg::CloneFlags => flags::set(flags::CLONE, value & !0xff),
        Arg::Clock => flags::clock(value),
        Arg::FutexOp => flags::futex_op(value),
        Arg::Ptr | Arg::OutBytes if value != 0 => format!("{value:#x}"),
        _ if value == 0 => "NULL".into(),
        Arg::Path => string(mm, value),
        Arg::Strings => strings(mm, value),
        Arg::InBytes => bytes(mm, value, usize::try_from(next).unwrap_or(usize::MAX)),
        Arg::SockAddr => bytes(mm, value, usize::try_from(next).unwrap_or(0).min(128)),
        Arg::SigSet => mm.copy_in::<u64>(value).map_or_else(|_| pointer(value), |set| format!("[{set:#x}]")),
        Arg::Timespec => mm
            .copy_in::<[i64; 2]>(value)
            .map_or_else(|_| pointer(value), |[sec, nsec]| format!("{{{sec}, {nsec}}}")),
        Arg::Ptr | Arg::OutBytes => pointer(value),
    }
}

fn pointer(value: u64) -> String {
    format!("{value:#x}")
}

fn string(mm: &Mm, address: u64) -> String {
    match mm.read_c_string(address, 4096) {
        Ok(text) => quote(&text, usize::MAX),
        Err(_) => pointer(address),
    }
}

fn strings(mm: &Mm, address: u64) -> String {
    let mut shown = Vec::new();
    for index in 0..=STRINGS as u64 {
        let slot = address.wrapping_add(index.wrapping_mul(8));
        match mm.copy_in::<u64>(slot) {
            Ok(0) => break,
            Ok(_) if shown.len() == STRINGS => shown.push("…".into()),
            Ok(text) => shown.push(string(mm, text)),
            Err(_) => return pointer(address),
        }
    }
    format!("[{}]", shown.join(", "))
}

fn bytes(mm: &Mm, address: u64, len: usize) -> String {
    let mut buf = [0; SHOWN];
    let head = buf.get_mut(..len.min(SHOWN)).unwrap_or_default();
    if address == 0 {
        return "NULL".into();
    }
    match mm.read_bytes(address, head) {
        Ok(()) => quote(head, len),
        Err(_) => pointer(address),
    }
}

/// `"text"` with escapes; an ellipsis if there is more than `data` of it.
fn quote(data: &[u8], len: usize) -> String {
    let more = len != usize::MAX && len > data.len();
    format!("\"{}\"{}", data.escape_ascii(), if more { "…" } else { "" })
}
