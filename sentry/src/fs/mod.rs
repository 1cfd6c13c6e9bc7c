//! File systems and the objects behind special files.
//!
//! Every stream-like object here (pipe, eventfd, terminal, …) is a [`crate::vfs::FileOps`] with a wait queue: it never
//! blocks, it says `EAGAIN` and notifies.

pub mod anonymous;
pub mod byte_ring;
pub mod devices;
pub mod epoll;
pub mod eventfd;
pub mod gofer;
pub mod hostfile;
pub mod mqueue;
pub mod nsfs;
pub mod pipe;
pub mod proc;
pub mod pseudo;
pub mod random;
pub mod register;
pub mod signalfd;
pub mod sysfs;
pub mod timerfd;
pub mod tmpfs;
pub mod tty;
