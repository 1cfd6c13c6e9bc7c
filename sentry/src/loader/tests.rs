//! The loader against hand-made and broken programs, on the fake platform.

use std::sync::Arc;

use super::elf::Header;
use super::image::{Place, map};
use super::*;
use crate::fs::tmpfs::{Tmpfs, TmpfsOptions};
use crate::io::KernelSrc;
use crate::platform::fake::FakePlatform;
use crate::platform::{PAGE_SIZE, Platform};
use crate::vfs::{Mount, MountFlags, MountNamespace, OpenHow, Superblock};

const RX: u32 = 5;
const RW: u32 = 6;

#[derive(Clone, Copy)]
struct Part {
    kind: u32,
    flags: u32,
    offset: u64,
    vaddr: u64,
    filesz: u64,
    memsz: u64,
}

const fn load(flags: u32, offset: u64, vaddr: u64, filesz: u64, memsz: u64) -> Part {
    Part { kind: 1, flags, offset, vaddr, filesz, memsz }
}

/// An ELF file of 16 KiB in which every byte behind the headers is the low byte of its page number, plus 0x40.
fn elf(kind: u16, entry: u64, parts: &[Part]) -> Vec<u8> {
    let mut file: Vec<u8> = (0..4u8).flat_map(|page| [0x40 + page; 4096]).collect();
    let mut head = Vec::new();
    head.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    head.extend([kind, 62].iter().flat_map(|value| value.to_le_bytes()));
    head.extend(1u32.to_le_bytes());
    head.extend([entry, 64, 0].iter().flat_map(|value| value.to_le_bytes()));
    head.extend(0u32.to_le_bytes());
    let count = u16::try_from(parts.len()).unwrap();
    head.extend([64, 56, count, 64, 0, 0].iter().flat_map(|value: &u16| value.to_le_bytes()));
    for part in parts {
        head.extend([part.kind, part.flags].iter().flat_map(|value| value.to_le_bytes()));
        let words = [part.offset, part.vaddr, part.vaddr, part.filesz, part.memsz, PAGE_SIZE];
        head.extend(words.iter().flat_map(|value| value.to_le_bytes()));
    }
    file[..head.len()].copy_from_slice(&head);
    file
}

fn program() -> Vec<u8> {
    // Text in pages 0 and 1, data from the middle of page 2 on, bss behind it.
    elf(2, 0x40_1000, &[load(RX, 0, 0x40_0000, 0x2000, 0x2000), load(RW, 0x2800, 0x40_2800, 0x200, 0x3000)])
}

struct Tree {
    caller: Caller<'static>,
    _namespace: Arc<MountNamespace>,
}

impl Tree {
    fn new() -> Tree {
        let fs = Tmpfs::new(TmpfsOptions::parse(b"").unwrap()).unwrap();
        let superblock = Superblock::new(fs, b"tmpfs").unwrap();
        let namespace = MountNamespace::new(Mount::new(superblock, MountFlags::empty()));
        Tree { caller: Caller::kernel(namespace.root()), _namespace: namespace }
    }

    fn open(&self, path: &str, flags: u32, mode: u64) -> Arc<File> {
        let how = OpenHow::from_open(flags, mode.try_into().unwrap()).unwrap();
        let caller = &self.caller;
        caller.open(caller.cwd(), path.as_bytes(), &how, &mut |_, _| Err(Errno::ENXIO)).unwrap()
    }

    /// A file that can be run; nobody has it open for writing.
    fn file(&self, path: &str, content: &[u8]) -> Arc<File> {
        let file = self.open(path, (libc::O_CREAT | libc::O_RDWR) as u32, 0o755);
        assert_eq!(file.write(&mut KernelSrc::new(content)), Ok(content.len()));
        drop(file);
        self.open(path, libc::O_RDONLY as u32, 0)
    }
}

fn new_mm() -> Arc<Mm> {
    let platform: Arc<dyn Platform> = FakePlatform::new();
    let layout = Layout::new(&mut Entropy::seeded(3), 8 << 20, Randomize::Yes);
    Mm::new(&platform, layout, MemoryLimits::default()).unwrap()
}

fn header_of(file: &File) -> SysResult<Header> {
    let mut head = [0; script::HEAD];
    let len = read_at(file, 0, &mut head)?;
    Header::read(file, &head[..len])
}

fn try_map(file: &Arc<File>, mm: &Arc<Mm>) -> SysResult<image::Mapped> {
    map(mm, file, &header_of(file)?, Place::Program)
}

fn byte(mm: &Mm, addr: u64) -> SysResult<u8> {
    let mut byte = [0];
    mm.read_bytes(addr, &mut byte).map(|()| byte[0])
}

