use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::*;
use crate::fs::anonymous::AnonymousInode;
use crate::fs::eventfd::{EventFd, Take};
use crate::fs::pipe::Pipe;
use crate::io::{KernelDst, KernelSrc};
use crate::net::socket::SocketFile;
use crate::task::{Capability, Credentials};
use crate::vfs::OpenFlags;
use crate::wait::{WaitOutcome, Waiter};

fn pair(kind: SocketType) -> [Arc<File>; 2] {
    UnixSocket::connected_pair(kind).map(|socket| SocketFile::detached(socket))
}

fn socket(file: &File) -> Arc<UnixSocket> {
    SocketFile::of(file).unwrap().clone().into_any().downcast().unwrap()
}

fn user() -> Credentials {
    Credentials::new(4242, 4242, vec![], Capability::empty())
}

fn send(file: &File, data: &[u8]) -> SysResult<usize> {
    file.write(&mut KernelSrc::new(data))
}

fn send_files(file: &File, data: &[u8], files: Vec<Arc<File>>) -> SysResult<usize> {
    let mut sent = Sent { rights: Some(Rights::new(files, &user(), 1024)?), identity: None };
    socket(file).transmit(&mut KernelSrc::new(data), None, &mut sent)
}

fn receive(file: &File, len: usize, flags: MsgFlags) -> SysResult<(Vec<u8>, Receipt)> {
    let mut buf = vec![0; len];
    let receipt = socket(file).receive(&mut KernelDst::new(&mut buf), flags)?;
    buf.truncate(receipt.copied);
    Ok((buf, receipt))
}

fn data(file: &File, len: usize) -> SysResult<Vec<u8>> {
    receive(file, len, MsgFlags::empty()).map(|(data, _)| data)
}

const IN: PollEvents = PollEvents::READABLE;
const OUT: PollEvents = PollEvents::WRITABLE;

/// Poll results in the numbers the host shows for `POLLIN | POLLOUT | POLLRDHUP | POLLPRI`.
fn shown(file: &File) -> u32 {
    let asked = PollEvents::IN | PollEvents::OUT | PollEvents::RDHUP | PollEvents::PRI | PollEvents::ALWAYS;
    (file.poll() & asked).bits()
}

fn new(kind: SocketType) -> Arc<File> {
    SocketFile::detached(UnixSocket::new(kind))
}

#[test]
fn unconnected_sockets_answer_like_the_host() {
    let [s, d, q] = [SocketType::Stream, SocketType::Datagram, SocketType::SeqPacket].map(new);
    assert_eq!((shown(&s), shown(&d), shown(&q)), (0x14, 0x4, 0x14));
    for file in [&s, &d, &q] {
        assert_eq!(send(file, b"a"), Err(Errno::ENOTCONN));
    }
    assert_eq!(data(&s, 1), Err(Errno::EINVAL));
    assert_eq!(data(&d, 1), Err(Errno::EAGAIN));
    assert_eq!(data(&q, 1), Err(Errno::ENOTCONN));
    assert_eq!(socket(&s).accept().err(), Some(Errno::EINVAL));
    assert_eq!(socket(&d).accept().err(), Some(Errno::EOPNOTSUPP));
    assert_eq!(socket(&s).peer_address(), Err(Errno::ENOTCONN));
    assert_eq!(socket(&s).local_address(), [1, 0]);
    socket(&s).shutdown(Shutdown::Both).unwrap();
    assert_eq!(shown(&s), 0x2015);
}

#[test]
fn streams_merge_and_end() {
    let [a, b] = pair(SocketType::Stream);
    assert_eq!((a.poll(), b.poll()), (OUT, OUT));
    assert_eq!(data(&b, 1), Err(Errno::EAGAIN));
    send(&a, b"hello ").unwrap();
    send(&a, b"world").unwrap();
    assert_eq!(b.poll(), IN | OUT);
    assert_eq!(receive(&b, 3, MsgFlags::PEEK).unwrap().0, b"hel");
    assert_eq!(socket(&b).readable_bytes(), Ok(11));
    assert_eq!(data(&b, 100).unwrap(), b"hello world");
    send(&b, b"bye").unwrap();
    drop(b);
    assert_eq!(shown(&a), 0x2015, "hung up, with data");
    assert_eq!(data(&a, 100).unwrap(), b"bye");
    assert_eq!(data(&a, 100).unwrap(), b"");
    assert_eq!(send(&a, b"x"), Err(Errno::EPIPE));
}

