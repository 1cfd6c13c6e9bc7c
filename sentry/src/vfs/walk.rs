//! From a path to a place.
//!
//! A [`Walker`] keeps the place reached and the text not yet walked: the caller's path, and on top of it the text of links
//! being followed. It goes component by component, so links cost no recursion and their number is bounded.
//!
//! Order of checks, as Linux: a component's directory must be one (`ENOTDIR`) and be searchable (`EACCES`) before its
//! name is looked up; a trailing slash, wherever it comes from, makes the last link be followed and demands a directory.

use std::borrow::Cow;
use std::sync::Arc;

use bitflags::bitflags;
use linux_raw_sys::general as linux;

use super::caller::Caller;
use super::dentry::Dentry;
use super::inode::{FileType, LinkTarget};
use super::mount::MountFlags;
use super::path::VfsPath;
use crate::errno::{Errno, SysResult};

/// Most links followed in one walk.
const LINKS_MAX: u32 = 40;

/// Longest path in bytes, with its NUL.
pub const PATH_MAX: usize = 4096;

bitflags! {
    /// How to walk.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct WalkFlags: u32 {
        /// Follow a link in the last component.
        const FOLLOW = 1 << 0;
        /// The last component must be a directory.
        const DIRECTORY = 1 << 1;
        /// An empty path means the start itself (`AT_EMPTY_PATH`).
        const EMPTY_PATH = 1 << 2;
        /// `RESOLVE_NO_XDEV`
        const NO_XDEV = 1 << 3;
        /// `RESOLVE_NO_MAGICLINKS`
        const NO_MAGICLINKS = 1 << 4;
        /// `RESOLVE_NO_SYMLINKS`
        const NO_SYMLINKS = 1 << 5;
        /// `RESOLVE_BENEATH`
        const BENEATH = 1 << 6;
        /// `RESOLVE_IN_ROOT`
        const IN_ROOT = 1 << 7;
    }
}

impl WalkFlags {
    /// From `openat2`'s `resolve`; `EINVAL` for unknown or contradictory bits, `EAGAIN` for `RESOLVE_CACHED`, which asks
    /// for a walk that may always be refused.
    pub fn from_resolve(resolve: u64) -> SysResult<WalkFlags> {
        let known = [
            (linux::RESOLVE_NO_XDEV, WalkFlags::NO_XDEV),
            (linux::RESOLVE_NO_MAGICLINKS, WalkFlags::NO_MAGICLINKS),
            (linux::RESOLVE_NO_SYMLINKS, WalkFlags::NO_SYMLINKS | WalkFlags::NO_MAGICLINKS),
            (linux::RESOLVE_BENEATH, WalkFlags::BENEATH),
            (linux::RESOLVE_IN_ROOT, WalkFlags::IN_ROOT),
            (linux::RESOLVE_CACHED, WalkFlags::empty()),
        ];
        let mut rest = resolve;
        let mut flags = WalkFlags::empty();
        for (bit, flag) in known {
            if resolve & u64::from(bit) != 0 {
                flags |= flag;
                rest &= !u64::from(bit);
            }
        }
        if rest != 0 || flags.contains(WalkFlags::BENEATH | WalkFlags::IN_ROOT) {
            return Err(Errno::EINVAL);
        }
        if resolve & u64::from(linux::RESOLVE_CACHED) != 0 {
            return Err(Errno::EAGAIN);
        }
        Ok(flags)
    }
}

/// The last component of a path whose directory has been found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Last {
    /// An ordinary name.
    Name(Vec<u8>),
    /// `.`
    Dot,
    /// `..`
    DotDot,
    /// There is none: the path is `/`, or the start itself, or a magic link led to the place.
    Nothing,
}

/// The directory of a path's last component, and that component.
pub struct Parent {
    /// The directory; not checked for access yet.
    pub dir: VfsPath,
    /// What comes last.
    pub last: Last,
    /// Whether a slash follows it.
    pub trailing_slash: bool,
}

struct Segment<'p> {
    text: Cow<'p, [u8]>,
    position: usize,
}

impl Segment<'_> {
    fn rest(&self) -> &[u8] {
        self.text.get(self.position..).unwrap_or_default()
    }

    /// The next component as a range of the text; moves behind it.
    fn next(&mut self) -> Option<std::ops::Range<usize>> {
        let rest = self.rest();
        let skipped = rest.iter().position(|&byte| byte != b'/')?;
        let name = rest.get(skipped..).unwrap_or_default();
        let len = name.iter().position(|&byte| byte == b'/').unwrap_or(name.len());
        let start = self.position + skipped;
        self.position = start + len;
        Some(start..start + len)
    }
}