#[test]
fn fixed_program_is_mapped_with_its_bss_zeroed() {
    let tree = Tree::new();
    let mm = new_mm();
    let mapped = try_map(&tree.file("/a", &program()), &mm).unwrap();
    assert_eq!((mapped.bias, mapped.entry, mapped.headers), (0, 0x40_1000, 0x40_0040));
    assert_eq!(mapped.end, 0x40_6000);
    assert_eq!(byte(&mm, 0x40_1fff), Ok(0x41));
    assert_eq!(byte(&mm, 0x40_2000), Ok(0x42), "the whole page of the file comes along, as on Linux");
    assert_eq!((byte(&mm, 0x40_29ff), byte(&mm, 0x40_2a00)), (Ok(0x42), Ok(0)), "data ends, bss begins");
    assert_eq!((byte(&mm, 0x40_57ff), byte(&mm, 0x40_6000)), (Ok(0), Err(Errno::EFAULT)));
    assert_eq!(mm.write_bytes(0x40_1000, &[1]), Err(Errno::EFAULT));
    assert_eq!(mm.write_bytes(0x40_5000, &[1]), Ok(()));
}

#[test]
fn segments_may_share_a_page() {
    let tree = Tree::new();
    let mm = new_mm();
    let parts = [load(RX, 0, 0x40_0000, 0x1800, 0x1800), load(RW, 0x1800, 0x40_1800, 0x100, 0x100)];
    try_map(&tree.file("/a", &elf(2, 0x40_0100, &parts)), &mm).unwrap();
    assert_eq!(mm.write_bytes(0x40_1000, &[1]), Ok(()), "the later segment wins the page");
    assert_eq!(byte(&mm, 0x40_0fff), Ok(0x40));
}

#[test]
fn relocatable_programs_go_where_linux_puts_them() {
    let tree = Tree::new();
    let mm = new_mm();
    let parts = [load(RX, 0, 0, 0x1000, 0x1000), load(RW, 0x1000, 0x1000, 0x1000, 0x2000)];
    let file = tree.file("/a", &elf(3, 0x10, &parts));
    let program = try_map(&file, &mm).unwrap();
    assert_eq!(program.bias, mm.layout().pie_base);
    assert_eq!(program.entry, program.bias + 0x10);
    let header = header_of(&file).unwrap();
    let interpreter = map(&mm, &file, &header, Place::Anywhere).unwrap();
    assert_eq!(interpreter.bias + 0x3000, mm.layout().mmap_base);
    assert_eq!(byte(&mm, interpreter.bias + 0x1000), Ok(0x41));
}

#[test]
fn broken_headers_are_refused() {
    let good = program();
    let tree = Tree::new();
    let mut number = 0;
    let mut outcome = |content: &[u8]| {
        number += 1;
        try_map(&tree.file(&format!("/{number}"), content), &new_mm()).map(drop)
    };
    assert_eq!(outcome(&good), Ok(()));
    let with = |at: usize, bytes: &[u8]| {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        bad
    };
    let (first, second) = (64, 64 + 56);
    let u64s = |value: u64| value.to_le_bytes();
    let cases: &[(&str, Vec<u8>)] = &[
        ("empty", Vec::new()),
        ("only the magic", good[..4].to_vec()),
        ("half a header", good[..40].to_vec()),
        ("without program headers", good[..64].to_vec()),
        ("half a program header", good[..150].to_vec()),
        ("no magic", with(0, b"\x7fELG")),
        ("32-bit", with(4, &[1])),
        ("big-endian", with(5, &[2])),
        ("a relocatable object", with(16, &[1])),
        ("a core dump", with(16, &[4])),
        ("for ARM", with(18, &[183])),
        ("for i386", with(18, &[3])),
        ("other header size", with(54, &[55])),
        ("no headers", with(56, &[0, 0])),
        ("65535 headers", with(56, &[0xff, 0xff])),
        ("headers beyond the file", with(32, &u64s(1 << 40))),
        ("headers that wrap around", with(32, &u64s(u64::MAX - 8))),
        ("more in the file than in memory", with(first + 40, &u64s(0x100))),
        ("not congruent", with(first + 16, &u64s(0x40_0001))),
        ("offset that wraps around", with(first + 8, &u64s(0xffff_ffff_ffff_f000))),
        ("address in the upper half", with(first + 16, &u64s(0xffff_8000_0000_0000))),
        ("end that wraps around", with(second + 40, &u64s(u64::MAX))),
        ("end beyond the lower half", with(second + 40, &u64s(0x7fff_ffff_ffff))),
        ("overlapping", with(second + 16, &u64s(0x40_1800))),
        ("descending", with(second + 16, &u64s(0x30_0800))),
        (
            "no segment to load",
            with(first, &[4, 0, 0, 0])
                .iter()
                .enumerate()
                .map(|(at, &byte)| if at == second { 4 } else { byte })
                .collect(),
        ),
    ];
    for (what, content) in cases {
        assert_eq!(outcome(content), Err(Errno::ENOEXEC), "{what}");
    }
    // Where Linux fails while mapping.
    assert_eq!(outcome(&with(first + 16, &u64s(0))), Err(Errno::EPERM), "at address 0");
    let huge = with(second + 40, &u64s(0x7000_0000_0000));
    assert_eq!(outcome(&huge), Ok(()), "address space is free");
    let cut = &good[..0x2000];
    assert!(outcome(cut).is_err(), "data segment missing from the file");
}

