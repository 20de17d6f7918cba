//! Frames: eight bytes of head, then the payload.

use super::headers::{HeaderError, Headers, Unpacker};
use bytes::{BufMut as _, BytesMut};

/// Longest control frame that is read; a longer one ends the connection. Data may have any
/// length: it is used as it comes.
pub(super) const CONTROL_MAX_BYTES: u32 = 64 << 10;

const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// Data of a stream.
    Data {
        /// Which.
        stream: u32,
        /// Nothing follows in it.
        fin: bool,
        /// Bytes that follow.
        length: u32,
    },
    /// Anything else; its payload is [`Frame::parse`]d.
    Control {
        /// The frame's type.
        kind: u16,
        /// Its flags.
        flags: u8,
        /// Bytes that follow.
        length: u32,
    },
}

/// A control frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A stream is opened.
    Open {
        /// Its number.
        stream: u32,
        /// What it is for.
        headers: Headers,
        /// Its opener says nothing in it.
        fin: bool,
    },
    /// A stream is taken.
    Taken {
        /// Its number.
        stream: u32,
        /// What is said about that.
        headers: Headers,
    },
    /// More headers of a stream.
    Headers {
        /// Its number.
        stream: u32,
        /// They.
        headers: Headers,
        /// Nothing follows in it.
        fin: bool,
    },
    /// A stream is broken off.
    Reset {
        /// Its number.
        stream: u32,
        /// Why.
        status: u32,
    },
    /// Sent back as it is.
    Ping(u32),
    /// No further streams are opened.
    GoAway {
        /// The last stream that was taken.
        last: u32,
    },
    /// Settings, windows, and what is not known.
    Other,
}

/// What came is no frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not of this version.
    #[error("read a frame: it is of version {0} of SPDY")]
    Version(u16),
    /// Longer than any that is sent.
    #[error("read a frame of {0} bytes: more than {CONTROL_MAX_BYTES}")]
    TooLong(u32),
    /// Shorter than its type.
    #[error("read a frame: it is cut short")]
    Short,
    /// Its headers are none.
    #[error(transparent)]
    Headers(#[from] HeaderError),
}

/// Reads a head.
///
/// # Errors
/// When it is of another version or too long.
pub fn parse_head(bytes: [u8; 8]) -> Result<Head, FrameError> {
    let [a, b, c, d, flags, e, f, g] = bytes;
    let length = u32::from_be_bytes([0, e, f, g]);
    if a & 0x80 == 0 {
        return Ok(Head::Data {
            stream: u32::from_be_bytes([a, b, c, d]),
            fin: flags & FLAG_FIN != 0,
            length,
        });
    }
    let version = u16::from_be_bytes([a & 0x7f, b]);
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    if length > CONTROL_MAX_BYTES {
        return Err(FrameError::TooLong(length));
    }
    Ok(Head::Control {
        kind: u16::from_be_bytes([c, d]),
        flags,
        length,
    })
}

impl Frame {
    /// Reads a control frame's payload. All headers of a connection go through the same
    /// unpacker, in their order.
    ///
    /// # Errors
    /// When it is cut short or its headers are none.
    pub fn parse(
        kind: u16,
        flags: u8,
        payload: &[u8],
        unpacker: &mut Unpacker,
    ) -> Result<Self, FrameError> {
        let number = |at: usize| {
            let four = payload.get(at..at + 4).ok_or(FrameError::Short)?;
            let four: [u8; 4] = four.try_into().map_err(|_| FrameError::Short)?;
            Ok::<u32, FrameError>(u32::from_be_bytes(four))
        };
        let stream = |at: usize| number(at).map(|n| n & 0x7fff_ffff);
        let mut headers = |at: usize| {
            let packed = payload.get(at..).ok_or(FrameError::Short)?;
            Ok::<Headers, FrameError>(unpacker.unpack(packed)?)
        };
        let fin = flags & FLAG_FIN != 0;
        Ok(match kind {
            SYN_STREAM => Self::Open {
                stream: stream(0)?,
                headers: headers(10)?,
                fin,
            },
            SYN_REPLY => Self::Taken {
                stream: stream(0)?,
                headers: headers(4)?,
            },
            HEADERS => Self::Headers {
                stream: stream(0)?,
                headers: headers(4)?,
                fin,
            },
            RST_STREAM => Self::Reset {
                stream: stream(0)?,
                status: number(4)?,
            },
            PING => Self::Ping(number(0)?),
            GOAWAY => Self::GoAway { last: stream(0)? },
            _ => Self::Other,
        })
    }
}

/// A control frame's bytes.
pub(super) fn control(kind: Kind, flags: u8, parts: &[&[u8]]) -> BytesMut {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut frame = BytesMut::with_capacity(8 + length);
    frame.put_u16(0x8000 | VERSION);
    frame.put_u16(kind as u16);
    put_flags_and_length(&mut frame, flags, length);
    parts.iter().for_each(|part| frame.put_slice(part));
    frame
}

/// Of those that are sent.
#[derive(Clone, Copy)]
#[repr(u16)]
pub(super) enum Kind {
    #[cfg(test)]
    Open = SYN_STREAM,
    Taken = SYN_REPLY,
    Reset = RST_STREAM,
    Ping = PING,
    GoAway = GOAWAY,
}

/// A data frame's head.
pub(super) fn data_head(stream: u32, fin: bool, length: usize) -> BytesMut {
    let mut frame = BytesMut::with_capacity(8 + length);
    frame.put_u32(stream & 0x7fff_ffff);
    put_flags_and_length(&mut frame, if fin { FLAG_FIN } else { 0 }, length);
    frame
}

fn put_flags_and_length(frame: &mut BytesMut, flags: u8, length: usize) {
    frame.put_u8(flags);
    // What is sent is never near what three bytes hold.
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    frame.put_slice(&length[1..]);
}
