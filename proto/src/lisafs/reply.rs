//! What a server answers. The client parses replies as strictly as the server parses requests.

use bitflags::bitflags;

use super::attr::{Attr, FileKind};
use super::cursor::{Reader, Writer};
use super::{FdId, LinkTarget, Name, WALK_MAX, WireError};

bitflags! {
    /// What a mount is like.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MountFlags: u32 {
        /// Every change is answered `EROFS`.
        const READ_ONLY = 1;
        /// [`super::Request::Connect`] may succeed.
        const CONNECT = 2;
        /// [`super::Request::Bind`] may succeed.
        const BIND = 4;
        /// Device nodes may be created.
        const DEVICE_NODES = 8;
    }
}

/// The id and the attributes of a walked or created file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// The id; `None` only in a walk for attributes.
    pub fd: Option<FdId>,
    /// The attributes.
    pub attr: Attr,
}

impl Node {
    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self { fd: reader.optional_id()?, attr: Attr::read(reader)? })
    }

    fn write(&self, writer: &mut Writer<'_>) {
        self.attr.write(writer.optional_id(self.fd));
    }

    /// Reads the reply of a creation, which has an id.
    ///
    /// # Errors
    /// [`WireError`] when the bytes are not such a reply.
    pub fn parse(payload: &[u8]) -> Result<(FdId, Attr), WireError> {
        let mut reader = Reader::new(payload);
        let node = Self::read(&mut reader)?;
        reader.end()?;
        Ok((node.fd.ok_or(WireError::Id)?, node.attr))
    }

    /// Appends the payload.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.write(&mut Writer::new(out));
    }
}

/// The reply to a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// The server's version.
    pub version: u32,
    /// The largest packet both take.
    pub max_message: u32,
    /// What the mount is like.
    pub flags: MountFlags,
    /// How many ids the client may have at a time, at least 1.
    pub objects: u64,
    /// The root's id.
    pub root: FdId,
    /// The root's attributes: a directory, or the file of a single-file mount.
    pub attr: Attr,
}

impl Mounted {
    /// Reads the payload.
    ///
    /// # Errors
    /// [`WireError`] when the bytes are not such a reply.
    pub fn parse(payload: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(payload);
        let mounted = Self {
            version: reader.u32()?,
            max_message: reader.u32()?,
            flags: MountFlags::from_bits(reader.u32()?).ok_or(WireError::Field)?,
            objects: reader.u64()?,
            root: reader.id()?,
            attr: Attr::read(&mut reader)?,
        };
        reader.end()?;
        Ok(mounted)
    }

    /// Appends the payload.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let writer = &mut Writer::new(out);
        writer.u32(self.version).u32(self.max_message).u32(self.flags.bits()).u64(self.objects);
        self.attr.write(writer.id(self.root));
    }
}

/// Why a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkEnd {
    /// All components were found.
    Complete,
    /// The component behind the last node does not exist.
    Missing,
    /// The last node is a symbolic link.
    Symlink,
    /// The last node is not a directory, and more components were to come.
    NotDirectory,
    /// The component behind the last node failed with this errno.
    Failed(u16),
}

/// The reply to a walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walked<'a> {
    /// Why it ended.
    pub end: WalkEnd,
    /// One node per component found, in order; for a walk of no components one, the start.
    pub nodes: Vec<Node>,
    /// The target, when the last node is a symbolic link (also when the walk is complete).
    pub target: Option<LinkTarget<'a>>,
}

impl<'a> Walked<'a> {
    /// Reads the payload.
    ///
    /// # Errors
    /// [`WireError`] when the bytes are not such a reply.
    pub fn parse(payload: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(payload);
        let (end, errno, count) = (reader.u16()?, reader.u16()?, usize::from(reader.u16()?));
        let end = match (end, errno) {
            (0, 0) => WalkEnd::Complete,
            (1, 0) => WalkEnd::Missing,
            (2, 0) => WalkEnd::Symlink,
            (3, 0) => WalkEnd::NotDirectory,
            (4, 1..=4095) => WalkEnd::Failed(errno),
            _ => return Err(WireError::Field),
        };
        if count > WALK_MAX {
            return Err(WireError::TooLong);
        }
        let nodes = (0..count).map(|_| Node::read(&mut reader)).collect::<Result<Vec<_>, _>>()?;
        let target = if reader.is_empty() { None } else { Some(LinkTarget::new(reader.string()?)?) };
        reader.end()?;
        Ok(Self { end, nodes, target })
    }

    /// Appends the payload.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let writer = &mut Writer::new(out);
        let (end, errno) = match self.end {
            WalkEnd::Complete => (0, 0),
            WalkEnd::Missing => (1, 0),
            WalkEnd::Symlink => (2, 0),
            WalkEnd::NotDirectory => (3, 0),
            WalkEnd::Failed(errno) => (4, errno),
        };
        writer.u16(end).u16(errno).u16(u16::try_from(self.nodes.len()).unwrap_or(u16::MAX));
        for node in &self.nodes {
            node.write(writer);
        }
        if let Some(target) = self.target {
            writer.string(target.as_bytes());
        }
    }
}

