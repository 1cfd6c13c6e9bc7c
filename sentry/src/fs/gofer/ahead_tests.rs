//! What comes ahead of its time: that it comes, that it is bounded, and that it tells nothing old.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::time::Duration;

use super::coherence::settle;
use super::tests::{Served, serve_dir, serve_dir_with};
use super::*;
use crate::vfs::{Caller, SetAttr, WalkFlags};

/// What somebody does, and how.
type Change<'a> = (&'a str, &'a dyn Fn(&Served));

/// A directory of many files, of which some have been looked up one after the other.
fn half_walked(sharing: Sharing) -> (Served, Vec<String>) {
    let served = serve_dir(sharing);
    fs::create_dir(served.host("d")).unwrap();
    for i in 0..50 {
        fs::write(served.host(&format!("d/f{i}")), b"data").unwrap();
    }
    settle();
    let names: Vec<String> = (0..50).map(|i| format!("d/f{i}")).collect();
    for name in &names[..20] {
        served.assert_like_host(name, "a first look");
    }
    (served, names)
}

#[test]
fn who_looks_at_many_files_gets_the_rest_at_once() {
    for sharing in [Sharing::Shared, Sharing::Exclusive] {
        let (mut served, names) = half_walked(sharing);
        served.cut();
        for name in &names[20..] {
            assert_eq!(served.stat(name).unwrap().size, 4, "{sharing:?} {name}");
        }
        assert_eq!(served.stat("d/none").err(), Some(Errno::EIO));
    }
}

/// The gofer has ids for few of the files: names that were looked up long ago give theirs to what comes ahead.
#[test]
fn files_come_ahead_however_many_were_looked_at_before() {
    for sharing in [Sharing::Shared, Sharing::Exclusive] {
        let mut served = serve_dir_with(sharing, 800);
        for dir in 0..25 {
            fs::create_dir(served.host(&format!("d{dir}"))).unwrap();
            for i in 0..60 {
                fs::write(served.host(&format!("d{dir}/f{i}")), b"data").unwrap();
            }
        }
        settle();
        for dir in 0..24 {
            for i in 0..60 {
                assert_eq!(served.stat(&format!("d{dir}/f{i}")).unwrap().size, 4);
            }
        }
        for i in 0..15 {
            assert_eq!(served.stat(&format!("d24/f{i}")).unwrap().size, 4);
        }
        served.cut();
        for i in 15..60 {
            assert_eq!(served.stat(&format!("d24/f{i}")).unwrap().size, 4, "{sharing:?} {i}");
        }
    }
}

/// Directories that are gone through at the same time do not take each other's files, as far as there are ids.
#[test]
fn what_waits_is_bounded_and_what_is_used_stays() {
    let served = serve_dir_with(Sharing::Exclusive, 800);
    for dir in 0..40 {
        fs::create_dir(served.host(&format!("d{dir}"))).unwrap();
        for i in 0..30 {
            fs::write(served.host(&format!("d{dir}/f{i}")), b"data").unwrap();
        }
    }
    for dir in 0..40 {
        for i in 0..20 {
            served.stat(&format!("d{dir}/f{i}")).unwrap();
            assert!(served.fs.lookout().waiting() <= 800 / 4);
        }
        if dir > 0 {
            // Used all the time: it keeps its own.
            let before = served.fs.lookout().waiting();
            if dir < 10 {
                served.stat(&format!("d0/f{}", 19 + dir)).unwrap();
                assert_eq!(served.fs.lookout().waiting(), before - 1, "d0 after d{dir}");
            }
        }
    }
    for dir in 0..40 {
        let path = Caller::kernel(served.path.clone());
        let dir = path.lookup(&served.path, format!("d{dir}").as_bytes(), WalkFlags::FOLLOW).unwrap();
        dir.inode().downcast::<GoferInode>().unwrap().forget_ahead(&served.fs);
    }
    // Directories wait in the root, too.
    served.fs.root().unwrap().downcast::<GoferInode>().unwrap().forget_ahead(&served.fs);
    assert_eq!(served.fs.lookout().waiting(), 0);
}

