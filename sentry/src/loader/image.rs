//! Mapping a program's segments.

use std::sync::Arc;

use linux_raw_sys::elf_uapi as linux;

use super::elf::{Header, Kind, Segment};
use crate::errno::{Errno, SysResult};
use crate::mm::{ImageInfo, MapBacking, MapFlags, MapRequest, Mm, Prot};
use crate::platform::PAGE_SIZE;
use crate::vfs::File;

/// Where a relocatable program goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At the layout's base for programs.
    Program,
    /// Among the mappings: interpreters, and programs that are their own interpreter.
    Anywhere,
}

/// A mapped program.
pub struct Mapped {
    /// What was added to every address.
    pub bias: u64,
    /// First instruction.
    pub entry: u64,
    /// Address of the program headers; 0 if they are not mapped.
    pub headers: u64,
    /// End of the last segment, page-aligned.
    pub end: u64,
    code: (u64, u64),
    data: (u64, u64),
}

impl Mapped {
    /// Notes the program's parts for `/proc`.
    pub fn describe(&self, image: &mut ImageInfo) {
        (image.start_code, image.end_code) = self.code;
        (image.start_data, image.end_data) = self.data;
    }
}

fn page_down(addr: u64) -> u64 {
    addr & !(PAGE_SIZE - 1)
}

fn page_up(addr: u64) -> SysResult<u64> {
    addr.checked_next_multiple_of(PAGE_SIZE).ok_or(Errno::ENOMEM)
}

/// Maps the segments of `header`. `ENOMEM` without room, and whatever mapping the file answers.
pub fn map(mm: &Arc<Mm>, file: &Arc<File>, header: &Header, place: Place) -> SysResult<Mapped> {
    let bias = bias(mm, header, place)?;
    for segment in &header.segments {
        map_segment(mm, file, segment, bias)?;
    }
    let at = |address: u64| address.wrapping_add(bias);
    let bounds = |wanted: u32| {
        let of_kind = header.segments.iter().filter(|segment| segment.flags & wanted != 0);
        let start = of_kind.clone().map(|segment| segment.address).min();
        let end = of_kind.map(|segment| segment.address.saturating_add(segment.file_len)).max();
        (start.map_or(0, at), end.map_or(0, at))
    };
    Ok(Mapped {
        bias,
        entry: at(header.entry),
        headers: if header.headers_address == 0 { 0 } else { at(header.headers_address) },
        end: page_up(at(header.span().1))?,
        code: bounds(linux::PF_X),
        data: bounds(linux::PF_W),
    })
}

/// Finds room for a program. The room is reserved and given back, which is safe: nobody else has this `Mm` yet.
fn bias(mm: &Mm, header: &Header, place: Place) -> SysResult<u64> {
    let (start, end) = header.span();
    let len = page_up(end)?.checked_sub(start).ok_or(Errno::ENOEXEC)?;
    if header.kind == Kind::Fixed {
        // Fixed addresses that collide with what is there already (the program, for an interpreter) are a defect.
        let flags = MapFlags::FIXED_NOREPLACE;
        mm.mmap(MapRequest { addr: start, len, prot: Prot::empty(), flags, backing: None })
            .map_err(|error| if error == Errno::EEXIST { Errno::ENOEXEC } else { error })?;
        mm.munmap(start, len)?;
        return Ok(0);
    }
    let slack = header.align.saturating_sub(PAGE_SIZE);
    let room = len.checked_add(slack).ok_or(Errno::ENOMEM)?;
    let hint = if place == Place::Program { mm.layout().pie_base } else { 0 };
    let request =
        MapRequest { addr: hint, len: room, prot: Prot::empty(), flags: MapFlags::empty(), backing: None };
    let found = mm.mmap(request)?;
    mm.munmap(found, room)?;
    let base = found.checked_next_multiple_of(header.align).ok_or(Errno::ENOMEM)?;
    Ok(base.wrapping_sub(start))
}

fn protection(flags: u32) -> Prot {
    let mut prot = Prot::empty();
    prot.set(Prot::READ, flags & linux::PF_R != 0);
    prot.set(Prot::WRITE, flags & linux::PF_W != 0);
    prot.set(Prot::EXEC, flags & linux::PF_X != 0);
    prot
}

fn map_segment(mm: &Arc<Mm>, file: &Arc<File>, segment: &Segment, bias: u64) -> SysResult {
    let prot = protection(segment.flags);
    let start = segment.address.wrapping_add(bias);
    let file_end = start.checked_add(segment.file_len).ok_or(Errno::ENOMEM)?;
    let end = page_up(start.checked_add(segment.memory_len).ok_or(Errno::ENOMEM)?)?;
    let first = page_down(start);
    let mapped_end = if segment.file_len == 0 { first } else { page_up(file_end)? };
    if mapped_end > first {
        let backing = MapBacking {
            object: file.ops().mappable(file)?,
            offset: page_down(segment.offset),
            file: Some(file.clone()),
            max_prot: Prot::all(),
        };
        fixed(mm, first, mapped_end, prot, Some(backing))?;
        if prot.contains(Prot::WRITE) && segment.memory_len > segment.file_len {
            zero(mm, file_end, mapped_end)?;
        }
    }
    if end > mapped_end {
        fixed(mm, mapped_end, end, prot, None)?;
    }
    Ok(())
}

/// Maps one segment, over the last page of the one before if they share it.
fn fixed(mm: &Mm, start: u64, end: u64, prot: Prot, backing: Option<MapBacking>) -> SysResult {
    let len = end.saturating_sub(start);
    mm.mmap(MapRequest { addr: start, len, prot, flags: MapFlags::FIXED | MapFlags::DENYWRITE, backing })
        .map(drop)
}

/// Zeroes the part of the last page that the file does not fill.
fn zero(mm: &Mm, start: u64, end: u64) -> SysResult {
    let len = usize::try_from(end.saturating_sub(start)).unwrap_or(0);
    let zeros = [0; PAGE_SIZE as usize];
    mm.write_bytes(start, zeros.get(..len).unwrap_or(&zeros))
}
