//! Terminals: a pseudo-terminal of the host whose far end the sentry copies from and to.
//!
//! The container has a pseudo-terminal of its own, inside, with line discipline and job control. The host's is a raw pipe with a size,
//! there because people's terminals and console sockets want a terminal's descriptor.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::pty::openpty;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// A raw pseudo-terminal: the people's end, the sentry's end.
///
/// # Errors
/// Those of `openpty` and `tcsetattr`.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let pty = openpty(None, None)?;
    let mut settings = tcgetattr(&pty.slave)?;
    cfmakeraw(&mut settings);
    tcsetattr(&pty.slave, SetArg::TCSANOW, &settings)?;
    for end in [&pty.master, &pty.slave] {
        rustix::io::fcntl_setfd(end, rustix::io::FdFlags::CLOEXEC)?;
    }
    Ok((pty.master, pty.slave))
}

/// Gives the people's end to whoever listens at `path`, as runc does: its name as data, its descriptor beside it.
///
/// # Errors
/// When nobody listens.
pub(super) fn hand_over(path: &Path, master: &OwnedFd) -> io::Result<()> {
    let socket = UnixStream::connect(path)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [master.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(&socket, &[IoSlice::new(b"/dev/ptmx")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Rows and columns of a terminal; `None` for anything else.
pub(super) fn size(terminal: impl AsFd) -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(terminal).ok()?;
    Some((size.ws_row, size.ws_col))
}

/// Sets a terminal's size.
pub(super) fn set_size(terminal: impl AsFd, rows: u16, columns: u16) {
    let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let _ = rustix::termios::tcsetwinsize(terminal, size);
}

/// This program's own terminal in raw mode; back to what it was when dropped.
pub(super) struct Raw {
    before: Option<Termios>,
}

impl Raw {
    /// Does nothing when standard input is no terminal.
    pub(super) fn enter() -> Self {
        let before = tcgetattr(io::stdin()).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            cfmakeraw(&mut raw);
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &raw);
        }
        Self { before }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, before);
        }
    }
}

/// Copies between this program's standard streams and the people's end; returns when the container's side is gone.
pub(super) fn copy(master: OwnedFd) -> io::Result<()> {
    let input = master.try_clone()?;
    std::thread::spawn(move || {
        let mut to = File::from(input);
        let mut from = io::stdin().lock();
        let mut part = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut part) {
            if to.write_all(part.get(..count).unwrap_or_default()).is_err() {
                return;
            }
        }
    });
    let mut from = File::from(master);
    let mut to = io::stdout().lock();
    let mut part = [0; 16 << 10];
    // EIO: the last descriptor of the other end was closed.
    while let Ok(count @ 1..) = from.read(&mut part) {
        to.write_all(part.get(..count).unwrap_or_default())?;
        to.flush()?;
    }
    Ok(())
}
