//! One connection: its mount, its objects, and the loop that serves it.
//!
//! A session ends when its socket ends; everything that it holds goes with it, its fast channels too. Nothing that a client sends ends it, save
//! closing the socket.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use caisson_proto::lisafs::header::HEADER_SIZE;
use caisson_proto::lisafs::reply::MountFlags;
use caisson_proto::lisafs::{FdId, Header, MAX_MESSAGE, WireError};
use parking_lot::Mutex;
use rustix::io::Errno;

use crate::attr;
use crate::channel::{self, Channels};
use crate::host::{Host, Mounts};
use crate::ops;
use crate::table::{Node, Object, OpenDir, OpenFile, Table};
use crate::transport::{Received, Reply, receive, send_reply};

/// What a mount allows.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// What the client is told, and what is kept to.
    pub flags: MountFlags,
    /// Whether walks enter host mounts below the root.
    pub mounts: Mounts,
    /// Most objects that the client may hold.
    pub objects: usize,
}

/// A connection's state, shared by its socket's thread and its channels' threads.
#[derive(Debug)]
pub struct Session {
    pub(crate) host: Arc<Host>,
    pub(crate) options: MountOptions,
    pub(crate) root: FdId,
    pub(crate) table: Mutex<Table>,
    mounted: AtomicBool,
    channels: Mutex<Channels>,
}

impl Session {
    /// A session for the mount whose root is `root`, any descriptor, `O_PATH` is enough.
    ///
    /// # Errors
    /// What `statx(2)` says about the root.
    pub fn new(host: Arc<Host>, root: OwnedFd, options: MountOptions) -> Result<Self, Errno> {
        let kind = attr::read(&root)?.kind;
        let mut table = Table::new(options.objects.max(1));
        let root = table.insert(Object::Node(Arc::new(Node { fd: root, kind })))?;
        Ok(Self {
            host,
            options,
            root,
            table: Mutex::new(table),
            mounted: AtomicBool::new(false),
            channels: Mutex::default(),
        })
    }

    /// Marks the session as mounted; false when it was already.
    pub(crate) fn mount(&self) -> bool {
        !self.mounted.swap(true, Ordering::AcqRel)
    }

    /// True behind the first message.
    pub(crate) fn is_mounted(&self) -> bool {
        self.mounted.load(Ordering::Acquire)
    }

    /// True when the mount allows this.
    pub(crate) fn allows(&self, what: MountFlags) -> bool {
        self.options.flags.contains(what)
    }

    pub(crate) fn object(&self, id: FdId) -> Result<Object, Errno> {
        self.table.lock().get(id)
    }

    /// A walked file.
    pub(crate) fn node(&self, id: FdId) -> Result<Arc<Node>, Errno> {
        match self.object(id)? {
            Object::Node(node) => Ok(node),
            _ => Err(Errno::BADF),
        }
    }

    /// A file that is open for `access`.
    pub(crate) fn file(&self, id: FdId, access: Access) -> Result<Arc<OpenFile>, Errno> {
        match self.object(id)? {
            Object::File(file) => {
                let open = match access {
                    Access::Read => file.readable,
                    Access::Write => file.writable,
                };
                if open { Ok(file) } else { Err(Errno::BADF) }
            }
            Object::Dir(_) => Err(Errno::ISDIR),
            _ => Err(Errno::BADF),
        }
    }

    /// An open directory.
    pub(crate) fn dir(&self, id: FdId) -> Result<Arc<OpenDir>, Errno> {
        match self.object(id)? {
            Object::Dir(dir) => Ok(dir),
            Object::File(_) => Err(Errno::NOTDIR),
            _ => Err(Errno::BADF),
        }
    }

    /// A bound socket.
    pub(crate) fn socket(&self, id: FdId) -> Result<Arc<OwnedFd>, Errno> {
        match self.object(id)? {
            Object::Socket(socket) => Ok(socket),
            _ => Err(Errno::BADF),
        }
    }

    pub(crate) fn insert(&self, object: Object) -> Result<FdId, Errno> {
        self.table.lock().insert(object)
    }

