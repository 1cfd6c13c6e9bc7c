//! Processes on the fake platform: births, deaths, signals, pauses, and that nothing is left over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use linux_raw_sys::general as linux;

use super::signal::send::Origin;
use super::signal::{Action, Disposition, ExitStatus, SigInfo, Signal, SignalSet};
use super::{Task, Work};
use crate::errno::Errno;
use crate::kernel::testing::{
    MEMORY, TestKernel, call, call_after, eventually, exit_group, set_call, sleep_for_ever,
};
use crate::platform::fake::{FakeSpace, Step};
use crate::platform::{Exit, Registers};

const SIGCHLD: u64 = linux::SIGCHLD as u64;

fn fork() -> Step {
    call(linux::__NR_clone, [SIGCHLD, 0, 0, 0, 0, 0])
}

fn wait_any() -> Step {
    call(linux::__NR_wait4, [u64::MAX, MEMORY, 0, 0, 0, 0])
}

/// Keeps what a step saw for the test to look at.
#[derive(Clone, Default)]
struct Seen(Arc<AtomicU64>);

impl Seen {
    fn keep(&self) -> impl FnMut(&Registers) + Send + 'static {
        let seen = self.clone();
        move |registers: &Registers| seen.0.store(registers.rax, Ordering::SeqCst)
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

fn ended(task: &Arc<Task>) -> ExitStatus {
    eventually("the process ends", || task.thread_group().has_exited());
    task.thread_group().exit_status().unwrap()
}

#[test]
fn exit_status_and_nothing_left() {
    let test = TestKernel::boot();
    let task = test.spawn([exit_group(0x1234)]);
    assert_eq!(ended(&task), ExitStatus::Exited(0x34));
    test.expect_deserted();
    eventually("the host thread lets go of the task", || Arc::strong_count(&task) == 1);
}

#[test]
fn parent_reaps_its_child_and_sees_its_status() {
    let test = TestKernel::boot();
    let (forked, reaped, missing) = (Seen::default(), Seen::default(), Seen::default());
    let status = Seen::default();
    let look = status.clone();
    let steps: Vec<Step> = vec![
        fork(),
        call_after(linux::__NR_wait4, [u64::MAX, MEMORY, 0, 0, 0, 0], forked.keep()),
        Box::new(move |registers: &mut Registers, space: &FakeSpace| {
            reaped.keep()(registers);
            let bytes = [0, 1].map(|at| u64::from(space.load(MEMORY + at).unwrap()));
            look.0.store(bytes[0] | bytes[1] << 8, Ordering::SeqCst);
            assert_eq!(registers.rax, forked.get());
            set_call(registers, linux::__NR_wait4, [u64::MAX, 0, 0, 0, 0, 0]);
            Exit::Syscall
        }),
        call_after(linux::__NR_exit_group, [0; 6], missing.keep()),
    ];
    let (task, local) = test.prepare(steps);
    test.platform.push([exit_group(7)]);
    test.kernel.reserve_thread().unwrap().go(task.clone(), local);
    ended(&task);
    assert_eq!(status.get(), 7 << 8);
    assert_eq!(missing.get(), Errno::ECHILD.to_rax());
    test.expect_deserted();
}

#[test]
fn init_takes_its_namespace_along() {
    let test = TestKernel::boot();
    let steps = [fork(), fork(), fork(), call(linux::__NR_pause, [0; 6])];
    let (init, local) = test.prepare(steps);
    for _ in 0..3 {
        test.platform.push(sleep_for_ever());
    }
    test.kernel.reserve_thread().unwrap().go(init.clone(), local);
    eventually("four processes live", || test.pids().thread_groups().len() == 4);
    init.thread_group().kill();
    assert_eq!(ended(&init), ExitStatus::Signaled { signal: Signal::KILL, core: false });
    test.expect_deserted();
}

#[test]
fn init_is_safe_from_its_own_namespace_without_a_handler() {
    let test = TestKernel::boot();
    let init = test.spawn(sleep_for_ever());
    let group = init.thread_group();
    for signal in [Signal::TERM, Signal::KILL, Signal::STOP] {
        group.send_signal_from(SigInfo::kill(signal, 2, 0), Origin::Inside).unwrap();
    }
    group.send_signal_from(SigInfo::kill(Signal::TERM, 0, 0), Origin::Outside).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert!(!group.has_exited() && !group.is_stopped());
    group.send_signal_from(SigInfo::kill(Signal::KILL, 0, 0), Origin::Outside).unwrap();
    ended(&init);
    test.expect_deserted();
}

#[test]
fn pids_limit_refuses_the_next_task_and_recovers() {
    let test = TestKernel::boot();
    test.cgroup.set_pids_max(2);
    let (second, third) = (Seen::default(), Seen::default());
    let steps = [
        fork(),
        call_after(linux::__NR_clone, [SIGCHLD, 0, 0, 0, 0, 0], second.keep()),
        call_after(linux::__NR_exit_group, [0; 6], third.keep()),
    ];
    let (init, local) = test.prepare(steps);
    test.platform.push(sleep_for_ever());
    test.kernel.reserve_thread().unwrap().go(init.clone(), local);
    ended(&init);
    assert_eq!((second.get(), third.get()), (2, Errno::EAGAIN.to_rax()));
    test.expect_deserted();
}

/// A handler for `SIGUSR1` at this address, with these flags.
fn handle(task: &Task, flags: u32) {
    let action = Action {
        disposition: Disposition::Handler(0x50_0000),
        flags: u64::from(flags | linux::SA_RESTORER | linux::SA_SIGINFO),
        restorer: 0x60_0000,
        mask: SignalSet::of(&[Signal::USR2]),
    };
    task.thread_group().handlers().set(Signal::USR1, action);
}

#[test]
fn handler_runs_on_a_frame_and_sigreturn_restores_everything() {
    let test = TestKernel::boot();
    let before = Registers {
        rax: 1,
        rbx: 2,
        rcx: 3,
        rdx: 4,
        rsi: 5,
        rdi: 6,
        rbp: 7,
        r8: 8,
        r9: 9,
        r10: 10,
        r11: 11,
        r12: 12,
        r13: 13,
        r14: 14,
        r15: 15,
        rip: 0x40_1234,
        rsp: MEMORY + 0x8008,
        rflags: 0x246,
        ..Registers::default()
    };
    let steps: Vec<Step> = vec![
        Box::new(move |registers: &mut Registers, _: &FakeSpace| {
            // In the handler.
            assert_eq!((registers.rip, registers.rdi), (0x50_0000, 10));
            assert_eq!(registers.rsp % 16, 8, "as after a call");
            assert!(registers.rsp < before.rsp - 128, "below the red zone");
            assert_eq!(registers.rsi, registers.rdx + 304);
            // Its `ret` pops the restorer's address.
            registers.rsp += 8;
            *registers = Registers { rbx: 99, r12: 99, ..*registers };
            set_call(registers, linux::__NR_rt_sigreturn, [0; 6]);
            Exit::Syscall
        }),
        Box::new(move |registers: &mut Registers, _: &FakeSpace| {
            assert_eq!(*registers, before);
            set_call(registers, linux::__NR_exit_group, [3, 0, 0, 0, 0, 0]);
            Exit::Syscall
        }),
    ];
    let (task, mut local) = test.prepare(steps);
    handle(&task, 0);
    local.registers = before;
    task.thread_group().send_signal(SigInfo::kill(Signal::USR1, 1, 0));
    test.kernel.reserve_thread().unwrap().go(task.clone(), local);
    assert_eq!(ended(&task), ExitStatus::Exited(3));
    assert_eq!(task.blocked_signals(), SignalSet::EMPTY);
    test.expect_deserted();
}

#[test]
fn privileged_flags_and_selectors_in_a_frame_have_no_effect() {
    // sigcontext starts 8 + 40 bytes into the frame; rflags is its 18th word, the selectors the 19th.
    let patch = |offset: u64, byte: u8| -> Vec<Step> {
        vec![
            Box::new(move |registers: &mut Registers, space: &FakeSpace| {
                space.store(registers.rsp + 48 + offset, byte).unwrap();
                registers.rsp += 8;
                set_call(registers, linux::__NR_rt_sigreturn, [0; 6]);
                Exit::Syscall
            }),
            Box::new(move |registers: &mut Registers, _: &FakeSpace| {
                // IOPL, IF, VM and the like cannot be changed.
                assert_eq!(registers.rflags & !0x5_0dd5, 0x202);
                set_call(registers, linux::__NR_exit_group, [0; 6]);
                Exit::Syscall
            }),
        ]
    };
    for (offset, byte, end) in [
        (17 * 8 + 1, 0xff, ExitStatus::Exited(0)),
        (18 * 8, 0x10, ExitStatus::Signaled { signal: Signal::SEGV, core: false }),
        (16 * 8 + 7, 0x80, ExitStatus::Signaled { signal: Signal::SEGV, core: false }),
    ] {
        let test = TestKernel::boot();
        let (task, local) = test.prepare(patch(offset, byte));
        handle(&task, 0);
        task.thread_group().send_signal(SigInfo::kill(Signal::USR1, 1, 0));
        test.kernel.reserve_thread().unwrap().go(task.clone(), local);
        assert_eq!(ended(&task), end, "byte {byte:#x} at {offset}");
        test.expect_deserted();
    }
}

/// What a blocked `call` returns, or its number if it is made again, when a handler with `flags` interrupts it.
fn interrupted(number: u32, args: [u64; 6], flags: u32) -> u64 {
    let test = TestKernel::boot();
    let seen = Seen::default();
    let keep = seen.clone();
    let steps: Vec<Step> = vec![
        call(number, args),
        Box::new(move |registers: &mut Registers, space: &FakeSpace| {
            // rax in the frame: the 14th word of the sigcontext.
            let bytes: Vec<u8> =
                (0..8).map(|at| space.load(registers.rsp + 48 + 13 * 8 + at).unwrap()).collect();
            let rax = u64::from_le_bytes(bytes.try_into().unwrap());
            keep.0.store(rax, Ordering::SeqCst);
            set_call(registers, linux::__NR_exit_group, [0; 6]);
            Exit::Syscall
        }),
    ];
    let (task, local) = test.prepare(steps);
    handle(&task, flags);
    test.kernel.reserve_thread().unwrap().go(task.clone(), local);
    std::thread::sleep(Duration::from_millis(20));
    task.thread_group().send_signal(SigInfo::kill(Signal::USR1, 1, 0));
    ended(&task);
    seen.get()
}

#[test]
fn restart_rules() {
    let futex = |flags| interrupted(linux::__NR_futex, [MEMORY, 0, 0, 0, 0, 0], flags);
    assert_eq!(futex(0), Errno::EINTR.to_rax());
    assert_eq!(futex(linux::SA_RESTART), u64::from(linux::__NR_futex));
    // pause is never made again once a handler has run.
    assert_eq!(interrupted(linux::__NR_pause, [0; 6], linux::SA_RESTART), Errno::EINTR.to_rax());
}

#[test]
fn stop_continue_and_kill() {
    let test = TestKernel::boot();
    let init = test.spawn(sleep_for_ever());
    let child = test.spawn(sleep_for_ever());
    let group = child.thread_group().clone();
    for _ in 0..20 {
        group.send_signal(SigInfo::kernel(Signal::STOP));
        eventually("it stops", || group.is_stopped());
        group.send_signal(SigInfo::kernel(Signal::CONT));
        eventually("it goes on", || !group.is_stopped());
    }
    group.send_signal(SigInfo::kernel(Signal::STOP));
    eventually("it stops", || group.is_stopped());
    group.kill();
    ended(&child);
    init.thread_group().kill();
    test.expect_deserted();
}

#[test]
fn a_paused_task_stands_still_and_can_be_killed() {
    let test = TestKernel::boot();
    let task = test.spawn(sleep_for_ever());
    std::thread::sleep(Duration::from_millis(10));
    test.cgroup.set_frozen(true);
    task.kick(Work::FREEZE);
    assert!(test.cgroup.wait_standing(Instant::now() + Duration::from_secs(5), || 1));
    task.thread_group().kill();
    ended(&task);
    test.expect_deserted();
}

/// How long `call` blocks when the container is paused and resumed while it does.
fn across_a_pause(number: u32, args: [u64; 6], result: u64) -> Duration {
    let test = TestKernel::boot();
    let look = move |registers: &Registers| assert_eq!(registers.rax, result, "call {number}");
    let (task, local) = test.prepare([call(number, args), call_after(linux::__NR_exit_group, [0; 6], look)]);
    task.mm().copy_out(MEMORY, &[0i64, 120_000_000]).unwrap();
    let started = Instant::now();
    test.kernel.reserve_thread().unwrap().go(task.clone(), local);
    std::thread::sleep(Duration::from_millis(20));
    for _ in 0..3 {
        test.cgroup.set_frozen(true);
        task.kick(Work::FREEZE);
        // On a slow machine it may have ended by now.
        let tasks = || u64::from(!task.is_exiting());
        assert!(test.cgroup.wait_standing(Instant::now() + Duration::from_secs(5), tasks));
        test.cgroup.set_frozen(false);
        task.waiter().notify();
        std::thread::sleep(Duration::from_millis(5));
    }
    ended(&task);
    started.elapsed()
}

#[test]
fn a_pause_does_not_end_sleeps() {
    let select = [0, 0, 0, 0, MEMORY, 0];
    for (number, args, result) in [
        (linux::__NR_nanosleep, [MEMORY, 0, 0, 0, 0, 0], 0),
        (linux::__NR_clock_nanosleep, [1, 0, MEMORY, 0, 0, 0], 0),
        (linux::__NR_poll, [0, 0, 120, 0, 0, 0], 0),
        (linux::__NR_pselect6, select, 0),
        (linux::__NR_rt_sigtimedwait, [MEMORY + 64, 0, MEMORY, 8, 0, 0], Errno::EAGAIN.to_rax()),
    ] {
        let took = across_a_pause(number, args, result);
        assert!(took >= Duration::from_millis(119), "call {number} ended after {took:?}");
        assert!(took < Duration::from_secs(5), "call {number} took {took:?}");
    }
}

#[test]
fn two_hundred_children_in_turn_leave_nothing() {
    let test = TestKernel::boot();
    let steps: Vec<Step> = (0..200).flat_map(|_| [fork(), wait_any()]).chain([exit_group(0)]).collect();
    let (task, local) = test.prepare(steps);
    for _ in 0..200 {
        test.platform.push([exit_group(1)]);
    }
    test.kernel.reserve_thread().unwrap().go(task.clone(), local);
    assert_eq!(ended(&task), ExitStatus::Exited(0));
    test.expect_deserted();
    assert_eq!(test.kernel.futexes().waiters(), 0);
}