/// Attributes as a payload: replies to stat and setattr.
pub mod attr {
    use super::{Attr, Reader, WireError, Writer};

    /// Reads the payload.
    ///
    /// # Errors
    /// [`WireError`] when the bytes are not attributes.
    pub fn parse(payload: &[u8]) -> Result<Attr, WireError> {
        let mut reader = Reader::new(payload);
        let attr = Attr::read(&mut reader)?;
        reader.end()?;
        Ok(attr)
    }

    /// Appends the payload.
    pub fn encode(attr: &Attr, out: &mut Vec<u8>) {
        attr.write(&mut Writer::new(out));
    }
}

/// A symbolic link's target as a payload.
///
/// # Errors
/// [`WireError`] when it is empty, too long or holds a NUL.
pub fn target(payload: &[u8]) -> Result<LinkTarget<'_>, WireError> {
    LinkTarget::new(payload)
}

/// The number of bytes written as a payload: appends it.
pub fn encode_written(written: u32, out: &mut Vec<u8>) {
    Writer::new(out).u32(written);
}

/// The number of bytes written.
///
/// # Errors
/// [`WireError`] when the bytes are not such a reply.
pub fn written(payload: &[u8]) -> Result<u32, WireError> {
    let mut reader = Reader::new(payload);
    let written = reader.u32()?;
    reader.end()?;
    Ok(written)
}

/// The reply to an open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The open object's id under [`super::request::OpenFlags::KEEP`].
    pub fd: Option<FdId>,
}

impl Opened {
    /// Reads the payload.
    ///
    /// # Errors
    /// [`WireError`] when the bytes are not such a reply.
    pub fn parse(payload: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(payload);
        let fd = reader.optional_id()?;
        reader.end()?;
        Ok(Self { fd })
    }

    /// Appends the payload.
    pub fn encode(&self, out: &mut Vec<u8>) {
        Writer::new(out).optional_id(self.fd);
    }
}

/// The reply to a create; a bind's ([`Bound`]) has the same shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Created {
    /// The new file, as from a walk.
    pub node: FdId,
    /// Its attributes.
    pub attr: Attr,
    /// The open object's id under [`super::request::OpenFlags::KEEP`]; a bound socket's id.
    pub open: Option<FdId>,
}

/// The reply to a bind: `open` is the socket's id.
pub type Bound = Created;

impl Created {
    /// Reads the payload.
    ///
    /// # Errors
    /// [`WireError`] when the bytes are not such a reply.
    pub fn parse(payload: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(payload);
        let (node, open) = (reader.id()?, reader.optional_id()?);
        let attr = Attr::read(&mut reader)?;
        reader.end()?;
        Ok(Self { node, attr, open })
    }

    /// Appends the payload.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let writer = &mut Writer::new(out);
        self.attr.write(writer.id(self.node).optional_id(self.open));
    }
}

/// A directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Inode number.
    pub ino: u64,
    /// Where the entry behind this one is read.
    pub next: u64,
    /// Type; `None` where the file system does not say.
    pub kind: Option<FileKind>,
    /// Name.
    pub name: Name<'a>,
}

/// Bytes of an [`Entry`] on the wire without its name.
pub const ENTRY_SIZE: usize = 8 + 8 + 2 + 2;

impl Entry<'_> {
    /// Appends the entry to a reply.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let kind = self.kind.map_or(0, FileKind::dirent_type);
        Writer::new(out).u64(self.ino).u64(self.next).u16(u16::from(kind)).string(self.name.as_bytes());
    }
}

/// The reply to a directory read: its entries, one after another.
#[derive(Clone, Debug)]
pub struct Entries<'a>(&'a [u8]);

impl<'a> Entries<'a> {
    /// The entries in a payload. Each is checked when the iteration gets to it.
    pub const fn new(payload: &'a [u8]) -> Self {
        Self(payload)
    }

    /// Bytes of the entries that have not been given out.
    pub const fn remaining(&self) -> usize {
        self.0.len()
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let mut reader = Reader::new(self.0);
        let entry = read_entry(&mut reader);
        self.0 = if entry.is_ok() { reader.rest() } else { &[] };
        Some(entry)
    }
}

fn read_entry<'a>(reader: &mut Reader<'a>) -> Result<Entry<'a>, WireError> {
    let (ino, next, kind) = (reader.u64()?, reader.u64()?, reader.u16()?);
    let kind = match u8::try_from(kind).map_err(|_| WireError::Field)? {
        0 => None,
        kind => Some(FileKind::from_dirent_type(kind).ok_or(WireError::Field)?),
    };
    Ok(Entry { ino, next, kind, name: Name::new(reader.string()?)? })
}

