//! A plain client and the servers to point it at.
//!
//! The suites take any [`Server`], so that they hold for the library in this process, for the confined program, and for any
//! other server of the protocol.
#![allow(dead_code, reason = "each suite uses a part")]

use std::io::{IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use caisson_gofer::host::{Host, Mounts};
use caisson_gofer::{MountOptions, Session, serve};
use caisson_platform_kvm::shm::{Patience, SharedMemory, Wait, Waited};
use caisson_proto::lisafs::header::HEADER_SIZE;
use caisson_proto::lisafs::launch::{GoferConfig, GoferMount, Root};
use caisson_proto::lisafs::reply::{Created, Entries, MountFlags, Mounted, Node, Opened, Walked};
use caisson_proto::lisafs::request::{NewFile, OpenFlags, WalkFlags};
use caisson_proto::lisafs::*;
use prost::Message;
use rustix::io::Errno;
use rustix::net::*;

/// Something that serves mounts.
pub trait Server {
    /// Serves `root` over a new connection, and returns the client's end.
    fn connect(&mut self, root: &Path, options: &Options) -> OwnedFd;
}

/// What a mount allows, for every kind of server.
#[derive(Clone)]
pub struct Options {
    pub flags: MountFlags,
    pub recursive: bool,
    pub objects: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { flags: MountFlags::empty(), recursive: false, objects: 4096 }
    }
}

pub fn with_flags(flags: MountFlags) -> Options {
    Options { flags, ..Options::default() }
}

/// A connection: the server's end, the client's end.
pub fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

/// The library, in this process.
#[derive(Default)]
pub struct InProcess {
    threads: Vec<JoinHandle<Result<(), Errno>>>,
    pub sessions: Vec<Arc<Session>>,
}

impl Server for InProcess {
    fn connect(&mut self, root: &Path, options: &Options) -> OwnedFd {
        let (server, client) = pair();
        let root = rustix::fs::open(root, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        let options = MountOptions {
            flags: options.flags,
            mounts: if options.recursive { Mounts::Cross } else { Mounts::Stay },
            objects: options.objects,
        };
        let host = Arc::new(Host::from_proc().unwrap());
        let session = Arc::new(Session::new(host, root, options).unwrap());
        self.sessions.push(Arc::clone(&session));
        self.threads.push(std::thread::spawn(move || serve(&session, server)));
        client
    }
}

impl InProcess {
    /// Waits for all connections to end; the clients must be gone.
    pub fn join(self) {
        for thread in self.threads {
            thread.join().expect("no panic").expect("a clean end");
        }
    }
}

/// The program, confined, one process per connection.
#[derive(Default)]
pub struct Program {
    pub children: Vec<Child>,
    /// Runs the program under this command.
    pub wrapper: Vec<String>,
}

impl Server for Program {
    fn connect(&mut self, root: &Path, options: &Options) -> OwnedFd {
        let (server, client) = pair();
        let mount = GoferMount {
            socket_fd: server.as_raw_fd(),
            destination: "/".to_owned(),
            root: Some(Root::Path(root.to_str().unwrap().to_owned())),
            read_only: options.flags.contains(MountFlags::READ_ONLY),
            recursive: options.recursive,
            connect_sockets: options.flags.contains(MountFlags::CONNECT),
            bind_sockets: options.flags.contains(MountFlags::BIND),
            device_nodes: options.flags.contains(MountFlags::DEVICE_NODES),
        };
        let (ready, config) = (rustix::pipe::pipe().unwrap(), GoferConfig::default());
        let config = GoferConfig {
            mounts: vec![mount],
            ready_fd: Some(ready.1.as_raw_fd()),
            max_descriptors: options.objects as u64 + 96,
            ..config
        };
        self.children.push(spawn(&self.wrapper, &config, &[server.as_fd(), ready.1.as_fd()]));
        drop(ready.1);
        let mut byte = [0];
        assert_eq!(rustix::io::read(&ready.0, &mut byte), Ok(1), "the gofer starts");
        client
    }
}

/// Runs the program with a configuration whose descriptors are `fds`.
pub fn spawn(wrapper: &[String], config: &GoferConfig, fds: &[std::os::fd::BorrowedFd<'_>]) -> Child {
    for fd in fds {
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).unwrap();
    }
    let memory = rustix::fs::memfd_create("config", rustix::fs::MemfdFlags::empty()).unwrap();
    let mut file = std::fs::File::from(memory);
    file.write_all(&config.encode_to_vec()).unwrap();
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).unwrap();
    let program = env!("CARGO_BIN_EXE_caisson-gofer").to_owned();
    let mut words =
        wrapper.iter().cloned().chain([program, "--config-fd".into(), file.as_raw_fd().to_string()]);
    Command::new(words.next().unwrap()).args(words).spawn().unwrap()
}

