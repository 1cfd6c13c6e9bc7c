//! What opening a device node or a FIFO means: drivers by device number.
//!
//! A node on any file system is only a number; who opens it gets the operations of the driver registered for that
//! number here, or `ENXIO`. FIFOs go to [`crate::fs::pipe::open_fifo`]; socket nodes cannot be opened (`ENXIO`).

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

use super::file::{FileOps, OpenFlags};
use super::inode::{Device, FileType, Inode};
use super::path::VfsPath;
use crate::errno::{Errno, SysResult};
use crate::task::SyscallContext;

/// What a driver is asked to open.
pub struct DeviceOpen<'a> {
    /// The node.
    pub inode: &'a Arc<dyn Inode>,
    /// Where it was found (for `/dev/pts/ptmx`: which devpts).
    pub path: &'a VfsPath,
    /// The device number.
    pub device: Device,
    /// The flags of `open`.
    pub flags: OpenFlags,
}

/// Opens one kind of device.
pub trait Driver: Send + Sync {
    /// The operations for a new description. May block ([`crate::task::block`]); permission has been checked.
    fn open(&self, ctx: &mut SyscallContext<'_>, request: DeviceOpen<'_>) -> SysResult<Arc<dyn FileOps>>;
}

impl<F> Driver for F
where
    F: Fn(&mut SyscallContext<'_>, DeviceOpen<'_>) -> SysResult<Arc<dyn FileOps>> + Send + Sync,
{
    fn open(&self, ctx: &mut SyscallContext<'_>, request: DeviceOpen<'_>) -> SysResult<Arc<dyn FileOps>> {
        self(ctx, request)
    }
}

/// The drivers of a kernel, for character devices by number or by major number.
#[derive(Default)]
pub struct SpecialFiles {
    devices: RwLock<HashMap<Device, Arc<dyn Driver>>>,
    majors: RwLock<HashMap<u32, Arc<dyn Driver>>>,
}

impl SpecialFiles {
    /// Makes `driver` open the character device `device`.
    pub fn register(&self, device: Device, driver: Arc<dyn Driver>) {
        self.devices.write().insert(device, driver);
    }

    /// Makes `driver` open every character device of `major` that has no driver of its own.
    pub fn register_major(&self, major: u32, driver: Arc<dyn Driver>) {
        self.majors.write().insert(major, driver);
    }

    fn driver(&self, device: Device) -> Option<Arc<dyn Driver>> {
        let exact = self.devices.read().get(&device).cloned();
        exact.or_else(|| self.majors.read().get(&device.major).cloned())
    }

    /// Opens the special file at `path`. `ENXIO` without a driver.
    pub fn open(
        &self,
        ctx: &mut SyscallContext<'_>,
        path: &VfsPath,
        flags: OpenFlags,
    ) -> SysResult<Arc<dyn FileOps>> {
        let inode = path.inode();
        match inode.file_type() {
            FileType::Fifo => crate::fs::pipe::open_fifo(ctx, inode, flags),
            FileType::CharDevice => {
                let device = inode.attr()?.rdev;
                let driver = self.driver(device).ok_or(Errno::ENXIO)?;
                driver.open(ctx, DeviceOpen { inode, path, device, flags })
            }
            _ => Err(Errno::ENXIO),
        }
    }
}
