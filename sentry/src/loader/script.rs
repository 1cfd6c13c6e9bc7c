//! `#!` lines, by Linux's rules (`fs/binfmt_script.c`).

use crate::errno::{Errno, SysResult};

/// How much of a file is looked at (`BINPRM_BUF_SIZE`).
pub const HEAD: usize = 256;

/// A `#!` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The interpreter's path.
    pub interpreter: Vec<u8>,
    /// Everything after it, as one argument.
    pub argument: Option<Vec<u8>>,
}

fn is_blank(byte: &u8) -> bool {
    *byte == b' ' || *byte == b'\t'
}

/// The line at the start of `head`; `None` if it is no script. `ENOEXEC` for a line without an interpreter, or one whose
/// interpreter may be cut off by the end of `head`.
pub fn parse(head: &[u8]) -> SysResult<Option<Line>> {
    let Some(rest) = head.strip_prefix(b"#!") else { return Ok(None) };
    let end = rest.iter().position(|&byte| byte == b'\n' || byte == 0);
    let line = end.and_then(|end| rest.get(..end)).unwrap_or(rest);
    let cut = end.is_none() && head.len() >= HEAD;
    let start = line.iter().position(|byte| !is_blank(byte)).ok_or(Errno::ENOEXEC)?;
    let line = line.get(start..).unwrap_or_default();
    let name_end = line.iter().position(is_blank);
    if cut && name_end.is_none() {
        return Err(Errno::ENOEXEC);
    }
    let (name, tail) = line.split_at_checked(name_end.unwrap_or(line.len())).ok_or(Errno::ENOEXEC)?;
    let trimmed = tail.trim_ascii_start();
    let last = trimmed.iter().rposition(|byte| !is_blank(byte)).map_or(0, |last| last.saturating_add(1));
    let argument = trimmed.get(..last).filter(|text| !text.is_empty());
    Ok(Some(Line { interpreter: name.to_vec(), argument: argument.map(<[u8]>::to_vec) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(interpreter: &str, argument: Option<&str>) -> SysResult<Option<Line>> {
        let argument = argument.map(|text| text.as_bytes().to_vec());
        Ok(Some(Line { interpreter: interpreter.into(), argument }))
    }

    #[test]
    fn splits_into_interpreter_and_one_argument() {
        assert_eq!(parse(b"#!/bin/sh\necho"), line("/bin/sh", None));
        assert_eq!(parse(b"#! /usr/bin/env  python3 -u \n"), line("/usr/bin/env", Some("python3 -u")));
        assert_eq!(parse(b"#!/bin/sh"), line("/bin/sh", None));
        assert_eq!(parse(b"#!/bin/sh\0junk"), line("/bin/sh", None));
        assert_eq!(parse(b"\x7fELF"), Ok(None));
    }

    #[test]
    fn refuses_lines_without_or_with_a_cut_interpreter() {
        assert_eq!(parse(b"#!\n"), Err(Errno::ENOEXEC));
        assert_eq!(parse(b"#!  \t\n"), Err(Errno::ENOEXEC));
        let mut long = vec![b'x'; HEAD];
        long[..2].copy_from_slice(b"#!");
        assert_eq!(parse(&long), Err(Errno::ENOEXEC));
        long[100] = b' ';
        assert!(parse(&long).unwrap().unwrap().argument.is_some());
    }
}
