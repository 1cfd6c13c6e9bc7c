//! The vDSO: a small shared object that the kernel maps into every program, with clocks that need no system call.
//!
//! The code is `caisson-platform-kvm`'s ([`caisson_platform_kvm::vdso`]); this file puts an ELF image around it, with the
//! symbols and versions by which glibc, musl and Go find it, and maps it behind the page of clock parameters:
//!
//! ```text
//!  [vvar]  one page, read-only: written by crate::time::Clocks
//!  [vdso]  ELF header, program headers, dynamic section and its tables   (one page)
//!          text                                                          (one page)
//! ```

use std::sync::Arc;

use caisson_platform_kvm::vdso::{PARAMETERS_TO_TEXT, code};
use linux_raw_sys::elf_uapi as elf;

use crate::errno::{Errno, SysResult};
use crate::mm::{
    Backing, MapBacking, MapFlags, MapRequest, Mappable, MappingIdentity, MappingSet, Mm, Prot, VmaFlags,
};
use crate::platform::{Alignment, Arena, FrameRange, Gpa, PAGE_SIZE};

/// Offset of the text in the image.
const TEXT: u64 = PAGE_SIZE;
/// Bytes of the image.
const IMAGE: u64 = 2 * PAGE_SIZE;
const SONAME: &str = "linux-vdso.so.1";
const VERSION: &str = "LINUX_2.6";
/// Entries of the symbol table: the null symbol, and `__vdso_x` and `x` for each of five functions.
const SYMBOLS: usize = 11;

// The text finds its parameters one page before the image.
const _: () = assert!(PARAMETERS_TO_TEXT == TEXT + PAGE_SIZE);

/// The vDSO of a sandbox: what all its address spaces map.
pub struct Vdso {
    image: Arc<FixedPages>,
    parameters: Arc<FixedPages>,
}

impl Vdso {
    /// Builds the image in frames of its own. `parameters` is the page that [`crate::time::Clocks`] writes and keeps. `ENOMEM`.
    pub fn new(arena: &'static Arena, parameters: Gpa) -> SysResult<Vdso> {
        let frames = arena.alloc(2, Alignment::Page).map_err(|_| Errno::ENOMEM)?;
        let gpa = arena.gpa(frames.first);
        let image = FixedPages::new(gpa, 2, b"[vdso]", Some((arena, frames)));
        arena.write(gpa, &build_image()?).map_err(|_| Errno::ENOMEM)?;
        Ok(Vdso { image, parameters: FixedPages::new(parameters, 1, b"[vvar]", None) })
    }
}

/// Maps the vDSO into `mm` and returns the address of its ELF header. `ENOMEM`.
pub fn map(mm: &Arc<Mm>, vdso: &Vdso) -> SysResult<u64> {
    let len = PAGE_SIZE + IMAGE;
    let reserve = MapRequest { addr: 0, len, prot: Prot::empty(), flags: MapFlags::empty(), backing: None };
    let start = mm.mmap(reserve)?;
    let part = |addr: u64, len: u64, object: &Arc<FixedPages>, prot: Prot, max_prot: Prot| {
        let backing = Some(MapBacking { object: object.clone(), offset: 0, file: None, max_prot });
        let request = MapRequest { addr, len, prot, flags: MapFlags::FIXED, backing };
        mm.map_with(request, VmaFlags::SPECIAL | VmaFlags::DONTDUMP)
    };
    part(start, PAGE_SIZE, &vdso.parameters, Prot::READ, Prot::READ)?;
    part(start + PAGE_SIZE, IMAGE, &vdso.image, Prot::READ | Prot::EXEC, Prot::all())
}

