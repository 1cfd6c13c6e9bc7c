use std::sync::Arc;

use super::*;
use crate::fs::anonymous::AnonymousInode;
use crate::fs::eventfd::{EventFd, Take};
use crate::fs::pipe::Pipe;
use crate::io::{KernelDst, KernelSrc};
use crate::vfs::OpenFlags;
use crate::wait::Waiter;

fn epoll() -> Arc<File> {
    AnonymousInode::detached(Arc::new(Epoll::new()), OpenFlags::RDWR)
}

fn ops(file: &File) -> &Epoll {
    file.ops_as().unwrap()
}

fn pipe() -> (Arc<File>, Arc<File>) {
    let (reader, writer) = Pipe::pair(1);
    (
        AnonymousInode::detached(Arc::new(reader), OpenFlags::empty()),
        AnonymousInode::detached(Arc::new(writer), OpenFlags::WRONLY),
    )
}

fn put(file: &File, data: &[u8]) {
    assert_eq!(file.write(&mut KernelSrc::new(data)), Ok(data.len()));
}

fn get(file: &File, len: usize) {
    assert_eq!(file.read(&mut KernelDst::new(&mut vec![0; len])), Ok(len));
}

fn interest(events: PollEvents, how: Interest) -> Interest {
    Interest::from_bits_retain(events.bits()) | how
}

const IN: PollEvents = PollEvents::IN;

fn level() -> Interest {
    interest(IN, Interest::empty())
}

fn event(events: PollEvents, data: u64) -> Event {
    Event { events, data }
}

#[test]
fn level_reports_until_drained() {
    let ep = epoll();
    let (reader, writer) = pipe();
    Epoll::add(&ep, 3, &reader, level(), 7).unwrap();
    assert_eq!(Epoll::add(&ep, 3, &reader, level(), 7), Err(Errno::EEXIST));
    assert_eq!(ep.poll(), PollEvents::empty());
    assert_eq!(ops(&ep).collect(8), []);
    put(&writer, b"ab");
    assert_eq!(ep.poll(), PollEvents::READABLE);
    get(&reader, 1);
    assert_eq!(ops(&ep).collect(8), [event(IN, 7)]);
    assert_eq!(ops(&ep).collect(8), [event(IN, 7)]);
    get(&reader, 1);
    assert_eq!(ops(&ep).collect(8), []);
    drop(writer);
    assert_eq!(ops(&ep).collect(8), [event(PollEvents::HUP, 7)]);
}

#[test]
fn edge_reports_each_change_once() {
    let ep = epoll();
    let (reader, writer) = pipe();
    put(&writer, b"a");
    Epoll::add(&ep, 3, &reader, interest(IN, Interest::EDGE), 1).unwrap();
    assert_eq!(ops(&ep).collect(8), [event(IN, 1)], "readiness at ADD counts");
    assert_eq!(ops(&ep).collect(8), []);
    put(&writer, b"b");
    assert_eq!(ops(&ep).collect(8), [event(IN, 1)], "new data is a change even if old data is there");
    assert_eq!(ops(&ep).collect(8), []);
    get(&reader, 1);
    assert_eq!(ops(&ep).collect(8), []);
    ops(&ep).modify(3, &reader, interest(IN, Interest::EDGE), 2).unwrap();
    assert_eq!(ops(&ep).collect(8), [event(IN, 2)], "MOD looks again");
}

#[test]
fn oneshot_waits_for_mod() {
    let ep = epoll();
    let (reader, writer) = pipe();
    Epoll::add(&ep, 3, &reader, interest(IN, Interest::ONESHOT), 1).unwrap();
    put(&writer, b"a");
    assert_eq!(ops(&ep).collect(8), [event(IN, 1)]);
    put(&writer, b"b");
    assert_eq!(ops(&ep).collect(8), []);
    drop(writer);
    assert_eq!(ops(&ep).collect(8), [], "not even a hang-up");
    ops(&ep).modify(3, &reader, interest(IN, Interest::ONESHOT), 1).unwrap();
    assert_eq!(ops(&ep).collect(8), [event(IN | PollEvents::HUP, 1)]);
}

#[test]
fn same_file_under_two_numbers_and_removal() {
    let ep = epoll();
    let (reader, writer) = pipe();
    Epoll::add(&ep, 3, &reader, level(), 3).unwrap();
    Epoll::add(&ep, 4, &reader, level(), 4).unwrap();
    put(&writer, b"a");
    assert_eq!(ops(&ep).collect(8), [event(IN, 3), event(IN, 4)]);
    Epoll::remove(&ep, 3, &reader).unwrap();
    assert_eq!(Epoll::remove(&ep, 3, &reader), Err(Errno::ENOENT));
    assert_eq!(ops(&ep).modify(3, &reader, level(), 0), Err(Errno::ENOENT));
    assert_eq!(ops(&ep).collect(8), [event(IN, 4)]);
}

