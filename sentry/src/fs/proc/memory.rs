//! What a process's memory looks like: `maps`, `smaps`, and the strings the program was started with.
//!
//! Not there in `smaps`: what other processes map too, `ac` (accounted) and `sd` (soft-dirty) of `VmFlags`, the labels of protection keys.

use super::process::Subject;
use crate::errno::SysResult;
use crate::mm::{Prot, VmaFlags, VmaReport};
use crate::platform::PAGE_SIZE;
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

/// `maps`
pub fn maps(subject: &Subject) -> SysResult<Vec<u8>> {
    let task = subject.task()?;
    if task.is_exiting() {
        return Ok(Vec::new());
    }
    let places = task.fs().places();
    let mut text = Vec::new();
    for vma in task.mm().mappings() {
        text.extend_from_slice(&maps_line(&vma, &places.root));
        text.push(b'\n');
    }
    Ok(text)
}

/// What `smaps` tells of a mapping's pages, in bytes. Who else maps them is not known: all of them count as private.
struct Resident {
    /// Private pages.
    anonymous: u64,
    /// Pages of the object.
    object: u64,
    /// What of both is locked.
    locked: u64,
}

fn rows(pages: &Resident) -> [(&'static str, u64); 19] {
    let all = pages.anonymous + pages.object;
    [
        ("Rss", all),
        ("Pss", all),
        ("Pss_Dirty", pages.anonymous),
        ("Shared_Clean", 0),
        ("Shared_Dirty", 0),
        ("Private_Clean", pages.object),
        ("Private_Dirty", pages.anonymous),
        ("Referenced", all),
        ("Anonymous", pages.anonymous),
        ("KSM", 0),
        ("LazyFree", 0),
        ("AnonHugePages", 0),
        ("ShmemPmdMapped", 0),
        ("FilePmdMapped", 0),
        ("Shared_Hugetlb", 0),
        ("Private_Hugetlb", 0),
        ("Swap", 0),
        ("SwapPss", 0),
        ("Locked", pages.locked),
    ]
}

fn row(text: &mut Vec<u8>, (name, bytes): (&str, u64)) {
    text.extend_from_slice(format!("{:<16}{:>8} kB\n", format!("{name}:"), bytes / 1024).as_bytes());
}

/// The last line of a mapping in `smaps`: Linux's letters for its properties, in the order of Linux's bits.
fn vm_flags(vma: &VmaReport) -> String {
    let prot = |wanted| vma.prot.contains(wanted);
    let flag = |wanted| vma.flags.contains(wanted);
    let letters = [
        (prot(Prot::READ), "rd"),
        (prot(Prot::WRITE), "wr"),
        (prot(Prot::EXEC), "ex"),
        (flag(VmaFlags::SHARED), "sh"),
        (flag(VmaFlags::MAYREAD), "mr"),
        (flag(VmaFlags::MAYWRITE), "mw"),
        (flag(VmaFlags::MAYEXEC), "me"),
        (flag(VmaFlags::SHARED), "ms"),
        (flag(VmaFlags::GROWSDOWN), "gd"),
        (flag(VmaFlags::LOCKED), "lo"),
        (flag(VmaFlags::DONTFORK), "dc"),
        (flag(VmaFlags::NORESERVE), "nr"),
        (flag(VmaFlags::WIPEONFORK), "wf"),
        (flag(VmaFlags::DONTDUMP), "dd"),
        (flag(VmaFlags::HUGEPAGE), "hg"),
        (flag(VmaFlags::NOHUGEPAGE), "nh"),
        (flag(VmaFlags::SEALED), "sl"),
    ];
    let shown = letters.into_iter().filter(|(on, _)| *on);
    shown.fold(String::from("VmFlags:"), |line, (_, letter)| line + " " + letter) + " \n"
}

/// `smaps`
pub fn smaps(subject: &Subject) -> SysResult<Vec<u8>> {
    let task = subject.task()?;
    if task.is_exiting() {
        return Ok(Vec::new());
    }
    let (mm, places) = (task.mm(), task.fs().places());
    let mappings = mm.mappings();
    let entered = mm.object_bytes_entered(&mappings);
    let mut text = Vec::new();
    for (vma, object) in mappings.iter().zip(entered) {
        text.extend_from_slice(&maps_line(vma, &places.root));
        text.push(b'\n');
        let anonymous = vma.private_bytes;
        let locked = if vma.flags.contains(VmaFlags::LOCKED) { anonymous + object } else { 0 };
        let size = vma.end.saturating_sub(vma.start);
        let sizes = [("Size", size), ("KernelPageSize", PAGE_SIZE), ("MMUPageSize", PAGE_SIZE)];
        let pages = rows(&Resident { anonymous, object, locked });
        sizes.into_iter().chain(pages).for_each(|each| row(&mut text, each));
        text.extend_from_slice(b"THPeligible:           0\n");
        text.extend_from_slice(vm_flags(vma).as_bytes());
    }
    Ok(text)
}

/// `smaps_rollup`
pub fn smaps_rollup(subject: &Subject) -> SysResult<Vec<u8>> {
    let task = subject.task()?;
    let usage = task.mm().usage();
    let object = usage.rss_file + usage.rss_shared;
    let anonymous = usage.rss_anonymous;
    let locked = usage.locked.min(object + anonymous);
    let head = format!("{:08x}-{:08x} ---p 00000000 00:00 0 [rollup]\n", 0x10000u64, 0x7fff_ffff_f000u64);
    let mut text = head.into_bytes();
    let kinds = [("Pss_Anon", anonymous), ("Pss_File", usage.rss_file), ("Pss_Shmem", usage.rss_shared)];
    for each in rows(&Resident { anonymous, object, locked }) {
        row(&mut text, each);
        if each.0 == "Pss_Dirty" {
            kinds.into_iter().for_each(|kind| row(&mut text, kind));
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::Device;

    fn report(prot: Prot, flags: VmaFlags) -> VmaReport {
        VmaReport {
            start: 0x1000,
            end: 0x3000,
            prot,
            flags,
            offset: 0,
            device: Device::default(),
            ino: 0,
            name: Vec::new(),
            file: None,
            private_bytes: 0,
            anonymous: true,
        }
    }

    #[test]
    fn flags_are_written_as_linux_writes_them() {
        // What 6.18 shows of such mappings, without `ac`.
        let may = VmaFlags::MAY_ALL;
        let shared = report(
            Prot::READ | Prot::WRITE,
            may | VmaFlags::SHARED | VmaFlags::NORESERVE | VmaFlags::DONTFORK,
        );
        assert_eq!(vm_flags(&shared), "VmFlags: rd wr sh mr mw me ms dc nr \n");
        let locked = report(Prot::WRITE, may | VmaFlags::LOCKED | VmaFlags::DONTDUMP);
        assert_eq!(vm_flags(&locked), "VmFlags: wr mr mw me lo dd \n");
        assert_eq!(vm_flags(&report(Prot::READ, may)), "VmFlags: rd mr mw me \n");
    }

    #[test]
    fn pages_add_up() {
        let found = rows(&Resident { anonymous: 8192, object: 4096, locked: 12288 });
        let of = |name| found.iter().find(|row| row.0 == name).map(|row| row.1);
        assert_eq!(of("Rss"), Some(12288));
        assert_eq!((of("Private_Clean"), of("Private_Dirty")), (Some(4096), Some(8192)));
        assert_eq!(of("Locked"), Some(12288));
        let mut text = Vec::new();
        row(&mut text, found[0]);
        assert_eq!(text, b"Rss:                  12 kB\n");
    }
}
