use std::sync::Arc;

use super::*;
use crate::kernel::testing::{MEMORY, TestKernel};

const AREA: u64 = MEMORY + 64;
const SECTION: u64 = MEMORY + 256;
const CODE: u64 = MEMORY + 1024;
const SIGNATURE: u32 = 0x5305_3053;
const REGISTERED: Registration = Registration { address: AREA, len: 32, signature: SIGNATURE };

/// A registered thread inside a good critical section: 16 bytes at `CODE`, abort handler 64 bytes on.
fn in_section(test: &TestKernel) -> (Arc<Task>, TaskLocal) {
    let (task, mut local) = test.prepare([]);
    let mm = task.mm();
    local.rseq.register(&mm, REGISTERED).unwrap();
    assert!(enter(&task, &mut local));
    mm.copy_out(SECTION, &[0u64, CODE, 16, CODE + 64]).unwrap();
    mm.copy_out(CODE + 60, &SIGNATURE).unwrap();
    mm.copy_out(AREA + OFFSET_OF_CS, &SECTION).unwrap();
    local.registers.rip = CODE + 15;
    (task, local)
}

fn pointer(task: &Task) -> u64 {
    task.mm().copy_in(AREA + OFFSET_OF_CS).unwrap()
}

#[test]
fn registration_has_linuxs_errors() {
    let test = TestKernel::boot();
    let (task, mut local) = test.prepare([]);
    let mm = task.mm();
    let mut register = |new: Registration| local.rseq.register(&mm, new);
    assert_eq!(register(Registration { len: 31, ..REGISTERED }), Err(Errno::EINVAL));
    assert_eq!(register(Registration { address: AREA + 16, ..REGISTERED }), Err(Errno::EINVAL));
    assert_eq!(register(Registration { address: GVA_END, ..REGISTERED }), Err(Errno::EFAULT));
    assert_eq!(register(Registration { address: 64, ..REGISTERED }), Err(Errno::EFAULT));
    mm.copy_out(AREA + OFFSET_OF_CS, &7u64).unwrap();
    assert_eq!(register(REGISTERED), Ok(()));
    assert_eq!(pointer(&task), 0, "left over from before");
    assert_eq!(register(REGISTERED), Err(Errno::EBUSY));
    assert_eq!(register(Registration { signature: 1, ..REGISTERED }), Err(Errno::EPERM));
    assert_eq!(register(Registration { len: 64, ..REGISTERED }), Err(Errno::EINVAL));
    let mut unregister = |which: Registration| local.rseq.unregister(&mm, which);
    assert_eq!(unregister(Registration { address: AREA + 32, ..REGISTERED }), Err(Errno::EINVAL));
    assert_eq!(unregister(Registration { signature: 1, ..REGISTERED }), Err(Errno::EPERM));
    assert_eq!(unregister(REGISTERED), Ok(()));
    assert_eq!(mm.copy_in::<[u32; 2]>(AREA), Ok([0, UNINITIALIZED]));
    assert_eq!(unregister(REGISTERED), Err(Errno::EINVAL));
}

#[test]
fn the_only_thread_is_left_alone() {
    let test = TestKernel::boot();
    let (task, mut local) = in_section(&test);
    assert_eq!(task.mm().copy_in::<[u32; 2]>(AREA), Ok([task.cpu(); 2]));
    leave(&local, Instant::now());
    assert!(enter(&task, &mut local));
    assert_eq!((local.registers.rip, pointer(&task)), (CODE + 15, SECTION));
}

#[test]
fn a_lost_place_and_a_signal_abort() {
    let test = TestKernel::boot();
    let (task, mut local) = in_section(&test);
    let places = Processors::new(1);
    local.rseq.share(places.clone());
    assert!(enter(&task, &mut local));
    assert_eq!(local.registers.rip, CODE + 64, "nobody knows who ran before it had a place");
    leave(&local, Instant::now());
    task.mm().copy_out(AREA + OFFSET_OF_CS, &SECTION).unwrap();
    local.registers.rip = CODE;
    assert!(enter(&task, &mut local));
    assert_eq!((local.registers.rip, pointer(&task)), (CODE, SECTION), "the place was kept");
    leave(&local, Instant::now());
    let other = Tenant::new(task.kicker.clone());
    places.acquire(&other, &super::super::CpuMask::All);
    places.leave(&other, 0, Instant::now());
    assert!(enter(&task, &mut local));
    assert_eq!((local.registers.rip, pointer(&task)), (CODE + 64, 0));

    let (task, mut local) = in_section(&test);
    before_handler(&task, &mut local, Signal::USR1);
    assert_eq!((local.registers.rip, pointer(&task)), (CODE + 64, 0));
}

#[test]
fn outside_of_its_section_only_the_pointer_goes() {
    let test = TestKernel::boot();
    for rip in [CODE - 1, CODE + 16] {
        let (task, mut local) = in_section(&test);
        local.registers.rip = rip;
        before_handler(&task, &mut local, Signal::USR1);
        assert_eq!((local.registers.rip, pointer(&task)), (rip, 0));
        assert!(task.pending_signals().0.is_empty());
    }
}

#[test]
fn what_is_wrong_with_a_section_is_a_segv() {
    let test = TestKernel::boot();
    let words = |version_flags, start, length, abort| [version_flags, start, length, abort];
    let bad: [(&str, [u64; 4]); 7] = [
        ("version", words(1, CODE, 16, CODE + 64)),
        ("flags", words(1 << 32, CODE, 16, CODE + 64)),
        ("handler inside", words(0, CODE, 16, CODE + 8)),
        ("signature", words(0, CODE, 16, CODE + 68)),
        ("handler nowhere", words(0, CODE, 16, 0)),
        ("end", words(0, CODE, u64::MAX, CODE + 64)),
        ("handler far", words(0, CODE, 16, u64::MAX)),
    ];
    for (what, section) in bad {
        let (task, mut local) = in_section(&test);
        task.mm().copy_out(SECTION, &section).unwrap();
        task.disturb();
        assert!(!enter(&task, &mut local), "{what}");
        assert!(task.pending_signals().0.contains(Signal::SEGV), "{what}");
        assert_eq!(local.registers.rip, CODE + 15, "{what}");
    }
    let (task, mut local) = in_section(&test);
    task.mm().copy_out(AREA + OFFSET_OF_CS, &GVA_END).unwrap();
    task.disturb();
    assert!(!enter(&task, &mut local));
}

#[test]
fn forked_children_keep_it_and_threads_do_not() {
    let test = TestKernel::boot();
    let (_task, local) = in_section(&test);
    assert_eq!(local.rseq.fork().registration, Some(REGISTERED));
    assert!(local.rseq.fork().stale);
}