#[test]
fn unread_data_resets_the_sender() {
    let [a, b] = pair(SocketType::Stream);
    send(&a, b"unread").unwrap();
    drop(b);
    assert_eq!(shown(&a), 0x201d);
    assert_eq!(data(&a, 1), Err(Errno::ECONNRESET));
    assert_eq!(data(&a, 1).unwrap(), b"");
}

#[test]
fn shutdown_in_each_direction() {
    let [a, b] = pair(SocketType::Stream);
    socket(&a).shutdown(Shutdown::Write).unwrap();
    assert_eq!((shown(&a), shown(&b)), (0x4, 0x2005));
    assert_eq!(data(&b, 1).unwrap(), b"");
    assert_eq!(send(&a, b"x"), Err(Errno::EPIPE));
    assert_eq!(send(&b, b"y"), Ok(1));
    socket(&a).shutdown(Shutdown::Read).unwrap();
    assert_eq!((shown(&a), shown(&b)), (0x2015, 0x2015));
    assert_eq!(data(&a, 10).unwrap(), b"y", "what had arrived stays readable");
    assert_eq!(data(&a, 10).unwrap(), b"");
    assert_eq!(send(&b, b"x"), Err(Errno::EPIPE));
}

#[test]
fn stream_buffers_are_bounded_and_wake_writers() {
    let [a, b] = pair(SocketType::Stream);
    let mut total = 0;
    while let Ok(count) = send(&a, &[7; 10_000]) {
        total += count;
    }
    assert_eq!(total, 170_000, "as on Linux: each write takes 12,544 bytes of the buffer");
    assert_eq!(shown(&a), 0);
    let waiter = Waiter::new();
    let _registration = a.ops().wait_queue().unwrap().register(OUT, waiter.clone());
    let reader = std::thread::spawn(move || {
        let mut read = 0;
        while read < 150_000 {
            read += data(&b, 5000).unwrap().len();
        }
        b
    });
    let limit = Instant::now() + Duration::from_secs(10);
    while !a.poll().contains(OUT) {
        assert_eq!(waiter.wait(Some(limit)), WaitOutcome::Notified);
    }
    assert!(send(&a, b"more").is_ok());
    drop(reader.join().unwrap());
}

#[test]
fn messages_keep_their_bounds() {
    for kind in [SocketType::Datagram, SocketType::SeqPacket] {
        let [a, b] = pair(kind);
        assert_eq!(send(&a, &[0; 212_961]), Err(Errno::EMSGSIZE));
        send(&a, b"0123456789").unwrap();
        send(&a, b"").unwrap();
        send(&a, b"last").unwrap();
        let (part, receipt) = receive(&b, 4, MsgFlags::empty()).unwrap();
        assert_eq!((&part[..], receipt.full), (&b"0123"[..], 10), "the rest is lost");
        assert_eq!(data(&b, 4).unwrap(), b"");
        assert_eq!(receive(&b, 9, MsgFlags::PEEK).unwrap().0, b"last");
        assert_eq!(data(&b, 9).unwrap(), b"last");
        assert_eq!(data(&b, 9), Err(Errno::EAGAIN));
    }
}

#[test]
fn closed_peers_of_messages() {
    let [a, b] = pair(SocketType::Datagram);
    drop(b);
    assert_eq!(shown(&a), 0x4);
    assert_eq!(send(&a, b"x"), Err(Errno::ECONNREFUSED));
    assert_eq!(send(&a, b"x"), Err(Errno::ENOTCONN));
    let [a, b] = pair(SocketType::SeqPacket);
    send(&a, b"x").unwrap();
    data(&b, 1).unwrap();
    drop(b);
    assert_eq!(shown(&a), 0x2015);
    assert_eq!(send(&a, b"x"), Err(Errno::EPIPE));
    assert_eq!(data(&a, 1).unwrap(), b"");
}