/// A walk under way.
pub struct Walker<'p, 'c, 't> {
    caller: &'c Caller<'t>,
    at: VfsPath,
    root: &'c VfsPath,
    current: Segment<'p>,
    outer: Vec<Segment<'p>>,
    links: u32,
    flags: WalkFlags,
    trailing_slash: bool,
}

impl<'p, 'c, 't> Walker<'p, 'c, 't> {
    /// A walk of `path` from `start` (the working directory or a descriptor's place).
    pub fn new(
        caller: &'c Caller<'t>,
        start: &'c VfsPath,
        path: &'p [u8],
        flags: WalkFlags,
    ) -> SysResult<Self> {
        if path.is_empty() && !flags.contains(WalkFlags::EMPTY_PATH) {
            return Err(Errno::ENOENT);
        }
        if path.len() >= PATH_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let scoped = flags.intersects(WalkFlags::BENEATH | WalkFlags::IN_ROOT);
        let root = if scoped { start } else { caller.root() };
        let absolute = path.first() == Some(&b'/');
        if absolute && flags.contains(WalkFlags::BENEATH) {
            return Err(Errno::EXDEV);
        }
        let at = if absolute { root } else { start };
        Ok(Walker {
            caller,
            at: at.clone(),
            root,
            current: Segment { text: Cow::Borrowed(path), position: 0 },
            outer: Vec::new(),
            links: 0,
            flags,
            trailing_slash: false,
        })
    }

    /// Where the walk is.
    pub fn place(&self) -> &VfsPath {
        &self.at
    }

    /// Whether a slash followed the last component.
    pub fn trailing_slash(&self) -> bool {
        self.trailing_slash
    }

    /// Walks all components.
    pub fn finish(mut self) -> SysResult<VfsPath> {
        while let Some((name, last)) = self.next_component() {
            let follow = !last || self.trailing_slash || self.flags.contains(WalkFlags::FOLLOW);
            self.step(name, last, follow)?;
        }
        let directory = self.trailing_slash || self.flags.contains(WalkFlags::DIRECTORY);
        if directory && !self.at.dentry().is_directory() {
            return Err(Errno::ENOTDIR);
        }
        Ok(self.at)
    }

    /// Walks all but the last component. Can be called again after [`Walker::follow`].
    pub fn to_parent(&mut self) -> SysResult<Last> {
        while let Some((name, last)) = self.next_component() {
            if last {
                search(self.caller, &self.at)?;
                return Ok(match self.current.text.get(name).unwrap_or_default() {
                    b"." => Last::Dot,
                    b".." => Last::DotDot,
                    name => Last::Name(name.to_vec()),
                });
            }
            self.step(name, false, true)?;
        }
        Ok(Last::Nothing)
    }

    /// Takes `..` or an ordinary name as the last step, without following a link there.
    pub fn step_to(&mut self, last: &Last) -> SysResult {
        match last {
            Last::Name(name) => {
                let child = lookup(&self.at, name, None)?;
                self.arrive(child)
            }
            Last::DotDot => self.dot_dot(),
            Last::Dot | Last::Nothing => Ok(()),
        }
    }

    /// The next component as a range of the current text, and whether it is the last of all.
    fn next_component(&mut self) -> Option<(std::ops::Range<usize>, bool)> {
        loop {
            if let Some(name) = self.current.next() {
                let mut rests =
                    std::iter::once(self.current.rest()).chain(self.outer.iter().map(Segment::rest));
                let last = rests.all(|rest| rest.iter().all(|&byte| byte == b'/'));
                if last {
                    let mut rests =
                        std::iter::once(self.current.rest()).chain(self.outer.iter().map(Segment::rest));
                    self.trailing_slash |= rests.any(|rest| !rest.is_empty());
                }
                return Some((name, last));
            }
            self.current = self.outer.pop()?;
        }
    }

    fn step(&mut self, name: std::ops::Range<usize>, last: bool, follow: bool) -> SysResult {
        let version = search(self.caller, &self.at)?;
        let name = self.current.text.get(name).unwrap_or_default();
        match name {
            b"." => return Ok(()),
            b".." => return self.dot_dot(),
            _ => {}
        }
        let child = lookup(&self.at, name, version)?;
        let inode = child.positive()?;
        if follow && inode.file_type() == FileType::Symlink {
            let link = self.at.with_dentry(child);
            return self.follow_link(&link, last);
        }
        self.arrive(child)
    }

    /// Moves to a child and onto what is mounted there.
    fn arrive(&mut self, child: Arc<Dentry>) -> SysResult {
        child.positive()?;
        self.at.set_dentry(child);
        if self.at.dentry().is_mountpoint() && self.at.descend() && self.flags.contains(WalkFlags::NO_XDEV) {
            return Err(Errno::EXDEV);
        }
        Ok(())
    }