#[test]
fn what_came_ahead_shows_what_others_did_meanwhile() {
    let changes: [Change<'_>; 7] = [
        ("nothing", &|_| {}),
        ("written", &|s| fs::write(s.host("d/f30"), b"longer data").unwrap()),
        ("chmod", &|s| fs::set_permissions(s.host("d/f30"), fs::Permissions::from_mode(0o600)).unwrap()),
        ("removed", &|s| fs::remove_file(s.host("d/f30")).unwrap()),
        ("renamed over", &|s| fs::rename(s.host("d/f31"), s.host("d/f30")).unwrap()),
        ("its directory replaced", &|s| {
            fs::rename(s.host("d"), s.host("old")).unwrap();
            fs::create_dir(s.host("d")).unwrap();
            fs::write(s.host("d/f30"), b"elsewhere").unwrap();
        }),
        ("owner", &|s| {
            let _ = chown(s.host("d/f30"), Some(4242), None);
        }),
    ];
    for ((what, change), late) in changes.into_iter().flat_map(|change| [(change, false), (change, true)]) {
        let (served, _) = half_walked(Sharing::Shared);
        // The owner that came along may be believed for a moment.
        std::thread::sleep(Duration::from_millis(3));
        change(&served);
        if late {
            settle();
        }
        served.assert_like_host("d/f30", what);
    }
}

#[test]
fn what_came_ahead_shows_what_we_did_meanwhile() {
    for sharing in [Sharing::Shared, Sharing::Exclusive] {
        let (served, _) = half_walked(sharing);
        let dir = Caller::kernel(served.path.clone()).lookup(&served.path, b"d", WalkFlags::FOLLOW).unwrap();
        let caller = Caller::kernel(served.path.clone());
        caller.unlink(&served.path, b"d/f40").unwrap();
        served.assert_like_host("d/f40", "unlinked");
        let _ = served.stat("d/f41");
        caller
            .rename((&served.path, b"d/f42"), (&served.path, b"d/f43"), crate::vfs::RenameFlags::empty())
            .unwrap();
        served.assert_like_host("d/f42", "renamed");
        served.assert_like_host("d/f43", "renamed over");
        assert_eq!(dir.inode().attr().unwrap().nlink, 2);
    }
    // Another name of a file that waits, by which it is changed and forgotten.
    let (served, _) = half_walked(Sharing::Exclusive);
    fs::hard_link(served.host("d/f45"), served.host("other")).unwrap();
    let other = served.fs.root().unwrap().lookup(b"other").unwrap();
    other.set_attr(&SetAttr { size: Some(77), ..SetAttr::default() }).unwrap();
    drop(other);
    assert_eq!(served.stat("d/f45").unwrap().size, 77);
}

/// What the guest reads from a file that it opens by name.
fn contents(served: &Served, name: &str) -> Result<String, Errno> {
    let caller = Caller::kernel(served.path.clone());
    let file = caller.open_plain(name.as_bytes(), crate::vfs::OpenFlags::empty())?;
    let mut buffer = [0; 32];
    let mut dst = crate::io::KernelDst::new(&mut buffer);
    let count = file.read_at(&mut dst, 0)?;
    Ok(String::from_utf8(buffer[..count].to_vec()).unwrap())
}

/// Descriptors wait, and the host puts something else behind their names.
#[test]
fn what_came_open_is_opened_only_if_the_name_still_means_it() {
    let changes: [Change<'_>; 9] = [
        ("nothing", &|_| {}),
        ("written", &|s| fs::write(s.host("d/f30"), b"longer data").unwrap()),
        ("removed", &|s| fs::remove_file(s.host("d/f30")).unwrap()),
        ("made anew", &|s| {
            fs::remove_file(s.host("d/f30")).unwrap();
            fs::write(s.host("d/f30"), b"anew").unwrap();
        }),
        ("renamed over", &|s| fs::rename(s.host("d/f31"), s.host("d/f30")).unwrap()),
        ("swapped", &|s| {
            fs::rename(s.host("d/f30"), s.host("d/x")).unwrap();
            fs::rename(s.host("d/f31"), s.host("d/f30")).unwrap();
            fs::rename(s.host("d/x"), s.host("d/f31")).unwrap();
        }),
        ("its directory swapped", &|s| {
            fs::create_dir(s.host("e")).unwrap();
            fs::write(s.host("e/f30"), b"elsewhere").unwrap();
            fs::rename(s.host("d"), s.host("old")).unwrap();
            fs::rename(s.host("e"), s.host("d")).unwrap();
        }),
        ("a link now", &|s| {
            fs::remove_file(s.host("d/f30")).unwrap();
            std::os::unix::fs::symlink("f32", s.host("d/f30")).unwrap();
        }),
        ("its directory gone", &|s| fs::remove_dir_all(s.host("d")).unwrap()),
    ];
    for ((what, change), late) in changes.into_iter().flat_map(|change| [(change, false), (change, true)]) {
        let served = serve_dir(Sharing::Shared);
        fs::create_dir(served.host("d")).unwrap();
        for i in 0..50 {
            fs::write(served.host(&format!("d/f{i}")), format!("data {i}")).unwrap();
        }
        settle();
        for i in 0..20 {
            served.fs.lookout().opened();
            assert_eq!(contents(&served, &format!("d/f{i}")).unwrap(), format!("data {i}"));
        }
        // A name that was looked up, and is opened after the change, beside those that wait.
        served.stat("d/f30").unwrap();
        change(&served);
        if late {
            settle();
        }
        for i in [30, 31, 32] {
            let name = format!("d/f{i}");
            let host = fs::read_to_string(served.host(&name)).ok();
            assert_eq!(contents(&served, &name).ok(), host, "{what}: {name}");
            served.assert_like_host(&name, what);
        }
    }
}

