use super::ids::{Access, Ids, Object, Perm, Request, linux_flags};
use super::msg::{Message, Queues, Wanted};
use super::sem::{Awaited, Operation, Set, Sets, Waiting};
use super::undo::UndoList;
use super::*;
use crate::task::{Capability, Credentials};

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
    let set = Set::new(perm(), 3);
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
    let set = Set::new(perm(), 2);
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
