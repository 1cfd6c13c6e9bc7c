//! What each message does. One function per message, all of one shape: find the objects, act, write the reply's payload.
//!
//! Invariant: a message that changes anything is refused here, before its function runs, on a read-only mount
//! ([`changes`]); the functions need not think of it.

mod attributes;
mod data;
mod listing;
mod namespace;
mod open;
mod socket;
mod walk;
mod xattr;

use std::sync::Arc;

use caisson_proto::lisafs::reply::{MountFlags, Mounted};
use caisson_proto::lisafs::request::OpenFlags;
use caisson_proto::lisafs::{MAX_MESSAGE, MessageId, Request, VERSION, WireError};
use rustix::io::Errno;

use crate::attr;
use crate::channel;
use crate::session::Session;
use crate::transport::Reply;

/// Serves one message.
///
/// # Errors
/// The errno for the client.
pub fn handle(session: &Arc<Session>, message: u16, payload: &[u8], reply: &mut Reply) -> Result<(), Errno> {
    let message = MessageId::from_number(message).ok_or_else(|| wire(WireError::UnknownMessage))?;
    let request = Request::parse(message, payload).map_err(wire)?;
    if let Request::Mount { version, max_message } = request {
        return mount(session, version, max_message, reply);
    }
    if !session.is_mounted() {
        return Err(Errno::NOTCONN);
    }
    if session.allows(MountFlags::READ_ONLY) && changes(&request) {
        return Err(Errno::ROFS);
    }
    act(session, &request, reply)
}

fn act(s: &Arc<Session>, request: &Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
    match request {
        Request::Mount { .. } => Err(Errno::INVAL),
        Request::Channel => channel::open(s, reply),
        Request::Walk { dir, flags, names } => walk::walk(s, *dir, *flags, names, reply),
        Request::ReadLink { fd } => walk::read_link(s, *fd, reply),
        Request::Stat { fd } => attributes::stat(s, *fd, reply),
        Request::SetAttr { fd, set } => attributes::set_attr(s, *fd, set, reply),
        Request::StatFs { fd } => attributes::stat_fs(s, *fd, reply),
        Request::Open { fd, flags } => open::open(s, *fd, *flags, reply),
        Request::Create { dir, name, flags, new } => open::create(s, *dir, *name, *flags, *new, reply),
        Request::CreateUnnamed { dir, flags, new } => open::create_unnamed(s, *dir, *flags, *new, reply),
        Request::Witness { fd } => open::witness(s, *fd, reply),
        Request::Fsync { fds } => open::fsync(s, fds),
        Request::Flush { fd } => open::flush(s, *fd),
        Request::SyncFs { fd } => open::sync_fs(s, *fd),
        Request::Close { fds } => open::close(s, fds),
        Request::Mkdir { dir, name, new } => namespace::mkdir(s, *dir, *name, *new, reply),
        Request::Mknod { dir, name, kind, rdev, new } => {
            namespace::mknod(s, *dir, *name, namespace::Special { kind: *kind, rdev: *rdev }, *new, reply)
        }
        Request::Symlink { dir, name, target, owner } => {
            namespace::symlink(s, *dir, *name, *target, *owner, reply)
        }
        Request::Link { dir, name, target } => namespace::link(s, *dir, *name, *target, reply),
        Request::Unlink { dir, name, kind } => namespace::unlink(s, *dir, *name, *kind),
        Request::Rename { old_dir, old_name, new_dir, new_name, flags } => {
            namespace::rename(s, (*old_dir, *old_name), (*new_dir, *new_name), *flags)
        }
        Request::ReadDir { fd, position, max } => data::read_dir(s, *fd, *position, *max, reply),
        Request::List { fd, max } => data::list(s, *fd, *max, reply),
        Request::ReadDirPlus { fd, position, count, flags } => {
            listing::read_dir_plus(s, *fd, (*position, *count), *flags, reply)
        }
        Request::Read { fd, offset, length } => data::read(s, *fd, *offset, *length, reply),
        Request::Write { fd, offset, data } => data::write(s, *fd, *offset, data, reply),
        Request::Fallocate { fd, mode, offset, length } => data::fallocate(s, *fd, *mode, *offset, *length),
        Request::GetXattr { fd, name } => xattr::get(s, *fd, *name, reply),
        Request::SetXattr { fd, name, value, flags } => xattr::set(s, *fd, *name, value, *flags),
        Request::ListXattr { fd } => xattr::list(s, *fd, reply),
        Request::RemoveXattr { fd, name } => xattr::remove(s, *fd, *name),
        Request::Connect { fd, kind } => socket::connect(s, *fd, *kind, reply),
        Request::Bind { dir, name, kind, new } => socket::bind(s, *dir, *name, *kind, *new, reply),
        Request::Listen { fd, backlog } => socket::listen(s, *fd, *backlog),
        Request::Accept { fd } => socket::accept(s, *fd, reply),
    }
}

/// True for requests that change files, names or attributes.
fn changes(request: &Request<'_>) -> bool {
    match request {
        Request::Open { flags, .. } => flags.intersects(OpenFlags::WRITE | OpenFlags::TRUNCATE),
        Request::SetAttr { .. }
        | Request::Create { .. }
        | Request::CreateUnnamed { .. }
        | Request::Mkdir { .. }
        | Request::Mknod { .. }
        | Request::Symlink { .. }
        | Request::Link { .. }
        | Request::Unlink { .. }
        | Request::Rename { .. }
        | Request::SetXattr { .. }
        | Request::RemoveXattr { .. }
        | Request::Fallocate { .. }
        | Request::Write { .. }
        | Request::Bind { .. } => true,
        Request::Mount { .. }
        | Request::Channel
        | Request::Walk { .. }
        | Request::Stat { .. }
        | Request::ReadDir { .. }
        | Request::ReadDirPlus { .. }
        | Request::List { .. }
        | Request::ReadLink { .. }
        | Request::GetXattr { .. }
        | Request::ListXattr { .. }
        | Request::Fsync { .. }
        | Request::Flush { .. }
        | Request::StatFs { .. }
        | Request::Witness { .. }
        | Request::SyncFs { .. }
        | Request::Connect { .. }
        | Request::Listen { .. }
        | Request::Accept { .. }
        | Request::Read { .. }
        | Request::Close { .. } => false,
    }
}

fn mount(session: &Session, version: u32, max_message: u32, reply: &mut Reply) -> Result<(), Errno> {
    if version != VERSION {
        return Err(Errno::PROTONOSUPPORT);
    }
    if usize::try_from(max_message).map_or(true, |max| max < MAX_MESSAGE) {
        return Err(Errno::MSGSIZE);
    }
    if !session.mount() {
        return Err(Errno::ALREADY);
    }
    let root = session.node(session.root)?;
    let mounted = Mounted {
        version: VERSION,
        max_message: u32::try_from(MAX_MESSAGE).map_err(|_| Errno::MSGSIZE)?,
        flags: session.options.flags,
        objects: u64::try_from(session.options.objects).map_err(|_| Errno::OVERFLOW)?,
        root: session.root,
        attr: attr::read(&root.fd)?,
    };
    mounted.encode(&mut reply.payload);
    Ok(())
}

/// The errno for a message that is none.
fn wire(error: WireError) -> Errno {
    Errno::from_raw_os_error(i32::from(error.errno()))
}
