//! The client against a scripted peer.

use caisson_proto::control::{Done, ProcessRef, Start, Started};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::*;

fn pair() -> (OwnedFd, OwnedFd) {
    let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let flags = nix::fcntl::OFlag::O_NONBLOCK;
    nix::fcntl::fcntl(&a, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
    (a, b)
}

fn say(peer: &OwnedFd, number: u64, reply: Reply) {
    for packet in packets(&ToShim { number, reply: Some(reply) }.encode_to_vec(), MAX_REPLY).unwrap() {
        raw(peer, &packet);
    }
}

fn raw(peer: &OwnedFd, packet: &[u8]) {
    sendmsg::<()>(peer.as_raw_fd(), &[IoSlice::new(packet)], &[], MsgFlags::empty(), None).unwrap();
}

fn hear(peer: &OwnedFd) -> (u64, Request, usize) {
    let mut assembler = Assembler::new(MAX_REQUEST);
    loop {
        let mut buffer = vec![0; MAX_PACKET];
        let mut space = nix::cmsg_space!([i32; 250]);
        let mut data = [IoSliceMut::new(&mut buffer)];
        let message =
            recvmsg::<()>(peer.as_raw_fd(), &mut data, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).unwrap();
        let fds: Vec<i32> = message
            .cmsgs()
            .unwrap()
            .flat_map(|c| match c {
                nix::sys::socket::ControlMessageOwned::ScmRights(fds) => fds,
                _ => vec![],
            })
            .collect();
        fds.iter().for_each(|fd| nix::unistd::close(*fd).unwrap());
        let length = message.bytes;
        if let Some(whole) = assembler.push(&buffer[..length], fds).unwrap() {
            let (number, request) = ToSentry::decode_checked(&whole.bytes, whole.fds.len()).unwrap();
            return (number, request, whole.fds.len());
        }
    }
}

fn start() -> Request {
    Request::Start(Start { container_id: "c".into() })
}

fn exit(status: u32) -> wire::Exit {
    let process = Some(ProcessRef { container_id: "c".into(), exec_id: String::new() });
    wire::Exit { process, pid: 1, status, at_unix_nanos: 0 }
}

#[tokio::test]
async fn replies_find_their_requests_in_any_order_and_events_keep_theirs() {
    let (ours, peer) = pair();
    let (client, mut events) = Client::new(ours).unwrap();
    let script = std::thread::spawn(move || {
        let (first, ..) = hear(&peer);
        let (second, ..) = hear(&peer);
        say(&peer, 0, Reply::ExitEvent(exit(1)));
        say(&peer, second, Reply::Started(Started { pid: second as u32 }));
        say(&peer, 999, Reply::Done(Done {}));
        say(&peer, first, Reply::Started(Started { pid: first as u32 }));
        say(&peer, 0, Reply::ExitEvent(exit(2)));
    });
    let (a, b) = tokio::join!(client.ask(start(), &[]), client.ask(start(), &[]));
    assert_eq!(a.unwrap(), Reply::Started(Started { pid: 1 }));
    assert_eq!(b.unwrap(), Reply::Started(Started { pid: 2 }));
    script.join().unwrap();
    let mut statuses = vec![];
    loop {
        match events.recv().await.unwrap() {
            Unasked::Exit(exit) => statuses.push(exit.status),
            Unasked::Gone(_) => break,
            Unasked::Oom(_) => unreachable!(),
        }
    }
    assert_eq!(statuses, [1, 2]);
    assert!(matches!(client.ask(start(), &[]).await, Err(ControlError::Gone(_))));
}

#[tokio::test]
async fn long_requests_and_descriptors_arrive() {
    let (ours, peer) = pair();
    let (client, _events) = Client::new(ours).unwrap();
    let script = std::thread::spawn(move || {
        let (number, request, fds) = hear(&peer);
        say(&peer, number, Reply::Error(wire::Error::new(ErrorCode::ProgramNotFound, "exec: no")));
        (request, fds)
    });
    let null = std::fs::File::open("/dev/null").unwrap();
    let process = wire::Process {
        args: vec![vec![b'x'; 20]; 100_000],
        cwd: b"/".to_vec(),
        user: Some(wire::User::default()),
        ..wire::Process::default()
    };
    let exec = wire::Exec {
        container_id: "c".into(),
        exec_id: "e".into(),
        process: Some(process),
        stdio: Some(wire::Stdio { stdin_fd: Some(0), stdout_fd: Some(2), stderr_fd: None }),
    };
    let request = Request::Exec(exec);
    let error = client.ask(request.clone(), &[null.as_fd(); 3]).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::ProgramNotFound));
    assert_eq!(error.to_string(), "exec: no");
    let (heard, fds) = script.join().unwrap();
    assert!(heard == request && fds == 3);
}

#[tokio::test]
async fn a_peer_that_talks_nonsense_is_cut_off() {
    for nonsense in [&b"hello, world"[..], &[0; 3], &[0xff; 64]] {
        let (ours, peer) = pair();
        let (client, mut events) = Client::new(ours).unwrap();
        let asking = tokio::spawn(async move { client.ask(start(), &[]).await });
        let keep = tokio::task::spawn_blocking({
            let nonsense = nonsense.to_vec();
            move || {
                hear(&peer);
                raw(&peer, &nonsense);
                peer
            }
        })
        .await
        .unwrap();
        assert!(matches!(asking.await.unwrap(), Err(ControlError::Gone(_))));
        assert!(matches!(events.recv().await, Some(Unasked::Gone(_))));
        drop(keep);
    }
}
