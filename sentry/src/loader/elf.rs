//! ELF headers, checked. After [`Header::read`] nothing in a header can overflow, overlap or point outside the lower half.

use linux_raw_sys::elf_uapi as linux;
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::read_at;
use crate::errno::{Errno, SysResult};
use crate::platform::{GVA_END, PAGE_SIZE};
use crate::vfs::File;

/// Most bytes of program headers (Linux: a page's worth, at most 64 KiB).
const MAX_HEADERS: usize = 65536;
/// Longest path of an interpreter (`PATH_MAX`).
const MAX_PATH: u64 = 4096;

/// `Elf64_Ehdr`
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawHeader {
    ident: [u8; 16],
    kind: u16,
    machine: u16,
    version: u32,
    entry: u64,
    phoff: u64,
    shoff: u64,
    flags: u32,
    ehsize: u16,
    phentsize: u16,
    phnum: u16,
    shentsize: u16,
    shnum: u16,
    shstrndx: u16,
}

/// `Elf64_Phdr`
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawSegment {
    kind: u32,
    flags: u32,
    offset: u64,
    vaddr: u64,
    paddr: u64,
    filesz: u64,
    memsz: u64,
    align: u64,
}

/// Whether addresses are absolute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `ET_EXEC`
    Fixed,
    /// `ET_DYN`
    Relocatable,
}

/// A `PT_LOAD` segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First address in memory.
    pub address: u64,
    /// Its place in the file; congruent to `address` modulo the page size.
    pub offset: u64,
    /// Bytes taken from the file.
    pub file_len: u64,
    /// Bytes in memory, at least `file_len`; the rest is zero.
    pub memory_len: u64,
    /// `PF_R`, `PF_W`, `PF_X`.
    pub flags: u32,
}

/// A checked ELF header.
#[derive(Clone, Debug)]
pub struct Header {
    /// Whether addresses are absolute.
    pub kind: Kind,
    /// First instruction, relative to the load bias.
    pub entry: u64,
    /// What to map, in ascending order without overlap.
    pub segments: Vec<Segment>,
    /// Address of the program headers, relative to the load bias; 0 if they are not mapped.
    pub headers_address: u64,
    /// Largest alignment of a segment: a power of two, at least a page.
    pub align: u64,
    /// `PT_GNU_STACK` asks for an executable stack.
    pub executable_stack: bool,
    interpreter: Option<(u64, u64)>,
    count: u16,
}

impl Header {
    /// Reads and checks the headers of `file`, whose first bytes are `head`. `ENOEXEC` for anything that is not a program for
    /// this machine.
    pub fn read(file: &File, head: &[u8]) -> SysResult<Header> {
        let (raw, _) = RawHeader::read_from_prefix(head).map_err(|_| Errno::ENOEXEC)?;
        let kind = identify(&raw)?;
        let size = usize::from(raw.phnum) * size_of::<RawSegment>();
        if raw.phentsize as usize != size_of::<RawSegment>() || raw.phnum == 0 || size > MAX_HEADERS {
            return Err(Errno::ENOEXEC);
        }
        let mut table = vec![0; size];
        if read_at(file, raw.phoff, &mut table)? != size {
            return Err(Errno::ENOEXEC);
        }
        let mut header = Header {
            kind,
            entry: raw.entry,
            segments: Vec::new(),
            headers_address: 0,
            align: PAGE_SIZE,
            executable_stack: false,
            interpreter: None,
            count: raw.phnum,
        };
        for entry in table.chunks_exact(size_of::<RawSegment>()) {
            header.take(&RawSegment::read_from_bytes(entry).map_err(|_| Errno::ENOEXEC)?)?;
        }
        header.finish(raw.phoff)
    }

    /// The same for an interpreter, whose defects are `ELIBBAD`.
    pub fn of_interpreter(file: &File) -> SysResult<Header> {
        let mut head = [0; size_of::<RawHeader>()];
        let len = read_at(file, 0, &mut head)?;
        let header = Header::read(file, head.get(..len).unwrap_or_default());
        header.map_err(|error| if error == Errno::ENOEXEC { Errno::ELIBBAD } else { error })
    }

    /// Number of program headers.
    pub fn segment_count(&self) -> u16 {
        self.count
    }

