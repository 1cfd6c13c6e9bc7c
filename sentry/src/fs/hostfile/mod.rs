//! Files that are host descriptors: the standard streams the shim hands over.
//!
//! A [`HostFile`] never blocks the host thread. A description that is ours alone gets `O_NONBLOCK`; one that is shared with
//! processes of the host keeps its flags, and is asked for readiness before each transfer. Readiness for waiting comes
//! from the sandbox's one [`HostPoller`] thread, which a file joins when somebody first waits for it.
//!
//! The position of a regular file is the host description's: standard output and standard error are often two descriptors of
//! one description, and a shell goes on with it afterwards. Each of them has to go on where the last one stopped.
//!
//! Not there yet: `FIONREAD` and terminal requests on host descriptors (the sentry may not make such ioctls), mapping of
//! regular files passed as standard streams.

mod inode;
pub mod poller;
#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{MsgFlags, recv, send};
use nix::unistd::{Whence as HostWhence, lseek};

use crate::errno::{Errno, SysResult};
use crate::io::{IoDst, IoSrc};
use crate::vfs::{File, FileOps, FileType, OUTER_POSITION, OpenFlags, Whence};
use crate::wait::{PollEvents, WaitQueue};
use inode::HostInode;
use poller::{HostPoller, HostReady, HostWatch};

/// Most bytes one transfer moves through a buffer (sockets).
const CHUNK: usize = 64 << 10;
/// A write of this size does not block on a pipe that is writable.
const ATOMIC: usize = linux_raw_sys::general::PIPE_BUF as usize;

/// Who else uses the description behind a host descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody: its status flags are ours to change.
    Ours,
    /// Perhaps others (a shell's terminal or pipe): leave its flags alone.
    Shared,
}

/// How a descriptor is kept from blocking us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Regular files and devices that never block.
    Seekable,
    /// `O_NONBLOCK` is set.
    Nonblocking,
    /// Asked before each transfer.
    Polled,
    /// `MSG_DONTWAIT`.
    Socket,
}

/// The operations of a host descriptor.
pub struct HostFile {
    fd: Arc<OwnedFd>,
    manner: Manner,
    file_type: FileType,
    ino: u64,
    queue: Arc<WaitQueue>,
    poller: Arc<HostPoller>,
    watch: OnceLock<Option<HostWatch>>,
}

/// Passes host readiness to a wait queue.
struct Notify(Arc<WaitQueue>);

impl HostReady for Notify {
    fn ready(&self, events: PollEvents) {
        self.0.notify(events);
    }
}

/// Opens a host descriptor as a file. The access mode is the descriptor's own.
pub fn open(poller: &Arc<HostPoller>, fd: OwnedFd, sharing: Sharing) -> SysResult<Arc<File>> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    let inode = Arc::new(HostInode::new(fd.try_clone()?)?);
    let file_type = inode.kind();
    let manner = match file_type {
        FileType::Socket => Manner::Socket,
        FileType::Fifo | FileType::CharDevice if flags.contains(OFlag::O_NONBLOCK) => Manner::Nonblocking,
        FileType::Fifo if sharing == Sharing::Ours => {
            fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
            Manner::Nonblocking
        }
        FileType::CharDevice if inode.is_null() => Manner::Seekable,
        FileType::Fifo | FileType::CharDevice => Manner::Polled,
        _ => Manner::Seekable,
    };
    let mode = match flags & OFlag::O_ACCMODE {
        OFlag::O_WRONLY => OpenFlags::WRONLY,
        OFlag::O_RDWR => OpenFlags::RDWR,
        _ => OpenFlags::empty(),
    };
    let append = if flags.contains(OFlag::O_APPEND) { OpenFlags::APPEND } else { OpenFlags::empty() };
    let ops = HostFile {
        ino: rustix::fs::fstat(&fd)?.st_ino,
        fd: Arc::new(fd),
        manner,
        file_type,
        queue: Arc::default(),
        poller: poller.clone(),
        watch: OnceLock::new(),
    };
    Ok(File::new(Arc::new(ops), inode, None, mode | append))
}

impl HostFile {
    /// What the host says about the descriptor now.
    fn host_readiness(&self) -> PollEvents {
        let interest = PollFlags::POLLIN
            | PollFlags::POLLOUT
            | PollFlags::from_bits_retain(PollEvents::RDHUP.bits() as i16);
        let mut fds = [PollFd::new(self.fd.as_fd(), interest)];
        if nix::poll::poll(&mut fds, PollTimeout::ZERO).is_err() {
            return PollEvents::ERR;
        }
        let [fd] = &fds;
        let found = fd.revents().map_or(0, |flags| flags.bits() as u16);
        let mut events = PollEvents::from_bits_truncate(u32::from(found));
        if events.contains(PollEvents::IN) {
            events |= PollEvents::READABLE;
        }
        if events.contains(PollEvents::OUT) {
            events |= PollEvents::WRITABLE;
        }
        events
    }
}

