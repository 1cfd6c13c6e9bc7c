//! Reading and writing fields one after another. A [`Reader`] never reads past its end, a [`Writer`] only appends.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{FdId, WireError};

pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// A fixed-layout struct.
    pub(super) fn fixed<T: FromBytes + KnownLayout + Immutable + Unaligned>(
        &mut self,
    ) -> Result<T, WireError> {
        let (value, rest) = T::read_from_prefix(self.0).map_err(|_| WireError::Truncated)?;
        self.0 = rest;
        Ok(value)
    }

    pub(super) fn u16(&mut self) -> Result<u16, WireError> {
        self.fixed::<U16>().map(U16::get)
    }

    pub(super) fn u32(&mut self) -> Result<u32, WireError> {
        self.fixed::<U32>().map(U32::get)
    }

    pub(super) fn u64(&mut self) -> Result<u64, WireError> {
        self.fixed::<U64>().map(U64::get)
    }

    pub(super) fn id(&mut self) -> Result<FdId, WireError> {
        FdId::new(self.u64()?).ok_or(WireError::Id)
    }

    pub(super) fn optional_id(&mut self) -> Result<Option<FdId>, WireError> {
        Ok(FdId::new(self.u64()?))
    }

    /// `count` bytes.
    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(WireError::Truncated)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// A 16-bit length and so many bytes.
    pub(super) fn string(&mut self) -> Result<&'a [u8], WireError> {
        let length = usize::from(self.u16()?);
        self.bytes(length)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Everything that is left.
    pub(super) const fn rest(&mut self) -> &'a [u8] {
        let rest = self.0;
        self.0 = &[];
        rest
    }

    /// Ends the message: nothing may be left.
    pub(super) const fn end(self) -> Result<(), WireError> {
        if self.0.is_empty() { Ok(()) } else { Err(WireError::Trailing) }
    }
}

pub(super) struct Writer<'a>(&'a mut Vec<u8>);

impl<'a> Writer<'a> {
    /// Appends to `out`.
    pub(super) const fn new(out: &'a mut Vec<u8>) -> Self {
        Self(out)
    }

    pub(super) fn fixed<T: IntoBytes + Immutable>(&mut self, value: &T) -> &mut Self {
        self.bytes(value.as_bytes())
    }

    pub(super) fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(super) fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(super) fn id(&mut self, id: FdId) -> &mut Self {
        self.u64(id.get())
    }

    pub(super) fn optional_id(&mut self, id: Option<FdId>) -> &mut Self {
        self.u64(id.map_or(0, FdId::get))
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A 16-bit length and the bytes. Only checked names come here, all of them shorter than 64 KiB; a longer one would be
    /// cut, and the reader would then refuse the message.
    pub(super) fn string(&mut self, bytes: &[u8]) -> &mut Self {
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        self.u16(length).bytes(bytes)
    }
}
