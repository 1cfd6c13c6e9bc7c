//! Sockets in each other's queues that nobody can reach any more.
//!
//! A description that is in flight only keeps itself alive: a socket sent over itself and closed would stay for ever.
//! Whenever a unix socket closes while others are in flight, those that are referred to by nothing but messages in
//! queues of the same set are found by elimination and their queues emptied. Anything that holds a reference for any
//! other reason (a descriptor, a call in progress) keeps its socket and what is in its queue.
//!
//! Lock order: the list of sockets in flight, then one inbox at a time.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::UnixSocket;
use crate::net::control::Rights;
use crate::net::socket::SocketFile;
use crate::vfs::File;

/// Descriptions of unix sockets that have been put in flight, by address; the dead leave at the next collection.
static SENT: Mutex<Vec<Weak<File>>> = Mutex::new(Vec::new());

/// Notes the unix sockets among descriptions that are being sent.
pub(super) fn note(files: &[Arc<File>]) {
    let sockets = files.iter().filter(|file| socket_of(file).is_some());
    let mut sent = None;
    for file in sockets {
        let sent = sent.get_or_insert_with(|| SENT.lock());
        if !sent.iter().any(|other| std::ptr::eq(other.as_ptr(), Arc::as_ptr(file))) {
            sent.push(Arc::downgrade(file));
        }
    }
}

fn socket_of(file: &File) -> Option<Arc<UnixSocket>> {
    let socket = SocketFile::of(file).ok()?.clone();
    socket.into_any().downcast().ok()
}

struct Candidate {
    file: Arc<File>,
    socket: Arc<UnixSocket>,
    /// References found in queues of candidates.
    found: usize,
}

/// Frees what is unreachable.
pub(super) fn collect() {
    let mut sent = SENT.lock();
    if sent.is_empty() {
        return;
    }
    let mut candidates: HashMap<usize, Candidate> = HashMap::new();
    sent.retain(|weak| {
        let Some(file) = weak.upgrade() else { return false };
        let Some(socket) = socket_of(&file) else { return false };
        candidates.insert(Arc::as_ptr(&file) as usize, Candidate { file, socket, found: 0 });
        true
    });
    // Twice without a change: a receiver may have taken something between counting and comparing.
    let mut unchanged = 0;
    while unchanged < 2 && !candidates.is_empty() {
        count_references(&mut candidates);
        // One reference is ours.
        let before = candidates.len();
        let held =
            |candidate: &Candidate| Arc::strong_count(&candidate.file) > candidate.found.saturating_add(1);
        let kept: Vec<Candidate> =
            candidates.extract_if(|_, candidate| held(candidate)).map(|(_, c)| c).collect();
        unchanged = if candidates.len() == before { unchanged + 1 } else { 0 };
        // These may be the last references by now; not under the lock.
        drop_later(&mut sent, kept);
    }
    let garbage: Vec<Rights> =
        candidates.values().flat_map(|candidate| candidate.socket.queued_rights()).collect();
    drop(sent);
    drop(garbage);
    drop(candidates);
}

fn drop_later(sent: &mut parking_lot::MutexGuard<'_, Vec<Weak<File>>>, kept: Vec<Candidate>) {
    parking_lot::MutexGuard::unlocked(sent, || drop(kept));
}

fn count_references(candidates: &mut HashMap<usize, Candidate>) {
    let mut found: HashMap<usize, usize> = HashMap::new();
    for candidate in candidates.values() {
        candidate.socket.for_each_queued_file(&mut |file| {
            let count = found.entry(Arc::as_ptr(file) as usize).or_default();
            *count = count.saturating_add(1);
        });
    }
    for (address, candidate) in candidates {
        candidate.found = found.get(address).copied().unwrap_or(0);
    }
}