    /// Adds a walked file.
    pub(crate) fn insert_node(
        &self,
        fd: OwnedFd,
        kind: caisson_proto::lisafs::FileKind,
    ) -> Result<FdId, Errno> {
        self.insert(Object::Node(Arc::new(Node { fd, kind })))
    }

    /// `EMFILE` when the table has no room: asked before an operation changes something on the host.
    pub(crate) fn check_room(&self) -> Result<(), Errno> {
        if self.table.lock().is_full() { Err(Errno::MFILE) } else { Ok(()) }
    }

    /// Objects that the client holds, the root included.
    pub fn objects(&self) -> usize {
        self.table.lock().len()
    }

    /// The numbers of the descriptors that an idle session holds: its root and the way to `/proc/self/fd`.
    pub(crate) fn descriptors(&self) -> Vec<RawFd> {
        let root = self.node(self.root).map(|root| root.fd.as_raw_fd());
        root.into_iter().chain([self.host.descriptor()]).collect()
    }

    /// Its fast channels.
    pub(crate) fn channels(&self) -> &Mutex<Channels> {
        &self.channels
    }

    /// Serves one message and makes its reply.
    pub(crate) fn answer(
        self: &Arc<Self>,
        message: Result<(Header, &[u8]), BadPacket>,
        reply: &mut Reply,
    ) -> Header {
        reply.clear();
        let (header, result) = match message {
            Ok((header, _)) if header.errno != 0 || header.fds != 0 => (header, Err(Errno::BADMSG)),
            Ok((header, payload)) => (header, ops::handle(self, header.message, payload, reply)),
            Err(bad) => (bad.header, Err(bad.errno)),
        };
        reply.finish(header.message, header.tag, result)
    }
}

/// What an operation wants to do with an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read it.
    Read,
    /// Write it.
    Write,
}

/// A packet that is no message: what can be said about it, and the answer.
#[derive(Clone, Copy, Debug)]
pub struct BadPacket {
    header: Header,
    errno: Errno,
}

impl BadPacket {
    pub(crate) fn new(packet: &[u8], error: WireError) -> Self {
        let nothing = Header { length: 0, message: 0, errno: 0, tag: 0, fds: 0 };
        // The tag is echoed where there is one, so that a client whose length was wrong learns whose.
        let header =
            packet.get(..HEADER_SIZE).and_then(|bytes| Header::parse(bytes).ok()).map_or(nothing, |(h, _)| h);
        Self { header, errno: Errno::from_raw_os_error(i32::from(error.errno())) }
    }
}

/// Serves a connection until its socket ends.
///
/// # Errors
/// What the socket says when it breaks other than by being closed.
pub fn serve(session: &Arc<Session>, socket: OwnedFd) -> Result<(), Errno> {
    let result = serve_socket(session, socket);
    // A channel's thread may have opened another one meanwhile.
    loop {
        let channels = std::mem::take(&mut *session.channels.lock());
        if channels.is_empty() {
            return result;
        }
        channel::close_all(channels);
    }
}

fn serve_socket(session: &Arc<Session>, socket: OwnedFd) -> Result<(), Errno> {
    rustix::io::ioctl_fionbio(&socket, false)?;
    let mut buffer = vec![0; MAX_MESSAGE];
    let mut reply = Reply::default();
    loop {
        let message = match receive(&socket, &mut buffer)? {
            Received::End => return Ok(()),
            Received::Packet(length) => {
                let packet = buffer.get(..length).unwrap_or_default();
                Header::parse_packet(packet).map_err(|error| BadPacket::new(packet, error))
            }
            Received::Cut(length) => {
                let packet = buffer.get(..length).unwrap_or_default();
                Err(BadPacket::new(packet, WireError::Length))
            }
        };
        let header = session.answer(message, &mut reply);
        match send_reply(&socket, header, &mut reply) {
            Err(Errno::PIPE | Errno::CONNRESET) => return Ok(()),
            done => done?,
        }
        // The descriptors travel on their own now.
        reply.clear();
    }
}