/// Pages that are always there and never written through a mapping.
struct FixedPages {
    start: Gpa,
    pages: u64,
    name: &'static [u8],
    mappings: MappingSet,
    /// Frames that go back to the arena with the object.
    owned: Option<(&'static Arena, FrameRange)>,
}

impl FixedPages {
    fn new(
        start: Gpa,
        pages: u64,
        name: &'static [u8],
        owned: Option<(&'static Arena, FrameRange)>,
    ) -> Arc<FixedPages> {
        Arc::new(FixedPages { start, pages, name, mappings: MappingSet::default(), owned })
    }
}

impl Mappable for FixedPages {
    fn translate(&self, offset: u64, len: u64, _write: bool) -> SysResult<Backing> {
        let left = (self.pages * PAGE_SIZE).checked_sub(offset).filter(|left| *left > 0);
        let left = left.ok_or(Errno::EFAULT)?;
        let gpa = Gpa(self.start.0.saturating_add(offset));
        Ok(Backing { gpa, len: len.min(left), writable: false })
    }

    fn mappings(&self) -> &MappingSet {
        &self.mappings
    }

    fn identity(&self) -> MappingIdentity {
        MappingIdentity { name: self.name.to_vec(), ..Default::default() }
    }
}

impl Drop for FixedPages {
    fn drop(&mut self) {
        if let Some((arena, frames)) = self.owned {
            arena.release(frames);
        }
    }
}

/// Bytes of the image, built from front to back.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn u16s(&mut self, values: &[u16]) {
        values.iter().for_each(|value| self.0.extend_from_slice(&value.to_le_bytes()));
    }

    fn u32s(&mut self, values: &[u32]) {
        values.iter().for_each(|value| self.0.extend_from_slice(&value.to_le_bytes()));
    }

    fn u64s(&mut self, values: &[u64]) {
        values.iter().for_each(|value| self.0.extend_from_slice(&value.to_le_bytes()));
    }

    fn align(&mut self, to: usize) -> u64 {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
        self.0.len() as u64
    }
}

/// The string table, and where its strings begin.
#[derive(Default)]
struct Strings(Vec<u8>);

impl Strings {
    fn add(&mut self, string: &str) -> u32 {
        if self.0.is_empty() {
            self.0.push(0);
        }
        let at = u32::try_from(self.0.len()).unwrap_or(0);
        self.0.extend_from_slice(string.as_bytes());
        self.0.push(0);
        at
    }
}

/// The System V hash of a symbol's or version's name.
fn hash(name: &str) -> u32 {
    name.bytes().fold(0, |hash: u32, byte| {
        let hash = (hash << 4).wrapping_add(u32::from(byte));
        let high = hash & 0xf000_0000;
        (hash ^ (high >> 24)) & !high
    })
}

/// Where the tables of the dynamic section begin in the image.
#[derive(Default)]
struct Tables {
    symbols: u64,
    strings: u64,
    strings_len: u64,
    hash: u64,
    versions: u64,
    definitions: u64,
    dynamic: u64,
    dynamic_len: u64,
}

/// The image: headers and tables in the first page, text in the second. Fails only if the tables outgrow their page.
fn build_image() -> SysResult<Vec<u8>> {
    // The headers have a fixed size: lay out the tables behind them first, then write the real ones over.
    let mut image = Bytes(vec![0; headers(&Tables::default()).0.len()]);
    let tables = add_tables(&mut image);
    let head = headers(&tables).0;
    for (to, from) in image.0.iter_mut().zip(head) {
        *to = from;
    }
    if image.0.len() as u64 > TEXT {
        return Err(Errno::ENOMEM);
    }
    image.align(PAGE_SIZE as usize);
    image.0.extend_from_slice(code().text);
    image.align(PAGE_SIZE as usize);
    Ok(image.0)
}