#[test]
fn closed_description_vanishes() {
    let ep = epoll();
    let (reader, writer) = pipe();
    Epoll::add(&ep, 3, &reader, level(), 3).unwrap();
    put(&writer, b"a");
    drop(reader);
    assert_eq!(ep.poll(), PollEvents::empty());
    assert_eq!(ops(&ep).collect(8), []);
    let (again, writer) = pipe();
    Epoll::add(&ep, 3, &again, level(), 4).unwrap();
    assert_eq!(ops(&ep).items.lock().len(), 1, "the dead item is gone");
    put(&writer, b"x");
    assert_eq!(ops(&ep).collect(8), [event(IN, 4)]);
}

#[test]
fn busy_descriptors_take_turns() {
    let ep = epoll();
    let files: Vec<_> = (0..4)
        .map(|_| AnonymousInode::detached(Arc::new(EventFd::new(1, Take::All)), OpenFlags::RDWR))
        .collect();
    for (fd, file) in files.iter().enumerate() {
        Epoll::add(&ep, fd as u32, file, level(), fd as u64).unwrap();
    }
    let seen: Vec<u64> = (0..8).map(|_| ops(&ep).collect(1)[0].data).collect();
    assert_eq!(seen, [0, 1, 2, 3, 0, 1, 2, 3]);
}

#[test]
fn nested_epolls_wake_and_may_not_loop() {
    let chain: Vec<_> = (0..6).map(|_| epoll()).collect();
    for pair in chain[..5].windows(2) {
        Epoll::add(&pair[1], 1, &pair[0], level(), 0).unwrap();
    }
    assert_eq!(Epoll::add(&chain[5], 1, &chain[4], level(), 0), Err(Errno::ELOOP), "too deep");
    assert_eq!(Epoll::add(&chain[0], 1, &chain[4], level(), 0), Err(Errno::ELOOP), "a cycle");
    assert_eq!(Epoll::add(&chain[0], 1, &chain[0], level(), 0), Err(Errno::EINVAL));
    let (reader, writer) = pipe();
    Epoll::add(&chain[0], 9, &reader, level(), 5).unwrap();
    let waiter = Waiter::new();
    let _registration = chain[4].ops().wait_queue().unwrap().register(IN, waiter.clone());
    assert_eq!(ops(&chain[4]).collect(1), []);
    put(&writer, b"a");
    assert_eq!(waiter.wait(None), crate::wait::WaitOutcome::Notified);
    assert_eq!(ops(&chain[4]).collect(1), [event(IN, 0)]);
    get(&reader, 1);
    assert_eq!(ops(&chain[4]).collect(1), []);
    Epoll::remove(&chain[1], 1, &chain[0]).unwrap();
    Epoll::add(&chain[5], 1, &chain[4], level(), 0).unwrap();
}

#[test]
fn exclusive_rules() {
    let ep = epoll();
    let (reader, _writer) = pipe();
    let exclusive = interest(IN, Interest::EXCLUSIVE);
    assert_eq!(Epoll::add(&ep, 1, &epoll(), exclusive, 0), Err(Errno::EINVAL));
    assert_eq!(Epoll::add(&ep, 1, &reader, exclusive | Interest::ONESHOT, 0), Err(Errno::EINVAL));
    assert_eq!(
        Epoll::add(&ep, 1, &reader, interest(PollEvents::RDNORM, Interest::EXCLUSIVE), 0),
        Err(Errno::EINVAL)
    );
    Epoll::add(&ep, 1, &reader, exclusive | Interest::EDGE, 0).unwrap();
    assert_eq!(ops(&ep).modify(1, &reader, exclusive, 0), Err(Errno::EINVAL));
    assert_eq!(ops(&ep).modify(1, &reader, level(), 0), Err(Errno::EINVAL));
}

#[test]
fn concurrent_writers_and_a_closing_epoll_lose_nothing() {
    for _ in 0..200 {
        let ep = epoll();
        let file = AnonymousInode::detached(Arc::new(EventFd::new(0, Take::All)), OpenFlags::RDWR);
        Epoll::add(&ep, 1, &file, interest(IN, Interest::EDGE), 1).unwrap();
        let writer = file.clone();
        let thread = std::thread::spawn(move || (0..50).for_each(|_| put(&writer, &1u64.to_ne_bytes())));
        let waiter = Waiter::new();
        let registration = ep.ops().wait_queue().unwrap().register(IN, waiter.clone());
        let mut total = 0;
        while total < 50 {
            waiter.arm();
            if ops(&ep).collect(4).is_empty() {
                waiter.wait(None);
                continue;
            }
            let mut buf = [0; 8];
            if file.read(&mut KernelDst::new(&mut buf)).is_ok() {
                total += u64::from_ne_bytes(buf);
            }
        }
        thread.join().unwrap();
        drop(registration);
        let shared = Arc::downgrade(&ops(&ep).shared);
        put(&file, &1u64.to_ne_bytes());
        drop(ep);
        drop(file);
        assert!(shared.upgrade().is_none(), "ready list and items are freed");
    }
}
