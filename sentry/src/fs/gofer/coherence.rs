//! What a shared mount shows of what others do to its files: everything, at the next look, whether the gofer is asked or not.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::time::{Duration, Instant};

use caisson_proto::lisafs::Timestamp;
use nix::time::{ClockId, clock_gettime};

use super::tests::{Served, serve_dir};
use super::witness::{settled, stamp_clock};
use super::*;
use crate::vfs::{Attr, Caller, SetAttr, VfsPath, WalkFlags};

/// Until the times of what was changed before prove something. The clock that stamps files may lag by any time on a host that is
/// short of processors, so that only itself can tell.
pub(super) fn settle() {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).unwrap();
    let now = Timestamp { seconds: now.tv_sec(), nanoseconds: u32::try_from(now.tv_nsec()).unwrap() | 1 };
    while !settled(now, stamp_clock()) {
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Served {
    pub(super) fn stat(&self, path: &str) -> SysResult<Attr> {
        let caller = Caller::kernel(self.path.clone());
        caller.lookup(&self.path, path.as_bytes(), WalkFlags::FOLLOW)?.inode().attr()
    }

    /// Looks often enough that the gofer need not be asked any more.
    fn warm(&self, path: &str) {
        settle();
        for _ in 0..10 {
            let _ = self.stat(path);
            std::thread::sleep(Duration::from_micros(250));
        }
    }

    pub(super) fn assert_like_host(&self, path: &str, what: &str) {
        let host = fs::metadata(self.host(path)).ok();
        let seen = self.stat(path).ok();
        let told = host.map(|h| {
            (
                h.ino(),
                h.len(),
                h.permissions().mode() & 0o7777,
                h.uid(),
                h.nlink(),
                h.mtime_nsec(),
                h.ctime_nsec(),
            )
        });
        let shown = seen.map(|a| {
            (
                a.ino,
                a.size,
                a.mode,
                a.uid,
                u64::from(a.nlink),
                i64::from(a.mtime.nsec),
                i64::from(a.ctime.nsec),
            )
        });
        assert_eq!(shown, told, "{what}");
    }
}

#[test]
fn what_is_looked_at_often_needs_no_gofer() {
    let mut served = serve_dir(Sharing::Shared);
    fs::create_dir_all(served.host("a/b")).unwrap();
    fs::write(served.host("a/b/f"), b"data").unwrap();
    symlink("b/f", served.host("a/l")).unwrap();
    for path in ["a/b/f", "a/b/none", "a/l"] {
        served.warm(path);
    }
    served.cut();
    assert_eq!(served.stat("a/b/f").unwrap().size, 4);
    assert_eq!(served.stat("a/l").unwrap().size, 4);
    assert_eq!(served.stat("a/b/none").err(), Some(Errno::ENOENT));
    // And what changes is noticed still: there is nobody to ask what it has become.
    fs::write(served.host("a/b/f"), b"longer data").unwrap();
    assert!(matches!(served.stat("a/b/f"), Ok(Attr { size: 11, .. }) | Err(Errno::EIO)));
    fs::write(served.host("a/b/none"), b"").unwrap();
    assert_eq!(served.stat("a/b/none").err(), Some(Errno::EIO));
}

#[test]
fn every_change_by_others_shows_at_the_next_look() {
    let served = serve_dir(Sharing::Shared);
    let file = || served.host("d/f");
    fs::create_dir(served.host("d")).unwrap();
    let changes: [(&str, &dyn Fn()); 11] = [
        ("written", &|| fs::write(file(), b"some data").unwrap()),
        ("as long as before", &|| {
            fs::OpenOptions::new().write(true).open(file()).unwrap().write_all_at(b"other", 0).unwrap()
        }),
        ("truncated", &|| fs::OpenOptions::new().write(true).open(file()).unwrap().set_len(3).unwrap()),
        ("chmod", &|| fs::set_permissions(file(), fs::Permissions::from_mode(0o600)).unwrap()),
        ("renamed over", &|| {
            fs::write(served.host("d/g"), b"longer than that").unwrap();
            fs::rename(served.host("d/g"), file()).unwrap();
        }),
        ("linked", &|| fs::hard_link(file(), served.host("d/h")).unwrap()),
        ("written by the other name", &|| fs::write(served.host("d/h"), b"x").unwrap()),
        ("removed", &|| fs::remove_file(file()).unwrap()),
        ("made again", &|| fs::write(file(), b"anew").unwrap()),
        ("its directory replaced", &|| {
            fs::create_dir(served.host("e")).unwrap();
            fs::write(served.host("e/f"), b"elsewhere").unwrap();
            fs::rename(served.host("d"), served.host("old")).unwrap();
            fs::rename(served.host("e"), served.host("d")).unwrap();
        }),
        ("its directory gone", &|| fs::remove_dir_all(served.host("d")).unwrap()),
    ];
    fs::write(file(), b"").unwrap();
    for (what, change) in changes {
        served.warm("d/f");
        change();
        served.assert_like_host("d/f", what);
        served.warm("d/f");
        served.assert_like_host("d/f", what);
    }
}

#[test]
fn a_file_s_new_owner_shows_soon() {
    let served = serve_dir(Sharing::Shared);
    fs::write(served.host("f"), b"").unwrap();
    if chown(served.host("f"), Some(4242), Some(4343)).is_err() {
        eprintln!("not root: nobody can give files away");
        return;
    }
    served.warm("f");
    assert_eq!(served.stat("f").unwrap().uid, 4242);
    // However late the looks before came, the last of them may have asked.
    std::thread::sleep(Duration::from_millis(3));
    chown(served.host("f"), Some(5252), None).unwrap();
    served.assert_like_host("f", "the owner was told long ago");
    // One told just now may be believed for a moment, not longer.
    chown(served.host("f"), Some(6262), None).unwrap();
    let deadline = Instant::now() + Duration::from_millis(3);
    while Instant::now() < deadline {
        let _ = served.stat("f");
    }
    assert_eq!(served.stat("f").unwrap().uid, 6262);
}

#[test]
fn names_of_a_directory_that_was_just_changed_prove_nothing() {
    let served = serve_dir(Sharing::Shared);
    fs::create_dir(served.host("d")).unwrap();
    served.warm("d/none");
    let dir = Caller::kernel(served.path.clone()).lookup(&served.path, b"d", WalkFlags::FOLLOW).unwrap();
    let before = dir.inode().names_version();
    assert!(before.is_some() && before == dir.inode().names_version());
    // Only a look that came soon enough after the change can show it.
    let timely = (0..1_000).any(|round| {
        let change = Instant::now();
        fs::write(served.host(&format!("d/f{round}")), b"").unwrap();
        let version = dir.inode().names_version();
        let soon = change.elapsed() < Duration::from_millis(10);
        assert!(!soon || version.is_none(), "in round {round}");
        soon
    });
    assert!(timely);
    settle();
    let after = dir.inode().names_version();
    assert!(after.is_some() && after != before);
}

/// Two changes in one tick of the clock leave the same times: what was learned between them must not be kept.
#[test]
fn changes_in_one_tick_are_told_apart() {
    let served = serve_dir(Sharing::Shared);
    for round in 0..150 {
        for (name, data) in [("f", "one"), ("g", "two and more")] {
            fs::write(served.host(name), data).unwrap();
        }
        // Warm, and last changed just now.
        for _ in 0..4 {
            let _ = (served.stat("f"), served.stat("none"));
        }
        fs::rename(served.host("g"), served.host("f")).unwrap();
        served.assert_like_host("f", &format!("rename in round {round}"));
        fs::remove_file(served.host("f")).unwrap();
        served.assert_like_host("f", &format!("removal in round {round}"));
        fs::write(served.host("none"), b"").unwrap();
        served.assert_like_host("none", &format!("creation in round {round}"));
        fs::remove_file(served.host("none")).unwrap();
        served.assert_like_host("none", &format!("its removal in round {round}"));
    }
}

#[test]
fn our_own_changes_show_at_once() {
    let served = serve_dir(Sharing::Shared);
    let root = served.fs.root().unwrap();
    fs::write(served.host("f"), b"data").unwrap();
    served.warm("f");
    for mode in [0o600, 0o640, 0o755, 0o444] {
        let path = Caller::kernel(served.path.clone()).lookup(&served.path, b"f", WalkFlags::FOLLOW).unwrap();
        path.inode()
            .set_attr(&SetAttr { mode: Some(mode), size: Some(u64::from(mode)), ..SetAttr::default() })
            .unwrap();
        served.assert_like_host("f", "set");
        served.warm("f");
        served.assert_like_host("f", "set a while ago");
    }
    let inode = root.lookup(b"f").unwrap();
    root.unlink(b"f", &inode).unwrap();
    assert_eq!(root.lookup(b"f").err(), Some(Errno::ENOENT));
}

#[test]
fn witnesses_are_few() {
    let served = serve_dir(Sharing::Shared);
    let names: Vec<String> = (0..served.fs.witnesses().most() + 100).map(|i| format!("f{i}")).collect();
    let places: Vec<_> = names
        .iter()
        .map(|name| {
            fs::write(served.host(name), b"").unwrap();
            Caller::kernel(served.path.clone())
                .lookup(&served.path, name.as_bytes(), WalkFlags::FOLLOW)
                .unwrap()
        })
        .collect();
    settle();
    for place in &places {
        for _ in 0..6 {
            place.inode().attr().unwrap();
            std::thread::sleep(Duration::from_micros(250));
        }
    }
    let has = |place: &&VfsPath| place.inode().downcast::<GoferInode>().unwrap().witness().is_there();
    assert_eq!(places.iter().filter(has).count(), served.fs.witnesses().most());
    assert!(has(&places.last().unwrap()) && !has(&places.first().unwrap()));
}
