//! `mq_open`, `mq_unlink`, `mq_timedsend`, `mq_timedreceive`, `mq_notify`, `mq_getsetattr`.

use std::sync::Arc;
use std::time::Instant;

use linux_raw_sys::general as linux;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Args;
use super::pipes::install;
use super::time::RawTime;
use crate::errno::{Errno, SysResult};
use crate::fs::mqueue::{Node, OpenQueue};
use crate::ipc::Ipc;
use crate::ipc::mqueue::{MOST, Mqueue, Notice, PRIORITIES, Receiver, Settings, USUAL};
use crate::net::socket::SocketFile;
use crate::task::{Capability, Signal, SyscallContext, block};
use crate::time::clock_id::Clock;
use crate::vfs::inode::{Access, NewInode};
use crate::vfs::{File, Inode, OpenFlags};
use crate::wait::PollEvents;

/// Longest path that is read, in bytes.
const PATH_MAX: usize = linux::PATH_MAX as usize;

/// `struct mq_attr`
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct RawAttr {
    flags: i64,
    messages: i64,
    size: i64,
    present: i64,
    reserved: [i64; 4],
}

const _: () = assert!(size_of::<RawAttr>() == size_of::<libc::mq_attr>());

/// The part of `struct sigevent` that all kinds have.
#[derive(Clone, Copy, FromBytes)]
#[repr(C)]
struct RawEvent {
    value: u64,
    signal: i32,
    notify: i32,
    rest: [u64; 6],
}

const _: () = assert!(size_of::<RawEvent>() == size_of::<libc::sigevent>());

fn name(ctx: &SyscallContext<'_>, addr: u64) -> SysResult<Vec<u8>> {
    let name = ctx.task.mm().read_c_string(addr, PATH_MAX)?;
    if name.is_empty() { Err(Errno::ENOENT) } else { Ok(name) }
}

/// The size that is asked for; `EINVAL` if it is not allowed.
fn settings(ctx: &SyscallContext<'_>, asked: Option<RawAttr>) -> SysResult<Settings> {
    let Some(asked) = asked else { return Ok(USUAL) };
    let most = if ctx.task.credentials().has(Capability::SYS_RESOURCE) { MOST } else { USUAL };
    let within = |value: i64, most: u64| u64::try_from(value).ok().filter(|value| (1..=most).contains(value));
    match (within(asked.messages, most.messages), within(asked.size, most.size)) {
        (Some(messages), Some(size)) => Ok(Settings { messages, size }),
        _ => Err(Errno::EINVAL),
    }
}

/// `mq_open(const char *name, int flags, mode_t mode, struct mq_attr *attr)`
pub fn mq_open(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let asked = match args.raw(3) {
        0 => None,
        addr => Some(ctx.task.mm().copy_in::<RawAttr>(addr)?),
    };
    let name = name(ctx, args.raw(0))?;
    let flags = OpenFlags::from_bits_truncate(args.uint(1));
    let node = open_or_make(ctx, &name, flags, args.uint(2), asked)?;
    let kept = flags & (OpenFlags::ACCESS_MODE | OpenFlags::NONBLOCK);
    // Closed by execve whatever the caller asks for.
    install(ctx, node.describe(&name, kept), OpenFlags::CLOEXEC).map(|fd| fd.index())
}

fn open_or_make(
    ctx: &SyscallContext<'_>,
    name: &[u8],
    flags: OpenFlags,
    mode: u32,
    asked: Option<RawAttr>,
) -> SysResult<Arc<Node>> {
    let queues = Ipc::current(ctx)?.mqueues.clone();
    let who = ctx.task.credentials();
    match queues.find(name) {
        Err(Errno::ENOENT) if flags.contains(OpenFlags::CREAT) => {
            queues.may_change(&who)?;
            let mode = mode & 0o7777 & !ctx.task.fs().umask();
            let new = NewInode { mode, uid: who.fsuid, gid: who.fsgid };
            match queues.make(name, new, settings(ctx, asked)?, ctx.task) {
                // Somebody else was quicker.
                Err(Errno::EEXIST) if !flags.contains(OpenFlags::EXCL) => {}
                made => return made,
            }
        }
        Err(errno) => return Err(errno),
        Ok(_) if flags.contains(OpenFlags::CREAT | OpenFlags::EXCL) => return Err(Errno::EEXIST),
        Ok(_) => {}
    }
    let node = queues.find(name)?;
    let access = match flags & OpenFlags::ACCESS_MODE {
        OpenFlags::ACCESS_MODE => return Err(Errno::EINVAL),
        OpenFlags::WRONLY => Access::WRITE,
        OpenFlags::RDWR => Access::READ | Access::WRITE,
        _ => Access::READ,
    };
    node.permission(&who, access)?;
    Ok(node)
}

/// `mq_unlink(const char *name)`
pub fn mq_unlink(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let name = name(ctx, args.raw(0))?;
    Ipc::current(ctx)?.mqueues.unlink(&name, &ctx.task.credentials()).map(|()| 0)
}

/// The open queue behind a descriptor; `EBADF` for anything else.
fn queue_of(file: &File) -> SysResult<&Mqueue> {
    file.ops_as::<OpenQueue>().map(OpenQueue::queue).ok_or(Errno::EBADF)
}