fn headers(tables: &Tables) -> Bytes {
    const HEADER: u16 = 64;
    const SEGMENT: u16 = 56;
    const SECTION: u16 = 64;
    let mut bytes = Bytes::default();
    let class = [elf::ELFCLASS64, elf::ELFDATA2LSB, elf::EV_CURRENT].map(|value| value.to_le_bytes()[0]);
    bytes.0.extend_from_slice(b"\x7fELF");
    bytes.0.extend_from_slice(&class);
    bytes.align(16);
    let [kind, machine] = [elf::ET_DYN, elf::EM_X86_64].map(|value| u16::try_from(value).unwrap_or(0));
    bytes.u16s(&[kind, machine]);
    bytes.u32s(&[elf::EV_CURRENT]);
    bytes.u64s(&[TEXT, u64::from(HEADER), 0]);
    bytes.u32s(&[0]);
    bytes.u16s(&[HEADER, SEGMENT, 2, SECTION, 0, 0]);
    bytes.u32s(&[elf::PT_LOAD, elf::PF_R | elf::PF_X]);
    bytes.u64s(&[0, 0, 0, IMAGE, IMAGE, PAGE_SIZE]);
    bytes.u32s(&[elf::PT_DYNAMIC, elf::PF_R]);
    let (at, len) = (tables.dynamic, tables.dynamic_len);
    bytes.u64s(&[at, at, at, len, len, 8]);
    bytes
}

fn add_tables(image: &mut Bytes) -> Tables {
    let code = code();
    let mut strings = Strings::default();
    let (soname, version) = (strings.add(SONAME), strings.add(VERSION));
    let mut names = Vec::new();
    let mut tables = Tables { symbols: image.align(8), ..Tables::default() };
    image.u64s(&[0, 0, 0]);
    let text_section = 1; // any index but SHN_UNDEF: there are no sections
    for (name, offset) in code.functions {
        let full = format!("__vdso_{name}");
        for (name, binding) in [(full.as_str(), elf::STB_GLOBAL), (name, elf::STB_WEAK)] {
            image.u32s(&[strings.add(name)]);
            image.0.push((binding << 4 | elf::STT_FUNC).to_le_bytes()[0]);
            image.0.push(0);
            image.u16s(&[text_section]);
            image.u64s(&[TEXT + offset, 16]);
            names.push(hash(name));
        }
    }
    tables.hash = image.align(8);
    add_hash_table(image, &names);
    tables.versions = image.align(8);
    image.u16s(&[0]);
    image.u16s(&[2; SYMBOLS - 1]);
    tables.definitions = image.align(8);
    let base = u16::try_from(elf::VER_FLG_BASE).unwrap_or(1);
    for (flags, index, name, string, next) in [(base, 1, SONAME, soname, 28), (0, 2, VERSION, version, 0)] {
        image.u16s(&[1, flags, index, 1]); // version, flags, index, number of names
        image.u32s(&[hash(name), 20, next, string, 0]); // hash, to the name, to the next; the name, no further one
    }
    tables.strings = image.align(8);
    tables.strings_len = strings.0.len() as u64;
    image.0.extend_from_slice(&strings.0);
    tables.dynamic = image.align(8);
    let entries = [
        (elf::DT_SONAME, u64::from(soname)),
        (elf::DT_HASH, tables.hash),
        (elf::DT_STRTAB, tables.strings),
        (elf::DT_SYMTAB, tables.symbols),
        (elf::DT_STRSZ, tables.strings_len),
        (elf::DT_SYMENT, 24),
        (elf::DT_VERSYM, tables.versions),
        (elf::DT_VERDEF, tables.definitions),
        (elf::DT_VERDEFNUM, 2),
        (elf::DT_NULL, 0),
    ];
    for (tag, value) in entries {
        image.u64s(&[u64::from(tag), value]);
    }
    tables.dynamic_len = image.0.len() as u64 - tables.dynamic;
    tables
}

