//! What a command says to a container's monitor: one packet with JSON in it and descriptors beside it, one packet back.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    listen, recv, recvmsg, sendmsg, socket_with, sockopt,
};
use serde::{Deserialize, Serialize};

/// Longest packet. The send buffer is raised to hold it.
const MAX: usize = 4 << 20;

/// What a command wants.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Ask {
    /// Create the container; the monitor's own standard streams, or one descriptor when it is a terminal, are its.
    Create,
    /// Run it.
    Start,
    /// Signal it.
    Kill { signal: u32, all: bool },
    /// Wait for a process's end; the empty ID is the container.
    Wait { exec: String },
    /// Add a process and run it; its streams come along.
    Exec { exec: String, process: String, terminal: bool },
    /// Forget a process that has ended.
    DeleteExec { exec: String },
    /// Its processes.
    Ps,
    /// Its figures.
    Stats,
    /// Its kernel's counters and tasks.
    Debug,
    /// Stop it.
    Pause,
    /// Let it run.
    Resume,
    /// Give everything back; kills it first if asked to.
    Delete { force: bool },
    /// Change a terminal's size.
    Resize { exec: String, rows: u16, columns: u16 },
    /// Where it is in its life.
    Status,
}

/// What the monitor says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Say {
    /// Done.
    Done,
    /// The pid.
    Pid(u32),
    /// The exit status.
    Exited(u32),
    /// Something to print.
    Text(String),
    /// It failed.
    Failed(String),
}

fn unsuited(e: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, e)
}

fn new_socket() -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    roomy(&socket);
    Ok(socket)
}

fn roomy(socket: &OwnedFd) {
    // Root may go beyond the limit; for others long argument lists fail with a clear EMSGSIZE.
    let _ = sockopt::set_socket_send_buffer_size_force(socket, MAX)
        .or_else(|_| sockopt::set_socket_send_buffer_size(socket, MAX));
}

/// The address of the socket at `path`, good for as long as the descriptor beside it is open. It leads there through the
/// directory's descriptor: an address holds 107 bytes, and a state directory may well be deeper.
fn address(path: &Path) -> io::Result<(OwnedFd, SocketAddrUnix)> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    Ok((directory, SocketAddrUnix::new(short)?))
}

/// Listens at `path`.
///
/// # Errors
/// Those of the socket calls.
pub(super) fn listener(path: &Path) -> io::Result<OwnedFd> {
    let socket = new_socket()?;
    let (_directory, address) = address(path)?;
    bind(&socket, &address)?;
    listen(&socket, 64)?;
    Ok(socket)
}

/// The next command's connection.
///
/// # Errors
/// Those of `accept`.
pub(super) fn next(listener: &OwnedFd) -> io::Result<OwnedFd> {
    let socket = accept_with(listener, SocketFlags::CLOEXEC)?;
    roomy(&socket);
    Ok(socket)
}

/// Connects to the monitor that listens at `path`.
///
/// # Errors
/// `NotFound` and `ConnectionRefused`: nobody is there.
pub(super) fn dial(path: &Path) -> io::Result<OwnedFd> {
    let socket = new_socket()?;
    let (_directory, address) = address(path)?;
    connect(&socket, &address)?;
    Ok(socket)
}

/// Sends a packet.
///
/// # Errors
/// Those of the socket, `EMSGSIZE` for one that is too long.
pub(super) fn send<T: Serialize>(socket: &OwnedFd, what: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(what).map_err(unsuited)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives a packet; `None` when the other side has closed.
///
/// # Errors
/// Those of the socket, and for packets that are not ours.
pub(super) fn receive<T: for<'a> Deserialize<'a>>(socket: &OwnedFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    // Most packets are short: a monitor that has answered a hundred commands should not hold the longest one's memory.
    let (_, length) = recv(socket, &mut [0_u8; 1], RecvFlags::PEEK | RecvFlags::TRUNC)?;
    let mut bytes = vec![0; length.min(MAX)];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got =
        recvmsg(socket.as_fd(), &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if got.bytes == 0 {
        return Ok(None);
    }
    let said = serde_json::from_slice(bytes.get(..got.bytes).unwrap_or_default()).map_err(unsuited)?;
    Ok(Some((said, fds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deep_directory_is_no_hindrance() -> io::Result<()> {
        let top = std::env::temp_dir().join(format!("caisson-wire-{}", std::process::id()));
        let deep = top.join("d".repeat(100)).join("e".repeat(100));
        std::fs::create_dir_all(&deep)?;
        let path = deep.join("monitor.sock");
        let listener = listener(&path)?;
        let here = dial(&path)?;
        let there = next(&listener)?;
        send(&here, &Ask::Status, &[])?;
        let received = receive::<Ask>(&there)?;
        assert!(matches!(received, Some((Ask::Status, fds)) if fds.is_empty()));
        std::fs::remove_dir_all(&top)
    }
}