/// An absolute time on the real-time clock. `EINVAL`.
fn deadline(ctx: &SyscallContext<'_>, addr: u64) -> SysResult<Option<Instant>> {
    if addr == 0 {
        return Ok(None);
    }
    let at: RawTime = ctx.task.mm().copy_in(addr)?;
    Clock::Realtime.instant_of(ctx, at.timespec()?).map(Some)
}

/// `mq_timedsend(mqd_t queue, const char *text, size_t size, unsigned priority, const struct timespec *timeout)`
pub fn mq_timedsend(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let deadline = deadline(ctx, args.raw(4))?;
    let priority = args.uint(3);
    if priority >= PRIORITIES {
        return Err(Errno::EINVAL);
    }
    let file = ctx.task.file(args.raw(0))?;
    let queue = queue_of(&file)?;
    if !file.flags().writable() {
        return Err(Errno::EBADF);
    }
    if args.raw(2) > queue.settings().size {
        return Err(Errno::EMSGSIZE);
    }
    let mut text = vec![0; usize::try_from(args.raw(2)).map_err(|_| Errno::EMSGSIZE)?];
    ctx.task.mm().read_bytes(args.raw(1), &mut text)?;
    let attempt = |ctx: &mut SyscallContext<'_>| queue.send(&text, priority, ctx.task);
    if file.nonblocking() {
        attempt(ctx)?;
    } else {
        block::until(ctx, queue.queue(), PollEvents::WRITABLE, deadline, attempt)?;
    }
    Ok(0)
}

/// `mq_timedreceive(mqd_t queue, char *text, size_t size, unsigned *priority, const struct timespec *timeout)`
pub fn mq_timedreceive(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let deadline = deadline(ctx, args.raw(4))?;
    let file = ctx.task.file(args.raw(0))?;
    let queue = queue_of(&file)?;
    if !file.flags().readable() {
        return Err(Errno::EBADF);
    }
    if args.raw(2) < queue.settings().size {
        return Err(Errno::EMSGSIZE);
    }
    let (text, priority) = if file.nonblocking() {
        queue.receive()?
    } else {
        let mut receiver = Receiver::new(queue);
        block::until(ctx, queue.queue(), PollEvents::READABLE, deadline, |_| receiver.receive())?
    };
    let mm = ctx.task.mm();
    if args.raw(3) != 0 {
        mm.copy_out(args.raw(3), &priority)?;
    }
    mm.write_bytes(args.raw(1), &text)?;
    Ok(text.len())
}

/// `mq_notify(mqd_t queue, const struct sigevent *event)`
pub fn mq_notify(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let event = match args.raw(1) {
        0 => None,
        addr => Some(ctx.task.mm().copy_in::<RawEvent>(addr)?),
    };
    let notice = event.map(|event| notice(ctx, &event)).transpose()?;
    let file = ctx.task.file(args.raw(0))?;
    let queue = queue_of(&file)?;
    let group = ctx.task.thread_group();
    match notice {
        Some(notice) => queue.register(group, notice)?,
        None => queue.unregister(group),
    }
    Ok(0)
}

fn notice(ctx: &SyscallContext<'_>, event: &RawEvent) -> SysResult<Notice> {
    match event.notify {
        libc::SIGEV_NONE => Ok(Notice::Silent),
        // Signal 0 is valid and nothing.
        libc::SIGEV_SIGNAL if event.signal == 0 => Ok(Notice::Silent),
        libc::SIGEV_SIGNAL => Ok(Notice::Signal(Signal::new(event.signal)?, event.value)),
        // The C library starts the thread when a netlink socket tells it to, and there are none.
        libc::SIGEV_THREAD => {
            let file = ctx.task.file(u64::from(event.signal.cast_unsigned()))?;
            SocketFile::of(&file).and(Err(Errno::EINVAL))
        }
        _ => Err(Errno::EINVAL),
    }
}

/// `mq_getsetattr(mqd_t queue, const struct mq_attr *new, struct mq_attr *old)`
pub fn mq_getsetattr(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let nonblock = i64::from(linux::O_NONBLOCK);
    let new = match args.raw(1) {
        0 => None,
        addr => Some(ctx.task.mm().copy_in::<RawAttr>(addr)?),
    };
    if new.is_some_and(|new| new.flags & !nonblock != 0) {
        return Err(Errno::EINVAL);
    }
    let file = ctx.task.file(args.raw(0))?;
    let queue = queue_of(&file)?;
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let old = RawAttr {
        flags: if file.nonblocking() { nonblock } else { 0 },
        messages: number(queue.settings().messages),
        size: number(queue.settings().size),
        present: number(queue.status().messages),
        reserved: [0; 4],
    };
    if let Some(new) = new {
        let wanted = if new.flags & nonblock != 0 { OpenFlags::NONBLOCK } else { OpenFlags::empty() };
        file.set_status_flags((file.flags() - OpenFlags::NONBLOCK) | wanted);
    }
    if args.raw(2) != 0 {
        ctx.task.mm().copy_out(args.raw(2), &old)?;
    }
    Ok(0)
}
