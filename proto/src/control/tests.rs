//! Frames, checked decoding, and garbage of every kind.

use prost::Message;

use super::frame::{Assembler, FrameError, MAX_PACKET, packets};
use super::*;

fn container() -> Container {
    Container {
        id: "c1".into(),
        process: Some(Process {
            args: vec![b"sh".to_vec()],
            cwd: b"/".to_vec(),
            user: Some(User::default()),
            ..Process::default()
        }),
        root: Some(Root { gofer_fd: 0, readonly: true }),
        ..Container::default()
    }
}

fn create(number: u64, container: Container) -> Vec<u8> {
    ToSentry {
        number,
        request: Some(Request::CreateContainer(CreateContainer { container: Some(container) })),
    }
    .encode_to_vec()
}

#[test]
fn short_and_long_messages_survive_the_packets() {
    for length in [0, 1, MAX_PACKET - 12, MAX_PACKET - 11, MAX_PACKET, 3 * MAX_PACKET, 2_000_000] {
        let message: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
        let cut = packets(&message, MAX_REQUEST).unwrap();
        assert!(cut.iter().all(|p| p.len() <= MAX_PACKET));
        let mut assembler = Assembler::new(MAX_REQUEST);
        let (last, first) = cut.split_last().unwrap();
        for (i, packet) in first.iter().enumerate() {
            let fds = if i == 0 { vec![7] } else { vec![] };
            assert!(assembler.push(packet, fds).unwrap().is_none());
            assert!(assembler.in_message());
        }
        let whole = assembler.push(last, if first.is_empty() { vec![7] } else { vec![] }).unwrap().unwrap();
        assert_eq!(whole.bytes, message);
        assert_eq!(whole.fds, [7]);
        assert!(!assembler.in_message());
    }
}

#[test]
fn bad_packets_are_refused() {
    let long = packets(&vec![1; 2 * MAX_PACKET], MAX_REQUEST).unwrap();
    let fresh = || Assembler::<u8>::new(MAX_REQUEST);
    assert_eq!(fresh().push(&[0; 11], vec![]).unwrap_err(), FrameError::Length(11));
    assert!(matches!(fresh().push(&[0; 12], vec![]), Err(FrameError::Magic(0))));
    assert!(matches!(fresh().push(&long[0], vec![0; MAX_FDS + 1]), Err(FrameError::Descriptors(_))));
    // Descriptors in the middle, a packet left out, a second first packet.
    let mut a = fresh();
    a.push(&long[0], vec![]).unwrap();
    assert!(matches!(a.push(&long[1], vec![1]), Err(FrameError::Descriptors(1))));
    let mut a = fresh();
    a.push(&long[0], vec![]).unwrap();
    assert!(matches!(a.push(&long[2], vec![]), Err(FrameError::Remaining { .. })));
    let mut a = fresh();
    a.push(&long[0], vec![]).unwrap();
    assert!(matches!(a.push(&long[0], vec![]), Err(FrameError::Remaining { .. })));
    // Announces more than the limit; says MORE without bringing anything.
    assert!(matches!(Assembler::<u8>::new(100).push(&long[0], vec![]), Err(FrameError::TooLong(..))));
    assert!(matches!(fresh().push(&long[0][..12], vec![]), Err(FrameError::Remaining { .. })));
    assert!(packets(&[0; 10], 9).is_err());
}

#[test]
fn a_container_passes_and_a_hundred_thousand_arguments_too() {
    let mut c = container();
    c.process.as_mut().unwrap().args = vec![b"argument".to_vec(); 100_000];
    let (number, request) = ToSentry::decode_checked(&create(9, c.clone()), 1).unwrap();
    assert_eq!(number, 9);
    assert_eq!(request, Request::CreateContainer(CreateContainer { container: Some(c) }));
}