#[test]
fn datagrams_from_strangers() {
    let (server, client, other) =
        (new(SocketType::Datagram), new(SocketType::Datagram), new(SocketType::Datagram));
    let target = socket(&server);
    let send_to = |from: &File, data: &[u8]| {
        socket(from).transmit(&mut KernelSrc::new(data), Some(&target), &mut Sent::default())
    };
    socket(&client).lock().local = Some(Arc::new(UnixAddress::Abstract(b"me".to_vec())));
    let mut sent = 0;
    while send_to(&client, b"x").is_ok() {
        sent += 1;
    }
    assert_eq!(sent, 11, "max_dgram_qlen and one");
    let waiter = Waiter::new();
    let destination: Destination = target.clone();
    let queue = socket(&client).send_queue(Some(&destination));
    let _registration = queue.register(OUT, waiter.clone());
    let (_, receipt) = receive(&server, 10, MsgFlags::empty()).unwrap();
    assert_eq!(receipt.address, b"\x01\0\0me");
    assert_eq!(waiter.wait(Some(Instant::now() + Duration::from_secs(10))), WaitOutcome::Notified);
    target.inbox.only_from.store(socket(&client).inbox_address(), Ordering::Relaxed);
    assert_eq!(send_to(&other, b"x"), Err(Errno::EPERM));
    assert_eq!(send_to(&client, b"x"), Ok(1));
}

fn listener(backlog: usize) -> Arc<File> {
    let file = new(SocketType::Stream);
    socket(&file).lock().role = Role::Listening { backlog, pending: VecDeque::new() };
    socket(&file).lock().local = Some(Arc::new(UnixAddress::Path(b"/run/x".to_vec())));
    file
}

fn connect(client: &File, server: &File) -> SysResult {
    let (client, embryo) = (socket(client), UnixSocket::new(SocketType::Stream));
    embryo.lock().role = Role::Connected(client.as_peer());
    let peer = socket(server).enqueue(&client, &embryo)?;
    client.lock().role = Role::Connected(peer);
    Ok(())
}

#[test]
fn connections_wait_in_a_bounded_queue() {
    let server = listener(1);
    assert_eq!(shown(&server), 0);
    let clients: Vec<_> = (0..3).map(|_| new(SocketType::Stream)).collect();
    assert_eq!(connect(&clients[0], &server), Ok(()));
    assert_eq!(connect(&clients[1], &server), Ok(()));
    assert_eq!(connect(&clients[2], &server), Err(Errno::EAGAIN));
    assert_eq!((shown(&server), shown(&clients[0])), (1, 4));
    send(&clients[0], b"early").unwrap();
    let accepted = SocketFile::detached(socket(&server).accept().unwrap());
    assert_eq!(data(&accepted, 10).unwrap(), b"early");
    assert_eq!(socket(&clients[0]).peer_address().unwrap(), b"\x01\0/run/x\0");
    assert_eq!(socket(&accepted).local_address(), b"\x01\0/run/x\0");
    assert_eq!(socket(&accepted).peer_address().unwrap(), [1, 0]);
    assert_eq!(connect(&clients[2], &server), Ok(()));
    drop(server);
    assert_eq!(data(&clients[1], 1), Err(Errno::ECONNRESET));
    assert_eq!(send(&clients[1], b"x"), Err(Errno::EPIPE));
    assert_eq!(send(&clients[0], b"x"), Ok(1), "an accepted connection lives on");
}

#[test]
fn addresses_are_validated() {
    let parse = UnixAddress::parse;
    assert_eq!(parse(&[1]), Err(Errno::EINVAL));
    assert_eq!(parse(&[2, 0, b'x']), Err(Errno::EINVAL));
    assert_eq!(parse(&[&[1, 0][..], &[b'x'; 109]].concat()), Err(Errno::EINVAL));
    assert_eq!(parse(&[1, 0]), Ok(UnixAddress::Unnamed));
    assert_eq!(parse(b"\x01\0\0ab\0"), Ok(UnixAddress::Abstract(b"ab\0".to_vec())));
    assert_eq!(parse(b"\x01\0/tmp/s\0junk"), Ok(UnixAddress::Path(b"/tmp/s".to_vec())));
    assert_eq!(parse(b"\x01\0/tmp/s").unwrap().to_bytes(), b"\x01\0/tmp/s\0");
    let names = Arc::new(address::AbstractNames::default());
    let owner = UnixSocket::new(SocketType::Stream);
    let guard = names.take(&owner, b"n").unwrap();
    assert_eq!(names.take(&owner, b"n").err(), Some(Errno::EADDRINUSE));
    assert!(names.take(&UnixSocket::new(SocketType::Datagram), b"n").is_ok(), "another type, another name");
    drop(guard);
    assert!(names.take(&owner, b"n").is_ok());
    assert_eq!(names.take_any(&owner).unwrap().0.len(), 5);
}

