//! Mount options of tmpfs.

use std::fmt::Write;

use crate::errno::{Errno, SysResult};

/// What `mount -o` says; `None` where it says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TmpfsOptions {
    /// Bytes of data; 0 is no limit.
    pub size: Option<u64>,
    /// Files; 0 is no limit.
    pub inodes: Option<u64>,
    /// Permissions of the root directory.
    pub mode: Option<u32>,
    /// Its owner.
    pub uid: Option<u32>,
    /// Its group.
    pub gid: Option<u32>,
}

impl TmpfsOptions {
    /// From the text behind `-o`. `EINVAL` for what tmpfs does not know.
    pub fn parse(text: &[u8]) -> SysResult<TmpfsOptions> {
        let text = std::str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
        let mut options = TmpfsOptions::default();
        for option in text.split(',').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            match name {
                "size" => options.size = Some(parse_size(value)?),
                "nr_blocks" => {
                    options.size = Some(parse_size(value)?.checked_mul(4096).ok_or(Errno::EINVAL)?)
                }
                "nr_inodes" => options.inodes = Some(parse_size(value)?),
                "mode" => {
                    let mode = u32::from_str_radix(value, 8).map_err(|_| Errno::EINVAL)?;
                    options.mode = Some(mode & 0o7777);
                }
                "uid" => options.uid = Some(value.parse().map_err(|_| Errno::EINVAL)?),
                "gid" => options.gid = Some(value.parse().map_err(|_| Errno::EINVAL)?),
                "huge" | "mpol" | "inode32" | "inode64" | "noswap" => {}
                _ => return Err(Errno::EINVAL),
            }
        }
        Ok(options)
    }

    /// For `/proc/mounts`.
    pub fn show(&self) -> String {
        let mut text = String::new();
        if let Some(size) = self.size.filter(|size| *size != 0) {
            let _ = write!(text, ",size={}k", size.div_ceil(4096) * 4);
        }
        if let Some(inodes) = self.inodes.filter(|inodes| *inodes != 0) {
            let _ = write!(text, ",nr_inodes={inodes}");
        }
        if let Some(mode) = self.mode.filter(|mode| *mode != 0o1777) {
            let _ = write!(text, ",mode={mode:03o}");
        }
        if let Some(uid) = self.uid.filter(|uid| *uid != 0) {
            let _ = write!(text, ",uid={uid}");
        }
        if let Some(gid) = self.gid.filter(|gid| *gid != 0) {
            let _ = write!(text, ",gid={gid}");
        }
        text.push_str(",inode64");
        text
    }
}

/// A number with one of `memparse`'s suffixes, or a percentage of physical memory.
fn parse_size(text: &str) -> SysResult<u64> {
    let number = |digits: &str| digits.parse::<u64>().map_err(|_| Errno::EINVAL);
    if let Some(percent) = text.strip_suffix('%') {
        let memory = u64::from(crate::platform::arena()?.frames_max()).saturating_mul(4096);
        return Ok(memory / 100 * number(percent)?.min(100));
    }
    let shift = match text.bytes().last().map(|byte| byte.to_ascii_lowercase()) {
        Some(b'k') => 10,
        Some(b'm') => 20,
        Some(b'g') => 30,
        Some(b't') => 40,
        _ => return number(text),
    };
    let digits = text.get(..text.len().saturating_sub(1)).unwrap_or_default();
    number(digits)?.checked_mul(1 << shift).ok_or(Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_shown() {
        let options = TmpfsOptions::parse(b"size=64k,nr_inodes=1k,mode=755,uid=1000,gid=5").unwrap();
        assert_eq!(options.size, Some(65536));
        assert_eq!(options.inodes, Some(1024));
        assert_eq!(options.show(), ",size=64k,nr_inodes=1024,mode=755,uid=1000,gid=5,inode64");
        assert_eq!(TmpfsOptions::parse(b"").unwrap(), TmpfsOptions::default());
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["size=", "size=x", "mode=9", "uid=-1", "frobnicate", "size=99999999999999t"] {
            assert_eq!(TmpfsOptions::parse(text.as_bytes()), Err(Errno::EINVAL), "{text}");
        }
    }
}
