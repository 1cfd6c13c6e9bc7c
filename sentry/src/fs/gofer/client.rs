//! The protocol's messages as functions.

use std::os::fd::OwnedFd;

use caisson_proto::lisafs::reply::{self, Created, Mounted, Node, Opened, StatFs, WalkEnd, Walked};
use caisson_proto::lisafs::request::{
    NewFile, OpenFlags, PlusFlags, RenameFlags, SocketKind, UnlinkKind, WalkFlags, XattrFlags,
};
use caisson_proto::lisafs::{
    Attr, Device, FdId, FileKind, LinkTarget, MAX_MESSAGE, Name, Owner, Request, SetAttr, VERSION, WireError,
    XattrName,
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::ahead::{self, Listed};
use super::connection::Connection;
use crate::errno::{Errno, SysResult};

/// A walked file.
pub(crate) struct Found {
    pub(crate) fd: FdId,
    pub(crate) attr: Attr,
    /// A symbolic link's target.
    pub(crate) target: Option<Vec<u8>>,
}

impl From<(FdId, Attr)> for Found {
    fn from((fd, attr): (FdId, Attr)) -> Found {
        Found { fd, attr, target: None }
    }
}

/// A typed view of a connection.
pub(crate) struct Client {
    connection: Connection,
}

/// A name as the protocol has it.
pub(crate) fn name(bytes: &[u8]) -> SysResult<Name<'_>> {
    Name::new(bytes).map_err(errno)
}

fn errno(error: WireError) -> Errno {
    Errno::from_host(i32::from(error.errno()))
}

fn xattr(bytes: &[u8]) -> SysResult<XattrName<'_>> {
    XattrName::new(bytes).map_err(|_| Errno::ERANGE)
}

impl Client {
    /// Uses this connection; [`Client::mount`] comes first.
    pub(crate) fn new(socket: OwnedFd) -> SysResult<Client> {
        let flags = fcntl(&socket, FcntlArg::F_GETFL).map(OFlag::from_bits_retain)?;
        fcntl(&socket, FcntlArg::F_SETFL(flags.difference(OFlag::O_NONBLOCK)))?;
        Ok(Client { connection: Connection::new(socket) })
    }

    pub(crate) fn mount(&self) -> SysResult<Mounted> {
        let max_message = u32::try_from(MAX_MESSAGE).map_err(|_| Errno::EINVAL)?;
        let request = Request::Mount { version: VERSION, max_message };
        self.connection.call(&request, |reply| Mounted::parse(reply.payload))
    }

    /// The file with a name in a directory.
    pub(crate) fn lookup(&self, dir: FdId, name: Name<'_>) -> SysResult<Found> {
        let request = Request::Walk { dir, flags: WalkFlags::empty(), names: vec![name] };
        self.connection.call(&request, |reply| {
            let walked = Walked::parse(reply.payload)?;
            let node = match (walked.end, walked.nodes.first()) {
                (WalkEnd::Complete, Some(node)) => node,
                (WalkEnd::Missing, None) => return Ok(Err(Errno::ENOENT)),
                (WalkEnd::NotDirectory, _) => return Ok(Err(Errno::ENOTDIR)),
                _ => return Err(WireError::Field),
            };
            let target = walked.target.map(|target| target.as_bytes().to_vec());
            Ok(Ok(Found { fd: node.fd.ok_or(WireError::Id)?, attr: node.attr, target }))
        })?
    }

    /// The attributes of the file with a name in a directory.
    pub(crate) fn look(&self, dir: FdId, name: Name<'_>) -> SysResult<Attr> {
        let request = Request::Walk { dir, flags: WalkFlags::ATTR_ONLY, names: vec![name] };
        self.connection.call(&request, |reply| {
            let walked = Walked::parse(reply.payload)?;
            match (walked.end, walked.nodes.first()) {
                (WalkEnd::Complete, Some(node)) => Ok(Ok(node.attr)),
                (WalkEnd::Missing, None) => Ok(Err(Errno::ENOENT)),
                (WalkEnd::NotDirectory, _) => Ok(Err(Errno::ENOTDIR)),
                _ => Err(WireError::Field),
            }
        })?
    }

