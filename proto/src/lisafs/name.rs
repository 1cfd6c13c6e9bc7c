//! Names that can only be valid: file names, symbolic link targets, extended attribute names.

use super::{NAME_MAX, TARGET_MAX, WireError};

/// One component of a path: 1 to 255 bytes, no `/`, no NUL, neither `.` nor `..`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Name<'a>(&'a [u8]);

impl<'a> Name<'a> {
    /// Checks a component.
    ///
    /// # Errors
    /// [`WireError::TooLong`] beyond 255 bytes, [`WireError::Name`] for every other way to be wrong.
    pub fn new(bytes: &'a [u8]) -> Result<Self, WireError> {
        if bytes.len() > NAME_MAX {
            return Err(WireError::TooLong);
        }
        let bad = matches!(bytes, b"" | b"." | b"..") || bytes.iter().any(|byte| matches!(byte, b'/' | 0));
        if bad { Err(WireError::Name) } else { Ok(Self(bytes)) }
    }

    /// The component's bytes.
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0
    }
}

/// What a symbolic link points to: 1 to 4095 bytes without NUL. Where it points is nobody's business but the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkTarget<'a>(&'a [u8]);

impl<'a> LinkTarget<'a> {
    /// Checks a target.
    ///
    /// # Errors
    /// [`WireError::TooLong`] beyond 4095 bytes, [`WireError::Name`] when empty or with a NUL.
    pub fn new(bytes: &'a [u8]) -> Result<Self, WireError> {
        if bytes.len() > TARGET_MAX {
            return Err(WireError::TooLong);
        }
        if bytes.is_empty() || bytes.contains(&0) { Err(WireError::Name) } else { Ok(Self(bytes)) }
    }

    /// The target's bytes.
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0
    }
}

/// An extended attribute's full name, such as `user.mime_type`: 1 to 255 bytes without NUL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XattrName<'a>(&'a [u8]);

impl<'a> XattrName<'a> {
    /// Checks a name.
    ///
    /// # Errors
    /// [`WireError::TooLong`] beyond 255 bytes, [`WireError::Name`] when empty or with a NUL.
    pub fn new(bytes: &'a [u8]) -> Result<Self, WireError> {
        if bytes.len() > NAME_MAX {
            return Err(WireError::TooLong);
        }
        if bytes.is_empty() || bytes.contains(&0) { Err(WireError::Name) } else { Ok(Self(bytes)) }
    }

    /// The name's bytes.
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0
    }
}
