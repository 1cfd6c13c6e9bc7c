//! Round trips of every message, and what hostile bytes get.

use super::request::*;
use super::*;

fn id(raw: u64) -> FdId {
    FdId::new(raw).unwrap()
}

fn name(bytes: &[u8]) -> Name<'_> {
    Name::new(bytes).unwrap()
}

fn every_request() -> Vec<Request<'static>> {
    let new = NewFile { owner: Owner::new(1000, 100).unwrap(), permissions: 0o4755 };
    let xattr = XattrName::new(b"user.test").unwrap();
    let open = OpenFlags::READ | OpenFlags::WRITE | OpenFlags::TRUNCATE | OpenFlags::DONATE;
    let set = SetAttr {
        size: Some(7),
        uid: Some(1),
        gid: None,
        permissions: Some(0o644),
        atime: SetTime::Now,
        mtime: SetTime::At(Timestamp { seconds: -5, nanoseconds: 999_999_999 }),
    };
    let (dir, fd) = (id(3), id(u64::MAX));
    vec![
        Request::Mount { version: VERSION, max_message: 65536 },
        Request::Channel,
        Request::Walk { dir, flags: WalkFlags::empty(), names: vec![] },
        Request::Walk { dir, flags: WalkFlags::ATTR_ONLY, names: vec![name(b"usr"), name(b"lib")] },
        Request::Stat { fd },
        Request::SetAttr { fd, set },
        Request::SetAttr { fd, set: SetAttr::default() },
        Request::Open { fd, flags: open },
        Request::Create { dir, name: name(b"a"), flags: open, new },
        Request::CreateUnnamed { dir, flags: open, new },
        Request::Mkdir { dir, name: name(b"b"), new },
        Request::Mknod {
            dir,
            name: name(b"c"),
            kind: FileKind::CharDevice,
            rdev: Device { major: 1, minor: 3 },
            new,
        },
        Request::Symlink {
            dir,
            name: name(b"d"),
            target: LinkTarget::new(b"../x").unwrap(),
            owner: new.owner,
        },
        Request::Link { dir, name: name(b"e"), target: fd },
        Request::Unlink { dir, name: name(b"f"), kind: UnlinkKind::File },
        Request::Unlink { dir, name: name(b"f"), kind: UnlinkKind::Directory },
        Request::Rename {
            old_dir: dir,
            old_name: name(b"g"),
            new_dir: fd,
            new_name: name(b"h"),
            flags: RenameFlags::EXCHANGE,
        },
        Request::ReadDir { fd, position: 12, max: 4096 },
        Request::ReadDirPlus {
            fd,
            position: 12,
            count: PLUS_MAX,
            flags: PlusFlags::READ | PlusFlags::WITNESS,
        },
        Request::List { fd, max: 1024 },
        Request::ReadLink { fd },
        Request::GetXattr { fd, name: xattr },
        Request::SetXattr { fd, name: xattr, value: b"value", flags: XattrFlags::CREATE },
        Request::ListXattr { fd },
        Request::RemoveXattr { fd, name: xattr },
        Request::Fsync { fds: vec![fd, dir] },
        Request::Fallocate { fd, mode: AllocateMode::KEEP_SIZE, offset: 1, length: 2 },
        Request::Flush { fd },
        Request::StatFs { fd },
        Request::SyncFs { fd },
        Request::Witness { fd },
        Request::Connect { fd, kind: SocketKind::SeqPacket },
        Request::Bind { dir, name: name(b"i"), kind: SocketKind::Stream, new },
        Request::Listen { fd, backlog: 5 },
        Request::Accept { fd },
        Request::Read { fd, offset: 1 << 40, length: 65536 },
        Request::Write { fd, offset: 3, data: b"data" },
        Request::Close { fds: vec![fd] },
    ]
}

#[test]
fn every_message_has_a_request_and_comes_back_as_it_went() {
    let mut seen = std::collections::HashSet::new();
    for request in every_request() {
        let mut payload = Vec::new();
        request.encode(&mut payload);
        assert_eq!(Request::parse(request.message(), &payload), Ok(request.clone()));
        seen.insert(request.message());
    }
    for message in MessageId::ALL {
        assert!(seen.contains(message), "{message:?} is not in the list");
        assert_eq!(MessageId::from_number(*message as u16), Some(*message));
    }
}