impl Program {
    /// Waits for every process and asserts that it ended well.
    pub fn join(self) {
        for mut child in self.children {
            let status = child.wait().unwrap();
            assert!(status.success(), "{status}");
        }
    }
}

/// A file as the client knows it.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    pub fd: FdId,
    pub attr: Attr,
}

pub type Answer = Result<(Vec<u8>, Vec<OwnedFd>), Errno>;

/// A client that does as it is told.
pub struct Client {
    pub socket: OwnedFd,
    /// Takes the requests when it is there.
    pub channel: Option<Channel>,
    pub root: Found,
    pub mounted: Mounted,
    tag: u32,
}

impl Client {
    /// Connects and mounts.
    pub fn new(server: &mut dyn Server, root: &Path, options: &Options) -> Self {
        Self::mount(server.connect(root, options))
    }

    pub fn mount(socket: OwnedFd) -> Self {
        let request = Request::Mount { version: VERSION, max_message: MAX_MESSAGE as u32 };
        let (payload, _) = exchange(&socket, 1, &request).unwrap();
        let mounted = Mounted::parse(&payload).unwrap();
        let root = Found { fd: mounted.root, attr: mounted.attr };
        Self { socket, channel: None, root, mounted, tag: 1 }
    }

    pub fn call(&mut self, request: &Request<'_>) -> Answer {
        self.tag += 1;
        match &self.channel {
            Some(channel) => channel.call(self.tag, request),
            None => exchange(&self.socket, self.tag, request),
        }
    }

    /// Sets a channel up.
    pub fn open_channel(&mut self) -> Result<Channel, Errno> {
        let (payload, mut fds) = self.call(&Request::Channel)?;
        assert!(payload.is_empty());
        let (socket, memory) = (fds.pop().unwrap(), fds.pop().unwrap());
        let shared = SharedMemory::map(memory.as_fd(), channel::SIZE).unwrap();
        Ok(Channel { shared, socket, patience: Default::default() })
    }

    /// The reply's errno, which must be one.
    pub fn fails(&mut self, request: &Request<'_>) -> Errno {
        self.call(request).expect_err("should fail")
    }

    /// Walks a path with `/` between its names.
    pub fn walk(&mut self, dir: FdId, path: &str) -> Result<Found, Errno> {
        let names: Vec<Name<'_>> = path.split('/').map(name).collect();
        let count = names.len();
        let (payload, _) = self.call(&Request::Walk { dir, flags: WalkFlags::empty(), names })?;
        let walked = Walked::parse(&payload).unwrap();
        match walked.nodes.last() {
            Some(node) if walked.nodes.len() == count => Ok(Found { fd: node.fd.unwrap(), attr: node.attr }),
            _ => Err(match walked.end {
                reply::WalkEnd::Missing => Errno::NOENT,
                reply::WalkEnd::Symlink => Errno::LOOP,
                reply::WalkEnd::NotDirectory => Errno::NOTDIR,
                reply::WalkEnd::Failed(errno) => Errno::from_raw_os_error(errno.into()),
                reply::WalkEnd::Complete => panic!("complete without its nodes"),
            }),
        }
    }

    pub fn find(&mut self, path: &str) -> Found {
        self.walk(self.root.fd, path).unwrap()
    }

    pub fn node(&mut self, request: &Request<'_>) -> Result<Found, Errno> {
        let (fd, attr) = Node::parse(&self.call(request)?.0).unwrap();
        Ok(Found { fd, attr })
    }

    pub fn stat(&mut self, fd: FdId) -> Result<Attr, Errno> {
        Ok(reply::attr::parse(&self.call(&Request::Stat { fd })?.0).unwrap())
    }

    pub fn keep(&mut self, fd: FdId, flags: OpenFlags) -> Result<FdId, Errno> {
        let (payload, _) = self.call(&Request::Open { fd, flags: flags | OpenFlags::KEEP })?;
        Ok(Opened::parse(&payload).unwrap().fd.unwrap())
    }

    pub fn donate(&mut self, fd: FdId, flags: OpenFlags) -> Result<OwnedFd, Errno> {
        let (payload, mut fds) = self.call(&Request::Open { fd, flags: flags | OpenFlags::DONATE })?;
        assert_eq!(Opened::parse(&payload).unwrap().fd, None);
        Ok(fds.pop().expect("a descriptor"))
    }

    pub fn witness(&mut self, fd: FdId) -> Result<OwnedFd, Errno> {
        let (payload, mut fds) = self.call(&Request::Witness { fd })?;
        assert!(payload.is_empty());
        Ok(fds.pop().expect("a descriptor"))
    }

    pub fn create(&mut self, dir: FdId, file: &str) -> Result<(Found, OwnedFd), Errno> {
        let flags = OpenFlags::READ | OpenFlags::WRITE | OpenFlags::DONATE;
        let (payload, mut fds) =
            self.call(&Request::Create { dir, name: name(file), flags, new: mine(0o644) })?;
        let created = Created::parse(&payload).unwrap();
        Ok((Found { fd: created.node, attr: created.attr }, fds.pop().expect("a descriptor")))
    }

