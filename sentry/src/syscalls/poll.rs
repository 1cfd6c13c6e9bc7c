//! `poll`, `ppoll`, `select`, `pselect6`.
//!
//! All four build a list of [`Watched`] files and wait on all their queues at once. Timeouts keep their deadline when the
//! call is restarted. Only results are written back, never what the caller asked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Args;
use crate::errno::{Errno, SysResult};
use crate::task::{Resource, SignalSet, SyscallContext};
use crate::vfs::File;
use crate::wait::{Observer, PollEvents, Registration, WaitOutcome, was_declined};

/// Bytes of a `struct pollfd`.
const POLLFD_SIZE: usize = 8;
/// Offset of `revents` in it.
const REVENTS: u64 = 6;
/// Bits of a word of an `fd_set`.
const WORD_BITS: usize = u64::BITS as usize;

/// Units of the fractions of a second in `struct timespec` and `struct timeval`, in nanoseconds.
const NANOSECONDS: u32 = 1;
const MICROSECONDS: u32 = 1000;

/// What makes a descriptor readable, writable, exceptional for `select` (`fs/select.c`).
const SELECT_READ: PollEvents =
    PollEvents::READABLE.union(PollEvents::RDBAND).union(PollEvents::HUP).union(PollEvents::ERR);
const SELECT_WRITE: PollEvents = PollEvents::WRITABLE.union(PollEvents::WRBAND).union(PollEvents::ERR);
const SELECT_EXCEPT: PollEvents = PollEvents::PRI;

/// A descriptor that is being waited for.
struct Watched {
    file: Option<Arc<File>>,
    wanted: PollEvents,
    ready: PollEvents,
}

/// Looks at every file and returns how many have something to report.
fn scan(watched: &mut [Watched]) -> usize {
    let mut count: usize = 0;
    for entry in watched.iter_mut() {
        if let Some(file) = &entry.file {
            entry.ready = file.poll() & entry.wanted;
        }
        count = count.saturating_add(usize::from(!entry.ready.is_empty()));
    }
    count
}

/// Waits until a file has something to report; 0 when the deadline passes, `ERESTARTSYS` when interrupted.
fn wait_any(
    ctx: &SyscallContext<'_>,
    watched: &mut [Watched],
    deadline: Option<Instant>,
) -> SysResult<usize> {
    let count = scan(watched);
    if count > 0 || deadline.is_some_and(|at| at <= Instant::now()) {
        return Ok(count);
    }
    let waiter = ctx.task.waiter().clone();
    let registrations: Vec<Registration> = watched
        .iter()
        .filter_map(|entry| {
            let queue = entry.file.as_ref()?.ops().wait_queue()?;
            Some(queue.register(entry.wanted, waiter.clone() as Arc<dyn Observer>))
        })
        .collect();
    let result = loop {
        waiter.arm();
        let count = scan(watched);
        if count > 0 {
            break Ok(count);
        }
        match ctx.task.sleep(deadline) {
            WaitOutcome::Notified => {}
            WaitOutcome::Interrupted => break Err(Errno::ERESTARTSYS),
            WaitOutcome::TimedOut => break Ok(0),
        }
    };
    drop(registrations);
    result
}

/// Reads an optional signal mask; `EINVAL` for a wrong size.
pub(super) fn read_mask(ctx: &SyscallContext<'_>, addr: u64, size: u64) -> SysResult<Option<SignalSet>> {
    if addr == 0 {
        return Ok(None);
    }
    if size != size_of::<u64>() as u64 {
        return Err(Errno::EINVAL);
    }
    Ok(Some(SignalSet::from_bits(ctx.task.mm().copy_in(addr)?)))
}

/// Reads an optional relative `struct timespec`; `EINVAL` if it is none.
pub(super) fn read_timeout(ctx: &SyscallContext<'_>, addr: u64) -> SysResult<Option<Duration>> {
    if addr == 0 {
        return Ok(None);
    }
    let [sec, nsec] = ctx.task.mm().copy_in::<[i64; 2]>(addr)?;
    match (u64::try_from(sec), u32::try_from(nsec)) {
        (Ok(sec), Ok(nsec)) if nsec < 1_000_000_000 => Ok(Some(Duration::new(sec, nsec))),
        _ => Err(Errno::EINVAL),
    }
}

/// Reads an optional `struct timeval`, whose microseconds may exceed a second.
fn read_timeval(ctx: &SyscallContext<'_>, addr: u64) -> SysResult<Option<Duration>> {
    if addr == 0 {
        return Ok(None);
    }
    let [sec, usec] = ctx.task.mm().copy_in::<[i64; 2]>(addr)?;
    match (u64::try_from(sec), u64::try_from(usec)) {
        (Ok(sec), Ok(usec)) => Ok(Some(Duration::from_secs(sec).saturating_add(Duration::from_micros(usec)))),
        _ => Err(Errno::EINVAL),
    }
}

