//! The wire format itself: tags, varints, lengths.

/// Bytes that break the wire format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The input ends within a field.
    #[error("unexpected EOF")]
    Eof,
    /// A varint has more than ten bytes.
    #[error("integer overflow")]
    Overflow,
    /// The wire type does not fit the field, or is none.
    #[error("wrong wireType = {0}")]
    WireType(u8),
    /// Field number 0.
    #[error("illegal tag 0")]
    Tag,
    /// Text is not UTF-8.
    #[error("string field contains invalid UTF-8")]
    Utf8,
    /// Embedded JSON is malformed.
    #[error("invalid JSON: {0}")]
    Json(String),
    /// Seconds or nanoseconds that no date has.
    #[error("time out of range")]
    Time,
    /// Messages nest too deep.
    #[error("exceeded max depth")]
    Depth,
}

/// What a field carries.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Payload<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32,
    Bytes(&'a [u8]),
}

impl<'a> Payload<'a> {
    fn wire_type(self) -> u8 {
        match self {
            Payload::Varint(_) => 0,
            Payload::Fixed64(_) => 1,
            Payload::Bytes(_) => 2,
            Payload::Fixed32 => 5,
        }
    }

    pub(crate) fn bytes(self) -> Result<&'a [u8], WireError> {
        match self {
            Payload::Bytes(b) => Ok(b),
            other => Err(WireError::WireType(other.wire_type())),
        }
    }

    pub(crate) fn text(self) -> Result<&'a str, WireError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| WireError::Utf8)
    }

    pub(crate) fn varint(self) -> Result<u64, WireError> {
        match self {
            Payload::Varint(n) => Ok(n),
            other => Err(WireError::WireType(other.wire_type())),
        }
    }

    pub(crate) fn fixed64(self) -> Result<u64, WireError> {
        match self {
            Payload::Fixed64(n) => Ok(n),
            other => Err(WireError::WireType(other.wire_type())),
        }
    }
}

/// A message that is read field by field.
pub(crate) struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn varint(&mut self) -> Result<u64, WireError> {
        let mut n = 0u64;
        for shift in (0..70).step_by(7) {
            let (b, rest) = self.rest.split_first().ok_or(WireError::Eof)?;
            self.rest = rest;
            n |= u64::from(b & 0x7f).checked_shl(shift).unwrap_or(0);
            if b & 0x80 == 0 {
                return Ok(n);
            }
        }
        Err(WireError::Overflow)
    }

    pub(crate) fn take(&mut self, len: u64) -> Result<&'a [u8], WireError> {
        let len = usize::try_from(len).map_err(|_| WireError::Eof)?;
        let (head, rest) = self.rest.split_at_checked(len).ok_or(WireError::Eof)?;
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn fixed64(&mut self) -> Result<u64, WireError> {
        let b = self.take(8)?.try_into().map_err(|_| WireError::Eof)?;
        Ok(u64::from_le_bytes(b))
    }

    /// The next field's number and payload. Groups, which nothing here uses, are refused.
    pub(crate) fn next(&mut self) -> Result<Option<(u32, Payload<'a>)>, WireError> {
        if self.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| WireError::Tag)?;
        if number == 0 {
            return Err(WireError::Tag);
        }
        let payload = match tag & 7 {
            0 => Payload::Varint(self.varint()?),
            1 => Payload::Fixed64(self.fixed64()?),
            2 => {
                let len = self.varint()?;
                Payload::Bytes(self.take(len)?)
            }
            5 => {
                self.take(4)?;
                Payload::Fixed32
            }
            other => return Err(WireError::WireType(other as u8)),
        };
        Ok(Some((number, payload)))
    }
}
