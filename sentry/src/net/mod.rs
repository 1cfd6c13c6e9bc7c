//! Sockets.
//!
//! [`socket`] has what all families share: the [`socket::Socket`] trait, the description's operations over it, messages
//! and options. [`unix`] is `AF_UNIX`. Other families implement the trait and add themselves to [`create`].
//!
//! Not there yet: `AF_INET`, `AF_INET6`, `AF_NETLINK`, `AF_PACKET` (`EAFNOSUPPORT`).

pub mod control;
pub mod options;
pub mod patience;
pub mod socket;
pub mod unix;

use std::sync::Arc;

use linux_raw_sys::net as linux;

use crate::errno::{Errno, SysResult};
use crate::task::SyscallContext;
use socket::{Socket, SocketType};

/// `socket(2)`: a new socket of a family.
pub fn create(
    ctx: &SyscallContext<'_>,
    family: u32,
    kind: SocketType,
    protocol: i32,
) -> SysResult<Arc<dyn Socket>> {
    match family {
        linux::AF_UNIX => Ok(unix::UnixSocket::create(ctx, kind, protocol)?),
        _ => Err(Errno::EAFNOSUPPORT),
    }
}

/// `socketpair(2)`: two sockets connected to each other.
pub fn create_pair(
    ctx: &SyscallContext<'_>,
    family: u32,
    kind: SocketType,
    protocol: i32,
) -> SysResult<[Arc<dyn Socket>; 2]> {
    match family {
        linux::AF_UNIX => {
            let [first, second] = unix::UnixSocket::pair(ctx, kind, protocol)?;
            Ok([first, second])
        }
        linux::AF_INET | linux::AF_INET6 | linux::AF_NETLINK => Err(Errno::EOPNOTSUPP),
        _ => Err(Errno::EAFNOSUPPORT),
    }
}
