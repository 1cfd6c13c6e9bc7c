//! `ioctl` on both sides of a terminal (`ioctl_tty(2)`): decode, act, encode.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use linux_raw_sys::general as linux;
use linux_raw_sys::ioctl as cmd;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Tty;
use super::control::{Apply, Flush};
use super::termios::{N_TTY, Termios, WindowSize};
use crate::errno::{Errno, SysResult};
use crate::fs::anonymous::{AnonymousInode, Pseudo, next_ino};
use crate::syscalls::pipes::install;
use crate::task::{Capability, Signal, SyscallContext};
use crate::vfs::{File, FileOps, OpenFlags};

fn put_int(ctx: &SyscallContext<'_>, addr: u64, value: usize) -> SysResult<usize> {
    let value = i32::try_from(value).unwrap_or(i32::MAX);
    ctx.task.mm().copy_out(addr, &value).map(|()| 0)
}

fn get_int(ctx: &SyscallContext<'_>, addr: u64) -> SysResult<i32> {
    ctx.task.mm().copy_in(addr)
}

/// Requests on a slave.
pub(super) fn slave(
    tty: &Arc<Tty>,
    ctx: &mut SyscallContext<'_>,
    file: &Arc<File>,
    command: u32,
    arg: u64,
) -> SysResult<usize> {
    if !tty.lock().master_open {
        return Err(if command == cmd::TIOCSPGRP { Errno::ENOTTY } else { Errno::EIO });
    }
    let changes =
        [cmd::TIOCSETD, cmd::TIOCSBRK, cmd::TIOCCBRK, cmd::TCSBRK, cmd::TCSBRKP, cmd::TCXONC, cmd::TCFLSH];
    if changes.contains(&command) {
        tty.check_background(Signal::TTOU)?;
    }
    match command {
        cmd::TIOCSCTTY => tty.set_controlling(ctx.task, file.flags().readable(), arg == 1).map(|()| 0),
        cmd::TIOCNOTTY => tty.give_up(ctx.task).map(|()| 0),
        cmd::TCXONC => tty.flow(arg).map(|()| 0),
        cmd::TCFLSH => tty.flush(Flush::from_arg(arg)?).map(|()| 0),
        cmd::TCSBRK | cmd::TCSBRKP | cmd::TIOCSBRK | cmd::TIOCCBRK => Ok(0),
        cmd::FIONREAD => {
            let count = tty.lock().line.readable_bytes();
            put_int(ctx, arg, count)
        }
        cmd::TIOCOUTQ => put_int(ctx, arg, 0),
        cmd::TIOCSTI => Err(Errno::EIO),
        cmd::TIOCVHANGUP if !ctx.task.credentials().has(Capability::SYS_ADMIN) => Err(Errno::EPERM),
        cmd::TIOCVHANGUP => {
            tty.hang_up_session();
            Ok(0)
        }
        _ => both(tty, ctx, command, arg, Side::Slave),
    }
}

/// Requests on the master.
pub(super) fn master(
    tty: &Arc<Tty>,
    ctx: &mut SyscallContext<'_>,
    _: &Arc<File>,
    command: u32,
    arg: u64,
) -> SysResult<usize> {
    match command {
        cmd::TIOCGPTN => ctx.task.mm().copy_out(arg, &tty.index()).map(|()| 0),
        cmd::TIOCSPTLCK => {
            let lock = get_int(ctx, arg)? != 0;
            tty.lock().locked = lock;
            Ok(0)
        }
        cmd::TIOCGPTLCK => put_int(ctx, arg, usize::from(tty.lock().locked)),
        cmd::TIOCPKT => {
            let on = get_int(ctx, arg)? != 0;
            let mut state = tty.lock();
            if on && !state.packet_mode {
                tty.packet_status.store(0, Ordering::Relaxed);
            }
            state.packet_mode = on;
            Ok(0)
        }
        cmd::TIOCGPKT => put_int(ctx, arg, usize::from(tty.lock().packet_mode)),
        cmd::TIOCSIG => {
            let signal = Signal::new(i32::try_from(arg).map_err(|_| Errno::EINVAL)?)?;
            tty.signal_foreground(signal);
            Ok(0)
        }
        cmd::TIOCGPTPEER => open_peer(tty, ctx, arg),
        cmd::FIONREAD => {
            let count = tty.lock().line.output.ring.len();
            put_int(ctx, arg, count)
        }
        cmd::TIOCOUTQ => put_int(ctx, arg, 0),
        cmd::TCFLSH => tty.flush(Flush::from_arg(arg)?.mirrored()).map(|()| 0),
        cmd::TCXONC | cmd::TCSBRK | cmd::TCSBRKP => Ok(0),
        cmd::TIOCSCTTY | cmd::TIOCNOTTY => Err(Errno::ENOTTY),
        _ => both(tty, ctx, command, arg, Side::Master),
    }
}

fn open_peer(tty: &Arc<Tty>, ctx: &mut SyscallContext<'_>, arg: u64) -> SysResult<usize> {
    let flags = OpenFlags::from_bits_retain(u32::try_from(arg).map_err(|_| Errno::EINVAL)?);
    let slave = tty.open_slave()?;
    if !flags.contains(OpenFlags::NOCTTY) && flags.readable() {
        tty.adopt_on_open(ctx.task);
    }
    let ops: Arc<dyn FileOps> = Arc::new(slave);
    let file = match tty.instance.upgrade().and_then(|instance| instance.node(tty.index())) {
        Some(node) => File::new(ops, node, None, flags),
        None => AnonymousInode::open(ctx, Pseudo::Anonymous, next_ino(), ops, flags),
    };
    install(ctx, file, flags).map(|fd| fd.index())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Master,
    Slave,
}