/// After a call with a temporary mask: a call that was not interrupted puts the old mask back before any signal is looked
/// for, so that a signal the caller blocks is not delivered although the call succeeded.
pub(super) fn finish_wait(ctx: &mut SyscallContext<'_>, result: &SysResult<usize>) {
    if result.is_err_and(Errno::is_restart) {
        return;
    }
    if let Some(mask) = ctx.local.saved_mask.take() {
        ctx.task.replace_mask(mask);
    }
}

/// Writes what is left of a timeout to `addr`, its fraction in units of `unit` nanoseconds; a fault does not matter any more. A call that is
/// about to be made again by its own thread has not begun.
fn write_left(ctx: &SyscallContext<'_>, addr: u64, deadline: Option<Instant>, unit: u32) {
    let Some(deadline) = deadline.filter(|_| !was_declined()) else { return };
    if ctx.task.attributes().personality & libc::STICKY_TIMEOUTS as u32 != 0 {
        return;
    }
    let left = deadline.saturating_duration_since(Instant::now());
    let fraction = left.subsec_nanos().checked_div(unit).unwrap_or(0);
    let _ = ctx.task.mm().copy_out(addr, &[left.as_secs(), u64::from(fraction)]);
}

/// `poll(struct pollfd *fds, nfds_t nfds, int timeout)`
pub fn poll(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let timeout = u64::try_from(args.int(2)).ok().map(Duration::from_millis);
    let deadline = ctx.deadline_after(timeout);
    poll_until(ctx, args, deadline)
}

/// `ppoll(struct pollfd *fds, nfds_t nfds, struct timespec *timeout, const sigset_t *sigmask, size_t sigsetsize)`
pub fn ppoll(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let timeout = read_timeout(ctx, args.raw(2))?;
    let mask = read_mask(ctx, args.raw(3), args.raw(4))?;
    let deadline = ctx.deadline_after(timeout);
    if let Some(mask) = mask {
        ctx.set_temporary_mask(mask);
    }
    let result = poll_until(ctx, args, deadline);
    finish_wait(ctx, &result);
    write_left(ctx, args.raw(2), deadline, NANOSECONDS);
    result
}

fn poll_until(ctx: &mut SyscallContext<'_>, args: &Args, deadline: Option<Instant>) -> SysResult<usize> {
    let (addr, count) = (args.raw(0), u64::from(args.uint(1)));
    if count > ctx.task.rlimit(Resource::Nofile).soft {
        return Err(Errno::EINVAL);
    }
    let count = usize::try_from(count).map_err(|_| Errno::EINVAL)?;
    let mut raw = vec![0; count.saturating_mul(POLLFD_SIZE)];
    ctx.task.mm().read_bytes(addr, &mut raw)?;
    let mut watched: Vec<Watched> =
        raw.chunks_exact(POLLFD_SIZE).map(|entry| decode_pollfd(ctx, entry)).collect();
    let ready = match wait_any(ctx, &mut watched, deadline) {
        Err(Errno::ERESTARTSYS) => return Err(ctx.restart_with(deadline)),
        other => other?,
    };
    let mm = ctx.task.mm();
    for (index, entry) in watched.iter().enumerate() {
        let at = (index as u64).saturating_mul(POLLFD_SIZE as u64).saturating_add(REVENTS);
        let revents = entry.ready.bits() as u16;
        mm.copy_out(addr.checked_add(at).ok_or(Errno::EFAULT)?, &revents)?;
    }
    Ok(ready)
}

fn decode_pollfd(ctx: &SyscallContext<'_>, entry: &[u8]) -> Watched {
    let (fd, rest) =
        entry.split_first_chunk::<4>().map_or((-1, entry), |(fd, rest)| (i32::from_ne_bytes(*fd), rest));
    let events = u16::from_ne_bytes(rest.first_chunk().copied().unwrap_or_default());
    let wanted = PollEvents::from_bits_truncate(u32::from(events)) | PollEvents::ALWAYS;
    let mut watched = Watched { file: None, wanted, ready: PollEvents::empty() };
    if let Ok(fd) = u64::try_from(fd) {
        match ctx.task.file(fd) {
            Ok(file) => watched.file = Some(file),
            Err(_) => watched.ready = PollEvents::NVAL,
        }
    }
    watched
}