    pub(crate) fn stat(&self, fd: FdId) -> SysResult<Attr> {
        self.connection.call(&Request::Stat { fd }, |reply| reply::attr::parse(reply.payload))
    }

    pub(crate) fn set_attr(&self, fd: FdId, set: SetAttr) -> SysResult<Attr> {
        self.connection.call(&Request::SetAttr { fd, set }, |reply| reply::attr::parse(reply.payload))
    }

    pub(crate) fn stat_fs(&self, fd: FdId) -> SysResult<StatFs> {
        self.connection.call(&Request::StatFs { fd }, |reply| StatFs::parse(reply.payload))
    }

    /// A host descriptor for a regular file.
    pub(crate) fn donate(&self, fd: FdId, flags: OpenFlags) -> SysResult<OwnedFd> {
        let request = Request::Open { fd, flags: flags | OpenFlags::DONATE };
        self.connection.call(&request, |reply| {
            Opened::parse(reply.payload)?;
            reply.descriptor()
        })
    }

    /// A descriptor that tells the file's attributes.
    pub(crate) fn witness(&self, fd: FdId) -> SysResult<OwnedFd> {
        self.connection.call(&Request::Witness { fd }, |reply| reply.descriptor())
    }

    /// An open directory at the gofer.
    pub(crate) fn open_dir(&self, fd: FdId) -> SysResult<FdId> {
        let request = Request::Open { fd, flags: OpenFlags::READ | OpenFlags::KEEP };
        self.connection.call(&request, |reply| Opened::parse(reply.payload)?.fd.ok_or(WireError::Id))
    }

    /// Entries of an open directory, as bytes of [`reply::Entries`].
    pub(crate) fn read_dir(&self, fd: FdId, position: u64, max: u32) -> SysResult<Vec<u8>> {
        let request = Request::ReadDir { fd, position, max };
        self.connection.call(&request, |reply| Ok(reply.payload.to_vec()))
    }

    /// The first entries of a directory as bytes of [`reply::Entries`], and the id to read more with; `None` if these are all.
    pub(crate) fn list(&self, fd: FdId, max: u32) -> SysResult<(Vec<u8>, Option<FdId>)> {
        self.connection.call(&Request::List { fd, max }, |reply| {
            let listed = reply::Listed::parse(reply.payload)?;
            Ok((listed.entries.to_vec(), listed.open))
        })
    }

    /// Entries of a directory, open or not, with their files.
    pub(super) fn read_dir_plus(
        &self,
        fd: FdId,
        position: u64,
        count: u32,
        flags: PlusFlags,
    ) -> SysResult<Listed> {
        let request = Request::ReadDirPlus { fd, position, count, flags };
        self.connection
            .call(&request, |reply| ahead::read_listing(reply.payload, std::mem::take(&mut reply.fds)))
    }

    /// Creates a regular file, open for reading and writing.
    pub(crate) fn create(&self, dir: FdId, name: Name<'_>, new: NewFile) -> SysResult<(Found, OwnedFd)> {
        let flags = OpenFlags::READ | OpenFlags::WRITE | OpenFlags::DONATE;
        self.connection.call(&Request::Create { dir, name, flags, new }, |reply| {
            let created = Created::parse(reply.payload)?;
            Ok(((created.node, created.attr).into(), reply.descriptor()?))
        })
    }

    /// Creates a regular file without a name, open for reading and writing.
    pub(crate) fn create_unnamed(&self, dir: FdId, new: NewFile) -> SysResult<(Found, OwnedFd)> {
        let flags = OpenFlags::READ | OpenFlags::WRITE | OpenFlags::DONATE;
        self.connection.call(&Request::CreateUnnamed { dir, flags, new }, |reply| {
            let created = Created::parse(reply.payload)?;
            Ok(((created.node, created.attr).into(), reply.descriptor()?))
        })
    }

