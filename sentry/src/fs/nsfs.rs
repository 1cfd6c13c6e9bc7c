//! Files that stand for namespaces: what `/proc/*/ns/*` leads to and `setns` takes.
//!
//! A namespace lives as long as such a file is open. Two files are the same namespace if device and inode number are.
//!
//! Not there yet: keeping one alive by a bind mount of its file; `ioctl`s for the owner and the parent.

use std::sync::Arc;

use linux_raw_sys::general as linux;
use linux_raw_sys::ioctl::NS_GET_NSTYPE;

use super::anonymous::{AnonymousInode, Pseudo};
use crate::errno::{Errno, SysResult};
use crate::task::namespaces::{IpcNamespace, NetNamespace, UserNamespace, UtsNamespace};
use crate::task::{Credentials, PidNamespace, SyscallContext};
use crate::vfs::attachments::Attachments;
use crate::vfs::{
    Access, Attr, Caller, File, FileOps, FileSystem, FileType, Inode, MountNamespace, OpenFlags, SetAttr,
    VfsPath, internal,
};

/// A namespace of any kind.
#[derive(Clone)]
pub enum Namespace {
    /// SysV IPC and message queues.
    Ipc(Arc<IpcNamespace>),
    /// Mounts.
    Mount(Arc<MountNamespace>),
    /// Network.
    Net(Arc<NetNamespace>),
    /// Process numbers.
    Pid(Arc<PidNamespace>),
    /// Users.
    User(Arc<UserNamespace>),
    /// Host name.
    Uts(Arc<UtsNamespace>),
}

impl Namespace {
    /// Its number.
    pub fn id(&self) -> u64 {
        match self {
            Namespace::Ipc(namespace) => namespace.id(),
            Namespace::Mount(namespace) => namespace.id(),
            Namespace::Net(namespace) => namespace.id(),
            Namespace::Pid(namespace) => namespace.id(),
            Namespace::User(namespace) => namespace.id(),
            Namespace::Uts(namespace) => namespace.id(),
        }
    }

    /// The `CLONE_NEW…` flag of its kind.
    pub fn clone_flag(&self) -> u32 {
        match self {
            Namespace::Ipc(_) => linux::CLONE_NEWIPC,
            Namespace::Mount(_) => linux::CLONE_NEWNS,
            Namespace::Net(_) => linux::CLONE_NEWNET,
            Namespace::Pid(_) => linux::CLONE_NEWPID,
            Namespace::User(_) => linux::CLONE_NEWUSER,
            Namespace::Uts(_) => linux::CLONE_NEWUTS,
        }
    }

    /// `kind:[number]`, what links to it show.
    pub fn text(&self) -> String {
        let kind = match self {
            Namespace::Ipc(_) => "ipc",
            Namespace::Mount(_) => "mnt",
            Namespace::Net(_) => "net",
            Namespace::Pid(_) => "pid",
            Namespace::User(_) => "user",
            Namespace::Uts(_) => "uts",
        };
        format!("{kind}:[{}]", self.id())
    }

    /// Where its file is.
    pub fn place(&self) -> VfsPath {
        let node = AnonymousInode::new(Pseudo::Namespace, self.id(), 0, 0);
        let inode = Arc::new(NamespaceInode { node, namespace: self.clone() });
        internal::place(self.text().as_bytes(), inode)
    }
}

/// The file of a namespace. It cannot be changed, as on Linux, where it is immutable.
struct NamespaceInode {
    node: Arc<AnonymousInode>,
    namespace: Namespace,
}

impl Inode for NamespaceInode {
    fn attr(&self) -> SysResult<Attr> {
        self.node.attr()
    }

    fn file_type(&self) -> FileType {
        FileType::Regular
    }

    fn set_attr(&self, _change: &SetAttr) -> SysResult {
        Err(Errno::EPERM)
    }

    fn permission(&self, who: &Credentials, access: Access) -> SysResult {
        if access.contains(Access::WRITE) {
            return Err(Errno::EPERM);
        }
        self.node.permission(who, access)
    }

    fn file_system(&self) -> SysResult<Arc<dyn FileSystem>> {
        self.node.file_system()
    }

    fn open(&self, _caller: &Caller<'_>, _path: &VfsPath, _flags: OpenFlags) -> SysResult<Arc<dyn FileOps>> {
        Ok(Arc::new(OpenNamespace { namespace: self.namespace.clone() }))
    }

    fn attachments(&self) -> &Attachments {
        self.node.attachments()
    }
}

/// The operations of an open namespace.
pub struct OpenNamespace {
    namespace: Namespace,
}

impl OpenNamespace {
    /// Which.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }
}

impl FileOps for OpenNamespace {
    fn anonymous_name(&self) -> Option<String> {
        Some(self.namespace.text())
    }

    fn ioctl(&self, _: &mut SyscallContext<'_>, _: &Arc<File>, command: u32, _: u64) -> SysResult<usize> {
        match command {
            NS_GET_NSTYPE => usize::try_from(self.namespace.clone_flag()).map_err(|_| Errno::EINVAL),
            _ => Err(Errno::ENOTTY),
        }
    }
}