/// `select(int nfds, fd_set *r, fd_set *w, fd_set *e, struct timeval *timeout)`
pub fn select(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let timeout = read_timeval(ctx, args.raw(4))?;
    let deadline = ctx.deadline_after(timeout);
    let result = select_until(ctx, args, deadline);
    write_left(ctx, args.raw(4), deadline, MICROSECONDS);
    result
}

/// `pselect6(int nfds, fd_set *r, fd_set *w, fd_set *e, struct timespec *timeout, const struct { sigset_t *, size_t } *sig)`
pub fn pselect6(ctx: &mut SyscallContext<'_>, args: &Args) -> SysResult<usize> {
    let [mask_addr, mask_size] = match args.raw(5) {
        0 => [0, 0],
        addr => ctx.task.mm().copy_in::<[u64; 2]>(addr)?,
    };
    let timeout = read_timeout(ctx, args.raw(4))?;
    let mask = read_mask(ctx, mask_addr, mask_size)?;
    let deadline = ctx.deadline_after(timeout);
    if let Some(mask) = mask {
        ctx.set_temporary_mask(mask);
    }
    let result = select_until(ctx, args, deadline);
    finish_wait(ctx, &result);
    write_left(ctx, args.raw(4), deadline, NANOSECONDS);
    result
}

/// One of `select`'s three sets: where it is, and its words.
struct FdSet {
    addr: u64,
    words: Vec<u64>,
}

impl FdSet {
    fn read(ctx: &SyscallContext<'_>, addr: u64, words: usize) -> SysResult<FdSet> {
        let mut set = FdSet { addr, words: vec![0; words] };
        if addr != 0 {
            let mut bytes = vec![0; words.saturating_mul(size_of::<u64>())];
            ctx.task.mm().read_bytes(addr, &mut bytes)?;
            for (word, chunk) in set.words.iter_mut().zip(bytes.chunks_exact(size_of::<u64>())) {
                *word = u64::from_ne_bytes(chunk.first_chunk().copied().unwrap_or_default());
            }
        }
        Ok(set)
    }

    fn contains(&self, fd: usize) -> bool {
        self.words.get(fd / WORD_BITS).is_some_and(|word| word >> (fd % WORD_BITS) & 1 != 0)
    }

    fn add(&mut self, fd: usize) {
        if let Some(word) = self.words.get_mut(fd / WORD_BITS) {
            *word |= 1 << (fd % WORD_BITS);
        }
    }

    fn write(&self, ctx: &SyscallContext<'_>) -> SysResult {
        if self.addr == 0 {
            return Ok(());
        }
        let bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        ctx.task.mm().write_bytes(self.addr, &bytes)
    }
}

fn select_until(ctx: &mut SyscallContext<'_>, args: &Args, deadline: Option<Instant>) -> SysResult<usize> {
    let count = usize::try_from(args.int(0)).map_err(|_| Errno::EINVAL)?;
    // Linux looks no further than the descriptor table reaches: what is asked beyond is neither an error nor ever ready.
    let count = count.min(ctx.task.files().reach());
    let words = count.div_ceil(WORD_BITS);
    let mut sets = [
        FdSet::read(ctx, args.raw(1), words)?,
        FdSet::read(ctx, args.raw(2), words)?,
        FdSet::read(ctx, args.raw(3), words)?,
    ];
    const KINDS: [PollEvents; 3] = [SELECT_READ, SELECT_WRITE, SELECT_EXCEPT];
    let mut fds = Vec::new();
    let mut watched = Vec::new();
    for fd in 0..count {
        let asked = sets.iter().zip(KINDS).filter(|(set, _)| set.contains(fd));
        let wanted = asked.fold(PollEvents::empty(), |all, (_, kind)| all | kind);
        if !wanted.is_empty() {
            fds.push((fd, wanted));
            watched.push(Watched {
                file: Some(ctx.task.file(fd as u64)?),
                wanted,
                ready: PollEvents::empty(),
            });
        }
    }
    match wait_any(ctx, &mut watched, deadline) {
        Err(Errno::ERESTARTSYS) => return Err(ctx.restart_with(deadline)),
        other => other?,
    };
    let mut ready: usize = 0;
    for (set, kind) in sets.iter_mut().zip(KINDS) {
        let asked: Vec<bool> = fds.iter().map(|(fd, _)| set.contains(*fd)).collect();
        set.words.fill(0);
        for (((fd, _), entry), asked) in fds.iter().zip(&watched).zip(asked) {
            if asked && entry.ready.intersects(kind) {
                set.add(*fd);
                ready = ready.saturating_add(1);
            }
        }
        set.write(ctx)?;
    }
    Ok(ready)
}