/// A System V hash table with one bucket per symbol.
fn add_hash_table(image: &mut Bytes, names: &[u32]) {
    const BUCKETS: u32 = SYMBOLS as u32;
    let mut buckets = [0u32; SYMBOLS];
    let mut chains = vec![0u32];
    for (symbol, hash) in (1u32..).zip(names) {
        let bucket = buckets.get_mut((hash % BUCKETS) as usize);
        chains.push(bucket.map_or(0, |first| std::mem::replace(first, symbol)));
    }
    image.u32s(&[BUCKETS, BUCKETS]);
    image.u32s(&buckets);
    image.u32s(&chains);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::Platform;
    use crate::platform::fake::{self, FakePlatform};

    #[test]
    fn the_dynamic_linker_of_the_host_finds_versioned_symbols() {
        let image = build_image().unwrap();
        assert_eq!(hash("LINUX_2.6"), 0x3ae_75f6);
        let path = std::env::temp_dir().join(format!("caisson-vdso-{}.so", std::process::id()));
        std::fs::write(&path, &image).unwrap();
        let program = "import ctypes,sys\n\
            libc=ctypes.CDLL(None); libc.dlopen.restype=ctypes.c_void_p; libc.dlvsym.restype=ctypes.c_void_p\n\
            h=libc.dlopen(sys.argv[1].encode(),2)\n\
            assert h\n\
            for n in ['clock_gettime','gettimeofday','time','clock_getres','getcpu']:\n\
            \x20   for p in ['__vdso_','']:\n\
            \x20       assert libc.dlvsym(ctypes.c_void_p(h),(p+n).encode(),b'LINUX_2.6'),n\n\
            assert not libc.dlvsym(ctypes.c_void_p(h),b'__vdso_time',b'LINUX_9')\n";
        let python = std::process::Command::new("python3").arg("-c").arg(program).arg(&path).output();
        std::fs::remove_file(&path).unwrap();
        // Where there is no python3 the guest suites are the judge.
        if let Ok(output) = python {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }

    #[test]
    fn is_mapped_read_only_behind_its_parameters() {
        let arena = fake::new_arena(100);
        let platform: Arc<dyn Platform> = FakePlatform::with_arena(arena);
        let parameters = arena.alloc(1, Alignment::Page).unwrap();
        let vdso = Vdso::new(arena, arena.gpa(parameters.first)).unwrap();
        let layout =
            crate::mm::Layout::new(&mut crate::mm::Entropy::seeded(1), 8 << 20, crate::mm::Randomize::Yes);
        let mm = Mm::new(&platform, layout, crate::mm::MemoryLimits::default()).unwrap();
        let header = map(&mm, &vdso).unwrap();
        arena.write(arena.gpa(parameters.first), b"params").unwrap();
        let mut bytes = [0; 6];
        mm.read_bytes(header - PAGE_SIZE, &mut bytes).unwrap();
        assert_eq!(&bytes, b"params");
        mm.read_bytes(header, &mut bytes).unwrap();
        assert_eq!(&bytes[..4], b"\x7fELF");
        assert_eq!(mm.write_bytes(header - PAGE_SIZE, &[1]), Err(Errno::EFAULT));
        assert_eq!(mm.mprotect(header - PAGE_SIZE, PAGE_SIZE, Prot::WRITE), Err(Errno::EACCES));
        assert_eq!(mm.mprotect(header, IMAGE, Prot::READ | Prot::WRITE), Ok(()));
        mm.write_bytes(header + TEXT, &[0xcc]).unwrap();
        let other = Mm::new(&platform, layout, crate::mm::MemoryLimits::default()).unwrap();
        let header = map(&other, &vdso).unwrap();
        other.read_bytes(header + TEXT, &mut bytes).unwrap();
        assert_ne!(bytes[0], 0xcc, "one process's breakpoint is its own");
        let names: Vec<_> = other.mappings().into_iter().map(|vma| vma.name).collect();
        assert_eq!(names, [b"[vvar]".to_vec(), b"[vdso]".to_vec()]);
        drop((mm, other, vdso));
        arena.release(parameters);
        assert_eq!(arena.frames_in_use(), 0);
    }
}
