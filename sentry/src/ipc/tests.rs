use super::ids::{Access, Ids, Object, Perm, Request, linux_flags};
use super::mqueue::{Mqueue, Notice, Receiver, Settings, USUAL};
use super::msg::{Message, Queues, Wanted};
use super::sem::{Awaited, Operation, Set, Sets, Waiting};
use super::undo::UndoList;
use super::*;
use crate::kernel::testing::TestKernel;
use crate::task::{Capability, Credentials, Signal, SignalSet};
use crate::vfs::FileSystem;
use crate::vfs::inode::NewInode;

fn perm() -> Perm {
    Perm { key: 0, uid: 1, gid: 2, cuid: 3, cgid: 4, mode: 0o640, id: 0, removed: false }
}

struct Thing(parking_lot::Mutex<Perm>);

impl Object for Thing {
    fn perm(&self) -> &parking_lot::Mutex<Perm> {
        &self.0
    }
}

fn get(ids: &Ids<Thing>, key: i32, flags: u32) -> SysResult<i32> {
    let request = Request { key, flags: flags.cast_signed(), who: &Credentials::root() };
    ids.get(&request, |_| Ok(()), |perm| Ok(Arc::new(Thing(perm.into()))))
}

#[test]
fn rights_are_those_of_the_first_class_that_fits() {
    let user = |uid, gid| Credentials::new(uid, gid, vec![], Capability::empty());
    let perm = perm();
    for (who, read, write) in [(user(1, 9), true, true), (user(3, 9), true, true), (user(9, 2), true, false)]
    {
        assert_eq!(perm.check(&who, Access::READ).is_ok(), read);
        assert_eq!(perm.check(&who, Access::WRITE).is_ok(), write);
    }
    assert!(perm.check(&user(9, 4), Access::READ).is_ok());
    assert_eq!(perm.check(&user(9, 9), Access::READ), Err(Errno::EACCES));
    assert_eq!(perm.check(&user(9, 2), Access::READ_WRITE), Err(Errno::EACCES));
    let owner = Credentials::new(9, 9, vec![], Capability::IPC_OWNER);
    assert_eq!(perm.check(&owner, Access::READ_WRITE.and_execute()), Ok(()));
    assert_eq!((perm.check_owner(&user(3, 9)), perm.check_owner(&user(9, 2))), (Ok(()), Err(Errno::EPERM)));
}

#[test]
fn keys_and_identifiers() {
    let ids = Ids::new(100);
    let create = linux_flags::IPC_CREAT | 0o600;
    assert_eq!(get(&ids, 5, 0), Err(Errno::ENOENT));
    assert_eq!((get(&ids, 5, create), get(&ids, 5, create), get(&ids, 0, 0)), (Ok(0), Ok(0), Ok(1)));
    assert_eq!(get(&ids, 5, create | linux_flags::IPC_EXCL), Err(Errno::EEXIST));
    let first = ids.find(0).unwrap();
    assert_eq!(ids.remove(&first), Ok(()));
    assert_eq!(ids.remove(&first), Err(Errno::EIDRM));
    assert!(ids.find(0).is_err() && ids.at(0).is_err());
    // Indexes are used in turn, and their next round has other identifiers.
    assert_eq!(get(&ids, 5, create), Ok(2));
    for expected in 3..64 {
        let id = get(&ids, 0, 0).unwrap();
        assert_eq!(id, expected);
        ids.remove(&ids.find(id).unwrap()).unwrap();
    }
    assert_eq!(get(&ids, 0, 0), Ok(1 << 15));
    assert!(ids.find(0).is_err() && ids.at(0).is_ok());
    assert_eq!(ids.usage(), (3, 2));
    for _ in 3..100 {
        get(&ids, 0, 0).unwrap();
    }
    assert_eq!(get(&ids, 0, 0), Err(Errno::ENOSPC));
}

fn operation(number: u16, change: i16, flags: i32) -> Operation {
    Operation { number, change, flags: i16::try_from(flags).unwrap() }
}

fn operate(set: &Set, operations: &[Operation], list: Option<u64>) -> SysResult {
    set.operate(operations, Actor::default(), list, &mut Waiting::new(set))
}

