//! Headers: pairs of names and values, compressed as one zlib stream a direction and
//! connection, which begins with a dictionary that both ends know.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use std::sync::LazyLock;

/// Longest list of headers, unpacked; a longer one ends the connection.
const UNPACKED_MAX_BYTES: usize = 64 << 10;
/// Most pairs.
const PAIRS_MAX: usize = 256;

/// The standard's dictionary: first words, each after its length, ...
const WORDS: &str = "options|head|post|put|delete|trace|accept|accept-charset|accept-encoding|\
    accept-language|accept-ranges|age|allow|authorization|cache-control|connection|content-base|\
    content-encoding|content-language|content-length|content-location|content-md5|content-range|\
    content-type|date|etag|expect|expires|from|host|if-match|if-modified-since|if-none-match|\
    if-range|if-unmodified-since|last-modified|location|max-forwards|pragma|proxy-authenticate|\
    proxy-authorization|range|referer|retry-after|server|te|trailer|transfer-encoding|upgrade|\
    user-agent|vary|via|warning|www-authenticate|method|get|status|200 OK|version|HTTP/1.1|url|\
    public|set-cookie|keep-alive|origin";
/// ... then values that were common.
const VALUES: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415\
    416417502504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad \
    Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not \
    Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 \
    Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
    application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,\
    deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut dictionary = Vec::new();
    for word in WORDS.split('|') {
        put(&mut dictionary, word);
    }
    dictionary.extend_from_slice(VALUES.as_bytes());
    dictionary
});

/// A text after its length. What is sent is never near four gigabytes.
fn put(to: &mut Vec<u8>, text: &str) {
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    to.extend_from_slice(&length.to_be_bytes());
    to.extend_from_slice(text.as_bytes());
}

/// Names, in lower case, and values in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    /// The value of a name, which is compared without regard to case.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// What came are no headers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// It does not unpack.
    #[error("unpack headers")]
    Packed,
    /// It is too long, unpacked.
    #[error("unpack headers: more than {UNPACKED_MAX_BYTES} bytes")]
    TooLong,
    /// It unpacks to something else.
    #[error("read headers")]
    Malformed,
}

/// Unpacks the headers of one direction of a connection.
#[derive(Debug)]
pub struct Unpacker(Decompress);

impl Default for Unpacker {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Unpacker {
    /// Unpacks those of the next frame.
    ///
    /// # Errors
    /// When they are none; the connection can't be used any more then.
    pub fn unpack(&mut self, packed: &[u8]) -> Result<Headers, HeaderError> {
        let mut plain = Vec::with_capacity(1024);
        let mut rest = packed;
        loop {
            let before = (self.0.total_in(), plain.len());
            let unpacked = self
                .0
                .decompress_vec(rest, &mut plain, FlushDecompress::Sync);
            let read = usize::try_from(self.0.total_in() - before.0);
            rest = &rest[read.map_err(|_| HeaderError::Packed)?..];
            match unpacked {
                Err(error) if error.needs_dictionary().is_some() => {
                    let set = self.0.set_dictionary(&DICTIONARY);
                    set.map_err(|_| HeaderError::Packed)?;
                    continue;
                }
                Err(_) | Ok(Status::StreamEnd) => return Err(HeaderError::Packed),
                Ok(Status::Ok | Status::BufError) => {}
            }
            if plain.len() > UNPACKED_MAX_BYTES {
                return Err(HeaderError::TooLong);
            }
            // All room was used: there may be more.
            if plain.len() == plain.capacity() {
                plain.reserve(plain.len());
                continue;
            }
            if rest.is_empty() || plain.len() == before.1 {
                break;
            }
        }
        parse(&plain)
    }
}

fn parse(mut plain: &[u8]) -> Result<Headers, HeaderError> {
    let pairs = number(&mut plain)?;
    if pairs > PAIRS_MAX {
        return Err(HeaderError::TooLong);
    }
    let mut headers = Headers::default();
    for _ in 0..pairs {
        let (name, value) = (text(&mut plain)?, text(&mut plain)?);
        headers.0.push((name.to_ascii_lowercase(), value));
    }
    Ok(headers)
}

fn number(plain: &mut &[u8]) -> Result<usize, HeaderError> {
    let (four, rest) = plain
        .split_first_chunk::<4>()
        .ok_or(HeaderError::Malformed)?;
    *plain = rest;
    usize::try_from(u32::from_be_bytes(*four)).map_err(|_| HeaderError::Malformed)
}

fn text(plain: &mut &[u8]) -> Result<String, HeaderError> {
    let length = number(plain)?;
    let (text, rest) = plain
        .split_at_checked(length)
        .ok_or(HeaderError::Malformed)?;
    *plain = rest;
    String::from_utf8(text.to_vec()).map_err(|_| HeaderError::Malformed)
}

/// Packs the headers of one direction of a connection.
pub(super) struct Packer(Compress);

impl Packer {
    pub(super) fn new() -> Result<Self, HeaderError> {
        let mut packer = Compress::new(Compression::default(), true);
        let set = packer.set_dictionary(&DICTIONARY);
        set.map_err(|_| HeaderError::Packed)?;
        Ok(Self(packer))
    }

    pub(super) fn pack(&mut self, headers: &Headers) -> Result<Vec<u8>, HeaderError> {
        let mut plain = Vec::new();
        let pairs = u32::try_from(headers.0.len()).map_err(|_| HeaderError::TooLong)?;
        plain.extend_from_slice(&pairs.to_be_bytes());
        for (name, value) in &headers.0 {
            put(&mut plain, name);
            put(&mut plain, value);
        }
        let mut packed = Vec::with_capacity(plain.len() + 128);
        let mut rest = plain.as_slice();
        loop {
            let before = self.0.total_in();
            let done = self
                .0
                .compress_vec(rest, &mut packed, FlushCompress::Sync)
                .map_err(|_| HeaderError::Packed)?;
            let read = usize::try_from(self.0.total_in() - before);
            rest = &rest[read.map_err(|_| HeaderError::Packed)?..];
            if packed.len() == packed.capacity() {
                packed.reserve(packed.len());
            } else if rest.is_empty() || done == Status::BufError {
                return Ok(packed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_dictionary_is_the_standard_s() {
        assert_eq!(DICTIONARY.len(), 1423);
        // Its checksum is in the head of every connection's first headers.
        let packed = Packer::new().unwrap().pack(&Headers::default()).unwrap();
        assert_eq!(packed[2..6], [0xe3, 0xc6, 0xa7, 0xc2]);
    }

    proptest! {
        #[test]
        fn headers_come_out_as_they_went_in(
            lists in prop::collection::vec(
                prop::collection::vec(("[a-z-]{1,20}", ".{0,300}"), 0..8), 1..5,
            ),
        ) {
            let (mut packer, mut unpacker) = (Packer::new().unwrap(), Unpacker::default());
            for list in lists {
                let headers = Headers(list);
                let packed = packer.pack(&headers).unwrap();
                prop_assert_eq!(unpacker.unpack(&packed).unwrap(), headers);
            }
        }

        #[test]
        fn noise_is_an_error_and_no_panic(noise in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Unpacker::default().unpack(&noise);
            let _ = parse(&noise);
        }
    }

    #[test]
    fn what_unpacks_to_too_much_is_given_up() {
        let long = "x".repeat(1 << 20);
        let packed = Packer::new()
            .unwrap()
            .pack(&Headers(vec![("a".to_owned(), long)]))
            .unwrap();
        assert!(packed.len() < 8 << 10);
        let unpacked = Unpacker::default().unpack(&packed);
        assert_eq!(unpacked, Err(HeaderError::TooLong));
    }
}