#[test]
fn a_truncated_or_longer_payload_is_refused() {
    for request in every_request() {
        let mut payload = Vec::new();
        request.encode(&mut payload);
        for length in 0..payload.len() {
            let parsed = Request::parse(request.message(), &payload[..length]);
            // Data at the end of a message has no length of its own: a cut gives shorter data.
            let open_ended = matches!(request, Request::Write { .. } | Request::SetXattr { .. });
            assert!(parsed.is_err() || open_ended, "{request:?} cut to {length}");
        }
        payload.push(0);
        let open_ended = matches!(request, Request::Write { .. } | Request::SetXattr { .. });
        assert!(Request::parse(request.message(), &payload).is_err() || open_ended, "{request:?} longer");
    }
}

#[test]
fn arbitrary_bytes_never_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = vec![0; 300];
    for round in 0..20_000_usize {
        for byte in &mut bytes {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Small values reach deeper: they pass for counts, lengths and flags.
            *byte = if state & 3 == 0 { (state >> 32) as u8 } else { ((state >> 32) & 3) as u8 };
        }
        let cut = &bytes[..round % bytes.len()];
        for message in MessageId::ALL {
            if let Ok(request) = Request::parse(*message, cut) {
                let mut again = Vec::new();
                request.encode(&mut again);
                assert_eq!(Request::parse(*message, &again), Ok(request));
            }
        }
        let _ = Header::parse_packet(cut);
        let _ = reply::Mounted::parse(cut);
        let _ = reply::Walked::parse(cut);
        let _ = reply::Created::parse(cut);
        let _ = reply::attr::parse(cut);
        let _ = reply::StatFs::parse(cut);
        let _ = reply::Entries::new(cut).count();
        let _ = reply::Listing::new(cut).count();
        let _ = reply::Listed::parse(cut);
    }
}

#[test]
fn names_that_could_leave_the_directory_do_not_exist() {
    for bad in [&b""[..], b".", b"..", b"/", b"a/b", b"a\0", b"/etc"] {
        assert_eq!(Name::new(bad), Err(WireError::Name), "{bad:?}");
    }
    assert_eq!(Name::new(&[b'x'; 256]), Err(WireError::TooLong));
    for good in [&b"..."[..], b"..a", b".x", b"\xff\xfe", b"\n"] {
        assert!(Name::new(good).is_ok(), "{good:?}");
    }
    assert!(Name::new(&[b'x'; 255]).is_ok());
}

#[test]
fn fields_out_of_range_are_refused() {
    let parse = |request: &Request<'_>, at: usize, bytes: &[u8]| {
        let mut payload = Vec::new();
        request.encode(&mut payload);
        payload[at..at + bytes.len()].copy_from_slice(bytes);
        Request::parse(request.message(), &payload).map(|_| ())
    };
    let fd = id(1);
    assert_eq!(parse(&Request::Stat { fd }, 0, &[0; 8]), Err(WireError::Id));
    let read = Request::Read { fd, offset: 0, length: 1 };
    assert_eq!(parse(&read, 8, &[0xff; 8]), Err(WireError::Field), "negative offset");
    assert_eq!(parse(&read, 16, &65537_u32.to_le_bytes()), Err(WireError::Field), "length");
    let open = Request::Open { fd, flags: OpenFlags::READ | OpenFlags::KEEP };
    assert_eq!(parse(&open, 8, &[0xff; 4]), Err(WireError::Field), "unknown flags");
    assert_eq!(parse(&open, 8, &[32, 0, 0, 0]), Err(WireError::Field), "no access mode");
    assert_eq!(parse(&open, 8, &[5 | 32, 0, 0, 0]), Err(WireError::Field), "truncate without write");
    for request in [Request::List { fd, max: 1024 }, Request::ReadDir { fd, position: 0, max: 1024 }] {
        let at = if matches!(request, Request::List { .. }) { 8 } else { 16 };
        for size in [0, 1023, MAX_DATA as u32 + 1, u32::MAX] {
            assert_eq!(parse(&request, at, &size.to_le_bytes()), Err(WireError::Field), "{request:?} {size}");
        }
        assert_eq!(parse(&request, at, &(MAX_DATA as u32).to_le_bytes()), Ok(()));
    }
    let set = Request::SetAttr { fd, set: SetAttr { uid: Some(1), ..SetAttr::default() } };
    assert_eq!(parse(&set, 16, &[0xff; 4]), Err(WireError::Field), "uid -1");
}

