use std::io::{Read, Seek, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::*;
use crate::io::{KernelDst, KernelSrc};
use crate::wait::{WaitOutcome, Waiter};

fn write(file: &File, data: &[u8]) -> SysResult<usize> {
    file.write(&mut KernelSrc::new(data))
}

fn read(file: &File, len: usize) -> SysResult<Vec<u8>> {
    let mut buf = vec![0; len];
    let count = file.read(&mut KernelDst::new(&mut buf))?;
    buf.truncate(count);
    Ok(buf)
}

fn wait_for(file: &File, events: PollEvents) {
    let waiter = Waiter::new();
    let _registration = file.ops().wait_queue().unwrap().register(events, waiter.clone());
    let limit = Instant::now() + Duration::from_secs(10);
    while !file.poll().intersects(events) {
        assert_eq!(waiter.wait(Some(limit)), WaitOutcome::Notified);
    }
}

fn status_flags(fd: &impl AsFd) -> OFlag {
    OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).unwrap())
}

#[test]
fn pipes_wait_without_blocking_and_shared_flags_stay() {
    for sharing in [Sharing::Ours, Sharing::Shared] {
        let poller = HostPoller::new().unwrap();
        let (host_read, host_write) = nix::unistd::pipe().unwrap();
        let kept = host_read.try_clone().unwrap();
        let reader = open(&poller, host_read, sharing).unwrap();
        assert_eq!(status_flags(&kept).contains(OFlag::O_NONBLOCK), sharing == Sharing::Ours);
        assert_eq!(read(&reader, 10), Err(Errno::EAGAIN));
        assert_eq!(write(&reader, b"x"), Err(Errno::EBADF));
        let mut host_write = std::fs::File::from(host_write);
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            host_write.write_all(b"hello").unwrap();
        });
        wait_for(&reader, PollEvents::IN);
        assert_eq!(read(&reader, 10).unwrap(), b"hello");
        thread.join().unwrap();
        wait_for(&reader, PollEvents::HUP);
        assert_eq!(read(&reader, 10).unwrap(), b"");
    }
}

#[test]
fn full_pipes_say_so_and_broken_ones_too() {
    for sharing in [Sharing::Ours, Sharing::Shared] {
        let poller = HostPoller::new().unwrap();
        let (host_read, host_write) = nix::unistd::pipe().unwrap();
        let writer = open(&poller, host_write, sharing).unwrap();
        let mut total = 0;
        loop {
            match write(&writer, &[1; 10_000]) {
                Ok(count) => total += count,
                Err(error) => break assert_eq!(error, Errno::EAGAIN),
            }
        }
        assert!((60_000..=65536).contains(&total), "{total}");
        let mut host_read = std::fs::File::from(host_read);
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            host_read.read_exact(&mut [0; 20_000]).unwrap();
            host_read
        });
        wait_for(&writer, PollEvents::OUT);
        assert!(write(&writer, &[1; 100]).is_ok());
        drop(thread.join().unwrap());
        assert_eq!(write(&writer, &[1; 100]), Err(Errno::EPIPE));
        assert!(writer.poll().contains(PollEvents::ERR));
    }
}

#[test]
fn sockets_go_both_ways() {
    let poller = HostPoller::new().unwrap();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let file = open(&poller, ours.into(), Sharing::Shared).unwrap();
    assert_eq!(read(&file, 8), Err(Errno::EAGAIN));
    assert_eq!(write(&file, b"ping"), Ok(4));
    let mut buf = [0; 4];
    theirs.read_exact(&mut buf).unwrap();
    theirs.write_all(&buf).unwrap();
    wait_for(&file, PollEvents::IN);
    assert_eq!(read(&file, 8).unwrap(), b"ping");
    drop(theirs);
    assert_eq!(read(&file, 8).unwrap(), b"");
    assert_eq!(write(&file, b"x"), Err(Errno::EPIPE));
}

#[test]
fn regular_files_share_the_hosts_position() {
    let poller = HostPoller::new().unwrap();
    let mut host = tempfile();
    host.write_all(b"0123456789").unwrap();
    host.seek(std::io::SeekFrom::Start(4)).unwrap();
    let file = open(&poller, host.try_clone().unwrap().into(), Sharing::Shared).unwrap();
    assert!(!file.ops().pollable());
    assert_eq!(read(&file, 2).unwrap(), b"45", "starts where the host stands");
    assert_eq!(host.stream_position().unwrap(), 6);
    let mut buf = [0; 2];
    assert_eq!(file.read_at(&mut KernelDst::new(&mut buf), 0), Ok(2));
    assert_eq!((&buf, host.stream_position().unwrap()), (b"01", 6));
    assert_eq!(file.seek(0, Whence::End), Ok(10));
    assert_eq!(write(&file, b"ab"), Ok(2));
    assert_eq!(host.stream_position().unwrap(), 12);
    assert_eq!(file.inode().attr().unwrap().size, 12);
}

#[test]
fn descriptors_of_one_description_go_on_where_the_other_stopped() {
    let poller = HostPoller::new().unwrap();
    // A file of a file system: the host does not lock the position of a memfd, whose writers may lie over each other.
    let mut host = tempfile::tempfile().unwrap();
    let shared = host.try_clone().unwrap();
    let another = || open(&poller, shared.try_clone().unwrap().into(), Sharing::Shared).unwrap();
    let (output, errors) = (another(), another());
    assert_eq!((write(&output, b"one "), write(&errors, b"two ")), (Ok(4), Ok(4)));
    host.write_all(b"three ").unwrap();
    assert_eq!(write(&output, b"four"), Ok(4));
    assert_eq!(output.with_position(|at| *at), 18);
    assert_eq!(errors.seek(-4, Whence::Current), Ok(14));
    errors.with_position(|at| *at -= 6);
    assert_eq!(read(&another(), 64).unwrap(), b"three four");
    let threads = [output, errors].map(|file| {
        std::thread::spawn(move || (0..2000).for_each(|_| assert_eq!(write(&file, b"12345678"), Ok(8))))
    });
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(host.metadata().unwrap().len(), 18 + 2 * 2000 * 8, "no write lies over another");
}

fn tempfile() -> std::fs::File {
    let fd = nix::sys::memfd::memfd_create("hostfile-test", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
    std::fs::File::from(fd)
}

#[test]
fn null_is_always_ready() {
    let poller = HostPoller::new().unwrap();
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
    let file = open(&poller, null.into(), Sharing::Shared).unwrap();
    assert_eq!(write(&file, b"gone"), Ok(4));
    assert_eq!(read(&file, 10).unwrap(), b"");
    assert_eq!(file.ops().anonymous_name().unwrap(), "/dev/null");
    assert!(poller.watches.lock().targets.is_empty());
}

#[test]
fn the_poller_ends_with_its_last_user() {
    let poller = HostPoller::new().unwrap();
    let (host_read, _host_write) = nix::unistd::pipe().unwrap();
    let file = open(&poller, host_read, Sharing::Ours).unwrap();
    assert!(file.ops().wait_queue().is_some());
    assert_eq!(poller.watches.lock().targets.len(), 1);
    drop(file);
    assert!(poller.watches.lock().targets.is_empty());
    let weak = Arc::downgrade(&poller);
    drop(poller);
    let limit = Instant::now() + Duration::from_secs(10);
    while weak.upgrade().is_some() {
        assert!(Instant::now() < limit);
    }
}