/// The reply to [`super::Request::List`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed<'a> {
    /// The open directory's id; `None` when these entries are all.
    pub open: Option<FdId>,
    /// The first entries, for [`Entries`].
    pub entries: &'a [u8],
}

impl<'a> Listed<'a> {
    /// Reads the payload. The entries are checked when they are looked at.
    ///
    /// # Errors
    /// [`WireError`] when the bytes are not such a reply.
    pub fn parse(payload: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(payload);
        Ok(Self { open: reader.optional_id()?, entries: reader.rest() })
    }

    /// The bytes in front of the entries.
    pub const fn head(open: Option<FdId>) -> [u8; 8] {
        match open {
            Some(open) => open.get().to_le_bytes(),
            None => [0; 8],
        }
    }
}

/// The descriptor that comes with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Donated {
    /// None.
    Nothing,
    /// The file, open for reading.
    File,
    /// A witness.
    Witness,
}

/// What a walk to an entry would give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlusFile<'a> {
    /// Its id.
    pub fd: FdId,
    /// Its attributes.
    pub attr: Attr,
    /// A symbolic link's target.
    pub target: Option<LinkTarget<'a>>,
    /// What comes with it.
    pub donated: Donated,
}

/// A directory entry and its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlusEntry<'a> {
    /// Where the entry behind this one is read.
    pub next: u64,
    /// Name.
    pub name: Name<'a>,
    /// `None` where a walk would fail, or there is no room for more ids.
    pub file: Option<PlusFile<'a>>,
}

impl PlusEntry<'_> {
    /// Appends the entry to a reply.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let kind = match self.file.as_ref().map(|file| file.donated) {
            None => 0,
            Some(Donated::Nothing) => 1,
            Some(Donated::File) => 2,
            Some(Donated::Witness) => 3,
        };
        let writer = &mut Writer::new(out);
        writer.u64(self.next).string(self.name.as_bytes()).u16(kind);
        if let Some(file) = &self.file {
            file.attr.write(writer.id(file.fd));
            writer.string(file.target.as_ref().map_or(&[], |target| target.as_bytes()));
        }
    }
}

/// The reply to [`super::Request::ReadDirPlus`]: its entries, one after another.
#[derive(Clone, Debug)]
pub struct Listing<'a>(&'a [u8]);

impl<'a> Listing<'a> {
    /// The entries in a payload. Each is checked when the iteration gets to it.
    pub const fn new(payload: &'a [u8]) -> Self {
        Self(payload)
    }
}

impl<'a> Iterator for Listing<'a> {
    type Item = Result<PlusEntry<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let mut reader = Reader::new(self.0);
        let entry = read_plus(&mut reader);
        self.0 = if entry.is_ok() { reader.rest() } else { &[] };
        Some(entry)
    }
}

fn read_plus<'a>(reader: &mut Reader<'a>) -> Result<PlusEntry<'a>, WireError> {
    let (next, name) = (reader.u64()?, Name::new(reader.string()?)?);
    let donated = match reader.u16()? {
        0 => return Ok(PlusEntry { next, name, file: None }),
        1 => Donated::Nothing,
        2 => Donated::File,
        3 => Donated::Witness,
        _ => return Err(WireError::Field),
    };
    let (fd, attr) = (reader.id()?, Attr::read(reader)?);
    let target = match reader.string()? {
        b"" => None,
        target => Some(LinkTarget::new(target)?),
    };
    Ok(PlusEntry { next, name, file: Some(PlusFile { fd, attr, target, donated }) })
}

/// The reply to statfs. Units as in `statfs(2)`: blocks of `block_size` bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatFs {
    /// `f_type`
    pub kind: u64,
    /// `f_bsize`
    pub block_size: u64,
    /// `f_blocks`
    pub blocks: u64,
    /// `f_bfree`
    pub blocks_free: u64,
    /// `f_bavail`
    pub blocks_available: u64,
    /// `f_files`
    pub files: u64,
    /// `f_ffree`
    pub files_free: u64,
    /// `f_namelen`
    pub name_max: u64,
}

impl StatFs {
    /// Reads the payload.
    ///
    /// # Errors
    /// [`WireError`] when the bytes are not such a reply.
    pub fn parse(payload: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(payload);
        let statfs = Self {
            kind: reader.u64()?,
            block_size: reader.u64()?,
            blocks: reader.u64()?,
            blocks_free: reader.u64()?,
            blocks_available: reader.u64()?,
            files: reader.u64()?,
            files_free: reader.u64()?,
            name_max: reader.u64()?,
        };
        reader.end()?;
        Ok(statfs)
    }

    /// Appends the payload.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let writer = &mut Writer::new(out);
        writer.u64(self.kind).u64(self.block_size).u64(self.blocks).u64(self.blocks_free);
        writer.u64(self.blocks_available).u64(self.files).u64(self.files_free).u64(self.name_max);
    }
}
