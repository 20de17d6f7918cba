//! Reading and writing of the lattice's own binary records: bounded, and with one encoding
//! for each value, so that a record that was read is written as the same bytes.
//!
//! Numbers are LEB128 without padding; texts and byte strings carry their length; lists
//! carry their count. Every record starts with a version chosen by its own module.

/// Why bytes are no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum DecodeError {
    #[error("read record: it ends early")]
    Short,
    #[error("read record: {0} bytes follow its end")]
    Trailing(usize),
    #[error("read record: {what} is larger than {max}")]
    TooLarge { what: &'static str, max: usize },
    #[error("read record: {what} can't be {value}")]
    Unknown { what: &'static str, value: u64 },
    #[error("read record: {0} has no proper form")]
    Form(&'static str),
}

/// Builds a record.
#[derive(Debug, Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    pub(crate) fn number(&mut self, mut value: u64) -> &mut Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    /// Bytes whose number the reader knows.
    pub(crate) fn fixed(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.number(bytes.len() as u64);
        self.fixed(bytes)
    }

    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

/// Takes a record apart.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or(DecodeError::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.take(1)?[0])
    }

    pub(crate) fn flag(&mut self, what: &'static str) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(DecodeError::Unknown {
                what,
                value: value.into(),
            }),
        }
    }

    pub(crate) fn number(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let part = u64::from(byte & 0x7f);
            if part.leading_zeros() < shift {
                return Err(DecodeError::Form("a number"));
            }
            value |= part << shift;
            if byte & 0x80 == 0 {
                // A padded number would be a second form of the same value.
                if byte == 0 && shift > 0 {
                    return Err(DecodeError::Form("a number"));
                }
                return Ok(value);
            }
        }
        Err(DecodeError::Form("a number"))
    }

    /// A length or count of at most `max`.
    pub(crate) fn count(&mut self, what: &'static str, max: usize) -> Result<usize, DecodeError> {
        let value = self.number()?;
        usize::try_from(value)
            .ok()
            .filter(|n| *n <= max)
            .ok_or(DecodeError::TooLarge { what, max })
    }

    pub(crate) fn fixed<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(crate) fn bytes(
        &mut self,
        what: &'static str,
        max: usize,
    ) -> Result<&'a [u8], DecodeError> {
        let count = self.count(what, max)?;
        self.take(count)
    }

    pub(crate) fn text(&mut self, what: &'static str, max: usize) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes(what, max)?).map_err(|_| DecodeError::Form(what))
    }

    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            n => Err(DecodeError::Trailing(n)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_survive(values in prop::collection::vec(any::<u64>(), 0..8)) {
            let mut w = Writer::new();
            for v in &values {
                w.number(*v);
            }
            let bytes = w.finish();
            let mut r = Reader::new(&bytes);
            for v in &values {
                prop_assert_eq!(r.number().unwrap(), *v);
            }
            r.finish().unwrap();
        }

        #[test]
        fn a_number_has_one_form(bytes in prop::collection::vec(any::<u8>(), 1..12)) {
            let mut r = Reader::new(&bytes);
            if let Ok(value) = r.number() {
                let used = bytes.len() - r.rest().len();
                prop_assert_eq!(&Writer::new().number(value).finish(), &bytes[..used]);
            }
        }
    }

    #[test]
    fn what_is_no_record_is_refused() {
        assert_eq!(Reader::new(&[]).u8(), Err(DecodeError::Short));
        assert_eq!(
            Reader::new(&[0x80, 0]).number(),
            Err(DecodeError::Form("a number"))
        );
        assert_eq!(
            Reader::new(&[9, 1]).bytes("it", 10),
            Err(DecodeError::Short)
        );
        assert_eq!(
            Reader::new(&[11]).bytes("it", 10).unwrap_err().to_string(),
            "read record: it is larger than 10"
        );
        assert_eq!(
            Reader::new(&[1, 0xff]).text("it", 9),
            Err(DecodeError::Form("it"))
        );
        assert_eq!(
            Reader::new(&[2]).flag("it").unwrap_err().to_string(),
            "read record: it can't be 2"
        );
        assert_eq!(Reader::new(&[2]).finish(), Err(DecodeError::Trailing(1)));
    }
}