#[test]
fn operations_happen_all_or_not_at_all() {
    let set = Sets::default().make(perm(), 3).unwrap();
    assert_eq!(operate(&set, &[operation(0, 2, 0), operation(1, -1, 0)], None), Err(Errno::EAGAIN));
    assert_eq!(set.values(), [0, 0, 0]);
    assert_eq!(operate(&set, &[operation(0, 2, 0), operation(0, -1, 0), operation(2, 0, 0)], None), Ok(()));
    assert_eq!(set.values(), [1, 0, 0]);
    assert_eq!(operate(&set, &[operation(0, 32_767, 0)], None), Err(Errno::ERANGE));
    assert_eq!(operate(&set, &[operation(3, 1, 0)], None), Err(Errno::EFBIG));
    let mut waiting = Waiting::new(&set);
    assert_eq!(set.operate(&[operation(0, 0, 0)], Actor::default(), None, &mut waiting), Err(Errno::EAGAIN));
    assert!(!waiting.forbidden);
    assert_eq!((set.waiting_for(Awaited::Zero(0)), set.waiting_for(Awaited::Growth(0))), (1, 0));
    drop(waiting);
    assert_eq!(set.waiting_for(Awaited::Zero(0)), 0);
    let mut waiting = Waiting::new(&set);
    let nowait = [operation(1, -1, linux_flags::IPC_NOWAIT)];
    assert_eq!(set.operate(&nowait, Actor::default(), None, &mut waiting), Err(Errno::EAGAIN));
    assert!(waiting.forbidden && set.waiting_for(Awaited::Growth(1)) == 0);
}

#[test]
fn the_end_of_a_process_gives_back_what_it_took() {
    let set = Sets::default().make(perm(), 2).unwrap();
    set.set(0, &[5, 5], Actor::default()).unwrap();
    let list = UndoList::new(Actor::default());
    list.note(&set);
    let take = [operation(0, -2, libc::SEM_UNDO), operation(1, -1, 0)];
    assert_eq!(operate(&set, &take, Some(list.id())), Ok(()));
    assert_eq!(operate(&set, &[operation(1, 3, libc::SEM_UNDO)], Some(list.id())), Ok(()));
    assert_eq!(set.values(), [3, 7]);
    // Setting a value forgets its adjustments, and only those.
    set.set(1, &[1], Actor::default()).unwrap();
    drop(list);
    assert_eq!(set.values(), [5, 1]);
    let sets = Sets::default();
    assert_eq!(sets.destroy(&set), Ok(()));
    assert_eq!(operate(&set, &take, None), Err(Errno::EIDRM));
}

#[test]
fn messages_are_chosen_by_type() {
    let queues = Queues::default();
    let queue = queues.make(perm());
    for (kind, text) in [(3, "c"), (1, "aa"), (2, "b"), (1, "a")] {
        queue.send(&Message { kind, text: text.into() }, Actor::default()).unwrap();
    }
    let receive = |wanted, room, cut| {
        let message = queue.receive(wanted, room, cut, Actor::default())?;
        Ok((message.kind, String::from_utf8(message.text).unwrap()))
    };
    let text = |kind, text: &str| Ok((kind, text.to_owned()));
    assert_eq!(receive(Wanted::CopyOf(2), 9, false), text(2, "b"));
    assert_eq!(receive(Wanted::UpTo(2), 1, false), Err(Errno::E2BIG));
    assert_eq!(receive(Wanted::UpTo(2), 1, true), text(1, "aa"));
    assert_eq!(receive(Wanted::Not(3), 9, false), text(2, "b"));
    assert_eq!(receive(Wanted::Kind(2), 9, false), Err(Errno::EAGAIN));
    assert_eq!(
        (receive(Wanted::Any, 9, false), receive(Wanted::Any, 9, false)),
        (text(3, "c"), text(1, "a"))
    );
    assert_eq!(queue.status().bytes, 0);
    let long = Message { kind: 1, text: vec![0; 8192] };
    assert_eq!((queue.send(&long, Actor::default()), queue.send(&long, Actor::default())), (Ok(()), Ok(())));
    assert_eq!(queue.send(&Message { kind: 1, text: vec![0] }, Actor::default()), Err(Errno::EAGAIN));
    assert_eq!(queues.destroy(&queue), Ok(()));
    assert_eq!(receive(Wanted::Any, 9, false), Err(Errno::EIDRM));
}