fn eventfd() -> Arc<File> {
    AnonymousInode::detached(Arc::new(EventFd::new(0, Take::All)), OpenFlags::RDWR)
}

#[test]
fn descriptors_travel_with_their_byte() {
    let [a, b] = pair(SocketType::Stream);
    let file = eventfd();
    send(&a, b"before").unwrap();
    send_files(&a, b"with", vec![file.clone()]).unwrap();
    send(&a, b"after").unwrap();
    let (peeked, receipt) = receive(&b, 100, MsgFlags::PEEK).unwrap();
    assert_eq!((&peeked[..], receipt.control.files.len()), (&b"beforewith"[..], 1));
    drop(receipt);
    let (bytes, receipt) = receive(&b, 100, MsgFlags::empty()).unwrap();
    assert_eq!(bytes, b"beforewith", "reading stops behind descriptors");
    assert!(Arc::ptr_eq(&receipt.control.files[0], &file));
    assert_eq!(data(&b, 100).unwrap(), b"after");
    send_files(&a, b"dropped", vec![file.clone()]).unwrap();
    drop(receipt);
    assert_eq!(Arc::strong_count(&file), 2);
    let mut buf = [0; 100];
    b.read(&mut KernelDst::new(&mut buf)).unwrap();
    assert_eq!(Arc::strong_count(&file), 1, "read() closes what it cannot deliver");
    send_files(&a, b"unread", vec![file.clone()]).unwrap();
    drop(b);
    assert_eq!(Arc::strong_count(&file), 1, "closing the receiver closes what is in its queue");
}

#[test]
fn descriptors_in_flight_are_limited() {
    let who = Credentials::new(777, 777, vec![], Capability::empty());
    let files = |count: usize| (0..count).map(|_| eventfd()).collect::<Vec<_>>();
    assert_eq!(Rights::new(files(254), &who, 1024).err(), Some(Errno::EINVAL));
    let kept = Rights::new(files(11), &who, 10).unwrap();
    assert_eq!(Rights::new(files(1), &who, 10).err(), Some(Errno::ETOOMANYREFS));
    assert!(Rights::new(files(1), &Credentials::root(), 10).is_ok());
    drop(kept);
    assert!(Rights::new(files(1), &who, 10).is_ok());
}

/// Whether the pipe that was sent along is closed: its writer sees no reader.
fn reader_is_gone(writer: &File) -> bool {
    writer.poll().contains(PollEvents::ERR)
}

fn witness() -> (Arc<File>, Arc<File>) {
    let (reader, writer) = Pipe::pair(1);
    let reader = AnonymousInode::detached(Arc::new(reader), OpenFlags::empty());
    (reader, AnonymousInode::detached(Arc::new(writer), OpenFlags::WRONLY))
}

#[test]
fn cycles_of_sockets_in_flight_are_freed() {
    // A socket sent over itself.
    let (reader, writer) = witness();
    let [a, b] = pair(SocketType::Stream);
    send_files(&a, b"x", vec![b.clone(), reader]).unwrap();
    let weak: Weak<File> = Arc::downgrade(&b);
    drop(b);
    assert!(weak.upgrade().is_none() || !reader_is_gone(&writer));
    drop(a);
    assert!(weak.upgrade().is_none());
    assert!(reader_is_gone(&writer));

    // Two pairs that hold each other's ends, and one that can still be reached from outside.
    let (reader, writer) = witness();
    let ([a, b], [c, d]) = (pair(SocketType::Stream), pair(SocketType::Datagram));
    let [outer, inner] = pair(SocketType::Stream);
    send_files(&a, b"x", vec![d.clone(), reader]).unwrap();
    send_files(&c, b"x", vec![b.clone()]).unwrap();
    send_files(&outer, b"x", vec![b.clone()]).unwrap();
    drop((a, b, c, d));
    assert!(!reader_is_gone(&writer), "reachable through the outer pair");
    let (_, receipt) = receive(&inner, 1, MsgFlags::empty()).unwrap();
    drop(receipt);
    drop((outer, inner));
    drop(new(SocketType::Stream));
    assert!(reader_is_gone(&writer));
}

