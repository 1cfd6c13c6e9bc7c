use std::sync::Arc;
use std::thread;

use super::splice::{move_between, tee};
use super::*;
use crate::fs::anonymous::AnonymousInode;
use crate::io::{KernelDst, KernelSrc};
use crate::wait::{WaitOutcome, Waiter};

fn pair(flags: OpenFlags) -> (Arc<File>, Arc<File>) {
    let (reader, writer) = Pipe::pair(1);
    (
        AnonymousInode::detached(Arc::new(reader), flags),
        AnonymousInode::detached(Arc::new(writer), flags | OpenFlags::WRONLY),
    )
}

fn write(file: &File, data: &[u8]) -> SysResult<usize> {
    file.write(&mut KernelSrc::new(data))
}

fn read(file: &File, len: usize) -> SysResult<Vec<u8>> {
    let mut buf = vec![0; len];
    let mut dst = KernelDst::new(&mut buf);
    let count = file.read(&mut dst)?;
    buf.truncate(count);
    Ok(buf)
}

fn pipe_of(file: &File) -> &Arc<Pipe> {
    file.ops_as::<PipeEnd>().unwrap().pipe()
}

/// Blocking write and read as the file calls do them.
fn write_all(file: &File, mut data: &[u8]) {
    let waiter = Waiter::new();
    let _registration = file.ops().wait_queue().unwrap().register(PollEvents::WRITABLE, waiter.clone());
    while !data.is_empty() {
        waiter.arm();
        match write(file, data) {
            Ok(count) => data = &data[count..],
            Err(Errno::EAGAIN) => assert_eq!(waiter.wait(None), WaitOutcome::Notified),
            Err(error) => panic!("{error}"),
        }
    }
}

fn read_some(file: &File, len: usize) -> Vec<u8> {
    let waiter = Waiter::new();
    let _registration = file.ops().wait_queue().unwrap().register(PollEvents::READABLE, waiter.clone());
    loop {
        waiter.arm();
        match read(file, len) {
            Err(Errno::EAGAIN) => assert_eq!(waiter.wait(None), WaitOutcome::Notified),
            other => return other.unwrap(),
        }
    }
}

#[test]
fn readiness_and_errors_follow_the_other_end() {
    let (reader, writer) = pair(OpenFlags::empty());
    assert_eq!(reader.poll(), PollEvents::empty());
    assert_eq!(writer.poll(), PollEvents::WRITABLE);
    assert_eq!(read(&reader, 1), Err(Errno::EAGAIN));
    assert_eq!(write(&writer, b"abc"), Ok(3));
    assert_eq!(reader.poll(), PollEvents::READABLE);
    assert_eq!(read(&writer, 1), Err(Errno::EBADF));
    drop(writer);
    assert_eq!(reader.poll(), PollEvents::READABLE | PollEvents::HUP);
    assert_eq!(read(&reader, 10).unwrap(), b"abc");
    assert_eq!(reader.poll(), PollEvents::HUP);
    assert_eq!(read(&reader, 10).unwrap(), b"");

    let (reader, writer) = pair(OpenFlags::empty());
    drop(reader);
    assert_eq!(writer.poll(), PollEvents::WRITABLE | PollEvents::ERR);
    assert_eq!(write(&writer, b""), Ok(0));
    assert_eq!(write(&writer, b"x"), Err(Errno::EPIPE));
}

#[test]
fn capacity_and_atomicity() {
    let (reader, writer) = pair(OpenFlags::NONBLOCK);
    assert_eq!(write(&writer, &[1; 100_000]), Ok(65536));
    assert_eq!(writer.poll(), PollEvents::empty());
    assert_eq!(write(&writer, b"x"), Err(Errno::EAGAIN));
    assert_eq!(read(&reader, 4095).unwrap().len(), 4095);
    assert_eq!(writer.poll(), PollEvents::empty());
    assert_eq!(write(&writer, &[2; 4096]), Err(Errno::EAGAIN), "must not be split");
    assert_eq!(read(&reader, 1).unwrap().len(), 1);
    assert_eq!(writer.poll(), PollEvents::WRITABLE);
    assert_eq!(write(&writer, &[2; 4096]), Ok(4096));

    let root = Credentials::root();
    let user = Credentials::new(1000, 1000, vec![], Capability::empty());
    let pipe = pipe_of(&reader);
    assert_eq!(pipe.capacity(), 65536);
    assert_eq!(pipe.set_capacity(4096, &user), Err(Errno::EBUSY));
    assert_eq!(pipe.set_capacity(65537, &user), Ok(131_072));
    assert_eq!(pipe.set_capacity((1 << 20) + 1, &user), Err(Errno::EPERM));
    assert_eq!(pipe.set_capacity((1 << 20) + 1, &root), Ok(1 << 21));
    assert_eq!(pipe.set_capacity((1 << 31) + 1, &root), Err(Errno::EINVAL));
    read(&reader, 1 << 20).unwrap();
    assert_eq!(pipe.set_capacity(0, &user), Ok(4096));
    assert_eq!(write(&writer, b"x"), Ok(1));
    assert_eq!(writer.poll(), PollEvents::empty(), "the only slot is taken");
}