#[test]
fn the_oldest_message_of_the_highest_priority_comes_first() {
    let test = TestKernel::boot();
    let (task, _local) = test.prepare([]);
    let total = Arc::default();
    let queue = Mqueue::new(Settings { messages: 3, size: 9 }, Arc::clone(&total));
    for (text, priority) in [("a", 1), ("b", 5), ("c", 5)] {
        queue.send(text.as_bytes(), priority, &task).unwrap();
    }
    assert_eq!(queue.send(b"d", 9, &task), Err(Errno::EAGAIN));
    let receive = || queue.receive().map(|(text, priority)| (String::from_utf8(text).unwrap(), priority));
    let message = |text: &str, priority| Ok((text.to_owned(), priority));
    assert_eq!([receive(), receive(), receive()], [message("b", 5), message("c", 5), message("a", 1)]);
    assert_eq!(receive(), Err(Errno::EAGAIN));
    queue.send(b"left over", 0, &task).unwrap();
    drop(queue);
    assert_eq!(total.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[test]
fn one_process_is_told_of_a_message_that_nobody_waits_for() {
    let test = TestKernel::boot();
    let (task, _local) = test.prepare([]);
    let group = task.thread_group();
    let queue = Mqueue::new(USUAL, Arc::default());
    let notice = Notice::Signal(Signal::USR1, 7);
    task.replace_mask(SignalSet::of(&[Signal::USR1]));
    assert_eq!((queue.register(group, notice), queue.register(group, notice)), (Ok(()), Err(Errno::EBUSY)));
    let mut receiver = Receiver::new(&queue);
    assert_eq!(receiver.receive(), Err(Errno::EAGAIN));
    queue.send(b"x", 0, &task).unwrap();
    assert!(receiver.receive().is_ok() && task.pending_signals().1.is_empty());
    drop(receiver);
    queue.send(b"y", 0, &task).unwrap();
    assert!(task.pending_signals().1.contains(Signal::USR1));
    assert_eq!(queue.register(group, notice), Ok(()));
    queue.unregister(group);
    assert!(queue.status().registration.is_none());
}

#[test]
fn names_and_what_queues_cost() {
    let test = TestKernel::boot();
    let (task, _local) = test.prepare([]);
    let ipc = Ipc::of(&task).unwrap();
    let names = &ipc.mqueues;
    let new = NewInode { mode: 0o600, uid: 5, gid: 5 };
    let make = |name: &[u8]| names.make(name, new, USUAL, &task).map(drop);
    for (name, errno) in [
        (&b""[..], Errno::ENOENT),
        (b"..", Errno::EACCES),
        (b"a/b", Errno::EACCES),
        (&[b'n'; 256], Errno::ENAMETOOLONG),
    ] {
        assert_eq!((make(name), names.find(name).err()), (Err(errno), Some(errno)));
    }
    assert_eq!((make(b"one"), make(b"one")), (Ok(()), Err(Errno::EEXIST)));
    let root = names.root().unwrap();
    let node = root.lookup(b"one").unwrap();
    assert!(root.revalidate(b"one", &node) && !root.revalidate(b"two", &node));
    let stranger = Credentials::new(9, 9, vec![], Capability::empty());
    assert_eq!(names.unlink(b"one", &stranger), Err(Errno::EPERM));
    let owner = Credentials::new(5, 5, vec![], Capability::empty());
    assert_eq!((names.unlink(b"one", &owner), names.unlink(b"one", &owner)), (Ok(()), Err(Errno::ENOENT)));
    assert_eq!(node.attr().unwrap().nlink, 0);
    drop(node);
    // 819,200 bytes are the default of RLIMIT_MSGQUEUE; a usual queue costs 82,880.
    for n in 0..9 {
        assert_eq!(make(format!("queue{n}").as_bytes()), Ok(()));
    }
    assert_eq!(make(b"one too many"), Err(Errno::EMFILE));
    assert_eq!((names.unlink(b"queue3", &owner), make(b"instead")), (Ok(()), Ok(())));
}
