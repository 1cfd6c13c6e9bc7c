//! Walking and reading links.

use std::sync::Arc;

use caisson_proto::lisafs::reply::{Node as WireNode, WalkEnd, Walked};
use caisson_proto::lisafs::request::WalkFlags;
use caisson_proto::lisafs::{Attr, FdId, FileKind, LinkTarget, Name};
use rustix::fs::readlinkat;
use rustix::io::Errno;

use crate::attr;
use crate::session::Session;
use crate::table::Node;
use crate::transport::Reply;

/// Walks `names` from `dir`; with none, gives `dir` another id.
pub(super) fn walk(
    s: &Session,
    dir: FdId,
    flags: WalkFlags,
    names: &[Name<'_>],
    reply: &mut Reply,
) -> Result<(), Errno> {
    let start = s.node(dir)?;
    let mut progress = Progress { nodes: Vec::new(), target: Vec::new() };
    let end = if names.is_empty() {
        let again = if start.kind == FileKind::Symlink {
            return Err(Errno::LOOP);
        } else {
            s.host.path_to(&start.fd)?
        };
        progress.add(s, Arc::new(Node { fd: again, kind: start.kind }), flags)?;
        WalkEnd::Complete
    } else {
        progress.run(s, start, flags, names)
    };
    // The first component's failure is the request's: nothing was found.
    if let (WalkEnd::Failed(errno), true) = (end, progress.nodes.is_empty()) {
        return Err(Errno::from_raw_os_error(i32::from(errno)));
    }
    let target = LinkTarget::new(&progress.target).ok();
    Walked { end, nodes: progress.nodes, target }.encode(&mut reply.payload);
    Ok(())
}

struct Progress {
    nodes: Vec<WireNode>,
    target: Vec<u8>,
}

impl Progress {
    fn run(&mut self, s: &Session, start: Arc<Node>, flags: WalkFlags, names: &[Name<'_>]) -> WalkEnd {
        let mut at = start;
        for (&name, left) in names.iter().zip((0..names.len()).rev()) {
            match at.kind {
                FileKind::Directory => {}
                FileKind::Symlink => return WalkEnd::Symlink,
                _ => return WalkEnd::NotDirectory,
            }
            at = match self.step(s, &at, name, flags) {
                Ok(node) => node,
                Err(Errno::NOENT) => return WalkEnd::Missing,
                Err(errno) => {
                    return WalkEnd::Failed(u16::try_from(errno.raw_os_error()).unwrap_or(u16::MAX));
                }
            };
            if at.kind == FileKind::Symlink {
                self.target = read_target(&at).unwrap_or_default();
                return if left == 0 { WalkEnd::Complete } else { WalkEnd::Symlink };
            }
        }
        WalkEnd::Complete
    }

    fn step(
        &mut self,
        s: &Session,
        dir: &Node,
        name: Name<'_>,
        flags: WalkFlags,
    ) -> Result<Arc<Node>, Errno> {
        let fd = s.host.lookup(&dir.fd, name, s.options.mounts)?;
        let attr = attr::read(&fd)?;
        self.add_with(s, Arc::new(Node { fd, kind: attr.kind }), attr, flags)
    }

    fn add(&mut self, s: &Session, node: Arc<Node>, flags: WalkFlags) -> Result<Arc<Node>, Errno> {
        let attr = attr::read(&node.fd)?;
        self.add_with(s, node, attr, flags)
    }

    fn add_with(
        &mut self,
        s: &Session,
        node: Arc<Node>,
        attr: Attr,
        flags: WalkFlags,
    ) -> Result<Arc<Node>, Errno> {
        let fd = if flags.contains(WalkFlags::ATTR_ONLY) {
            None
        } else {
            Some(s.insert(crate::table::Object::Node(Arc::clone(&node)))?)
        };
        self.nodes.push(WireNode { fd, attr });
        Ok(node)
    }
}

/// The target of a symbolic link.
pub(super) fn read_link(s: &Session, fd: FdId, reply: &mut Reply) -> Result<(), Errno> {
    let node = s.node(fd)?;
    if node.kind != FileKind::Symlink {
        return Err(Errno::INVAL);
    }
    let target = read_target(&node)?;
    // Links of more than a page exist on no file system that Linux mounts; one is unreadable to us.
    LinkTarget::new(&target).map_err(|_| Errno::NAMETOOLONG)?;
    reply.payload.extend_from_slice(&target);
    Ok(())
}

pub(super) fn read_target(node: &Node) -> Result<Vec<u8>, Errno> {
    Ok(readlinkat(&node.fd, c"", Vec::new())?.into_bytes())
}