#[test]
fn deep_nesting_is_taken_apart_without_recursion() {
    let (reader, writer) = witness();
    let mut inner = reader;
    let mut keep = Vec::new();
    for _ in 0..20_000 {
        let [a, b] = UnixSocket::connected_pair(SocketType::Stream);
        let rights = Rights::new(vec![inner], &Credentials::root(), u64::MAX).unwrap();
        let mut sent = Sent { rights: Some(rights), identity: None };
        // Not through the list of candidates: this is about dropping, and collection would be quadratic here.
        let parcel = inbox::Parcel { identity: None, rights: &mut sent.rights, from: None, limit: 1 << 20 };
        b.inbox.push_stream(&mut KernelSrc::new(b"x"), parcel).unwrap();
        keep.push(a);
        inner = SocketFile::detached(b);
    }
    drop(keep);
    drop(inner);
    assert!(reader_is_gone(&writer));
}

#[test]
fn senders_are_not_mixed_when_the_receiver_asks() {
    let [a, b] = pair(SocketType::Stream);
    let say = |text: &[u8], uid| {
        let identity = Identity { pid: None, uid, gid: uid };
        let mut sent = Sent { rights: None, identity: Some(identity) };
        socket(&a).transmit(&mut KernelSrc::new(text), None, &mut sent).unwrap();
    };
    say(b"one", 1);
    say(b"more", 1);
    say(b"two", 2);
    socket(&b).inbox.wants_identity.store(true, Ordering::Relaxed);
    let (bytes, receipt) = receive(&b, 100, MsgFlags::empty()).unwrap();
    assert_eq!((&bytes[..], receipt.control.identity.unwrap().uid), (&b"onemore"[..], 1));
    let (bytes, receipt) = receive(&b, 100, MsgFlags::empty()).unwrap();
    assert_eq!((&bytes[..], receipt.control.identity.unwrap().uid), (&b"two"[..], 2));
    assert_eq!(receive(&b, 0, MsgFlags::empty()).err(), Some(Errno::EAGAIN));
}

#[test]
fn options_have_linux_bounds() {
    let options = Options::default();
    let get = |name| i32::from_ne_bytes(*options.get(name).unwrap().first_chunk().unwrap());
    let set = |name, value: i32| options.set(&user(), name, &value.to_ne_bytes());
    assert_eq!(get(linux::SO_SNDBUF), 212_992);
    set(linux::SO_SNDBUF, 1).unwrap();
    set(linux::SO_RCVBUF, 1).unwrap();
    assert_eq!((get(linux::SO_SNDBUF), get(linux::SO_RCVBUF)), (4608, 2304));
    set(linux::SO_SNDBUF, 1 << 30).unwrap();
    assert_eq!(get(linux::SO_SNDBUF), 8_388_608);
    assert_eq!(set(linux::SO_SNDBUFFORCE, 1), Err(Errno::EPERM));
    assert_eq!(set(linux::SO_REUSEPORT, 1), Err(Errno::EOPNOTSUPP));
    assert_eq!(set(linux::SO_TYPE, 1), Err(Errno::ENOPROTOOPT));
    assert_eq!(set(999, 1), Err(Errno::ENOPROTOOPT));
    assert_eq!(options.set(&user(), linux::SO_REUSEADDR, &[1]), Err(Errno::EINVAL));
    let timeval = [2i64.to_ne_bytes(), 500_000i64.to_ne_bytes()].concat();
    options.set(&user(), linux::SO_RCVTIMEO_OLD, &timeval).unwrap();
    assert_eq!(options.receive_timeout(), Some(Duration::from_millis(2500)));
    assert_eq!(options.get(linux::SO_RCVTIMEO_OLD).unwrap(), timeval);
    let bad = [0i64.to_ne_bytes(), 1_000_000i64.to_ne_bytes()].concat();
    assert_eq!(options.set(&user(), linux::SO_SNDTIMEO_OLD, &bad), Err(Errno::EDOM));
}
