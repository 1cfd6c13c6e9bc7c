//! `/proc/sysvipc`: the System V objects of the reader's ipc namespace.

use std::fmt::Write;
use std::sync::Arc;

use super::system::SystemFile;
use crate::fs::pseudo::{PseudoDir, PseudoFile, PseudoFs, StaticDir};
use crate::ipc::Ipc;
use crate::ipc::ids::Object;
use crate::kernel::Kernel;
use crate::task::{Task, current};
use crate::vfs::Inode;

/// The directory.
pub fn directory(fs: &Arc<PseudoFs>, kernel: &Arc<Kernel>) -> Arc<dyn Inode> {
    let file = |show: fn(&Kernel) -> String| {
        PseudoFile::inode(fs, 0o444, SystemFile { kernel: kernel.clone(), show })
    };
    let dir = StaticDir::new().with("msg", file(|_| messages())).with("sem", file(|_| semaphores()));
    PseudoDir::inode(fs, 0o555, dir.with("shm", file(|_| segments())))
}

/// The rows under a header.
fn table(header: &str, rows: impl FnOnce(&mut String, &Ipc, &Arc<Task>)) -> String {
    let mut text = format!("{header}\n");
    if let Some(task) = current::current()
        && let Ok(ipc) = Ipc::of(&task)
    {
        rows(&mut text, &ipc, &task);
    }
    text
}

fn segments() -> String {
    let header = "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap";
    table(header, |text, ipc, task| {
        for segment in ipc.shm.list() {
            let perm = segment.perm().lock().clone();
            let times = segment.times();
            let _ = writeln!(
                text,
                "{:10} {:10}  {:4o} {:21} {:5} {:5}  {:5} {:5} {:5} {:5} {:5} {:10} {:10} {:10} {:21} {:21}",
                perm.key,
                perm.id,
                perm.mode,
                segment.size(),
                times.creator.seen_by(task),
                times.last.seen_by(task),
                segment.attachments(),
                perm.uid,
                perm.gid,
                perm.cuid,
                perm.cgid,
                times.attached,
                times.detached,
                times.changed,
                segment.resident(),
                0,
            );
        }
    })
}

fn semaphores() -> String {
    let header = "       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime";
    table(header, |text, ipc, _| {
        for set in ipc.sem.list() {
            let perm = set.perm().lock().clone();
            let (operated, changed) = set.times();
            let _ = writeln!(
                text,
                "{:10} {:10}  {:4o} {:10} {:5} {:5} {:5} {:5} {operated:10} {changed:10}",
                perm.key,
                perm.id,
                perm.mode,
                set.len(),
                perm.uid,
                perm.gid,
                perm.cuid,
                perm.cgid,
            );
        }
    })
}

fn messages() -> String {
    let header = "       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid      stime      rtime      ctime";
    table(header, |text, ipc, task| {
        for queue in ipc.msg.list() {
            let perm = queue.perm().lock().clone();
            let status = queue.status();
            let [sender, receiver] = status.last.map(|who| who.seen_by(task));
            let [sent, received, changed] = status.times;
            let _ = writeln!(
                text,
                "{:10} {:10}  {:4o}  {:10} {:10} {sender:5} {receiver:5} {:5} {:5} {:5} {:5} {sent:10} {received:10} {changed:10}",
                perm.key,
                perm.id,
                perm.mode,
                status.bytes,
                status.messages,
                perm.uid,
                perm.gid,
                perm.cuid,
                perm.cgid,
            );
        }
    })
}