    pub fn list(&mut self, dir: FdId, max: u32) -> Result<Vec<String>, Errno> {
        let open = self.keep(dir, OpenFlags::READ)?;
        let (mut names, mut position) = (Vec::new(), 0);
        loop {
            let (payload, _) = self.call(&Request::ReadDir { fd: open, position, max })?;
            if payload.is_empty() {
                break;
            }
            assert!(payload.len() <= max as usize);
            for entry in Entries::new(&payload) {
                let entry = entry.unwrap();
                position = entry.next;
                names.push(String::from_utf8(entry.name.as_bytes().to_vec()).unwrap());
            }
        }
        self.call(&Request::Close { fds: vec![open] })?;
        names.sort();
        Ok(names)
    }
}

/// The client's side of a fast channel.
pub struct Channel {
    pub shared: SharedMemory,
    pub socket: OwnedFd,
    patience: std::cell::Cell<Patience>,
}

impl Channel {
    pub fn call(&self, tag: u32, request: &Request<'_>) -> Answer {
        assert!(self.shared.write(channel::MESSAGE, &packet(tag, request)));
        self.shared.publish(channel::STATE, channel::REQUEST, channel::SERVER_SLEEPING);
        assert!(self.await_reply(Duration::from_secs(10)), "a reply");
        let mut header = [0; HEADER_SIZE];
        assert!(self.shared.read(channel::MESSAGE, &mut header));
        let (header, _) = Header::parse(&header).unwrap();
        let mut payload = vec![0; header.length as usize];
        assert!(self.shared.read(channel::MESSAGE + HEADER_SIZE, &mut payload));
        assert_eq!((header.tag, header.message), (tag, request.message() as u16));
        let fds = if header.fds == 0 { Vec::new() } else { receive_fds(&self.socket) };
        assert_eq!(usize::from(header.fds), fds.len());
        if header.errno == 0 {
            Ok((payload, fds))
        } else {
            Err(Errno::from_raw_os_error(header.errno.into()))
        }
    }

    pub fn await_reply(&self, timeout: Duration) -> bool {
        let (word, sleeping) = (channel::STATE, channel::CLIENT_SLEEPING);
        let end = Instant::now() + timeout;
        let slice = Some(Duration::from_millis(20));
        while Instant::now() < end {
            let spins = self.patience.get().spins();
            let waited =
                self.shared.wait(Wait { word, value: channel::REPLY, sleeping, spins, timeout: slice });
            let mut patience = self.patience.get();
            patience.learn(waited);
            self.patience.set(patience);
            if waited != Waited::TimedOut {
                return true;
            }
        }
        false
    }
}

fn receive_fds(socket: &OwnedFd) -> Vec<OwnedFd> {
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    fds
}

pub fn name(text: &str) -> Name<'_> {
    Name::new(text.as_bytes()).unwrap()
}

/// New files with this process's own ids: needs no privilege.
pub fn mine(permissions: u32) -> NewFile {
    NewFile { owner: my_ids(), permissions }
}

pub fn my_ids() -> Owner {
    Owner::new(rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()).unwrap()
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn exchange(socket: &OwnedFd, tag: u32, request: &Request<'_>) -> Answer {
    send_raw(socket, &packet(tag, request), &[]).unwrap();
    let (header, payload, fds) = receive_raw(socket).expect("a reply");
    assert_eq!((header.tag, header.message), (tag, request.message() as u16));
    assert_eq!(usize::from(header.fds), fds.len());
    match header.errno {
        0 => Ok((payload, fds)),
        errno => {
            assert!(payload.is_empty() && fds.is_empty(), "a failure carries nothing");
            Err(Errno::from_raw_os_error(errno.into()))
        }
    }
}

/// A request's packet.
pub fn packet(tag: u32, request: &Request<'_>) -> Vec<u8> {
    let mut payload = Vec::new();
    request.encode(&mut payload);
    let header =
        Header { length: payload.len() as u32, message: request.message() as u16, errno: 0, tag, fds: 0 };
    [header.to_bytes().as_slice(), &payload].concat()
}

/// Sends any bytes with any descriptors.
pub fn send_raw(socket: &OwnedFd, bytes: &[u8], fds: &[std::os::fd::BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = vec![MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).map(|_| ())
}

/// Receives one reply; `None` when the server has closed the connection.
pub fn receive_raw(socket: &OwnedFd) -> Option<(Header, Vec<u8>, Vec<OwnedFd>)> {
    let mut buffer = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut iov = [IoSliceMut::new(&mut buffer)];
    let message = recvmsg(socket, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if message.bytes == 0 {
        return None;
    }
    let (header, payload) = Header::parse_packet(&buffer[..message.bytes]).expect("a whole reply");
    Some((header, payload.to_vec(), fds))
}

/// A temporary directory.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}
