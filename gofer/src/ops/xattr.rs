//! Extended attributes.
//!
//! A client may read and write `user.*` and `security.capability` (file capabilities, which say no more than a set-user-id
//! bit can). Everything else answers `EOPNOTSUPP`: `trusted.*` and other `security.*` attributes mean something to the host's
//! security, and POSIX ACLs are not something that the sentry's permission checks know.

use caisson_proto::lisafs::request::XattrFlags;
use caisson_proto::lisafs::{FdId, MAX_DATA, XattrName};
use rustix::fs::{getxattr, listxattr, removexattr, setxattr};
use rustix::io::Errno;

use crate::session::Session;
use crate::transport::Reply;

/// `XATTR_LIST_MAX` is 64 KiB, as is `XATTR_SIZE_MAX`: nothing is longer.
const LARGEST: usize = MAX_DATA;

fn is_served(name: &[u8]) -> bool {
    name.strip_prefix(b"user.").is_some_and(|rest| !rest.is_empty()) || name == b"security.capability"
}

fn served(name: XattrName<'_>) -> Result<&[u8], Errno> {
    if is_served(name.as_bytes()) { Ok(name.as_bytes()) } else { Err(Errno::OPNOTSUPP) }
}

pub(super) fn get(s: &Session, fd: FdId, name: XattrName<'_>, reply: &mut Reply) -> Result<(), Errno> {
    let (node, name) = (s.node(fd)?, served(name)?);
    reply.payload.resize(LARGEST, 0);
    let length = getxattr(s.host.path_of(&node.fd), name, reply.payload.as_mut_slice())?;
    reply.payload.truncate(length);
    Ok(())
}

pub(super) fn set(
    s: &Session,
    fd: FdId,
    name: XattrName<'_>,
    value: &[u8],
    flags: XattrFlags,
) -> Result<(), Errno> {
    let (node, name) = (s.node(fd)?, served(name)?);
    let flags = rustix::fs::XattrFlags::from_bits(flags.bits()).ok_or(Errno::INVAL)?;
    setxattr(s.host.path_of(&node.fd), name, value, flags)
}

pub(super) fn list(s: &Session, fd: FdId, reply: &mut Reply) -> Result<(), Errno> {
    let node = s.node(fd)?;
    let mut names = vec![0; LARGEST];
    let length = listxattr(s.host.path_of(&node.fd), names.as_mut_slice())?;
    let names = names.get(..length).unwrap_or_default();
    for name in names.split_inclusive(|&byte| byte == 0) {
        if name.strip_suffix(b"\0").is_some_and(is_served) {
            reply.payload.extend_from_slice(name);
        }
    }
    Ok(())
}

pub(super) fn remove(s: &Session, fd: FdId, name: XattrName<'_>) -> Result<(), Errno> {
    let (node, name) = (s.node(fd)?, served(name)?);
    removexattr(s.host.path_of(&node.fd), name)
}
