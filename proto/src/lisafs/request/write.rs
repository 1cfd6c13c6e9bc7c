//! Writing requests.

use super::super::FdId;
use super::super::cursor::Writer;
use super::{NewFile, Request, UnlinkKind};

impl NewFile {
    fn write(self, writer: &mut Writer<'_>) {
        writer.u32(self.owner.uid()).u32(self.owner.gid()).u32(self.permissions);
    }
}

fn write_ids(writer: &mut Writer<'_>, ids: &[FdId]) {
    writer.u16(u16::try_from(ids.len()).unwrap_or(u16::MAX));
    for &id in ids {
        writer.id(id);
    }
}

impl Request<'_> {
    /// Appends the request's payload to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let w = &mut Writer::new(out);
        match self {
            Self::Channel => {}
            Self::Mount { version, max_message } => {
                w.u32(*version).u32(*max_message);
            }
            Self::Walk { dir, flags, names } => {
                w.id(*dir).u32(flags.bits()).u16(u16::try_from(names.len()).unwrap_or(u16::MAX));
                names.iter().for_each(|name| {
                    w.string(name.as_bytes());
                });
            }
            Self::Stat { fd }
            | Self::ReadLink { fd }
            | Self::ListXattr { fd }
            | Self::Flush { fd }
            | Self::StatFs { fd }
            | Self::SyncFs { fd }
            | Self::Witness { fd }
            | Self::Accept { fd } => {
                w.id(*fd);
            }
            Self::SetAttr { fd, set } => set.write(w.id(*fd)),
            Self::Open { fd, flags } => {
                w.id(*fd).u32(flags.bits());
            }
            Self::ReadDir { .. } | Self::List { .. } | Self::ReadDirPlus { .. } => self.encode_listing(w),
            Self::GetXattr { fd, name } | Self::RemoveXattr { fd, name } => {
                w.id(*fd).string(name.as_bytes());
            }
            Self::SetXattr { fd, name, value, flags } => {
                w.id(*fd).u32(flags.bits()).string(name.as_bytes()).bytes(value);
            }
            Self::Fsync { fds } | Self::Close { fds } => write_ids(w, fds),
            Self::Connect { fd, kind } => {
                w.id(*fd).u32(kind.number());
            }
            Self::Listen { fd, backlog } => {
                w.id(*fd).u32(*backlog);
            }
            Self::Fallocate { .. } | Self::Read { .. } | Self::Write { .. } => self.encode_data_access(w),
            Self::Create { .. }
            | Self::CreateUnnamed { .. }
            | Self::Mkdir { .. }
            | Self::Mknod { .. }
            | Self::Symlink { .. }
            | Self::Link { .. }
            | Self::Unlink { .. }
            | Self::Rename { .. }
            | Self::Bind { .. } => self.encode_directory_change(w),
        }
    }

    fn encode_listing(&self, w: &mut Writer<'_>) {
        match self {
            Self::ReadDir { fd, position, max } => {
                w.id(*fd).u64(*position).u32(*max);
            }
            Self::List { fd, max } => {
                w.id(*fd).u32(*max);
            }
            Self::ReadDirPlus { fd, position, count, flags } => {
                w.id(*fd).u64(*position).u32(*count).u32(flags.bits());
            }
            _ => {}
        }
    }

    fn encode_data_access(&self, w: &mut Writer<'_>) {
        match self {
            Self::Fallocate { fd, mode, offset, length } => {
                w.id(*fd).u32(mode.bits()).u64(*offset).u64(*length);
            }
            Self::Read { fd, offset, length } => {
                w.id(*fd).u64(*offset).u32(*length);
            }
            Self::Write { fd, offset, data } => {
                w.id(*fd).u64(*offset).bytes(data);
            }
            _ => {}
        }
    }

    fn encode_directory_change(&self, w: &mut Writer<'_>) {
        match self {
            Self::Create { dir, name, flags, new } => {
                new.write(w.id(*dir).u32(flags.bits()));
                w.string(name.as_bytes());
            }
            Self::CreateUnnamed { dir, flags, new } => new.write(w.id(*dir).u32(flags.bits())),
            Self::Mkdir { dir, name, new } => {
                new.write(w.id(*dir));
                w.string(name.as_bytes());
            }
            Self::Mknod { dir, name, kind, rdev, new } => {
                new.write(w.id(*dir));
                w.u32(kind.mode_bits()).u32(rdev.major).u32(rdev.minor).string(name.as_bytes());
            }
            Self::Symlink { dir, name, target, owner } => {
                w.id(*dir)
                    .u32(owner.uid())
                    .u32(owner.gid())
                    .string(name.as_bytes())
                    .string(target.as_bytes());
            }
            Self::Link { dir, name, target } => {
                w.id(*dir).id(*target).string(name.as_bytes());
            }
            Self::Unlink { dir, name, kind } => {
                w.id(*dir).u32(u32::from(*kind == UnlinkKind::Directory)).string(name.as_bytes());
            }
            Self::Rename { old_dir, old_name, new_dir, new_name, flags } => {
                w.id(*old_dir).id(*new_dir).u32(flags.bits());
                w.string(old_name.as_bytes()).string(new_name.as_bytes());
            }
            Self::Bind { dir, name, kind, new } => {
                new.write(w.id(*dir).u32(kind.number()));
                w.string(name.as_bytes());
            }
            _ => {}
        }
    }
}