    pub(crate) fn mkdir(&self, dir: FdId, name: Name<'_>, new: NewFile) -> SysResult<Found> {
        self.make(&Request::Mkdir { dir, name, new })
    }

    pub(crate) fn mknod(
        &self,
        dir: FdId,
        name: Name<'_>,
        kind: FileKind,
        rdev: Device,
        new: NewFile,
    ) -> SysResult<Found> {
        self.make(&Request::Mknod { dir, name, kind, rdev, new })
    }

    pub(crate) fn symlink(&self, dir: FdId, name: Name<'_>, target: &[u8], owner: Owner) -> SysResult<Found> {
        let target = LinkTarget::new(target).map_err(|error| match error {
            WireError::Name => Errno::ENOENT,
            error => errno(error),
        })?;
        let mut found = self.make(&Request::Symlink { dir, name, target, owner })?;
        found.target = Some(target.as_bytes().to_vec());
        Ok(found)
    }

    pub(crate) fn link(&self, dir: FdId, name: Name<'_>, target: FdId) -> SysResult<Found> {
        self.make(&Request::Link { dir, name, target })
    }

    fn make(&self, request: &Request<'_>) -> SysResult<Found> {
        self.connection.call(request, |reply| Node::parse(reply.payload)).map(Found::from)
    }

    pub(crate) fn unlink(&self, dir: FdId, name: Name<'_>, kind: UnlinkKind) -> SysResult {
        self.connection.call(&Request::Unlink { dir, name, kind }, |_| Ok(()))
    }

    pub(crate) fn rename(
        &self,
        old: (FdId, Name<'_>),
        new: (FdId, Name<'_>),
        flags: RenameFlags,
    ) -> SysResult {
        let request =
            Request::Rename { old_dir: old.0, old_name: old.1, new_dir: new.0, new_name: new.1, flags };
        self.connection.call(&request, |_| Ok(()))
    }

    pub(crate) fn read_link(&self, fd: FdId) -> SysResult<Vec<u8>> {
        let request = Request::ReadLink { fd };
        self.connection.call(&request, |reply| Ok(reply::target(reply.payload)?.as_bytes().to_vec()))
    }

    pub(crate) fn get_xattr(&self, fd: FdId, name: &[u8]) -> SysResult<Vec<u8>> {
        let request = Request::GetXattr { fd, name: xattr(name)? };
        self.connection.call(&request, |reply| Ok(reply.payload.to_vec()))
    }

    pub(crate) fn set_xattr(&self, fd: FdId, name: &[u8], value: &[u8], flags: XattrFlags) -> SysResult {
        let request = Request::SetXattr { fd, name: xattr(name)?, value, flags };
        self.connection.call(&request, |_| Ok(()))
    }

    pub(crate) fn list_xattr(&self, fd: FdId) -> SysResult<Vec<u8>> {
        self.connection.call(&Request::ListXattr { fd }, |reply| Ok(reply.payload.to_vec()))
    }

    pub(crate) fn remove_xattr(&self, fd: FdId, name: &[u8]) -> SysResult {
        let request = Request::RemoveXattr { fd, name: xattr(name)? };
        self.connection.call(&request, |_| Ok(()))
    }

    pub(crate) fn fsync(&self, fd: FdId) -> SysResult {
        self.connection.call(&Request::Fsync { fds: vec![fd] }, |_| Ok(()))
    }

    pub(crate) fn sync_fs(&self, fd: FdId) -> SysResult {
        self.connection.call(&Request::SyncFs { fd }, |_| Ok(()))
    }

    pub(crate) fn connect(&self, fd: FdId, kind: SocketKind) -> SysResult<OwnedFd> {
        self.connection.call(&Request::Connect { fd, kind }, |reply| reply.descriptor())
    }

    /// Forgets ids, at most [`caisson_proto::lisafs::IDS_MAX`].
    pub(crate) fn close(&self, fds: &[FdId]) -> SysResult {
        if fds.is_empty() {
            return Ok(());
        }
        self.connection.call(&Request::Close { fds: fds.to_vec() }, |_| Ok(()))
    }
}