#[test]
fn hostile_containers_are_refused_with_their_number() {
    type Spoil = fn(&mut Container);
    let spoils: &[(&str, Spoil)] = &[
        ("container.id", |c| c.id = "../../etc".into()),
        ("container.id", |c| c.id = String::new()),
        ("container.id", |c| c.id = "x".repeat(200)),
        ("root.gofer_fd", |c| c.root = Some(Root { gofer_fd: 3, readonly: false })),
        ("root is missing", |c| c.root = None),
        ("process is missing", |c| c.process = None),
        ("args is empty", |c| c.process.as_mut().unwrap().args.clear()),
        ("args[0] is empty", |c| c.process.as_mut().unwrap().args = vec![vec![]]),
        ("NUL", |c| c.process.as_mut().unwrap().env = vec![b"A=\0".to_vec()]),
        ("process.cwd", |c| c.process.as_mut().unwrap().cwd = b"relative".to_vec()),
        ("process.user", |c| c.process.as_mut().unwrap().user = None),
        ("oom_score_adj", |c| c.process.as_mut().unwrap().oom_score_adj = Some(1001)),
        ("rlimits", |c| {
            c.process.as_mut().unwrap().rlimits = vec![Rlimit { resource: 99, soft: 0, hard: 0 }]
        }),
        ("rlimits", |c| c.process.as_mut().unwrap().rlimits = vec![Rlimit { resource: 1, soft: 2, hard: 1 }]),
        ("mounts.destination", |c| c.mounts = vec![Mount { kind: "proc".into(), ..Mount::default() }]),
        ("mounts has", |c| c.mounts = vec![Mount::default(); 5000]),
        ("sysctl", |c| c.sysctls = vec![KeyValue { key: "../../x".into(), value: String::new() }]),
        ("host name", |c| c.hostname = "h".repeat(65)),
        ("stdin_fd", |c| c.stdio = Some(Stdio { stdin_fd: Some(1), ..Stdio::default() })),
    ];
    for (expected, spoil) in spoils {
        let mut c = container();
        spoil(&mut c);
        let error = ToSentry::decode_checked(&create(4, c), 1).unwrap_err();
        assert_eq!(error.number(), Some(4), "{error}");
        assert!(error.to_string().contains(expected), "{error} does not mention {expected}");
    }
}

#[test]
fn unknown_requests_can_be_answered() {
    // Field 1 (number) = 5, field 999 = an empty message from some later version.
    let bytes = [0x08, 5, 0xba, 0x3e, 0];
    let error = ToSentry::decode_checked(&bytes, 0).unwrap_err();
    assert_eq!(error, DecodeError::Unknown(5));
    assert_eq!(error.number(), Some(5));
}

#[test]
fn replies_and_events_cannot_be_confused() {
    let exit = Exit {
        process: Some(ProcessRef { container_id: "c1".into(), exec_id: String::new() }),
        pid: 1,
        status: 137,
        at_unix_nanos: 1,
    };
    let encode = |number, reply| ToShim { number, reply: Some(reply) }.encode_to_vec();
    assert!(ToShim::decode_checked(&encode(0, Reply::ExitEvent(exit.clone()))).is_ok());
    assert!(ToShim::decode_checked(&encode(3, Reply::Exited(exit.clone()))).is_ok());
    assert!(ToShim::decode_checked(&encode(3, Reply::ExitEvent(exit.clone()))).is_err());
    assert!(ToShim::decode_checked(&encode(0, Reply::Done(Done {}))).is_err());
    let wild = Exit { status: 256, ..exit.clone() };
    assert!(ToShim::decode_checked(&encode(0, Reply::ExitEvent(wild))).is_err());
    let nameless = Exit { process: None, ..exit };
    assert!(ToShim::decode_checked(&encode(0, Reply::ExitEvent(nameless))).is_err());
    assert!(ToShim::decode_checked(&vec![0; MAX_REPLY + 1]).is_err());
}

#[test]
fn no_bytes_make_the_decoders_panic() {
    // Every truncation and every single-byte change of a real message, then pseudo-random noise.
    let good = create(1, container());
    for cut in 0..good.len() {
        let _ = ToSentry::decode_checked(&good[..cut], 1);
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[cut] = value;
            let _ = ToSentry::decode_checked(&bad, 1);
            let _ = ToShim::decode_checked(&bad);
        }
    }
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..20_000 {
        let noise: Vec<u8> = (0..round % 97)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as u8
            })
            .collect();
        let _ = ToSentry::decode_checked(&noise, 2);
        let _ = ToShim::decode_checked(&noise);
        let _ = Assembler::<u8>::new(1000).push(&noise, vec![]);
    }
}

#[test]
fn ids() {
    assert!(["a", "A-1.b_c+d", "_x", &"f".repeat(64)].into_iter().all(valid_id));
    assert!(!["", ".", "..", "-a", "a/b", "a b", "ä", "a\0"].into_iter().any(valid_id));
}