/// The offset to pass on: none for the host's own position, which moves and which others who share it see move.
fn host_offset(offset: u64) -> Option<u64> {
    (offset != OUTER_POSITION).then_some(offset)
}

impl FileOps for HostFile {
    fn read(&self, _: &File, dst: &mut dyn IoDst, offset: &mut u64) -> SysResult<usize> {
        let len = dst.remaining();
        if len == 0 {
            return Ok(0);
        }
        match self.manner {
            Manner::Seekable => {
                let count = dst.read_from_host(self.fd.as_fd(), host_offset(*offset), len)?;
                *offset = offset.saturating_add(count as u64);
                Ok(count)
            }
            Manner::Nonblocking => dst.read_from_host(self.fd.as_fd(), None, len),
            Manner::Polled => {
                let wanted = PollEvents::IN | PollEvents::ALWAYS;
                if !self.host_readiness().intersects(wanted) {
                    return Err(Errno::EAGAIN);
                }
                dst.read_from_host(self.fd.as_fd(), None, len)
            }
            Manner::Socket => {
                let mut buf = vec![0; len.min(CHUNK)];
                let count =
                    recv(std::os::fd::AsRawFd::as_raw_fd(&*self.fd), &mut buf, MsgFlags::MSG_DONTWAIT)?;
                dst.put(buf.get(..count).unwrap_or_default())
            }
        }
    }

    fn write(&self, file: &File, src: &mut dyn IoSrc, offset: &mut u64) -> SysResult<usize> {
        let len = src.remaining();
        if len == 0 {
            return Ok(0);
        }
        match self.manner {
            Manner::Seekable => {
                let append = file.flags().contains(OpenFlags::APPEND);
                let at = if append { None } else { host_offset(*offset) };
                let count = src.write_to_host(self.fd.as_fd(), at, len)?;
                *offset = offset.saturating_add(count as u64);
                Ok(count)
            }
            Manner::Nonblocking => src.write_to_host(self.fd.as_fd(), None, len),
            Manner::Polled => {
                let ready = self.host_readiness();
                if !ready.intersects(PollEvents::OUT | PollEvents::ALWAYS) {
                    return Err(Errno::EAGAIN);
                }
                src.write_to_host(self.fd.as_fd(), None, len.min(ATOMIC))
            }
            Manner::Socket => {
                let mut buf = vec![0; len.min(CHUNK)];
                let taken = src.take(&mut buf)?;
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                let data = buf.get(..taken).unwrap_or_default();
                Ok(send(std::os::fd::AsRawFd::as_raw_fd(&*self.fd), data, flags)?)
            }
        }
    }

    fn writes_all(&self) -> bool {
        self.manner != Manner::Seekable
    }

    fn seekable(&self) -> bool {
        self.manner == Manner::Seekable
    }

    fn has_outer_position(&self) -> bool {
        self.manner == Manner::Seekable
    }

    fn outer_position(&self) -> u64 {
        lseek(&*self.fd, 0, HostWhence::SeekCur).ok().and_then(|at| u64::try_from(at).ok()).unwrap_or(0)
    }

    fn set_outer_position(&self, position: u64) {
        if let Ok(position) = i64::try_from(position) {
            // Only a position that no file can have fails, and nothing was transferred there.
            let _ = lseek(&*self.fd, position, HostWhence::SeekSet);
        }
    }

    fn seek(&self, _: &File, _: u64, offset: i64, whence: Whence) -> SysResult<u64> {
        let whence = match whence {
            Whence::Start => HostWhence::SeekSet,
            Whence::Current => HostWhence::SeekCur,
            Whence::End => HostWhence::SeekEnd,
            Whence::Data => HostWhence::SeekData,
            Whence::Hole => HostWhence::SeekHole,
        };
        let position = lseek(&*self.fd, offset, whence)?;
        u64::try_from(position).map_err(|_| Errno::EINVAL)
    }

    fn poll(&self, _: &File) -> PollEvents {
        match self.manner {
            Manner::Seekable => PollEvents::READABLE | PollEvents::WRITABLE,
            _ => self.host_readiness(),
        }
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        if self.manner == Manner::Seekable {
            return None;
        }
        self.watch.get_or_init(|| self.poller.watch(&self.fd, Arc::new(Notify(self.queue.clone()))).ok());
        Some(&self.queue)
    }

    fn fsync(&self, _: &File, data_only: bool) -> SysResult {
        if self.file_type != FileType::Regular {
            return Err(Errno::EINVAL);
        }
        if data_only {
            nix::unistd::fdatasync(&*self.fd)?
        } else {
            nix::unistd::fsync(&*self.fd)?
        };
        Ok(())
    }

    fn anonymous_name(&self) -> Option<String> {
        Some(match self.file_type {
            FileType::Fifo => format!("pipe:[{}]", self.ino),
            FileType::Socket => format!("socket:[{}]", self.ino),
            FileType::CharDevice if self.manner == Manner::Seekable => "/dev/null".into(),
            _ => format!("host:[{}]", self.ino),
        })
    }
}