#[test]
fn packets_keep_their_bounds_and_lose_their_rest() {
    let (reader, writer) = pair(OpenFlags::NONBLOCK);
    let direct = OpenFlags::NONBLOCK | OpenFlags::DIRECT;
    writer.set_status_flags(direct);
    write(&writer, b"first").unwrap();
    write(&writer, b"second").unwrap();
    assert_eq!(write(&writer, &[7; 5000]), Ok(5000));
    writer.set_status_flags(OpenFlags::NONBLOCK);
    write(&writer, b"tail").unwrap();
    assert_eq!(read(&reader, 3).unwrap(), b"fir");
    assert_eq!(read(&reader, 100).unwrap(), b"second");
    assert_eq!(read(&reader, 8192).unwrap().len(), 4096);
    assert_eq!(read(&reader, 8192).unwrap().len(), 904);
    assert_eq!(read(&reader, 2).unwrap(), b"ta");
    assert_eq!(read(&reader, 9).unwrap(), b"il");
    write(&writer, b"stream").unwrap();
    writer.set_status_flags(direct);
    write(&writer, b" joined").unwrap();
    assert_eq!(read(&reader, 100).unwrap(), b"stream joined", "as on Linux, where a short write goes before");
    let mut packets = 0;
    while write(&writer, b"p").is_ok() {
        packets += 1;
    }
    assert_eq!(packets, 16, "a packet takes a slot");
}

/// Takes or gives `left` bytes and faults then.
struct Edge {
    left: usize,
    len: usize,
}

impl IoDst for Edge {
    fn remaining(&self) -> usize {
        self.len
    }

    fn put(&mut self, data: &[u8]) -> SysResult<usize> {
        self.put_zeros(data.len())
    }

    fn put_zeros(&mut self, len: usize) -> SysResult<usize> {
        let put = len.min(self.left);
        self.left -= put;
        if put == 0 { Err(Errno::EFAULT) } else { Ok(put) }
    }

    fn read_from_host(
        &mut self,
        _: std::os::fd::BorrowedFd<'_>,
        _: Option<u64>,
        _: usize,
    ) -> SysResult<usize> {
        unreachable!()
    }

    fn put_from_arena(&mut self, _: crate::platform::Gpa, _: usize) -> SysResult<usize> {
        unreachable!()
    }
}

impl IoSrc for Edge {
    fn remaining(&self) -> usize {
        self.len
    }

    fn take(&mut self, buf: &mut [u8]) -> SysResult<usize> {
        self.put_zeros(buf.len())
    }

    fn write_to_host(
        &mut self,
        _: std::os::fd::BorrowedFd<'_>,
        _: Option<u64>,
        _: usize,
    ) -> SysResult<usize> {
        unreachable!()
    }

    fn take_to_arena(&mut self, _: crate::platform::Gpa, _: usize) -> SysResult<usize> {
        unreachable!()
    }
}

/// What a host with Linux 6.18 does.
#[test]
fn faults_move_whole_slots() {
    let (reader, writer) = pair(OpenFlags::NONBLOCK);
    let pipe = pipe_of(&reader);
    let write_until = |left, len| writer.write(&mut Edge { left, len });
    let read_until = |left, len| reader.read(&mut Edge { left, len });
    assert_eq!(write_until(100, 200), Err(Errno::EFAULT));
    assert_eq!(pipe.available(), 0);
    write(&writer, &[1; 100]).unwrap();
    assert_eq!(write_until(100, 200), Err(Errno::EFAULT));
    assert_eq!(pipe.available(), 100);
    assert_eq!(read_until(50, 200), Err(Errno::EFAULT));
    assert_eq!(read(&reader, 200).unwrap(), [1; 100]);
    assert_eq!(write_until(10_000, 12_288), Ok(8192));
    assert_eq!(read_until(8191, 12_288), Ok(4096));
    assert_eq!(read_until(4095, 12_288), Err(Errno::EFAULT));
    assert_eq!(read_until(4096, 12_288), Ok(4096));
    assert_eq!(pipe.available(), 0);
    let written: Vec<_> = std::iter::from_fn(|| write(&writer, &[0; 3000]).ok()).collect();
    assert_eq!(written.len(), 16, "two such writes do not fit into a page");
    assert_eq!(writer.poll(), PollEvents::empty());
    assert_eq!(write(&writer, &[0; 1000]), Ok(1000), "but a shorter one behind the last does");
    assert_eq!(write(&writer, &[0; 1000]), Err(Errno::EAGAIN));
}

