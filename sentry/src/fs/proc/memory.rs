//! What a process's memory looks like: `maps`, `smaps`, and the strings the program was started with.

use std::fmt::Write;

use super::process::Subject;
use crate::errno::SysResult;
use crate::mm::{Prot, VmaFlags, VmaReport};
use crate::vfs::VfsPath;

/// Longest `cmdline` or `environ` shown, in bytes.
const MAX_STRINGS: u64 = 2 << 20;

fn strings(subject: &Subject, start: u64, end: u64) -> SysResult<Vec<u8>> {
    let len = end.saturating_sub(start).min(MAX_STRINGS);
    let mut text = vec![0; usize::try_from(len).unwrap_or(0)];
    let task = subject.task()?;
    if task.is_exiting() || task.mm().read_bytes(start, &mut text).is_err() {
        return Ok(Vec::new());
    }
    Ok(text)
}

/// `cmdline`
pub fn cmdline(subject: &Subject) -> SysResult<Vec<u8>> {
    let image = subject.task()?.mm().image();
    strings(subject, image.arg_start, image.arg_end)
}

/// `environ`
pub fn environ(subject: &Subject) -> SysResult<Vec<u8>> {
    let image = subject.task()?.mm().image();
    strings(subject, image.env_start, image.env_end)
}

/// `auxv`
pub fn auxv(subject: &Subject) -> SysResult<Vec<u8>> {
    let image = subject.task()?.mm().image();
    let pairs = image.auxv.iter().flat_map(|&(kind, value)| [kind, value]);
    Ok(pairs.flat_map(u64::to_le_bytes).collect())
}

/// One line of `maps`, without its newline.
fn maps_line(vma: &VmaReport, root: &VfsPath) -> Vec<u8> {
    let flag = |on: bool, letter: char| if on { letter } else { '-' };
    let head = format!(
        "{:08x}-{:08x} {}{}{}{} {:08x} {:02x}:{:02x} {} ",
        vma.start,
        vma.end,
        flag(vma.prot.contains(Prot::READ), 'r'),
        flag(vma.prot.contains(Prot::WRITE), 'w'),
        flag(vma.prot.contains(Prot::EXEC), 'x'),
        if vma.flags.contains(VmaFlags::SHARED) { 's' } else { 'p' },
        vma.offset,
        vma.device.major,
        vma.device.minor,
        vma.ino,
    );
    let name = match vma.file.as_ref().and_then(|file| file.path()) {
        Some(path) => path.text(root).for_link(),
        None => vma.name.clone(),
    };
    let mut line = head.into_bytes();
    if !name.is_empty() {
        // Linux pads the name to a fixed column.
        line.resize(line.len().max(73), b' ');
        for &byte in &name {
            if byte == b'\n' { line.extend_from_slice(b"\\012") } else { line.push(byte) }
        }
    }
    line
}

fn each(subject: &Subject, mut show: impl FnMut(&mut Vec<u8>, &VmaReport)) -> SysResult<Vec<u8>> {
    let task = subject.task()?;
    if task.is_exiting() {
        return Ok(Vec::new());
    }
    let places = task.fs().places();
    let mut text = Vec::new();
    for vma in task.mm().mappings() {
        text.extend_from_slice(&maps_line(&vma, &places.root));
        text.push(b'\n');
        show(&mut text, &vma);
    }
    Ok(text)
}

/// `maps`
pub fn maps(subject: &Subject) -> SysResult<Vec<u8>> {
    each(subject, |_, _| {})
}

fn details(size: u64, resident: u64, anonymous: u64) -> String {
    let mut text = String::new();
    let rows = [
        ("Size", size),
        ("KernelPageSize", 4096),
        ("MMUPageSize", 4096),
        ("Rss", resident),
        ("Pss", resident),
        ("Shared_Clean", 0),
        ("Shared_Dirty", 0),
        ("Private_Clean", resident.saturating_sub(anonymous)),
        ("Private_Dirty", anonymous),
        ("Referenced", resident),
        ("Anonymous", anonymous),
        ("AnonHugePages", 0),
        ("Swap", 0),
        ("Locked", 0),
    ];
    for (name, bytes) in rows {
        let _ = writeln!(text, "{:<16}{:>8} kB", format!("{name}:"), bytes / 1024);
    }
    text
}

/// `smaps`
pub fn smaps(subject: &Subject) -> SysResult<Vec<u8>> {
    each(subject, |text, vma| {
        let size = vma.end.saturating_sub(vma.start);
        text.extend_from_slice(details(size, vma.private_bytes, vma.private_bytes).as_bytes());
    })
}

/// `smaps_rollup`
pub fn smaps_rollup(subject: &Subject) -> SysResult<Vec<u8>> {
    let task = subject.task()?;
    let usage = task.mm().usage();
    let all = details(usage.total, usage.rss(), usage.rss_anonymous);
    let sums: String =
        all.lines().filter(|line| !line.contains("Size")).map(|line| format!("{line}\n")).collect();
    let head = format!("{:08x}-{:08x} ---p 00000000 00:00 0 [rollup]\n", 0x10000u64, 0x7fff_ffff_f000u64);
    Ok((head + &sums).into_bytes())
}