#[test]
fn files_that_are_opened_one_after_the_other_come_open() {
    for sharing in [Sharing::Shared, Sharing::Exclusive] {
        let mut served = serve_dir(sharing);
        for dir in ["one", "two"] {
            fs::create_dir(served.host(dir)).unwrap();
            for i in 0..40 {
                fs::write(served.host(&format!("{dir}/f{i}")), i.to_string()).unwrap();
            }
        }
        settle();
        let read = |served: &Served, name: &str| contents(served, name).unwrap();
        for i in 0..40 {
            assert_eq!(read(&served, &format!("one/f{i}")), i.to_string());
        }
        for i in 0..15 {
            assert_eq!(read(&served, &format!("two/f{i}")), i.to_string());
        }
        rustix::net::shutdown(&served.wire, rustix::net::Shutdown::Both).unwrap();
        for i in 15..40 {
            assert_eq!(read(&served, &format!("two/f{i}")), i.to_string(), "{sharing:?}");
        }
        served.cut();
    }
}

/// Lists a directory and asks for so many of its files.
fn list_and_ask(served: &Served, dir: &str, files: usize) {
    let path = Caller::kernel(served.path.clone());
    let place = path.lookup(&served.path, dir.as_bytes(), WalkFlags::FOLLOW).unwrap();
    place.inode().downcast::<GoferInode>().unwrap().being_listed();
    for i in 0..files {
        assert_eq!(served.stat(&format!("{dir}/f{i}")).unwrap().size, 4);
    }
}

#[test]
fn who_usually_asks_for_all_gets_them_at_the_first() {
    for sharing in [Sharing::Shared, Sharing::Exclusive] {
        let served = serve_dir(sharing);
        for dir in 0..12 {
            fs::create_dir(served.host(&format!("d{dir}"))).unwrap();
            for i in 0..20 {
                fs::write(served.host(&format!("d{dir}/f{i}")), b"data").unwrap();
            }
        }
        settle();
        let directory = |name: &str| {
            let caller = Caller::kernel(served.path.clone());
            let place = caller.lookup(&served.path, name.as_bytes(), WalkFlags::FOLLOW).unwrap();
            place.inode().downcast::<GoferInode>().unwrap().weak().upgrade().unwrap()
        };
        // Nobody knows yet.
        list_and_ask(&served, "d0", 1);
        assert_eq!(directory("d0").waiting_ahead(), 0, "{sharing:?}");
        for dir in 1..8 {
            list_and_ask(&served, &format!("d{dir}"), 20);
        }
        list_and_ask(&served, "d8", 1);
        assert_eq!(directory("d8").waiting_ahead(), 19, "{sharing:?}");
        // Who then leaves most of them alone gets no more that way.
        for dir in 1..8 {
            let inode = directory(&format!("d{dir}"));
            inode.forget_ahead(&served.fs);
            inode.being_listed();
            served.stat(&format!("d{dir}/none")).unwrap_err();
            inode.forget_ahead(&served.fs);
        }
        list_and_ask(&served, "d9", 1);
        assert_eq!(directory("d9").waiting_ahead(), 0, "{sharing:?}");
    }
}

#[test]
fn a_directory_that_keeps_changing_counts_once() {
    let served = serve_dir(Sharing::Exclusive);
    for i in 0..20 {
        fs::write(served.host(&format!("f{i}")), b"data").unwrap();
    }
    let root = served.fs.root().unwrap();
    for round in 0..6 {
        // Names that are not known yet, in a directory of another version than before.
        for i in 0..9 {
            assert_eq!(root.lookup(format!("none{round}-{i}").as_bytes()).err(), Some(Errno::ENOENT));
        }
        assert!(served.fs.lookout().waiting() > 0, "{round}");
        assert_eq!(served.fs.lookout().directories(), 1);
        let caller = Caller::kernel(served.path.clone());
        caller.mkdir(&served.path, format!("d{round}").as_bytes(), 0o755).unwrap();
    }
}
