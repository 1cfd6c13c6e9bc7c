//! `execve`: a process becomes another program.
//!
//! Loading changes nothing and may fail. Then the other threads are killed; the survivor becomes the leader, whichever thread it
//! was. From there on nothing fails: memory, dispositions, descriptors and credentials are exchanged.

use std::sync::{Arc, Weak};

use super::exit::{release_memory, retire_thread};
use super::futex::robust;
use super::{AfterCall, AltStack, SyscallContext, Task, Work};
use crate::errno::{Errno, SysResult};
use crate::loader::LoadedImage;
use crate::wait::PollEvents;

/// Replaces the calling process by `image`.
pub fn replace(ctx: &mut SyscallContext<'_>, image: LoadedImage) -> SysResult {
    become_only_thread(ctx.task)?;
    let (task, group) = (ctx.task, ctx.task.thread_group());
    robust::leave_memory(task, ctx.local);
    if ctx.local.vfork_done.is_none() {
        group.note_memory(&task.mm());
    }
    release_memory(task, ctx.local);
    ctx.local.move_to(&image.mm);
    let old = task.replace_mm(image.mm);
    drop(old);
    let handlers = group.handlers().fork();
    handlers.reset_handlers();
    group.set_handlers(Arc::new(handlers));
    let files = task.files();
    // Shared with another process (CLONE_FILES without CLONE_THREAD): that one keeps its descriptors.
    if Arc::strong_count(&files) > 2 {
        task.set_files(Arc::new(files.fork()));
    }
    drop(files);
    let closed = task.files().take_close_on_exec();
    drop(closed);
    group.timers().on_exec(task.kernel().timers());
    {
        let mut relations = group.relations();
        relations.has_execed = true;
        relations.exit_signal = relations.exit_signal.map(|_| super::Signal::CHLD);
    }
    // A parent may wait for this to call setpgid in time; it gets EACCES from now on.
    let secure = image.secure || *task.credentials() != *image.credentials;
    task.set_credentials(image.credentials);
    task.set_comm(&image.comm);
    task.update_attributes(|attributes| {
        attributes.dumpable = image.dumpable;
        if secure {
            attributes.parent_death_signal = None;
        }
    });
    let local = &mut *ctx.local;
    local.registers = image.registers;
    local.machine.reset_fpu()?;
    local.alt_stack = AltStack::default();
    local.rseq = super::rseq::RseqState::default();
    local.restart = None;
    local.saved_mask = None;
    local.after = AfterCall::Keep;
    group.exit_queue().notify(PollEvents::PRI);
    Ok(())
}

/// Kills the other threads and waits until they are gone. `EAGAIN` if the process is ending or another thread is at it.
fn become_only_thread(task: &Arc<Task>) -> SysResult {
    let group = task.thread_group();
    let others = {
        let mut signals = group.lock_signals();
        if signals.exit.is_some() || signals.exec.strong_count() > 0 {
            return Err(Errno::EAGAIN);
        }
        signals.exec = Arc::downgrade(task);
        drop(signals);
        // Threads that are born from now on are refused; those born before are listed.
        let _tree = task.kernel().tree();
        group.members()
    };
    for other in others.iter().filter(|other| !Arc::ptr_eq(other, task)) {
        other.kick(Work::KILL);
    }
    drop(others);
    let result = wait_alone(task);
    if result.is_ok() && !task.is_leader() {
        take_over_leader(task);
    }
    group.lock_signals().exec = Weak::new();
    result
}

fn wait_alone(task: &Arc<Task>) -> SysResult {
    let group = task.thread_group();
    while group.thread_count() > 1 {
        if task.is_killed() {
            return Err(Errno::EAGAIN);
        }
        if task.work().contains(Work::FREEZE) {
            task.stand_while_frozen();
            continue;
        }
        task.wait_killable();
    }
    Ok(())
}

/// The survivor gets the process's pid; the dead leader goes with the survivor's.
fn take_over_leader(task: &Arc<Task>) {
    let group = task.thread_group();
    let _tree = task.kernel().tree();
    let former = {
        let mut relations = group.relations();
        relations.leader_status = None;
        relations.leader.replace(task.clone())
    };
    let own = std::mem::replace(&mut *task.pid.write(), group.pid().clone());
    group.pid().set_task(Arc::downgrade(task));
    if let Some(former) = former {
        *former.pid.write() = own;
        retire_thread(&former);
    }
}