#[test]
fn random_damage_never_panics() {
    let dynamic = {
        let interp = Part { kind: 3, flags: 4, offset: 0x1000, vaddr: 0x1000, filesz: 8, memsz: 8 };
        let stack = Part { kind: 0x6474_e551, flags: 7, offset: 0, vaddr: 0, filesz: 0, memsz: 0 };
        let parts = [interp, load(RX, 0, 0, 0x2000, 0x2000), load(RW, 0x2000, 0x2000, 0x100, 0x1000), stack];
        elf(3, 0x20, &parts)
    };
    let tree = Tree::new();
    let file = tree.open("/f", (libc::O_CREAT | libc::O_RDWR) as u32, 0o755);
    let mut seed = 17u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) % below
    };
    let mut accepted = 0;
    for round in 0..3000 {
        let mut bytes = if round % 2 == 0 { program() } else { dynamic.clone() };
        for _ in 0..1 + random(3) {
            let at = usize::try_from(random(64 + 56 * 4)).unwrap();
            bytes[at] = random(256) as u8;
        }
        assert_eq!(file.write_at(&mut KernelSrc::new(&bytes[..0x1000]), 0), Ok(0x1000));
        if round < 2 {
            assert_eq!(file.write_at(&mut KernelSrc::new(&bytes), 0), Ok(bytes.len()));
        }
        let mm = new_mm();
        accepted += usize::from(try_map(&file, &mm).is_ok());
        if let Ok(header) = header_of(&file) {
            let _ = header.interpreter(&file);
        }
    }
    assert!(accepted > 100, "the damage is not always fatal: {accepted}");
}

#[test]
fn stack_is_laid_out_as_the_abi_wants_it() {
    for (argc, envc) in [(1, 0), (2, 1), (3, 3), (0, 0)] {
        let mm = new_mm();
        let strings = |what: &str, count: usize| -> Vec<Vec<u8>> {
            (0..count).map(|n| format!("{what}{n}").into_bytes()).collect()
        };
        let (args, env) = (strings("arg", argc), strings("E=", envc));
        let content = stack::Content { args: &args, env: &env, asked: b"/bin/x", executable: false };
        let aux = stack::Auxv {
            vdso: 0x7000,
            headers: 0x40_0040,
            header_count: 2,
            interpreter_base: 0,
            entry: 0x40_1000,
            min_signal_stack: 2048,
            secure: true,
            random: *b"0123456789abcdef",
        };
        let built = stack::build(&mm, &content, &aux, &Credentials::root()).unwrap();
        assert!(built.pointer.is_multiple_of(16));
        let mut at = built.pointer;
        let mut word = || {
            at += 8;
            mm.copy_in::<u64>(at - 8).unwrap()
        };
        assert_eq!(word(), argc as u64);
        for list in [&args, &env] {
            for text in list {
                assert_eq!(mm.read_c_string(word(), 100).as_ref(), Ok(text));
            }
            assert_eq!(word(), 0);
        }
        let mut vector = std::collections::BTreeMap::new();
        loop {
            let (kind, value) = (word(), word());
            if kind == 0 {
                break;
            }
            assert_eq!(vector.insert(kind, value), None);
        }
        let text = |kind: u64| mm.read_c_string(vector[&kind], 16).ok();
        assert_eq!(text(31), Some(b"/bin/x".to_vec()), "AT_EXECFN");
        assert_eq!(text(15), Some(b"x86_64".to_vec()), "AT_PLATFORM");
        let mut random = [0; 16];
        mm.read_bytes(vector[&25], &mut random).unwrap();
        assert_eq!(&random, b"0123456789abcdef", "AT_RANDOM");
        let expected = [(3, 0x40_0040), (5, 2), (9, 0x40_1000), (33, 0x7000), (23, 1), (6, 4096), (17, 100)];
        for (kind, value) in expected {
            assert_eq!(vector[&kind], value, "type {kind}");
        }
        let image = {
            mm.update_image(|image| built.describe(image));
            mm.image()
        };
        let len = usize::try_from(image.arg_end - image.arg_start).unwrap();
        let mut bytes = vec![0; len];
        mm.read_bytes(image.arg_start, &mut bytes).unwrap();
        let joined: Vec<u8> = args.iter().flat_map(|arg| arg.iter().copied().chain([0])).collect();
        assert_eq!(bytes, joined, "/proc/self/cmdline");
    }
}

#[test]
fn too_many_strings_are_too_big() {
    let text = |len: usize| vec![vec![b'x'; len]];
    let check = |args: &[Vec<u8>], limit| stack::check_limits(args, &[], b"/x", limit);
    assert_eq!(check(&text(131_071), 8 << 20), Ok(()));
    assert_eq!(check(&text(131_072), 8 << 20), Err(Errno::E2BIG), "MAX_ARG_STRLEN");
    let many = vec![vec![b'x'; 1000]; 2000];
    assert_eq!(check(&many, 8 << 20), Ok(()));
    assert_eq!(check(&many, 1 << 20), Err(Errno::E2BIG), "a quarter of the stack limit");
    assert_eq!(check(&vec![Vec::new(); 100_000], 8 << 20), Ok(()), "100,000 arguments fit");
}