/// Requests that mean the same on both sides.
fn both(
    tty: &Arc<Tty>,
    ctx: &mut SyscallContext<'_>,
    command: u32,
    arg: u64,
    side: Side,
) -> SysResult<usize> {
    let from_master = side == Side::Master;
    match command {
        cmd::TCGETS => {
            let termios = tty.termios()?;
            let short = termios.as_bytes().get(..Termios::SHORT).unwrap_or_default();
            ctx.task.mm().write_bytes(arg, short).map(|()| 0)
        }
        cmd::TCGETS2 => ctx.task.mm().copy_out(arg, &tty.termios()?).map(|()| 0),
        cmd::TCSETS | cmd::TCSETSW => set_termios(tty, ctx, arg, Termios::SHORT, Apply::Now),
        cmd::TCSETSF => set_termios(tty, ctx, arg, Termios::SHORT, Apply::AfterFlush),
        cmd::TCSETS2 | cmd::TCSETSW2 => set_termios(tty, ctx, arg, Termios::LONG, Apply::Now),
        cmd::TCSETSF2 => set_termios(tty, ctx, arg, Termios::LONG, Apply::AfterFlush),
        cmd::TCGETA => {
            let short = Short::of(&tty.termios()?);
            ctx.task.mm().write_bytes(arg, short.as_bytes()).map(|()| 0)
        }
        cmd::TCSETA | cmd::TCSETAW => set_short(tty, ctx, arg, Apply::Now),
        cmd::TCSETAF => set_short(tty, ctx, arg, Apply::AfterFlush),
        cmd::TIOCGWINSZ => ctx.task.mm().copy_out(arg, &tty.window()).map(|()| 0),
        cmd::TIOCSWINSZ => {
            let window: WindowSize = ctx.task.mm().copy_in(arg)?;
            tty.set_window(window);
            Ok(0)
        }
        cmd::TIOCGPGRP => {
            let id = tty.foreground_id(ctx, from_master)?;
            ctx.task.mm().copy_out(arg, &id).map(|()| 0)
        }
        cmd::TIOCSPGRP => {
            let id = get_int(ctx, arg)?;
            tty.set_foreground(ctx, id).map(|()| 0)
        }
        cmd::TIOCGSID => {
            let id = tty.session_id(ctx, from_master)?;
            ctx.task.mm().copy_out(arg, &id).map(|()| 0)
        }
        cmd::TIOCEXCL | cmd::TIOCNXCL => {
            tty.lock().exclusive = command == cmd::TIOCEXCL;
            Ok(0)
        }
        cmd::TIOCGEXCL => put_int(ctx, arg, usize::from(tty.lock().exclusive)),
        cmd::TIOCGETD => put_int(ctx, arg, usize::from(N_TTY)),
        cmd::TIOCSETD if get_int(ctx, arg)? == i32::from(N_TTY) => Ok(0),
        cmd::TIOCSETD => Err(Errno::EINVAL),
        cmd::TIOCGDEV => {
            let device = tty.slave_device().encode() as u32;
            ctx.task.mm().copy_out(arg, &device).map(|()| 0)
        }
        _ => Err(Errno::ENOTTY),
    }
}

fn set_termios(
    tty: &Arc<Tty>,
    ctx: &mut SyscallContext<'_>,
    arg: u64,
    size: usize,
    when: Apply,
) -> SysResult<usize> {
    tty.check_background(Signal::TTOU)?;
    // What the short structure does not have stays as it is.
    let mut bytes = [0; Termios::LONG];
    bytes.copy_from_slice(tty.termios()?.as_bytes());
    ctx.task.mm().read_bytes(arg, bytes.get_mut(..size).unwrap_or_default())?;
    let termios = Termios::read_from_bytes(&bytes).map_err(|_| Errno::EINVAL)?;
    tty.set_termios(termios, when).map(|()| 0)
}

/// `struct termio`, System V's: the low halves of the modes and the first control characters.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Short {
    modes: [u16; 4],
    line: u8,
    chars: [u8; 8],
    pad: u8,
}

const _: () = assert!(size_of::<Short>() == size_of::<linux::termio>());

impl Short {
    fn of(termios: &Termios) -> Short {
        let modes = [termios.input, termios.output, termios.control, termios.local].map(|mode| mode as u16);
        let chars = termios.chars.first_chunk().copied().unwrap_or_default();
        Short { modes, line: termios.line, chars, pad: 0 }
    }

    /// Lays it over what is set; the rest stays.
    fn apply(&self, termios: &mut Termios) {
        let wide = [&mut termios.input, &mut termios.output, &mut termios.control, &mut termios.local];
        for (mode, new) in wide.into_iter().zip(self.modes) {
            *mode = *mode & !0xffff | u32::from(new);
        }
        termios.line = self.line;
        for (slot, new) in termios.chars.iter_mut().zip(self.chars) {
            *slot = new;
        }
    }
}

fn set_short(tty: &Arc<Tty>, ctx: &mut SyscallContext<'_>, arg: u64, when: Apply) -> SysResult<usize> {
    tty.check_background(Signal::TTOU)?;
    let mut bytes = [0; size_of::<Short>()];
    ctx.task.mm().read_bytes(arg, &mut bytes)?;
    let short = Short::read_from_bytes(&bytes).map_err(|_| Errno::EINVAL)?;
    let mut termios = tty.termios()?;
    short.apply(&mut termios);
    tty.set_termios(termios, when).map(|()| 0)
}
