//! CBOR (RFC 8949) as Kubernetes speaks it (KEP-4222): JSON's values, written as upstream's
//! `runtime/serializer/cbor` writes them and read with its limits.
//!
//! Strings and keys are byte strings; bytes, which are base64 in JSON, are byte strings under
//! tag 22. A whole document stands under the tag of self-described CBOR. Heads are
//! `ciborium-ll`'s; how types come into it is here. It is no general CBOR: what JSON has no
//! value for is refused. Start with [`read`] and [`enclose`].

use crate::schema::{Scalar, Schema, Type, TypeId};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ciborium_ll::{Decoder, Encoder, Header};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Number, Value};

/// What every document begins with: the head of tag 55799.
pub const MAGIC: [u8; 3] = [0xd9, 0xd9, 0xf7];

/// How deep arrays, maps and tags may nest; upstream's.
const LEVELS_MAX: usize = 64;
/// How many items an array and how many pairs a map may have; upstream's.
const ITEMS_MAX: usize = 1024;

/// Why bytes are no document.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// It ends within an item.
    #[error("cbor: unexpected end of data")]
    End,
    /// A head that CBOR does not have.
    #[error("cbor: malformed item at byte {0}")]
    Malformed(usize),
    /// Something after the document.
    #[error("cbor: {0} bytes of extraneous data starting at index {1}")]
    Trailing(usize, usize),
    /// Too deep.
    #[error("cbor: exceeded max nested level {LEVELS_MAX}")]
    Depth,
    /// Too many items in one array or pairs in one map.
    #[error("cbor: exceeded max number of {0} {ITEMS_MAX}")]
    Items(&'static str),
    /// A map that has a key twice.
    #[error("cbor: found duplicate map key {0:?}")]
    Duplicate(String),
    /// What JSON has no value for.
    #[error("cbor: {0} is not accepted")]
    Unsupported(&'static str),
}

/// Reads one document, with or without the tag of self-described CBOR.
///
/// # Errors
/// For bytes that are malformed, of another length, too deep or too wide, and for what JSON
/// has no value for.
pub fn read(bytes: &[u8]) -> Result<Value, Error> {
    // As upstream counts levels, this tag is none.
    let at = if bytes.starts_with(&MAGIC) {
        MAGIC.len()
    } else {
        0
    };
    let mut input = Input { bytes, at };
    let value = input.item(0, None)?;
    match bytes.len() - input.at {
        0 => Ok(value),
        more => Err(Error::Trailing(more, input.at)),
    }
}

/// How a byte string is to be written in text (RFC 8949, section 3.4.5.2).
#[derive(Clone, Copy)]
enum Later {
    Base64Url,
    Base64,
    Base16,
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn head(&mut self) -> Result<Header, Error> {
        let mut decoder = Decoder::from(&self.bytes[self.at..]);
        let head = decoder.pull().map_err(|e| match e {
            ciborium_ll::Error::Io(_) => Error::End,
            ciborium_ll::Error::Syntax(_) => Error::Malformed(self.at),
        })?;
        self.at += decoder.offset();
        Ok(head)
    }

    fn item(&mut self, depth: usize, later: Option<Later>) -> Result<Value, Error> {
        let start = self.at;
        let head = self.head()?;
        self.content(head, start, depth, later)
    }

    /// The item that a head begins.
    fn content(
        &mut self,
        head: Header,
        start: usize,
        depth: usize,
        later: Option<Later>,
    ) -> Result<Value, Error> {
        Ok(match head {
            Header::Positive(n) => i64::try_from(n)
                .map_err(|_| Error::Unsupported("an integer above int64"))?
                .into(),
            Header::Negative(n) => i64::try_from(n)
                .map(|n| !n)
                .map_err(|_| Error::Unsupported("an integer below int64"))?
                .into(),
            Header::Float(f) => Number::from_f64(f)
                .ok_or(Error::Unsupported("a float that is not finite"))?
                .into(),
            Header::Simple(20) => false.into(),
            Header::Simple(21) => true.into(),
            Header::Simple(22) => Value::Null,
            Header::Simple(_) => return Err(Error::Unsupported("a simple value")),
            Header::Break => return Err(Error::Malformed(start)),
            Header::Text(length) => self.text(length)?.into(),
            Header::Bytes(length) => self.byte_string(length, later)?.into(),
            Header::Tag(tag) => self.tagged(tag, inside(depth)?, later)?,
            Header::Array(length) => self.array(length, inside(depth)?, later)?,
            Header::Map(length) => self.map(length, inside(depth)?, later)?,
        })
    }

    fn array(
        &mut self,
        length: Option<usize>,
        depth: usize,
        later: Option<Later>,
    ) -> Result<Value, Error> {
        let mut out = Vec::new();
        while let Some((head, start)) = self.next(length, out.len(), "elements of an array")? {
            out.push(self.content(head, start, depth, later)?);
        }
        Ok(Value::Array(out))
    }

    fn map(
        &mut self,
        length: Option<usize>,
        depth: usize,
        later: Option<Later>,
    ) -> Result<Value, Error> {
        let mut out = Map::new();
        while let Some((head, _)) = self.next(length, out.len(), "pairs of a map")? {
            let key = match head {
                Header::Text(length) => self.text(length)?,
                Header::Bytes(length) => self.byte_string(length, None)?,
                _ => return Err(Error::Unsupported("a key that is no string")),
            };
            let value = self.item(depth, later)?;
            if out.contains_key(&key) {
                return Err(Error::Duplicate(key));
            }
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }

    /// The head of the next part of an array or map that has had `done`, and where it is;
    /// `None` at the end.
    fn next(
        &mut self,
        length: Option<usize>,
        done: usize,
        of: &'static str,
    ) -> Result<Option<(Header, usize)>, Error> {
        if length.is_some_and(|n| n > ITEMS_MAX) {
            return Err(Error::Items(of));
        }
        if length == Some(done) {
            return Ok(None);
        }
        let start = self.at;
        let head = self.head()?;
        if length.is_none() && head == Header::Break {
            return Ok(None);
        }
        if done == ITEMS_MAX {
            return Err(Error::Items(of));
        }
        Ok(Some((head, start)))
    }

    fn tagged(&mut self, tag: u64, depth: usize, later: Option<Later>) -> Result<Value, Error> {
        let later = match tag {
            21 => Some(Later::Base64Url),
            22 => Some(Later::Base64),
            23 => Some(Later::Base16),
            _ => later,
        };
        let value = self.item(depth, later)?;
        let time = match (tag, &value) {
            (0, Value::String(text)) => text.parse::<Timestamp>().ok(),
            (1, Value::Number(seconds)) => seconds.as_f64().and_then(since_epoch),
            (0 | 1, _) => None,
            (2 | 3, _) => return Err(Error::Unsupported("an integer of any size")),
            _ => return Ok(value),
        };
        let time = time.ok_or(Error::Unsupported("this content of a tag for times"))?;
        Ok(time.to_string().into())
    }

    fn byte_string(
        &mut self,
        length: Option<usize>,
        later: Option<Later>,
    ) -> Result<String, Error> {
        let bytes = self.segments(length, false)?;
        match later {
            Some(Later::Base64Url) => Ok(URL_SAFE_NO_PAD.encode(bytes)),
            Some(Later::Base64) => Ok(STANDARD.encode(bytes)),
            Some(Later::Base16) => Ok(bytes.iter().map(|b| format!("{b:02x}")).collect()),
            None => utf8(bytes),
        }
    }

    fn text(&mut self, length: Option<usize>) -> Result<String, Error> {
        utf8(self.segments(length, true)?)
    }

    /// The bytes of a string: of this length, or of segments up to a break.
    fn segments(&mut self, length: Option<usize>, text: bool) -> Result<Vec<u8>, Error> {
        if let Some(length) = length {
            return self.take(length).map(<[u8]>::to_vec);
        }
        let mut out = Vec::new();
        loop {
            let start = self.at;
            match self.head()? {
                Header::Break => return Ok(out),
                Header::Bytes(Some(n)) if !text => out.extend_from_slice(self.take(n)?),
                Header::Text(Some(n)) if text => {
                    // Every segment is a text of its own.
                    let segment = std::str::from_utf8(self.take(n)?);
                    out.extend_from_slice(segment.map_err(|_| NOT_UTF8)?.as_bytes());
                }
                _ => return Err(Error::Malformed(start)),
            }
        }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..length).ok_or(Error::End)?;
        self.at += length;
        Ok(taken)
    }
}

const NOT_UTF8: Error = Error::Unsupported("a string that is not UTF-8");

fn utf8(bytes: Vec<u8>) -> Result<String, Error> {
    String::from_utf8(bytes).map_err(|_| NOT_UTF8)
}

fn inside(depth: usize) -> Result<usize, Error> {
    if depth == LEVELS_MAX {
        return Err(Error::Depth);
    }
    Ok(depth + 1)
}

fn since_epoch(seconds: f64) -> Option<Timestamp> {
    let since = SignedDuration::try_from_secs_f64(seconds).ok()?;
    Timestamp::from_duration(since).ok()
}

/// Appends a document: the tag of self-described CBOR, then what `content` writes.
pub fn enclose(out: &mut Vec<u8>, content: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(&MAGIC);
    content(out);
}

/// Appends one value. `ty` tells bytes and floats from other strings and numbers; custom
/// resources, which have neither, have none.
pub fn write(ty: Option<(&Schema, TypeId)>, value: &Value, out: &mut Vec<u8>) {
    let scalar = ty.and_then(|(schema, ty)| match schema.get(ty) {
        Type::Scalar(scalar) => Some(*scalar),
        _ => None,
    });
    match value {
        Value::Null => head(Header::Simple(22), out),
        Value::Bool(v) => head(Header::Simple(20 + u8::from(*v)), out),
        Value::Number(n) => head(number(n, scalar == Some(Scalar::Double)), out),
        Value::String(text) => {
            let bytes = match scalar {
                Some(Scalar::Bytes) => STANDARD.decode(text).ok(),
                _ => None,
            };
            match bytes {
                Some(bytes) => {
                    head(Header::Tag(22), out);
                    string(&bytes, out);
                }
                None => string(text.as_bytes(), out),
            }
        }
        Value::Array(items) => {
            array(items.len(), out);
            let ty = ty.and_then(|(schema, ty)| match schema.get(ty) {
                Type::List(list) => Some((schema, list.item)),
                _ => None,
            });
            for item in items {
                write(ty, item, out);
            }
        }
        Value::Object(entries) => {
            map(entries.len(), out);
            for (name, value) in entries {
                string(name.as_bytes(), out);
                let ty = ty.and_then(|(schema, ty)| match schema.get(ty) {
                    Type::Struct(fields) => Some((schema, fields.field(name)?.ty)),
                    Type::Map(ty) => Some((schema, *ty)),
                    _ => None,
                });
                write(ty, value, out);
            }
        }
    }
}

/// Appends the head of a map of `pairs` pairs, which are to follow.
pub fn map(pairs: usize, out: &mut Vec<u8>) {
    head(Header::Map(Some(pairs)), out);
}

/// Appends the head of an array of `items` items, which are to follow.
pub fn array(items: usize, out: &mut Vec<u8>) {
    head(Header::Array(Some(items)), out);
}

/// Appends a string as upstream writes strings: as bytes.
pub fn string(bytes: &[u8], out: &mut Vec<u8>) {
    head(Header::Bytes(Some(bytes.len())), out);
    out.extend_from_slice(bytes);
}

/// The shortest head that holds the number.
fn number(n: &Number, float: bool) -> Header {
    match n.as_i64() {
        Some(n) if !float => match u64::try_from(n) {
            Ok(n) => Header::Positive(n),
            Err(_) => Header::Negative((!n).unsigned_abs()),
        },
        // What is larger is read as a float from JSON, too.
        _ => Header::Float(n.as_f64().unwrap_or_default()),
    }
}

fn head(head: Header, out: &mut Vec<u8>) {
    match Encoder::from(out).push(head) {
        Ok(()) => {}
        // Memory takes whatever is written.
        Err(never) => match never {},
    }
}

#[cfg(test)]
mod tests;