    /// The interpreter's path; `ENOEXEC` if it is not a string.
    pub fn interpreter(&self, file: &File) -> SysResult<Option<Vec<u8>>> {
        let Some((offset, len)) = self.interpreter else { return Ok(None) };
        let mut path = vec![0; usize::try_from(len).map_err(|_| Errno::ENOEXEC)?];
        if read_at(file, offset, &mut path)? != path.len() || path.pop() != Some(0) {
            return Err(Errno::ENOEXEC);
        }
        let end = path.iter().position(|&byte| byte == 0).unwrap_or(path.len());
        path.truncate(end);
        Ok(Some(path))
    }

    /// The range of addresses from the first segment's page to the last one's end, relative to the load bias.
    pub fn span(&self) -> (u64, u64) {
        let start = self.segments.first().map_or(0, |first| first.address & !(PAGE_SIZE - 1));
        let end = self.segments.last().map_or(0, |last| last.address.saturating_add(last.memory_len));
        (start, end)
    }

    fn take(&mut self, raw: &RawSegment) -> SysResult {
        match raw.kind {
            linux::PT_LOAD => {
                if let Some(segment) = check_segment(raw)? {
                    self.segments.push(segment);
                }
                if raw.align.is_power_of_two() && raw.align < GVA_END {
                    self.align = self.align.max(raw.align);
                }
            }
            linux::PT_INTERP if self.interpreter.is_none() => {
                if !(2..=MAX_PATH).contains(&raw.filesz) {
                    return Err(Errno::ENOEXEC);
                }
                self.interpreter = Some((raw.offset, raw.filesz));
            }
            linux::PT_PHDR => self.headers_address = raw.vaddr,
            linux::PT_GNU_STACK => self.executable_stack = raw.flags & linux::PF_X != 0,
            _ => {}
        }
        Ok(())
    }

    fn finish(mut self, table_offset: u64) -> SysResult<Header> {
        if self.segments.is_empty() {
            return Err(Errno::ENOEXEC);
        }
        let pairs = self.segments.iter().zip(self.segments.iter().skip(1));
        for (before, after) in pairs {
            if after.address < before.address.saturating_add(before.memory_len) {
                return Err(Errno::ENOEXEC);
            }
        }
        if self.headers_address == 0 {
            let holds = |segment: &&Segment| {
                (segment.offset..segment.offset.saturating_add(segment.file_len)).contains(&table_offset)
            };
            let address =
                |segment: &Segment| table_offset.wrapping_sub(segment.offset).wrapping_add(segment.address);
            self.headers_address = self.segments.iter().find(holds).map_or(0, address);
        }
        let (start, end) = self.span();
        if self.headers_address != 0 && !(start..end).contains(&self.headers_address) {
            return Err(Errno::ENOEXEC);
        }
        Ok(self)
    }
}

fn identify(raw: &RawHeader) -> SysResult<Kind> {
    let [magic @ .., class, data, _, _, _, _, _, _, _, _, _, _] = raw.ident;
    let fits = magic == *b"\x7fELF"
        && u32::from(class) == linux::ELFCLASS64
        && u32::from(data) == linux::ELFDATA2LSB
        && u32::from(raw.machine) == linux::EM_X86_64;
    match u32::from(raw.kind) {
        _ if !fits => Err(Errno::ENOEXEC),
        linux::ET_EXEC => Ok(Kind::Fixed),
        linux::ET_DYN => Ok(Kind::Relocatable),
        _ => Err(Errno::ENOEXEC),
    }
}

/// `None` for an empty segment.
fn check_segment(raw: &RawSegment) -> SysResult<Option<Segment>> {
    if raw.memsz == 0 {
        return Ok(None);
    }
    let congruent = raw.vaddr % PAGE_SIZE == raw.offset % PAGE_SIZE;
    let end = raw.vaddr.checked_add(raw.memsz).filter(|&end| end <= GVA_END - PAGE_SIZE);
    let file_end = raw.offset.checked_add(raw.filesz).filter(|&end| i64::try_from(end).is_ok());
    if raw.filesz > raw.memsz || !congruent || end.is_none() || file_end.is_none() {
        return Err(Errno::ENOEXEC);
    }
    Ok(Some(Segment {
        address: raw.vaddr,
        offset: raw.offset,
        file_len: raw.filesz,
        memory_len: raw.memsz,
        flags: raw.flags,
    }))
}
