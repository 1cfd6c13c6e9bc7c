//! Futexes between host threads that stand for guest threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::{MATCH_ANY, WakeOp, Word};
use crate::errno::Errno;
use crate::kernel::testing::{MEMORY, TestKernel, eventually, sleep_for_ever};
use crate::mm::FutexScope;
use crate::task::Task;

const WORD: Word = Word { addr: MEMORY, scope: FutexScope::Private };
const OTHER: Word = Word { addr: MEMORY + 64, scope: FutexScope::Private };

/// Waits on a word on a thread of its own.
fn wait_in_background(
    task: &Arc<Task>,
    word: Word,
    deadline: Option<Instant>,
) -> std::thread::JoinHandle<Result<(), Errno>> {
    let task = task.clone();
    std::thread::spawn(move || task.kernel().clone().futexes().wait(&task, word, 0, MATCH_ANY, deadline))
}

#[test]
fn wait_compares_times_out_and_is_woken() {
    let test = TestKernel::boot();
    let (task, _local) = test.prepare(sleep_for_ever());
    let futexes = test.kernel.futexes();
    let mm = task.mm();
    assert_eq!(futexes.wait(&task, WORD, 1, MATCH_ANY, None), Err(Errno::EAGAIN));
    let soon = Some(Instant::now() + Duration::from_millis(5));
    assert_eq!(futexes.wait(&task, WORD, 0, MATCH_ANY, soon), Err(Errno::ETIMEDOUT));
    assert_eq!(futexes.wait(&task, WORD, 0, 0, None), Err(Errno::EINVAL));
    assert_eq!(futexes.waiters(), 0);
    let waiter = wait_in_background(&task, WORD, None);
    eventually("somebody waits", || futexes.waiters() == 1);
    assert_eq!(futexes.wake(&mm, OTHER, 1, MATCH_ANY), Ok(0));
    assert_eq!(futexes.wake(&mm, WORD, 1, MATCH_ANY), Ok(1));
    assert_eq!(waiter.join().unwrap(), Ok(()));
}

#[test]
fn requeued_waiter_is_woken_at_its_new_place_and_can_time_out_there() {
    let test = TestKernel::boot();
    let (task, _local) = test.prepare(sleep_for_ever());
    let futexes = test.kernel.futexes();
    let mm = task.mm();
    let waiter = wait_in_background(&task, WORD, None);
    eventually("somebody waits", || futexes.waiters() == 1);
    assert_eq!(futexes.requeue(&mm, (WORD, OTHER), (0, 1), Some(1)), Err(Errno::EAGAIN));
    assert_eq!(futexes.requeue(&mm, (WORD, OTHER), (0, 1), Some(0)), Ok((0, 1)));
    assert_eq!(futexes.wake(&mm, WORD, 1, MATCH_ANY), Ok(0));
    assert_eq!(futexes.wake(&mm, OTHER, 1, MATCH_ANY), Ok(1));
    assert_eq!(waiter.join().unwrap(), Ok(()));
    let waiter = wait_in_background(&task, WORD, Some(Instant::now() + Duration::from_millis(100)));
    eventually("somebody waits", || futexes.waiters() == 1);
    assert_eq!(futexes.requeue(&mm, (WORD, OTHER), (0, 1), None), Ok((0, 1)));
    assert_eq!(waiter.join().unwrap(), Err(Errno::ETIMEDOUT));
    assert_eq!(futexes.waiters(), 0);
}

#[test]
fn no_wake_up_is_lost_between_two_threads() {
    const ROUNDS: u32 = 20_000;
    let test = TestKernel::boot();
    let tasks = [test.prepare(sleep_for_ever()).0, test.prepare(sleep_for_ever()).0];
    // Both work on the first one's memory; a task only lends its place to sleep.
    let mm = tasks[0].mm();
    drop(tasks[1].replace_mm(mm.clone()));
    let turns = Arc::new(AtomicU32::new(0));
    let players: Vec<_> = tasks
        .into_iter()
        .zip(0u32..)
        .map(|(task, me)| {
            let (mm, turns) = (mm.clone(), turns.clone());
            std::thread::spawn(move || {
                let kernel = task.kernel().clone();
                for _ in 0..ROUNDS {
                    while mm.load_u32(WORD.addr).unwrap() != me {
                        match kernel.futexes().wait(&task, WORD, 1 - me, MATCH_ANY, None) {
                            Ok(()) | Err(Errno::EAGAIN) => {}
                            Err(errno) => panic!("{errno:?}"),
                        }
                    }
                    turns.fetch_add(1, Ordering::Relaxed);
                    mm.fetch_update_u32(WORD.addr, |_| 1 - me).unwrap();
                    kernel.futexes().wake(&mm, WORD, 1, MATCH_ANY).unwrap();
                }
            })
        })
        .collect();
    players.into_iter().for_each(|player| player.join().unwrap());
    assert_eq!(turns.load(Ordering::Relaxed), 2 * ROUNDS);
}

#[test]
fn wake_op_changes_compares_and_wakes() {
    let test = TestKernel::boot();
    let (task, _local) = test.prepare(sleep_for_ever());
    let (futexes, mm) = (test.kernel.futexes(), task.mm());
    // FUTEX_OP(ADD, 5, EQ, 0)
    let op = WakeOp::decode((1 << 28) | (5 << 12)).unwrap();
    let waiter = wait_in_background(&task, OTHER, None);
    eventually("somebody waits", || futexes.waiters() == 1);
    assert_eq!(futexes.wake_op(&mm, (WORD, OTHER), (1, 1), op), Ok(1));
    assert_eq!(waiter.join().unwrap(), Ok(()));
    assert_eq!(mm.load_u32(OTHER.addr), Ok(5));
    assert_eq!(WakeOp::decode(7 << 28).err(), Some(Errno::ENOSYS));
}