#[test]
fn headers_come_back_and_lie_in_vain() {
    let header = Header { length: 3, message: 7, errno: 0, tag: 99, fds: 1 };
    let mut packet = header.to_bytes().to_vec();
    packet.extend_from_slice(b"abc");
    assert_eq!(Header::parse_packet(&packet), Ok((header, &b"abc"[..])));
    assert_eq!(Header::parse_packet(&packet[..18]), Err(WireError::Length));
    assert_eq!(Header::parse_packet(&packet[..15]), Err(WireError::Truncated));
    packet[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(Header::parse_packet(&packet), Err(WireError::Length));
}

#[test]
fn replies_come_back_as_they_went() {
    let attr = Attr {
        ino: 5,
        dev: Device { major: 8, minor: 1 },
        kind: FileKind::Symlink,
        permissions: 0o777,
        nlink: 1,
        uid: 2,
        gid: 3,
        rdev: Device::default(),
        size: 4,
        blocks: 8,
        block_size: 4096,
        atime: Timestamp { seconds: 1, nanoseconds: 2 },
        mtime: Timestamp { seconds: -1, nanoseconds: 3 },
        ctime: Timestamp { seconds: i64::MAX, nanoseconds: 4 },
        btime: Timestamp::default(),
    };
    let mut out = Vec::new();
    reply::attr::encode(&attr, &mut out);
    assert_eq!(out.len(), attr::ATTR_SIZE);
    assert_eq!(reply::attr::parse(&out), Ok(attr));

    let walked = reply::Walked {
        end: reply::WalkEnd::Symlink,
        nodes: vec![reply::Node { fd: Some(id(9)), attr }, reply::Node { fd: None, attr }],
        target: Some(LinkTarget::new(b"/x").unwrap()),
    };
    out.clear();
    walked.encode(&mut out);
    assert_eq!(reply::Walked::parse(&out), Ok(walked));

    out.clear();
    let entry = reply::Entry { ino: 1, next: 2, kind: Some(FileKind::Directory), name: name(b"sub") };
    entry.encode(&mut out);
    reply::Entry { kind: None, ..entry }.encode(&mut out);
    for open in [None, Some(id(77))] {
        let mut listed = reply::Listed::head(open).to_vec();
        assert_eq!(reply::Listed::parse(&listed), Ok(reply::Listed { open, entries: &[] }));
        assert_eq!(reply::Listed::parse(&listed[..7]), Err(WireError::Truncated));
        listed.extend_from_slice(&out);
        assert_eq!(reply::Listed::parse(&listed), Ok(reply::Listed { open, entries: &out }));
    }
    let plus = reply::PlusEntry {
        next: 7,
        name: name(b"sub"),
        file: Some(reply::PlusFile {
            fd: id(3),
            attr,
            target: Some(LinkTarget::new(b"/x").unwrap()),
            donated: reply::Donated::Witness,
        }),
    };
    let nothing = reply::PlusEntry { file: None, ..plus.clone() };
    let mut listing = Vec::new();
    plus.encode(&mut listing);
    nothing.encode(&mut listing);
    assert_eq!(reply::Listing::new(&listing).collect::<Vec<_>>(), [Ok(plus), Ok(nothing)]);
    listing.pop();
    assert!(reply::Listing::new(&listing).any(|entry| entry.is_err()));

    let entries: Vec<_> = reply::Entries::new(&out).collect();
    assert_eq!(entries, [Ok(entry), Ok(reply::Entry { kind: None, ..entry })]);
}