#[test]
fn writes_of_pipe_buf_stay_whole_among_threads() {
    const WRITERS: u8 = 4;
    const ROUNDS: usize = 300;
    let (reader, writer) = pair(OpenFlags::empty());
    let threads: Vec<_> = (0..WRITERS)
        .map(|id| {
            let writer = writer.clone();
            thread::spawn(move || {
                for round in 0..ROUNDS {
                    write_all(&writer, &vec![id; if round % 3 == 0 { PIPE_BUF } else { 1000 }]);
                }
            })
        })
        .collect();
    drop(writer);
    let mut data = Vec::new();
    loop {
        let chunk = read_some(&reader, 3001);
        if chunk.is_empty() {
            break;
        }
        data.extend(chunk);
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let mut counts = [0usize; WRITERS as usize];
    let mut rest = &data[..];
    while let Some(&id) = rest.first() {
        let nth = counts[id as usize];
        counts[id as usize] += 1;
        let len = if nth % 3 == 0 { PIPE_BUF } else { 1000 };
        assert!(rest[..len].iter().all(|&byte| byte == id), "a write was torn");
        rest = &rest[len..];
    }
    assert_eq!(counts, [ROUNDS; WRITERS as usize]);
}

#[test]
fn fifo_open_rules() {
    let pipe = Pipe::new(1);
    assert_eq!(pipe.open(OpenFlags::WRONLY | OpenFlags::NONBLOCK).err(), Some(Errno::ENXIO));
    let (reader, wait) = pipe.open(OpenFlags::NONBLOCK).unwrap();
    assert!(wait.is_none());
    let reader = AnonymousInode::detached(Arc::new(reader), OpenFlags::NONBLOCK);
    assert_eq!(reader.poll(), PollEvents::empty(), "no hang-up before there was a writer");
    assert_eq!(read(&reader, 1).unwrap(), b"", "but end of file");
    let (writer, wait) = pipe.open(OpenFlags::WRONLY).unwrap();
    assert!(wait.is_none());
    assert_eq!(reader.poll(), PollEvents::empty());
    drop(writer);
    assert_eq!(reader.poll(), PollEvents::HUP);
    drop(reader);

    let (_writer, wait) = pipe.open(OpenFlags::WRONLY).unwrap();
    let wait = wait.expect("waits for a reader");
    assert!(!wait.is_over(&pipe));
    let waiter = Waiter::new();
    let _registration = pipe.queue.register(PollEvents::RDBAND, waiter.clone());
    let (reader, reader_wait) = pipe.open(OpenFlags::empty()).unwrap();
    assert!(reader_wait.is_none());
    drop(reader);
    assert_eq!(waiter.wait(None), WaitOutcome::Notified);
    assert!(wait.is_over(&pipe), "a reader that came and went counts");
    let (_both, wait) = pipe.open(OpenFlags::RDWR).unwrap();
    assert!(wait.is_none());
}

#[test]
fn data_of_a_fifo_goes_with_its_last_user() {
    let pipe = Pipe::new(1);
    let (end, _) = pipe.open(OpenFlags::RDWR).unwrap();
    let file = AnonymousInode::detached(Arc::new(end), OpenFlags::RDWR);
    write(&file, b"old").unwrap();
    drop(file);
    assert_eq!(pipe.available(), 0);
}

#[test]
fn splice_moves_and_tee_copies() {
    let (a_read, a_write) = pair(OpenFlags::NONBLOCK);
    let (b_read, b_write) = pair(OpenFlags::NONBLOCK);
    let (a, b) = (pipe_of(&a_read), pipe_of(&b_read));
    assert_eq!(tee(a, a, 1), Err(Errno::EINVAL));
    assert_eq!(tee(a, b, 10), Err(Errno::EAGAIN));
    write(&a_write, b"hello world").unwrap();
    assert_eq!(tee(a, b, 5), Ok(5));
    assert_eq!(move_between(a, b, 6), Ok(6));
    assert_eq!(read(&b_read, 100).unwrap(), b"hellohello ");
    assert_eq!(read(&a_read, 100).unwrap(), b"world");

    let mut out = Vec::new();
    write(&a_write, b"0123456789").unwrap();
    let taken = a.splice_out(8, |run| {
        out.extend_from_slice(&run[..3.min(run.len())]);
        Ok(3.min(run.len()))
    });
    assert_eq!((taken, out), (Ok(3), b"012".to_vec()));
    assert_eq!(a.splice_out(8, |_| Err(Errno::ENOSPC)), Err(Errno::ENOSPC));
    assert_eq!(read(&a_read, 100).unwrap(), b"3456789");
    assert_eq!(a.splice_in(4, |buf| Ok(buf.len())), Ok(4));
    assert_eq!(a.available(), 4);
    assert_eq!(a.splice_in(1 << 30, |buf| Ok(buf.len())), Ok(61440));
    assert_eq!(a.splice_in(1, |_| panic!("must not read when full")), Err(Errno::EAGAIN));
    drop(a_write);
    drop(b_write);
    read(&a_read, 1 << 20).unwrap();
    assert_eq!(move_between(a, b, 1), Ok(0));
    drop(b_read.clone());
}
