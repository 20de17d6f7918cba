//! One line of a log in the Container Runtime Interface's format:
//! `2016-10-06T00:17:09.669794202Z stdout F text`. `P` in place of `F` marks a part of a
//! longer line.

/// A line, parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    pub(crate) time: &'a [u8],
    pub(crate) stream: &'a [u8],
    /// Parts of it follow: no line end comes after it.
    pub(crate) partial: bool,
    pub(crate) text: &'a [u8],
}

impl<'a> Line<'a> {
    /// From a line without its end; none if it is not of the format.
    pub(crate) fn parse(line: &'a [u8]) -> Option<Self> {
        let mut words = line.splitn(4, |b| *b == b' ');
        let (time, stream, tag) = (words.next()?, words.next()?, words.next()?);
        let partial = match tag.split(|b| *b == b':').next()? {
            b"P" => true,
            b"F" => false,
            _ => return None,
        };
        matches!(stream, b"stdout" | b"stderr").then_some(())?;
        Some(Self {
            time,
            stream,
            partial,
            text: words.next().unwrap_or_default(),
        })
    }

    /// When it was written.
    pub(crate) fn at(&self) -> Option<jiff::Timestamp> {
        std::str::from_utf8(self.time).ok()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_whole_and_partial_lines() {
        let line = Line::parse(b"2016-10-06T00:17:09.669794202Z stdout F a b").unwrap();
        assert_eq!((line.partial, line.text), (false, &b"a b"[..]));
        assert_eq!(line.at().unwrap().as_second(), 1_475_713_029);
        let line = Line::parse(b"2016-10-06T00:17:09Z stderr P:x part").unwrap();
        assert!(line.partial);
        let empty = Line::parse(b"2016-10-06T00:17:09Z stderr F ").unwrap();
        assert_eq!(empty.text, b"");
        for bad in [&b""[..], b"x", b"t stdout", b"t other F x", b"t stdout Q x"] {
            assert_eq!(Line::parse(bad), None);
        }
    }
}
