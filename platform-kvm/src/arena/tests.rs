use super::{Alignment, Arena, ArenaConfig, Frame, FrameRange, Gpa, PAGE_SIZE, WindowAccess, WindowRange};
use crate::error::{Fault, OutOfMemory};
use std::collections::HashSet;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

fn arena(max_frames: u32) -> &'static Arena {
    Arena::new(ArenaConfig { anonymous_bytes: 64 << 20, window_bytes: 16 << 20, max_frames }).unwrap()
}

fn memory_file(bytes: &[u8]) -> std::fs::File {
    // SAFETY: the name is a C string; the result is checked.
    let fd = unsafe { libc::memfd_create(c"window".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: the descriptor is new and ours.
    let mut file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.write_all(bytes).unwrap();
    file
}

#[test]
fn frames_are_zeroed_distinct_and_counted() {
    let arena = arena(u32::MAX);
    let mut seen = HashSet::new();
    let mut held = Vec::new();
    for round in 0..2000u32 {
        let count = 1 + (round * 7) % 37;
        let range = arena.alloc(count, Alignment::Page).unwrap();
        for frame in range.first.0..range.first.0 + count {
            assert!(seen.insert(frame), "frame {frame} handed out twice");
            let mut page = [1u8; PAGE_SIZE as usize];
            arena.read(arena.gpa(Frame(frame)), &mut page).unwrap();
            assert!(page.iter().all(|byte| *byte == 0), "frame {frame} is dirty");
            arena.write(arena.gpa(Frame(frame)), &[0xa5; PAGE_SIZE as usize]).unwrap();
        }
        held.push(range);
        if round % 3 != 0 {
            let range = held.swap_remove((round as usize * 31) % held.len());
            arena.release(range);
            for frame in range.first.0..range.first.0 + range.count {
                seen.remove(&frame);
            }
        }
        if seen.len() > 3000 {
            for range in held.drain(..) {
                arena.release(range);
            }
            seen.clear();
        }
    }
    assert_eq!(arena.frames_in_use() as usize, seen.len());
    for range in held {
        arena.release(range);
    }
    assert_eq!(arena.frames_in_use(), 0);
    // Everything has merged again: each half can be handed out as whole blocks.
    let blocks = (0..8).map(|_| arena.alloc(512, Alignment::Huge).unwrap()).collect::<Vec<_>>();
    assert!(blocks.iter().all(|block| block.first.0 % 512 == 0));
    let small = (0..8).map(|_| arena.alloc(512, Alignment::Page).unwrap()).collect::<Vec<_>>();
    assert_eq!(small.len() + blocks.len(), 16);
}

#[test]
fn pages_and_blocks_do_not_fragment_each_other() {
    let arena = arena(u32::MAX);
    let pages = (0..1000).map(|_| arena.alloc(1, Alignment::Page).unwrap()).collect::<Vec<_>>();
    let blocks = (0..16).map(|_| arena.alloc(512, Alignment::Huge).unwrap()).collect::<Vec<_>>();
    assert_eq!(arena.alloc(512, Alignment::Huge), Err(OutOfMemory));
    for block in &blocks {
        // Released page by page, in two halves, a block becomes whole again.
        for frame in (block.first.0..block.first.0 + 512).rev() {
            arena.release(FrameRange { first: Frame(frame), count: 1 });
        }
    }
    for _ in 0..16 {
        arena.alloc(512, Alignment::Huge).unwrap();
    }
    drop(pages);
}

#[test]
fn long_runs_and_their_tails() {
    let arena = arena(u32::MAX);
    let run = arena.alloc(1300, Alignment::Page).unwrap();
    assert_eq!(arena.frames_in_use(), 1300);
    arena.release(FrameRange { first: Frame(run.first.0 + 100), count: 1200 });
    arena.release(FrameRange { first: run.first, count: 100 });
    let all = arena.alloc(16 * 512, Alignment::Huge).unwrap();
    assert_eq!(all.count, 8192);
}

#[test]
fn limit_and_reference_counts() {
    let arena = arena(10);
    assert_eq!(arena.frames_max(), 10);
    let range = arena.alloc(8, Alignment::Page).unwrap();
    assert_eq!(arena.alloc(3, Alignment::Page), Err(OutOfMemory));
    assert_eq!(arena.alloc(0, Alignment::Page), Err(OutOfMemory));
    arena.retain(FrameRange { first: range.first, count: 2 });
    assert!(!arena.is_unique(range.first));
    arena.release(range);
    assert_eq!(arena.frames_in_use(), 2);
    assert!(arena.is_unique(range.first));
    arena.release(FrameRange { first: range.first, count: 2 });
    assert_eq!(arena.frames_in_use(), 0);
    assert_eq!(arena.frame_of(arena.gpa(range.first)), Some(range.first));
    assert_eq!(arena.frame_of(arena.window_start()), None);
}

#[test]
fn access_outside_and_unbacked_faults() {
    let arena = arena(u32::MAX);
    let end = arena.end();
    assert_eq!(arena.read(end, &mut [0]), Err(Fault { done: 0 }));
    assert_eq!(arena.read(Gpa(0), &mut [0]), Err(Fault { done: 0 }));
    assert_eq!(arena.write(Gpa(u64::MAX), &[0; 8]), Err(Fault { done: 0 }));
    assert_eq!(arena.read(Gpa(end.0 - 8), &mut [0; 8]), Err(Fault { done: 0 }), "nothing is mapped there");
    let window = arena.window_alloc(2).unwrap();
    let file = memory_file(&[7; 4096]);
    arena.window_map(window, file.as_fd(), 0, WindowAccess::ReadWrite).unwrap();
    let mut buf = [0; 8192];
    assert_eq!(
        arena.read(window.start, &mut buf),
        Err(Fault { done: 4096 }),
        "SIGBUS past the end of the file"
    );
    assert_eq!(arena.zero(Gpa(window.start.0 + 4090), 16), Err(Fault { done: 6 }));
    assert_eq!(arena.atomic_load_u32(Gpa(window.start.0 + 4096)), Err(Fault { done: 0 }));
    assert_eq!(arena.atomic_compare_exchange_u32(Gpa(window.start.0 + 4096), 0, 1), Err(Fault { done: 0 }));
    file.set_len(0).unwrap();
    assert_eq!(arena.read(window.start, &mut buf), Err(Fault { done: 0 }));
    arena.window_free(window);
    assert!(
        arena
            .window_map(WindowRange { start: Gpa(0), pages: 1 }, file.as_fd(), 0, WindowAccess::ReadOnly)
            .is_err()
    );
    let frames = arena.alloc(1, Alignment::Page).unwrap();
    let inside = WindowRange { start: arena.gpa(frames.first), pages: 1 };
    assert!(arena.window_map(inside, file.as_fd(), 0, WindowAccess::ReadOnly).is_err(), "not over frames");
}

#[test]
fn atomics() {
    let arena = arena(u32::MAX);
    let gpa = arena.gpa(arena.alloc(1, Alignment::Page).unwrap().first);
    assert_eq!(arena.atomic_compare_exchange_u32(gpa, 0, 5), Ok(0));
    assert_eq!(arena.atomic_compare_exchange_u32(gpa, 0, 6), Ok(5));
    assert_eq!(arena.atomic_fetch_update_u32(gpa, |v| v | 0x8000_0000), Ok(5));
    assert_eq!(arena.atomic_load_u32(gpa), Ok(0x8000_0005));
    assert_eq!(arena.atomic_load_u32(Gpa(gpa.0 + 2)), Err(Fault { done: 0 }));
}

#[test]
fn vectored_file_io() {
    let arena = arena(u32::MAX);
    let gpa = arena.gpa(arena.alloc(2, Alignment::Page).unwrap().first);
    let mut file = memory_file(b"0123456789");
    let segments = [(gpa, 3), (Gpa(gpa.0 + 4096), 4)];
    assert_eq!(arena.pread(file.as_fd(), &segments, Some(1)).unwrap(), 7);
    let mut buf = [0; 4];
    arena.read(Gpa(gpa.0 + 4096), &mut buf).unwrap();
    assert_eq!(&buf, b"4567");
    file.seek(SeekFrom::Start(8)).unwrap();
    assert_eq!(arena.pwrite(file.as_fd(), &segments, None).unwrap(), 7);
    let mut all = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut all).unwrap();
    assert_eq!(all, "012345671234567");
    let bad = [(gpa, 2), (Gpa(0), 4)];
    assert_eq!(arena.pread(file.as_fd(), &bad, Some(0)).unwrap(), 2);
    let error = arena.pread(file.as_fd(), &[(Gpa(0), 4)], Some(0)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
    let hole = arena.window_alloc(1).unwrap();
    let error = arena.pread(file.as_fd(), &[(hole.start, 4)], Some(0)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
}

#[test]
fn few_frames_are_cleared_by_the_kernel() {
    let arena = arena(u32::MAX);
    arena.keep_host_entries_clean();
    for count in [1, 3, 16, 17, 40] {
        let frames = arena.alloc(count, Alignment::Page).unwrap();
        let len = count as usize * PAGE_SIZE as usize;
        arena.write(arena.gpa(frames.first), &vec![0xa5; len]).unwrap();
        arena.release(frames);
        assert_eq!(arena.alloc(count, Alignment::Page), Ok(frames), "the newest is used again");
        let mut bytes = vec![1; len];
        arena.read(arena.gpa(frames.first), &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0));
    }
    let memory = arena.memory();
    assert!(memory.zero_by_kernel(0, 4096));
    assert!(!memory.zero_by_kernel(memory.len(), 4096), "outside");
    assert!(!memory.zero_by_kernel(0, 5000), "no whole pages");
    assert!(!memory.zero_by_kernel(0, 17 * 4096), "too many");
    // Read-only for a moment: the caller clears it in the usual way, which waits.
    memory.protect(4096, 4096, libc::PROT_READ).unwrap();
    assert!(!memory.zero_by_kernel(4096, 4096));
    memory.protect(4096, 4096, libc::PROT_READ | libc::PROT_WRITE).unwrap();
}

#[test]
fn a_certain_block() {
    let arena = arena(u32::MAX);
    let blocks = arena.alloc(3 * 512, Alignment::Huge).unwrap();
    let block = |n: u32| FrameRange { first: Frame(blocks.first.0 + n * 512), count: 512 };
    let gpa = |n: u32| arena.gpa(block(n).first);
    assert!(arena.alloc_block(gpa(1)).is_err(), "in use");
    arena.write(gpa(1), &[7; 5000]).unwrap();
    // Freed in one range, and too few to be given back to the host: dirty.
    arena.release(blocks);
    assert!(arena.alloc_block(Gpa(gpa(1).0 + 4096)).is_err(), "begins no block");
    assert!(arena.alloc_block(arena.gpa(Frame(0))).is_err(), "no huge pages there");
    assert!(arena.alloc_block(arena.window_start()).is_err(), "no frames there");
    for n in [1, 0, 2] {
        assert_eq!(arena.alloc_block(gpa(n)), Ok(block(n)));
        assert!(arena.alloc_block(gpa(n)).is_err());
        assert!(arena.is_unique(block(n).first));
    }
    let mut bytes = [1; 5000];
    arena.read(gpa(1), &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
    // Enough that all of it goes back to the host: clean.
    let more = arena.alloc(4 * 512, Alignment::Huge).unwrap();
    for range in [block(2), block(0), block(1), more] {
        arena.release(range);
    }
    assert_eq!(arena.frames_in_use(), 0);
    assert_eq!(arena.alloc_block(gpa(0)), Ok(block(0)));
    // Not all of it is free.
    arena.release(FrameRange { first: block(0).first, count: 100 });
    assert!(arena.alloc_block(gpa(0)).is_err());
    assert_eq!(arena.frames_in_use(), 412);
}