    fn dot_dot(&mut self) -> SysResult {
        if self.at.same(self.root) {
            return if self.flags.contains(WalkFlags::BENEATH) { Err(Errno::EXDEV) } else { Ok(()) };
        }
        let mut above = self.at.clone();
        if above.is_mount_root() {
            if !above.ascend() {
                return Ok(());
            }
            if self.flags.contains(WalkFlags::NO_XDEV) {
                return Err(Errno::EXDEV);
            }
            // A mount that covers the root itself: `..` stays at the root.
            if above.same(self.root) {
                return Ok(());
            }
        }
        if let Some(parent) = above.dentry().parent() {
            above.set_dentry(parent);
            above.descend();
            self.at = above;
        }
        Ok(())
    }

    /// Follows the link at `link`, which is a child of the place reached. `last` if the caller's path ends with it.
    pub fn follow(&mut self, link: &VfsPath) -> SysResult {
        self.follow_link(link, true)
    }

    fn follow_link(&mut self, link: &VfsPath, last: bool) -> SysResult {
        self.links += 1;
        if self.links > LINKS_MAX
            || self.flags.contains(WalkFlags::NO_SYMLINKS)
            || link.mount().flags().contains(MountFlags::NOSYMFOLLOW)
        {
            return Err(Errno::ELOOP);
        }
        if last {
            super::permission::may_follow(self.caller, &self.at, link)?;
        }
        super::times::accessed(link);
        match link.inode().follow(self.caller)? {
            LinkTarget::Path(text) => self.enter_text(text),
            LinkTarget::Jump(place) => self.jump(place),
            LinkTarget::Reopen(file) => self.jump(super::internal::place_of(&file)),
        }
    }

    fn enter_text(&mut self, text: Vec<u8>) -> SysResult {
        if text.is_empty() {
            return Err(Errno::ENOENT);
        }
        if text.first() == Some(&b'/') {
            if self.flags.contains(WalkFlags::BENEATH) {
                return Err(Errno::EXDEV);
            }
            if self.flags.contains(WalkFlags::NO_XDEV) && !Arc::ptr_eq(self.at.mount(), self.root.mount()) {
                return Err(Errno::EXDEV);
            }
            self.at = self.root.clone();
        }
        let link = Segment { text: Cow::Owned(text), position: 0 };
        let rest = std::mem::replace(&mut self.current, link);
        if !rest.rest().is_empty() {
            self.outer.push(rest);
        }
        Ok(())
    }

    fn jump(&mut self, place: VfsPath) -> SysResult {
        if self.flags.contains(WalkFlags::NO_MAGICLINKS) {
            return Err(Errno::ELOOP);
        }
        let scoped = self.flags.intersects(WalkFlags::BENEATH | WalkFlags::IN_ROOT);
        let crosses = !Arc::ptr_eq(place.mount(), self.at.mount());
        if scoped || (crosses && self.flags.contains(WalkFlags::NO_XDEV)) {
            return Err(Errno::EXDEV);
        }
        self.at = place;
        Ok(())
    }
}

/// `ENOTDIR` if `at` is no directory, `EACCES` if it may not be searched. As of which version of its names that is, if it was seen on the way.
fn search(caller: &Caller<'_>, at: &VfsPath) -> SysResult<Option<u64>> {
    if !at.dentry().is_directory() {
        return Err(Errno::ENOTDIR);
    }
    at.inode().search(&caller.credentials)
}

fn lookup(at: &VfsPath, name: &[u8], version: Option<u64>) -> SysResult<Arc<Dentry>> {
    at.dentry().lookup_as_of(&at.mount().superblock().recent, name, version)
}

impl Caller<'_> {
    /// Finds what `path` names, from `start` if it is relative.
    pub fn lookup(&self, start: &VfsPath, path: &[u8], flags: WalkFlags) -> SysResult<VfsPath> {
        Walker::new(self, start, path, flags)?.finish()
    }

    /// Finds what `path` names from the working directory, following links.
    pub fn lookup_path(&self, path: &[u8]) -> SysResult<VfsPath> {
        self.lookup(self.cwd(), path, WalkFlags::FOLLOW)
    }

    /// Finds the directory of the last component of `path`.
    pub fn lookup_parent(&self, start: &VfsPath, path: &[u8], flags: WalkFlags) -> SysResult<Parent> {
        let mut walker = Walker::new(self, start, path, flags)?;
        let last = walker.to_parent()?;
        Ok(Parent { trailing_slash: walker.trailing_slash, dir: walker.at, last })
    }
}
